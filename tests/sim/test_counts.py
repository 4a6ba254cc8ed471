"""Objects that programs nest, pass and drop at random: none goes too early, none stays, whatever dies or is cut off."""

import msgpack
import pytest

from tests.sim.life import Life
from tests.sim.programs import program
from tests.sim.simulator import NODE, Process, Simulation, value_of
from zmesh.core.records import Entry, Inputs
from zmesh.wire import messages as m


def other(index: int) -> bytes:
    return NODE[:7] + bytes([NODE[7] + index])


def live(sim: Simulation, life: Life, steps: int) -> None:
    for _ in range(steps):
        life.step()
        sim.run(sim.now + sim.rng.choice([0.0, 0.001, 0.01, 0.05]))


@pytest.mark.parametrize("seed", range(12))
def test_on_one_host_nothing_goes_early_and_nothing_stays(seed: int) -> None:
    sim = Simulation(seed)
    life = Life(sim, [sim.driver("d"), sim.driver("e")])
    live(sim, life, 120)
    life.ends()
    life.rest()
    assert life.freed > 20


@pytest.mark.parametrize("cuts", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(12))
def test_across_hosts_nothing_goes_early_and_nothing_stays(seed: int, cuts: float) -> None:
    sim = Simulation(seed, hosts=3)
    sim.cuts = cuts
    life = Life(sim, [sim.driver("d"), sim.driver("e", other(1)), sim.driver("f", other(2))])
    live(sim, life, 120)
    life.ends()
    life.rest()


@pytest.mark.parametrize("seed", [0, 1, 2, 12, 22, 23, 34])
def test_however_slow_a_link_is_nothing_goes_early(seed: int) -> None:
    """A word by way of a third host overtakes one that went straight."""
    sim = Simulation(seed, hosts=3)
    life = Life(sim, [sim.driver("d"), sim.driver("e", other(1)), sim.driver("f", other(2))], hasty=True)
    sim.lags = {(one, two): sim.rng.choice([0.0, 0.005, 0.05]) for one in sim.hosts for two in sim.hosts if one != two}
    live(sim, life, 200)
    life.ends()
    life.rest()


DEATHS = ("OwnerDiedError", "ActorDiedError", "ActorUnavailableError", "WorkerDiedError")
LOSSES = (*DEATHS, "ObjectLostError", "NodeDiedError")


