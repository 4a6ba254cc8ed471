"""Other interfaces, built on the face alone; and looking around among named actors."""

from typing import Any

from zmesh import api

# As in Ray, `zmesh.util.placement_group` is the function; the module of that name is what imports name.
from zmesh.util import scheduling_strategies
from zmesh.util.actor_pool import ActorPool
from zmesh.util.helpers import as_completed, map_unordered
from zmesh.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from zmesh.util.serialization import deregister_serializer, inspect_serializability, register_serializer

__all__ = [
    "ActorPool",
    "PlacementGroup",
    "as_completed",
    "deregister_serializer",
    "get_current_placement_group",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "map_unordered",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
    "scheduling_strategies",
]


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Return the names of the living actors that have one: of this program's namespace, or of all.

    Returns:
        Texts; with all_namespaces dicts: {"namespace": ..., "name": ...}.
    """
    session = api.auto_init()
    names = session.actors.names()
    if all_namespaces:
        return [{"namespace": namespace, "name": name} for namespace, name in names]
    return [name for namespace, name in names if namespace == session.actors.namespace]
