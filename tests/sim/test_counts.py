"""Objects that programs nest, pass and drop at random: none goes too early, none stays, whatever dies or is cut off."""

import pytest

from tests.sim.life import Life
from tests.sim.programs import program
from tests.sim.simulator import NODE, Simulation
from zmesh.core.records import Inputs
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
        driver.peer, "f", {"CPU": m.UNIT, f"node:{other(1).hex()}": 1}, fallback={"CPU": m.UNIT}, max_retries=-1
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
        reader.peer, "g", {"CPU": m.UNIT, f"node:{other(1).hex()}": 1}, fallback={"CPU": m.UNIT}, max_retries=-1
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
