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
from time import monotonic
from typing import Any

import msgpack

from zmesh.core.spilling import (
    FULL,
    GONE,
    RESIDENT,
    AskUnmap,
    DropFile,
    Evict,
    Order,
    ReadBack,
    Spilling,
    WriteOut,
)
from zmesh.runtime.spill_files import SpillDisk, SpillFile
from zmesh.runtime.store import SEALS, lift_descriptor_limit, receive
from zmesh.wire.ids import PeerID

LOST, NO_ROOM = -1, -2  # instead of a descriptor: there are no such bytes, or no room to bring them back from disk
GUEST_PIECE_BYTES = 512 * 1024  # of a segment in one message of a guest


@dataclass(slots=True, eq=False)
class _Segment:
    fd: int  # -1 while its bytes lie on disk only
    size: int
    producer: PeerID
    file: SpillFile | None = None
    unwritten: int = 0  # bytes a guest has not sent yet


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    peer: PeerID = b""  # empty until it said hello
    over: bool = False  # its process is gone; what it said before may still be read


class SegmentServer:
    """The node's side: a descriptor of every segment, and the ledger. Loop thread only; never blocks, never raises.

    Poll `filenos()` for reading and call `handle`. Only processes of the same user are served, and one that breaks the
    rules is cut off. A client's segments outlive it: the core says when to `drop` them. What does not fit waits for
    others to be spilled, if there is a disk; its answer comes later.

    Args:
        path: where to listen, in a private directory.
        capacity_bytes: the quota for all segments and reserved bytes together.
        close: called with the descriptors of dropped segments. The last close of one frees its pages, which takes
            time: a node has its helper thread do it.
        disk: where cold segments go; None: nowhere.
        disk_bytes_max: how much may lie there.
        unmap: asks a process to unmap segments: (peer, segments). It answers "closed" or "busy" over its channel.
    """

    def __init__(
        self,
        path: str,
        capacity_bytes: int,
        close: Callable[[int], None] = os.close,
        *,
        disk: SpillDisk | None = None,
        disk_bytes_max: int = 0,
        unmap: Callable[[PeerID, list[int]], None] = lambda peer, segments: None,
    ) -> None:
        lift_descriptor_limit()
        self._path = path
        self._close_fd = close
        self._disk = disk
        self._unmap = unmap
        self._orders: list[Order] = []
        self.ledger = Spilling(capacity_bytes, disk_bytes_max if disk is not None else 0, self._orders)
        self._segments: dict[int, _Segment] = {}  # {id: segment}
        self._produced: dict[PeerID, dict[int, None]] = {}  # {producer: its segments}; only with at least one
        self._parked: dict[int, tuple[int, int, PeerID]] = {}  # {id: (request, descriptor, producer)} waits for room
        self._connections: dict[int, _Connection] = {}  # {descriptor: client}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(path)
        self._listener.listen(1024)

    # The ledger.

    @property
    def used_bytes(self) -> int:
        """Bytes booked in memory now."""
        return self.ledger.used_bytes

    def reserve(self, nbytes: int) -> bool:
        """Book bytes that lie elsewhere (inline values of shared objects); returns whether they fit."""
        fits = self.ledger.reserve(nbytes, monotonic())
        self._carry_out()
        return fits

    def release(self, nbytes: int) -> None:
        """Undo a `reserve`."""
        self.ledger.release(nbytes, monotonic())
        self._carry_out()

    def make(
        self, size: int, producer: PeerID, then: Callable[[int, str], None], *, segment: int = 0, mapped: bool = False
    ) -> None:
        """Make a segment of our own, without pages yet, held in memory until `fill` says that it is full.

        Args:
            then: called with (segment, ""), or with (0, why not); at once, or when there is room.
            mapped: `producer` maps it and answers `unmap`.
        """
        segment = segment or secrets.randbits(63)

        def granted(why: str, text: str) -> None:
            if why:
                then(0, text or why)
                return
            try:
                fd = self._memory(size)
            except OSError as error:
                then(0, error.strerror or FULL)
                return
            self._add(segment, _Segment(fd, size, producer, unwritten=size), [producer] if mapped else [], held=True)
            then(segment, "")

        self.ledger.room(size, producer, monotonic(), granted)
        self._carry_out()

    @staticmethod
    def _memory(size: int) -> int:
        fd = os.memfd_create("zmesh", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        return fd

    def _add(self, segment: int, made: _Segment, mappers: list[PeerID], *, held: bool = False) -> None:
        self._segments[segment] = made
        self._produced.setdefault(made.producer, {})[segment] = None
        self.ledger.add(segment, made.size, mappers, monotonic(), held=held)

    def fill(self, segment: int) -> None:
        """A segment of our own holds its object now."""
        self.ledger.unhold(segment, monotonic())
        self._carry_out()

    def reuse(self, segment: int) -> int:
        """Take a full segment of our own that nobody needs for the next object; returns a descriptor, to be closed."""
        self.ledger.hold(segment)
        return os.dup(self._segments[segment].fd)

    def open(self, segment: int, peer: PeerID, then: Callable[[int], None]) -> None:
        """Have `then` called with a descriptor of a segment, ours to lend and open until it is dropped.

        Or with LOST or NO_ROOM. At once, or when it is back from disk. `peer` maps it and answers `unmap`; b"": nobody
        does.
        """

        def opened(why: str, text: str) -> None:
            del text
            then(self._segments[segment].fd if not why else LOST if why == GONE else NO_ROOM)

        self.ledger.open(segment, peer, monotonic(), opened)
        self._carry_out()

    def closed(self, peer: PeerID, segments: Collection[int], busy: Collection[int]) -> None:
        """A process of ours has no mapping of these any more, but of the busy ones it has."""
        for segment in segments:
            self.ledger.closed(peer, segment, 0, monotonic())
        for segment in busy:
            self.ledger.busy(peer, segment, monotonic())
        self._carry_out()

    def drop(self, segments: Collection[int]) -> None:
        """Close the node's descriptors; the pages go with the last mapping. Unknown segments are no error."""
        for segment in segments:
            self._carry_out()  # what was ordered so far may be about this one
            found = self._segments.pop(segment, None)
            if found is not None:
                theirs = self._produced[found.producer]
                del theirs[segment]
                if not theirs:
                    del self._produced[found.producer]
                if self.ledger.drop(segment, monotonic()):
                    self._close(found)
        self._carry_out()

    def _close(self, segment: _Segment) -> None:
        if segment.fd >= 0:
            self._close_fd(segment.fd)
            segment.fd = -1
        if segment.file is not None:
            self._close_fd(segment.file.fd)
            segment.file = None

    def segments_of(self, peer: PeerID) -> list[int]:
        """Return the segments this peer produced, oldest first."""
        return list(self._produced.get(peer, ()))

    def drop_unused_of(self, peer: PeerID, used: Collection[int]) -> None:
        """A producer died: drop what it kept for later, which is all that no object lies in, and what it waits for."""
        for connection in self._connections.values():
            connection.over = connection.over or connection.peer == peer
        self.ledger.gone(peer, monotonic())
        self.drop([segment for segment in self.segments_of(peer) if segment not in used])

    # The disk.

    def _carry_out(self) -> None:
        """Do what the ledger asks for."""
        while self._orders:
            order = self._orders.pop(0)
            if isinstance(order, AskUnmap):
                self._unmap(order.peer, order.segments)
                continue
            found = self._segments[order.segment]
            if isinstance(order, WriteOut):
                self._write(order.segment, found, order.nbytes)
            elif isinstance(order, ReadBack):
                self._read(order.segment, found)
            elif isinstance(order, Evict):
                self._close_fd(found.fd)
                found.fd = -1
            else:
                assert isinstance(order, DropFile)
                assert found.file is not None
                self._close_fd(found.file.fd)
                found.file = None

    def _write(self, segment: int, found: _Segment, nbytes: int) -> None:
        def done(file: SpillFile | None, error: str) -> None:
            found.file = file
            self.ledger.wrote(segment, 0 if file is None else file.file_bytes, error, monotonic())
            if not self.ledger.state(segment):
                self._close(found)

        assert self._disk is not None
        self._disk.write(found.fd, nbytes, done)

    def _read(self, segment: int, found: _Segment) -> None:
        def done(error: str, damaged: bool) -> None:
            self.ledger.restored(segment, error, monotonic(), damaged=damaged)
            state = self.ledger.state(segment)
            if not state:
                self._close(found)
            elif state != RESIDENT and found.fd >= 0:
                self._close_fd(found.fd)
                found.fd = -1

        assert self._disk is not None
        assert found.file is not None
        try:
            found.fd = self._memory(found.size)
        except OSError as error:
            done(f"the node cannot make a segment: {error.strerror}", False)
        else:
            self._disk.read(found.file, found.fd, done)

    def disk_filenos(self) -> list[int]:
        """Return what to poll besides `filenos`; call `disk_done` when it is readable."""
        return [] if self._disk is None else [self._disk.fileno()]

    def disk_done(self) -> None:
        """Take in what was written and read."""
        assert self._disk is not None
        self._disk.answers()
        self._carry_out()

    def due(self) -> float | None:
        """Return when to call `look`, if nothing happens before; monotonic seconds."""
        return self.ledger.due(monotonic())

    def look(self) -> None:
        """Time has passed."""
        self.ledger.look(monotonic())
        self._carry_out()

    # Guests, who have no channel: their words come over the link, and bytes with them.

    def serve_guest(self, peer: PeerID, data: bytes, answer: Callable[[bytes], None]) -> None:
        """Carry out a request of a guest; `answer` is called with the answer, now or later, or not at all.

        See runtime/guest_store.py.
        """
        try:
            number, verb, *rest = msgpack.unpackb(data)
            self._of_guest(peer, verb, rest, lambda facts: answer(msgpack.packb([number, *facts])) if number else None)
        except Exception:  # msgpack raises many; what makes no sense has no answer
            return

    def _of_guest(self, peer: PeerID, verb: str, rest: list[Any], answer: Callable[[list[Any]], None]) -> None:
        match verb, rest:
            case "make", [int(segment), int(size)] if segment not in self._segments and size > 0:
                self.make(size, peer, lambda made, why: answer([] if made else self._numbers(why)), segment=segment)
            case "make", _:
                answer(self._numbers(FULL))
            case "write", [int(segment), int(at), bytes(piece)] if at >= 0:
                found = self._segments[segment]
                if found.producer != peer or at + len(piece) > found.size or not found.unwritten:
                    raise ValueError("not its own, or beyond its end, or full")
                os.pwrite(found.fd, piece, at)
                found.unwritten = max(0, found.unwritten - len(piece))
                if not found.unwritten:
                    self.fill(segment)
                answer([])
            case "read", [int(segment), int(at), int(nbytes)]:
                known = self._segments.get(segment)
                if known is None or not 0 <= at <= at + nbytes <= known.size or nbytes > GUEST_PIECE_BYTES:
                    answer([])
                    return
                full = [b"", self.ledger.capacity_bytes]
                self.open(
                    segment,
                    b"",
                    lambda fd: answer([os.pread(fd, nbytes, at)] if fd >= 0 else full if fd == NO_ROOM else []),
                )
            case "unregister", [list(segments)]:
                mine = self._produced.get(peer, {})
                self.drop([segment for segment in segments if segment in mine])
            case _:
                raise ValueError("no such request")

    def _numbers(self, why: str) -> list[Any]:
        """Return what a refusal says; why the disk gave no room, if it did not."""
        ledger = self.ledger
        return [ledger.used_bytes, ledger.capacity_bytes, len(self._segments), "" if why == FULL else why]

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
        changed = self._handle(fd)
        self._carry_out()
        return changed

    def _handle(self, fd: int) -> list[tuple[str, int]]:
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
        if connection.peer:
            self._gone(connection.peer)
        return [("closed", fd)]

    def _gone(self, peer: PeerID) -> None:
        for segment, (_, _, producer) in list(self._parked.items()):
            if producer == peer:
                self._unpark(segment)
        self.ledger.gone(peer, monotonic())

    def _unpark(self, segment: int) -> None:
        """Forget a segment that waits for room."""
        request, kept, _ = self._parked.pop(segment)
        self.ledger.withdraw(request)
        os.close(kept)

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
        peer = connection.peer
        match verb:
            case "hello" if type(subject) is bytes and subject and not peer:
                connection.peer = subject
                self._answer(connection, [number, self.ledger.capacity_bytes])
            case "register" if type(subject) is int and subject not in self._segments and peer:
                if fds and fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & SEALS != SEALS:
                    raise ValueError("a segment that can shrink")
                self._register(connection, number, subject, fds)
            case "unregister" if type(subject) is list:
                mine = self._produced.get(peer, {})
                for segment in subject:
                    if segment in self._parked and self._parked[segment][2] == peer:
                        self._unpark(segment)
                self.drop([segment for segment in subject if type(segment) is int and segment in mine])
            case "open" if type(subject) is int and peer:
                self._open(connection, number, subject)
            case "closed" if type(subject) is list and peer:
                for segment, nbytes in subject:
                    self.ledger.closed(peer, segment, int(nbytes), monotonic())
            case "busy" if type(subject) is list and peer:
                self.closed(peer, (), subject)
            case _:
                raise ValueError("no such request")

    def _register(self, connection: _Connection, number: int, segment: int, fds: list[int]) -> None:
        """Book a client's segment, now or when there is room; what is not answered now is parked."""
        if connection.over:
            raise ValueError("nobody would ever drop it")
        if not fds or segment in self._parked:  # if this process has too many open files, the kernel dropped it
            self._answer(connection, [number, *self._numbers(FULL)])
            return
        kept = fcntl.fcntl(fds[0], fcntl.F_DUPFD_CLOEXEC, 0)
        size, producer = os.fstat(kept).st_size, connection.peer

        def granted(why: str, text: str) -> None:
            self._parked.pop(segment, None)
            if why:
                os.close(kept)
                self._answer(connection, [number, *self._numbers(text or why)])
            else:
                self._add(segment, _Segment(kept, size, producer), [producer])
                self._answer(connection, [number])

        request = self.ledger.room(size, producer, monotonic(), granted)
        if request:
            self._parked[segment] = (request, kept, producer)

    def _open(self, connection: _Connection, number: int, segment: int) -> None:
        """Hand over a read-only descriptor, now or when the segment is back from disk."""

        def opened(why: str, text: str) -> None:
            if why:
                self._answer(connection, [number, why, text])
                return
            found = self._segments[segment]
            try:
                # A descriptor that is open for writing cannot be made read-only, but opened anew it can.
                fd = os.open(f"/proc/self/fd/{found.fd}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                self._answer(connection, [number, FULL, f"the node cannot open it: {error.strerror}"])
                return
            self._answer(connection, [number, found.size], [fd])
            os.close(fd)

        self.ledger.open(segment, connection.peer, monotonic(), opened)

    @staticmethod
    def _answer(connection: _Connection, facts: list[Any], fds: Collection[int] = ()) -> None:
        """Send an answer. Who is gone, or reads no answers, is cut off."""
        try:
            socket.send_fds(connection.socket, [msgpack.packb(facts)], list(fds))
        except OSError:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening, cut all clients off, close all descriptors."""
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        for segment in list(self._parked):
            self._unpark(segment)
        self.drop(list(self._segments))
        if self._disk is not None:
            self._disk.close()
