"""A life of objects: programs that put, nest, pass, share, take apart and drop at random, and what must hold.

`Life` drives the drivers of one Simulation by its fate, one `step` at a time. It sees to two things throughout. No
object is freed while a living process holds it, unless a partition came between. And when all is dropped (`rest`),
every table of every core has the size it had before anything was made.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

import msgpack

from tests.sim.programs import program
from tests.sim.simulator import Process, Simulation
from zmesh.core import copies
from zmesh.core.holdings import LOOK_S
from zmesh.core.records import Entry, Inputs
from zmesh.core.tables import table_sizes
from zmesh.wire import messages as m

# What may differ at the end: {table: why}.
KEPT = {
    "_told_shapes": "what was told urgently last",
    "specs": "functions live as long as the program",
    "victim.queues": "one for each shape",
    "victim.totals": "grows with the mesh",
    "actors.names._dead": "dead actors and nodes whose names may still be on their way: at most DEAD_MAX",
    "groups.placement._heard": "what each member has free",
    "lending._spare": "the same",
    "lending._backlogs": "the same",
    "lending._parked": "the same",
    "lending._numbers": "one for each shape",
    "matchmaking._slots": "places for workers: actors of programs that live may take some",
    "neighbours.totals": "one for each member",
    "neighbours._watched": "living clients of others that we dealt with",
    "neighbours._watchers": "the same, seen from there",
    "links._links": "one for each member",
    "shortcuts.links._links": "one for each",
    "shortcuts._ways": "the same",
    "shortcuts.open": "the same",
    "burials._spoken": "one for each living client that speaks to others",
    "openings._clients": "the same, seen from there",
    "openings._ways": "the same",
    "openings.names": "the same",
    "holder._gone": "forgotten after some looks",
    "_configs": "living programs of other hosts",
    "_ended": "workers of a program that lives, which made what may still be needed",
    "_clients": "drivers may have died",
    "resources.total": "resources of groups come and go",
    "timers._heap": "cancelled ones stay until they come up",
    "timers._live": "links and looks have some",
}


class Life:
    """Random programs on drivers.

    Args:
        drivers: who acts; they may be killed meanwhile.
        hasty: whether they let go of most of what they put into values, or gave to others, as soon as that is done.
    """

    def __init__(self, sim: Simulation, drivers: list[Process], *, hasty: bool = False) -> None:
        self.sim = sim
        self.hasty = hasty
        self.rng = sim.rng
        self.drivers = drivers
        self.held: list[tuple[Process, Entry]] = []
        self.boxes: list[tuple[Process, Entry]] = []  # those of them that are known to contain references
        self.actors: list[tuple[Process, Any]] = []
        self.calls: list[tuple[Process, Any]] = []
        self.waiting: dict[int, str] = {}  # {number: what was begun and is not done}
        self._numbers = count()
        self.freed = 0
        self.early: list[str] = []  # objects freed while somebody held them
        self._specs: dict[bytes, Any] = {}
        sim.run(sim.now + 1.0)
        self._before = {process.peer: table_sizes(process.core) for process in self._alive()}
        for host in sim.hosts.values():
            self._watch(host)

    def _alive(self) -> list[Process]:
        return [process for process in self.sim.processes.values() if process.alive and process.slot < 0]

    def _watch(self, host: Any) -> None:
        freed = host.core.directory._freed

        def look(oid: bytes) -> None:
            freed(oid)
            self.freed += 1
            if self.sim.partitioned:
                return
            for process in self.sim.processes.values():
                references = getattr(process.core, "references", None)
                if not process.alive or references is None or self._orphan(process):
                    continue
                if oid in references._finding.values():
                    continue  # it hears that the object is gone: whoever told it of that may be dead
                entry = references._borrowed.get(oid)
                if entry is not None and (entry.refs or entry.share.pins):
                    self.early.append(f"{oid.hex()} was freed, and {process.name} holds it")

        host.core.directory._freed = look

    def _orphan(self, process: Process) -> bool:
        """Whether a worker works for somebody who is dead, and will be killed for that."""
        if process.slot < 0:
            return False
        thief = process.core.thief
        owners = [self.sim.processes.get(peer) for peer in (thief.victim, thief.job) if peer]
        return any(owner is not None and not owner.alive for owner in owners)

    # Steps.

    def step(self) -> None:
        """Do one thing."""
        alive = [driver for driver in self.drivers if driver.alive]
        driver = self.rng.choice(alive)
        mine = [entry for process, entry in self.held if process is driver]
        acts = [self._put, self._put, self._make, self._make, self._give]
        if mine:
            acts += [self._wrap, self._wrap, self._pass, self._pass, self._share, self._need]
            acts += [self._wrap, self._share] * (4 if self.hasty else 0)
        if any(process is driver for process, _ in self.boxes):
            acts += [self._hand_on] * 8 if self.hasty else [self._open] * 4 + [self._hand_on] * 2
        if self.actors:
            acts += [self._call, self._call]
        elif self.rng.random() < 0.2:
            acts.append(self._actor)
        self.rng.choice(acts)(driver, mine)
        while len(self.held) > 40:
            self.drop(self.rng.randrange(len(self.held)))

    def _of_others(self, entries: list[Entry]) -> list[Entry]:
        """Return those of these that others own, if a hasty life has such: they go round among hosts."""
        theirs = [entry for entry in entries if entry.share is not None and entry.share.oid is not None]
        return theirs if self.hasty and theirs else entries

    def _used(self, process: Process, entries: list[Entry]) -> None:
        """A process has done something with these; if it is hasty, it lets go of them."""
        if self.hasty and self.rng.random() < 0.8:
            used = {id(entry): True for entry in entries}
            for index in reversed(range(len(self.held))):
                if self.held[index][0] is process and id(self.held[index][1]) in used:
                    self.drop(index)

    def drop(self, index: int) -> None:
        """Let go of one."""
        process, entry = self.held.pop(index)
        self.boxes = [box for box in self.boxes if box != (process, entry)]
        if process.alive:
            self.sim.drop(process, entry)

    def _hold(self, process: Process, entry: Entry) -> None:
        self.held.append((process, entry))

    def _after(
        self, process: Process, entries: list[Any], then: Callable[[], None], whose: Process | None = None
    ) -> None:
        """Do something when these have values, or `whose` they are is dead; not if the process is dead by then."""
        number = next(self._numbers)
        self.waiting[number] = f"{process.name} {then.__qualname__}"

        def look() -> None:
            asker = process if whose is None else whose
            if (
                process.alive
                and asker.alive
                and any(entry is not None and entry.status == m.PENDING for entry in entries)
            ):
                self.sim.at(0.002, look)
                return
            del self.waiting[number]
            if process.alive:
                then()
                self.sim.settle(process)

        look()

    def _spec(self, driver: Process) -> Any:
        if driver.peer not in self._specs:
            self._specs[driver.peer] = self.sim.spec(driver, max_retries=-1)
        return self._specs[driver.peer]

    def _put(self, driver: Process, mine: list[Entry]) -> None:
        if self.rng.random() < 0.5:
            self._hold(driver, driver.core.put(m.INLINE, msgpack.packb(None), []))
        else:
            self._hold(driver, driver.core.put(m.STORED, self.sim.write(driver, 0), []))

    def _make(self, driver: Process, mine: list[Entry]) -> None:
        """A task on any host makes a large result, which lies there."""
        code = program("big", seconds=self.rng.choice([0.002, 0.02, 0.1]))
        self._hold(driver, self.sim.submit(driver, self._spec(driver), code))

    def _wrap(self, driver: Process, mine: list[Entry]) -> None:
        """Put a value that contains some."""
        some = self._promoted(driver, self._of_others(mine))

        def wrap() -> None:
            oids = [driver.core.references.oid(entry) for entry in some]
            box = driver.core.put(m.INLINE, msgpack.packb(oids), some)
            self._hold(driver, box)
            self.boxes.append((driver, box))
            for entry in some:
                driver.core.references.drop(entry)
            self._used(driver, some)

        self._promote(driver, some, wrap)

    def _promoted(self, driver: Process, mine: list[Entry]) -> list[Entry]:
        some = self.rng.sample(mine, min(len(mine), self.rng.choice([1, 1, 2, 3])))
        for entry in some:
            entry.refs += 1  # for as long as it takes
        return some

    def _promote(self, driver: Process, some: list[Entry], then: Callable[[], None]) -> None:
        ticket = driver.core.references.promote(some)
        self.sim.settle(driver)
        self._after(driver, [ticket], then)

    def _pass(self, driver: Process, mine: list[Entry]) -> None:
        """A task gets references, reads what they name, and may keep them for a while."""
        some = self._promoted(driver, mine)

        def submit() -> None:
            oids = [driver.core.references.oid(entry) for entry in some]
            code = program("borrow", oids=oids, seconds=0.002)
            self._hold(driver, self.sim.submit(driver, self._spec(driver), code, Inputs(held=list(some))))
            for entry in some:
                driver.core.references.drop(entry)

        self._promote(driver, some, submit)

    def _need(self, driver: Process, mine: list[Entry]) -> None:
        """A task reads some itself."""
        some = self.rng.sample(mine, min(len(mine), 2))
        task = self.sim.submit(driver, self._spec(driver), program("work", seconds=0.02), Inputs(some))
        self._hold(driver, task)

    def _give(self, driver: Process, mine: list[Entry]) -> None:
        """A task puts some and returns references of them."""
        code = program("give", count=2, stored=self.rng.random() < 0.5)
        task = self.sim.submit(driver, self._spec(driver), code)
        self._hold(driver, task)
        self.boxes.append((driver, task))

    def _share(self, driver: Process, mine: list[Entry]) -> None:
        """Another driver hears of one, and has itself counted."""
        boxes = [box for _, box in self.boxes]
        entry = self.rng.choice(([entry for entry in mine if entry in boxes] if self.hasty else []) or mine)
        entry.refs += 1
        others = [other for other in self.drivers if other.alive and other is not driver]
        oid = driver.core.references.oid(entry)
        contains = any(box[1] is entry for box in self.boxes)

        def claim() -> None:
            if others:
                self._claim(driver, entry, self.rng.choice(others), oid, contains)
            else:
                driver.core.references.drop(entry)

        self._promote(driver, [entry], claim)

    def _claim(self, driver: Process, entry: Entry, other: Process, oid: bytes, contains: bool) -> None:
        if not other.alive:
            driver.core.references.drop(entry)
            return
        theirs, ticket = other.core.references.claim_found(oid)
        self.sim.settle(other)

        def claimed() -> None:
            if ticket.status == m.ERROR:
                other.core.references.unclaim(theirs)
                return
            self._hold(other, theirs)
            if contains:
                self.boxes.append((other, theirs))
            self._used(driver, [entry])

        self._after(other, [ticket], claimed)
        self._after(driver, [ticket], lambda: driver.core.references.drop(entry), other)

    def _open(self, driver: Process, mine: list[Entry]) -> None:
        """Read a value that contains references, and take some of them out."""
        box = self.rng.choice([entry for process, entry in self.boxes if process is driver])
        box.refs += 1
        driver.core.fetch(box)
        self.sim.settle(driver)
        self._after(driver, [box], lambda: self._take_out(driver, box))

    def _take_out(self, driver: Process, box: Entry) -> None:
        references = driver.core.references
        oids = msgpack.unpackb(box.value) if box.status == m.INLINE else []
        found = []
        for oid in oids:
            if box.share is not None and box.share.oid is not None:
                entry, new = references.borrow_inside(oid)
                if new:
                    found.append(entry)
            else:
                entry = references.borrow(oid)
            self._hold(driver, entry)
        if found:
            references.claim_inside(box, found)
        references.drop(box)

    def _hand_on(self, driver: Process, mine: list[Entry]) -> None:
        """A task gets a value that contains references, takes them out, and may keep them for a while."""
        box = self.rng.choice(self._of_others([entry for process, entry in self.boxes if process is driver]))
        driver.core.fetch(box)
        self._hold(driver, self.sim.submit(driver, self._spec(driver), program("unpack"), Inputs([box])))
        self._used(driver, [box])

    def _actor(self, driver: Process, mine: list[Entry]) -> None:
        handle = self.sim.create(driver, program("actor"), restarts=1, cpus=0)
        self.actors.append((driver, handle))

    def _call(self, driver: Process, mine: list[Entry]) -> None:
        """Its owner calls an actor, which keeps what it gets for a while, or gives references."""
        owner, handle = self.rng.choice(self.actors)
        theirs = [entry for process, entry in self.held if process is owner]
        if not owner.alive:
            return
        if not theirs or self.rng.random() < 0.5:
            call = self.sim.call(owner, handle, program("give", count=2), retries=-1)
            self.calls.append((owner, call))
            return
        some = self._promoted(owner, theirs)

        def submit() -> None:
            oids = [owner.core.references.oid(entry) for entry in some]
            inputs = Inputs(held=list(some))
            self.calls.append((owner, self.sim.call(owner, handle, program("keep", oids=oids), inputs=inputs)))
            for entry in some:
                owner.core.references.drop(entry)

        self._promote(owner, some, submit)

    # The end.

    def ends(self, errors: tuple[str, ...] = ()) -> None:
        """Every ref has a value, or one of these errors; then all are dropped."""
        sim = self.sim
        sim.run_until(lambda: not self.waiting, 60.0)
        for process, entry in self.held:
            if process.alive:
                process.core.fetch(entry)
                sim.settle(process)
        everything = [(process, entry) for process, entry in [*self.held, *self.calls] if process.alive]
        sim.run_until(lambda: all(entry.status != m.PENDING for _, entry in everything), 120.0)
        for process, entry in everything:
            if entry.status == m.ERROR:
                name, text = entry.value[:2]
                assert name in errors, f"seed {sim.seed}: {process.name}: {name}: {text}\n{sim.tail()}"
        assert not self.early, f"seed {sim.seed}: {self.early[0]}\n{sim.tail()}"

    def rest(self, looks: int = 1) -> None:
        """Drop everything, and see that nothing is left."""
        while self.held:
            self.drop(0)
        for process, entry in [*self.calls, *self.actors]:
            if process.alive:
                self.sim.drop(process, entry)
        # Copies stay for a while, workers too, and looks repair what can be repaired.
        self.sim.run(self.sim.now + 2 * copies.UNUSED_S + 5 + looks * LOOK_S)
        for process in self._alive():
            sizes = table_sizes(process.core)
            before = self._before.get(process.peer)
            if before is None:
                continue
            grown = {name: size for name, size in sizes.items() if size > before.get(name, 0) and name not in KEPT}
            assert not grown, f"seed {self.sim.seed}: {process.name} still has {grown}"
        assert not self.early, f"seed {self.sim.seed}: {self.early[0]}"
        written = {segment: maker for segment, maker in self.sim.makers.items() if segment in self.sim.written}
        free = [segment for process in self.sim.processes.values() for segment in process.free]
        left = [one for one, maker in written.items() if one not in free and self.sim.processes[maker].alive]
        assert not left, f"seed {self.sim.seed}: segments {left} were never freed"
