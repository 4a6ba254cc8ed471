"""A client: whoever submits tasks. Wires what it owns (tasks), whom it serves (victim), what it holds (references).

Drivers and workers both are one. The shell calls the inputs under one lock and carries out the effects before it
releases it. Holds no rule of its own beyond which machine hears of what.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from zmesh.core.actor_calls import ActorCalls
from zmesh.core.actor_inputs import ActorInputs
from zmesh.core.catalog import Catalog
from zmesh.core.counting_inputs import Input
from zmesh.core.effects import Disconnect, Effect, Recycle, Resolved, Send, Show, UnmapSegments, Warn
from zmesh.core.evacuation import Rescue
from zmesh.core.group_watch import GroupWatch
from zmesh.core.lineage_inputs import LineageInputs
from zmesh.core.links import Links
from zmesh.core.pulls import Pulls
from zmesh.core.records import (
    LEASED,
    QUEUED,
    RESOLVED,
    Actor,
    Creation,
    Entry,
    Inputs,
    MethodCall,
    Queue,
    ShapeKey,
    Spec,
    Task,
    Thief,
    group_of,
    in_group,
    shape_key,
)
from zmesh.core.references import References
from zmesh.core.shortcuts import Shortcuts
from zmesh.core.tasks import Tasks
from zmesh.core.timers import Timers
from zmesh.core.victim import Victim
from zmesh.wire.actor_messages import ActorState, KillActor, NameTold, ShareActor, Unheld
from zmesh.wire.death_messages import Expelled, Followed
from zmesh.wire.group_messages import GroupReply, GroupState
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, PeerID, node_peer
from zmesh.wire.keeper_messages import Kept
from zmesh.wire.messages import (
    ERROR,
    INLINE,
    ITEM,
    LOST,
    MANY,
    STORED,
    Ack,
    Done,
    Fetched,
    GiveBack,
    Infeasible,
    Leaving,
    Log,
    Mesh,
    NodeGone,
    Pulled,
    RecycleSegments,
    StatusReply,
    StatusRequest,
    Steal,
    Unpin,
    Unsteal,
    Unstolen,
    Welcome,
    WorkerDied,
)
from zmesh.wire.shortcut_messages import Carry, Shortcut, Switch
from zmesh.wire.store_messages import ListObjects, Objects, Unmap

DRAIN_S = 0.05  # after a worker's death, what it had sent may still arrive for so long
INFEASIBLE_GRACE_S = 1.0  # work that no node can run fails after this time, so that one may still join


class ClientCore(ActorInputs, LineageInputs):
    """The state of one client and all its inputs.

    Args:
        me: PeerID of this process.
        effects: where effects are appended, in order; the shell empties it.
        describe_status: turns a waitpid status into (exit code, signal name, text).
    """

    def __init__(
        self,
        me: PeerID,
        effects: list[Effect],
        timers: Timers,
        describe_status: Callable[[int], tuple[int | None, str | None, str]],
    ) -> None:
        self.me = me
        self.node = node_peer(me[:NODE_ID_BYTES])
        self.effects = effects
        self.timers = timers
        self.welcome: Welcome | None = None
        self.lost: Any = None  # the failure of everything once the node is gone
        self.refusal: Any = None  # the failure of every new call: the same, or that the actor which this is has ended
        self.specs: list[Spec] = []
        self.current: Any = None  # (owner, seq) of the task this process runs, if it is a worker
        self._describe_status = describe_status
        self._seq = 0
        self._waited: list[Entry] = []
        self._impossible: dict[ShapeKey, tuple[str, str]] = {}  # {shape that cannot run: (class, text) of the error}
        self.pulls = Pulls(self.node, effects)
        self.shortcuts = Shortcuts(me, effects, Links(effects, timers))
        self.references = References(
            me, self.node, effects, self.pulls, Catalog(),
            shared=lambda handle: self.actors.shared(handle),
            unheld=lambda oid, own: self.actors.unheld(oid, own=own),
        )  # fmt: skip
        self._rescue = Rescue(effects, node=lambda: self.node, references=self.references, hears=self.shortcuts.heard)
        self.victim = Victim(self.node, effects, timers, self._arguments, self._limit_time)
        self.tasks = Tasks(
            effects, timers, push=self._push, forget=self._forget, waited=self._waited,
            drop=self.references.drop, fetch=self.references.fetch, settled=self.references.resolved,
            free=self.references.free_segment, inside=self.references.inside, replace=self.references.replace,
            ended=lambda task: self.actors.ended(task),
            note=lambda task, results: self.lineage.note(task, results),
        )  # fmt: skip
        self.groups = GroupWatch(
            effects, timers, self.victim.groups, self.references, settle=self._settle, fail=self._group_changed
        )
        self.actors = ActorCalls(
            effects, timers, tasks=self.tasks, references=self.references,
            arguments=self._arguments, late=self._late, take=self._take,
            starved=lambda task, lost, now: self.lineage.starved(task, lost, now),
        )  # fmt: skip
        self.lineage = self._new_lineage()

    # Inputs from the user's threads.

    def submit(self, spec: Spec, args: Any, inputs: Inputs | None, depth: int, now: float) -> Task:
        """Make a task of this call; returns it with one reference counted for each of its results."""
        self._seq += 1
        task = Task(self._seq, spec, args, depth)
        plain = inputs is None and spec.num_returns == 1 and self.current is None
        if plain and self.refusal is None and not self._impossible:
            self.tasks.open += 1
            self.victim.push(task, now)
            return task
        task.inputs = inputs
        task.parent = self.current
        if self.refusal is not None:
            self._refuse(task, (ERROR, self.refusal))
        else:
            self.tasks.submit(task, now)
        self._flush()
        return task

    def put(self, status: int, value: Any, inside: list[Entry], made_at: str = "") -> Entry:
        """Own a value the user put; `inside` are the references in it, promoted before."""
        self._seq += 1
        entry = Entry(self._seq, 0, status, value)
        if status == STORED:
            self.references.share(entry).made_at = made_at
            self.references.catalog.add(entry, None)
        if inside:
            for inner in inside:
                inner.refs += 1
            self.references.share(entry).inside = list(inside)
        return entry

    def new_spec(self, job: PeerID, name: str, shape: dict[str, int], **options: Any) -> Spec:
        """Register one function with one set of options."""
        spec = Spec(len(self.specs), job, name, shape, **options)
        self.specs.append(spec)
        failure = self.groups.need(shape, spec.shape_key)
        if failure is not None:
            self._impossible[spec.shape_key] = failure
        return spec

    def cancel(self, task: Task, now: float, *, force: bool = False, recursive: bool = True) -> None:
        """Cancel one task; see Tasks.cancel."""
        self.tasks.cancel(task, now, force=force, recursive=recursive)
        self.victim.serve(now)
        self._flush()

    def ask_status(self, node: NodeID | None = None) -> Entry:
        """Ask our node, or another member, what is going on; the entry resolves with a dict."""
        ticket = self.references.ask()
        self.effects.append(Send(self.node if node is None else node_peer(node), StatusRequest(ticket.seq)))
        return ticket

    def fetch(self, entry: Entry) -> None:
        """Somebody waits for an entry: ask for its value if it is borrowed."""
        self.references.fetch(entry)
        if self.lost is not None:
            self.references.lose_node(self.lost)
            self._flush()

    def unresolved(self) -> list[Task]:
        """Return all tasks without an outcome: leased, queued, waiting."""
        leased = [task for thief in self.victim.thieves.values() for task in thief.leased.values()]
        levels = [level for queue in self.victim.queues.values() for level in queue.levels.values()]
        queued = [task for level in levels for task in level if task.state == QUEUED]
        return leased + queued + self.actors.unresolved() + self.tasks.waiting()

    # Inputs from the network.

    def receive(self, peer: PeerID, message: Any, now: float) -> None:
        """Take one message from the node or a thief. What makes no sense here is dropped with a warning."""
        handle = self._inputs.get(type(message))
        if handle is None:
            self.effects.append(Warn(f"{type(message).__name__} from {peer.hex()} is not for a client: dropped"))
            return
        handle(self, peer, message, now)
        self._flush()

    def node_lost(self, text: str, now: float) -> None:
        """The node is gone: everything unresolved fails, as its workers died with it."""
        if self.lost is not None:
            return
        self.lost = self.refusal = ("NodeDiedError", text, {})
        for task in self.unresolved():
            if task.state == QUEUED or type(task) is MethodCall:
                self._forget(task)
            elif task.state == LEASED:
                assert isinstance(task.thief, Thief)
                self.victim.returned(task.thief, task)
            if task.state != RESOLVED:
                self.tasks.resolve(task, ERROR, self.lost)
            self.tasks.entry_resolved(task, now)
        for entry in self.references.lose_node(self.lost):
            self.tasks.entry_resolved(entry, now)
        self.lineage.lose_node(self.lost, now)
        self.pulls.lose_node(self.lost)
        self.groups.lose(self.lost, now)
        self._flush()

    # How the machines meet.

    def _push(self, task: Task, now: float, front: bool) -> None:
        if type(task) is MethodCall:
            self.actors.push(task, now, front=front)
            return
        if type(task) is Creation:
            self.actors.starting(task, now)
        self.victim.push(task, now, front=front)
        key = task.spec.shape_key
        if key in self._impossible:
            grace_s = 0.0 if group_of(task.spec.shape) else INFEASIBLE_GRACE_S
            self.timers.set(now + grace_s, lambda then: self._fail_impossible(key, then))

    def _forget(self, task: Task) -> None:
        if type(task) is MethodCall:
            self.actors.forget(task)
        else:
            self.victim.forget(task)

    def _limit_time(self, task: Task, now: float) -> None:
        self.tasks.limit_time(task, now)

    def _flush(self) -> None:
        if self._waited:
            self.effects.append(Resolved(self._waited[:]))
            self._waited.clear()

    def _arguments(self, task: Task, thief: Thief | Actor) -> tuple[Any, list[Any]]:
        """Return the arguments and dependencies of a task as Work and Call carry them."""
        del thief  # dependencies are named alike to every thief of the host
        deps = []
        if task.inputs is not None:
            for entry in task.inputs.deps:
                key = self.references.lend(entry) if entry.status == STORED else None
                deps.append((entry.status, entry.value, key))
            for entry in task.inputs.held:
                if entry.status == STORED:
                    self.references.lend(entry)
        return task.args, deps

    def _welcome(self, peer: PeerID, message: Welcome, now: float) -> None:
        del peer
        self.welcome = message
        if not self.victim.totals:
            self.victim.totals = [dict(message.total)]
        self.victim.serve(now)

    def _mesh(self, peer: PeerID, message: Mesh, now: float) -> None:
        """Members came or went: what was impossible may be possible now, and more workers may be of use."""
        del peer
        self.victim.totals = [dict(total) for total in message.totals]
        self._forget_impossible()
        self.victim.ask_anew(now)

    def _forget_impossible(self) -> None:
        """There are other nodes now. What became of groups does not change with that."""
        for key in [key for key in self._impossible if not any(in_group(name) for name, _ in key)]:
            del self._impossible[key]

    def _group_changed(self, key: ShapeKey, failure: tuple[str, str] | None, now: float) -> None:
        """Tasks of this shape are for a group that they cannot run in, or, without a failure, will."""
        self._impossible.pop(key, None)
        queue = self.victim.queues.get(key)
        if failure is not None:
            self._impossible[key] = failure
            self._fail_impossible(key, now)
        elif queue is not None and queue.count:
            self.victim.ask(queue, now)  # only now is it known how many workers could be of use

    def _settle(self, entry: Entry, status: int, value: Any, now: float) -> None:
        """Give an own entry that no task makes its value or error."""
        entry.status, entry.value = status, value
        if entry.waiter is not None:
            self._waited.append(entry)
        self.references.resolved(entry)
        self.tasks.entry_resolved(entry, now)
        self._flush()

    def _node_gone(self, peer: PeerID, message: NodeGone, now: float) -> None:
        """A member is gone: what it had of ours runs elsewhere, what it had for us is lost."""
        del peer
        self.tasks.node_gone(message.node)
        self.groups.node_gone(message.node, message.why, now)
        self.shortcuts.node_gone(message.node)
        self._rescue.node_gone(message.node)
        gone = [thief for thief in self.victim.thieves.values() if thief.peer[:NODE_ID_BYTES] == message.node]
        for thief in gone:
            self.victim.close(thief)
        for thief in gone:
            self._lose_thief(thief, message.node, message.why, now)
        self.references.node_gone(message.node)
        self.lineage.home_gone(message.node)
        self.actors.node_gone(message.node, message.why, now)
        self.victim.serve(now)

    def _lose_thief(self, thief: Thief, node: NodeID, why: str, now: float) -> None:
        """A closed thief is gone with a node, and nobody will say what it did."""
        self.references.victim_died(thief.peer)
        # What it was told first it most likely ran: that one is charged, as it may be what killed the host.
        started = next(iter(thief.leased.values()), None)
        self._requeue(thief, [task for task in thief.leased.values() if task is not started], now)
        if started is not None:
            self.victim.returned(thief, started)
            self.tasks.node_died(started, node, why, now)
        self.victim.gone(thief, now)

    def _steal(self, peer: PeerID, message: Steal, now: float) -> None:
        key = shape_key(message.shape)
        queue = self.victim.queues.get(key)
        if queue is None:
            queue = self.victim.queues[key] = Queue(key, dict(message.shape))
        self.victim.steal(peer, message.epoch, queue, message.credit_s, now)

    def _done(self, peer: PeerID, message: Done, now: float) -> None:
        """Results of a thief: the hot path."""
        if message.kept:
            self.references.kept(peer, message.kept, self._needed_by(peer))
        if peer in self.actors.serving and self.actors.done(peer, message.results, now):
            return
        thief = self.victim.thieves.get(peer)
        if thief is None:
            for result in message.results:
                self._late(peer, result, now)
            return
        victim, tasks, leased = self.victim, self.tasks, thief.leased
        victim.timed(self.specs, message.timings)
        for result in message.results:
            task = leased.get(result[0])
            if task is None:
                self._late(peer, result, now)
            elif result[2] == INLINE and len(result) == 4 and not task.attempt and task.inputs is None:
                victim.returned(thief, task)
                tasks.resolve(task, INLINE, result[3])
                tasks.entry_resolved(task, now)
            elif result[2] == ITEM:
                tasks.item(task, result[3])
                self._take(peer, result)
                if type(task) is Creation:
                    victim.settled(thief, now)
                    self.actors.ready(task, peer, now)
            elif result[2] == LOST:
                victim.returned(thief, task)
                self.lineage.starved(task, result[3], now)
            else:
                victim.returned(thief, task)
                tasks.outcome(task, result, now)
                self._take(peer, result)
        victim.refill(thief, now)
        if thief.closing and not leased:
            victim.gone(thief, now)

    def _take(self, peer: PeerID, result: Any) -> None:
        """Have the references inside a result counted for us, if there are any."""
        status, value = result[2], result[3]
        if (
            len(result) > 4
            or (status == ITEM and value[3])
            or (status == MANY and any(inside for _, _, inside in value))
        ):
            self.references.claim(peer, result[0])

    def _late(self, peer: PeerID, result: Any, now: float) -> None:
        """A result nobody leases: the success of an earlier attempt still counts, all else is dropped."""
        task = self.tasks.retried.get(result[0])
        if task is not None and result[2] in (INLINE, STORED):
            if task.state == QUEUED:
                self._forget(task)
            elif task.state == LEASED:
                return  # the attempt under way will resolve it; both give the same
            self.tasks.outcome(task, result, now)
        elif result[2] == STORED:
            self.references.free_segment(result[3])
        self._take(peer, result)

    def _give_back(self, peer: PeerID, message: GiveBack, now: float) -> None:
        thief = self.victim.thieves.get(peer)
        if thief is None:
            return
        thief.paused = True
        thief.idlers.pop(peer, None)
        given = [thief.leased[seq] for seq, attempt in message.tasks if seq in thief.leased]
        self._requeue(thief, given, now)
        if thief.closing and not thief.leased:
            self.victim.gone(thief, now)  # Work crossed its Unsteal
        self.victim.serve(now)

    def _requeue(self, thief: Thief, tasks: list[Task], now: float) -> None:
        """Put tasks a thief did not start back in front, in their old order."""
        for task in sorted(tasks, key=lambda task: task.seq, reverse=True):
            self.victim.returned(thief, task)
            if task.timer:
                self.timers.cancel(task.timer)
                task.timer = 0
            if task.cancelled:
                task.state = QUEUED  # never started: nothing to interrupt
                self.tasks.resolve(task, ERROR, ("TaskCancelledError", f"{task.spec.name} was cancelled", {}))
                self.tasks.entry_resolved(task, now)
            else:
                self._push(task, now, True)

    def _unsteal(self, peer: PeerID, message: Unsteal, now: float) -> None:
        thief = self.victim.thieves.get(peer)
        if thief is not None and thief.epoch == message.epoch:
            self.victim.close(thief)
            if not thief.leased:
                self.victim.gone(thief, now)
        self.effects.append(Send(peer, Unstolen(message.epoch)))

    def _worker_died(self, peer: PeerID, message: WorkerDied, now: float) -> None:
        """Wait a moment for what the worker sent before it died, then charge one task and requeue the rest."""
        del peer
        thief = self.victim.thieves.get(message.worker)
        if thief is not None:
            self.victim.close(thief)
        self.actors.dying(message.worker, message.detail or self._describe_status(message.status)[2])
        self.timers.set(now + DRAIN_S, lambda then: self._bury(message, then))

    def _bury(self, message: WorkerDied, now: float) -> None:
        self.references.reader_died(message.worker)
        self.references.victim_died(message.worker)
        self.references.bury(message.worker)
        self.effects.append(Disconnect(message.worker))  # what is known of how to answer it
        thief = self.victim.thieves.get(message.worker)
        if thief is None:
            self.actors.lost(message.worker)
            self._flush()
            return
        charged = thief.leased.get(message.seq) if message.owner == self.me else None
        if type(charged) is Creation and message.over and charged.outputs:
            self.victim.returned(thief, charged)  # the actor ended in good order, only its last word is lost
            self.tasks.resolve(charged, INLINE, None)
            charged = None
        elif message.over and charged is not None and charged.spec.max_retries:
            charged = None  # it did finish, only its result is lost: running it again is nobody's fault
        self._requeue(thief, [task for task in thief.leased.values() if task is not charged], now)
        if charged is not None:
            self.victim.returned(thief, charged)
            how = self._describe_status(message.status)
            self.tasks.worker_died(charged, message.pid, how, message.reason, message.tail, now, detail=message.detail)
        self.victim.gone(thief, now)
        self.victim.serve(now)
        self._flush()

    def _fetched(self, peer: PeerID, message: Fetched, now: float) -> None:
        del peer
        for entry in self.references.fetched(message.objects):
            self.tasks.entry_resolved(entry, now)
        self.lineage.fetched(message.objects, now)

    def _infeasible(self, peer: PeerID, message: Infeasible, now: float) -> None:
        del peer
        key = shape_key(message.shape)
        self._impossible[key] = ("TaskUnschedulableError", message.text)
        self.timers.set(now + INFEASIBLE_GRACE_S, lambda then: self._fail_impossible(key, then))

    def _fail_impossible(self, key: ShapeKey, now: float) -> None:
        """Fail what is queued for a shape that cannot run, if that still is so."""
        failure, queue = self._impossible.get(key), self.victim.queues.get(key)
        if failure is None or queue is None:
            return
        name, text = failure
        tasks = [task for level in queue.levels.values() for task in level if task.state == QUEUED]
        for level in queue.levels.values():
            level.clear()
        queue.count = 0
        for task in tasks:
            if self._fall_back(task.spec, key):
                self._push(task, now, False)
                continue
            self.tasks.resolve(task, ERROR, (name, f"{task.spec.name}: {text}", {}))
            self.tasks.entry_resolved(task, now)
        self.victim.serve(now)
        self._flush()

    @staticmethod
    def _fall_back(spec: Spec, impossible: Any) -> bool:
        """Give up what was only wished for; returns whether the function's tasks have another shape than that."""
        if spec.fallbacks and spec.shape_key == impossible:
            spec.shape = spec.fallbacks.pop(0)
            spec.shape_key = shape_key(spec.shape)
        return bool(spec.shape_key != impossible)

    def _log(self, peer: PeerID, message: Log, now: float) -> None:
        del peer, now
        label = f"({message.name or 'worker'} pid={message.pid}) "
        text = "".join(f"{label}{line}\n" for line in message.text.splitlines())
        self.effects.append(Show(message.stream, text))

    # Outputs for users.

    def waits_for(self, entry: Entry) -> str:
        """Say why an entry has no value yet."""
        task = self.tasks.maker_of(entry)
        if task is None:
            return self.groups.waits_for(entry) or "the object belongs to another process, which has not made it yet"
        text = self.tasks.waits_for(task)
        if task.state == QUEUED and type(task) is MethodCall:
            text = self.actors.waits_for(task)
            creation = task.actor.creation
            if creation is not None and creation.state == QUEUED:
                text += f": {self.waits_for(creation)}"
        elif task.state == QUEUED:
            queue = self.victim.queues[task.spec.shape_key]
            impossible = self._impossible.get(queue.key)
            text += f" behind {queue.count - 1} others for {Victim.describe(queue.shape)}"
            text += f"; {len(queue.thieves)} workers are attached for that"
            if impossible:
                text += f"; {impossible[1]}"
            elif group_of(queue.shape):
                text += f"; {self.groups.describe(group_of(queue.shape))}"
        return text

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        self.victim.check()
        self.references.check()
        self.pulls.check()
        self.lineage.check()
        self.shortcuts.check()
        self.actors.check()
        unresolved = self.unresolved()
        assert len(unresolved) == self.tasks.open, (len(unresolved), self.tasks.open)

    # Of the class: tables of bound methods would make what they name each worker's own.
    _inputs: ClassVar[dict[type[Any], Input]] = LineageInputs._inputs | {
        Done: _done,
        Steal: _steal,
        GiveBack: _give_back,
        Unsteal: _unsteal,
        Unpin: lambda self, peer, message, now: self.references.unpinned(peer, message.objects),
        Welcome: _welcome,
        WorkerDied: _worker_died,
        Infeasible: _infeasible,
        Log: _log,
        StatusReply: lambda self, _, message, now: self.references.answered(message.request, INLINE, message.status),
        Ack: lambda self, peer, message, now: self.references.acknowledged(peer, message.request, message.error),
        Fetched: _fetched,
        Pulled: lambda self, _, message, now: self.pulls.pulled(message.objects),
        Mesh: _mesh,
        NodeGone: _node_gone,
        GroupState: lambda self, _, message, now: self.groups.heard(message, now),
        GroupReply: lambda self, _, message, now: self.groups.replied(message),
        Shortcut: lambda self, peer, message, now: self.shortcuts.offered(peer, message, now),
        Switch: lambda self, peer, message, now: self.shortcuts.switched(peer, message, now),
        Carry: lambda self, peer, message, now: self.shortcuts.carried(peer, message, now),
        Leaving: lambda self, peer, message, now: self._rescue.leaving(peer, message.node),
        RecycleSegments: lambda self, _, message, now: self.effects.append(Recycle(list(message.segments))),
        ListObjects: lambda self, peer, m, now: self.effects.append(
            Send(peer, Objects(m.request, self.references.listed()))
        ),
        Objects: lambda self, _, message, now: self.references.answered(message.request, INLINE, message.objects),
        Unmap: lambda self, _, message, now: self.effects.append(UnmapSegments(list(message.segments))),
        ActorState: lambda self, _, message, now: self.actors.told(message, now),
        ShareActor: lambda self, peer, message, now: self.actors.share(peer, message),
        Unheld: lambda self, _, message, now: self.actors.unheld(message.actor, own=True),
        Kept: lambda self, _, message, now: self.actors.kept(message),
        NameTold: lambda self, _, message, now: self.references.answered(message.request, INLINE, message.found),
        KillActor: lambda self, _, message, now: self.actors.kill_told(message, now),
        Followed: lambda self, _, message, now: self.actors.followed(message),
        Expelled: lambda self, _, message, now: self.node_lost(f"the node dropped this process: {message.why}", now),
    }
