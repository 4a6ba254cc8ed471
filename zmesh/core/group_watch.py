"""Placement groups, as a client sees them: which it has to do with, what their coordinators say, who waits for them.

A client watches each group that a function of its is for, or that somebody waits for. So tasks for a group wait as long
as it may still be placed, and fail when it is removed. Where its bundles are is no business of the client's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.records import BUNDLE, BUNDLE_TASKS_MAX, Entry, ShapeKey, bundle_names, group_of, is_bundle
from zmesh.core.timers import Timers
from zmesh.wire.group_messages import CreateGroup, GroupReply, GroupState, RemoveGroup, WatchGroup
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, PeerID, node_peer
from zmesh.wire.messages import ERROR, INLINE, PENDING, Shape

GRACE_S = 1.0  # a wait for a group that is infeasible already fails after this time
FAILURES = {"REMOVED": "TaskPlacementGroupRemovedError", "INFEASIBLE": "TaskUnschedulableError"}


@dataclass(slots=True)
class Watched:
    """What we know of one group. `keys` are those of the queues of its tasks."""

    state: str = "PENDING"
    text: str = ""
    waiters: list[tuple[Entry, bytes]] = field(default_factory=list)  # (entry, its value once the group is there)
    keys: dict[ShapeKey, bool] = field(default_factory=dict)


class GroupWatch:
    """The groups of one client.

    Args:
        references: of the client, whose tickets are for what it asks of nodes.
        totals: filled with what the bundles of each group have, {group: {name: amount}}.
        settle: gives an entry its value or error: (entry, status, value, now).
        fail: tasks of a shape fail from now on, (key, (class, text), now); with None they no more do.
    """

    def __init__(
        self,
        effects: list[Effect],
        timers: Timers,
        totals: dict[bytes, Shape],
        references: Any,
        *,
        settle: Callable[[Entry, int, Any, float], None],
        fail: Callable[[ShapeKey, tuple[str, str] | None, float], None],
    ) -> None:
        self._effects = effects
        self._timers = timers
        self._totals = totals
        self._references = references
        self._settle = settle
        self._fail = fail
        self._groups: dict[bytes, Watched] = {}
        self._removing: dict[int, bytes] = {}  # {request: group to be removed}
        self._lost: Any = None  # the failure of everything, once our own node is gone

    def create(
        self, group: bytes, job: PeerID, name: str, strategy: str, bundles: list[Shape], description: bytes = b""
    ) -> Entry:
        """Have the node that the ID names, ours, make a group; the entry resolves when it has taken that on.

        An error has the attribute `holder` if another group has its name.
        """
        ticket = self._ask()
        message = CreateGroup(ticket.seq, group, job, name, strategy, bundles, description)
        self._effects.append(Send(_coordinator(group), message))
        return ticket

    def remove(self, group: bytes) -> Entry:
        """Have a group removed; the entry resolves when its coordinator has done so, or is gone."""
        ticket = self._ask()
        self._removing[ticket.seq] = group
        self._effects.append(Send(_coordinator(group), RemoveGroup(ticket.seq, group)))
        return ticket

    def _ask(self) -> Entry:
        ticket: Entry = self._references.ask()
        if self._lost is not None:
            self._references.answered(ticket.seq, ERROR, self._lost)
        return ticket

    def replied(self, m: GroupReply) -> None:
        """The coordinator has done what was asked, or says why not."""
        self._removing.pop(m.request, None)
        failure: Any = ("ConfigError", m.error, {"holder": m.holder} if m.holder else {}) if m.error else None
        self._references.answered(m.request, INLINE if failure is None else ERROR, failure)

    def _watch(self, group: bytes) -> Watched:
        watched = self._groups.get(group)
        if watched is None:
            watched = self._groups[group] = Watched()
            self._effects.append(Send(_coordinator(group), WatchGroup(group)))
        return watched

    def need(self, shape: Shape, key: ShapeKey) -> tuple[str, str] | None:
        """A function has this shape: if that is for a group, watch it. Returns (class, text) if its tasks fail."""
        group = group_of(shape)
        if not group:
            return None
        watched = self._watch(group)
        watched.keys[key] = True
        return self._failure(group, watched)

    def _failure(self, group: bytes, watched: Watched) -> tuple[str, str] | None:
        name = FAILURES.get(watched.state)
        return None if name is None else (name, self._why(group, watched))

    def await_ready(self, group: bytes, entry: Entry, value: bytes, now: float) -> None:
        """Give the entry that value once the group has all its bundles, or an error when it cannot."""
        if self._lost is not None:
            self._settle(entry, ERROR, self._lost, now)
            return
        watched = self._watch(group)
        watched.waiters = [waiter for waiter in watched.waiters if waiter[0].refs]  # nobody wants the others
        watched.waiters.append((entry, value))
        if watched.state in ("CREATED", "REMOVED"):
            self._answer(group, watched, now)
        elif watched.state == "INFEASIBLE":
            self._timers.set(now + GRACE_S, lambda then: self._answer(group, watched, then))

    def _answer(self, group: bytes, watched: Watched, now: float) -> None:
        if watched.state not in ("CREATED", *FAILURES):
            return
        waiters, watched.waiters = watched.waiters, []
        name = "PlacementGroupUnschedulableError" if watched.state == "INFEASIBLE" else FAILURES["REMOVED"]
        for entry, value in waiters:
            if watched.state == "CREATED":
                self._settle(entry, INLINE, value, now)
            else:
                self._settle(entry, ERROR, (name, self._why(group, watched), {}), now)

    @staticmethod
    def _why(group: bytes, watched: Watched) -> str:
        what = "can never be placed" if watched.state == "INFEASIBLE" else "is no more"
        return f"placement group {group.hex()} {what}: {watched.text}"

    def heard(self, m: GroupState, now: float) -> None:
        """The coordinator says how a group is."""
        watched = self._groups.get(m.group)
        if watched is None or watched.state == "REMOVED":
            return
        watched.state, watched.text = m.state, m.text
        self._totals[m.group] = _totals(m.group, m.bundles)
        for key in watched.keys:
            self._fail(key, self._failure(m.group, watched), now)
        self._answer(m.group, watched, now)
        if m.state == "REMOVED":
            self._totals.pop(m.group)
            if not watched.keys:
                del self._groups[m.group]  # who asks again is told again

    def node_gone(self, node: NodeID, why: str, now: float) -> None:
        """A member is gone, and the groups it coordinated."""
        for group in [group for group in self._groups if group[:NODE_ID_BYTES] == node]:
            text = f"node {node.hex()}, which coordinated it, is gone: {why}"
            self.heard(GroupState(group, "REMOVED", text, []), now)
        for request in [request for request, group in self._removing.items() if group[:NODE_ID_BYTES] == node]:
            self.replied(GroupReply(request))

    def rewatch(self) -> None:
        """This client has another name: whoever told it of groups must know that."""
        for group, watched in self._groups.items():
            if watched.state != "REMOVED":
                self._effects.append(Send(_coordinator(group), WatchGroup(group)))

    def lose(self, error: Any, now: float) -> None:
        """The client's own node is gone: nobody will be told of any group."""
        self._lost = error
        for watched in self._groups.values():
            waiters, watched.waiters = watched.waiters, []
            for entry, _ in waiters:
                self._settle(entry, ERROR, error, now)

    def waits_for(self, entry: Entry) -> str:
        """Say why an entry that waits for a group has no value yet; "" if it waits for none."""
        for group, watched in self._groups.items():
            if entry.status == PENDING and any(waiter is entry for waiter, _ in watched.waiters):
                return self.describe(group)
        return ""

    def describe(self, group: bytes) -> str:
        """Say how a watched group is, in words."""
        watched = self._groups[group]
        return f"placement group {group.hex()} is {watched.state}{watched.text and ': '}{watched.text}"


def _coordinator(group: bytes) -> PeerID:
    return node_peer(group[:NODE_ID_BYTES])


def _totals(group: bytes, bundles: list[Any]) -> Shape:
    """Return what the bundles of a group have, by the names that tasks use."""
    totals: Shape = {}
    for index, shape in enumerate(bundles):
        amounts = dict(shape) if is_bundle(shape) else {}
        for base, amount in (amounts | {BUNDLE: BUNDLE_TASKS_MAX}).items():
            one, every = bundle_names(group, index, base)
            totals[one] = amount
            totals[every] = totals.get(every, 0) + amount
    return totals
