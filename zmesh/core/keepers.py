"""The keepers of one node: which program has one, what it is asked, and when it may end. The node's half.

A program's detached actors are owned by a client of their own (core/keeper.py), which lives in the node: so they end
with the node they were made on, and with no other process. There is one for each job, as workers of theirs run in the
program's directory, with its import path.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Send, StartKeeper, StopKeeper
from zmesh.core.records import Client
from zmesh.wire.ids import TOKEN_BYTES, NodeID, ObjectID, PeerID, local_peer
from zmesh.wire.keeper_messages import KeepActor, Keeps, Kept


@dataclasses.dataclass(slots=True)
class Keeper:
    """One keeper, as its node sees it."""

    peer: PeerID
    job: PeerID  # of the program it keeps for
    sent: int = 0  # KeepActors
    actors: list[Any] = dataclasses.field(default_factory=list)  # as Keeps told last


class Keepers:
    """The keepers of one node.

    Args:
        pid: of the node.
        clients: those of the node; keepers are among them.
        config_of: the settings of a job; {} of one that has ended.
        greet: what a new client is told first.
        ended: called with each that ends, as with any client: (peer, now).
        refuse: why nothing more is kept, or "".
        state_of: see ActorPlaces.describe.

    Attributes:
        of_clients: {message: what takes it}.
    """

    def __init__(
        self,
        node: NodeID,
        pid: int,
        rng: random.Random,
        effects: list[Effect],
        *,
        clients: dict[PeerID, Client],
        config_of: Callable[[PeerID], dict[str, Any]],
        greet: Callable[[], list[Any]],
        ended: Callable[[PeerID, float], None],
        refuse: Callable[[], str],
        state_of: Callable[[ObjectID], tuple[str, NodeID]],
    ) -> None:
        self._node = node
        self._pid = pid
        self._rng = rng
        self._effects = effects
        self._clients = clients
        self._config_of = config_of
        self._greet = greet
        self._ended = ended
        self._refuse = refuse
        self._state_of = state_of
        self._keepers: dict[PeerID, Keeper] = {}
        self.of_clients: dict[type[Any], Callable[[PeerID, Any, float], None]] = {
            KeepActor: self._keep,
            Kept: self._kept,
            Keeps: self._keeps,
        }

    def _keep(self, peer: PeerID, m: KeepActor, now: float) -> None:
        """A client wants an actor kept: pass that on to the keeper of its job."""
        del now
        config = self._config_of(m.job)
        error = self._refuse() or ("" if config else "the program it would belong to has ended")
        if error:
            self._effects.append(Send(peer, Kept(m.request, [], error=f"no detached actor can be made: {error}")))
            return
        # What detached actors make belongs to the same program.
        found = [keeper for keeper in self._keepers.values() if m.job in (keeper.job, keeper.peer)]
        keeper = found[0] if found else self._start(m.job, config)
        keeper.sent += 1
        self._effects.append(Send(keeper.peer, dataclasses.replace(m, asker=peer)))

    def _start(self, job: PeerID, config: dict[str, Any]) -> Keeper:
        peer = local_peer(self._node, self._rng.randbytes(TOKEN_BYTES))
        keeper = self._keepers[peer] = Keeper(peer, job)
        self._clients[peer] = Client("keeper", self._pid, dict(config))
        self._effects.append(StartKeeper(peer))
        self._effects += [Send(peer, word) for word in self._greet()]
        return keeper

    def _kept(self, peer: PeerID, m: Kept, now: float) -> None:
        del now
        if peer in self._keepers:
            self._effects.append(Send(m.asker, m))

    def _keeps(self, peer: PeerID, m: Keeps, now: float) -> None:
        """A keeper tells what it keeps; nothing, and all we sent it has come: it ends."""
        keeper = self._keepers.get(peer)
        if keeper is None:
            return
        keeper.actors = list(m.actors)
        if m.idle and m.seen == keeper.sent:
            del self._keepers[peer]
            self._ended(peer, now)
            self._effects.append(StopKeeper(peer))

    def __contains__(self, peer: PeerID) -> bool:
        return peer in self._keepers

    def describe(self) -> list[dict[str, Any]]:
        """Return what the status tells of detached actors."""
        told = []
        for keeper in self._keepers.values():
            for namespace, name, class_name, actor in keeper.actors:
                state, node = self._state_of(actor)
                told.append(
                    {
                        "name": name,
                        "namespace": namespace,
                        "class_name": class_name,
                        "actor_id": actor.hex(),
                        "state": state,
                        "node": node.hex(),
                        "keeper": keeper.peer.hex(),
                    }
                )
        return told

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert all(peer in self._clients and keeper.peer == peer for peer, keeper in self._keepers.items())
