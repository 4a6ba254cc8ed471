"""What the machines of a client talk about: specs, entries, tasks, thieves. Plain slotted data, no rules.

A million queued tasks must fit in 700 MB, so a task with one result *is* that result's entry, and everything rare
(dependencies, outputs, sharing) hangs on one slot that is None in the common case.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zmesh.wire.ids import ACTOR_INDEX, ObjectID, PeerID
from zmesh.wire.marks import ENVIRONMENT, is_mark
from zmesh.wire.messages import INLINE, PENDING, Shape

# States of a task at its owner.
WAITING, QUEUED, LEASED, RESOLVED = 0, 1, 2, 3


def environment_of(shape: Shape) -> str:
    """Return the mark of the runtime environment that a shape is for, "" if none."""
    return next((name for name in shape if name.startswith(ENVIRONMENT)), "")


def add_to(target: Shape, shape: Shape) -> None:
    """Add amounts to those of a shape."""
    for name, amount in shape.items():
        target[name] = target.get(name, 0) + amount


def without_environment(shape: Shape) -> Shape:
    """Return what of a shape nodes have to have: all but its runtime environment, without zeros."""
    return {name: amount for name, amount in shape.items() if amount and not name.startswith(ENVIRONMENT)}


# Bundles: "CPU@<group>:<index>" is what one bundle holds, "CPU@<group>" what all bundles of the group on a node do.
BUNDLE = "bundle"  # what each task of a group books besides, so that one without resources runs there too
BUNDLE_TASKS_MAX = 1000  # at once in one bundle
GROUP_ID_BYTES = 16  # NodeID of the coordinator, then 8 by chance


def in_group(name: str) -> bool:
    """Whether the name in a shape is of a placement group."""
    return "@" in name and not is_mark(name)  # a label may hold one


def group_of(shape: Shape) -> bytes:
    """Return the ID of the group whose bundles a shape is for, b"" if none."""
    for name in shape:
        if in_group(name):
            try:
                group = bytes.fromhex(name.partition("@")[2].partition(":")[0])
            except ValueError:
                return b""
            return group if len(group) == GROUP_ID_BYTES else b""
    return b""


def is_bundle(shape: Any) -> bool:
    """Whether what came over the wire may be what a bundle holds."""
    return (
        isinstance(shape, dict)
        and bool(shape)
        and all(
            isinstance(name, str) and not in_group(name) and not is_mark(name) and type(amount) is int and amount > 0
            for name, amount in shape.items()
        )
    )


def outside_group(shape: Shape) -> Shape:
    """Return a shape under the names that it would have without its group."""
    bases = {name.partition("@")[0] if in_group(name) else name: amount for name, amount in shape.items()}
    return {base: amount for base, amount in bases.items() if base != BUNDLE}


def bundle_names(group: bytes, index: int, base: str) -> tuple[str, str]:
    """Return the names of a resource in one bundle, and in any of the group."""
    return f"{base}@{group.hex()}:{index}", f"{base}@{group.hex()}"


ShapeKey = tuple[tuple[str, int], ...]


def shape_key(shape: Shape) -> ShapeKey:
    """Return the shape as a key: sorted, without zeros."""
    return tuple(sorted((name, amount) for name, amount in shape.items() if amount))


class Spec:
    """One function with one set of options, as a client calls it; sent to each thief once.

    `peak_s` is the decayed maximum of its run time in seconds, None before the first result.
    """

    __slots__ = (
        "alone",
        "blob",
        "digest",
        "fallbacks",
        "held",
        "index",
        "job",
        "made_at",
        "max_retries",
        "name",
        "num_returns",
        "oom_retries",
        "options",
        "peak_s",
        "priority",
        "shape",
        "shape_key",
        "stores",
        "timeout_s",
    )

    def __init__(
        self,
        index: int,
        job: PeerID,
        name: str,
        shape: Shape,
        *,
        num_returns: int = 1,
        options: dict[str, Any] | None = None,
        digest: bytes = b"",
        blob: bytes = b"",
        max_retries: int = 3,
        oom_retries: int = 1,
        timeout_s: float | None = None,
        priority: int = 0,
        held: tuple[Any, ...] = (),
        fallbacks: Sequence[Shape] = (),
        made_at: str = "",
    ) -> None:
        self.index = index
        self.job = job
        self.name = name
        self.num_returns = num_returns
        self.options = options or {}
        self.digest = digest
        self.blob = blob
        self.shape = shape
        self.shape_key = shape_key(shape)
        self.max_retries = max_retries
        self.oom_retries = oom_retries
        self.timeout_s = timeout_s
        self.priority = priority
        self.alone = max_retries == 0 or timeout_s is not None
        self.peak_s: float | None = None
        self.fallbacks = list(fallbacks)  # shapes to take, one after the other, if no node of the mesh has this one
        self.made_at = made_at  # file:line of its first call
        self.stores = False  # it gave a large result: where its calls are made is of interest
        self.held = held  # entries of refs the function captured: each call holds them, as it does its arguments'


class Copy:
    """One far object, as this process needs it. `value` is its place on this host, or the failure."""

    __slots__ = ("oid", "status", "users", "value", "waiters")

    def __init__(self, oid: ObjectID) -> None:
        self.oid = oid
        self.status = PENDING
        self.value: Any = None
        self.users = 0  # tasks, entries and views
        self.waiters: list[Callable[[Copy], None]] = []


class Share:
    """What an entry needs once more than this process has to do with it."""

    __slots__ = ("clean", "copy", "holds", "inside", "made_at", "oid", "pins", "promoted", "readers", "sent")

    def __init__(self, oid: ObjectID | None = None) -> None:
        self.oid = oid  # of a borrowed entry; an own one has its seq and index
        self.promoted = oid is not None  # the node counts it
        self.holds = 0  # how often the node counts this process as a holder
        self.pins = 0  # live views in this process
        self.readers: dict[PeerID, bool] = {}  # {thief: True} that kept the object after its task
        self.inside: list[Entry] = []  # entries of refs inside the value, held until this one is freed
        self.copy: Copy | None = None  # on this host, of bytes that lie on another
        self.clean = True  # no reader ever died: its segment may be written again
        self.made_at = ""  # file:line of the call that made it, if it is large
        self.sent = False  # a Fetch for it is under way


class Entry:
    """One object this process holds a reference to: its own or a borrowed one."""

    __slots__ = ("__weakref__", "index", "refs", "seq", "share", "status", "value", "waiter")

    def __init__(self, seq: int, index: int = 0, status: int = PENDING, value: Any = None, refs: int = 1) -> None:
        self.seq = seq
        self.index = index
        self.status = status
        self.value = value
        self.refs = refs  # ObjectRefs in this process, tasks that need it, values that contain it
        self.waiter: Any = None  # not None: somebody wants to hear when it resolves
        self.share: Share | None = None


@dataclass(slots=True)
class Inputs:
    """What a task needs besides its inline arguments."""

    deps: list[Entry] = field(default_factory=list)  # top-level refs, in the order of their placeholders
    held: list[Entry] = field(default_factory=list)  # nested refs, and the entry of large arguments
    missing: int = 0  # deps that are still PENDING
    starved: int = 0  # how often a thief could not have them


class Task(Entry):
    """A call this process submitted and owns, which is also the entry of its only result (num_returns=1)."""

    __slots__ = (
        "args",
        "attempt",
        "cancelled",
        "depth",
        "inputs",
        "outputs",
        "parent",
        "spec",
        "state",
        "thief",
        "timer",
    )

    def __init__(self, seq: int, spec: Spec, args: Any, depth: int) -> None:
        self.seq = seq
        self.index = 0
        self.status = PENDING
        self.value = None
        self.refs = 1
        self.waiter = None
        self.share = None
        self.spec = spec
        self.args = args  # INLINE bytes, or (segment, nbytes, producer, seq of its entry)
        self.depth = depth
        self.attempt = 0
        self.state = QUEUED
        self.cancelled = False
        self.thief: Thief | Actor | None = None  # who has it while it is LEASED
        self.inputs: Inputs | None = None
        self.outputs: list[Entry] | None = None  # of num_returns other than 1; grows while a stream runs
        self.parent: Any = None  # (owner, seq) of the task that submitted it, in a worker
        self.timer = 0  # of timeout=, 0 if none


class Handle(Entry):
    """The entry of an own actor: its references are handles. The ActorID is its ObjectID."""

    __slots__ = ("actor",)

    def __init__(self, actor: "Actor") -> None:
        super().__init__(actor.creation.seq, ACTOR_INDEX, INLINE, b"")  # type: ignore[union-attr]  # it is our own
        self.actor = actor


class Creation(Task):
    """The streaming task that is an own actor: leased as long as it lives, its only item says that it is ready."""

    __slots__ = ("actor",)

    actor: "Actor"


class MethodCall(Task):
    """A call of an actor's method."""

    __slots__ = ("actor",)

    actor: "Actor"


