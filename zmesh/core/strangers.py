"""What clients of a node say to peers of nodes that it has not heard of: kept a while, as gossip may come later.

A client hears of a process on a host that joined just now from whoever knows that host already. To take it for dead,
as one that left is, would make errors of living objects.
"""

from collections.abc import Callable

from zmesh.core.effects import Effect, Send
from zmesh.core.timers import Timers
from zmesh.wire.ids import NodeID, PeerID
from zmesh.wire.messages import NodeGone

PATIENCE_S = 5.0  # gossip tells everybody within a second, and what it loses digests find within some
FRAMES_MAX = 1000  # kept in all; what is more is for nobody


class Strangers:
    """Frames for nodes that one node does not know yet.

    Args:
        send: passes on a frame to a node that is known now: (source, to, frame, now).
        dead: whether a node is known to be dead.
    """

    def __init__(
        self,
        effects: list[Effect],
        timers: Timers,
        *,
        send: Callable[[PeerID, PeerID, bytes, float], None],
        dead: Callable[[NodeID], bool],
    ) -> None:
        self._effects = effects
        self._timers = timers
        self._send = send
        self._dead = dead
        self._kept: dict[NodeID, list[tuple[PeerID, PeerID, bytes]]] = {}  # {node: [(source, to, frame)]}
        self._alarms: dict[NodeID, int] = {}

    def keep(self, node: NodeID, source: PeerID, to: PeerID, frame: bytes, now: float) -> None:
        """A client has something for a peer of a node that is no member, as far as we know."""
        if self._dead(node) or sum(map(len, self._kept.values())) >= FRAMES_MAX:
            self._tell(source, node)
            return
        if node not in self._kept:
            self._kept[node] = []
            self._alarms[node] = self._timers.set(now + PATIENCE_S, lambda then: self._give_up(node))
        self._kept[node].append((source, to, frame))

    def met(self, node: NodeID, now: float) -> None:
        """A member is there: what was said to its peers goes on its way, in order."""
        for source, to, frame in self._forget(node):
            self._send(source, to, frame, now)

    def _give_up(self, node: NodeID) -> None:
        for source in dict.fromkeys(source for source, _, _ in self._forget(node)):
            self._tell(source, node)

    def _forget(self, node: NodeID) -> list[tuple[PeerID, PeerID, bytes]]:
        self._timers.cancel(self._alarms.pop(node, 0))
        return self._kept.pop(node, [])

    def _tell(self, source: PeerID, node: NodeID) -> None:
        # It was told once, but may have learnt of what lay there only afterwards.
        self._effects.append(Send(source, NodeGone(node, "it is no member of the mesh")))

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert list(self._kept) == list(self._alarms)
        assert all(self._kept.values())
