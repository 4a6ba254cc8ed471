"""Shared memory of a host: segments without names. The client's side; the node's is in segments.py.

A segment is a memfd that its producer fills and others map read-only. Descriptors travel over one AF_UNIX channel per
client (SCM_RIGHTS); the node keeps one of each segment and the ledger. There is no name, so no kill -9 leaves anything
behind. When a segment is written again or dropped, the core decides; serialization.py knows how a value lies in it.
Fresh pages cost ten times a copy: a producer keeps its segments ("slabs") mapped and writes them again, by size class.

    client to node    [n, "hello", peer]            [n, capacity]
                      [n, "register", segment]+fd   [n] or, if the store is full, [n, used, capacity, segments, why]
                      [n, "open", segment]          [n, size]+fd or, if it is not to be had, [n, kind, why]
                      [0, "unregister", [segment]]  no answer
                      [0, "closed", [[segment, n]]] no answer: not mapped here any more; n bytes of it are written
                      [0, "busy", [segment]]        no answer: mapped, and in use

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
import struct
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack

from zmesh.core.spilling import FULL, GONE, SPILL
from zmesh.exceptions import (
    LocalProtocolError,
    NodeDiedError,
    NotRunningError,
    ObjectLostError,
    SpillError,
    StoreFullError,
)
from zmesh.wire.ids import PeerID

SLAB_BYTES_MIN = 64 * 1024
FREE_SLABS_MAX = 1024  # what a process keeps for later; more go back to the node
MAPPINGS_MAX = 64  # last used, kept for the next object in the same segment
MAPPINGS_SHARE = 4  # they cover at most capacity / 4
FULL_WAIT_S = 1.0  # how long others are given to let go of what they keep for later
CHANNEL_TIMEOUT_S = 60.0  # a node that is silent for so long will not come back
DESCRIPTORS_WANTED = 65_536  # each mapping and each segment takes one; 1024, the usual limit, is soon reached

_MESSAGE_BYTES_MAX = 64 * 1024
_SEGMENTS_MAX = 2048  # in one message: up to 19 bytes each
# A signal makes the kernel undo and restart an allocation: a profiler's timer would never let a big one end.
_ALLOCATE_STEP_BYTES = 16 * 1024 * 1024
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # a segment that shrinks is SIGBUS for its readers


def class_bytes(nbytes: int) -> int:
    """Return the size of the slab for `nbytes`: 64 KiB * (1, 1.25, 1.5, 1.75) * 2^k; at most a fifth is left unused."""
    if nbytes <= SLAB_BYTES_MIN:
        return SLAB_BYTES_MIN
    quarter: int = 1 << ((nbytes - 1).bit_length() - 3)
    return -(-nbytes // quarter) * quarter


def lift_descriptor_limit() -> None:
    """Allow this process many open files: each mapping and each segment takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def full(why: str, needed: int, free: int, capacity: int, spilling: str = "") -> StoreFullError:
    """Return the error of a store without room; `why` is what follows the bytes needed.

    Args:
        spilling: why nothing could be written to disk to make room, "" if that was not it.
    """
    text = f"{needed:,} bytes of shared memory are needed {why}"
    error = SpillError(f"{text} Nothing can be spilled: {spilling}.") if spilling else StoreFullError(text)
    error.__dict__.update(needed_bytes=needed, free_bytes=free, capacity_bytes=capacity)
    return error


@dataclass(slots=True, eq=False)
class Slab:
    """A segment of this process's own.

    Attributes:
        segment: its id, 63 random bits.
        size: bytes, of its class.
        memory: its mapping.
        view: (size,) bytes, writable, page-aligned, shared with all readers.
    """

    segment: int
    size: int
    memory: Any
    view: memoryview
    written: int = 0
    free: bool = False


@dataclass(slots=True, eq=False, weakref_slot=True)
class Mapping:
    """A segment as this process reads it.

    Attributes:
        segment: its id.
        size: bytes.
        memory: (size,) bytes, read-only, page-aligned; stays mapped while any view of it lives.
    """

    segment: int
    size: int
    memory: Any


