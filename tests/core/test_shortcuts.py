"""Both halves of a shortcut: who switches when, and what is held back meanwhile."""

import random
from typing import Any

import pytest

from zmesh.core import effects as fx
from zmesh.core import shortcuts
from zmesh.core.links import Links
from zmesh.core.shortcuts import LINK_NAME, Openings, Shortcuts
from zmesh.core.timers import Timers
from zmesh.wire.codec import decode
from zmesh.wire.ids import node_peer
from zmesh.wire.shortcut_messages import Carry, Shortcut, Switch

HERE, THERE = b"driverAA", b"farnodeB"
DRIVER = HERE + b"driver.."
WORKER = THERE + b"worker.."
ADDRESS = ("10.0.0.2", 27700)


class Driver:
    def __init__(self) -> None:
        self.effects: list[Any] = []
        self.half = Shortcuts(DRIVER, self.effects, Links(self.effects, Timers()))

    def take(self) -> list[Any]:
        taken, self.effects[:] = self.effects[:], []
        return taken


class Node:
    def __init__(self, address: Any = ADDRESS) -> None:
        self.effects: list[Any] = []
        self.links = Links(self.effects, Timers())
        self.half = Openings(THERE, random.Random(1), self.effects, self.links, address=lambda: address)

    take = Driver.take

    def offer(self) -> Shortcut:
        self.half.offer(DRIVER)
        (effect,) = self.take()
        assert effect.to == DRIVER
        message: Shortcut = effect.message
        return message


def opened() -> tuple[Driver, Node, Shortcut]:
    """A driver that dialled and switched, and a node that heard so and answered."""
    driver, node = Driver(), Node()
    word = node.offer()
    driver.half.offered(node_peer(THERE), word, 0.0)
    driver.half.connected(THERE, word.token, 0.0)
    node.half.switch(DRIVER, Switch(word.token), 0.0)
    driver.half.switched(node_peer(THERE), Switch(word.token), 0.0)
    driver.take()
    node.take()
    return driver, node, word


def parcel(effect: fx.Post) -> Any:
    return (effect.epoch, effect.seq, effect.ack, effect.more, effect.source, effect.to, effect.frame)


def test_a_driver_dials_what_it_is_offered_and_switches_once_it_is_connected() -> None:
    driver, word = Driver(), Node().offer()
    driver.half.offered(node_peer(THERE), word, 0.0)
    assert driver.take() == [fx.DialNode(THERE, ADDRESS, word.token)]
    assert not driver.half.open
    driver.half.connected(THERE, word.token, 0.0)
    assert driver.take() == [fx.Detour(node_peer(THERE), Switch(word.token))]
    assert driver.half.open == {THERE: True}
    driver.half.connected(THERE, word.token, 1.0)
    assert driver.take() == [], "a connection made anew is no second switch"
    driver.half.check()


def test_a_node_offers_each_driver_one_shortcut_and_none_if_it_cannot_be_dialled() -> None:
    node = Node()
    node.offer()
    node.half.offer(DRIVER)
    assert node.take() == []
    nowhere = Node(address=None)
    nowhere.half.offer(DRIVER)
    assert nowhere.take() == []


def test_a_node_answers_a_switch_by_the_old_way_and_takes_the_new_one_from_then_on() -> None:
    node = Node()
    word = node.offer()
    node.half.switch(DRIVER, Switch(word.token), 0.0)
    (post,) = node.take()
    assert (post.node, post.to, decode(post.frame)) == (HERE, DRIVER, Switch(word.token))
    assert node.half.names == {DRIVER: LINK_NAME + word.token}
    node.half.switch(DRIVER, Switch(word.token), 0.0)
    assert node.take() == []
    node.half.check()


def test_what_a_driver_says_by_the_new_way_waits_for_its_last_word_by_the_old_one() -> None:
    driver, node = Driver(), Node()
    word = node.offer()
    driver.half.offered(node_peer(THERE), word, 0.0)
    driver.half.connected(THERE, word.token, 0.0)
    driver.take()
    driver.half.send(WORKER, b"work", 0.0)
    (post,) = driver.take()
    node.half.parcel(LINK_NAME + word.token, parcel(post), 0.0)
    assert node.take() == []
    node.half.switch(DRIVER, Switch(word.token), 0.0)
    assert fx.Relay(DRIVER, WORKER, b"work") in node.take()


