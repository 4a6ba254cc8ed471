"""One heap of deadlines for all machines of a process; equal deadlines fire in the order they were set."""

import heapq
from collections.abc import Callable
from itertools import count


class Timers:
    """Deadlines in seconds, on whatever clock the shell passes as `now`."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []  # (deadline, token); cancelled ones stay until they come up
        self._live: dict[int, Callable[[float], None]] = {}  # {token: what to call}
        self._tokens = count(1)

    def set(self, deadline_s: float, fire: Callable[[float], None]) -> int:
        """Call `fire(now)` at the first tick at or after `deadline_s`. Returns a token for `cancel`, never 0."""
        token = next(self._tokens)
        self._live[token] = fire
        heapq.heappush(self._heap, (deadline_s, token))
        return token

    def cancel(self, token: int) -> None:
        """Forget the timer; a token that fired or was cancelled is ignored."""
        self._live.pop(token, None)

    def next_deadline(self) -> float | None:
        """Earliest live deadline in seconds, or None; the shell sleeps until then."""
        heap = self._heap
        while heap and heap[0][1] not in self._live:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def tick(self, now: float) -> None:
        """Fire every timer due at `now`, including those that firing sets."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            _, token = heapq.heappop(self._heap)
            self._live.pop(token)(now)
