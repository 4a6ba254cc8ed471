"""The workers of a node, and what clients demand of them: the records of core/matchmaking.py. No rules."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh.core.records import ShapeKey, environment_of, without_environment
from zmesh.wire.ids import PeerID
from zmesh.wire.messages import Shape

STARTING, IDLE, ATTACHED, DETACHING, STOPPING = "starting", "idle", "attached", "detaching", "stopping"
SERVING = "serving"  # an actor, until it ends
AHEAD_S = 0.5  # one that becomes an actor so soon after the last of its demand is one of many


@dataclass(slots=True)
class Worker:
    """A worker of this node."""

    peer: PeerID
    slot: int
    pid: int = 0
    state: str = STARTING
    job: PeerID = b""  # fixed by its first Attach: its modules are those of one program
    environment: str = ""  # fixed with it: what it has set up for one runtime environment is never undone
    victim: PeerID = b""
    epoch: int = 0
    booking: Any = None
    attached_s: float = 0.0
    idle_s: float = 0.0  # since when
    demand: "Demanded | None" = None
    detached_for: "Demanded | None" = None
    victims: dict[PeerID, bool] = field(default_factory=dict)  # {client: True} it ever served
    reason: str = ""  # why it was killed
    detail: str = ""  # the same at length


@dataclass(slots=True)
class Demanded:
    """What one client told of one shape."""

    client: PeerID
    job: PeerID
    shape: Shape
    key: ShapeKey
    order: int
    workers: int = 0
    depth: int = 0
    priority: int = 0
    attached: dict[PeerID, Worker] = field(default_factory=dict)
    waits_for: str = ""
    claiming: bool = False  # workers were detached for it: what they free is its own, before anybody else's
    surplus_timer: int = 0
    born_s: float = 0.0
    far: bool = False  # the client is on another host, whose node leased us this
    number: int = 0  # of that lease
    lent: int = 0  # workers of other nodes that may serve it, by our leave
    overflow: int = 0  # workers it lacks and this node cannot give now
    settled_s: float = -AHEAD_S  # when a worker of it became an actor
    grant: Callable[[float], None] | None = None  # of bundles to be reserved: called when they fit, instead of workers
    environment: str = field(init=False)  # its workers serve this one only
    needs: Shape = field(init=False)  # of the node's resources

    def __post_init__(self) -> None:
        self.environment = environment_of(self.shape)
        self.needs = without_environment(self.shape)

    @property
    def lacks(self) -> int:
        """Workers it could use and does not have. A blocked one is of no use: what it waits for may be queued here."""
        return self.workers - self.lent - self.serving

    @property
    def serving(self) -> int:
        """Workers of this node attached and not blocked."""
        return sum(not worker.booking.blocked for worker in self.attached.values())
