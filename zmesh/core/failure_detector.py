"""Who of those we hear has been silent too long, how sure we are, and when a suspect is dead.

Silence alone accuses nobody: a ping must go unanswered too. A suspicion ends with evidence of life, or with its time,
which is long at first and shrinks with every other node that says the same. A node that hears hardly anybody doubts
itself. What a verdict means for the table is core/membership.py's business.

Sources: SWIM, Das et al. 2002; Lifeguard, Dadgar et al. 2018 (arXiv 1707.00788); memberlist's suspicion.go.
"""

import math
from dataclasses import dataclass, field

from zmesh.core.gossip_limits import GossipLimits
from zmesh.wire.ids import NodeID

_SMOOTHING = 0.125  # of the gaps between heartbeats. Source: RFC 6298


@dataclass(slots=True)
class Pulse:
    """What we heard of one publisher ourselves."""

    heard_s: float
    seq: int = 0
    gap_s: float = 1.0  # mean between two messages
    spread_s: float = 0.1  # mean deviation from that
    ping: int = 0  # number of the ping under way, 0 if none


@dataclass(slots=True)
class Suspicion:
    """One suspect."""

    inc: int
    seq: int  # the last that the first accuser had heard
    since_s: float
    accusers: dict[NodeID, bool] = field(default_factory=dict)
    refused: bool = False  # somebody was refused when it dialled
    timer: int = 0


class FailureDetector:
    """Pulses, suspicions and our own health."""

    def __init__(self, limits: GossipLimits, now: float = 0.0) -> None:
        self._limits = limits
        self.pulses: dict[NodeID, Pulse] = {}
        self.suspicions: dict[NodeID, Suspicion] = {}
        self.health = 0  # 0: sound; each point makes us more patient
        self.hears_s = now  # when we last heard at least half of those we should

    # Hearing.

    def watch(self, node: NodeID, now: float) -> None:
        """We subscribe to this one."""
        self.pulses[node] = Pulse(now)

    def unwatch(self, node: NodeID) -> None:
        """We do not any more."""
        self.pulses.pop(node, None)

    def heard(self, node: NodeID, seq: int, now: float) -> bool:
        """Note a publication; returns whether some before it got lost."""
        pulse = self.pulses.get(node)
        if pulse is None or not seq:
            return False
        gap = now - pulse.heard_s
        if pulse.seq:
            pulse.spread_s += _SMOOTHING * (abs(gap - pulse.gap_s) - pulse.spread_s)
            pulse.gap_s += _SMOOTHING * (gap - pulse.gap_s)
        lost = bool(pulse.seq) and seq > pulse.seq + 1
        pulse.heard_s, pulse.seq, pulse.ping = now, max(seq, pulse.seq), 0
        return lost

    def listen(self, now: float) -> None:
        """Once a heartbeat: note whether we hear at least half of those we should."""
        recent = now - 1.6 * self._limits.heartbeat_s
        heard = sum(pulse.heard_s >= recent for pulse in self.pulses.values())
        if 2 * heard >= len(self.pulses):
            self.hears_s = now

    def rx_age(self, now: float) -> float:
        """Return since when we hear less than half, in seconds."""
        return max(0.0, now - self.hears_s)

    def deaf(self, now: float) -> bool:
        """Whether we hear so little that others' silence says nothing of them."""
        return self.rx_age(now) > self._limits.deaf_s

    def may_accuse(self, now: float) -> bool:
        """Whether our word against somebody is worth anything: not while we are going deaf, again once we are alone."""
        age = self.rx_age(now)
        if len(self.pulses) <= 1:
            return True  # there is nobody else by whom we could judge our ears
        return age <= self._limits.hard_of_hearing_s or age > self._limits.alone_s

    def silent(self, now: float) -> list[NodeID]:
        """Return those to ping: silent for longer than is like them."""
        limits = self._limits
        found = []
        for node, pulse in self.pulses.items():
            patience = max(limits.silence_s, pulse.gap_s + limits.silence_sigmas * 1.25 * pulse.spread_s)
            if not pulse.ping and now - pulse.heard_s > patience * (1 + self.health):
                found.append(node)
        return found

    def fresh(self, node: NodeID, seq: int, now: float) -> bool:
        """Whether we heard more of a node than its accuser, and lately."""
        pulse = self.pulses.get(node)
        return pulse is not None and pulse.seq > seq and now - pulse.heard_s < self._limits.silence_s / 2

    # Health.

    def feel(self, change: int) -> None:
        """Something spoke against us (1) or for us (-1)."""
        self.health = min(self._limits.health_max, max(0, self.health + change))

    # Suspicion.

    def suspect(self, node: NodeID, inc: int, seq: int, now: float) -> Suspicion:
        """Begin to suspect a member."""
        suspicion = self.suspicions[node] = Suspicion(inc, seq, now)
        return suspicion

    def clear(self, node: NodeID) -> Suspicion | None:
        """Suspect it no more."""
        return self.suspicions.pop(node, None)

    def deadline(self, suspicion: Suspicion, members: int) -> float:
        """Return when the suspect is dead if nothing speaks for it.

        Args:
            members: of the mesh, ourselves included.
        """
        limits = self._limits
        confirmations = len(suspicion.accusers) - 1
        if suspicion.refused and (confirmations >= 1 or members <= 2):
            return suspicion.since_s + limits.fast_s
        least = limits.suspicion_s * max(1.0, math.log10(members))
        wanted = 0 if members <= limits.lonely_members else limits.confirmations
        most = least * (limits.suspicion_max_factor if wanted else 1.0)
        if not wanted:
            return suspicion.since_s + least
        shrunk = math.log(confirmations + 1) / math.log(wanted + 1)
        return suspicion.since_s + max(least, most - (most - least) * shrunk)
