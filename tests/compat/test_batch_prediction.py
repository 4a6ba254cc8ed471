"""Batch inference: a model in shared memory, and a pool of actors that each take a shard when they are free."""

import numpy as np
import pytest

import zmesh as ray
from zmesh.util import ActorPool

pytestmark = pytest.mark.usefixtures("ray_start")

SHARDS = [list(range(start, start + 25)) for start in range(0, 200, 25)]


class Model:
    def __init__(self) -> None:
        self.payload = np.arange(300_000, dtype=np.float64)

    def predict(self, shard: list[int]) -> list[bool]:
        return [self.payload[index] % 2 == 0 for index in shard]


@ray.remote
class BatchPredictor:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.shares = not model.payload.flags.writeable

    def predict(self, shard: list[int]) -> list[bool]:
        assert self.shares  # it was put once, and is read in place
        return self.model.predict(shard)


@ray.remote
def make_prediction(model: Model, shard: list[int]) -> list[bool]:
    return model.predict(shard)


EXPECTED = [[index % 2 == 0 for index in shard] for shard in SHARDS]


def test_actors_of_a_pool_predict_in_order() -> None:
    model_ref = ray.put(Model())
    pool = ActorPool([BatchPredictor.remote(model_ref) for _ in range(2)])
    for shard in SHARDS:
        pool.submit(lambda actor, shard: actor.predict.remote(shard), shard)
    results = []
    while pool.has_next():
        results.append(pool.get_next())
    assert results == EXPECTED
    assert list(pool.map(lambda actor, shard: actor.predict.remote(shard), SHARDS)) == EXPECTED


def test_tasks_share_a_model() -> None:
    model_ref = ray.put(Model())
    assert ray.get([make_prediction.remote(model_ref, shard) for shard in SHARDS]) == EXPECTED
