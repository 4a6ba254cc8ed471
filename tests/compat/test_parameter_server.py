"""A parameter server: workers compute gradients, an actor applies them; in step, or each at its own pace."""

import numpy as np
import pytest

import zmesh as ray

pytestmark = pytest.mark.usefixtures("ray_start")

TRUE = np.array([1.0, -2.0, 0.5])
RATE = 0.1


@ray.remote
class ParameterServer:
    def __init__(self) -> None:
        self.weights = np.zeros(3)

    def apply_gradients(self, *gradients: np.ndarray) -> np.ndarray:
        self.weights = self.weights - RATE * np.mean(gradients, axis=0)
        return self.weights

    def get_weights(self) -> np.ndarray:
        return self.weights


@ray.remote
class DataWorker:
    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(500, 3))
        self.y = self.x @ TRUE

    def compute_gradients(self, weights: np.ndarray) -> np.ndarray:
        return 2 * self.x.T @ (self.x @ weights - self.y) / len(self.y)


def test_in_step() -> None:
    ps = ParameterServer.remote()
    workers = [DataWorker.remote(seed) for seed in range(2)]
    current_weights = ps.get_weights.remote()
    for _ in range(50):
        gradients = [worker.compute_gradients.remote(current_weights) for worker in workers]
        current_weights = ps.apply_gradients.remote(*gradients)
    assert np.allclose(ray.get(current_weights), TRUE, atol=1e-3)


def test_each_at_its_own_pace() -> None:
    ps = ParameterServer.remote()
    workers = [DataWorker.remote(seed) for seed in range(2)]
    current_weights = ps.get_weights.remote()
    gradients = {worker.compute_gradients.remote(current_weights): worker for worker in workers}
    for _ in range(100):
        ready_gradient_list, _ = ray.wait(list(gradients))
        ready_gradient_id = ready_gradient_list[0]
        worker = gradients.pop(ready_gradient_id)
        current_weights = ps.apply_gradients.remote(*[ready_gradient_id])
        gradients[worker.compute_gradients.remote(current_weights)] = worker
    # A worker that stood still brings a gradient of weights long gone, at most a fifth of the whole way, at any time.
    assert np.linalg.norm(ray.get(current_weights) - TRUE) < 0.3 * np.linalg.norm(TRUE)
