"""What a process held since it was last asked: references move, so what it holds just now would not tell.

A warden of a replica asks everybody in rounds (core/orphans.py). Between two rounds somebody holds a reference that is
still needed, and says so in the second, though it may have passed it on, before it was asked, to one asked already.
"""

from collections.abc import Callable

from zmesh.wire.ids import NodeID, ObjectID


class Sightings:
    """The memory of one process.

    Args:
        holds: whether it holds an object now.
    """

    def __init__(self, holds: Callable[[ObjectID], bool]) -> None:
        self._holds = holds
        self._since: dict[NodeID, dict[ObjectID, bool]] = {}  # {warden: {object it asked for: held since then?}}

    def asked(self, warden: NodeID, objects: list[ObjectID]) -> list[ObjectID]:
        """Return those of these that were held since that warden asked last; what it never asked for counts as held."""
        before = self._since.pop(warden, {})
        if objects:
            self._since[warden] = dict.fromkeys(objects, False)
        return [oid for oid in objects if before.get(oid, True) or self._holds(oid)]

    def let_go(self, oid: ObjectID) -> None:
        """An object is not held any more."""
        for since in self._since.values():
            if oid in since:
                since[oid] = True

    def warden_gone(self, node: NodeID) -> None:
        """That node will not ask again."""
        self._since.pop(node, None)
