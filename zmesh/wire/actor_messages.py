"""The messages of actors: a creation task stays leased for the actor's life, calls go straight from caller to actor.

Their codes are in zmesh/wire/messages.py, with those of all others.
"""

from dataclasses import dataclass, field
from typing import Any

from zmesh.wire.ids import ObjectID, PeerID

ACTOR_DEAD = 1 << 62  # the version of an actor that will not come back
NAME_TAKE, NAME_FIND, NAME_DROP, NAME_DOUBT = range(4)
GROUPS = ""  # the namespace of placement groups: no actor's is empty


@dataclass(slots=True)
class Settle:
    """Worker to node: I serve an actor until I end; take back this much of what I have booked."""

    shape: dict[str, int]


@dataclass(slots=True)
class Follow:
    """Caller to an actor's node: tell me of the death of `worker`, as you tell those it works for."""

    worker: PeerID


@dataclass(slots=True)
class CallerGone:
    """Node to an actor's worker: that caller is dead; nobody wants the results of its calls."""

    peer: PeerID


@dataclass(slots=True)
class Call:
    """Caller to actor: run these, in this order. Answered by Done, with results alone and what is kept.

    `specs` is a list of [index, job, name, num_returns, options, hash, classes to retry], each sent to an incarnation
    once; options["method"] names the method. `calls` is a list of [seq, attempt, spec index, depth, arguments,
    dependencies?], as in Work. `lost` is how often the caller has heard from this incarnation, if it runs one call at a
    time, that arguments of a call are LOST: what it sent after that call before it heard so does not start either.
    """

    specs: list[Any]
    calls: list[Any]
    lost: int = 0


@dataclass(slots=True)
class Retire:
    """Owner to actor: nobody has a handle of you any more; end when what you have is done."""


@dataclass(slots=True)
class ActorState:
    """Where an actor is: its owner tells its home, the home tells who asked.

    `version` is twice the number of restarts, one more while the actor is alive at `peer`, and ACTOR_DEAD at the end;
    `failure` is then [status, value], which every call gets. `first`: the home has not heard of it before.
    """

    actor: ObjectID
    version: int
    peer: PeerID = b""
    failure: list[Any] = field(default_factory=list)
    first: bool = False


@dataclass(slots=True)
class ActorQuery:
    """Caller to an actor's home: tell me its state as soon as it is newer than `version`."""

    actor: ObjectID
    version: int


@dataclass(slots=True)
class Unheld:
    """Home to owner: nobody has a handle of this actor any more."""

    actor: ObjectID


@dataclass(slots=True)
class KillActor:
    """Caller to an actor's home, and from there to its owner: kill it; with `no_restart` for good."""

    actor: ObjectID
    no_restart: bool


@dataclass(slots=True)
class ShareActor:
    """Actor to its owner: I want a handle of myself; have our home count me, as nobody may have told it of me yet."""

    request: int
    actor: ObjectID


@dataclass(slots=True)
class ActorShared:
    """Answer to ShareActor: it does, or `error` says why not."""

    request: int
    error: str = ""


# Names of actors, and of placement groups. An entry is [namespace, name, ActorID, description for handles].


@dataclass(slots=True)
class NameAsk:
    """Client to its node, and from there to the name's home: NAME_TAKE it, NAME_FIND or NAME_DROP what has it.

    Answered by NameTold. NAME_DOUBT goes to the node of what has it, which has it dropped if it is gone; no answer.
    `hops` counts the nodes that passed it on.
    """

    request: int
    kind: int
    namespace: str
    name: str
    actor: ObjectID = b""
    description: bytes = b""
    hops: int = 0


@dataclass(slots=True)
class NameTold:
    """Answer to NameAsk, the same way back: the entry that has the name now; [] if none."""

    request: int
    found: list[Any]


@dataclass(slots=True)
class NameCopy:
    """A name's home, or who was it, to the nodes next in line: keep these `entries`, drop the `gone`.

    With a request, answered by NameCopied.
    """

    request: int
    entries: list[Any]
    gone: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class NameCopied:
    """Answer to NameCopy: done; `found` are entries of other actors that had some of the names before."""

    request: int
    found: list[Any]
