"""The messages by which homes and holders compare what they count (core/tallies.py, holdings.py); part of MESSAGES."""

from dataclasses import dataclass
from typing import Any

from zmesh.wire.ids import NodeID, ObjectID

_PRIME = (1 << 61) - 1
_MASK = (1 << 64) - 1


def weight(oid: ObjectID) -> int:
    """Return what one hold of an object adds to a Tally.

    The square of the ID modulo a prime, as sums of what grows in step would hide two errors behind each other.
    """
    residue = int.from_bytes(oid, "big") % _PRIME
    return residue * residue % _PRIME


def added(total: int, oid: ObjectID, holds: int) -> int:
    """Return a tally with so many holds more."""
    return (total + holds * weight(oid)) & _MASK


@dataclass(slots=True)
class Tally:
    """Holder to home: the weights of all I hold that you count, each times its holds, modulo 2^64. In each look."""

    total: int


@dataclass(slots=True)
class Recount:
    """Home to holder: your tally is not mine, or you told none: what do you hold? Answered by Holdings."""


@dataclass(slots=True)
class Holdings:
    """Holder to home: `objects` is a list of [ObjectID, holds], of all I hold that you count."""

    objects: list[Any]


@dataclass(slots=True)
class Uncounted:
    """Home to holder: you said twice that you hold these, and they are gone: I count you no more."""

    objects: list[ObjectID]


# Replicas whose home is gone: core/orphans.py.


@dataclass(slots=True)
class WhoHolds:
    """Warden to member, and that to its clients: which of these did you hold at any time since this warden asked last?

    Who was not asked about an object before says that it did. No objects: the warden asks no more.
    """

    warden: NodeID
    number: int
    objects: list[ObjectID]


@dataclass(slots=True)
class Held:
    """The answer: these; from a member when all of its clients have answered it."""

    warden: NodeID
    number: int
    objects: list[ObjectID]


COUNTING_MESSAGES: tuple[type[Any], ...] = (Tally, Recount, Holdings, Uncounted, WhoHolds, Held)