@pytest.mark.parametrize("hosts", [1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_whoever_is_killed_nothing_goes_early_and_nothing_stays(seed: int, hosts: int) -> None:
    sim = Simulation(seed, hosts=hosts)
    life = Life(sim, [sim.driver(name, other(index % hosts)) for index, name in enumerate("def")])
    for _ in range(4):
        live(sim, life, 30)
        if sim.ready_workers():
            sim.kill(sim.rng.choice(sim.ready_workers()))
    sim.kill(life.drivers[-1])
    live(sim, life, 30)
    life.ends(DEATHS)
    life.rest(looks=3)


@pytest.mark.parametrize("seed", range(24))
def test_after_partitions_every_ref_has_its_value_or_a_reason_and_nothing_stays(seed: int) -> None:
    """Either side, or both, took the other for dead: what it counted for it then is counted again, or is gone."""
    sim = Simulation(seed, hosts=3)
    sim.warnings = []
    life = Life(sim, [sim.driver(name, other(index)) for index, name in enumerate("def")])
    for _ in range(3):
        live(sim, life, 30)
        first, second = sim.rng.sample(list(sim.hosts.values()), 2)
        noticed = sim.rng.choice([(True, True), (True, False), (False, True)])
        sim.partition(first, second, sim.rng.uniform(0.1, 3.0), noticed=noticed)
        live(sim, life, 20)
        sim.run(sim.now + sim.rng.choice([0.0, 1.0, 4.0]))
    sim.run(sim.now + 5.0)
    live(sim, life, 30)
    life.ends(LOSSES)
    life.rest(looks=5)


@pytest.mark.parametrize("seed", range(16))
def test_readers_of_what_a_partition_took_away_get_it_made_again_or_hear_why(seed: int) -> None:
    sim = Simulation(seed, hosts=3, cpus=1)
    sim.warnings = []
    driver, reader = sim.driver("d"), sim.driver("r", other(2))
    life = Life(sim, [driver, reader])
    there = driver.core.new_spec(
        driver.peer, "f", {"CPU": m.UNIT, f"node:{other(1).hex()}": 1}, fallbacks=[{"CPU": m.UNIT}], max_retries=-1
    )
    made = [sim.submit(driver, there, program("big", seconds=0.01)) for _ in range(6)]
    sim.run_until(lambda: all(task.status != m.PENDING for task in made), 30.0)
    tickets = [driver.core.references.promote([task]) for task in made]
    sim.settle(driver)
    sim.run_until(lambda: all(ticket.status != m.PENDING for ticket in tickets if ticket is not None), 5.0)
    held = [(driver, task) for task in made]
    for task in made[::2]:
        entry, ticket = reader.core.references.claim_found(driver.core.references.oid(task))
        held.append((reader, entry))
        sim.settle(reader)
        sim.run_until(lambda ticket=ticket: ticket.status != m.PENDING, 5.0)
    beyond = reader.core.new_spec(
        reader.peer, "g", {"CPU": m.UNIT, f"node:{other(1).hex()}": 1}, fallbacks=[{"CPU": m.UNIT}], max_retries=-1
    )
    for process, entry in list(held):
        spec = there if process is driver else beyond
        held += [(process, sim.submit(process, spec, program("work", seconds=0.05), Inputs([entry]))) for _ in "abcd"]
    sim.run(sim.now + sim.rng.uniform(0.0, 0.5))
    noticed = sim.rng.choice([(True, True), (True, False), (False, True)])
    sim.partition(sim.hosts[NODE], sim.hosts[other(1)], sim.rng.uniform(0.1, 2.0), noticed=noticed)
    sim.run(sim.now + 5.0)
    life.held += held
    life.ends(LOSSES)
    life.rest(looks=5)


def claimed(sim: Simulation, process: Process, oid: bytes) -> Entry:
    """Have a process counted for an object; returns its entry."""
    entry, ticket = process.core.references.claim_found(oid)
    sim.settle(process)
    sim.run_until(lambda: ticket.status == m.INLINE, 5.0)
    return entry


def boxed(sim: Simulation, process: Process, inner: Entry) -> tuple[Entry, bytes]:
    """Put and promote a value that contains a reference; returns its entry and name."""
    box = process.core.put(m.INLINE, msgpack.packb([process.core.references.oid(inner)]), [inner])
    ticket = process.core.references.promote([box])
    sim.settle(process)
    sim.run_until(lambda: ticket.status == m.INLINE, 5.0)
    return box, process.core.references.oid(box)


def three_hosts(seed: int) -> tuple[Simulation, Life, Process, Entry]:
    """Return a driver of the third host with a borrowed value of the second, all that holds an object of the first."""
    sim = Simulation(seed, hosts=3, cpus=1)
    first, second, third = sim.driver("d"), sim.driver("e", other(1)), sim.driver("f", other(2))
    life = Life(sim, [first, second, third])
    made = first.core.put(m.INLINE, msgpack.packb(None), [])
    ticket = first.core.references.promote([made])
    sim.settle(first)
    sim.run_until(lambda: ticket.status == m.INLINE, 5.0)
    oid = first.core.references.oid(made)
    inner = claimed(sim, second, oid)
    box, name = boxed(sim, second, inner)
    theirs = claimed(sim, third, name)
    for process, entry in ((first, made), (second, inner), (second, box)):
        sim.drop(process, entry)
    third.core.fetch(theirs)
    sim.settle(third)
    sim.run_until(lambda: theirs.status == m.INLINE, 5.0)
    return sim, life, third, theirs


@pytest.mark.parametrize("seed", range(4))
def test_what_a_task_takes_out_of_a_borrowed_argument_is_held_until_its_home_knows(seed: int) -> None:
    """The caller lets go of the argument at a second host, which lets go of what it contains at a third."""
    sim, life, driver, box = three_hosts(seed)
    sim.lags = {(other(2), NODE): 0.1}
    task = sim.submit(driver, life._spec(driver), program("unpack", keeps=True), Inputs([box]))
    sim.drop(driver, box)
    sim.run_until(lambda: task.status != m.PENDING, 5.0)
    assert value_of(task) == [True]
    life.held.append((driver, task))
    life.ends()
    life.rest()


@pytest.mark.parametrize("seed", range(4))
def test_what_a_worker_gives_before_it_dies_is_held_by_whoever_got_it(seed: int) -> None:
    """The home hears of the death from the worker's node, long before it hears from whom the worker served."""
    sim, life, driver, box = three_hosts(seed)
    (oid,) = msgpack.unpackb(box.value)
    there = driver.core.new_spec(driver.peer, "f", {"CPU": m.UNIT, f"node:{other(1).hex()}": 1})
    first = sim.submit(driver, there, program("unpack", keeps=True), Inputs([box]))
    sim.drop(driver, box)
    sim.run_until(lambda: first.status != m.PENDING, 5.0)
    sim.run(sim.now + 0.02)  # nobody but the worker holds it now
    sim.lags = {(other(2), NODE): 5.0}
    second = sim.submit(driver, there, program("hand_back", oid=oid))
    sim.run_until(lambda: second.status != m.PENDING, 5.0)
    (worker,) = [process for process in sim.ready_workers() if process.peer[:8] == other(1)]
    sim.kill(worker)
    sim.run(sim.now + 10.0)
    assert second.share is not None
    (found,) = second.share.inside
    driver.core.fetch(found)
    sim.settle(driver)
    sim.run_until(lambda: found.status != m.PENDING, 5.0 + 5.0)
    assert found.status == m.INLINE
    life.held += [(driver, first), (driver, second)]
    life.ends()
    life.rest()
