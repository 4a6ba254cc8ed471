"""Programs that put, make, combine, pass on, read and drop objects at random, in more room than the store has."""

import pathlib
import random
import threading
import time
from typing import Any

import numpy
import pytest

import zmesh
from tests.mesh.test_hosts import Nodes, nodes  # noqa: F401  # a fixture

pytestmark = pytest.mark.slow

STORE_BYTES = 48 << 20
SIZES = (9_000, 50_000, 250_000, 600_000)  # items of 8 bytes
SECONDS = 6.0
Live = list[tuple[Any, int]]  # (ref, what each of its items is)


@zmesh.remote(scheduling_strategy="SPREAD")
def make(value: int, items: int) -> Any:
    return numpy.full(items, value)


@zmesh.remote(scheduling_strategy="SPREAD")
def combine(one: Any, other: Any) -> Any:
    assert (one == one[0]).all()
    assert (other == other[0]).all()
    return numpy.full(min(len(one), len(other)), one[0] + other[0])


@zmesh.remote(scheduling_strategy="SPREAD")
def pass_on(refs: list[Any]) -> Any:
    values = [zmesh.get(ref) for ref in refs]
    assert all((one == one[0]).all() for one in values)
    return zmesh.put(numpy.full(100_000, sum(int(one[0]) for one in values)))


def step(rng: random.Random, live: Live) -> None:
    choice, value, items = rng.random(), rng.randrange(1 << 30), rng.choice(SIZES)
    if choice < 0.3:
        live.append((zmesh.put(numpy.full(items, value)), value))
    elif choice < 0.55 or len(live) < 4:
        live.append((make.remote(value, items), value))
    elif choice < 0.7:
        one, other = rng.sample(live, 2)
        live.append((combine.remote(one[0], other[0]), one[1] + other[1]))
    elif choice < 0.76:
        some = rng.sample(live, 3)
        live.append((zmesh.get(pass_on.remote([ref for ref, _ in some])), sum(value for _, value in some)))
    else:
        ref, expected = rng.choice(live)
        assert (zmesh.get(ref, writable=rng.random() < 0.1) == expected).all()
    if len(live) > 60 or rng.random() < 0.05:
        rng.shuffle(live)
        del live[len(live) // 2 :]


def work(rng: random.Random, failed: list[BaseException]) -> None:
    try:
        live: Live = []
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            step(rng, live)
        for ref, expected in live:
            assert (zmesh.get(ref) == expected).all()
    except BaseException as error:
        failed.append(error)


@pytest.mark.parametrize("where", ["one host", "two hosts", "a guest"])
def test_every_value_is_what_it_was(nodes: Nodes, tmp_path: pathlib.Path, where: str) -> None:  # noqa: F811
    for _ in range(1 if where == "one host" else 2):
        nodes.start(store_bytes=STORE_BYTES, num_cpus=2, spill_directory=str(tmp_path))
    if where != "one host":
        nodes.await_members(nodes.all[0], 2)
    zmesh.init(nodes.all[0].address if where == "a guest" else nodes.all[0].name)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    failed: list[BaseException] = []
    threads = [threading.Thread(target=work, args=(random.Random(seed + index), failed)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
