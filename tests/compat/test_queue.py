"""A queue between producers and consumers that are tasks."""

import pytest

import zmesh as ray
from zmesh.util.queue import Empty, Full, Queue

pytestmark = pytest.mark.usefixtures("ray_start")


@ray.remote
def produce(queue: Queue, first: int, count: int) -> None:
    for item in range(first, first + count):
        queue.put(item)


@ray.remote
def consume(queue: Queue) -> list[int]:
    found = []
    while (item := queue.get(block=True)) is not None:
        found.append(item)
    return found


def test_every_item_is_consumed_once() -> None:
    queue = Queue(maxsize=10)
    consumers = [consume.options(num_cpus=0.5).remote(queue) for _ in range(2)]
    ray.get([produce.options(num_cpus=0.5).remote(queue, first, 25) for first in (0, 100)])
    for _ in consumers:
        queue.put(None)
    first, second = ray.get(consumers)
    assert sorted(first + second) == [*range(25), *range(100, 125)]
    queue.shutdown()


def test_a_queue_says_when_it_is_full_or_empty() -> None:
    queue = Queue(maxsize=2, actor_options={"num_cpus": 0})
    queue.put_nowait_batch([1, 2])
    assert queue.full()
    assert queue.qsize() == 2
    with pytest.raises(Full):
        queue.put_nowait(3)
    assert queue.get_nowait_batch(2) == [1, 2]
    assert queue.empty()
    with pytest.raises(Empty):
        queue.get(timeout=0.01)
