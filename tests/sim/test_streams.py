"""Streams across hosts: every item once and in order, whoever dies; what nobody reads ends."""

import pytest

from tests.sim.programs import Reader, program
from tests.sim.scenarios import on, other
from tests.sim.simulator import Simulation, value_of
from tests.sim.test_actors import rest
from tests.sim.test_lineage import borrow, ends_clean, get
from zmesh.wire import messages as m

SEEDS = range(15)


@pytest.mark.parametrize("cuts", [0.0, 0.2])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_reader_gets_each_item_once_though_workers_and_hosts_die(seed: int, cuts: float) -> None:
    sim = Simulation(seed, hosts=4, cpus=1)
    sim.cuts = cuts
    driver = sim.driver("d")
    spec = on(driver, other(1), num_returns=-1, max_retries=-1, options={"backpressure": 1 + seed % 3})
    task = sim.submit(driver, spec, program("stream", items=40, seconds=0.002))
    reader = Reader(sim, driver, task, seconds=sim.rng.choice([0.0005, 0.003]))
    for _ in range(3):
        sim.run(sim.now + sim.rng.uniform(0.01, 0.1))
        busy = [worker for worker in sim.live_workers() if worker.core.thief.running is not None]
        for worker in busy:
            sim.kill(worker)
    sim.at(sim.rng.uniform(0.0, 0.1), lambda: sim.kill_host(sim.hosts[other(1)], 0.3))
    sim.run_until(lambda: reader.ended, 60.0)
    assert reader.seen == list(range(40))
    sim.drop(driver, task)
    rest(sim, driver, [])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_consumer_on_another_host_than_owner_and_producer_reads_what_the_owner_passes_on(seed: int) -> None:
    """The generator belongs to a program; a task on a third host reads its items by reference."""
    sim = Simulation(seed, hosts=3, cpus=1)
    driver = sim.driver("d")
    spec = on(driver, other(1), num_returns=-1, max_retries=-1, options={"backpressure": 4})
    task = sim.submit(driver, spec, program("stream", items=12, seconds=0.002))
    sim.run_until(lambda: len(task.outputs or ()) >= 3, 10.0)
    items = (task.outputs or [])[:3]
    ticket = driver.core.references.promote(items)
    sim.settle(driver)
    sim.run_until(lambda: ticket is None or ticket.status != m.PENDING, 10.0)
    oids = [driver.core.references.oid(one) for one in items]
    use = sim.submit(driver, on(driver, other(2)), program("borrow", oids=oids))
    sim.kill(next(worker for worker in sim.live_workers() if worker.core.thief.running is not None))
    reader = Reader(sim, driver, task)
    sim.run_until(lambda: reader.ended and use.status != m.PENDING, 60.0)
    assert reader.seen == list(range(12))
    rest(sim, driver, [task, use])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_death_of_a_consumer_ends_its_stream_and_frees_the_actor_for_others(seed: int) -> None:
    sim = Simulation(seed, hosts=3, cpus=2)
    driver, reader = sim.driver("d"), sim.driver("r", other(2))
    handle = sim.create(driver, program("actor"))
    [ticket] = [driver.core.references.promote([handle])]
    sim.settle(driver)
    sim.run_until(lambda: ticket.status != m.PENDING, 10.0)
    held, claim = reader.core.references.claim_found(driver.core.references.oid(handle))
    sim.settle(reader)
    sim.run_until(lambda: claim.status != m.PENDING, 10.0)
    call = sim.call(reader, held, program("stream", items=1000), returns=-1, backpressure=2)
    reading = Reader(sim, reader, call)
    sim.run_until(lambda: len(reading.seen) > 5, 10.0)
    sim.kill(reader)
    after = sim.call(driver, handle, program("work", value=1))
    sim.run_until(lambda: after.status != m.PENDING, 10.0)
    assert value_of(after)[0] == 1
    rest(sim, driver, [handle, after])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", ["drop", "cancel"])
@pytest.mark.parametrize("kind", ["task", "call"])
def test_a_stream_that_is_dropped_or_cancelled_half_read_stops(seed: int, how: str, kind: str) -> None:
    sim = Simulation(seed, hosts=3, cpus=1)
    driver = sim.driver("d")
    handle = sim.create(driver, program("actor")) if kind == "call" else None
    if handle is not None:
        task = sim.call(driver, handle, program("stream", items=100000), returns=-1, backpressure=3 * (seed % 2))
    else:
        options = {"backpressure": 3 * (seed % 2)}
        spec = on(driver, other(1), num_returns=-1, max_retries=-1, options=options)
        task = sim.submit(driver, spec, program("stream", items=100000, seconds=0.001))
    reader = Reader(sim, driver, task, seconds=0.002)
    sim.run_until(lambda: len(reader.seen) > 4, 10.0)
    if how == "drop":
        reader.drop()
    else:
        driver.core.cancel(task, sim.now)
        sim.settle(driver)
    sim.run_until(lambda: task.status != m.PENDING, 2.0)
    assert len(task.outputs or ()) < 200
    if how == "cancel":
        sim.run_until(lambda: reader.ended, 10.0)
        assert reader.failure[0] == "TaskCancelledError"
        sim.drop(driver, task)
    entries = []
    if handle is not None:
        entries = [handle, sim.call(driver, handle, program("work", value=1))]
        sim.run_until(lambda: entries[1].status != m.PENDING, 5.0)
    rest(sim, driver, entries)


@pytest.mark.parametrize("cuts", [0.0, 0.2])
@pytest.mark.parametrize("seed", SEEDS)
def test_items_lost_with_their_host_come_again_with_the_retry(seed: int, cuts: float) -> None:
    sim = Simulation(seed, hosts=3, cpus=1)
    sim.cuts = cuts
    driver, borrower = sim.driver("d"), sim.driver("b", other(2))
    spec = on(driver, other(1), num_returns=-1, max_retries=-1, options={"backpressure": 6 * (seed % 2)})
    task = sim.submit(driver, spec, program("stream", items=20, seconds=0.005, stored=True))
    reader = Reader(sim, driver, task, seconds=0.02)
    sim.run_until(lambda: len(task.outputs or ()) > 5, 10.0)
    lent = borrow(sim, driver, (task.outputs or [])[5], borrower)
    sim.run(sim.now + sim.rng.uniform(0.0, 0.01))
    sim.kill_host(sim.hosts[other(1)], sim.rng.choice([0.01, 0.5]))
    over = task.status != m.PENDING
    sim.run_until(lambda: reader.ended, 60.0)
    if over:
        return  # news of all items came at once, and late: nothing is made again of a stream that is over
    assert (reader.seen, reader.failure) == (["stored"] * 20, None)
    assert get(sim, borrower, [lent])[0][0] == m.STORED
    ends_clean(sim, [(driver, task), (borrower, lent)])


def test_an_item_that_was_lost_after_its_stream_was_retried_or_over_is_lost() -> None:
    sim = Simulation(1, hosts=2, cpus=1)
    driver = sim.driver("d")
    spec = on(driver, other(1), num_returns=-1, max_retries=0)
    task = sim.submit(driver, spec, program("stream", items=5, seconds=0.001, stored=True))
    sim.run_until(lambda: len(task.outputs or ()) == 4, 10.0)
    sim.kill_host(sim.hosts[other(1)], 5.0)
    items = (task.outputs or [])[:2]
    assert [status for status, _ in get(sim, driver, items)] == [m.ERROR] * 2
    assert sim.now < 10.0
    assert task.value[0] == "NodeDiedError"
    ends_clean(sim, [(driver, entry) for entry in (task, *(task.outputs or ()))])
