"""The messages about objects whose bytes are lost (core/lineage.py); part of MESSAGES in messages.py."""

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


LINEAGE_MESSAGES: tuple[type[Any], ...] = (Missing, Remember, Forget)
