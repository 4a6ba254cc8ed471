"""The messages of placement groups; their codes are in zmesh/wire/messages.py.

A group's ID begins with the NodeID of its *coordinator*: the node of the client that made it. A *participant* is a node
that holds bundles of it. Shapes are amounts in units of 1/10,000, keyed by name.
"""

from dataclasses import dataclass
from typing import Any

from zmesh.wire.ids import PeerID


@dataclass(slots=True)
class CreateGroup:
    """Client to its own node: reserve these bundles, each on one node, as `strategy` says. Answered by GroupReply.

    `group` is its ID; `job` the driver with which it ends, b"" if it is detached; `bundles` a list of shapes;
    `description` what those learn who find it by its name.
    """

    request: int
    group: bytes
    job: PeerID
    name: str
    strategy: str
    bundles: list[Any]
    description: bytes = b""


@dataclass(slots=True)
class RemoveGroup:
    """Client to coordinator: end that group and what runs in it. Answered by GroupReply."""

    request: int
    group: bytes


@dataclass(slots=True)
class GroupReply:
    """Coordinator to client: `request` is done; `error` is "" or why it could not be; `holder` has the name already."""

    request: int
    error: str = ""
    holder: bytes = b""


@dataclass(slots=True)
class WatchGroup:
    """Client to coordinator: tell me the state of that group now, and whenever it changes."""

    group: bytes


@dataclass(slots=True)
class GroupState:
    """Coordinator to client: "PENDING", "CREATED", "RESCHEDULING", "INFEASIBLE" or "REMOVED", and why in words."""

    group: bytes
    state: str
    text: str
    bundles: list[Any]


@dataclass(slots=True)
class Reserve:
    """Coordinator to participant: set aside all of these, or none; `bundles` is a list of [index, shape].

    Answered by Reserved or Refused. Tasks may be waited for as long as `patience_s`.
    """

    group: bytes
    epoch: int
    bundles: list[Any]
    patience_s: float


@dataclass(slots=True)
class Reserved:
    """Participant to coordinator: they are set aside until Commit or ReleaseBundles."""

    group: bytes
    epoch: int


@dataclass(slots=True)
class Refused:
    """Participant to coordinator: there is no room for them; so much is free."""

    group: bytes
    epoch: int
    free: dict[str, int]


@dataclass(slots=True)
class Commit:
    """Coordinator to participant: all of the group have been reserved: tasks may run in those of this epoch."""

    group: bytes
    epoch: int


@dataclass(slots=True)
class ReleaseBundles:
    """Coordinator to participant: give back what was reserved under that epoch; epoch 0: all of the group."""

    group: bytes
    epoch: int


@dataclass(slots=True)
class AskGroup:
    """Participant to coordinator: I hold this reservation for long. Answered by Commit, ReleaseBundles or later."""

    group: bytes
    epoch: int


GROUP_MESSAGES: tuple[type[Any], ...] = (
    # A part of MESSAGES: append only there.
    CreateGroup,
    RemoveGroup,
    GroupReply,
    WatchGroup,
    GroupState,
    Reserve,
    Reserved,
    Refused,
    Commit,
    ReleaseBundles,
    AskGroup,
)
