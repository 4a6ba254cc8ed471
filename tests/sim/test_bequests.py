"""What the dead lent lives on with those they lent it to: actors they called, and values that were passed on."""

import random
from typing import Any

import msgpack
import pytest

from tests.sim.programs import program
from tests.sim.simulator import NODE, Process, Simulation
from zmesh.core.records import Entry, Inputs
from zmesh.wire import messages as m


def other(index: int) -> bytes:
    return NODE[:7] + bytes([NODE[7] + index])


def resolved(sim: Simulation, entries: list[Any], limit: float = 30.0) -> None:
    sim.run_until(lambda: all(entry is None or entry.status != m.PENDING for entry in entries), limit)


def promoted(sim: Simulation, process: Process, entries: list[Entry]) -> list[bytes]:
    ticket = process.core.references.promote(entries)
    sim.settle(process)
    resolved(sim, [ticket])
    return [process.core.references.oid(entry) for entry in entries]


def claimed(sim: Simulation, process: Process, oid: bytes) -> Entry:
    """Have a process hold an object that it heard of."""
    entry, ticket = process.core.references.claim_found(oid)
    sim.settle(process)
    resolved(sim, [ticket])
    assert ticket.status == m.INLINE
    found: Entry = entry
    return found


def read(sim: Simulation, process: Process, entry: Entry) -> None:
    process.core.fetch(entry)
    sim.settle(process)
    resolved(sim, [entry])
    assert entry.status in (m.INLINE, m.STORED), f"{entry.value}\n{sim.tail()}"


def put(sim: Simulation, process: Process, inside: list[Entry] | None = None) -> Entry:
    oids = [process.core.references.oid(entry) for entry in inside or ()]
    entry: Entry = process.core.put(m.INLINE, msgpack.packb(oids), inside or [])
    return entry


def actor_of(sim: Simulation) -> Process:
    return next(worker for worker in sim.ready_workers() if worker.core.server.groups)


def rest(sim: Simulation, held: list[tuple[Process, Any]]) -> None:
    for process, entry in held:
        if process.alive:
            sim.drop(process, entry)
    sim.run(sim.now + 60.0)
    for host in sim.hosts.values():
        if host.process.alive:
            assert len(host.core.directory) == 0, sim.tail()
            assert not host.core.burials, sim.tail()
            assert not host.core._announced, sim.tail()


def with_an_actor(seed: int, hosts: int, *, fresh: bool) -> tuple[Simulation, Any, Process, Entry]:
    """Return a simulation, (the driver that made an actor, its handle), one that calls it, and that one's handle."""
    fate = random.Random(seed)
    sim = Simulation(seed, hosts=hosts)
    owner = sim.driver("owner", other(fate.randrange(hosts)))
    handle = sim.create(owner, program("actor"), cpus=1)
    [oid] = promoted(sim, owner, [handle])
    caller = sim.driver("caller", other(fate.randrange(hosts)))
    theirs = claimed(sim, caller, oid)
    if not fresh:  # it was called before, so that it is known
        first = sim.call(caller, theirs, program("work"))
        resolved(sim, [first])
        sim.drop(caller, first)
    return sim, (owner, handle), caller, theirs


@pytest.mark.parametrize("hosts", [1, 3])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_what_a_caller_gave_an_actor_outlives_the_caller(seed: int, fresh: bool, hosts: int) -> None:
    """Whenever the caller dies after its call was delivered; it was the only one who held the object."""
    sim, made_by, caller, handle = with_an_actor(seed, hosts, fresh=fresh)
    maker = sim.rng.choice([caller, sim.driver("maker", other(sim.rng.randrange(hosts)))])
    made = put(sim, maker)
    [oid] = promoted(sim, maker, [made])
    lent = made
    if maker is not caller:
        lent = claimed(sim, caller, oid)
        sim.drop(maker, made)
    sim.run(sim.now + 0.1)
    sim.lags = {(one, two): sim.rng.choice([0.0, 0.003]) for one in sim.hosts for two in sim.hosts if one != two}
    sim.call_starts.clear()
    slowly = {"unpacks": sim.rng.uniform(0.0, 0.02)} if seed % 3 == 0 else {}
    sim.call(caller, handle, program("keep", oids=[oid], holds=20.0, **slowly), inputs=Inputs(held=[lent]))
    sim.run_until(lambda: bool(sim.call_starts), 10.0)
    sim.run(sim.now + sim.rng.choice([0.0, 0.0001, 0.001, 0.005]))
    if seed % 5 == 1:
        sim.stop(actor_of(sim), 8.0)
    sim.kill(caller)
    kept_by_the_actor(sim, oid)
    rest(sim, [made_by])


