"""Actors on simulated hosts: every call is resolved once, each caller's in order, and nothing is left behind."""

import random
from typing import Any

import pytest

from tests.sim.programs import program
from tests.sim.simulator import Process, Simulation, value_of
from zmesh.core.actor_calls import RETIRE_S
from zmesh.core.records import Inputs, Task
from zmesh.wire import messages as m

SEEDS = range(20)
ACTOR = program("actor")


def finish(sim: Simulation, tasks: list[Task], limit: float = 120.0) -> None:
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), limit)


def rest(sim: Simulation, driver: Process, entries: list[Any]) -> None:
    """Drop all refs and handles, let the host come to rest, and see that nothing is left."""
    for entry in entries:
        if entry.refs and driver.alive:
            sim.drop(driver, entry)
    sim.run(sim.now + 120.0)
    sim.check_order()
    for host in sim.hosts.values():
        if host.process.alive:
            assert len(host.core.directory) == 0, sim.tail()
            assert not host.core.actors.places._places, sim.tail()
            assert host.core.resources.available == host.core.resources.total, sim.tail()
    if driver.alive:
        assert driver.core.tasks.open == 0
        assert not driver.core.actors.known
        assert not driver.core.actors.serving
    assert not sim.live_workers(), sim.tail()


def values(tasks: list[Task]) -> list[Any]:
    return [value_of(task)[0] for task in tasks]


