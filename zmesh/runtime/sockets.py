"""The ZeroMQ sockets of a process on its host; those between hosts are in mesh_sockets.py.

On a host all links are ipc:// in a private directory, so the file system keeps strangers out. A client binds a ROUTER
(thieves dial in) and dials its node and its victims with DEALERs. Never blocks in a send; loses nothing while both
ends live, as flow is bounded by credit, not by high-water marks. Not thread-safe: its owner holds one lock.

A message is one frame. To and from peers on other hosts it goes through the node, and a PeerID stands before it: whom
it is for, or whom it is from.

Source: traps and settings in docs/design.md, "Sockets".
"""

import contextlib
from collections.abc import Callable
from typing import Any

import zmq

from zmesh.wire.ids import NODE_ID_BYTES, PeerID, is_guest

# Plain integers: the arithmetic of zmq's enum flags costs 2 us each, five times a round trip.
_IN = int(zmq.POLLIN)
_DONTWAIT = int(zmq.DONTWAIT)
_MORE = int(zmq.SNDMORE | zmq.DONTWAIT)
_DEALER, _ROUTER = int(zmq.DEALER), int(zmq.ROUTER)
_ROUTING_ID, _RECONNECT_IVL = int(zmq.ROUTING_ID), int(zmq.RECONNECT_IVL)
_HANDOVER, _MANDATORY = int(zmq.ROUTER_HANDOVER), int(zmq.ROUTER_MANDATORY)
_SNDHWM, _RCVHWM, _LINGER = int(zmq.SNDHWM), int(zmq.RCVHWM), int(zmq.LINGER)
_readable = zmq.backend.zmq_poll  # takes in what came and says whether there is a frame, in half the time of EVENTS
_send = zmq.backend.Socket.send  # without the checks for draft sockets that zmq.Socket.send adds

# pyzmq's plain class, without the one of enums, warnings and weak sets above it: its code alone made some 80 pages of
# each forked worker its own.
_Socket = zmq.backend.Socket
_MORE_FOLLOWS = int(zmq.RCVMORE)
FD, _BLOCKY, _MAX_SOCKETS = int(zmq.FD), int(zmq.BLOCKY), int(zmq.MAX_SOCKETS)

SOCKETS_MAX = 16_384  # of a node, a link for each member among them; libzmq's default is 1,023
# Of a client: a link for each actor of its host that somebody else made, and the host has no more than 4,096 workers.
# libzmq fills a table of so many entries at once, which each worker pays for.
CLIENT_SOCKETS_MAX = 4_352
SOME_FRAMES = 32  # taken of a socket before its reader looks whether it has what it waits for: there may always be more
ALL_FRAMES = 1 << 30
CLOSE_LINGER_MS = 500  # last results still leave a process that ends in good order

_ADOPTED = b"adopted"

Deliver = Callable[[PeerID, bytes], None]


def _tune(socket: Any) -> Any:
    socket.set(_SNDHWM, 0)
    socket.set(_RCVHWM, 0)
    socket.set(_LINGER, CLOSE_LINGER_MS)
    return socket


def _receive_all(socket: Any) -> list[bytes]:
    """Return the frames of one message."""
    frames = [socket.recv(_DONTWAIT)]
    while socket.get(_MORE_FOLLOWS):
        frames.append(socket.recv(_DONTWAIT))
    return frames