def test_what_a_node_says_by_the_new_way_waits_for_its_last_word_by_the_old_one() -> None:
    driver, node = Driver(), Node()
    word = node.offer()
    driver.half.offered(node_peer(THERE), word, 0.0)
    driver.half.connected(THERE, word.token, 0.0)
    node.half.switch(DRIVER, Switch(word.token), 0.0)
    node.take()
    driver.take()
    node.links.send(node.half.names[DRIVER], WORKER, DRIVER, b"done", 0.0)
    (post,) = node.take()
    driver.half.parcel(THERE, word.token, parcel(post), 0.0)
    assert driver.take() == []
    driver.half.switched(node_peer(THERE), Switch(word.token), 0.0)
    assert driver.take() == [fx.Relay(WORKER, DRIVER, b"done")]


def test_without_a_connection_both_sides_take_the_old_way() -> None:
    driver, node, word = opened()
    driver.half.send(WORKER, b"work", 0.0)
    (post,) = driver.take()
    driver.half.unsent(post)
    (detour,) = driver.take()
    assert detour.to == node_peer(THERE)
    node.half.carried(DRIVER, detour.message, 0.0)
    assert node.take() == [fx.Relay(DRIVER, WORKER, b"work")]
    node.links.send(node.half.names[DRIVER], WORKER, DRIVER, b"done", 0.0)
    (post,) = node.take()
    node.half.unsent(post, 0.0)
    (by_node,) = node.take()
    assert by_node.node == HERE
    driver.half.carried(node_peer(THERE), decode(by_node.frame), 0.0)
    assert driver.take() == [fx.Relay(WORKER, DRIVER, b"done")]
    driver.half.unsent(fx.PostAck(THERE, 0, 1, False))
    (detour,) = driver.take()
    node.half.carried(DRIVER, detour.message, 0.0)
    node.half.acknowledged(LINK_NAME + word.token, 0, 1, False, 0.0)
    driver.half.acknowledged(THERE, word.token, 0, 1, False, 0.0)
    driver.half.check()
    node.half.check()


@pytest.mark.parametrize("token", [b"", b"another.", b"x" * 8])
def test_words_of_another_shortcut_are_ignored(token: bytes) -> None:
    driver, node, _ = opened()
    word = Carry(token, 0, 1, 0, False, DRIVER, WORKER, b"work")
    node.half.carried(DRIVER, word, 0.0)
    node.half.switch(DRIVER, Switch(token), 0.0)
    node.half.parcel(LINK_NAME + token, (0, 1, 0, False, DRIVER, WORKER, b"work"), 0.0)
    node.half.acknowledged(LINK_NAME + token, 0, 1, False, 0.0)
    node.half.unsent(fx.PostAck(LINK_NAME + token, 0, 1, False), 0.0)
    driver.half.carried(node_peer(THERE), word, 0.0)
    driver.half.switched(node_peer(THERE), Switch(token), 0.0)
    for there in (THERE, b"stranger"):
        driver.half.parcel(there, token, (0, 1, 0, False, WORKER, DRIVER, b"done"), 0.0)
        driver.half.acknowledged(there, token, 0, 1, False, 0.0)
        driver.half.connected(there, token, 0.0)
    driver.half.unsent(fx.PostAck(b"stranger", 0, 1, False))
    driver.half.node_gone(b"stranger")
    assert driver.take() == node.take() == []


def test_nobody_speaks_for_another_driver_over_a_shortcut() -> None:
    _, node, word = opened()
    forged = HERE + b"another."
    node.half.parcel(LINK_NAME + word.token, (0, 1, 0, False, forged, WORKER, b"work"), 0.0)
    node.half.carried(DRIVER, Carry(word.token, 0, 1, 0, False, forged, WORKER, b"work"), 0.0)
    assert node.take() == []


def test_a_shortcut_ends_on_both_sides() -> None:
    driver, node, word = opened()
    driver.half.node_gone(THERE)
    assert driver.take() == [fx.HangUp(THERE)]
    assert not driver.half.open
    node.half.gone(DRIVER)
    node.half.gone(DRIVER)
    assert not node.half.names
    node.half.parcel(LINK_NAME + word.token, (0, 1, 0, False, DRIVER, WORKER, b"work"), 0.0)
    assert node.take() == []
    assert node.offer().token != word.token, "a new life of that client has a new one"


