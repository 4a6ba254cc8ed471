"""Replicas that nobody counts: their warden asks in rounds, and what was on the move is seen by the next."""

from typing import Any

import pytest

from zmesh.core.effects import Effect, Send
from zmesh.core.orphans import ROUND_MAX_S, ROUND_S, Orphans
from zmesh.core.sightings import Sightings
from zmesh.core.timers import Timers
from zmesh.wire.counting_messages import Held, WhoHolds
from zmesh.wire.ids import node_peer, object_id

US, M1, M2, HOME = b"us......", b"member.1", b"member.2", b"home...."
D, E = US + b"driver.d", US + b"driver.e"
X, Y = (object_id(HOME + b"driver..", seq) for seq in (1, 2))


class Desk:
    """One node's part, with replicas of X and Y that have no home."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.timers = Timers()
        self.now = 0.0
        self.members = {M1: True, M2: True}
        self.clients = {D: True}
        self.kept = [X, Y]
        self.inside: dict[bytes, bool] = {}
        self.orphans = Orphans(
            US,
            self.effects,
            self.timers,
            members=self.members,
            clients=self.clients,
            orphans=lambda: list(self.kept),
            drop=self.kept.remove,
            holds=self.inside.__contains__,
        )

    def said(self) -> list[Any]:
        found = [(e.to, e.message) for e in self.effects if isinstance(e, Send)]
        self.effects.clear()
        self.orphans.check()
        return found

    def tick(self, seconds: float = ROUND_S) -> list[Any]:
        self.now += seconds
        self.timers.tick(self.now)
        return self.said()

    def answer(self, number: int, client: list[bytes], members: list[bytes]) -> None:
        self.orphans.told(D, Held(US, number, client), self.now)
        for member in (M1, M2):
            self.orphans.answered(member, Held(US, number, members), self.now)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_what_nobody_held_for_a_whole_round_goes_and_the_rest_stays(desk: Desk) -> None:
    desk.orphans.wake(desk.now)
    desk.orphans.wake(desk.now)
    question = WhoHolds(US, 1, [X, Y])
    assert desk.tick() == [(node_peer(M1), question), (node_peer(M2), question), (D, question)]
    desk.answer(1, [X], [X, Y])
    assert desk.kept == [X, Y]
    assert desk.tick()[0] == (node_peer(M1), WhoHolds(US, 2, [X, Y]))
    desk.answer(2, [X], [])
    assert desk.kept == [X]
    assert desk.tick()[0] == (node_peer(M1), WhoHolds(US, 3, [X]))
    desk.answer(3, [], [])
    assert desk.kept == []
    empty = WhoHolds(US, 4, [])
    assert desk.said() == [(node_peer(M1), empty), (node_peer(M2), empty), (D, empty)], "they may forget what it asked"
    desk.answer(4, [], [])
    assert desk.tick(2 * ROUND_MAX_S) == []


def test_rounds_become_rare_while_all_are_held(desk: Desk) -> None:
    desk.orphans.wake(desk.now)
    pauses = []
    for number in range(1, 9):
        begun = desk.now
        while not desk.tick(ROUND_S / 2):
            pass
        pauses.append(desk.now - begun)
        desk.answer(number, [X, Y], [])
    assert pauses[:3] == [ROUND_S, ROUND_S, 2 * ROUND_S]
    assert pauses[-1] == ROUND_MAX_S


def test_a_round_waits_for_all_that_live_and_for_nobody_else(desk: Desk) -> None:
    desk.orphans.wake(desk.now)
    desk.tick()
    desk.orphans.answered(M1, Held(US, 1, []), desk.now)
    desk.orphans.answered(M1, Held(US, 1, [X]), desk.now)
    del desk.members[M2]
    desk.orphans.node_gone(M2, desk.now)
    desk.orphans.answered(M1, Held(US, 0, [X]), desk.now)
    assert desk.tick(10 * ROUND_S) == [], "a client of ours has not answered"
    del desk.clients[D]
    desk.orphans.client_gone(D, desk.now)
    assert desk.kept == [X, Y], "we ourselves may have had them before we were asked"
    desk.tick()
    desk.orphans.answered(M1, Held(US, 2, []), desk.now)
    assert desk.kept == []


def test_nothing_goes_in_a_round_in_which_somebody_dies_unasked(desk: Desk) -> None:
    """It may have passed on a reference to somebody who had answered already."""
    desk.orphans.wake(desk.now)
    desk.tick()
    desk.answer(1, [], [])
    assert desk.kept == [X, Y]
    desk.tick()
    desk.orphans.answered(M1, Held(US, 2, []), desk.now)
    desk.orphans.answered(M2, Held(US, 2, []), desk.now)
    desk.orphans.client_gone(D, desk.now)
    assert desk.kept == [X, Y]
    assert len(desk.tick(2 * ROUND_S)) == 3
    desk.orphans.told(D, Held(US, 3, []), desk.now)
    desk.orphans.answered(M1, Held(US, 3, []), desk.now)
    del desk.members[M2]
    desk.orphans.node_gone(M2, desk.now)
    assert desk.kept == [X, Y]
    desk.tick()
    desk.orphans.told(D, Held(US, 4, []), desk.now)
    desk.orphans.answered(M1, Held(US, 4, []), desk.now)
    assert desk.kept == []


def test_guests_of_a_member_that_is_gone_have_time_to_find_another(desk: Desk) -> None:
    desk.orphans.wake(desk.now)
    desk.tick(ROUND_S - 1)
    del desk.members[M2]
    desk.orphans.node_gone(M2, desk.now)
    assert desk.tick(ROUND_S - 1) == []
    assert len(desk.tick(1)) == 2


def test_a_member_answers_when_all_its_clients_have(desk: Desk) -> None:
    desk.kept.clear()
    desk.clients[E] = True
    desk.orphans.asked(WhoHolds(M1, 1, [X, Y]), desk.now)
    assert desk.said() == [(D, WhoHolds(M1, 1, [X, Y])), (E, WhoHolds(M1, 1, [X, Y]))]
    desk.orphans.told(D, Held(M1, 1, []), desk.now)
    desk.orphans.told(D, Held(M2, 1, []), desk.now)
    assert desk.said() == []
    desk.orphans.told(E, Held(M1, 1, []), desk.now)
    assert desk.said() == [(node_peer(M1), Held(M1, 1, [X, Y]))], "not asked before, it says yes"
    desk.inside[Y] = True
    desk.orphans.asked(WhoHolds(M1, 2, [X, Y]), desk.now)
    desk.said()
    desk.orphans.told(D, Held(M1, 2, [X]), desk.now)
    desk.orphans.client_gone(E, desk.now)
    assert sorted(desk.said()[0][1].objects) == [X, Y]
    desk.orphans.asked(WhoHolds(M1, 3, [X]), desk.now)
    desk.orphans.node_gone(M1, desk.now)
    desk.orphans.told(D, Held(M1, 3, []), desk.now)
    assert [message for _, message in desk.said() if isinstance(message, Held)] == []


def test_a_process_remembers_what_it_let_go_of_since_it_was_asked() -> None:
    held = {X: True}
    sightings = Sightings(held.__contains__)
    assert sightings.asked(M1, [X, Y]) == [X, Y]
    assert sightings.asked(M1, [X, Y]) == [X]
    del held[X]
    sightings.let_go(X)
    sightings.let_go(object_id(D, 1))
    assert sightings.asked(M1, [X, Y]) == [X]
    assert sightings.asked(M1, [X, Y]) == []
    assert sightings.asked(M2, [X]) == [X], "another warden has its own rounds"
    sightings.asked(M1, [])
    sightings.warden_gone(M2)
    assert not sightings._since
