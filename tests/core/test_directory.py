"""Shared objects: nothing is freed while anybody holds it, and everything is in the end."""

import random
from typing import Any

import pytest

from zmesh.core.copies import Copies
from zmesh.core.directory import Directory
from zmesh.core.effects import DropSegments, Effect, Send
from zmesh.core.enclosed import Enclosed
from zmesh.core.evacuation import Evacuation
from zmesh.core.tallies import Tallies
from zmesh.core.timers import Timers
from zmesh.wire.ids import node_peer, object_id
from zmesh.wire.lineage_messages import Forget, Missing
from zmesh.wire.messages import (
    ERROR,
    INLINE,
    PENDING,
    STORED,
    Ack,
    Fetched,
    FreeSegments,
    KeepSegments,
    RecycleSegments,
)

NODE = b"n" * 8
A, B, C = (NODE + name * 8 for name in (b"a", b"b", b"c"))
DEAD = NODE + b"d" * 8
FAR = b"f" * 8


class Desk:
    """A directory with its effects and its store in view."""

    def __init__(self, capacity: int = 1000) -> None:
        self.effects: list[Effect] = []
        self.free = capacity
        self.living = {A: True, B: True, C: True}
        copies = Copies(NODE + bytes(8), self.effects, Timers(), reachable=lambda node: True, copied=self._copied)
        self.evacuation = Evacuation(NODE, self.effects, copies=copies, members=[FAR], clients=self.living, directly=[])
        self.directory = Directory(
            NODE,
            self.effects,
            self.evacuation,
            tallies=Tallies(
                self.effects,
                Timers(),
                alive=self.living.__contains__,
                counts=lambda holder: self.directory.counts_of(holder),
                recount=lambda oid, holder, holds: self.directory.recount(oid, holder, holds),
            ),
            enclosed=Enclosed(NODE, self.effects),
            alive=self.living.__contains__,
            reserve=self._reserve,
            release=self._release,
        )

    def _copied(self, oid: bytes, error: str) -> None:
        self.evacuation.copied(oid, error)

    def _reserve(self, nbytes: int) -> bool:
        if nbytes > self.free:
            return False
        self.free -= nbytes
        return True

    def _release(self, nbytes: int) -> None:
        self.free += nbytes

    def said(self) -> list[Any]:
        found = [(e.to, e.message) if isinstance(e, Send) else e for e in self.effects]
        self.effects.clear()
        self.directory.check()
        return found


def test_what_was_not_booked_is_not_given_back() -> None:
    desk = Desk(capacity=5)
    desk.directory.promote(A, 7, [(OID, PENDING, None, [])])
    desk.directory.resolve([(OID, INLINE, b"too long", [])])
    desk.directory.release(A, [(OID, 1, True)])
    assert desk.free == 5


@pytest.fixture
def desk() -> Desk:
    return Desk()


OID = object_id(A, 1)


def test_a_promoted_object_is_told_to_whoever_asks(desk: Desk) -> None:
    desk.directory.promote(A, 7, [(OID, INLINE, b"v", [])])
    desk.directory.fetch(B, [OID])
    assert desk.said() == [(A, Ack(7)), (B, Fetched([(OID, INLINE, b"v")]))]


def test_a_pending_one_is_told_when_it_resolves(desk: Desk) -> None:
    desk.directory.promote(A, 7, [(OID, PENDING, None, [])])
    desk.directory.fetch(B, [OID])
    assert desk.said() == [(A, Ack(7))]
    desk.directory.resolve([(OID, INLINE, b"v", [])])
    assert desk.said() == [(B, Fetched([(OID, INLINE, b"v")]))]
    assert desk.free == 999


def test_an_unknown_object_is_answered_too(desk: Desk) -> None:
    desk.directory.fetch(B, [OID])
    ((to, message),) = desk.said()
    assert to == B
    assert message.objects[0][1] == ERROR
    assert message.objects[0][2][0] == "ObjectLostError"


def test_a_value_that_does_not_fit_is_refused_and_nothing_is_kept(desk: Desk) -> None:
    desk.directory.promote(A, 7, [(OID, INLINE, b"v" * 1001, [])])
    ((_, ack),) = desk.said()
    assert "1,001 bytes" in ack.error
    assert len(desk.directory) == 0


