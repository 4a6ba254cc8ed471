"""Streams of real processes: readers and generators that die, are dropped, are cancelled."""

import gc
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zmesh
from zmesh.exceptions import StreamReplayError, TaskCancelledError


@pytest.fixture(scope="module")
def mesh() -> Iterator[None]:
    zmesh.init("local", num_cpus=2)
    yield
    zmesh.shutdown()


@pytest.fixture
def log(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "log"
    path.touch()
    return path


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rest(stream: Any) -> list[Any]:
    """Read a stream to its end."""
    return [zmesh.get(ref, timeout=20) for ref in stream]


def _count(log: str, n: int, seconds: float = 0.0, die_at: int = -1) -> Iterator[int]:
    """Yield numbers; the first of all attempts dies before it yields `die_at`."""
    path = pathlib.Path(log)
    first = not path.read_text()
    try:
        for i in range(n):
            if first and i == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            with path.open("a") as file:
                file.write(f"{os.getpid()} ")
            yield i
            time.sleep(seconds)
    finally:
        with path.open("a") as file:
            file.write("closed ")


count = zmesh.remote(_count)


@zmesh.remote
class Counter:
    def count(self, log: str, n: int, seconds: float = 0.0, die_at: int = -1) -> Iterator[int]:
        yield from _count(log, n, seconds, die_at)

    def answer(self) -> int:
        return 42


@pytest.mark.parametrize("backpressure", [-1, 1, 3])
def test_a_retried_stream_gives_each_item_once(mesh: None, log: pathlib.Path, backpressure: int) -> None:
    stream = count.options(generator_backpressure=backpressure).remote(str(log), 8, 0.0, 5)
    assert rest(stream) == list(range(8))
    assert len(dict.fromkeys(log.read_text().split())) == 3  # two attempts, and "closed"


def test_a_retried_stream_of_an_actor_gives_each_item_once(mesh: None, log: pathlib.Path) -> None:
    counter = Counter.options(max_restarts=1, max_task_retries=1).remote()
    stream = counter.count.options(generator_backpressure=1).remote(str(log), 8, 0.0, 5)
    assert rest(stream) == list(range(8))
    assert zmesh.get(counter.answer.remote(), timeout=20) == 42


def test_a_stream_that_is_another_when_it_is_retried_is_an_error(mesh: None, log: pathlib.Path) -> None:
    read = log.with_name("read")

    @zmesh.remote
    def fickle() -> Iterator[int]:
        first = not log.read_text()
        log.write_text("begun")
        yield from range(5 if first else 2)
        while first:
            if read.exists():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)

    stream = fickle.remote()
    assert [zmesh.get(next(stream)) for _ in range(5)] == list(range(5))
    read.touch()
    with pytest.raises(StreamReplayError, match="5 items, but 2"):
        rest(stream)


@pytest.mark.parametrize("backpressure", [-1, 2])
def test_a_generator_that_is_dropped_half_read_is_closed(mesh: None, log: pathlib.Path, backpressure: int) -> None:
    stream = count.options(generator_backpressure=backpressure).remote(str(log), 10**9, 0.001)
    assert [zmesh.get(next(stream)) for _ in range(3)] == [0, 1, 2]
    del stream
    gc.collect()
    until(lambda: "closed" in log.read_text())


@pytest.mark.parametrize("how", ["drop", "cancel"])
@pytest.mark.parametrize("backpressure", [-1, 2])
def test_an_actor_goes_on_after_a_stream_that_nobody_reads(
    mesh: None, log: pathlib.Path, how: str, backpressure: int
) -> None:
    counter = Counter.remote()
    stream = counter.count.options(generator_backpressure=backpressure).remote(str(log), 10**9, 0.001)
    assert [zmesh.get(next(stream)) for _ in range(3)] == [0, 1, 2]
    if how == "cancel":
        zmesh.cancel(stream)
        with pytest.raises(TaskCancelledError):
            rest(stream)
    del stream
    gc.collect()
    assert zmesh.get(counter.answer.remote(), timeout=20) == 42
    assert "closed" in log.read_text()


def test_a_cancelled_generator_that_waits_for_its_reader_ends(mesh: None, log: pathlib.Path) -> None:
    stream = count.options(generator_backpressure=1).remote(str(log), 10)
    assert zmesh.get(next(stream)) == 0
    zmesh.cancel(stream)
    with pytest.raises(TaskCancelledError):
        rest(stream)
    until(lambda: "closed" in log.read_text())


def test_the_death_of_a_reader_ends_the_stream_and_frees_the_actor(mesh: None, log: pathlib.Path) -> None:
    @zmesh.remote(max_retries=0)
    def read(counter: Any) -> None:
        stream = counter.count.options(generator_backpressure=2).remote(str(log), 10**9)
        for _ in range(3):
            zmesh.get(next(stream))
        os.kill(os.getpid(), signal.SIGKILL)

    counter = Counter.remote()
    with pytest.raises(zmesh.exceptions.WorkerDiedError):
        zmesh.get(read.remote(counter), timeout=20)
    assert zmesh.get(counter.answer.remote(), timeout=20) == 42
    assert "closed" in log.read_text()


def test_an_async_generator_is_closed_too(mesh: None, log: pathlib.Path) -> None:
    @zmesh.remote
    class Async:
        async def count(self) -> Any:
            try:
                for i in range(10**9):
                    yield i
            finally:
                log.write_text("closed")

        async def answer(self) -> int:
            return 42

    actor = Async.remote()
    stream = actor.count.options(generator_backpressure=2).remote()
    assert [zmesh.get(next(stream)) for _ in range(3)] == [0, 1, 2]
    del stream
    gc.collect()
    until(lambda: log.read_text() == "closed")
    assert zmesh.get(actor.answer.remote(), timeout=20) == 42
