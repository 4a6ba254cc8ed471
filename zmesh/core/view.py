"""Whom this node subscribes to: everybody in a small mesh, else a few by chance and the one before it on the ring.

The ring makes sure that everybody is heard by somebody; chance makes rumours reach all in log N steps. Says Subscribe
and Unsubscribe; what is heard there is the business of core/failure_detector.py.

Source: HyParView, a partial view of log n + c; its size from simulation, docs/membership.md.
"""

import math
import random
from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Subscribe, Unsubscribe
from zmesh.core.gossip_limits import GossipLimits
from zmesh.wire.ids import NodeID


class View:
    """The publishers this node hears.

    Args:
        watch, unwatch: told of every publisher that is new or no more.
    """

    def __init__(
        self,
        rng: random.Random,
        effects: list[Effect],
        limits: GossipLimits,
        members: Any,
        watch: Callable[[NodeID, float], None],
        unwatch: Callable[[NodeID], None],
    ) -> None:
        self._rng = rng
        self._effects = effects
        self._limits = limits
        self._members = members
        self._watch = watch
        self._unwatch = unwatch
        self._nodes: dict[NodeID, bool] = {}  # {publisher: True}
        self._ring: NodeID | None = None  # the one before us

    def __contains__(self, node: NodeID) -> bool:
        return node in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def size(self) -> int:
        """How many publishers a mesh of this size wants."""
        members: int = self._members.living + 1
        if members <= self._limits.view_all:
            return members - 1
        return math.ceil(math.log2(members)) + self._limits.view_extra

    def _add(self, node: NodeID, now: float) -> None:
        self._nodes[node] = True
        self._effects.append(Subscribe(node, self._members[node].row.address))
        self._watch(node, now)

    def drop(self, node: NodeID) -> None:
        """Hear this one no more, if it was heard."""
        if self._nodes.pop(node, None):
            self._effects.append(Unsubscribe(node))
            self._unwatch(node)

    def clear(self) -> None:
        """Hear nobody any more."""
        for node in list(self._nodes):
            self.drop(node)

    def fit(self, now: float) -> None:
        """Bring the view to its size after members came or went."""
        size = self.size
        if size == self._members.living:
            if len(self._nodes) < size:
                for node, member in self._members.items():
                    if member.alive and node not in self._nodes:
                        self._add(node, now)
            return
        self._ring = self._members.before(1)[0]
        if self._ring not in self._nodes:
            self._add(self._ring, now)
        while len(self._nodes) > size:
            self._drop_one()
        while len(self._nodes) < size:
            node = self._members.pick(self._rng, lambda node: node not in self._nodes)
            self._add(node, now)

    def _drop_one(self) -> None:
        self.drop(self._rng.choice([node for node in self._nodes if node != self._ring]))

    def welcome(self, node: NodeID, now: float) -> None:
        """Consider a newcomer: so that about as many hear it as hear anybody else, without waiting for shuffles."""
        size = self.size
        partial = size < self._members.living and node not in self._nodes
        if partial and len(self._nodes) >= size and self._rng.random() < size / self._members.living:
            self._drop_one()
            self._add(node, now)
        self.fit(now)

    def shuffle(self, now: float) -> None:
        """Draw one slot anew, in a mesh larger than the view."""
        if self.size < self._members.living:
            node = self._members.pick(self._rng, lambda node: node not in self._nodes)
            self._drop_one()
            self._add(node, now)

    def check(self) -> None:
        """Verify that exactly the right number of the living are heard."""
        assert all(node in self._members and self._members[node].alive for node in self._nodes)
        assert len(self._nodes) == self.size, f"{len(self._nodes)} publishers, {self.size} wanted"
