"""The one socket of a guest: a DEALER with CURVE to the control port of the member it is a client of.

Dials out only, so a guest needs no open port and may sit behind NAT. The same calls as runtime/sockets.py; frames are
those of a link between nodes (runtime/mesh_sockets.py). Not thread-safe: its owner holds the reactor's lock.
"""

import contextlib
from collections.abc import Callable
from time import monotonic

import zmq
from zmq.utils.monitor import parse_monitor_message

from zmesh.core import effects as fx
from zmesh.core.guest_client import GuestCore
from zmesh.exceptions import RemoteProtocolError
from zmesh.runtime.curve import CurveKeys, secure_client
from zmesh.runtime.mesh_sockets import (
    CONTROL_BYTES_MAX,
    GUEST_ID,
    HANDSHAKE_MS,
    SHUT_OUT,
    Dialled,
    endpoint,
    send,
    take_edge,
    tune,
)
from zmesh.runtime.parcels import WORD, ack_head, parcel_head, read_ack, read_parcel
from zmesh.runtime.sockets import CLOSE_LINGER_MS, new_context
from zmesh.wire.guest import GUEST_CODEC
from zmesh.wire.ids import PeerID, store_peer

_DONTWAIT = int(zmq.DONTWAIT)
_IN = int(zmq.POLLIN)
_readable = zmq.backend.zmq_poll

Deliver = Callable[[PeerID, bytes], None]


