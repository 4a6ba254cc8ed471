"""The first steps: tasks, objects, refs that are passed on, actors, and what is where."""

from collections.abc import Iterator

import numpy as np
import pytest

import zmesh as ray


@pytest.fixture(autouse=True, scope="module")
def ray_start() -> Iterator[None]:
    with ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", namespace="walk"):
        yield
    assert not ray.is_initialized()


@ray.remote
def square(x: int) -> int:
    return x * x


def test_tasks_run_in_parallel_and_get_takes_a_list() -> None:
    futures = [square.remote(i) for i in range(4)]
    assert ray.get(futures) == [0, 1, 4, 9]


def test_a_remote_function_is_not_called_directly() -> None:
    with pytest.raises(TypeError, match=r"square\.remote\(\)"):
        square(3)


def test_objects_are_put_once_and_read_in_place() -> None:
    @ray.remote
    def sum_matrix(matrix: np.ndarray) -> tuple[float, bool]:
        return float(np.sum(matrix)), matrix.flags.writeable

    assert ray.get(sum_matrix.remote(np.ones((100, 100))))[0] == 10_000.0
    matrix_ref = ray.put(np.ones((1000, 1000)))
    assert ray.get(sum_matrix.remote(matrix_ref)) == (1_000_000.0, False)
    assert isinstance(matrix_ref, ray.ObjectRef)
    assert ray.get(matrix_ref).shape == (1000, 1000)


def test_a_top_level_ref_is_a_value_and_a_nested_one_stays_a_ref() -> None:
    @ray.remote
    def echo(x: list[int]) -> list[int]:
        return x

    @ray.remote
    def echo_and_get(refs: list[ray.ObjectRef[list[int]]]) -> list[list[int]]:
        assert all(isinstance(ref, ray.ObjectRef) for ref in refs)
        return ray.get(refs)

    ref = ray.put([1, 2, 3])
    assert ray.get(echo.remote(ref)) == [1, 2, 3]
    assert ray.get(echo_and_get.remote([ref, echo.remote(ref)])) == [[1, 2, 3], [1, 2, 3]]


def test_closures_capture_refs() -> None:
    a, b = ray.put(1), ray.put(2)

    @ray.remote
    def add() -> int:
        return ray.get(a) + ray.get(b)

    assert ray.get(add.remote()) == 3


def test_several_results_come_as_several_refs() -> None:
    @ray.remote(num_returns=3)
    def three() -> tuple[int, int, int]:
        return 0, 1, 2

    a, b, c = three.remote()
    assert ray.get([a, b, c]) == [0, 1, 2]
    assert ray.get(three.options(num_returns=1).remote()) == (0, 1, 2)


@ray.remote
class Counter:
    def __init__(self) -> None:
        self.i = 0

    def get(self) -> int:
        return self.i

    def incr(self, value: int) -> None:
        self.i += value


def test_an_actor_keeps_its_state() -> None:
    c = Counter.remote()
    for _ in range(10):
        c.incr.remote(1)
    assert ray.get(c.get.remote()) == 10


def test_a_handle_is_passed_to_tasks_and_found_by_its_name() -> None:
    @ray.remote
    def work(counter: ray.actor.ActorHandle) -> None:
        for _ in range(5):
            ray.get(counter.incr.remote(1))

    counter = Counter.options(name="shared", get_if_exists=True, num_cpus=0).remote()
    ray.get([work.remote(counter) for _ in range(3)])
    found = ray.get_actor("shared", namespace="walk")
    assert ray.get(found.get.remote()) == 15
    assert ray.util.list_named_actors() == ["shared"]
    with pytest.raises(ValueError, match="nobody"):
        ray.get_actor("nobody")
    ray.kill(counter)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(found.get.remote())


def test_a_program_looks_around() -> None:
    assert ray.cluster_resources()["CPU"] == 2
    assert ray.available_resources()["CPU"] <= 2
    assert [node["Alive"] for node in ray.nodes()] == [True]
    context = ray.get_runtime_context()
    assert context.get_node_id() == ray.nodes()[0]["NodeID"]
    assert context.get_task_id() is None
    assert context.namespace == "walk"


def test_errors_are_those_of_the_user_and_of_the_mesh() -> None:
    @ray.remote
    def bad() -> None:
        raise ValueError("oh no")

    @ray.remote
    def after(x: None) -> None:
        pass

    with pytest.raises(ValueError, match="oh no") as told:
        ray.get(bad.remote())
    assert isinstance(told.value, ray.exceptions.RayTaskError)
    assert isinstance(told.value.cause, ValueError)
    with pytest.raises(ray.exceptions.RayTaskError):
        ray.get(after.remote(bad.remote()))
