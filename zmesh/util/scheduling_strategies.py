"""Where a task should run, for scheduling_strategy=. On one host all of them mean: here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NodeAffinitySchedulingStrategy:
    """Run on the node `node_id` (hexadecimal, as in zmesh.nodes()); `soft`: elsewhere if it is not there."""

    node_id: str
    soft: bool = False

    zmesh_strategy = "affinity"
