"""The sockets of a node towards other nodes: TCP, CURVE on each of them, three consecutive ports.

    P      ROUTER, control: parcels of the links between nodes, words of membership. Each peer dials in with a DEALER
    P + 1  XPUB, gossip: what this node publishes
    P + 2  bulk, in runtime/bulk.py

Every bound socket has the server key of the mesh and a ZAP domain, every dialling one the client key. Who may connect
is runtime/curve.py's business. Loop thread only. Never blocks; a send that finds no connection is dropped, as
core/links.py sends again.

Source: settings, docs/design.md, "Sockets".
"""

import contextlib
import errno
import functools
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from zmesh.core.effects import Address
from zmesh.core.shortcuts import LINK_NAME, Parcel
from zmesh.exceptions import ConfigError
from zmesh.runtime.curve import CurveKeys, Gate, secure_client, secure_server
from zmesh.runtime.machine import resolves
from zmesh.runtime.parcels import WORD, ack_head, parcel_head, read_ack, read_parcel
from zmesh.wire.ids import NODE_ID_BYTES, PEER_ID_BYTES, NodeID, PeerID, is_guest

CONTROL_BYTES_MAX = 4 * 1024 * 1024  # of a frame, also before its sender is known; fragments are 1 MiB
GOSSIP_BYTES_MAX = 64 * 1024
HANDSHAKE_MS = 3000  # a connection that is silent for so long is closed
HEARTBEAT_MS = 10_000  # of ZeroMQ, on control only: whether a node lives, membership finds out
HEARTBEAT_TIMEOUT_MS = 20_000
UNSENT_MS = 10_000  # a connection whose bytes nobody acknowledges for so long is dead. Source: tcp(7), TCP_USER_TIMEOUT
RECONNECT_MS = 100  # plus as much at random, as libzmq adds none itself when a maximum is set
RECONNECT_MAX_MS = 2000
DRAIN_FRAMES_MAX = 1024  # a peer that floods us does not keep us from the others
BACKLOG = 1024
SHUT_OUT = 3  # handshakes that failed in a row: that is no accident
REBIND_S = 2.0
LATER_MAX = 4  # words of membership that wait for a connection; they are repeated anyway

_DONTWAIT = int(zmq.DONTWAIT)
_IN = int(zmq.POLLIN)
_readable = zmq.backend.zmq_poll  # also takes the edge of the socket's descriptor
_MORE = int(zmq.SNDMORE | zmq.DONTWAIT)
_send = zmq.backend.Socket.send
_recv = zmq.backend.Socket.recv  # without the checks for draft sockets that zmq.Socket adds
ROUTING_ID = b"\x01"  # before a NodeID: a routing id must not begin with a zero
GUEST_ID = b"\x02"  # before the token of a guest
SHORTCUT_ID = LINK_NAME  # before the token of a shortcut; both together are what its link is called
_KINDS = (ROUTING_ID, GUEST_ID, SHORTCUT_ID)
# Before a NodeID and some bytes by chance: a connection for words of membership only, to an address at which a node may
# be that we have a connection to already. Under the same id a ROUTER would let it take over, and the other fall silent.
SEED_ID, SEED_BYTES = b"\x04", 4
SEEDS_MAX = 64  # such connections; the oldest goes


def send(socket: Any, *frames: bytes) -> None:
    """Send one message without waiting.

    Raises:
        ZMQError: there is no connection, or its pipe is full. Nothing is half sent.
    """
    for frame in frames[:-1]:
        _send(socket, frame, _MORE)
    _send(socket, frames[-1], _DONTWAIT)


def take_edge(socket: Any) -> bool:
    """Have a socket see to its connections: else its descriptor stays readable, and a send may miss a new one."""
    if not socket.closed:
        _readable([(socket, _IN)], 0)
    return False


