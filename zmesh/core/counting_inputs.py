"""The part of a client's role that compares counts with those who keep them. Wiring only.

A base of ClientCore (core/client.py), which makes what is used here.
"""

from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.holdings import Holder
from zmesh.core.references import References
from zmesh.core.sightings import Sightings
from zmesh.core.tasks import Tasks
from zmesh.core.timers import Timers
from zmesh.wire.counting_messages import Held, Recount, Uncounted, WhoHolds
from zmesh.wire.ids import NodeID, PeerID


class CountingInputs:
    """What a client tells and hears of the counts that others keep for it."""

    effects: list[Effect]
    holder: Holder
    references: References
    sightings: Sightings
    tasks: Tasks
    timers: Timers
    _flush: Any

    def _counting(self) -> dict[type[Any], Callable[[PeerID, Any, float], None]]:
        self.holder = Holder(self.effects, self.timers, self.references.held)
        self.sightings = Sightings(self.references.borrows)
        self.references.wake, self.references.home_gone = self.holder.wake, self._home_gone
        self.references.let_go = self.sightings.let_go
        return {
            WhoHolds: self._who_holds,
            Recount: lambda peer, _, now: self.holder.recount(peer),
            Uncounted: self._uncounted,
        }

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
