"""Semaphores and barriers: in threads, tasks and coroutines, with timeouts, and with holders that are killed."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import pytest

import zmesh
from tests.mesh.test_actors import _until
from zmesh.exceptions import ConfigError, LocalProtocolError
from zmesh.util.barrier import Barrier, BrokenBarrierError
from zmesh.util.semaphore import Semaphore


@pytest.fixture(scope="module", autouse=True)
def mesh() -> Iterator[None]:
    zmesh.init("local", num_cpus=2)
    yield
    zmesh.shutdown()


@zmesh.remote(num_cpus=0)
class Log:
    """Counts who is inside."""

    def __init__(self) -> None:
        self.inside = self.most = self.times = 0
        self.pids: list[int] = []

    def enter(self, pid: int) -> None:
        self.pids.append(pid)
        self.times += 1
        self.inside += 1
        self.most = max(self.most, self.inside)

    def leave(self) -> None:
        self.inside -= 1

    def told(self) -> tuple[int, int, list[int]]:
        return self.most, self.times, self.pids


@zmesh.remote(num_cpus=0.25, max_retries=0)
def work(semaphore: Semaphore, log: zmesh.ActorHandle, times: int) -> None:
    for _ in range(times):
        with semaphore:
            zmesh.get(log.enter.remote(os.getpid()))
            zmesh.get(log.leave.remote())


@zmesh.remote(num_cpus=0.25, max_retries=0)
def hold(semaphore: Semaphore, log: zmesh.ActorHandle) -> None:
    semaphore.acquire()
    zmesh.get(log.enter.remote(os.getpid()))
    threading.Event().wait(60)


@zmesh.remote(num_cpus=0.25, max_retries=0)
def queue_up(semaphore: Semaphore, log: zmesh.ActorHandle) -> None:
    zmesh.get(log.enter.remote(os.getpid()))
    semaphore.acquire()


def test_no_more_hold_a_semaphore_at_once_than_it_has_permits() -> None:
    semaphore, log = Semaphore(2), Log.remote()
    zmesh.get([work.remote(semaphore, log, 5) for _ in range(4)])
    most, times, _ = zmesh.get(log.told.remote())
    assert times == 20
    assert most <= 2


def test_a_permit_is_waited_for_as_long_as_one_likes() -> None:
    semaphore = Semaphore()
    assert semaphore.acquire()
    assert not semaphore.acquire(timeout=0)
    assert not semaphore.acquire(timeout=0.01)
    semaphore.release()
    with semaphore:
        assert not semaphore.acquire(timeout=0)
    assert semaphore.acquire(timeout=30)
    with pytest.raises(LocalProtocolError, match="not acquired"):
        Semaphore().release()


def test_coroutines_share_a_semaphore() -> None:
    semaphore = Semaphore(2)
    inside: list[int] = []
    most = 0

    async def one(number: int) -> None:
        nonlocal most
        async with semaphore:
            inside.append(number)
            most = max(most, len(inside))
            await asyncio.sleep(0)
            inside.remove(number)

    async def all_of_them() -> None:
        await asyncio.gather(*[one(number) for number in range(8)])

    asyncio.run(all_of_them())
    assert most <= 2
    assert semaphore.acquire(timeout=30)


def test_a_coroutine_that_is_cancelled_while_it_waits_takes_no_permit() -> None:
    semaphore = Semaphore()
    assert semaphore.acquire()

    async def give_up() -> None:
        waiting = asyncio.ensure_future(semaphore.acquire_async())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(give_up())
    semaphore.release()
    assert semaphore.acquire(timeout=30)


def pid_in(log: zmesh.ActorHandle) -> int:
    assert _until(lambda: bool(zmesh.get(log.told.remote())[2]), 30.0)
    pid: int = zmesh.get(log.told.remote())[2][-1]
    return pid


def test_a_holder_that_is_killed_gives_its_permit_back() -> None:
    semaphore, log = Semaphore(), Log.remote()
    ref = hold.remote(semaphore, log)
    os.kill(pid_in(log), signal.SIGKILL)
    assert semaphore.acquire(timeout=30)
    with pytest.raises(zmesh.exceptions.WorkerDiedError):
        zmesh.get(ref)


def test_one_that_is_killed_while_it_waits_gets_no_permit() -> None:
    semaphore, log = Semaphore(), Log.remote()
    assert semaphore.acquire()
    ref = queue_up.remote(semaphore, log)
    os.kill(pid_in(log), signal.SIGKILL)
    with pytest.raises(zmesh.exceptions.WorkerDiedError):
        zmesh.get(ref)
    semaphore.release()
    assert semaphore.acquire(timeout=30)


@zmesh.remote(num_cpus=0.25, max_retries=0)
def meet(barrier: Barrier, log: zmesh.ActorHandle) -> int:
    zmesh.get(log.enter.remote(os.getpid()))
    return barrier.wait()


def test_all_who_meet_at_a_barrier_go_on_together_again_and_again() -> None:
    barrier, log = Barrier(3), Log.remote()
    for _ in range(2):
        refs = [meet.remote(barrier, log) for _ in range(2)]
        assert zmesh.wait(refs, timeout=0.01)[0] == []
        mine = asyncio.run(barrier.wait_async())
        assert sorted([mine, *zmesh.get(refs)]) == [0, 1, 2]


def test_a_barrier_is_broken_for_all_when_somebody_waits_too_long() -> None:
    barrier = Barrier(3)

    async def two() -> list[object]:
        waits = barrier.wait_async(), barrier.wait_async(timeout=0.05)
        return await asyncio.gather(*waits, return_exceptions=True)

    assert [type(one) for one in asyncio.run(two())] == [BrokenBarrierError] * 2
    with pytest.raises(BrokenBarrierError, match="not all of 3"):
        barrier.wait(timeout=0)


def test_one_that_is_killed_while_it_waits_has_not_come() -> None:
    barrier, log = Barrier(2), Log.remote()
    ref = meet.remote(barrier, log)
    os.kill(pid_in(log), signal.SIGKILL)
    with pytest.raises(zmesh.exceptions.WorkerDiedError):
        zmesh.get(ref)
    others = [meet.remote(barrier, Log.remote()) for _ in range(2)]
    assert sorted(zmesh.get(others, timeout=30)) == [0, 1]


@pytest.mark.parametrize("count", [0, -1, 1.5, "2"])
def test_counts_are_whole_numbers_from_one(count: int) -> None:
    with pytest.raises(ConfigError):
        Semaphore(count)
    with pytest.raises(ConfigError):
        Barrier(count)


def test_in_one_thread_there_is_neither_a_semaphore_nor_a_barrier() -> None:
    zmesh.shutdown()
    with zmesh.init(local=True):
        for cls in (Semaphore, Barrier):
            with pytest.raises(LocalProtocolError, match="local=True"):
                cls(1)
    zmesh.init("local", num_cpus=2)
