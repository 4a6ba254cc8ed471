"""Where the actors are whose home is this node, for those who have handles and did not make them.

An actor's owner tells of each change, callers ask for what is newer than what they know. The handles themselves are
counted like any other object, by core/directory.py, which says when there is none left.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.wire.actor_messages import ACTOR_DEAD, ActorState, KillActor, Unheld
from zmesh.wire.ids import NODE_ID_BYTES, PEER_ID_BYTES, NodeID, ObjectID, PeerID
from zmesh.wire.messages import ERROR


@dataclass(slots=True)
class Place:
    """One actor, as its owner last told."""

    state: ActorState
    waiters: dict[PeerID, int] = field(default_factory=dict)  # {caller: the version it knows, which is the latest}


class ActorPlaces:
    """The actors of one home.

    Args:
        gone: called with each that is dead, or that nobody has a handle of.
        held: whether anybody has a handle that is counted here.
    """

    def __init__(
        self, effects: list[Effect], *, gone: Callable[[ObjectID], None], held: Callable[[ObjectID], bool]
    ) -> None:
        self._effects = effects
        self._gone = gone
        self._held = held
        self._places: dict[ObjectID, Place] = {}

    def tell(self, peer: PeerID, state: ActorState) -> None:
        """Take an owner's word; anybody else's is ignored."""
        if peer != state.actor[:PEER_ID_BYTES]:
            return
        place = self._places.get(state.actor)
        if place is None:
            if state.first:  # else nobody has a handle any more, which its owner did not know
                self._places[state.actor] = Place(state)
        elif state.version > place.state.version:
            self._change(place, state)

    def _change(self, place: Place, state: ActorState) -> None:
        place.state = state
        if state.version == ACTOR_DEAD:
            self._gone(state.actor)
        waiters, place.waiters = place.waiters, {}
        for peer in waiters:
            self._effects.append(Send(peer, place.state))

    def ask(self, peer: PeerID, oid: ObjectID, version: int) -> None:
        """Tell a caller what is newer than `version`, now or as soon as there is such a thing."""
        place = self._places.get(oid)
        if place is None:
            self._effects.append(
                Send(peer, ActorState(oid, ACTOR_DEAD, b"", _failure(oid, "nobody has a handle of it")))
            )
        elif place.state.version > version:
            self._effects.append(Send(peer, place.state))
        else:
            place.waiters[peer] = place.state.version

    def kill(self, message: KillActor) -> None:
        """Pass on that somebody wants an actor killed to the one who can."""
        self._effects.append(Send(message.actor[:PEER_ID_BYTES], message))

    def freed(self, oid: ObjectID) -> None:
        """An object is held by nobody any more; if it is an actor, its owner is told."""
        place = self._places.pop(oid, None)
        if place is not None:
            self._gone(oid)
            self._effects.append(Send(oid[:PEER_ID_BYTES], Unheld(oid)))

    def client_gone(self, peer: PeerID) -> None:
        """A client is dead: it asks nothing, and its actors die with it."""
        for oid, place in list(self._places.items()):
            place.waiters.pop(peer, None)
            if oid[:PEER_ID_BYTES] == peer and place.state.version < ACTOR_DEAD:
                why = _failure(oid, "the program that made it has ended")
                self._change(place, ActorState(oid, ACTOR_DEAD, b"", why))
            if oid[:PEER_ID_BYTES] == peer and not self._held(oid):
                del self._places[oid]  # it died before its handle was counted, so nobody will say that it is not

    def node_gone(self, node: NodeID) -> None:
        """A member is gone, with all who asked from there."""
        for place in self._places.values():
            for peer in [peer for peer in place.waiters if peer[:NODE_ID_BYTES] == node]:
                del place.waiters[peer]

    def describe(self, oid: ObjectID) -> tuple[str, NodeID]:
        """Return ("pending", "alive", "restarting" or "dead", the node it lives on or b"") of an actor."""
        place = self._places.get(oid)
        if place is None or place.state.version == ACTOR_DEAD:
            return "dead", b""
        if place.state.peer:
            return "alive", place.state.peer[:NODE_ID_BYTES]
        return "restarting" if place.state.version else "pending", b""

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert all(place.state.actor == oid for oid, place in self._places.items())
        assert all(version == p.state.version for p in self._places.values() for version in p.waiters.values())


def _failure(oid: ObjectID, why: str) -> list[Any]:
    return [ERROR, ("ActorDiedError", f"actor {oid.hex()} is dead: {why}", {"actor_id": oid.hex()})]
