"""Placement groups with real processes: one private node, and three nodes on one machine."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zmesh
from tests.mesh.test_hosts import Nodes, nodes  # noqa: F401  # a fixture
from zmesh import lifecycle
from zmesh.exceptions import (
    ConfigError,
    PlacementGroupUnschedulableError,
    TaskPlacementGroupRemovedError,
    TaskUnschedulableError,
)
from zmesh.util import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from zmesh.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@pytest.fixture
def private() -> Iterator[None]:
    """A node with three CPUs and two GPUs that do not exist."""
    zmesh.init("local", num_cpus=3, num_gpus=2, resources={"disk": 4})
    yield
    zmesh.shutdown()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def inside(group: PlacementGroup | None, index: int = -1, **more: Any) -> dict[str, Any]:
    """Options of a task in a bundle."""
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index, **more)}


@zmesh.remote
def who(seconds: float = 0.0) -> tuple[str, str | None, dict[str, float], list[int], int]:
    time.sleep(seconds)
    context = zmesh.get_runtime_context()
    return (
        context.get_node_id(),
        context.get_placement_group_id(),
        context.get_assigned_resources(),
        zmesh.get_gpu_ids(),
        os.getpid(),
    )


@zmesh.remote
def parent() -> list[str | None]:
    """Return the groups of this task, of a child, of a grandchild, and of a child that wants none."""
    free = who.options(num_cpus=0.1, **inside(None))
    child, alone = zmesh.get([family.options(num_cpus=0.1).remote(), free.remote()])
    current = get_current_placement_group()
    return [current.id.hex() if current else None, *child, alone[1]]


@zmesh.remote
def family() -> list[str | None]:
    grandchild = zmesh.get(who.options(num_cpus=0.1).remote())
    return [zmesh.get_runtime_context().get_placement_group_id(), grandchild[1]]


def test_a_group_is_reserved_used_and_removed(private: None) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 1, "disk": 2, "GPU": 0}], name="mine")
    assert zmesh.get(group.ready(), timeout=10) == group
    assert group.wait(10)
    assert (group.bundle_count, group.bundle_specs) == (2, [{"CPU": 1}, {"CPU": 1, "disk": 2}])
    assert zmesh.available_resources()["CPU"] == 1
    assert zmesh.cluster_resources()["CPU"] == 3
    assert 0 < zmesh.available_resources()["object_store_memory"] <= zmesh.cluster_resources()["object_store_memory"]
    found = zmesh.get(who.options(resources={"disk": 1}, **inside(group, 1)).remote(), timeout=10)
    assert found[1:3] == (group.id.hex(), {"CPU": 1.0, "disk": 1.0})
    assert zmesh.get(who.remote(), timeout=10)[1] is None, "a task beside it"
    assert get_placement_group("mine") == group
    assert placement_group_table(group)["state"] == "CREATED"
    remove_placement_group(group)
    remove_placement_group(group)
    assert placement_group_table()[group.id.hex()]["state"] == "REMOVED"
    with pytest.raises(ValueError, match="no placement group is named"):
        get_placement_group("mine")
    until(lambda: zmesh.available_resources()["CPU"] >= 2)  # a worker may be parked outside of it


def test_no_more_tasks_run_at_once_than_a_bundle_holds(private: None) -> None:
    group = placement_group([{"CPU": 2}])
    begun = time.monotonic()
    pids = [found[4] for found in zmesh.get([who.options(**inside(group)).remote(0.2) for _ in range(6)], timeout=20)]
    assert len(set(pids)) == 2
    assert time.monotonic() - begun >= 0.6


def test_tasks_get_the_gpus_of_their_bundle(private: None) -> None:
    group = placement_group([{"GPU": 1, "CPU": 1}, {"GPU": 0.5}])
    first = who.options(num_gpus=1, num_cpus=0, **inside(group, 0))
    second = who.options(num_gpus=0.5, num_cpus=0, **inside(group, 1))
    ids = [found[3] for found in zmesh.get([first.remote(), second.remote(), first.remote()], timeout=20)]
    assert ids[0] == ids[2]
    assert sorted(ids[0] + ids[1]) == [0, 1]


def test_a_group_passes_through_tasks_and_its_readiness_is_a_ref(private: None) -> None:
    @zmesh.remote
    def made() -> PlacementGroup:
        return placement_group([{"CPU": 1}], name="within")

    @zmesh.remote
    def told(group: PlacementGroup, given: PlacementGroup, nested: list[Any]) -> bool:
        return group.wait(5) and zmesh.get(nested[0]) == given == group

    group = zmesh.get(made.remote(), timeout=10)
    assert zmesh.get(told.remote(group, group.ready(), [group.ready()]), timeout=10)
    assert get_placement_group("within") == group, "it belongs to the program, not to the task"


def test_children_of_a_task_are_in_its_group_if_that_captures_them(private: None) -> None:
    group = placement_group([{"CPU": 1}])
    me = group.id.hex()
    captured = inside(group, 0, placement_group_capture_child_tasks=True)
    assert zmesh.get(parent.options(num_cpus=0.5, **captured).remote(), timeout=20) == [me, me, me, None]
    assert zmesh.get(parent.options(num_cpus=0.5, **inside(group, 0)).remote(), timeout=20) == [me, None, None, None]
    assert zmesh.get(parent.remote(), timeout=20) == [None, None, None, None]


def test_a_child_that_fits_into_no_bundle_is_refused(private: None) -> None:
    @zmesh.remote
    def large() -> Any:
        return zmesh.get(who.options(num_cpus=2).remote())

    group = placement_group([{"CPU": 1}])
    captured = inside(group, placement_group_capture_child_tasks=True)
    with pytest.raises(ConfigError, match="does not fit"):
        zmesh.get(large.options(**captured).remote(), timeout=20)


def test_removal_kills_what_runs_and_fails_what_waits(private: None) -> None:
    group = placement_group([{"CPU": 1}])
    running, waiting = [who.options(**inside(group, 0)).remote(60) for _ in range(2)]
    beside = who.remote(1.0)
    until(lambda: any(worker["executing"] for worker in zmesh.status()["workers"]))
    until(lambda: "was sent" in zmesh.explain(running))
    remove_placement_group(group)
    for ref in (running, waiting, who.options(**inside(group)).remote()):
        with pytest.raises(TaskPlacementGroupRemovedError):
            zmesh.get(ref, timeout=10)
    with pytest.raises(TaskPlacementGroupRemovedError):
        zmesh.get(group.ready(), timeout=10)
    assert not group.wait(1)
    until(lambda: zmesh.available_resources()["CPU"] == 2)
    assert zmesh.get(beside, timeout=10)[1] is None


def test_what_can_never_be_placed_says_so_and_what_can_waits(private: None) -> None:
    begun = time.monotonic()
    never = placement_group([{"CPU": 1}, {"CPU": 4}])
    with pytest.raises(PlacementGroupUnschedulableError, match="bundle 1 needs CPU 4, and no node"):
        zmesh.get(never.ready(), timeout=10)
    assert 0.9 < time.monotonic() - begun < 3
    assert not never.wait(5)
    with pytest.raises(TaskUnschedulableError, match="bundle 1 needs CPU 4"):
        zmesh.get(who.options(**inside(never)).remote(), timeout=10)
    apart = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    with pytest.raises(PlacementGroupUnschedulableError, match="needs 2 nodes"):
        zmesh.get(apart.ready(), timeout=10)
    first, second = placement_group([{"CPU": 3}]), placement_group([{"CPU": 3}])
    assert first.wait(10)
    task = who.options(**inside(second)).remote()
    assert not second.wait(0.2)
    assert "is PENDING" in zmesh.explain(task)
    assert "is PENDING" in zmesh.explain(second.ready())
    remove_placement_group(first)
    assert zmesh.get(task, timeout=10)[1] == second.id.hex()


def test_a_worker_that_dies_in_its_bundle_is_replaced_there(private: None, tmp_path: pathlib.Path) -> None:
    @zmesh.remote
    def once(path: str) -> str | None:
        if not os.path.exists(path):
            pathlib.Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return zmesh.get_runtime_context().get_placement_group_id()

    group = placement_group([{"CPU": 1}])
    path = str(tmp_path / "died")
    assert zmesh.get(once.options(**inside(group, 0)).remote(path), timeout=20) == group.id.hex()
    remove_placement_group(group)
    until(lambda: zmesh.available_resources()["CPU"] == 3)


@pytest.mark.parametrize(
    ("bundles", "more", "text"),
    [
        ([], {}, "list of 1"),
        ({"CPU": 1}, {}, "list of 1"),
        ([1], {}, "bundle 0 must be a dict"),
        ([{"CPU": 1}, {}], {}, "bundle 1 must be a dict"),
        ([{"CPU": 0}], {}, "bundle 0 holds nothing"),
        ([{"CPU": -1}], {}, "numbers from 0"),
        ([{"CPU": "1"}], {}, "numbers from 0"),
        ([{1: 1}], {}, "numbers from 0"),
        ([{"CPU": float("nan")}], {}, "numbers from 0"),
        ([{"GPU": 1.5}], {}, "whole number"),
        ([{"a@b": 1}], {}, "no resource"),
        ([{"node:7": 1}], {}, "no resource"),
        ([{"CPU": 1}], {"strategy": "NEAR"}, "STRICT_SPREAD"),
        ([{"CPU": 1}], {"name": 7}, "string"),
        ([{"CPU": 1}], {"lifetime": 7}, "lifetime must be None or .detached."),
    ],
)
def test_a_group_that_makes_no_sense_is_refused(bundles: Any, more: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        placement_group(bundles, **more)
    assert not zmesh.is_initialized(), "before anything was started"


def test_options_that_make_no_sense_in_a_group_are_refused() -> None:
    group = PlacementGroup(b"g" * 16, [{"CPU": 1}, {"disk": 2}])
    for index in (2, -2, "0", True):
        with pytest.raises(ValueError, match="from 0 to 1, or -1"):
            PlacementGroupSchedulingStrategy(group, index)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="what placement_group"):
        PlacementGroupSchedulingStrategy("group")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="CPU 2 does not fit into bundle 0"):
        who.options(num_cpus=2, **inside(group, 0))
    with pytest.raises(ValueError, match="GPU 1 does not fit into any of the bundles"):
        who.options(num_cpus=0, num_gpus=1, **inside(group))
    with pytest.raises(ValueError, match="does not fit into bundle 1"):
        who.options(**inside(group, 1))
    who.options(num_cpus=0, resources={"disk": 2}, **inside(group))
    with pytest.raises(ValueError, match="must not hold '@'"):
        who.options(resources={"CPU@x": 1})
    for wrong in (remove_placement_group, placement_group_table, get_placement_group):
        with pytest.raises(ValueError, match=r"PlacementGroup|string"):
            wrong(7)  # type: ignore[arg-type]


def test_a_name_is_taken_until_its_group_is_removed(private: None) -> None:
    group = placement_group([{"CPU": 1}], name="x")
    with pytest.raises(ConfigError, match="named 'x' already"):
        placement_group([{"CPU": 1}], name="x")
    remove_placement_group(group)
    assert placement_group([{"CPU": 1}], name="x").wait(10)


def test_local_mode_has_groups_too() -> None:
    zmesh.init(local=True)
    try:
        group = placement_group([{"CPU": 100}], name="x")
        with pytest.raises(ConfigError, match="named 'x' already"):
            placement_group([{"CPU": 100}], name="x")
        assert group.wait()
        assert get_placement_group("x") == group
        assert zmesh.get(zmesh.remote(lambda: 7).options(**inside(group)).remote()) == 7
        remove_placement_group(group)
        remove_placement_group(group)
        assert not group.wait()
    finally:
        zmesh.shutdown()


# Three nodes.


def spread_over(made: list[lifecycle.RunningNode], group: PlacementGroup) -> list[str]:
    assert group.wait(10), placement_group_table(group)
    assert placement_group_table(group)["state"] == "CREATED"
    return list(placement_group_table(group)["bundles_to_node_id"].values())


def test_bundles_lie_where_the_strategy_wants_them_and_tasks_with_them(nodes: Nodes) -> None:  # noqa: F811
    made = [nodes.start(num_cpus=2, labels={"zone": str(index)}) for index in range(3)]
    for node in made:
        nodes.await_members(node, 3)
    zmesh.init(made[0].name)
    told = {node["NodeID"]: node for node in zmesh.nodes()}
    assert {node["Labels"]["zone"] for node in told.values()} == {"0", "1", "2"}
    assert all(node["Alive"] and node["Resources"]["CPU"] == 2 for node in told.values())
    assert all(node["NodeManagerAddress"] == "127.0.0.1" and node["NodeManagerPort"] for node in told.values())
    assert zmesh.cluster_resources()["CPU"] == 6
    until(lambda: zmesh.available_resources()["CPU"] == 6)
    apart = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD", name="apart")
    places = spread_over(made, apart)
    assert sorted(places) == sorted(node.id for node in made)
    anywhere = zmesh.get([who.options(num_cpus=0.5, **inside(apart)).remote(0.1) for _ in range(24)], timeout=20)
    assert {found[0] for found in anywhere} == {*places}
    assert {found[1] for found in anywhere} == {apart.id.hex()}
    tasks = [who.options(**inside(apart, index)).remote() for index in range(3)]
    assert [found[0] for found in zmesh.get(tasks, timeout=10)] == places
    together = placement_group([{"CPU": 0.5}] * 2, strategy="STRICT_PACK")
    assert len(set(spread_over(made, together))) == 1
    packed = placement_group([{"CPU": 1}] * 2, strategy="PACK")
    assert packed.wait(10)
    zmesh.shutdown()
    until(lambda: all(lifecycle.status(node.name)["resources"]["available"]["CPU"] == 2 for node in made))


def test_another_program_finds_a_group_by_its_name_and_removes_it(nodes: Nodes) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(2)]
    nodes.await_members(made[0], 2)
    zmesh.init(made[0].name)
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD", name="shared")
    assert group.wait(10)
    script = f"""