def kept_by_the_actor(sim: Simulation, oid: bytes) -> None:
    """The actor can read it, and is counted for it."""
    sim.run(sim.now + 10.0)
    actor = actor_of(sim)
    read(sim, actor, actor.core.references._borrowed[oid])
    home = sim.hosts[oid[:8]].core.directory
    assert home.counts_of(actor.peer)[oid] == 1, sim.tail()


@pytest.mark.parametrize("seed", range(40))
def test_what_a_caller_gave_an_actor_outlives_the_host_of_the_caller(seed: int) -> None:
    """Others miss that host one after the other; the object is counted on a third."""
    sim = Simulation(seed, hosts=3)
    owner, maker, caller = (sim.driver(name, other(index)) for index, name in enumerate(["owner", "maker", "caller"]))
    handle = sim.create(owner, program("actor"), cpus=1)
    [actor] = promoted(sim, owner, [handle])
    theirs = claimed(sim, caller, actor)
    sim.run_until(lambda: any(worker.core.server.groups for worker in sim.ready_workers()), 10.0)
    made = put(sim, maker)
    [oid] = promoted(sim, maker, [made])
    lent = claimed(sim, caller, oid)
    sim.drop(maker, made)
    sim.run(sim.now + 0.1)
    assert actor_of(sim).peer[:8] == owner.peer[:8]
    sim.call(caller, theirs, program("keep", oids=[oid], holds=20.0), inputs=Inputs(held=[lent]))
    sim.run_until(lambda: bool(sim.call_starts), 10.0)
    sim.run(sim.now + sim.rng.choice([0.0, 0.0001, 0.001, 0.005]))
    sim.kill_host(sim.hosts[other(2)], seconds=sim.rng.choice([0.01, 0.5]))
    kept_by_the_actor(sim, oid)
    rest(sim, [(owner, handle)])


@pytest.mark.parametrize("hosts", [1, 3])
@pytest.mark.parametrize("seed", range(20))
def test_what_a_task_of_a_dead_program_gave_an_actor_of_another_lives_on(seed: int, hosts: int) -> None:
    """The task held it only through its program; both are dead, and the actor is not."""
    fate = random.Random(seed)
    sim = Simulation(seed, hosts=hosts, cpus=3)
    owner, caller = (
        sim.driver("owner", other(fate.randrange(hosts))),
        sim.driver("caller", other(fate.randrange(hosts))),
    )
    handle = sim.create(owner, program("actor"), cpus=1)
    [actor] = promoted(sim, owner, [handle])
    theirs = claimed(sim, caller, actor)
    made = put(sim, caller)
    [oid] = promoted(sim, caller, [made])
    inner = program("keep", oids=[oid], holds=20.0)
    code = program("use", oid=actor, calls=[inner], passes=[oid])
    sim.submit(caller, sim.spec(caller), code, Inputs(held=[theirs, made]))
    sim.run_until(lambda: bool(sim.call_starts), 10.0)
    sim.run(sim.now + sim.rng.choice([0.0, 0.0001, 0.001, 0.005]))
    user = sim.processes[sim.call_starts[0][1]]
    for one in fate.sample([caller, user], 2) if seed % 2 else [caller]:
        sim.kill(one)
    kept_by_the_actor(sim, oid)
    rest(sim, [(owner, handle)])


@pytest.mark.parametrize("seed", range(40))
def test_what_a_value_contains_outlives_who_passed_the_value_on(seed: int) -> None:
    """A driver with a shortcut: its word that its node holds what is inside may be lost with it."""
    sim = Simulation(seed, hosts=2, cpus=1)
    driver, reader, maker = sim.driver("d"), sim.driver("r"), sim.driver("m", other(1))
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", seconds=0.02)) for _ in range(60)]
    sim.run_until(lambda: other(1) in driver.core.shortcuts.open, 10.0)
    resolved(sim, tasks)
    made = put(sim, maker)
    [oid] = promoted(sim, maker, [made])
    theirs = claimed(sim, driver, oid)
    sim.drop(maker, made)
    sim.run(sim.now + 0.1)
    sim.lags = {(NODE, other(1)): 0.05}
    box = put(sim, driver, [theirs])
    [box_id] = promoted(sim, driver, [box])
    found = claimed(sim, reader, box_id)
    sim.run(sim.now + sim.rng.uniform(0.0, 0.01))
    sim.kill(driver)
    sim.run(sim.now + sim.rng.choice([0.0, 1.0, 5.0]))
    read(sim, reader, found)
    inner, new = reader.core.references.borrow_inside(oid)
    assert new
    reader.core.references.claim_inside(found, [inner])
    sim.drop(reader, found)
    read(sim, reader, inner)
    rest(sim, [(reader, inner)])


