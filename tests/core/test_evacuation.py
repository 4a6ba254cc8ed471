"""A node leaves: what lies only there is copied to those who own or count it, and what is lost is told."""

import random
from typing import Any

import pytest

from zmesh.core.client import ClientCore
from zmesh.core.effects import DropCopies, Effect, FetchCopy, Send, Warn
from zmesh.core.node import NodeCore
from zmesh.core.records import Limits, Task
from zmesh.core.timers import Timers
from zmesh.wire import messages as m
from zmesh.wire.codec import decode, encode
from zmesh.wire.ids import guest_token, node_peer, object_id
from zmesh.wire.lineage_messages import Missing

US, LEAVER, THIRD = b"us......", b"leaver..", b"third..."
NODE, GOING = node_peer(US), node_peer(LEAVER)
D, E = US + b"driver.d", US + b"driver.e"
MAKER = LEAVER + b"worker.."
FAR = THIRD + b"driver.."
PLACE = (7, 1000, MAKER)
HERE = (8, 1000, NODE)
CPU = {"CPU": m.UNIT}


class Host:
    """The node `US` with two drivers and two neighbours."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.timers = Timers()
        self.core = NodeCore(US, 1, dict(CPU), random.Random(1), self.effects, self.timers, lambda slot: None, Limits())
        for driver in (D, E):
            self.core.receive(driver, m.Hello("driver", 5), 0.0)
        for node in (LEAVER, THIRD):
            self.core.member_up(node, dict(CPU), 0.0)
        self.effects.clear()

    def hear(self, peer: bytes, message: Any) -> None:
        self.core.receive(peer, decode(encode(message)), 0.0)
        self.core.check()

    def promote(self, seq: int, status: int = m.STORED, value: Any = PLACE, inside: Any = ()) -> bytes:
        oid = object_id(D, seq)
        self.hear(D, m.Promote(1, [(oid, status, value, list(inside))]))
        self.effects.clear()
        return oid

    def said(self, to: bytes) -> list[Any]:
        return [effect.message for effect in self.effects if isinstance(effect, Send) and effect.to == to]

    def did(self, kind: type[Effect]) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def fetched(self, oid: bytes, error: str = "") -> None:
        self.core.fetched(oid, None if error else HERE, error, 0.0)
        self.core.check()

    def answers(self) -> None:
        """Both drivers have nothing there."""
        for driver in (D, E):
            self.hear(driver, m.Evacuated(LEAVER, 0, 0))


@pytest.fixture
def host() -> Host:
    return Host()


def test_a_member_asks_its_clients_and_answers_when_all_have(host: Host) -> None:
    host.hear(GOING, m.Leaving(LEAVER))
    assert host.said(D) == host.said(E) == [m.Leaving(LEAVER)]
    host.hear(GOING, m.Leaving(LEAVER))
    assert len(host.said(D)) == 1
    host.hear(D, m.Evacuated(LEAVER, 3, 1, "no room"))
    host.hear(D, m.Evacuated(LEAVER, 3, 1, "no room"))
    host.hear(D, m.Evacuated(THIRD, 3, 1, "never asked"))
    assert host.said(GOING) == []
    host.hear(E, m.Evacuated(LEAVER, 2, 2, "no time"))
    assert host.said(GOING) == [m.Evacuated(LEAVER, 5, 3, "no room")]


def test_a_client_that_dies_is_not_waited_for(host: Host) -> None:
    host.hear(GOING, m.Leaving(LEAVER))
    host.hear(D, m.Evacuated(LEAVER, 1, 0))
    host.core.client_ended(E, 0.0)
    assert host.said(GOING) == [m.Evacuated(LEAVER, 1, 0)]


def test_a_node_copies_the_shared_objects_it_counts_and_they_outlive_the_leaver(host: Host) -> None:
    oid, inline = host.promote(1), host.promote(2, m.INLINE, b"x")
    elsewhere = host.promote(3, value=(9, 1000, FAR))
    host.hear(GOING, m.Leaving(LEAVER))
    assert host.did(FetchCopy) == [FetchCopy(oid, *PLACE)]
    host.answers()
    assert host.said(GOING) == []
    host.fetched(oid)
    assert host.said(GOING) == [m.Evacuated(LEAVER, 1, 0)]
    host.core.member_down(LEAVER, "it left", 0.0)
    host.effects.clear()
    host.hear(E, m.Fetch([oid, inline, elsewhere]))
    assert [answer.objects[0][1] for answer in host.said(E)] == [m.STORED, m.INLINE, m.STORED]
    host.hear(E, m.Pull([(oid, *PLACE)]))
    assert host.said(E)[-1] == m.Pulled([(oid, m.STORED, HERE)])
    host.hear(E, m.LetGo([(oid, True)]))
    host.timers.tick(1000.0)
    assert host.did(DropCopies) == []
    host.hear(D, m.Release([(oid, 1, True)]))
    assert host.did(DropCopies) == [DropCopies([oid], clean=True)]


def test_an_object_that_cannot_be_copied_is_told_and_lost(host: Host) -> None:
    oid = host.promote(1)
    host.hear(GOING, m.Leaving(LEAVER))
    host.answers()
    host.fetched(oid, "no room")
    (told,) = host.said(GOING)
    assert (told.moved, told.lost) == (0, 1)
    assert "no room" in told.why
    assert len(host.core.copies) == 0
    host.core.member_down(LEAVER, "it left", 0.0)
    host.core.client_ended(D, 0.0)
    host.hear(E, Missing([(oid, PLACE[0], PLACE[2])]))
    assert host.said(E)[-1].objects[0][1] == m.ERROR


def test_an_object_that_is_freed_meanwhile_is_neither_moved_nor_lost(host: Host) -> None:
    oid = host.promote(1)
    host.hear(GOING, m.Leaving(LEAVER))
    host.answers()
    host.hear(D, m.Release([(oid, 1, True)]))
    assert m.Evacuated(LEAVER, 0, 0) in host.said(GOING)
    host.fetched(oid)
    assert host.did(DropCopies) == [DropCopies([oid], clean=True)]


def test_what_is_shared_after_the_leaver_said_so_or_left_is_copied_at_once(host: Host) -> None:
    host.hear(GOING, m.Leaving(LEAVER))
    host.answers()
    oid = object_id(D, 1)
    host.hear(D, m.Promote(1, [(oid, m.STORED, PLACE, [])]))
    assert host.did(FetchCopy) == [FetchCopy(oid, *PLACE)]
    host.fetched(oid)
    pending = host.promote(2, m.PENDING, None)
    copied = host.promote(3, m.PENDING, None)
    host.hear(E, m.Pull([(copied, *PLACE)]))
    host.fetched(copied)
    host.core.member_down(LEAVER, "it left", 0.0)
    host.effects.clear()
    host.hear(D, m.Resolve([(pending, m.STORED, PLACE, []), (copied, m.STORED, PLACE, [])]))
    assert host.did(FetchCopy) == [], "there is nobody to ask"
    host.hear(E, m.LetGo([(copied, True)]))
    host.timers.tick(1000.0)
    assert host.did(DropCopies) == [], "its owner's host keeps it, as it is all there is"


def test_what_gets_its_value_while_clients_answer_is_waited_for(host: Host) -> None:
    oid = host.promote(1, m.PENDING, None)
    host.hear(GOING, m.Leaving(LEAVER))
    host.hear(D, m.Resolve([(oid, m.STORED, PLACE, [])]))
    host.answers()
    assert m.Evacuated(LEAVER, 0, 0) not in host.said(GOING)
    host.fetched(oid)
    assert host.said(GOING)[-1] == m.Evacuated(LEAVER, 1, 0)


def test_a_leaver_that_dies_meanwhile_takes_with_it_what_is_not_here_yet(host: Host) -> None:
    here, away = host.promote(1), host.promote(2)
    host.hear(GOING, m.Leaving(LEAVER))
    host.fetched(here)
    host.core.member_down(LEAVER, "killed", 0.0)
    host.core.check()
    host.fetched(away, "its host is gone")
    host.answers()
    assert host.said(GOING) == []
    host.effects.clear()
    host.hear(E, m.Fetch([here, away]))
    assert [answer.objects[0][1] for answer in host.said(E)] == [m.STORED, m.STORED], "its owner lives"
    host.effects.clear()
    host.hear(E, Missing([(away, PLACE[0], PLACE[2])]))
    assert host.said(D) == [Missing([(away, PLACE[0], PLACE[2])])]
    host.hear(D, m.Resolve([(away, m.ERROR, ("ObjectLostError", "it was put", {}), [])]))
    assert host.said(E)[-1].objects[0][1] == m.ERROR


def test_a_node_that_leaves_waits_for_all_members_that_live(host: Host) -> None:
    evacuation = host.core.evacuation
    assert not evacuation.done
    host.hear(GOING, m.Evacuated(US, 1, 0))  # we did not ask
    evacuation.leave()
    assert host.said(GOING) == [m.Leaving(US)]
    host.hear(GOING, m.Evacuated(US, 2, 1, "no room"))
    assert not evacuation.done
    told = evacuation.farewell(0)
    assert (told.moved, told.lost, len(told.notes)) == (2, 1, 2)
    assert "no room" in told.notes[0]
    assert THIRD.hex() in told.notes[1]
    host.core.member_down(THIRD, "killed", 0.0)
    assert evacuation.done
    assert len(evacuation.farewell(0).notes) == 1


def test_what_a_leaving_node_counts_for_others_is_told_as_lost(host: Host) -> None:
    inner = host.promote(1, m.INLINE, b"inner")
    outer = host.promote(2, m.INLINE, b"outer", inside=[inner])
    host.promote(3, m.INLINE, b"mine")
    host.hear(D, m.Hold(0, [(outer, FAR)]))
    lost = host.core.directory.held_elsewhere()
    assert sorted(lost) == sorted([inner, outer])
    told = host.core.evacuation.farewell(len(lost))
    assert told.lost == 2
    assert "end with it" in told.notes[0]


def test_guests_of_a_leaving_node_are_told_as_losing_what_lay_there(host: Host) -> None:
    guest = US + guest_token(b"guest...")
    host.core.receive(guest, m.Hello("driver", 5), 0.0)
    oid = object_id(guest, 1)
    host.hear(guest, m.Promote(1, [(oid, m.INLINE, b"x", [])]))
    assert host.core.directory.held_elsewhere() == [oid]
    assert host.core.evacuation.farewell(0).notes[0].startswith("1 guest(s)")


def test_only_a_node_may_say_that_it_leaves(host: Host) -> None:
    host.hear(D, m.Leaving(LEAVER))
    assert isinstance(host.effects[-1], Warn)
    assert host.said(E) == []


class Owner:
    """A driver of `US` whose tasks run on the node that leaves."""

    def __init__(self) -> None:
        self.core = ClientCore(D, [], Timers(), lambda status: (None, None, "ended"))
        self.hear(NODE, m.Mesh([CPU, CPU]))
        self.spec = self.core.new_spec(D, "f", CPU)
        self.hear(MAKER, m.Steal(1, CPU, 0.05))

    def hear(self, peer: bytes, message: Any) -> None:
        self.core.receive(peer, decode(encode(message)), 0.0)
        self.core.check()

    def result(self, segment: int) -> Task:
        """A task whose result lies where it ran."""
        task = self.core.submit(self.spec, b"args", None, 0, 0.0)
        self.hear(MAKER, m.Done([(task.seq, 0, m.STORED, (segment, 1000, MAKER))], [], []))
        return task

    def oid(self, task: Task) -> bytes:
        return object_id(D, task.seq)

    def said(self) -> list[Any]:
        """Return and forget what the node was told."""
        found = [e.message for e in self.core.effects if isinstance(e, Send) and e.to == NODE]
        self.core.effects.clear()
        return [message for message in found if not isinstance(message, m.Demand)]


@pytest.fixture
def owner() -> Owner:
    return Owner()


def test_a_client_copies_its_results_that_lie_on_the_leaver_and_keeps_them(owner: Owner) -> None:
    task, shared = owner.result(7), owner.result(9)
    owner.core.references.promote([shared])
    owner.said()
    owner.hear(NODE, m.Leaving(THIRD))
    assert owner.said() == [m.Evacuated(THIRD, 0, 0)]
    owner.hear(NODE, m.Leaving(LEAVER))
    assert owner.said() == [m.Pull([(owner.oid(task), 7, 1000, MAKER)])], "the other is the node's to copy"
    owner.hear(NODE, m.Pulled([(owner.oid(task), m.STORED, HERE)]))
    assert owner.said() == [m.Evacuated(LEAVER, 1, 0)]
    owner.hear(NODE, m.NodeGone(LEAVER, "it left"))
    assert owner.core.references.localize([task]) is None
    assert owner.core.references.location(task) == (m.STORED, HERE)
    owner.core.references.drop(task)
    assert m.LetGo([(owner.oid(task), True)]) in owner.said()


def test_a_client_says_what_it_could_not_copy(owner: Owner) -> None:
    task = owner.result(7)
    owner.said()
    owner.hear(NODE, m.Leaving(LEAVER))
    owner.hear(NODE, m.Pulled([(owner.oid(task), m.ERROR, ("ObjectLostError", "no room", {}))]))
    assert [effect.text for effect in owner.core.effects if isinstance(effect, Warn)]
    assert owner.said()[-1] == m.Evacuated(LEAVER, 0, 1, "no room")


def test_a_result_that_is_dropped_meanwhile_is_answered_all_the_same(owner: Owner) -> None:
    task, known = owner.result(7), owner.result(9)
    owner.core.references.localize([known])
    owner.hear(NODE, m.Pulled([(owner.oid(known), m.STORED, HERE)]))
    owner.hear(NODE, m.Leaving(LEAVER))
    owner.core.references.drop(task)
    owner.said()
    owner.hear(NODE, m.Pulled([(owner.oid(task), m.STORED, HERE)]))
    told = owner.said()
    assert m.Evacuated(LEAVER, 2, 0) in told
    assert m.LetGo([(owner.oid(task), True)]) in told


def test_a_result_that_comes_after_the_word_is_copied_at_once(owner: Owner) -> None:
    owner.hear(NODE, m.Leaving(LEAVER))
    owner.said()
    task = owner.result(7)
    assert m.Pull([(owner.oid(task), 7, 1000, MAKER)]) in owner.said()
    owner.hear(NODE, m.Pulled([(owner.oid(task), m.STORED, HERE)]))
    owner.hear(NODE, m.NodeGone(LEAVER, "it left"))
    assert owner.core.references.location(task) == (m.STORED, HERE)


def test_a_client_that_loses_its_own_node_meanwhile_says_nothing_wrong(owner: Owner) -> None:
    owner.result(7)
    owner.hear(NODE, m.Leaving(LEAVER))
    owner.core.node_lost("the node is gone", 0.0)
    owner.core.check()
    assert owner.said()[-1].lost == 1


def test_two_members_may_leave_at_once(host: Host) -> None:
    here, there = host.promote(1), host.promote(2, value=(9, 1000, FAR))
    host.hear(GOING, m.Leaving(LEAVER))
    host.hear(node_peer(THIRD), m.Leaving(THIRD))
    host.hear(D, m.Evacuated(THIRD, 0, 0))
    host.core.client_ended(E, 0.0)
    host.fetched(there)
    assert host.said(node_peer(THIRD))[-1] == m.Evacuated(THIRD, 1, 0)
    host.hear(D, m.Evacuated(LEAVER, 0, 0))
    host.fetched(here)
    assert host.said(GOING)[-1] == m.Evacuated(LEAVER, 1, 0)


def test_an_object_that_is_kept_already_is_not_kept_twice(host: Host) -> None:
    host.hear(GOING, m.Leaving(LEAVER))
    host.answers()
    oid = host.promote(1)
    host.fetched(oid)
    host.core.evacuation.stored(oid, PLACE)
    host.hear(D, m.Release([(oid, 1, True)]))
    assert host.did(DropCopies) == [DropCopies([oid], clean=True)]
    assert len(host.core.copies) == 0
