"""The ZeroMQ sockets of a process: the one place that knows zmq.

On a host all links are ipc:// in a private directory, so the file system keeps strangers out. A client binds a ROUTER
(thieves dial in) and dials its node and its victims with DEALERs. Never blocks in a send; loses nothing while both
ends live, as flow is bounded by credit, not by high-water marks. Not thread-safe: its owner holds one lock.

Source: traps and settings in docs/design.md, "Sockets".
"""

import contextlib
from collections.abc import Callable
from typing import Any

import zmq

from zmesh.wire.ids import PeerID

_IN = zmq.POLLIN
_EVENTS = zmq.EVENTS
_DONTWAIT = zmq.DONTWAIT
_MORE = zmq.SNDMORE | zmq.DONTWAIT

CLOSE_LINGER_MS = 500  # last results still leave a process that ends in good order

Deliver = Callable[[PeerID, bytes], None]


def _tune(socket: Any) -> Any:
    socket.sndhwm = 0
    socket.rcvhwm = 0
    socket.linger = CLOSE_LINGER_MS
    return socket


class ClientSockets:
    """The sockets of a driver or worker.

    Args:
        me: PeerID; the routing id of every link this process dials.
        node: PeerID of the node.
        path_of: returns the ipc path of a peer on this host.
    """

    def __init__(self, me: PeerID, node: PeerID, path_of: Callable[[PeerID], str]) -> None:
        self._me = me
        self._node = node
        self._path_of = path_of
        self._context = zmq.Context(io_threads=1)
        self._context.blocky = False
        self._node_link = self._dial(node)
        self._router: Any = None
        self._links: dict[PeerID, Any] = {}
        self.changed = True  # the list of descriptors is not what it was

    def _dial(self, peer: PeerID) -> Any:
        link = _tune(self._context.socket(zmq.DEALER))
        link.routing_id = self._me
        # A peer's address is never used again: dialling a dead one for ever would only wake the I/O thread.
        link.reconnect_ivl = -1
        link.connect(f"ipc://{self._path_of(peer)}")
        return link

    def listen(self) -> None:
        """Bind the ROUTER that thieves dial; a worker does it with the first task it submits."""
        if self._router is None:
            router = _tune(self._context.socket(zmq.ROUTER))
            router.router_handover = True
            router.router_mandatory = True
            router.bind(f"ipc://{self._path_of(self._me)}")
            self._router = router
            self.changed = True

    def connect(self, peer: PeerID) -> None:
        """Open a link to a victim."""
        if peer not in self._links:
            self._links[peer] = self._dial(peer)
            self.changed = True

    def disconnect(self, peer: PeerID) -> None:
        """Close the link to a victim; what was sent still leaves."""
        link = self._links.pop(peer, None)
        if link is not None:
            link.close()
            self.changed = True

    def send(self, to: PeerID, frame: bytes) -> None:
        """Send one frame; to a peer that is gone it is lost, which its death notice explains to the core."""
        link = self._node_link if to == self._node else self._links.get(to)
        if link is not None:
            link.send(frame, _DONTWAIT)
        elif self._router is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._router.send(to, _MORE)
                self._router.send(frame, _DONTWAIT)

    def drain(self, deliver: Deliver) -> bool:
        """Hand on every frame that is there, until each socket says EAGAIN. Returns whether there was any."""
        found = False
        router = self._router
        if router is not None:
            while router.getsockopt(_EVENTS) & _IN:
                found = True
                peer = router.recv(_DONTWAIT)
                deliver(peer, router.recv(_DONTWAIT))
        link = self._node_link
        while link.getsockopt(_EVENTS) & _IN:
            found = True
            deliver(self._node, link.recv(_DONTWAIT))
        if self._links:
            for peer, link in list(self._links.items()):
                while not link.closed and link.getsockopt(_EVENTS) & _IN:
                    found = True
                    deliver(peer, link.recv(_DONTWAIT))
        return found

    def descriptors(self) -> list[int]:
        """Return the descriptors to sleep on: edge-triggered, so drain before each sleep."""
        self.changed = False
        sockets = [self._node_link, *self._links.values()]
        if self._router is not None:
            sockets.append(self._router)
        return [socket.getsockopt(zmq.FD) for socket in sockets]

    def close(self, linger_ms: int = CLOSE_LINGER_MS) -> None:
        """Close everything; waits `linger_ms` at most for what was sent."""
        sockets = [self._node_link, *self._links.values()]
        if self._router is not None:
            sockets.append(self._router)
        for socket in sockets:
            socket.close(linger=linger_ms)
        self._context.term()


class NodeSocket:
    """The node's ROUTER, which all clients of the host dial."""

    def __init__(self, path: str) -> None:
        self._context = zmq.Context(io_threads=1)
        self._context.blocky = False
        self._router = _tune(self._context.socket(zmq.ROUTER))
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
            self._router.send(to, _MORE)
            self._router.send(frame, _DONTWAIT)

    def drain(self, deliver: Deliver, frames_max: int = 1024) -> bool:
        """Hand on what is there; returns whether more may be waiting."""
        router = self._router
        for _ in range(frames_max):
            if not router.getsockopt(_EVENTS) & _IN:
                return False
            parts = router.recv_multipart(_DONTWAIT)
            if len(parts) == 2:
                deliver(parts[0], parts[1])
        return True

    def close(self) -> None:
        """Close at once."""
        self._router.close(linger=0)
        self._context.term()
