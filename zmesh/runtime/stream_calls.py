"""What the face asks of a session about streams: their next item, and waits for streams among refs.

Mixed into runtime/session.py.
"""

from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Any

from zmesh.core.records import Entry, Task
from zmesh.exceptions import GetTimeoutError
from zmesh.runtime.reactor import Waiter, listen, unlisten
from zmesh.wire.messages import PENDING


class StreamCalls:
    """The part of a Session that deals with streams. Any thread."""

    def next_item(self: Any, task: Task, index: int, timeout: float | None) -> Entry | None:
        """Wait for item `index` of a stream; None if the stream ended before it."""
        outputs = task.outputs
        assert outputs is not None
        while index >= len(outputs):
            if task.status != PENDING:
                return None
            before = len(outputs)
            waiter = Waiter(1)
            with self.reactor.lock:
                if len(outputs) > before or task.status != PENDING:
                    continue
                listen(task, waiter)
            deadline = None if timeout is None else monotonic() + timeout
            try:
                there = self.wait_for(waiter, deadline)
            finally:
                with self.reactor.lock:
                    unlisten(task, waiter)
            if not there:
                raise GetTimeoutError(f"item {index} of {task.spec.name} was not there after timeout={timeout} s")
        if task.spec.options.get("backpressure"):
            self._do(lambda: self.core.tasks.consumed(task, index + 1))
        return outputs[index]

    def item_future(self: Any, task: Task, index: int) -> "Future[Entry | None]":
        """Return a future of what `next_item` returns. No thread waits for it: one thread settles them all."""
        future: Future[Entry | None] = Future()

        def look(_: Entry) -> None:
            if _is_ready(task, index):
                self._later(lambda: settle_future(future, lambda: self.next_item(task, index, None)))
            else:
                listen(task, Waiter(1, callback=look))

        with self.reactor.lock:
            look(task)
        self.nudge()
        return future

    def wait_with_streams(self: Any, awaited: list[tuple[Entry, int]], needed: int, timeout: float | None) -> None:
        """Wait until `needed` are ready: refs with a value or an error, streams with another item or at their end.

        Args:
            awaited: (entry, -1) of a ref; (task, items taken of it) of a stream.
        """
        deadline = None if timeout is None else monotonic() + timeout
        reactor, core = self.reactor, self.core
        reactor.check_usable()
        waiter = Waiter(needed)

        def register() -> None:
            for entry, taken in awaited:
                if _is_ready(entry, taken):
                    waiter.resolved(entry)
                else:
                    listen(entry, waiter)
                    core.fetch(entry)

        try:
            self.wait_for(waiter, deadline, register)
        finally:
            with reactor.lock:
                for entry, taken in awaited:
                    if not _is_ready(entry, taken):
                        unlisten(entry, waiter)

    def stream_ended(self: Any, task: Task, taken: int) -> bool:
        """Whether the stream's task is over and all its items were taken."""
        assert task.outputs is not None
        return task.status != PENDING and taken >= len(task.outputs)

    def abandon(self: Any, task: Task, taken: int) -> None:
        """The reader of a stream is gone. From a finalizer: only notes it."""
        self.reactor.unpinned.append(lambda: self.core.tasks.abandon(task, taken))
        self.nudge()


def _is_ready(entry: Any, taken: int) -> bool:
    """Whether a ref has its value or error, or a stream an item beyond those taken, or its end."""
    return entry.status != PENDING or (taken >= 0 and len(entry.outputs) > taken)


def settle_future(future: "Future[Any]", action: Callable[[], Any]) -> None:
    """Give a future what `action` returns or raises."""
    try:
        value = action()
    except BaseException as error:
        if not future.cancelled():
            future.set_exception(error)
    else:
        if not future.cancelled():
            future.set_result(value)
