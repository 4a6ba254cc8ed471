"""What the dead held stays counted until all whom they spoke to have buried them: they may have been lent something.

    victims of a dead worker     take in what it had sent              WorkerDied --> Buried
    workers, actors it lent to   are counted for what they keep of it  Detach, CallerGone --> Buried
    nodes it spoke to, watchers  ask theirs                            Dying --> Buried
    all have                     what it held may go                   PeersGone, to those who watch it

So nothing goes because a word was late. A mourner that dies is waited for until it is buried itself, as it may have
lent on what it was lent. Mourners are chosen among the living, so no two wait for each other. Of a client whose whole
node is dead each home that counts something for it asks all other members, and each answers once it has missed that
node, too.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from zmesh.core.effects import Effect, Send
from zmesh.exceptions import RemoteProtocolError
from zmesh.wire.actor_messages import Call, Follow
from zmesh.wire.codec import decode
from zmesh.wire.death_messages import Dying
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, PeerID, node_peer
from zmesh.wire.messages import Buried, Work


def lends(frame: bytes) -> bool:
    """Whether a frame may lend something: of what the dead had said last, that must not follow the word of their death.

    Their results, and what they say of counts, may.
    """
    try:
        return type(decode(frame)) in (Call, Follow, Work)
    except RemoteProtocolError:
        return False


@dataclass(slots=True)
class Burial:
    """One dead client that not all have buried."""

    mourners: dict[PeerID, int]  # {client of ours or of others, or node: how often it will say Buried}
    final: bool  # what it held goes after this; else when its node says so
    askers: dict[NodeID, bool] = field(default_factory=dict)  # {node: True} that wants to hear when all of ours have


class Burials:
    """Those under way on one node.

    Args:
        node: its ID.
        members: the other living members.
        buried: called with each client that all have buried: what it held may go.
    """

    def __init__(
        self, node: NodeID, effects: list[Effect], *, members: Collection[NodeID], buried: Callable[[PeerID], None]
    ) -> None:
        self._node = node
        self._effects = effects
        self._members = members
        self._buried = buried
        self._burials: dict[PeerID, Burial] = {}
        self._spoken: dict[PeerID, dict[NodeID, bool]] = {}  # {client of ours: {node it said something to: True}}
        # {client of a member that lives, as far as we know: {node that has missed that member: True}}
        self._early: dict[PeerID, dict[NodeID, bool]] = {}

    def __len__(self) -> int:
        return len(self._burials)

    def __contains__(self, peer: PeerID) -> bool:
        return peer in self._burials

    def spoke(self, client: PeerID, node: NodeID) -> None:
        """A client of ours says something to a process of another member, or to that itself."""
        self._spoken.setdefault(client, {})[node] = True

    def died(self, client: PeerID, mourners: dict[PeerID, int], watchers: Iterable[NodeID] = ()) -> None:
        """A client of ours is dead. Nodes it spoke to mourn it as well, and so do those that watch it."""
        spoken = self._spoken.pop(client, {}) | dict.fromkeys(watchers, True)
        nodes = [node for node in spoken if node in self._members]
        self._effects += [Send(node_peer(node), Dying([client])) for node in nodes]
        self._begin(client, Burial(mourners | dict.fromkeys(map(node_peer, nodes), 1), final=True))

    def told(self, client: PeerID, mourners: dict[PeerID, int]) -> None:
        """Its node says that a client is dead, and wants to hear when ours have buried it."""
        self._begin(client, Burial(mourners, final=False, askers={client[:NODE_ID_BYTES]: True}))

    def asked(self, client: PeerID, node: NodeID, *, back: bool) -> None:
        """Another node has missed the whole node of that client, and counts something for it; or does so no more."""
        burial = self._burials.get(client)
        if back:
            self._asks_no_more(client, node)
        elif client[:NODE_ID_BYTES] in self._members:
            self._early.setdefault(client, {})[node] = True
        elif burial is not None:
            burial.askers[node] = True
            self._look(client, burial)
        else:
            self._answer(client, node)

    def node_died(self, node: NodeID, mourners: dict[PeerID, dict[PeerID, int]], holders: list[PeerID]) -> None:
        """A member is dead, with all its clients.

        Args:
            mourners: {client that concerned ours: those of ours that mourn it}.
            holders: of its clients those that something is counted for here.
        """
        for dead, burial in list(self._burials.items()):
            burial.askers.pop(node, None)
            for mourner in [one for one in burial.mourners if one[:NODE_ID_BYTES] == node]:
                self._less(dead, mourner)
        early = {client: self._early.pop(client) for client in list(self._early) if client[:NODE_ID_BYTES] == node}
        for client in list(self._early):
            self._asks_no_more(client, node)
        if holders:
            self._effects += [Send(node_peer(member), Dying(holders)) for member in self._members]
        begun = [client for client in self._burials if client[:NODE_ID_BYTES] == node]
        for client in dict.fromkeys([*mourners, *holders, *early, *begun]):
            ours = dict(mourners.get(client, {}))
            before = self._burials.pop(client, None)
            if before is not None:
                ours |= before.mourners
            if client in holders:
                ours |= dict.fromkeys(map(node_peer, self._members), 1)
            self._begin(client, Burial(ours, final=True, askers=early.get(client, {})))

    def node_came_back(self, node: NodeID) -> None:
        """A member that was missed is there: nobody need agree any more that it is dead."""
        found = [client for client, one in self._burials.items() if client[:NODE_ID_BYTES] == node and one.final]
        if found:
            self._effects += [Send(node_peer(member), Dying(found, back=True)) for member in self._members]
        for client in found:
            burial = self._burials.get(client)
            if burial is not None:
                burial.mourners.clear()
                self._look(client, burial)

    def _asks_no_more(self, client: PeerID, node: NodeID) -> None:
        askers = self._early.get(client, {})
        askers.pop(node, None)
        if not askers:
            self._early.pop(client, None)

    def said(self, mourner: PeerID, client: PeerID) -> None:
        """A client of ours, or a node, has buried that one."""
        burial = self._burials.get(client)
        if burial is not None and mourner in burial.mourners:
            burial.mourners[mourner] -= 1
            if not burial.mourners[mourner]:
                self._less(client, mourner)

    def gone(self, client: PeerID) -> None:
        """A client of another member is dead and buried: so it is here, and it mourns nobody any more."""
        self._burials.pop(client, None)
        for node in self._early.pop(client, ()):
            self._answer(client, node)
        self._mourns_no_more(client)

    def _begin(self, client: PeerID, burial: Burial) -> None:
        self._burials[client] = burial
        self._look(client, burial)

    def _less(self, client: PeerID, mourner: PeerID) -> None:
        burial = self._burials.get(client)
        if burial is not None:
            burial.mourners.pop(mourner, None)
            self._look(client, burial)

    def _look(self, client: PeerID, burial: Burial) -> None:
        """Answer when all of ours have buried that one; end it when all have."""
        if not any(mourner[:NODE_ID_BYTES] == self._node for mourner in burial.mourners):
            askers, burial.askers = burial.askers, {}
            for node in askers:
                self._answer(client, node)
        if not burial.mourners:
            self._end(client)

    def _end(self, client: PeerID) -> None:
        burial = self._burials.pop(client)
        if burial.final:
            self._buried(client)
            self._mourns_no_more(client)

    def _mourns_no_more(self, client: PeerID) -> None:
        for dead in [dead for dead, burial in self._burials.items() if client in burial.mourners]:
            self._less(dead, client)

    def _answer(self, client: PeerID, node: NodeID) -> None:
        self._effects.append(Send(node_peer(node), Buried(client)))

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        for burial in self._burials.values():
            assert burial.mourners
            assert all(count > 0 for count in burial.mourners.values())
            assert burial.final or burial.askers
