"""Pattern: an actor that makes, uses and ends other actors."""

from collections.abc import Callable
from typing import Any

import pytest

import zmesh as ray

pytestmark = pytest.mark.usefixtures("ray_start")


@ray.remote(num_cpus=0)
class Trainer:
    def __init__(self, hyperparameter: float, data: list[int]) -> None:
        self.hyperparameter = hyperparameter
        self.data = data

    def fit(self) -> float:
        return self.hyperparameter * sum(self.data)


@ray.remote(num_cpus=0)
class Supervisor:
    def __init__(self, hyperparameter: float, data: list[int]) -> None:
        parts = [data[:2], data[2:]]
        self.trainers = [Trainer.remote(hyperparameter, part) for part in parts]

    def fit(self) -> float:
        return sum(ray.get([trainer.fit.remote() for trainer in self.trainers]))

    def workers(self) -> list[Any]:
        return self.trainers


def test_supervisors_and_their_trainers_work_side_by_side() -> None:
    data = [1, 2, 3, 4]
    supervisors = [Supervisor.remote(hyperparameter, data) for hyperparameter in (1.0, 2.0)]
    assert ray.get([supervisor.fit.remote() for supervisor in supervisors]) == [10.0, 20.0]


def test_the_actors_of_an_actor_end_with_it(until: Callable[[Callable[[], bool]], bool]) -> None:
    supervisor = Supervisor.remote(1.0, [1, 2])
    trainers = ray.get(supervisor.workers.remote())
    assert ray.get(trainers[0].fit.remote()) == 3.0
    ray.kill(supervisor)

    def is_dead() -> bool:
        try:
            ray.get(trainers[0].fit.remote())
        except ray.exceptions.ActorDiedError:
            return True
        return False

    assert until(is_dead)
