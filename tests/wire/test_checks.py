"""What a node hears is whole down to the last field, or is refused."""

import dataclasses
from typing import Any

import msgpack
import pytest

from tests.core.test_any_words import Host
from zmesh.exceptions import RemoteProtocolError, UnknownWordError
from zmesh.wire import messages as m
from zmesh.wire.checks import CHECKS, checked
from zmesh.wire.codec import encode
from zmesh.wire.keeper_messages import Keeps, Kept

PEER, OID = b"p" * 16, b"o" * 28


def test_every_word_that_a_node_hears_has_a_check_for_each_field() -> None:
    core = Host(0).core
    of_its_own = (Keeps, Kept)  # from its keepers, which live in the same process
    heard = [cls for cls in (*core._inputs, *core._between_nodes) if cls not in of_its_own]
    assert [cls.__name__ for cls in heard if cls not in CHECKS] == []
    wrong = [cls.__name__ for cls, checks in CHECKS.items() if len(checks) != len(dataclasses.fields(cls))]
    assert not wrong


@pytest.mark.parametrize(
    "message",
    [
        m.Promote(1, [[OID, m.STORED, [7, 100, PEER], [OID]], [OID, m.PENDING, None, []]]),
        m.Resolve([[OID, m.ERROR, ["ObjectLostError", "gone", {"x": 1}], []]]),
        m.Hold(0, [[OID, PEER]]),
        m.Release([[OID, 2, True]]),
        m.Demand(PEER, {"CPU": 10_000}, 3),
        m.Steal(1, {}, 0),
        m.Done([[1, 0, m.ITEM, [0, m.INLINE, b"", []]], [2, 0, m.INLINE, b"v", [OID]]], [[0, 0.5]], [OID, [1, 0]]),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_well_made_is_taken(message: Any) -> None:
    assert type(checked(encode(message))) is type(message)


@pytest.mark.parametrize(
    ("message", "where"),
    [
        (m.Promote(1, [[OID, m.STORED, [7, 100], []]]), "Promote.objects"),
        (m.Promote(1, [[OID, 9, None, []]]), "Promote.objects"),
        (m.Promote(1, [[OID, m.INLINE, "text", []]]), "Promote.objects"),
        (m.Promote(1, [7]), "Promote.objects"),
        (m.Hold(0, [[OID, PEER, 1]]), "Hold.holders"),
        (m.Hold(0, [[OID[:-1], PEER]]), "Hold.holders"),
        (m.Hold(1 << 63, []), "Hold.request"),
        (m.Release([[OID, 0, True]]), "Release.objects"),
        (m.Release([[OID, 1, 1]]), "Release.objects"),
        (m.Demand(PEER, {"CPU": -1}, 3), "Demand.shape"),
        (m.Demand(PEER, {"CPU": True}, 3), "Demand.shape"),
        (m.Demand(PEER, {}, -3), "Demand.workers"),
        (m.Steal(1, {}, float("nan")), "Steal.credit_s"),
        (m.Done([[1, 0, m.INLINE]], [], []), "Done.results"),
        (m.Done([[1, 0, m.MANY, [[m.INLINE, b"v"]]]], [], []), "Done.results"),
        (m.Hello("driver", 0), "Hello.pid"),
    ],
    ids=str,
)
def test_what_is_not_is_refused_with_the_name_of_the_field(message: Any, where: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{where} is malformed"):
        checked(encode(message))


@pytest.mark.parametrize("frame", [encode(m.Trim()), msgpack.packb([999])])
def test_what_a_newer_version_may_say_is_told_from_what_nobody_may(frame: bytes) -> None:
    with pytest.raises(UnknownWordError):
        checked(frame)
