"""A semaphore that programs, tasks and actors of the mesh share, held by an actor. Who dies gives back what he had."""

import asyncio
from typing import Any

from zmesh.exceptions import LocalProtocolError
from zmesh.util.presence import Presence, Present, start

__all__ = ["Semaphore"]


class _Permits(Presence):
    """The actor."""

    def __init__(self, permits: int) -> None:
        super().__init__()
        self._free = permits
        self._waiting: dict[int, asyncio.Event] = {}  # {number of who waits: set when it is his turn}, in their order
        self._holders: dict[int, bool] = {}  # {number of who has a permit: True}

    async def acquire(self, held: list[Any], number: int, timeout: float | None) -> bool:
        """Wait for a permit; returns whether there was one in time."""
        turn = self._waiting[number] = asyncio.Event()
        self.watch(held[0], number)
        self._serve()
        try:
            await asyncio.wait_for(turn.wait(), None if turn.is_set() else timeout)
        except TimeoutError:
            self.left(number)
        return number in self._holders

    def _serve(self) -> None:
        while self._free and self._waiting:
            number = next(iter(self._waiting))
            self._waiting.pop(number).set()
            self._holders[number] = True
            self._free -= 1

    def left(self, number: int) -> None:
        """Somebody gives his permit back, is dead, or waits no longer."""
        self._waiting.pop(number, asyncio.Event()).set()
        if self._holders.pop(number, False):
            self._free += 1
            self._serve()


class Semaphore:
    """At most so many hold it at once, in the whole mesh. Any thread, any process: it may be passed to tasks.

    A permit belongs to the process that acquired it, and is given back when that dies. A worker lives longer than its
    task: use `with`.

    Example:
        >>> downloads = Semaphore(4)
        >>> with downloads:
        ...     fetch()
    """

    def __init__(self, value: int = 1, actor_options: dict[str, Any] | None = None) -> None:
        self.actor = start(_Permits, "value", value, actor_options)
        self._held: list[Present] = []

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for a permit, for so many seconds at most; returns whether there was one."""
        present = Present(self.actor)
        return self._note(present, present.ask("acquire", timeout))

    async def acquire_async(self, timeout: float | None = None) -> bool:
        """As `acquire`, for a coroutine."""
        present = Present(self.actor)
        return self._note(present, await present.ask_async("acquire", timeout))

    def _note(self, present: Present, acquired: bool) -> bool:
        if acquired:
            self._held.append(present)
        else:
            present.leave()
        return acquired

    def release(self) -> None:
        """Give back a permit that this process acquired by this object; LocalProtocolError if it has none."""
        if not self._held:
            raise LocalProtocolError("release() of a semaphore that this process has not acquired")
        self._held.pop().leave()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()

    async def __aenter__(self) -> None:
        await self.acquire_async()

    async def __aexit__(self, *exc: object) -> None:
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": []}  # permits belong to the process that acquired them
