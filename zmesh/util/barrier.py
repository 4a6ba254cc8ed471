"""A barrier that programs, tasks and actors of the mesh share, held by an actor. Who dies waiting has not come."""

import asyncio
import threading
from typing import Any

from zmesh.util.presence import Presence, Present, start

__all__ = ["Barrier", "BrokenBarrierError"]


class BrokenBarrierError(threading.BrokenBarrierError):
    """Not all came in time: for who waited too long, and for all who waited with him."""


class _Meeting(Presence):
    """The actor."""

    def __init__(self, parties: int) -> None:
        super().__init__()
        self._parties = parties
        self._waiting: dict[int, asyncio.Future[int]] = {}  # {number of who waits: his place, or -1 if it is broken}

    async def wait(self, held: list[Any], number: int, timeout: float | None) -> int:
        """Return how many came before, when all are there; -1: they did not come in time."""
        mine: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[number] = mine
        self.watch(held[0], number)
        if len(self._waiting) == self._parties:
            self._end(list(range(self._parties)))
        try:
            return await asyncio.wait_for(asyncio.shield(mine), timeout)
        except TimeoutError:
            if not mine.done():
                self._end([-1] * len(self._waiting))
            return mine.result()

    def _end(self, places: list[int]) -> None:
        waiting, self._waiting = self._waiting, {}
        for future, place in zip(waiting.values(), places, strict=True):
            future.set_result(place)

    def left(self, number: int) -> None:
        """Who waited is dead: the others wait for somebody else."""
        future = self._waiting.pop(number, None)
        if future is not None:
            future.set_result(-1)


class Barrier:
    """Who waits goes on when so many wait. Any thread, any process of the mesh: it may be passed to tasks and actors.

    It can be used again and again. The tasks that meet must all run at once: see placement groups.

    Args:
        parties: how many meet.
        actor_options: options of the actor where they meet, as for `.options()`.

    Example:
        >>> start = Barrier(2)
        >>> refs = [work.remote(start) for _ in range(2)]  # each calls start.wait()
    """

    def __init__(self, parties: int, actor_options: dict[str, Any] | None = None) -> None:
        self.actor = start(_Meeting, "parties", parties, actor_options)
        self.parties = parties

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all are there; returns how many came before.

        Raises:
            BrokenBarrierError: somebody's timeout (seconds) was over before.
        """
        present = Present(self.actor)
        return self._told(present, present.ask("wait", timeout))

    async def wait_async(self, timeout: float | None = None) -> int:
        """As `wait`, for a coroutine."""
        present = Present(self.actor)
        return self._told(present, await present.ask_async("wait", timeout))

    def _told(self, present: Present, place: int) -> int:
        present.leave()
        if place < 0:
            raise BrokenBarrierError(f"not all of {self.parties} came in time")
        return place
