"""A guest and the members it knocks at: who takes it in, what it takes along to the next, what is lost."""

import random
from typing import Any

import pytest

from tests.core.test_client import CPU, describe
from zmesh.core import effects as fx
from zmesh.core import guest_client as g
from zmesh.core.guests import GUEST_SILENCE_S, Guests
from zmesh.core.records import Entry, Inputs, Task
from zmesh.core.timers import Timers
from zmesh.wire import messages as m
from zmesh.wire.codec import decode, encode
from zmesh.wire.group_messages import GroupState, WatchGroup
from zmesh.wire.guest import GUEST_CODEC, Knock, Opened
from zmesh.wire.ids import actor_id, guest_segment, is_guest, local_peer, node_peer, object_id, store_peer
from zmesh.wire.lineage_messages import Missing

A, B = b"a" * 8, b"b" * 8
AT_A, AT_B = ("10.0.0.1", 27700), ("10.0.0.2", 27700)
W, FAR = A + b"worker..", B + b"worker.."


class Guest:
    """A guest whose frames to its node are kept, as (to, frame)."""

    def __init__(self) -> None:
        self.now = 0.0
        self.effects: list[Any] = []
        hello = m.Hello("driver", 1, {})
        self.core = g.GuestCore([AT_A], random.Random(1), hello, self.effects, Timers(), describe)
        self.core.start(self.now)

    def take(self, kind: type[Any]) -> list[Any]:
        found = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects[:] = [effect for effect in self.effects if not isinstance(effect, kind)]
        return found

    def carry_out(self) -> list[Any]:
        """Send what is to be sent; returns the messages that left, as (to, message)."""
        for send in self.take(fx.Send):
            self.core.send(send.to, encode(send.message), self.now)
        return [(post.to, decode(post.frame)) for post in self.take(fx.Post)]

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.core.timers.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.core.timers.tick(self.now)
        self.now = end

    def open(self, node: bytes, **more: Any) -> None:
        self.core.opened(Opened(node, [["10.0.0.2", 27700]], **more), self.now)

    def attach(self, node: bytes = A) -> None:
        self.open(node)
        self.core.restored(self.now)
        self.hear(node_peer(node), m.Welcome(node, 1, {"CPU": 4 * m.UNIT}))

    def hear(self, peer: bytes, message: Any) -> None:
        self.core.receive(peer, message, self.now)
        self.core.check()

    def task(self, inputs: Inputs | None = None, args: Any = b"x", **options: Any) -> Task:
        spec = self.core.new_spec(self.core.me, "f", CPU, **options)
        return self.core.submit(spec, args, inputs, 0, self.now)


def test_it_knocks_is_let_in_and_says_hello_when_its_bytes_are_there() -> None:
    guest = Guest()
    (dial,) = guest.take(fx.Dial)
    assert dial.address == AT_A
    assert guest.take(fx.Talk)[0].message == Knock(m.PROTOCOL_MAJOR)
    guest.open(A)
    assert guest.core.me == A + dial.token
    assert is_guest(guest.core.me)
    assert guest.take(fx.Rehomed)[0].me == guest.core.me
    assert guest.carry_out() == []
    guest.core.send(store_peer(A), b"bytes", 0.0)
    assert guest.take(fx.Post)[0].frame == b"bytes", "bytes may travel before the hello"
    guest.core.restored(guest.now)
    assert [type(message) for _, message in guest.carry_out()] == [m.Hello]
    assert guest.core.place == "10.0.0.1:27700"


def test_what_is_submitted_before_it_is_welcome_is_asked_for_afterwards() -> None:
    guest = Guest()
    guest.task()
    guest.carry_out()
    guest.attach()
    demands = [message for _, message in guest.carry_out() if isinstance(message, m.Demand)]
    assert [demand.workers for demand in demands] == [1]
    assert demands[0].job == guest.core.me


