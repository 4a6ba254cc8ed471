"""Shared memory of a host: segments without names, the client's side (`Store`) and the node's (`SegmentServer`).

A segment is a memfd that its producer fills and others map read-only. Descriptors travel over one AF_UNIX channel per
client (SCM_RIGHTS); the node keeps one of each segment and the ledger. There is no name, so no kill -9 leaves anything
behind. When a segment may be written again or dropped is the core's decision; how bytes lie in it is serialization.py's.

Fresh pages cost ten times a copy, so a producer keeps its segments ("slabs") mapped and writes them again, by size class.

    client to node    [n, "hello", peer]          [n, "ok", capacity]
                      [n, "register", segment]+fd [n, "ok"] or [n, "full", used, capacity, segments] or [n, "files", limit]
                      [n, "open", segment]        [n, "ok", size]+fd or [n, "lost"]
                      [0, "unregister", [segment]]  no answer

Source: first touch against touched pages in docs/design.md, "Objects"; memfd_create(2), unix(7).
"""

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import resource
import secrets
import socket
import stat
import struct
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import msgpack

from zmesh.exceptions import LocalProtocolError, NodeDiedError, NotRunningError, ObjectLostError, StoreFullError
from zmesh.wire.ids import PeerID

SLAB_BYTES_MIN = 64 * 1024
FREE_SLABS_MAX = 1024  # a process's slabs kept for later; the oldest goes back to the node beyond
IDLE_MAPPINGS_MAX = 64  # mappings without a view, kept for the next object in the same segment
IDLE_SHARE = 4  # they hold at most capacity / 4
FULL_WAIT_S = 1.0  # how long others are given to let go of what they keep for later
CHANNEL_TIMEOUT_S = 60.0  # a node that is silent for so long will not come back
DESCRIPTORS_WANTED = 65_536  # each mapping and each segment takes one; 1024, the usual limit, is soon reached

_MESSAGE_BYTES_MAX = 64 * 1024
_UNREGISTER_MAX = 4096  # segments a message: 9 bytes each
_MESSAGES_MAX = 64  # handled per call, so that one client cannot occupy the node
# A signal makes the kernel undo and restart an allocation: a profiler's timer would never let a big one end.
_ALLOCATE_STEP_BYTES = 16 * 1024 * 1024
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # a segment that shrinks is SIGBUS for its readers
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


