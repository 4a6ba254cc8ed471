"""The node's role: wires the books, the matchmaking and the directory, and knows who is there. Wiring only.

Every input carries the time; what to send, fork, kill or forget comes out as effects.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh.core.directory import Directory
from zmesh.core.effects import Effect, KillProcess, Send, Warn
from zmesh.core.matchmaking import ATTACHED, DETACHING, IDLE, STARTING, Limits, Matchmaking, Worker
from zmesh.core.resources import Resources
from zmesh.core.timers import Timers
from zmesh.wire.ids import NodeID, PeerID
from zmesh.wire.messages import (
    PROTOCOL_MAJOR,
    UNIT,
    Blocked,
    Buried,
    Demand,
    Fetch,
    Free,
    FreeSegments,
    Goodbye,
    Hello,
    Hold,
    Kill,
    Log,
    Promote,
    Release,
    Resolve,
    Shape,
    StatusReply,
    StatusRequest,
    Unblocked,
    Welcome,
    WorkerDied,
)

__all__ = ["Executing", "Limits", "NodeCore"]


@dataclass(slots=True)
class Executing:
    """What a worker's black box names: the task it executes, or, if `over`, the last it did."""

    owner: PeerID
    seq: int
    attempt: int
    job: PeerID
    over: bool = False


@dataclass(slots=True)
class Client:
    """A process that said Hello and is alive."""

    kind: str
    pid: int
    config: dict[str, Any] = field(default_factory=dict)


