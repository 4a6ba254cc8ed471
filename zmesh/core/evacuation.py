"""What lies only on a node that leaves is copied elsewhere first: to the host of whoever owns it, or counts it.

    leaving node --Leaving--> members --Leaving--> their clients
                 <-Evacuated-         <-Evacuated-
                 --Leaving--> clients that have a shortcut to it: its last word there (core/shortcuts.py)

A client has its far results copied to its host and keeps the copies; a node does so with the shared objects it counts.
Afterwards whoever asks the old place in vain asks the object's home (core/transfer.py). What the leaving node counts
itself ends with it: that is only told. How long it waits for answers is its shell's business.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from zmesh.core.effects import Effect, Send, Warn
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID, PeerID, is_guest, node_peer
from zmesh.wire.messages import ERROR, Evacuated, Leaving


@dataclass(slots=True)
class Round:
    """One leaving node, as a member deals with it."""

    clients: dict[PeerID, bool]  # {client: True} that have not answered
    objects: dict[ObjectID, bool] = field(default_factory=dict)  # {shared object: True} that are not here yet
    moved: int = 0
    lost: int = 0
    why: str = ""  # the first of them was lost


@dataclass(slots=True)
class Farewell:
    """What became of what lay on this node alone; for whoever stopped it.

    `notes` are whole sentences about what was lost, or may be.
    """

    moved: int = 0
    lost: int = 0
    notes: list[str] = field(default_factory=list)


class Evacuation:
    """Both sides of it, for one node.

    Args:
        copies: those of this host.
        members: the others.
        clients: those of this node.
        directly: clients of others that hear of us over a shortcut.
    """

    def __init__(
        self,
        node: NodeID,
        effects: list[Effect],
        *,
        copies: Any,
        members: Collection[NodeID],
        clients: Collection[PeerID],
        directly: Collection[PeerID],
    ) -> None:
        self._node = node
        self._effects = effects
        self._copies = copies
        self._members = members
        self._clients = clients
        self._directly = directly
        self._leavers: dict[NodeID, bool] = {}  # {member that said it leaves: True}, until it is gone
        self._rounds: dict[NodeID, Round] = {}  # those not over
        self._rescued: dict[ObjectID, bool] = {}  # {shared object this node has copied here: whether it is here}
        self._asked: dict[NodeID, bool] | None = None  # {member that has not answered us: True}; None: we stay
        self._farewell = Farewell()

    # The node that leaves.

    def leave(self) -> None:
        """Tell the others to take what they need."""
        self._asked = dict.fromkeys(self._members, True)
        self._effects += [Send(client, Leaving(self._node)) for client in self._directly]
        self._effects += [Send(node_peer(node), Leaving(self._node)) for node in self._asked]

    @property
    def done(self) -> bool:
        """Whether every member that is still there has what it needs of us, or failed to get it."""
        return self._asked is not None and not self._asked

    def farewell(self, ours: int) -> Farewell:
        """Return what was moved and what was lost, as far as is known now; `ours` objects are held elsewhere."""
        told = self._farewell
        notes = list(told.notes)
        if ours:
            notes.append(f"{ours} object(s) that other hosts hold belong to programs of this node, and end with it")
        guests = sum(is_guest(client) for client in self._clients)
        if guests:
            notes.append(f"{guests} guest(s) of this node go on elsewhere, and make large results not read yet again")
        notes += [
            f"node {node.hex()} did not say whether it has all it needs of this one" for node in self._asked or ()
        ]
        return Farewell(told.moved, told.lost + ours, notes)

    # The others.

    def leaving(self, node: NodeID, objects: list[tuple[ObjectID, Any]]) -> None:
        """A member is about to leave.

        Args:
            objects: the shared objects counted here that lie there, with their places.
        """
        if node in self._leavers:
            return
        self._leavers[node] = True
        one = self._rounds[node] = Round(dict.fromkeys(self._clients, True))
        self._effects += [Send(client, Leaving(node)) for client in self._clients]
        one.objects = {oid: True for oid, _ in objects if oid not in self._rescued}
        for oid, location in objects:
            self._rescue(oid, location)
        self._finish(node, one)

    def _rescue(self, oid: ObjectID, location: Any) -> None:
        if oid not in self._rescued:
            self._rescued[oid] = False
            self._copies.keep(oid, *location)

    def stored(self, oid: ObjectID, location: Any) -> None:
        """A shared object counted here has its bytes on another node; if that one leaves, they are copied at once."""
        node = location[2][:NODE_ID_BYTES]
        if node in self._rounds and oid not in self._rescued:
            self._rounds[node].objects[oid] = True  # a result that arrived shortly before the word
        if node in self._leavers or node not in self._members:
            self._rescue(oid, location)

    def has(self, oid: ObjectID) -> bool:
        """Whether a shared object that lies elsewhere was copied here, to stay."""
        return self._rescued.get(oid, False)

    def freed(self, oid: ObjectID) -> None:
        """A shared object is no more."""
        if self._rescued.pop(oid, None) is not None:
            self._copies.drop(oid)
            self._settled(oid)

    def copied(self, oid: ObjectID, error: str) -> None:
        """A copy this node asked for is here, or `error` says why it never will be."""
        if error:
            del self._rescued[oid]
            self._copies.drop(oid)
        else:
            self._rescued[oid] = True
        self._settled(oid, int(not error), error)

    def _settled(self, oid: ObjectID, moved: int = 0, error: str = "") -> None:
        for node, one in list(self._rounds.items()):
            if one.objects.pop(oid, False):
                self._count(one, moved, int(bool(error)), error)
                self._finish(node, one)

    @staticmethod
    def _count(one: Round, moved: int, lost: int, why: str) -> None:
        one.moved += moved
        one.lost += lost
        one.why = one.why or why

    def _finish(self, node: NodeID, one: Round) -> None:
        if not one.clients and not one.objects and self._rounds.pop(node, None) is not None:
            self._effects.append(Send(node_peer(node), Evacuated(node, one.moved, one.lost, one.why)))

    def evacuated(self, peer: PeerID, word: Evacuated) -> None:
        """A client has done what it could."""
        one = self._rounds.get(word.node)
        if one is not None and one.clients.pop(peer, False):
            self._count(one, word.moved, word.lost, word.why)
            self._finish(word.node, one)

    def client_gone(self, peer: PeerID) -> None:
        """Nobody waits for the dead."""
        for node, one in list(self._rounds.items()):
            if one.clients.pop(peer, False):
                self._finish(node, one)

    # Between nodes.

    def member_evacuated(self, node: NodeID, word: Evacuated) -> None:
        """A member has done what it could, as we leave."""
        if self._asked is not None and self._asked.pop(node, False):
            told = self._farewell
            told.moved += word.moved
            told.lost += word.lost
            if word.lost:
                told.notes.append(f"{word.lost} object(s) could not be moved to node {node.hex()}: {word.why}")

    def node_gone(self, node: NodeID) -> None:
        """A member is gone, in whatever role."""
        self._leavers.pop(node, None)
        self._rounds.pop(node, None)
        if self._asked is not None:
            self._asked.pop(node, None)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert all(node in self._leavers for node in self._rounds)
        for one in self._rounds.values():
            assert one.clients or one.objects, "a round that is over was not told"
            assert all(self._rescued.get(oid) is False for oid in one.objects)


class Rescue:
    """One client's part: own results that lie on a node that leaves are copied to this host, and stay while needed.

    Args:
        node: PeerID of this host's node, now.
        references: the entries of this process.
        hears: whether a node talks to us over a shortcut.
    """

    def __init__(
        self,
        effects: list[Effect],
        *,
        node: Callable[[], PeerID],
        references: Any,
        hears: Callable[[NodeID], bool],
    ) -> None:
        self._effects = effects
        self._node = node
        self._references = references
        self._hears = hears
        self._said: dict[NodeID, bool] = {}  # {node that leaves, as one of two said: whether that was itself}

    def leaving(self, peer: PeerID, node: NodeID) -> None:
        """A member is about to leave: Evacuated follows when all is here, or lost.

        Over a shortcut results may still come after our own node's word, but none after the leaver's.
        """
        direct = peer == node_peer(node)
        if (direct or self._hears(node)) and self._said.pop(node, direct) == direct:
            self._said[node] = direct  # the first of two words
            return
        entries = self._references.flee(node)
        for entry in entries:
            entry.refs += 1  # so that each is answered, whoever drops it meanwhile
        self._references.when_local(entries, lambda: self._answer(node, entries))

    def node_gone(self, node: NodeID) -> None:
        """It has left, or died."""
        self._said.pop(node, None)

    def _answer(self, node: NodeID, entries: list[Any]) -> None:
        places = [self._references.location(entry) for entry in entries]
        failures = [failure for status, failure in places if status == ERROR]
        why = failures[0][1] if failures else ""
        if failures:
            self._effects.append(Warn(f"{len(failures)} object(s) lay on node {node.hex()} alone, which leaves: {why}"))
        self._effects.append(Send(self._node(), Evacuated(node, len(entries) - len(failures), len(failures), why)))
        for entry in entries:
            self._references.drop(entry)
