"""Where a task should run, for scheduling_strategy=: on one node, or on nodes with certain labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from zmesh.exceptions import ConfigError


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
        return () if self.soft else (f"node:{self.node_id}",)

    def soft_marks(self) -> tuple[str, ...]:
        """Return the marks a node should have, if there is one."""
        return (f"node:{self.node_id}",) if self.soft else ()


@dataclass(frozen=True)
class In:
    """The label has this value."""

    value: str

    def mark(self, key: str) -> str:
        """Return what such a node has."""
        return f"label:{key}={self.value}"


@dataclass(frozen=True)
class Exists:
    """The node has the label, whatever its value."""

    def mark(self, key: str) -> str:
        """Return what such a node has."""
        return f"label:{key}"


@dataclass(frozen=True)
class NodeLabelSchedulingStrategy:
    """Run on a node whose labels (`zmesh up --label KEY=VALUE`) meet all of `hard`, and all of `soft` if there is one.

    Both map a label's key to In(value), Exists() or a plain value.
    """

    hard: Mapping[str, In | Exists | str] = field(default_factory=dict)
    soft: Mapping[str, In | Exists | str] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.hard_marks())), tuple(sorted(self.soft_marks()))))

    def hard_marks(self) -> tuple[str, ...]:
        """Return the marks a node must have."""
        return _marks(self.hard)

    def soft_marks(self) -> tuple[str, ...]:
        """Return the marks a node should have, if there is one."""
        return _marks(self.soft)


def _marks(wanted: Mapping[str, In | Exists | str]) -> tuple[str, ...]:
    return tuple(f"label:{key}={one}" if isinstance(one, str) else one.mark(key) for key, one in wanted.items())