class Store:
    """A client's access to the shared memory of its host. Any thread; no call runs user code.

    Where noted a call asks the node, and blocks for some 100 microseconds.

    Args:
        channel_path: where the node's SegmentServer listens.
        peer: PeerID of this process.
        late: connect when there is something to ask, which in most workers there never is.

    Raises:
        NodeDiedError: nobody listens there, or the node went away, in any call that talks to it.
        LocalProtocolError: in any call, in a forked child: the parent's memory is not the child's to write.
        NotRunningError: in any call after `close`.
    """

    def __init__(self, channel_path: str, peer: PeerID, *, late: bool = False) -> None:
        lift_descriptor_limit()
        # Guards the tables. A finalizer never takes it: it may run inside it.
        self._lock = threading.Lock()
        self._slabs: dict[int, Slab] = {}  # {segment: slab of this process, in use or free}
        self._free: dict[int, list[Slab]] = {}  # {size: free slabs, last used last}
        self._free_count = 0
        # {segment: mapping}. A view holds its mapping, so a mapping in use is found for as long as it is.
        self._mappings: weakref.WeakValueDictionary[int, Mapping] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[int, Mapping] = OrderedDict()  # {segment: mapping}, last used last
        self._recent_bytes = 0
        self._private: weakref.WeakKeyDictionary[Mapping, int] = weakref.WeakKeyDictionary()  # {copy on write: segment}
        self._opening: dict[int, int] = {}  # {segment: threads that ask the node for it}
        self._yielded: dict[int, None] = {}  # own segments in use, that this process has no mapping of any more
        self._trouble: tuple[type[Exception], str] | None = None  # why this store is of no use any more
        self._channel = _Channel(channel_path, peer)
        if not late:
            self._channel.open()
        _stores.add(self)

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
            segment = secrets.randbits(63)
            self._begin(segment)
        try:
            slab = self._create(segment, size, nbytes, wait_s)
            with self._lock:
                self._check()
                self._slabs[segment] = slab
        finally:
            self._end(segment)
        return slab

    def commit(self, slab: Slab, nbytes: int) -> None:
        """The first `nbytes` of a slab are written: all of this host see them at once."""
        slab.written = nbytes

    def recycle(self, segment: int) -> None:
        """No reader of this slab is left: keep it for the next allocation. A segment that is not ours is no error."""
        with self._lock:
            slab = self._slabs.get(segment)
            if self._trouble is not None:
                return
            if slab is None:
                if segment not in self._yielded:
                    return
                del self._yielded[segment]
            elif slab.free:
                return
            elif self._free_count < FREE_SLABS_MAX:
                slab.free, slab.written = True, 0
                self._free.setdefault(slab.size, []).append(slab)
                self._free_count += 1
                return
            else:
                del self._slabs[segment]
        self._channel.tell("unregister", [segment])

    def discard(self, segment: int) -> None:
        """Forget a slab that must not be written again. The node keeps it, and its bytes live while views do."""
        with self._lock:
            slab = self._slabs.get(segment)
            if slab is not None and not slab.free:
                del self._slabs[segment]
            self._yielded.pop(segment, None)

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
            self._recent.clear()
            self._recent_bytes = 0
        self._channel.tell("unregister", [slab.segment for slab in slabs])
        return sum([slab.size for slab in slabs])

    def unmap(self, segments: list[int]) -> None:
        """The node wants to write these to disk: unmap those that nobody here reads or writes, and say which."""
        closed: list[Any] = []
        busy, free = [], []
        with self._lock:
            if self._trouble is not None:
                return
            for segment in segments:
                slab = self._slabs.get(segment)
                if slab is not None and slab.free:
                    self._free[slab.size].remove(slab)
                    self._free_count -= 1
                    del self._slabs[segment]
                    free.append(segment)
                elif self._unmap(segment, slab):
                    closed.append((segment, 0 if slab is None else slab.written))
                else:
                    busy.append(segment)
            # Inside the lock: what is opened after this is asked for after this.
            self._channel.tell("unregister", free)
            self._channel.tell("closed", closed)
            self._channel.tell("busy", busy)

    def _unmap(self, segment: int, slab: Slab | None) -> bool:
        """Unmap a segment; returns whether nobody uses it. Lock held."""
        if segment in self._opening or segment in list(self._private.values()):
            return False
        if slab is not None:
            if not slab.written:
                return False
            try:
                slab.view.release()
                slab.memory.close()
            except BufferError:  # there are views of it
                slab.view = memoryview(slab.memory)
                return False
            del self._slabs[segment]
            self._yielded[segment] = None
            return True
        mapping = self._recent.pop(segment, None)
        if mapping is not None:
            self._recent_bytes -= mapping.size
            del mapping
        return segment not in self._mappings  # whoever has a view holds the mapping

    def _create(self, segment: int, size: int, nbytes: int, wait_s: float) -> Slab:
        fd = -1
        try:
            fd = os.memfd_create("zmesh", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            self._register(segment, fd, size, nbytes, wait_s)
            for start in range(0, size, _ALLOCATE_STEP_BYTES):
                os.posix_fallocate(fd, start, min(_ALLOCATE_STEP_BYTES, size - start))
            memory = mmap.mmap(fd, size)
            return Slab(segment, size, memory, memoryview(memory))
        except BaseException as error:  # KeyboardInterrupt too: the node may have booked it.
            self._channel.tell("unregister", [segment])
            if isinstance(error, OSError) and error.errno in _EXHAUSTED:
                raise self._exhausted(error, nbytes) from None
            raise
        finally:
            if fd >= 0:
                os.close(fd)  # the mapping has its own

    def _register(self, segment: int, fd: int, size: int, nbytes: int, wait_s: float) -> None:
        deadline, pause = time.monotonic() + wait_s, 0.002
        while True:
            answer, _ = self._channel.ask("register", segment, fd=fd)
            if not answer:
                return
            used, capacity, segments, spilling = answer
            left = deadline - time.monotonic()
            if size > capacity or (not self.trim() and left <= 0):
                free = max(capacity - used, 0)
                why = f"(a segment of {size:,}); {free:,} of {capacity:,} are free, {segments:,} segments are in use"
                why += ". Raise object_store_memory= or drop references."
                raise full(why, nbytes, free, capacity, spilling)
            time.sleep(max(0.0, min(pause, left)))
            pause = min(2 * pause, 0.05)

    def _exhausted(self, error: OSError, nbytes: int) -> StoreFullError:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            why = f"; this process has used up its limit of {limit:,} open files. Drop arrays, or raise ulimit -n."
        else:
            why = f"; this host has no memory left ({error.strerror}). Drop references, or lower object_store_memory=."
        return full(why, nbytes, 0, self._channel.capacity_bytes)

    # Reading.

    def open(self, segment: int, nbytes: int) -> Mapping:
        """Map a segment for reading, or return the mapping there is. Asks the node if there is none.

        Raises:
            ObjectLostError: the node does not know it, or it is smaller than `nbytes`.
        """
        with self._lock:
            self._check()
            mapping = self._known(segment)
            if mapping is None:
                self._begin(segment)
        if mapping is None:
            try:
                memory, size = self._fetch(segment, nbytes, prot=mmap.PROT_READ)
                with self._lock:
                    mapping = self._known(segment)  # another thread may have been faster
                    if mapping is None:
                        mapping = self._mappings[segment] = self._recent[segment] = Mapping(segment, size, memory)
                        self._recent_bytes += size
                        self._forget_oldest()
            finally:
                self._end(segment)
        if mapping.size < nbytes:
            raise lost(segment, f"it has {mapping.size:,} bytes, the object {nbytes:,}")
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

        kept: Any
        if writable:
            with self._lock:
                self._check()
                self._begin(segment)
            try:
                memory, size = self._fetch(segment, nbytes, access=mmap.ACCESS_COPY)
                kept = Mapping(segment, size, memory)
                with self._lock:
                    self._private[kept] = segment
            finally:
                self._end(segment)
            base = numpy.frombuffer(memory, numpy.uint8)
        else:
            kept = self.open(segment, nbytes)
            base = numpy.frombuffer(kept.memory, numpy.uint8)
        # Slices of a memoryview of an array keep the array alive; those of a memoryview of a map only the map.
        weakref.finalize(base, unpin, kept, on_unpin, os.getpid()).atexit = False
        return memoryview(base)[:nbytes]  # type: ignore[arg-type]  # an array exports its buffer

    def _begin(self, segment: int) -> None:
        """A thread asks the node for a segment, or for a new one: that is in use until it is known here. Lock held."""
        self._opening[segment] = self._opening.get(segment, 0) + 1

    def _end(self, segment: int) -> None:
        with self._lock:
            self._opening[segment] -= 1
            if not self._opening[segment]:
                del self._opening[segment]

    def _known(self, segment: int) -> Mapping | None:
        """Return the mapping of a segment, or make it from a slab of this process. Lock held."""
        slab = self._slabs.get(segment)
        if slab is not None:
            return Mapping(segment, slab.size, slab.view.toreadonly())
        mapping = self._mappings.get(segment)
        if mapping is not None:
            if segment not in self._recent:
                self._recent[segment] = mapping
                self._recent_bytes += mapping.size
            self._recent.move_to_end(segment)
            self._forget_oldest()
        return mapping

    def _forget_oldest(self) -> None:
        """Keep the limits; what is in use stays mapped. Lock held."""
        recent = self._recent
        while len(recent) > MAPPINGS_MAX or self._recent_bytes > self._channel.capacity_bytes // MAPPINGS_SHARE:
            _, mapping = recent.popitem(last=False)
            self._recent_bytes -= mapping.size

    def _fetch(self, segment: int, nbytes: int, **how: int) -> tuple[mmap.mmap, int]:
        """Ask the node for a segment and map it."""
        answer, fds = self._channel.ask("open", segment)
        try:
            if len(answer) > 1:
                kind, why = answer
                if kind == GONE:
                    raise lost(segment, why)
                text = why if kind == FULL and why else "all that is in memory is in use. Drop arrays"
                text = f"to bring an object back from disk: {text}, or raise object_store_memory=."
                raise full(text, nbytes, 0, self._channel.capacity_bytes, why if kind == SPILL else "")
            size: int = answer[0]
            if size < nbytes:
                raise lost(segment, f"it has {size:,} bytes, the object {nbytes:,}")
            if not fds:  # The kernel drops a descriptor that does not fit into this process's table.
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return mmap.mmap(fds[0], size, **how), size
        except OSError as error:
            raise self._exhausted(error, nbytes) from None
        finally:
            for fd in fds:
                os.close(fd)

    # The end.

    def close(self) -> None:
        """Give free slabs back, unmap what has no view, close the channel. Views stay good. Again is no error."""
        self.trim()
        with self._lock:
            if self._trouble is None:
                self._trouble = NotRunningError, "the object store is closed: zmesh was shut down"
            self._slabs.clear()
            self._yielded.clear()
        self._channel.close()

    def _check(self) -> None:
        if self._trouble is not None:
            raise self._trouble[0](self._trouble[1])

    def _forked(self) -> None:
        """In a child after a fork: be of no use. The parent's descriptors are its own."""
        self._lock = threading.Lock()  # the thread that may have held it does not exist here
        self._trouble = LocalProtocolError, "a forked child cannot use its parent's object store; start it by spawn"
        if self._channel.socket is not None:
            self._channel.socket.close()


def lost(segment: int, why: str) -> ObjectLostError:
    """Return the error of bytes that are gone."""
    return ObjectLostError(f"the bytes of an object (segment {segment:x}) are gone: {why}")


def unpin(kept: Any, on_unpin: Callable[[], None], pid: int) -> None:
    """The last view is gone. Runs inside the garbage collector: no locks."""
    if os.getpid() == pid:
        on_unpin()


_stores: "weakref.WeakSet[Store]" = weakref.WeakSet()
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC))
os.register_at_fork(after_in_child=lambda: deque(map(Store._forked, list(_stores)), maxlen=0))


