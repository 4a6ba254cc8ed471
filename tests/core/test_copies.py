"""Copies of far objects on a host: fetched once, shared, kept for a while, and let go of."""

from typing import Any

from zmesh.core.copies import FULL_PAUSE_S, FULL_TRIES, UNUSED_S, Copies
from zmesh.core.effects import DropCopies, FetchCopy, Send
from zmesh.core.pulls import Pulls
from zmesh.core.timers import Timers
from zmesh.wire.messages import ERROR, PENDING, STORED, LetGo, Pull, Pulled

HERE, THERE = b"here....", b"there..."
NODE = HERE + bytes(8)
A, B = HERE + b"client.a", HERE + b"client.b"
MAKER = THERE + b"worker.."
OID = MAKER + bytes(12)
PLACE = (7, 1000, MAKER)
COPY = (8, 1000, HERE + bytes(8))


class Desk:
    def __init__(self, reachable: bool = True) -> None:
        self.effects: list[Any] = []
        self.timers = Timers()
        self.kept: list[tuple[bytes, str]] = []
        self.copies = Copies(
            NODE,
            self.effects,
            self.timers,
            reachable=lambda node: reachable and node == THERE,
            copied=lambda oid, error: self.kept.append((oid, error)),
        )

    def said(self) -> list[Any]:
        taken, self.effects[:] = self.effects[:], []
        self.copies.check()
        return [(e.to, e.message) if isinstance(e, Send) else e for e in taken]


def test_two_who_ask_share_one_copy() -> None:
    desk = Desk()
    desk.copies.pull(A, [(OID, *PLACE)], 0.0)
    desk.copies.pull(B, [(OID, *PLACE)], 0.0)
    assert desk.said() == [FetchCopy(OID, *PLACE)]
    desk.copies.fetched(OID, COPY, "", 1.0)
    assert desk.said() == [(A, Pulled([(OID, STORED, COPY)])), (B, Pulled([(OID, STORED, COPY)]))]
    desk.copies.pull(A, [(OID, *PLACE)], 2.0)
    assert desk.said() == [(A, Pulled([(OID, STORED, COPY)]))]
    assert len(desk.copies) == 1


def test_one_that_finds_no_room_is_asked_for_again_for_whoever_wants_it() -> None:
    desk = Desk()
    desk.copies.pull(A, [(OID, *PLACE)], 0.0)
    for tries in range(FULL_TRIES - 1):
        assert desk.said() == [FetchCopy(OID, *PLACE)]
        desk.copies.fetched(OID, None, "all is in use", float(tries), full=True)
        assert desk.said() == []
        desk.timers.tick(tries + FULL_PAUSE_S)
    desk.said()
    desk.copies.fetched(OID, None, "all is in use", 9.0, full=True)
    [(_, word)] = desk.said()
    assert word.objects[0][2][0] == "StoreFullError"


def test_one_that_is_dropped_while_it_waits_to_be_asked_for_again_is_not() -> None:
    desk = Desk()
    desk.copies.pull(A, [(OID, *PLACE)], 0.0)
    desk.copies.fetched(OID, None, "all is in use", 0.0, full=True)
    desk.copies.let_go(A, [(OID, True)], 0.0)
    desk.copies.keep(OID, *PLACE)
    desk.copies.drop(OID)
    desk.said()
    desk.timers.tick(FULL_PAUSE_S)
    assert desk.said() == []


def test_a_copy_without_users_stays_for_the_next_and_goes_when_it_is_old() -> None:
    desk = Desk()
    desk.copies.pull(A, [(OID, *PLACE)], 0.0)
    desk.copies.fetched(OID, COPY, "", 0.0)
    desk.copies.let_go(A, [(OID, True)], 1.0)
    desk.copies.let_go(A, [(OID, True)], 1.0)
    desk.said()
    desk.copies.pull(B, [(OID, *PLACE)], 2.0)
    assert desk.said() == [(B, Pulled([(OID, STORED, COPY)]))]
    desk.timers.tick(2.0 + UNUSED_S)
    assert desk.said() == []
    desk.copies.let_go(B, [(OID, True)], 40.0)
    desk.timers.tick(40.0 + UNUSED_S)
    assert desk.said() == [DropCopies([OID], clean=True)]


