"""Objects that more than one process holds: what their value is, who holds them, who waits for them.

The directory of a node is the home of what processes of its host own, wherever the bytes lie and whoever holds it.
Counts are by peer, and a message may overtake another client's: a count below zero waits for the Hold that is on its
way. A segment is written again only if every hold on it ended by a Release; any death in between makes it unclean.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh.core.effects import DropSegments, Effect, Send
from zmesh.wire.ids import NODE_ID_BYTES, PEER_ID_BYTES, NodeID, ObjectID, PeerID, is_guest, node_peer
from zmesh.wire.lineage_messages import Forget, Missing, Remember
from zmesh.wire.messages import (
    ERROR,
    INLINE,
    PENDING,
    STORED,
    Ack,
    Fetched,
    FreeSegments,
    KeepSegments,
    RecycleSegments,
)

Holder = bytes  # a PeerID, or the ObjectID of a value that contains the object


@dataclass(slots=True)
class Record:
    """One object."""

    status: int
    value: Any
    inside: list[ObjectID]
    holders: dict[Holder, int] = field(default_factory=dict)  # {holder: holds}; never 0
    waiters: dict[PeerID, bool] = field(default_factory=dict)
    clean: bool = True
    booked: bool = False  # its inline bytes count against the store


class Directory:
    """The objects of one node.

    Args:
        node: its ID.
        evacuation: what was copied here as the node it lay on left (core/evacuation.py).
        tallies: told of each change of a count (core/tallies.py).
        enclosed: holds what values here contain of other homes' objects (core/enclosed.py).
        alive: whether a peer is a living client, of this node or, as far as is known, of another.
        reserve: books bytes in the store; False if it is full.
        release: gives them back.
        freed: called with each object nobody holds any more.
    """

    def __init__(
        self,
        node: NodeID,
        effects: list[Effect],
        evacuation: Any,
        *,
        tallies: Any,
        enclosed: Any,
        alive: Callable[[PeerID], bool],
        reserve: Callable[[int], bool],
        release: Callable[[int], None],
        freed: Callable[[ObjectID], None] = lambda oid: None,
    ) -> None:
        self._node = node
        self._effects = effects
        self._alive = alive
        self._reserve = reserve
        self._release = release
        self._evacuation = evacuation
        self._tallies = tallies
        self._enclosed = enclosed
        self._freed = freed
        self._records: dict[ObjectID, Record] = {}
        self._remembered: dict[ObjectID, bool] = {}  # {object: True} of whose end the owner wants to hear
        self.of_clients: dict[type[Any], Callable[[PeerID, Any, float], None]] = {
            Missing: lambda peer, m, now: self.missing(peer, m.objects),
            Remember: lambda peer, m, now: self.remember(peer, m.objects),
        }

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, oid: ObjectID) -> bool:
        return oid in self._records

    def promote(self, peer: PeerID, request: int, objects: list[Any]) -> None:
        """Keep an owner's objects from now on: it holds each once more. All of them, or, if there is no room, none."""
        counted: list[tuple[ObjectID, Record]] = []
        for oid, status, value, inside in objects:
            record = self._records.get(oid)
            if record is not None:
                self._enclosed.refused(inside)
            elif status == INLINE and not self._reserve(len(value)):
                self._refuse(peer, request, objects[len(counted) :], len(value))
                for kept, one in counted:
                    self._count(kept, one, peer, -1)
                return
            else:
                record = self._records[oid] = Record(status, value, list(inside), booked=status == INLINE)
                self._keep(oid, record)
                self._hold_inside(oid, record)
            self._count(oid, record, peer, 1)
            counted.append((oid, record))
        self._effects.append(Send(peer, Ack(request)))

    def _refuse(self, peer: PeerID, request: int, objects: list[Any], nbytes: int) -> None:
        text = f"{nbytes:,} bytes do not fit into the store: raise object_store_memory or drop references"
        self._effects.append(Send(peer, Ack(request, text)))
        for _, _, _, inside in objects:
            self._enclosed.refused(inside)

    def _keep(self, oid: ObjectID, record: Record) -> None:
        """Have the node on which the bytes lie keep them, if that is another."""
        if record.status == STORED and record.value[2][:NODE_ID_BYTES] != self._node:
            home = node_peer(record.value[2][:NODE_ID_BYTES])
            self._effects.append(Send(home, KeepSegments([record.value[0]])))
            self._evacuation.stored(oid, record.value)

    def _hold_inside(self, oid: ObjectID, record: Record) -> None:
        self._enclosed.added(record.inside)
        for inner in record.inside:
            held = self._records.get(inner)
            if held is not None:
                self._count(inner, held, oid, 1)

    def resolve(self, objects: list[Any]) -> None:
        """Owners tell the values of objects that were pending."""
        for oid, status, value, inside in objects:
            record = self._records.get(oid)
            if record is None or not self._is_news(record, status, value):
                self._enclosed.refused(inside)
                if record is None and status == STORED:
                    self.free_segments([(value[2], value[0], True)])
                continue
            if record.value is not None and not (status == STORED and _spot(value) == _spot(record.value)):
                # If it was not lost after all, somebody may still read it there.
                self.free_segments([(record.value[2], record.value[0], False)])
            before, record.inside = record.inside, list(inside)
            record.status, record.value = status, value
            if status == INLINE:
                # The work is done, and its result is kept even if there is no room for it.
                record.booked = self._reserve(len(value))
            self._keep(oid, record)
            self._hold_inside(oid, record)
            self._answer(oid, record)
            for inner in before:
                held = self._records.get(inner)
                if held is not None and oid in held.holders:
                    self._count(inner, held, oid, -1)
            self._enclosed.removed(before, clean=True)

    @staticmethod
    def _is_news(record: Record, status: int, value: Any) -> bool:
        """Whether an owner's word changes what is known: a value at last, or another place for lost bytes."""
        if record.status == STORED:
            return status == INLINE or (status == STORED and _spot(value) != _spot(record.value))
        return record.status == PENDING

    def missing(self, peer: PeerID, objects: list[Any]) -> None:
        """A borrower could not have the bytes of these at the place it names: it gets another, or why there is none."""
        for oid, segment, producer in objects:
            record = self._records.get(oid)
            lies_there = record is not None and record.status == STORED and _spot(record.value) == (segment, producer)
            if lies_there and record is not None:
                if self._alive(oid[:PEER_ID_BYTES]):
                    record.status = PENDING
                    self._effects.append(Send(oid[:PEER_ID_BYTES], Missing([(oid, segment, producer)])))
                else:
                    self._lose(oid, record)
            self.fetch(peer, [oid])

    def _lose(self, oid: ObjectID, record: Record) -> None:
        text = f"the bytes of object {oid.hex()} are lost, and so is the process that owned it and could make it again"
        self.free_segments([(record.value[2], record.value[0], False)])
        record.status, record.value = ERROR, ("ObjectLostError", text, {})

    def remember(self, peer: PeerID, oids: list[ObjectID]) -> None:
        """An owner lets go of these, and wants to hear when all others have."""
        unknown = [oid for oid in oids if oid not in self._records]
        self._remembered |= dict.fromkeys([oid for oid in oids if oid in self._records], True)
        if unknown:
            self._effects.append(Send(peer, Forget(unknown)))

    def _answer(self, oid: ObjectID, record: Record) -> None:
        waiters, record.waiters = record.waiters, {}
        for peer in waiters:
            self._effects.append(Send(peer, Fetched([(oid, record.status, record.value)])))

    def hold(self, peer: PeerID, request: int, holders: list[Any]) -> None:
        """Count further holders."""
        error = ""
        for oid, holder in holders:
            record = self._records.get(oid)
            if record is None:
                error = f"object {oid.hex()} is not known here: it was freed"
            elif self._alive(holder):
                self._count(oid, record, holder, 1)
        if request:
            self._effects.append(Send(peer, Ack(request, error)))

    def vouch(self, peer: PeerID, request: int, objects: list[Any]) -> None:
        """A holder says what it holds at least, as who was to tell us may have died."""
        error = ""
        for oid, holds in objects:
            record = self._records.get(oid)
            if record is None:
                error = f"object {oid.hex()} is not known here: it was freed"
            elif self._alive(peer) and record.holders.get(peer, 0) < holds:
                self._count(oid, record, peer, holds - record.holders.get(peer, 0))
        if request:
            self._effects.append(Send(peer, Ack(request, error)))

    def release(self, peer: PeerID, objects: list[Any]) -> None:
        """A client drops holds; see messages.Release."""
        for oid, holds, clean in objects:
            record = self._records.get(oid)
            if record is not None:
                record.clean = record.clean and clean
                self._count(oid, record, peer, -holds)

    def _count(self, oid: ObjectID, record: Record, holder: Holder, change: int) -> None:
        holds = record.holders.get(holder, 0) + change
        self._tallies.changed(oid, holder, change)
        if holds:
            record.holders[holder] = holds
        else:
            record.holders.pop(holder, None)
        if not record.holders:
            self._free(oid)

    def _free(self, oid: ObjectID) -> None:
        """Forget an object nobody holds, and what only it contained."""
        todo = [oid]
        while todo:
            oid = todo.pop()
            record = self._records.pop(oid)
            self._evacuation.freed(oid)
            self._freed(oid)
            if self._remembered.pop(oid, False) and self._alive(oid[:PEER_ID_BYTES]):
                self._effects.append(Send(oid[:PEER_ID_BYTES], Forget([oid])))
            if record.status == STORED or (record.status == PENDING and record.value is not None):
                clean = record.clean and record.status == STORED
                self.free_segments([(record.value[2], record.value[0], clean)])
            elif record.booked:
                self._release(len(record.value))
            for peer in record.waiters:
                self._effects.append(Send(peer, Fetched([(oid, *_lost(oid))])))
            for inner in record.inside:
                held = self._records.get(inner)
                if held is not None and oid in held.holders:
                    held.holders[oid] -= 1
                    if not held.holders[oid]:
                        del held.holders[oid]
                    held.clean = held.clean and record.clean
                    if not held.holders:
                        todo.append(inner)
            self._enclosed.removed(record.inside, clean=record.clean)

    def fetch(self, peer: PeerID, oids: list[ObjectID]) -> None:
        """Tell values, now or as soon as there is one; every object asked for is answered."""
        for oid in oids:
            record = self._records.get(oid)
            if record is None:
                self._effects.append(Send(peer, Fetched([(oid, *_lost(oid))])))
            elif record.status == PENDING:
                record.waiters[peer] = True
            else:
                self._effects.append(Send(peer, Fetched([(oid, record.status, record.value)])))

    def free_segments(self, segments: list[Any]) -> None:
        """Let producers write segments again; those of the dead, and unclean ones, are dropped for good."""
        by_producer: dict[PeerID, list[int]] = {}
        far: dict[NodeID, list[Any]] = {}
        dropped = []
        for producer, segment, clean in segments:
            if producer[:NODE_ID_BYTES] != self._node:
                far.setdefault(producer[:NODE_ID_BYTES], []).append((producer, segment, clean))
            elif clean and self._alive(producer):
                by_producer.setdefault(producer, []).append(segment)
            else:
                dropped.append(segment)
        for producer, again in by_producer.items():
            self._effects.append(Send(producer, RecycleSegments(again)))
        for node, theirs in far.items():
            self._effects.append(Send(node_peer(node), FreeSegments(theirs)))
        if dropped:
            self._effects.append(DropSegments(dropped))

    def owner_died(self, peer: PeerID) -> None:
        """A client is gone: it waits for nothing, and what it had promised to make will never come."""
        for oid, record in self._records.items():
            record.waiters.pop(peer, None)
            if record.status == PENDING and oid[:PEER_ID_BYTES] == peer:
                if record.value is not None:
                    self._lose(oid, record)
                else:
                    text = f"the process that owned object {oid.hex()} died before the object was made"
                    record.status, record.value = ERROR, ("OwnerDiedError", text, {})
                self._answer(oid, record)

    def node_died(self, node: NodeID) -> None:
        """A member is gone: its clients wait for nothing. What lay on it is lost, unless its owner lives."""
        for oid, record in list(self._records.items()):
            for waiter in [waiter for waiter in record.waiters if waiter[:NODE_ID_BYTES] == node]:
                del record.waiters[waiter]
            lay_there = record.status == STORED and record.value[2][:NODE_ID_BYTES] == node
            if lay_there and not self._evacuation.has(oid) and not self._alive(oid[:PEER_ID_BYTES]):
                text = f"object {oid.hex()} lay on node {node.hex()}, which is gone, and nowhere else"
                record.status, record.value = ERROR, ("ObjectLostError", text, {})

    def holders_on(self, node: NodeID) -> list[PeerID]:
        """Return the clients of a member, and that itself, that something is counted for."""
        holders = {holder: True for record in self._records.values() for holder in record.holders}
        return [one for one in holders if len(one) == PEER_ID_BYTES and one[:NODE_ID_BYTES] == node]

    def contained_in(self, owner: PeerID) -> dict[ObjectID, bool]:
        """Return what the values of an owner contain: {object: True}."""
        return {
            inner: True for oid, one in self._records.items() if oid[:PEER_ID_BYTES] == owner for inner in one.inside
        }

    def holder_died(self, peer: PeerID) -> None:
        """What a dead client held may go: nobody will come and say that it was given to him."""
        self._tallies.gone(peer)
        for oid, record in list(self._records.items()):
            if oid not in self._records:
                continue  # freed with its container
            if peer in record.holders:
                record.clean = False
                del record.holders[peer]
            # A count below zero waits for a Hold that the dead may have owed.
            for holder in [holder for holder, holds in record.holders.items() if holds < 0]:
                self._tallies.changed(oid, holder, -record.holders.pop(holder))
            if not record.holders:
                self._free(oid)

    def counts_of(self, holder: PeerID) -> dict[ObjectID, int]:
        """Return {object: holds} that are counted for one holder."""
        return {oid: one.holders[holder] for oid, one in self._records.items() if holder in one.holders}

    def recount(self, oid: ObjectID, holder: PeerID, holds: int) -> bool:
        """Set a count that was wrong; False if there is no such object."""
        record = self._records.get(oid)
        if record is not None:
            record.clean = False  # nobody knows what became of it meanwhile
            self._count(oid, record, holder, holds - record.holders.get(holder, 0))
        return record is not None or not holds

    def place_of(self, oid: ObjectID) -> Any:
        """Return where the bytes of a stored object lie, None if it is none."""
        record = self._records.get(oid)
        return record.value if record is not None and record.status == STORED else None

    def lying_on(self, node: NodeID) -> list[tuple[ObjectID, Any]]:
        """Return the objects whose bytes lie on another node, with their places."""
        found = [(oid, record.value) for oid, record in self._records.items() if record.status == STORED]
        return [(oid, value) for oid, value in found if value[2][:NODE_ID_BYTES] == node]

    def held_elsewhere(self) -> list[ObjectID]:
        """Return the objects that clients on other hosts hold, guests included, and those inside of them."""
        found = {oid: True for oid, record in self._records.items() if any(map(self._is_far, record.holders))}
        todo = list(found)
        while todo:
            for inner in self._records[todo.pop()].inside:
                if inner in self._records and inner not in found:
                    found[inner] = True
                    todo.append(inner)
        return list(found)

    def _is_far(self, holder: Holder) -> bool:
        return len(holder) == PEER_ID_BYTES and (holder[:NODE_ID_BYTES] != self._node or is_guest(holder))

    def counted(self) -> list[tuple[ObjectID, int, Any, int]]:
        """Return (object, status, value, number of holders) of all."""
        return [(oid, one.status, one.value, len(one.holders)) for oid, one in self._records.items()]

    def segments_in_use(self) -> list[int]:
        """Return the segments that records name."""
        # Of lost ones too: if they are not lost after all, somebody may still read them.
        known = [one for one in self._records.values() if one.status in (STORED, PENDING) and one.value is not None]
        return [record.value[0] for record in known]

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        for oid, record in self._records.items():
            assert record.holders, oid.hex()
            assert all(record.holders.values())
            assert record.status == PENDING or not record.waiters
        assert all(oid in self._records for oid in self._remembered)


def _spot(place: Any) -> tuple[int, PeerID]:
    return place[0], place[2]


def _lost(oid: ObjectID) -> tuple[int, Any]:
    return ERROR, ("ObjectLostError", f"object {oid.hex()} is not known to the node: it was freed, or never was", {})
