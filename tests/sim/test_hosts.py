"""Several hosts in the simulator: stealing between nodes, far objects, hosts that die, a network that loses."""

import msgpack
import pytest

from tests.sim.programs import program
from tests.sim.simulator import NODE, Process, Simulation, value_of
from zmesh.core import copies
from zmesh.core.effects import Send
from zmesh.core.records import Entry, Inputs
from zmesh.wire import messages as m

SEEDS = range(12)


def other(index: int) -> bytes:
    return NODE[:7] + bytes([NODE[7] + index])


def started_on(sim: Simulation) -> dict[bytes, int]:
    """How many tasks each host started."""
    counts: dict[bytes, int] = {}
    for _, _, _, _, worker in sim.starts:
        counts[worker[:8]] = counts.get(worker[:8], 0) + 1
    return counts


def quiet(sim: Simulation, seconds: float = 5.0) -> None:
    sim.run(sim.now + seconds)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_backlog_is_served_by_other_hosts_too(seed: int) -> None:
    sim = Simulation(seed, hosts=3)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", seconds=0.05, value=index)) for index in range(120)]
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 4.0)
    assert [value_of(task) for task in tasks] == list(range(120))
    counts = started_on(sim)
    assert len(counts) == 3, counts
    assert min(counts.values()) >= 15, counts
    assert all(count == 1 for count in sim.started.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_that_loses_a_third_loses_no_task(seed: int) -> None:
    sim = Simulation(seed, hosts=2, cpus=1)
    sim.cuts = 0.3
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", seconds=0.05, value=index)) for index in range(300)]
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 60.0)
    assert [value_of(task) for task in tasks] == list(range(300))
    assert len(started_on(sim)) == 2
    assert all(count == 1 for count in sim.started.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_far_workers_go_home_when_there_is_no_more_to_do(seed: int) -> None:
    sim = Simulation(seed, hosts=2)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", seconds=0.05)) for _ in range(60)]
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 5.0)
    quiet(sim)
    node = sim.hosts[other(1)].core
    assert not [worker for worker in node.matchmaking.workers.values() if worker.state == "attached"]
    assert node.resources.available == node.resources.total


@pytest.mark.parametrize("seed", SEEDS)
def test_a_driver_that_dies_leaves_nothing_on_other_hosts(seed: int) -> None:
    sim = Simulation(seed, hosts=2)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    for _ in range(40):
        sim.submit(driver, spec, program("big", seconds=0.1))
    sim.run(0.6)
    assert len(started_on(sim)) == 2
    sim.kill(driver)
    quiet(sim, 60.0)
    assert not sim.live_workers()
    assert not sim.written, "what it made is gone"


@pytest.mark.parametrize("seed", SEEDS)
def test_tasks_of_a_host_that_dies_run_again(seed: int) -> None:
    sim = Simulation(seed, hosts=3)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", seconds=0.05, value=index)) for index in range(150)]
    sim.run(0.5)
    assert started_on(sim).get(other(1), 0) > 0
    sim.kill_host(sim.hosts[other(1)])
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 10.0)
    assert [value_of(task) for task in tasks] == list(range(150))


@pytest.mark.parametrize("seed", SEEDS)
def test_without_retries_nothing_starts_twice_though_its_host_dies(seed: int) -> None:
    sim = Simulation(seed, hosts=2)
    driver = sim.driver("d")
    spec = sim.spec(driver, max_retries=0)
    tasks = [sim.submit(driver, spec, program("work", seconds=0.05)) for _ in range(60)]
    sim.run(0.5)
    sim.kill_host(sim.hosts[other(1)])
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 10.0)
    assert all(count == 1 for count in sim.started.values())
    failed = [task for task in tasks if task.status == m.ERROR]
    assert len(failed) <= 2
    assert all(task.value[0] == "NodeDiedError" for task in failed)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_host_of_the_driver_dies_and_the_others_are_free_again(seed: int) -> None:
    sim = Simulation(seed, hosts=2)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    for _ in range(60):
        sim.submit(driver, spec, program("big", seconds=0.1))
    sim.run(0.6)
    sim.kill_host(sim.hosts[NODE])
    quiet(sim, 60.0)
    core = sim.hosts[other(1)].core
    assert core.resources.available == core.resources.total
    here = [process for process in sim.live_workers() if process.peer[:8] == other(1)]
    assert not here


