"""The part of a client's role that compares counts with those who keep them. Wiring only.

A base of ClientCore (core/client.py), which makes what is used here.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from zmesh.core.actor_calls import ActorCalls
from zmesh.core.effects import Effect, Send
from zmesh.core.holdings import Holder
from zmesh.core.records import Entry, Task
from zmesh.core.references import References
from zmesh.core.sightings import Sightings
from zmesh.core.tasks import Tasks
from zmesh.core.timers import Timers
from zmesh.core.victim import Victim
from zmesh.wire.counting_messages import Held, Recount, Uncounted, WhoHolds
from zmesh.wire.ids import NodeID, PeerID

Input = Callable[[Any, PeerID, Any, float], None]  # (core, from whom, message, now)


class CountingInputs:
    """What a client tells and hears of the counts that others keep for it."""

    actors: ActorCalls
    effects: list[Effect]
    holder: Holder
    references: References
    sightings: Sightings
    tasks: Tasks
    timers: Timers
    victim: Victim
    _flush: Any

    def _start_counting(self) -> None:
        self.holder = Holder(self.effects, self.timers, self.references.held)
        self.sightings = Sightings(self.references.borrows)
        self.references.wake, self.references.home_gone = self.holder.wake, self._home_gone
        self.references.let_go = self.sightings.let_go

    def _needed_by(self, peer: PeerID) -> list[Entry]:
        """Return what the tasks or calls of ours that a process has need."""
        thief, actor = self.victim.thieves.get(peer), self.actors.serving.get(peer)
        under_way: list[Task] = [*thief.leased.values()] if thief is not None else []
        under_way += actor.sent.values() if actor is not None else ()
        inputs = [task.inputs for task in under_way if task.inputs is not None]
        return [entry for one in inputs for entry in (*one.deps, *one.held)]

    def _home_gone(self, node: NodeID) -> None:
        self.holder.home_gone(node)
        self.sightings.warden_gone(node)

    def _who_holds(self, peer: PeerID, message: WhoHolds, now: float) -> None:
        del now
        held = self.sightings.asked(message.warden, message.objects)
        self.effects.append(Send(peer, Held(message.warden, message.number, held)))

    def _uncounted(self, peer: PeerID, message: Uncounted, now: float) -> None:
        del peer
        for entry in self.references.uncounted(message.objects):
            self.tasks.entry_resolved(entry, now)

    _inputs: ClassVar[dict[type[Any], Input]] = {
        WhoHolds: _who_holds,
        Recount: lambda self, peer, message, now: self.holder.recount(peer),
        Uncounted: _uncounted,
    }
