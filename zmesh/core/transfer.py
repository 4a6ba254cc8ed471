"""How the bytes of objects travel between hosts: which chunk is asked of whom, and who serves whom.

The receiver asks for chunks, a window of them at a time, so flow is bounded by what it asked for; a chunk that does not
come is asked for again, elsewhere if need be. It is written in place, so a second arrival changes nothing. A node that
serves an object sends it to FANOUT receivers itself and refers others to those: each receiver serves what it has got so
far. So a broadcast becomes a tree, in which all links are busy at once. Sockets and memory are runtime/bulk.py's.

Source: pipelined trees for broadcast, e.g. Johnsson and Ho 1989; receiver-driven flow as in NDP, SIGCOMM 2017.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID

CHUNK_BYTES = 1024 * 1024  # one frame holds up all behind it: libzmq encrypts a frame at a time
WINDOW_CHUNKS = 16  # asked for and not here, per transfer
TRANSFERS_MAX = 4  # at a time from one node; others wait their turn
FANOUT = 2
GONE = "the node it lies on is gone"
PATIENCE_S = 5.0  # without any chunk, before a source is given up
FORGET_S = 60.0  # a served object without requests is forgotten


@dataclass(slots=True)
class Ask:
    """Ask `node` for a chunk. `insist`: do not refer us to another. `segment` is where the object's maker put it."""

    node: NodeID
    oid: ObjectID
    segment: int
    offset: int
    length: int
    insist: bool


@dataclass(slots=True)
class Finished:
    """A transfer is over: all bytes are here, or `error` says why they will never be.

    `full`: they are where they were, on disk, and that host has no room to bring them back.
    """

    oid: ObjectID
    error: str
    full: bool = False


@dataclass(slots=True)
class Transfer:
    """One object on its way here."""

    oid: ObjectID
    segment: int
    nbytes: int
    origin: NodeID
    source: NodeID
    wanted: deque[int]  # offsets not asked for
    asked: dict[int, float] = field(default_factory=dict)  # {offset: when}
    heard_s: float = 0.0  # when the last chunk came
    insist: bool = False
    full: bool = False  # somebody has it, but no room for it
    here: int = 0  # bytes
    chunks: dict[int, bool] = field(default_factory=dict)  # {offset: True} that are here
    why: str = ""  # it could not be had where it was made


