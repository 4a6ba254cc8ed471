"""One class a message; docs/protocol.md tells their story, zmesh/wire/codec.py puts them on the wire.

Links on a host (every link is FIFO, and loses nothing while both ends live):

    client -> node    its DEALER to the node's ROUTER; the node answers on the same connection
    thief  -> victim  the worker's DEALER to the client's ROUTER; the victim answers on the same connection

To a peer on another host, the same words travel through the two nodes: a PeerID begins with the NodeID of its host, and
between two nodes runs a reliable link (core/links.py). So a thief may serve a victim far away, and an object is counted
at its *home*, the node of the process that owns it, wherever its bytes lie.

A *client* is a driver or a worker: whoever submits tasks. Fields are only ever appended, with a default, so that a
process of an older minor version can still read the ones it knows.

Values on the wire are pairs (status, value):

    PENDING    None
    INLINE     bytes, as runtime/serialization.py packs them
    STORED     [segment, nbytes, producer PeerID]
    FAILED     bytes: the user's exception, packed
    ERROR      [class name in zmesh.exceptions, text, {attribute: value}]

Amounts of resources are integers, in units of 1/10,000, keyed by name: {"CPU": 10000}.
"""

from dataclasses import dataclass, field
from typing import Any

from zmesh.wire.actor_messages import (
    ActorQuery,
    ActorShared,
    ActorState,
    Call,
    CallerGone,
    Follow,
    KillActor,
    NameAsk,
    NameCopied,
    NameCopy,
    NameTold,
    Retire,
    Settle,
    ShareActor,
    Unheld,
)
from zmesh.wire.counting_messages import COUNTING_MESSAGES
from zmesh.wire.death_messages import DEATH_MESSAGES
from zmesh.wire.group_messages import GROUP_MESSAGES
from zmesh.wire.ids import NodeID, ObjectID, PeerID
from zmesh.wire.keeper_messages import KEEPER_MESSAGES
from zmesh.wire.lineage_messages import LINEAGE_MESSAGES
from zmesh.wire.shortcut_messages import SHORTCUT_MESSAGES
from zmesh.wire.store_messages import STORE_MESSAGES

PROTOCOL_MAJOR = 1
UNIT = 10_000

PENDING, INLINE, STORED, FAILED, ERROR = 0, 1, 2, 3, 4
# Only in Done.results:
CANCELLED, RETRYABLE, MANY, ITEM, END, LOST = 5, 6, 7, 8, 9, 10
ABANDONED = -1  # only in Consumed.count

Shape = dict[str, int]


# A client and its node.


@dataclass(slots=True)
class Hello:
    """Client to node, first of all. `kind` is "driver", "worker" or "observer" (status only: owns no tasks).

    `config` is what a worker of this driver's job must take over before it runs its code: {"cwd", "sys_path"}.
    """

    kind: str
    pid: int
    config: dict[str, Any] = field(default_factory=dict)
    major: int = PROTOCOL_MAJOR


@dataclass(slots=True)
class Welcome:
    """Node to client: who the node is and what it has in all. `refused` is "" or why the client may not stay."""

    node: NodeID
    pid: int
    total: Shape
    refused: str = ""


@dataclass(slots=True)
class Goodbye:
    """Client to node: I leave in good order. The same as my death, without the word."""


@dataclass(slots=True)
class Demand:
    """Client to node: I could keep `workers` workers of this shape busy in all. The latest wins; 0 withdraws."""

    job: PeerID
    shape: Shape
    workers: int
    depth: int = 0
    priority: int = 0


@dataclass(slots=True)
class Infeasible:
    """Node to client: no node can ever give this shape; `text` says what is missing."""

    shape: Shape
    text: str


@dataclass(slots=True)
class Attach:
    """Node to worker: you are booked for `victim` and this shape; steal from it until Detach.

    `config` is the job's, sent with the worker's first Attach only; a worker serves one job for life.
    """

    victim: PeerID
    epoch: int
    job: PeerID
    shape: Shape
    gpus: list[int]
    config: dict[str, Any]


@dataclass(slots=True)
class Detach:
    """Node to worker: leave `victim`. `dead` says that the victim is no more, so nobody will answer an Unsteal."""

    victim: PeerID
    epoch: int
    dead: bool = False


@dataclass(slots=True)
class Free:
    """Worker to node: the attachment `epoch` is over, nothing of it runs; book me again."""

    epoch: int


@dataclass(slots=True)
class Blocked:
    """Worker to node: my task waits for others; its resources (GPUs excepted) may be used meanwhile."""


@dataclass(slots=True)
class Unblocked:
    """Worker to node: my task goes on, at once; the books may go negative."""


@dataclass(slots=True)
class Kill:
    """Client to node: kill `worker` if its black box still names this attempt of my task."""

    worker: PeerID
    seq: int
    attempt: int
    reason: str