@pytest.mark.parametrize("seed", SEEDS)
def test_large_arguments_and_results_cross_hosts(seed: int) -> None:
    sim = Simulation(seed, hosts=2, cpus=1)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    shared = driver.core.put(m.STORED, sim.write(driver, 1), [])
    tasks = [
        sim.submit(driver, spec, program("big", seconds=0.05, value=index), Inputs([shared])) for index in range(20)
    ]
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 10.0)
    assert all(task.status == m.STORED for task in tasks)
    assert len(started_on(sim)) == 2
    far = [task for task in tasks if task.value[2][:8] != NODE]
    assert far
    second = [sim.submit(driver, spec, program("work", seconds=0.01), Inputs([task])) for task in tasks]
    sim.run_until(lambda: all(task.status != m.PENDING for task in second), 10.0)
    assert all(task.status == m.INLINE for task in second)
    _localize(sim, driver, far)
    for entry in [*tasks, shared, *second]:
        sim.drop(driver, entry)
    quiet(sim, 2 * copies.UNUSED_S + 5)
    free = [segment for process in sim.processes.values() for segment in process.free]
    assert not [segment for segment in sim.written if segment not in free]


def _localize(sim: Simulation, process: Process, entries: list[Entry]) -> None:
    ticket = process.core.references.localize(entries)
    assert ticket is not None
    sim.settle(process)
    sim.run_until(lambda: ticket.status != m.PENDING, 5.0)
    for entry in entries:
        status, place = process.core.references.location(entry)
        assert status == m.STORED
        assert place[2][:8] == process.peer[:8]


@pytest.mark.parametrize("seed", SEEDS)
def test_refs_inside_values_are_counted_at_their_home_from_any_host(seed: int) -> None:
    sim = Simulation(seed, hosts=2, cpus=1)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks = []
    for index in range(20):
        entry = driver.core.put(
            m.STORED if index % 2 else m.INLINE, sim.write(driver, index) if index % 2 else b"\x01", []
        )
        ticket = driver.core.references.promote([entry])
        sim.settle(driver)
        sim.run_until(lambda ticket=ticket: ticket.status != m.PENDING, 1.0)
        oid = driver.core.references.oid(entry)
        tasks.append(sim.submit(driver, spec, program("borrow", oids=[oid], seconds=0.05), Inputs([], [entry])))
        sim.drop(driver, entry)
    tasks += [sim.submit(driver, spec, program("give", count=2, stored=True, seconds=0.02)) for _ in range(20)]
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 20.0)
    assert len(started_on(sim)) == 2
    assert all(value_of(task) == [True] for task in tasks[:20])
    for task in tasks:
        sim.drop(driver, task)
    quiet(sim, 2 * copies.UNUSED_S + 5)
    assert [len(host.core.directory) for host in sim.hosts.values()] == [0, 0]
    free = [segment for process in sim.processes.values() for segment in process.free]
    assert not [segment for segment in sim.written if segment not in free]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_task_for_one_node_runs_there_or_fails_where_there_is_none(seed: int) -> None:
    sim = Simulation(seed, hosts=3)
    driver = sim.driver("d")
    there = driver.core.new_spec(driver.peer, "f", {"CPU": m.UNIT, f"node:{other(2).hex()}": 1})
    nowhere = driver.core.new_spec(driver.peer, "g", {"CPU": m.UNIT, "node:ffff": 1})
    tasks = [sim.submit(driver, there, program("work", seconds=0.01)) for _ in range(10)]
    lost = sim.submit(driver, nowhere, program("work"))
    sim.run_until(lambda: all(task.status != m.PENDING for task in [*tasks, lost]), 5.0)
    assert started_on(sim) == {other(2): 10}
    assert lost.status == m.ERROR
    assert lost.value[0] == "TaskUnschedulableError"


