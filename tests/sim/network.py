"""The network between simulated hosts: what nodes and shortcuts post, what is copied, and partitions.

`Network` is the part of the Simulation (simulator.py) for that. A partition lets nothing pass, then each side takes the
other for dead; when it heals each is told that the other is there. Either may happen on one side only at first.
"""

from collections.abc import Callable
from typing import Any

from zmesh.core import effects as fx
from zmesh.wire.codec import decode


class Network:
    """Mixed into Simulation."""

    apart: dict[tuple[bytes, bytes], bool]
    cuts: float
    dialled: dict[bytes, Any]
    full: list[Any]
    hosts: dict[bytes, Any]
    link_names: dict[tuple[bytes, bytes], bytes]
    message_counts: dict[str, int]
    now: float
    partitioned: bool
    processes: dict[bytes, Any]
    rng: Any
    written: dict[int, int]
    at: Callable[[float, Callable[[], None]], None]
    host_of: Callable[[Any], Any]
    settle: Callable[[Any], None]
    _carry: Callable[..., None]
    _is_node: Callable[[Any], bool]
    _note: Callable[[str], None]
    _segments: Any
    _transmit: Callable[[Any, bytes, bytes, bytes], None]

    def partition(self, first: Any, second: Any, seconds: float, *, noticed: tuple[bool, bool] = (True, True)) -> None:
        """Let nothing pass between two hosts for a while.

        Args:
            noticed: whether the first, the second takes the other for dead; else it only waits.
        """
        self.partitioned = True
        pairs = [(first.id, second.id), (second.id, first.id)]
        self.apart |= dict.fromkeys(pairs, True)
        self._note(f"{first.process.name} and {second.process.name} are cut off from each other")
        for one, other, notices in ((first, second, noticed[0]), (second, first, noticed[1])):
            if notices:
                self.at(self.rng.uniform(0.0, seconds), lambda one=one, other=other: self._take_for_dead(one, other))

        def heal() -> None:
            for pair in pairs:
                self.apart.pop(pair, None)
            self._note(f"{first.process.name} and {second.process.name} reach each other again")
            for one, other in ((first, second), (second, first)):
                self.at(self.rng.uniform(0.0, 0.5), lambda one=one, other=other: self._find_alive(one, other))

        self.at(seconds, heal)

    def _take_for_dead(self, one: Any, other: Any) -> None:
        if one.process.alive and (one.id, other.id) in self.apart:
            one.core.member_down(other.id, "a partition", self.now)
            self.settle(one.process)

    def _find_alive(self, one: Any, other: Any) -> None:
        if one.process.alive and other.process.alive and (one.id, other.id) not in self.apart:
            one.core.member_up(other.id, dict(other.core.resources.total), self.now)
            self.settle(one.process)

    def _passes(self, process: Any, to: bytes) -> bool:
        """Whether anything passes between the host of a process and another now."""
        return (process.peer[:8], to) not in self.apart

    def _post(self, process: Any, effect: fx.Post | fx.PostAck) -> None:
        """Nodes, and drivers over shortcuts, talk over a network that may lose what it likes."""
        to = effect.node if len(effect.node) == 8 else self._dialler(effect.node)
        if not self._passes(process, to) or (self.cuts and self.rng.random() < self.cuts):
            if self.rng.random() < 0.5:  # it was known that there was no connection
                self._unsent(process, effect)
            return
        if not self._is_node(process) or len(effect.node) != 8:
            self._post_over_shortcut(process, effect)
            return
        target = self.hosts[effect.node]
        self.message_counts["Post"] = self.message_counts.get("Post", 0) + isinstance(effect, fx.Post)

        def arrive() -> None:
            links, e = target.core.links, effect
            if isinstance(e, fx.PostAck):
                links.acknowledged(process.peer[:8], e.epoch, e.ack, e.missing, self.now)
            else:
                links.receive(process.peer[:8], e.epoch, e.seq, e.ack, e.more, e.source, e.to, e.frame, self.now)

        self._carry(process, target.process, arrive)

    def _dialler(self, name: bytes) -> bytes:
        """Return the host of the driver that dialled this shortcut."""
        driver = self.dialled.get(name)
        return b"" if driver is None else driver.peer[:8]

    def _unsent(self, process: Any, effect: fx.Post | fx.PostAck) -> None:
        if not self._is_node(process):
            process.core.shortcuts.unsent(effect)
        elif len(effect.node) != 8:
            process.core.openings.unsent(effect, self.now)

    def _post_over_shortcut(self, process: Any, effect: fx.Post | fx.PostAck) -> None:
        self.message_counts["Shortcut posts"] = self.message_counts.get("Shortcut posts", 0) + 1
        half: Any
        if self._is_node(process):
            if effect.node not in self.dialled:  # the driver did not get through yet
                process.core.openings.unsent(effect, self.now)
                return
            target, name = self.dialled[effect.node], (process.peer[:8], effect.node[1:])
            half = target.core.shortcuts
        else:
            target, name = self.hosts[effect.node].process, (self.link_names[process.peer, effect.node],)
            half = target.core.openings

        def arrive() -> None:
            e = effect
            if isinstance(e, fx.PostAck):
                half.acknowledged(*name, e.epoch, e.ack, e.missing, self.now)
            else:
                half.parcel(*name, (e.epoch, e.seq, e.ack, e.more, e.source, e.to, e.frame), self.now)

        self._carry(process, target, arrive)

    def _relayed(self, process: Any, effect: fx.Relay) -> None:
        """A frame from another host is for this node, or for a process of this host."""
        if effect.to == process.peer:
            message = decode(effect.frame)
            self._note(f"{self.processes[effect.source].name} => {process.name} {message}")
            process.core.receive(effect.source, message, self.now)
        else:
            self._transmit(process, effect.to, effect.source, effect.frame)

    def _fetch_copy(self, host: Any, effect: fx.FetchCopy) -> None:
        if not host.process.alive:
            return
        source, home = self.hosts[effect.producer[:8]], self.hosts[effect.oid[:8]]
        apart = [(host.id, one.id) in self.apart for one in (source, home)]
        made = source.process.alive and not apart[0] and effect.segment in self.written
        kept = home.process.alive and not apart[1] and home is not host and effect.oid in home.copies
        if not made and not kept:
            host.core.fetched(effect.oid, None, "its host is gone", self.now)
        elif host in self.full:
            host.core.fetched(effect.oid, None, "there is no room", self.now, full=True)
        else:
            segment = next(self._segments)
            self.written[segment] = 1
            host.copies[effect.oid] = segment
            host.core.fetched(effect.oid, (segment, effect.nbytes, host.process.peer), "", self.now)
        self.settle(host.process)
