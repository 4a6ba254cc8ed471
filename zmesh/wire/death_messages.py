"""The messages of processes that end, and of what they leave behind; their codes are in zmesh/wire/messages.py."""

from dataclasses import dataclass
from typing import Any

from zmesh.wire.ids import PeerID


@dataclass(slots=True)
class Expelled:
    """Node to a process of its host that sent what is no message: you are a client no more, and hear nothing more."""

    why: str


@dataclass(slots=True)
class Dying:
    """Node to node: these are dead, but what they held is counted yet. Say Buried of each when yours have buried it.

    They are clients of the sender, or of a node that the sender has missed; with `back`, that is there after all.
    """

    peers: list[PeerID]
    back: bool = False


@dataclass(slots=True)
class Vouch:
    """Holder to home: who was to have me counted may have died first: count me for so many holds of each, or more.

    `objects` is a list of [ObjectID, holds]. Answered by Ack if `request` is not 0.
    """

    request: int
    objects: list[Any]


@dataclass(slots=True)
class Followed:
    """Node to a caller of its own: as you wanted, you hear of the death of `worker`, and that of yours."""

    worker: PeerID


DEATH_MESSAGES: tuple[type[Any], ...] = (
    # A part of MESSAGES: append only there.
    Expelled,
    Dying,
    Vouch,
    Followed,
)
