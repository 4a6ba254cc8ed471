"""Which node each bundle of a placement group goes to: a search with a limit, the largest bundles first.

    PACK            few nodes, as far as they have room         STRICT_PACK     one node, or nowhere
    SPREAD          many nodes, as far as they have room        STRICT_SPREAD   a node for each, or nowhere

Bin packing is hard, so the search gives up after a number of steps, and says so: then it is not known whether there is
a way. Knows amounts only; who reserves what is core/placement.py's business.
"""

from collections.abc import Iterator

from zmesh.wire.ids import NodeID
from zmesh.wire.messages import UNIT, Shape

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
STEPS_MAX = 5000  # bundles put somewhere and taken back again, before it gives up


def plan(
    strategy: str, bundles: dict[int, Shape], free: dict[NodeID, Shape], placed: list[NodeID]
) -> tuple[dict[int, NodeID] | None, bool]:
    """Find a node for each bundle.

    Args:
        bundles: {index: shape} of those without a node.
        free: {node: what is free there}; of nodes that are as good, the first is taken.
        placed: the nodes of the group's other bundles.

    Returns:
        ({index: node}, True); or (None, whether it is certain that there is no way).
    """
    search = _Search(strategy, bundles, free, placed)
    found = search.run()
    return found, found is not None or search.steps < STEPS_MAX


class _Search:
    """Depth first, one level a bundle."""

    def __init__(
        self, strategy: str, bundles: dict[int, Shape], free: dict[NodeID, Shape], placed: list[NodeID]
    ) -> None:
        self._strategy = strategy
        self._bundles = bundles
        self._free = {node: dict(shape) for node, shape in free.items()}
        self._counts = {node: placed.count(node) for node in free}
        self._strayed = any(node not in free for node in placed)
        most: Shape = {}
        for shape in free.values():
            for name, amount in shape.items():
                most[name] = max(most.get(name, 0), amount)
        size = {i: max(a / max(1, most.get(name, 0)) for name, a in shape.items()) for i, shape in bundles.items()}
        self._order = sorted(bundles, key=lambda index: (-size[index], index))
        self._room = {node: self._fit(dict(shape)) for node, shape in free.items()}
        self.steps = 0

    def _fit(self, free: Shape) -> int:
        """Return how many of the bundles a node could take."""
        count = 0
        for index in self._order:
            if _fits(self._bundles[index], free):
                _add(free, self._bundles[index], -1)
                count += 1
        return count

    def run(self) -> dict[int, NodeID] | None:
        """Return the first way found."""
        chosen: list[NodeID] = []
        levels = [self._candidates(self._order[0])]
        while levels:
            if len(chosen) == len(levels):
                self._put(self._order[len(chosen) - 1], chosen.pop(), back=True)
            node = next(levels[-1], None) if self.steps < STEPS_MAX else None
            if node is None:
                levels.pop()
                continue
            self.steps += 1
            self._put(self._order[len(chosen)], node)
            chosen.append(node)
            if len(chosen) == len(self._order):
                return dict(sorted(zip(self._order, chosen, strict=True)))
            levels.append(self._candidates(self._order[len(chosen)]))
        return None

    def _put(self, index: int, node: NodeID, *, back: bool = False) -> None:
        sign = -1 if back else 1
        _add(self._free[node], self._bundles[index], -sign)
        self._counts[node] += sign

    def _candidates(self, index: int) -> Iterator[NodeID]:
        """Return the nodes a bundle may go to, the best first; of those that are alike only one."""
        shape, counts = self._bundles[index], self._counts
        nodes = [node for node, free in self._free.items() if _fits(shape, free) and self._may(node)]
        sign = -1 if self._strategy.endswith("PACK") else 1
        nodes.sort(key=lambda node: (sign * counts[node], -self._room[node]))
        alike: dict[tuple[object, ...], NodeID] = {}
        for node in nodes:
            alike.setdefault((counts[node], *sorted(self._free[node].items())), node)
        return iter(list(alike.values()))

    def _may(self, node: NodeID) -> bool:
        if self._strategy == "STRICT_SPREAD":
            return not self._counts[node]
        if self._strategy == "STRICT_PACK":
            return self._counts[node] > 0 or not (self._strayed or any(self._counts.values()))
        return True


def why_not(strategy: str, bundles: list[Shape], totals: dict[NodeID, Shape]) -> str:
    """Say why no members like these could ever hold these bundles."""
    most: Shape = {}
    for total in totals.values():
        for name, amount in total.items():
            most[name] = max(most.get(name, 0), amount)
    for index, shape in enumerate(bundles):
        for name, amount in shape.items():
            if amount > most.get(name, 0):
                return (
                    f"bundle {index} needs {name} {amount / UNIT:g}, and no node of the mesh has more than "
                    f"{most.get(name, 0) / UNIT:g} in all"
                )
    how = {
        "STRICT_PACK": "STRICT_PACK needs one node that can hold all of its bundles",
        "STRICT_SPREAD": f"STRICT_SPREAD needs {len(bundles)} nodes that can hold one bundle each",
    }.get(strategy, "its bundles together need more than the nodes have")
    return f"{how}, and the mesh has {len(totals)} node{'s' if len(totals) != 1 else ''}"


def _fits(shape: Shape, free: Shape) -> bool:
    return all(amount <= free.get(name, 0) for name, amount in shape.items())


def _add(target: Shape, shape: Shape, sign: int) -> None:
    for name, amount in shape.items():
        target[name] = target.get(name, 0) + sign * amount
