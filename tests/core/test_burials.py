"""Whose death is known, and when what they held may go."""

from typing import Any

import pytest

from zmesh.core.burials import Burials, lends
from zmesh.core.effects import Effect, Send
from zmesh.wire.actor_messages import Call, Follow
from zmesh.wire.codec import encode
from zmesh.wire.death_messages import Dying
from zmesh.wire.ids import node_peer
from zmesh.wire.messages import Buried, Done, Hold, Work

N, F, G = b"n" * 8, b"f" * 8, b"g" * 8
D, W, W2 = N + b"driver..", N + b"worker..", N + b"worker2."
FAR_CLIENT, FAR_WORKER = F + b"driver..", F + b"worker.."


class Node:
    """The burials of one node with all that comes of them in view."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.members: dict[bytes, bool] = {F: True, G: True}
        self.buried: list[bytes] = []
        self.all = Burials(N, self.effects, members=self.members, buried=self.buried.append)

    def said(self) -> list[tuple[bytes, Any]]:
        """Return and forget what was said: (node, message)."""
        self.all.check()
        found = [(e.to[:8], e.message) for e in self.effects if isinstance(e, Send)]
        self.effects.clear()
        return found

    def lose(self, node: bytes, mourners: dict[bytes, dict[bytes, int]], *holders: bytes) -> None:
        del self.members[node]
        self.all.node_died(node, mourners, list(holders))


@pytest.fixture
def node() -> Node:
    return Node()


def test_who_lent_nothing_is_buried_at_once(node: Node) -> None:
    node.all.died(D, {})
    assert node.buried == [D]
    assert node.said() == []


def test_a_client_is_buried_when_each_that_it_spoke_to_has_said_so_as_often_as_it_should(node: Node) -> None:
    node.all.spoke(D, F)
    node.all.spoke(D, b"z" * 8)  # it is no member any more
    node.all.died(D, {W: 2}, [F, G])
    assert node.said() == [(F, Dying([D])), (G, Dying([D]))]
    node.all.said(W, D)
    node.all.said(node_peer(F), D)
    node.all.said(node_peer(G), D)
    node.all.said(W2, D)  # was not asked
    assert node.buried == []
    assert D in node.all
    node.all.said(W, D)
    assert node.buried == [D]
    node.all.said(W, D)
    assert node.buried == [D]
    assert len(node.all) == 0


def test_a_mourner_that_dies_is_waited_for_until_it_is_buried(node: Node) -> None:
    node.all.died(D, {W: 1})
    node.all.died(W, {W2: 1})
    assert node.buried == []
    node.all.said(W2, W)
    assert node.buried == [W, D]


def test_a_client_of_another_node_is_buried_there_and_its_node_says_when(node: Node) -> None:
    node.all.told(FAR_CLIENT, {W: 1})
    assert node.said() == []
    node.all.said(W, FAR_CLIENT)
    assert node.said() == [(F, Buried(FAR_CLIENT))]
    assert node.buried == []
    node.all.died(D, {FAR_WORKER: 1})
    node.all.gone(FAR_WORKER)
    assert node.buried == [D]


def test_a_node_that_is_gone_mourns_nobody_and_asks_nothing(node: Node) -> None:
    node.all.spoke(D, F)
    node.all.died(D, {FAR_WORKER: 1})
    node.all.told(FAR_CLIENT, {W: 1})
    node.all.asked(G + b"client..", F, back=False)
    node.said()
    node.lose(F, {})
    assert node.buried == [D]
    assert node.said() == []
    node.all.said(W, FAR_CLIENT)
    assert node.buried == [D, FAR_CLIENT]
    node.lose(G, {})
    assert node.said() == []


def test_a_home_asks_all_others_about_clients_of_a_node_that_is_gone(node: Node) -> None:
    node.lose(F, {FAR_CLIENT: {W: 1}, FAR_WORKER: {}}, FAR_CLIENT)
    assert node.buried == [FAR_WORKER], "nothing is counted for it"
    assert node.said() == [(G, Dying([FAR_CLIENT]))]
    node.all.asked(FAR_CLIENT, G, back=False)
    node.all.said(node_peer(G), FAR_CLIENT)
    assert node.said() == []
    node.all.said(W, FAR_CLIENT)
    assert node.said() == [(G, Buried(FAR_CLIENT))]
    assert node.buried == [FAR_WORKER, FAR_CLIENT]
    node.all.asked(FAR_CLIENT, G, back=False)
    assert node.said() == [(G, Buried(FAR_CLIENT))]


def test_two_homes_that_ask_each_other_do_not_wait_for_each_other(node: Node) -> None:
    node.lose(F, {FAR_CLIENT: {}}, FAR_CLIENT)
    node.said()
    node.all.asked(FAR_CLIENT, G, back=False)
    assert node.said() == [(G, Buried(FAR_CLIENT))]
    assert node.buried == []


def test_who_is_asked_before_it_has_missed_that_node_answers_then(node: Node) -> None:
    node.all.asked(FAR_CLIENT, G, back=False)
    assert node.said() == []
    node.lose(F, {FAR_CLIENT: {W: 1}})
    assert node.said() == []
    node.all.said(W, FAR_CLIENT)
    assert node.said() == [(G, Buried(FAR_CLIENT))]


def test_who_is_asked_about_one_whose_node_has_it_buried_meanwhile_says_so(node: Node) -> None:
    node.all.asked(FAR_CLIENT, G, back=False)
    node.all.gone(FAR_CLIENT)
    assert node.said() == [(G, Buried(FAR_CLIENT))]


def test_a_burial_that_its_node_had_begun_goes_on_when_that_is_gone(node: Node) -> None:
    node.all.told(FAR_CLIENT, {W: 1})
    node.lose(F, {FAR_CLIENT: {}}, FAR_CLIENT)
    node.all.said(node_peer(G), FAR_CLIENT)
    assert node.buried == []
    node.all.said(W, FAR_CLIENT)
    assert node.buried == [FAR_CLIENT]


def test_a_node_that_is_there_again_need_not_be_missed_by_others(node: Node) -> None:
    node.all.told(G + b"client..", {W: 1})
    node.lose(F, {FAR_CLIENT: {W: 1}}, FAR_CLIENT, FAR_WORKER)
    node.said()
    node.all.asked(FAR_CLIENT, G, back=False)
    node.members[F] = True
    node.all.node_came_back(F)
    node.all.node_came_back(G)  # of that it never was said
    assert node.buried == [FAR_CLIENT, FAR_WORKER]
    back = Dying([FAR_CLIENT, FAR_WORKER], back=True)
    assert node.said() == [(G, back), (F, back), (G, Buried(FAR_CLIENT))]
    node.all.asked(FAR_CLIENT, G, back=False)
    node.all.asked(FAR_CLIENT, G, back=True)
    node.all.asked(FAR_CLIENT, G, back=True)
    node.all.gone(FAR_CLIENT)
    assert node.said() == []


def test_calls_of_the_dead_are_told_from_what_else_they_said_last() -> None:
    assert [lends(encode(word)) for word in (Call([], []), Follow(W), Work([], []))] == [True] * 3
    assert [lends(encode(word)) for word in (Done([], [], []), Hold(0, []))] == [False] * 2
    assert not lends(b"no message")
