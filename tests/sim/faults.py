"""Faults at a chosen message: a scenario is run once to number its messages, then again with one fault at each.

The same seed gives the same run up to the fault. What dies is the sender or the receiver of that message, or whoever
has a role in the scenario; what is lost is a parcel between two hosts, its acknowledgement, or both, or gossip. Or a
host joins or leaves in good order, or a guest is cut off. In the end whoever is left must be at rest, with nothing in
any table.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.sim.guests import Guest
from tests.sim.members import Members
from tests.sim.simulator import NODE, Host, Process, Simulation
from tests.sim.store_users import StoreUsers
from tests.sim.stores import Stores
from zmesh.core import effects as fx
from zmesh.core.names import Names
from zmesh.core.records import Entry, Task
from zmesh.wire import messages as m

DEATHS = ("sender", "sender after", "receiver")
LOSSES = ("parcel", "acknowledgement", "both", "gossip", "disk write", "disk read")  # of the last two: they fail
REST_S = 200.0  # longer than anything is kept for those who may come back
LIMIT_S = 300.0
GOSSIP_MAX = 100  # of the losses of one kind: later ones are of hosts at rest


class EndedError(Exception):
    """The program that plays the scenario is dead."""


@dataclass(frozen=True)
class Fault:
    """What happens, as the message with this number is sent: parcels and gossip have numbers of their own."""

    what: str
    at: int


@dataclass
class Part:
    """What a scenario did that must come to a good end."""

    held: list[tuple[Process, Entry]] = field(default_factory=list)
    once: list[tuple[Process, Task]] = field(default_factory=list)  # may start once only


class Faulty(Members, StoreUsers):
    """A simulation with one fault.

    Attributes:
        roles: who may be killed besides, by name; None: it is not there yet.
        events: what else may happen at a message, by name.
    """

    def __init__(self, seed: int, fault: Fault | None, *, hosts: int, cpus: int, room: int = 0) -> None:
        self.fault: Fault | None = None
        self.counts = dict.fromkeys(("message", *(one for one in LOSSES if one != "both")), 0)
        self.roles: dict[str, Callable[[], Process | Host | None]] = {}
        self.struck = False
        self.part = Part()
        self._swallow_next = False
        Members.__init__(self, cpus)
        Stores.__init__(self, room)
        Simulation.__init__(self, seed, cpus, hosts=hosts)
        self.events: dict[str, Callable[[], None]] = {}
        self.harmless = ["a host joins"]  # those of the events after which all must be as without any
        if hosts > 1:
            self.events["a host joins"] = self.join
        for index, host in enumerate(list(self.hosts.values())[1:], 1):
            self.events[f"host {index} leaves"] = lambda host=host: self.leave(host)
            self.harmless.append(f"host {index} leaves")
        self.warnings = []
        self.main = self.driver("d")
        self.counts = dict.fromkeys(self.counts, 0)
        self.fault = fault

    @property
    def again(self) -> int:
        """How many tasks were started that had been before, under this number or another."""
        return sum(attempt > 0 for _, _, _, attempt, _ in self.starts)

    # The fault.

    def _count(self, what: str) -> int:
        self.counts[what] += 1
        return self.counts[what]

    def _carry_out(self, process: Process, effect: fx.Effect) -> None:
        if process.alive:  # it may have died of what it did just before
            super()._carry_out(process, effect)

    def _send(self, process: Process, to: bytes, message: Any) -> None:
        number, fault = self._count("message"), self.fault
        due = fault is not None and fault.what not in LOSSES and fault.at == number
        if due and fault is not None and fault.what in self.events:
            self._note(f"fault: {fault.what}, before {process.name} sends {type(message).__name__}")
            self.struck, due = fault.what not in self.harmless, False
            self.at(0.0, self.events[fault.what])
        if due and fault is not None and fault.what not in ("sender after", "receiver"):
            self._note(f"fault: {fault.what} dies before {process.name} sends {type(message).__name__}")
            self._strike(process if fault.what == "sender" else self._in_role(fault.what))
        if process.alive:
            super()._send(process, to, message)
        if due and fault is not None and fault.what in ("sender after", "receiver"):
            self._note(f"fault: {fault.what} of {type(message).__name__} from {process.name} dies")
            self._strike(process if fault.what == "sender after" else self.processes.get(to))

    def _step(self, who: Process, to: Process, what: str) -> bool:
        """A step that is no message, between a process and its node's store, or of a disk."""
        number, fault = self._count("message"), self.fault
        if fault is not None and fault.what not in LOSSES and fault.at == number and who.alive:
            self._note(f"fault: {fault.what} at {what} of {who.name}")
            if fault.what in self.events:
                self.struck = fault.what not in self.harmless
                self.at(0.0, self.events[fault.what])
            elif fault.what in ("sender after", "receiver"):
                doomed = who if fault.what == "sender after" else to
                self.at(0.0, lambda: self._strike(doomed))
            else:
                self._strike(who if fault.what == "sender" else self._in_role(fault.what))
        return who.alive

    def _disk_fails(self, what: str) -> bool:
        number, fault = self._count(f"disk {what}"), self.fault
        fails = fault is not None and fault == Fault(f"disk {what}", number)
        self.struck = self.struck or fails
        return fails

    def _in_role(self, name: str) -> Process | Host | None:
        return self.roles[name]() if name in self.roles else self.main

    def _strike(self, doomed: Process | Host | None) -> None:
        self.struck = True
        if isinstance(doomed, Process) and self._is_node(doomed):
            doomed = self.host_of(doomed)
        if isinstance(doomed, Host):
            if doomed.process.alive:
                self.kill_host(doomed, seconds=self.rng.uniform(0.01, 1.0))
        elif doomed is not None:
            self.kill(doomed)

    def _post(self, process: Process, effect: fx.Post | fx.PostAck) -> None:
        what = "parcel" if isinstance(effect, fx.Post) else "acknowledgement"
        if not self._lose(what):
            super()._post(process, effect)

    def _hear(self, node: bytes, load: dict[str, Any]) -> None:
        if not self._lose("gossip"):
            super()._hear(node, load)

    def _lose(self, what: str) -> bool:
        number, fault = self._count(what), self.fault
        if fault is None or fault.what not in LOSSES:
            return False
        first = "parcel" if fault.what == "both" else fault.what
        lost = (what == first and number == fault.at) or (what == "acknowledgement" and self._swallow_next)
        if lost:
            self._note(f"fault: {what} {number} is lost")
            self.struck = True
            self._swallow_next = fault.what == "both" and what == "parcel"
        return lost

    # What scenarios do.

    def driver(self, name: str, node: bytes = NODE) -> Process:
        """Start a program; it is dead at once if its host is."""
        process = super().driver(name, node)
        process.alive = process.alive and self.hosts[node].process.alive
        return process

    def keep(self, entries: list[Any], process: Process | None = None) -> None:
        """These must have a value or an error in the end, and are let go of then."""
        self.part.held += [(process or self.main, entry) for entry in entries]

    def once(self, tasks: list[Any], process: Process | None = None) -> None:
        """As `keep`, and each may start once only."""
        self.part.once += [(process or self.main, task) for task in tasks]
        self.keep(tasks, process)

    def await_all(self, entries: list[Any], process: Process | None = None) -> None:
        """Wait until all have a value or an error; ends the scenario if the program that waits is killed."""
        process = process or self.main
        self.await_true(lambda: all(entry.status != m.PENDING for entry in entries), process)

    def await_true(self, condition: Callable[[], bool], process: Process | None = None) -> None:
        """Wait for something that comes to pass as long as that program lives."""
        process = process or self.main
        self.run_until(lambda: not process.alive or condition(), LIMIT_S)
        self.alive(process)

    def alive(self, process: Process | None = None) -> None:
        """End the scenario if that program is dead."""
        if not (process or self.main).alive:
            raise EndedError

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        self.run(self.now + seconds)
        self.alive()

    def promote(self, entries: list[Any], process: Process | None = None) -> list[bytes]:
        """Have the node count these; returns their IDs."""
        process = process or self.main
        while True:
            self.alive(process)
            if isinstance(process, Guest):
                self.await_true(lambda: self.attached(process) or process.core.lost is not None, process)
            ticket = process.core.references.promote(entries)
            self.settle(process)
            if ticket is None:
                break
            self.await_all([ticket], process)
            if ticket.status != m.ERROR or process.core.lost is not None:
                break  # a guest whose node is gone asks the next
        return [process.core.references.oid(entry) for entry in entries]

    def promote_of(self, process: Process, entries: list[Any]) -> None:
        """As `promote` of a program whose end is not that of the scenario."""
        with contextlib.suppress(EndedError):
            self.promote(entries, process)