def endpoint(host: str, port: int) -> str:
    """Return the ZeroMQ address of a TCP port; IPv6 in brackets."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def cannot_listen(host: str, port: int, error: zmq.ZMQError) -> ConfigError:
    """Return the error for a port that could not be bound."""
    if error.errno == errno.EADDRINUSE:
        why = (
            f"port {port} is in use: P, P + 1 and P + 2 must be free. Say another --port, or none for the next free one"
        )
    elif error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
        why = "that is no address of this machine. Say one with --host; what others dial, if it differs, is --advertise"
    else:
        why = f"port {port}: {os.strerror(error.errno or 0)}. See --host and --port"
    return ConfigError(f"cannot listen on {host}: {why}")


def rebind(bind: Callable[[], None]) -> None:
    """Bind a port again that was closed just now: the I/O thread lets go of it a moment later.

    Raises:
        ConfigError: it is not free after REBIND_S.
    """
    deadline = monotonic() + REBIND_S
    while True:
        try:
            bind()
            return
        except ConfigError:
            if monotonic() >= deadline:
                raise
            sleep(0.005)


def tune(socket: Any, host: str, bytes_max: int) -> Any:
    """Set what all sockets between hosts have in common; before they bind or dial."""
    socket.linger = 0
    socket.ipv6 = ":" in host or not host.replace(".", "").isdigit()
    socket.maxmsgsize = bytes_max
    socket.handshake_ivl = HANDSHAKE_MS
    socket.tcp_maxrt = UNSENT_MS
    if bytes_max != GOSSIP_BYTES_MAX:
        socket.heartbeat_ivl = HEARTBEAT_MS
        socket.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS
        socket.heartbeat_ttl = HEARTBEAT_TIMEOUT_MS
    socket.reconnect_ivl = RECONNECT_MS + random.randrange(RECONNECT_MS)
    socket.reconnect_ivl_max = RECONNECT_MAX_MS + random.randrange(RECONNECT_MS)
    socket.tcp_keepalive = 1
    socket.tcp_keepalive_idle = 30
    return socket


class Dialled:
    """One connection we dialled, and what its monitor says of it."""

    __slots__ = ("address", "attempt", "connected", "failures", "fd", "later", "monitor", "refused", "socket")

    def __init__(self, socket: Any, address: Address) -> None:
        self.socket = socket
        self.fd: int = socket.getsockopt(zmq.FD)
        self.address = address
        self.monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_CLOSED
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        )
        self.connected = False
        self.refused = False  # since it was last connected
        self.attempt = 0  # how many keys were tried before
        self.failures = 0  # handshakes, in a row
        self.later: list[bytes] = []  # words of membership to send once it is connected

    def events(self) -> bool:
        """Take note of what happened to the connection; returns whether it was made anew."""
        anew = False
        while True:
            try:
                event = parse_monitor_message(self.monitor.recv_multipart(_DONTWAIT))["event"]
            except zmq.Again:
                return anew
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                anew = self.connected = True

    def close(self) -> None:
        """Close at once."""
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close(linger=0)


@dataclass(slots=True)
class Heard:
    """What the sockets tell their owner; each is called in the loop thread."""

    parcel: Callable[[bytes, Parcel], None]  # name of the link: of a node, a guest, a shortcut
    ack: Callable[[bytes, int, int, bool], None]
    word: Callable[[NodeID, bytes], None]  # of membership: from whom, frame
    knock: Callable[[PeerID, bytes], None]  # of a guest, and what it is called if it is let in: wire/guest.py
    up: Callable[[NodeID], None]  # our connection to that node was made (anew)
    down: Callable[[NodeID, bool], None]  # it was lost; whether a redial was refused
    bad: Callable[[str], None]  # something came that makes no sense


class MeshSockets:
    """Control and gossip of one node.

    Args:
        me: our NodeID.
        host, port: what to bind: a numeric address or name, and the base port P.
        keys: all we have, newest first. We are known by the first until `rekey`, and dial each node by the key it is
            known by; the gate says whose are accepted.
    """

    def __init__(
        self, context: Any, gate: Gate, me: NodeID, host: str, port: int, keys: list[CurveKeys], heard: Heard
    ) -> None:
        self._context = context
        self._gate = gate
        self._me = me
        self._host, self._port = host, port
        self._keys = {key.id: key for key in keys}
        self._key = keys[0]  # by which we are known
        self._known_by: dict[NodeID, str] = {}  # {member: id of the key it is known by}
        self._heard = heard
        self._addresses: dict[NodeID, Address] = {}  # of members, dialled when there is something to say
        self._nodes: dict[NodeID, Dialled] = {}  # control
        self._seeds: dict[Address, Dialled] = {}  # control, to somebody whose NodeID is not known yet
        self._heard_from: dict[NodeID, Dialled] = {}  # gossip, by subscription
        self._monitored: dict[int, tuple[NodeID, Dialled]] = {}  # {descriptor of a monitor: whose}
        self._subscriptions: dict[int, Dialled] = {}  # {descriptor: subscription}
        self.changed = True  # the list of descriptors is not what it was
        self._looks: dict[int, Callable[[], bool]] = {}  # {descriptor: takes in what is there; whether there is more}
        self._touched: dict[int, bool] = {}  # {descriptor: True}: readable, or sent on, so that its edge may be gone
        self._router: Any = None
        self._pub: Any = None
        self.bind()

    # Binding.

    def bind(self) -> None:
        """Bind both ports.

        Raises:
            ConfigError: one of them is taken, or the address is not ours.
        """
        router = tune(self._context.socket(zmq.ROUTER), self._host, CONTROL_BYTES_MAX)
        router.router_mandatory = True
        router.router_handover = True
        router.sndhwm = 0
        router.backlog = BACKLOG
        pub = tune(self._context.socket(zmq.XPUB), self._host, GOSSIP_BYTES_MAX)
        pub.xpub_verbose = True
        pub.sndhwm = 256
        pub.backlog = BACKLOG
        try:
            for socket, port in ((router, self._port), (pub, self._port + 1)):
                secure_server(socket, self._key)
                socket.bind(endpoint(self._host, port))
        except zmq.ZMQError as error:
            router.close()
            pub.close()
            raise cannot_listen(self._host, port, error) from None
        self._router, self._pub = router, pub
        self._pub_fd: int = pub.getsockopt(zmq.FD)
        self._router_fd: int = router.getsockopt(zmq.FD)
        self.changed = True

    def take_keys(self, keys: list[CurveKeys]) -> None:
        """These are the keys from now on."""
        self._keys = {key.id: key for key in keys}

    def rekey(self, key: CurveKeys) -> None:
        """Be known by another key from now on, on the same ports. Links bridge the cut."""
        self._router.close(linger=0)
        self._pub.close(linger=0)
        self._key = key
        rebind(self.bind)

    def _key_of(self, node: NodeID, attempt: int = 0) -> CurveKeys:
        """Return the key by which a node is known; of one that nobody told us of, each in turn."""
        known = self._keys.get(self._known_by.get(node, ""))
        keys = list(self._keys.values())
        return known or keys[attempt % len(keys)]

    # Dialling.

    def _dial(self, table: dict[Any, Dialled], key: Any, node: NodeID, address: Address) -> Dialled:
        host, port = address
        socket = tune(self._context.socket(zmq.DEALER), host, CONTROL_BYTES_MAX)
        seed = table is self._seeds
        socket.routing_id = SEED_ID + self._me + os.urandom(SEED_BYTES) if seed else ROUTING_ID + self._me
        socket.immediate = True
        socket.connect_timeout = HANDSHAKE_MS
        socket.sndhwm = 0  # the window of the link bounds what is under way; a full pipe would drop it
        attempt = table[key].attempt + 1 if key in table else 0
        self._hang_up(table, key)
        secure_client(socket, self._key_of(node, attempt))
        dialled = table[key] = Dialled(socket, address)
        dialled.attempt = attempt
        with contextlib.suppress(zmq.ZMQError):  # a name that does not resolve: it never connects
            socket.connect(endpoint(host, port))
        self._monitored[dialled.monitor.getsockopt(zmq.FD)] = (node, dialled)
        self.changed = True
        return dialled

    def _dial_seed(self, address: Address) -> Dialled:
        if len(self._seeds) >= SEEDS_MAX:
            self._hang_up(self._seeds, next(iter(self._seeds)))
        return self._dial(self._seeds, address, b"", address)

    def _hang_up(self, table: dict[Any, Dialled], key: Any) -> None:
        dialled = table.pop(key, None)
        if dialled is not None:
            self._monitored.pop(dialled.monitor.getsockopt(zmq.FD), None)
            self._subscriptions.pop(dialled.socket.getsockopt(zmq.FD), None)
            dialled.close()
            self.changed = True

    def knows(self, node: NodeID, address: Address, key_id: str) -> None:
        """A node is at that address, and known by that key."""
        self._addresses[node] = address
        same_key = self._known_by.get(node) == key_id
        self._known_by[node] = key_id
        dialled, heard = self._nodes.get(node), self._heard_from.get(node)
        if dialled is not None and (dialled.address != address or not same_key):
            self._hang_up(self._nodes, node)
            self._to(node)  # what waits for an acknowledgement is sent again once it is connected
        if heard is not None and not same_key:
            self.unsubscribe(node)
            self.subscribe(node, address)

    def forgets(self, node: NodeID) -> None:
        """Close the connection to a node that is dead."""
        self._addresses.pop(node, None)
        self._known_by.pop(node, None)
        self._hang_up(self._nodes, node)

    def redial(self, node: NodeID) -> None:
        """Connect to a node anew."""
        self._hang_up(self._nodes, node)
        self._to(node)

    def _to(self, node: NodeID) -> Dialled | None:
        """Return our connection to a node, dialled if need be; None if nobody said where it is."""
        dialled = self._nodes.get(node)
        if dialled is None and node in self._addresses and node != self._me:
            dialled = self._dial(self._nodes, node, node, self._addresses[node])
        return dialled

    def subscribe(self, node: NodeID, address: Address) -> None:
        """Hear what a node publishes."""
        known = self._heard_from.get(node)
        if known is not None and known.address == address:
            return
        self._hang_up(self._heard_from, node)
        socket = tune(self._context.socket(zmq.SUB), address[0], GOSSIP_BYTES_MAX)
        socket.rcvhwm = 1024
        socket.subscribe(b"")
        secure_client(socket, self._key_of(node))
        dialled = self._heard_from[node] = Dialled(socket, address)
        with contextlib.suppress(zmq.ZMQError):
            socket.connect(endpoint(address[0], address[1] + 1))
        self._subscriptions[socket.getsockopt(zmq.FD)] = dialled
        self._monitored[dialled.monitor.getsockopt(zmq.FD)] = (node, dialled)
        self.changed = True

    def unsubscribe(self, node: NodeID) -> None:
        """Hear that node no more."""
        self._hang_up(self._heard_from, node)

    # Sending.

    def publish(self, frame: bytes) -> None:
        """Publish a word of membership."""
        self._touched[self._pub_fd] = True
        with contextlib.suppress(zmq.ZMQError):
            self._pub.send(self._me + frame, _DONTWAIT)

    def tell(self, node: NodeID, address: Address, frame: bytes) -> None:
        """Send a word of membership straight to a node, or to whoever is at that address."""
        dialled = self._to(node) if node in self._addresses else None
        if dialled is None:  # a seed, or one that is no member (any more)
            dialled = self._seeds.get(address) or self._dial_seed(address)
        if not self._send(dialled, (WORD, frame)):
            dialled.later = [*dialled.later[-LATER_MAX + 1 :], frame]

    def post(self, link: bytes, epoch: int, seq: int, ack: int, more: bool, ids: bytes, frame: bytes) -> bool:
        """Send a parcel over a link to a node, a guest, or over a shortcut; `ids` are those of sender and receiver.

        Returns whether there was a connection.
        """
        return self._send_over_link(link, (parcel_head(epoch, seq, ack, more, ids), frame))

    def post_ack(self, link: bytes, epoch: int, ack: int, missing: bool) -> bool:
        """Say what arrived; returns whether there was a connection."""
        return self._send_over_link(link, (ack_head(epoch, ack, missing),))

    def tell_guest(self, guest: PeerID, frame: bytes) -> None:
        """Send a guest a word outside its link."""
        self._send_over_link(guest, (WORD, frame))

    def _send_over_link(self, link: bytes, frames: tuple[bytes, ...]) -> bool:
        if len(link) == NODE_ID_BYTES:
            dialled = self._to(link)
            return dialled is not None and self._send(dialled, frames)
        # A guest or a driver: it dialled us.
        self._touched[self._router_fd] = True
        name = GUEST_ID + link[NODE_ID_BYTES:] if len(link) == PEER_ID_BYTES else link
        try:
            send(self._router, name, *frames)
        except zmq.ZMQError:
            return False
        return True

    def _send(self, dialled: Dialled, frames: tuple[bytes, ...]) -> bool:
        """Send, or return that there is no connection now, or its pipe is full. Nothing is half sent."""
        self._touched[dialled.fd] = True
        try:
            send(dialled.socket, *frames)
        except zmq.ZMQError:
            return False
        return True

    # Receiving.

    def descriptors(self) -> list[int]:
        """Return the descriptors to sleep on: edge-triggered, so drain before each sleep."""
        self.changed = False
        looks: dict[int, Callable[[], bool]] = {
            self._gate.fileno(): self._gate.serve,
            self._router.getsockopt(zmq.FD): self._drain_control,
            self._pub.getsockopt(zmq.FD): self._drain_subscribers,
        }
        for dialled in (*self._nodes.values(), *self._seeds.values()):
            looks[dialled.fd] = functools.partial(take_edge, dialled.socket)
        for fd, dialled in self._subscriptions.items():
            looks[fd] = functools.partial(self._drain_subscription, dialled)
        for fd, (node, dialled) in self._monitored.items():
            looks[fd] = functools.partial(self._drain_monitor, node, dialled)
        self._looks = looks
        self._touched = dict.fromkeys(looks, True)  # what came before anybody slept on it
        return list(looks)

    def ready(self, fd: int) -> None:
        """A sleeper saw this descriptor readable."""
        self._touched[fd] = True

    def drain(self) -> bool:
        """Take in what is there on sockets seen readable or sent on; returns whether more may be waiting."""
        touched, self._touched = self._touched, {}
        for fd in touched:
            look = self._looks.get(fd)
            if look is not None and look():
                self._touched[fd] = True
        return bool(self._touched)

    def _drain_control(self) -> bool:
        item = [(self._router, _IN)]
        for _ in range(DRAIN_FRAMES_MAX):
            if not _readable(item, 0):
                return False
            frame = _recv(self._router, _DONTWAIT, False)
            frames = [frame.bytes]
            while frame.more:
                frame = _recv(self._router, _DONTWAIT, False)
                frames.append(frame.bytes)
            if self._gate.admits(frame):
                self._received(frames)
            else:
                self._gate.denied += 1
        return True

    def _received(self, frames: list[bytes]) -> None:
        sender, *rest = frames
        kind, node = sender[:1], sender[1:]
        if kind == SEED_ID and len(node) == NODE_ID_BYTES + SEED_BYTES and rest[0] == WORD:
            kind, node = ROUTING_ID, node[:NODE_ID_BYTES]
        if len(node) != NODE_ID_BYTES or kind not in _KINDS or len(rest) not in (1, 2):
            self._heard.bad(f"{len(frames)} frames from {sender[:20].hex()}")
            return
        guest = kind == GUEST_ID
        name = self._me + node if guest else node if kind == ROUTING_ID else sender  # of the link
        if guest and not is_guest(name):
            self._heard.bad(f"a guest by the name of a process here, {name.hex()}")
            return
        if (parcel := read_parcel(rest)) is not None:
            # Whose words come over a shortcut, core/shortcuts.py knows.
            source, to = parcel[4], parcel[5]
            if (kind != SHORTCUT_ID and source[: len(name)] != name) or not (guest or to[:NODE_ID_BYTES] == self._me):
                self._heard.bad(f"a parcel from {source.hex()} for {to.hex()} by way of {node.hex()}")
                return
            self._heard.parcel(name, parcel)
        elif rest[0] == WORD and len(rest) == 2 and kind != SHORTCUT_ID:
            (self._heard.knock if guest else self._heard.word)(name, rest[1])
        elif (word := read_ack(rest)) is not None:
            self._heard.ack(name, *word)
        elif rest[0]:  # an empty one is a probe
            self._heard.bad(f"a head of {len(rest[0])} bytes from {node.hex()}")

    def _drain_subscription(self, dialled: Dialled) -> bool:
        item = [(dialled.socket, _IN)]
        for _ in range(DRAIN_FRAMES_MAX):
            if dialled.socket.closed or not _readable(item, 0):
                return False
            frames = dialled.socket.recv_multipart(_DONTWAIT)
            if len(frames) == 1 and len(frames[0]) > NODE_ID_BYTES:
                self._heard.word(frames[0][:NODE_ID_BYTES], frames[0][NODE_ID_BYTES:])
        return True

    def _drain_subscribers(self) -> bool:
        """Nobody acts on who subscribes, but what they sent must be read."""
        item = [(self._pub, _IN)]
        while _readable(item, 0):
            self._pub.recv_multipart(_DONTWAIT)
        return False

    def _drain_monitor(self, node: NodeID, dialled: Dialled) -> bool:
        item = [(dialled.monitor, _IN)]
        while not dialled.monitor.closed and _readable(item, 0):
            event = parse_monitor_message(dialled.monitor.recv_multipart(_DONTWAIT))["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                dialled.connected, dialled.refused, dialled.failures = True, False, 0
                take_edge(dialled.socket)
                later, dialled.later = dialled.later, []
                for frame in later:
                    self._send(dialled, (WORD, frame))
                if self._nodes.get(node) is dialled:
                    self._heard.up(node)
            elif event == zmq.EVENT_DISCONNECTED:
                if node and dialled.connected:
                    self._heard.down(node, False)
                dialled.connected = False
            elif event == zmq.EVENT_CLOSED:  # a redial was refused
                if not dialled.connected and not dialled.refused:
                    dialled.refused = True
                    if node:
                        self._heard.down(node, True)
            else:
                dialled.failures += 1
                if not node and len(self._keys) > 1 and self._seeds.get(dialled.address) is dialled:
                    self._dial_again(dialled)
        return False

    def connected(self, node: NodeID) -> bool:
        """Whether our connection to that node stands."""
        dialled = self._nodes.get(node)
        return dialled is not None and dialled.connected

    def link_to(self, node: NodeID) -> str:
        """Say how our connection to a member stands: `connected`, `unused`, or why it is not."""
        dialled = self._nodes.get(node) or self._heard_from.get(node)
        if dialled is None:
            return "unused"
        if dialled.connected:
            return "connected"
        if dialled.failures:
            return "it has another key"
        return "nobody listens there" if dialled.refused else "no answer"

    def shut_out(self, seeds: list[Address]) -> bool:
        """Whether all seeds fail the handshake, again and again."""
        found = [self._seeds.get(seed) for seed in seeds]
        return all(one is not None and not one.connected and one.failures >= SHUT_OUT for one in found)

    def _dial_again(self, dialled: Dialled) -> None:
        """A seed does not know the key we tried: try the next one."""
        failures, later = dialled.failures, dialled.later
        again = self._dial(self._seeds, dialled.address, b"", dialled.address)
        again.failures, again.later = failures, later

    def state_of(self, seeds: list[Address]) -> str:
        """Say how far the connections to seeds got."""
        found = []
        for seed in seeds:
            dialled = self._seeds.get(seed)
            if dialled is None:
                found.append("not dialled")
            elif dialled.connected:
                found.append("connected, but no answer came back")
            elif dialled.failures:
                found.append("it has another key: copy it with `zmesh key export` and `zmesh key import`")
            elif dialled.refused:
                found.append("nobody listens there")
            else:
                found.append("no connection" if resolves(seed[0]) else f"no address is known for the name {seed[0]!r}")
        return "; ".join(dict.fromkeys(found))

    def close(self) -> None:
        """Close everything at once."""
        for table in (self._nodes, self._seeds, self._heard_from):
            for key in list(table):
                self._hang_up(table, key)
        self._router.close(linger=0)
        self._pub.close(linger=0)
