"""`ready, refs = zmesh.wait(refs)` in a loop: what one call has learnt of the refs serves the next one, too.

To look at n refs in each of n calls took 86 s for 20,000 of them. So the list of the rest that `wait` returns carries
a Round. If it comes back as it was, or with more refs at its end, the refs are not looked at again: their entries have
told the Round. Nor are they copied, see runtime/rest_list.py.

Mixed into runtime/session.py.
"""

import threading
from heapq import heappop, heappush
from time import monotonic
from typing import Any

from zmesh.object_ref import ObjectRef
from zmesh.runtime.reactor import Waiter, listen, unlisten
from zmesh.runtime.rest_list import RestList, UnreadList, Version
from zmesh.wire.messages import PENDING


class Round:
    """Waits for the refs of one list, again and again. One thread at a time; another one is told that it may not.

    Args:
        session: whose refs they are.
        refs: some that differ.

    Attributes:
        state: guards what follows, as lists of the rest are read in any thread.
        left: {number: ref}, in the order of the list: numbers grow and never change.
    """

    def __init__(self, session: Any, refs: list[ObjectRef[Any]]) -> None:
        self._session = session
        self._alone = threading.Lock()
        self._waiter = Waiter(1)
        self.state = threading.RLock()
        self.left: dict[int, ObjectRef[Any]] = {}
        self._number_of: dict[int, int] = {}  # {id() of an entry: its number}
        self._next = 0
        self._ready: list[int] = []  # heap: numbers of those that have a value or an error
        self._add(refs)
        self._version = Version(len(refs), self._next)

    def _add(self, refs: list[ObjectRef[Any]]) -> None:
        session = self._session
        with session.reactor.lock:
            for ref in refs:
                entry = ref._entry
                self._number_of[id(entry)] = self._next
                self.left[self._next] = ref
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
            return self._take(num_returns), UnreadList(self, self._version)
        finally:
            self._alone.release()

    def _takes(self, refs: list[Any]) -> bool:
        """Whether these are the refs we know, and perhaps more, which we know from now on."""
        with self.state:
            if type(refs) is UnreadList:
                if refs.version is not self._version:
                    return False
                more = refs.appended()
            else:
                known = list(self.left.values())
                if refs[: len(known)] != known:
                    return False
                more = refs[len(known) :]
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
        with self.state:
            numbers = [heappop(self._ready) for _ in range(min(count, len(self._ready)))]
            taken = {number: self.left.pop(number) for number in numbers}
            for ref in taken.values():
                del self._number_of[id(ref._entry)]
            self._version = self._version.after(taken, len(self.left), self._next)
            return list(taken.values())

    def __del__(self) -> None:
        # May run anywhere, also inside our own lock: only note what is to be done.
        waiter, entries = self._waiter, [ref._entry for ref in self.left.values()]
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
        return RestList(rest, Round(self, rest) if rest and isinstance(given, RestList) else None)
