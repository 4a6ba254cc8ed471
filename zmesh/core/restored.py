"""What becomes of an entry whose bytes are lost: made again, it has another place; the part of References for that.

Who makes it again is core/lineage.py's business, who holds it core/references.py's, where a copy is core/pulls.py's.
"""

from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.records import Copy, Entry, Share
from zmesh.wire.ids import ObjectID, PeerID, guest_segment, object_id
from zmesh.wire.lineage_messages import Replicate
from zmesh.wire.messages import ERROR, INLINE, PENDING, STORED, Resolve

Remake = Callable[[Entry, Any, str, Callable[[Any, float], None]], None]


class Restored:
    """Entries with new places; mixed into References, whose tables these are.

    Attributes:
        freed: told of stored results that this process needs no more.
        remake: (entry, place, why it cannot be had there, then): has it made again; None: nobody can.
    """

    _me: PeerID
    _node: PeerID
    _effects: list[Effect]
    _pulls: Any
    catalog: Any
    _lent: dict[tuple[int, int], Entry]
    _away: dict[tuple[int, int], Entry]
    share: Callable[[Entry], Share]
    oid: Callable[[Entry], ObjectID]
    moved: dict[PeerID, bool]
    drop: Callable[[Entry], None]
    resolved: Callable[..., None]
    free_segment: Callable[..., None]
    borrow: Callable[..., Entry]
    ask: Callable[[], Entry]
    _hold: Callable[[int, list[Any]], Any]
    _hold_for_home: Callable[[list[ObjectID]], None]
    _set: Callable[[Entry, int, Any], None]

    def __init__(self) -> None:
        self.freed: Callable[[Entry], None] = lambda entry: None
        self.remake: Remake | None = None

    # Bytes that are wanted here.

    def is_away(self, entry: Entry) -> bool:
        """Whether a stored entry lies on another host, and has no copy on this one."""
        if entry.status != STORED or not self._pulls.is_far(entry.value):
            return False
        return entry.share is None or entry.share.copy is None or entry.share.copy.status != STORED

    def _copy_of(self, entry: Entry) -> Copy:
        """Return the copy on this host of an entry that is away, asked for anew if it failed before."""
        share = self.share(entry)
        if share.copy is None or share.copy.status == ERROR:
            if share.copy is not None:
                self._pulls.drop(share.copy)
            share.copy = self._pulls.want(self.oid(entry), entry.value)
        return share.copy

    def _bring(self, entry: Entry, then: Callable[[], None]) -> None:
        """Have an entry's bytes copied here, made again if they are lost; call `then` when they are here, or never."""
        if not self.is_away(entry):
            then()
            return
        copy = self._copy_of(entry)
        if copy.status == PENDING:
            copy.waiters.append(lambda copy: self._brought(entry, copy, then))
        else:
            self._brought(entry, copy, then)

    def _brought(self, entry: Entry, copy: Copy, then: Callable[[], None]) -> None:
        if entry.share is None or entry.share.copy is not copy:
            self._bring(entry, then)  # it has another place since
        elif copy.status == ERROR and copy.value[0] == "ObjectLostError" and self.remake is not None:
            self.remake(entry, entry.value, copy.value[1], lambda failure, now: self._remade(entry, failure, then))
        else:
            then()

    def _remade(self, entry: Entry, failure: Any, then: Callable[[], None]) -> None:
        if failure is None:
            self._bring(entry, then)
            return
        if entry.share is not None and entry.share.copy is not None:
            entry.share.copy.value = failure  # it is what `location` tells
        then()

    def localize(self, entries: list[Entry]) -> Entry | None:
        """Have the bytes of stored entries copied to this host; None if there is nothing to wait for.

        Returns an entry that resolves when all copies are there or failed; `location` says which.
        """
        away = [entry for entry in entries if self.is_away(entry)]
        if not away:
            return None
        ticket = Entry(0)
        left = len(away)

        def one() -> None:
            nonlocal left
            left -= 1
            if not left:
                self._set(ticket, INLINE, None)

        for entry in away:
            self._bring(entry, one)
        return ticket if left else None

    def when_local(self, entries: list[Entry], then: Callable[[], None]) -> None:
        """Have the bytes of stored entries copied here, nothing made again; call `then` when all are here or failed.

        At once if there is nothing to wait for. The caller holds the entries.
        """
        missing = self._missing(entries)
        if missing:
            self._after(missing, then)
        else:
            then()

    def _missing(self, entries: list[Entry]) -> list[Copy]:
        """Ask for copies of what lies on other hosts; returns those that are under way."""
        missing = []
        for entry in entries:
            if self.is_away(entry):
                copy = self._copy_of(entry)
                if copy.status == PENDING:
                    missing.append(copy)
        return missing

    @staticmethod
    def _after(missing: list[Copy], then: Callable[[], None]) -> None:
        """Call `then` when all these copies are there or failed."""
        left = len(missing)

        def arrived(copy: Copy) -> None:
            nonlocal left
            del copy
            left -= 1
            if not left:
                then()

        for copy in missing:
            copy.waiters.append(arrived)

    # Other places.

    def replicate(self, entry: Entry, copies: int) -> Entry:
        """Have so many hosts in all keep a promoted entry; the ticket resolves with (how many do, why not more)."""
        ticket = self.ask()
        self._effects.append(Send(self._node, Replicate(ticket.seq, self.oid(entry), copies)))
        return ticket

    def own(self, seq: int, index: int) -> Entry | None:
        """Return an own entry that others may name, if this process still needs it."""
        return self._lent.get((seq, index))

    def own_id(self, seq: int, index: int) -> ObjectID:
        """Return the ID of a result of this process's."""
        return object_id(self._me, seq, index)

    def place(self, location: Any) -> Any:
        """Return where bytes lie as others know it now: a guest takes its own along to another node."""
        segment, nbytes, producer = location
        return (guest_segment(segment, self._me), nbytes, self._me) if producer in self.moved else location

    def told(self, entry: Entry) -> Any:
        """Return the value of an entry as others are told it."""
        return self.place(entry.value) if self.moved and entry.status == STORED else entry.value

    def tell(self, entry: Entry) -> None:
        """Tell the home what a promoted entry is now."""
        inside = [self.oid(inner) for inner in entry.share.inside] if entry.share is not None else []
        self._effects.append(Send(self._node, Resolve([(self.oid(entry), entry.status, self.told(entry), inside)])))
        self._hold_for_home(inside)

    def replace(self, entry: Entry, made: Entry) -> None:
        """Give an own entry whose bytes are lost the value of one that was made again, which then has none."""
        status, value, share = entry.status, entry.value, entry.share
        maker = self.catalog.maker(made)
        inside = self._take_from(made)
        self._away.pop((entry.seq, entry.index), None)
        self.catalog.remove(entry)
        if status == STORED and (share is None or not share.promoted):
            # If it was not lost after all, somebody may still read it there.
            self.free_segment(value, clean=False)
        before = share.inside if share is not None else []
        if share is not None or inside:
            self.share(entry).inside = inside
        self.moved_to(entry, *_taken(made))
        self.resolved(entry, maker)
        for inner in before:
            self.drop(inner)

    def hand_over(self, oid: ObjectID, made: Entry) -> None:
        """Give an object that only others need, through its home, the value of one that was made again."""
        inside = self._take_from(made)
        status, value = _taken(made)
        within = [self.oid(one) for one in inside]
        self._effects.append(Send(self._node, Resolve([(oid, status, value, within)])))
        self._hold_for_home(within)
        for inner in inside:
            self.drop(inner)

    def _take_from(self, made: Entry) -> list[Entry]:
        """Forget where the value of an entry lies, as another has it now; returns what its value contains."""
        self._away.pop((made.seq, made.index), None)
        self.catalog.remove(made)
        self._without_copy(made)
        inside = made.share.inside if made.share is not None else []
        if made.share is not None:
            made.share.inside = []
        return inside

    def _without_copy(self, entry: Entry) -> Copy | None:
        copy = entry.share.copy if entry.share is not None else None
        if copy is not None and entry.share is not None:
            entry.share.copy = None
            self._pulls.drop(copy)
        return copy

    def moved_to(self, entry: Entry, status: int, value: Any) -> None:
        """An entry has another place than before, or a value or error instead."""
        copy = self._without_copy(entry)
        entry.status, entry.value = status, value
        if copy is not None:
            waiters, copy.waiters = copy.waiters, []
            for waiter in waiters:  # nobody will say any more that it came from the old place
                waiter(copy)

    def reclaim(self, oid: ObjectID) -> Entry:
        """Hold an own result again that only others needed: as a borrowed entry, with one reference."""
        self._hold(0, [(oid, self._me)])
        return self.borrow(oid, counted=True)


def _taken(made: Entry) -> tuple[int, Any]:
    """Take the value out of an entry, so that it frees nothing when it goes."""
    status, value = made.status, made.value
    made.status, made.value = INLINE, None
    return status, value
