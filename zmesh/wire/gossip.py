"""The words nodes say to each other about who is there: one class a message, and the row that describes a member.

Two ways lead from node to node: *published* (Heartbeat, News) to whoever subscribes to the sender, and *told* straight
to one node (the rest, and News too). Either may be lost without a word. Every word begins with the mesh it belongs to
and the node that says it, so that a reused port or a foreign mesh is noticed. What arrives is checked here for shape
(`sane`, `parse_row`, `packed_bytes`); what it means is the business of core/membership.py. docs/membership.md tells
the story.
"""

from dataclasses import dataclass
from typing import Any

from zmesh.wire.codec import Codec
from zmesh.wire.ids import NODE_ID_BYTES, NodeID

GOSSIP_MAJOR = 1  # nodes of another major are refused
GOSSIP_MINOR = 0  # told for display only: what a newer minor adds is ignored by an older one

ALIVE, SUSPECT, DEAD, LEAVING, LEFT = 0, 1, 2, 3, 4

INC_MAX = 2**32 - 2  # a member accused at the last u32 could not answer any more
BUCKETS = 256
FINGERPRINT_BYTES = 8
TEXT_MAX = 255
# So deep may plain data nest: what a packer of the sender took must not exhaust the stack of a reader.
DEPTH_MAX = 6
_SEQ_MAX = 2**63
_HOST_SIGNS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:_%[]"

# Rumours, the items of News.rumours: [kind, ...].
ROW = 0  # [ROW, packed Row, accuser NodeID or b"", last seq the accuser heard, whether a redial was refused]
VOUCH = 1  # [VOUCH, NodeID, inc, seq, age in seconds]: somebody heard this seq of the member so long ago
LOAD = 2  # [LOAD, NodeID, seq, load]: an urgent change, for those who do not subscribe to that member


@dataclass(frozen=True, slots=True)
class Row:
    """All that is said of a member. Never changed, so it is shared; only the member itself makes a new `inc`."""

    node: NodeID
    inc: int
    state: int
    name: str
    host: str
    port: int
    meta: dict[str, Any]  # plain data that msgpack knows; "major" and "minor" are those of the gossip protocol

    @property
    def address(self) -> tuple[str, int]:
        """Where its control socket is."""
        return self.host, self.port

    @property
    def alive(self) -> bool:
        """Whether it takes part: also while suspected, and while it leaves."""
        return self.state in (ALIVE, SUSPECT, LEAVING)

    def at(self, inc: int, state: int) -> "Row":
        """Return the same member in another incarnation or state."""
        return Row(self.node, inc, state, self.name, self.host, self.port, self.meta)

    def packed(self) -> tuple[Any, ...]:
        """Return its form on the wire."""
        return self.node, self.inc, self.state, self.name, self.host, self.port, self.meta


# Published: to whoever subscribes.


@dataclass(slots=True)
class Heartbeat:
    """I am here. `seq` counts all that this node publishes; `rx_age` is since when it hears less than half."""

    cluster: bytes
    node: NodeID
    seq: int
    inc: int
    rx_age: float
    load: dict[str, Any]


@dataclass(slots=True)
class News:
    """What changed. Each node passes on once what was new to it. `seq` is 0 if told straight."""

    cluster: bytes
    node: NodeID
    seq: int
    rumours: list[Any]


# Told: to one node.


@dataclass(slots=True)
class Join:
    """I want to take part: answer with Rows of all members, or with Refused or Busy, to the address in my row."""

    cluster: bytes
    node: NodeID
    row: list[Any]
    major: int = GOSSIP_MAJOR
    minor: int = GOSSIP_MINOR


@dataclass(slots=True)
class Refused:
    """You may not join, and why, in one line for the user."""

    cluster: bytes
    node: NodeID
    to: NodeID
    why: str


@dataclass(slots=True)
class Busy:
    """Too many want all rows from me just now: ask one of these addresses. `members` is how many we are."""

    cluster: bytes
    node: NodeID
    members: int
    ask: list[Any]


@dataclass(slots=True)
class Rows:
    """All I know of the members in these buckets. `answer`: tell me what differs; `more`: further parts follow."""

    cluster: bytes
    node: NodeID
    rows: list[Any]
    buckets: list[Any]
    answer: bool
    more: bool


@dataclass(slots=True)
class Digest:
    """Fingerprints of my table, bucket by bucket: answer with Rows of those where yours differ."""

    cluster: bytes
    node: NodeID
    row: list[Any]
    buckets: bytes


@dataclass(slots=True)
class Ping:
    """Are you there? `accused` is the incarnation in which you are suspected, or -1."""

    cluster: bytes
    node: NodeID
    to: NodeID
    number: int
    accused: int


@dataclass(slots=True)
class Pong:
    """I am. `seq` is that of what I published last."""

    cluster: bytes
    node: NodeID
    to: NodeID
    number: int
    seq: int
    inc: int


# A class's place is its code on the wire: append only.
GOSSIP: tuple[type[Any], ...] = (Heartbeat, News, Join, Refused, Busy, Rows, Digest, Ping, Pong)
GOSSIP_CODEC = Codec(GOSSIP)


