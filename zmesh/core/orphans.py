"""The end of replicas whose home is gone: nobody counts them, so their warden asks who holds a reference.

    warden --WhoHolds--> members --WhoHolds--> their clients
           <----Held----         <----Held----

A round is over when every member has answered, and a member answers when all of its living clients have. What nobody
held since the round before goes. A stopped process holds up the round, as it may hold a reference; it ends with its
death at the latest. Who dies before it answers may have passed on what it held, to somebody who had answered: then
nothing goes in that round. Rounds become rare while references live.

Source: counting with two waves, Mattern 1987: what is under way in one wave is seen by the next.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from zmesh.core.effects import Effect, Send
from zmesh.core.sightings import Sightings
from zmesh.core.timers import Timers
from zmesh.wire.counting_messages import Held, WhoHolds
from zmesh.wire.ids import NodeID, ObjectID, PeerID, node_peer

ROUND_S = 15.0  # from the end of a round to the next; doubles up to ROUND_MAX_S while all are held
ROUND_MAX_S = 480.0


@dataclass(slots=True)
class Round:
    """One question, as its warden or a member deals with it."""

    number: int
    waiting: dict[bytes, bool]  # {member, or client: True} that has not answered
    objects: list[ObjectID]
    held: dict[ObjectID, bool] = field(default_factory=dict)

    def died(self, who: bytes) -> bool:
        """Wait no more for somebody, if it did not answer: it may have held anything, and passed it on."""
        waited = self.waiting.pop(who, False)
        if waited:
            self.held |= dict.fromkeys(self.objects, True)
        return waited


class Orphans:
    """Both roles, for one node.

    Args:
        members: the others.
        clients: those of this node.
        orphans: the replicas here whose home is gone.
        drop: lets one of them go.
        holds: whether this node itself holds an object, for values it counts.
    """

    def __init__(
        self,
        node: NodeID,
        effects: list[Effect],
        timers: Timers,
        *,
        members: Collection[NodeID],
        clients: Collection[PeerID],
        orphans: Callable[[], list[ObjectID]],
        drop: Callable[[ObjectID], None],
        holds: Callable[[ObjectID], bool],
    ) -> None:
        self._node = node
        self._effects = effects
        self._timers = timers
        self._members = members
        self._clients = clients
        self._orphans = orphans
        self._drop = drop
        self.sightings = Sightings(holds)
        self._round: Round | None = None  # of this node as a warden
        self._numbers = 0
        self._pause_s = ROUND_S
        self._timer = 0
        self._passed_on: dict[NodeID, Round] = {}  # {warden: its question, as this node's clients answer it}

    # The warden.

    def wake(self, now: float) -> None:
        """There may be orphans."""
        self._pause_s = ROUND_S
        if not self._timer and self._round is None and self._orphans():
            self._timer = self._timers.set(now + self._pause_s, self._begin)

    def _begin(self, now: float) -> None:
        self._timer = 0
        self._numbers += 1
        objects = self._orphans()
        waiting: dict[bytes, bool] = dict.fromkeys([self._node, *self._members], True)
        self._round = Round(self._numbers, waiting, objects)
        question = WhoHolds(self._node, self._numbers, objects)
        self._effects += [Send(node_peer(member), question) for member in waiting if member != self._node]
        self.asked(question, now)

    def answered(self, member: NodeID, word: Held, now: float) -> None:
        """A member says what its clients held."""
        one = self._round
        if one is not None and word.number == one.number and one.waiting.pop(member, False):
            one.held |= dict.fromkeys(word.objects, True)
            self._end(one, now)

    def _end(self, one: Round, now: float) -> None:
        if one.waiting:
            return
        self._round = None
        orphans = self._orphans()
        for oid in one.objects:
            if oid not in one.held and oid in orphans:
                self._drop(oid)
        left = self._orphans()
        if left:
            if len(left) < len(orphans):
                self._pause_s = ROUND_S
            self._timer = self._timers.set(now + self._pause_s, self._begin)
            self._pause_s = min(2 * self._pause_s, ROUND_MAX_S)
        elif one.objects:
            self._begin(now)  # with nothing: whoever was asked may forget what

    # Members.

    def asked(self, question: WhoHolds, now: float) -> None:
        """A warden asks: so do we our clients."""
        held = self.sightings.asked(question.warden, question.objects)
        one = Round(question.number, dict.fromkeys(self._clients, True), question.objects, dict.fromkeys(held, True))
        self._passed_on[question.warden] = one
        self._effects += [Send(client, question) for client in one.waiting]
        self._pass_back(question.warden, one, now)

    def told(self, client: PeerID, word: Held, now: float) -> None:
        """A client says what it held."""
        one = self._passed_on.get(word.warden)
        if one is not None and word.number == one.number and one.waiting.pop(client, False):
            one.held |= dict.fromkeys(word.objects, True)
            self._pass_back(word.warden, one, now)

    def _pass_back(self, warden: NodeID, one: Round, now: float) -> None:
        if one.waiting:
            return
        del self._passed_on[warden]
        word = Held(warden, one.number, list(one.held))
        if warden == self._node:
            self.answered(warden, word, now)
        else:
            self._effects.append(Send(node_peer(warden), word))

    def client_gone(self, peer: PeerID, now: float) -> None:
        """A client is dead."""
        for warden, one in list(self._passed_on.items()):
            if one.died(peer):
                self._pass_back(warden, one, now)

    def node_gone(self, node: NodeID, now: float) -> None:
        """A member is gone, in whatever role. No round begins before its guests had time to find another."""
        self.sightings.warden_gone(node)
        self._passed_on.pop(node, None)
        one = self._round
        if one is not None and one.died(node):
            self._end(one, now)
        if self._timer:
            self._timers.cancel(self._timer)
            self._timer = 0
        self.wake(now)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert self._round is None or self._round.waiting
        assert all(one.waiting for one in self._passed_on.values())
        assert not (self._timer and self._round is not None)
