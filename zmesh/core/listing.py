"""Who asks a node for all objects: the node asks its clients what they own, and adds what only it knows.

A client that does not answer in time is left out; what it shares is still known to the directory.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.timers import Timers
from zmesh.wire.ids import PEER_ID_BYTES, NodeID, ObjectID, PeerID
from zmesh.wire.messages import ERROR, FAILED, INLINE, PENDING, STORED
from zmesh.wire.store_messages import ListObjects, Objects

ANSWER_S = 1.0  # a client that runs something else is waited for so long
STATES = {PENDING: "pending", INLINE: "inline", STORED: "memory", FAILED: "failed", ERROR: "lost"}


@dataclass(slots=True)
class _Round:
    asker: PeerID
    request: int
    waiting: dict[PeerID, bool]
    rows: list[tuple[PeerID, Any]] = field(default_factory=list)
    timer: int = 0


class Listing:
    """The lists one node is making.

    Args:
        clients: the living clients that own objects, with their pids.
        shared: (object, status, value, holders) of all objects the directory counts.
        copies: objects of other hosts that have a copy here.
        state: where the bytes of a segment of this host are: "resident", "spilled", ...; "" if it is none.
    """

    def __init__(
        self,
        node: NodeID,
        effects: list[Effect],
        timers: Timers,
        *,
        clients: Callable[[], dict[PeerID, int]],
        shared: Callable[[], list[tuple[ObjectID, int, Any, int]]],
        copies: Callable[[], list[ObjectID]],
        state: Callable[[int], str],
    ) -> None:
        self._node = node
        self._effects = effects
        self._timers = timers
        self._clients = clients
        self._shared = shared
        self._copies = copies
        self._state = state
        self._numbers = 0
        self._rounds: dict[int, _Round] = {}

    def asked(self, peer: PeerID, message: ListObjects, now: float) -> None:
        """Somebody wants the list."""
        self._numbers += 1
        number = self._numbers
        made = self._rounds[number] = _Round(peer, message.request, dict.fromkeys(self._clients(), True))
        self._effects += [Send(client, ListObjects(number)) for client in made.waiting]
        made.timer = self._timers.set(now + ANSWER_S, lambda then: self._answer(number))
        if not made.waiting:
            self._answer(number)

    def told(self, peer: PeerID, message: Objects, now: float) -> None:
        """A client says what it owns."""
        del now
        made = self._rounds.get(message.request)
        if made is not None and made.waiting.pop(peer, False):
            made.rows += [(peer, row) for row in message.objects]
            if not made.waiting:
                self._answer(message.request)

    def _answer(self, number: int) -> None:
        made = self._rounds.pop(number)
        self._timers.cancel(made.timer)
        pids = self._clients()
        holders = {oid: count for oid, _, _, count in self._shared()}
        found: dict[ObjectID, Any] = {}
        for peer, (oid, status, nbytes, segment, refs, pins, readers, function, made_at) in made.rows:
            found[oid] = self._row(oid, status, nbytes, segment) | {
                "owner_pid": pids.get(peer, 0),
                "function": function,
                "made_at": made_at,
                "refs": refs,
                "readers": (pins > 0) + readers,
                "holders": holders.get(oid, 0),
            }
        for oid, status, value, count in self._shared():
            handle = status == INLINE and not value  # of an actor: counted as an object is, with no bytes behind it
            if oid not in found and not handle:  # its owner is dead, or busy
                nbytes = value[1] if status == STORED else len(value) if status == INLINE else 0
                found[oid] = self._row(oid, status, nbytes, value[0] if status == STORED else 0) | {
                    "owner_pid": pids.get(oid[:PEER_ID_BYTES], 0),
                    "function": "",
                    "made_at": "",
                    "refs": 0,
                    "readers": 0,
                    "holders": count,
                }
        copies = [oid.hex() for oid in self._copies()]
        self._effects.append(Send(made.asker, Objects(made.request, [*found.values(), {"copies": copies}])))

    def _row(self, oid: ObjectID, status: int, nbytes: int, segment: int) -> dict[str, Any]:
        state = STATES[status]
        if status == STORED:
            here = self._state(segment)
            state = {"": "elsewhere", "resident": "memory", "lost": "lost"}.get(here, "disk")
        owner = oid[:PEER_ID_BYTES].hex()
        return {"object_id": oid.hex(), "owner": owner, "node": self._node.hex(), "size": nbytes, "state": state}
