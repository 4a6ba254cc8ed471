"""The functions that contenders run in their workers: importable by name everywhere, and the same for everybody.

Whoever drives puts this directory on PYTHONPATH (harness.py does). What one question needs is imported inside its
function, so that the others measure workers without it.
"""

import importlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

PAGE_ITEMS = 512  # float64 items in a page of 4 KiB


def nothing() -> None:
    """Do nothing."""


def increment(number: int) -> int:
    """Return the next number: the smallest task with an argument and a result."""
    return number + 1


def count(*values: Any) -> int:
    """Return how many arguments there are."""
    return len(values)


def numbers(count: int) -> list[int]:
    """Return so many results."""
    return list(range(count))


def identify(seconds: float) -> int:
    """Hold a worker for some seconds and return its pid."""
    time.sleep(seconds)
    return os.getpid()


def wait_for_file(path: str) -> None:
    """Hold a worker until the file exists."""
    while not os.path.exists(path):
        time.sleep(0.01)


def burn(loops: int) -> int:
    """Keep a core busy with `loops` additions."""
    total = 0
    for number in range(loops):
        total += number
    return total


def burn_all(items: list[int]) -> list[int]:
    """Run `burn` on a chunk of items, for peers that cut no chunks themselves."""
    return [burn(item) for item in items]


def touch(array: Any) -> float:
    """Read one item of each page of a float64 array, and return their sum."""
    return float(array[::PAGE_ITEMS].sum())


def get_memory(seconds: float) -> tuple[int, int, int]:
    """Return (pid, anonymous bytes, private dirty bytes) of a worker that has numpy, after holding it for a while."""
    import numpy as np

    touch(np.zeros(PAGE_ITEMS))
    time.sleep(seconds)
    return (os.getpid(), *_private_memory())


def get_memory_with(array: Any) -> tuple[int, int, int, float]:
    """Read all of an array, then return (pid, anonymous bytes, private dirty bytes, its sum by pages)."""
    total = touch(array)
    return (os.getpid(), *_private_memory(), total)


def _private_memory() -> tuple[int, int]:
    from processes import memory_of

    told = memory_of(os.getpid())
    return told["Anonymous"], told["Private_Dirty"]


class Nothing:
    """An actor that does nothing."""

    def call(self) -> None:
        """Return at once."""

    def count(self, items: int) -> Iterator[int]:
        """Yield so many numbers."""
        for number in range(items):  # noqa: UP028  # Ray has no `yield from`
            yield number


class AsyncNothing:
    """An actor that does nothing, in an event loop."""

    async def call(self) -> None:
        """Return at once."""

    async def count(self, items: int) -> AsyncIterator[int]:
        """Yield so many numbers."""
        for number in range(items):
            yield number


def call_all(module: str, actors: list[Any], calls: int) -> None:
    """Call each actor in turn, all at once."""
    api = importlib.import_module(module)
    api.get([actors[number % len(actors)].call.remote() for number in range(calls)])
