"""Guests in the simulator: programs without a node, their one connection, and the bytes they send over it.

`Guests` is the part of Faulty (faults.py) for that. It does what runtime/guest_sockets.py, guest_session.py and
guest_store.py do, and mesh.py for guests on the side of the node. A connection may be cut at any moment; what was on
it is lost without a word. A host that dies falls silent, or its kernel says that nobody listens any more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from tests.sim.programs import describe_status
from tests.sim.simulator import NODE, Host, Process, Simulation
from zmesh.core import effects as fx
from zmesh.core.guest_client import ATTACHED, GuestCore
from zmesh.core.records import Entry
from zmesh.core.timers import Timers
from zmesh.wire import messages as m
from zmesh.wire.codec import decode, encode
from zmesh.wire.ids import guest_segment, is_guest, store_peer

NBYTES = 100_000  # of each segment
FULL_WAIT_S = 1.0  # a producer asks again for so long


@dataclass(eq=False)
class Connection:
    """What a guest dialled: one member, under one name."""

    host: Host
    token: bytes
    up: bool = False
    cuts: int = 0  # how often it was made anew: what was on it then is lost
    later: list[Any] = field(default_factory=list)  # words that leave once it is up


@dataclass(eq=False)
class Guest(Process):
    """A program without a node."""

    connection: Connection | None = None
    cut_until: float = 0.0
    names: list[bytes] = field(default_factory=list)  # PeerIDs it had
    kept: dict[int, bool] = field(default_factory=dict)  # {segment it wrote: whether it lies at its node now}
    answers: dict[int, Callable[[list[Any] | None], None]] = field(default_factory=dict)
    requests: int = 0


class Guests(Simulation):
    """A simulation with guests."""

    def guest(self, name: str, index: int = 0) -> Guest:
        """Start a program that knocks at a host."""
        for host in self.hosts.values():
            host.core.guests._members = lambda host=host: self._addresses(host)
        hello = m.Hello("driver", 1, {"cwd": "/"})
        core = GuestCore([("sim", index)], self.rng, hello, [], Timers(), describe_status)
        guest = Guest(name, core.me, core)
        self.processes[core.me] = guest
        core.start(self.now)
        self.settle(guest)
        return guest

    def _addresses(self, host: Host) -> list[tuple[str, int]]:
        return [("sim", node[7] - NODE[7]) for node in host.core.neighbours.totals]

    def _is_node(self, process: Process) -> bool:
        return not isinstance(process, Guest) and super()._is_node(process)

    # The connection.

    def _dial(self, guest: Guest, host: Host, token: bytes) -> None:
        connection = guest.connection = Connection(host, token)
        self.at(self.rng.uniform(0.001, 0.02), lambda: self._connect_guest(guest, connection))

    def _connect_guest(self, guest: Guest, connection: Connection) -> None:
        if guest.connection is not connection or not guest.alive:
            return
        if self.now < guest.cut_until:
            self.at(guest.cut_until - self.now + 0.01, lambda: self._connect_guest(guest, connection))
        elif connection.host.process.alive:
            connection.up = True
            later, connection.later = connection.later, []
            for word in later:
                self._knock(guest, connection, word)
            guest.core.reconnected(self.now)
            self.settle(guest)
        elif self.rng.random() < 0.5:
            guest.core.refused("nobody listens there", self.now)
            self.settle(guest)

    def cut(self, guest: Guest, seconds: float) -> None:
        """Let nothing pass for a while between a guest and anybody; its connections break."""
        if guest.alive:
            self._note(f"{guest.name} is cut off for {seconds} s")
            guest.cut_until = self.now + seconds
            self._break(guest)

    def _break(self, guest: Guest) -> None:
        connection = guest.connection
        if connection is not None and connection.up:
            connection.up = False
            connection.cuts += 1
            self.at(self.rng.uniform(0.01, 0.2), lambda: self._connect_guest(guest, connection))

    def kill_host(self, host: Host, seconds: float = 1.0) -> None:
        """As Simulation.kill_host; its guests live on."""
        super().kill_host(host, seconds)
        for guest in [one for one in self.processes.values() if isinstance(one, Guest) and one.alive]:
            if guest.connection is not None and guest.connection.host is host:
                self._break(guest)

    def _over(self, guest: Guest, source: Process, target: Process, receive: Callable[[], None]) -> None:
        """Have something arrive over a guest's connection, if that is up till then."""
        connection = guest.connection
        if connection is None or not connection.up:
            return
        cuts = connection.cuts

        def arrive() -> None:
            if guest.connection is connection and connection.up and connection.cuts == cuts:
                receive()

        self._carry(source, target, arrive)

    def _knock(self, guest: Guest, connection: Connection, word: Any) -> None:
        host, name = connection.host, connection.host.id + connection.token

        def heard() -> None:
            answer = host.core.guests.knock(name, word, self.now)
            self._over(guest, host.process, guest, lambda: guest.core.opened(answer, self.now))

        self._over(guest, guest, host.process, heard)

    def _post(self, process: Process, effect: fx.Post | fx.PostAck) -> None:
        guest = process if isinstance(process, Guest) else self._guest_called(effect.node)
        if guest is None:
            super()._post(process, effect)
            return
        connection, e = guest.connection, effect
        if connection is None or (guest is not process and connection.host.id + connection.token != e.node):
            return  # it has gone elsewhere
        host, name = connection.host, connection.host.id + connection.token

        def at_node() -> None:
            if name not in host.core.guests:
                return
            if isinstance(e, fx.PostAck):
                host.core.links.acknowledged(name, e.epoch, e.ack, e.missing, self.now)
            else:
                host.core.links.receive(name, e.epoch, e.seq, e.ack, e.more, e.source, e.to, e.frame, self.now)

        def at_guest() -> None:
            if isinstance(e, fx.PostAck):
                guest.core.acknowledged(e.epoch, e.ack, e.missing, self.now)
            else:
                guest.core.parcel(e.epoch, e.seq, e.ack, e.more, e.source, e.to, e.frame, self.now)

        if guest is process:
            self._over(guest, guest, host.process, at_node)
        else:
            self._over(guest, host.process, guest, at_guest)

    def _guest_called(self, name: bytes) -> Guest | None:
        found = self.processes.get(name) if len(name) == 16 else None
        return found if isinstance(found, Guest) else None

    # Words.

    def _send(self, process: Process, to: bytes, message: Any) -> None:
        if isinstance(process, Guest):
            self._count_sent(process, to, message)
            process.core.send(to, encode(message), self.now)
        elif is_guest(to):
            self._count_sent(process, to, message)
            self._by_node(process, to, message)
        else:
            super()._send(process, to, message)

    def _relayed(self, process: Process, effect: fx.Relay) -> None:
        if isinstance(process, Guest):
            if effect.source == store_peer(process.core.node[:8]):
                number, *answer = msgpack.unpackb(effect.frame)
                process.answers.pop(number, lambda answer: None)(answer)
                return
            message = decode(effect.frame)
            self._note(f"{self.processes[effect.source].name} => {process.name} {message}")
            process.core.receive(effect.source, message, self.now)
        elif effect.to == store_peer(process.peer[:8]):
            self._serve_guest(self.host_of(process), effect.source, msgpack.unpackb(effect.frame))
        elif is_guest(effect.to) or effect.to[:8] != process.peer[:8]:
            process.core.forward(effect.source, effect.to, effect.frame, self.now)
        else:
            super()._relayed(process, effect)

    def _carry_out(self, process: Process, effect: fx.Effect) -> None:
        if not isinstance(process, Guest):
            super()._carry_out(process, effect)
            return
        match effect:
            case fx.Dial():
                self._dial(process, list(self.hosts.values())[effect.address[1]], effect.token)
            case fx.Redial() if process.connection is not None:
                self._dial(process, process.connection.host, process.connection.token)
            case fx.Talk():
                connection = process.connection
                assert connection is not None
                if connection.up:
                    self._knock(process, connection, effect.message)
                else:
                    connection.later = [effect.message]
            case fx.LinkEnded():
                process.core.detached("it began a new link", self.now)
            case fx.Rehomed():
                self._rehomed(process, effect.me)
            case fx.Recycle():
                for segment in effect.segments:
                    own = segment if segment in process.kept else guest_segment(segment, process.peer)
                    if process.kept.pop(own, None) is not None:
                        self._tell_store(process, [0, "unregister", guest_segment(own, process.peer)])
            case _:
                super()._carry_out(process, effect)

    # Bytes.

    def _serve_guest(self, host: Host, guest: bytes, request: list[Any]) -> None:
        number, verb, segment = request
        answer: list[Any] = [number]
        mine = self.makers.get(segment) == guest
        if verb == "write":
            assert segment not in self.written, f"seed {self.seed}: segment {segment} is there already\n{self.tail()}"
            self.written[segment] = 1
            self.makers[segment] = guest
        elif verb == "unregister" and mine:
            del self.written[segment], self.makers[segment]
        elif verb == "read":
            here = segment in self.written and (
                self.makers.get(segment, b"")[:8] == host.id or segment in host.copies.values()
            )
            answer += [b"bytes"] if here else []
        if number:
            host.core.forward(store_peer(host.id), guest, msgpack.packb(answer), self.now)

    def _tell_store(self, guest: Guest, request: list[Any]) -> None:
        guest.core.send(store_peer(guest.core.node[:8]), msgpack.packb(request), self.now)

    def _ask_store(self, guest: Guest, verb: str, segment: int, then: Callable[[list[Any] | None], None]) -> None:
        guest.requests += 1
        guest.answers[guest.requests] = then
        self._tell_store(guest, [guest.requests, verb, segment])

    def _rehomed(self, guest: Guest, me: bytes) -> None:
        """Another node: bring what this program wrote to it, then say hello."""
        guest.peer = me
        guest.names.append(me)
        if len(guest.names) > 1:
            self.partitioned = True  # what workers made for it under its old name goes, and is made again
        self.processes[me] = guest
        answers, guest.answers = guest.answers, {}
        for take in answers.values():
            take(None)
        left = list(guest.kept)

        def go_on(answer: list[Any] | None) -> None:
            if guest.peer != me:
                return  # it has another already
            if left:
                self._ask_store(guest, "write", guest_segment(left.pop(), me), go_on)
            else:
                guest.core.restored(self.now)

        go_on([])

    def put_large(self, guest: Guest) -> Entry | None:
        """Put something large, as `zmesh.put` does: it lies on the node's host by the end.

        None if there was no room, or no node, or the guest died.
        """
        segment, done, deadline = next(self._segments), False, self.now + FULL_WAIT_S

        def answered(answer: list[Any] | None) -> None:
            nonlocal done
            if answer is None or (answer and self.now < deadline):
                self.at(0.05, begin)
                return
            done = True
            if not answer:
                guest.kept[segment] = True

        def begin() -> None:
            if guest.alive:
                self._ask_store(guest, "write", guest_segment(segment, guest.core.me), answered)
                self.settle(guest)

        begin()
        self.run_until(lambda: done or not guest.alive or guest.core.lost is not None, 300.0)
        if segment not in guest.kept or not guest.alive:
            return None
        entry: Entry = guest.core.put(m.STORED, (segment, NBYTES, guest.core.me), [])
        return entry

    def read(self, guest: Guest, entry: Entry) -> str:
        """Read a resolved entry as `zmesh.get` does; returns "" or why that is not possible."""
        references = guest.core.references
        ticket = references.localize([entry])
        self.settle(guest)
        if ticket is not None:
            self.run_until(lambda: not guest.alive or ticket.status != m.PENDING, 300.0)
        if not guest.alive:
            return ""
        status, place = references.location(entry)
        if status != m.STORED:
            return "" if status == m.INLINE else str(place[0])
        if place[0] in guest.kept:
            return ""
        found: list[Any] = []
        references.pin(entry)
        self._ask_store(guest, "read", place[0], found.append)
        self.settle(guest)
        self.run_until(lambda: not guest.alive or bool(found), 300.0)
        if guest.alive:
            references.unpin(entry)
            self.settle(guest)
        if not guest.alive or (found[0] and len(found[0]) == 1):
            return ""
        return "StoreFullError" if found[0] else "ObjectLostError"

    def attached(self, guest: Guest) -> bool:
        """Whether a guest is at a node that greeted it."""
        return bool(guest.core.state == ATTACHED and guest.core.welcome is not None)