def test_a_copy_that_was_used_again_goes_as_soon_as_it_is_old() -> None:
    desk = Desk()
    desk.copies.pull(A, [(OID, *PLACE)], 0.0)
    desk.copies.fetched(OID, COPY, "", 0.0)
    desk.copies.let_go(A, [(OID, True)], 1.0)
    desk.copies.pull(A, [(OID, *PLACE)], 2.0)
    desk.copies.let_go(A, [(OID, True)], 3.0)
    desk.said()
    desk.timers.tick(1.0 + UNUSED_S)
    assert desk.said() == []
    desk.timers.tick(3.0 + UNUSED_S)
    assert desk.said() == [DropCopies([OID], clean=True)]


def test_a_dead_reader_makes_a_copy_unclean_and_a_full_store_takes_the_unused() -> None:
    desk = Desk()
    desk.copies.pull(A, [(OID, *PLACE)], 0.0)
    desk.copies.fetched(OID, COPY, "", 0.0)
    desk.copies.client_gone(A, 1.0)
    desk.copies.client_gone(B, 1.0)
    desk.said()
    desk.copies.make_room()
    assert desk.said() == [DropCopies([OID], clean=False)]


def test_what_cannot_be_had_is_said_and_may_be_asked_for_again() -> None:
    desk = Desk()
    desk.copies.pull(A, [(OID, *PLACE)], 0.0)
    desk.said()
    desk.copies.fetched(OID, None, "no room", 0.0)
    ((to, answer),) = desk.said()
    assert (to, answer.objects[0][1]) == (A, ERROR)
    assert "no room" in answer.objects[0][2][1]
    desk.copies.let_go(A, [(OID, True)], 1.0)
    desk.copies.pull(A, [(OID, *PLACE)], 2.0)
    assert desk.said() == [FetchCopy(OID, *PLACE)]


def test_a_node_that_is_gone_is_not_asked() -> None:
    desk = Desk(reachable=False)
    desk.copies.pull(A, [(OID, *PLACE)], 0.0)
    ((_, answer),) = desk.said()
    assert answer.objects[0][1] == ERROR


def test_a_copy_that_comes_too_late_is_dropped() -> None:
    desk = Desk()
    desk.copies.fetched(OID, COPY, "", 0.0)
    assert desk.said() == [DropCopies([OID], clean=True)]
    desk.copies.pull(A, [(OID, *PLACE)], 0.0)
    desk.copies.client_gone(A, 0.5)
    desk.said()
    desk.copies.fetched(OID, COPY, "", 1.0)
    desk.copies.fetched(OID, COPY, "", 1.0)
    assert desk.said() == []
    desk.timers.tick(1.0 + UNUSED_S)
    desk.timers.tick(2.0 + 2 * UNUSED_S)
    assert desk.said() == [DropCopies([OID], clean=False)]


def test_a_process_asks_once_and_lets_go_when_its_last_user_does() -> None:
    effects: list[Any] = []
    node = HERE + bytes(8)
    pulls = Pulls(node, effects)
    heard = []
    assert pulls.is_far(PLACE)
    assert not pulls.is_far((8, 1000, HERE + b"worker.."))
    assert pulls.is_far(COPY), "a copy of the node's stays only as long as somebody pulled it"
    copy = pulls.want(OID, PLACE)
    copy.waiters.append(lambda one: heard.append(one.status))
    assert pulls.want(OID, PLACE) is copy
    pulls.use(copy)
    pulls.check()
    assert effects == [Send(node, Pull([(OID, *PLACE)]))]
    pulls.pulled([(OID, STORED, COPY), (b"?" * 28, STORED, COPY)])
    pulls.pulled([(OID, ERROR, None)])
    assert (heard, copy.value) == ([STORED], COPY)
    for _ in range(3):
        pulls.drop(copy)
    assert effects[1:] == [Send(node, LetGo([(OID, True)]))]


def test_a_process_whose_node_is_gone_gets_an_error_at_once() -> None:
    pulls = Pulls(HERE + bytes(8), [])
    pending = pulls.want(OID, PLACE)
    assert pending.status == PENDING
    pulls.lose_node(("NodeDiedError", "gone", {}))
    assert pending.status == ERROR
    assert pulls.want(b"x" * 28, PLACE).status == ERROR
