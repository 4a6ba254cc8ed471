"""The other nodes, as this one deals with them: what they have in all, whom of their clients we know, who watches ours.

Whoever keeps something about a client of another node watches it: asks that node, once, to tell of its end. So nothing
is kept for the dead, and no death is told to those it does not concern. Who is a member is core/membership.py's
business.
"""

from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.labels import amount_of
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, PeerID, node_peer
from zmesh.wire.marks import NODE
from zmesh.wire.messages import PeersGone, Shape, Watch


class Neighbours:
    """Members other than this node, their clients that concern us, and who is concerned by ours."""

    def __init__(self, node: NodeID, effects: list[Effect]) -> None:
        self._node = node
        self._effects = effects
        self.totals: dict[NodeID, Shape] = {}  # {living member: its resources in all}
        self.foreign: dict[NodeID, str] = {}  # {member on another minor version of Python: which}: no code crosses
        self._watched: dict[NodeID, dict[PeerID, bool]] = {}  # {member: {its client we watch: True}}
        self._watchers: dict[PeerID, dict[NodeID, bool]] = {}  # {client of ours: {member that watches it: True}}

    def up(self, node: NodeID, total: Shape, *, foreign: str = "") -> bool:
        """A member is there, or has other resources than before; returns whether that is news."""
        news = self.totals.get(node) != total
        self.totals[node] = dict(total)
        if foreign:
            self.foreign[node] = foreign
        return news

    def hears(self, link: bytes) -> bool:
        """Whether words of whoever is at the other end of a link make sense here: a member, or no node at all."""
        return len(link) != NODE_ID_BYTES or link in self.totals

    @property
    def usable(self) -> list[Shape]:
        """What the members have in all that can load our functions."""
        return [total for node, total in self.totals.items() if node not in self.foreign]

    def down(self, node: NodeID) -> list[PeerID]:
        """A member is gone; returns its clients that concerned us."""
        self.totals.pop(node, None)
        self.foreign.pop(node, None)
        for watchers in self._watchers.values():
            watchers.pop(node, None)
        return list(self._watched.pop(node, {}))

    def alive(self, peer: PeerID) -> bool:
        """Whether a client of another node lives, as far as we know; from now on we hear of its end."""
        node = peer[:NODE_ID_BYTES]
        if node not in self.totals:
            return False
        theirs = self._watched.setdefault(node, {})
        if peer not in theirs:
            theirs[peer] = True
            self._effects.append(Send(node_peer(node), Watch([peer])))
        return True

    def known(self, peer: PeerID) -> bool:
        """Whether a client of another node is one we watch, and did not hear the end of."""
        return peer in self._watched.get(peer[:NODE_ID_BYTES], ())

    def forget(self, peers: list[PeerID]) -> list[PeerID]:
        """Their node says that these are gone; returns those that concerned us."""
        return [peer for peer in peers if self._watched.get(peer[:NODE_ID_BYTES], {}).pop(peer, False)]

    def watch(self, node: NodeID, peers: list[PeerID], living: Any) -> None:
        """A member wants to hear of the end of clients of ours; of those that are not `living` it does at once."""
        gone = [peer for peer in peers if not living(peer)]
        for peer in peers:
            if peer not in gone:
                self._watchers.setdefault(peer, {})[node] = True
        if gone:
            self._effects.append(Send(node_peer(node), PeersGone(gone)))

    def watchers(self, peer: PeerID) -> list[NodeID]:
        """Return the members that want to hear of the end of a client of ours."""
        return list(self._watchers.get(peer, ()))

    def client_ended(self, peer: PeerID) -> None:
        """A client of ours is gone, and everybody it served has buried it."""
        for node in self._watchers.pop(peer, {}):
            self._effects.append(Send(node_peer(node), PeersGone([peer])))

    def elsewhere(self, shape: Shape) -> bool:
        """Whether some other member could ever give a shape."""
        return any(_gives(total, shape) for total in self.usable)

    def explain(self, shape: Shape, missing: str) -> str:
        """Say why no member can give a shape; `missing` is what this node lacks."""
        for node, python in self.foreign.items():
            if _gives(self.totals[node], shape):
                return (
                    f"node {node.hex()} could, but runs Python {python}, not this program's, and functions pickled by "
                    "one need not load on the other: start a node with the Python of this program there"
                )
        for name in shape:
            if name.startswith(NODE) and not any(name in total for total in self.totals.values()):
                return f"it is for {name}, which is no member of the mesh: zmesh.nodes() tells who is"
        return missing

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert self._node not in self.totals
        assert all(node in self.totals for node in self.foreign)
        assert all(node in self.totals for node in self._watched)


def _gives(total: Shape, shape: Shape) -> bool:
    return all(amount_of(name, total) >= amount for name, amount in shape.items())