def class_bytes(nbytes: int) -> int:
    """Return the size of the slab for `nbytes`: 64 KiB * (1, 1.25, 1.5, 1.75) * 2^k; at most a fifth is left unused."""
    if nbytes <= SLAB_BYTES_MIN:
        return SLAB_BYTES_MIN
    top: int = 1 << ((nbytes - 1).bit_length() - 1)
    quarter = top >> 2
    return (
        top - -(nbytes - top) // quarter * quarter
        if (nbytes - top) % quarter == 0
        else (top + ((nbytes - top) // quarter + 1) * quarter)
    )


def _lift_descriptor_limit() -> int:
    """Raise this process's soft limit of open files towards the hard one; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def _full(text: str, needed: int, free: int, capacity: int) -> StoreFullError:
    error = StoreFullError(text)
    error.__dict__.update(needed_bytes=needed, free_bytes=free, capacity_bytes=capacity)
    return error


@dataclass(slots=True, eq=False)
class Slab:
    """A segment of this process's own.

    Attributes:
        segment: its id, 63 random bits.
        size: bytes, of its class.
        view: (size,) bytes, writable, page-aligned, shared with all readers.
    """

    segment: int
    size: int
    view: memoryview
    free: bool = False


@dataclass(slots=True, eq=False)
class Mapping:
    """A segment as this process reads it.

    Attributes:
        segment: its id.
        size: bytes.
        memory: (size,) bytes, read-only, page-aligned; stays mapped while any view of it lives.
        pins: views that `Store.view` gave out and that have not ended.
    """

    segment: int
    size: int
    memory: Any
    pins: int = 0


class Store:
    """A client's access to the shared memory of its host. Any thread; no call runs user code.

    Calls block while the node answers, some 100 microseconds, and only where noted.

    Args:
        channel_path: where the node's SegmentServer listens.
        peer: PeerID of this process.

    Raises:
        NodeDiedError: nobody listens there, or the node went away, in any call that talks to it.
        LocalProtocolError: in any call, in a forked child: the parent's memory is not the child's to write.
        NotRunningError: in any call after `close`.
    """

    def __init__(self, channel_path: str, peer: PeerID) -> None:
        _lift_descriptor_limit()
        # Guards the tables. A finalizer never takes it: it may run inside it.
        self._lock = threading.Lock()
        self._slabs: dict[int, Slab] = {}  # {segment: slab of this process, in use or free}
        self._free: dict[int, list[Slab]] = {}  # {size: free slabs, last used last}
        self._free_count = 0
        self._pinned: dict[int, Mapping] = {}  # {segment: mapping with views}
        self._idle: OrderedDict[int, Mapping] = OrderedDict()  # {segment: mapping without}, last used last
        self._idle_bytes = 0
        self._unpinned: deque[int] = deque()  # segments of views that ended, from finalizers
        self._trouble: Callable[[], Exception] | None = None
        self._channel = _Channel(channel_path)
        _stores.add(self)
        self.capacity_bytes: int = self._channel.ask("hello", peer)[0][0]

    # Writing.

    def allocate(self, nbytes: int, wait_s: float = FULL_WAIT_S) -> Slab:
        """Return a slab of at least `nbytes`: one that was written before, if there is one of its class.

        A new one talks to the node, and waits up to `wait_s` while the store is full.

        Raises:
            StoreFullError: with the numbers; nothing is allocated.
        """
        size = class_bytes(nbytes)
        with self._lock:
            self._check()
            free = self._free.get(size)
            if free:
                slab = free.pop()
                slab.free = False
                self._free_count -= 1
                return slab
        slab = self._create(size, nbytes, wait_s)
        with self._lock:
            self._check()
            self._slabs[slab.segment] = slab
        return slab

    def recycle(self, segment: int) -> None:
        """No reader of this slab is left: keep it for the next allocation. A segment that is not ours is no error."""
        surplus = None
        with self._lock:
            slab = self._slabs.get(segment)
            if slab is None or slab.free or self._trouble is not None:
                return
            if self._free_count >= FREE_SLABS_MAX:
                surplus = self._slabs.pop(segment)
            else:
                slab.free = True
                self._free.setdefault(slab.size, []).append(slab)
                self._free_count += 1
        if surplus is not None:
            self._channel.unregister([segment])

    def discard(self, segment: int) -> None:
        """Forget a slab that must not be written again. The node keeps it, and its bytes live while views do."""
        with self._lock:
            slab = self._slabs.get(segment)
            if slab is not None and not slab.free:
                del self._slabs[segment]

    def trim(self) -> int:
        """Give free slabs back to the node, and unmap what has no view; returns the bytes of the slabs."""
        with self._lock:
            if self._trouble is not None:
                return 0
            slabs = [slab for free in self._free.values() for slab in free]
            for slab in slabs:
                del self._slabs[slab.segment]
            self._free.clear()
            self._free_count = 0
            self._settle()
            self._idle.clear()
            self._idle_bytes = 0
        self._channel.unregister([slab.segment for slab in slabs])
        return sum([slab.size for slab in slabs])

    def _create(self, size: int, nbytes: int, wait_s: float) -> Slab:
        segment = secrets.randbits(63)
        fd = -1
        try:
            fd = os.memfd_create("zmesh", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            self._register(segment, fd, size, nbytes, wait_s)
            for start in range(0, size, _ALLOCATE_STEP_BYTES):
                os.posix_fallocate(fd, start, min(_ALLOCATE_STEP_BYTES, size - start))
            return Slab(segment, size, memoryview(mmap.mmap(fd, size)))
        except BaseException as error:  # KeyboardInterrupt too: the node may have booked it.
            self._channel.unregister([segment])
            if isinstance(error, OSError) and error.errno in _EXHAUSTED:
                raise self._exhausted(error, nbytes) from None
            raise
        finally:
            if fd >= 0:
                os.close(fd)  # the mapping has its own

    def _register(self, segment: int, fd: int, size: int, nbytes: int, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        pause = 0.002
        while True:
            answer, _ = self._channel.ask("register", segment, fd=fd)
            if not answer:
                return
            if len(answer) == 1:
                raise _full(f"the node has used up its limit of {answer[0]:,} open files", nbytes, 0, 0)
            used, capacity, segments = answer
            left = deadline - time.monotonic()
            if size > capacity or (not self.trim() and left <= 0):
                text = (
                    f"{nbytes:,} bytes are needed (a segment of {size:,}); {max(capacity - used, 0):,} of {capacity:,} are"
                    f" free, and nobody let go of any of {segments:,} segments. Raise store_bytes_max or drop references."
                )
                raise _full(text, nbytes, max(capacity - used, 0), capacity)
            if left > 0:
                time.sleep(min(pause, left))
            pause = min(2 * pause, 0.05)

    def _exhausted(self, error: OSError, nbytes: int) -> StoreFullError:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            why = f"this process has used up its limit of {limit:,} open files. Drop arrays, or raise ulimit -n."
        else:
            why = f"this host has no memory left for it ({error.strerror}). Drop references, or lower store_bytes_max."
        return _full(f"{nbytes:,} bytes of shared memory are needed; {why}", nbytes, 0, self.capacity_bytes)

    # Reading.

    def open(self, segment: int, nbytes: int) -> Mapping:
        """Map a segment for reading, or return the mapping there is. Asks the node if there is none.

        Raises:
            ObjectLostError: the node does not know it, or it is smaller than `nbytes`.
        """
        with self._lock:
            self._check()
            self._settle()
            mapping = self._known(segment)
        if mapping is None:
            memory, size = self._fetch(segment, nbytes, prot=mmap.PROT_READ)
            with self._lock:
                self._check()
                mapping = self._known(segment)  # another thread may have been faster
                if mapping is None:
                    mapping = self._idle[segment] = Mapping(segment, size, memory)
                    self._idle_bytes += size
                    self._evict()
        if mapping.size < nbytes:
            raise ObjectLostError(f"segment {segment:x} has {mapping.size:,} bytes, the object {nbytes:,}")
        return mapping

    def view(self, segment: int, nbytes: int, on_unpin: Callable[[], None], writable: bool = False) -> memoryview:
        """Return the first `nbytes` of a segment to make arrays from; they keep it pinned. Asks the node if unmapped.

        Args:
            segment: its id.
            nbytes: length of the view.
            on_unpin: called exactly once, when the last slice of the view is gone, in any thread and even inside the
                garbage collector: it may append to a deque, and must take no lock. Not called at exit, nor in a fork.
            writable: a private copy-on-write mapping. Pages not yet written still show the segment, so it pins too.

        Raises:
            ObjectLostError: as `open`; `on_unpin` is not called.
        """
        import numpy

        memory: Any
        if writable:
            with self._lock:
                self._check()
            memory, _ = self._fetch(segment, nbytes, access=mmap.ACCESS_COPY)
            base = numpy.frombuffer(memory, numpy.uint8)
            pinned = -1
        else:
            mapping = self.open(segment, nbytes)
            base = numpy.frombuffer(mapping.memory, numpy.uint8)
            pinned = segment
            with self._lock:
                self._pin(mapping)
        # Slices of a memoryview of an array keep the array alive; those of a memoryview of a map only the map.
        weakref.finalize(base, _unpin, self._unpinned, pinned, on_unpin, os.getpid()).atexit = False
        return memoryview(base)[:nbytes]  # type: ignore[arg-type]  # an array exports its buffer

    def _known(self, segment: int) -> Mapping | None:
        """Return the mapping of a segment, or make it from a slab of this process. Lock held."""
        mapping = self._pinned.get(segment)
        if mapping is None:
            mapping = self._idle.get(segment)
            if mapping is not None:
                self._idle.move_to_end(segment)
            elif segment in self._slabs:
                slab = self._slabs[segment]
                return Mapping(segment, slab.size, slab.view.toreadonly())
        return mapping

    def _fetch(self, segment: int, nbytes: int, **how: int) -> tuple[mmap.mmap, int]:
        """Ask the node for a segment and map it."""
        answer, fds = self._channel.ask("open", segment)
        try:
            if not answer:
                raise ObjectLostError(
                    f"segment {segment:x} ({nbytes:,} bytes) is gone: the node let go of it, or never had it"
                )
            size: int = answer[0]
            if size < nbytes:
                raise ObjectLostError(f"segment {segment:x} has {size:,} bytes, the object {nbytes:,}")
            if not fds:  # The kernel drops a descriptor that does not fit into this process's table.
                raise self._exhausted(OSError(errno.EMFILE, os.strerror(errno.EMFILE)), nbytes)
            return mmap.mmap(fds[0], size, **how), size  # type: ignore[arg-type]  # prot or access
        except OSError as error:
            raise self._exhausted(error, nbytes) from None
        finally:
            for fd in fds:
                os.close(fd)

    def _pin(self, mapping: Mapping) -> None:
        """Lock held."""
        mapping.pins += 1
        if self._idle.get(mapping.segment) is mapping:
            del self._idle[mapping.segment]
            self._idle_bytes -= mapping.size
        if mapping.segment not in self._slabs:
            self._pinned[mapping.segment] = mapping

    def _settle(self) -> None:
        """Count the views that ended since last time. Lock held."""
        unpinned = self._unpinned
        while unpinned:
            mapping = self._pinned.get(unpinned.popleft())
            if mapping is not None:
                mapping.pins -= 1
                if mapping.pins == 0:
                    del self._pinned[mapping.segment]
                    self._idle[mapping.segment] = mapping
                    self._idle_bytes += mapping.size
        self._evict()

    def _evict(self) -> None:
        """Unmap the idle mappings used longest ago, beyond the limits. Lock held."""
        idle = self._idle
        while len(idle) > IDLE_MAPPINGS_MAX or (self._idle_bytes > self.capacity_bytes // IDLE_SHARE and len(idle) > 1):
            _, mapping = idle.popitem(last=False)
            self._idle_bytes -= mapping.size

    # The end.

    def close(self) -> None:
        """Give free slabs back, unmap what has no view, close the channel. Views stay good. Again is no error."""
        self.trim()
        with self._lock:
            if self._trouble is None:
                self._trouble = _closed
            self._slabs.clear()
            self._pinned.clear()
        self._channel.close()

    def _check(self) -> None:
        if self._trouble is not None:
            raise self._trouble()

    def _forked(self) -> None:
        """In a child after a fork: be of no use. The parent's descriptors are its own."""
        self._lock = threading.Lock()  # a thread that held it does not exist here
        self._trouble = _in_fork
        self._channel.forked()


def _closed() -> Exception:
    return NotRunningError("the object store is closed: zmesh was shut down")


def _in_fork() -> Exception:
    return LocalProtocolError("a forked child cannot use the object store of its parent; start the process by spawn")


def _unpin(unpinned: deque[int], segment: int, on_unpin: Callable[[], None], pid: int) -> None:
    """The last view of a pin is gone. Runs inside the garbage collector: no locks."""
    if os.getpid() == pid:
        unpinned.append(segment)
        on_unpin()


_stores: "weakref.WeakSet[Store]" = weakref.WeakSet()
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC))


