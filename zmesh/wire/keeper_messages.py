"""The messages of detached actors: a program hands one to its node, whose keeper for that program makes and keeps it.

Their codes are in zmesh/wire/messages.py, with those of all others.
"""

from dataclasses import dataclass, field
from typing import Any

from zmesh.wire.ids import ObjectID, PeerID


@dataclass(slots=True)
class KeepActor:
    """Client to its own node, and from there to the keeper of `job`: make this actor, unless one has its name.

    `spec` is [name, shape, fallback shapes, options, digest, blob, max_retries, priority]. `args` are packed with
    places for the objects `deps`; `held` are those inside of the arguments, and those the class needs. The asker holds
    all of them until it is answered by Kept. `here`: it should live on this node. `asker` is filled in by the node.
    `places` has [segment, nbytes, producer] of each of `deps` that the asker knows to be stored, [] for the others.
    """

    request: int
    job: PeerID
    spec: list[Any]
    args: bytes
    deps: list[ObjectID]
    held: list[ObjectID]
    namespace: str
    name: str
    description: bytes
    ordered: bool
    here: bool
    asker: PeerID = b""
    places: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Kept:
    """Keeper to node to asker: `found` has the name, [namespace, name, ActorID, description]; or `error` says why not.

    `made`: it is the actor that was asked for, and the asker is counted as a holder. `kind` is the class of the error
    in zmesh.exceptions.
    """

    request: int
    found: list[Any]
    made: bool = False
    error: str = ""
    asker: PeerID = b""
    kind: str = "MeshError"


@dataclass(slots=True)
class Keeps:
    """Keeper to its node: so many KeepActors have come, and these are the actors I keep.

    `actors` lists [namespace, name, class name, ActorID]. `idle`: there are none, and nothing is under way. If no
    KeepActor is on its way either, the keeper ends.
    """

    seen: int
    idle: bool
    actors: list[Any]


KEEPER_MESSAGES: tuple[type[Any], ...] = (
    # A part of MESSAGES: append only there.
    KeepActor,
    Kept,
    Keeps,
)
