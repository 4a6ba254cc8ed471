"""Async actors: the signal that others wait for, many calls at once, groups of calls, and refs that are awaited."""

import asyncio
from collections.abc import Callable

import pytest

import zmesh as ray

pytestmark = pytest.mark.usefixtures("ray_start")


@ray.remote(num_cpus=0)
class SignalActor:
    def __init__(self) -> None:
        self.ready_event = asyncio.Event()
        self.waiting = 0

    def send(self, clear: bool = False) -> None:
        self.ready_event.set()
        if clear:
            self.ready_event.clear()

    async def wait(self, should_wait: bool = True) -> None:
        if should_wait:
            self.waiting += 1
            await self.ready_event.wait()

    async def cur_num_waiters(self) -> int:
        return self.waiting


@ray.remote
def wait_and_go(signal: ray.actor.ActorHandle) -> str:
    ray.get(signal.wait.remote())
    return "go!"


def test_tasks_wait_for_a_signal(until: Callable[[Callable[[], bool]], bool]) -> None:
    signal = SignalActor.remote()
    tasks = [wait_and_go.remote(signal) for _ in range(4)]  # more than there are CPUs: who waits lends his
    assert until(lambda: ray.get(signal.cur_num_waiters.remote()) == 4)
    assert ray.wait(tasks, timeout=0)[0] == []
    ray.get(signal.send.remote())
    assert ray.get(tasks) == ["go!"] * 4


def test_refs_are_awaited_and_gathered() -> None:
    @ray.remote
    def some_task(x: int) -> int:
        return x

    async def program() -> list[int]:
        first = await some_task.remote(1)
        second = await asyncio.wrap_future(some_task.remote(2).future())
        others = await asyncio.gather(*[some_task.remote(x) for x in (3, 4)])
        done, _ = await asyncio.wait([asyncio.wrap_future(some_task.remote(5).future())])
        return [first, second, *others, done.pop().result()]

    assert asyncio.run(program()) == [1, 2, 3, 4, 5]


def test_an_async_actor_runs_calls_at_once_and_awaits_refs() -> None:
    @ray.remote
    class AsyncActor:
        def __init__(self) -> None:
            self.inside = self.most = 0
            self.all_in = asyncio.Event()

        async def run(self, refs: list[ray.ObjectRef[int]]) -> int:
            self.inside += 1
            self.most = max(self.most, self.inside)
            if self.inside == 10:
                self.all_in.set()
            await self.all_in.wait()
            self.inside -= 1
            return await refs[0]

        async def get_most(self) -> int:
            return self.most

    actor = AsyncActor.remote()
    value = ray.put(7)
    assert ray.get([actor.run.remote([value]) for _ in range(10)]) == [7] * 10
    assert ray.get(actor.get_most.remote()) == 10


def test_threads_and_concurrency_groups_have_places_of_their_own() -> None:
    @ray.remote(concurrency_groups={"io": 2, "compute": 1})
    class Grouped:
        def __init__(self) -> None:
            import threading

            self.barrier = threading.Barrier(3)

        @ray.method(concurrency_group="io")
        def io(self) -> str:
            self.barrier.wait(30)
            return "io"

        @ray.method(concurrency_group="compute")
        def compute(self) -> str:
            self.barrier.wait(30)
            return "compute"

        def plain(self) -> str:
            return "plain"

    actor = Grouped.remote()
    refs = [actor.io.remote(), actor.io.remote(), actor.compute.remote(), actor.plain.remote()]
    assert ray.get(refs) == ["io", "io", "compute", "plain"]
    assert ray.get(actor.plain.options(concurrency_group="io").remote()) == "plain"


def test_a_cancelled_call_of_an_async_actor_raises_inside() -> None:
    signal = SignalActor.remote()
    ref = signal.wait.remote()
    ray.cancel(ref)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(ref)
