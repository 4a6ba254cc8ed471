"""Placement groups over several hosts: races for the same resources, deaths in every phase, removal under load."""

from collections.abc import Callable

import pytest

from tests.sim.groups import Group, balance, idle
from tests.sim.programs import program
from tests.sim.simulator import NODE, Simulation, value_of
from tests.sim.test_hosts import other, started_on
from zmesh.wire import messages as m

SEEDS = range(12)


def until(sim: Simulation, condition: Callable[[], bool], limit: float) -> None:
    """Let events happen, a millisecond at a time with a look at the books, until the condition holds."""
    end = sim.now + limit
    while not condition():
        assert sim.now < end, f"seed {sim.seed}: not in {limit} s\n{sim.tail()}"
        sim.run(sim.now + 0.001)
        balance(sim)


def there(*groups: Group) -> bool:
    return all(group.entry.status == m.INLINE for group in groups)


@pytest.mark.parametrize("seed", SEEDS)
def test_tasks_run_where_their_bundle_is_and_no_more_at_once_than_it_holds(seed: int) -> None:
    sim = Simulation(seed, cpus=2, hosts=3)
    group = Group(sim, sim.driver("d"), [1, 1, 2], "SPREAD")
    until(sim, lambda: there(group), 1.0)
    assert len({*group.nodes}) == 3
    for index, node in enumerate(group.nodes):
        tasks = [group.submit(program("work", seconds=0.05, value=index), index) for _ in range(6)]
        before = len(sim.starts)
        begun = sim.now
        until(sim, lambda tasks=tasks: all(task.status != m.PENDING for task in tasks), 5.0)
        assert [value_of(task) for task in tasks] == [index] * 6
        assert all(start[4][:8] == node for start in sim.starts[before:])
        assert sim.now - begun >= 0.05 * (3 if index == 2 else 6)
    anywhere = [group.submit(program("work", seconds=0.05)) for _ in range(40)]
    until(sim, lambda: all(task.status != m.PENDING for task in anywhere), 5.0)
    assert len(started_on(sim)) == 3
    group.remove()
    until(sim, lambda: idle(sim), 5.0)
    assert group.table["state"] == "REMOVED"


