"""A mesh for programs that do not start one themselves, and what they may look at after a while."""

import time
from collections.abc import Callable, Iterator

import pytest

import zmesh


@pytest.fixture(scope="module")
def ray_start() -> Iterator[None]:
    zmesh.init("local", num_cpus=2, object_store_memory=200_000_000)
    yield
    zmesh.shutdown()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], bool]:
    def wait(condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + 30
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    return wait
