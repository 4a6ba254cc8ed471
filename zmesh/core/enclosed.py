"""Objects of other homes that values counted here contain: this node holds them for these values, at their homes.

The owner of a value tells a far home to count this node, as its own Release goes the same way (core/nested.py); this
node says when that ends. Who is counted at this node for what is core/directory.py's business.
"""

from collections.abc import Callable, Iterable

from zmesh.core.effects import Effect, Send
from zmesh.wire.death_messages import Vouch
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID, node_peer
from zmesh.wire.messages import Release


class Enclosed:
    """What the values of one node contain of others' objects.

    Attributes:
        wake: told when something is held.
        let_go: told of each object that is held no more.
    """

    def __init__(self, node: NodeID, effects: list[Effect]) -> None:
        self._node = node
        self._effects = effects
        self.wake: Callable[[], None] = lambda: None
        self.let_go: Callable[[ObjectID], None] = lambda oid: None
        self._held: dict[ObjectID, int] = {}  # {object of another home: how often values here contain it}

    def _far(self, inside: list[ObjectID]) -> list[ObjectID]:
        return [oid for oid in inside if oid[:NODE_ID_BYTES] != self._node]

    def added(self, inside: list[ObjectID]) -> None:
        """A value that is counted from now on contains these; its owner has us counted for them."""
        for oid in self._far(inside):
            self._held[oid] = self._held.get(oid, 0) + 1
            self.wake()

    def removed(self, inside: list[ObjectID], *, clean: bool) -> None:
        """A value that contained these is no more."""
        for oid in self._far(inside):
            holds = self._held.pop(oid, 0)
            if holds:
                self._release(oid, clean)
            if holds > 1:
                self._held[oid] = holds - 1
            else:
                self.let_go(oid)

    def refused(self, inside: list[ObjectID]) -> None:
        """A value that contains these is not counted here, though its owner had us counted for them."""
        for oid in self._far(inside):
            self._release(oid, clean=True)

    def vouch(self, inside: Iterable[ObjectID]) -> None:
        """Who was to have us counted for these is dead: have their homes count us if they do not."""
        by_home: dict[NodeID, dict[ObjectID, int]] = {}
        for oid in inside:
            if oid in self._held:
                by_home.setdefault(oid[:NODE_ID_BYTES], {})[oid] = self._held[oid]
        self._effects += [Send(node_peer(home), Vouch(0, list(holds.items()))) for home, holds in by_home.items()]

    def _release(self, oid: ObjectID, clean: bool) -> None:
        self._effects.append(Send(node_peer(oid[:NODE_ID_BYTES]), Release([(oid, 1, clean)])))

    def holds(self, oid: ObjectID) -> bool:
        """Whether a value here contains that object."""
        return oid in self._held

    def held(self) -> Iterable[tuple[ObjectID, int]]:
        """Return (object, number of holds) of all."""
        return self._held.items()

    def lost(self, oids: list[ObjectID]) -> None:
        """Their home says that these are gone."""
        for oid in oids:
            self._held.pop(oid, None)
