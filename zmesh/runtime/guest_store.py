"""A guest's access to the shared memory of its node: values are written here, and their bytes sent over the link.

The same calls as runtime/store.py. What this process wrote it keeps until nobody needs it, so that it can bring it to
another node when its own dies; what it reads it keeps as long as there are views.

    guest to node, each a msgpack list       node to guest
    [n, "make", segment, size]               [n] or, if the store is full, [n, used, capacity, segments, why]
    [n, "write", segment, offset, bytes]     [n]
    [n, "read", segment, offset, nbytes]     [n, bytes] or, if it is lost, [n]; if the store is too
                                             full to bring it back from disk, [n, b"", capacity]
    [0, "unregister", [segment]]             no answer
"""

import functools
import mmap
import os
import secrets
import threading
import weakref
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import msgpack
import numpy

from zmesh.runtime.segments import GUEST_PIECE_BYTES
from zmesh.runtime.store import FULL_WAIT_S, Slab, full, lost, unpin

WINDOW = 16  # pieces under way
FULL_PAUSE_S = 0.05

_LOST = object()  # the answer of a request whose node is gone


class GuestStore:
    """Values of a guest, and its copies of others'. Any thread; a call that moves bytes blocks until they are there.

    Args:
        send: hands a message to the store of the node. Called under the lock of the reactor.
        run: runs something under that lock, and carries out what it asks for.
        wait: drives the sockets until a condition, asked under the lock, is true.
        named: what the node of now calls a segment of this process, and of that, again its own id.
    """

    def __init__(
        self,
        send: Callable[[bytes], None],
        run: Callable[[Callable[[], None]], None],
        wait: Callable[[Callable[[], bool]], None],
        named: Callable[[int], int],
    ) -> None:
        self._send = send
        self._run = run
        self._wait = wait
        self._named = named
        self._slabs: dict[int, tuple[Slab, int]] = {}  # {segment: (slab, bytes written)}
        # {segment: array of its bytes}, found for as long as somebody has a view of them.
        self._read: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._reading = threading.Lock()  # nobody fetches twice what two threads want
        self._number = 0
        self._answers: dict[int, Callable[[Any], None]] = {}  # {request: what takes the rest of the answer, or _LOST}

    # Requests. Under the lock of the reactor.

    def _ask(self, take: Callable[[Any], None], *request: Any) -> None:
        self._number += 1
        self._answers[self._number] = take
        self._send(msgpack.packb([self._number, *request]))

    def heard(self, frame: bytes) -> None:
        """The node answered. What makes no sense is as good as lost."""
        try:
            number, *answer = msgpack.unpackb(frame)
        except ValueError:
            return
        take = self._answers.pop(number, None)
        if take is not None:
            take(answer)

    # Writing.

    def allocate(self, nbytes: int) -> Slab:
        """Return memory for `nbytes`, of this process only until `commit`."""
        memory = mmap.mmap(-1, nbytes)
        return Slab(secrets.randbits(63), nbytes, memory, memoryview(memory))

    def commit(self, slab: Slab, nbytes: int) -> None:
        """Bring what was written to the node's host; waits for it, and up to FULL_WAIT_S for room.

        Raises:
            StoreFullError: with the numbers.
            NodeDiedError: the node went away, and no other was found.
        """
        deadline = monotonic() + FULL_WAIT_S
        while True:
            upload = _Upload(self._ask, self._named, slab, nbytes)
            upload.then = functools.partial(self._uploaded, upload, slab, nbytes)
            self._run(upload.start)
            self._wait(upload.is_over)
            if upload.trouble is None:
                return
            if upload.trouble is not _LOST and monotonic() >= deadline:
                used, capacity, segments, spilling = upload.trouble
                raise full(
                    f"on the host of the node; {max(capacity - used, 0):,} of {capacity:,} are free, {segments:,} "
                    "segments are in use. Raise --store-memory or drop references.",
                    nbytes, max(capacity - used, 0), capacity, spilling,
                )  # fmt: skip
            sleep(FULL_PAUSE_S)

    def _uploaded(self, upload: "_Upload", slab: Slab, nbytes: int) -> None:
        if upload.trouble is None:
            self._slabs[slab.segment] = (slab, nbytes)

    def restore(self, done: Callable[[], None]) -> None:
        """Bring all we wrote to another node; `done` is called when that is done. Under the lock of the reactor."""
        answers, self._answers = self._answers, {}
        for take in answers.values():
            take(_LOST)
        uploads = [_Upload(self._ask, self._named, slab, nbytes) for slab, nbytes in self._slabs.values()]

        def go_on() -> None:
            if uploads:
                upload = uploads.pop()
                upload.then = go_on  # full or not: what found no room is lost to those who ask for it
                upload.start()
            else:
                done()

        go_on()

    def recycle(self, segment: int) -> None:
        """Nobody needs what was written there, whoever says so. Under the lock of the reactor."""
        own = segment if segment in self._slabs else self._named(segment)
        if self._slabs.pop(own, None) is not None:
            self._send(msgpack.packb([0, "unregister", [self._named(own)]]))

    def discard(self, segment: int) -> None:
        """Forget what was written there; the node keeps it."""
        self._slabs.pop(segment, None)

    def trim(self) -> int:
        """Nothing is kept for later."""
        return 0

    # Reading.

    def view(self, segment: int, nbytes: int, on_unpin: Callable[[], None], writable: bool = False) -> memoryview:
        """Return the first `nbytes` of a segment; fetches them if this process has none. See Store.view.

        Raises:
            ObjectLostError: the node does not know it, or went away.
        """
        with self._reading:
            own = self._slabs.get(segment)
            base: Any = self._read.get(segment)
            if own is not None:
                base = numpy.frombuffer(own[0].view, numpy.uint8)
            elif base is None or base.nbytes < nbytes:
                base = self._read[segment] = self._fetch(segment, nbytes)
            kept = base
            base = base.copy() if writable else base[:]
            base.flags.writeable = writable
        weakref.finalize(base, unpin, kept, on_unpin, os.getpid()).atexit = False
        return memoryview(base)[:nbytes]

    def _fetch(self, segment: int, nbytes: int) -> Any:
        download = _Download(self._ask, segment, nbytes)
        self._run(download.start)
        self._wait(download.is_over)
        if download.trouble is _LOST:
            raise lost(segment, "the node that had it died while it was on its way to this program")
        if type(download.trouble) is int:
            why = "on the host of the node, to bring an object back from disk. Raise --store-memory or drop references."
            raise full(why, nbytes, 0, download.trouble)
        if download.trouble is not None:
            raise lost(segment, "the node let go of it, or never had it")
        return download.array

    def close(self) -> None:
        """Forget everything; views stay good."""
        self._slabs.clear()
        self._answers.clear()


