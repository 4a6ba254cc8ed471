"""A pool of actors that work off calls, each actor one at a time. Names and semantics are Ray's."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from zmesh import api
from zmesh.exceptions import ConfigError, GetTimeoutError

__all__ = ["ActorPool"]


class ActorPool:
    """Hands each value to an actor that is free. For one thread.

    Args:
        actors: handles; a call is `function(actor, value)` and returns a ref.

    Example:
        >>> pool = ActorPool([Worker.remote() for _ in range(4)])
        >>> list(pool.map(lambda actor, value: actor.work.remote(value), range(100)))
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle: list[Any] = list(actors)
        self._running: dict[Any, tuple[int, Any]] = {}  # {ref: (number of its call, actor)}
        self._refs: dict[int, Any] = {}  # {number: ref} of calls that were sent and not taken
        self._pending: deque[tuple[Callable[[Any, Any], Any], Any]] = deque()  # for a free actor
        self._sent = 0
        self._next = 0  # number of the call whose result get_next returns

    def submit(self, function: Callable[[Any, Any], Any], value: Any) -> None:
        """Call `function(actor, value)` with the next actor that is free."""
        if not self._idle:
            self._pending.append((function, value))
            return
        actor = self._idle.pop()
        ref = function(actor, value)
        self._running[ref] = (self._sent, actor)
        self._refs[self._sent] = ref
        self._sent += 1

    def _free(self, actor: Any) -> None:
        self._idle.append(actor)
        if self._pending:
            self.submit(*self._pending.popleft())

    def _take(self, ref: Any) -> Any:
        """Forget a call, and give its actor the next one."""
        number, actor = self._running.pop(ref)
        del self._refs[number]
        self._free(actor)
        return ref

    def has_next(self) -> bool:
        """Whether a result is there, or under way, that nobody took."""
        return bool(self._refs)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Return the next result, in the order of `submit`.

        Args:
            timeout: seconds; None waits for ever.
            ignore_if_timedout: give the call up at the timeout, and let its actor have another.

        Raises:
            StopIteration: there is none.
            ConfigError: `get_next_unordered` took results before: mixing both is for nobody to understand.
            GetTimeoutError: it is not there in time; the call stays the next, unless it is given up.
        """
        if not self.has_next():
            raise StopIteration("no more results")
        if self._next not in self._refs:
            raise ConfigError("get_next() after get_next_unordered(): take all results by one of them")
        ref = self._refs[self._next]
        ready, _ = api.wait([ref], timeout=timeout)
        if not ready and not ignore_if_timedout:
            raise GetTimeoutError(f"no result within {timeout:g} s")
        self._next += 1
        self._take(ref)
        if not ready:
            raise GetTimeoutError(f"no result within {timeout:g} s; the call was given up")
        return api.get(ref)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Return whichever result is there first; see `get_next`."""
        if not self.has_next():
            raise StopIteration("no more results")
        ready, waiting = api.wait(list(self._running), timeout=timeout)
        if not ready:
            if ignore_if_timedout:
                self._take(waiting[0])
            raise GetTimeoutError(f"no result within {timeout:g} s")
        self._next = max(self._next, self._running[ready[0]][0] + 1)
        return api.get(self._take(ready[0]))

    def map(self, function: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """Yield the results of `function(actor, value)` for all values, in their order. Submits at once."""
        return self._results(function, values, self.get_next)

    def map_unordered(self, function: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """As `map`, in the order in which they are ready."""
        return self._results(function, values, self.get_next_unordered)

    def _results(
        self, function: Callable[[Any, Any], Any], values: Iterable[Any], take: Callable[[], Any]
    ) -> Iterator[Any]:
        while self.has_next():  # of calls before: nobody will take them
            self.get_next_unordered(timeout=0, ignore_if_timedout=True)
        self._next = self._sent
        for value in values:
            self.submit(function, value)

        def results() -> Iterator[Any]:
            while self.has_next():
                yield take()

        return results()

    def has_free(self) -> bool:
        """Whether an actor is idle, and nothing waits for one."""
        return bool(self._idle) and not self._pending

    def pop_idle(self) -> Any:
        """Take an idle actor out of the pool; None if there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Put an actor into the pool.

        Raises:
            ConfigError: it is in it.
        """
        if actor in self._idle or any(actor == busy for _, busy in self._running.values()):
            raise ConfigError("this actor is in the pool already")
        self._free(actor)
