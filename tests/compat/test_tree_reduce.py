"""Pattern: results are combined by tasks, two at a time, without coming back to the program."""

import numpy as np
import pytest

import zmesh as ray

pytestmark = pytest.mark.usefixtures("ray_start")


@ray.remote
def create(size: int, value: int) -> np.ndarray:
    return np.full(size, value, dtype=np.float64)


@ray.remote
def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a + b


def test_a_queue_of_refs_is_reduced_in_a_tree() -> None:
    results = [create.remote(20_000, value) for value in range(8)]
    depth = 0
    while len(results) > 1:
        results = [*results[2:], add.remote(results[0], results[1])]
        depth += 1
    assert depth == 7
    total = ray.get(results[0])
    assert (total == sum(range(8))).all()
    assert total.shape == (20_000,)
