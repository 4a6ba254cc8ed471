"""What a worker runs: a function or method as it came over the wire, the call under way, and its arguments from afar.

Shared by the two halves that take work: the thief's, and the actor's. Plain data but for `Arguments`, which has what
lies on other hosts copied here before a call that needs it starts.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

from zmesh.core.records import Copy
from zmesh.wire.ids import PeerID, object_id
from zmesh.wire.messages import ABANDONED, END, ERROR, PENDING, STORED

RUN_DECAY = 0.9  # of a function's longest run, per run


class WorkSpec:
    """A function with its options, as the victim sent it."""

    __slots__ = ("blob", "calls", "digest", "index", "job", "longest_s", "name", "num_returns", "options", "peak_s")

    def __init__(self, record: Any) -> None:
        self.index, self.job, self.name, self.num_returns, self.options, self.digest, self.blob = record
        self.peak_s: float | None = None  # decayed maximum of its run time here
        self.longest_s = -1.0  # since the last Done; negative: it did not run
        self.calls = 0

    def ran(self, seconds: float) -> None:
        """It ran once, for so long."""
        self.calls += 1
        peak_s = self.peak_s
        self.peak_s = seconds if peak_s is None or seconds > peak_s else max(seconds, peak_s * RUN_DECAY)
        if seconds > self.longest_s:
            self.longest_s = seconds


class Running:
    """The task under way."""

    __slots__ = (
        "args",
        "attempt",
        "cancelled",
        "copies",
        "deps",
        "depth",
        "items",
        "seq",
        "spec",
        "started",
        "stopped",
        "taken",
        "unpacked",
        "victim",
    )

    def __init__(self, victim: PeerID, spec: WorkSpec, record: Any, started: float) -> None:
        self.victim = victim
        self.spec = spec
        self.seq: int = record[0]
        self.attempt: int = record[1]
        self.depth: int = record[3]
        # INLINE bytes, or (segment, nbytes, producer, key): on this host. The same holds for the places of `deps`.
        self.args = record[4]
        self.deps = record[5] if len(record) > 5 else ()
        self.copies: list[Copy] = []  # of far arguments, held while it runs
        self.started = started
        self.cancelled = False  # its owner wants it ended
        self.items = 0  # sent of a stream
        self.taken = 0  # of those, taken by the reader
        self.unpacked = False  # its arguments are; only calls of actors say so
        self.stopped: int | None = None  # how a stream is to end where it yields next: END or CANCELLED

    def consumed(self, count: int) -> None:
        """The reader took so many items in all, or is gone."""
        if count == ABANDONED:
            self.stopped = END
        else:
            self.taken = max(self.taken, count)


class Arguments:
    """Far arguments of calls that have not started.

    Args:
        pulls: copies of what lies on other hosts.
    """

    def __init__(self, pulls: Any) -> None:
        self._pulls = pulls
        # {(who sent it, seq) not started: {key of its far argument: copy}}
        self._awaited: dict[tuple[PeerID, int], dict[Any, Copy]] = {}

    def fetch(self, sender: PeerID, records: Iterable[Any]) -> None:
        """Have what lies on other hosts copied here, while other calls run."""
        for record in records:
            if len(record) > 5 or type(record[4]) is not bytes:
                self._fetch(sender, record)

    def _fetch(self, sender: PeerID, record: Any) -> None:
        seq, args = record[0], record[4]
        places = [(value, key) for status, value, key in record[5] if status == STORED] if len(record) > 5 else []
        if type(args) is not bytes:
            places.append((args, (args[3], 0)))
        for place, key in places:
            if self._pulls.is_far(place):
                copies = self._awaited.setdefault((sender, seq), {})
                if key not in copies:
                    oid = key if isinstance(key, bytes) else object_id(sender, *key)
                    copies[key] = self._pulls.want(oid, place)

    def forget(self, sender: PeerID, records: Iterable[Any]) -> None:
        """These will not run here: let go of what was fetched for them."""
        if self._awaited:
            for record in records:
                for copy in self._awaited.pop((sender, record[0]), {}).values():
                    self._pulls.drop(copy)

    def awaits(self, sender: PeerID, record: Any) -> bool:
        """Whether arguments of that call were not here when it came."""
        return (sender, record[0]) in self._awaited

    def ready(self, sender: PeerID, record: Any) -> bool:
        """Whether all of its arguments are here, or lost."""
        return all(copy.status != PENDING for copy in self._awaited.get((sender, record[0]), {}).values())

    def lost(self, sender: PeerID, record: Any) -> list[Any]:
        """Return [key, segment, producer] of each argument that could not be had, once it is known of all of them."""
        copies = self._awaited.get((sender, record[0]), {})
        gone = [key for key, one in copies.items() if one.status == ERROR and one.value[0] == "ObjectLostError"]
        if not gone or not self.ready(sender, record):
            return []
        places = {key: value for status, value, key in (record[5] if len(record) > 5 else ()) if status == STORED}
        if type(record[4]) is not bytes:
            places[record[4][3], 0] = record[4]
        return [(key, places[key][0], places[key][2]) for key in gone]

    def next_ready(self, sender: PeerID, queue: "deque[Any]") -> Any:
        """Take the first of these whose arguments are here; None if each waits for some."""
        if not self._awaited:
            return queue.popleft()
        for record in queue:
            if self.ready(sender, record):
                queue.remove(record)
                return record
        return None

    def place(self, running: Running) -> None:
        """Name the places on this host, or the failures, instead of those on others."""
        copies = self._awaited.pop((running.victim, running.seq), None) if self._awaited else None
        if copies is None:
            return
        running.copies = list(copies.values())
        running.deps = [
            (copies[key].status, copies[key].value, copies[key]) if status == STORED and key in copies else dep
            for dep in running.deps
            for status, _, key in (dep,)
        ]
        args = running.args
        if type(args) is not bytes and (args[3], 0) in copies:
            copy = copies[args[3], 0]
            running.args = (*copy.value, copy) if copy.status == STORED else (ERROR, copy.value)

    def drop(self, running: Running) -> None:
        """The call is over: its copies may go."""
        for copy in running.copies:
            self._pulls.drop(copy)

    def check(self, sender: PeerID, queue: Iterable[Any]) -> None:
        """Verify that only calls in `queue` await something; for tests and the simulator."""
        waiting = [record[0] for record in queue]
        assert all(seq in waiting for owner, seq in self._awaited if owner == sender)
