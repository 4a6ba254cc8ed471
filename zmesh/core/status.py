"""What a node tells of itself: its load to all members, by gossip; its status to whoever asks. In natural units."""

from typing import Any

from zmesh.core.records import is_mark
from zmesh.wire.messages import UNIT, Shape

BACKLOG_SHAPES_MAX = 16  # told by gossip


def load(resources: Any, matchmaking: Any, store: tuple[int, int], objects: int) -> dict[str, Any]:
    """Return what gossip tells: the largest overflows first."""
    lacking = sorted((d for d in matchmaking.own() if d.overflow > 0), key=lambda d: -d.overflow)
    return {
        "backlog": [(dict(demand.shape), demand.overflow) for demand in lacking[:BACKLOG_SHAPES_MAX]],
        "available": natural(resources.available),
        "workers": len(matchmaking.workers),
        "store": list(store),
        "objects": objects,
    }


def status(resources: Any, matchmaking: Any, clients: Any, store: tuple[int, int, int]) -> dict[str, Any]:
    """Return the part of a StatusReply that tells of this host: resources, store, and who runs here."""
    return {
        "clients": [{"peer": peer.hex(), "kind": one.kind, "pid": one.pid} for peer, one in clients.items()],
        "store": dict(zip(("used", "capacity", "spilled"), store, strict=True)),
        "resources": {"total": natural(resources.total), "available": natural(resources.available)},
        "workers": [_worker(worker, matchmaking.executes(worker)) for worker in matchmaking.workers.values()],
        "demands": [_demand(demand) for demand in matchmaking.demands.values()],
    }


def _worker(worker: Any, executing: bool) -> dict[str, Any]:
    blocked = worker.booking is not None and worker.booking.blocked
    return {
        "peer": worker.peer.hex(),
        "pid": worker.pid,
        "state": "blocked" if blocked else worker.state,
        "job": worker.job.hex(),
        "victim": worker.victim.hex(),
        "executing": executing,
    }


def _demand(demand: Any) -> dict[str, Any]:
    return {
        "client": demand.client.hex(),
        "job": demand.job.hex(),
        "shape": natural(demand.shape),
        "workers": demand.workers,
        "attached": len(demand.attached),
        "depth": demand.depth,
        "priority": demand.priority,
        "waits_for": demand.waits_for if demand.lacks > 0 or not demand.workers else "",
    }


def natural(shape: Shape) -> dict[str, float]:
    """Return amounts as users give them, without marks."""
    return {name: amount / UNIT for name, amount in shape.items() if not is_mark(name)}
