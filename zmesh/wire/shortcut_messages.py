"""What a driver and a far node say of the shortcut between them; see core/shortcuts.py."""

from dataclasses import dataclass
from typing import Any

from zmesh.wire.ids import PeerID


@dataclass(slots=True)
class Shortcut:
    """Node to a driver elsewhere that its workers serve: dial my control port under `token`; see core/shortcuts.py."""

    token: bytes
    host: str
    port: int


@dataclass(slots=True)
class Switch:
    """Driver to far node and back: this is my last word by way of your node, all others come over the shortcut."""

    token: bytes


@dataclass(slots=True)
class Carry:
    """A parcel of a shortcut that has no connection now, by way of the driver's node; `seq` 0: an acknowledgement."""

    token: bytes
    epoch: int
    seq: int
    ack: int
    more: bool
    source: PeerID
    to: PeerID
    frame: bytes


SHORTCUT_MESSAGES: tuple[type[Any], ...] = (Shortcut, Switch, Carry)