def test_spread_tasks_run_on_every_host_though_one_would_do() -> None:
    sim = Simulation(3, hosts=3, cpus=4)
    driver = sim.driver("d")
    spec = driver.core.new_spec(driver.peer, "f", {"CPU": m.UNIT, "spread": 1})
    tasks = [sim.submit(driver, spec, program("work", seconds=0.5)) for _ in range(3)]
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 5.0)
    assert started_on(sim) == {NODE: 1, other(1): 1, other(2): 1}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_steals_no_more_than_it_has(seed: int) -> None:
    sim = Simulation(seed, hosts=3, cpus=2)
    drivers = [sim.driver("d", node) for node in sim.hosts]
    tasks = []
    for driver in drivers:
        spec = sim.spec(driver)
        tasks += [sim.submit(driver, spec, program("work", seconds=0.03)) for _ in range(60)]
    done = False
    while not done:
        sim.run(sim.now + 0.01)
        done = all(task.status != m.PENDING for task in tasks)
        for host in sim.hosts.values():
            assert host.core.resources.available["CPU"] >= 0
        assert sim.now < 20
    assert all(count == 1 for count in sim.started.values())


@pytest.mark.parametrize("seed", range(6))
def test_a_link_that_begins_anew_is_a_death_and_a_new_peer(seed: int) -> None:
    sim = Simulation(seed, hosts=2, cpus=1)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", seconds=0.05, value=index)) for index in range(60)]
    sim.run(0.6)
    host = sim.hosts[NODE]
    host.core.member_down(other(1), "a partition", sim.now)
    sim.settle(host.process)
    sim.run(1.2)
    host.core.member_up(other(1), {"CPU": m.UNIT, "spread": 1 << 40}, sim.now)
    sim.settle(host.process)
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 10.0)
    assert [value_of(task) for task in tasks] == list(range(60))
    late = [start for start in sim.starts if start[0] > 1.2 and start[4][:8] == other(1)]
    assert late, "it steals again"
    quiet(sim)
    assert msgpack.unpackb(tasks[0].value) == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_lease_that_a_busy_node_cannot_use_goes_to_another(seed: int) -> None:
    """Two nodes offer the same free CPU of a third... and a local program takes it first: nothing is lost."""
    sim = Simulation(seed, hosts=3, cpus=1)
    first, second = sim.driver("d"), sim.driver("e", other(1))
    tasks = []
    for driver, seconds in ((first, 0.05), (second, 0.02)):
        spec = sim.spec(driver)
        tasks += [sim.submit(driver, spec, program("work", seconds=seconds)) for _ in range(60)]
        sim.run(sim.now + 0.04)
    late = sim.driver("f", other(2))
    spec = sim.spec(late)
    tasks += [sim.submit(late, spec, program("work", seconds=0.02)) for _ in range(40)]
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 20.0)
    assert all(count == 1 for count in sim.started.values())
    assert sim.message_counts.get("LeaseBack", 0) + sim.message_counts.get("Detach", 0) > 0
    quiet(sim)
    for host in sim.hosts.values():
        assert host.core.resources.available == host.core.resources.total


@pytest.mark.parametrize("seed", range(6))
def test_a_node_that_drains_gives_back_what_did_not_start_and_finishes_the_rest(seed: int) -> None:
    sim = Simulation(seed, hosts=2, cpus=1)
    driver = sim.driver("d")
    spec = sim.spec(driver, max_retries=0)
    tasks = [sim.submit(driver, spec, program("work", seconds=0.05, value=index)) for index in range(40)]
    sim.run(0.5)
    host = sim.hosts[other(1)]
    assert not host.core.drained
    host.core.drain(sim.now)
    sim.settle(host.process)
    sim.run_until(lambda: host.core.drained, 2.0)
    before = started_on(sim)[other(1)]
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 10.0)
    assert [value_of(task) for task in tasks] == list(range(40))
    assert started_on(sim)[other(1)] == before, "it took no more"


@pytest.mark.parametrize("seed", range(6))
def test_a_wish_for_a_node_that_is_not_there_is_given_up(seed: int) -> None:
    sim = Simulation(seed, hosts=2)
    driver = sim.driver("d")
    shape = {"CPU": m.UNIT}
    spec = driver.core.new_spec(driver.peer, "f", shape | {"node:ffff": 1}, fallbacks=[shape])
    tasks = [sim.submit(driver, spec, program("work", value=index)) for index in range(5)]
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 5.0)
    assert [value_of(task) for task in tasks] == list(range(5))