def test_the_last_release_frees_and_recycles_a_clean_segment(desk: Desk) -> None:
    desk.directory.promote(A, 0, [(OID, STORED, (5, 100, B), [])])
    desk.directory.hold(A, 0, [(OID, C)])
    desk.directory.release(A, [(OID, 1, True)])
    assert desk.said() == [(A, Ack(0))]
    assert desk.directory.segments_in_use() == [5]
    desk.directory.release(C, [(OID, 1, True)])
    assert desk.said() == [(B, RecycleSegments([5]))]


@pytest.mark.parametrize("why", ["unclean", "producer dead", "holder died"])
def test_a_segment_that_somebody_dead_may_have_read_is_dropped(desk: Desk, why: str) -> None:
    desk.directory.promote(A, 0, [(OID, STORED, (5, 100, B), [])])
    desk.directory.hold(A, 9, [(OID, C)])
    desk.said()
    if why == "producer dead":
        del desk.living[B]
    desk.directory.release(A, [(OID, 1, why != "unclean")])
    if why == "holder died":
        desk.directory.holder_died(C)
    else:
        desk.directory.release(C, [(OID, 1, True)])
    assert desk.said() == [DropSegments([5])]


def test_a_release_may_overtake_the_hold_it_belongs_to(desk: Desk) -> None:
    desk.directory.promote(A, 0, [(OID, INLINE, b"v", [])])
    desk.directory.release(C, [(OID, 1, True)])
    desk.directory.release(A, [(OID, 1, True)])
    assert len(desk.directory) == 1, "a hold for C is on its way"
    desk.directory.hold(B, 0, [(OID, C)])
    assert len(desk.directory) == 0
    assert desk.free == 1000


def test_a_count_below_zero_ends_with_the_death_of_whoever_owed_the_hold(desk: Desk) -> None:
    desk.directory.promote(A, 0, [(OID, INLINE, b"v", [])])
    desk.directory.release(C, [(OID, 1, True)])
    desk.directory.release(A, [(OID, 1, True)])
    desk.directory.holder_died(B)
    assert len(desk.directory) == 0


def test_what_a_value_contains_lives_as_long_as_the_value(desk: Desk) -> None:
    inner, outer = object_id(A, 2), object_id(A, 3)
    desk.directory.promote(A, 0, [(inner, INLINE, b"i", [])])
    desk.directory.promote(A, 0, [(outer, INLINE, b"o", [inner])])
    desk.directory.release(A, [(inner, 1, True)])
    assert len(desk.directory) == 2
    desk.directory.release(A, [(outer, 1, True)])
    assert len(desk.directory) == 0


def test_a_chain_of_ten_thousand_values_is_freed_without_recursion(desk: Desk) -> None:
    below: list[bytes] = []
    for seq in range(10_000):
        oid = object_id(A, seq + 1)
        desk.directory.promote(A, 0, [(oid, PENDING, None, below)])
        for inner in below:
            desk.directory.release(A, [(inner, 1, True)])
        below = [oid]
    desk.directory.release(A, [(below[0], 1, True)])
    assert len(desk.directory) == 0


def test_the_owners_death_fails_what_was_pending_and_keeps_what_was_there(desk: Desk) -> None:
    ready = object_id(A, 2)
    desk.directory.promote(A, 0, [(OID, PENDING, None, []), (ready, INLINE, b"v", [])])
    desk.directory.hold(A, 0, [(OID, B), (ready, B)])
    desk.directory.fetch(B, [OID])
    desk.said()
    del desk.living[A]
    desk.directory.owner_died(A)
    desk.directory.holder_died(A)
    ((to, told),) = desk.said()
    assert to == B
    assert told.objects[0][2][0] == "OwnerDiedError"
    desk.directory.fetch(B, [ready])
    assert desk.said() == [(B, Fetched([(ready, INLINE, b"v")]))]