@dataclass(slots=True)
class WorkerDied:
    """Node to every client the worker ever served: it is gone.

    `owner`, `seq`, `attempt` name the task it was executing (seq 0: none); `reason` is "", "timeout", "cancel", "oom"
    or "group" (its placement group was removed).
    `over` says that it had finished that task, but may not have sent its result. `status` is what waitpid gave.
    `detail` says at length why the node killed it.
    """

    worker: PeerID
    pid: int
    status: int
    owner: PeerID
    seq: int
    attempt: int
    reason: str
    tail: str
    over: bool = False
    detail: str = ""


@dataclass(slots=True)
class Log:
    """Node to the driver of the job: a worker wrote `text` (whole lines) to `stream` 1 or 2, in function `name`."""

    pid: int
    name: str
    stream: int
    text: str


@dataclass(slots=True)
class StatusRequest:
    """Client to node: what is going on?"""

    request: int


@dataclass(slots=True)
class StatusReply:
    """Node to client: {"node", "resources", "workers", "demands", "store", ...}; docs/api.md lists the keys."""

    request: int
    status: dict[str, Any]


@dataclass(slots=True)
class Stop:
    """Node to worker: you were idle for long, or your job is gone, or your place is needed: end, or answer Free."""


# Objects that more than one process may hold.


@dataclass(slots=True)
class Promote:
    """Owner to node: keep these objects from now on; I hold each of them once. Answered by Ack.

    `objects` is a list of [ObjectID, status, value, [ObjectIDs inside the value]].
    """

    request: int
    objects: list[Any]


@dataclass(slots=True)
class Ack:
    """Node to client: `request` is done; `error` is "" or why it could not be."""

    request: int
    error: str = ""


@dataclass(slots=True)
class Resolve:
    """Owner to node: promoted objects that were PENDING have a value now; `objects` as in Promote."""

    objects: list[Any]


@dataclass(slots=True)
class Hold:
    """Client to node: `holders` is a list of [ObjectID, PeerID]: that peer holds the object once more.

    The sender holds it itself meanwhile. Answered by Ack if `request` is not 0.
    """

    request: int
    holders: list[Any]


@dataclass(slots=True)
class Release:
    """Client to node: `objects` is a list of [ObjectID, n, clean]: I drop n of my holds.

    `clean` is false if some reader of mine died without unpinning: then the segment may never be written again.
    It may overtake the Hold of another client, so a count may be negative for a while.
    """

    objects: list[Any]


@dataclass(slots=True)
class Fetch:
    """Client to node: tell me the value of these objects as soon as they have one. Every one is answered."""

    objects: list[ObjectID]


@dataclass(slots=True)
class Fetched:
    """Node to client: `objects` is a list of [ObjectID, status, value]; never PENDING."""

    objects: list[Any]


@dataclass(slots=True)
class FreeSegments:
    """Owner to node: nobody reads these any more; `segments` is a list of [producer PeerID, segment, clean]."""

    segments: list[Any]


@dataclass(slots=True)
class RecycleSegments:
    """Node to producer: write these again if you like."""

    segments: list[int]


@dataclass(slots=True)
class Trim:
    """Node to clients: the store is full; give back the segments you keep for later."""


# Thief and victim.


@dataclass(slots=True)
class Steal:
    """Thief to victim: I am free for about `credit_s` seconds of this shape. Stays parked until there is work."""

    epoch: int
    shape: Shape
    credit_s: float


@dataclass(slots=True)
class Work:
    """Victim to thief: run these.

    `specs` is a list of [index, job, name, num_returns, options, function hash, function], each sent to a thief once;
    num_returns is -1 for a stream. `tasks` is a list of [seq, attempt, spec index, depth, arguments, dependencies?]:
    `arguments` is INLINE bytes or a [segment, nbytes, producer, seq] of the victim's; a dependency is
    [status, value, key], where key names it in Done.kept: an ObjectID if the node counts it, else [seq, index] of the
    victim's own.
    """

    specs: list[Any]
    tasks: list[Any]


@dataclass(slots=True)
class Done:
    """Thief to victim: results, and so much of the credit back.

    `results` is a list of [seq, attempt, status, value, ObjectIDs inside?]. MANY has a list of [status, value, inside]
    as value, ITEM [index, status, value, inside] (the task goes on), END the number of items, LOST a list of
    [key, segment, producer] of arguments that could not be had there: the task was not started.
    `timings` is a list of [spec index, longest run in seconds]. `kept` lists keys of dependencies, and ObjectIDs
    of references, that the thief still holds though their task is over; Unpin or Release ends that.
    """

    results: list[Any]
    timings: list[Any]
    kept: list[Any]


@dataclass(slots=True)
class GiveBack:
    """Thief to victim: I did not start these [seq, attempt]; send nothing more before my next Done."""

    tasks: list[Any]


@dataclass(slots=True)
class Unsteal:
    """Thief to victim: my steal `epoch` is withdrawn. Answered by Unstolen: work sent before lies before it."""

    epoch: int


@dataclass(slots=True)
class Unstolen:
    """Victim to thief: no work will follow for `epoch`."""

    epoch: int


