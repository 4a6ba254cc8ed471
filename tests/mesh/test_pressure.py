"""Tasks that use more memory than there is: one goes, the others and the node go on."""

import os
import time
from typing import Any

import numpy
import pytest

import zmesh
from tests.mesh.test_hosts import Nodes, nodes  # noqa: F401  # a fixture
from zmesh import lifecycle
from zmesh.exceptions import OutOfMemoryError

MB = 1_000_000
LIMIT = 500 * MB


@zmesh.remote
def use(megabytes: int, seconds: float) -> int:
    values = numpy.ones(megabytes * MB // 8)
    time.sleep(seconds)
    return int(values.sum())


@zmesh.remote(num_cpus=0)
def pid() -> int:
    return os.getpid()


@pytest.fixture
def small(nodes: Nodes) -> lifecycle.RunningNode:  # noqa: F811
    node = nodes.start(memory_limit=LIMIT, num_cpus=2)
    zmesh.init(node.name)
    return node


def test_a_task_that_uses_too_much_is_retried_once_and_fails_with_a_table(small: Any) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        zmesh.get(use.options(name="the glutton").remote(600, 30.0))
    text = str(caught.value)
    assert "the glutton  <- this one" in text
    assert "its limit is 92%" in text
    assert f"{caught.value.pid:>10} " in text
    assert caught.value.attempts == 2
    assert caught.value.signal_name == "SIGKILL"
    assert zmesh.get(pid.remote())


@pytest.mark.slow
def test_two_that_do_not_fit_together_run_one_after_the_other(small: Any) -> None:
    both = [use.options(oom_retries=-1).remote(300, 3.0) for _ in range(2)]
    assert zmesh.get(both, timeout=60) == [300 * MB // 8] * 2


def test_one_that_uses_more_than_it_asked_for_goes_first(small: Any) -> None:
    honest = use.options(memory=400 * MB, oom_retries=0).remote(250, 5.0)
    glutton = use.options(memory=100 * MB, oom_retries=0).remote(300, 30.0)
    with pytest.raises(OutOfMemoryError):
        zmesh.get(glutton)
    assert zmesh.get(honest) == 250 * MB // 8
    assert zmesh.status()["memory_used"] > 0