class GuestSockets:
    """The connection of a guest.

    Args:
        core: what hears of it.
        keys: of the mesh, tried in turn.

    Attributes:
        store_heard: called with what the node's store answers.
    """

    def __init__(self, core: GuestCore, keys: list[CurveKeys]) -> None:
        self._core = core
        self._keys = keys
        self._key = 0  # the one that worked last
        self._tried = 0  # keys that failed at this member
        self._context = new_context()
        self._dialled: Dialled | None = None
        self._dial_effect: fx.Dial | None = None
        self._deliver: Deliver = lambda peer, frame: None
        self.store_heard: Callable[[bytes], None] = lambda frame: None
        self.changed = True
        self.touched = False

    # What the core asks for.

    def dial(self, effect: fx.Dial) -> None:
        """Hang up, and dial a member under another token."""
        self._tried = 0
        self._dial_effect = effect
        self._connect([])

    def _connect(self, later: list[bytes]) -> None:
        self._hang_up()
        assert self._dial_effect is not None
        (host, port), token = self._dial_effect.address, self._dial_effect.token
        socket = tune(self._context.socket(zmq.DEALER), host, CONTROL_BYTES_MAX)
        socket.routing_id = GUEST_ID + token
        socket.immediate = True
        socket.connect_timeout = HANDSHAKE_MS
        socket.sndhwm = 0
        socket.rcvhwm = 0
        secure_client(socket, self._keys[self._key % len(self._keys)])
        self._dialled = Dialled(socket, self._dial_effect.address)
        self._dialled.later = later
        with contextlib.suppress(zmq.ZMQError):  # a name that does not resolve: it never connects
            socket.connect(endpoint(host, port))
        self.changed = self.touched = True

    def redial(self, effect: fx.Redial) -> None:
        """Connect anew to the same member, under the same token."""
        del effect
        self._connect([])

    def talk(self, effect: fx.Talk) -> None:
        """Say something outside the link, now or as soon as there is a connection."""
        frame = GUEST_CODEC.encode(effect.message)
        if not self._send((WORD, frame)) and self._dialled is not None:
            self._dialled.later = [frame]

    def post(self, effect: fx.Post) -> None:
        """Send a parcel."""
        e = effect
        self._send((parcel_head(e.epoch, e.seq, e.ack, e.more, e.source + e.to), e.frame))

    def post_ack(self, effect: fx.PostAck) -> None:
        """Say what arrived."""
        self._send((ack_head(effect.epoch, effect.ack, effect.missing),))

    def relay(self, effect: fx.Relay) -> None:
        """A frame came over the link."""
        if effect.source == store_peer(self._core.node[: len(effect.source) // 2]):
            self.store_heard(effect.frame)
        else:
            self._deliver(effect.source, effect.frame)

    def _send(self, frames: tuple[bytes, ...]) -> bool:
        if self._dialled is None:
            return False
        self.touched = True
        try:
            send(self._dialled.socket, *frames)
        except zmq.ZMQError:
            return False
        return True

    def _hang_up(self) -> None:
        if self._dialled is not None:
            self._dialled.close()
            self._dialled = None
            self.changed = True

    # What the reactor calls.

    def listen(self) -> None:
        """Nobody dials a guest."""

    def connect(self, peer: PeerID) -> None:
        """Everybody is reached through the node."""

    def disconnect(self, peer: PeerID) -> None:
        """Nothing was connected."""

    def send(self, to: PeerID, frame: bytes) -> None:
        """Have the node pass on a frame."""
        self._core.send(to, frame, monotonic())

    def ready(self, fd: int) -> None:
        """A sleeper saw this descriptor readable."""
        del fd
        self.touched = True

    def take_seen(self, deliver: Deliver) -> None:
        """Take in what is there."""
        self.drain(deliver)

    def take_some(self, deliver: Deliver, *, of_all: bool) -> None:
        """Take in what is there, if anything can be; the window of the link bounds it."""
        if of_all or self.touched:
            self.drain(deliver)

    def drain_touched(self, deliver: Deliver) -> None:
        """Take in what is there, if anything can be."""
        if self.touched:
            self.drain(deliver)

    def drain(self, deliver: Deliver) -> None:
        """Hand on what is there, until the socket says EAGAIN."""
        self._deliver = deliver
        self.touched = False
        dialled = self._dialled
        if dialled is None:
            return
        self._events(dialled)
        item = [(dialled.socket, _IN)]
        while self._dialled is dialled and _readable(item, 0):
            self._received(dialled.socket.recv_multipart(_DONTWAIT))

    def _received(self, frames: list[bytes]) -> None:
        now = monotonic()
        if len(frames) == 2 and frames[0] == WORD:
            try:
                self._core.opened(GUEST_CODEC.decode(frames[1]), now)
            except (RemoteProtocolError, ValueError) as error:
                self._core.effects.append(fx.Warn(f"the node says what makes no sense: {error}"))
        elif (parcel := read_parcel(frames)) is not None:
            self._core.parcel(*parcel, now)
        elif (word := read_ack(frames)) is not None:
            self._core.acknowledged(*word, now)

    def _events(self, dialled: Dialled) -> None:
        """Take note of what happened to the connection."""
        item = [(dialled.monitor, _IN)]
        while self._dialled is dialled and _readable(item, 0):
            event = parse_monitor_message(dialled.monitor.recv_multipart(_DONTWAIT))["event"]
            now = monotonic()
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                dialled.connected, self._tried = True, 0
                take_edge(dialled.socket)
                later, dialled.later = dialled.later, []
                for frame in later:
                    self._send((WORD, frame))
                self._core.reconnected(now)
            elif event == zmq.EVENT_DISCONNECTED:
                dialled.connected = False
            elif event == zmq.EVENT_CLOSED:  # a dial was refused
                if not dialled.connected:
                    self._core.refused("nobody listens there", now)
            elif (failures := dialled.failures + 1) < SHUT_OUT:
                dialled.failures = failures  # a cut in the midst of a handshake looks like another key
            else:
                self._tried += 1
                self._key += 1
                if self._tried >= len(self._keys):
                    why = "it has another key: copy it with `zmesh key export` and `zmesh key import`"
                    self._core.refused(why, now)
                else:
                    self._connect(dialled.later)

    def descriptors(self) -> list[int]:
        """Return the descriptors to sleep on: edge-triggered, so drain before each sleep."""
        self.changed = False
        dialled = self._dialled
        self.touched = True
        return [dialled.fd, dialled.monitor.getsockopt(zmq.FD)] if dialled is not None else []

    def close(self, linger_ms: int = CLOSE_LINGER_MS) -> None:
        """Close; waits `linger_ms` at most for what was sent."""
        if self._dialled is not None:
            self._dialled.socket.linger = linger_ms
            self._dialled.socket.disable_monitor()
            self._dialled.monitor.close()
            self._dialled.socket.close()
        self._context.term()
