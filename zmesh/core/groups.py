"""Placement groups, as one node deals with them: wires both halves to each other, to the books and to the workers.

What this node says to itself goes the way of everything else, a moment later. Ends what runs in bundles that are no
more: what executes is killed, what is only attached leaves.
"""

import random
from collections.abc import Callable
from typing import Any

from zmesh.core.bundles import Bundles
from zmesh.core.effects import Effect, KillProcess, Send
from zmesh.core.placement import Placement
from zmesh.core.records import group_of
from zmesh.core.timers import Timers
from zmesh.wire.actor_messages import GROUPS
from zmesh.wire.group_messages import (
    AskGroup,
    Commit,
    CreateGroup,
    Refused,
    ReleaseBundles,
    RemoveGroup,
    Reserve,
    Reserved,
    WatchGroup,
)
from zmesh.wire.ids import NodeID, PeerID, node_peer
from zmesh.wire.messages import UNIT, Shape

FRESH_S = 0.02  # a worker attached just now has work on its way
LEAVE_S = 2.0  # one that does not leave its bundle by then, whatever it does, is killed
EVICT_S = 0.05  # a worker that was only attached may have started something since


class Groups:
    """The groups of one node, as coordinator and as participant.

    Args:
        resources, matchmaking, neighbours: the node's.
        alive: see Placement.
        draining: whether the node takes on nothing more.
        take, free: take a name, and give it free; see Names.take and Names.actor_gone.

    Attributes:
        of_clients, of_nodes: {message: what takes it}.
    """

    def __init__(
        self,
        node: NodeID,
        rng: random.Random,
        effects: list[Effect],
        timers: Timers,
        resources: Any,
        matchmaking: Any,
        neighbours: Any,
        alive: Callable[[PeerID], bool],
        draining: Callable[[], bool],
        take: Callable[..., None],
        free: Callable[[bytes], None],
    ) -> None:
        self._node = node
        self._effects = effects
        self._timers = timers
        self._matchmaking = matchmaking
        self._timer = 0
        self._leaving: dict[PeerID, float] = {}  # {worker in a bundle that is no more: since when; -1: was killed}

        def totals() -> dict[NodeID, Shape]:
            """What each member has in all on which our tasks can run, this node first."""
            others = {one: total for one, total in neighbours.totals.items() if one not in neighbours.foreign}
            return {node: resources.total, **others}

        def take_name(m: CreateGroup, then: Callable[[bytes], None]) -> None:
            take(GROUPS, m.name, m.group, m.description, lambda entry: then(entry[2]))

        self.placement = Placement(
            node,
            rng,
            effects,
            timers,
            resources,
            totals=totals,
            tell=self._tell,
            alive=alive,
            take=take_name,
            free=free,
        )
        self.bundles = Bundles(
            timers,
            resources,
            tell=self._tell,
            want=matchmaking.reserve,
            unwant=matchmaking.client_gone,
            evict=lambda bundles, now: self._evict(now),
            refuse=draining,
        )
        placement, bundles = self.placement, self.bundles
        self.of_clients: dict[type[Any], Callable[[PeerID, Any, float], None]] = {
            CreateGroup: placement.create,
            RemoveGroup: placement.remove,
            WatchGroup: lambda peer, m, now: placement.watch(peer, m),
        }
        self.of_nodes: dict[type[Any], Callable[[NodeID, Any, float], None]] = {
            Reserve: bundles.reserve,
            Reserved: placement.reserved,
            Refused: placement.refused,
            Commit: self._commit,
            ReleaseBundles: self._release,
            AskGroup: placement.asked,
        }

    def _tell(self, node: NodeID, message: Any, now: float) -> None:
        if node == self._node:
            self._timers.set(now, lambda then: self.of_nodes[type(message)](node, message, then))
        else:
            self._effects.append(Send(node_peer(node), message))

    def _commit(self, node: NodeID, m: Commit, now: float) -> None:
        self.bundles.commit(node, m.group, m.epoch)
        self._matchmaking.match(now)

    def _release(self, node: NodeID, m: ReleaseBundles, now: float) -> None:
        self.bundles.release(node, m, now)
        self._matchmaking.match(now)
        self.placement.news(now)

    def client_gone(self, peer: PeerID, now: float) -> None:
        """A client has ended, here or on another host."""
        self.placement.client_gone(peer, now)

    def node_gone(self, node: NodeID, now: float) -> None:
        """A member is gone."""
        self.bundles.node_gone(node, now)
        self.placement.node_gone(node, now)

    def heard(self, node: NodeID, load: dict[str, Any], now: float) -> None:
        """Gossip says how busy a member is. Loads that are too large come without amounts."""
        if isinstance(load.get("available"), dict):
            self.placement.heard(node, _units(load["available"]), _units(load.get("held")), now)
        for shape, _ in load.get("backlog", ()):
            group = group_of(shape) if isinstance(shape, dict) else b""
            if group:
                self._make_way(group, now)

    def _make_way(self, group: bytes, now: float) -> None:
        """A member has tasks for a group: workers that wait for work in its bundles here leave, as nobody else may."""
        for worker in list(self._matchmaking.workers.values()):
            bundle = worker.booking.bundle if worker.booking is not None else None
            parked = now - worker.attached_s >= FRESH_S and not self._matchmaking.executes(worker)
            if bundle is not None and bundle.group == group and parked:
                self._matchmaking.recall(worker)

    def _evict(self, now: float) -> None:
        """End what runs in bundles that are no more, until nothing does."""
        self._timers.cancel(self._timer)
        self._timer = 0
        before, self._leaving = self._leaving, {}
        for worker in list(self._matchmaking.workers.values()):
            bundle = worker.booking.bundle if worker.booking is not None else None
            if bundle is None or bundle.open:
                continue
            since = self._leaving[worker.peer] = before.get(worker.peer, now)
            if since >= 0 and (self._matchmaking.executes(worker) or now - since >= LEAVE_S):
                worker.reason = "group"
                self._leaving[worker.peer] = -1.0
                self._effects.append(KillProcess(worker.peer))
            elif since >= 0:
                self._matchmaking.recall(worker)
        if self._leaving:
            self._timer = self._timers.set(now + EVICT_S, self._evict)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        self.placement.check()
        self.bundles.check()


def _units(amounts: Any) -> Shape:
    """Return amounts in units of 1/10,000; what makes no sense is left out."""
    given = amounts.items() if isinstance(amounts, dict) else ()
    return {name: round(amount * UNIT) for name, amount in given if isinstance(amount, int | float) and amount > 0}