def test_it_tries_the_others_when_one_refuses_or_says_nothing() -> None:
    guest = Guest()
    guest.attach()
    guest.effects.clear()
    guest.core.refused("nobody listens there", guest.now)
    assert [dial.address for dial in guest.take(fx.Dial)] == [AT_B]
    guest.pass_time(g.TRY_S)
    assert guest.core.rounds == 1
    guest.pass_time(g.PAUSE_S + g.TRY_S)
    assert {dial.address for dial in guest.take(fx.Dial)} == {AT_A, AT_B}
    guest.open(B, refused="another version")
    assert guest.core.why == "another version"
    guest.pass_time(g.GIVE_UP_S)
    assert guest.core.state == g.ENDED
    assert guest.core.lost[0] == "NodeDiedError"
    assert "another version" in guest.core.lost[1]


def test_a_silent_node_is_left_and_one_that_answers_is_not() -> None:
    guest = Guest()
    guest.attach()
    for _ in range(10):
        guest.pass_time(g.PING_S)
        guest.open(A)
    assert guest.core.state == g.ATTACHED
    assert guest.take(fx.Talk)[-1].message == Knock(m.PROTOCOL_MAJOR, A)
    guest.pass_time(g.SILENCE_S + g.PING_S)
    assert guest.core.state == g.KNOCKING
    assert "silent" in guest.core.why


def test_a_node_that_took_it_for_dead_takes_it_in_under_another_name() -> None:
    guest = Guest()
    guest.attach()
    before = guest.core.me
    guest.open(A, gone=True)
    assert guest.core.state == g.KNOCKING
    guest.open(B)
    guest.core.restored(guest.now)
    assert guest.core.me[8:] != before[8:]


def test_tasks_go_on_at_the_next_node_and_what_had_started_is_charged() -> None:
    guest = Guest()
    guest.attach()
    started, queued, once = guest.task(), guest.task(), guest.task(max_retries=0)
    for peer in (W, FAR):
        guest.hear(peer, m.Steal(1, CPU, 0.005))
    leased = [task for task in (started, queued, once) if task.thief is not None]
    assert len(leased) == 2
    guest.core.detached("killed", guest.now)
    guest.attach(B)
    assert [task.attempt for task in leased] == [1, 1]
    assert all(task.status == m.PENDING for task in (started, queued, once))
    assert all(spec.job == guest.core.me for spec in guest.core.specs)
    guest.core.check()


def test_groups_of_the_old_node_are_lost_and_those_of_others_are_watched_under_the_new_name() -> None:
    guest = Guest()
    guest.attach()
    gone, kept = A + b"group...", B + b"group..."
    entries = [guest.core.put(m.PENDING, None, []) for _ in range(2)]
    for group, entry in zip((gone, kept), entries, strict=True):
        guest.core.groups.await_ready(group, entry, b"there", guest.now)
    guest.core.detached("killed", guest.now)
    guest.take(fx.Send)
    guest.attach(B)
    assert entries[0].value[0] == "TaskPlacementGroupRemovedError"
    assert (node_peer(B), WatchGroup(kept)) in [(send.to, send.message) for send in guest.take(fx.Send)]
    guest.hear(node_peer(B), GroupState(kept, "CREATED", "", []))
    assert entries[1].value == b"there"


def test_a_task_that_may_run_only_once_fails_if_it_may_have_started() -> None:
    guest = Guest()
    guest.attach()
    task = guest.task(max_retries=0)
    guest.hear(W, m.Steal(1, CPU, 0.005))
    guest.core.detached("killed", guest.now)
    guest.attach(B)
    assert (task.status, task.value[0]) == (m.ERROR, "NodeDiedError")


