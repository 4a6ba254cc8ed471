"""What a node tells of itself: its load to all members, by gossip; its status to whoever asks. In natural units."""

from typing import Any

from zmesh.core.records import BUNDLE, group_of, in_group, outside_group
from zmesh.wire.marks import LABEL, is_mark
from zmesh.wire.messages import UNIT, Shape

BACKLOG_SHAPES_MAX = 16  # told by gossip
NAMES_MAX = 8  # told of what ends with a node


def load(resources: Any, matchmaking: Any, store: tuple[int, int], objects: int) -> dict[str, Any]:
    """Return what gossip tells: overflows of groups first, as few nodes can serve them, then the largest."""
    groups: dict[bytes, int] = {}
    others = []
    for demand in matchmaking.own():
        group = group_of(demand.shape)
        if demand.overflow > 0 and group:
            groups[group] = groups.get(group, 0) + demand.overflow
        elif demand.overflow > 0:
            others.append((dict(demand.needs), demand.overflow))
    backlog = [({f"{BUNDLE}@{group.hex()}": 1}, overflow) for group, overflow in groups.items()]
    backlog += sorted(others, key=lambda pair: -pair[1])
    return {
        "backlog": backlog[:BACKLOG_SHAPES_MAX],
        "available": natural(resources.available),
        "held": natural(resources.held),
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
        "labels": labels(resources.total),
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
        "shape": natural(outside_group(demand.shape)),
        "placement_group": group_of(demand.shape).hex(),
        "workers": demand.workers,
        "attached": len(demand.attached),
        "depth": demand.depth,
        "priority": demand.priority,
        "waits_for": demand.waits_for if demand.lacks > 0 or not demand.workers else "",
    }


def ending(actors: list[dict[str, Any]], groups: list[str]) -> list[str]:
    """Return sentences about what outlives its program and ends with this node: detached actors, and groups by name."""
    told = []
    for kind, names in (("actor(s)", [one["name"] for one in actors]), ("placement group(s)", groups)):
        if names:
            some = ", ".join(names[:NAMES_MAX]) + (", ..." if len(names) > NAMES_MAX else "")
            told.append(f"{len(names)} detached {kind} end with this node: {some}")
    return told


def natural(shape: Shape) -> dict[str, float]:
    """Return amounts as users give them, without marks and what bundles have."""
    return {name: amount / UNIT for name, amount in shape.items() if not is_mark(name) and not in_group(name)}


def labels(shape: Shape) -> dict[str, str]:
    """Return the labels of a node, {key: value}, whose marks are among its resources."""
    pairs = [name.removeprefix(LABEL).partition("=") for name in shape if name.startswith(LABEL)]
    return {key: value for key, equals, value in pairs if equals}
