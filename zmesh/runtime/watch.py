"""What a node's loop sleeps on: descriptors, and who reads each."""

import contextlib
import select
from collections.abc import Callable, Iterable

Read = Callable[[int], None]


class Watch:
    """Descriptors, and who is called with one that is readable. Loop thread only."""

    def __init__(self) -> None:
        self._poll = select.epoll()  # of thousands of descriptors few have something: each worker has four
        self._readers: dict[int, Read] = {}

    def __contains__(self, fd: int) -> bool:
        return fd in self._readers

    def add(self, fd: int, read: Read) -> None:
        """Watch one more; whose number it was before matters no more."""
        self._readers[fd] = read
        self._poll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Watch one no more; before it is closed, or its number may be another's."""
        del self._readers[fd]
        with contextlib.suppress(OSError):
            self._poll.unregister(fd)

    def replace(self, fds: Iterable[int], read: Read) -> None:
        """Have these and no others read by `read`.

        For sockets of ZeroMQ, which closes them itself: a number it gave up may long be a descriptor of somebody else.
        """
        for fd in [fd for fd, reader in self._readers.items() if reader == read]:
            self.remove(fd)
        for fd in dict.fromkeys(fds):
            self.add(fd, read)

    def read(self, fd: int) -> None:
        """Call who reads a descriptor, as if it were readable."""
        self._readers[fd](fd)

    def wait(self, timeout_s: float | None) -> list[int]:
        """Sleep until one is readable, and return those that are."""
        return [fd for fd, _ in self._poll.poll(timeout_s)]

    def dispatch(self, ready: list[int]) -> None:
        """Call the readers of what `wait` found; one may have ended another's watch."""
        for fd in ready:
            if fd in self._readers:
                self.read(fd)
