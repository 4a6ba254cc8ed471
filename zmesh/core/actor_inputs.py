"""The part of a client's role that the user's threads call for actors. Wiring only.

A base of ClientCore (core/client.py), which makes what is used here.
"""

from typing import Any

from zmesh.core.actor_calls import ActorCalls
from zmesh.core.records import Actor, Creation, Entry, Handle, Inputs, MethodCall, Spec, Task
from zmesh.core.tasks import Tasks
from zmesh.core.victim import Victim
from zmesh.wire.ids import PeerID
from zmesh.wire.messages import ERROR


class ActorInputs:
    """What a program asks of actors."""

    me: PeerID
    actors: ActorCalls
    current: Any
    refusal: Any
    tasks: Tasks
    victim: Victim
    unresolved: Any
    _flush: Any
    _seq: int

    def _refuse(self, task: Task, failure: tuple[int, Any]) -> None:
        """Nobody can run it."""
        task.inputs = None
        task.parent = None
        self.tasks.open += 1
        if task.spec.num_returns != 1:
            task.outputs = [Entry(task.seq, index) for index in range(max(task.spec.num_returns, 0))]
        self.tasks.resolve(task, *failure)

    def new_actor(
        self, spec: Spec, args: Any, inputs: Inputs | None, depth: int, *, name: str, ordered: bool
    ) -> Handle:
        """Prepare an actor for `start_actor`; returns the entry of its first handle."""
        self._seq += 1
        spec.alone = True
        creation = Creation(self._seq, spec, args, depth)
        creation.inputs = inputs
        creation.refs = 0  # handles are counted, and nobody reads what it yields
        return self.actors.create(creation, self.me, name, ordered=ordered)

    def start_actor(self, handle: Handle, now: float) -> None:
        """Make the actor, unless somebody has killed it already."""
        creation = handle.actor.creation
        assert creation is not None
        if handle.actor.failure is not None:
            self.actors.abandon(handle, "")
        elif self.refusal is not None:
            self._refuse(creation, (ERROR, self.refusal))
        else:
            self.tasks.submit(creation, now)
        self._flush()

    def call(
        self, actor: Actor, handle: Entry, spec: Spec, args: Any, inputs: Inputs | None, depth: int, now: float
    ) -> Task:
        """Call a method of an actor; returns the call with one reference counted for each of its results."""
        self._seq += 1
        failure = (ERROR, self.refusal) if self.refusal is not None else actor.failure
        if failure is not None:
            refused = Task(self._seq, spec, args, depth)
            self._refuse(refused, failure)
            return refused
        call = MethodCall(self._seq, spec, args, depth)
        call.actor = actor
        call.inputs = inputs
        call.parent = self.current
        self.actors.opened(call, handle)
        self.tasks.submit(call, now)
        self._flush()
        return call

    def kill_actor(self, actor: Actor, now: float, *, no_restart: bool) -> None:
        """End an actor at once; see ActorCalls.kill."""
        self.actors.kill(actor, now, no_restart=no_restart)
        self.victim.serve(now)
        self._flush()

    def cancel_all(self, now: float) -> None:
        """Cancel every unresolved task and call: the user pressed Ctrl-C. Actors stay."""
        for task in self.unresolved():
            if type(task) is not Creation:
                self.tasks.cancel(task, now, force=False, recursive=True)
        self.victim.serve(now)
        self._flush()
