"""How a node gets into a mesh: it asks seeds, again and again, until one answers with the table or refuses."""

import random
from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Address, Effect, Joined
from zmesh.core.gossip_limits import GossipLimits
from zmesh.core.members import Members
from zmesh.core.timers import Timers
from zmesh.wire.gossip import Busy, Join, Refused, parse_address
from zmesh.wire.ids import NodeID


class Joiner:
    """The joining side of one node.

    Args:
        say: tells whoever is at an address something: (node, address, message).
    """

    def __init__(
        self,
        cluster: bytes,
        members: Members,
        limits: GossipLimits,
        rng: random.Random,
        effects: list[Effect],
        timers: Timers,
        say: Callable[[NodeID, Address, Any], None],
    ) -> None:
        self._cluster = cluster
        self._members = members
        self._limits = limits
        self._rng = rng
        self._effects = effects
        self._timers = timers
        self._say = say
        self._seeds: list[Address] = []
        self._referred = 0  # timer: when to ask one that a busy member named
        self.joined = False

    def start(self, seeds: list[Address], now: float) -> None:
        """Ask the seeds; without any, this node is the first of a mesh."""
        self._seeds = seeds
        if seeds:
            self._ask_all(now, self._limits.join_retry_s * self._rng.uniform(0.9, 1.1))
        else:
            self.answered()

    def _ask_all(self, now: float, pause_s: float) -> None:
        if not self.joined:
            for seed in self._seeds:
                self._ask(seed)
            longer_s = min(pause_s * self._limits.join_backoff, self._limits.join_retry_max_s)
            self._timers.set(now + pause_s, lambda then: self._ask_all(then, longer_s))

    def _ask(self, address: Address) -> None:
        if not self.joined:
            me = self._members.me
            self._say(b"", address, Join(self._cluster, me.node, list(me.packed())))

    def answered(self) -> bool:
        """A member told its table; returns whether it was the first to."""
        if self.joined:
            return False
        self.joined = True
        self._effects.append(Joined())
        return True

    def refused(self, message: Refused) -> None:
        """A member does not want us."""
        if message.to == self._members.me.node and not self.joined:
            self._effects.append(Joined(refused=message.why))

    def busy(self, message: Busy, now: float) -> None:
        """A member has too many to answer: ask one of the others it names, in a while."""
        limits = self._limits
        found = [address for raw in message.ask[: limits.busy_addresses] if (address := parse_address(raw))]
        if found and not self._referred:
            most_s = min(limits.join_jitter_s, message.members * limits.join_jitter_per_member_s)
            address = self._rng.choice(found)
            self._referred = self._timers.set(
                now + limits.push_pull_window_s + self._rng.uniform(0, most_s), lambda then: self._ask_other(address)
            )

    def _ask_other(self, address: Address) -> None:
        self._referred = 0  # one at a time: each answer that names three to ask would make a flood of it
        self._ask(address)
