"""The part of a node's role that faces other nodes: members that come and go, their loads, leases. Wiring only.

A base of NodeCore (core/node.py), which makes what is used here.
"""

from typing import Any

from zmesh.core.effects import DropSegments, Effect, Send
from zmesh.core.lending import lease_key
from zmesh.core.neighbours import Neighbours
from zmesh.wire.death_messages import Dying
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, PeerID, is_guest, node_peer
from zmesh.wire.messages import Lease, LeaseBack, Mesh, NodeGone, PeersGone, Shape, Spare, Watch

MESH_WINDOW_S = 0.05  # clients hear of members that come within this time in one message


class MemberInputs:
    """What a node hears of others, and does about it."""

    node: NodeID
    actors: Any
    copies: Any
    directory: Any
    evacuation: Any
    groups: Any
    holder: Any
    lending: Any
    links: Any
    matchmaking: Any
    neighbours: Neighbours
    openings: Any
    orphans: Any
    pressure: Any
    replicas: Any
    resources: Any
    strangers: Any
    load: Any
    _alive: Any
    _announce: Any
    _client_died: Any
    _clients: dict[PeerID, Any]
    _configs: dict[PeerID, dict[str, Any]]
    _draining: bool
    _effects: list[Effect]
    _foreign: Any
    _job_ended: Any
    _kept: dict[int, NodeID]
    _mesh_timer: int
    _announced: dict[PeerID, bool]
    burials: Any
    _timers: Any
    _told_shapes: list[Any]

    def member_up(self, node: NodeID, total: Shape, now: float, python: str = "") -> None:
        """A member is there, or says that it has other resources than before."""
        if node != self.node and self.neighbours.up(node, total, foreign=python if self._foreign(python) else ""):
            if self.links.came_back(node):
                # It may not know that we took it for dead: the first word of the new link says so.
                self._effects.append(Send(node_peer(node), Watch([])))
                self.actors.names.look_into(now)
            self.burials.node_came_back(node)
            self.strangers.met(node, now)
            self.actors.names.members_changed()
            if not self._mesh_timer:
                self._mesh_timer = self._timers.set(now + MESH_WINDOW_S, self._tell_mesh)
            self.groups.placement.news(now)

    def member_down(self, node: NodeID, why: str, now: float) -> None:
        """A member is dead or has left: so are its clients, and our link to it."""
        if node not in self.neighbours.totals:
            return
        self.links.died(node)
        self._forget_member(node, why, now)

    def link_ended(self, node: NodeID, why: str, now: float) -> None:
        """That member took us for dead: nothing agreed with it counts any more, but it is there."""
        total, foreign = self.neighbours.totals.get(node), self.neighbours.foreign.get(node, "")
        if total is not None:
            self._forget_member(node, why, now)
            self.neighbours.up(node, total, foreign=foreign)
            self.burials.node_came_back(node)
            self.actors.names.taken_for_dead()
            self.actors.names.members_changed()

    def _forget_member(self, node: NodeID, why: str, now: float) -> None:
        mourners = {}
        for peer in self.neighbours.down(node):
            known = self._announced.pop(peer, False)
            mourners[peer] = {} if known else self._far_client_gone(peer, now)
        self.groups.node_gone(node, now)
        self.directory.node_died(node)
        holders = self.directory.holders_on(node)
        if node_peer(node) in holders:  # for values that are gone
            holders.remove(node_peer(node))
            self.directory.holder_died(node_peer(node))
        self.burials.node_died(node, mourners, holders)
        self.evacuation.node_gone(node)
        self.actors.node_gone(node, now)
        self.replicas.node_gone(node)
        self.holder.home_gone(node)
        self.orphans.node_gone(node, now)
        self.lending.node_gone(node, self.matchmaking.demands.get)
        self.copies.node_gone(node, now)
        lost = [segment for segment, keeper in self._kept.items() if keeper == node]
        for segment in lost:
            del self._kept[segment]
        if lost:
            self._effects.append(DropSegments(lost))
        self._effects += [Send(peer, NodeGone(node, why)) for peer in self._clients]
        self._tell_mesh(now)
        self.matchmaking.match(now)

    def _far_client_gone(self, peer: PeerID, now: float) -> dict[PeerID, int]:
        """A client of another member is dead; returns those of ours that it lent to."""
        mourners: dict[PeerID, int] = self._client_died(peer, {})
        self._job_ended(peer)
        self.groups.client_gone(peer, now)
        return mourners

    def _dying(self, node: NodeID, message: Dying, now: float) -> None:
        """Clients of that member are dead, or it has missed another with all its clients."""
        for peer in message.peers:
            if peer[:NODE_ID_BYTES] != node:
                self.burials.asked(peer, node, back=message.back)
            elif peer not in self._announced and not message.back:
                if self.neighbours.known(peer):  # its node will say PeersGone of it
                    self._announced[peer] = True
                self.burials.told(peer, self._far_client_gone(peer, now))
        self.matchmaking.match(now)

    def _peers_gone(self, node: NodeID, message: PeersGone, now: float) -> None:
        del node
        for peer in self.neighbours.forget(message.peers):
            if not self._announced.pop(peer, False):
                self._far_client_gone(peer, now)
            self.burials.gone(peer)
            self.directory.holder_died(peer)
        self.matchmaking.match(now)

    def _mesh(self) -> Mesh:
        return Mesh([dict(self.resources.total), *(dict(total) for total in self.neighbours.usable)])

    def _tell_mesh(self, now: float) -> None:
        del now
        if self._mesh_timer:
            self._timers.cancel(self._mesh_timer)
            self._mesh_timer = 0
        self._effects += [Send(peer, self._mesh()) for peer in self._clients]

    def heard_load(self, node: NodeID, load: dict[str, Any], now: float) -> None:
        """Gossip says how busy a member is."""
        backlog = load.get("backlog", ())
        sane = [(shape, workers) for shape, workers in backlog if isinstance(shape, dict)]
        if node in self.neighbours.totals and node not in self.neighbours.foreign:
            self.groups.heard(node, load, now)
            self.lending.backlog(node, sane, self._spare_now())

    def drain(self, now: float) -> None:
        """Take no more work of other hosts, and give back what has not started."""
        self._draining = True
        self.lending.withdraw()
        self.matchmaking.drain()
        self._matched(now)

    @property
    def drained(self) -> bool:
        """Whether nothing of other hosts runs here any more."""
        return not any(demand.far and demand.attached for demand in self.matchmaking.demands.values())

    def _spare(self, node: NodeID, message: Spare, now: float) -> None:
        del now
        if node not in self.neighbours.foreign:
            self.lending.spare(node, message.free)

    def _lease(self, node: NodeID, m: Lease, now: float) -> None:
        if m.client[:NODE_ID_BYTES] != node or not (self._alive(m.client) and self._alive(m.job)):
            return
        if m.workers:
            self._configs[m.job] = dict(m.config)
            if m.client == m.job and not is_guest(m.client):
                self.openings.offer(m.client)
        if m.workers and self._draining:
            self._effects.append(Send(node_peer(node), LeaseBack(m.client, dict(m.shape), 0, m.number)))
            return
        self.matchmaking.demand(m.client, m.job, dict(m.shape), m.workers, m.depth, m.priority, now, lease=m.number)

    def _lease_back(self, node: NodeID, m: LeaseBack, now: float) -> None:
        key = lease_key(m.client, m.shape)
        self.lending.came_back(node, self.matchmaking.demands.get(key), key, m.workers, m.number)
        self.matchmaking.match(now)

    def _matched(self, now: float) -> None:
        """Workers and demands were matched: what is left over on either side concerns other nodes."""
        if not self.neighbours.totals:
            return
        self.lending.lend()
        for demand in [demand for demand in self.matchmaking.demands.values() if demand.far and demand.overflow > 0]:
            self.lending.hand_back(demand)
        self.lending.offer(self._spare_now())
        shapes = [demand.key for demand in self.matchmaking.own() if demand.overflow > 0]
        urgent = any(shape not in self._told_shapes for shape in shapes)
        if urgent or (self._told_shapes and not shapes):
            self._told_shapes = shapes
            self._announce(self.load(), now, urgent)

    def _spare_now(self) -> Shape:
        """Return what other nodes may use here."""
        return {} if self._draining or self.pressure.short else self.matchmaking.spare()
