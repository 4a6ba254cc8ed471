"""Monte Carlo estimation of pi: tasks that tell an actor how far they are."""

import math
import random
from collections.abc import Callable

import pytest

import zmesh as ray

pytestmark = pytest.mark.usefixtures("ray_start")

TASKS = 4
SAMPLES = 20_000


@ray.remote
class ProgressActor:
    def __init__(self, total_num_samples: int) -> None:
        self.total_num_samples = total_num_samples
        self.num_samples_completed_per_task: dict[int, int] = {}

    def report_progress(self, task_id: int, num_samples_completed: int) -> None:
        self.num_samples_completed_per_task[task_id] = num_samples_completed

    def get_progress(self) -> float:
        return sum(self.num_samples_completed_per_task.values()) / self.total_num_samples


@ray.remote
def sampling_task(num_samples: int, task_id: int, progress_actor: ray.actor.ActorHandle) -> int:
    rng = random.Random(task_id)
    num_inside = 0
    for i in range(num_samples):
        if math.hypot(rng.uniform(-1, 1), rng.uniform(-1, 1)) <= 1:
            num_inside += 1
        if (i + 1) % 5000 == 0:
            progress_actor.report_progress.remote(task_id, i + 1)
    progress_actor.report_progress.remote(task_id, num_samples)
    return num_inside


def test_pi_is_about_right_and_the_progress_is_told(until: Callable[[Callable[[], bool]], bool]) -> None:
    progress_actor = ProgressActor.remote(TASKS * SAMPLES)
    results = [sampling_task.remote(SAMPLES, i, progress_actor) for i in range(TASKS)]
    assert until(lambda: ray.get(progress_actor.get_progress.remote()) == 1.0)
    pi = sum(ray.get(results)) * 4 / (TASKS * SAMPLES)
    assert abs(pi - math.pi) < 0.05
