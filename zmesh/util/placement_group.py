"""Placement groups: resources of several tasks, reserved together, on one node or on several."""

from collections.abc import Sequence
from typing import Any

from zmesh import api
from zmesh.exceptions import (
    ConfigError,
    PlacementGroupUnschedulableError,
    TaskPlacementGroupRemovedError,
)
from zmesh.limits import is_amount, is_text
from zmesh.options import UNIT
from zmesh.wire.marks import is_mark

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
BUNDLES_MAX = 10_000
NODE_ID_BYTES = 8  # of the coordinator, with which an ID begins


class PlacementGroup:
    """A handle of a placement group; it may be passed to tasks. Any thread.

    Attributes:
        id: 16 bytes; `id.hex()` as in the table.
        bundle_specs: what each bundle holds, {name: amount}.
    """

    def __init__(self, id: bytes, bundle_specs: list[dict[str, float]]) -> None:  # noqa: A002  # Ray's name
        self.id = id
        self.bundle_specs = bundle_specs

    @property
    def bundle_count(self) -> int:
        """How many bundles it has."""
        return len(self.bundle_specs)

    def ready(self) -> Any:
        """Return an ObjectRef that gets this group as its value once all bundles are reserved.

        `get` of it raises PlacementGroupUnschedulableError if no nodes like those of the mesh could ever hold them, and
        TaskPlacementGroupRemovedError if the group is no more.
        """
        return api.auto_init().group_ready(self.id, self)

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Wait for the bundles; returns whether they are reserved."""
        ref = self.ready()
        if not api.wait([ref], timeout=timeout_seconds)[0]:
            return False
        try:
            api.get(ref)
        except (PlacementGroupUnschedulableError, TaskPlacementGroupRemovedError):
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (self.id, self.bundle_specs)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()}, {self.bundle_specs})"


def placement_group(
    bundles: Sequence[dict[str, float]], strategy: str = "PACK", name: str = "", lifetime: str | None = None
) -> PlacementGroup:
    """Reserve resources of several tasks together: all bundles or none. Does not wait for them.

    The group ends with `remove_placement_group`, with the program unless it is detached, or with the node it was made
    on.

    Args:
        bundles: what each holds, e.g. `[{"CPU": 1, "GPU": 1}] * 4`; a bundle lies on one node.
        strategy: "PACK": on few nodes; "SPREAD": on many; "STRICT_PACK": on one, or not at all; "STRICT_SPREAD": each
            on another, or not at all.
        name: for `get_placement_group`; unique among the groups of the mesh.
        lifetime: "detached": it outlives the program; None: it ends with it.

    Raises:
        ConfigError: an argument makes no sense; the text says what would.

    Example:
        >>> group = zmesh.util.placement_group([{"CPU": 1}])
        >>> group.wait(10)
        True
        >>> zmesh.util.remove_placement_group(group)
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
    if not is_text(name):
        raise ConfigError(f"name must be a string that can be encoded as text, not {name!r}")
    if lifetime not in (None, "detached"):
        raise ConfigError(f"lifetime must be None or 'detached', not {lifetime!r}")
    if not isinstance(bundles, list | tuple) or not 0 < len(bundles) <= BUNDLES_MAX:
        raise ConfigError(f"bundles must be a list of 1 to {BUNDLES_MAX:,} dicts of resources, not {bundles!r:.200}")
    specs = [_bundle(index, bundle) for index, bundle in enumerate(bundles)]
    shapes = [{one: max(1, round(amount * UNIT)) for one, amount in spec.items()} for spec in specs]
    session = api.auto_init()
    return PlacementGroup(session.create_group(name, strategy, shapes, detached=lifetime == "detached"), specs)


def _bundle(index: int, bundle: Any) -> dict[str, float]:
    """Return a bundle as it is reserved: without zeros."""
    if not isinstance(bundle, dict) or not bundle:
        raise ConfigError(f'bundle {index} must be a dict such as {{"CPU": 1}}, not {bundle!r}')
    for name, amount in bundle.items():
        if not is_text(name) or not is_amount(amount):
            raise ConfigError(f"bundle {index} must map names to numbers from 0, not {name!r} to {amount!r}")
        if "@" in name or name == "bundle" or is_mark(name):
            raise ConfigError(f"{name!r} in bundle {index} is no resource")
        if name == "GPU" and amount > 1 and amount != int(amount):
            raise ConfigError(f"GPU above 1 must be a whole number, not {amount!r} as in bundle {index}")
    spec = {name: amount for name, amount in bundle.items() if amount}
    if not spec:
        raise ConfigError(f"bundle {index} holds nothing: at least one amount must be above 0")
    return spec


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """End a group: what runs in it is killed, what waits for it fails with TaskPlacementGroupRemovedError."""
    _check(placement_group)
    api.auto_init().remove_group(placement_group.id)


def _check(group: Any) -> None:
    if not isinstance(group, PlacementGroup):
        raise ConfigError(f"that is no PlacementGroup: {group!r}")


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """Return the group of that name, from any program of the mesh.

    Raises:
        ConfigError: there is none.
    """
    if not is_text(placement_group_name) or not placement_group_name:
        raise ConfigError(f"the name of a placement group is a string of text, not {placement_group_name!r}")
    found = api.auto_init().find_group(placement_group_name)
    if found is None:
        raise ConfigError(f"no placement group is named {placement_group_name!r}: it was not made yet, or was removed")
    return PlacementGroup(*found)


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """Return what the mesh knows of one group, or {ID: the same} of all, the last that ended included.

    The keys are placement_group_id, name, strategy, state ("PENDING", "CREATED", "RESCHEDULING", "INFEASIBLE",
    "REMOVED"), why, bundles ({index: {name: amount}}) and bundles_to_node_id ({index: ID, or "" of none}).
    """
    if placement_group is not None:
        _check(placement_group)
    session = api.auto_init()
    here = session.status()
    living = [one["node"] for one in here.get("members", ()) if one["state"] in ("alive", "suspect")] or [here["node"]]
    if placement_group is not None:
        living = [node for node in living if node == placement_group.id[:NODE_ID_BYTES].hex()]
    tables: dict[str, Any] = {}
    for node in living:
        told = here if node == here["node"] else session.status(node=node)
        tables |= told.get("placement_groups", {})
    if placement_group is None:
        return tables
    specs = dict(enumerate(placement_group.bundle_specs))
    gone = {
        "placement_group_id": placement_group.id.hex(),
        "name": "",
        "strategy": "",
        "state": "REMOVED",
        "why": "no node knows of it",
        "bundles": specs,
        "bundles_to_node_id": dict.fromkeys(specs, ""),
    }
    found: dict[str, Any] = tables.get(placement_group.id.hex(), gone)
    return found


def get_current_placement_group() -> PlacementGroup | None:
    """Return the group that the running task is in; None in a driver, or if it is in none."""
    group = api.current_group()
    return (
        None if group is None else PlacementGroup(bytes.fromhex(group["id"]), [dict(one) for one in group["bundles"]])
    )
