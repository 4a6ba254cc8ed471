"""Actors on other hosts: several nodes on one machine, with real processes, TCP and CURVE on loopback."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest

import zmesh
from tests.mesh.test_hosts import Nodes, nodes  # noqa: F401  # a fixture
from zmesh import lifecycle
from zmesh.exceptions import ActorDiedError, ActorNotFoundError
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@zmesh.remote
class Counter:
    """Counts, and says where."""

    def __init__(self, start: int = 0) -> None:
        self.count = start

    def add(self, n: int = 1) -> int:
        self.count += n
        return self.count

    def nap(self, seconds: float) -> None:
        time.sleep(seconds)

    def where(self) -> str:
        return zmesh.get_runtime_context().get_node_id()

    def total(self, array: Any) -> float:
        return float(array.sum())

    def make(self, n: int) -> Any:
        return numpy.ones(n)

    def items(self, n: int) -> Iterator[int]:
        yield from range(n)

    def call(self, other: list[Any]) -> int:
        return zmesh.get(other[0].add.remote())


@pytest.fixture
def mesh(nodes: Nodes) -> Iterator[Nodes]:  # noqa: F811
    for _ in range(3):
        nodes.start()
    for node in nodes.all:
        nodes.await_members(node, 3)
    zmesh.init(nodes.all[0].name)
    yield nodes
    zmesh.shutdown()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def on(node: lifecycle.RunningNode, *, soft: bool = False, **options: Any) -> Any:
    """Return the class with options that place its actors on a node."""
    return Counter.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=soft), **options)


def serving(node: lifecycle.RunningNode) -> int:
    return [worker["state"] for worker in lifecycle.status(node.name)["workers"]].count("serving")


def test_an_actor_on_another_host_is_as_one_here(mesh: Nodes) -> None:
    far = on(mesh.all[1]).remote(5)
    assert zmesh.get(far.where.remote()) == mesh.all[1].id
    assert zmesh.get([far.add.remote() for _ in range(300)]) == list(range(6, 306))
    assert zmesh.get(far.total.remote(zmesh.put(numpy.ones(300_000)))) == 300_000
    assert zmesh.get(far.make.remote(300_000)).sum() == 300_000
    assert zmesh.get(list(far.items.remote(5))) == [0, 1, 2, 3, 4]
    third = on(mesh.all[2]).remote()
    assert zmesh.get(third.call.remote([far])) == 306
    assert zmesh.get(far.call.remote([third])) == 1
    del far, third
    gc.collect()
    assert until(lambda: sum(serving(node) for node in mesh.all) == 0)


def test_a_host_that_dies_takes_its_actors_or_they_are_made_elsewhere(mesh: Nodes) -> None:
    stays = on(mesh.all[1]).remote()
    moves = on(mesh.all[1], soft=True, max_restarts=1, max_task_retries=1).remote(7)
    borrower = on(mesh.all[2]).remote()
    assert zmesh.get([stays.where.remote(), moves.where.remote()]) == [mesh.all[1].id] * 2
    assert zmesh.get(borrower.call.remote([moves])) == 8
    os.kill(mesh.all[1].pid, signal.SIGKILL)
    with pytest.raises(ActorDiedError, match="gone"):
        zmesh.get([stays.add.remote(), stays.add.remote()], timeout=30)
    assert zmesh.get(moves.where.remote(), timeout=30) != mesh.all[1].id
    assert zmesh.get(borrower.call.remote([moves]), timeout=30) == 8


def test_names_are_found_from_every_host_and_survive_one(mesh: Nodes) -> None:
    code = """
import sys, zmesh
zmesh.init(sys.argv[1])
print(zmesh.get(zmesh.get_actor(sys.argv[2]).add.remote()))
"""

    def call_from(node: lifecycle.RunningNode, name: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, node.name, name], capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    counters = [on(mesh.all[i % 2]).options(name=f"counter{i}").remote() for i in range(4)]
    assert [call_from(mesh.all[1], "counter0"), call_from(mesh.all[2], "counter0")] == ["1", "2"]
    assert zmesh.util.list_named_actors() == [f"counter{i}" for i in range(4)]
    os.kill(mesh.all[2].pid, signal.SIGKILL)
    mesh.await_members(mesh.all[0], 2, 20.0)
    assert [zmesh.get(zmesh.get_actor(f"counter{i}").add.remote()) for i in range(4)] == [3, 1, 1, 1]
    zmesh.kill(counters[3])
    with pytest.raises(ActorNotFoundError):
        zmesh.get_actor("counter3")
    assert "no actor 'counter3'" in call_from(mesh.all[1], "counter3")


def test_an_actor_ends_with_the_program_of_another_host(mesh: Nodes) -> None:
    far = on(mesh.all[1]).remote()
    assert zmesh.get(far.add.remote()) == 1
    assert serving(mesh.all[1]) == 1
    zmesh.shutdown()
    assert until(lambda: serving(mesh.all[1]) == 0)


def test_a_guest_has_actors_and_finds_those_of_others(mesh: Nodes) -> None:
    counter = on(mesh.all[1], name="shared").remote()
    assert zmesh.get(counter.add.remote()) == 1
    code = """
import sys, zmesh

@zmesh.remote
class Mine:
    def double(self, x): return 2 * x

zmesh.init(sys.argv[1])
mine = Mine.remote()
print(*zmesh.get([mine.double.remote(i) for i in range(50)])[-2:], zmesh.get(zmesh.get_actor("shared").add.remote()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, mesh.all[2].address], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["96", "98", "2"], done.stderr


def test_a_guest_whose_node_dies_loses_its_actors_and_makes_new_ones(mesh: Nodes) -> None:
    code = """
import os, sys, time, zmesh

@zmesh.remote
class Mine:
    def double(self, x, seconds=0):
        time.sleep(seconds)
        return 2 * x

zmesh.init(sys.argv[1])
mine = Mine.options(max_restarts=-1, max_task_retries=-1).remote()
theirs = zmesh.get_actor("shared")
print(zmesh.get(mine.double.remote(1)), zmesh.get(theirs.add.remote()), flush=True)
calls = [mine.double.remote(1, 60), theirs.nap.remote(60)]
os.kill(int(sys.argv[2]), 9)
for ref in (*calls, mine.double.remote(1)):
    try:
        zmesh.get(ref)
    except zmesh.exceptions.ActorDiedError:
        print("dead", flush=True)
print(zmesh.get(Mine.remote().double.remote(2)), zmesh.get(zmesh.get_actor("shared").add.remote()), flush=True)
"""
    shared = on(mesh.all[1], name="shared", max_concurrency=2).remote()
    assert zmesh.get(shared.add.remote()) == 1
    done = subprocess.run(
        [sys.executable, "-c", code, mesh.all[2].address, str(mesh.all[2].pid)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.stdout.split() == ["2", "2", "dead", "dead", "dead", "4", "3"], done.stderr
