"""Counts that differ between a home and a holder: what heals, when, and what never happens."""

from typing import Any

import pytest

from zmesh.core.effects import Effect, Send
from zmesh.core.enclosed import Enclosed
from zmesh.core.holdings import GONE_LOOKS, LOOK_S, Holder
from zmesh.core.tables import table_sizes
from zmesh.core.tallies import APART_S, Tallies
from zmesh.core.timers import Timers
from zmesh.wire.counting_messages import Holdings, Recount, Tally, Uncounted, added, weight
from zmesh.wire.ids import node_peer, object_id
from zmesh.wire.messages import Release

N, M = b"n" * 8, b"m" * 8
HOME, A, B = node_peer(N), N + b"a" * 8, M + b"b" * 8
X, Y, Z = (object_id(N + b"o" * 8, seq) for seq in (1, 2, 3))
FAR = object_id(M + b"o" * 8, 1)


class Books:
    """A home's tallies over plain counts."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.timers = Timers()
        self.now = 0.0
        self.dead: dict[bytes, bool] = {}
        self.counts: dict[bytes, dict[bytes, int]] = {oid: {} for oid in (X, Y, Z)}
        self.tallies = Tallies(
            self.effects,
            self.timers,
            alive=lambda holder: holder not in self.dead,
            counts=lambda holder: {oid: by[holder] for oid, by in self.counts.items() if by.get(holder)},
            recount=self._recount,
        )

    def _recount(self, oid: bytes, holder: bytes, holds: int) -> bool:
        if oid not in self.counts:
            return not holds
        self.count(oid, holder, holds - self.counts[oid].get(holder, 0))
        return True

    def count(self, oid: bytes, holder: bytes, change: int = 1) -> None:
        holds = self.counts[oid].get(holder, 0) + change
        self.counts[oid][holder] = holds
        self.tallies.changed(oid, holder, change)

    def say(self, holder: bytes, **holds: int) -> list[Any]:
        """A holder's look: its tally, and all of it if it is asked; returns what it is told."""
        objects = [({"x": X, "y": Y, "z": Z, "far": FAR}[name], count) for name, count in holds.items()]
        total = 0
        for oid, count in objects:
            total = added(total, oid, count)
        words = self.tallies.of_clients
        words[Tally](holder, Tally(total), self.now)
        if self.said() == [Recount()]:
            words[Holdings](holder, Holdings(objects), self.now)
        self.tallies.check()
        return self.said()

    def said(self) -> list[Any]:
        found = [effect.message for effect in self.effects if isinstance(effect, Send)]
        self.effects.clear()
        return found

    def pass_time(self, seconds: float = LOOK_S) -> None:
        self.now += seconds
        self.timers.tick(self.now)


@pytest.fixture
def books() -> Books:
    return Books()


def test_equal_counts_cost_one_word_of_the_holder_and_none_of_the_home(books: Books) -> None:
    books.count(X, A, 2)
    books.count(Y, A)
    assert books.say(A, x=2, y=1) == []
    books.tallies.of_clients[Tally](A, Tally(added(added(0, X, 2), Y, 1)), books.now)
    assert books.said() == []


def test_errors_that_go_in_step_do_not_hide_behind_each_other() -> None:
    oids = [object_id(A, seq) for seq in range(10)]
    assert len({weight(oid) for oid in oids}) == 10
    total = 0
    for oid, change in zip(oids, (1, -1, -1, 1, 0, 0, 1, -1, -1, 1), strict=True):
        total = added(total, oid, change)
    assert total


def test_a_lost_count_is_made_up_for_at_the_second_look(books: Books) -> None:
    books.count(X, A)
    books.say(A, x=1, y=1)
    assert not books.counts[Y].get(A)
    books.pass_time()
    books.say(A, x=1, y=1)
    assert books.counts[Y][A] == 1
    assert books.tallies.repaired == 1
    books.pass_time()
    assert books.say(A, x=1, y=1) == []
    assert books.tallies.repaired == 1


def test_a_count_that_nobody_holds_is_dropped_at_the_second_look(books: Books) -> None:
    books.count(X, A, 3)
    books.say(A, x=1)
    assert books.counts[X][A] == 3
    books.pass_time()
    books.say(A, x=1)
    assert books.counts[X][A] == 1


def test_a_count_below_zero_whose_hold_will_never_come_is_dropped(books: Books) -> None:
    books.count(X, A, -1)
    books.pass_time(0.0)
    books.pass_time()
    assert books.said() == [Recount()], "who holds nothing tells nothing, so it is asked"
    books.tallies.compare(A, [], books.now)
    books.pass_time()
    books.tallies.compare(A, [], books.now)
    assert not books.counts[X][A]


