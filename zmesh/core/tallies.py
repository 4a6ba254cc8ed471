"""What a home counts for each holder, compared with what that holder says: a lost or doubled count heals.

Links lose nothing while both ends live, so most counts cannot differ. These can: a Hold that was to be told by a
process that died first; all that two nodes agreed before they took each other for dead; what a guest held under another
name.

    Tally --the same--> nothing        --another--> Recount --Holdings--> suspects --the same once more--> repaired

A count is repaired when holder and home have said the same two numbers in two looks, with no Hold or Release of it
between them here. Nothing under way is dropped by that. Let the home count more than the holder says. The holder noted
each hold before anybody told of it, and its own words come in order. So a hold that came before its first word and is
not in that is in the second, if no Release came between. A count that is *raised* may double with a Hold that is still
under way from somebody who was stopped: then it is too high, which frees nothing, and the next two looks lower it.
"""

from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.timers import Timers
from zmesh.wire.counting_messages import Holdings, Recount, Tally, Uncounted, added
from zmesh.wire.ids import PEER_ID_BYTES, ObjectID, PeerID

LOOK_S = 10.0
APART_S = 5.0  # what was said twice within less is one look: a home asks, and a holder tells, on clocks of their own


class Tallies:
    """The home's half.

    Args:
        alive: whether a peer is known to live.
        counts: returns {object: holds} that are counted for a holder.
        recount: sets a count: (object, holder, holds); False if there is no such object.
    """

    def __init__(
        self,
        effects: list[Effect],
        timers: Timers,
        *,
        alive: Callable[[PeerID], bool],
        counts: Callable[[PeerID], dict[ObjectID, int]],
        recount: Callable[[ObjectID, PeerID, int], bool],
    ) -> None:
        self._effects = effects
        self._timers = timers
        self._alive = alive
        self._counts = counts
        self._recount = recount
        self._totals: dict[PeerID, int] = {}  # {holder: its tally as counted here}; never 0
        self._told: dict[PeerID, bool] = {}  # {holder that told a tally since the last look: True}
        # {holder: {object: (holds as it says, as counted here, since when)}} of what differs
        self._suspects: dict[PeerID, dict[ObjectID, tuple[int, int, float]]] = {}
        self._timer = 0
        self.repaired = 0  # counts, in all
        self.of_clients: dict[type[Any], Callable[[PeerID, Any, float], None]] = {
            Tally: lambda peer, m, now: self.told(peer, m.total),
            Holdings: lambda peer, m, now: self.compare(peer, m.objects, now),
        }

    def changed(self, oid: ObjectID, holder: bytes, change: int) -> None:
        """So many holds more, or fewer, are counted; holders that are values are none of ours."""
        if len(holder) != PEER_ID_BYTES:
            return
        total = added(self._totals.get(holder, 0), oid, change)
        if total:
            self._totals[holder] = total
        else:
            self._totals.pop(holder, None)
        suspects = self._suspects.get(holder)
        if suspects is not None:
            suspects.pop(oid, None)
            if not suspects:
                del self._suspects[holder]
        self._wake()

    def _wake(self) -> None:
        if not self._timer:
            self._timer = self._timers.set(0.0, self._begin)

    def gone(self, holder: PeerID) -> None:
        """A holder is dead, and nothing is counted for it any more."""
        self._totals.pop(holder, None)
        self._told.pop(holder, None)
        self._suspects.pop(holder, None)

    def told(self, holder: PeerID, total: int) -> None:
        """A holder says what it holds, in sum."""
        self._told[holder] = True
        if total == self._totals.get(holder, 0):
            self._suspects.pop(holder, None)
        else:
            self._effects.append(Send(holder, Recount()))

    def _begin(self, now: float) -> None:
        self._timer = self._timers.set(now + LOOK_S, self._look)

    def _look(self, now: float) -> None:
        """Ask those who hold something and said nothing: they think that they hold nothing, or were stopped."""
        self._timer = 0
        silent = [holder for holder in self._totals if holder not in self._told and self._alive(holder)]
        self._effects += [Send(holder, Recount()) for holder in silent]
        for holder in [holder for holder in self._suspects if holder not in self._told]:
            if holder not in self._totals:
                del self._suspects[holder]  # it holds nothing any more, and nothing is counted for it
        self._told.clear()
        if self._totals or self._suspects:
            self._begin(now)

    def compare(self, holder: PeerID, objects: list[Any], now: float) -> None:
        """A holder says what it holds: repair what it said before as well, and note what else differs."""
        if not self._alive(holder):
            return
        says: dict[ObjectID, int] = dict(objects)
        here = self._counts(holder)
        before = self._suspects.pop(holder, {})
        suspects: dict[ObjectID, tuple[int, int, float]] = {}
        twice = []
        for oid in dict.fromkeys([*says, *here]):
            pair = (says.get(oid, 0), here.get(oid, 0))
            since = before[oid][2] if before.get(oid, ())[:2] == pair else now
            if pair[0] == pair[1]:
                continue
            if since + APART_S <= now:
                twice.append(oid)
            else:
                suspects[oid] = (*pair, since)
        gone = [oid for oid in twice if not self._recount(oid, holder, says.get(oid, 0))]
        self.repaired += len(twice)
        if gone:
            self._effects.append(Send(holder, Uncounted(gone)))
        if suspects:
            self._suspects[holder] = suspects
            self._wake()

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        for holder, total in self._totals.items():
            assert total
            expected = 0
            for oid, holds in self._counts(holder).items():
                expected = added(expected, oid, holds)
            assert expected == total
        assert all(self._suspects.values())