def test_a_hold_for_the_dead_is_not_recorded_and_one_on_nothing_is_refused(desk: Desk) -> None:
    desk.directory.promote(A, 0, [(OID, INLINE, b"v", [])])
    desk.directory.hold(A, 3, [(OID, DEAD)])
    desk.directory.release(A, [(OID, 1, True)])
    assert len(desk.directory) == 0
    desk.said()
    desk.directory.hold(A, 4, [(OID, B)])
    ((_, ack),) = desk.said()
    assert "freed" in ack.error


def test_a_result_for_an_object_nobody_wants_any_more_frees_its_segment(desk: Desk) -> None:
    desk.directory.resolve([(OID, STORED, (5, 100, B), [])])
    assert desk.said() == [(B, RecycleSegments([5]))]


def test_who_waits_for_an_object_that_is_freed_is_told_so(desk: Desk) -> None:
    desk.directory.promote(A, 0, [(OID, PENDING, None, [])])
    desk.directory.fetch(B, [OID])
    desk.directory.release(A, [(OID, 1, True)])
    assert desk.said()[-1][1].objects[0][1] == ERROR


@pytest.mark.parametrize("seed", range(30))
def test_holds_and_releases_in_any_order_free_everything_and_nothing_early(seed: int) -> None:
    """Each peer's own messages keep their order; those of different peers mix as they like."""
    rng = random.Random(seed)
    desk = Desk()
    oids = [object_id(A, seq) for seq in range(1, 6)]
    desk.directory.promote(A, 0, [(oid, STORED, (n, 10, A), []) for n, oid in enumerate(oids)])
    queues: dict[bytes, list[Any]] = {peer: [] for peer in (A, B, C)}
    expected = dict.fromkeys(oids, 1)  # holds told, less releases told, over all messages sent or not
    for _ in range(40):
        oid, giver, taker = rng.choice(oids), *rng.sample([A, B, C], 2)
        queues[giver].append(("hold", oid, taker))
        queues[taker].append(("release", oid, taker))
    for oid in oids:
        queues[A].append(("release", oid, A))
    while any(queues.values()):
        peer = rng.choice([peer for peer, queue in queues.items() if queue])
        verb, oid, who = queues[peer].pop(0)
        if verb == "hold":
            expected[oid] += 1
            desk.directory.hold(peer, 0, [(oid, who)])
        else:
            expected[oid] -= 1
            desk.directory.release(who, [(oid, 1, True)])
        desk.directory.check()
    assert len(desk.directory) == 0
    assert set(expected.values()) == {0}


# Bytes that are lost.

AWAY = (7, 1000, FAR + b"worker..")
ELSEWHERE = (8, 1000, FAR + b"other...")


def lose(desk: Desk) -> bytes:
    """B could not have an object of A's where it lay."""
    oid = object_id(A, 1)
    desk.directory.promote(A, 1, [(oid, STORED, AWAY, [])])
    desk.directory.hold(A, 0, [(oid, B)])
    desk.said()
    desk.directory.missing(B, [(oid, 7, AWAY[2])])
    return oid


def test_a_segment_is_in_use_until_the_owner_says_that_its_bytes_lie_elsewhere(desk: Desk) -> None:
    oid = lose(desk)
    assert desk.directory.segments_in_use() == [7], "somebody may still read it there"
    desk.directory.resolve([(oid, INLINE, b"small", [])])
    assert desk.directory.segments_in_use() == []
    assert desk.free == 995
    desk.directory.release(A, [(oid, 1, True)])
    desk.directory.release(B, [(oid, 1, True)])
    assert desk.free == 1000


def test_the_owner_is_asked_once_for_lost_bytes_and_all_hear_its_answer(desk: Desk) -> None:
    oid = lose(desk)
    desk.directory.missing(C, [(oid, 7, AWAY[2])])
    desk.directory.fetch(B, [oid])
    assert desk.said() == [(A, Missing([(oid, 7, AWAY[2])]))]
    desk.directory.resolve([(oid, STORED, ELSEWHERE, [])])
    told = desk.said()
    assert told[0] == (node_peer(FAR), FreeSegments([(AWAY[2], 7, False)])), "somebody may still read it there"
    assert [(peer, message.objects[0][2]) for peer, message in told[-2:]] == [(B, ELSEWHERE), (C, ELSEWHERE)]
    desk.directory.missing(C, [(oid, 7, AWAY[2])])
    assert desk.said() == [(C, Fetched([(oid, STORED, ELSEWHERE)]))], "it asked for the old place"