def test_own_bytes_come_along_under_the_new_name() -> None:
    guest = Guest()
    guest.attach()
    before = guest.core.me
    put = guest.core.put(m.STORED, (5, 100, before), [])
    large = guest.core.put(m.STORED, (6, 100, before), [])
    large.refs = 0
    task = guest.task(Inputs([put], [large]), (6, 100, before, large.seq))
    assert guest.core.references.localize([put]) is None
    guest.core.detached("killed", guest.now)
    guest.attach(B)
    assert guest.core.references.localize([put]) is None, "they are in this process"
    guest.effects.clear()
    guest.hear(FAR, m.Steal(1, CPU, 0.005))
    work = next(message for _, message in guest.carry_out() if isinstance(message, m.Work))
    _, _, _, _, args, deps = work.tasks[0]
    me = guest.core.me
    assert args[:3] == (guest_segment(6, me), 100, me)
    assert deps[0][:2] == (m.STORED, (guest_segment(5, me), 100, me))
    assert guest.core.references.promote([put]) is not None
    promoted = next(message for _, message in guest.carry_out() if isinstance(message, m.Promote))
    assert promoted.objects[0][2] == (guest_segment(5, me), 100, me)
    oid = guest.core.references.oid(put)
    guest.hear(node_peer(B), Missing([(oid, guest_segment(5, me), me)]))
    guest.pass_time(0.1)
    failed = next(message for _, message in guest.carry_out() if isinstance(message, m.Resolve))
    assert failed.objects[0][1] == m.ERROR, "it was asked for at the place that it was told to lie at"
    guest.hear(FAR, m.Done([(task.seq, 0, m.INLINE, b"r")], [], []))
    guest.core.references.drop(put)
    assert any(6 in effect.segments for effect in guest.take(fx.Recycle))


def test_what_others_counted_is_lost_and_shared_anew() -> None:
    guest = Guest()
    guest.attach()
    own = guest.core.put(m.INLINE, b"v", [])
    ticket = guest.core.references.promote([own])
    assert ticket is not None
    borrowed = guest.core.references.borrow(object_id(FAR, 1), counted=True)
    task = guest.task(Inputs([], [own]))
    waiting = guest.task(Inputs([borrowed]))
    known = guest.core.references.borrow(object_id(FAR, 2), counted=True)
    guest.hear(node_peer(B), m.Fetched([(object_id(FAR, 2), m.STORED, (9, 10, FAR))]))
    guest.core.references.localize([known])
    copy = known.share.copy if known.share is not None else None
    assert copy is not None
    guest.core.detached("killed", guest.now)
    guest.attach(B)
    assert (ticket.status, ticket.value[0]) == (m.ERROR, "NodeDiedError")
    assert borrowed.status == m.ERROR
    assert (task.status, task.value[0]) == (m.ERROR, "OwnerDiedError")
    assert (waiting.status, waiting.value[0]) == (m.ERROR, "NodeDiedError")
    assert copy.status == m.ERROR
    assert guest.core.references.promote([own]) is not None
    guest.core.check()


def test_what_it_borrowed_is_counted_under_its_new_name_before_the_old_one_ends() -> None:
    guest = Guest()
    guest.attach()
    mine, twice = (guest.core.references.borrow(object_id(FAR, seq), counted=True) for seq in (1, 2))
    guest.core.references.borrow(object_id(FAR, 2), counted=True)
    guest.core.detached("a cable", guest.now)
    guest.attach(A)
    guest.core.detached("a cable", guest.now)
    guest.open(B)
    guest.carry_out()
    guest.core.restored(guest.now)
    holders = [(object_id(FAR, seq), guest.core.me) for seq in (1, 2)]
    hello, hold = guest.carry_out()
    assert type(hello[1]) is m.Hello
    assert hold == (node_peer(B), m.Hold(0, tuple(holders)))
    guest.core.references.drop(mine)
    guest.core.references.drop(twice)
    guest.core.references.drop(twice)
    assert [word.objects for _, word in guest.carry_out()] == [((object_id(FAR, seq), 1, True),) for seq in (1, 2)]


def test_what_is_asked_before_it_says_hello_is_asked_after_that() -> None:
    """Its node would take it for somebody whose death it knows of."""
    guest = Guest()
    guest.attach()
    guest.carry_out()
    guest.core.detached("a cable", guest.now)
    guest.open(B)
    borrowed = guest.core.references.borrow(object_id(FAR, 1), counted=True)
    guest.core.fetch(borrowed)
    assert guest.carry_out() == []
    guest.core.restored(guest.now)
    assert [type(word) for _, word in guest.carry_out()] == [m.Hello, m.Fetch]


def test_what_it_said_to_the_old_node_is_not_said_to_the_next() -> None:
    guest = Guest()
    guest.attach()
    borrowed = guest.core.references.borrow(object_id(FAR, 1), counted=True)
    guest.core.detached("a cable", guest.now)
    guest.take(fx.Send)
    guest.core.references.drop(borrowed)
    guest.open(B)
    guest.core.references.promote([guest.core.put(m.INLINE, b"v", [])])
    guest.carry_out()
    guest.core.detached("another cable", guest.now)
    guest.open(A)
    guest.core.restored(guest.now)
    assert [type(word) for _, word in guest.carry_out()] == [m.Hello]


