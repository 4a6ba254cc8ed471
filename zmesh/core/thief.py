"""The thief's half of stealing: what this worker runs next, and when its results go out.

One attachment at a time: FREE -> ATTACHED -> CLOSING -> FREE. Work that cannot start soon is given back, so that
nobody waits behind a long task. Knows task records as they came over the wire; never runs or unpickles one.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Connect, Disconnect, Effect, Interrupt, Send
from zmesh.core.records import Copy
from zmesh.wire.ids import NODE_ID_BYTES, PeerID, object_id
from zmesh.wire.messages import (
    CANCELLED,
    ERROR,
    ITEM,
    LOST,
    PENDING,
    STORED,
    Attach,
    Cancel,
    Detach,
    Done,
    Free,
    GiveBack,
    Shape,
    Steal,
    Unsteal,
    Unstolen,
    Work,
)

CREDIT_S = 0.005  # of work ahead: two round trips of a busy host, yet short enough that a give-back hardly matters
FAR_CREDIT_S = 0.05  # from a victim on another host: round trips of a LAN, and of a busy relay
FLUSH_AGE_S = 0.002  # results wait no longer than this for company
FLUSH_RESULTS_MAX = 128  # half a batch: the next one is on its way while the other half runs
FLUSH_BYTES_MAX = 256 * 1024
LINKS_MAX = 64  # open links to victims; a worker meets few in its life
STALL_S = 0.02  # a task that has run for so long is not what its neighbours were promised
RUN_DECAY = 0.9  # of a function's longest run, per run

FREE, ATTACHED, CLOSING = "free", "attached", "closing"


class WorkSpec:
    """A function with its options, as the victim sent it."""

    __slots__ = ("blob", "calls", "digest", "index", "job", "longest_s", "name", "num_returns", "options", "peak_s")

    def __init__(self, record: Any) -> None:
        self.index, self.job, self.name, self.num_returns, self.options, self.digest, self.blob = record
        self.peak_s: float | None = None  # decayed maximum of its run time here
        self.longest_s = -1.0  # since the last Done; negative: it did not run
        self.calls = 0


class Running:
    """The task under way."""

    __slots__ = ("args", "attempt", "copies", "deps", "depth", "items", "seq", "spec", "started", "taken", "victim")

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
        self.items = 0  # sent of a stream
        self.taken = 0  # of those, taken by the reader


class ThiefHalf:
    """The attachment of one worker.

    Args:
        node: PeerID of this host's node.
        keeps: returns what Done.kept must list for a victim.
        pulls: copies of what lies on other hosts.
        watched: returns victims whose link must stay open.
    """

    def __init__(
        self,
        node: PeerID,
        effects: list[Effect],
        *,
        keeps: Callable[[PeerID], list[Any]],
        watched: Callable[[], list[PeerID]],
        pulls: Any,
    ) -> None:
        self._node = node
        self._effects = effects
        self._keeps = keeps
        self._watched = watched
        self.state = FREE
        self.victim: PeerID = b""
        self.epoch = 0
        self.shape: Shape = {}
        self.job: PeerID = b""
        self.running: Running | None = None
        self.blocked = False
        self._withdrawn = False  # the victim confirmed that no work will follow
        self._victim_dead = False  # nobody wants the results
        self._specs: dict[int, WorkSpec] = {}
        self._queue: deque[Any] = deque()  # task records not started, in the order they came
        self._results: list[Any] = []
        self._oldest_s = 0.0  # when the first of them was added
        self._bytes = 0
        self._links: dict[PeerID, bool] = {}  # {victim: True} with an open link
        self._pulls = pulls
        self._awaited: dict[int, dict[Any, Copy]] = {}  # {seq not started: {key of its far argument: copy}}

    # From the node.

    def attach(self, message: Attach) -> None:
        """Start to steal from a victim."""
        assert self.state == FREE
        self.state = ATTACHED
        self.victim, self.epoch, self.shape, self.job = message.victim, message.epoch, message.shape, message.job
        self._withdrawn = self._victim_dead = False
        self._specs = {}
        far = message.victim[:NODE_ID_BYTES] != self._node[:NODE_ID_BYTES]
        if not far and message.victim not in self._links:
            self._link(message.victim)
        credit_s = FAR_CREDIT_S if far else CREDIT_S
        self._effects.append(Send(message.victim, Steal(message.epoch, message.shape, credit_s)))

    def _link(self, victim: PeerID) -> None:
        """Open a link, which then stays: a second one to the same victim could overtake the first."""
        if len(self._links) >= LINKS_MAX:
            watched = self._watched()
            idle = [peer for peer in self._links if peer not in watched]
            for peer in idle[:1]:
                self._unlink(peer)
        self._links[victim] = True
        self._effects.append(Connect(victim))

    def _unlink(self, victim: PeerID) -> None:
        if self._links.pop(victim, False):
            self._effects.append(Disconnect(victim))

    def detach(self, message: Detach, now: float) -> None:
        """Leave the victim as soon as nothing of it runs here."""
        if message.dead:
            self._unlink(message.victim)
        if self.state == FREE or message.epoch != self.epoch:
            return  # a Detach that crossed our Free
        if message.dead:
            self._forget(self._queue)
            self._queue.clear()
            self._results.clear()
            self._withdrawn = self._victim_dead = True
            self.state = CLOSING
        elif self.state == ATTACHED:
            self.state = CLOSING
            self.give_back()
            self.flush()
            self._effects.append(Send(self.victim, Unsteal(self.epoch)))
        self._leave()

    def _leave(self) -> None:
        if self.state != CLOSING or self.running is not None or not self._withdrawn:
            return
        assert not self._queue
        assert not self._results
        self.state = FREE
        self.victim = b""
        self._specs = {}
        self._effects.append(Send(self._node, Free(self.epoch)))

    # From the victim.

    def work(self, peer: PeerID, message: Work) -> None:
        """Queue what the victim sent, or give it straight back."""
        if peer != self.victim:
            return
        for record in message.specs:
            self._specs[record[0]] = WorkSpec(record)
        self._queue.extend(message.tasks)
        for record in message.tasks:
            if len(record) > 5 or type(record[4]) is not bytes:
                self._fetch_arguments(record)
        if self.state == CLOSING or self.blocked:
            self.give_back()

    def _fetch_arguments(self, record: Any) -> None:
        """Have what lies on other hosts copied here, while other tasks run."""
        victim, seq, args = self.victim, record[0], record[4]
        places = [(value, key) for status, value, key in record[5] if status == STORED] if len(record) > 5 else []
        if type(args) is not bytes:
            places.append((args, (args[3], 0)))
        for place, key in places:
            if self._pulls.is_far(place):
                copies = self._awaited.setdefault(seq, {})
                if key not in copies:
                    oid = key if isinstance(key, bytes) else object_id(victim, *key)
                    copies[key] = self._pulls.want(oid, place)

    def _forget(self, records: Any) -> None:
        """These tasks will not run here: let go of what was fetched for them."""
        if self._awaited:
            for record in records:
                for copy in self._awaited.pop(record[0], {}).values():
                    self._pulls.drop(copy)

    def unstolen(self, peer: PeerID, message: Unstolen) -> None:
        """No work will follow: the worker is free once its task is over."""
        if peer == self.victim and message.epoch == self.epoch:
            self._withdrawn = True
            self._leave()

    def cancel(self, peer: PeerID, message: Cancel, now: float) -> bool:
        """Drop a task, or interrupt it; returns whether it runs."""
        if peer != self.victim:
            return False
        running = self.running
        if running is not None and (running.seq, running.attempt) == (message.seq, message.attempt):
            self._effects.append(Interrupt(peer, message.seq, message.attempt))
            return True
        for record in self._queue:
            if record[0] == message.seq:
                self._queue.remove(record)
                self._forget([record])
                self._add((message.seq, message.attempt, CANCELLED, None), 0, now)
                self.flush()
                break
        return False

    # From the worker's own loop.

    def next(self, now: float) -> Running | None:
        """Return the task to run now, or None; results that can wait no longer go out first."""
        if not self._queue:
            if self._results:
                self.flush()
            return None
        record = self._next_ready() if self._awaited else self._queue.popleft()
        if record is None:
            if self._results:
                self.flush()
            return None
        spec = self._specs[record[2]]
        if self._results and (
            spec.peak_s is None
            or now - self._oldest_s + spec.peak_s >= FLUSH_AGE_S
            or len(self._results) >= FLUSH_RESULTS_MAX
            or self._bytes >= FLUSH_BYTES_MAX
        ):
            self.flush()
        running = self.running = Running(self.victim, spec, record, now)
        if running.seq in self._awaited:
            self._place_copies(running, self._awaited.pop(running.seq))
        return running

    def _next_ready(self) -> Any:
        """Take the first task whose arguments are here; None if each waits for some."""
        for record in self._queue:
            if all(copy.status != PENDING for copy in self._awaited.get(record[0], {}).values()):
                self._queue.remove(record)
                return record
        return None

    def pulled(self, now: float) -> None:
        """Copies are here, or cannot be had: then the victim hears of it, and what needs them does not start."""
        for record in list(self._queue):
            copies = self._awaited.get(record[0], {})
            if all(copy.status != PENDING for copy in copies.values()) and self._lacks(record, copies, now):
                self._queue.remove(record)

    def _lacks(self, record: Any, copies: dict[Any, Copy], now: float) -> bool:
        places = {key: value for status, value, key in (record[5] if len(record) > 5 else ()) if status == STORED}
        if type(record[4]) is not bytes:
            places[record[4][3], 0] = record[4]
        gone = [key for key, one in copies.items() if one.status == ERROR and one.value[0] == "ObjectLostError"]
        if gone:
            lost = [(key, places[key][0], places[key][2]) for key in gone]
            self._forget([record])
            self._add((record[0], record[1], LOST, lost), 64 * len(lost), now)
            self.flush()
        return bool(gone)

    @staticmethod
    def _place_copies(running: Running, copies: dict[Any, Copy]) -> None:
        """Name the places on this host, or the failures, instead of those on others."""
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

    def finished(self, status: int, value: Any, inside: list[bytes], size: int, now: float) -> None:
        """The running task is over. `size` is what its result takes in a message, in bytes."""
        running = self.running
        assert running is not None
        self.running = None
        for copy in running.copies:
            self._pulls.drop(copy)
        spec = running.spec
        elapsed_s = now - running.started
        spec.calls += 1
        peak_s = spec.peak_s
        spec.peak_s = elapsed_s if peak_s is None or elapsed_s > peak_s else max(elapsed_s, peak_s * RUN_DECAY)
        if elapsed_s > spec.longest_s:
            spec.longest_s = elapsed_s
        if self._victim_dead:
            self._leave()
            return
        result: Any = (running.seq, running.attempt, status, value)
        self._add((*result, inside) if inside else result, size, now)
        if self.state == CLOSING:
            self.flush()
            self._leave()

    def item(self, status: int, value: Any, inside: list[bytes], now: float) -> None:
        """The running stream yielded an item: it goes out at once."""
        running = self.running
        assert running is not None
        item = (running.items, status, value, inside)
        running.items += 1
        self._add((running.seq, running.attempt, ITEM, item), 0, now)
        self.flush()

    def _add(self, result: Any, size: int, now: float) -> None:
        if not self._results:
            self._oldest_s = now
            self._bytes = 0
        self._results.append(result)
        self._bytes += size

    def flush(self) -> None:
        """Send the results there are."""
        if not self._results:
            return
        timings = []
        for spec in self._specs.values():
            if spec.longest_s >= 0:
                timings.append((spec.index, spec.longest_s))
                spec.longest_s = -1.0
        self._effects.append(Send(self.victim, Done(self._results, timings, self._keeps(self.victim))))
        self._results = []

    def give_back(self) -> None:
        """Return everything not started, newest first."""
        self._return(list(self._queue))

    def _return(self, records: list[Any]) -> None:
        if not records:
            return
        if len(records) == len(self._queue):
            self._queue.clear()
        else:
            for record in records:
                self._queue.remove(record)
        self._forget(records)
        self._effects.append(Send(self.victim, GiveBack([(record[0], record[1]) for record in reversed(records)])))

    def stalled(self, now: float) -> None:
        """Somebody looks while a task runs: if it is a long one, its neighbours go elsewhere."""
        if self.running is not None and now - self.running.started >= STALL_S:
            self.flush()
            # One that waits for arguments from another host stays, so that they travel meanwhile.
            self._return([record for record in self._queue if record[0] not in self._awaited])

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert all(any(record[0] == seq for record in self._queue) for seq in self._awaited)
        if self.state == FREE:
            assert not self._queue
            assert not self._results
            assert self.running is None
