"""A driver's connections to far nodes that serve it: a DEALER with CURVE to the control port of each, dialling out.

Which frames take them is core/shortcuts.py's business. A driver that cannot read the key of the mesh, or reach a node,
goes on by way of its own node. Not thread-safe: its owner holds the reactor's lock.
"""

import contextlib
from collections.abc import Callable
from time import monotonic
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from zmesh.core import effects as fx
from zmesh.core.shortcuts import Shortcuts
from zmesh.exceptions import ConfigError
from zmesh.runtime.curve import CurveKeys, curve_keys, secure_client
from zmesh.runtime.keyring import KEYS_MAX, Keyring
from zmesh.runtime.mesh_sockets import (
    CONTROL_BYTES_MAX,
    HANDSHAKE_MS,
    SHORTCUT_ID,
    Dialled,
    endpoint,
    send,
    take_edge,
    tune,
)
from zmesh.runtime.parcels import ack_head, parcel_head, read_ack, read_parcel
from zmesh.runtime.sockets import ClientSockets
from zmesh.wire.ids import NodeID

FAILURES_MAX = 2  # with one key, in a row, before the next is tried

_DONTWAIT = int(zmq.DONTWAIT)
_IN = int(zmq.POLLIN)
_readable = zmq.backend.zmq_poll


class ShortcutSockets:
    """The connections of one driver.

    Args:
        core: what hears of them.
        sockets: of the driver on its host; they look at ours, too.
        keyring: path of the keys of the mesh.
        deliver: hands on a frame that came over a link: (source, frame).
    """

    def __init__(
        self, core: Shortcuts, sockets: ClientSockets, keyring: str, deliver: Callable[[bytes, bytes], None]
    ) -> None:
        self._core = core
        self._sockets = sockets
        self._keyring = keyring
        self._dialled: dict[NodeID, Dialled] = {}
        self._effects: dict[NodeID, fx.DialNode] = {}
        sockets.shortcuts = core.open
        sockets.before_close = self.close
        sockets.send_over = lambda to, frame: core.send(to, frame, monotonic())
        self.handlers: dict[type[Any], Callable[[Any], None]] = {
            fx.DialNode: self._dial,
            fx.HangUp: lambda effect: self._hang_up(effect.node),
            fx.Redial: lambda effect: self._redial(effect.node),
            fx.Post: self._post,
            fx.PostAck: self._post_ack,
            fx.Relay: lambda effect: deliver(effect.source, effect.frame),
        }

    def _dial(self, effect: fx.DialNode) -> None:
        self._effects[effect.node] = effect
        self._connect(effect, 0)

    def _redial(self, node: NodeID) -> None:
        effect, dialled = self._effects.get(node), self._dialled.get(node)
        if effect is not None:
            self._connect(effect, dialled.attempt if dialled is not None else 0)

    def _keys(self) -> list[CurveKeys]:
        try:
            ring = Keyring.load(self._keyring)
        except ConfigError:
            return []  # not ours to report: the driver's node lives without it, too
        return [curve_keys(key.id, key.server_secret.reveal(), key.client_secret.reveal()) for key in ring.keys]

    def _connect(self, effect: fx.DialNode, attempt: int) -> None:
        """Dial with the next of the keys, which are read anew, as they may have been rotated."""
        self._close(effect.node)
        keys = self._keys()
        if not keys:
            return
        dialled = self._open(effect, keys[attempt % len(keys)])
        if dialled is None:
            return
        self._dialled[effect.node] = dialled
        dialled.attempt = attempt
        with contextlib.suppress(zmq.ZMQError):  # a name that does not resolve: it never connects
            dialled.socket.connect(endpoint(*effect.address))
        self._sockets.adopt(dialled.fd, lambda: self._drain(effect, dialled))
        self._sockets.adopt(dialled.monitor.getsockopt(zmq.FD), lambda: self._events(effect, dialled))

    def _open(self, effect: fx.DialNode, key: CurveKeys) -> Dialled | None:
        """Return a connection that has not dialled yet; None if the program may have no more descriptors."""
        socket = None
        try:
            socket = tune(self._sockets.context.socket(zmq.DEALER), effect.address[0], CONTROL_BYTES_MAX)
            socket.routing_id = SHORTCUT_ID + effect.token
            socket.immediate = True
            socket.connect_timeout = HANDSHAKE_MS
            socket.sndhwm = 0
            socket.rcvhwm = 0
            secure_client(socket, key)
            return Dialled(socket, effect.address)
        except zmq.ZMQError:
            if socket is not None:
                socket.close(linger=0)
            return None

    def _close(self, node: NodeID) -> None:
        dialled = self._dialled.pop(node, None)
        if dialled is not None:
            self._sockets.disown(dialled.fd)
            self._sockets.disown(dialled.monitor.getsockopt(zmq.FD))
            dialled.close()

    def _hang_up(self, node: NodeID) -> None:
        self._effects.pop(node, None)
        self._close(node)

    def _post(self, effect: fx.Post) -> None:
        e = effect
        if not self._send(e.node, parcel_head(e.epoch, e.seq, e.ack, e.more, e.source + e.to), e.frame):
            self._core.unsent(e)

    def _post_ack(self, effect: fx.PostAck) -> None:
        e = effect
        if not self._send(e.node, ack_head(e.epoch, e.ack, e.missing)):
            self._core.unsent(e)

    def _send(self, node: NodeID, *frames: bytes) -> bool:
        dialled = self._dialled.get(node)
        if dialled is None:
            return False
        self._sockets.touch(dialled.fd)
        try:
            send(dialled.socket, *frames)
        except zmq.ZMQError:
            return False
        return True

    def _drain(self, effect: fx.DialNode, dialled: Dialled) -> None:
        node, token = effect.node, effect.token
        item = [(dialled.socket, _IN)]
        while not dialled.socket.closed and _readable(item, 0):
            frames = dialled.socket.recv_multipart(_DONTWAIT)
            if (parcel := read_parcel(frames)) is not None:
                self._core.parcel(node, token, parcel, monotonic())
            elif (word := read_ack(frames)) is not None:
                self._core.acknowledged(node, token, *word, monotonic())

    def _events(self, effect: fx.DialNode, dialled: Dialled) -> None:
        """Take note of what happened to a connection."""
        item = [(dialled.monitor, _IN)]
        while not dialled.monitor.closed and _readable(item, 0):
            event = parse_monitor_message(dialled.monitor.recv_multipart(_DONTWAIT))["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                take_edge(dialled.socket)
                self._sockets.touch(dialled.fd)
                self._core.connected(effect.node, effect.token, monotonic())
                dialled.failures = 0
            elif event not in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
                self._failed(effect, dialled)

    def _failed(self, effect: fx.DialNode, dialled: Dialled) -> None:
        """A handshake failed: the node may be known by another key."""
        dialled.failures += 1
        if dialled.failures < FAILURES_MAX:
            return
        if dialled.attempt >= KEYS_MAX and effect.node not in self._core.open:
            self._hang_up(effect.node)  # none fits; it never led anywhere, so nothing is on it
        else:
            self._connect(effect, dialled.attempt + 1)

    def close(self) -> None:
        """Close everything at once."""
        for node in list(self._dialled):
            self._close(node)