@pytest.mark.parametrize("seed", range(4))
def test_work_that_no_node_could_do_waits_a_moment_for_one_that_can(seed: int) -> None:
    sim = Simulation(seed, hosts=2)
    driver = sim.driver("d")
    spec = driver.core.new_spec(driver.peer, "f", {"CPU": m.UNIT, "label:gpu": 1})
    task = sim.submit(driver, spec, program("work", seconds=0.01, value=1))
    sim.run(0.5)
    host = sim.hosts[NODE]
    capable = sim.hosts[other(1)]
    capable.core.resources.total["label:gpu"] = capable.core.resources.available["label:gpu"] = 1 << 40
    host.core.member_up(other(1), dict(capable.core.resources.total), sim.now)
    sim.settle(host.process)
    sim.run_until(lambda: task.status != m.PENDING, 5.0)
    assert value_of(task) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_borrowers_and_readers_on_a_host_that_dies_hold_nothing_any_more(seed: int) -> None:
    sim = Simulation(seed, hosts=2, cpus=2)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    entries = []
    for index in range(10):
        entry = driver.core.put(m.STORED, sim.write(driver, index), [])
        ticket = driver.core.references.promote([entry])
        sim.settle(driver)
        sim.run_until(lambda ticket=ticket: ticket.status != m.PENDING, 1.0)
        entries.append(entry)
        oid = driver.core.references.oid(entry)
        task = sim.submit(driver, spec, program("borrow", oids=[oid], seconds=0.3), Inputs([entry], [entry]))
        entries.append(task)
        big = sim.submit(driver, spec, program("big", seconds=0.1))
        entries += [big, sim.submit(driver, spec, program("work", seconds=0.2), Inputs([big]))]
    sim.run(0.9)
    assert len(started_on(sim)) == 2
    sim.kill_host(sim.hosts[other(1)], seconds=0.3)
    sim.run_until(lambda: all(entry.status != m.PENDING for entry in entries), 30.0)
    for entry in entries:
        sim.drop(driver, entry)
    quiet(sim, 10)
    assert len(sim.hosts[NODE].core.directory) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_warm_far_workers_are_talked_to_past_the_own_node(seed: int) -> None:
    sim = Simulation(seed, hosts=2, cpus=1)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", seconds=0.02, value=index)) for index in range(200)]
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 10.0)
    assert [value_of(task) for task in tasks] == list(range(200))
    assert other(1) in driver.core.shortcuts.open
    assert sim.message_counts["Shortcut posts"] > 20


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shortcut_that_loses_half_of_what_it_is_told_loses_no_task(seed: int) -> None:
    sim = Simulation(seed, hosts=3, cpus=1)
    driver = sim.driver("d")
    spec = sim.spec(driver, max_retries=0)
    tasks = []
    for index in range(150):  # one after the other, so that every loss is waited for
        if index == 30:
            sim.cuts = 0.5
        tasks.append(sim.submit(driver, spec, program("work", seconds=0.03, value=index)))
        sim.run(sim.now + 0.01)
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 120.0)
    assert [value_of(task) for task in tasks] == list(range(150))
    assert all(count == 1 for count in sim.started.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shortcut_ends_with_the_node_it_leads_to(seed: int) -> None:
    sim = Simulation(seed, hosts=2, cpus=1)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", seconds=0.02, value=index)) for index in range(200)]
    sim.run_until(lambda: bool(driver.core.shortcuts.open), 5.0)
    sim.kill_host(sim.hosts[other(1)])
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 20.0)
    assert [value_of(task) for task in tasks] == list(range(200))
    assert not driver.core.shortcuts.open


