"""The messages about objects that are lost, or shall not be (core/lineage.py, replicas.py); part of MESSAGES."""

from dataclasses import dataclass
from typing import Any

from zmesh.wire.ids import ObjectID


@dataclass(slots=True)
class Missing:
    """Borrower to home, and home to owner: `objects` is a list of [ObjectID, segment, producer PeerID].

    The bytes could not be had at that place. A borrower is answered by Fetched, the home by Resolve: another place, or
    why there is none.
    """

    objects: list[Any]


@dataclass(slots=True)
class Remember:
    """Owner to home: I drop my holds of these, and can still say how they came about: Forget when nobody has any."""

    objects: list[ObjectID]


@dataclass(slots=True)
class Forget:
    """Home to owner: nobody holds these any more that you were to remember."""

    objects: list[ObjectID]


# Replicas: core/replicas.py.


@dataclass(slots=True)
class Replicate:
    """Owner to home: have `copies` hosts in all keep this stored object. Answered by Guarded."""

    request: int
    oid: ObjectID
    copies: int


@dataclass(slots=True)
class Guarded:
    """Home to owner: so many hosts have it; `why` not more, if that is fewer than were wanted."""

    request: int
    copies: int
    why: str


@dataclass(slots=True)
class KeepReplica:
    """Home to node: keep a copy of what lies at [segment, nbytes, producer] until DropReplica; say Replicated."""

    oid: ObjectID
    place: list[Any]


@dataclass(slots=True)
class Replicated:
    """Node to home: the copy is here, or `why` it is not."""

    oid: ObjectID
    why: str = ""


@dataclass(slots=True)
class DropReplica:
    """Home to node: the object is no more."""

    oid: ObjectID


@dataclass(slots=True)
class Seek:
    """Client to its own node: the home of these is gone, is there a replica? Each is answered by Fetched."""

    objects: list[ObjectID]


@dataclass(slots=True)
class AskReplica:
    """Node to node: do you have a copy of that? Answered by ReplicaAt."""

    oid: ObjectID


@dataclass(slots=True)
class ReplicaAt:
    """Node to node: it lies here at [segment, nbytes, producer], or [] if it does not."""

    oid: ObjectID
    place: list[Any]


LINEAGE_MESSAGES: tuple[type[Any], ...] = (
    Missing,
    Remember,
    Forget,
    Replicate,
    Guarded,
    KeepReplica,
    Replicated,
    DropReplica,
    Seek,
    AskReplica,
    ReplicaAt,
)
