"""Stealing between nodes: a node with free resources serves clients of a node that has too much to do.

The thief's node parks Spare at nodes with a backlog. The victim's node answers with a Lease: that many of your workers
may serve this client. From then on the workers steal from the client as its own do, their words pass through the
two nodes. A node books only its own resources, so no two can overbook a third. What it cannot use it hands back.

Knows demands and free resources; who attaches which worker is core/matchmaking.py's business.

Sources: lifelines, Saraswat et al., PPoPP 2011; steal-half, Hendler and Shavit, PODC 2002; random victims are hard to
beat, Beranek et al. 2020 (arXiv 2010.11105).
"""

import random
from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.records import ShapeKey, in_group, shape_key
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, PeerID, node_peer
from zmesh.wire.marks import SPREAD
from zmesh.wire.messages import Lease, LeaseBack, Shape, Spare

PARKED_AT_MAX = 3  # nodes at which what is free here is offered at once

Key = tuple[PeerID, ShapeKey]  # of a demand: (client, shape)


class Lending:
    """Both halves for one node: what it lends to others' thieves, and what it offers to others.

    Args:
        demands: returns those of our own clients, with `overflow`, `lent`, `lacks` (core/matchmaking.py).
        fits: how many workers of a shape fit into an amount of free resources.
        congested: whether the link to a node has too much waiting already.
        config_of: the settings of a job.
        members: how many nodes the mesh has.
    """

    def __init__(
        self,
        rng: random.Random,
        effects: list[Effect],
        *,
        demands: Callable[[], list[Any]],
        fits: Callable[[Shape, Shape], int],
        congested: Callable[[NodeID], bool],
        config_of: Callable[[PeerID], dict[str, Any]],
        members: Callable[[], int],
    ) -> None:
        self._rng = rng
        self._effects = effects
        self._demands = demands
        self._fits = fits
        self._congested = congested
        self._config_of = config_of
        self._members = members
        self._spare: dict[NodeID, Shape] = {}  # {thief: what is free there and not leased out since it said so}
        self._leases: dict[Key, dict[NodeID, int]] = {}  # {demand: {thief: workers}}; none are 0
        self._numbers: dict[tuple[NodeID, Key], int] = {}  # {(thief, demand): number of its last lease}
        self._number = 0
        self._backlogs: dict[NodeID, list[Any]] = {}  # {victim: [[shape, workers], ...]} of those that have one
        self._parked: dict[NodeID, Shape] = {}  # {victim: what we told it is free here}

    # As the victim's node.

    def spare(self, thief: NodeID, free: Shape) -> None:
        """A node says what is free there; the latest word wins."""
        self._spare.pop(thief, None)
        if free:
            self._spare[thief] = dict(free)
        self.lend()

    def lend(self) -> None:
        """Lease what our clients lack to those who offered, half of it to each; take back what is not lacking."""
        for demand in self._demands():
            key = (demand.client, demand.key)
            if demand.lent and demand.lacks < 0:
                self._reduce(key, demand, min(demand.lent, -demand.lacks))
            if demand.overflow <= 0 or not self._spare:
                continue
            thieves = list(self._spare)
            self._rng.shuffle(thieves)
            for thief in thieves:
                free = self._spare[thief]
                fit = 0 if self._congested(thief) else self._fits(demand.needs, free)
                if SPREAD in demand.shape:
                    share = -(-demand.workers // self._members())
                    fit = min(fit, share - self._leases.get(key, {}).get(thief, 0))
                if fit > 0 and demand.overflow > 0:
                    self._lease(key, demand, thief, min(fit, -(-demand.overflow // 2) if len(thieves) > 1 else fit))

    def _lease(self, key: Key, demand: Any, thief: NodeID, workers: int) -> None:
        workers = min(workers, demand.overflow)
        leases = self._leases.setdefault(key, {})
        leases[thief] = leases.get(thief, 0) + workers
        demand.lent += workers
        demand.overflow -= workers
        free = self._spare[thief]
        for name, amount in demand.needs.items():
            free[name] = free.get(name, 0) - workers * amount
        self._tell(key, demand, thief, leases[thief])

    def _tell(self, key: Key, demand: Any, thief: NodeID, workers: int) -> None:
        self._number += 1
        self._numbers[thief, key] = self._number
        config = self._config_of(demand.job) if workers else {}
        lease = Lease(
            key[0], demand.job, dict(demand.shape), workers, demand.depth, demand.priority, config, self._number
        )
        self._effects.append(Send(node_peer(thief), lease))

    def _reduce(self, key: Key, demand: Any, workers: int) -> None:
        """Ask for fewer: the youngest leases first."""
        leases = self._leases.get(key, {})
        for thief in reversed(list(leases)):
            less = min(workers, leases[thief])
            workers -= less
            demand.lent -= less
            leases[thief] -= less
            self._tell(key, demand, thief, leases[thief])
            if not leases[thief]:
                del leases[thief]
        if not leases:
            self._leases.pop(key, None)

    def came_back(self, thief: NodeID, demand: Any, key: Key, keeps: int, number: int) -> None:
        """A thief keeps so many only of the workers it was leased. An answer to an older lease is ignored."""
        leases = self._leases.get(key, {})
        if number != self._numbers.get((thief, key)) or keeps >= leases.get(thief, 0) or demand is None:
            return
        demand.lent -= leases[thief] - keeps
        leases[thief] = keeps
        if not keeps:
            del leases[thief]
        if not leases:
            del self._leases[key]

    def client_gone(self, client: PeerID) -> None:
        """A client of ours is no more; the thieves hear of it as they watch it."""
        for key in [key for key in self._leases if key[0] == client]:
            del self._leases[key]
        for both in [both for both in self._numbers if both[1][0] == client]:
            del self._numbers[both]

    # As the thief's node.

    def backlog(self, victim: NodeID, backlog: list[Any], free: Shape) -> None:
        """Gossip says what a node lacks: [[shape, workers], ...]."""
        self._backlogs.pop(victim, None)
        if backlog:
            self._backlogs[victim] = backlog
        self.offer(free)

    def offer(self, free: Shape) -> None:
        """Say what is free here where it is parked, and park it at random nodes with a backlog that it would serve."""
        for victim, told in self._parked.items():
            if told != free:
                self._park(victim, free)
        served: list[NodeID] = []
        bound: list[NodeID] = []  # victims of whose backlog some can run in bundles of ours only
        for victim, backlog in self._backlogs.items() if free else ():
            shapes = [shape for shape, _ in backlog if self._fits(dict(shape), free)]
            if shapes and victim not in self._parked:
                (bound if any(in_group(name) for shape in shapes for name in shape) else served).append(victim)
        self._rng.shuffle(served)
        busy = sum(victim in self._backlogs for victim in self._parked)
        for victim in [*bound, *served[: max(0, PARKED_AT_MAX - busy - len(bound))]]:
            idle = [one for one in self._parked if one not in self._backlogs]
            if len(self._parked) >= PARKED_AT_MAX and idle:
                self._park(idle[0], {})
                del self._parked[idle[0]]
            self._park(victim, free)

    def _park(self, victim: NodeID, free: Shape) -> None:
        self._parked[victim] = dict(free)
        self._effects.append(Send(node_peer(victim), Spare(dict(free))))

    def hand_back(self, demand: Any) -> None:
        """What was leased to us we cannot serve now: others may."""
        workers = min(demand.overflow, demand.workers)
        if workers > 0:
            demand.workers -= workers
            demand.overflow -= workers
            back = LeaseBack(demand.client, dict(demand.shape), demand.workers, demand.number)
            self._effects.append(Send(node_peer(demand.client[:NODE_ID_BYTES]), back))

    # Members.

    def node_gone(self, node: NodeID, demand_of: Callable[[Key], Any]) -> None:
        """A member is gone: what it was leased others may have."""
        self._spare.pop(node, None)
        self._backlogs.pop(node, None)
        self._parked.pop(node, None)
        for both in [both for both in self._numbers if both[0] == node]:
            del self._numbers[both]
        for key, leases in list(self._leases.items()):
            workers = leases.pop(node, 0)
            demand = demand_of(key)
            if workers and demand is not None:
                demand.lent -= workers
            if not leases:
                del self._leases[key]

    def withdraw(self) -> None:
        """This node leaves: it steals nothing more."""
        self.offer({})

    def check(self, demands: list[Any]) -> None:
        """Verify the tables; for tests and the simulator."""
        for demand in demands:
            leases = self._leases.get((demand.client, demand.key), {})
            assert demand.lent == sum(leases.values()), (demand, leases)
            assert all(workers > 0 for workers in leases.values())


def lease_key(client: PeerID, shape: Shape) -> Key:
    """Return the key of the demand that a lease stands for."""
    return client, shape_key(shape)
