"""The actor's half: which call of which caller runs next in this worker, and when results go back.

Calls start in the order in which they came; since links are FIFO, that is each caller's own order. A concurrency group
runs so many calls at once; the default group, "", one, unless the actor says otherwise. Results leave as those of tasks
do: when nothing is left to run, or before a call by whose end the oldest of them would be too old.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Interrupt, Send
from zmesh.core.running import Arguments, Running, WorkSpec
from zmesh.wire.actor_messages import Call
from zmesh.wire.ids import PeerID
from zmesh.wire.messages import CANCELLED, ERROR, ITEM, LOST, Cancel, Done

FLUSH_AGE_S = 0.002  # results wait no longer than this for company
FLUSH_RESULTS_MAX = 128
FLUSH_BYTES_MAX = 256 * 1024
GONE_MAX = 1024  # dead callers of which calls may still be on their way
STALL_S = 0.02  # a call that has run for so long holds up no results


class Caller:
    """A process that calls this actor."""

    __slots__ = ("lost", "results", "specs")

    def __init__(self) -> None:
        self.specs: dict[int, WorkSpec] = {}
        self.results: list[Any] = []
        self.lost = 0  # how often it was told that arguments of a call could not be had


class Group:
    """Calls that share a number of places."""

    __slots__ = ("busy", "places", "queue")

    def __init__(self, places: int) -> None:
        self.places = places
        self.busy = 0
        self.queue: deque[tuple[PeerID, Any]] = deque()  # (caller, call as it came), in the order they came


class ActorServer:
    """The calls of one actor; of no use in a worker that is none.

    Args:
        keeps: returns what Done.kept must list for a caller.
        pulls: copies of what lies on other hosts.
    """

    def __init__(self, effects: list[Effect], *, keeps: Callable[[PeerID], list[Any]], pulls: Any) -> None:
        self._effects = effects
        self._keeps = keeps
        self._arguments = Arguments(pulls)
        self.groups: dict[str, Group] = {}  # none before the actor is made
        self.running: dict[tuple[PeerID, int], Running] = {}  # {(caller, seq): call}
        self.retired = False  # nobody has a handle: it ends when nothing is left to do
        self.failure: Any = None  # (status, value) of every call, once the actor has ended
        self._callers: dict[PeerID, Caller] = {}
        self._gone: dict[PeerID, bool] = {}  # {dead caller: True}, the oldest first
        self._due: dict[PeerID, Caller] = {}  # those with results to send
        self._oldest_s = 0.0
        self._count = 0
        self._bytes = 0

    def open(self, places: dict[str, int]) -> None:
        """Serve from now on. `places` is {group: calls at once}, with the default group ""."""
        self.groups = {name: Group(count) for name, count in places.items()}

    # From the network.

    def called(self, peer: PeerID, message: Call, now: float) -> None:
        """Queue the calls of a caller."""
        if peer in self._gone or not self.groups:
            return
        caller = self._callers.get(peer)
        if caller is None:
            caller = self._callers[peer] = Caller()
        for record in message.specs:
            caller.specs[record[0]] = WorkSpec(record)
        if message.lost < caller.lost:
            return  # sent before it heard that an earlier one did not start: it sends these again, behind that
        if self.failure is not None:
            for record in message.calls:
                self._add(peer, (record[0], record[1], *self.failure), 0, now)
            self.flush()
            return
        self._arguments.fetch(peer, message.calls)
        for record in message.calls:
            group = self.groups.get(caller.specs[record[2]].options.get("group", ""))
            if group is None:
                name = caller.specs[record[2]].options["group"]
                text = f"the actor has no concurrency group {name!r}; it has: {', '.join(filter(None, self.groups))}"
                self._add(peer, (record[0], record[1], ERROR, ("ConfigError", text, {})), 0, now)
            else:
                group.queue.append((peer, record))

    def pulled(self, now: float) -> None:
        """Copies are here, or cannot be had: then the caller hears of it, and what needs them does not start.

        If calls start in their order, nothing that the caller sent after it starts either: it sends all of it again.
        """
        told = False
        for group in self.groups.values():
            lost = [(entry, gone) for entry in group.queue if (gone := self._arguments.lost(*entry))]
            for entry, gone in lost:
                peer, (seq, attempt, *_) = entry
                if entry not in group.queue:
                    continue  # behind another that is lost
                told = True
                self._add(peer, (seq, attempt, LOST, gone), 64 * len(gone), now)
                back = [entry]
                if self._ordered:
                    self._callers[peer].lost += 1
                    back = [one for one in list(group.queue)[group.queue.index(entry) :] if one[0] == peer]
                self._arguments.forget(peer, [record for _, record in back])
                group.queue = deque(one for one in group.queue if one not in back)
        if told:
            self.flush()

    @property
    def _ordered(self) -> bool:
        return [group.places for group in self.groups.values()] == [1]

    def cancel(self, peer: PeerID, message: Cancel, now: float) -> bool:
        """Drop a call, or have it interrupted if it is one that can be; returns whether it was a call."""
        running = self.running.get((peer, message.seq))
        if running is not None:
            if running.attempt == message.attempt:
                running.cancelled = True
                running.stopped = CANCELLED
                self._effects.append(Interrupt(peer, message.seq, message.attempt))
            return True
        for group in self.groups.values():
            for entry in group.queue:
                if entry[0] == peer and entry[1][0] == message.seq:
                    group.queue.remove(entry)
                    self._arguments.forget(peer, [entry[1]])
                    self._add(peer, (message.seq, message.attempt, CANCELLED, None), 0, now)
                    self.flush()
                    return True
        return False

    def caller_gone(self, peer: PeerID) -> None:
        """A caller is dead: what it called and did not start is dropped, a stream ends, and no result is sent."""
        self._gone[peer] = True
        if len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]
        self._callers.pop(peer, None)
        self._due.pop(peer, None)
        for running in self.running.values():
            if running.victim == peer:
                running.stopped = CANCELLED
        for group in self.groups.values():
            self._arguments.forget(peer, [record for caller, record in group.queue if caller == peer])
            group.queue = deque(entry for entry in group.queue if entry[0] != peer)

    def unpacks(self, peer: PeerID) -> bool:
        """Whether a call of that caller has begun and not yet taken all out of its arguments."""
        return any(running.victim == peer and not running.unpacked for running in self.running.values())

    # From the process.

    def next(self, now: float) -> Running | None:
        """Return a call to start now, or None; results that can wait no longer go out first."""
        for group in self.groups.values():
            if group.queue and group.busy < group.places:
                entry = self._arguments_here(group)
                if entry is not None:
                    return self._start(group, entry, now)
        if self._due:
            self.flush()
        return None

    def _arguments_here(self, group: Group) -> Any:
        """Take the first call of a group whose arguments are on this host and that nothing of its caller precedes."""
        held: dict[PeerID, bool] = {}
        for entry in group.queue:
            peer, record = entry
            if self._arguments.ready(peer, record) and peer not in held:
                if entry is group.queue[0]:
                    return group.queue.popleft()
                group.queue.remove(entry)
                return entry
            if group.places == 1:
                held[peer] = True
        return None

    def _start(self, group: Group, entry: tuple[PeerID, Any], now: float) -> Running:
        peer, record = entry
        spec = self._callers[peer].specs[record[2]]
        if self._due and (
            spec.peak_s is None
            or now - self._oldest_s + spec.peak_s >= FLUSH_AGE_S
            or self._count >= FLUSH_RESULTS_MAX
            or self._bytes >= FLUSH_BYTES_MAX
        ):
            self.flush()
        running = Running(peer, spec, record, now)
        self.running[peer, running.seq] = running
        group.busy += 1
        self._arguments.place(running)
        return running

    def item(self, running: Running, status: int, value: Any, inside: list[bytes], now: float) -> None:
        """A stream yielded: the item goes out at once."""
        if self.failure is not None:
            return  # it was told that the stream is over
        item = (running.items, status, value, inside)
        running.items += 1
        self._add(running.victim, (running.seq, running.attempt, ITEM, item), 0, now)
        self.flush()

    def finished(self, running: Running, status: int, value: Any, inside: list[bytes], size: int, now: float) -> None:
        """A call is over. `size` is what its result takes in a message, in bytes."""
        del self.running[running.victim, running.seq]
        self.groups[running.spec.options.get("group", "")].busy -= 1
        self._arguments.drop(running)
        if self.failure is not None:
            return  # `end` answered it
        running.spec.ran(now - running.started)
        result: Any = (running.seq, running.attempt, status, value)
        self._add(running.victim, (*result, inside) if inside else result, size, now)

    def _add(self, peer: PeerID, result: Any, size: int, now: float) -> None:
        caller = self._callers.get(peer)
        if caller is None:
            return  # it died meanwhile
        if not self._due:
            self._oldest_s = now
            self._count = self._bytes = 0
        self._due[peer] = caller
        caller.results.append(result)
        self._count += 1
        self._bytes += size

    def flush(self) -> None:
        """Send the results there are."""
        due, self._due = self._due, {}
        for peer, caller in due.items():
            self._effects.append(Send(peer, Done(caller.results, [], self._keeps(peer))))
            caller.results = []

    def stalled(self, now: float) -> float | None:
        """Somebody looks while a call runs: if it is a long one, results of others go out.

        Returns when to look again, if it may become one.
        """
        if not self._due or not self.running:
            return None
        due = min(running.started for running in self.running.values()) + STALL_S
        if now < due:
            return due
        self.flush()
        return None

    def taken(self, peer: PeerID, seq: int, count: int) -> bool:
        """The reader of a stream took `count` items; returns whether it is a call's."""
        running = self.running.get((peer, seq))
        if running is not None:
            running.consumed(count)
        return running is not None

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.running and not any(group.queue for group in self.groups.values())

    @property
    def over(self) -> bool:
        """Whether nobody has a handle, and nothing is left to do."""
        return self.retired and self.idle

    def end(self, failure: tuple[int, Any], now: float) -> None:
        """The actor ends: whatever runs or did not start, and all that still comes, gets this failure."""
        self.failure = failure
        for running in self.running.values():
            running.stopped = CANCELLED
            self._add(running.victim, (running.seq, running.attempt, *failure), 0, now)
        for group in self.groups.values():
            for peer, record in group.queue:
                self._arguments.forget(peer, [record])
                self._add(peer, (record[0], record[1], *failure), 0, now)
            group.queue.clear()
        self.flush()

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert sum(group.busy for group in self.groups.values()) == len(self.running)
        assert all(group.busy <= group.places for group in self.groups.values())
        assert all(self._callers.get(peer) is caller and caller.results for peer, caller in self._due.items())
