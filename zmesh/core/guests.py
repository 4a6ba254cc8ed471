"""The guests of a node: programs elsewhere that are clients of this node. Who is one, and whose silence is an end.

A guest knocks every PING_S (core/guest_client.py). A connection may be cut for a while without harm, as the link
bridges it; one who is silent for GUEST_SILENCE_S is gone.
"""

from collections.abc import Callable

from zmesh.core.timers import Timers
from zmesh.wire.guest import Knock, Opened
from zmesh.wire.ids import NodeID, PeerID
from zmesh.wire.messages import PROTOCOL_MAJOR

GUEST_SILENCE_S = 30.0  # a laptop changes its network, a program holds the interpreter: both take seconds
REVIEW_S = 2.0
MEMBERS_MAX = 64  # told to a guest


class Guests:
    """The guests of one node.

    Args:
        node: its ID.
        members: (host, port) of other living members.
        ended: called with a guest that was silent for too long: (peer, now).
    """

    def __init__(
        self,
        node: NodeID,
        timers: Timers,
        *,
        members: Callable[[], list[tuple[str, int]]],
        ended: Callable[[PeerID, float], None],
    ) -> None:
        self._node = node
        self._timers = timers
        self._members = members
        self._ended = ended
        self._heard_s: dict[PeerID, float] = {}  # {guest: when it last knocked}
        self._timer = 0

    def __contains__(self, peer: PeerID) -> bool:
        return peer in self._heard_s

    def knock(self, peer: PeerID, word: Knock, now: float) -> Opened:
        """Somebody knocks; returns the answer. `peer` is what it is called if it is let in."""
        members = [[host, port] for host, port in self._members()[:MEMBERS_MAX]]
        if word.major != PROTOCOL_MAJOR:
            text = f"this mesh speaks version {PROTOCOL_MAJOR} of the protocol, you {word.major}"
            return Opened(self._node, members, refused=text)
        if word.node and (word.node != self._node or peer not in self._heard_s):
            return Opened(self._node, members, gone=True)
        self._heard_s[peer] = now
        if not self._timer:
            self._timer = self._timers.set(now + REVIEW_S, self._review)
        return Opened(self._node, members)

    def _review(self, now: float) -> None:
        silent = [peer for peer, heard_s in self._heard_s.items() if now - heard_s > GUEST_SILENCE_S]
        for peer in silent:
            del self._heard_s[peer]
            self._ended(peer, now)
        self._timer = self._timers.set(now + REVIEW_S, self._review) if self._heard_s else 0
