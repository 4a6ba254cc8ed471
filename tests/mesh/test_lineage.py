"""Results whose only bytes lay on a node that was killed: real processes, several nodes on one machine."""

import gc
import os
import pathlib
import signal
import time
from typing import Any

import numpy
import pytest

import zmesh
from tests.mesh.test_hosts import Nodes, nodes  # noqa: F401  # a fixture
from zmesh import lifecycle
from zmesh.exceptions import ObjectLostError
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy

pytestmark = pytest.mark.slow

SIZE = 200_000  # numbers: far too many to travel inline


@zmesh.remote
def ramp(log: str, start: float) -> Any:
    _note(log, "ramp")
    return numpy.arange(SIZE, dtype=float) + start


@zmesh.remote
def double(log: str, array: Any) -> Any:
    _note(log, "double")
    return array * 2


@zmesh.remote(num_cpus=0)
class Keeper:
    def large(self) -> Any:
        return numpy.zeros(SIZE)

    def total(self, array: Any) -> float:
        return float(array.sum())


@zmesh.remote
def total(array: Any) -> float:
    return float(array.sum())


def _note(log: str, what: str) -> None:
    with open(log, "a") as file:
        file.write(what + "\n")


def on(node: lifecycle.RunningNode, **options: Any) -> dict[str, Any]:
    """That node, or another when it is gone."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=True), **options}


def kill(made: Nodes, node: lifecycle.RunningNode, left: int) -> None:
    os.kill(node.pid, signal.SIGKILL)
    made.await_members(made.all[0], left, 15.0)


@pytest.fixture
def log(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "log")


def runs(log: str) -> list[str]:
    return pathlib.Path(log).read_text().split()


def test_a_chain_of_results_on_a_killed_node_is_made_again(nodes: Nodes, log: str) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(3)]
    nodes.await_members(made[0], 3)
    zmesh.init(made[0].name)
    first = ramp.options(**on(made[1])).remote(log, 1.0)
    second = double.options(**on(made[1])).remote(log, first)
    third = double.options(**on(made[1])).remote(log, second)
    zmesh.wait([third])
    del first, second
    gc.collect()
    kill(nodes, made[1], 2)
    assert zmesh.get(third).tolist() == ((numpy.arange(SIZE) + 1.0) * 4).tolist()
    assert runs(log) == ["ramp", "double", "double"] * 2
    assert zmesh.get(total.remote(third)) == float(((numpy.arange(SIZE) + 1.0) * 4).sum())
    assert len(runs(log)) == 6


def test_tasks_and_borrowers_on_other_nodes_get_what_was_made_again(nodes: Nodes, log: str) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(3)]
    nodes.await_members(made[0], 3)
    zmesh.init(made[0].name)
    refs = [ramp.options(**on(made[1])).remote(log, float(index)) for index in range(3)]
    zmesh.wait(refs, num_returns=3)
    kill(nodes, made[1], 2)

    @zmesh.remote
    def borrow(inside: list[Any]) -> list[float]:
        return [float(array[0]) for array in zmesh.get(inside)]

    used = total.options(**on(made[2])).remote(refs[0])
    borrowed = borrow.options(**on(made[2])).remote([refs[1], refs[2]])
    assert zmesh.get(used, timeout=20) == float(numpy.arange(SIZE).sum())
    assert zmesh.get(borrowed, timeout=20) == [1.0, 2.0]
    assert len(runs(log)) == 6


def test_a_task_under_way_when_its_argument_is_lost_goes_on(nodes: Nodes, log: str) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(3)]
    nodes.await_members(made[0], 3)
    zmesh.init(made[0].name)
    ref = ramp.options(**on(made[1])).remote(log, 0.0)
    zmesh.wait([ref])
    os.kill(made[1].pid, signal.SIGKILL)  # nobody knows yet
    results = [total.options(**on(node)).remote(ref) for node in (made[0], made[2])]
    assert zmesh.get(results, timeout=20) == [float(numpy.arange(SIZE).sum())] * 2


def test_a_call_waits_for_its_lost_argument_and_what_an_actor_gave_is_lost(nodes: Nodes, log: str) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(2)]
    nodes.await_members(made[0], 2)
    zmesh.init(made[0].name)
    here, there = (Keeper.options(**on(node)).remote() for node in made)
    given = there.large.remote()
    argument = ramp.options(**on(made[1])).remote(log, 0.0)
    zmesh.wait([given, argument], num_returns=2)
    kill(nodes, made[1], 1)
    with pytest.raises(ObjectLostError, match="came from an actor"):
        zmesh.get(given, timeout=20)
    calls = [here.total.remote(argument), *(here.total.remote(numpy.full(1, float(i))) for i in range(5))]
    assert zmesh.get(calls, timeout=20) == [float(numpy.arange(SIZE).sum()), 0.0, 1.0, 2.0, 3.0, 4.0]
    assert zmesh.get(argument, timeout=20)[5] == 5.0
    with pytest.raises(ObjectLostError, match="came from an actor"):
        zmesh.get(here.total.remote(given), timeout=20)
    assert zmesh.get(here.total.remote(argument), timeout=20) == float(numpy.arange(SIZE).sum())
    assert runs(log) == ["ramp"] * 2


def test_an_actor_whose_argument_is_lost_with_it_is_made_again_with_it(nodes: Nodes, log: str) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(2)]
    nodes.await_members(made[0], 2)
    zmesh.init(made[0].name)

    @zmesh.remote(max_restarts=1, max_task_retries=1, num_cpus=0)
    class Summer:
        def __init__(self, array: Any) -> None:
            self.sum = float(array.sum())

        def tell(self) -> float:
            return self.sum

    argument = ramp.options(**on(made[1])).remote(log, 0.0)
    actor = Summer.options(**on(made[1])).remote(argument)
    assert zmesh.get(actor.tell.remote()) == float(numpy.arange(SIZE).sum())
    kill(nodes, made[1], 1)
    assert zmesh.get(actor.tell.remote(), timeout=20) == float(numpy.arange(SIZE).sum())
    assert runs(log) == ["ramp"] * 2


def test_a_copy_that_is_left_is_read_instead_of_a_second_run(nodes: Nodes, log: str) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(2)]
    nodes.await_members(made[0], 2)
    zmesh.init(made[0].name)
    ref = ramp.options(**on(made[1])).remote(log, 0.0)
    assert zmesh.get(total.options(**on(made[0])).remote(ref)) == float(numpy.arange(SIZE).sum())
    kill(nodes, made[1], 1)
    assert zmesh.get(ref)[5] == 5.0
    assert runs(log) == ["ramp"]


def test_what_cannot_be_made_again_tells_the_chain(nodes: Nodes, log: str) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(2)]
    nodes.await_members(made[0], 2)
    zmesh.init(made[0].name)

    @zmesh.remote
    def keep() -> Any:
        return [zmesh.put(numpy.ones(SIZE))]

    once = ramp.options(**on(made[1], max_retries=0)).remote(log, 0.0)
    after = double.options(**on(made[1])).remote(log, once)
    [put] = zmesh.get(keep.options(**on(made[1])).remote())
    zmesh.wait([after])
    kill(nodes, made[1], 1)
    with pytest.raises(ObjectLostError, match="ramp has max_retries=0") as caught:
        zmesh.get(after)
    for ref in (once, after):
        assert ref.hex() in str(caught.value)
    with pytest.raises(zmesh.exceptions.OwnerDiedError):
        zmesh.get(put)
    with pytest.raises(ObjectLostError, match="max_retries=0"):
        zmesh.get(total.remote(once))
    assert len(runs(log)) == 2


def test_attempts_to_make_a_result_again_end_with_its_retries(nodes: Nodes, log: str) -> None:  # noqa: F811
    a = nodes.start(num_cpus=0)
    zmesh.init(a.name)
    ref: Any = None
    for attempt in range(3):
        b = nodes.start(name=f"b{attempt}")
        nodes.await_members(a, 2)
        if ref is None:
            ref = ramp.options(max_retries=1).remote(log, 0.0)
        if attempt < 2:
            used = total.remote(ref)
            assert zmesh.get(used, timeout=20) == float(numpy.arange(SIZE).sum())
            kill(nodes, b, 1)
    with pytest.raises(ObjectLostError, match="started 2 times"):
        zmesh.get(ref)


def test_results_of_a_guest_whose_node_was_killed_are_made_again(nodes: Nodes, log: str) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(3)]
    for node in made:
        nodes.await_members(node, 3)
    zmesh.init(made[1].address)
    first = ramp.options(**on(made[1])).remote(log, 1.0)
    second = double.options(**on(made[1])).remote(log, first)
    zmesh.wait([second])
    kill(nodes, made[1], 2)
    assert zmesh.get(second, timeout=30).tolist() == ((numpy.arange(SIZE) + 1.0) * 2).tolist()
    assert zmesh.get(total.remote(first), timeout=30) == float((numpy.arange(SIZE) + 1.0).sum())
    assert sorted(runs(log)) == ["double", "double", "ramp", "ramp"]


def test_a_second_host_that_dies_while_results_are_made_again_delays_them_only(nodes: Nodes, log: str) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(3)]
    nodes.await_members(made[0], 3)
    zmesh.init(made[0].name)
    refs = [ramp.options(**on(made[1])).remote(log, float(index)) for index in range(4)]
    ends = [double.options(**on(made[1])).remote(log, ref) for ref in refs]
    zmesh.wait(ends, num_returns=4)
    del refs
    gc.collect()
    kill(nodes, made[1], 2)
    sums = [total.options(**on(made[2])).remote(end) for end in ends]
    deadline = time.monotonic() + 20
    while len(runs(log)) < 10:
        assert time.monotonic() < deadline, runs(log)
        time.sleep(0.01)
    kill(nodes, made[2], 1)
    expected = [2 * float((numpy.arange(SIZE) + index).sum()) for index in range(4)]
    assert zmesh.get(sums, timeout=30) == expected
    assert [float(array.sum()) for array in zmesh.get(ends, timeout=30)] == expected


def test_a_replica_is_read_when_the_host_that_put_the_object_is_gone(nodes: Nodes) -> None:  # noqa: F811
    made = [nodes.start() for _ in range(3)]
    for node in made:
        nodes.await_members(node, 3)
    zmesh.init(made[0].name)

    @zmesh.remote
    def keep() -> Any:
        return [zmesh.put(numpy.arange(SIZE), replicas=2), zmesh.put("small", replicas=3), zmesh.put("alone")]

    array, small, alone = zmesh.get(keep.options(**on(made[1])).remote())
    kill(nodes, made[1], 2)
    assert zmesh.get(array, timeout=20).sum() == numpy.arange(SIZE).sum()
    assert zmesh.get(small, timeout=20) == "small"
    assert zmesh.get([total.options(**on(node)).remote(array) for node in (made[0], made[2])], timeout=20)
    with pytest.raises(zmesh.exceptions.OwnerDiedError, match="nobody has a replica"):
        zmesh.get(alone, timeout=20)


def test_replicas_that_find_no_host_are_told_and_those_there_go_with_the_object(
    nodes: Nodes,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = [nodes.start() for _ in range(2)]
    nodes.await_members(made[0], 2)
    zmesh.init(made[0].name)
    ref = zmesh.put(numpy.arange(SIZE), replicas=3)
    assert "put(replicas=3): 2 host(s) keep object" in caplog.text
    assert lifecycle.status(made[1].name)["copies"] == 1
    del ref
    gc.collect()
    deadline = time.monotonic() + 5
    while lifecycle.status(made[1].name)["copies"]:
        assert time.monotonic() < deadline
        zmesh.get(zmesh.put(1))
        time.sleep(0.02)
    with pytest.raises(zmesh.exceptions.ConfigError):
        zmesh.put(1, replicas=0)
