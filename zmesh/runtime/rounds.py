"""`ready, refs = zmesh.wait(refs)` in a loop: what one call has learnt of the refs serves the next one, too.

To look at n refs in each of n calls took 86 s for 20,000 of them. So the list of the rest that `wait` returns carries
a Round. If it comes back as it was, or with more refs at its end, the refs are not looked at again: their entries have
told the Round. What is left for each call is to compare, move and copy n pointers, some 4 ns each: 0.7 s for those
20,000.

Mixed into runtime/session.py.
"""

import threading
from bisect import bisect_left
from heapq import heappop, heappush
from time import monotonic
from typing import Any

from zmesh.object_ref import ObjectRef
from zmesh.runtime.reactor import Waiter, listen, unlisten
from zmesh.wire.messages import PENDING

_ONE_BY_ONE_MAX = 16  # to take more refs out of the list than this, one pass over it is cheaper than a move for each


class RestList(list[Any]):
    """The refs that a wait left. A list like any other; pickled, it is a plain one."""

    __slots__ = ("zmesh_round",)

    def __init__(self, refs: list[Any], zmesh_round: "Round | None") -> None:
        super().__init__(refs)
        self.zmesh_round = zmesh_round

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


class Round:
    """Waits for the refs of one list, again and again. One thread at a time; another one is told that it may not.

    Args:
        session: whose refs they are.
        refs: some that differ.
    """

    def __init__(self, session: Any, refs: list[ObjectRef[Any]]) -> None:
        self._session = session
        self._alone = threading.Lock()
        self._waiter = Waiter(1)
        self._refs: list[ObjectRef[Any]] = []  # as the last list of the rest held them
        self._numbers: list[int] = []  # of these, ascending, as numbers never change
        self._number_of: dict[int, int] = {}  # {id() of an entry: its number}
        self._next = 0
        self._ready: list[int] = []  # heap: numbers of those that have a value or an error
        self._add(refs)

    def _add(self, refs: list[ObjectRef[Any]]) -> None:
        session = self._session
        with session.reactor.lock:
            for ref in refs:
                entry = ref._entry
                self._number_of[id(entry)] = self._next
                self._numbers.append(self._next)
                self._refs.append(ref)
                self._next += 1
                if entry.status == PENDING:
                    listen(entry, self._waiter)
                    session.core.fetch(entry)
                else:
                    self._waiter.ready.append(entry)

    def wait(
        self, refs: list[Any], num_returns: int, timeout: float | None
    ) -> tuple[list[ObjectRef[Any]], RestList] | None:
        """Do what zmesh.wait does; None if these are other refs than those of the last call, with more at their end."""
        if not self._alone.acquire(blocking=False):
            return None
        try:
            if not self._takes(refs) or not 0 < num_returns <= len(refs):
                return None
            self._wait(num_returns, None if timeout is None else monotonic() + timeout)
            ready = self._take(num_returns)
            return ready, RestList(self._refs, self)
        finally:
            self._alone.release()

    def _takes(self, refs: list[Any]) -> bool:
        """Whether these are the refs we know, and perhaps more, which we know from now on."""
        known = len(self._refs)
        if len(refs) == known:
            return refs == self._refs
        if len(refs) < known or refs[:known] != self._refs:
            return False
        more = refs[known:]
        entries = [ref._entry for ref in more if isinstance(ref, ObjectRef)]
        new = {id(entry): True for entry in entries if id(entry) not in self._number_of}
        if len(new) < len(more):
            return False
        self._add(more)
        return True

    def _wait(self, needed: int, deadline: float | None) -> None:
        session, waiter = self._session, self._waiter
        reactor = session.reactor
        reactor.check_usable()
        self._drain()
        if len(self._ready) >= needed:
            return
        with reactor.lock:
            self._drain()
            waiter.remaining = needed - len(self._ready)
            waiter.satisfied = waiter.remaining <= 0
        session.wait_for(waiter, deadline)
        self._drain()

    def _drain(self) -> None:
        told, number_of = self._waiter.ready, self._number_of
        while told:
            heappush(self._ready, number_of[id(told.popleft())])

    def _take(self, count: int) -> list[ObjectRef[Any]]:
        """Take the first of those that are ready out of the list, in its order."""
        numbers = [heappop(self._ready) for _ in range(min(count, len(self._ready)))]
        places = [bisect_left(self._numbers, number) for number in numbers]
        ready = [self._refs[place] for place in places]
        for ref in ready:
            del self._number_of[id(ref._entry)]
        if len(places) <= _ONE_BY_ONE_MAX:
            for place in reversed(places):
                del self._refs[place], self._numbers[place]
        else:
            taken = dict.fromkeys(numbers, True)
            left = [place for place, number in enumerate(self._numbers) if number not in taken]
            self._refs = [self._refs[place] for place in left]
            self._numbers = [self._numbers[place] for place in left]
        return ready

    def __del__(self) -> None:
        # May run anywhere, also inside our own lock: only note what is to be done.
        waiter, entries = self._waiter, [ref._entry for ref in self._refs]
        self._session.reactor.unpinned.append(lambda: _unlisten_all(entries, waiter))


def _unlisten_all(entries: list[Any], waiter: Waiter) -> None:
    for entry in entries:
        if entry.status == PENDING:
            unlisten(entry, waiter)


class RoundCalls:
    """The part of a Session that waits in rounds. Any thread."""

    def rest(self, given: Any, rest: list[Any]) -> RestList:
        """Return the rest of a wait for `given` as a list to go on with."""
        # Who waits once for a list will hardly wait again; who does it twice does it in a loop.
        return RestList(rest, Round(self, rest) if rest and type(given) is RestList else None)