def packed_bytes(value: Any, depth: int = DEPTH_MAX) -> int:
    """Return how many bytes msgpack needs for plain data, or -1 if it is none.

    Plain: None, bool, int of 64 bits, finite float, str, bytes, and lists and dicts of these, nested `depth` deep.
    """
    kind = type(value)
    if kind is int:
        if -32 <= value < 128:
            return 1
        if -(2**63) <= value < 2**64:
            size = value.bit_length() if value >= 0 else (~value).bit_length() + 1
            return 2 if size <= 8 else 3 if size <= 16 else 5 if size <= 32 else 9
        return -1
    if kind is str or kind is bytes:
        try:
            size = len(value.encode()) if kind is str else len(value)
        except UnicodeEncodeError:
            return -1
        return size + (1 if kind is str and size < 32 else 2 if size < 256 else 3 if size < 65536 else 5)
    if kind is float:
        return 9 if value - value == 0.0 else -1  # NaN and the infinities are no quantities
    if value is None or kind is bool:
        return 1
    if kind is not dict and kind is not list and kind is not tuple:
        return -1
    total = 1 if len(value) < 16 else 3 if len(value) < 65536 else 5
    if not depth:
        return -1
    for item in value:
        size = packed_bytes(item, depth - 1)
        if kind is dict and size > 0:
            inner = packed_bytes(value[item], depth - 1)
            size = size + inner if inner > 0 else -1
        if size < 0:
            return -1
        total += size
    return total


def _count(value: Any, most: int = _SEQ_MAX, least: int = 0) -> bool:
    return type(value) is int and least <= value <= most


def _id(value: Any) -> bool:
    return type(value) is bytes and len(value) == NODE_ID_BYTES


def _sequence(value: Any) -> bool:
    return type(value) is list or type(value) is tuple


def parse_address(raw: Any) -> tuple[str, int] | None:
    """Return (host, port), or None if that is no place a node may be told to connect to."""
    if not _sequence(raw) or len(raw) != 2:
        return None
    host, port = raw
    if type(host) is not str or not 0 < len(host) <= TEXT_MAX or not _count(port, 65535, 1):
        return None
    return None if host.strip(_HOST_SIGNS) or any(sign not in _HOST_SIGNS for sign in host) else (host, port)


def parse_row(raw: Any, bytes_max: int) -> Row | None:
    """Return the row of its form on the wire, or None if a field makes no sense."""
    # Fields behind those we know were added by a newer minor version.
    if not _sequence(raw) or len(raw) < 7:
        return None
    node, inc, state, name, host, port, meta = raw[:7]
    good = _id(node) and _count(inc, INC_MAX) and _count(state, LEFT) and type(name) is str and len(name) <= TEXT_MAX
    if not good or type(meta) is not dict or parse_address((host, port)) is None:
        return None
    return Row(node, inc, state, name, host, port, meta) if 0 < packed_bytes(raw[:7]) <= bytes_max else None


def row_major(row: Row) -> Any:
    """Return the protocol major of a member; one that does not say speaks ours."""
    return row.meta.get("major", GOSSIP_MAJOR)


def sane(message: Any) -> bool:
    """Whether every field has the type and range that the readers rely on; rows and rumours are checked one by one."""
    if type(message.cluster) is not bytes or not _id(message.node):
        return False
    match message:
        case Heartbeat(seq=seq, inc=inc, rx_age=age, load=load):
            return _count(seq) and _count(inc, INC_MAX) and _seconds(age) and type(load) is dict
        case News(seq=seq, rumours=rumours):
            return _count(seq) and _sequence(rumours)
        case Join(row=row, major=major, minor=minor):
            return _sequence(row) and _count(major) and _count(minor)
        case Refused(to=to, why=why):
            return _id(to) and type(why) is str
        case Busy(members=members, ask=ask):
            return _count(members) and _sequence(ask)
        case Rows(rows=rows, buckets=buckets, answer=answer, more=more):
            fit = _sequence(rows) and _sequence(buckets) and len(buckets) <= BUCKETS
            return fit and all(_count(bucket, BUCKETS - 1) for bucket in buckets) and type(answer) is type(more) is bool
        case Digest(row=row, buckets=buckets):
            return _sequence(row) and type(buckets) is bytes and len(buckets) == BUCKETS * FINGERPRINT_BYTES
        case Ping(to=to, number=number, accused=accused):
            return _id(to) and _count(number) and _count(accused, INC_MAX, -1)
        case Pong(to=to, number=number, seq=seq, inc=inc):
            return _id(to) and _count(number) and _count(seq) and _count(inc, INC_MAX)
    return False


def _seconds(value: Any) -> bool:
    return type(value) in (float, int) and 0 <= value < 1e9


def sane_rumour(rumour: Any) -> bool:
    """Whether a rumour has a kind we know and fields of the right types; its row or load is checked by its reader."""
    if not _sequence(rumour) or len(rumour) < 4:
        return False
    if rumour[0] == ROW and len(rumour) >= 5:
        _, _, accuser, seq, refused = rumour[:5]
        return (accuser == b"" or _id(accuser)) and _count(seq) and type(refused) is bool
    if rumour[0] == VOUCH and len(rumour) >= 5:
        _, node, inc, seq, age = rumour[:5]
        return _id(node) and _count(inc, INC_MAX) and _count(seq) and _seconds(age)
    return rumour[0] == LOAD and _id(rumour[1]) and _count(rumour[2]) and type(rumour[3]) is dict
