"""The table of members: rows, loads, who is next on the ring, and fingerprints to compare tables by.

A table is a base it may share with others, which nobody changes, and its own differences: thousands of tables in one
process (tests/sim) then cost what they differ by. Rows win over each other by `merge`, a join of a semilattice: every
order of arrival ends in the same table.

Source: merge rule of SWIM 4.2, with the subject's own LEFT above all.
"""

import heapq
import random
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from zmesh.wire.gossip import BUCKETS, DEAD, FINGERPRINT_BYTES, LEFT, Row
from zmesh.wire.ids import NodeID

_WORD = 2**64 - 1
_RANK = (0, 2, 3, 1, 4)  # of ALIVE, SUSPECT, DEAD, LEAVING, LEFT at one incarnation
_DRAWS = 16  # before a scan: half of a table may be dead


def _canonical(value: Any) -> str:
    if isinstance(value, dict):
        return repr(sorted((_canonical(key), _canonical(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return repr([_canonical(item) for item in value])
    return repr(value)


def merge(one: Row, other: Row) -> Row:
    """Return which of two rows of a member counts: LEFT, else the higher incarnation, else the worse state.

    Rows that differ in nothing but their contents are a fault of some node; the same one must win everywhere.
    """
    left, right = (one.state == LEFT, one.inc, _RANK[one.state]), (other.state == LEFT, other.inc, _RANK[other.state])
    if left == right and one != other:
        return one if _canonical(one.packed()) > _canonical(other.packed()) else other
    return one if left >= right else other


def bucket_of(node: NodeID) -> int:
    """Return the bucket a member is compared in."""
    return (int.from_bytes(node, "big") * 0x9E3779B97F4A7C15 & _WORD) >> 56


def fingerprint(row: Row) -> int:
    """Return 64 bits that differ if two tables hold different rows of a member; the gone count as unknown."""
    if not row.alive:
        return 0
    word = int.from_bytes(row.node, "big") ^ (row.inc * 0xC2B2AE3D27D4EB4F + row.state * 0x165667B19E3779F9 + 1) & _WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
    return word ^ word >> 31


@dataclass(slots=True)
class Member:
    """One member as this node knows it; to be read only."""

    row: Row
    load: dict[str, Any] = field(default_factory=dict)  # last heard; {} if never
    load_seq: int = -1  # of the message that told it
    load_s: float = 0.0  # when that came

    @property
    def alive(self) -> bool:
        """Whether it takes part: ALIVE, SUSPECT or LEAVING."""
        return self.row.alive


class Base:
    """Rows that many tables begin with. Never changed."""

    def __init__(self, rows: list[Row]) -> None:
        self.members = {row.node: Member(row) for row in rows}
        self.order = sorted(self.members)
        self.addresses = {row.address: row.node for row in rows}
        self.buckets = [0] * BUCKETS
        for row in rows:
            self.buckets[bucket_of(row.node)] ^= fingerprint(row)
        self.living = sum(row.alive for row in rows)


_EMPTY = Base([])


class Members(Mapping[NodeID, Member]):
    """Everybody but ourselves, the dead and those who left included until they are forgotten."""

    def __init__(self, me: Row, base: Base | None = None) -> None:
        self._base = base or _EMPTY
        self.me = me
        self._own: dict[NodeID, Member] = {}  # {node: what counts instead of the base's}
        self._hidden: dict[NodeID, bool] = {}  # {node: True} of the base, but forgotten, or ourselves
        self._added: list[NodeID] = []  # sorted; those of _own that the base lacks
        self._addresses: dict[tuple[str, int], NodeID] = {}  # {address: who was last seen there}, own ones
        self.buckets = list(self._base.buckets)
        self.living = self._base.living
        self.dead: dict[NodeID, float] = {}  # {node: since when}; DEAD, oldest first
        self.left: dict[NodeID, float] = {}  # {node: since when}; LEFT, oldest first
        known = self._base.members.get(me.node)
        if known is not None:
            self._hidden[me.node] = True
            self.living -= known.alive
            self._mark(known.row)
        self._mark(me)

    # Reading.

    def get(self, node: NodeID, default: Any = None) -> Any:
        """Return the Member, or `default`."""
        own = self._own.get(node)
        if own is not None:
            return own
        return default if node in self._hidden else self._base.members.get(node, default)

    def __getitem__(self, node: NodeID) -> Member:
        member: Member | None = self.get(node)
        if member is None:
            raise KeyError(node)
        return member

    def __iter__(self) -> Iterator[NodeID]:
        for node in self._base.order:
            if node not in self._hidden:
                yield node
        yield from self._added

    def __len__(self) -> int:
        return len(self._base.order) - len(self._hidden) + len(self._added)

    def at(self, address: tuple[str, int]) -> NodeID | None:
        """Return the living member at an address."""
        node = self._addresses.get(address) or self._base.addresses.get(address, b"")
        member = self.get(node)
        return node if member is not None and member.alive and member.row.address == address else None

    def replaced(self, row: Row) -> bool:
        """Whether somebody else was seen at that row's address after its member, or we are there."""
        return self.me.address == row.address or self._addresses.get(row.address, row.node) != row.node

    def pick(self, rng: random.Random, fits: Callable[[NodeID], bool]) -> NodeID | None:
        """Return a living member by chance, of those that fit."""
        split, total = len(self._base.order), len(self._base.order) + len(self._added)
        for _ in range(_DRAWS if total else 0):
            place = rng.randrange(total)
            node = self._base.order[place] if place < split else self._added[place - split]
            member = self.get(node)
            if member is not None and member.alive and fits(node):
                return node
        left = [node for node in self if self[node].alive and fits(node)]
        return rng.choice(left) if left else None

    def before(self, count: int) -> list[NodeID]:
        """Return the `count` living members that precede us on the ring of ids, nearest first."""
        found: list[NodeID] = []
        here = int.from_bytes(self.me.node, "big")
        walks = [self._backwards(order) for order in (self._base.order, self._added) if order]
        for node in heapq.merge(*walks, key=lambda node: (here - int.from_bytes(node, "big")) & _WORD):
            if len(found) == count:
                break
            member = self.get(node)
            if member is not None and member.alive:
                found.append(node)
        return found

    def _backwards(self, order: list[NodeID]) -> Iterator[NodeID]:
        start = bisect_left(order, self.me.node)
        return (order[place - len(order)] for place in range(start + len(order) - 1, start - 1, -1))

    # Writing.

    def _mark(self, row: Row) -> None:
        self.buckets[bucket_of(row.node)] ^= fingerprint(row)

    def set_me(self, row: Row) -> None:
        """Take our own new row."""
        self._mark(self.me)
        self.me = row
        self._mark(row)

    def put(self, row: Row, now: float) -> None:
        """Take a row in place of the one before; who wins was decided by the caller."""
        old = self.get(row.node)
        if old is None:
            if row.node in self._base.members:
                del self._hidden[row.node]
            else:
                insort(self._added, row.node)
            self._own[row.node] = Member(row)
        else:
            self._mark(old.row)
            self.living -= old.alive
            self._own[row.node] = Member(row, old.load, old.load_seq, old.load_s)
        self._mark(row)
        self.living += row.alive
        self.dead.pop(row.node, None)
        self.left.pop(row.node, None)
        if row.state == DEAD:
            self.dead[row.node] = now
        elif row.state == LEFT:
            self.left[row.node] = now
        else:
            self._addresses[row.address] = row.node

    def set_load(self, node: NodeID, load: dict[str, Any], seq: int, now: float) -> None:
        """Take the load of a member, told in its message `seq`."""
        own = self._own.get(node)
        if own is None:
            own = self._own[node] = Member(self[node].row)
            if node not in self._base.members:  # pragma: no cover
                raise AssertionError("a member is neither our own nor the base's")
        own.load, own.load_seq, own.load_s = load, seq, now

    def forget(self, node: NodeID) -> None:
        """Drop a member that is dead or has left."""
        row = self[node].row
        assert not row.alive, "the living are not forgotten"
        self.dead.pop(node, None)
        self.left.pop(node, None)
        self._own.pop(node, None)
        if self._addresses.get(row.address) == node:
            del self._addresses[row.address]
        if node in self._base.members:
            self._hidden[node] = True
        else:
            del self._added[bisect_left(self._added, node)]

    # Comparing.

    def digest(self) -> bytes:
        """Return the fingerprints of all buckets, ourselves included."""
        return b"".join([word.to_bytes(FINGERPRINT_BYTES, "big") for word in self.buckets])

    def differing(self, digest: bytes) -> list[int]:
        """Return the buckets in which another's digest is not ours."""
        mine, width = self.digest(), FINGERPRINT_BYTES
        if mine == digest:
            return []
        return [
            at for at in range(BUCKETS) if mine[at * width : (at + 1) * width] != digest[at * width : (at + 1) * width]
        ]

    def rows_of(self, buckets: list[int]) -> dict[int, list[Row]]:
        """Return {bucket: our rows in it, our own and the gone ones included} for these buckets."""
        found: dict[int, list[Row]] = {bucket: [] for bucket in buckets}
        for row in (self.me, *(member.row for member in self.values())):
            rows = found.get(bucket_of(row.node))
            if rows is not None:
                rows.append(row)
        return found

    def check(self) -> None:
        """Verify the tables against each other; AssertionError if they disagree."""
        buckets = [0] * BUCKETS
        for row in (self.me, *(member.row for member in self.values())):
            buckets[bucket_of(row.node)] ^= fingerprint(row)
        assert buckets == self.buckets, "the digest is not that of the rows"
        assert self.me.node not in self
        assert self.living == sum(member.alive for member in self.values())
        assert self._added == sorted(node for node in self._own if node not in self._base.members)
        assert sorted(self.dead) == sorted(node for node in self if self[node].row.state == DEAD)
        assert sorted(self.left) == sorted(node for node in self if self[node].row.state == LEFT)
        assert len(self) == sum(1 for _ in self)
