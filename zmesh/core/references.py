"""Who in this process holds which object, and when its bytes may go (docs/design.md, "Objects").

An own entry is freed when no ObjectRef, task, containing value, live view or reader is left; the node only hears of it
if it was promoted. A borrowed entry is counted by its home, the node of its owner: this process owes it as many
releases as it was given holds. Knows entries; never looks at tasks (core/tasks.py does). What becomes of an entry whose
bytes are lost is in core/restored.py.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from zmesh.core.bequests import Bequests
from zmesh.core.effects import Effect, Recycle, Resolved, Send
from zmesh.core.nested import Nested
from zmesh.core.records import Copy, Entry, Handle, Share, Spec, View
from zmesh.core.restored import Restored
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID, PeerID, node_peer, object_id, split_object_id
from zmesh.wire.lineage_messages import Seek
from zmesh.wire.messages import (
    ERROR,
    INLINE,
    PENDING,
    STORED,
    Fetch,
    FreeSegments,
    Hold,
    Promote,
    Release,
    Taken,
    Unpin,
)

Key = Any  # of a dependency a thief reads: an ObjectID its home counts, (victim, seq, index), or a Copy of this host's


class References(Restored, Nested, Bequests):
    """Counts of one client.

    Args:
        me: PeerID of this process; objects it makes carry it.
        node: PeerID of this host's node.
        effects: where messages and recycling are appended, in order.
        pulls: copies of what lies on other hosts.
        catalog: stored objects of this process.
        shared: called before the node is told to count the handles of an own actor.
        unheld: called when this process has no more to do with an object it borrowed, and, with True, when an own actor
            that the node does not count has no handle left.
    """

    def __init__(
        self,
        me: PeerID,
        node: PeerID,
        effects: list[Effect],
        pulls: Any,
        catalog: Any,
        *,
        shared: Callable[[Handle], None],
        unheld: Callable[[ObjectID, bool], None],
    ) -> None:
        Restored.__init__(self)
        Nested.__init__(self)
        Bequests.__init__(self)
        self._me = me
        self._node = node
        self._effects = effects
        self._pulls = pulls
        self._shared = shared
        self._unheld = unheld
        self._requests = 0
        self.catalog = catalog
        self.moved: dict[PeerID, bool] = {}  # {what this process is and was called: True}; only of a guest
        self._tickets: dict[int, Entry] = {}  # {request: entry that resolves when the node answers}
        self._lent: dict[tuple[int, int], Entry] = {}  # {(seq, index): own entry somebody else may name}
        self._borrowed: dict[ObjectID, Entry] = {}
        # {object: (entry, {caller: True})} borrowed for a running task, or for calls of those, who hold them meanwhile
        self._uncounted: dict[ObjectID, tuple[Entry, dict[PeerID, bool]]] = {}
        self._views: dict[Key, View] = {}
        self._away: dict[tuple[int, int], Entry] = {}  # {(seq, index): own entry whose bytes lie on another host}
        self._leavers: dict[NodeID, bool] = {}  # {member that is about to leave: True}
        self._arrived: list[ObjectID] = []  # inside the result being taken in
        # {request: (thief, seq, {home that has not answered yet: True})}
        self._claims: dict[int, tuple[PeerID, Any, dict[PeerID, bool]]] = {}
        # {(victim, seq): the references in each result or item not yet taken, in the order sent}
        self._given: dict[tuple[PeerID, int], deque[list[Entry]]] = {}

    @property
    def here(self) -> NodeID:
        """Return the node of this host."""
        return self._node[:NODE_ID_BYTES]

    # References and views in this process.

    def drop(self, entry: Entry) -> None:
        """One reference to the entry is gone; free it if it was the last."""
        entry.refs -= 1
        assert entry.refs >= 0, "an entry lost more references than it had"
        if not entry.refs:
            self.settle(entry)

    def pin(self, entry: Entry) -> None:
        """A view of the entry's segment was made in this process."""
        self.share(entry).pins += 1

    def unpin(self, entry: Entry) -> None:
        """The last array of such a view died."""
        assert entry.share is not None
        entry.share.pins -= 1
        assert entry.share.pins >= 0
        self.settle(entry)

    def share(self, entry: Entry) -> Share:
        """Return the entry's share, made if need be."""
        if entry.share is None:
            entry.share = Share()
        return entry.share

    def settle(self, entry: Entry) -> None:
        """Free the entry, and what its value contained, unless somebody still needs it."""
        todo = [entry]
        while todo:
            entry = todo.pop()
            share = entry.share
            if entry.refs or (entry.status == PENDING and (share is None or share.oid is None)):
                continue
            if share is not None and (share.pins or share.readers):
                continue
            self._free(entry, share)
            if share is not None:
                for inner in share.inside:
                    inner.refs -= 1
                    todo.append(inner)
                share.inside = []

    def _free(self, entry: Entry, share: Share | None) -> None:
        status, value = entry.status, entry.value
        entry.value = None
        if share is not None and share.copy is not None:
            self._pulls.drop(share.copy)
            share.copy = None
        if share is not None and share.oid is not None:
            self._borrowed.pop(share.oid, None)
            self._uncounted.pop(share.oid, None)
            self._on_word.pop(share.oid, None)
            if share.holds:
                self._effects.append(Send(_home(share.oid), Release([(share.oid, share.holds, share.clean)])))
                share.holds = 0
            self.let_go(share.oid)
            self._unheld(share.oid, False)
            return
        self._lent.pop((entry.seq, entry.index), None)
        self._away.pop((entry.seq, entry.index), None)
        if status == STORED:
            self.catalog.remove(entry)
        if share is not None and share.promoted:
            self.freed(entry)
            if share.holds:
                oid = object_id(self._me, entry.seq, entry.index)
                self._effects.append(Send(self._node, Release([(oid, share.holds, share.clean)])))
                share.holds = 0
        elif status == STORED:
            self.free_segment(value, clean=share is None or share.clean)
            self.freed(entry)
        elif type(entry) is Handle:
            self._unheld(object_id(self._me, entry.seq, entry.index), True)

    def free_segment(self, location: Any, *, clean: bool = True) -> None:
        """Nobody reads what lies at (segment, nbytes, producer): let its producer write there again."""
        segment, _, producer = self.place(location)
        if producer == self._me and clean:
            self._effects.append(Recycle([location[0]]))
        else:
            self._effects.append(Send(_home(producer), FreeSegments([(producer, segment, clean)])))

    # What others hold of ours.

    def listed(self) -> list[Any]:
        """Return what Objects tells of what this process owns."""
        rows: list[Any] = self.catalog.rows(self._lent.values(), self.oid, self.told)
        return rows

    def lend(self, entry: Entry) -> Key:
        """Return the key under which a thief names this dependency in Done.kept."""
        if entry.share is not None and entry.share.oid is not None:
            return entry.share.oid
        self._lent[entry.seq, entry.index] = entry
        return (entry.seq, entry.index)

    def kept(self, peer: PeerID, keys: list[Any], needed: list[Entry]) -> None:
        """A thief's Done listed these: it goes on holding them. Called before its tasks let go of them.

        Args:
            needed: what its tasks need: it holds what the thief found inside, maybe at another home.
        """
        holders: list[Any] = []
        found: list[Any] = []
        for key in keys:
            if isinstance(key, bytes):
                (found if needed and not self._counts_us(key) else holders).append((key, peer))
            else:
                entry = self._lent.get(tuple(key))
                if entry is not None:
                    self.share(entry).readers[peer] = True
        self._hold(0, holders)
        if found:
            self._hold_until_counted(needed, found)

    def _hold(self, request: int, holders: list[Any]) -> dict[PeerID, bool]:
        """Have further holders counted, each at the object's home; returns {home: True}."""
        by_home: dict[PeerID, list[Any]] = {}
        for holder in holders:
            by_home.setdefault(_home(holder[0]), []).append(holder)
        for home, theirs in by_home.items():
            self._effects.append(Send(home, Hold(request, theirs)))
        return dict.fromkeys(by_home, True)

    def unpinned(self, peer: PeerID, keys: list[Any]) -> None:
        """A thief's views of own entries ended."""
        for key in keys:
            entry = self._lent.get(tuple(key))
            if entry is not None and entry.share is not None and entry.share.readers.pop(peer, False):
                self.settle(entry)

    def reader_died(self, peer: PeerID) -> None:
        """A worker is gone: what it read is never written again, as a child of its own may still map it."""
        for entry in list(self._lent.values()):
            if entry.share is not None and entry.share.readers.pop(peer, False):
                entry.share.clean = False
                self.settle(entry)

    # Promotion: the node keeps what leaves this process inside a value.

    def promote(self, entries: list[Entry]) -> Entry | None:
        """Hand these to the node, if it does not know them; None if there is nothing to wait for.

        Returns an entry that resolves with the node's answer: what carries the references may leave after it.
        """
        objects = []
        news = []
        for entry in entries:
            share = self.share(entry)
            if share.promoted:
                continue
            news.append(entry)
            share.promoted = True
            share.holds = 1
            self._lent[entry.seq, entry.index] = entry
            if type(entry) is Handle:
                self._shared(entry)
            inside = [self.oid(inner) for inner in share.inside]
            objects.append((self.oid(entry), entry.status, self.told(entry), inside))
        if not objects:
            return self._on_its_way(entries)
        ticket = self._ticket()
        self._promoting[ticket.seq] = news
        self._effects.append(Send(self._node, Promote(ticket.seq, objects)))
        self._hold_for_home([oid for promoted in objects for oid in promoted[3]])
        self.wake()
        return ticket

    def give(self, victim: PeerID, seq: int, entries: list[Entry]) -> None:
        """A result that contains these leaves for the victim: hold them until it has them counted for itself."""
        for entry in entries:
            entry.refs += 1
        self._given.setdefault((victim, seq), deque()).append(list(entries))

    def taken(self, victim: PeerID, seq: int) -> None:
        """The victim holds the references of the oldest result or item of that task itself."""
        groups = self._given.get((victim, seq))
        if groups:
            for entry in groups.popleft():
                self.drop(entry)
            if not groups:
                del self._given[victim, seq]

    def _ticket(self) -> Entry:
        self._requests += 1
        ticket = self._tickets[self._requests] = Entry(self._requests)
        return ticket

    def ask(self) -> Entry:
        """Return a ticket for a request to the node that the caller sends; its seq is the request."""
        return self._ticket()

    def answered(self, request: int, status: int, value: Any) -> None:
        """The node answered a request; an unknown one is ignored: its asker gave up."""
        ticket = self._tickets.pop(request, None)
        if ticket is not None:
            self._set(ticket, status, value)

    def acknowledged(self, home: PeerID, request: int, error: str) -> None:
        """A node carried out a Promote or Hold, or says why not."""
        self._promoted(request, error)
        if request in self._claims:
            self._counted(request, home)
        elif request in self._opened:
            self._claimed(request, home)
        elif request in self._inherited:
            self._vouched(request, home)
        elif error:
            self.answered(request, ERROR, ("StoreFullError", error, {}))
        else:
            self.answered(request, INLINE, None)

    def _counted(self, request: int, home: PeerID) -> None:
        """A home answered a claim, or will never; after the last one the thief may drop its own."""
        thief, answer, homes = self._claims[request]
        homes.pop(home, None)
        if not homes:
            del self._claims[request]
            self._effects.append(Send(thief, answer))
            if thief in self._dying:
                self.bury(thief)

    def oid(self, entry: Entry) -> ObjectID:
        """Return the ObjectID of an own or borrowed entry."""
        if entry.share is not None and entry.share.oid is not None:
            return entry.share.oid
        return object_id(self._me, entry.seq, entry.index)

    def resolved(self, entry: Entry, maker: Spec | None = None) -> None:
        """An own entry got its value: tell the node if others wait there, free it if nobody wants it."""
        share = entry.share
        if entry.status == STORED and entry.refs:
            self.catalog.add(entry, maker)
        if share is not None and share.promoted:
            self.tell(entry)
        if entry.status == STORED and self._pulls.is_far(entry.value):
            self._away[entry.seq, entry.index] = entry
            if entry.value[2][:NODE_ID_BYTES] in self._leavers:
                self._missing([entry])
        if not entry.refs:
            self.settle(entry)

    # What we hold of others.

    def borrow(self, oid: ObjectID, *, counted: bool = False, caller: PeerID = b"") -> Entry:
        """Return the entry of a reference that arrived inside a value, with one reference more.

        Args:
            counted: the node was told to count this process as a holder.
            caller: whose call of an actor it arrived with; empty for a task.
        """
        owner, seq, index = split_object_id(oid)
        entry = self._lent.get((seq, index)) if owner == self._me else self._borrowed.get(oid)
        if entry is None:
            entry = self._borrowed.get(oid)
        if entry is None:
            entry = self._borrowed[oid] = Entry(seq, index, refs=0)
            entry.share = Share(oid)
            self.wake()
            if not counted:
                self._uncounted[oid] = (entry, {})
        if not counted and oid in self._uncounted:
            self._uncounted[oid][1][caller] = True
        entry.refs += 1
        if counted:
            assert entry.share is not None
            entry.share.holds += 1
            self._uncounted.pop(oid, None)
        return entry

    def inside(self, entry: Entry, oids: list[ObjectID]) -> None:
        """The value of `entry`, just arrived, contains these references, which its sender holds until `claim`."""
        self._arrived += oids
        self.share(entry).inside += [self.borrow(oid, counted=True) for oid in oids]

    def claim(self, thief: PeerID, seq: int) -> None:
        """Have the node count the references that arrived with a result, and then let the thief drop its own.

        A result nobody wanted has none that count, and goes the same way: the thief is answered in the order it sent.
        """
        self._requests += 1
        # Asked in any case: what the thief sent before this must be counted before it is answered.
        homes = self._hold(self._requests, [(oid, self._me) for oid in self._arrived])
        if not homes:
            self._effects.append(Send(self._node, Hold(self._requests, [])))
            homes[self._node] = True
        self._claims[self._requests] = (thief, Taken(seq), homes)
        self._arrived = []

    def claim_found(self, oid: ObjectID) -> tuple[Entry, Entry]:
        """Have the home count this process as a holder of what it heard of without a reference to it.

        Returns (the entry, with one reference more; a ticket that resolves with the home's answer).
        """
        entry = self.borrow(oid, counted=True)
        ticket = self._ticket()
        self._hold(ticket.seq, [(oid, self._me)])
        self._finding[ticket.seq] = oid
        return entry, ticket

    def unclaim(self, entry: Entry) -> None:
        """The home said that the object is gone: it does not count us."""
        assert entry.share is not None
        entry.share.holds -= 1
        self.drop(entry)

    def fetch(self, entry: Entry) -> None:
        """Ask its home for the value of a borrowed entry, once."""
        share = entry.share
        if share is not None and share.oid is not None and entry.status == PENDING and not share.sent:
            share.sent = True
            self._effects.append(Send(_home(share.oid), Fetch([share.oid])))

    def fetched(self, objects: list[Any]) -> list[Entry]:
        """The node told values; returns the entries that have one now."""
        found = []
        for oid, status, value in objects:
            entry = self._borrowed.get(oid)
            if entry is not None and entry.status == PENDING:
                self._set(entry, status, value)
                found.append(entry)
        return found

    def _set(self, entry: Entry, status: int, value: Any) -> None:
        entry.status = status
        entry.value = value
        if entry.waiter is not None:
            self._effects.append(Resolved([entry]))

    def lose_node(self, error: Any) -> list[Entry]:
        """The node is gone: nothing borrowed or asked will ever be answered. Returns the entries that failed."""
        pending = [entry for entry in (*self._tickets.values(), *self._borrowed.values()) if entry.status == PENDING]
        self._tickets.clear()
        self._promoting.clear()
        self._finding.clear()
        self._forget_claims()
        for entry in pending:
            self._set(entry, ERROR, error)
        return pending

    def node_gone(self, node: NodeID) -> None:
        """A member is gone: of the objects it was the home of there may be replicas."""
        self._leavers.pop(node, None)
        for entry in list(self._lent.values()):
            for reader in list(entry.share.readers if entry.share is not None else ()):
                if reader[:NODE_ID_BYTES] == node:
                    assert entry.share is not None
                    del entry.share.readers[reader]
                    entry.share.clean = False
                    self.settle(entry)
        sought = [oid for oid, one in self._borrowed.items() if oid[:NODE_ID_BYTES] == node and one.status == PENDING]
        if sought:
            self._effects.append(Send(self._node, Seek(sought)))
        for request in list(self._claims):
            self._counted(request, node_peer(node))
        self._forget_claims(node)

    def rehome(self, me: PeerID, node: PeerID, error: Any) -> list[Entry]:
        """This process is a client of another node now, under another name; returns the entries that failed.

        Whoever held or counted anything of ours is gone; own bytes come along, all others are lost.
        """
        self._me, self._node = me, node
        self.moved[me] = True
        self._hold_again()
        self._claims.clear()
        self._dying.clear()
        self._given.clear()
        self._forget_claims()
        self._arrived = []
        self._on_word.clear()
        for entry in list(self._lent.values()):
            share = entry.share
            if share is not None:
                share.promoted, share.holds = False, 0
                share.readers.clear()
                self.settle(entry)
        failed = [entry for entry in (*self._tickets.values(), *self._borrowed.values()) if entry.status == PENDING]
        self._tickets.clear()
        self._promoting.clear()
        self._finding.clear()
        for entry in failed:
            self._set(entry, ERROR, error)
        return failed

    def flee(self, node: NodeID) -> list[Entry]:
        """A member leaves soon: return own entries whose bytes lie there and that this host's node does not count.

        What becomes known to lie there afterwards is copied here at once.
        """
        self._leavers[node] = True
        found = [entry for entry in self._away.values() if entry.value[2][:NODE_ID_BYTES] == node]
        return [entry for entry in found if entry.share is None or not entry.share.promoted]

    def location(self, entry: Entry) -> tuple[int, Any]:
        """Return (STORED, place on this host) of a stored entry that was localized, or (ERROR, failure)."""
        copy = entry.share.copy if entry.share is not None else None
        return (entry.status, entry.value) if copy is None else (copy.status, copy.value)

    # A thief's views of its victims' objects.

    def view_opened(self, victim: PeerID, key: Any) -> Key:
        """A view of a dependency was made; returns the key to hand to `view_closed`."""
        if isinstance(key, Copy):
            self._pulls.use(key)
            return key
        full: Key = key if isinstance(key, bytes) else (victim, *key)
        view = self._views.get(full)
        if view is None:
            view = self._views[full] = View(victim)
        view.count += 1
        return full

    def view_closed(self, full: Key) -> None:
        """The last array of that view died: tell who counts it, if it was told that we keep it."""
        if isinstance(full, Copy):
            self._pulls.drop(full)
            return
        view = self._views[full]
        view.count -= 1
        if view.count:
            return
        del self._views[full]
        if not view.kept:
            return
        if isinstance(full, bytes):
            self._effects.append(Send(_home(full), Release([(full, view.kept, True)])))
        else:
            self._effects.append(Send(view.victim, Unpin([full[1:]])))

    @property
    def watched(self) -> list[PeerID]:
        """Victims whose link must stay open, as an Unpin to them is due."""
        return list(dict.fromkeys(view.victim for key, view in self._views.items() if not isinstance(key, bytes)))

    def victim_died(self, victim: PeerID) -> None:
        """Nobody will hear an Unpin any more, nor take a result; views stay valid as long as they live."""
        for key in [key for key, groups in self._given.items() if key[0] == victim for _ in groups]:
            self.taken(*key)
        for full, view in self._views.items():
            if view.victim == victim and not isinstance(full, bytes):
                view.kept = 0

    @property
    def idle(self) -> bool:
        """Whether this process could end without anybody missing an object."""
        return not self._lent and not self._tickets and not self._given and not self._opened

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        for oid, entry in self._borrowed.items():
            assert entry.share is not None
            assert entry.share.oid == oid
            assert entry.refs or entry.share.pins or entry.share.readers, "a borrowed entry that nobody holds"
        assert all(view.count > 0 for view in self._views.values())
        claimed = [thief for thief, _, _ in self._claims.values()]
        assert all(worker in claimed for worker in self._dying), "a dead worker that is never buried"
        assert all(homes for _, homes in self._opened.values())


def _home(of: ObjectID | PeerID) -> PeerID:
    """Return the node that counts an object, or that a process belongs to."""
    return node_peer(of[:NODE_ID_BYTES])
