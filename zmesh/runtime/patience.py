"""What to do while the store is full of what others hold, who wait as we do: let go of all, and try again.

A task that has some of its arguments and waits for room to bring the others back from disk keeps others from the same.
So whoever is refused forgets what he has and begins anew after a while, by chance a longer or a shorter one.
"""

import random
from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

from zmesh.exceptions import StoreFullError, TaskError

PATIENCE_S = 4.0  # for what needs more room than there is, too
PAUSE_S = (0.02, 0.4)

T = TypeVar("T")


def when_full(attempt: Callable[[], T]) -> T:
    """Return what `attempt` returns; while it raises StoreFullError, do it again until PATIENCE_S are over. May block.

    Args:
        attempt: keeps nothing that it got when it raises.

    Raises:
        StoreFullError: it did to the end.
    """
    deadline = monotonic() + PATIENCE_S
    while True:
        try:
            return attempt()
        except StoreFullError as error:
            if isinstance(error, TaskError) or monotonic() >= deadline:
                raise  # a task's own error will not change
        sleep(random.uniform(*PAUSE_S))  # here, as the error's traceback has what it got
