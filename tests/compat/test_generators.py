"""Streaming generators: of tasks and actors, sync and async, in loops, in `wait`, and in step with their reader."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

import zmesh as ray

pytestmark = pytest.mark.usefixtures("ray_start")


@ray.remote
def task(count: int) -> Iterator[int]:
    for i in range(count):  # noqa: UP028  # Ray takes no generator that yields from another
        yield i


@ray.remote
class Actor:
    def __init__(self) -> None:
        self.given = 0

    def f(self, count: int) -> Iterator[int]:
        for i in range(count):
            self.given += 1
            yield i

    def get_given(self) -> int:
        return self.given


@ray.remote(num_cpus=0)
class AsyncActor:
    async def f(self, count: int) -> AsyncIterator[int]:
        for i in range(count):
            await asyncio.sleep(0)
            yield i


def test_each_item_is_a_ref_of_its_own() -> None:
    gen = task.remote(5)
    assert isinstance(gen, ray.ObjectRefGenerator)
    refs = list(gen)
    assert all(isinstance(ref, ray.ObjectRef) for ref in refs)
    assert ray.get(refs) == [0, 1, 2, 3, 4]
    assert [ray.get(ref) for ref in Actor.remote().f.remote(5)] == [0, 1, 2, 3, 4]
    assert [ray.get(ref) for ref in AsyncActor.remote().f.remote(5)] == [0, 1, 2, 3, 4]


def test_an_error_is_raised_where_it_happened() -> None:
    @ray.remote
    def bad() -> Iterator[int]:
        yield 1
        raise ValueError("in the midst")

    gen = bad.remote()
    assert ray.get(next(gen)) == 1
    with pytest.raises(ValueError, match="in the midst"):
        ray.get(next(gen))
    with pytest.raises(StopIteration):
        next(gen)


def test_generators_are_waited_for_beside_refs() -> None:
    @ray.remote
    def plain() -> str:
        return "plain"

    gen = task.remote(3)
    ref = plain.remote()
    found: list[object] = []
    unready: list[object] = [gen, ref]
    while unready:
        ready, unready = ray.wait(unready, num_returns=1)
        for one in ready:
            if one is gen:
                try:
                    found.append(ray.get(next(gen)))
                except StopIteration:
                    continue
                unready.append(gen)
            else:
                found.append(ray.get(one))
    assert sorted(found, key=str) == [0, 1, 2, "plain"]


def test_a_generator_that_gives_nothing_is_not_ready() -> None:
    @ray.remote(num_cpus=0)
    class Slow:
        def __init__(self) -> None:
            self.go = asyncio.Event()

        async def items(self) -> AsyncIterator[int]:
            await self.go.wait()
            yield 1

        async def let_go(self) -> None:
            self.go.set()

    slow = Slow.remote()
    gen = slow.items.remote()
    assert ray.wait([gen], timeout=0.05) == ([], [gen])
    slow.let_go.remote()
    assert ray.wait([gen]) == ([gen], [])
    assert ray.get(next(gen)) == 1


def test_several_streams_are_read_at_once_in_one_event_loop() -> None:
    """Each waits for the others, so a reader that kept its thread waiting for one would hang."""

    @ray.remote(num_cpus=0)
    class Turns:
        def __init__(self) -> None:
            self.turn = 0
            self.changed = asyncio.Condition()

        async def every_other(self, mine: int) -> AsyncIterator[int]:
            for _ in range(5):
                async with self.changed:
                    await self.changed.wait_for(lambda: self.turn % 2 == mine)
                    self.turn += 1
                    self.changed.notify_all()
                yield mine

    async def read(gen: ray.ObjectRefGenerator) -> list[int]:
        return [await ref async for ref in gen]

    async def program() -> list[list[int]]:
        turns = Turns.remote()
        return await asyncio.gather(read(turns.every_other.remote(1)), read(turns.every_other.remote(0)))

    assert asyncio.run(program()) == [[1] * 5, [0] * 5]


def test_a_generator_goes_in_step_with_its_reader(until: Callable[[Callable[[], bool]], bool]) -> None:
    actor = Actor.options(max_concurrency=2).remote()
    gen = actor.f.options(_generator_backpressure_num_objects=1).remote(5)
    for i in range(5):
        assert ray.get(next(gen)) == i
        assert ray.get(actor.get_given.remote()) <= i + 2
    with pytest.raises(StopIteration):
        next(gen)


def test_a_generator_nobody_reads_any_more_holds_up_nobody() -> None:
    actor = Actor.remote()
    gen = actor.f.options(_generator_backpressure_num_objects=1).remote(20)
    next(gen)
    del gen
    assert ray.get(actor.get_given.remote(), timeout=60) >= 1


def test_a_stream_is_cancelled_by_its_generator() -> None:
    @ray.remote
    def endless() -> Iterator[int]:
        while True:
            yield 1

    gen = endless.options(_generator_backpressure_num_objects=4).remote()
    assert ray.get(next(gen)) == 1
    ray.cancel(gen)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(list(gen))