@dataclass(frozen=True)
class Scenario:
    """`play` does something; `errors` are what its results may come to if something dies, `planned` in any case."""

    play: Callable[[Faulty], None]
    hosts: int = 3
    cpus: int = 1
    room: int = 0  # segments that fit into each store; 0: no limit
    errors: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()


def run(scenario: Scenario, seed: int, fault: Fault | None) -> Faulty:
    """Play a scenario with a fault, and see that all is well in the end."""
    sim = Faulty(seed, fault, hosts=scenario.hosts, cpus=scenario.cpus, room=scenario.room)
    try:
        scenario.play(sim)
    except EndedError:
        assert fault is not None
    told = {id(entry): finish(sim, process, entry, scenario) for process, entry in sim.part.held}
    for process, task in sim.part.once:
        names = process.names if isinstance(process, Guest) else [process.peer]
        starts = sum(sim.started.get((name, task.seq), 0) for name in names)
        starts += sum(caller in names and seq == task.seq for _, caller, seq, _ in sim.call_starts)
        assert starts <= 1, f"{task.spec.name} {task.seq} started {starts} times\n{sim.tail()}"
    sim.run(sim.now + 1.0)
    assert not sim.mapped_by_the_dead(), f"{sim.mapped_by_the_dead()}\n{sim.tail()}"
    for process, entry in sim.part.held:
        if process.alive:
            assert told[id(entry)] in (None, outcome(entry)), f"it had another outcome before\n{sim.tail()}"
            sim.drop(process, entry)
    sim.run(sim.now + REST_S)
    sim.check_order()
    at_rest(sim)
    return sim


