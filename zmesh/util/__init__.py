"""Other interfaces, built on the face alone."""

# As in Ray, `zmesh.util.placement_group` is the function; the module of that name is what imports name.
from zmesh.util import scheduling_strategies
from zmesh.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

__all__ = [
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
    "scheduling_strategies",
]
