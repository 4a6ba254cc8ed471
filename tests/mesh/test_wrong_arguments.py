"""What no function takes: a clear error that is Ray's, and a mesh that goes on."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zmesh
from zmesh.exceptions import ArgumentError, ConfigError, MeshError
from zmesh.util.barrier import Barrier
from zmesh.util.queue import Queue
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from zmesh.util.semaphore import Semaphore

ZMESH: Any = zmesh


@pytest.fixture(scope="module", autouse=True)
def mesh() -> Iterator[None]:
    zmesh.init("local", num_cpus=1)
    yield
    zmesh.shutdown()


@zmesh.remote
def same(value: Any = None) -> Any:
    return value


@zmesh.remote
class Idle:
    pass


@pytest.mark.parametrize(
    "call",
    [
        lambda ref: ZMESH.get(1),
        lambda ref: ZMESH.get(None),
        lambda ref: ZMESH.get([ref, 1]),
        lambda ref: ZMESH.get("ref"),
        lambda ref: ZMESH.put(ref),
        lambda ref: ZMESH.wait(ref),
        lambda ref: ZMESH.wait([ref, 1]),
        lambda ref: list(ZMESH.as_completed(ref)),
        lambda ref: ZMESH.kill(ref),
        lambda ref: ZMESH.kill(Idle),
        lambda ref: ZMESH.cancel(1),
        lambda ref: ZMESH.explain(1),
        lambda ref: ZMESH.get_actor(5),
    ],
)
def test_what_is_no_ref_or_no_handle_is_an_error_of_any_type_that_is_caught_there(call: Callable[[Any], Any]) -> None:
    ref = same.remote(1)
    with pytest.raises(ArgumentError) as caught:
        call(ref)
    assert isinstance(caught.value, MeshError)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, zmesh.exceptions.RayError)
    assert zmesh.get(ref) == 1


@pytest.mark.parametrize("timeout", ["1", -1, float("nan"), [1]])
def test_a_timeout_is_a_number(timeout: Any) -> None:
    ref = same.remote(1)
    for call in (zmesh.get, lambda ref, timeout: zmesh.wait([ref], timeout=timeout)):
        with pytest.raises(ConfigError, match="timeout must be seconds"):
            call(ref, timeout=timeout)
    with pytest.raises(ConfigError, match="timeout must be seconds"):
        list(zmesh.as_completed([ref], timeout=timeout))
    with pytest.raises(ConfigError, match="num_returns"):
        zmesh.wait([ref], num_returns="1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 10**18},
        {"num_cpus": 1e300},
        {"num_cpus": True},
        {"memory": 10**18},
        {"resources": {"disk": 10**18}},
        {"resources": ["disk"]},
        {"max_retries": 10**20},
        {"oom_retries": 10**20},
        {"priority": 10**20},
        {"priority": -(10**20)},
        {"num_returns": 10**20},
        {"generator_backpressure": 10**20},
        {"name": "\udcff"},
        {"resources": {"\udcff": 1}},
        {"label_selector": {"zone": "\udcff"}},
        {"runtime_env": {"env_vars": {"A": "\udcff"}}},
        {"scheduling_strategy": NodeAffinitySchedulingStrategy},
    ],
)
def test_what_no_message_holds_is_refused_where_it_is_given(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        same.options(**options)
    assert zmesh.get(same.remote(2)) == 2


def test_the_same_for_actors_and_placement_groups() -> None:
    for options in ({"memory": 10**18}, {"max_restarts": 10**20}, {"max_pending_calls": 10**20}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Idle.options(**options)
    for bundle in ({"CPU": 10**18}, {"\udcff": 1}):
        with pytest.raises(ConfigError, match="bundle 0"):
            zmesh.util.placement_group([bundle])
    for call in (
        lambda: Idle.options(name="\udcff"),
        lambda: zmesh.get_actor("\udcff"),
        lambda: zmesh.util.placement_group([{"CPU": 1}], name="\udcff"),
        lambda: zmesh.util.get_placement_group("\udcff"),
    ):
        with pytest.raises(ConfigError, match="text"):
            call()
    with pytest.raises(ConfigError, match="maxsize"):
        Queue("1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="replicas"):
        zmesh.put(1, replicas=10**20)


def test_a_count_is_a_whole_number_that_a_message_holds() -> None:
    for call, name in (
        (lambda count: list(zmesh.util.as_completed([], chunk_size=count)), "chunk_size"),
        (lambda count: list(zmesh.util.map_unordered(same, [], backpressure_size=count)), "backpressure_size"),
        (lambda count: zmesh.map(same, [], chunksize=count), "chunksize"),
        (lambda count: list(zmesh.map(same, [], buffersize=count)), "buffersize"),
        (Semaphore, "value"),
        (Barrier, "parties"),
    ):
        for count in (0, 1.0, True, "1", 10**20):
            with pytest.raises(ConfigError, match=f"{name} must be a whole number from 1"):
                call(count)


def test_an_empty_zmesh_node_names_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZMESH_NODE", "")
    zmesh.shutdown()
    assert zmesh.get(same.remote(3)) == 3
    zmesh.shutdown()
    zmesh.init("local", num_cpus=1)


@pytest.mark.parametrize(
    "settings",
    [{"address": 5}, {"namespace": 5}, {"key_file": 5}, {"spill_directory": 5}, {"resources": ["disk"]}],
)
def test_a_setting_of_init_of_another_type_is_named(settings: dict[str, Any]) -> None:
    zmesh.shutdown()
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ZMESH.init(**settings)
    zmesh.init("local", num_cpus=1)