class Actor:
    """An actor, as a process that may call it knows it."""

    __slots__ = (
        "burst",
        "burst_s",
        "creation",
        "failure",
        "gathering",
        "handle",
        "how",
        "name",
        "oid",
        "open",
        "ordered",
        "own",
        "peer",
        "queue",
        "retiring",
        "sent",
        "shared",
        "specs",
        "timer",
        "version",
    )

    def __init__(self, oid: ObjectID, name: str, *, ordered: bool, creation: Creation | None = None) -> None:
        self.oid = oid
        self.name = name
        self.ordered = ordered  # it runs one call at a time, so those of one caller start in order
        self.creation = creation  # of an own one
        self.own: Handle | None = None  # the entry of its handles here, if it is one
        self.version = 0 if creation is not None else -1  # see messages.ActorState
        self.peer: PeerID = b""  # where it is; empty while it is not known to be alive
        self.failure: Any = None  # (status, value) that every call gets, once it is dead
        self.queue: deque[MethodCall] = deque()  # to be sent, in order; resolved ones are skipped
        self.sent: dict[int, MethodCall] = {}  # {seq: call} sent to `peer` and not answered, in order
        self.specs: dict[int, bool] = {}  # {spec index: True} that `peer` has
        self.how = ""  # `peer` has died, or the one before
        self.burst = 0  # calls made since burst_s, a moment ago
        self.burst_s = 0.0
        self.gathering = False  # a timer is about to send what is queued
        self.open = 0  # calls without a result
        self.handle: Entry | None = None  # held while there are open calls
        self.shared = False  # the home is told of each change
        self.retiring = False  # nobody has a handle
        self.timer = 0  # kills one that does not retire in time


