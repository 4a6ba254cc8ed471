"""The thief's half of stealing: what this worker runs next, and when its results go out.

One attachment at a time: FREE -> ATTACHED -> CLOSING -> FREE. Work that cannot start soon is given back, so that
nobody waits behind a long task. Knows task records as they came over the wire; never runs or unpickles one.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Connect, Disconnect, Effect, Interrupt, Send
from zmesh.core.running import Arguments, Running, WorkSpec
from zmesh.wire.ids import NODE_ID_BYTES, PeerID
from zmesh.wire.messages import (
    CANCELLED,
    ITEM,
    LOST,
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

FREE, ATTACHED, CLOSING = "free", "attached", "closing"


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
        self._stalled = False  # the running task is a long one: what comes now goes straight back
        self._withdrawn = False  # the victim confirmed that no work will follow
        self.victim_dead = False  # nobody wants the results
        self._specs: dict[int, WorkSpec] = {}
        self._queue: deque[Any] = deque()  # task records not started, in the order they came
        self._results: list[Any] = []
        self._oldest_s = 0.0  # when the first of them was added
        self._bytes = 0
        self._links: dict[PeerID, bool] = {}  # {victim: True} with an open link
        self._arguments = Arguments(pulls)

    # From the node.

    def attach(self, message: Attach) -> None:
        """Start to steal from a victim."""
        assert self.state == FREE
        self.state = ATTACHED
        self.victim, self.epoch, self.shape, self.job = message.victim, message.epoch, message.shape, message.job
        self._withdrawn = self.victim_dead = False
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
            self._arguments.forget(self.victim, self._queue)
            self._queue.clear()
            self._results.clear()
            self._withdrawn = self.victim_dead = True
            if self.running is not None:
                self.running.stopped = CANCELLED  # a stream would wait for its reader for ever
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
        self._arguments.fetch(peer, message.tasks)
        if self.state == CLOSING or self.blocked:
            self.give_back()
        elif self._stalled:
            self._spare_neighbours()

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
                self._arguments.forget(peer, [record])
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
        record = self._arguments.next_ready(self.victim, self._queue)
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
        self._arguments.place(running)
        return running

    def pulled(self, now: float) -> None:
        """Copies are here, or cannot be had: then the victim hears of it, and what needs them does not start."""
        for record in list(self._queue):
            lost = self._arguments.lost(self.victim, record)
            if lost:
                self._queue.remove(record)
                self._arguments.forget(self.victim, [record])
                self._add((record[0], record[1], LOST, lost), 64 * len(lost), now)
                self.flush()

    def finished(self, status: int, value: Any, inside: list[bytes], size: int, now: float) -> None:
        """The running task is over. `size` is what its result takes in a message, in bytes."""
        running = self.running
        assert running is not None
        self.running = None
        self._stalled = False
        self._arguments.drop(running)
        running.spec.ran(now - running.started)
        if self.victim_dead:
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
        self._arguments.forget(self.victim, records)
        self._effects.append(Send(self.victim, GiveBack([(record[0], record[1]) for record in reversed(records)])))

    def stalled(self, now: float) -> float | None:
        """Somebody looks while a task runs: if it is a long one, its neighbours go elsewhere.

        Returns when to look again, if it may become one.
        """
        if self.running is None:
            return None
        due = self.running.started + STALL_S
        if now < due:
            return due
        self._stalled = True
        self.flush()
        self._spare_neighbours()
        return None

    def _spare_neighbours(self) -> None:
        # One that waits for arguments from another host stays, so that they travel meanwhile.
        self._return([record for record in self._queue if not self._arguments.awaits(self.victim, record)])

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        self._arguments.check(self.victim, self._queue)
        if self.state == FREE:
            assert not self._queue
            assert not self._results
            assert self.running is None