@pytest.mark.parametrize("seed", SEEDS)
def test_a_driver_that_cannot_dial_other_hosts_goes_by_way_of_its_node(seed: int) -> None:
    sim = Simulation(seed, hosts=2, cpus=1, shortcuts=False)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", seconds=0.05, value=index)) for index in range(60)]
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 10.0)
    assert len(started_on(sim)) == 2
    assert "Shortcut posts" not in sim.message_counts


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shortcut_of_a_dead_driver_is_forgotten(seed: int) -> None:
    sim = Simulation(seed, hosts=2, cpus=1)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    for _ in range(200):
        sim.submit(driver, spec, program("work", seconds=0.02))
    sim.run_until(lambda: bool(driver.core.shortcuts.open), 5.0)
    sim.kill(driver)
    quiet(sim, 60.0)
    openings = sim.hosts[other(1)].core.openings
    assert not openings.names
    assert not sim.live_workers()


def _leave(sim: Simulation, index: int) -> bytes:
    """Have a host leave in good order, as runtime/node_main.py does; returns its ID."""
    host = sim.hosts[other(index)]
    host.core.drain(sim.now)
    sim.settle(host.process)
    sim.run_until(lambda: host.core.drained, 30.0)
    host.core.evacuation.leave()
    sim.settle(host.process)
    sim.run_until(lambda: host.core.evacuation.done, 30.0)
    sim.kill_host(host, seconds=0.0)
    quiet(sim, 1.0)
    return host.id


@pytest.mark.parametrize("cuts", [0.0, 0.2])
@pytest.mark.parametrize("seed", SEEDS)
def test_results_that_lay_on_a_host_that_left_are_there_for_all(seed: int, cuts: float) -> None:
    sim = Simulation(seed, hosts=3, cpus=1)
    sim.cuts = cuts
    driver, third = sim.driver("d"), sim.driver("e", other(2))
    spec = driver.core.new_spec(driver.peer, "f", {"CPU": m.UNIT, f"node:{other(1).hex()}": 1})
    tasks = [sim.submit(driver, spec, program("big", seconds=0.05, value=index)) for index in range(12)]
    sim.run_until(lambda: all(task.status == m.STORED for task in tasks[:6]), 30.0)
    oids = [driver.core.references.oid(task) for task in tasks]
    ticket = driver.core.references.promote(tasks[:8:2])  # of those after the sixth some have no value yet
    sim.settle(driver)
    sim.run_until(lambda: ticket.status != m.PENDING, 1.0)
    driver.core.effects.append(Send(sim.node_process.peer, m.Hold(0, [(oid, third.peer) for oid in oids[:8:2]])))
    sim.settle(driver)
    borrowed = [third.core.references.borrow(oid, counted=True) for oid in oids[:8:2]]
    sim.run_until(lambda: all(task.status == m.STORED for task in tasks), 30.0)
    sim.drop(driver, tasks[1])
    left = _leave(sim, 1)
    farewell = sim.hosts[left].core.evacuation.farewell(0)
    assert (farewell.moved, farewell.lost, farewell.notes) == (11, 0, [])
    for entry in borrowed:
        third.core.fetch(entry)
    sim.settle(third)
    sim.run_until(lambda: all(entry.status == m.STORED for entry in borrowed), 30.0)
    kept = [task for task in tasks if task is not tasks[1]]
    assert {task.value[2][:8] for task in kept} == {left}
    _localize(sim, third, borrowed)
    _localize(sim, driver, kept)
    anywhere = sim.spec(driver)
    later = [sim.submit(driver, anywhere, program("work", seconds=0.05), Inputs([task])) for task in kept for _ in "ab"]
    sim.run_until(lambda: all(task.status == m.INLINE for task in later), 30.0)
    for entry in [*kept, *later]:
        sim.drop(driver, entry)
    for entry in borrowed:
        sim.drop(third, entry)
    quiet(sim, 2 * copies.UNUSED_S + 5)
    assert not sim.hosts[NODE].copies
    assert not sim.hosts[other(2)].copies