import zmesh
from zmesh.util.scheduling_strategies import PlacementGroupSchedulingStrategy
zmesh.init({made[1].name!r})
group = zmesh.util.get_placement_group("shared")
assert group.wait(10)
f = zmesh.remote(lambda: zmesh.get_runtime_context().get_placement_group_id())
inside = PlacementGroupSchedulingStrategy(group, 0)
print(zmesh.get(f.options(scheduling_strategy=inside).remote(), timeout=10))
zmesh.util.remove_placement_group(group)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == group.id.hex(), done.stderr
    assert placement_group_table(group)["state"] == "REMOVED"
    with pytest.raises(TaskPlacementGroupRemovedError, match="it was removed"):
        zmesh.get(who.options(**inside(group)).remote(), timeout=10)


@pytest.mark.slow
def test_bundles_of_a_killed_node_move_and_their_tasks_run_again(nodes: Nodes) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(3)]
    for node in made:
        nodes.await_members(node, 3)
    zmesh.init(made[0].name)
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    places = spread_over(made, group)
    index = 1 if places[0] == made[0].id else 0
    task = who.options(**inside(group, index)).remote(1.5)
    until(lambda: "was sent" in zmesh.explain(task))
    victim = next(node for node in made if node.id == places[index])
    os.kill(victim.pid, signal.SIGKILL)
    spare = next(node for node in made if node.id not in places)
    assert zmesh.get(task, timeout=30)[0] == spare.id
    until(lambda: placement_group_table(group)["state"] == "CREATED")
    dead = next(node for node in zmesh.nodes() if node["NodeID"] == victim.id)
    assert (dead["Alive"], dead["Resources"]) == (False, {})


