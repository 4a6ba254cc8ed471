"""Which workers are too many, when tasks that waited go on and take back what others had booked meanwhile.

The books go negative then, and workers that are attached take one task after another. One that has no work is no
burden, and may be what the next wait needs. But those that run more than there is for OVERBOOKED_S come back when their
task is over, the last that were attached first. Else as many as ever waited at once went on to the end of the queue.
"""

from collections.abc import Callable, Iterable
from typing import Any

from zmesh.core.timers import Timers
from zmesh.wire.messages import Shape

OVERBOOKED_S = 0.1


class Overbooked:
    """Watches the books of one node.

    Args:
        available: what is free, by name; below zero if more is booked than there is.
        takers: the workers that take tasks.
        works: whether one is attached and runs user code now.
        detach: asks one to come back.
    """

    def __init__(
        self,
        timers: Timers,
        *,
        available: Shape,
        takers: Callable[[], Iterable[Any]],
        works: Callable[[Any], bool],
        detach: Callable[[Any], None],
    ) -> None:
        self._timers = timers
        self._available = available
        self._takers = takers
        self._works = works
        self._detach = detach
        self._timer = 0

    def look(self, now: float) -> None:
        """A task goes on that waited."""
        if not self._timer and any(amount < 0 for amount in self._available.values()):
            self._timer = self._timers.set(now + OVERBOOKED_S, self._shed)

    def _shed(self, now: float) -> None:
        self._timer = 0
        short = {name: -amount for name, amount in self._available.items() if amount < 0}
        booked = [worker for worker in self._takers() if worker.booking is not None and not worker.booking.blocked]
        working = [worker for worker in booked if self._works(worker)]
        for worker in booked:
            if worker not in working:  # it is no burden, or on its way back
                _take(short, worker.booking.shape)
        for worker in sorted(working, key=lambda worker: worker.epoch, reverse=True):
            if any(short.get(name, 0) > 0 for name in worker.booking.shape):
                self._detach(worker)
                _take(short, worker.booking.shape)
        self.look(now)


def _take(short: Shape, shape: Shape) -> None:
    for name in short:
        short[name] -= shape.get(name, 0)