def test_what_is_still_on_the_connection_of_a_shortcut_that_ended_is_not_for_the_next_one() -> None:
    """Both ends and offers may be heard before the socket is closed that the old one had."""
    driver, _, old = opened()
    driver.half.node_gone(THERE)
    word = Node().offer()
    word.token = b"newtoken"
    driver.half.offered(node_peer(THERE), word, 0.0)
    driver.take()
    driver.half.connected(THERE, old.token, 0.0)
    driver.half.parcel(THERE, old.token, (0, 1, 0, False, WORKER, DRIVER, b"stale"), 0.0)
    driver.half.acknowledged(THERE, old.token, 0, 1, False, 0.0)
    assert not driver.half.open
    driver.half.switched(node_peer(THERE), Switch(word.token), 0.0)
    driver.half.parcel(THERE, word.token, (0, 1, 0, False, WORKER, DRIVER, b"fresh"), 0.0)
    assert driver.take() == [fx.Relay(WORKER, DRIVER, b"fresh")]


def test_a_node_speaks_over_a_shortcut_for_its_own_host_only() -> None:
    driver, _, word = opened()
    forged = b"anothern" + b"worker.."
    driver.half.parcel(THERE, word.token, (0, 1, 0, False, forged, DRIVER, b"done"), 0.0)
    driver.half.carried(node_peer(THERE), Carry(word.token, 0, 1, 0, False, forged, DRIVER, b"done"), 0.0)
    assert driver.take() == []


def test_a_shortcut_has_one_epoch() -> None:
    """Another would end the link under it, of which nobody else hears."""
    driver, node, word = opened()
    name = LINK_NAME + word.token
    driver.half.parcel(THERE, word.token, (1, 1, 0, False, WORKER, DRIVER, b"done"), 0.0)
    driver.half.acknowledged(THERE, word.token, 1, 1, False, 0.0)
    driver.half.carried(node_peer(THERE), Carry(word.token, 1, 1, 0, False, WORKER, DRIVER, b"done"), 0.0)
    node.half.parcel(name, (1, 1, 0, False, DRIVER, WORKER, b"work"), 0.0)
    node.half.acknowledged(name, 1, 1, False, 0.0)
    node.half.carried(DRIVER, Carry(word.token, 1, 1, 0, False, DRIVER, WORKER, b"work"), 0.0)
    assert driver.take() == node.take() == []


@pytest.mark.parametrize(("size", "kept"), [(0, shortcuts.HELD_MAX), (1024 * 1024, 9)])
def test_only_so_much_is_held_back_and_each_parcel_once(size: int, kept: int) -> None:
    driver, node = Driver(), Node()
    word = node.offer()
    driver.half.offered(node_peer(THERE), word, 0.0)
    driver.take()
    name = LINK_NAME + word.token
    for number in [1, *range(1, kept + 10)]:
        driver.half.parcel(THERE, word.token, (0, number, 0, False, WORKER, DRIVER, bytes(size)), 0.0)
        node.half.parcel(name, (0, number, 0, False, DRIVER, WORKER, bytes(size)), 0.0)
    driver.half.switched(node_peer(THERE), Switch(word.token), 0.0)
    node.half.switch(DRIVER, Switch(word.token), 0.0)
    for half in (driver, node):
        assert sum(isinstance(effect, fx.Relay) for effect in half.take()) == kept


def test_a_driver_dials_only_so_many_nodes_until_one_is_gone() -> None:
    driver = Driver()
    nodes = [b"node%04d" % number for number in range(shortcuts.WAYS_MAX + 1)]
    for node in nodes:
        driver.half.offered(node_peer(node), Shortcut(b"token...", *ADDRESS), 0.0)
    assert [effect.node for effect in driver.take()] == nodes[:-1]
    driver.half.offered(node_peer(nodes[0]), Shortcut(b"another.", *ADDRESS), 0.0)
    assert len(driver.take()) == 1
    driver.half.node_gone(nodes[0])
    driver.half.offered(node_peer(nodes[-1]), Shortcut(b"token...", *ADDRESS), 0.0)
    driver.half.check()
    assert [type(effect) for effect in driver.take()] == [fx.HangUp, fx.DialNode]
