"""Chunks of objects between nodes: who is asked for what, and that a broadcast is a tree."""

import random
from collections import deque
from typing import Any

import pytest

from zmesh.core import transfer
from zmesh.core.transfer import CHUNK_BYTES, Ask, Finished, Receiver, Server

S = b"source.."  # where it was made, and is counted
OID = S + b"o" * 20


class Net:
    """Nodes with a Receiver each, one source with a Server; `lose` drops a part of all answers."""

    def __init__(self, receivers: int, chunks: int, *, lose: float = 0.0, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.lose = lose
        self.nbytes = chunks * CHUNK_BYTES - 7
        self.now = 0.0
        self.server = Server()
        self.names = [b"node%04d" % index for index in range(receivers)]
        self.effects: dict[bytes, list[Any]] = {name: [] for name in self.names}
        self.gone: dict[bytes, bool] = {}
        self.nodes = {
            name: Receiver(self.effects[name], reachable=lambda node: node not in self.gone) for name in self.names
        }
        self.here: dict[bytes, dict[int, bool]] = {name: {} for name in self.names}
        self.parked: dict[bytes, list[tuple[bytes, int]]] = {name: [] for name in self.names}
        self.ended: dict[bytes, str] = {}
        self.sent: dict[bytes, int] = {S: 0} | dict.fromkeys(self.names, 0)
        self.known = True
        self.wire: deque[Any] = deque()
        self.most_asked = 0

    def start(self, name: bytes) -> None:
        self.nodes[name].start(OID, 1, self.nbytes, S, self.now)

    def run(self, steps: int = 100_000) -> None:
        for _ in range(steps):
            for name in self.names:
                if name not in self.gone:
                    self._carry_out(name)
            if self.wire:
                self.wire.popleft()()
            elif all(name in self.ended or name in self.gone for name in self.names):
                return
            else:
                self.now += 1.0
                if self.now > 300:
                    return
                for name in self.names:
                    if name not in self.gone:
                        self.nodes[name].look(self.now)
                self.server.look(self.now)

    def _carry_out(self, name: bytes) -> None:
        taken, self.effects[name][:] = self.effects[name][:], []
        for effect in taken:
            if isinstance(effect, Finished):
                self.ended[name] = effect.error
            else:
                assert isinstance(effect, Ask)
                self.wire.append(lambda effect=effect: self._asked(name, effect))
        for one in self.nodes[name].transfers.values():
            self.most_asked = max(self.most_asked, len(one.asked))

    def _asked(self, name: bytes, ask: Ask) -> None:
        if ask.node in self.gone or self.rng.random() < self.lose:
            return
        if ask.node != S:
            if name not in self.gone and ask.offset in self.here[ask.node]:
                self._send(ask.node, name, ask.offset)
            elif self.ended.get(ask.node) == "dropped":
                self.wire.append(lambda: self.nodes[name].refused(ask.node, OID, "gone", self.now))
            else:
                self.parked[ask.node].append((name, ask.offset))
            return
        parent = None if ask.insist else self.server.parent(name, OID, self.now)
        if not self.known:
            self.wire.append(lambda: self.nodes[name].refused(S, OID, "", self.now))
        elif parent is not None:
            self.wire.append(lambda: self.nodes[name].referred(S, OID, parent, self.now))
        else:
            self._send(S, name, ask.offset)

    def _send(self, source: bytes, name: bytes, offset: int) -> None:
        self.sent[source] += 1
        if self.rng.random() >= self.lose:
            self.wire.append(lambda: self._arrive(source, name, offset))

    def _arrive(self, source: bytes, name: bytes, offset: int) -> None:
        if name in self.gone or OID not in self.nodes[name].transfers:
            return
        self.here[name][offset] = True
        self.nodes[name].arrived(source, OID, offset, self.now)
        for child, wanted in [one for one in self.parked[name] if one[1] == offset]:
            self.parked[name].remove((child, wanted))
            self._send(name, child, wanted)

    def kill(self, name: bytes) -> None:
        self.gone[name] = True
        self.server.node_gone(name)
        for other in self.names:
            if other not in self.gone:
                self.nodes[other].node_gone(name, self.now)


def whole(net: Net, name: bytes) -> bool:
    return net.ended.get(name) == "" and len(net.here[name]) == -(-net.nbytes // CHUNK_BYTES)


def test_one_receiver_gets_each_chunk_once_within_its_window() -> None:
    net = Net(1, 40)
    net.start(net.names[0])
    net.run()
    assert whole(net, net.names[0])
    assert net.sent[S] == 40
    assert net.most_asked == transfer.WINDOW_CHUNKS


def test_a_broadcast_is_a_tree_and_the_source_sends_two_copies() -> None:
    net = Net(7, 64)
    for name in net.names:
        net.start(name)
    net.run()
    assert all(whole(net, name) for name in net.names)
    assert net.sent[S] <= 2.2 * 64
    assert max(net.sent[name] for name in net.names) <= 2.2 * 64


@pytest.mark.parametrize("seed", range(10))
def test_receivers_that_die_are_gone_around(seed: int) -> None:
    net = Net(7, 16, seed=seed)
    for name in net.names:
        net.start(name)
    net.run(steps=net.rng.randrange(20, 300))
    dead = net.rng.sample(net.names, 3)
    for name in dead:
        net.kill(name)
    net.run()
    assert all(whole(net, name) for name in net.names if name not in dead)


@pytest.mark.parametrize("seed", range(5))
def test_chunks_that_get_lost_are_asked_for_again(seed: int) -> None:
    net = Net(3, 10, lose=0.2, seed=seed)
    for name in net.names:
        net.start(name)
    net.run()
    assert all(whole(net, name) for name in net.names)


def test_a_source_that_dies_or_knows_nothing_ends_it_with_a_reason() -> None:
    net = Net(2, 10)
    net.start(net.names[0])
    net.run(steps=5)
    net.kill(S)
    net.start(net.names[1])
    net.run()
    assert all("gone" in net.ended[name] for name in net.names)
    net = Net(1, 10)
    net.known = False
    net.start(net.names[0])
    net.run()
    assert net.ended[net.names[0]] == "its node never heard of it"


def test_a_parent_that_dropped_its_copy_sends_its_child_back_to_the_source() -> None:
    net = Net(3, 4)
    for name in net.names[:2]:
        net.start(name)
    net.run(steps=200)
    for name in net.names[:2]:
        net.here[name].clear()
        net.ended[name] = "dropped"
    net.start(net.names[2])
    net.run()
    assert whole(net, net.names[2])


def test_a_transfer_that_nobody_wants_stops_and_others_take_its_turn() -> None:
    effects: list[Any] = []
    receiver = Receiver(effects, reachable=lambda node: True)
    oids = [bytes([index]) * 28 for index in range(transfer.TRANSFERS_MAX + 2)]
    for oid in oids:
        receiver.start(oid, 1, CHUNK_BYTES * 3, S, 0.0)
    asked = [effect.oid for effect in effects]
    assert asked == oids[: transfer.TRANSFERS_MAX]
    receiver.stop(oids[0], 1.0)
    receiver.stop(b"unknown" * 4, 1.0)
    assert [effect.oid for effect in effects if isinstance(effect, Ask)][-1] == oids[transfer.TRANSFERS_MAX]
    receiver.arrived(S, b"unknown" * 4, 0, 1.0)
    receiver.arrived(S, oids[1], 0, 1.0)
    receiver.arrived(S, oids[1], 0, 1.0)
    receiver.referred(b"stranger", oids[1], S, 1.0)
    receiver.refused(b"stranger", oids[1], "", 1.0)
    assert oids[1] in receiver.transfers
    receiver.reconnected(S, 2.0)
    assert receiver.transfers[oids[1]].asked


def test_a_referral_to_somebody_unknown_is_declined() -> None:
    effects: list[Any] = []
    receiver = Receiver(effects, reachable=lambda node: node == S)
    receiver.start(OID, 1, CHUNK_BYTES * 2, S, 0.0)
    receiver.referred(S, OID, b"unknown.", 0.0)
    assert effects[-1].node == S
    assert effects[-1].insist


HOME = b"home...."
MOVED = HOME + bytes(20)  # made on S, and counted elsewhere


def test_what_cannot_be_had_where_it_was_made_is_asked_for_where_it_is_counted() -> None:
    effects: list[Any] = []
    members = {S: True, HOME: True}
    receiver = Receiver(effects, reachable=members.__contains__)
    receiver.start(MOVED, 1, CHUNK_BYTES * 2, S, 0.0)
    receiver.arrived(S, MOVED, 0, 0.0)
    del members[S]
    receiver.node_gone(S, 1.0)
    assert effects[-1] == Ask(HOME, MOVED, 1, CHUNK_BYTES, CHUNK_BYTES, True)
    receiver.arrived(HOME, MOVED, CHUNK_BYTES, 1.0)
    assert effects[-1] == Finished(MOVED, "")
    receiver.start(MOVED, 1, CHUNK_BYTES, S, 2.0)
    assert effects[-1].node == HOME
    receiver.refused(HOME, MOVED, "never heard of it", 2.0)
    assert effects[-1] == Finished(MOVED, transfer.GONE)


def test_what_lies_on_the_disk_of_a_full_store_is_not_lost_unless_its_home_has_it() -> None:
    effects: list[Any] = []
    receiver = Receiver(effects, reachable=lambda node: True)
    for home_has_it in (False, True):
        receiver.start(MOVED, 1, CHUNK_BYTES, S, 0.0)
        receiver.refused(S, MOVED, "its store is full", 1.0, full=True)
        if home_has_it:
            receiver.arrived(HOME, MOVED, 0, 2.0)
        else:
            receiver.refused(HOME, MOVED, "never heard of it", 2.0)
    ends = [effect for effect in effects if isinstance(effect, Finished)]
    assert ends == [Finished(MOVED, "its store is full", full=True), Finished(MOVED, "")]


def test_one_that_waits_for_its_turn_goes_to_its_home_when_its_source_leaves() -> None:
    effects: list[Any] = []
    members = {S: True, HOME: True}
    receiver = Receiver(effects, reachable=members.__contains__)
    oids = [HOME + bytes([index]) * 20 for index in range(transfer.TRANSFERS_MAX + 1)]
    for oid in oids:
        receiver.start(oid, 1, CHUNK_BYTES, S, 0.0)
    del members[S]
    receiver.node_gone(S, 1.0)
    assert [ask.oid for ask in effects if ask.node == HOME] == oids
    for oid in oids:
        receiver.arrived(HOME, oid, 0, 1.0)
    assert not receiver.transfers


def test_what_nobody_asks_for_any_more_is_forgotten() -> None:
    server = Server()
    assert server.parent(b"a" * 8, OID, 0.0) is None
    assert server.parent(b"b" * 8, OID, 0.0) is None
    assert server.parent(b"c" * 8, OID, 0.0) == b"a" * 8
    server.look(transfer.FORGET_S + 1)
    assert server.parent(b"c" * 8, OID, 100.0) is None
