"""Placement groups: a gang of actors that starts together, and tasks in their bundles."""

import time
from typing import Any

import pytest

import zmesh as ray
from zmesh.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

pytestmark = pytest.mark.usefixtures("ray_start")


@ray.remote(num_cpus=1)
class Rank:
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def where(self) -> tuple[int, str | None]:
        group = get_current_placement_group()
        return self.rank, None if group is None else group.id.hex()


def call_for_20_s(rank: Any) -> None:
    """Removing a group does not wait until its actors are gone."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        ray.get(rank.where.remote())


def test_a_gang_starts_in_its_bundles_and_ends_with_its_group() -> None:
    pg = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="PACK", name="gang")
    ray.get(pg.ready(), timeout=30)
    assert pg.wait(timeout_seconds=30)
    assert (pg.bundle_count, pg.bundle_specs) == (2, [{"CPU": 1}, {"CPU": 1}])
    assert get_placement_group("gang") == pg
    ranks = [
        Rank.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=pg, placement_group_bundle_index=index, placement_group_capture_child_tasks=True
            )
        ).remote(index)
        for index in range(2)
    ]
    assert ray.get([rank.where.remote() for rank in ranks]) == [(0, pg.id.hex()), (1, pg.id.hex())]
    assert placement_group_table(pg)["state"] == "CREATED"
    remove_placement_group(pg)
    for rank in ranks:
        with pytest.raises(ray.exceptions.ActorDiedError):
            call_for_20_s(rank)


def test_children_are_captured_unless_they_say_where() -> None:
    @ray.remote(num_cpus=0)
    def where() -> str | None:
        return ray.get_runtime_context().get_placement_group_id()

    @ray.remote(num_cpus=1)
    def parent() -> list[str | None]:
        actor = Rank.options(num_cpus=0).remote(0)
        captured = [ray.get(where.remote()), ray.get(actor.where.remote())[1]]
        return [*captured, ray.get(where.options(scheduling_strategy="DEFAULT").remote())]

    pg = placement_group([{"CPU": 1}])
    strategy = PlacementGroupSchedulingStrategy(pg, placement_group_capture_child_tasks=True)
    assert ray.get(parent.options(scheduling_strategy=strategy).remote()) == [pg.id.hex(), pg.id.hex(), None]
    remove_placement_group(pg)


def test_an_actor_with_default_cpus_leaves_its_bundle_to_others() -> None:
    @ray.remote
    class Idle:
        def ping(self) -> str:
            return "pong"

    @ray.remote(num_cpus=1)
    def work() -> str:
        return "done"

    pg = placement_group([{"CPU": 1}])
    strategy = PlacementGroupSchedulingStrategy(pg, 0)
    actor = Idle.options(scheduling_strategy=strategy).remote()
    assert ray.get(actor.ping.remote()) == "pong"
    assert ray.get(work.options(scheduling_strategy=strategy).remote(), timeout=30) == "done"
    remove_placement_group(pg)


def test_other_strategies() -> None:
    @ray.remote
    def here() -> str:
        return ray.get_runtime_context().get_node_id()

    node_id = ray.get_runtime_context().get_node_id()
    strategies = ("DEFAULT", "SPREAD", None, NodeAffinitySchedulingStrategy(node_id=node_id, soft=False))
    refs = [here.options(scheduling_strategy=strategy).remote() for strategy in strategies]
    assert ray.get(refs) == [node_id] * 4