class NodeCore:
    """The state of one node and all its inputs.

    Args:
        node: its ID; `pid` its process.
        total: what it has, in units of 1/10,000.
        rng: the only source of chance.
        black_box: reads the black box in a slot; None if no user code ever ran there.
        reserve, release: book and free bytes of the store for inline values.
    """

    def __init__(
        self,
        node: NodeID,
        pid: int,
        total: Shape,
        rng: random.Random,
        effects: list[Effect],
        timers: Timers,
        black_box: Callable[[int], Executing | None],
        limits: Limits,
        *,
        reserve: Callable[[int], bool] = lambda nbytes: True,
        release: Callable[[int], None] = lambda nbytes: None,
    ) -> None:
        self.node = node
        self._pid = pid
        self._effects = effects
        self._black_box = black_box
        self._clients: dict[PeerID, Client] = {}
        self._store = (0, 0)
        self._mourners: dict[PeerID, dict[PeerID, bool]] = {}  # {dead worker: clients that have not buried it}
        self.resources = Resources(total)
        self.matchmaking = Matchmaking(
            node,
            rng,
            effects,
            timers,
            limits,
            resources=self.resources,
            executing=self._executing,
            config_of=lambda job: self._clients[job].config if job in self._clients else {},
        )
        self.directory = Directory(effects, alive=self._clients.__contains__, reserve=reserve, release=release)
        directory = self.directory
        self._inputs: dict[type[Any], Callable[[PeerID, Any, float], None]] = {
            Hello: self._hello,
            Goodbye: lambda peer, _, now: self.client_ended(peer, now),
            Demand: self._demand,
            Free: self._free,
            Blocked: self._blocked,
            Unblocked: self._unblocked,
            Kill: self._kill,
            StatusRequest: self._status_request,
            Promote: lambda peer, m, now: directory.promote(peer, m.request, m.objects),
            Resolve: lambda peer, m, now: directory.resolve(m.objects),
            Hold: lambda peer, m, now: directory.hold(peer, m.request, m.holders),
            Release: lambda peer, m, now: directory.release(peer, m.objects),
            Fetch: lambda peer, m, now: directory.fetch(peer, m.objects),
            Buried: self._buried,
            FreeSegments: lambda peer, m, now: directory.free_segments(m.segments),
        }

    def _executing(self, slot: int) -> Executing | None:
        """Return what runs in a slot now."""
        box = self._black_box(slot)
        return None if box is None or box.over else box

    # From clients.

    def receive(self, peer: PeerID, message: Any, now: float) -> None:
        """Take one message. What makes no sense is dropped with a warning."""
        handle = self._inputs.get(type(message))
        if handle is None:
            self._effects.append(Warn(f"{type(message).__name__} from {peer.hex()} is not for a node: dropped"))
        elif peer not in self._clients and type(message) is not Hello:
            return  # the last words of a process whose death is known already
        else:
            handle(peer, message, now)

    def _hello(self, peer: PeerID, message: Hello, now: float) -> None:
        worker = self.matchmaking.workers.get(peer)
        refused = ""
        if message.major != PROTOCOL_MAJOR:
            refused = f"the node speaks version {PROTOCOL_MAJOR} of the protocol, you {message.major}"
        elif message.kind not in ("driver", "worker", "observer"):
            refused = f"{message.kind!r} is no kind of client"
        elif message.kind == "worker" and (worker is None or worker.state != STARTING):
            refused = "this node did not start you"
        self._effects.append(Send(peer, Welcome(self.node, self._pid, dict(self.resources.total), refused)))
        if refused:
            return
        self._clients[peer] = Client(message.kind, message.pid, dict(message.config))
        if worker is not None:
            worker.pid = message.pid
            self.matchmaking.said_hello(worker, now)

    def _demand(self, peer: PeerID, m: Demand, now: float) -> None:
        self.matchmaking.demand(peer, m.job, dict(m.shape), m.workers, m.depth, m.priority, now)

    def _free(self, peer: PeerID, message: Free, now: float) -> None:
        worker = self.matchmaking.workers.get(peer)
        if worker is not None:
            self.matchmaking.free(worker, message.epoch, now)
            if worker.state == IDLE and worker.job and worker.job not in self._clients:
                self.matchmaking.stop(worker)

    def _blocked(self, peer: PeerID, message: Blocked, now: float) -> None:
        del message
        worker = self.matchmaking.workers.get(peer)
        if worker is not None:
            self.matchmaking.blocked(worker, now)

    def _unblocked(self, peer: PeerID, message: Unblocked, now: float) -> None:
        del message, now
        worker = self.matchmaking.workers.get(peer)
        if worker is not None:
            self.matchmaking.unblocked(worker)

    def _kill(self, peer: PeerID, message: Kill, now: float) -> None:
        """Kill a worker that still executes that very attempt; else its result or its death is on the way."""
        del now
        worker = self.matchmaking.workers.get(message.worker)
        box = self._executing(worker.slot) if worker is not None else None
        if worker is None or box is None or (box.owner, box.seq, box.attempt) != (peer, message.seq, message.attempt):
            return
        worker.reason = message.reason
        self._effects.append(KillProcess(worker.peer))

    def _status_request(self, peer: PeerID, message: StatusRequest, now: float) -> None:
        self._effects.append(Send(peer, StatusReply(message.request, self.status(now))))

    # From the processes of this host.

    def worker_started(self, peer: PeerID, pid: int, now: float) -> None:
        """The forkserver forked a worker; it will say Hello itself."""
        del now
        worker = self.matchmaking.workers.get(peer)
        if worker is not None:
            worker.pid = pid

    def worker_ended(self, peer: PeerID, status: int, now: float, tail: str, reason: str) -> None:
        """A worker was reaped. Its black box must still be as it left it.

        Args:
            status: what waitpid gave.
            tail: the last of its stderr.
            reason: "oom" if the kernel killed it for want of memory; else ours counts.
        """
        worker = self.matchmaking.workers.get(peer)
        if worker is None:
            return
        box = self._black_box(worker.slot)
        owner, seq, attempt = (box.owner, box.seq, box.attempt) if box is not None else (b"", 0, 0)
        self.matchmaking.gone(worker, now)
        self._clients.pop(peer, None)
        mourners = {victim: True for victim in worker.victims if victim in self._clients}
        notice = WorkerDied(peer, worker.pid, status, owner, seq, attempt, worker.reason or reason, tail)
        notice.over = box is not None and box.over
        self._effects += [Send(victim, notice) for victim in mourners]
        self._client_died(peer, mourners)
        self.matchmaking.match(now)

    def _buried(self, peer: PeerID, message: Buried, now: float) -> None:
        """A victim has taken in all that a dead worker sent it; when all have, what the worker held may go."""
        del now
        mourners = self._mourners.get(message.worker)
        if mourners is not None:
            mourners.pop(peer, None)
            if not mourners:
                del self._mourners[message.worker]
                self.directory.holder_died(message.worker)

    def client_ended(self, peer: PeerID, now: float) -> None:
        """A driver or observer is gone, or said goodbye."""
        client = self._clients.pop(peer, None)
        if client is None:
            return
        self._client_died(peer, {})
        for worker in list(self.matchmaking.workers.values()):
            if worker.job != peer:
                continue
            box = self._executing(worker.slot)
            if worker.state == IDLE:
                self.matchmaking.stop(worker)
            elif box is not None and box.job == peer:
                self._effects.append(KillProcess(worker.peer))
        self.matchmaking.match(now)

    def _client_died(self, peer: PeerID, mourners: dict[PeerID, bool]) -> None:
        for dead in [dead for dead, left in self._mourners.items() if peer in left]:
            self._buried(peer, Buried(dead), 0.0)
        for worker in self.matchmaking.client_gone(peer):
            box = self._executing(worker.slot)
            if box is not None and box.owner == peer:
                self._effects.append(KillProcess(worker.peer))
            if worker.state in (ATTACHED, DETACHING):
                self.matchmaking.leave(worker)
        self.directory.owner_died(peer)
        if mourners:
            self._mourners[peer] = mourners
        else:
            self.directory.holder_died(peer)

    def log(self, peer: PeerID, name: str, stream: int, text: str, now: float) -> None:
        """A worker wrote whole lines: they go to the driver of its job."""
        del now
        worker = self.matchmaking.workers.get(peer)
        if worker is not None and worker.job in self._clients:
            self._effects.append(Send(worker.job, Log(worker.pid, name, stream, text)))

    def store_report(self, used: int, capacity: int) -> None:
        """Note how full the store is, in bytes, for the status."""
        self._store = (used, capacity)

    def segments_in_use(self) -> list[int]:
        """Return the segments that shared objects lie in."""
        return self.directory.segments_in_use()

    # Outputs.

    def status(self, now: float) -> dict[str, Any]:
        """Return what StatusReply carries; amounts in natural units."""
        del now
        return {
            "node": self.node.hex(),
            "pid": self._pid,
            "resources": {"total": _natural(self.resources.total), "available": _natural(self.resources.available)},
            "workers": [self._worker_status(worker) for worker in self.matchmaking.workers.values()],
            "clients": [
                {"peer": peer.hex(), "kind": client.kind, "pid": client.pid} for peer, client in self._clients.items()
            ],
            "demands": [
                {
                    "client": demand.client.hex(),
                    "job": demand.job.hex(),
                    "shape": _natural(demand.shape),
                    "workers": demand.workers,
                    "attached": len(demand.attached),
                    "depth": demand.depth,
                    "priority": demand.priority,
                    "waits_for": demand.waits_for if demand.lacks > 0 or not demand.workers else "",
                }
                for demand in self.matchmaking.demands.values()
            ],
            "store": {"used": self._store[0], "capacity": self._store[1]},
            "objects": len(self.directory),
        }

    def _worker_status(self, worker: Worker) -> dict[str, Any]:
        blocked = worker.booking is not None and worker.booking.blocked
        return {
            "peer": worker.peer.hex(),
            "pid": worker.pid,
            "state": "blocked" if blocked else worker.state,
            "job": worker.job.hex(),
            "victim": worker.victim.hex(),
            "executing": self._executing(worker.slot) is not None,
        }

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        self.resources.check()
        self.matchmaking.check()
        self.directory.check()


def _natural(shape: Shape) -> dict[str, float]:
    return {name: amount / UNIT for name, amount in shape.items()}
