"""Threaded actors that end while other threads run: nothing waits for these, and nothing they hold keeps a process."""

import atexit
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

import zmesh
from tests.mesh.test_actors import _until
from zmesh.exceptions import ActorDiedError, TaskCancelledError


@pytest.fixture(scope="module", autouse=True)
def mesh() -> Iterator[None]:
    zmesh.init("local", num_cpus=4)
    yield
    zmesh.shutdown()


@zmesh.remote(num_cpus=0.25, max_retries=0)
def touch_and_nap(path: str, seconds: float = 60.0) -> str:
    pathlib.Path(path).touch()
    time.sleep(seconds)
    return path


@zmesh.remote(max_concurrency=4)
class Threaded:
    def pid(self, written_at_exit: str = "") -> int:
        if written_at_exit:
            atexit.register(pathlib.Path(written_at_exit).touch)
        return os.getpid()

    def spin(self, path: str) -> None:
        pathlib.Path(path).touch()
        while True:
            time.sleep(0.01)

    def stream(self, path: str) -> Iterator[Any]:
        pathlib.Path(path).touch()
        while True:
            time.sleep(0.001)
            yield [zmesh.put(1)]

    def wait_for_a_task(self, path: str) -> str:
        return str(zmesh.get(touch_and_nap.remote(path)))

    def submit_for_ever(self, path: str) -> None:
        pathlib.Path(path).touch()
        while True:
            try:
                zmesh.get(touch_and_nap.remote(path, 0.0))
            except ActorDiedError:
                time.sleep(0.01)

    def nap(self, path: str, seconds: float) -> str:
        return str(zmesh.get(touch_and_nap.remote(path, seconds)))

    def leave(self) -> None:
        zmesh.actor.exit_actor()


def _read(stream: Any) -> None:
    for item in stream:
        zmesh.get(item)


WHAT_RUNS = ["spin", "stream", "wait_for_a_task", "submit_for_ever"]


@pytest.mark.parametrize("method", WHAT_RUNS)
def test_an_actor_that_exits_waits_for_none_of_its_threads(method: str, tmp_path: pathlib.Path) -> None:
    began, ended = tmp_path / "began", tmp_path / "ended"
    actor = Threaded.remote()
    pid = zmesh.get(actor.pid.remote(str(ended)))
    running = [getattr(actor, method).remote(str(began)) for _ in range(3)]
    assert _until(began.exists, 10.0)
    over = [actor.leave.remote(), actor.pid.remote(), actor.pid.remote()]
    if method != "stream":
        over += running
    for ref in over:
        with pytest.raises(ActorDiedError, match=r"exit_actor\(\)"):
            zmesh.get(ref, timeout=30)
    for stream in running if method == "stream" else []:
        with pytest.raises(ActorDiedError, match=r"exit_actor\(\)"):
            _read(stream)
    assert _until(lambda: not os.path.exists(f"/proc/{pid}"), 10.0), "also when what it gave was read, and let go of"
    assert ended.exists(), "handlers of atexit run"


def test_the_tasks_of_one_thread_are_not_cancelled_with_the_call_of_another(tmp_path: pathlib.Path) -> None:
    actor = Threaded.remote()
    first = actor.nap.remote(str(tmp_path / "first"), 60.0)
    assert _until((tmp_path / "first").exists, 10.0)
    second = actor.nap.remote(str(tmp_path / "second"), 0.3)
    assert _until((tmp_path / "second").exists, 10.0)
    zmesh.cancel(first)
    assert zmesh.get(second, timeout=30) == str(tmp_path / "second")
    with pytest.raises(TaskCancelledError):
        zmesh.get(first, timeout=30)


def test_the_same_of_coroutines(tmp_path: pathlib.Path) -> None:
    @zmesh.remote
    class Loop:
        async def nap(self, path: str, seconds: float) -> str:
            return str(await touch_and_nap.remote(path, seconds))

        async def leave(self) -> None:
            zmesh.actor.exit_actor()

        async def pid(self) -> int:
            return os.getpid()

    actor = Loop.remote()
    pid = zmesh.get(actor.pid.remote())
    calls = [
        actor.nap.remote(str(tmp_path / name), seconds) for name, seconds in (("a", 60.0), ("b", 0.3), ("c", 60.0))
    ]
    for name in "abc":
        assert _until((tmp_path / name).exists, 10.0)
    zmesh.cancel(calls[0])
    assert zmesh.get(calls[1], timeout=30) == str(tmp_path / "b")
    for ref in (actor.leave.remote(), calls[2]):
        with pytest.raises(ActorDiedError, match=r"exit_actor\(\)"):
            zmesh.get(ref, timeout=30)
    assert _until(lambda: not os.path.exists(f"/proc/{pid}"), 10.0)
