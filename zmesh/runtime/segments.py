"""The node's side of shared memory: a descriptor of every segment, the ledger, and the channel (runtime/store.py).

When a segment is dropped, the core decides.
"""

import contextlib
import fcntl
import os
import secrets
import socket
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import msgpack

from zmesh.runtime.store import SEALS, lift_descriptor_limit, receive
from zmesh.wire.ids import PeerID

GUEST_PIECE_BYTES = 512 * 1024  # of a segment in one message of a guest


@dataclass(slots=True, eq=False)
class _Segment:
    fd: int
    size: int
    producer: PeerID


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    peer: PeerID = b""  # empty until it said hello


class SegmentServer:
    """The node's side: a descriptor of every segment, and the ledger. Loop thread only; never blocks, never raises.

    Poll `filenos()` for reading and call `handle`. Only processes of the same user are served, and one that breaks the
    rules is cut off. A client's segments outlive it: the core says when to `drop` them.

    Args:
        path: where to listen, in a private directory.
        capacity_bytes: the quota for all segments and reserved bytes together.
        close: called with the descriptors of dropped segments. The last close of one frees its pages, which takes
            time: a node has its helper thread do it.

    Attributes:
        used_bytes: what is booked now.
        wants_trim: somebody was refused since this was last set to False: ask all clients to trim.
    """

    def __init__(self, path: str, capacity_bytes: int, close: Callable[[int], None] = os.close) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.wants_trim = False
        lift_descriptor_limit()
        self._path = path
        self._close_fd = close
        self._segments: dict[int, _Segment] = {}  # {id: segment}
        self._produced: dict[PeerID, dict[int, None]] = {}  # {producer: its segments}; only with at least one
        self._connections: dict[int, _Connection] = {}  # {descriptor: client}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(path)
        self._listener.listen(1024)

    # The ledger.

    def reserve(self, nbytes: int) -> bool:
        """Book bytes that lie elsewhere (inline values of shared objects); returns whether they fit."""
        if self.used_bytes + nbytes > self.capacity_bytes:
            self.wants_trim = True
            return False
        self.used_bytes += nbytes
        return True

    def release(self, nbytes: int) -> None:
        """Undo a `reserve`."""
        assert nbytes <= self.used_bytes, "more released than reserved"
        self.used_bytes -= nbytes

    def adopt(self, segment: int, fd: int, producer: PeerID) -> bool:
        """Take a memfd into the ledger, keeping a duplicate of `fd`; returns whether it fits."""
        size = os.fstat(fd).st_size
        kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        if not self.reserve(size):
            os.close(kept)
            return False
        self._segments[segment] = _Segment(kept, size, producer)
        self._produced.setdefault(producer, {})[segment] = None
        return True

    def make(self, size: int, producer: PeerID, segment: int = 0) -> tuple[int, int]:
        """Make a segment of our own, without pages yet; returns (segment, descriptor), -1 if it does not fit."""
        segment = segment or secrets.randbits(63)
        fd = os.memfd_create("zmesh", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        if self.adopt(segment, fd, producer):
            return segment, fd
        os.close(fd)
        return 0, -1

    def descriptor(self, segment: int) -> int | None:
        """Return the node's own descriptor of a segment, open until it is dropped."""
        return self._segments[segment].fd if segment in self._segments else None

    def drop(self, segments: Collection[int]) -> None:
        """Close the node's descriptors; the pages go with the last mapping. Unknown segments are no error."""
        for segment in segments:
            found = self._segments.pop(segment, None)
            if found is not None:
                self.used_bytes -= found.size
                theirs = self._produced[found.producer]
                del theirs[segment]
                if not theirs:
                    del self._produced[found.producer]
                self._close_fd(found.fd)

    def segments_of(self, peer: PeerID) -> list[int]:
        """Return the segments this peer produced, oldest first."""
        return list(self._produced.get(peer, ()))

    def drop_unused_of(self, peer: PeerID, used: Collection[int]) -> None:
        """A producer died: drop what it kept for later, which is all that no object lies in."""
        self.drop([segment for segment in self.segments_of(peer) if segment not in used])

    # Guests, who have no channel: their words come over the link, and bytes with them.

    def serve_guest(self, peer: PeerID, data: bytes) -> bytes:
        """Carry out a request of a guest; returns the answer, b"" for none. See runtime/guest_store.py."""
        try:
            number, verb, *rest = msgpack.unpackb(data)
            answer = self._of_guest(peer, verb, rest)
        except Exception:  # msgpack raises many; what makes no sense has no answer
            return b""
        packed: bytes = msgpack.packb([number, *answer]) if number else b""
        return packed

    def _of_guest(self, peer: PeerID, verb: str, rest: list[Any]) -> list[Any]:
        match verb, rest:
            case "make", [int(segment), int(size)] if segment not in self._segments and 0 < size <= self.capacity_bytes:
                _, fd = self.make(size, peer, segment)
                if fd < 0:
                    return [self.used_bytes, self.capacity_bytes, len(self._segments)]
                os.close(fd)
                return []
            case "make", _:
                return [self.used_bytes, self.capacity_bytes, len(self._segments)]
            case "write", [int(segment), int(at), bytes(piece)] if at >= 0:
                found = self._segments[segment]
                if found.producer != peer or at + len(piece) > found.size:
                    raise ValueError("not its own, or beyond its end")
                os.pwrite(found.fd, piece, at)
                return []
            case "read", [int(segment), int(at), int(nbytes)]:
                known = self._segments.get(segment)
                if known is None or not 0 <= at <= at + nbytes <= known.size or nbytes > GUEST_PIECE_BYTES:
                    return []
                return [os.pread(known.fd, nbytes, at)]
            case "unregister", [list(segments)]:
                mine = self._produced.get(peer, {})
                self.drop([segment for segment in segments if segment in mine])
                return []
        raise ValueError("no such request")

    # The channel.

    def filenos(self) -> list[int]:
        """Return the descriptors to poll: the listener, and every connection."""
        return [self._listener.fileno(), *self._connections]

    def listens(self, fd: int) -> bool:
        """Whether a descriptor is the listener: what comes there are new connections."""
        return fd == self._listener.fileno()

    def serves(self, fd: int) -> bool:
        """Whether a descriptor is that of a connection that is still open."""
        return fd in self._connections

    def handle(self, fd: int) -> list[tuple[str, int]]:
        """Serve what came in on a descriptor; one that is not ours any more is no error.

        Returns:
            ("opened", fd) for each descriptor to poll from now on, ("closed", fd) for one not to poll any more.
        """
        if fd == self._listener.fileno():
            return self._accept()
        connection = self._connections.get(fd)
        if connection is None:
            return []
        try:
            data, fds, flags = receive(connection.socket)
        except BlockingIOError:
            return []
        except OSError:
            data, fds, flags = b"", [], 0
        try:
            if data and not flags & socket.MSG_TRUNC:
                self._serve(connection, data, fds)
                return []
        except (OSError, ValueError, TypeError):
            pass  # It broke the rules, or reads no answers, or is gone.
        finally:
            for passed in fds:
                os.close(passed)
        self._connections.pop(fd).socket.close()
        return [("closed", fd)]

    def _accept(self) -> list[tuple[str, int]]:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return []  # it is gone again, or this process has too many open files
        client.setblocking(False)
        _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            client.close()
            return []
        self._connections[client.fileno()] = _Connection(client)
        return [("opened", client.fileno())]

    def _serve(self, connection: _Connection, data: bytes, fds: list[int]) -> None:
        """Carry out one request; what is added to `fds` is closed after. Raises ValueError if it makes no sense."""
        number, verb, subject = msgpack.unpackb(data)
        facts: list[int] = []
        passed: list[int] = []
        match verb:
            case "hello" if type(subject) is bytes and subject and not connection.peer:
                connection.peer = subject
                facts = [self.capacity_bytes]
            case "register" if type(subject) is int and subject not in self._segments and connection.peer:
                if fds and fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & SEALS != SEALS:
                    raise ValueError("a segment that can shrink")
                # If this process has too many open files, the kernel dropped it.
                if not fds or not self.adopt(subject, fds[0], connection.peer):
                    facts = [self.used_bytes, self.capacity_bytes, len(self._segments)]
            case "unregister" if type(subject) is list:
                mine = self._produced.get(connection.peer, {})
                self.drop([segment for segment in subject if type(segment) is int and segment in mine])
                return
            case "open" if type(subject) is int and connection.peer:
                found = self._segments.get(subject)
                if found is not None:
                    # A descriptor that is open for writing cannot be made read-only, but opened anew it can.
                    passed.append(os.open(f"/proc/self/fd/{found.fd}", os.O_RDONLY | os.O_CLOEXEC))
                    fds += passed
                    facts = [found.size]
            case _:
                raise ValueError("no such request")
        socket.send_fds(connection.socket, [msgpack.packb([number, *facts])], passed)

    def close(self) -> None:
        """Stop listening, cut all clients off, close all descriptors."""
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        self.drop(list(self._segments))
