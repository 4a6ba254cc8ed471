"""Scenarios with small stores for tests/sim/faults.py: segments go to disk and come back in the midst of all else."""

from tests.sim.faults import Faulty, Scenario
from tests.sim.programs import program
from tests.sim.scenarios import DIED, GONE, borrow, on, other, roles
from zmesh.core.records import Entry, Inputs
from zmesh.wire import messages as m


def _put(sim: Faulty) -> Entry | None:
    entry = sim.put_stored(sim.main)
    sim.alive()
    assert entry is not None or sim.struck, f"there is room on disk\n{sim.tail()}"
    if entry is not None:
        sim.keep([entry])
    return entry


def _look(sim: Faulty, entry: Entry, seconds: float) -> None:
    sim.alive()
    if entry.status == m.STORED:
        error = sim.look_at(sim.main, entry, seconds)
        sim.alive()
        assert not error or sim.struck, f"{error}\n{sim.tail()}"


def spilled(sim: Faulty) -> None:
    """A program and its tasks make more than fits, and read all of it again: some with views, some twice."""
    roles(sim, "worker")
    driver = sim.main
    puts = [one for one in (_put(sim) for _ in range(3)) if one is not None]
    spec = sim.spec(driver, max_retries=-1)
    made = [sim.submit(driver, spec, program("big", seconds=0.005)) for _ in range(4)]
    sim.keep(made)
    sim.await_all(made)
    users = [sim.submit(driver, spec, program("work", seconds=0.01), Inputs([one])) for one in (*puts, *made)]
    sim.keep(users)
    for entry in (*puts, *made[:2]):
        _look(sim, entry, 0.05)
    sim.await_all(users)
    pairs = [sim.submit(driver, spec, program("big", seconds=0.005), Inputs([one])) for one in made[:2]]
    sim.keep(pairs)
    sim.await_all(pairs)


def spilled_elsewhere(sim: Faulty) -> None:
    """Results that lie on another host's disk are read here, there and on a third, and shared."""
    roles(sim, "worker")
    driver, reader = sim.main, sim.driver("r", other(2))
    far = on(driver, other(1), max_retries=-1)
    made = [sim.submit(driver, far, program("big", seconds=0.005)) for _ in range(6)]
    sim.keep(made)
    sim.await_all(made)
    sim.promote(made[:2])
    borrowed = [borrow(sim, one, reader) for one in made[:2]]
    spec = sim.spec(driver, max_retries=-1)
    users = [sim.submit(driver, spec, program("work", seconds=0.01), Inputs([one])) for one in made]
    users += [sim.submit(driver, far, program("work", seconds=0.01), Inputs([one])) for one in made[:3]]
    sim.keep(users)
    for entry in borrowed:
        if entry is not None and reader.alive:
            reader.core.fetch(entry)
            theirs = sim.submit(reader, sim.spec(reader, max_retries=-1), program("work"), Inputs([entry]))
            sim.keep([theirs], reader)
    for entry in made[:2]:
        _look(sim, entry, 0.05)
    sim.await_all(users)


def spilled_dropped(sim: Faulty) -> None:
    """What is on disk, on its way there or back is let go of, given to tasks, or wanted by two at once."""
    roles(sim, "worker")
    driver = sim.main
    spec = sim.spec(driver, max_retries=-1)
    users: list[Entry] = []
    for round_ in range(3):
        puts = [one for one in (_put(sim) for _ in range(3)) if one is not None]
        made = [sim.submit(driver, spec, program("big", seconds=0.002)) for _ in range(2)]
        for index, entry in enumerate((*puts, *made)):
            if index != round_:
                users.append(sim.submit(driver, spec, program("work", seconds=0.005), Inputs([entry])))
            if index % 2:
                users.append(sim.submit(driver, spec, program("big", seconds=0.002), Inputs([entry])))
            sim.at(sim.rng.uniform(0.0, 0.05), lambda entry=entry: driver.alive and sim.drop(driver, entry))
        sim.part.held = [(process, entry) for process, entry in sim.part.held if entry not in puts]
    sim.keep(users)
    sim.await_all(users)


def crowded(sim: Faulty) -> None:
    """Another host wants what lies on disk where all of the store is in use: that is an error, until there is room."""
    roles(sim)
    sim.harmless.remove("host 1 leaves")  # what its programs own ends with it
    owner, driver = sim.driver("r", other(1)), sim.main
    made = [one for one in (sim.put_stored(owner) for _ in range(6)) if one is not None] if owner.alive else []
    sim.keep(made, owner)
    sim.promote_of(owner, made)
    for entry in made[-4:]:
        if owner.alive and entry.status == m.STORED:
            sim.look_at(owner, entry, 5.0)
    sim.alive()
    borrowed = [one for one in (borrow(sim, entry, driver, owner) for entry in made[:2]) if one is not None]
    for entry in borrowed:
        driver.core.fetch(entry)
    sim.settle(driver)
    sim.await_all(borrowed)
    for patience in (0.0, 6.0):
        sim.pause(patience)
        for entry in borrowed:
            error = sim.look_at(driver, entry, 0.01) if entry.status == m.STORED else ""
            sim.alive()
            assert not error or sim.struck or (error == "StoreFullError" and not patience), f"{error}\n{sim.tail()}"


ERRORS = (*DIED, *GONE, "StoreFullError")
SCENARIOS = {
    "spilled": Scenario(spilled, hosts=1, cpus=2, room=4, errors=ERRORS),
    "spilled and dropped": Scenario(spilled_dropped, hosts=1, cpus=2, room=4, errors=ERRORS),
    "crowded": Scenario(crowded, hosts=2, cpus=1, room=4, errors=ERRORS),
    "spilled elsewhere": Scenario(spilled_elsewhere, hosts=3, cpus=1, room=4, errors=ERRORS),
}
