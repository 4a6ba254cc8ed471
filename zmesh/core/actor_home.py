"""The node's part in actors: where they are, what they are called, who follows whose death. Wiring only."""

from collections.abc import Callable
from typing import Any

from zmesh.core.actor_places import ActorPlaces
from zmesh.core.effects import Effect, Send
from zmesh.core.matchmaking import Matchmaking
from zmesh.core.names import Names
from zmesh.core.timers import Timers
from zmesh.core.workers import SERVING
from zmesh.wire.actor_messages import (
    ActorQuery,
    ActorState,
    CallerGone,
    Follow,
    KillActor,
    NameAsk,
    NameCopied,
    NameCopy,
    NameTold,
    Settle,
)
from zmesh.wire.death_messages import Followed
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID, PeerID
from zmesh.wire.messages import WorkerDied


class ActorHome:
    """What one node knows of actors.

    Args:
        node: its ID.
        matchmaking: its workers.
        alive: whether a client lives, here or elsewhere.
        members: the other living members.
        held: whether anybody holds an object that this node counts.
        nameless: called with (namespace, name, actor or group) of one of ours that lost its name to another.
    """

    def __init__(
        self,
        node: NodeID,
        effects: list[Effect],
        timers: Timers,
        matchmaking: Matchmaking,
        *,
        alive: Callable[[PeerID], bool],
        members: Callable[[], list[NodeID]],
        held: Callable[[ObjectID], bool],
        nameless: Callable[[str, str, ObjectID], None],
    ) -> None:
        self._effects = effects
        self._matchmaking = matchmaking
        self._alive = alive
        self.names = Names(node, effects, timers, members=members, alive=alive, lost=nameless)
        self.places = ActorPlaces(effects, gone=self.names.actor_gone, held=held)

    def words(self) -> dict[type[Any], Callable[[PeerID, Any, float], None]]:
        """Return what each message of actors does, whoever it comes from."""
        places, names = self.places, self.names
        return {
            Settle: self._settle,
            Follow: self._follow,
            ActorState: lambda peer, m, now: places.tell(peer, m),
            ActorQuery: lambda peer, m, now: places.ask(peer, m.actor, m.version),
            KillActor: lambda peer, m, now: places.kill(m),
            NameAsk: lambda peer, m, now: names.ask(peer, m),
            NameTold: lambda peer, m, now: names.told(m),
            NameCopy: names.keep,
            NameCopied: lambda peer, m, now: names.copied(peer[:NODE_ID_BYTES], m),
        }

    def _settle(self, peer: PeerID, message: Settle, now: float) -> None:
        worker = self._matchmaking.workers.get(peer)
        if worker is not None:
            self._matchmaking.settled(worker, message.shape, now)

    def _follow(self, peer: PeerID, message: Follow, now: float) -> None:
        """A caller wants to hear of an actor's death, and the actor of the caller's."""
        del now
        worker = self._matchmaking.workers.get(message.worker)
        if worker is not None and self._alive(peer):
            worker.victims[peer] = True
            if peer[:NODE_ID_BYTES] == message.worker[:NODE_ID_BYTES]:
                self._effects.append(Send(peer, Followed(message.worker)))
        else:
            self._effects.append(Send(peer, WorkerDied(message.worker, 0, 0, b"", 0, 0, "", "")))

    def freed(self, oid: ObjectID) -> None:
        """Nobody holds that object any more."""
        self.places.freed(oid)

    def client_gone(self, peer: PeerID) -> list[PeerID]:
        """A client is dead: its actors are, and those it called need not answer. Returns these."""
        called = []
        for worker in self._matchmaking.workers.values():
            if worker.state == SERVING and worker.victim != peer and worker.victims.pop(peer, False):
                self._effects.append(Send(worker.peer, CallerGone(peer)))
                called.append(worker.peer)
        self.places.client_gone(peer)
        return called

    def node_gone(self, node: NodeID, now: float) -> None:
        """A member is gone."""
        self.places.node_gone(node)
        self.names.members_changed(node)
        self.names.look_into(now)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        self.places.check()
        self.names.check()
