"""Keepers as the node's process runs them: a socket for the workers that serve one, a timer, a log. Loop thread only.

A keeper (core/keeper.py) is a client like any other, only that its node is the process it lives in: what the two say to
each other is handed over. Every input is carried through at once, until the socket says EAGAIN: so nothing that wakes
the loop is ever lost.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

from zmesh.core import effects as fx
from zmesh.core.keeper import KeeperCore
from zmesh.core.node import NodeCore
from zmesh.core.timers import Timers
from zmesh.exceptions import RemoteProtocolError, UnknownWordError
from zmesh.runtime.forkserver import describe_status
from zmesh.runtime.rundir import DETACHED_LOGS, RunDir
from zmesh.runtime.sockets import NodeSocket
from zmesh.runtime.watch import Watch
from zmesh.wire.checks import checked
from zmesh.wire.codec import encode
from zmesh.wire.ids import NODE_ID_BYTES, PEER_ID_BYTES, PeerID, node_peer

LOG_BYTES_MAX = 4 << 20  # of what detached actors print; then a new file is begun, and the one before last goes


class DetachedLog:
    """What detached actors print: their programs are gone. Two files at most, as they lie in memory.

    Args:
        directory: of the node.
    """

    def __init__(self, directory: str, bytes_max: int = LOG_BYTES_MAX) -> None:
        self._path, self._old = (os.path.join(directory, name) for name in DETACHED_LOGS)
        self._bytes_max = bytes_max

    def write(self, text: str) -> None:
        """Append whole lines. What cannot be written is lost: nobody waits for it."""
        with contextlib.suppress(OSError):
            with open(self._path, "a", encoding="utf-8", errors="replace") as file:
                file.write(text)
                full = file.tell() >= self._bytes_max
            if full:
                os.replace(self._path, self._old)


class Keepers:
    """The keepers of one node.

    Args:
        core: returns the node's.
        node_socket: the node's, through which other clients of this host are reached.
        watch: what the node's loop sleeps on.
    """

    def __init__(
        self,
        run_dir: RunDir,
        timers: Timers,
        core: Callable[[], NodeCore],
        node_socket: NodeSocket,
        watch: Watch,
    ) -> None:
        self._run_dir = run_dir
        self._timers = timers
        self._core = core
        self._node_socket = node_socket
        self._watch = watch
        self._log = DetachedLog(run_dir.path)
        self._all: dict[PeerID, _Keeper] = {}

    def __contains__(self, peer: PeerID) -> bool:
        return peer in self._all

    def start(self, effect: fx.StartKeeper) -> None:
        """Have a keeper live here."""
        socket = NodeSocket(self._run_dir.socket_of(effect.peer), self._node_socket.context)
        keeper = self._all[effect.peer] = _Keeper(effect.peer, socket, self._timers, self._core, self._log.write)
        self._watch.add(socket.fileno(), lambda fd: keeper.settle())

    def stop(self, effect: fx.StopKeeper) -> None:
        """Forget one that keeps nothing any more."""
        keeper = self._all.pop(effect.peer)
        self._watch.remove(keeper.socket.fileno())
        keeper.close()
        with contextlib.suppress(OSError):
            os.unlink(self._run_dir.socket_of(effect.peer))

    def deliver(self, to: PeerID, source: PeerID, message: Any) -> None:
        """The node says something to a keeper."""
        self._all[to].receive(source, message)

    def relay(self, to: PeerID, source: PeerID, frame: bytes) -> None:
        """A peer on another host says something to a keeper, or to another client of this host."""
        if to in self._all:
            self._all[to].hear(source, frame)
        else:
            self._node_socket.relay(to, source, frame)

    def close(self) -> None:
        """Close everything at once."""
        for keeper in self._all.values():
            keeper.close()


class _Keeper:
    """One keeper: its core, and what carries that out."""

    def __init__(
        self,
        peer: PeerID,
        socket: NodeSocket,
        timers: Timers,
        node: Callable[[], NodeCore],
        log: Callable[[str], None],
    ) -> None:
        self._peer = peer
        self.socket = socket
        self._timers = timers
        self._node = node
        self._here = peer[:NODE_ID_BYTES]
        self._settling = False
        self._alarm = 0
        self._core = KeeperCore(peer, [], Timers(), describe_status)
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            fx.Send: self._send,
            fx.Disconnect: lambda effect: None,  # it dials nobody
            fx.Show: lambda effect: log(effect.text),
            fx.Warn: lambda effect: print(f"zmesh keeper: {effect.text}", file=sys.stderr, flush=True),
        }

    def receive(self, source: PeerID, message: Any) -> None:
        """Take one message."""
        self._core.receive(source, message, monotonic())
        self.settle()

    def hear(self, source: PeerID, frame: bytes) -> None:
        """Take one frame of another process, which may say anything."""
        try:
            message = checked(frame)
        except RemoteProtocolError as error:
            print(f"zmesh keeper: {source.hex()}: {error}", file=sys.stderr, flush=True)
            if not isinstance(error, UnknownWordError):
                self._node().expel(source, str(error), monotonic())
            return
        if self._core.hears(source, message):
            self.receive(source, message)

    def _hear_here(self, source: PeerID, frame: bytes) -> None:
        if len(source) == PEER_ID_BYTES and source[:NODE_ID_BYTES] == self._here and source != node_peer(self._here):
            self.hear(source, frame)

    def settle(self) -> None:
        """Carry out what is to be done and take in what came, until there is nothing left of either."""
        if self._settling:
            return  # whoever settles already sees to it
        self._settling = True
        more = True
        while more or self._core.effects:
            effects, self._core.effects[:] = self._core.effects[:], []
            for effect in effects:
                self._handlers[type(effect)](effect)
            more = self.socket.drain(self._hear_here, lambda source, to, frame: None)
        self._settling = False
        self._timers.cancel(self._alarm)
        due = self._core.timers.next_deadline()
        self._alarm = self._timers.set(due, self._ring) if due is not None else 0

    def _ring(self, now: float) -> None:
        self._core.timers.tick(now)
        self.settle()

    def _send(self, effect: fx.Send) -> None:
        to, now = effect.to, monotonic()
        if to == node_peer(self._here):
            self._node().receive(self._peer, effect.message, now)
        elif to[:NODE_ID_BYTES] == self._here:
            self.socket.send(to, encode(effect.message))
        else:
            self._node().forward(self._peer, to, encode(effect.message), now)

    def close(self) -> None:
        """Close its socket, and ring no more."""
        self._timers.cancel(self._alarm)
        self.socket.close()