class _Moving:
    """Bytes that move piece by piece, some under way at a time. Under the lock of the reactor."""

    def __init__(self, ask: Callable[..., None], segment: int, nbytes: int) -> None:
        self._ask = ask
        self._segment = segment
        self._nbytes = nbytes
        self._asked = self._answered = 0
        self.trouble: Any = None  # why it ended early
        self.over = False
        self.then: Callable[[], None] = lambda: None

    def is_over(self) -> bool:
        return self.over

    def end(self, trouble: Any = None) -> None:
        if not self.over:
            self.trouble = trouble
            self.over = True
            self.then()

    def go_on(self) -> None:
        while (
            not self.over and self._asked < self._nbytes and self._asked - self._answered < WINDOW * GUEST_PIECE_BYTES
        ):
            size = min(GUEST_PIECE_BYTES, self._nbytes - self._asked)
            at, self._asked = self._asked, self._asked + size
            self.move(at, size)

    def moved(self, size: int) -> None:
        self._answered += size
        if self._answered >= self._nbytes:
            self.end()
        else:
            self.go_on()

    def move(self, at: int, size: int) -> None:
        raise NotImplementedError


class _Upload(_Moving):
    """What a guest wrote, on its way to the node."""

    def __init__(self, ask: Callable[..., None], named: Callable[[int], int], slab: Slab, nbytes: int) -> None:
        super().__init__(ask, slab.segment, nbytes)
        self._named = named
        self._view = slab.view

    def start(self) -> None:
        self._segment = self._named(self._segment)
        self._ask(self._made, "make", self._segment, self._nbytes)

    def _made(self, answer: Any) -> None:
        if answer:  # the store is full, or _LOST
            self.end(answer)
        else:
            self.go_on()

    def move(self, at: int, size: int) -> None:
        piece = bytes(self._view[at : at + size])
        self._ask(lambda answer: self.end(answer) if answer else self.moved(size), "write", self._segment, at, piece)


class _Download(_Moving):
    """Bytes on their way from the node."""

    def __init__(self, ask: Callable[..., None], segment: int, nbytes: int) -> None:
        super().__init__(ask, segment, nbytes)
        self.array: Any = numpy.empty(nbytes, numpy.uint8)

    def start(self) -> None:
        self.go_on()

    def move(self, at: int, size: int) -> None:
        def take(answer: Any) -> None:
            if answer is _LOST or not answer or len(answer[0]) != size:
                no_room = answer is not _LOST and len(answer) > 1
                self.end(_LOST if answer is _LOST else answer[1] if no_room else "gone")
                return
            self.array[at : at + size] = numpy.frombuffer(answer[0], numpy.uint8)
            self.moved(size)

        self._ask(take, "read", self._segment, at, size)
