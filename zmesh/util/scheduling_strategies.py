"""Where a task should run, for scheduling_strategy=: on one node, on labelled nodes, in a placement group."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zmesh import label_selectors, options
from zmesh.exceptions import ConfigError
from zmesh.util.placement_group import PlacementGroup
from zmesh.wire.marks import LABEL, NODE


@dataclass(frozen=True)
class NodeAffinitySchedulingStrategy:
    """Run on the node `node_id` (hexadecimal, as in zmesh.status()); `soft`: elsewhere if it is not there.

    Raises:
        ConfigError: that is no node ID.
    """

    node_id: str
    soft: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.node_id, str) or not self.node_id:
            raise ConfigError(f"node_id must be the hexadecimal ID of a node, not {self.node_id!r}")

    def hard_marks(self) -> tuple[str, ...]:
        """Return the marks a node must have."""
        return () if self.soft else (f"{NODE}{self.node_id}",)

    def soft_marks(self) -> tuple[str, ...]:
        """Return the marks a node should have, if there is one."""
        return (f"{NODE}{self.node_id}",) if self.soft else ()


class In:
    """The label has one of these values."""

    def __init__(self, *values: str) -> None:
        self.values = values

    def mark(self, key: str) -> str:
        """Return what such a node has."""
        return label_selectors.any_of(key, self.values)


class NotIn:
    """The label has none of these values, or the node lacks it."""

    def __init__(self, *values: str) -> None:
        self.values = values

    def mark(self, key: str) -> str:
        """Return what such a node has."""
        return label_selectors.none_of(key, self.values)


class Exists:
    """The node has the label, whatever its value."""

    def mark(self, key: str) -> str:
        """Return what such a node has."""
        return f"{LABEL}{key}"


class DoesNotExist:
    """The node lacks the label."""

    def mark(self, key: str) -> str:
        """Return what such a node has."""
        return label_selectors.absent(key)


_Condition = In | NotIn | Exists | DoesNotExist | str


@dataclass(frozen=True)
class NodeLabelSchedulingStrategy:
    """Run on a node whose labels (`zmesh up --label KEY=VALUE`) meet all of `hard`, and all of `soft` if there is one.

    Both map a label's key to In(*values), NotIn(*values), Exists(), DoesNotExist() or a plain value.

    Raises:
        ConfigError: one of them is something else.
    """

    hard: Mapping[str, _Condition] = field(default_factory=dict)
    soft: Mapping[str, _Condition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for wanted in (self.hard, self.soft):
            if not isinstance(wanted, Mapping) or not all(isinstance(one, _Condition) for one in wanted.values()):
                raise ConfigError(f'hard= and soft= must be dicts such as {{"zone": In("a", "b")}}, not {wanted!r}')
            _marks(wanted)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.hard_marks())), tuple(sorted(self.soft_marks()))))

    def hard_marks(self) -> tuple[str, ...]:
        """Return the marks a node must have."""
        return _marks(self.hard)

    def soft_marks(self) -> tuple[str, ...]:
        """Return the marks a node should have, if there is one."""
        return _marks(self.soft)


@dataclass(frozen=True)
class PlacementGroupSchedulingStrategy:
    """Run in a bundle of a placement group.

    Args:
        placement_group: the group; None: in none, though the task that submits is in one that captures its children.
        placement_group_bundle_index: which bundle; -1: any in which there is room.
        placement_group_capture_child_tasks: tasks that this one submits run in the group too, unless they say where.

    Raises:
        ConfigError: that is no group, or it has no such bundle.
    """

    placement_group: PlacementGroup | None
    placement_group_bundle_index: int = -1
    placement_group_capture_child_tasks: bool | None = False

    def __post_init__(self) -> None:
        group, index = self.placement_group, self.placement_group_bundle_index
        if group is not None and not isinstance(group, PlacementGroup):
            raise ConfigError(f"placement_group must be what placement_group() returned, or None, not {group!r}")
        count = group.bundle_count if group is not None else 0
        if type(index) is not int or not -1 <= index < max(1, count):
            raise ConfigError(
                f"placement_group_bundle_index must be from 0 to {count - 1}, or -1 for any bundle, not {index!r}"
            )

    @property
    def group(self) -> dict[str, Any] | None:
        """What the task is to know of its group."""
        group = self.placement_group
        if group is None:
            return None
        capture = bool(self.placement_group_capture_child_tasks)
        return {"id": group.id.hex(), "bundles": group.bundle_specs, "capture": capture}

    def within(self, plain: dict[str, int]) -> dict[str, int]:
        """Return a shape as it is booked from the bundle.

        Raises:
            ConfigError: it does not fit.
        """
        group = self.placement_group
        if group is None:
            return plain
        return options.in_bundle(plain, group.id.hex(), group.bundle_specs, self.placement_group_bundle_index)

    def hard_marks(self) -> tuple[str, ...]:
        """Return the marks a node must have: none, as only nodes with the bundle have what it holds."""
        return ()

    def soft_marks(self) -> tuple[str, ...]:
        """Return the marks a node should have."""
        return ()


def _marks(wanted: Mapping[str, _Condition]) -> tuple[str, ...]:
    return tuple((In(one) if isinstance(one, str) else one).mark(key) for key, one in wanted.items())