class Receiver:
    """The transfers to this host. Effects: Ask and Finished."""

    def __init__(self, effects: list[Any], *, reachable: Callable[[NodeID], bool]) -> None:
        self._effects = effects
        self._reachable = reachable
        self.transfers: dict[ObjectID, Transfer] = {}
        self._waiting: deque[Transfer] = deque()  # for their turn

    def start(self, oid: ObjectID, segment: int, nbytes: int, origin: NodeID, now: float) -> None:
        """Fetch an object from where it was made."""
        offsets = deque(range(0, nbytes, CHUNK_BYTES))
        transfer = Transfer(oid, segment, nbytes, origin, origin, offsets, heard_s=now)
        self.transfers[oid] = transfer
        if not self._reachable(origin):
            self._give_up(transfer, GONE, now)
        elif self._active(origin) > TRANSFERS_MAX:
            self._waiting.append(transfer)
        else:
            self._ask(transfer, now)

    def _active(self, node: NodeID) -> int:
        waiting = [id(transfer) for transfer in self._waiting]
        return sum(one.source == node and id(one) not in waiting for one in self.transfers.values())

    def _ask(self, transfer: Transfer, now: float) -> None:
        # The first chunk alone: its answer may refer us to somebody else.
        window = WINDOW_CHUNKS if transfer.here or transfer.insist else 1
        while transfer.wanted and len(transfer.asked) < window:
            offset = transfer.wanted.popleft()
            transfer.asked[offset] = now
            length = min(CHUNK_BYTES, transfer.nbytes - offset)
            self._effects.append(Ask(transfer.source, transfer.oid, transfer.segment, offset, length, transfer.insist))

    def arrived(self, node: NodeID, oid: ObjectID, offset: int, now: float) -> None:
        """A chunk was written in place."""
        transfer = self.transfers.get(oid)
        if transfer is None or offset in transfer.chunks:
            return
        transfer.asked.pop(offset, None)
        if offset in transfer.wanted:
            transfer.wanted.remove(offset)
        transfer.chunks[offset] = True
        transfer.here += min(CHUNK_BYTES, transfer.nbytes - offset)
        if node == transfer.source:
            transfer.heard_s = now
        if transfer.here == transfer.nbytes:
            self._finish(transfer, "", now)
        else:
            self._ask(transfer, now)

    def referred(self, node: NodeID, oid: ObjectID, to: NodeID, now: float) -> None:
        """The origin serves enough others already: one of them serves us."""
        transfer = self.transfers.get(oid)
        if transfer is None or node != transfer.source or node != transfer.origin:
            return
        if self._reachable(to):
            self._turn_to(transfer, to, now)
        else:
            transfer.insist = True
            self._turn_to(transfer, node, now)

    def refused(self, node: NodeID, oid: ObjectID, why: str, now: float, *, full: bool = False) -> None:
        """A node does not have what we asked for, or, if `full`, cannot bring it back from disk."""
        transfer = self.transfers.get(oid)
        if transfer is not None and node == transfer.source:
            transfer.full = transfer.full or full
            if node == transfer.origin:
                self._give_up(transfer, why or "its node never heard of it", now)
            else:
                self._return(transfer, now)

    def _turn_to(self, transfer: Transfer, node: NodeID, now: float) -> None:
        """Ask another node for what is not here."""
        transfer.source = node
        transfer.heard_s = now
        transfer.wanted.extendleft(sorted(transfer.asked, reverse=True))
        transfer.asked.clear()
        self._ask(transfer, now)

    def _return(self, transfer: Transfer, now: float) -> None:
        """The one we were referred to cannot serve us: back to the origin."""
        if self._reachable(transfer.origin):
            transfer.insist = True
            self._turn_to(transfer, transfer.origin, now)
        else:
            self._give_up(transfer, GONE, now)

    def _give_up(self, transfer: Transfer, why: str, now: float) -> None:
        """It cannot be had where it was made: whoever counts it may have a copy."""
        home = transfer.oid[:NODE_ID_BYTES]
        if transfer.origin != home and self._reachable(home):
            transfer.why = why
            transfer.origin = home
            transfer.insist = True
            if transfer in self._waiting:
                self._waiting.remove(transfer)
            self._turn_to(transfer, home, now)
        else:
            self._finish(transfer, transfer.why or why, now)

    def node_gone(self, node: NodeID, now: float) -> None:
        """A member is gone; what came from it comes from elsewhere, or not at all."""
        for transfer in [one for one in self.transfers.values() if one.source == node]:
            if node == transfer.origin:
                self._give_up(transfer, GONE, now)
            else:
                self._return(transfer, now)

    def reconnected(self, node: NodeID, now: float) -> None:
        """The connection to a node was made anew: what was under way on the old one is asked for again."""
        for transfer in self.transfers.values():
            if transfer.source == node and transfer.asked:
                self._turn_to(transfer, node, now)

    def look(self, now: float) -> None:
        """Give up sources that have been silent for long. Called every second while there are transfers."""
        for transfer in [one for one in self.transfers.values() if one.asked and now - one.heard_s > PATIENCE_S]:
            if transfer.source == transfer.origin:
                self._turn_to(transfer, transfer.origin, now)
            else:
                self._return(transfer, now)

    def stop(self, oid: ObjectID, now: float) -> None:
        """Nobody wants it any more."""
        transfer = self.transfers.get(oid)
        if transfer is not None:
            self._finish(transfer, "nobody wants it any more", now)

    def _finish(self, transfer: Transfer, error: str, now: float) -> None:
        del self.transfers[transfer.oid]
        if transfer in self._waiting:
            self._waiting.remove(transfer)
        self._effects.append(Finished(transfer.oid, error, full=bool(error) and transfer.full))
        for one in list(self._waiting):
            if self._active(one.source) < TRANSFERS_MAX:
                self._waiting.remove(one)
                self._ask(one, now)


@dataclass(slots=True)
class Served:
    """One object that other nodes fetch from this one, where it was made."""

    order: list[NodeID] = field(default_factory=list)  # receivers, as they came
    asked_s: float = 0.0


class Server:
    """Who is served by us, and who is referred to whom."""

    def __init__(self) -> None:
        self._served: dict[ObjectID, Served] = {}

    def parent(self, receiver: NodeID, oid: ObjectID, now: float) -> NodeID | None:
        """Return the node that should serve a receiver; None: we do."""
        served = self._served.setdefault(oid, Served())
        served.asked_s = now
        if receiver not in served.order:
            served.order.append(receiver)
        place = served.order.index(receiver)
        return None if place < FANOUT else served.order[place // FANOUT - 1]

    def node_gone(self, node: NodeID) -> None:
        """A member is gone: nobody is referred to it."""
        for served in self._served.values():
            if node in served.order:
                served.order.remove(node)

    def look(self, now: float) -> None:
        """Forget what nobody has asked for for long."""
        for oid in [oid for oid, served in self._served.items() if now - served.asked_s > FORGET_S]:
            del self._served[oid]