class Thief:
    """A worker attached to this client, for one shape."""

    __slots__ = ("alone", "closing", "credit_s", "epoch", "far", "leased", "load_s", "paused", "peer", "queue", "specs")

    def __init__(self, peer: PeerID, epoch: int, queue: "Queue", credit_s: float, *, far: bool = False) -> None:
        self.peer = peer
        self.far = far  # on another host
        self.epoch = epoch
        self.queue = queue
        self.credit_s = credit_s
        self.leased: dict[int, Task] = {}  # {seq: task} sent and not answered, in the order sent
        self.load_s = 0.0  # expected seconds of work leased
        self.alone = False  # the only lease must stay the only one
        self.paused = False  # gave work back: it gets nothing before its next Done
        self.closing = False  # withdrew its steal, or died
        self.specs: dict[int, bool] = {}  # {spec index: True} it already has

    @property
    def idlers(self) -> "dict[PeerID, Thief]":
        """Return the table this thief stands in while it has nothing."""
        return self.queue.far if self.far else self.queue.idle


class Queue:
    """Tasks of one shape that may start now, by priority, and the thieves attached for them."""

    __slots__ = (
        "count",
        "far",
        "idle",
        "key",
        "levels",
        "most",
        "order",
        "peak",
        "shape",
        "spec",
        "thieves",
        "timer",
        "told",
        "told_depth",
        "told_priority",
    )

    def __init__(self, key: ShapeKey, shape: Shape) -> None:
        self.key = key
        self.shape = shape
        self.levels: dict[int, deque[Task]] = {}  # {priority: tasks}; cancelled ones stay until they come up
        self.order: list[int] = []  # priorities, highest first
        self.count = 0  # tasks in state QUEUED in all levels
        self.thieves: dict[PeerID, Thief] = {}
        self.idle: dict[PeerID, Thief] = {}  # those with nothing leased and open for more; last in is first served
        self.far: dict[PeerID, Thief] = {}  # the same on other hosts: they are served after those of this one
        self.most = 1 << 30  # workers of this shape the node can have at once, once it is known
        self.told = 0  # workers of the last Demand
        self.told_depth = 0
        self.told_priority = 0
        self.peak = 0  # most workers that were of use since the timer was set
        self.timer = 0  # set while told may be too high
        self.spec: Spec | None = None  # of the last task pushed, for its job


@dataclass(slots=True)
class Executing:
    """What a worker's black box names: the task it executes, or, if `over`, the last it did."""

    owner: PeerID
    seq: int
    attempt: int
    job: PeerID
    over: bool = False
    start_s: float = 0.0


@dataclass(slots=True)
class Client:
    """A process that said Hello and is alive."""

    kind: str
    pid: int
    config: dict[str, Any] = field(default_factory=dict)


class View:
    """A dependency with live views in this process, read for a victim."""

    __slots__ = ("count", "kept", "victim")

    def __init__(self, victim: PeerID) -> None:
        self.victim = victim
        self.count = 0  # live views
        self.kept = 0  # how many of our Dones listed it


@dataclass(slots=True)
class Limits:
    """What a node allows. Seconds and counts."""

    worker_idle_s: float = 30.0  # an idle worker ends after this time
    surplus_s: float = 2.0  # a client keeps workers it has no work for so long, as its next call then costs 2 messages
    slice_s: float = 0.05  # a worker stays with a client at least so long before another job may have it
    fresh_s: float = 0.005  # nor is a parked one taken before its client could send it anything
    workers_max: int = 512
    zero_cpu_workers_max: int = 64  # attached for shapes without resources
    start_failures_max: int = 3
    start_pause_s: float = 1.0
