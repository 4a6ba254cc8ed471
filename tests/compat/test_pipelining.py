"""Pattern: an actor gets its next item while it works on the one before."""

import pytest

import zmesh as ray

pytestmark = pytest.mark.usefixtures("ray_start")


@ray.remote
class WorkQueue:
    def __init__(self) -> None:
        self.queue = list(range(10))

    def get_work_item(self) -> int | None:
        return self.queue.pop(0) if self.queue else None


@ray.remote
class Worker:
    def __init__(self, work_queue: ray.actor.ActorHandle) -> None:
        self.work_queue = work_queue
        self.done: list[int] = []

    def process(self, item: int) -> None:
        self.done.append(item)

    def run(self) -> list[int]:
        item_ref = self.work_queue.get_work_item.remote()
        while True:
            item = ray.get(item_ref)
            if item is None:
                return self.done
            item_ref = self.work_queue.get_work_item.remote()  # the next one comes meanwhile
            self.process(item)


def test_two_workers_share_the_items() -> None:
    work_queue = WorkQueue.remote()
    workers = [Worker.remote(work_queue) for _ in range(2)]
    done = ray.get([worker.run.remote() for worker in workers])
    assert sorted(done[0] + done[1]) == list(range(10))
    assert all(part == sorted(part) for part in done)
