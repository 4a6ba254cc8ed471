"""Many nodes' membership in one thread: the real cores, a heap for a network, a seed for fate.

What is simulated: publications to subscribers and straight words, each with delay and loss; one-way partitions; pauses
(nothing is taken in, then all at once); crashes, with or without a closed port to be noticed; restarts at an address.
"""

import heapq
import random
from collections.abc import Callable
from itertools import count
from typing import Any

from zmesh.core import effects as fx
from zmesh.core.gossip_limits import GossipLimits
from zmesh.core.members import Base
from zmesh.core.membership import Membership
from zmesh.core.timers import Timers
from zmesh.wire.gossip import ALIVE, GOSSIP_CODEC, Row

CLUSTER = b"cluster!"
OVERHEAD_BYTES = 101  # ZMTP, CURVE, TCP, IP and Ethernet around one frame
SUBSCRIBE_S = 0.003  # from connect to the first publication that arrives


class Node:
    """One simulated node."""

    def __init__(self, index: int, name: bytes, core: Membership, effects: list[Any], timers: Timers) -> None:
        self.index = index
        self.name = name
        self.core = core
        self.effects = effects
        self.timers = timers
        self.alive = True
        self.stopped_until = 0.0
        self.inbox: list[tuple[bytes, Any]] = []
        self.wake = -1.0
        self.joined: bool | None = None
        self.refused = ""
        self.up: dict[bytes, bool] = {}  # {member: True} by MemberUp and MemberDown
        self.downs: list[tuple[float, bytes, str]] = []
        self.sent_bytes = 0

    @property
    def address(self) -> tuple[str, int]:
        return self.core.me.address


