"""Copies on this host of objects whose bytes lie on another: fetched once, shared by all who ask, kept a while after.

A copy has users: the clients that asked for it and did not let go. One without users stays for the next who asks, until
it is old or its room is needed. An ObjectID is never used again, so a copy is never stale. How bytes travel is
core/transfer.py's and runtime/bulk.py's business.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh.core.effects import DropCopies, Effect, FetchCopy, Send
from zmesh.core.timers import Timers
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID, PeerID
from zmesh.wire.messages import ERROR, PENDING, STORED, Pulled

FULL_TRIES = 5  # to find room for a copy that somebody wants; each waits a second or so
FULL_PAUSE_S = 0.2
UNUSED_S = 30.0  # a copy nobody uses is kept so long: the next task of the same map will ask for it


@dataclass(slots=True)
class HostCopy:
    """One object."""

    segment: int
    nbytes: int
    producer: PeerID
    status: int = PENDING
    value: Any = None
    users: dict[PeerID, int] = field(default_factory=dict)  # {client: how often it asked}; never 0
    waiting: dict[PeerID, bool] = field(default_factory=dict)
    clean: bool = True  # nobody who read it died
    unused_s: float = 0.0  # since when
    tries: int = 1


class Copies:
    """The copies of one node. Effects: FetchCopy, DropCopies, and Pulled for those who asked.

    Args:
        node: PeerID of the node itself, which may be a user like any client.
        reachable: whether a node is a member.
        copied: called with what this node keeps for itself: (object, why it will never be here or "").
    """

    def __init__(
        self,
        node: PeerID,
        effects: list[Effect],
        timers: Timers,
        *,
        reachable: Callable[[NodeID], bool],
        copied: Callable[[ObjectID, str], None],
    ) -> None:
        self._node = node
        self._copied = copied
        self._effects = effects
        self._timers = timers
        self._reachable = reachable
        self._copies: dict[ObjectID, HostCopy] = {}
        self._timer = 0

    def __len__(self) -> int:
        return len(self._copies)

    def pull(self, peer: PeerID, objects: list[Any], now: float) -> None:
        """A client wants to read these here. Each is answered, now or when it is here or lost."""
        for oid, segment, nbytes, producer in objects:
            self._use(peer, oid, segment, nbytes, producer)
        self._watch(now)

    def keep(self, oid: ObjectID, segment: int, nbytes: int, producer: PeerID) -> None:
        """Have a copy for this node itself, until `drop`."""
        self._use(self._node, oid, segment, nbytes, producer)

    def _use(self, peer: PeerID, oid: ObjectID, segment: int, nbytes: int, producer: PeerID) -> None:
        copy = self._copies.get(oid)
        if copy is None or copy.status == ERROR:
            # One that failed may lie elsewhere now. Its users have yet to let go of it.
            users = copy.users if copy is not None else {}
            copy = self._copies[oid] = HostCopy(segment, nbytes, producer, users=users)
            # Where it was made, or, if that node has left, where it is counted.
            if self._reachable(producer[:NODE_ID_BYTES]) or self._reachable(oid[:NODE_ID_BYTES]):
                self._effects.append(FetchCopy(oid, segment, nbytes, producer))
            else:
                self._lost(copy, oid, "the node it lies on is gone")
        copy.users[peer] = copy.users.get(peer, 0) + 1
        if copy.status == PENDING:
            copy.waiting[peer] = True
        else:
            self._answer(peer, oid, copy)

    def _answer(self, peer: PeerID, oid: ObjectID, copy: HostCopy) -> None:
        if peer == self._node:
            self._copied(oid, copy.value[1] if copy.status == ERROR else "")
        else:
            self._effects.append(Send(peer, Pulled([(oid, copy.status, copy.value)])))

    def _lost(self, copy: HostCopy, oid: ObjectID, why: str, name: str = "ObjectLostError") -> None:
        copy.status = ERROR
        copy.value = (name, f"object {oid.hex()} could not be copied here: {why}", {})

    def fetched(self, oid: ObjectID, location: Any, error: str, now: float, *, full: bool = False) -> None:
        """The bytes are here, at (segment, nbytes, producer), or will never be: then `error` says why.

        Args:
            full: they are where they were, and find no room here, or none there to come back from disk.
        """
        copy = self._copies.get(oid)
        if copy is None or copy.status != PENDING:
            if location is not None and copy is None:
                self._effects.append(DropCopies([oid], clean=True))
            return
        if full and copy.tries < FULL_TRIES and any(peer != self._node for peer in copy.users):
            copy.tries += 1
            self._timers.set(now + FULL_PAUSE_S, lambda then: self._fetch_again(oid, copy))
            return
        if error:
            self._lost(copy, oid, error, "StoreFullError" if full else "ObjectLostError")
        else:
            copy.status, copy.value = STORED, tuple(location)
        waiting, copy.waiting = copy.waiting, {}
        for peer in waiting:
            self._answer(peer, oid, copy)
        if not copy.users:
            copy.unused_s = now
            self._watch(now)

    def _fetch_again(self, oid: ObjectID, copy: HostCopy) -> None:
        if self._copies.get(oid) is copy:
            self._effects.append(FetchCopy(oid, copy.segment, copy.nbytes, copy.producer))

    def let_go(self, peer: PeerID, objects: list[Any], now: float) -> None:
        """A client reads these no more."""
        for oid, clean in objects:
            copy = self._copies.get(oid)
            if copy is not None and peer in copy.users:
                copy.clean = copy.clean and clean
                copy.users[peer] -= 1
                if not copy.users[peer]:
                    self._without(copy, peer, now)

    def _without(self, copy: HostCopy, peer: PeerID, now: float) -> None:
        del copy.users[peer]
        copy.waiting.pop(peer, None)
        if not copy.users:
            copy.unused_s = now
            self._watch(now)

    def place_of(self, oid: ObjectID) -> Any:
        """Return where a copy lies here, as (segment, nbytes, producer); None if there is none."""
        copy = self._copies.get(oid)
        return copy.value if copy is not None and copy.status == STORED else None

    def drop(self, oid: ObjectID) -> None:
        """This node needs its copy no more; nobody will ask for one without users, as the object is gone or lost."""
        copy = self._copies[oid]
        del copy.users[self._node]
        copy.waiting.pop(self._node, None)
        if not copy.users:
            self._drop([oid])

    def client_gone(self, peer: PeerID, now: float) -> None:
        """A client is dead; a child of it may still read what it read."""
        for copy in self._copies.values():
            if peer in copy.users:
                copy.clean = False
                self._without(copy, peer, now)

    def node_gone(self, node: NodeID, now: float) -> None:
        """A member is gone: transfers from it are runtime's to end; each tells `fetched`."""
        del node
        self._watch(now)

    def here(self) -> list[ObjectID]:
        """Return the objects of which there is a copy."""
        return [oid for oid, copy in self._copies.items() if copy.status == STORED]

    def make_room(self) -> None:
        """The store is full: drop every copy nobody uses."""
        self._drop([oid for oid, copy in self._copies.items() if not copy.users and copy.status != PENDING])

    def _watch(self, now: float) -> None:
        since = [copy.unused_s for copy in self._copies.values() if not copy.users and copy.status != PENDING]
        if since and not self._timer:
            self._timer = self._timers.set(max(now, min(since) + UNUSED_S), self._look)

    def _look(self, now: float) -> None:
        self._timer = 0
        old = [oid for oid, copy in self._copies.items() if not copy.users and copy.unused_s + UNUSED_S <= now + 1e-6]
        self._drop([oid for oid in old if self._copies[oid].status != PENDING])
        self._watch(now)

    def _drop(self, oids: list[ObjectID]) -> None:
        for clean in (True, False):
            dropped = [oid for oid in oids if self._copies[oid].clean == clean and self._copies[oid].status == STORED]
            if dropped:
                self._effects.append(DropCopies(dropped, clean))
        for oid in oids:
            del self._copies[oid]

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        for copy in self._copies.values():
            assert all(count > 0 for count in copy.users.values())
            assert copy.status == PENDING or not copy.waiting
            assert all(peer in copy.users for peer in copy.waiting)
