"""Segments on disk: one helper thread writes and reads them, so that the loop of the node never stands still.

A file has no name from the moment it is open, so no kill -9 leaves anything behind. Nobody but this process can reach
it; what can go wrong is the disk, and then that one object is lost. Which segments go is core/spilling.py's business.
Uncompressed bytes move inside the kernel (sendfile), compressed ones as blocks of [size, bytes], raw if they do not
shrink.
"""

import errno
import os
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import lz4.block

from zmesh.runtime.mailbox import Mailbox

BLOCK_BYTES = 1024 * 1024
STEP_BYTES = 16 * 1024 * 1024  # moved by one call
FREE_SHARE = 0.05  # of the file system is left to others. Source: Ray spills until a disk is 95 % full

_HEAD = struct.Struct("<IB")  # bytes that follow, 1 if they are compressed
_NO_MEMORY = (errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE)


@dataclass(slots=True, eq=False)
class SpillFile:
    """The bytes of one segment on disk, in a file without a name."""

    fd: int
    nbytes: int  # of the segment
    file_bytes: int
    packed: bool


class DamagedError(OSError):
    """A file does not hold what was written."""


class SpillDisk:
    """Writes segments to files of one directory and reads them back. Loop thread only, but for the helper itself.

    Args:
        directory: where; its file system should be a disk.
        compression: "none" or "lz4".

    The answers are called by `answers`, when `fileno` is readable.
    """

    def __init__(self, directory: str, compression: str = "none") -> None:
        self.directory = directory
        self._packs = compression == "lz4"
        self._condition = threading.Condition()
        self._reads: deque[Callable[[], None]] = deque()  # before writes: somebody waits for them
        self._writes: deque[Callable[[], None]] = deque()
        self._answers = Mailbox()
        self._thread: threading.Thread | None = None  # started by the first job: most nodes never spill
        self._closed = False

    def write(self, fd: int, nbytes: int, done: Callable[[SpillFile | None, str], None]) -> None:
        """Copy the first bytes of a segment to a new file; `done` gets the file, or why there is none."""
        self._order(self._writes, lambda: self._write(fd, nbytes, done))

    def read(self, file: SpillFile, fd: int, done: Callable[[str, bool], None]) -> None:
        """Fill a segment from a file; `done` gets why that failed, or "", and whether the file is to blame."""
        self._order(self._reads, lambda: self._read(file, fd, done))

    def _order(self, jobs: "deque[Callable[[], None]]", job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="zmesh-spill", daemon=True)
            self._thread.start()
        with self._condition:
            jobs.append(job)
            self._condition.notify()

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are answers."""
        return self._answers.fileno()

    def answers(self) -> None:
        """Call what waits for jobs that are done."""
        self._answers.empty()

    def close(self) -> None:
        """End the helper, once the step it is at is done; jobs not yet begun are dropped."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        self._answers.close()

    # The helper thread.

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._reads or self._writes or self._closed):
                    self._condition.wait()
                if self._closed:
                    return
                job = self._reads.popleft() if self._reads else self._writes.popleft()
            job()

    def _write(self, fd: int, nbytes: int, done: Callable[[SpillFile | None, str], None]) -> None:
        file, error = None, ""
        out = -1
        try:
            self._check_free(nbytes)
            out = _unnamed(self.directory)
            written = _pack(fd, out, nbytes) if self._packs else _move(out, fd, nbytes)
            file = SpillFile(out, nbytes, written, self._packs)
        except OSError as problem:
            error = f"cannot write {nbytes:,} bytes to {self.directory}: {problem.strerror or problem}"
            if out >= 0:
                os.close(out)
        self._answers.put(lambda: done(file, error))

    def _check_free(self, nbytes: int) -> None:
        found = os.statvfs(self.directory)
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        if free - nbytes < total * FREE_SHARE:
            raise OSError(errno.ENOSPC, f"{free:,} of {total:,} bytes are free, and {FREE_SHARE:.0%} stay free")

    def _read(self, file: SpillFile, fd: int, done: Callable[[str, bool], None]) -> None:
        error, damaged = "", False
        try:  # Every byte that holds something is written, so nothing need be allocated first.
            if file.packed:
                _unpack(file, fd)
            elif _move(fd, file.fd, file.nbytes) != file.nbytes:
                raise DamagedError(errno.EIO, "it is too short")
        except OSError as problem:
            damaged = problem.errno not in _NO_MEMORY
            error = f"its spill file in {self.directory} cannot be read: {problem.strerror}"
            if not damaged:
                error = f"this host has no memory left ({problem.strerror})"
        self._answers.put(lambda: done(error, damaged))


def _unnamed(directory: str) -> int:
    """Open a file without a name."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    # A file system without O_TMPFILE: a name for a moment.
    path = os.path.join(directory, f".zmesh-{os.urandom(8).hex()}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd


def _move(to: int, source: int, nbytes: int) -> int:
    """Copy the first bytes of a file to the position of another; returns how many there were."""
    done = 0
    while done < nbytes:
        moved = os.sendfile(to, source, done, min(STEP_BYTES, nbytes - done))
        if not moved:
            break
        done += moved
    return done


def _pack(fd: int, out: int, nbytes: int) -> int:
    written = 0
    for start in range(0, nbytes, BLOCK_BYTES):
        block = os.pread(fd, min(BLOCK_BYTES, nbytes - start), start)
        packed = lz4.block.compress(block, store_size=False)
        smaller = len(packed) < len(block)
        data = packed if smaller else block
        written += _write_all(out, _HEAD.pack(len(data), smaller) + data)
    return written


def _write_all(fd: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return len(data)


def _unpack(file: SpillFile, fd: int) -> None:
    at = 0
    for start in range(0, file.nbytes, BLOCK_BYTES):
        length = min(BLOCK_BYTES, file.nbytes - start)
        head = os.pread(file.fd, _HEAD.size, at)
        if len(head) < _HEAD.size:
            raise DamagedError(errno.EIO, "it is too short")
        size, packed = _HEAD.unpack(head)
        block = os.pread(file.fd, min(size, BLOCK_BYTES), at + _HEAD.size)
        at += _HEAD.size + size
        if packed:
            try:
                block = lz4.block.decompress(block, uncompressed_size=length)
            except lz4.block.LZ4BlockError as error:
                raise DamagedError(errno.EIO, f"its bytes make no sense ({error})") from None
        if len(block) != length:
            raise DamagedError(errno.EIO, "it is too short")
        os.pwrite(fd, block, start)
