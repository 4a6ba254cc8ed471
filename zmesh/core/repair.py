"""What PUB/SUB loses, and who was lost: comparing tables, and looking for members that were given up.

A digest has a fingerprint for each of 256 buckets of the table. Whoever gets one answers with its rows where they
differ, and is answered in turn. So any two tables become one, however they came apart. Rows are taken in by
core/membership.py.

Source: anti-entropy of Demers et al., PODC 1987; redialling the dead: Serf.
"""

import random
from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Address
from zmesh.core.gossip_limits import GossipLimits
from zmesh.core.members import Members
from zmesh.core.timers import Timers
from zmesh.wire.gossip import DEAD, Digest, Rows, packed_bytes
from zmesh.wire.ids import NodeID


class Repair:
    """Digests and rows of one node.

    Args:
        say: tells a node something straight: (node, address, message).
    """

    def __init__(
        self,
        cluster: bytes,
        members: Members,
        limits: GossipLimits,
        rng: random.Random,
        timers: Timers,
        say: Callable[[NodeID, Address, Any], None],
    ) -> None:
        self._cluster = cluster
        self._members = members
        self._limits = limits
        self._rng = rng
        self._timers = timers
        self._say = say
        self._asked: dict[NodeID, float] = {}  # {publisher: when we last sent it a digest because of a gap}
        self._sync_timer = 0

    def _digest(self) -> Digest:
        me = self._members.me
        return Digest(self._cluster, me.node, list(me.packed()), self._members.digest())

    def ask(self, node: NodeID, now: float) -> None:
        """Compare tables with a node that we missed something of, once a second at most."""
        member = self._members.get(node)
        if member is not None and now - self._asked.get(node, -1e9) >= self._limits.ask_s:
            self._asked[node] = now
            self._say(node, member.row.address, self._digest())

    def forget(self, node: NodeID) -> None:
        """That node is not heard of any more."""
        self._asked.pop(node, None)

    def tell_rows(self, node: NodeID, address: Address, buckets: list[int], *, answer: bool) -> None:
        """Tell all rows of these buckets, in as many messages as it takes; `answer`: theirs are wanted too."""
        me = self._members.me.node
        part: list[Any] = []
        told: list[int] = []
        size = 0
        for bucket, rows in self._members.rows_of(buckets).items():
            told.append(bucket)
            for row in rows:
                packed = row.packed()
                part.append(packed)
                size += packed_bytes(packed)
            if size > self._limits.rows_bytes_max:
                self._say(node, address, Rows(self._cluster, me, part, told, answer, True))
                part, told, size = [], [], 0
        self._say(node, address, Rows(self._cluster, me, part, told, answer, False))

    def sync_soon(self, now: float) -> None:
        """Compare tables with somebody shortly: what was published while we subscribed is lost."""
        if not self._sync_timer:
            self._sync_timer = self._timers.set(now + self._rng.uniform(0.3, 0.8), self.compare)

    def compare(self, now: float) -> None:
        """Compare tables with a living member, by chance."""
        del now
        self._timers.cancel(self._sync_timer)
        self._sync_timer = 0
        node = self._members.pick(self._rng, lambda node: True)
        if node is not None:
            self._say(node, self._members[node].row.address, self._digest())

    def redial(self, now: float) -> None:
        """See whether one of the dead is back: that is how the halves of a partition find each other."""
        del now
        dead = [node for node in self._members.dead if self._members[node].row.state == DEAD]
        if dead and self._rng.random() < min(1.0, len(dead) / max(1, self._members.living)):
            node = self._rng.choice(dead)
            self._say(node, self._members[node].row.address, self._digest())

    def knock(self, seeds: list[Address], now: float) -> None:
        """Try a seed at which no member is."""
        del now
        others = [seed for seed in seeds if self._members.at(seed) is None]
        if others:
            self._say(b"", self._rng.choice(others), self._digest())

    def outdated(self, now: float) -> list[NodeID]:
        """Return who has been dead or gone for so long, or is one of so many, that it may be forgotten."""
        limits = self._limits
        found: list[NodeID] = []
        for table, seconds, most in (
            (self._members.dead, limits.dead_s, limits.dead_max),
            (self._members.left, limits.tombstone_s, limits.members_max),
        ):
            old = {node: True for node, since in table.items() if now - since > seconds}
            extra = max(0, len(table) - len(old) - most)
            found += [*old, *[node for node in table if node not in old][:extra]]
        return found
