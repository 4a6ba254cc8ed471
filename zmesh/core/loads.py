"""What members say of how busy they are: with each heartbeat, and at once when it is urgent.

A heartbeat reaches those who subscribe to its node. Where that is not everybody, urgent loads are flooded too.
"""

from collections.abc import Callable
from typing import Any

from zmesh.core.gossip_limits import GossipLimits
from zmesh.core.members import Members
from zmesh.core.timers import Timers
from zmesh.wire.gossip import packed_bytes
from zmesh.wire.ids import NodeID


class Loads:
    """Loads of one node and of those it knows.

    Args:
        tell: publishes our own load now.
        pass_on: floods a member's: (node, seq, load, now).

    Attributes:
        own: what we say of ourselves.
        heard: called with (node, load, now) when a member told a newer load.
    """

    def __init__(
        self,
        members: Members,
        limits: GossipLimits,
        timers: Timers,
        tell: Callable[[float], None],
        pass_on: Callable[[NodeID, int, dict[str, Any], float], None],
    ) -> None:
        self._members = members
        self._limits = limits
        self._timers = timers
        self._tell = tell
        self._pass_on = pass_on
        self.own: dict[str, Any] = {}
        self.heard: Callable[[NodeID, dict[str, Any], float], None] = lambda node, load, now: None
        self._told_s = -1e9
        self._timer = 0
        self._passed: dict[NodeID, int] = {}  # {member: number of its last urgent load passed on}

    def set(self, load: dict[str, Any], now: float, *, urgent: bool) -> None:
        """Take our own load; too large a one is cut down to what others act on."""
        limits = self._limits
        backlog = list(load.get("backlog", ()))
        while backlog and packed_bytes(load) > limits.load_bytes_max:
            backlog.pop()
            load = load | {"backlog": list(backlog)}
        if packed_bytes(load) > limits.load_bytes_max:
            load = {}
        self.own = load
        if urgent and not self._timer:
            at = max(now + limits.coalesce_s / 2, self._told_s + limits.load_news_s / 5)
            self._timer = self._timers.set(at, self._fire)

    def _fire(self, now: float) -> None:
        self._timer = 0
        self._told_s = now
        self._tell(now)

    def take(self, node: NodeID, load: dict[str, Any], seq: int, now: float) -> bool:
        """Take a member's load told in its publication `seq`; returns whether it is news."""
        member = self._members.get(node)
        if member is None or not member.alive or member.load_seq >= seq:
            return False
        if not 0 < packed_bytes(load) <= self._limits.load_bytes_max:
            return False
        self._members.set_load(node, load, seq, now)
        self.heard(node, load, now)
        return True

    def news(self, node: NodeID, seq: int, load: dict[str, Any], now: float) -> None:
        """Take an urgent load of a member we may not hear ourselves, and pass it on once."""
        if node not in self._members or self._passed.get(node, -1) >= seq:
            return
        self._passed[node] = seq
        if self.take(node, load, seq, now) or self._members[node].load_seq == seq:
            self._pass_on(node, seq, load, now)

    def forget(self, node: NodeID) -> None:
        """That node is not heard of any more."""
        self._passed.pop(node, None)