class ClientSockets:
    """The sockets of a driver or worker.

    Args:
        me: PeerID; the routing id of every link this process dials.
        node: PeerID of the node.
        path_of: returns the ipc path of a peer on this host.
        context: of the sockets, closed with them; None: one of its own.
        socket_class: called with the context and a type of socket.
    """

    def __init__(
        self,
        me: PeerID,
        node: PeerID,
        path_of: Callable[[PeerID], str],
        context: Any = None,
        socket_class: Callable[[Any, int], Any] = _Socket,
    ) -> None:
        self._me = me
        self._here = me[:NODE_ID_BYTES]
        self._node = node
        self._path_of = path_of
        self._context = new_context(sockets_max=CLIENT_SOCKETS_MAX) if context is None else context
        self._socket_class = socket_class
        self.changed = True  # the list of descriptors is not what it was
        self._by_fd: dict[int, tuple[PeerID, Any]] = {}  # {descriptor: (peer, socket)}; the ROUTER's peer is b""
        self._touched: dict[int, tuple[PeerID, Any]] = {}  # those of them that may hold a frame whose edge is gone
        self._seen: dict[int, bool] = {}  # {descriptor: True} that a sleeper saw readable; it may be closed by now
        self._links: dict[PeerID, tuple[int, Any]] = {}  # {node or victim: (descriptor, DEALER)}
        self.shortcuts: Any = {}  # {node of another host to which a shortcut leads: True}
        self.send_over: Callable[[PeerID, bytes], None] = lambda to, frame: None  # such a shortcut
        self.before_close: Callable[[], None] = lambda: None  # closes adopted sockets
        self._dial(node)
        self._router: Any = None
        self._router_fd = -1
        self._dialled_us: dict[PeerID, bool] = {}  # {peer: True} that spoke to our ROUTER: it is answered there

    def _dial(self, peer: PeerID) -> None:
        link = _tune(self._socket_class(self._context, _DEALER))
        link.set(_ROUTING_ID, self._me)
        # A peer's address is never used again: dialling a dead one for ever would only wake the I/O thread.
        link.set(_RECONNECT_IVL, -1)
        link.connect(f"ipc://{self._path_of(peer)}")
        fd = link.get(FD)
        self._links[peer] = (fd, link)
        self._by_fd[fd] = (peer, link)
        self.changed = True

    def listen(self) -> None:
        """Bind the ROUTER that thieves dial; a worker does it with the first task it submits."""
        if self._router is None:
            router = _tune(self._socket_class(self._context, _ROUTER))
            router.set(_HANDOVER, 1)
            router.set(_MANDATORY, 1)
            router.bind(f"ipc://{self._path_of(self._me)}")
            self._router = router
            self._router_fd = router.get(FD)
            self._by_fd[self._router_fd] = (b"", router)
            self.changed = True

    def connect(self, peer: PeerID) -> None:
        """Open a link to a peer of this host; to guests and to those of other hosts our node's link leads.

        Not to one that dialled us: two connections between the same two would not keep what we say in order.
        """
        if peer in self._links or peer in self._dialled_us:
            return
        if peer[:NODE_ID_BYTES] == self._here and not is_guest(peer):
            self._dial(peer)

    def disconnect(self, peer: PeerID) -> None:
        """Close the link to a victim; what was sent still leaves."""
        self._dialled_us.pop(peer, None)
        fd, link = self._links.pop(peer, (-1, None))
        if link is not None:
            del self._by_fd[fd]
            self._touched.pop(fd, None)
            self._seen.pop(fd, None)
            link.close()
            self.changed = True

    def send(self, to: PeerID, frame: bytes) -> None:
        """Send one frame; to a peer that is gone it is lost, which its death notice explains to the core."""
        found = self._links.get(to)
        if found is not None:
            fd, link = found
            self._touched[fd] = (to, link)
            try:
                link.send(frame, _DONTWAIT)
            except zmq.Again:
                return  # it hung up, and no link redials
        elif to[:NODE_ID_BYTES] != self._here or is_guest(to):
            if to[:NODE_ID_BYTES] in self.shortcuts:
                self.send_over(to, frame)
            else:
                self.send_by_node(to, frame)
        elif self._router is not None:
            self._touched[self._router_fd] = (b"", self._router)
            try:
                self._router.send(to, _MORE)
                self._router.send(frame, _DONTWAIT)
            except zmq.ZMQError:
                pass

    def send_by_node(self, to: PeerID, frame: bytes) -> None:
        """Have our node pass on a frame."""
        fd, link = self._links[self._node]
        self._touched[fd] = (self._node, link)
        link.send(to, _MORE)
        link.send(frame, _DONTWAIT)

    @property
    def context(self) -> Any:
        """The context of all sockets of this process."""
        return self._context

    def adopt(self, fd: int, drain: Callable[[], None]) -> None:
        """Have a socket of somebody else's looked at: `drain` takes in what is there."""
        self._by_fd[fd] = (_ADOPTED, drain)
        self._touched[fd] = (_ADOPTED, drain)
        self.changed = True

    def disown(self, fd: int) -> None:
        """It is closed."""
        self._by_fd.pop(fd, None)
        self._touched.pop(fd, None)
        self._seen.pop(fd, None)
        self.changed = True

    def touch(self, fd: int) -> None:
        """Its owner sent on it, so its edge may be gone."""
        found = self._by_fd.get(fd)
        if found is not None:
            self._touched[fd] = found

    def ready(self, fd: int) -> None:
        """A sleeper saw this descriptor readable: `drain_touched` looks at its socket. Takes no lock."""
        self._seen[fd] = True

    def take_seen(self, deliver: Deliver) -> None:
        """Take one frame of each socket that a sleeper saw readable; there may be more, so they count as touched."""
        seen = self._seen
        while seen:
            fd, _ = seen.popitem()
            found = self._by_fd.get(fd)
            if found is None:
                continue
            peer, socket = self._touched[fd] = found
            try:
                if peer is _ADOPTED:
                    socket()
                    continue
                if peer == self._node:
                    *source, frame = _receive_all(socket)
                    sender = source[0] if source else peer
                elif peer:
                    sender, frame = peer, socket.recv(_DONTWAIT)
                else:
                    sender = socket.recv(_DONTWAIT)
                    frame = socket.recv(_DONTWAIT)
                    self._dialled_us[sender] = True
            except zmq.Again:
                continue
            deliver(sender, frame)

    def take_some(self, deliver: Deliver, *, of_all: bool) -> None:
        """Take some frames of each socket that may hold one whose edge is gone; those that hold more stay touched.

        Args:
            of_all: look at every socket.
        """
        self.take_seen(deliver)
        touched = dict(self._by_fd if of_all else self._touched)
        self._touched.clear()
        for fd, (peer, socket) in touched.items():
            if not self._drain(peer, socket, deliver, SOME_FRAMES) and fd in self._by_fd:
                self._touched[fd] = (peer, socket)

    def drain_touched(self, deliver: Deliver) -> None:
        """Drain what was sent on or seen readable since the last drain; nothing else can have lost its edge."""
        self.take_seen(deliver)
        touched = self._touched
        while touched:
            _, (peer, socket) = touched.popitem()
            self._drain(peer, socket, deliver)

    @property
    def touched(self) -> bool:
        """Whether a socket may hold a frame whose edge is gone: drain before sleeping."""
        return bool(self._touched)

    def drain(self, deliver: Deliver) -> None:
        """Hand on every frame that is there, until each socket says EAGAIN."""
        self._touched.clear()
        self._seen.clear()
        for peer, socket in list(self._by_fd.values()):
            self._drain(peer, socket, deliver)
        self.drain_touched(deliver)  # who drained an adopted one may have touched another

    def _drain(self, peer: PeerID, socket: Any, deliver: Deliver, frames_max: int = ALL_FRAMES) -> bool:
        """Hand on what is there, `frames_max` at most; returns whether that was all."""
        if peer is _ADOPTED:
            socket()
            return True
        item = [(socket, _IN)]
        for _ in range(frames_max):
            if socket.closed or not _readable(item, 0):
                return True
            if peer == self._node:
                *source, frame = _receive_all(socket)
                deliver(source[0] if source else peer, frame)
            elif peer:
                deliver(peer, socket.recv(_DONTWAIT))
            else:
                sender = socket.recv(_DONTWAIT)
                self._dialled_us[sender] = True
                deliver(sender, socket.recv(_DONTWAIT))
        return False

    def descriptors(self) -> list[int]:
        """Return the descriptors to sleep on: edge-triggered, so drain before each sleep."""
        self.changed = False
        return list(self._by_fd)

    def close(self, linger_ms: int = CLOSE_LINGER_MS) -> None:
        """Close everything; waits `linger_ms` at most for what was sent."""
        self.before_close()
        for peer, socket in self._by_fd.values():
            if peer is not _ADOPTED:
                socket.close(linger_ms)
        self._context.term()


