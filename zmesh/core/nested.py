"""References inside values: who holds them while the value, and what was taken out of it, go different ways.

A value that is counted holds what it contains. If both have one home, that is the home's own business; if not, the
home of the value is told to be counted by the other (`_hold_for_home`). Who takes a reference out of a value that it
only borrowed is counted for it before it lets go of the value. So is whoever kept one that came with a task, before
the caller lets go of the arguments. The part of References for that.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.records import Entry, View
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID, PeerID, node_peer, split_object_id
from zmesh.wire.messages import ERROR, PENDING, Buried, Hold


class Nested:
    """Claims of what was found in borrowed values; mixed into References, whose tables these are.

    Attributes:
        wake: told when something is held that others count.
        home_gone: told of members that are gone.
        let_go: told of each borrowed object that this process holds no more.
    """

    _me: PeerID
    _node: PeerID
    _effects: list[Effect]
    _requests: int
    _lent: dict[tuple[int, int], Entry]
    _borrowed: dict[ObjectID, Entry]
    _views: dict[Any, View]
    _tickets: dict[int, Entry]
    borrow: Callable[..., Entry]
    answered: Callable[[int, int, Any], None]
    drop: Callable[[Entry], None]
    oid: Callable[[Entry], ObjectID]
    own: Callable[[int, int], Entry | None]
    _hold: Callable[[int, list[Any]], dict[PeerID, bool]]
    _set: Callable[[Entry, int, Any], None]
    promote: Callable[[list[Entry]], Entry | None]
    _claims: dict[int, tuple[PeerID, Any, dict[PeerID, bool]]]
    _given: dict[tuple[PeerID, int], deque[list[Entry]]]
    _forget_vouches: Callable[[NodeID | None], None]

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None
        self.home_gone: Callable[[NodeID], None] = lambda node: None
        self.let_go: Callable[[ObjectID], None] = lambda oid: None
        self._promoting: dict[int, list[Entry]] = {}  # {request: entries that the node has not said it counts}
        self._finding: dict[int, ObjectID] = {}  # {request: object} that this process wants to be counted for
        # {request: (values that hold what is being claimed, homes that have not answered yet)}
        self._opened: dict[int, tuple[list[Entry], dict[PeerID, bool]]] = {}
        self._dying: dict[PeerID, bool] = {}  # {dead worker: True} that gave us what not all homes count us for yet

    def take_back(self, victim: PeerID, seq: int) -> None:
        """What was given last of that task is not sent after all."""
        groups = self._given.get((victim, seq))
        if groups:  # else the victim died
            for entry in groups.pop():
                self.drop(entry)
            if not groups:
                del self._given[victim, seq]

    def count_for(self, peer: PeerID, entry: Entry, answer: Any) -> None:
        """Have the home of an own entry keep it and count `peer` as a holder, who then gets the answer."""
        self.promote([entry])
        self._requests += 1
        self._claims[self._requests] = (peer, answer, self._hold(self._requests, [(self.oid(entry), peer)]))

    def borrow_inside(self, oid: ObjectID) -> tuple[Entry, bool]:
        """Return the entry of a reference found inside a borrowed value, with one reference more.

        Returns also whether `claim_inside` must have it counted: nothing here held it before.
        """
        # One of our own that only others needed meanwhile is borrowed like any other.
        new = self._borrowed.get(oid) is None and self._own(oid) is None
        return self.borrow(oid, counted=new), new

    def claim_inside(self, value: Entry, found: list[Entry]) -> None:
        """Have the homes count what was found inside a borrowed value, which is held until they do."""
        self._hold_until_counted([value], [(self.oid(entry), self._me) for entry in found])

    def _hold_until_counted(self, values: list[Entry], holders: list[Any]) -> None:
        """Have further holders counted of what these values contain, and hold them until all are."""
        for value in values:
            value.refs += 1
        self._requests += 1
        self._opened[self._requests] = (values, self._hold(self._requests, holders))

    def _counts_us(self, oid: ObjectID) -> bool:
        """Whether a home counts this process, or will before it hears anything that we say now."""
        entry = self._borrowed.get(oid) or self._own(oid)
        return entry is not None and entry.share is not None and entry.share.holds > 0

    def _claimed(self, request: int, home: PeerID) -> None:
        """A home answered, or will never. If it says that something is gone, whoever wants that will hear it."""
        values, homes = self._opened[request]
        homes.pop(home, None)
        if not homes:
            del self._opened[request]
            for value in values:
                self.drop(value)

    def _hold_again(self) -> None:
        """Have homes count what this process borrowed under its name of now: they will hear of the end of the other."""
        shares = [(oid, entry.share) for oid, entry in self._borrowed.items() if entry.share is not None]
        held = [(oid, share) for oid, share in shares if share.holds]
        for _, share in held:
            share.holds = 1
        self._hold(0, [(oid, self._me) for oid, _ in held])

    def bury(self, worker: PeerID) -> None:
        """All that a dead worker sent is taken in: what it held may go, once we are counted for what it gave us."""
        if any(thief == worker for thief, _, _ in self._claims.values()):
            self._dying[worker] = True
            return
        self._dying.pop(worker, None)
        self._effects.append(Send(node_peer(worker[:NODE_ID_BYTES]), Buried(worker)))

    def _forget_claims(self, node: NodeID | None = None) -> None:
        """That node, or any, will not answer."""
        if node is not None:
            self.home_gone(node)
        self._forget_vouches(node)
        for request, (_, homes) in list(self._opened.items()):
            for home in [home for home in homes if node is None or home[:NODE_ID_BYTES] == node]:
                self._claimed(request, home)
        for request, oid in list(self._finding.items()) if node is not None else ():
            if oid[:NODE_ID_BYTES] == node:
                del self._finding[request]
                text = f"object {oid.hex()} was counted by node {node.hex()}, which is gone"
                self.answered(request, ERROR, ("OwnerDiedError", text, {}))

    def _hold_for_home(self, inside: list[ObjectID]) -> None:
        """A value of ours is counted by our node now: what it contains and others count must be held by that node.

        Said by us and not by the node, as our own Release of these must not overtake it.
        """
        here = self._node[:NODE_ID_BYTES]
        by_home: dict[NodeID, list[Any]] = {}
        for oid in inside:
            if oid[:NODE_ID_BYTES] != here:
                by_home.setdefault(oid[:NODE_ID_BYTES], []).append((oid, self._node))
        for home, holders in by_home.items():
            self._effects.append(Send(node_peer(home), Hold(0, holders)))

    # Promotions under way.

    def _on_its_way(self, entries: list[Entry]) -> Entry | None:
        """Return the ticket of the last promotion under way of any of these: another thread began it."""
        for request in reversed(self._promoting):
            if any(one is entry for one in self._promoting[request] for entry in entries):
                return self._tickets[request]
        return None

    def _promoted(self, request: int, error: str) -> None:
        """The node counts these, or none of them."""
        self._finding.pop(request, None)
        for entry in self._promoting.pop(request, ()):
            if error and entry.share is not None:
                entry.share.promoted, entry.share.holds = False, 0

    # What core/holdings.py and sightings.py tell, and hear.

    def borrows(self, oid: ObjectID) -> bool:
        """Whether this process has a reference to another's object."""
        return oid in self._borrowed

    def held(self) -> Iterator[tuple[ObjectID, int]]:
        """Yield (object, number of holds) of all that homes should count for this process; one may come twice."""
        for entry in self._lent.values():
            if entry.share is not None and entry.share.holds:
                yield self.oid(entry), entry.share.holds
        for oid, entry in self._borrowed.items():
            if entry.share is not None and entry.share.holds:
                yield oid, entry.share.holds
        for key, view in self._views.items():
            if view.kept and isinstance(key, bytes):
                yield key, view.kept

    def uncounted(self, oids: list[ObjectID]) -> list[Entry]:
        """Homes say that these are gone, though we hold them; returns the entries that failed."""
        failed = []
        for oid in oids:
            view = self._views.get(oid)
            if view is not None:
                view.kept = 0
            entry = self._borrowed.get(oid) or self._own(oid)
            if entry is None or entry.share is None:
                continue
            entry.share.holds = 0
            if entry.share.oid is None:
                entry.share.promoted = False  # it never was, and is told anew before it leaves
            elif entry.status == PENDING:
                text = f"object {oid.hex()} is gone: its home did not count this process while they had lost each other"
                self._set(entry, ERROR, ("ObjectLostError", text, {}))
                failed.append(entry)
        return failed

    def _own(self, oid: ObjectID) -> Entry | None:
        owner, seq, index = split_object_id(oid)
        return self.own(seq, index) if owner == self._me else None