def outcome(entry: Entry) -> Any:
    """Return what a program saw of an entry, which does not change. Bytes may move, or be lost."""
    return None if entry.status == m.STORED else (entry.status, entry.value)


def faults_of(sim: Faulty) -> list[Fault]:
    """Return every fault that could have happened in a run without any: once the scenario has begun."""
    deaths = [Fault(what, at) for what in (*DEATHS, *sim.roles) for at in range(1, sim.counts["message"] + 1)]
    counted = {"both": "parcel"}
    losses = [
        Fault(what, at) for what in LOSSES for at in range(1, min(GOSSIP_MAX, sim.counts[counted.get(what, what)]) + 1)
    ]
    return deaths + losses


def events_of(sim: Faulty) -> list[Fault]:
    """Return every host that could have come or gone in a run without any fault, at each message."""
    return [Fault(what, at) for what in sim.events for at in range(1, sim.counts["message"] + 1)]


def finish(sim: Faulty, process: Process, entry: Entry, scenario: Scenario) -> Any:
    """Let an entry come to its end; returns what it came to."""
    if process.alive:
        process.core.fetch(entry)
        sim.settle(process)
    sim.run_until(lambda: not process.alive or entry.status != m.PENDING, LIMIT_S)
    if process.alive and entry.status == m.ERROR:
        allowed = (*scenario.planned, *(scenario.errors if sim.struck else ()))
        assert entry.value[0] in allowed, f"{entry.value}\n{sim.tail()}"
    return outcome(entry)


def at_rest(sim: Simulation) -> None:
    """Verify that nothing is left anywhere: no worker, no booking, no entry in any table."""
    left: list[Any] = [("worker", worker.name) for worker in sim.live_workers()]
    if isinstance(sim, Stores):
        left += sim.left_in_stores()
    for process in sim.processes.values():
        if process.alive and process.slot < 0 and hasattr(process.core, "victim"):
            left += [(process.name, name, table) for name, table in client_tables(process.core).items() if table]
    for host in sim.hosts.values():
        if host.process.alive:
            left += [(host.process.name, name, table) for name, table in node_tables(host.core).items() if table]
            if host.core.resources.available != host.core.resources.total:
                left.append((host.process.name, "booked", host.core.resources.available))
            if host.copies:
                left.append((host.process.name, "copies", host.copies))
            known = [*host.core.guests._heard_s, *(name for name in host.core.links._links if len(name) == 16)]
            left += [(host.process.name, "guest", name) for name in known if not _is_there(sim, name)]
    assert not left, f"{left}\n{sim.tail()}"


def _is_there(sim: Simulation, name: bytes) -> bool:
    """Whether a guest lives, and has this name now."""
    guest = sim.processes[name]
    return guest.alive and guest.peer == name


def client_tables(core: Any) -> dict[str, Any]:
    """Return what a client that has nothing to do must not have, by name."""
    tasks, references, actors = core.tasks, core.references, core.actors
    return {
        "open": tasks.open, "retried": tasks.retried, "parents": tasks.parents, "many": tasks.many,
        "dependents": tasks._dependents, "oom": tasks._oom_kills, "thieves": core.victim.thieves,
        "queued": [queue.count for queue in core.victim.queues.values() if queue.count],
        "told": [queue.told for queue in core.victim.queues.values() if queue.told],
        "lent": references._lent, "borrowed": references._borrowed, "away": references._away,
        "tickets": references._tickets, "claims": references._claims, "given": references._given,
        "views": references._views, "uncounted": references._uncounted, "inherited": references._inherited,
        "on word": references._on_word, "following": actors._following, "actors": actors.known,
        "serving": actors.serving, "links": actors._links, "recipes": len(core.lineage),
        "sought": core.lineage._sought, "pulls": core.pulls._copies,
    }  # fmt: skip


def node_tables(core: Any) -> dict[str, Any]:
    """Return what a node with no clients but idle ones must not have, by name."""
    names: Names = core.actors.names
    placement = core.groups.placement
    return {
        "objects": len(core.directory), "remembered": core.directory._remembered, "copies": core.copies._copies,
        "burials": core.burials._burials, "early": core.burials._early,
        "announced": core._announced, "kept": core._kept, "places": core.actors.places._places,
        "names": names._entries, "asked": names._asked, "ours": names._ours,
        "workers": core.matchmaking.workers, "demands": core.matchmaking.demands,
        "groups": [one for one in placement.describe().values() if one["state"] != "REMOVED"],
        "bundles": core.resources.bundles, "leases": core.lending._leases, "replicas": core.replicas._guards,
        "searches": core.replicas._searches, "parts": core.groups.bundles._parts,
    }  # fmt: skip
