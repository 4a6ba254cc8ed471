"""Where bundles go: what each strategy wants, what it must not do, and when it is certain that there is no way."""

import pytest

from zmesh.core import packing
from zmesh.core.packing import plan, why_not
from zmesh.wire.messages import UNIT

A, B, C = b"a" * 8, b"b" * 8, b"c" * 8
CPU = {"CPU": UNIT}


def cpus(*counts: int) -> dict[bytes, dict[str, int]]:
    return {node: {"CPU": count * UNIT} for node, count in zip((A, B, C), counts, strict=False)}


def many(count: int, **amounts: int) -> dict[int, dict[str, int]]:
    return {index: {name: amount * UNIT for name, amount in ({"CPU": 1} | amounts).items()} for index in range(count)}


def test_pack_takes_the_node_that_can_hold_most_and_goes_on_where_it_has_begun() -> None:
    assert plan("PACK", many(3), cpus(2, 4, 2), []) == ({0: B, 1: B, 2: B}, True)
    assert plan("PACK", many(5), cpus(2, 4, 2), [])[0] == {0: B, 1: B, 2: B, 3: B, 4: A}
    assert plan("PACK", many(1), cpus(2, 4, 2), [C])[0] == {0: C}, "where others of the group are"


def test_spread_takes_as_many_nodes_as_there_are_and_goes_round() -> None:
    assert plan("SPREAD", many(3), cpus(9, 9, 9), [])[0] == {0: A, 1: B, 2: C}
    assert plan("SPREAD", many(4), cpus(9, 9, 1), [])[0] == {0: A, 1: B, 2: C, 3: A}
    assert plan("SPREAD", many(1), cpus(9, 9, 9), [A, B])[0] == {0: C}


def test_strict_spread_needs_a_node_for_each() -> None:
    assert plan("STRICT_SPREAD", many(3), cpus(1, 1, 1), [])[0] == {0: A, 1: B, 2: C}
    assert plan("STRICT_SPREAD", many(4), cpus(9, 9, 9), []) == (None, True)
    assert plan("STRICT_SPREAD", many(1), cpus(9, 9, 9), [A, B])[0] == {0: C}
    assert plan("STRICT_SPREAD", many(2), cpus(9, 9, 9), [A, B]) == (None, True)


def test_strict_pack_needs_one_node_for_all() -> None:
    assert plan("STRICT_PACK", many(3), cpus(2, 3, 2), [])[0] == {0: B, 1: B, 2: B}
    assert plan("STRICT_PACK", many(4), cpus(3, 3, 3), []) == (None, True)
    assert plan("STRICT_PACK", many(1), cpus(9, 9, 9), [B])[0] == {0: B}
    assert plan("STRICT_PACK", many(1), cpus(9), [b"gone...."]) == (None, True), "the others are where it cannot go"


def test_a_bundle_that_fits_one_node_only_leaves_the_others_to_the_rest() -> None:
    bundles = many(1) | {1: CPU | {"GPU": UNIT}}
    free = {A: CPU | {"GPU": UNIT}, B: CPU}
    for strategy in ("PACK", "SPREAD", "STRICT_SPREAD"):
        assert plan(strategy, bundles, free, [])[0] == {0: B, 1: A}


def test_the_search_takes_back_what_does_not_lead_on() -> None:
    bundles = {index: {"CPU": cpus * UNIT} for index, cpus in enumerate((4, 3, 3, 2, 2))}
    found, _ = plan("PACK", bundles, cpus(7, 7), [])
    assert found is not None
    for node in (A, B):
        assert sum(bundles[index]["CPU"] for index, where in found.items() if where == node) == 7 * UNIT


def test_nodes_that_are_alike_are_tried_once() -> None:
    free = {bytes([index]) * 8: {"CPU": 2 * UNIT} for index in range(40)}
    assert plan("PACK", {0: {"CPU": 3 * UNIT}} | dict.fromkeys(range(1, 30), CPU), free, []) == (None, True)
    assert plan("SPREAD", many(81), free, [])[0] is None


def test_a_search_that_takes_too_long_is_given_up_without_a_verdict() -> None:
    free = {bytes([index]) * 8: {"CPU": 1000 + index} for index in range(12)}
    bundles = {index: {"CPU": 600 + index} for index in range(13)}
    assert plan("PACK", bundles, free, []) == (None, False)


def test_a_thousand_bundles_are_placed_in_one_go() -> None:
    free = {bytes([index]) * 8: {"CPU": 20 * UNIT} for index in range(50)}
    found, _ = plan("SPREAD", many(1000), free, [])
    assert found is not None
    assert len(found) == 1000
    assert packing.STEPS_MAX > 1000


@pytest.mark.parametrize(
    ("strategy", "bundles", "totals", "text"),
    [
        ("PACK", [CPU, {"GPU": UNIT}], cpus(4, 4), "bundle 1 needs GPU 1, and no node of the mesh has more than 0 in"),
        ("PACK", [CPU] * 3, cpus(1, 1), "its bundles together need more than the nodes have, and the mesh has 2 nodes"),
        ("STRICT_PACK", [CPU] * 2, cpus(1, 1), "needs one node that can hold all of its bundles"),
        ("STRICT_SPREAD", [CPU] * 2, cpus(4), "needs 2 nodes that can hold one bundle each, and the mesh has 1 node"),
    ],
)
def test_what_is_missing_is_named(strategy: str, bundles: list[dict[str, int]], totals: dict, text: str) -> None:
    assert text in why_not(strategy, bundles, totals)