class Mesh:
    """Nodes and the network between them."""

    def __init__(self, seed: int, loss: float = 0.0, limits: GossipLimits | None = None) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.loss = loss
        self.limits = limits or GossipLimits()
        self.now = 0.0
        self.nodes: list[Node] = []
        self.by_id: dict[bytes, Node] = {}
        self.by_address: dict[tuple[str, int], Node] = {}
        self.subscribers: dict[bytes, dict[bytes, float]] = {}  # {publisher: {subscriber: since}}
        self.blocked: dict[tuple[int, int], bool] = {}  # {(from, to): True} by index
        self.trace: list[str] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.checked = 0

    # Time.

    def at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay, next(self._order), action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = end

    def until(self, condition: Callable[[], bool], limit: float) -> float:
        """Run until it holds; returns how long that took. Fails, with the seed, after `limit` seconds."""
        start = self.now
        while not condition():
            assert self.now - start < limit, f"seed {self.seed}: not in {limit} s\n" + "\n".join(self.trace[-30:])
            self.run(0.05)
        return self.now - start

    # Nodes.

    def add(
        self, seeds: list[Node] | None = None, *, at: Node | None = None, base: Base | None = None, **meta: Any
    ) -> Node:
        """Start a node; `at`: under the address of one that is dead."""
        index = at.index if at is not None else len(self.nodes)
        address = at.address if at is not None else (f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", 27700)
        name = self.rng.randbytes(8)
        effects: list[Any] = []
        timers = Timers()
        row = Row(name, 0, ALIVE, f"n{index}", *address, {"total": {"CPU": 10000}} | meta)
        core = Membership(row, random.Random(self.rng.random()), effects, timers, self.limits, CLUSTER)
        node = Node(index, name, core, effects, timers)
        self.nodes.append(node)
        self.by_id[name] = self.by_address[address] = node
        core.start(self.now, [seed.address for seed in seeds or []])
        self.settle(node)
        return node

    def full(self, size: int) -> list[Node]:
        """Start that many nodes that know each other from the beginning."""
        rows = []
        names = [self.rng.randbytes(8) for _ in range(size)]
        for index, name in enumerate(names):
            address = (f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", 27700)
            rows.append(Row(name, 0, ALIVE, f"n{index}", *address, {"total": {"CPU": 10000}, "major": 1, "minor": 0}))
        base = Base(rows)
        for index, row in enumerate(rows):
            effects: list[Any] = []
            timers = Timers()
            core = Membership(row, random.Random(self.rng.random()), effects, timers, self.limits, CLUSTER, base)
            node = Node(index, row.node, core, effects, timers)
            self.nodes.append(node)
            self.by_id[row.node] = self.by_address[row.address] = node
        for node in self.nodes:
            node.up = {row.node: True for row in rows if row.node != node.name} if size <= 1000 else {}
            node.core.start(self.now, [])
            self.settle(node)
        return self.nodes

    def crash(self, node: Node, *, closed_port: bool = False) -> None:
        """End a node; if its host lives on, its port is closed, which those connected to it see within 200 ms."""
        node.alive = False
        subscribers = self.subscribers.pop(node.name, {})
        for subscriber in subscribers:
            other = self.by_id[subscriber]
            if closed_port and (other.index, node.index) not in self.blocked:
                self.at(self.rng.uniform(0.1, 0.2), lambda other=other: self._refuse(other, node))

    def _refuse(self, other: Node, node: Node) -> None:
        if other.alive and self.by_address.get(node.address) is node:
            other.core.link_down(node.name, True, self.now)
            self.settle(other)

    def pause(self, node: Node, seconds: float) -> None:
        """SIGSTOP for a while."""
        node.stopped_until = self.now + seconds
        self.at(seconds, lambda: self._resume(node))

    def _resume(self, node: Node) -> None:
        if node.alive and self.now >= node.stopped_until:
            inbox, node.inbox = node.inbox, []
            node.timers.tick(self.now)
            for sender, frame in inbox:
                node.core.receive(sender, GOSSIP_CODEC.decode(frame), self.now)
            self.settle(node)

    def block(self, sources: list[Node], targets: list[Node], *, both: bool = True) -> None:
        """Let nothing pass from the ones to the others, and back unless one way is meant."""
        for one in sources:
            for other in targets:
                self.blocked[one.index, other.index] = True
                if both:
                    self.blocked[other.index, one.index] = True

    def heal(self) -> None:
        """Let everything pass."""
        self.blocked.clear()

    # The shell.

    def settle(self, node: Node) -> None:
        while node.alive and node.effects:
            effects, node.effects[:] = node.effects[:], []
            for effect in effects:
                self._carry_out(node, effect)
        self.checked += 1
        # A check reads a whole table: in a large mesh they are as rare as tables are long, or nothing else got done.
        if node.alive and self.checked % max(64, len(self.nodes)) == 0:
            node.core.check()
        deadline = node.timers.next_deadline()
        if deadline is not None and not self.now < node.wake <= deadline:
            node.wake = deadline
            self.at(max(0.0, deadline - self.now), lambda: self._ring(node))

    def _ring(self, node: Node) -> None:
        if not node.alive:
            return
        if self.now < node.stopped_until:
            self.at(node.stopped_until - self.now + 1e-6, lambda: self._ring(node))
            return
        node.timers.tick(self.now)
        self.settle(node)

    def _carry_out(self, node: Node, effect: Any) -> None:
        match effect:
            case fx.Publish():
                frame = GOSSIP_CODEC.encode(effect.message)
                for subscriber, since in list(self.subscribers.get(node.name, {}).items()):
                    if self.now >= since:
                        self._send(node, self.by_id[subscriber], frame)
            case fx.Tell():
                target = self.by_address.get(effect.address)
                if target is not None:
                    self._send(node, target, GOSSIP_CODEC.encode(effect.message))
            case fx.Subscribe():
                self.subscribers.setdefault(effect.node, {})[node.name] = self.now + SUBSCRIBE_S
            case fx.Unsubscribe():
                self.subscribers.get(effect.node, {}).pop(node.name, None)
            case fx.Joined():
                node.joined, node.refused = not effect.refused, effect.refused
            case fx.MemberUp():
                node.up[effect.row.node] = True
                self.trace.append(f"{self.now:.3f} n{node.index}: up {effect.row.name} inc {effect.row.inc}")
            case fx.MemberDown():
                assert node.up.pop(effect.node, None) or len(self.nodes) > 1000, "down without up"
                node.downs.append((self.now, effect.node, effect.why))
                self.trace.append(f"{self.now:.3f} n{node.index}: down n{self.by_id[effect.node].index} {effect.why}")

    def _send(self, node: Node, target: Node, frame: bytes) -> None:
        node.sent_bytes += len(frame) + OVERHEAD_BYTES
        if (node.index, target.index) in self.blocked or self.rng.random() < self.loss:
            return
        self.at(self.rng.uniform(0.0002, 0.001), lambda: self._arrive(target, node.name, frame))

    def _arrive(self, target: Node, sender: bytes, frame: bytes) -> None:
        if not target.alive:
            return
        if self.now < target.stopped_until:
            target.inbox.append((sender, frame))
            return
        target.core.receive(sender, GOSSIP_CODEC.decode(frame), self.now)
        self.settle(target)

    # Looking.

    def living(self) -> list[Node]:
        return [node for node in self.nodes if node.alive]

    def agree(self, nodes: list[Node] | None = None) -> bool:
        """Whether these nodes, all the living by default, take exactly each other for alive."""
        nodes = self.living() if nodes is None else nodes
        names = sorted(node.name for node in nodes)
        return all(sorted(row.node for row in node.core.living()) == names for node in nodes)

    def false_deaths(self) -> list[str]:
        """Verdicts about nodes that live."""
        return [
            f"{when:.1f} s: n{node.index} of n{self.by_id[name].index}: {why}"
            for node in self.nodes
            for when, name, why in node.downs
            if self.by_id[name].alive
        ]
