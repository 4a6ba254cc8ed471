"""A queue that programs, tasks and actors of the mesh share, held by an actor. Names and semantics are Ray's."""

import asyncio
import queue
from typing import Any

from zmesh import api
from zmesh.actor import ActorHandle, kill
from zmesh.exceptions import ConfigError
from zmesh.remote_function import remote

__all__ = ["Empty", "Full", "Queue"]


class Empty(queue.Empty):
    """Nothing is in the queue, or not enough, or nothing came in time."""


class Full(queue.Full):
    """There is no room, or none came in time."""


class _Items:
    """The actor."""

    def __init__(self, maxsize: int) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)
        self._maxsize = maxsize

    async def put(self, item: Any, timeout: float | None) -> bool:
        """Return whether there was room in time. A timeout of 0 does not wait."""
        try:
            if timeout == 0:
                self._queue.put_nowait(item)
            else:
                await asyncio.wait_for(self._queue.put(item), timeout)
        except (asyncio.QueueFull, TimeoutError):
            return False
        return True

    async def get(self, timeout: float | None) -> tuple[bool, Any]:
        """Return (whether there is one, item)."""
        try:
            if timeout == 0:
                return True, self._queue.get_nowait()
            return True, await asyncio.wait_for(self._queue.get(), timeout)
        except (asyncio.QueueEmpty, TimeoutError):
            return False, None

    async def put_batch(self, items: list[Any]) -> bool:
        """Put all, or none."""
        if self._maxsize and self._queue.qsize() + len(items) > self._maxsize:
            return False
        for item in items:
            self._queue.put_nowait(item)
        return True

    async def get_batch(self, count: int) -> list[Any] | None:
        """Take so many, or none."""
        if self._queue.qsize() < count:
            return None
        return [self._queue.get_nowait() for _ in range(count)]

    async def size(self) -> int:
        """Return how many items there are."""
        return self._queue.qsize()


def _seconds(block: bool, timeout: float | None) -> float | None:
    """Return how long to wait: None is for ever.

    Raises:
        ConfigError: a negative time.
    """
    if timeout is not None and timeout < 0:
        raise ConfigError(f"timeout must not be negative, but is {timeout}")
    return timeout if block else 0


class Queue:
    """A first-in-first-out queue. Any thread, any process of the mesh: it may be passed to tasks and actors.

    Args:
        maxsize: most items; 0: any number.
        actor_options: options of the actor that holds them, as for `.options()`.

    Attributes:
        actor: its handle.

    Example:
        >>> jobs = Queue(maxsize=100)
        >>> jobs.put("one")
        >>> jobs.get()
        'one'
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        if type(maxsize) is not int:
            raise ConfigError(f"maxsize must be a whole number, 0 for no limit, not {maxsize!r}")
        self.maxsize = maxsize
        make: Any = remote(_Items)
        self.actor: ActorHandle = make.options(**({"num_cpus": 0} | (actor_options or {}))).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """Return how many items there are."""
        count: int = api.get(self.actor.size.remote())
        return count

    def qsize(self) -> int:
        """Return how many items there are."""
        return self.size()

    def empty(self) -> bool:
        """Whether there is none."""
        return not self.size()

    def full(self) -> bool:
        """Whether there is no room."""
        return 0 < self.maxsize <= self.size()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item; waits for room.

        Raises:
            Full: there is none, or none within `timeout` seconds.
        """
        if not api.get(self.actor.put.remote(item, _seconds(block, timeout))):
            raise Full(f"{self.maxsize} items are in the queue, as many as it may hold")

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """As `put`, for a coroutine."""
        if not await self.actor.put.remote(item, _seconds(block, timeout)):
            raise Full(f"{self.maxsize} items are in the queue, as many as it may hold")

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item; waits for one.

        Raises:
            Empty: there is none, or none within `timeout` seconds.
        """
        found, item = api.get(self.actor.get.remote(_seconds(block, timeout)))
        if not found:
            raise Empty("the queue is empty")
        return item

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """As `get`, for a coroutine."""
        found, item = await self.actor.get.remote(_seconds(block, timeout))
        if not found:
            raise Empty("the queue is empty")
        return item

    def put_nowait(self, item: Any) -> None:
        """As `put`, without waiting."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """As `get`, without waiting."""
        return self.get(block=False)

    def put_nowait_batch(self, items: list[Any]) -> None:
        """Add all items in one call, or none.

        Raises:
            Full: there is not room for all.
        """
        if not api.get(self.actor.put_batch.remote(list(items))):
            raise Full(f"there is no room for {len(items)} items")

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take so many items in one call, or none.

        Raises:
            Empty: there are not so many.
        """
        items: list[Any] | None = api.get(self.actor.get_batch.remote(num_items))
        if items is None:
            raise Empty(f"there are not {num_items} items in the queue")
        return items

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the queue; what is in it is lost. Unless `force`, calls before this one may end, for that time."""
        if not force:
            api.wait([self.actor.__zmesh_terminate__.remote()], timeout=grace_period_s)
        kill(self.actor)
