"""What a node offers to whom: few at once, but never so few that a bundle's tasks find nobody."""

import random
from typing import Any

from zmesh.core.effects import Effect
from zmesh.core.lending import PARKED_AT_MAX, Lending
from zmesh.core.resources import Resources
from zmesh.core.status import NAMES_MAX, ending, labels
from zmesh.wire.messages import UNIT

CPU = {"CPU": UNIT}
VICTIMS = [bytes([65 + index]) * 8 for index in range(6)]


class Thief:
    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.lending = Lending(
            random.Random(1),
            self.effects,
            demands=list,
            fits=Resources.count,
            congested=lambda node: False,
            config_of=lambda job: {},
            members=lambda: 7,
        )

    def told(self) -> list[tuple[bytes, Any]]:
        found = [(effect.to[:8], effect.message.free) for effect in self.effects]
        self.effects.clear()
        return found


def test_what_is_free_is_offered_to_few_and_to_others_when_those_have_nothing_to_do() -> None:
    thief = Thief()
    for victim in VICTIMS[:5]:
        thief.lending.backlog(victim, [(CPU, 3)], CPU)
    assert [victim for victim, _ in thief.told()] == VICTIMS[:PARKED_AT_MAX]
    thief.lending.backlog(VICTIMS[1], [], CPU)
    assert thief.told()[0] == (VICTIMS[1], {}), "its offer is withdrawn"
    thief.lending.offer(CPU)
    assert len(thief.told()) <= 1


def test_who_has_tasks_for_a_bundle_here_is_told_in_any_case() -> None:
    thief = Thief()
    free = {"CPU": UNIT, "bundle@ab": 1000, "CPU@ab": UNIT}
    for victim in VICTIMS[:5]:
        thief.lending.backlog(victim, [(CPU, 3)], free)
    thief.told()
    thief.lending.backlog(VICTIMS[5], [({"bundle@ab": 1}, 1)], free)
    assert thief.told() == [(VICTIMS[5], free)]


def test_what_ends_with_a_node_is_told_by_name_but_not_without_end() -> None:
    assert ending([], []) == []
    assert ending([{"name": "a"}, {"name": "b"}], []) == ["2 detached actor(s) end with this node: a, b"]
    (told,) = ending([], ["g"] * (NAMES_MAX + 1))
    assert told == f"{NAMES_MAX + 1} detached placement group(s) end with this node: " + "g, " * NAMES_MAX + "..."


def test_the_labels_of_a_node_are_read_from_its_marks() -> None:
    assert labels({"CPU": 1, "label:zone": 1, "label:zone=a": 1, "spread": 1}) == {"zone": "a"}
