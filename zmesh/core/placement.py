"""The coordinator's half of placement groups: plans where bundles go, and reserves them in two phases.

    PENDING --all Reserved--> CREATED --a node with bundles died--> RESCHEDULING --all Reserved--> CREATED
       '-- no members like these could ever hold it --> INFEASIBLE (until they can)
    from each of them  --removed, its program ended--> REMOVED

The coordinator is the node of the client that made the group, and the group's ID begins with its NodeID: so whom to ask
is never looked up. It asks each node for its share; if one refuses, all give back what they set aside, and it plans
anew after a while, by chance, so that two groups that met do not meet again. Each time it asks that tasks be waited for
longer. The participant's half is core/bundles.py. Groups end with their program, unless they are detached, and with
their coordinator.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh.core import packing
from zmesh.core.effects import Effect, Send
from zmesh.core.records import GROUP_ID_BYTES, is_bundle
from zmesh.core.timers import Timers
from zmesh.wire.group_messages import (
    AskGroup,
    Commit,
    CreateGroup,
    GroupReply,
    GroupState,
    Refused,
    ReleaseBundles,
    RemoveGroup,
    Reserve,
    Reserved,
    WatchGroup,
)
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, PeerID
from zmesh.wire.messages import UNIT, Shape

PATIENCE_S = 0.5  # tasks are waited for so long at first; twice as long after each refusal
PATIENCE_MAX_S = 30.0
RETRY_S = 0.05  # after a refusal, half of it by chance; doubles too
RETRY_MAX_S = 1.0
ANSWER_S = 10.0  # beyond its patience, a node that has not answered is asked anew
GRACE_S = 1.0  # what no members could hold is called infeasible after this time, so that one may still join
ENDED_MAX = 100  # groups that were removed, kept for the table

PENDING, CREATED, RESCHEDULING = "PENDING", "CREATED", "RESCHEDULING"
INFEASIBLE, REMOVED = "INFEASIBLE", "REMOVED"


@dataclass(slots=True)
class Group:
    """One placement group."""

    id: bytes
    job: PeerID  # with which it ends; b"" of a detached one
    name: str
    strategy: str
    bundles: list[Shape]
    nodes: list[NodeID]  # by bundle; b"" of one that has none
    epochs: list[int]  # by bundle: under which it is held
    state: str = PENDING
    text: str = ""
    epoch: int = 0  # of the last attempt
    plan: dict[int, NodeID] = field(default_factory=dict)  # of the attempt under way
    asked: dict[NodeID, bool] = field(default_factory=dict)  # {node: whether it has reserved}; {}: no attempt
    refused: dict[NodeID, bool] = field(default_factory=dict)  # {node that had no room when asked last: True}
    failures: int = 0
    created: bool = False  # it had all its bundles once
    timer: int = 0  # until the next attempt, or until this one takes too long
    grace_timer: int = 0
    watchers: dict[PeerID, bool] = field(default_factory=dict)  # {client: True}


class Placement:
    """Groups that one node coordinates.

    Args:
        totals: returns {member: its resources in all}, this node first.
        resources: this node's own.
        tell: says something to a node, this one too: (node, message, now).
        alive: whether a client lives; from now on its end is told by `client_gone`.
        take: takes a name for a group: (group's message, what to do then with the ID of the group that has it).
        free: the name of a group is free again: (group).
    """

    def __init__(
        self,
        node: NodeID,
        rng: random.Random,
        effects: list[Effect],
        timers: Timers,
        resources: Any,
        *,
        totals: Callable[[], dict[NodeID, Shape]],
        tell: Callable[[NodeID, Any, float], None],
        alive: Callable[[PeerID], bool],
        take: Callable[[CreateGroup, Callable[[bytes], None]], None],
        free: Callable[[bytes], None],
    ) -> None:
        self._node = node
        self._rng = rng
        self._effects = effects
        self._timers = timers
        self._resources = resources
        self._totals = totals
        self._tell = tell
        self._alive = alive
        self._take = take
        self._free = free
        self._groups: dict[bytes, Group] = {}
        # {group that waits for its name: what clients want of it meanwhile, to be called with the time}
        self._naming: dict[bytes, list[Callable[[float], None]]] = {}
        self._heard: dict[NodeID, tuple[Shape, Shape]] = {}  # {other member: (available, held by bundles) as it said}
        self._epochs = 0

    # From clients.

    def create(self, peer: PeerID, m: CreateGroup, now: float) -> None:
        """Make a group, once it has its name; answered before it has its bundles."""
        error = self._refusal(m)
        if m.name and not error:
            self._naming[m.group] = []

            def answered(holder: bytes) -> None:
                self._timers.set(0.0, lambda then: self._named(peer, m, holder, then))

            self._take(m, answered)
        else:
            self._make(peer, m, error, now)

    def _refusal(self, m: CreateGroup) -> str:
        if m.strategy not in packing.STRATEGIES:
            return f"strategy must be one of {', '.join(packing.STRATEGIES)}, not {m.strategy!r}"
        if len(m.group) != GROUP_ID_BYTES or m.group[:NODE_ID_BYTES] != self._node or self._knows(m.group):
            return "the ID of the group is not one of this node's, or not new"
        if not m.bundles or not all(is_bundle(shape) for shape in m.bundles):
            return "each bundle must map names of resources to amounts above 0"
        return "the program it would belong to has ended" if m.job and not self._alive(m.job) else ""

    def _knows(self, group: bytes) -> bool:
        return group in self._groups or group in self._naming

    def _named(self, peer: PeerID, m: CreateGroup, holder: bytes, now: float) -> None:
        """The group `holder` has the name: only if that is the new one, it is made."""
        waiting = self._naming.pop(m.group)
        if holder != m.group:
            error = f"there is a placement group named {m.name!r} already: remove it, or take another name"
            self._effects.append(Send(peer, GroupReply(m.request, error, holder)))
        else:
            error = self._refusal(m)
            if error:
                self._free(m.group)
            self._make(peer, m, error, now)
        for action in waiting:
            action(now)

    def _make(self, peer: PeerID, m: CreateGroup, error: str, now: float) -> None:
        self._effects.append(Send(peer, GroupReply(m.request, error)))
        if not error:
            count = len(m.bundles)
            shapes = [dict(shape) for shape in m.bundles]
            group = Group(m.group, m.job, m.name, m.strategy, shapes, [b""] * count, [0] * count)
            self._groups[m.group] = group
            self._try(group, now)

    def remove(self, peer: PeerID, m: RemoveGroup, now: float) -> None:
        """End a group; one that is not known is none already."""
        if m.group in self._naming:
            self._naming[m.group].append(lambda then: self.remove(peer, m, then))
            return
        self._effects.append(Send(peer, GroupReply(m.request)))
        group = self._groups.get(m.group)
        if group is not None:
            self._end(group, "it was removed", now)

    def nameless(self, group: bytes, now: float) -> None:
        """A group has lost its name to another: a detached one nobody would find again."""
        found = self._groups.get(group)
        if found is not None and not found.job:
            self._end(found, "another group got its name, while other nodes took this one for dead", now)

    def watch(self, peer: PeerID, m: WatchGroup) -> None:
        """Tell a client the state of a group, and of each change from now on."""
        if m.group in self._naming:
            self._naming[m.group].append(lambda then: self.watch(peer, m))
            return
        group = self._groups.get(m.group)
        if group is None:
            text = f"node {self._node.hex()} knows of no such group"
            self._effects.append(Send(peer, GroupState(m.group, REMOVED, text, [])))
        elif self._alive(peer):
            group.watchers[peer] = True
            self._effects.append(Send(peer, self._state_of(group)))

    def client_gone(self, peer: PeerID, now: float) -> None:
        """A client has ended: so do the groups of its job, and nobody need be told of others."""
        for group in list(self._groups.values()):
            group.watchers.pop(peer, None)
            if group.job == peer:
                self._end(group, "the program it belonged to has ended", now)

    # From participants.

    def reserved(self, node: NodeID, m: Reserved, now: float) -> None:
        """A node has set aside its share; when all have, tasks may run."""
        group = self._groups.get(m.group)
        if group is None or m.epoch != group.epoch or node not in group.asked:
            self._tell(node, ReleaseBundles(m.group, m.epoch), now)
            return
        group.asked[node] = True
        if not all(group.asked.values()):
            return
        self._timers.cancel(group.timer)
        for one in group.asked:
            self._tell(one, Commit(group.id, group.epoch), now)
        for index, one in group.plan.items():
            group.nodes[index], group.epochs[index] = one, group.epoch
        group.asked, group.plan = {}, {}
        group.failures, group.refused = 0, {}
        group.created = group.created or all(group.nodes)
        if all(group.nodes):
            self._set(group, CREATED, "")
        else:
            self._try(group, now)  # another node died meanwhile

    def refused(self, node: NodeID, m: Refused, now: float) -> None:
        """A node has no room: the others give back, and another plan is made after a while."""
        group = self._groups.get(m.group)
        if node != self._node:
            self._heard[node] = (dict(m.free), self._heard.get(node, ({}, {}))[1])
        if group is not None and m.epoch == group.epoch and node in group.asked:
            del group.asked[node]
            group.refused[node] = True
            self._give_up(group, now)

    def asked(self, node: NodeID, m: AskGroup, now: float) -> None:
        """A node holds a reservation for long: say what becomes of it, if that is known."""
        group = self._groups.get(m.group)
        if group is not None and group.state != REMOVED:
            if m.epoch in group.epochs:
                self._tell(node, Commit(m.group, m.epoch), now)
                return
            if m.epoch == group.epoch and node in group.asked:
                self.reserved(node, Reserved(m.group, m.epoch), now)  # it says so again
                return
        self._tell(node, ReleaseBundles(m.group, m.epoch), now)

    # Members.

    def heard(self, node: NodeID, available: Shape, held: Shape, now: float) -> None:
        """Gossip says what is free at a member."""
        self._heard[node] = (available, held)
        self.news(now)

    def news(self, now: float) -> None:
        """A member came, or something has become free: groups that wait for that may have their bundles now."""
        for group in list(self._groups.values()):
            if not group.failures:
                self._try(group, now)

    def node_gone(self, node: NodeID, now: float) -> None:
        """A member is gone: its bundles go elsewhere. Its clients are told of by `client_gone`."""
        self._heard.pop(node, None)
        for group in list(self._groups.values()):
            lost = [index for index, one in enumerate(group.nodes) if one == node]
            for index in lost:
                group.nodes[index], group.epochs[index] = b"", 0
            if lost and group.state != REMOVED:
                self._set(group, RESCHEDULING, f"node {node.hex()}, which held {len(lost)} of its bundles, is gone")
            if group.asked.pop(node, None) is not None:
                self._give_up(group, now)
            elif lost:
                self._try(group, now)

    # Attempts.

    def _views(self) -> list[dict[NodeID, Shape]]:
        """Return what is free at each member, and what would be if all tasks made way."""
        free: dict[NodeID, Shape] = {}
        after: dict[NodeID, Shape] = {}
        for node, total in self._totals().items():
            available, held = self._heard.get(node, (total, {}))
            if node == self._node:
                available, held = self._resources.available, self._resources.held
            free[node] = {name: amount for name, amount in available.items() if name in total}
            after[node] = {name: amount - held.get(name, 0) for name, amount in total.items()}
        return [free, after]

    def _try(self, group: Group, now: float) -> None:
        """Ask nodes for the bundles that have none, if there is a plan."""
        lost = {index: group.bundles[index] for index, node in enumerate(group.nodes) if not node}
        if not lost or group.asked or group.state == REMOVED:
            return
        placed = [node for node in group.nodes if node]
        views = self._views()
        found = None
        # Whoever refused just now is asked again only if there is no way without him.
        for view in [{n: free for n, free in one.items() if n not in group.refused} for one in views] + views:
            found = found or packing.plan(group.strategy, lost, view, placed)[0]
        if found is None:
            self._judge(group, lost, placed, now)
            self._again(group, RETRY_MAX_S / 2, now)
            return
        self._possible(group)
        self._timers.cancel(group.timer)
        self._epochs += 1
        group.epoch, group.plan, group.asked = self._epochs, found, dict.fromkeys(found.values(), False)
        patience_s = min(PATIENCE_S * 2**group.failures, PATIENCE_MAX_S)
        group.timer = self._timers.set(now + patience_s + ANSWER_S, lambda then: self._give_up(group, then))
        for node in group.asked:
            bundles = [(index, group.bundles[index]) for index, one in found.items() if one == node]
            self._tell(node, Reserve(group.id, group.epoch, bundles, patience_s), now)
            available = self._heard.get(node, ({}, {}))[0]
            for _, shape in bundles:  # so that the next group's plan does not count on the same
                available |= {name: available.get(name, 0) - amount for name, amount in shape.items()}

    def _give_up(self, group: Group, now: float) -> None:
        """An attempt failed: who has not refused gives back."""
        for node in group.asked:
            self._tell(node, ReleaseBundles(group.id, group.epoch), now)
        group.asked, group.plan = {}, {}
        group.failures = min(group.failures + 1, 30)
        self._again(group, min(RETRY_S * 2**group.failures, RETRY_MAX_S), now)

    def _again(self, group: Group, pause_s: float, now: float) -> None:
        self._timers.cancel(group.timer)
        at = now + pause_s * (0.5 + self._rng.random() / 2)
        group.timer = self._timers.set(at, lambda then: self._try(group, then))

    def _judge(self, group: Group, lost: dict[int, Shape], placed: list[NodeID], now: float) -> None:
        """There is no plan: is it for ever?"""
        found, certain = packing.plan(group.strategy, lost, self._totals(), placed)
        if found is not None or not certain:
            self._possible(group)
        elif not group.grace_timer and group.state != INFEASIBLE:
            group.grace_timer = self._timers.set(now + GRACE_S, lambda then: self._condemn(group))

    def _possible(self, group: Group) -> None:
        """Members could hold it: it only waits."""
        self._timers.cancel(group.grace_timer)
        group.grace_timer = 0
        if group.state == INFEASIBLE:
            self._set(group, RESCHEDULING if group.created else PENDING, "")

    def _condemn(self, group: Group) -> None:
        group.grace_timer = 0
        self._set(group, INFEASIBLE, packing.why_not(group.strategy, group.bundles, self._totals()))

    def _end(self, group: Group, text: str, now: float) -> None:
        if group.state == REMOVED:
            return
        self._timers.cancel(group.timer)
        self._timers.cancel(group.grace_timer)
        for node in dict.fromkeys([*(node for node in group.nodes if node), *group.asked]):
            self._tell(node, ReleaseBundles(group.id, 0), now)
        group.asked, group.plan = {}, {}
        group.nodes, group.epochs = [b""] * len(group.bundles), [0] * len(group.bundles)
        self._free(group.id)
        self._set(group, REMOVED, text)
        group.watchers.clear()
        ended = [one.id for one in self._groups.values() if one.state == REMOVED]
        for old in ended[:-ENDED_MAX]:
            del self._groups[old]

    # Outputs.

    def _set(self, group: Group, state: str, text: str) -> None:
        group.state, group.text = state, text
        self._effects += [Send(peer, self._state_of(group)) for peer in group.watchers]

    @staticmethod
    def _state_of(group: Group) -> GroupState:
        return GroupState(group.id, group.state, group.text, [dict(shape) for shape in group.bundles])

    def detached(self) -> list[str]:
        """Return the names, else the IDs, of the groups that outlive their programs."""
        return [
            group.name or group.id.hex() for group in self._groups.values() if not group.job and group.state != REMOVED
        ]

    def describe(self) -> dict[str, Any]:
        """Return {ID: what the table tells}, in natural units."""
        return {
            group.id.hex(): {
                "placement_group_id": group.id.hex(),
                "name": group.name,
                "strategy": group.strategy,
                "state": group.state,
                "why": group.text,
                "bundles": {
                    index: {name: amount / UNIT for name, amount in shape.items()}
                    for index, shape in enumerate(group.bundles)
                },
                "bundles_to_node_id": {index: node.hex() for index, node in enumerate(group.nodes)},
            }
            for group in self._groups.values()
        }

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        members = self._totals()
        for group in self._groups.values():
            assert all(node in members for node in group.nodes if node), "a bundle lies on a member"
            assert all(node in members for node in group.asked)
            assert (group.state == CREATED) == (group.state != REMOVED and all(group.nodes))
            assert all(bool(node) == bool(epoch) for node, epoch in zip(group.nodes, group.epochs, strict=True))
            assert group.state != REMOVED or not group.asked
