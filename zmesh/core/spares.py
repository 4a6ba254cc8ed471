"""Segments of dropped copies, kept for the next copies of their size: mapped pages cost less than fresh ones."""

from collections.abc import Callable

from zmesh.core.timers import Timers

SPARE_S = 30.0  # one that nobody needed for so long goes


class Spares:
    """The spare segments of one node.

    Args:
        bytes_max: of all together.
        drop: gives one back to the store.
    """

    def __init__(self, timers: Timers, bytes_max: int, drop: Callable[[int], None]) -> None:
        self._timers = timers
        self._bytes_max = bytes_max
        self._give_back = drop
        self._spare: dict[int, tuple[int, float]] = {}  # {segment: (its bytes, since when)}, the oldest first
        self._bytes = 0
        self._timer = 0

    def __contains__(self, segment: int) -> bool:
        return segment in self._spare

    def keep(self, segment: int, size: int, now: float) -> bool:
        """Keep one; returns whether there is room for it."""
        if self._bytes + size > self._bytes_max:
            return False
        self._spare[segment] = size, now
        self._bytes += size
        self._watch()
        return True

    def take(self, size: int) -> int:
        """Return one of exactly that size, which is spare no more; 0 if there is none."""
        segment = next((segment for segment, (its, _) in self._spare.items() if its == size), 0)
        if segment:
            self._remove(segment)
        return segment

    def drop(self, segment: int) -> None:
        """Give one back."""
        self._remove(segment)
        self._give_back(segment)

    def clear(self) -> None:
        """Give all back: the store is full."""
        for segment in list(self._spare):
            self.drop(segment)

    def _remove(self, segment: int) -> None:
        size, _ = self._spare.pop(segment)
        self._bytes -= size

    def _watch(self) -> None:
        if self._spare and not self._timer:
            _, since = next(iter(self._spare.values()))
            self._timer = self._timers.set(since + SPARE_S, self._look)

    def _look(self, now: float) -> None:
        self._timer = 0
        for segment in [segment for segment, (_, since) in self._spare.items() if since + SPARE_S <= now]:
            self.drop(segment)
        self._watch()
