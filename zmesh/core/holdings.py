"""What this process holds that others count: told to each home from time to time, so that a lost count is noticed.

    holder --Tally--> home          in each look: what it holds there adds up to this
           <-Recount--              not for me, or: you said nothing
           --Holdings-->            all of it
           <-Uncounted--            these are gone, or I cannot count you

Who repairs what is core/tallies.py's business. A holder notes a hold before anybody tells the home of it, and its own
words reach a home in order: on that the proof there stands. Used by clients and, for what values contain, by nodes.
"""

from collections.abc import Callable, Iterable

from zmesh.core.effects import Effect, Send
from zmesh.core.timers import Timers
from zmesh.wire.counting_messages import Holdings, Tally, added
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID, PeerID, node_peer

LOOK_S = 10.0
GONE_LOOKS = 6  # a home that is gone is told nothing for so many looks: it may come back, and our node says if not


class Holder:
    """The holder's half.

    Args:
        held: returns (object, number of holds) of all that others count.
    """

    def __init__(
        self, effects: list[Effect], timers: Timers, held: Callable[[], Iterable[tuple[ObjectID, int]]]
    ) -> None:
        self._effects = effects
        self._timers = timers
        self._held = held
        self._gone: dict[NodeID, int] = {}  # {home that is gone: looks until it is told something again}
        self._timer = 0  # 0: nothing was held at the last look, and no home was gone

    def wake(self) -> None:
        """Something is held: there will be looks from now on."""
        if not self._timer:
            self._timer = self._timers.set(0.0, self._begin)

    def _begin(self, now: float) -> None:
        self._timer = self._timers.set(now + LOOK_S, self._look)

    def _look(self, now: float) -> None:
        self._timer = 0
        sums: dict[NodeID, int] = {}
        for oid, holds in self._held():
            home = oid[:NODE_ID_BYTES]
            sums[home] = added(sums.get(home, 0), oid, holds)
        self._effects += [Send(node_peer(home), Tally(sums[home])) for home in sums if home not in self._gone]
        self._gone = {home: left - 1 for home, left in self._gone.items() if left > 1}
        if sums or self._gone:
            self._begin(now)

    def recount(self, home: PeerID) -> None:
        """A home counts something else: tell it all."""
        theirs = [(oid, holds) for oid, holds in self._held() if oid[:NODE_ID_BYTES] == home[:NODE_ID_BYTES]]
        self._effects.append(Send(home, Holdings(theirs)))

    def home_gone(self, node: NodeID) -> None:
        """A member is gone, with all it counted."""
        self._gone[node] = GONE_LOOKS
        self.wake()