class _Channel:
    """A client's end of the channel. Any thread; whoever waits for an answer takes in the others' answers, too.

    An answer may take long: a segment is on its way from disk, or there is no room. It holds up no other request.
    """

    def __init__(self, path: str, peer: PeerID) -> None:
        self._path = path
        self._peer = peer
        self._condition = threading.Condition()
        self._opening = threading.Lock()
        self._closed = False
        self._reading = False  # some thread waits on the socket, for all
        self._numbers = itertools.count(1)
        self._answers: dict[int, Any] = {}  # {request under way: (facts, descriptors), None before it is answered}
        self.socket: Any = None  # before `open`
        self.capacity_bytes = 0  # of the store, as the node said when it was greeted

    def open(self) -> None:
        """Connect and greet the node, unless that was done.

        Raises:
            NodeDiedError: nobody listens there.
        """
        with self._opening:
            if self.capacity_bytes:
                return
            if self._closed:
                raise NodeDiedError("the object store is closed: zmesh was shut down")
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                channel.settimeout(CHANNEL_TIMEOUT_S)
                try:
                    channel.connect(self._path)
                except OSError as error:
                    raise NodeDiedError(f"no node serves shared memory at {self._path}: {error.strerror}") from error
                self.socket = channel
                self.capacity_bytes = self._request("hello", self._peer)[0][0]
            except BaseException:  # also a KeyboardInterrupt: the next one greets anew
                channel.close()
                raise

    def ask(self, verb: str, subject: Any, fd: int = -1) -> tuple[list[Any], list[int]]:
        """Return (facts, descriptors) of the answer."""
        if not self.capacity_bytes:
            self.open()
        return self._request(verb, subject, fd)

    def _request(self, verb: str, subject: Any, fd: int = -1) -> tuple[list[Any], list[int]]:
        number = next(self._numbers)
        self._answers[number] = None
        try:
            socket.send_fds(self.socket, [msgpack.packb([number, verb, subject])], [] if fd < 0 else [fd])
            while self._answers[number] is None:
                self._wait(number)
            facts, fds = self._answers[number]
            return facts, fds
        except (OSError, ValueError, IndexError, TypeError) as error:
            self.socket.close()
            raise NodeDiedError(f"the node serves shared memory no more: {error}") from error
        finally:
            self._answers.pop(number, None)

    def _wait(self, number: int) -> None:
        """Take in one answer, whose ever it is, or wait while another thread does."""
        reads = False
        try:
            with self._condition:
                while self._reading and self._answers[number] is None:
                    self._condition.wait()
                if self._answers[number] is None:
                    self._reading = reads = True  # no signal handler runs between the two
            if reads:
                self._take(*receive(self.socket)[:2])
        finally:
            if reads:
                with self._condition:
                    self._reading = False
                    self._condition.notify_all()

    def _take(self, data: bytes, fds: list[int]) -> None:
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the channel was closed")
        answer = msgpack.unpackb(data)
        if answer[0] in self._answers:
            self._answers[answer[0]] = (answer[1:], fds)
        else:  # a KeyboardInterrupt left it unread
            for stale in fds:
                os.close(stale)

    def tell(self, verb: str, segments: list[Any]) -> None:
        """Tell the node something about segments. One that is gone, or that was asked for none, knows."""
        if self.socket is None:
            return
        for start in range(0, len(segments), _SEGMENTS_MAX):
            with contextlib.suppress(OSError):
                self.socket.send(msgpack.packb([0, verb, segments[start : start + _SEGMENTS_MAX]]))

    def close(self) -> None:
        """Close the channel; a request under way fails."""
        self._closed = True
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


def receive(channel: socket.socket) -> tuple[bytes, list[int], int]:
    """Return (message, descriptors, flags). Not socket.recv_fds: it ignores flags, so children would inherit them."""
    data, extra, flags, _ = channel.recvmsg(_MESSAGE_BYTES_MAX, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
    return data, [fd for _, _, part in extra for (fd,) in struct.iter_unpack("i", part)], flags
