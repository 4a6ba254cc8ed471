"""Retries of tasks and actors, with processes that end by themselves."""

import os
import pathlib
from collections.abc import Iterator

import pytest

import zmesh as ray

pytestmark = pytest.mark.usefixtures("ray_start")


@ray.remote(max_retries=1)
def potentially_fail(path: str) -> int:
    marks = pathlib.Path(path)
    before = len(list(marks.iterdir()))
    (marks / str(before)).touch()
    if before == 0:
        os._exit(0)
    return before


def test_a_task_whose_worker_dies_runs_again(tmp_path: pathlib.Path) -> None:
    assert ray.get(potentially_fail.remote(str(tmp_path))) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_without_retries_the_death_is_the_result(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(potentially_fail.options(max_retries=0).remote(str(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 1


class RandomError(Exception):
    pass


@ray.remote(max_retries=2, retry_exceptions=[RandomError])
def raise_until(path: str, kind: type[Exception]) -> int:
    marks = pathlib.Path(path)
    before = len(list(marks.iterdir()))
    (marks / str(before)).touch()
    if before < 2:
        raise kind("again")
    return before


def test_exceptions_are_retried_if_they_are_listed(tmp_path: pathlib.Path) -> None:
    assert ray.get(raise_until.remote(str(tmp_path), RandomError)) == 2
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(KeyError):
        ray.get(raise_until.remote(str(other), KeyError))
    assert len(list(other.iterdir())) == 1


@ray.remote(max_restarts=2, max_task_retries=-1)
class Actor:
    def __init__(self) -> None:
        self.counter = 0

    def increment_and_possibly_fail(self) -> int:
        if self.counter == 3:
            os._exit(0)
        self.counter += 1
        return self.counter


def test_an_actor_is_made_again_and_its_calls_are_sent_again() -> None:
    actor = Actor.remote()
    counters = [ray.get(actor.increment_and_possibly_fail.remote()) for _ in range(9)]
    assert counters == [1, 2, 3, 1, 2, 3, 1, 2, 3]
    for _ in range(2):
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(actor.increment_and_possibly_fail.remote())


@ray.remote(max_restarts=1)
class Mortal:
    def die(self) -> None:
        os._exit(1)

    def ping(self) -> bool:
        return ray.get_runtime_context().was_current_actor_reconstructed


def test_a_call_that_may_have_run_is_told_apart_from_a_dead_actor() -> None:
    actor = Mortal.remote()
    assert not ray.get(actor.ping.remote())
    with pytest.raises(ray.exceptions.ActorUnavailableError):
        ray.get(actor.die.remote())
    assert ray.get(actor.ping.remote())
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(actor.die.remote())
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.ping.remote())


def test_an_actor_ends_itself_or_is_asked_to() -> None:
    @ray.remote
    class Exiting:
        def leave(self) -> None:
            ray.actor.exit_actor()

        def ping(self) -> str:
            return "pong"

    actor = Exiting.remote()
    assert ray.get(actor.__ray_ready__.remote())
    assert ray.get(actor.__ray_call__.remote(lambda self, word: self.ping() + word, "!")) == "pong!"
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.leave.remote())
    other = Exiting.remote()
    assert ray.get(other.ping.remote()) == "pong"
    other.__ray_terminate__.remote()
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(other.ping.remote())


def test_an_actor_that_cannot_be_made_says_so_at_its_first_call() -> None:
    @ray.remote
    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("no camera")

        def shoot(self) -> None:
            pass

    with pytest.raises(ray.exceptions.ActorDiedError, match="no camera"):
        ray.get(Broken.remote().shoot.remote())


def test_max_calls_gives_each_task_a_worker_of_its_own() -> None:
    @ray.remote(max_calls=1)
    def pid() -> int:
        return os.getpid()

    assert len({ray.get(pid.remote()) for _ in range(3)}) == 3


def test_a_generator_in_step_with_its_reader_is_replayed_after_a_death(tmp_path: pathlib.Path) -> None:
    mark = str(tmp_path / "died")

    @ray.remote(max_retries=1, _generator_backpressure_num_objects=1)
    def stream() -> Iterator[int]:
        for i in range(6):
            if i == 4 and not os.path.exists(mark):
                pathlib.Path(mark).touch()
                os._exit(0)
            yield i

    assert ray.get(list(stream.remote())) == list(range(6))
    assert os.path.exists(mark)
