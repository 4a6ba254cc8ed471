"""The participant's half of placement groups: what this node has set aside for groups, and until when.

    WAITING --room--> HELD --Commit--> COMMITTED
       |                |                  |
       '--no room, too long, ReleaseBundles, death of the coordinator--> gone

A node commits its own resources only. What other groups hold it does not wait for, it refuses at once: so nobody holds
one thing while he waits for another's. For tasks it waits, as they end or make way. Which node is to hold what is the
business of core/placement.py, on the coordinator.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zmesh.core.records import in_group, is_bundle
from zmesh.core.timers import Timers
from zmesh.wire.group_messages import AskGroup, Refused, ReleaseBundles, Reserve, Reserved
from zmesh.wire.ids import NODE_ID_BYTES, NodeID
from zmesh.wire.marks import is_mark
from zmesh.wire.messages import Shape

ASK_S = 5.0  # a reservation that is not committed by then makes its node ask

WAITING, HELD, COMMITTED = "waiting", "held", "committed"


@dataclass(slots=True)
class Part:
    """Bundles of one group that were asked of this node together."""

    group: bytes
    epoch: int
    shapes: dict[int, Shape]
    state: str = WAITING
    timer: int = 0  # patience while WAITING, then until we ask


class Bundles:
    """Parts of groups on one node.

    Args:
        resources: the node's; see core/resources.py.
        tell: says something to a node, this one too: (node, message, now).
        want: has a function called when a shape is free: (group, shape, grant, now).
        unwant: forgets that: (group).
        evict: ends what runs in bundles that were dropped: (bundles, now).
        refuse: whether this node takes on nothing more.
    """

    def __init__(
        self,
        timers: Timers,
        resources: Any,
        *,
        tell: Callable[[NodeID, Any, float], None],
        want: Callable[[bytes, Shape, Callable[[float], None], float], None],
        unwant: Callable[[bytes], None],
        evict: Callable[[list[Any], float], None],
        refuse: Callable[[], bool],
    ) -> None:
        self._timers = timers
        self._resources = resources
        self._tell = tell
        self._want = want
        self._unwant = unwant
        self._evict = evict
        self._refuse = refuse
        self._parts: dict[tuple[bytes, int], Part] = {}  # {(group, epoch): part}

    # From coordinators.

    def reserve(self, node: NodeID, m: Reserve, now: float) -> None:
        """Set these bundles aside, now or when tasks have made way; answered by Reserved or Refused."""
        shapes = _sane(m.bundles)
        whole = _sum(shapes)
        if m.group[:NODE_ID_BYTES] != node or (m.group, m.epoch) in self._parts:
            return
        taken = any((m.group, index) in self._resources.bundles for index in shapes)
        if not shapes or taken or self._refuse() or not self._resources.room(whole):
            self._tell(node, Refused(m.group, m.epoch, {} if self._refuse() else self._free()), now)
            return
        part = self._parts[m.group, m.epoch] = Part(m.group, m.epoch, shapes)
        part.timer = self._timers.set(now + m.patience_s, lambda then: self._give_up(part, then))
        self._want(m.group, whole, lambda then: self._granted(part, then), now)

    def _granted(self, part: Part, now: float) -> None:
        if not self._resources.hold(part.group, part.shapes):  # as GPUs that are halves do not make a whole
            self._give_up(part, now)
            return
        self._timers.cancel(part.timer)
        part.state = HELD
        part.timer = self._timers.set(now + ASK_S, lambda then: self._ask(part, then))
        self._tell(part.group[:NODE_ID_BYTES], Reserved(part.group, part.epoch), now)
        for other in [other for other in self._parts.values() if other.state == WAITING]:
            if not self._resources.room(_sum(other.shapes)):
                self._give_up(other, now)

    def _give_up(self, part: Part, now: float) -> None:
        """Wait no longer for tasks to make way."""
        self._timers.cancel(part.timer)
        self._unwant(part.group)
        del self._parts[part.group, part.epoch]
        self._tell(part.group[:NODE_ID_BYTES], Refused(part.group, part.epoch, self._free()), now)

    def _ask(self, part: Part, now: float) -> None:
        part.timer = self._timers.set(now + ASK_S, lambda then: self._ask(part, then))
        self._tell(part.group[:NODE_ID_BYTES], AskGroup(part.group, part.epoch), now)

    def commit(self, node: NodeID, group: bytes, epoch: int) -> None:
        """Let tasks run in what was reserved under that epoch. A second time it changes nothing."""
        part = self._parts.get((group, epoch))
        if part is not None and part.state == HELD and group[:NODE_ID_BYTES] == node:
            self._timers.cancel(part.timer)
            part.state = COMMITTED
            for index in part.shapes:
                self._resources.open(group, index)

    def release(self, node: NodeID, m: ReleaseBundles, now: float) -> None:
        """Give back what was reserved under an epoch, or, for epoch 0, all of a group. Again it changes nothing."""
        if m.group[:NODE_ID_BYTES] == node:
            parts = [part for part in self._parts.values() if part.group == m.group and m.epoch in (0, part.epoch)]
            self._drop(parts, now)

    def node_gone(self, node: NodeID, now: float) -> None:
        """A coordinator is gone, and its groups with it."""
        self._drop([part for part in self._parts.values() if part.group[:NODE_ID_BYTES] == node], now)

    def _drop(self, parts: list[Part], now: float) -> None:
        dropped = []
        for part in parts:
            self._timers.cancel(part.timer)
            del self._parts[part.group, part.epoch]
            if part.state == WAITING:
                self._unwant(part.group)
            else:
                dropped += [self._resources.drop(part.group, index) for index in part.shapes]
        if dropped:
            self._evict(dropped, now)

    def _free(self) -> Shape:
        return {
            name: amount
            for name, amount in self._resources.available.items()
            if amount > 0 and not in_group(name) and not is_mark(name)
        }

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        held: dict[tuple[bytes, int], bool] = {}
        for part in self._parts.values():
            for index in part.shapes if part.state != WAITING else ():
                assert (part.group, index) not in held, "a bundle is held once"
                held[part.group, index] = True
                assert self._resources.bundles[part.group, index].open == (part.state == COMMITTED)
        assert len(held) == len(self._resources.bundles)


def _sane(bundles: list[Any]) -> dict[int, Shape]:
    """Return {index: shape} of what came over the wire; {} if it makes no sense."""
    shapes: dict[int, Shape] = {}
    for bundle in bundles:
        if not (
            isinstance(bundle, list | tuple) and len(bundle) == 2 and type(bundle[0]) is int and is_bundle(bundle[1])
        ):
            return {}
        shapes[bundle[0]] = dict(bundle[1])
    return shapes


def _sum(shapes: dict[int, Shape]) -> Shape:
    whole: Shape = {}
    for shape in shapes.values():
        for name, amount in shape.items():
            whole[name] = whole.get(name, 0) + amount
    return whole