def _after_fork() -> None:
    for store in list(_stores):
        store._forked()


os.register_at_fork(after_in_child=_after_fork)


class _Channel:
    """A client's end of the channel: one request at a time. Any thread."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(CHANNEL_TIMEOUT_S)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise NodeDiedError(f"no node serves shared memory at {path}: {error.strerror}") from error

    def ask(self, verb: str, subject: Any, fd: int = -1) -> tuple[list[Any], list[int]]:
        """Return (facts, descriptors) of the answer; ([], []) if it is "ok" without facts, or "lost"."""
        with self._lock:
            # Answers are numbered, as a KeyboardInterrupt may have left one unread.
            number = next(self._numbers)
            try:
                request = msgpack.packb([number, verb, subject])
                socket.send_fds(self._socket, [request], [] if fd < 0 else [fd])
                while True:
                    data, fds, _, _ = socket.recv_fds(self._socket, 4096, 1, socket.MSG_CMSG_CLOEXEC)
                    if not data:
                        raise ConnectionResetError(errno.ECONNRESET, "the channel was closed")
                    answer = msgpack.unpackb(data)
                    if answer[0] == number:
                        return answer[2:], list(fds)
                    for stale in fds:
                        os.close(stale)
            except (OSError, ValueError, IndexError, TypeError) as error:
                raise NodeDiedError(f"the node serves shared memory no more: {error}") from error

    def unregister(self, segments: list[int]) -> None:
        """Tell the node that these segments are no more. A node that is gone knows."""
        for start in range(0, len(segments), _UNREGISTER_MAX):
            with contextlib.suppress(OSError):
                self._socket.send(msgpack.packb([0, "unregister", segments[start : start + _UNREGISTER_MAX]]))

    def close(self) -> None:
        """Close the channel; a request under way fails."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def forked(self) -> None:
        """Close the child's copy; the parent's stays open."""
        self._lock = threading.Lock()
        self._socket.close()


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
    """The node's side: keeps a descriptor of every segment, and the ledger. Loop thread only; never blocks, never raises.

    Poll `filenos()` for reading and call `handle`. Only processes of the same user are served; a client that
    breaks the rules is cut off. A client's segments outlive it: the core says when to `drop` them.

    Args:
        path: where to listen, in a private directory.
        capacity_bytes: the quota for all segments and reserved bytes together.
        close: called with the descriptors of dropped segments. The last close frees the pages, 0.1 s a GB: a node
            hands them to its helper thread.

    Attributes:
        used_bytes: what is booked now.
        capacity_bytes: the quota.
        wants_trim: a client was refused since this was last set to False: ask all clients to trim.
    """

    def __init__(self, path: str, capacity_bytes: int, close: Callable[[int], None] = os.close) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.wants_trim = False
        self._limit = _lift_descriptor_limit()
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
        self.used_bytes -= nbytes
        assert self.used_bytes >= 0, "more released than reserved"

    def adopt(self, segment: int, fd: int, producer: PeerID) -> bool:
        """Take a memfd into the ledger, and the descriptor with it; returns whether it fits. If not, `fd` stays yours."""
        size = os.fstat(fd).st_size
        if self.used_bytes + size > self.capacity_bytes:
            self.wants_trim = True
            return False
        self.used_bytes += size
        self._segments[segment] = _Segment(fd, size, producer)
        self._produced.setdefault(producer, {})[segment] = None
        return True

    def descriptor(self, segment: int) -> int | None:
        """Return the node's own descriptor of a segment, open until it is dropped."""
        found = self._segments.get(segment)
        return None if found is None else found.fd

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

    # The channel.

    def filenos(self) -> list[int]:
        """Return the descriptors to poll: the listener, and every connection."""
        return [self._listener.fileno(), *self._connections] if self._listener.fileno() >= 0 else []

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
        for _ in range(_MESSAGES_MAX):
            try:
                data, fds, flags, _ = socket.recv_fds(
                    connection.socket, _MESSAGE_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return []
            except OSError:
                break
            keep = False
            try:
                if not data or flags & socket.MSG_TRUNC:
                    break
                keep = self._serve(connection, data, fds[0] if fds else -1, bool(flags & socket.MSG_CTRUNC))
            except (OSError, ValueError, TypeError, msgpack.UnpackException):
                break  # A client that breaks the rules, or does not read its answers.
            finally:
                if not keep:
                    for passed in fds:
                        os.close(passed)
        else:
            return []
        self._connections.pop(fd).socket.close()
        return [("closed", fd)]

    def _accept(self) -> list[tuple[str, int]]:
        opened = []
        for _ in range(_MESSAGES_MAX):
            try:
                client, _ = self._listener.accept()
            except OSError:
                break  # nobody is left, or no descriptor
            client.setblocking(False)
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(credentials)[1] != os.geteuid():
                client.close()
                continue
            self._connections[client.fileno()] = _Connection(client)
            opened.append(("opened", client.fileno()))
        return opened

    def _serve(self, connection: _Connection, data: bytes, fd: int, cut: bool) -> bool:
        """Carry out one request; returns whether `fd` was kept. Raises ValueError or TypeError if it makes no sense."""
        number, verb, subject = msgpack.unpackb(data)
        answer: list[Any] = [number, "ok"]
        match verb:
            case "hello" if type(subject) is bytes and subject and not connection.peer:
                connection.peer = subject
                answer.append(self.capacity_bytes)
            case "register" if type(subject) is int and subject not in self._segments and connection.peer:
                if fd < 0 and cut:
                    answer = [number, "files", self._limit]
                elif fd < 0 or not _is_sealed(fd):
                    raise ValueError("a segment is a sealed memfd")
                elif self.adopt(subject, fd, connection.peer):
                    connection.socket.send(msgpack.packb(answer))
                    return True
                else:
                    answer = [number, "full", self.used_bytes, self.capacity_bytes, len(self._segments)]
            case "unregister" if type(subject) is list:
                mine = self._produced.get(connection.peer, {})
                self.drop([segment for segment in subject if type(segment) is int and segment in mine])
                return False
            case "open" if type(subject) is int and connection.peer:
                self._send_segment(connection, number, self._segments.get(subject))
                return False
            case _:
                raise ValueError("no such request")
        connection.socket.send(msgpack.packb(answer))
        return False

    def _send_segment(self, connection: _Connection, number: int, segment: _Segment | None) -> None:
        if segment is None:
            connection.socket.send(msgpack.packb([number, "lost"]))
            return
        # A descriptor that was open for writing cannot be made read-only; one opened anew can.
        fd = os.open(f"/proc/self/fd/{segment.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            socket.send_fds(connection.socket, [msgpack.packb([number, "ok", segment.size])], [fd])
        finally:
            os.close(fd)

    def close(self) -> None:
        """Stop listening, cut all clients off, close all descriptors."""
        self._listener.close()
        if not self._path.startswith("\0"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        self.drop(list(self._segments))


def _is_sealed(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode) and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