def test_bytes_that_were_there_after_all_are_not_freed(desk: Desk) -> None:
    oid = lose(desk)
    desk.said()
    desk.directory.resolve([(oid, STORED, AWAY, [])])
    assert desk.said() == [
        (node_peer(FAR), KeepSegments([7])),
        (B, Fetched([(oid, STORED, AWAY)])),
    ]


@pytest.mark.parametrize("when", ["before", "after"])
def test_lost_bytes_of_a_dead_owner_are_lost_for_good(desk: Desk, when: str) -> None:
    if when == "before":
        oid = object_id(A, 1)
        desk.directory.promote(A, 1, [(oid, STORED, AWAY, [])])
        desk.directory.hold(A, 0, [(oid, B)])
        del desk.living[A]
        desk.said()
        desk.directory.missing(B, [(oid, 7, AWAY[2])])
    else:
        oid = lose(desk)
        desk.said()
        del desk.living[A]
        desk.directory.owner_died(A)
    freed, (peer, answer) = desk.said()
    assert freed == (node_peer(FAR), FreeSegments([(AWAY[2], 7, False)]))
    assert (peer, answer.objects[0][1], answer.objects[0][2][0]) == (B, ERROR, "ObjectLostError")


def test_a_home_that_loses_a_node_leaves_what_its_living_clients_can_make_again(desk: Desk) -> None:
    mine, orphan = object_id(A, 1), object_id(DEAD, 1)
    for oid in (mine, orphan):
        desk.directory.promote(A, 1, [(oid, STORED, AWAY, [])])
    desk.directory.node_died(FAR)
    desk.said()
    desk.directory.fetch(A, [mine, orphan])
    assert [message.objects[0][1] for _, message in desk.said()] == [STORED, ERROR]


def test_an_object_that_is_freed_while_it_is_made_again_leaves_nothing(desk: Desk) -> None:
    oid = lose(desk)
    desk.said()
    for peer in (A, B):
        desk.directory.release(peer, [(oid, 1, True)])
    assert (node_peer(FAR), FreeSegments([(AWAY[2], 7, False)])) in desk.said()
    desk.directory.resolve([(oid, STORED, ELSEWHERE, [])])
    assert desk.said() == [(node_peer(FAR), FreeSegments([(ELSEWHERE[2], 8, True)]))]


def test_a_value_that_was_made_again_contains_what_the_new_one_does(desk: Desk) -> None:
    old, new, outer = object_id(B, 1), object_id(B, 2), object_id(A, 1)
    desk.directory.promote(B, 1, [(old, INLINE, b"old", []), (new, INLINE, b"new", [])])
    desk.directory.promote(A, 1, [(outer, STORED, AWAY, [old])])
    desk.directory.release(B, [(old, 1, True)])
    desk.directory.resolve([(outer, STORED, ELSEWHERE, [new])])
    desk.directory.release(B, [(new, 1, True)])
    assert len(desk.directory) == 2, "the old one went with the old value"
    desk.said()
    desk.directory.resolve([(outer, ERROR, ("ObjectLostError", "late", {}), [])])
    desk.directory.resolve([(outer, INLINE, b"small", [])])
    assert len(desk.directory) == 1
    desk.directory.fetch(A, [outer])
    assert desk.said()[-1] == (A, Fetched([(outer, INLINE, b"small")]))


def test_an_owner_that_let_go_hears_when_nobody_needs_its_result(desk: Desk) -> None:
    oid, gone = object_id(A, 1), object_id(A, 2)
    desk.directory.promote(A, 1, [(oid, STORED, AWAY, [])])
    desk.directory.hold(A, 0, [(oid, B)])
    desk.said()
    desk.directory.remember(A, [oid, gone])
    assert desk.said() == [(A, Forget([gone]))]
    desk.directory.release(A, [(oid, 1, True)])
    assert desk.said() == []
    desk.directory.release(B, [(oid, 1, True)])
    assert (A, Forget([oid])) in desk.said()
