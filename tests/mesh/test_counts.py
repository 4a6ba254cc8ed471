"""References that go through values, functions and actors, and what of them is left: nothing."""

import gc
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest

import zmesh
from perf import soak
from tests.mesh.test_hosts import Nodes, nodes  # noqa: F401  # a fixture
from zmesh import lifecycle
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ITEMS = 30_000  # numbers: too many to travel inline


@pytest.fixture
def mesh() -> Iterator[None]:
    zmesh.init("local", num_cpus=2)
    yield
    zmesh.shutdown()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        gc.collect()
        time.sleep(0.05)
    return True


def objects() -> int:
    count: int = zmesh.status()["objects"]
    return count


@zmesh.remote
def inner(large: bool) -> list[Any]:
    return [zmesh.put(numpy.arange(ITEMS) if large else [1, 2, 3])]


@zmesh.remote
def outer(large: bool) -> list[Any]:
    return [inner.remote(large)]


@pytest.mark.parametrize("large", [False, True])
def test_a_ref_taken_out_of_a_borrowed_value_outlives_that_value(mesh: None, large: bool) -> None:
    result = outer.remote(large)
    [middle] = zmesh.get(result)
    [ref] = zmesh.get(middle)
    del result, middle
    assert until(lambda: objects() == 1), "only what we hold is left"
    assert len(zmesh.get(ref)) == (ITEMS if large else 3)
    del ref
    assert until(lambda: objects() == 0)


def test_what_a_function_captured_is_held_as_long_as_it_can_be_called_or_runs(mesh: None) -> None:
    def make(ref: Any) -> Any:
        @zmesh.remote
        def late(seconds: float) -> int:
            time.sleep(seconds)
            return sum(zmesh.get(ref))

        return late

    late = make(zmesh.put([1, 2, 3]))
    assert zmesh.get(late.remote(0.0)) == 6
    slow = late.remote(0.3)
    del late
    assert zmesh.get(slow) == 6, "a call holds it too"
    del slow
    [worker] = [worker["pid"] for worker in zmesh.status()["workers"] if worker["pid"]][:1]
    os.kill(worker, signal.SIGKILL)  # it lets go of a function that it was not asked for by and by
    assert until(lambda: objects() == 0)


def test_the_status_tells_how_much_the_node_keeps_in_each_table(mesh: None) -> None:
    before = zmesh.status()["tables"]
    assert before["_pidfds"] == 1
    assert before["core.directory._records"] == 0
    ref = zmesh.put([zmesh.put(1)])
    assert zmesh.status()["tables"]["core.directory._records"] == 1
    del ref
    assert until(lambda: objects() == 0)


@pytest.mark.slow
def test_a_node_keeps_no_descriptor_of_programs_that_said_goodbye(nodes: Nodes) -> None:  # noqa: F811
    node = nodes.start()
    counts = [lifecycle.status(node.name)["tables"]["_pidfds"] for _ in range(5)]
    assert counts == [1] * 5, "only of the one that asks"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_programs_workers_actors_and_nodes_that_are_killed_leave_nothing(
    count: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        (tmp_path / name[4:7]).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(tmp_path / name[4:7]))
    outcome = soak.soak(800, beside=1, seed=1, closures=False, nodes=count)
    assert outcome["left"] == {}, outcome
    assert outcome["done"].get("killed nodes", 0) == (count > 1)


@zmesh.remote
def hold(refs: list[Any]) -> Any:
    return zmesh.put([zmesh.put(numpy.arange(ITEMS)), *refs])


@pytest.mark.slow
def test_a_value_holds_objects_of_another_host_though_whoever_made_it_is_gone(nodes: Nodes) -> None:  # noqa: F811
    made = [nodes.start(), nodes.start()]
    nodes.await_members(made[0], 2)
    zmesh.init(made[0].name)
    ours = zmesh.put(numpy.arange(ITEMS))
    there = hold.options(scheduling_strategy=NodeAffinitySchedulingStrategy(made[1].id)).remote([ours])
    box = zmesh.get(there)
    del there, ours
    assert zmesh.status()["objects"] == 1, "ours, for the value on the other node"
    found = zmesh.get(box)
    del box
    assert until(lambda: objects() == 1)
    assert [int(zmesh.get(ref)[-1]) for ref in found] == [ITEMS - 1] * 2
    del found
    assert until(lambda: objects() == 0)