def test_nothing_is_left_of_an_actor_it_lost_once_its_last_handle_goes() -> None:
    guest = Guest()
    guest.attach()
    spec = guest.core.new_spec(guest.core.me, "A", CPU, num_returns=-1, max_retries=0, options={"max_calls": 1})
    handles = [guest.core.new_actor(spec, b"", None, 0, name="A", ordered=True) for _ in range(2)]
    for handle in handles:
        guest.core.start_actor(handle, guest.now)
    guest.core.references.promote(handles)
    guest.core.references.drop(handles[0])  # the old node would have said when others had none either
    guest.core.detached("killed", guest.now)
    guest.attach(B)
    guest.pass_time(0.1)
    assert list(guest.core.actors.known) == [actor_id(guest.core.me, handles[1].seq)]
    guest.core.references.drop(handles[1])
    guest.pass_time(0.1)
    assert guest.core.actors.known == {}


def test_words_of_a_link_count_only_while_there_is_a_node() -> None:
    guest = Guest()
    guest.core.parcel(0, 1, 0, False, node_peer(A), bytes(16), b"early", 0.0)
    guest.core.acknowledged(0, 1, False, 0.0)
    guest.core.reconnected(0.0)
    assert guest.take(fx.Relay) == []
    guest.attach()
    guest.core.parcel(0, 1, 0, False, node_peer(A), guest.core.me, b"frame", 0.0)
    assert guest.take(fx.Relay)[0].frame == b"frame"
    guest.carry_out()
    guest.core.reconnected(0.0)
    assert guest.take(fx.Post), "what nobody acknowledged is sent again"
    guest.core.acknowledged(0, 1, False, 0.0)
    guest.core.reconnected(0.0)
    assert guest.take(fx.Post) == []


def test_a_node_keeps_its_guests_until_they_are_silent() -> None:
    timers, ended = Timers(), []
    guests = Guests(A, timers, members=lambda: [AT_B], ended=lambda peer, now: ended.append((peer, now)))
    peer = A + b"\xff" + b"g" * 7
    opened = guests.knock(peer, Knock(m.PROTOCOL_MAJOR), 0.0)
    assert opened == Opened(A, [["10.0.0.2", 27700]])
    assert GUEST_CODEC.decode(GUEST_CODEC.encode(opened)).node == A
    for second in range(2, 60, 2):
        timers.tick(second)
        assert not guests.knock(peer, Knock(m.PROTOCOL_MAJOR, A), second).gone
    assert peer in guests
    for second in range(60, 120, 2):
        timers.tick(second)
    assert ended
    assert GUEST_SILENCE_S < ended[0][1] - 58 < GUEST_SILENCE_S + 4
    assert peer not in guests
    assert timers.next_deadline() is None
    assert guests.knock(peer, Knock(m.PROTOCOL_MAJOR, A), 120.0).gone
    assert guests.knock(peer, Knock(m.PROTOCOL_MAJOR, B), 120.0).gone
    assert "version" in guests.knock(peer, Knock(m.PROTOCOL_MAJOR + 1), 120.0).refused


@pytest.mark.parametrize("first", [0x00, 0x7F, 0x80, 0xFF])
def test_no_process_of_a_host_is_taken_for_a_guest(first: int) -> None:
    assert not is_guest(local_peer(A, bytes([first]) + b"1234567"))
    assert not is_guest(store_peer(A))
    assert not is_guest(node_peer(A))


def test_a_pending_entry_of_nobody_is_not_freed_by_a_new_home() -> None:
    guest = Guest()
    guest.attach()
    entry = guest.core.put(m.STORED, (7, 10, guest.core.me), [])
    guest.core.references.lend(entry)
    assert isinstance(entry, Entry)
    guest.core.detached("killed", guest.now)
    guest.attach(B)
    guest.effects.clear()
    guest.core.references.drop(entry)
    assert [effect.segments for effect in guest.take(fx.Recycle)] == [[7]]