@dataclass(slots=True)
class Cancel:
    """Victim to thief: drop this task, or interrupt it if it runs; with `recursive`, also what it submitted."""

    seq: int
    attempt: int
    recursive: bool


@dataclass(slots=True)
class Consumed:
    """Victim to thief: the reader of the stream `seq` has taken `count` items, or, for ABANDONED, wants no more."""

    seq: int
    count: int


@dataclass(slots=True)
class Unpin:
    """Thief to victim: I no longer read these [seq, index] that a Done of mine listed as kept."""

    objects: list[Any]


@dataclass(slots=True)
class Taken:
    """Victim to thief: the node counts me as a holder of the references in a result or item of task `seq`; drop yours.

    One for each that contained references, in the order they were sent.
    """

    seq: int


@dataclass(slots=True)
class Buried:
    """Client to node: I have taken in all that the dead `worker` sent me; what it held may go."""

    worker: PeerID


# Between nodes, and what clients hear of other nodes.


@dataclass(slots=True)
class Mesh:
    """Node to client: `totals` are the resources of each living member in all, our own node first."""

    totals: list[Any]


@dataclass(slots=True)
class NodeGone:
    """Node to client: that member is dead or has left, and all its processes and objects with it."""

    node: NodeID
    why: str


@dataclass(slots=True)
class Spare:
    """Thief's node to victim's node: so much is free here; the latest wins, {} withdraws. Stays parked until used."""

    free: Shape


@dataclass(slots=True)
class Lease:
    """Victim's node to thief's node: up to `workers` workers of yours may serve `client` in all; the latest wins.

    A Demand on behalf of a client far away. `config` is its job's, as in Attach. `number` counts the leases.
    """

    client: PeerID
    job: PeerID
    shape: Shape
    workers: int
    depth: int
    priority: int
    config: dict[str, Any]
    number: int


@dataclass(slots=True)
class LeaseBack:
    """Thief's node to victim's node: of lease `number` I keep `workers` only, as I have no room for more."""

    client: PeerID
    shape: Shape
    workers: int
    number: int


@dataclass(slots=True)
class Watch:
    """Node to node: tell me when one of these clients of yours is gone. Answered at once for those that are."""

    peers: list[PeerID]


@dataclass(slots=True)
class PeersGone:
    """Node to node: these clients of mine are dead, and everybody they served has buried them."""

    peers: list[PeerID]


@dataclass(slots=True)
class KeepSegments:
    """An object's home to the node its bytes lie on: a shared object lies in these, until FreeSegments."""

    segments: list[int]


@dataclass(slots=True)
class Pull:
    """Client to its own node: have these bytes of another node copied here; I read them until LetGo.

    `objects` is a list of [ObjectID, segment, nbytes, producer PeerID]. Every one is answered by Pulled.
    """

    objects: list[Any]


@dataclass(slots=True)
class Pulled:
    """Node to client: `objects` is a list of [ObjectID, STORED or ERROR, value]; the place is on this host."""

    objects: list[Any]


@dataclass(slots=True)
class LetGo:
    """Client to its own node: `objects` is a list of [ObjectID, clean]: I need those copies no more."""

    objects: list[Any]


@dataclass(slots=True)
class Leaving:
    """A node to members, and each of these to its clients: `node` leaves soon. Copy what you need of it.

    Answered by Evacuated when that is done.
    """

    node: NodeID


@dataclass(slots=True)
class Evacuated:
    """The answer to Leaving: so many objects were copied from `node`, and so many could not be, the first for `why`."""

    node: NodeID
    moved: int
    lost: int
    why: str = ""


MESSAGES: tuple[type[Any], ...] = (
    # The place in this tuple is the message's code on the wire: append only.
    Hello,
    Welcome,
    Goodbye,
    Demand,
    Infeasible,
    Attach,
    Detach,
    Free,
    Blocked,
    Unblocked,
    Kill,
    WorkerDied,
    Log,
    StatusRequest,
    StatusReply,
    Stop,
    Promote,
    Ack,
    Resolve,
    Hold,
    Release,
    Fetch,
    Fetched,
    FreeSegments,
    RecycleSegments,
    Trim,
    Steal,
    Work,
    Done,
    GiveBack,
    Unsteal,
    Unstolen,
    Cancel,
    Consumed,
    Unpin,
    Taken,
    Buried,
    Mesh,
    NodeGone,
    Spare,
    Lease,
    LeaseBack,
    Watch,
    PeersGone,
    KeepSegments,
    Pull,
    Pulled,
    LetGo,
    *SHORTCUT_MESSAGES,
    Leaving,
    Evacuated,
    *GROUP_MESSAGES,
    *STORE_MESSAGES,
    Settle,
    Follow,
    CallerGone,
    Call,
    Retire,
    ActorState,
    ActorQuery,
    Unheld,
    KillActor,
    NameAsk,
    NameTold,
    NameCopy,
    NameCopied,
    *LINEAGE_MESSAGES,
    *COUNTING_MESSAGES,
    *KEEPER_MESSAGES,
    *DEATH_MESSAGES,
    ShareActor,
    ActorShared,
)
