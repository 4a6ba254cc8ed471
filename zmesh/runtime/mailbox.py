"""What threads ask one thread to do: a queue of calls, and a descriptor that is readable while there are some."""

import contextlib
import os
import queue
from collections.abc import Callable


class Mailbox:
    """Calls for one thread. `put` may be called by any thread, all else by that one."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, call: Callable[[], None]) -> None:
        """Have the thread make this call, after those that were put before."""
        self._calls.put(call)
        os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are calls."""
        return self._fd

    def empty(self) -> None:
        """Make the calls that were put."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return
            call()

    def close(self) -> None:
        """Close the descriptor; nobody puts a call any more."""
        os.close(self._fd)