@pytest.mark.parametrize("change", [1, -1])
def test_what_changed_between_two_looks_is_left_alone(books: Books, change: int) -> None:
    """A hold that overtook the holder's word, and a release that came before its second: the same two numbers."""
    books.count(X, A, 2)
    books.say(A, x=1)
    books.count(X, A, change)
    books.count(X, A, -change)
    books.pass_time()
    books.say(A, x=1)
    assert books.counts[X][A] == 2, "it is a suspect only now"
    books.pass_time()
    books.say(A, x=1)
    assert books.counts[X][A] == 1


def test_two_words_right_after_each_other_are_one_look(books: Books) -> None:
    books.say(A, x=1)
    books.pass_time(APART_S / 2)
    books.say(A, x=1)
    assert not books.counts[X].get(A)
    books.pass_time(APART_S / 2)
    books.say(A, x=1)
    assert books.counts[X][A] == 1


def test_a_hold_that_comes_after_the_repair_is_too_much_and_goes_again(books: Books) -> None:
    """Its sender had been stopped for as long as two looks."""
    for _ in range(2):
        books.say(A, x=1)
        books.pass_time()
    books.count(X, A)
    assert books.counts[X][A] == 2
    for _ in range(2):
        books.say(A, x=1)
        books.pass_time()
    assert books.counts[X][A] == 1


def test_who_holds_what_is_gone_is_told_after_two_looks(books: Books) -> None:
    assert books.say(A, far=1) == []
    books.pass_time()
    assert books.say(A, far=1) == [Uncounted([FAR])]
    books.pass_time()
    assert books.say(A) == []


def test_equal_again_means_that_nothing_is_suspect(books: Books) -> None:
    books.say(A, x=1)
    books.pass_time()
    books.say(A)
    books.pass_time()
    books.say(A, x=1)
    assert not books.counts[X].get(A)


def test_the_dead_are_asked_nothing_and_told_nothing(books: Books) -> None:
    books.count(X, A)
    books.dead[A] = True
    books.pass_time(0.0)
    books.pass_time()
    assert books.said() == []
    books.tallies.compare(A, [(Y, 1)], books.now)
    books.tallies.gone(A)
    books.counts[X].clear()
    books.tallies.check()
    books.pass_time()
    assert books.timers.next_deadline() is None, "there is nobody to look after"


def test_values_that_hold_others_are_not_asked(books: Books) -> None:
    books.tallies.changed(X, Y, 1)
    books.pass_time()
    books.pass_time()
    assert books.said() == []


# The holder's half.


def test_a_holder_tells_each_home_one_sum_a_look_and_nothing_when_it_holds_nothing() -> None:
    effects: list[Effect] = []
    timers = Timers()
    held = {X: 1, Y: 2, FAR: 1}
    holder = Holder(effects, timers, lambda: held.items())
    assert timers.next_deadline() is None
    holder.wake()
    holder.wake()
    timers.tick(0.0)
    assert not effects
    timers.tick(LOOK_S)
    assert effects == [
        Send(node_peer(N), Tally(added(added(0, X, 1), Y, 2))),
        Send(node_peer(M), Tally(added(0, FAR, 1))),
    ]
    effects.clear()
    holder.recount(node_peer(N))
    assert effects == [Send(node_peer(N), Holdings([(X, 1), (Y, 2)]))]
    effects.clear()
    held.clear()
    timers.tick(2 * LOOK_S)
    assert not effects
    assert timers.next_deadline() is None


def test_a_home_that_is_gone_is_told_nothing_for_a_while() -> None:
    effects: list[Effect] = []
    timers = Timers()
    holder = Holder(effects, timers, lambda: [(FAR, 1)])
    holder.wake()
    timers.tick(0.0)
    holder.home_gone(M)
    told = []
    for look in range(1, GONE_LOOKS + 2):
        timers.tick(look * LOOK_S)
        told.append(len(effects))
    assert told == [0] * GONE_LOOKS + [1]


def test_a_home_that_is_gone_is_forgotten_although_nothing_is_held() -> None:
    timers = Timers()
    holder = Holder([], timers, list)
    holder.home_gone(M)
    for look in range(GONE_LOOKS + 1):
        assert table_sizes(holder)["_gone"] == 1
        timers.tick(look * LOOK_S)
    assert table_sizes(holder)["_gone"] == 0
    assert timers.next_deadline() is None


# What values contain.


def test_a_node_holds_far_objects_for_the_values_it_counts_until_these_go() -> None:
    effects: list[Effect] = []
    enclosed = Enclosed(N, effects)
    enclosed.added([X, FAR])
    enclosed.added([FAR])
    assert list(enclosed.held()) == [(FAR, 2)]
    enclosed.removed([X, FAR], clean=False)
    assert effects == [Send(node_peer(M), Release([(FAR, 1, False)]))]
    enclosed.removed([FAR], clean=True)
    enclosed.removed([FAR], clean=True)
    assert not list(enclosed.held())
    assert len(effects) == 2
    enclosed.refused([X, FAR])
    assert effects[2:] == [Send(node_peer(M), Release([(FAR, 1, True)]))]
    enclosed.added([FAR])
    enclosed.lost([FAR, X])
    assert not list(enclosed.held())