class Givers:
    """Programs that give actors of another program what they hold, and die at any time, with their host or alone."""

    def __init__(self, seed: int) -> None:
        self.sim = sim = Simulation(seed, hosts=3, cpus=4)
        self.owner = sim.driver("owner")
        self.handles = [sim.create(self.owner, program("actor"), cpus=1) for _ in range(2)]
        oids = promoted(sim, self.owner, list(self.handles))
        self.programs = [sim.driver(f"p{index}", other(index % 3)) for index in range(6)]
        self.theirs = {one.peer: [claimed(sim, one, oid) for oid in oids] for one in self.programs}
        self.held: list[tuple[Process, Entry]] = []
        sim.lags = {(one, two): sim.rng.choice([0.0, 0.002, 0.02]) for one in sim.hosts for two in sim.hosts}

    def step(self) -> None:
        """Have a living program do something."""
        sim, living = self.sim, [one for one in self.programs if one.alive]
        one = sim.rng.choice(living)
        mine = [entry for process, entry in self.held if process is one]
        mine = [entry for entry in mine if sim.hosts[one.core.references.oid(entry)[:8]].process.alive]
        if not mine or sim.rng.random() < 0.3:
            inside = mine[:1] if sim.rng.random() < 0.5 else []
            made = put(sim, one, inside)
            promoted(sim, one, [made])
            self.held.append((one, made))
        elif sim.rng.random() < 0.3:
            two = sim.rng.choice(living)
            self.held.append((two, claimed(sim, two, one.core.references.oid(sim.rng.choice(mine)))))
        elif sim.rng.random() < 0.3:
            index = next(i for i, (process, _) in enumerate(self.held) if process is one)
            sim.drop(*self.held.pop(index))
        else:
            some = sim.rng.sample(mine, min(2, len(mine)))
            oids = [one.core.references.oid(entry) for entry in some]
            slowly = {"unpacks": sim.rng.uniform(0.0, 0.01)} if sim.rng.random() < 0.3 else {}
            code = program("keep", oids=oids, holds=sim.rng.uniform(0.0, 20.0), **slowly)
            sim.call(one, sim.rng.choice(self.theirs[one.peer]), code, inputs=Inputs(held=some))
        sim.run(sim.now + sim.rng.choice([0.0, 0.0005, 0.005]))

    def die(self, one: Process) -> None:
        """A program ends in the midst of what it does."""
        self.sim.kill(one)
        self.held = [(process, entry) for process, entry in self.held if process is not one]

    def verify(self) -> None:
        """What actors have is there, unless it was counted on a host that is dead."""
        for actor in [worker for worker in self.sim.live_workers() if worker.core.server.groups]:
            for oid, entry in actor.core.references._borrowed.items():
                home = self.sim.hosts[oid[:8]]
                if home.process.alive:
                    assert entry.status != m.ERROR, f"seed {self.sim.seed}: {entry.value}\n{self.sim.tail()}"
                    assert oid in home.core.directory, f"seed {self.sim.seed}: {oid.hex()} is gone\n{self.sim.tail()}"


@pytest.mark.parametrize("seed", range(16))
def test_whoever_gives_and_dies_actors_keep_what_they_have_and_nothing_stays(seed: int) -> None:
    givers = Givers(seed)
    sim = givers.sim
    for index in range(5):
        for _ in range(12):
            givers.step()
        givers.die(sim.rng.choice([one for one in givers.programs if one.alive]))
        sim.run(sim.now + sim.rng.choice([0.0, 0.01, 1.0]))
        givers.verify()
        if index == 3 and seed % 2:
            gone = [one for one in givers.programs if one.peer[:8] == other(2)]
            sim.kill_host(sim.hosts[other(2)], seconds=sim.rng.choice([0.01, 0.5]))
            givers.held = [(one, entry) for one, entry in givers.held if one not in gone]
            if all(not one.alive for one in givers.programs):
                break
    for _ in range(10):
        sim.run(sim.now + 1.0)
        givers.verify()
    for one in givers.programs:
        if one.alive:
            givers.die(one)
    rest(sim, [(givers.owner, handle) for handle in givers.handles])