def test_a_killed_coordinator_takes_its_groups_along(nodes: Nodes) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(2)]
    nodes.await_members(made[0], 2)
    script = f"""
import time, zmesh
zmesh.init({made[1].name!r})
group = zmesh.util.placement_group([{{"CPU": 1}}] * 2, strategy="STRICT_SPREAD", name="doomed")
print(group.wait(10), flush=True)
time.sleep(60)
"""
    program = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "True\n"
        zmesh.init(made[0].name)
        group = get_placement_group("doomed")
        task = who.options(**inside(group)).remote(60)
        until(lambda: "was sent" in zmesh.explain(task))
        os.kill(made[1].pid, signal.SIGKILL)
        with pytest.raises((TaskPlacementGroupRemovedError, zmesh.exceptions.NodeDiedError)):
            zmesh.get(task, timeout=20)
        with pytest.raises(TaskPlacementGroupRemovedError, match="is gone"):
            zmesh.get(group.ready(), timeout=20)
        until(lambda: lifecycle.status(made[0].name)["resources"]["available"]["CPU"] == 1)
        assert placement_group_table(group)["state"] == "REMOVED"
        remove_placement_group(group)
    finally:
        program.kill()
        program.communicate()


def test_a_killed_program_takes_its_groups_along(nodes: Nodes) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(2)]
    nodes.await_members(made[0], 2)
    script = f"""
import time, zmesh
from zmesh.util.scheduling_strategies import PlacementGroupSchedulingStrategy
zmesh.init({made[1].name!r})
group = zmesh.util.placement_group([{{"CPU": 1}}] * 2, strategy="STRICT_SPREAD")
nap = zmesh.remote(time.sleep)
tasks = [nap.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, i)).remote(60) for i in range(2)]
while any("was sent" not in zmesh.explain(task) for task in tasks):
    time.sleep(0.02)
print("running", flush=True)
time.sleep(60)
"""
    program = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "running\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            program.kill()
        program.communicate()
    until(lambda: all(lifecycle.status(node.name)["resources"]["available"]["CPU"] == 1 for node in made))


def test_a_guest_makes_and_uses_groups(nodes: Nodes) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(2)]
    nodes.await_members(made[0], 2)
    zmesh.init(made[0].address)
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    places = spread_over(made, group)
    tasks = [who.options(**inside(group, index)).remote() for index in range(2)]
    assert [found[0] for found in zmesh.get(tasks, timeout=20)] == places
    remove_placement_group(group)
    until(lambda: all(lifecycle.status(node.name)["resources"]["available"]["CPU"] == 1 for node in made))
