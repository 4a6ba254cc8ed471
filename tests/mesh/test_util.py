"""ActorPool and Queue, as programs of the other system use them."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import zmesh
from zmesh.exceptions import ConfigError, GetTimeoutError
from zmesh.util import ActorPool
from zmesh.util.queue import Empty, Full, Queue


@pytest.fixture(scope="module", autouse=True)
def mesh() -> Iterator[None]:
    zmesh.init("local", num_cpus=2)
    yield
    zmesh.shutdown()


@zmesh.remote
class Squarer:
    def square(self, x: int) -> int:
        return x * x

    def slow(self, x: float) -> float:
        time.sleep(x)
        return x

    def fail(self, x: int) -> int:
        if x == 2:
            raise KeyError(x)
        return x


def pool(count: int = 2) -> ActorPool:
    return ActorPool([Squarer.remote() for _ in range(count)])


def test_map_gives_results_in_order_and_map_unordered_gives_them_all() -> None:
    actors = pool()
    assert list(actors.map(lambda actor, x: actor.square.remote(x), range(50))) == [x * x for x in range(50)]
    found = actors.map_unordered(lambda actor, x: actor.square.remote(x), range(50))
    assert sorted(found) == [x * x for x in range(50)]
    assert not actors.has_next()
    assert actors.has_free()


def test_map_unordered_gives_what_is_ready_first() -> None:
    actors = pool()
    zmesh.get([actor.square.remote(1) for actor in actors._idle])
    assert list(actors.map_unordered(lambda actor, x: actor.slow.remote(x), [0.4, 0.01, 0.02])) == [0.01, 0.02, 0.4]


def test_results_are_taken_one_by_one() -> None:
    actors = pool(1)
    actors.submit(lambda actor, x: actor.square.remote(x), 3)
    actors.submit(lambda actor, x: actor.square.remote(x), 4)
    assert not actors.has_free()
    assert actors.pop_idle() is None
    assert actors.get_next() == 9
    assert actors.get_next_unordered() == 16
    for take in (actors.get_next, actors.get_next_unordered):
        with pytest.raises(StopIteration):
            take()


def test_a_call_that_raises_raises_at_its_turn_and_the_pool_goes_on() -> None:
    results = pool(1).map(lambda actor, x: actor.fail.remote(x), [1, 2, 3])
    assert next(results) == 1
    with pytest.raises(KeyError):
        next(results)


def test_a_timeout_leaves_the_call_or_gives_it_up() -> None:
    actors = pool(1)
    actors.submit(lambda actor, x: actor.slow.remote(x), 0.5)
    with pytest.raises(GetTimeoutError):
        actors.get_next(timeout=0.01)
    assert actors.get_next() == 0.5
    actors.submit(lambda actor, x: actor.slow.remote(x), 0.5)
    with pytest.raises(GetTimeoutError, match="given up"):
        actors.get_next(timeout=0.01, ignore_if_timedout=True)
    assert not actors.has_next()
    assert actors.has_free()


def test_actors_come_and_go() -> None:
    actors = pool(1)
    one = actors.pop_idle()
    assert not actors.has_free()
    actors.submit(lambda actor, x: actor.square.remote(x), 5)
    assert not actors.has_next()
    actors.push(one)
    assert actors.get_next() == 25
    with pytest.raises(ConfigError, match="already"):
        actors.push(one)


def test_a_queue_is_first_in_first_out_and_bounded() -> None:
    queue = Queue(maxsize=2)
    assert queue.empty()
    queue.put("a")
    queue.put_nowait("b")
    assert (queue.qsize(), len(queue), queue.full()) == (2, 2, True)
    with pytest.raises(Full):
        queue.put_nowait("c")
    with pytest.raises(Full):
        queue.put("c", timeout=0.05)
    assert [queue.get(), queue.get_nowait()] == ["a", "b"]
    with pytest.raises(Empty):
        queue.get_nowait()
    with pytest.raises(Empty):
        queue.get(timeout=0.05)
    with pytest.raises(ConfigError, match="negative"):
        queue.get(timeout=-1)
    queue.shutdown()


def test_batches_are_taken_whole_or_not_at_all() -> None:
    queue = Queue(maxsize=4)
    queue.put_nowait_batch([1, 2, 3])
    with pytest.raises(Full):
        queue.put_nowait_batch([4, 5])
    assert queue.get_nowait_batch(2) == [1, 2]
    with pytest.raises(Empty):
        queue.get_nowait_batch(2)
    assert queue.get() == 3
    queue.shutdown(force=True)


def test_who_waits_for_an_item_gets_the_one_that_is_put() -> None:
    queue = Queue()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(queue.get(timeout=20)))
    thread.start()
    queue.put("late")
    thread.join(timeout=20)
    assert found == ["late"]


def test_tasks_share_a_queue() -> None:
    @zmesh.remote
    def produce(queue: Queue, start: int) -> None:
        for number in range(start, start + 20):
            queue.put(number)

    queue = Queue(maxsize=5)
    done = [produce.remote(queue, start) for start in (0, 100)]
    found = [queue.get(timeout=20) for _ in range(40)]
    zmesh.get(done)
    assert sorted(found) == [*range(20), *range(100, 120)]
    assert [number for number in found if number < 20] == list(range(20))


def test_coroutines_use_a_queue() -> None:
    queue = Queue(maxsize=1)

    async def both() -> Any:
        getting = asyncio.create_task(queue.get_async(timeout=20))
        await queue.put_async("item")
        first = await getting
        with pytest.raises(Empty):
            await queue.get_async(block=False)
        await queue.put_async(1)
        with pytest.raises(Full):
            await queue.put_async(2, block=False)
        return first

    assert asyncio.run(both()) == "item"
