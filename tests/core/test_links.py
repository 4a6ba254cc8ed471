"""Two nodes' links over a network that loses, cuts and repeats: in order, once, or dead."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmesh.core import effects as fx
from zmesh.core import links
from zmesh.core.links import Links
from zmesh.core.timers import Timers

A, B = b"a" * 8, b"b" * 8
FROM, TO = A + b"client..", B + b"worker.."


class Side:
    def __init__(self) -> None:
        self.effects: list[Any] = []
        self.timers = Timers()
        self.links = Links(self.effects, self.timers)
        self.got: list[bytes] = []
        self.ended = 0


class Pair:
    """Two sides and the wire between them; `lose` decides about each parcel on the wire."""

    def __init__(self, seed: int = 0, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.sides = {A: Side(), B: Side()}
        self.wire: list[tuple[bytes, bytes, Any]] = []
        self.posted = 0

    def settle(self, seconds: float = 60.0) -> None:
        """Let time pass until nothing is on the wire and no timer is due within `seconds`."""
        end = self.now + seconds
        while True:
            for me, side in self.sides.items():
                taken, side.effects[:] = side.effects[:], []
                for effect in taken:
                    self._carry_out(me, side, effect)
            if self.wire:
                me, other, effect = self.wire.pop(0)
                if self.rng.random() >= self.loss:
                    self._deliver(me, self.sides[other], effect)
                continue
            deadlines = [d for side in self.sides.values() if (d := side.timers.next_deadline()) is not None]
            for side in self.sides.values():
                side.links.check()
            if not deadlines or min(deadlines) > end:
                return
            self.now = max(self.now, min(deadlines))
            for side in self.sides.values():
                side.timers.tick(self.now)

    def _carry_out(self, me: bytes, side: Side, effect: Any) -> None:
        match effect:
            case fx.Post() | fx.PostAck():
                self.posted += isinstance(effect, fx.Post)
                self.wire.append((me, effect.node, effect))
            case fx.Relay():
                assert (effect.source, effect.to) in ((FROM, TO), (TO, FROM))
                side.got.append(effect.frame)
            case fx.LinkEnded():
                side.ended += 1

    def _deliver(self, sender: bytes, side: Side, e: Any) -> None:
        if isinstance(e, fx.Post):
            side.links.receive(sender, e.epoch, e.seq, e.ack, e.more, e.source, e.to, e.frame, self.now)
        else:
            side.links.acknowledged(sender, e.epoch, e.ack, e.missing, self.now)

    def send(self, frame: bytes, back: bool = False) -> None:
        if back:
            self.sides[B].links.send(A, TO, FROM, frame, self.now)
        else:
            self.sides[A].links.send(B, FROM, TO, frame, self.now)

    def cut(self) -> None:
        """Lose what is on the wire, and connect again, both ways."""
        for side in self.sides.values():
            side.effects[:] = [e for e in side.effects if not isinstance(e, fx.Post | fx.PostAck)]
        self.wire.clear()
        self.sides[A].links.reconnected(B, self.now)
        self.sides[B].links.reconnected(A, self.now)


def frames(count: int) -> list[bytes]:
    return [b"%d" % index for index in range(count)]


def test_what_a_stranger_says_is_taken_once_he_is_known() -> None:
    """A node that joins may speak, and be spoken to, before the other side has heard of it."""
    pair = Pair()
    known: list[bytes] = []
    pair.sides[B].links = Links(pair.sides[B].effects, pair.sides[B].timers, known=known.__contains__)
    pair.send(b"first")
    pair.send(b"second")
    pair.settle(1.0)
    assert pair.sides[B].got == []
    known.append(A)
    pair.settle()
    assert pair.sides[B].got == [b"first", b"second"]


def test_frames_arrive_once_in_order_and_one_acknowledgement_is_enough() -> None:
    pair = Pair()
    for frame in frames(50):
        pair.send(frame)
    pair.settle()
    assert pair.sides[B].got == frames(50)
    assert pair.posted == 50


def test_an_answer_carries_the_acknowledgement() -> None:
    pair = Pair()
    pair.send(b"question")
    (question,) = pair.sides[A].effects
    pair.sides[A].effects.clear()
    pair._deliver(A, pair.sides[B], question)
    pair.sides[B].effects.clear()
    pair.send(b"answer", back=True)
    (answer,) = pair.sides[B].effects
    assert answer.ack == 1
    pair.sides[B].timers.tick(1.0)
    assert not [e for e in pair.sides[B].effects if isinstance(e, fx.PostAck)]


@pytest.mark.parametrize("seed", range(20))
def test_half_of_everything_may_be_lost(seed: int) -> None:
    pair = Pair(seed, loss=0.5)
    for frame in frames(40):
        pair.send(frame)
        pair.send(frame, back=True)
    pair.settle(seconds=10_000)
    assert pair.sides[A].got == pair.sides[B].got == frames(40)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["send", "back", "cut", "settle", "pass"]), max_size=60), st.integers(0, 1000))
def test_cuts_at_any_moment_lose_and_double_nothing(steps: list[str], seed: int) -> None:
    pair = Pair(seed)
    there: list[bytes] = []
    back: list[bytes] = []
    for number, step in enumerate(steps):
        frame = b"%d" % number
        if step == "send":
            pair.send(frame)
            there.append(frame)
        elif step == "back":
            pair.send(frame, back=True)
            back.append(frame)
        elif step == "cut":
            pair.cut()
        elif step == "pass":
            pair.settle(0.01)
        else:
            pair.settle()
    pair.settle(1000)
    assert (pair.sides[B].got, pair.sides[A].got) == (there, back)


def test_the_last_frame_lost_is_sent_again_though_nothing_follows_it() -> None:
    pair = Pair()
    pair.send(b"alone")
    pair.sides[A].effects.clear()
    pair.settle()
    assert pair.sides[B].got == [b"alone"]


def test_a_connection_through_which_nothing_comes_is_made_anew() -> None:
    pair = Pair(loss=1.0)
    pair.send(b"into the void")
    side = pair.sides[A]
    redialled = 0
    while redialled < 2:
        deadline = side.timers.next_deadline()
        assert deadline is not None
        assert deadline < 12
        side.timers.tick(deadline)
        redialled += sum(isinstance(effect, fx.Redial) for effect in side.effects)
        side.effects.clear()


def test_a_large_frame_travels_in_fragments() -> None:
    pair = Pair(loss=0.2)
    large = random.Random(1).randbytes(3 * links.FRAGMENT_BYTES + 17)
    for frame in (b"before", large, b"", b"after"):
        pair.send(frame)
    pair.settle(1000)
    assert pair.sides[B].got == [b"before", large, b"", b"after"]


def test_what_is_under_way_never_exceeds_the_window() -> None:
    pair = Pair()
    piece = bytes(links.FRAGMENT_BYTES)
    for _ in range(60):
        pair.send(piece)
    under_way = sum(len(e.frame) for e in pair.sides[A].effects)
    assert under_way <= links.WINDOW_BYTES + len(piece)
    assert pair.sides[A].links.congested(B)
    pair.settle()
    assert len(pair.sides[B].got) == 60
    assert not pair.sides[A].links.congested(B)


def test_one_side_that_took_the_other_for_dead_begins_anew_on_both() -> None:
    pair = Pair()
    pair.send(b"old")
    pair.settle()
    pair.send(b"lost with the link")
    pair.send(b"and this one", back=True)
    pair.sides[A].links.died(B)
    pair.settle()
    assert pair.sides[A].got == []
    pair.sides[A].got.clear()
    pair.sides[A].links.send(B, FROM, TO, b"to the dead", pair.now)
    pair.sides[A].links.came_back(B)
    pair.send(b"new")
    pair.settle()
    assert pair.sides[B].got == [b"old", b"lost with the link", b"new"]
    assert pair.sides[B].ended == 1
    pair.send(b"new back", back=True)
    pair.settle()
    assert pair.sides[A].got == [b"new back"]


def test_both_may_take_each_other_for_dead() -> None:
    pair = Pair()
    pair.send(b"old")
    pair.settle()
    for me, other in ((A, B), (B, A)):
        pair.sides[me].links.died(other)
        pair.sides[me].links.died(other)
        pair.sides[me].links.came_back(other)
    pair.send(b"new")
    pair.settle()
    assert pair.sides[B].got == [b"old", b"new"]
    assert pair.sides[B].ended == 0


def test_words_of_an_old_link_are_ignored() -> None:
    pair = Pair()
    side = pair.sides[B]
    side.links.died(A)
    side.links.came_back(A)
    side.links.receive(A, 0, 1, 0, False, FROM, TO, b"stale", 0.0)
    side.links.acknowledged(A, 0, 5, True, 0.0)
    assert side.effects == []
    side.links.forget(A)
    side.links.forget(A)
    side.links.reconnected(A, 0.0)
    assert side.effects == []


@pytest.mark.parametrize("lost", [1, 100, 5000])
def test_what_is_lost_at_the_end_of_a_burst_is_made_good_without_waiting_for_each_few_of_it(lost: int) -> None:
    """Nothing follows that would show the gap: only the timer of the sender knows."""
    pair = Pair()
    frames = [b"%d" % number for number in range(lost + 50)]
    for frame in frames:
        pair.send(frame)
    sender = pair.sides[A]
    del sender.effects[50:]  # a pipe was full
    arrived = pair.sides[B].got
    pair.settle(3.0)
    assert arrived == frames
    assert pair.posted < 3 * len(frames)


def test_links_of_the_dead_are_forgotten_in_time_and_one_that_comes_back_after_that_begins_anew() -> None:
    pair = Pair()
    pair.send(b"old")
    pair.send(b"old back", back=True)
    pair.settle()
    side = pair.sides[B]
    for number in range(links.CLOSED_MAX + 1):
        side.links.died(A if not number else number.to_bytes(8, "big"))
    side.links.check()
    assert len(side.links._links) == links.CLOSED_MAX
    assert A not in side.links._links
    assert not side.links.came_back(A), "it is as good as new"
    pair.send(b"on the old link")
    pair.settle()
    assert pair.sides[A].ended == 1, "it hears that it was taken for dead"
    assert side.ended == 0
    pair.send(b"new")
    pair.send(b"new back", back=True)
    pair.settle()
    assert side.got == [b"old", b"new"]
    assert pair.sides[A].got == [b"old back", b"new back"]


def test_what_guests_and_shortcuts_have_begins_at_the_beginning_whoever_was_forgotten() -> None:
    pair = Pair()
    side = pair.sides[B]
    for number in range(links.CLOSED_MAX + 1):
        side.links.died(number.to_bytes(8, "big"))
    side.links.send(b"x" * 16, TO, FROM, b"frame", 0.0)
    assert [effect.epoch for effect in side.effects] == [0]
    side.links.came_back(b"z" * 8)
    side.links.receive(b"z" * 8, 5, 1, 0, False, FROM, TO, b"frame", 0.0)
    assert side.ended == 0, "nothing was agreed on the link that was not used"
