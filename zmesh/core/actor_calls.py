"""The caller's half of actors: where each actor is, which calls may go to it, and what its death means for them.

    unknown, being made --alive--> serving --worker dies--> being made again --alive--> serving ... --> dead

An own actor is a creation task (core/tasks.py), so its restarts are that task's retries; of a borrowed one the home of
its ActorID tells. A call is a task like any other, only that it goes straight to the actor, in the order of submission:
the link is FIFO, and each incarnation is another process, so nothing needs numbers.
"""

from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Connect, Effect, Send
from zmesh.core.records import (
    LEASED,
    QUEUED,
    RESOLVED,
    WAITING,
    Actor,
    Creation,
    Entry,
    Handle,
    MethodCall,
    Task,
)
from zmesh.core.timers import Timers
from zmesh.wire.actor_messages import (
    ACTOR_DEAD,
    NAME_DOUBT,
    ActorQuery,
    ActorShared,
    ActorState,
    Call,
    Follow,
    KillActor,
    NameAsk,
    Retire,
    ShareActor,
)
from zmesh.wire.death_messages import Followed
from zmesh.wire.ids import ACTOR_INDEX, NODE_ID_BYTES, NodeID, ObjectID, PeerID, actor_id, node_peer
from zmesh.wire.keeper_messages import KeepActor, Kept
from zmesh.wire.messages import ERROR, FAILED, INLINE, ITEM, LOST, STORED, Kill

BATCH_CALLS_MAX = 256
BATCH_BYTES_MAX = 256 * 1024
SENT_MAX = 512  # to an actor that runs one call at a time: a batch running and a batch waiting
SENT_SINGLY_MAX = 16  # of those that go as they are made; more wait for company until results come
BURST_S = 0.001  # to others so many go as they are made in each such time; more until somebody looks at the clock
KILLED = "it was killed by zmesh.kill()"
RETIRE_S = 30.0  # an actor without handles that has not ended by itself after this time is killed