@pytest.mark.parametrize("seed", SEEDS)
def test_two_groups_that_want_the_same_get_it_one_after_the_other(seed: int) -> None:
    sim = Simulation(seed, cpus=2, hosts=3)
    drivers = [sim.driver("d"), sim.driver("e", other(1))]
    groups = [Group(sim, driver, [2, 2], "STRICT_SPREAD") for driver in drivers]
    until(sim, lambda: any(there(group) for group in groups), 10.0)
    sim.run(sim.now + 2.0)
    balance(sim)
    (first,) = [group for group in groups if there(group)]
    (second,) = [group for group in groups if group is not first]
    assert second.entry.status == m.PENDING
    assert second.table["state"] == "PENDING"
    first.remove()
    until(sim, lambda: there(second), 3.0)
    second.remove()
    until(sim, lambda: idle(sim), 1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_that_fit_side_by_side_are_all_made(seed: int) -> None:
    sim = Simulation(seed, cpus=2, hosts=3)
    drivers = [sim.driver(name, node) for name, node in zip("def", sim.hosts, strict=True)]
    groups = [Group(sim, driver, [1, 1], strategy) for driver in drivers for strategy in ("PACK",)]
    until(sim, lambda: there(*groups), 10.0)
    held = [host.core.resources.held["CPU"] for host in sim.hosts.values()]
    assert held == [2 * m.UNIT] * 3
    for group in groups:
        group.remove()
    until(sim, lambda: idle(sim), 1.0)


@pytest.mark.parametrize("seed", range(24))
def test_a_network_that_loses_a_third_makes_and_removes_groups(seed: int) -> None:
    sim = Simulation(seed, cpus=2, hosts=3)
    sim.cuts = 0.3
    drivers = [sim.driver("d"), sim.driver("e", other(1))]
    groups = [Group(sim, driver, [1, 1, 1], "STRICT_SPREAD") for driver in drivers]
    until(sim, lambda: there(*groups), 30.0)
    groups[0].remove()
    tasks = [groups[1].submit(program("work", seconds=0.01, value=index)) for index in range(20)]
    until(sim, lambda: all(task.status != m.PENDING for task in tasks), 30.0)
    groups[1].remove()
    until(sim, lambda: idle(sim), 30.0)


@pytest.mark.parametrize("seed", range(40))
def test_a_participant_may_die_in_any_phase(seed: int) -> None:
    sim = Simulation(seed, cpus=2, hosts=4)
    driver = sim.driver("d")
    group = Group(sim, driver, [1, 2, 1], "STRICT_SPREAD")
    sim.run(sim.now + sim.rng.uniform(0.0, 0.004))
    sim.kill_host(sim.hosts[other(1)], seconds=sim.rng.choice([0.01, 0.5]))
    tasks = [group.submit(program("work", seconds=0.02, value=index), index % 3) for index in range(12)]
    until(sim, lambda: all(task.status != m.PENDING for task in tasks), 20.0)
    assert [value_of(task) for task in tasks] == list(range(12))
    until(sim, lambda: group.table["state"] == "CREATED", 5.0)
    assert other(1) not in group.nodes
    group.remove()
    until(sim, lambda: idle(sim), 5.0)


@pytest.mark.parametrize("seed", range(24))
def test_the_coordinator_may_die_in_any_phase_and_leaves_nothing_reserved(seed: int) -> None:
    sim = Simulation(seed, cpus=2, hosts=3)
    group = Group(sim, sim.driver("d"), [1, 1, 1], "STRICT_SPREAD")
    guest = sim.driver("e", other(1))
    waiting = group.ready(guest)
    sim.run(sim.now + sim.rng.uniform(0.0, 0.004))
    task = group.submit(program("hang"), driver=guest)
    sim.run(sim.now + sim.rng.choice([0.0, 0.0, 0.5]))
    late = group.ready(guest)
    sim.kill_host(sim.hosts[NODE])
    until(sim, lambda: all(entry.status != m.PENDING for entry in (waiting, late, task)), 10.0)
    assert task.status == m.ERROR
    assert task.value[0] in ("TaskPlacementGroupRemovedError", "NodeDiedError")
    until(sim, lambda: idle(sim), 10.0)
    after = group.ready(guest)
    until(sim, lambda: after.status != m.PENDING, 1.0)
    assert after.value[0] == "TaskPlacementGroupRemovedError"
    ticket = group.remove(guest)
    until(sim, lambda: ticket.status != m.PENDING, 1.0)


@pytest.mark.parametrize("seed", range(24))
def test_the_program_may_die_in_any_phase_and_its_groups_end_with_it(seed: int) -> None:
    sim = Simulation(seed, cpus=2, hosts=3)
    driver = sim.driver("d")
    group = Group(sim, driver, [2, 1, 2], "STRICT_SPREAD")
    sim.run(sim.now + sim.rng.uniform(0.0, 0.004))
    for index in range(6):
        group.submit(program("work", seconds=30.0), index % 3)
    sim.run(sim.now + sim.rng.choice([0.0, 0.01, 1.0]))
    sim.kill(driver)
    until(sim, lambda: idle(sim), 10.0)


@pytest.mark.parametrize("seed", range(24))
def test_removal_ends_what_runs_and_fails_what_waits_at_once(seed: int) -> None:
    sim = Simulation(seed, cpus=2, hosts=3)
    driver, stranger = sim.driver("d"), sim.driver("e", other(2))
    group = Group(sim, driver, [1, 1, 1], "SPREAD")
    until(sim, lambda: there(group), 1.0)
    plain = [sim.submit(driver, sim.spec(driver), program("work", seconds=0.3, value=index)) for index in range(3)]
    tasks = [group.submit(program("work", seconds=sim.rng.choice([0.001, 30.0])), index % 3) for index in range(9)]
    tasks += [group.submit(program("work", seconds=30.0), driver=stranger) for _ in range(3)]
    sim.run(sim.now + sim.rng.uniform(0.0, 1.0))
    group.remove(sim.rng.choice([driver, stranger]))
    until(sim, lambda: all(task.status != m.PENDING for task in tasks), 1.0)
    ended = [task.value[0] for task in tasks if task.status == m.ERROR]
    assert ended
    assert set(ended) == {"TaskPlacementGroupRemovedError"}
    late = group.submit(program("work"))
    until(sim, lambda: late.status != m.PENDING, 0.2)
    assert late.value[0] == "TaskPlacementGroupRemovedError"
    until(sim, lambda: all(task.status != m.PENDING for task in plain), 5.0)
    assert [value_of(task) for task in plain] == [0, 1, 2], "what is not in the group goes on"
    until(sim, lambda: idle(sim), 10.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_tasks_make_way_for_a_group(seed: int) -> None:
    sim = Simulation(seed, cpus=2, hosts=2)
    driver = sim.driver("d")
    spec = sim.spec(driver)
    tasks = [sim.submit(driver, spec, program("work", seconds=0.2, value=index)) for index in range(100)]
    sim.run(1.0)
    group = Group(sim, driver, [2, 1], "STRICT_SPREAD")
    until(sim, lambda: there(group), 8.0)
    assert sum(task.status == m.PENDING for task in tasks) > 20, "it did not wait for their end"
    inside = group.submit(program("work", seconds=0.01, value="in"), 0, cpus=2)
    until(sim, lambda: inside.status != m.PENDING, 2.0)
    until(sim, lambda: all(task.status != m.PENDING for task in tasks), 60.0)
    assert all(count == 1 for count in sim.started.values())
    group.remove()
    until(sim, lambda: idle(sim), 10.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_bundles_of_a_dead_node_move_and_their_tasks_run_again(seed: int) -> None:
    sim = Simulation(seed, cpus=1, hosts=4)
    group = Group(sim, sim.driver("d"), [1, 1], "STRICT_SPREAD")
    until(sim, lambda: there(group), 1.0)
    index = max(range(2), key=lambda index: group.nodes[index])  # not that of the driver
    kept, lost = group.nodes[1 - index], group.nodes[index]
    tasks = [group.submit(program("work", seconds=0.5, value=index), index) for _ in range(3)]
    stays = group.submit(program("work", seconds=3.0, value="stays"), 1 - index)
    sim.run(sim.now + 0.9)
    sim.kill_host(sim.hosts[lost])
    until(sim, lambda: all(task.status != m.PENDING for task in (*tasks, stays)), 15.0)
    assert [value_of(task) for task in tasks] == [index] * 3
    assert value_of(stays) == "stays"
    assert sim.started[stays.parent or (group.driver.peer, stays.seq)] == 1
    assert group.nodes[1 - index] == kept
    assert group.nodes[index] not in (kept, lost, b"")


@pytest.mark.parametrize("seed", range(6))
def test_a_group_that_no_node_could_hold_says_so_and_is_made_when_one_can(seed: int) -> None:
    sim = Simulation(seed, cpus=2, hosts=2)
    driver = sim.driver("d")
    group = Group(sim, driver, [1, 2, 1], "STRICT_SPREAD")
    task = group.submit(program("work"), 0)
    until(sim, lambda: group.entry.status != m.PENDING, 1.2)
    assert sim.now >= 1.0
    assert group.entry.value[0] == "PlacementGroupUnschedulableError"
    assert "needs 3 nodes" in group.entry.value[1]
    until(sim, lambda: task.status != m.PENDING, 0.1)
    assert task.value[0] == "TaskUnschedulableError"
    again = group.ready(driver)
    until(sim, lambda: again.status != m.PENDING, 1.2)
    assert again.value[0] == "PlacementGroupUnschedulableError"
    waiting = group.ready(driver)
    group.remove()
    until(sim, lambda: waiting.status != m.PENDING, 0.1)
    assert waiting.value[0] == "TaskPlacementGroupRemovedError"


@pytest.mark.parametrize("seed", range(6))
def test_a_node_that_joins_makes_possible_what_was_not(seed: int) -> None:
    sim = Simulation(seed, cpus=2, hosts=3)
    late = other(2)
    for host in sim.hosts.values():
        if host.id != late:
            host.core.member_down(late, "not there yet", 0.0)
    driver = sim.driver("d")
    group = Group(sim, driver, [1, 2, 1], "STRICT_SPREAD")
    until(sim, lambda: group.entry.status == m.ERROR, 1.2)
    total = dict(sim.hosts[late].core.resources.total)
    for host in sim.hosts.values():
        host.core.member_up(late, total, sim.now)
        sim.settle(host.process)
    again = group.ready(driver)
    until(sim, lambda: again.status != m.PENDING, 2.0)
    assert again.status == m.INLINE
    task = group.submit(program("work", value=1), 0)
    until(sim, lambda: task.status != m.PENDING, 5.0)
    assert value_of(task) == 1


@pytest.mark.parametrize("seed", range(6))
def test_a_name_is_taken_until_its_group_is_removed(seed: int) -> None:
    sim = Simulation(seed)
    driver = sim.driver("d")
    first, second = Group(sim, driver, [1], name="x"), Group(sim, driver, [1], name="x")
    until(sim, lambda: second.made.status != m.PENDING, 1.0)
    assert first.made.status == m.INLINE
    assert second.made.value[0] == "ConfigError"
    until(sim, lambda: second.entry.status != m.PENDING, 1.0)
    assert second.entry.value[0] == "TaskPlacementGroupRemovedError"
    until(sim, lambda: there(first), 1.0)
    first.remove()
    third = Group(sim, driver, [1], name="x")
    until(sim, lambda: there(third), 1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_parents_and_children_share_a_bundle_of_one_cpu(seed: int) -> None:
    """A parent that waits lends what it has in the bundle to its children, as anywhere else."""
    sim = Simulation(seed, cpus=2)
    group = Group(sim, sim.driver("d"), [1])
    until(sim, lambda: there(group), 1.0)
    tasks = [group.submit(program("nest", children=[program("work", value=1)] * 2), 0) for _ in range(4)]
    until(sim, lambda: all(task.status != m.PENDING for task in tasks), 10.0)
    assert [value_of(task) for task in tasks] == [[1, 1]] * 4
    group.remove()
    until(sim, lambda: idle(sim), 5.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_tasks_without_resources_run_in_their_group_too(seed: int) -> None:
    sim = Simulation(seed, cpus=1, hosts=3)
    group = Group(sim, sim.driver("d"), [1, 1, 1], "STRICT_SPREAD")
    until(sim, lambda: there(group), 1.0)
    tasks = [group.submit(program("work", value=index), index, cpus=0) for index in range(3)]
    busy = [group.submit(program("work", seconds=0.3), index) for index in range(3)]
    until(sim, lambda: all(task.status != m.PENDING for task in (*tasks, *busy)), 5.0)
    assert {start[4][:8] for start in sim.starts if (start[1], start[2]) == (tasks[1].spec.job, tasks[1].seq)} == {
        group.nodes[1]
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_workers_parked_in_a_far_bundle_leave_for_those_who_need_it(seed: int) -> None:
    sim = Simulation(seed, cpus=1, hosts=3)
    group = Group(sim, sim.driver("d"), [1, 1, 1], "STRICT_SPREAD")
    until(sim, lambda: there(group), 1.0)
    first = [group.submit(program("work", seconds=0.1)) for _ in range(12)]
    until(sim, lambda: all(task.status != m.PENDING for task in first), 3.0)
    second = [group.submit(program("work", seconds=0.01), index) for index in range(3)]
    until(sim, lambda: all(task.status != m.PENDING for task in second), 0.7)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("blind", [NODE, other(1)])
def test_a_member_taken_for_dead_that_is_back_holds_nothing_of_before(seed: int, blind: bytes) -> None:
    """Whoever of the two takes the other for dead, both forget what they agreed on, and begin anew."""
    sim = Simulation(seed, cpus=1, hosts=2)
    group = Group(sim, sim.driver("d"), [1, 1], "STRICT_SPREAD")
    until(sim, lambda: there(group), 1.0)
    tasks = [group.submit(program("work", seconds=0.3, value=index), index % 2) for index in range(6)]
    sim.run(sim.now + 0.4)
    host, lost = sim.hosts[blind], other(1) if blind == NODE else NODE
    total = dict(sim.hosts[lost].core.resources.total)
    host.core.member_down(lost, "a partition", sim.now)
    sim.settle(host.process)
    sim.run(sim.now + 0.5)
    balance(sim)
    host.core.member_up(lost, total, sim.now)
    sim.settle(host.process)
    until(sim, lambda: group.table["state"] == "CREATED" and all(t.status != m.PENDING for t in tasks), 20.0)
    assert [value_of(task) for task in tasks] == list(range(6))
    group.remove()
    until(sim, lambda: idle(sim), 10.0)
