"""The victim's half of stealing: which tasks may start, who gets them, and what to ask the node for.

Credit is time, not count: a thief gets as many tasks as should take `credit_s`, by the decayed maximum of each
function's run time, so that short tasks travel in large batches and a long one has few behind it. An unknown
function travels alone. Knows nothing of results, retries or references (core/tasks.py, core/references.py).

Sources: lifelines, Saraswat et al., PPoPP 2011 (a steal that finds nothing stays parked); measured in
perf/throughput.py: batches of 256 carry 2.5 times the tasks of batches of 16.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.labels import amount_of, said
from zmesh.core.records import (
    LEASED,
    QUEUED,
    Queue,
    ShapeKey,
    Spec,
    Task,
    Thief,
    group_of,
    outside_group,
    without_environment,
)
from zmesh.core.timers import Timers
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, PeerID
from zmesh.wire.marks import is_mark
from zmesh.wire.messages import STORED, UNIT, Demand, Shape, Work

BATCH_TASKS_MAX = 256
BATCH_BYTES_MAX = 256 * 1024
LEASED_TASKS_MAX = 512  # a batch running and a batch waiting: the thief never runs dry between two messages
LOOK_AHEAD_MAX = 16  # tasks looked at for one whose arguments lie where the thief is
DEMAND_WINDOW_S = 0.1  # a demand that fell is told after this time, so that a loop of single calls tells nothing
PEAK_DECAY = 0.7  # of a function's longest run, per Done: a one-off slow call is forgotten after a dozen messages


class Victim:
    """Queues by shape, thieves with their credit, and the demand told to the node.

    Args:
        node: PeerID of this host's node.
        effects: where messages to send are appended, in order.
        arguments: makes the arguments and dependencies of a task ready for the wire: (task, thief) -> tuple.
        leased: called with each task that has a time limit when it is sent.
    """

    def __init__(
        self,
        node: PeerID,
        effects: list[Effect],
        timers: Timers,
        arguments: Callable[[Task, Thief], tuple[Any, ...]],
        leased: Callable[[Task, float], None],
    ) -> None:
        self._node = node
        self._effects = effects
        self._timers = timers
        self._arguments = arguments
        self._leased = leased
        self.totals: list[Shape] = []  # of each member of the mesh, once our node said so
        self.groups: dict[bytes, Shape] = {}  # {placement group: what its bundles have, by their names}
        self.queues: dict[ShapeKey, Queue] = {}
        self.thieves: dict[PeerID, Thief] = {}

    # Inputs from above.

    def push(self, task: Task, now: float, *, front: bool = False) -> None:
        """Queue a task whose dependencies are there; it goes out at once if a thief is parked."""
        spec = task.spec
        queue = self.queues.get(spec.shape_key)
        if queue is None:
            queue = self.queues[spec.shape_key] = Queue(spec.shape_key, spec.shape)
        level = queue.levels.get(spec.priority)
        if level is None:
            level = queue.levels[spec.priority] = deque()
            queue.order = sorted(queue.levels, reverse=True)
        task.state = QUEUED
        if front:
            level.appendleft(task)
        else:
            level.append(task)
        queue.count += 1
        queue.spec = spec
        if queue.idle:
            self.fill(next(reversed(queue.idle.values())), now)
        elif queue.far:
            self.fill(next(reversed(queue.far.values())), now)
        if queue.count and (
            queue.told < queue.most or task.depth > queue.told_depth or spec.priority > queue.told_priority
        ):
            self.ask(queue, now)

    def forget(self, task: Task) -> None:
        """A queued task was cancelled: its place in the queue is skipped when it comes up."""
        self.queues[task.spec.shape_key].count -= 1

    # Inputs from thieves.

    def steal(self, peer: PeerID, epoch: int, queue: Queue, credit_s: float, now: float) -> None:
        """A worker attached itself: it gets work, or stays parked."""
        thief = Thief(peer, epoch, queue, credit_s, far=peer[:NODE_ID_BYTES] != self._node[:NODE_ID_BYTES])
        self.thieves[peer] = queue.thieves[peer] = thief
        thief.idlers[peer] = thief
        self.fill(thief, now)
        if queue.told:
            self._watch(queue, now)

    def settled(self, thief: Thief, now: float) -> None:
        """What the thief runs is an actor: it is not one of those who take tasks any more."""
        queue = thief.queue
        thief.idlers.pop(thief.peer, None)
        if queue.thieves.get(thief.peer) is thief:
            del queue.thieves[thief.peer]
        thief.queue = Queue(queue.key, queue.shape)
        thief.queue.thieves[thief.peer] = thief
        self._tell(queue, self._wanted(queue))  # at once: the node is about to look for another worker
        self._watch(queue, now)

    @property
    def has_actors(self) -> bool:
        """Whether a worker that became an actor is there, though it may have ended that already."""
        return any(self.queues.get(thief.queue.key) is not thief.queue for thief in self.thieves.values())

    def returned(self, thief: Thief, task: Task) -> None:
        """A lease ended: by a result, a give-back or death. The caller decides what becomes of the task."""
        del thief.leased[task.seq]
        task.thief = None
        thief.alone = False
        if thief.leased:
            thief.load_s -= task.spec.peak_s or 0.0
        else:
            thief.load_s = 0.0

    def timed(self, specs: list[Spec], timings: list[Any]) -> None:
        """Take over how long functions ran: [[spec index, longest run in seconds], ...]."""
        for index, longest_s in timings:
            spec = specs[index]
            peak_s = spec.peak_s
            spec.peak_s = longest_s if peak_s is None else max(longest_s, peak_s * PEAK_DECAY)

    def refill(self, thief: Thief, now: float) -> None:
        """After a Done: give the thief more, or note that it is idle."""
        thief.paused = False
        queue = thief.queue
        if not thief.leased and not thief.closing:
            thief.idlers[thief.peer] = thief
        if queue.count:
            self.fill(thief, now)
        if queue.told:
            self._watch(queue, now)

    def gone(self, thief: Thief, now: float) -> None:
        """The thief has left and leases nothing: forget it."""
        assert not thief.leased
        queue = thief.queue
        thief.idlers.pop(thief.peer, None)
        if queue.thieves.get(thief.peer) is thief:
            del queue.thieves[thief.peer]
        if self.thieves.get(thief.peer) is thief:
            del self.thieves[thief.peer]
        self._renew(queue, now)

    def _renew(self, queue: Queue, now: float) -> None:
        """Ask for more if there is more to do, else see to it that less is told soon."""
        if queue.count:
            self.ask(queue, now)
        elif queue.told:
            self._watch(queue, now)

    def close(self, thief: Thief) -> None:
        """The thief withdrew its steal or is dying: it gets nothing more."""
        thief.closing = True
        thief.idlers.pop(thief.peer, None)

    def rehome(self, node: PeerID) -> None:
        """Another node is to be asked for workers, and knows of nothing yet."""
        self._node = node
        self.totals = []
        self.told_nothing()

    def told_nothing(self) -> None:
        """What was asked for was never heard."""
        for queue in self.queues.values():
            queue.told = 0

    # Outputs.

    def fill(self, thief: Thief, now: float) -> None:
        """Send one batch to the thief, as far as its credit goes."""
        queue, leased = thief.queue, thief.leased
        if thief.closing or thief.paused or thief.alone:
            return
        tasks: list[Any] = []
        specs: list[Any] = []
        size = 0
        load_s, credit_s = thief.load_s, thief.credit_s
        # No more than its share of what is left: the last call may have been short by chance, and others come.
        share = -(-queue.count // max(1, queue.told, len(queue.thieves)))
        tasks_max = min(share, BATCH_TASKS_MAX, LEASED_TASKS_MAX - len(leased))
        while queue.count and len(tasks) < tasks_max:
            level = self._level(queue)
            place = self._nearest(level, thief) if len(self.totals) > 1 else 0
            task = level[place]
            spec = task.spec
            alone = spec.alone or task.attempt
            peak_s = spec.peak_s
            if leased and (alone or peak_s is None or (load_s + peak_s > credit_s and not self._ahead(thief))):
                break
            del level[place]
            queue.count -= 1
            task.state = LEASED
            task.thief = thief
            leased[task.seq] = task
            if spec.index not in thief.specs:
                thief.specs[spec.index] = True
                specs.append((spec.index, spec.job, spec.name, spec.num_returns, spec.options, spec.digest, spec.blob))
                size += len(spec.blob)
            if task.inputs is None and type(task.args) is bytes:
                tasks.append((task.seq, task.attempt, spec.index, task.depth, task.args))
                size += len(task.args) + 16
            else:
                entry = (task.seq, task.attempt, spec.index, task.depth, *self._arguments(task, thief))
                tasks.append(entry)
                size += sum(len(dep[1]) for dep in entry[5] if type(dep[1]) is bytes) + len(entry[4]) + 64
            if spec.timeout_s is not None:
                self._leased(task, now)
            if alone or peak_s is None:
                thief.alone = True
                break
            load_s += peak_s
            if size > BATCH_BYTES_MAX:
                break
        thief.load_s = load_s
        if tasks:
            thief.idlers.pop(thief.peer, None)
            self._effects.append(Send(thief.peer, Work(specs, tasks)))
            useful = len(queue.thieves) - len(queue.idle) - len(queue.far)
            if useful > queue.peak:
                queue.peak = useful

    @staticmethod
    def _level(queue: Queue) -> deque[Task]:
        """The highest level with a live task in front; there is one, as queue.count is not 0."""
        for priority in queue.order:
            level = queue.levels[priority]
            while level and level[0].state != QUEUED:
                level.popleft()
            if level:
                return level
        raise AssertionError("queue.count promises a task that no level holds")

    @staticmethod
    def _nearest(level: deque[Task], thief: Thief) -> int:
        """Return which of the first tasks has most of its arguments' bytes on the thief's host: mostly the first."""
        best, most = 0, 0
        for place in range(min(len(level), LOOK_AHEAD_MAX)):
            task = level[place]
            if task.state != QUEUED or (task.inputs is None and type(task.args) is bytes):
                if not place:
                    return 0  # tasks of one queue are mostly alike
                continue
            held = _bytes_on(task, thief.peer[:NODE_ID_BYTES])
            if held > most:
                best, most = place, held
        return best

    @staticmethod
    def _ahead(thief: Thief) -> bool:
        """Whether a thief on another host may have one task more than its credit: its arguments travel meanwhile."""
        if not thief.far or len(thief.leased) > 1:
            return False
        task = next(iter(thief.leased.values()))
        return not (task.spec.alone or task.attempt) and _bytes_on(task, None) > 0

    def serve(self, now: float) -> None:
        """Give queued tasks to idle thieves: after a give-back, a death or a new spec time."""
        for queue in self.queues.values():
            for idlers in (queue.idle, queue.far):
                while queue.count and idlers:
                    thief = next(reversed(idlers.values()))
                    self.fill(thief, now)
                    if thief.peer in idlers:
                        break
            self._renew(queue, now)

    # Demand.

    def ask(self, queue: Queue, now: float) -> None:
        """Tell the node how many workers could be busy now, if that is more than it knows."""
        queue.most = self._workers_max(queue)
        wanted = self._wanted(queue)
        if wanted > queue.peak:
            queue.peak = wanted
        head = self._head(queue)
        # A long loop of submissions tells at 1, 2, ... 8, 12, 18, ...: the review after DEMAND_WINDOW_S tells the rest.
        more = wanted > queue.told and (queue.told < 8 or wanted >= min(queue.told + queue.told // 2, queue.most))
        if more or head.depth > queue.told_depth or head.spec.priority > queue.told_priority:
            self._tell(queue, wanted)
        self._watch(queue, now)

    def ask_anew(self, now: float) -> None:
        """Others are there than before: what could be had may not be any more, and the node looks when it is asked."""
        for queue in self.queues.values():
            if queue.count:
                queue.told = 0
                self.ask(queue, now)
            elif queue.told:
                self._tell(queue, self._wanted(queue))

    def _head(self, queue: Queue) -> Task:
        return self._level(queue)[0]

    def _wanted(self, queue: Queue) -> int:
        busy = len(queue.thieves) - len(queue.idle) - len(queue.far)
        return min(busy + queue.count, max(queue.most, busy))

    def _workers_max(self, queue: Queue) -> int:
        """How many workers of this shape the mesh can have at once: no use in asking for more."""
        needs = without_environment(queue.shape)
        if not self.totals or not needs:
            return 64
        totals = [*self.totals, *self.groups.values()]
        return max(1, sum(min(amount_of(name, total) // amount for name, amount in needs.items()) for total in totals))

    def _tell(self, queue: Queue, workers: int) -> None:
        queue.told = workers
        depth, priority = 0, 0
        if queue.count:
            head = self._head(queue)
            depth, priority = head.depth, head.spec.priority
        queue.told_depth = depth
        queue.told_priority = priority
        assert queue.spec is not None
        self._effects.append(Send(self._node, Demand(queue.spec.job, queue.shape, workers, depth, priority)))

    def _watch(self, queue: Queue, now: float) -> None:
        if not queue.timer:
            queue.timer = self._timers.set(now + DEMAND_WINDOW_S, lambda then: self._review(queue, then))

    def _review(self, queue: Queue, now: float) -> None:
        """Tell a demand that fell, but only the most that was of use since the last look."""
        queue.timer = 0
        wanted = self._wanted(queue)
        useful = max(queue.peak, wanted)
        queue.peak = wanted
        if useful != queue.told:
            self._tell(queue, useful)
        if queue.told > wanted:
            self._watch(queue, now)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        for queue in self.queues.values():
            queued = [task for level in queue.levels.values() for task in level if task.state == QUEUED]
            assert len(queued) == queue.count, (len(queued), queue.count)
            for peer, thief in (*queue.idle.items(), *queue.far.items()):
                assert thief.idlers[peer] is thief
                assert not thief.leased
                assert not thief.closing
                assert queue.thieves[peer] is thief
            for thief in queue.thieves.values():
                assert all(task.thief is thief and task.state == LEASED for task in thief.leased.values())
                assert not thief.alone or len(thief.leased) <= 1

    @staticmethod
    def describe(shape: Shape) -> str:
        """Return a shape as users write it: `CPU 0.5, GPU 1`."""
        plain = outside_group(without_environment(shape))
        marks = [said(name) or name for name in plain if is_mark(name)]
        amounts = [f"{name} {amount / UNIT:g}" for name, amount in plain.items() if amount and not is_mark(name)]
        text = ", ".join((*amounts, *marks)) or "no resources"
        group = group_of(shape)
        return f"{text} in placement group {group.hex()}" if group else text


def _bytes_on(task: Task, node: NodeID | None) -> int:
    """Return how many bytes of the task's stored arguments lie on that host, or, for None, anywhere."""
    places = [entry.value for entry in task.inputs.deps if entry.status == STORED] if task.inputs is not None else []
    if type(task.args) is not bytes:
        places.append(task.args)
    return sum(place[1] for place in places if node is None or place[2][:NODE_ID_BYTES] == node)