class ActorCalls:
    """The actors one client made or has handles of.

    Args:
        tasks: the life of the calls.
        arguments: makes the arguments and dependencies of a call ready for the wire: (call, actor) -> tuple.
        late: takes in a result that no call waits for.
        take: has the references inside a result counted.
        starved: has a call wait for arguments that the actor could not have: (call, what was lost, now).
    """

    def __init__(
        self,
        effects: list[Effect],
        timers: Timers,
        *,
        tasks: Any,
        references: Any,
        arguments: Callable[[Task, Any], tuple[Any, ...]],
        late: Callable[[PeerID, Any, float], None],
        take: Callable[[PeerID, Any], None],
        starved: Callable[[Task, list[Any], float], None],
    ) -> None:
        self._effects = effects
        self._timers = timers
        self._tasks = tasks
        self._references = references
        self._arguments = arguments
        self._late = late
        self._take = take
        self._starved = starved
        self.known: dict[ObjectID, Actor] = {}
        self.serving: dict[PeerID, Actor] = {}  # {worker: the actor that lives in it}
        # {worker: True} that we dialled; a link stays until that ends, as the actor may talk to us over it as well.
        self._links: dict[PeerID, bool] = {}
        # {worker of this host: (the actor in it, its version)} that our node is to follow, and has not said so yet
        self._following: dict[PeerID, tuple[Actor, int]] = {}
        # {worker: how often it gave calls back}, as long as it lives: an actor may be let go of, and found again.
        self._losses: dict[PeerID, int] = {}

    # Inputs from above.

    def create(self, creation: Creation, me: PeerID, name: str, *, ordered: bool) -> Handle:
        """Note that this process makes an actor; returns the entry of its first handle."""
        oid = actor_id(me, creation.seq)
        creation.actor = self.known[oid] = Actor(oid, name, ordered=ordered, creation=creation)
        creation.actor.own = Handle(creation.actor)
        return creation.actor.own

    def find(self, entry: Entry, name: str, *, ordered: bool) -> Actor:
        """Return the actor of a handle; where a borrowed one is must be asked first."""
        if type(entry) is Handle:
            return entry.actor
        oid = self._references.oid(entry)
        actor = self.known.get(oid)
        if actor is None:
            actor = self.known[oid] = Actor(oid, name, ordered=ordered)
            self._ask(actor)
        return actor

    def opened(self, call: MethodCall, handle: Entry) -> None:
        """A call was made: it holds the handle until it has a result, and its place among the others."""
        actor = call.actor
        if not actor.open:
            actor.handle = handle
            handle.refs += 1
        actor.open += 1
        if actor.ordered:
            actor.queue.append(call)

    def push(self, call: MethodCall, now: float, *, front: bool) -> None:
        """The arguments of a call are there, or it is to be sent once more."""
        actor = call.actor
        call.state = QUEUED
        if front:
            if not actor.queue or actor.queue[0] is not call:
                actor.queue.appendleft(call)
        elif not actor.ordered:
            actor.queue.append(call)
            if self._gathers(actor, now):
                return
        self._fill(actor, SENT_SINGLY_MAX)

    def _gathers(self, actor: Actor, now: float) -> bool:
        """Whether a call is one of so many made at once that it waits for company; never for another's end."""
        if now - actor.burst_s >= BURST_S:
            actor.burst, actor.burst_s = 0, now
        actor.burst += 1
        if actor.burst <= SENT_SINGLY_MAX or len(actor.queue) >= BATCH_CALLS_MAX:
            return False
        if not actor.gathering:
            actor.gathering = True
            self._timers.set(now, lambda _: self._send_gathered(actor))
        return True

    def _send_gathered(self, actor: Actor) -> None:
        actor.gathering = False
        self._fill(actor, SENT_SINGLY_MAX)

    def forget(self, call: MethodCall) -> None:
        """The caller resolves a call itself; in the queue it is skipped when it comes up."""
        call.actor.sent.pop(call.seq, None)

    def kill(self, actor: Actor, now: float, *, no_restart: bool) -> None:
        """End an actor at once, whatever it does; with `no_restart` for good."""
        creation = actor.creation
        if creation is None:
            self._effects.append(Send(_home(actor.oid), KillActor(actor.oid, no_restart)))
        elif creation.state == LEASED and (actor.peer or not no_restart):
            creation.cancelled = creation.cancelled or no_restart
            self._kill_worker(creation)
            if no_restart:
                self._die(actor, _died(actor, KILLED, {}), now)  # nothing more is sent to it
        elif no_restart and self._unstarted(creation):
            self._die(actor, _died(actor, KILLED, {}), now)
        elif no_restart:  # it is not made yet; if a worker has it, it may not have entered it
            self._tasks.cancel(creation, now, force=True, recursive=False)

    def _kill_worker(self, creation: Creation) -> None:
        assert creation.thief is not None
        worker = creation.thief.peer
        order = Kill(worker, creation.seq, creation.attempt, "cancel")
        self._effects.append(Send(node_peer(worker[:NODE_ID_BYTES]), order))

    def kill_told(self, message: KillActor, now: float) -> None:
        """Somebody else wants an actor of ours killed."""
        actor = self.known.get(message.actor)
        if actor is not None and actor.creation is not None:
            self.kill(actor, now, no_restart=message.no_restart)

    def abandon(self, handle: Handle, why: str) -> None:
        """An actor that was not started will not be."""
        actor = handle.actor
        assert actor.creation is not None
        if actor.failure is None:
            actor.version, actor.failure = ACTOR_DEAD, _died(actor, why, {})
        if actor.creation.inputs is not None:
            for entry in actor.creation.inputs.held:
                self._references.settle(entry)

    def ask_name(self, kind: int, namespace: str, name: str, actor: ObjectID = b"", description: bytes = b"") -> Entry:
        """Take a name for an actor, or find who has it; the entry resolves with what has it now: see NameTold."""
        ticket: Entry = self._references.ask()
        home = node_peer(self._references.here)
        self._effects.append(Send(home, NameAsk(ticket.seq, kind, namespace, name, actor, description)))
        return ticket

    def doubt_name(self, namespace: str, name: str, actor: ObjectID) -> None:
        """What has a name seems to be gone: its node is to see to it."""
        self._effects.append(Send(node_peer(self._references.here), NameAsk(0, NAME_DOUBT, namespace, name, actor)))

    def share(self, peer: PeerID, message: ShareActor) -> None:
        """An own actor wants a handle of itself."""
        actor = self.known.get(message.actor)
        if actor is None or actor.own is None or not actor.own.refs or actor.failure is not None:
            self._effects.append(Send(peer, ActorShared(message.request, "nobody has a handle of it")))
        else:
            self._references.count_for(peer, actor.own, ActorShared(message.request))

    def keep(self, order: KeepActor, deps: list[Entry]) -> Entry:
        """Have our node's keeper make an actor that needs `deps`; the entry resolves with Kept, or an error."""
        ticket: Entry = self._references.ask()
        order.places = [list(self._references.place(one.value)) if one.status == STORED else [] for one in deps]
        order.request = ticket.seq
        self._effects.append(Send(node_peer(self._references.here), order))
        return ticket

    def kept(self, m: Kept) -> None:
        """The keeper has done so, or says why not."""
        status, value = (ERROR, (m.kind, m.error, {})) if m.error else (INLINE, m)
        self._references.answered(m.request, status, value)

    # Handles.

    def shared(self, handle: Handle) -> None:
        """A handle is about to leave this process: its home must know where the actor is."""
        handle.actor.shared = True
        self._tell(handle.actor, first=True)

    def unheld(self, oid: ObjectID, *, own: bool) -> None:
        """No handle is left: here of a borrowed actor, anywhere of an own one. May be told in the midst of anything."""
        actor = self.known.get(oid)
        if actor is not None and (actor.creation is not None) == own:
            self._timers.set(0.0, lambda now: self._unheld(oid, now))

    def _unheld(self, oid: ObjectID, now: float) -> None:
        actor = self.known.get(oid)
        if actor is None or actor.open:
            return  # a handle came back meanwhile
        actor.retiring = True
        creation = actor.creation
        if creation is None or actor.failure is not None:
            self._forget(actor)
        elif actor.peer:
            self._retire(actor, now)
        elif creation.state in (WAITING, QUEUED) and not self._unstarted(creation):
            self._tasks.cancel(creation, now, force=False, recursive=False)

    def _unstarted(self, creation: Creation) -> bool:
        """Whether an actor has its ActorID, maybe its name, and is not made yet: others may know of it already."""
        return creation.state != RESOLVED and creation.seq not in self._tasks.many

    def dismiss(self, now: float) -> None:
        """This process is over but for what others need: own actors that only it has handles of end in good order."""
        for actor in list(self.known.values()):
            if actor.creation is not None and not (actor.shared or actor.retiring):
                self._unheld(actor.oid, now)

    def _forget(self, actor: Actor) -> None:
        del self.known[actor.oid]
        actor.own = None
        if actor.peer:
            self._leave(actor)

    def _leave(self, actor: Actor) -> None:
        """It is not where it was."""
        del self.serving[actor.peer]
        if actor.creation is not None:
            self._losses.pop(actor.peer, None)
        actor.peer = b""

    def _retire(self, actor: Actor, now: float) -> None:
        self._effects.append(Send(actor.peer, Retire()))

        def expire(then: float) -> None:
            actor.timer = 0
            self.kill(actor, then, no_restart=True)

        actor.timer = self._timers.set(now + RETIRE_S, expire)

    # What becomes of own actors.

    def ready(self, creation: Creation, peer: PeerID, now: float) -> None:
        """The actor is made, and serves."""
        actor = creation.actor
        if creation.cancelled:  # too early to be killed, as its worker had not entered it, and too late to be dropped
            self._kill_worker(creation)
            self._die(actor, _died(actor, KILLED, {}), now)
            return
        self._serve(actor, 2 * creation.attempt + 1, peer)
        if actor.retiring:
            self._retire(actor, now)

    def starting(self, creation: Creation, now: float) -> None:
        """The creation task is queued: if it is for one more time, the actor that was is no more."""
        actor = creation.actor
        if 2 * creation.attempt > actor.version:
            actor.version = 2 * creation.attempt
            if actor.peer:
                self._leave(actor)
            self._tell(actor)
            self._interrupt(actor, now)

    def ended(self, task: Task) -> None:
        """A call, or an actor, was resolved."""
        if type(task) is Creation:
            # Nothing starts because of a failure, so the time does not matter.
            self._die(task.actor, _failure_of(task, task.actor), 0.0)
            return
        assert type(task) is MethodCall
        actor = task.actor
        actor.open -= 1
        if not actor.open:
            handle, actor.handle = actor.handle, None
            self._references.drop(handle)
        if actor.queue:
            self._fill(actor, SENT_SINGLY_MAX)  # it may have been what the others waited behind

    # What is heard of others'.

    def told(self, message: ActorState, now: float) -> None:
        """The home of an actor says what has become of it."""
        actor = self.known.get(message.actor)
        if actor is None or actor.creation is not None or message.version <= actor.version:
            return
        if actor.peer:
            self._leave(actor)
        if message.failure:
            self._die(actor, tuple(message.failure), now)
            return
        actor.version = message.version
        self._interrupt(actor, now)
        if message.peer:
            self._effects.append(Send(node_peer(message.peer[:NODE_ID_BYTES]), Follow(message.peer)))
            if message.peer[:NODE_ID_BYTES] != self._references.here:
                self._serve(actor, message.version, message.peer)  # what we say to it goes by way of its node, too
                return
            self._following[message.peer] = (actor, message.version)
            if message.peer not in self._links:
                self._links[message.peer] = True
                self._effects.append(Connect(message.peer))
        else:
            self._ask(actor)

    def followed(self, message: Followed) -> None:
        """Our node tells the actor of our death from now on: calls may go to it, with all they lend."""
        actor, version = self._following.pop(message.worker, (None, 0))
        if actor is not None and actor.version == version and self.known.get(actor.oid) is actor:
            self._serve(actor, version, message.worker)

    def lost(self, peer: PeerID) -> None:
        """A worker is gone. What it means for an own actor was decided with its creation task."""
        followed, version = self._following.pop(peer, (None, 0))
        if followed is not None and followed.version == version:
            self._ask(followed)
        self._losses.pop(peer, None)
        self._links.pop(peer, None)
        actor = self.serving.get(peer)
        if actor is not None and actor.creation is None:
            self._leave(actor)
            self._ask(actor)

    def node_gone(self, node: NodeID, why: str, now: float) -> None:
        """A member is gone, with the actors that lived there, and what it knew of others."""
        for peer in [peer for peer in self.serving if peer[:NODE_ID_BYTES] == node]:
            self.lost(peer)
        text = f"the node {node.hex()} of the program that made it is gone: {why}"
        for actor in [a for a in self.known.values() if a.creation is None and a.oid[:NODE_ID_BYTES] == node]:
            self._die(actor, _died(actor, text, {}), now)

    def lose_all(self, why: str, now: float) -> None:
        """This process became a client of another node, under another name: nobody knows its actors any more.

        What is left of its own goes by names that begin as its own does, like all that it may share from now on.
        """
        own = [(actor, actor.creation) for actor in self.known.values() if actor.creation is not None]
        for actor, creation in own:
            del self.known[actor.oid]
            place = (creation.seq, ACTOR_INDEX)
            unheld = (
                actor.shared and self._references.own(*place) is None
            )  # only others had handles, as their home knew
            actor.oid, actor.shared = self._references.own_id(*place), False
            self.known[actor.oid] = actor
            if unheld:
                self.unheld(actor.oid, own=True)
        for actor in list(self.known.values()):
            if actor.failure is not None:
                continue
            if actor.creation is None:
                self._die(actor, _died(actor, why, {}), now)
                self.known.pop(actor.oid, None)  # it may well be found again
            elif actor.creation.state == LEASED:
                actor.creation.cancelled = True  # its thief is about to be lost
            else:
                self._tasks.cancel(actor.creation, now, force=False, recursive=False)

    def _ask(self, actor: Actor) -> None:
        self._effects.append(Send(_home(actor.oid), ActorQuery(actor.oid, actor.version)))

    def _tell(self, actor: Actor, *, first: bool = False) -> None:
        if actor.shared:
            state = ActorState(actor.oid, actor.version, actor.peer, list(actor.failure or ()), first)
            self._effects.append(Send(_home(actor.oid), state))

    def _serve(self, actor: Actor, version: int, peer: PeerID) -> None:
        actor.version = version
        actor.peer = peer
        actor.specs = {}
        self.serving[peer] = actor
        self._tell(actor)
        self._fill(actor, SENT_MAX)

    def dying(self, peer: PeerID, how: str) -> None:
        """The worker of an actor has died: `how` ends a sentence about it."""
        if peer in self.serving:
            self.serving[peer].how = how

    def _interrupt(self, actor: Actor, now: float) -> None:
        """The actor will be made anew: what it had may have run."""
        sent, actor.sent = list(actor.sent.values()), {}
        failure = ERROR, ("ActorUnavailableError", _unavailable(actor), {"actor_id": actor.oid.hex()})
        # The last first, as each that is retried goes in front of the queue.
        for call in reversed(sent):
            self._tasks.interrupted(call, failure, now, final=False)

    def _die(self, actor: Actor, failure: tuple[int, Any], now: float) -> None:
        """It will not come back."""
        if actor.failure is not None:
            return  # it was killed, and is now reported dead
        actor.version = ACTOR_DEAD
        actor.failure = failure
        if actor.timer:
            self._timers.cancel(actor.timer)
            actor.timer = 0
        if actor.peer:
            self._leave(actor)
        self._tell(actor)
        waiting = [task for task in self._tasks.waiting() if type(task) is MethodCall and task.actor is actor]
        calls = [*actor.sent.values(), *actor.queue, *waiting]
        actor.sent = {}
        actor.queue.clear()
        for call in calls:
            if call.state != RESOLVED:
                self._tasks.interrupted(call, failure, now, final=True)
        if actor.retiring and self.known.get(actor.oid) is actor:
            del self.known[actor.oid]

    # Outputs.

    def _fill(self, actor: Actor, sent_max: int) -> None:
        """Send what may go, in order. One that waits for its arguments holds up those behind it."""
        if not actor.peer:
            return
        queue, sent = actor.queue, actor.sent
        while queue and (not actor.ordered or len(sent) < sent_max):
            room = min(BATCH_CALLS_MAX, sent_max - len(sent)) if actor.ordered else BATCH_CALLS_MAX
            specs: list[Any] = []
            calls: list[Any] = []
            size = 0
            while queue and len(calls) < room and size < BATCH_BYTES_MAX:
                call = queue[0]
                if call.state == WAITING:
                    break
                queue.popleft()
                if call.state != QUEUED:
                    continue  # resolved meanwhile
                size += self._pack(actor, call, specs, calls)
            if not calls:
                return
            self._effects.append(Send(actor.peer, Call(specs, calls, self._losses.get(actor.peer, 0))))

    def _pack(self, actor: Actor, call: MethodCall, specs: list[Any], calls: list[Any]) -> int:
        """Add a call to a message; returns about how many bytes it takes."""
        spec, size = call.spec, 16
        call.state = LEASED
        call.thief = actor
        actor.sent[call.seq] = call
        if spec.index not in actor.specs:
            actor.specs[spec.index] = True
            specs.append((spec.index, spec.job, spec.name, spec.num_returns, spec.options, spec.digest, spec.blob))
            size += len(spec.blob)
        if call.inputs is None and type(call.args) is bytes:
            calls.append((call.seq, call.attempt, spec.index, call.depth, call.args))
            return size + len(call.args)
        args, deps = self._arguments(call, actor)
        calls.append((call.seq, call.attempt, spec.index, call.depth, args, deps))
        return size + len(args) + sum(len(dep[1]) for dep in deps if type(dep[1]) is bytes) + 48

    # Inputs from actors.

    def done(self, peer: PeerID, results: list[Any], now: float) -> bool:
        """Take in results of calls: the hot path. False if they are not an actor's, but its creation task's."""
        actor = self.serving.get(peer)
        if actor is None or (actor.creation is not None and results[0][0] == actor.creation.seq):
            return False
        tasks, sent = self._tasks, actor.sent
        for result in results:
            call = sent.get(result[0])
            if call is None:
                self._late(peer, result, now)
            elif result[2] == ITEM:
                tasks.item(call, result[3])
                self._take(peer, result)
            elif result[2] == LOST:
                self._given_back(actor, call, result[3], now)
            else:
                del sent[call.seq]
                if result[2] == INLINE and len(result) == 4 and not call.attempt and call.inputs is None:
                    tasks.resolve(call, INLINE, result[3])
                    tasks.entry_resolved(call, now)
                else:
                    tasks.outcome(call, result, now)
                    self._take(peer, result)
        if actor.queue:
            self._fill(actor, SENT_MAX)
        return True

    def _given_back(self, actor: Actor, call: MethodCall, lost: list[Any], now: float) -> None:
        """The actor could not have arguments of a call, and started neither it nor any that was sent after it."""
        behind: list[MethodCall] = []
        if actor.ordered:
            self._losses[actor.peer] = self._losses.get(actor.peer, 0) + 1
            sent = list(actor.sent.values())
            behind = sent[sent.index(call) + 1 :]
            actor.queue.extendleft(reversed([call, *behind]))
        for one in (call, *behind):
            del actor.sent[one.seq]
            one.thief = None
            one.state = QUEUED
        call.state = WAITING  # in front of the queue: nothing goes before its fate is known
        for one in behind:
            if one.cancelled:
                self._tasks.interrupted(one, None, now, final=True)
        self._starved(call, lost, now)

    def unresolved(self) -> list[Task]:
        """Return the calls without an outcome that do not wait for arguments."""
        found: list[Task] = []
        for actor in self.known.values():
            found += actor.sent.values()
            found += [call for call in actor.queue if call.state == QUEUED]
        return found

    @staticmethod
    def waits_for(call: MethodCall) -> str:
        """Say why a call was not sent yet."""
        actor = call.actor
        if not actor.peer:
            return f"{call.spec.name} waits for its actor {'to be made' if actor.version < 1 else 'to be made again'}"
        return f"{call.spec.name} is queued behind {len(actor.sent)} calls of the same actor"

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        for oid, actor in self.known.items():
            assert actor.oid == oid
            assert not actor.peer or self.serving[actor.peer] is actor
            assert all(call.state == LEASED for call in actor.sent.values())
            assert actor.open >= len(actor.sent)
            assert (actor.handle is not None) == (actor.open > 0)
            assert actor.failure is None or not (actor.sent or actor.queue or actor.peer)
        assert all(self.known[actor.oid] is actor and actor.peer == peer for peer, actor in self.serving.items())