@pytest.mark.parametrize("seed", SEEDS)
def test_calls_run_in_order_and_the_actor_ends_with_its_last_handle(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    handle = sim.create(driver, ACTOR)
    calls = [sim.call(driver, handle, program("work", value=i, seconds=0.0001)) for i in range(600)]
    finish(sim, calls)
    assert values(calls) == list(range(600))
    assert [seq for _, _, seq, _ in sim.call_starts] == sorted(seq for _, _, seq, _ in sim.call_starts)
    rest(sim, driver, [handle, *calls])


def test_a_warm_call_is_two_messages_and_none_to_the_node() -> None:
    sim = Simulation(1)
    driver = sim.driver("d")
    handle = sim.create(driver, ACTOR)
    finish(sim, [sim.call(driver, handle, program("work"))])
    sim.run(sim.now + 1.0)
    for _ in range(100):
        before = dict(sim.message_counts)
        finish(sim, [sim.call(driver, handle, program("work"))])
        told = {name: count - before.get(name, 0) for name, count in sim.message_counts.items()}
        assert {name: count for name, count in told.items() if count} == {"Call": 1, "Done": 1}


def test_many_actors_need_no_cpu_once_they_are_made() -> None:
    sim = Simulation(2)
    driver = sim.driver("d")
    handles = [sim.create(driver, ACTOR) for _ in range(100)]
    calls = [sim.call(driver, handle, program("work", value=i)) for i, handle in enumerate(handles)]
    finish(sim, calls)
    assert values(calls) == list(range(100))
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", value=i)) for i in range(20)]
    finish(sim, tasks, 5.0)
    rest(sim, driver, [*handles, *calls, *tasks])


def test_an_actor_with_cpus_of_its_own_keeps_them() -> None:
    sim = Simulation(3)
    driver = sim.driver("d")
    handles = [sim.create(driver, program("actor", lends=False)) for _ in range(3)]
    calls = [sim.call(driver, handle, program("work", value=i)) for i, handle in enumerate(handles)]
    sim.run(sim.now + 5.0)
    assert [call.status for call in calls] == [m.INLINE, m.INLINE, m.PENDING]
    sim.drop(driver, handles[0])
    finish(sim, calls, 5.0)
    rest(sim, driver, [*handles[1:], *calls])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lossy", [False, True])
def test_restarts_keep_the_order_and_resend_what_may_be_resent(seed: int, lossy: bool) -> None:
    sim = Simulation(seed, lossy=lossy)
    driver = sim.driver("d")
    handle = sim.create(driver, ACTOR, restarts=-1)
    calls = []
    for i in range(100):
        code = program("die", value=i, times=i // 30) if i % 30 == 29 else program("work", value=i)
        calls.append(sim.call(driver, handle, code, retries=-1))
    finish(sim, calls)
    assert values(calls) == list(range(100))
    rest(sim, driver, [handle, *calls])


@pytest.mark.parametrize("seed", SEEDS)
def test_without_retries_no_call_starts_twice_whatever_dies(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    fate = random.Random(seed)
    handle = sim.create(driver, ACTOR, restarts=3)
    calls: list[Task] = []
    for _ in range(8):
        calls += [sim.call(driver, handle, program("work", value=0)) for _ in range(10)]
        sim.run(sim.now + fate.uniform(0.0, 0.02))
        workers = sim.ready_workers()
        if workers and fate.random() < 0.7:
            sim.kill(fate.choice(workers))
    finish(sim, calls)
    starts = [(caller, seq) for _, caller, seq, _ in sim.call_starts]
    assert len(starts) == len(dict.fromkeys(starts)), f"seed {seed}"
    for call in calls:
        assert call.status == m.INLINE or call.value[0] in ("ActorUnavailableError", "ActorDiedError")
    rest(sim, driver, [handle, *calls])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hosts", [1, 3])
def test_borrowed_handles_call_and_keep_the_actor_alive(seed: int, hosts: int) -> None:
    sim = Simulation(seed, cpus=2, hosts=hosts)
    driver = sim.driver("d")
    handle = sim.create(driver, program("actor", dies=seed % 3), restarts=2)
    ticket = driver.core.references.promote([handle])
    sim.settle(driver)
    assert ticket is not None
    finish(sim, [ticket])
    oid = driver.core.references.oid(handle)
    spec = sim.spec(driver)
    users = []
    for i in range(8):
        codes = [program("work", value=10 * i + k) for k in range(5)]
        held = Inputs(held=[handle])
        users.append(sim.submit(driver, spec, program("use", oid=oid, calls=codes), held))
    sim.drop(driver, handle)  # the tasks hold it from here on
    finish(sim, users)
    assert [value_of(user) for user in users] == [[10 * i + k for k in range(5)] for i in range(8)]
    rest(sim, driver, users)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hosts", [1, 2])
def test_random_kills_stops_and_borrowers_lose_and_double_nothing(seed: int, hosts: int) -> None:
    sim = Simulation(seed, hosts=hosts)
    driver = sim.driver("d")
    fate = random.Random(seed)
    handles = [sim.create(driver, ACTOR, restarts=-1) for _ in range(3)]
    ticket = driver.core.references.promote(handles)
    sim.settle(driver)
    assert ticket is not None
    finish(sim, [ticket])
    oids = [driver.core.references.oid(handle) for handle in handles]
    spec = sim.spec(driver, max_retries=-1)
    calls: list[Task] = []
    users: list[Task] = []
    for step in range(12):
        for handle, oid in zip(handles, oids, strict=True):
            calls += [sim.call(driver, handle, program("work", value=step), retries=-1) for _ in range(3)]
            code = program("use", oid=oid, calls=[program("work", value=step)] * 3, retries=-1)
            users.append(sim.submit(driver, spec, code, Inputs(held=[handle])))
        sim.run(sim.now + fate.uniform(0.002, 0.05))
        workers = sim.live_workers()
        if workers and fate.random() < 0.6:
            sim.kill(fate.choice(workers))
        elif workers:
            sim.stop(fate.choice([*workers, driver]), fate.uniform(0.01, 0.3))
    finish(sim, [*calls, *users])
    assert [value_of(call)[0] for call in calls] == [step for step in range(12) for _ in range(9)]
    assert [value_of(user) for user in users] == [[step] * 3 for step in range(12) for _ in range(3)]
    rest(sim, driver, [*handles, *calls, *users])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_actor_fails_what_it_had_and_what_comes(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    handle = sim.create(driver, ACTOR, restarts=-1)
    before = [sim.call(driver, handle, program("hang"), retries=-1) for _ in range(3)]
    sim.run(sim.now + random.Random(seed).uniform(0.0, 0.03))
    driver.core.kill_actor(handle.actor, sim.now, no_restart=True)
    sim.settle(driver)
    after = sim.call(driver, handle, program("work"))
    finish(sim, [*before, after], 5.0)
    assert all(call.value[0] == "ActorDiedError" for call in [*before, after])
    rest(sim, driver, [handle, *before, after])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_actor_that_may_restart_is_made_anew(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    handle = sim.create(driver, ACTOR, restarts=1)
    first = sim.call(driver, handle, program("work"))
    finish(sim, [first])
    driver.core.kill_actor(handle.actor, sim.now, no_restart=False)
    sim.settle(driver)
    sim.run(sim.now + 1.0)
    second = sim.call(driver, handle, program("work"))
    finish(sim, [second])
    assert value_of(second)[1] == 1, "the second incarnation answers"
    rest(sim, driver, [handle, first, second])


@pytest.mark.parametrize("seed", SEEDS)
def test_an_actor_that_cannot_be_made_says_why_at_each_call(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    handle = sim.create(driver, program("actor", fails=True), restarts=5)
    calls = [sim.call(driver, handle, program("work")) for _ in range(3)]
    finish(sim, calls)
    late = sim.call(driver, handle, program("work"))
    assert [call.value[1] for call in [*calls, late]] == ["its __init__ raised"] * 4
    rest(sim, driver, [handle, *calls, late])


@pytest.mark.parametrize("seed", SEEDS)
def test_an_actor_that_exits_answers_those_behind(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    handle = sim.create(driver, ACTOR, restarts=5)
    codes = [program("work", value=1), program("exit"), program("work", value=2)]
    calls = [sim.call(driver, handle, code) for code in codes]
    finish(sim, calls)
    assert calls[0].status == m.INLINE
    assert [call.value[0] for call in calls[1:]] == ["ActorDiedError"] * 2
    rest(sim, driver, [handle, *calls])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_call_that_waits_for_its_argument_holds_up_those_behind_it(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    handle = sim.create(driver, ACTOR)
    slow = sim.submit(driver, spec, program("big", value=1, seconds=0.2))
    calls = [
        sim.call(driver, handle, program("work", value=0)),
        sim.call(driver, handle, program("work", value=1), inputs=Inputs(deps=[slow])),
        sim.call(driver, handle, program("work", value=2)),
    ]
    finish(sim, calls)
    assert values(calls) == [0, 1, 2]
    assert [seq for _, _, seq, _ in sim.call_starts] == [call.seq for call in calls]
    rest(sim, driver, [handle, slow, *calls])


@pytest.mark.parametrize("seed", SEEDS)
def test_streams_of_calls_survive_restarts(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    handle = sim.create(driver, ACTOR, restarts=-1)
    stream = sim.call(driver, handle, program("stream", items=20), retries=-1, returns=-1)
    sim.run(sim.now + random.Random(seed).uniform(0.005, 0.04))
    for worker in sim.live_workers():
        sim.kill(worker)
    finish(sim, [stream])
    assert stream.outputs is not None
    assert [value_of(item) for item in stream.outputs] == list(range(20))
    rest(sim, driver, [handle, stream, *stream.outputs])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hosts", [1, 2])
def test_refs_that_several_callers_pass_are_there_as_long_as_the_actor_has_them(seed: int, hosts: int) -> None:
    sim = Simulation(seed, hosts=hosts)
    driver = sim.driver("d")
    handle = sim.create(driver, ACTOR, restarts=-1)
    spec = sim.spec(driver)
    passing: list[Task] = []
    for _ in range(6):
        objects = [sim.submit(driver, spec, program("big", value=1)) for _ in range(2)]
        ticket = driver.core.references.promote([handle, *objects])
        sim.settle(driver)
        if ticket is not None:
            finish(sim, [ticket])
        oids = [driver.core.references.oid(entry) for entry in objects]
        keep = program("keep", oids=oids)
        passing += [sim.call(driver, handle, keep, retries=-1, inputs=Inputs(held=list(objects))) for _ in range(2)]
        code = program("use", oid=driver.core.references.oid(handle), calls=[keep, keep], passes=oids, retries=-1)
        passing.append(sim.submit(driver, spec, code, Inputs(held=[handle, *objects])))
        for entry in objects:
            sim.drop(driver, entry)  # the calls hold them
        sim.run(sim.now + sim.rng.uniform(0.0, 0.02))
        if sim.rng.random() < 0.3:
            workers = [sim.processes[handle.actor.peer]] if handle.actor.peer else []
            for worker in workers:
                sim.kill(worker)
    finish(sim, passing)
    assert [value_of(one)[0] for one in passing] == [True] * 18
    rest(sim, driver, [handle, *passing])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hosts", [1, 2])
def test_refs_that_an_actor_returns_outlive_it(seed: int, hosts: int) -> None:
    sim = Simulation(seed, hosts=hosts)
    driver = sim.driver("d")
    handle = sim.create(driver, program("actor"))
    given = [sim.call(driver, handle, program("give", count=3)) for _ in range(4)]
    finish(sim, given)
    sim.run(sim.now + sim.rng.uniform(0.0, 0.01))
    driver.core.kill_actor(handle.actor, sim.now, no_restart=True)
    sim.settle(driver)
    entries = [driver.core.references.borrow(oid) for one in given for oid in value_of(one)[0]]
    for entry in entries:
        driver.core.fetch(entry)
    sim.settle(driver)
    sim.run_until(lambda: all(entry.status != m.PENDING for entry in entries), 10.0)
    assert all(entry.status == m.STORED for entry in entries)
    rest(sim, driver, [handle, *given, *entries])


@pytest.mark.parametrize("seed", SEEDS)
def test_actors_go_with_their_driver(seed: int) -> None:
    sim = Simulation(seed, hosts=1 + seed % 2)
    driver = sim.driver("d")
    handles = [sim.create(driver, ACTOR, restarts=-1) for _ in range(3)]
    calls = [sim.call(driver, handle, program("hang")) for handle in handles]
    sim.run(sim.now + random.Random(seed).uniform(0.0, 0.05))
    sim.kill(driver)
    rest(sim, driver, calls)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cancelled_call_does_not_start_or_goes_on(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    handle = sim.create(driver, ACTOR)
    calls = [sim.call(driver, handle, program("work", value=i, seconds=0.01)) for i in range(30)]
    sim.run(sim.now + random.Random(seed).uniform(0.0, 0.1))
    for call in calls[10:20]:
        driver.core.cancel(call, sim.now)
        sim.settle(driver)
    finish(sim, calls)
    for call in [*calls[:10], *calls[20:]]:
        assert call.status == m.INLINE
    for call in calls[10:20]:
        assert call.status == m.INLINE or call.value[0] == "TaskCancelledError"
    rest(sim, driver, [handle, *calls])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_host_that_dies_takes_its_actors_and_they_are_made_elsewhere(seed: int) -> None:
    sim = Simulation(seed, cpus=1, hosts=3)
    driver = sim.driver("d")
    handles = [sim.create(driver, program("actor", lends=False), restarts=-1) for _ in range(3)]
    first = [sim.call(driver, handle, program("work", value=i), retries=-1) for i, handle in enumerate(handles)]
    finish(sim, first)
    homes = {handle.actor.peer[:8] for handle in handles}
    assert len(homes) == 3
    sim.kill_host(list(sim.hosts.values())[1 + seed % 2])
    sim.drop(driver, handles[0])  # makes room for the one that must move, wherever it was
    sim.run(sim.now + 3.0)
    second = [sim.call(driver, handle, program("work", value=i), retries=-1) for i, handle in enumerate(handles[1:])]
    finish(sim, second)
    assert values(second) == [0, 1]
    rest(sim, driver, [*handles[1:], *first, *second])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_that_loses_much_costs_time_and_nothing_else(seed: int) -> None:
    sim = Simulation(seed, cpus=1, hosts=2)
    sim.cuts = 0.3
    driver = sim.driver("d")
    handles = [sim.create(driver, program("actor", lends=False), restarts=-1) for _ in range(2)]
    calls = []
    for i in range(40):
        calls += [sim.call(driver, handle, program("work", value=i), retries=-1) for handle in handles]
        sim.run(sim.now + sim.rng.uniform(0.0, 0.05))
        if i == 20:
            sim.kill(sim.rng.choice(sim.live_workers()))
    finish(sim, calls)
    assert values(calls) == [i for i in range(40) for _ in handles]
    rest(sim, driver, [*handles, *calls])


def test_an_actor_that_does_not_retire_in_time_is_killed() -> None:
    sim = Simulation(5)
    driver = sim.driver("d")
    handle = sim.create(driver, ACTOR)
    first = sim.call(driver, handle, program("work"))
    finish(sim, [first])
    worker = sim.processes[handle.actor.peer]
    sim.stop(worker, 3600.0)
    sim.drop(driver, handle)
    sim.run(sim.now + RETIRE_S + 1.0)
    assert not worker.alive
    rest(sim, driver, [first])