@pytest.mark.parametrize("cuts", [0.0, 0.2])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_host_that_leaves_in_the_midst_of_work_costs_nothing(seed: int, cuts: float) -> None:
    sim = Simulation(seed, hosts=3, cpus=1)
    sim.cuts = cuts
    driver = sim.driver("d")
    spec = sim.spec(driver, max_retries=0)
    tasks = [sim.submit(driver, spec, program("big", seconds=0.03, value=index)) for index in range(60)]
    tasks += [sim.submit(driver, spec, program("big", seconds=0.03), Inputs([task])) for task in tasks]
    for task in tasks[::3]:
        sim.drop(driver, task)
    kept = [task for index, task in enumerate(tasks) if index % 3]
    ticket = driver.core.references.promote(kept[::2])
    sim.settle(driver)
    sim.run_until(lambda: ticket.status != m.PENDING, 1.0)
    sim.run_until(lambda: started_on(sim).get(other(1), 0) > 0 or not driver.core.tasks.open, 30.0)
    sim.run(sim.now + sim.rng.uniform(0.0, 0.2))
    _leave(sim, 1)
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 60.0)
    assert all(task.status == m.STORED for task in kept), [task.value for task in kept if task.status != m.STORED]
    assert max(sim.started.values()) == 1
    ticket = driver.core.references.localize(kept)
    sim.settle(driver)
    sim.run_until(lambda: ticket is None or ticket.status != m.PENDING, 30.0)
    assert all(driver.core.references.location(task)[0] == m.STORED for task in kept)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_host_that_dies_while_it_leaves_loses_no_more_than_what_lay_there(seed: int) -> None:
    sim = Simulation(seed, hosts=3, cpus=1)
    sim.warnings = []
    driver = sim.driver("d")
    spec = driver.core.new_spec(driver.peer, "f", {"CPU": m.UNIT, f"node:{other(1).hex()}": 1})
    tasks = [sim.submit(driver, spec, program("big", seconds=0.05, value=index)) for index in range(8)]
    sim.run_until(lambda: all(task.status == m.STORED for task in tasks), 30.0)
    ticket = driver.core.references.promote(tasks[::2])
    sim.settle(driver)
    sim.run_until(lambda: ticket.status != m.PENDING, 1.0)
    host = sim.hosts[other(1)]
    host.core.evacuation.leave()
    sim.settle(host.process)
    sim.run(sim.now + sim.rng.uniform(0.0, 0.06))
    sim.kill_host(host, seconds=0.5)
    quiet(sim)
    ticket = driver.core.references.localize(tasks)
    sim.settle(driver)
    sim.run_until(lambda: ticket is None or ticket.status != m.PENDING, 5.0)
    states = [driver.core.references.location(task)[0] for task in tasks]
    assert all(status in (m.STORED, m.ERROR) for status in states)
    again = sim.submit(driver, sim.spec(driver), program("work"))
    sim.run_until(lambda: again.status == m.INLINE, 5.0)


@pytest.mark.parametrize("cuts", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("seed", [1, 15, 36, 62])
def test_programs_on_every_host_with_tasks_for_each_get_all_of_them(seed: int, cuts: float) -> None:
    """Workers go from shape to shape and from client to client all the time, so every pair of words crosses."""
    sim = Simulation(seed, hosts=3)
    drivers = [sim.driver("d"), sim.driver("e", other(1)), sim.driver("f")]
    shapes = [{"CPU": m.UNIT}, *({"CPU": m.UNIT, f"node:{other(index).hex()}": 1} for index in range(3))]
    specs = {
        driver.name: [driver.core.new_spec(driver.peer, "f", shape, max_retries=0) for shape in shapes]
        for driver in drivers
    }
    tasks = []
    for index in range(120):
        sim.cuts = cuts if index > 20 else 0.0
        driver = sim.rng.choice(drivers)
        call = program("work", seconds=sim.rng.choice([0.001, 0.02, 0.05]), value=index)
        tasks.append(sim.submit(driver, sim.rng.choice(specs[driver.name]), call))
        sim.run(sim.now + sim.rng.choice([0.0, 0.001, 0.02, 0.1]))
    sim.run_until(lambda: all(task.status != m.PENDING for task in tasks), 600.0)
    assert [value_of(task) for task in tasks] == list(range(120))
    assert max(sim.started.values()) == 1
    sim.cuts = 0.0
    quiet(sim, 60.0)
    assert all(not driver.core.victim.thieves for driver in drivers)
    for host in sim.hosts.values():
        assert host.core.resources.available == host.core.resources.total