def new_context(io_threads: int = 1, sockets_max: int = SOCKETS_MAX) -> Any:
    """Return a context for sockets that never keep a process from ending."""
    context = zmq.Context(io_threads=io_threads)
    context.set(_BLOCKY, 0)
    context.set(_MAX_SOCKETS, sockets_max)
    return context


class NodeSocket:
    """The node's ROUTER, which all clients of the host dial.

    Args:
        context: of another such socket, which closes later; None: one of its own.
    """

    def __init__(self, path: str, context: Any = None) -> None:
        self.context = new_context() if context is None else context
        self._owns_context = context is None
        self._router = _tune(self.context.socket(zmq.ROUTER))
        self._router.router_handover = True
        self._router.router_mandatory = True
        self._router.bind(f"ipc://{path}")

    def fileno(self) -> int:
        """Return the descriptor to sleep on: edge-triggered, so drain before each sleep."""
        descriptor: int = self._router.getsockopt(zmq.FD)
        return descriptor

    def send(self, to: PeerID, frame: bytes) -> None:
        """Send one frame; to a client that is gone it is lost."""
        with contextlib.suppress(zmq.ZMQError):
            _send(self._router, to, _MORE)
            _send(self._router, frame, _DONTWAIT)

    def relay(self, to: PeerID, source: PeerID, frame: bytes) -> None:
        """Hand a client what a peer on another host sent it."""
        with contextlib.suppress(zmq.ZMQError):
            _send(self._router, to, _MORE)
            _send(self._router, source, _MORE)
            _send(self._router, frame, _DONTWAIT)

    def drain(self, deliver: Deliver, forward: Callable[[PeerID, PeerID, bytes], None], frames_max: int = 1024) -> bool:
        """Hand on what is there, to us or (source, to, frame) to other hosts; returns whether more may be waiting."""
        router = self._router
        item = [(router, _IN)]
        for _ in range(frames_max):
            if not _readable(item, 0):
                return False
            parts = router.recv_multipart(_DONTWAIT)
            if len(parts) == 2:
                deliver(parts[0], parts[1])
            elif len(parts) == 3:
                forward(parts[0], parts[1], parts[2])
        return True

    def close(self) -> None:
        """Close at once."""
        self._router.close(linger=0)
        if self._owns_context:
            self.context.term()