def _home(oid: ObjectID) -> PeerID:
    return node_peer(oid[:NODE_ID_BYTES])


def _unavailable(actor: Actor) -> str:
    return (
        f"actor {actor.name} ({actor.oid.hex()}) went while it had this call, and is being made again; the call may or "
        "may not have run. Calls with max_task_retries= are sent again"
    ) + (f". Its worker {actor.how}" if actor.how else "")


def _died(actor: Actor, text: str, attributes: dict[str, Any]) -> tuple[int, Any]:
    told = {"actor_id": actor.oid.hex(), "class_name": actor.name, **attributes}
    return ERROR, ("ActorDiedError", f"actor {actor.name} ({actor.oid.hex()}) is dead: {text}", told)


def _failure_of(creation: Creation, actor: Actor) -> tuple[int, Any]:
    """Return what every call of an actor gets whose creation task is over."""
    if creation.status in (INLINE, STORED):
        return _died(actor, "it ended in good order (exit_actor(), __zmesh_terminate__(), or no handle was left)", {})
    if creation.status == FAILED:
        return FAILED, creation.value  # an argument of its __init__ could not be had
    name, text, attributes = creation.value
    if name in ("ActorDiedError", "TaskUnschedulableError"):
        return ERROR, (name, text, {"actor_id": actor.oid.hex(), "class_name": actor.name, **attributes})
    if name == "TaskCancelledError":
        text = KILLED
    if name == "TaskPlacementGroupRemovedError":
        gone = ("ActorPlacementGroupRemovedError", text, {"actor_id": actor.oid.hex(), "class_name": actor.name})
        return ERROR, gone
    return _died(actor, text, attributes)
