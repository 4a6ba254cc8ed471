"""Objects of which several hosts keep a copy: who keeps one, and who finds it when the object's home is gone.

    home --KeepReplica--> node --Replicated--> home        until DropReplica
    client --Seek--> its node --AskReplica--> members --ReplicaAt--> its node --Fetched--> client

The home chooses the members that score highest for the object, so whoever looks for it later knows whom to ask without
having been told. A replica whose home is gone is counted by nobody: it stays until nobody holds a reference
(core/orphans.py), or its room is needed.

Source: rendezvous hashing, Thaler and Ravishankar 1998.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID, PeerID, node_peer
from zmesh.wire.lineage_messages import (
    AskReplica,
    DropReplica,
    Guarded,
    KeepReplica,
    ReplicaAt,
    Replicate,
    Replicated,
    Seek,
)
from zmesh.wire.messages import ERROR, STORED, Fetched

ASK_MAX = 8  # members asked for a replica: some may have come after it was made, and score higher


@dataclass(slots=True)
class Guard:
    """One object of which others keep replicas for us, its home."""

    place: Any
    wanted: int
    nodes: dict[NodeID, bool] = field(default_factory=dict)  # {node: whether it has said that the replica is there}
    failed: dict[NodeID, str] = field(default_factory=dict)  # {node that could not: why}
    asker: tuple[PeerID, int] | None = None  # (client, request) that waits


@dataclass(slots=True)
class Search:
    """One object whose home is gone, and that clients of ours look for."""

    peers: dict[PeerID, bool] = field(default_factory=dict)
    asked: dict[NodeID, bool] = field(default_factory=dict)  # those that have not answered


class Replicas:
    """All three roles, for one node.

    Args:
        copies: those of this host.
        members: the others.
        directory: says where a shared object counted here lies.
    """

    def __init__(
        self,
        effects: list[Effect],
        *,
        copies: Any,
        members: Collection[NodeID],
        directory: Any,
    ) -> None:
        self._effects = effects
        self._copies = copies
        self._members = members
        self._directory = directory
        self._guards: dict[ObjectID, Guard] = {}
        self._kept: dict[ObjectID, bool] = {}  # {replica here: whether its home lives}
        self._searches: dict[ObjectID, Search] = {}
        self.of_clients: dict[type[Any], Callable[[PeerID, Any, float], None]] = {
            Replicate: lambda peer, m, now: self.replicate(peer, m.request, m.oid, m.copies),
            Seek: lambda peer, m, now: self.seek(peer, m.objects),
        }
        self.of_nodes: dict[type[Any], Callable[[NodeID, Any, float], None]] = {
            KeepReplica: lambda node, m, now: self.keep(m.oid, m.place),
            Replicated: lambda node, m, now: self.replicated(node, m.oid, m.why),
            DropReplica: lambda node, m, now: self.drop(m.oid),
            AskReplica: lambda node, m, now: self.asked(node, m.oid),
            ReplicaAt: lambda node, m, now: self.found(node, m.oid, m.place),
        }

    # The home.

    def replicate(self, peer: PeerID, request: int, oid: ObjectID, copies: int) -> None:
        """Have so many hosts in all keep an object, this one included; Guarded says how many do."""
        guard = self._guards[oid] = Guard(self._directory.place_of(oid), copies - 1, asker=(peer, request))
        self._fill(oid, guard)

    def _fill(self, oid: ObjectID, guard: Guard) -> None:
        """Ask for as many replicas as are missing; tell when there is nobody left to wait for."""
        free = [node for node in self._members if node not in guard.nodes and node not in guard.failed]
        lacking = guard.wanted - len(guard.nodes) if guard.place is not None else 0
        for node in _best(oid, free, max(0, lacking)):
            guard.nodes[node] = False
            self._effects.append(Send(node_peer(node), KeepReplica(oid, list(guard.place))))
        if guard.asker is not None and all(guard.nodes.values()):
            (peer, request), guard.asker = guard.asker, None
            why = next(iter(guard.failed.values()), "the mesh has no more nodes")
            self._effects.append(Send(peer, Guarded(request, 1 + len(guard.nodes), why)))

    def replicated(self, node: NodeID, oid: ObjectID, why: str) -> None:
        """A member has a replica, or `why` says why not; then another may."""
        guard = self._guards.get(oid)
        if guard is None or node not in guard.nodes:
            return  # freed meanwhile: it was told, or will be
        if why:
            del guard.nodes[node]
            guard.failed[node] = why
        else:
            guard.nodes[node] = True
        self._fill(oid, guard)

    def freed(self, oid: ObjectID) -> None:
        """An object is no more."""
        guard = self._guards.pop(oid, None)
        for node in guard.nodes if guard is not None else ():
            self._effects.append(Send(node_peer(node), DropReplica(oid)))

    # Those who keep one.

    def keep(self, oid: ObjectID, place: Any) -> None:
        """Have a copy of another home's object until it says otherwise."""
        if oid not in self._kept:
            self._kept[oid] = True
            self._copies.keep(oid, *place)

    def copied(self, oid: ObjectID, error: str) -> bool:
        """Take word of a copy that this node asked for; False if it is none of ours."""
        if oid not in self._kept:
            return False
        self._effects.append(Send(node_peer(oid[:NODE_ID_BYTES]), Replicated(oid, error)))
        if error:
            self.drop(oid)
        return True

    def drop(self, oid: ObjectID) -> None:
        """The home needs this replica no more."""
        if self._kept.pop(oid, None) is not None:
            self._copies.drop(oid)

    def orphans(self) -> list[ObjectID]:
        """Return the replicas whose home is gone."""
        return [oid for oid, counted in self._kept.items() if not counted]

    def make_room(self) -> None:
        """The store is full: replicas that nobody counts go."""
        for oid in self.orphans():
            self.drop(oid)

    # Those who look for one.

    def seek(self, peer: PeerID, oids: list[ObjectID]) -> None:
        """The home of these is gone: find a copy on any host. Each is answered by Fetched."""
        for oid in oids:
            place = self._copies.place_of(oid)
            if place is not None:
                self._effects.append(Send(peer, Fetched([(oid, STORED, place)])))
                continue
            search = self._searches.get(oid)
            if search is None:
                search = self._searches[oid] = Search(asked=dict.fromkeys(_best(oid, self._members, ASK_MAX), True))
                self._effects += [Send(node_peer(node), AskReplica(oid)) for node in search.asked]
            search.peers[peer] = True
            self._give_up(oid, search)

    def asked(self, node: NodeID, oid: ObjectID) -> None:
        """Another node looks for a copy."""
        self._effects.append(Send(node_peer(node), ReplicaAt(oid, list(self._copies.place_of(oid) or ()))))

    def found(self, node: NodeID, oid: ObjectID, place: Any) -> None:
        """A member has a copy there, or, for an empty place, none."""
        search = self._searches.get(oid)
        if search is None:
            return  # another was faster
        search.asked.pop(node, None)
        if not place:
            self._give_up(oid, search)
            return
        del self._searches[oid]
        self._effects += [Send(peer, Fetched([(oid, STORED, tuple(place))])) for peer in search.peers]

    def _give_up(self, oid: ObjectID, search: Search) -> None:
        if not search.asked:
            del self._searches[oid]
            text = (
                f"the node {oid[:NODE_ID_BYTES].hex()} that knew object {oid.hex()} is gone, and nobody has a replica"
            )
            lost = Fetched([(oid, ERROR, ("OwnerDiedError", text, {}))])
            self._effects += [Send(peer, lost) for peer in search.peers]

    # Members.

    def node_gone(self, node: NodeID) -> None:
        """A member is gone, in whatever role."""
        for oid, guard in list(self._guards.items()):
            guard.failed.pop(node, None)
            if guard.nodes.pop(node, None) is not None:
                self._fill(oid, guard)
        self._kept |= {oid: False for oid in self._kept if oid[:NODE_ID_BYTES] == node}
        for oid, search in list(self._searches.items()):
            if search.asked.pop(node, False):
                self._give_up(oid, search)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        for guard in self._guards.values():
            assert len(guard.nodes) <= max(0, guard.wanted)
            assert guard.asker is None or not all(guard.nodes.values())
        assert all(search.asked and search.peers for search in self._searches.values())


def _best(oid: ObjectID, nodes: Collection[NodeID], count: int) -> list[NodeID]:
    """Return the nodes that should keep an object, the best first: the same for all who know the same nodes."""
    return sorted(nodes, key=lambda node: _score(oid, node), reverse=True)[:count]


def _score(oid: ObjectID, node: NodeID) -> int:
    mixed = int.from_bytes(oid + node, "big") % 0xFFFFFFFFFFFFFFC5
    mixed = (mixed ^ (mixed >> 31)) * 0x9E3779B97F4A7C15 % (1 << 64)
    return mixed ^ (mixed >> 29)
