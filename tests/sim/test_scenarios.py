"""A whole host, simulated: every seed must end with each task resolved once, and with nothing left behind."""

import os
import random
import subprocess
import sys
from typing import Any

import pytest

from tests.sim.programs import program
from tests.sim.simulator import Process, Simulation, value_of
from zmesh.core.records import Inputs, Limits, Task
from zmesh.wire import messages as m

SEEDS = range(20)


def finish(sim: Simulation, driver: Process, tasks: list[Task], limit: float = 120.0) -> None:
    """Run until all tasks are resolved."""
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), limit)


def settle_down(sim: Simulation, driver: Process, tasks: list[Task]) -> None:
    """Drop all refs, let the host come to rest, and see that nothing is left."""
    for task in tasks:
        if task.refs:
            sim.drop(driver, task)
    sim.run(sim.now + 100.0)
    assert driver.core.tasks.open == 0
    assert sim.node.resources.available == sim.node.resources.total, sim.tail()
    assert len(sim.node.directory) == 0
    assert not sim.live_workers(), "idle workers end by themselves"
    before = sim.messages
    sim.run(sim.now + 1000.0)
    assert sim.messages == before, "an idle host says nothing"


@pytest.mark.parametrize("seed", SEEDS)
def test_every_task_of_a_burst_gives_its_value_once(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", value=i, seconds=0.0001)) for i in range(500)]
    finish(sim, driver, tasks)
    assert [value_of(task) for task in tasks] == list(range(500))
    assert all(count == 1 for count in sim.started.values())
    settle_down(sim, driver, tasks)


def test_a_warm_call_is_two_messages_and_none_to_the_node() -> None:
    sim = Simulation(1)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    finish(sim, driver, [sim.submit(driver, spec, program("work", seconds=0.0001)) for _ in range(50)])
    for _ in range(100):
        before = dict(sim.message_counts)
        finish(sim, driver, [sim.submit(driver, spec, program("work", seconds=0.0001))])
        told = {name: count - before.get(name, 0) for name, count in sim.message_counts.items()}
        assert {name: count for name, count in told.items() if count} == {"Work": 1, "Done": 1}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lossy", [False, True])
def test_workers_that_die_cost_only_the_task_they_executed(seed: int, lossy: bool) -> None:
    sim = Simulation(seed, lossy=lossy)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    fate = random.Random(seed)
    codes = []
    for i in range(200):
        times = fate.choice((0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 5))
        codes.append((times, program("die", value=i, times=times, seconds=0.0002)))
    tasks = [sim.submit(driver, spec, code) for _, code in codes]
    finish(sim, driver, tasks)
    for i, ((times, _), task) in enumerate(zip(codes, tasks, strict=True)):
        if times <= 3:
            assert value_of(task) == i
            assert task.attempt == times, f"seed {seed}: task {i} was charged {task.attempt} times"
        else:
            assert task.status == m.ERROR
            assert task.value[0] == "WorkerDiedError"
            assert task.value[2]["attempts"] == 4
    settle_down(sim, driver, tasks)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_retries_no_task_starts_twice_whatever_dies(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    spec = sim.spec(driver, max_retries=0)
    fate = random.Random(seed)
    tasks = [sim.submit(driver, spec, program("die", times=fate.choice((0, 0, 0, 9)))) for _ in range(60)]
    for _ in range(5):
        sim.run(sim.now + 0.02)
        workers = sim.live_workers()
        if workers:
            sim.kill(fate.choice(workers))
    finish(sim, driver, tasks)
    assert all(count <= 1 for count in sim.started.values()), f"seed {seed}"
    settle_down(sim, driver, tasks)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_kills_and_stops_lose_and_double_nothing(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    spec = sim.spec(driver, max_retries=-1)
    fate = random.Random(seed)
    tasks = [sim.submit(driver, spec, program("work", value=i, seconds=0.002)) for i in range(150)]
    for _ in range(12):
        sim.run(sim.now + fate.uniform(0.005, 0.05))
        workers = [worker for worker in sim.live_workers() if worker.core.thief is not None]
        if workers and fate.random() < 0.6:
            sim.kill(fate.choice(workers))
        elif workers:
            sim.stop(fate.choice([*workers, driver]), fate.uniform(0.01, 0.3))
    finish(sim, driver, tasks)
    assert [value_of(task) for task in tasks] == list(range(150))
    settle_down(sim, driver, tasks)


@pytest.mark.parametrize("depth", [1, 5, 50])
def test_nested_tasks_never_deadlock_on_one_cpu(depth: int) -> None:
    sim = Simulation(3, cpus=1)
    driver = sim.driver("d")
    code = program("work", value="leaf")
    for _ in range(depth):
        code = program("nest", children=[code])
    task = sim.submit(driver, sim.spec(driver), code)
    finish(sim, driver, [task], limit=60)
    found = value_of(task)
    for _ in range(depth):
        (found,) = found
    assert found == "leaf"
    settle_down(sim, driver, [task])


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_blocked_parents_stay_few_processes(seed: int) -> None:
    sim = Simulation(seed, cpus=2)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    code = program("nest", children=[program("work", seconds=0.005)])
    tasks = [sim.submit(driver, spec, code) for _ in range(1000)]
    finish(sim, driver, tasks, limit=300)
    assert sim.workers_max < 16, sim.workers_max
    settle_down(sim, driver, tasks)


@pytest.mark.parametrize("seed", SEEDS)
def test_nested_tasks_survive_the_death_of_parents_and_children(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    spec = sim.spec(driver, max_retries=-1)
    fate = random.Random(seed)
    leaf = [program("work", value=i, seconds=0.003) for i in range(4)]
    tasks = [sim.submit(driver, spec, program("nest", children=leaf)) for _ in range(10)]
    for _ in range(6):
        sim.run(sim.now + fate.uniform(0.005, 0.05))
        if sim.live_workers():
            sim.kill(fate.choice(sim.live_workers()))
    # A child whose worker dies too often fails its parent's get: with the default of 3 retries that needs 4 kills.
    finish(sim, driver, tasks)
    for task in tasks:
        assert task.status == m.FAILED or value_of(task) == [0, 1, 2, 3]
    settle_down(sim, driver, tasks)


@pytest.mark.parametrize("position", [0, 500, 1000])
def test_a_long_task_holds_up_nobody(position: int) -> None:
    """One call of 10 s and 1,000 of 1 ms, of the same function, on 2 workers: 10.8 s wherever the long one stands."""
    sim = Simulation(7)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", seconds=10.0 if i == position else 0.001)) for i in range(1001)]
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        for worker in sim.live_workers():
            worker.core.thief.stalled(sim.now)  # what the background thread does every 20 ms
            sim.settle(worker)
        if looks < 600:
            sim.at(0.02, look)

    sim.at(0.02, look)
    begun = sim.now
    finish(sim, driver, tasks, limit=20)
    assert sim.now - begun < 10.8


@pytest.mark.parametrize("seed", range(5))
def test_a_second_driver_starts_within_100_ms_beside_endless_work(seed: int) -> None:
    sim = Simulation(seed)
    first, second = sim.driver("first"), sim.driver("second")
    long_queue = [sim.submit(first, sim.spec(first), program("work", seconds=0.001)) for _ in range(3000)]
    sim.run(sim.now + 0.5)
    begun = sim.now
    task = sim.submit(second, sim.spec(second), program("work", value=1, seconds=0.001))
    finish(sim, second, [task])
    started = next(at for at, owner, *_ in sim.starts if owner == second.peer)
    assert started - begun < 0.1
    assert any(task.status == m.PENDING for task in long_queue)


def test_two_drivers_share_the_workers_evenly() -> None:
    sim = Simulation(2, cpus=4)
    drivers = [sim.driver("a"), sim.driver("b")]
    for driver in drivers:
        spec = sim.spec(driver)
        for _ in range(2000):
            sim.submit(driver, spec, program("work", seconds=0.002))
    sim.run(1.5)
    done = [sum(owner == driver.peer for at, owner, *_ in sim.starts if at > 0.3) for driver in drivers]
    assert 0.8 < done[0] / done[1] < 1.25, done


@pytest.mark.parametrize("seed", range(5))
def test_higher_priority_goes_first(seed: int) -> None:
    sim = Simulation(seed, cpus=1)
    driver = sim.driver("d")
    low, high = sim.spec(driver), sim.spec(driver, priority=5)
    lows = [sim.submit(driver, low, program("work", seconds=0.05)) for _ in range(5)]
    highs = [sim.submit(driver, high, program("work", seconds=0.05)) for _ in range(5)]
    finish(sim, driver, lows + highs)
    order = [seq for _, _, seq, _, _ in sim.starts]
    assert sorted(order.index(task.seq) for task in highs) == list(range(5))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_segment_is_written_while_anybody_reads_it(seed: int) -> None:
    """Producers recycle; readers keep views beyond their tasks, are stopped, are killed."""
    sim = Simulation(seed)
    driver = sim.driver("d")
    fate = random.Random(seed)
    make, read = sim.spec(driver, max_retries=-1), sim.spec(driver, max_retries=-1)
    kept: list[Task] = []
    for _ in range(25):
        made = sim.submit(driver, make, program("big", value=1, seconds=0.001))
        readers = [
            sim.submit(driver, read, program("work", seconds=0.002), Inputs([made])) for _ in range(fate.randrange(4))
        ]
        kept += readers
        sim.drop(driver, made)
        sim.run(sim.now + fate.uniform(0.0, 0.02))
        workers = sim.live_workers()
        if workers and fate.random() < 0.15:
            sim.kill(fate.choice(workers))
        elif workers and fate.random() < 0.2:
            sim.stop(fate.choice(workers), fate.uniform(0.05, 0.5))
    finish(sim, driver, kept)
    assert all(task.status == m.INLINE for task in kept)
    assert max(sim.written.values(), default=0) > 1, "nothing was recycled: the test shows nothing"
    settle_down(sim, driver, kept)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_dead_driver_leaves_nothing_running(seed: int) -> None:
    sim = Simulation(seed)
    driver, other = sim.driver("d"), sim.driver("other")
    spec = sim.spec(driver)
    for _ in range(50):
        sim.submit(driver, spec, program("nest", children=[program("work", seconds=0.5)]))
    neighbour = [sim.submit(other, sim.spec(other), program("work", value=1, seconds=0.01)) for _ in range(20)]
    sim.run(0.3)
    sim.kill(driver)
    finish(sim, other, neighbour)
    sim.run(sim.now + 60)
    assert all(worker.core.thief.job != driver.peer for worker in sim.live_workers()), sim.tail()
    settle_down(sim, other, neighbour)


@pytest.mark.parametrize("seed", SEEDS)
def test_cancelled_tasks_end_and_their_neighbours_do_not(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    fate = random.Random(seed)
    codes = [program(fate.choice(("work", "work", "hang")), value=i, seconds=0.002) for i in range(60)]
    tasks = [sim.submit(driver, spec, code) for code in codes]
    doomed = [task for task, code in zip(tasks, codes, strict=True) if b"hang" in code or fate.random() < 0.2]
    for task in doomed:
        sim.at(fate.uniform(0, 0.2), lambda task=task: (driver.core.cancel(task, sim.now), sim.settle(driver)))
    finish(sim, driver, tasks)
    for i, task in enumerate(tasks):
        if task in doomed:
            assert task.status == m.INLINE or task.value[0] == "TaskCancelledError"
        else:
            assert value_of(task) == i
    settle_down(sim, driver, tasks)


def test_a_task_past_its_time_is_killed_and_retried_then_fails() -> None:
    sim = Simulation(1)
    driver = sim.driver("d")
    task = sim.submit(driver, sim.spec(driver, timeout_s=0.5, max_retries=1), program("hang"))
    finish(sim, driver, [task], limit=10)
    assert task.value[0] == "TaskTimeoutError"
    assert task.value[2]["attempts"] == 2
    assert 1.0 < sim.now < 2.0


@pytest.mark.parametrize("seed", SEEDS)
def test_streams_give_each_item_once_in_order_though_workers_die(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    spec = sim.spec(driver, num_returns=-1, max_retries=-1)
    task = sim.submit(driver, spec, program("stream", items=30, seconds=0.002))
    fate = random.Random(seed)
    for _ in range(2):
        sim.run(sim.now + fate.uniform(0.01, 0.05))
        for worker in sim.live_workers():
            if worker.core.thief.running is not None:
                sim.kill(worker)
    finish(sim, driver, [task])
    assert task.outputs is not None
    assert [value_of(item) for item in task.outputs] == list(range(30))


def test_a_shape_that_does_not_fit_is_not_starved_by_small_ones() -> None:
    sim = Simulation(4, cpus=4)
    driver = sim.driver("d")
    small = sim.spec(driver)
    for _ in range(3000):
        sim.submit(driver, small, program("work", seconds=0.005))
    sim.run(0.2)
    wide = sim.submit(driver, sim.spec(driver, cpus=4), program("work", seconds=0.01))
    finish(sim, driver, [wide], limit=1.0)


def test_work_no_node_can_run_fails_with_what_is_missing() -> None:
    sim = Simulation(1, cpus=2)
    driver = sim.driver("d")
    task = sim.submit(driver, sim.spec(driver, cpus=3), program("work"))
    finish(sim, driver, [task], limit=3)
    assert task.value[0] == "TaskUnschedulableError"
    assert "CPU 3" in task.value[1]


def test_an_idle_worker_ends_and_a_busy_one_does_not() -> None:
    sim = Simulation(1, limits=Limits(worker_idle_s=1.0, surplus_s=0.5))
    driver = sim.driver("d")
    task = sim.submit(driver, sim.spec(driver), program("work", seconds=5.0))
    finish(sim, driver, [task])
    assert len(sim.live_workers()) == 1
    sim.run(sim.now + 3.0)
    assert not sim.live_workers()


def promote(sim: Simulation, process: Process, entries: list[Any]) -> None:
    """Hand entries to the node and wait for its answer, as a call with nested refs does."""
    ticket = process.core.references.promote(entries)
    sim.settle(process)
    if ticket is not None:
        sim.run_until(lambda: ticket.status != m.PENDING, 1.0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("deadly", [False, True])
def test_refs_inside_arguments_hold_their_objects_and_let_go(seed: int, deadly: bool) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    fate = random.Random(seed)
    spec = sim.spec(driver, max_retries=-1)
    tasks: list[Task] = []
    for i in range(20):
        inline = driver.core.put(m.INLINE, b"value", [])
        pending = sim.submit(driver, spec, program("big", value=i, seconds=fate.uniform(0.0, 0.01)))
        promote(sim, driver, [inline, pending])
        oids = [driver.core.references.oid(inline), driver.core.references.oid(pending)]
        code = program("borrow", oids=oids, seconds=0.001)
        tasks += [sim.submit(driver, spec, code, Inputs(held=[inline, pending])) for _ in range(fate.randrange(1, 3))]
        sim.drop(driver, inline)
        sim.drop(driver, pending)
        sim.run(sim.now + fate.uniform(0.0, 0.01))
        if deadly and sim.ready_workers() and fate.random() < 0.3:
            sim.kill(fate.choice(sim.ready_workers()))
    finish(sim, driver, tasks)
    for task in tasks:
        assert value_of(task) == [True, True], "nothing is freed while a task that names it is unfinished"
    settle_down(sim, driver, tasks)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("deadly", [False, True])
def test_refs_inside_results_outlive_the_worker_that_made_them(seed: int, deadly: bool) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    fate = random.Random(seed)
    spec = sim.spec(driver, max_retries=-1)
    tasks = [sim.submit(driver, spec, program("give", count=3, stored=fate.random() < 0.5)) for _ in range(15)]
    for _ in range(6 if deadly else 0):
        sim.run(sim.now + fate.uniform(0.0, 0.01))
        if sim.ready_workers():
            sim.kill(fate.choice(sim.ready_workers()))
    finish(sim, driver, tasks)
    sim.run(sim.now + 0.1)
    for worker in sim.live_workers() if deadly else []:
        sim.kill(worker)
    sim.run(sim.now + 0.1)
    borrowed = []
    for task in tasks:
        borrowed += [driver.core.references.borrow(oid) for oid in value_of(task)]
        sim.drop(driver, task)
    for entry in borrowed:
        driver.core.fetch(entry)
        sim.settle(driver)
    sim.run_until(lambda: all(entry.status != m.PENDING for entry in borrowed), 1.0)
    assert all(entry.status in (m.INLINE, m.STORED) for entry in borrowed), [entry.value for entry in borrowed]
    for entry in borrowed:
        sim.drop(driver, entry)
    settle_down(sim, driver, [])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_death_of_a_driver_frees_what_only_it_held(seed: int) -> None:
    sim = Simulation(seed)
    first, second = sim.driver("first"), sim.driver("second")
    spec = sim.spec(first)
    kept = [first.core.put(m.INLINE, b"x" * 100, []) for _ in range(5)]
    pending = sim.submit(first, spec, program("work", seconds=5.0))
    promote(sim, first, [*kept, pending])
    oid = first.core.references.oid(pending)
    waiting = second.core.references.borrow(oid)
    second.core.fetch(waiting)
    sim.settle(second)
    sim.run(sim.now + 0.1)
    sim.kill(first)
    sim.run_until(lambda: waiting.status != m.PENDING, 5.0)
    assert waiting.value[0] in ("OwnerDiedError", "ObjectLostError")
    sim.drop(second, waiting)
    settle_down(sim, second, [])


def trace_of(seed: int) -> str:
    """Return the trace of one eventful run."""
    sim = Simulation(seed)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks: list[Any] = [sim.submit(driver, spec, program("die", times=i % 3, value=i)) for i in range(40)]
    finish(sim, driver, tasks)
    return "\n".join(sim.trace)


def test_the_same_seed_gives_the_same_trace_under_any_hash_seed() -> None:
    code = "from tests.sim.test_scenarios import trace_of; print(trace_of(5))"
    traces = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert traces[0] == traces[1]
    assert trace_of(5) != trace_of(6)
