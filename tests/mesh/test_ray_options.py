"""Options, settings and helpers that programs written for Ray use: what they do, and how the others are refused."""

import functools
import io
import logging
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import zmesh
from tests.mesh.test_actors import _until
from zmesh.exceptions import ConfigError, TaskUnschedulableError
from zmesh.util import deregister_serializer, inspect_serializability, map_unordered, register_serializer
from zmesh.util.scheduling_strategies import (
    DoesNotExist,
    In,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)


@pytest.fixture(scope="module", autouse=True)
def mesh() -> Iterator[None]:
    zmesh.init(
        "local",
        num_cpus=2,
        labels={"zone": "a"},
        resources={"accelerator_type:L4": 1},
        runtime_env={"env_vars": {"A": "job", "B": "job"}},
    )
    yield
    zmesh.shutdown()


@zmesh.remote
class Looking:
    def variables(self) -> tuple[str | None, str | None]:
        return os.environ.get("A"), os.environ.get("B")

    def module(self) -> str:
        import extra_of_actor

        return str(extra_of_actor.WORD)

    def environment(self) -> dict[str, Any]:
        return zmesh.get_runtime_context().runtime_env

    def child(self) -> tuple[str | None, str | None]:
        return zmesh.get(variables_of_task.remote())


@zmesh.remote(num_cpus=0.5)
def booked() -> dict[str, float]:
    return zmesh.get_runtime_context().get_assigned_resources()


@zmesh.remote
def variables_of_task() -> tuple[str | None, str | None]:
    return os.environ.get("A"), os.environ.get("B")


def test_an_actor_has_a_runtime_env_of_its_own_laid_over_the_programs() -> None:
    plain = Looking.remote()
    other = Looking.options(runtime_env={"env_vars": {"A": "actor"}}).remote()
    assert zmesh.get([plain.variables.remote(), other.variables.remote()]) == [("job", "job"), ("actor", "job")]
    assert zmesh.get(other.environment.remote())["env_vars"] == {"A": "actor", "B": "job"}
    assert zmesh.get(other.child.remote()) == ("actor", "job")


def test_the_modules_of_an_actors_runtime_env_travel_also_from_a_task(tmp_path: pathlib.Path) -> None:
    (tmp_path / "extra_of_actor.py").write_text("WORD = 'here'\n")
    actor = Looking.options(runtime_env={"py_modules": [str(tmp_path / "extra_of_actor.py")]})

    @zmesh.remote
    def make(cls: Any) -> str:
        return str(zmesh.get(cls.remote().module.remote()))

    assert zmesh.get(actor.remote().module.remote()) == "here"
    assert zmesh.get(make.remote(actor)) == "here"


def test_a_label_selector_finds_the_node_or_says_that_there_is_none() -> None:
    here = variables_of_task.options(label_selector={"zone": "a"})
    assert zmesh.get(here.options(scheduling_strategy="SPREAD").remote()) == ("job", "job")
    assert zmesh.get(Looking.options(label_selector={"zone": "a"}).remote().variables.remote()) == ("job", "job")
    with pytest.raises(TaskUnschedulableError):
        zmesh.get(variables_of_task.options(label_selector={"zone": "b"}).remote())
    assert zmesh.get(booked.options(label_selector={"zone": "a"}).remote()) == {"CPU": 0.5}, "a label is no resource"
    assert zmesh.get_runtime_context().get_node_labels() == {"zone": "a"}
    assert zmesh.nodes()[0]["Labels"] == {"zone": "a"}


@pytest.mark.parametrize("selector", [{"zone": "in(b, a)"}, {"zone": "!b"}, {"zone": "!in(b,c)"}, {"color": "!red"}])
def test_a_label_selector_takes_what_fits_several_values(selector: Any) -> None:
    assert zmesh.get(variables_of_task.options(label_selector=selector).remote()) == ("job", "job")
    assert zmesh.get(Looking.options(label_selector=selector).remote().variables.remote()) == ("job", "job")


def test_what_no_label_fits_is_said_at_once_for_all_forms() -> None:
    refs = [variables_of_task.options(label_selector={"zone": text}).remote() for text in ("in(b,c)", "!a", "!in(a,b)")]
    refs.append(
        variables_of_task.options(
            scheduling_strategy=NodeLabelSchedulingStrategy({"zone": DoesNotExist(), "color": NotIn("red")})
        ).remote()
    )
    for ref, said in zip(refs, ("zone in", "zone not in", "zone not in", "lack of a label zone"), strict=True):
        with pytest.raises(TaskUnschedulableError, match=said):
            zmesh.get(ref)


def test_a_strategy_compares_a_label_with_several_values() -> None:
    for hard in ({"zone": In("b", "a")}, {"zone": NotIn("b")}, {"color": DoesNotExist()}):
        strategy = NodeLabelSchedulingStrategy(hard)
        assert zmesh.get(variables_of_task.options(scheduling_strategy=strategy).remote()) == ("job", "job")
    for wrong in ({"zone": 1}, {"zone": In()}, {"zo=ne": "a"}, {"zone": NotIn("a,b")}, ["zone"]):
        with pytest.raises(ConfigError, match=r"label|hard="):
            NodeLabelSchedulingStrategy(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "selector", [{"zone": ""}, {"zone": "in()"}, {"zone": "!!a"}, {"zone": "in(a"}, {"zone": 1}, ["z"]]
)
def test_what_is_no_label_selector_is_refused(selector: Any) -> None:
    with pytest.raises(ConfigError, match="label_selector"):
        variables_of_task.options(label_selector=selector)


def test_a_label_selector_is_refused_in_a_placement_group() -> None:
    group = zmesh.util.placement_group([{"CPU": 1}])
    with pytest.raises(ConfigError, match="placement group"):
        variables_of_task.options(
            label_selector={"zone": "a"}, scheduling_strategy=PlacementGroupSchedulingStrategy(group)
        )
    zmesh.util.remove_placement_group(group)


def test_a_fallback_strategy_is_taken_in_its_order() -> None:
    wanted = [{"label_selector": {"zone": "in(a,d)"}}, {"label_selector": {"zone": "c"}}]
    options: Any = {"label_selector": {"zone": "b"}, "fallback_strategy": wanted}
    refs = [variables_of_task.options(**options).remote() for _ in range(3)]
    actor = Looking.options(**options).remote()
    assert zmesh.get([*refs, actor.variables.remote()], timeout=30) == [("job", "job")] * 4
    group = zmesh.util.placement_group([{"CPU": 1}])
    for wrong in (
        {"fallback_strategy": {"label_selector": {"zone": "a"}}},
        {"fallback_strategy": [{"num_cpus": 1}]},
        {"fallback_strategy": [{"label_selector": {"zone": 1}}]},
        {"fallback_strategy": wanted, "scheduling_strategy": PlacementGroupSchedulingStrategy(group)},
    ):
        with pytest.raises(ConfigError, match=r"fallback_strategy|label_selector"):
            variables_of_task.options(**wrong)
    zmesh.util.remove_placement_group(group)


def test_an_accelerator_type_is_a_resource_of_its_nodes() -> None:
    here = variables_of_task.options(accelerator_type="L4", num_gpus=0)
    assert zmesh.get([here.remote() for _ in range(3)]) == [("job", "job")] * 3
    actor = Looking.options(accelerator_type="L4").remote()
    assert zmesh.get(actor.variables.remote()) == ("job", "job")
    assert zmesh.cluster_resources()["accelerator_type:L4"] == 1.0
    with pytest.raises(TaskUnschedulableError, match="accelerator_type:A100"):
        zmesh.get(variables_of_task.options(accelerator_type="A100").remote())
    for wrong in ("", 1, "a@b"):
        with pytest.raises(ConfigError, match="accelerator_type"):
            Looking.options(accelerator_type=wrong)


def test_none_stands_for_the_default_of_an_option() -> None:
    task = variables_of_task.options(num_cpus=None, num_gpus=None, memory=None, resources=None, max_retries=None)
    assert zmesh.get(task.options(name=None, retry_exceptions=None).remote()) == ("job", "job")
    actor = Looking.options(num_cpus=None, num_gpus=None, max_restarts=None, max_task_retries=None, name=None)
    assert zmesh.get(actor.remote().variables.remote()) == ("job", "job")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("placement_group", "PlacementGroupSchedulingStrategy"),
        ("enable_task_events", "leave it out"),
        ("object_store_memory", "leave it out"),
        ("numcpus", "valid options"),
    ],
)
def test_options_that_do_not_exist_say_what_does(option: str, text: str) -> None:
    for target in (variables_of_task.options, Looking.options, zmesh.remote):
        with pytest.raises(ConfigError, match=text):
            target(**{option: 1})


def test_settings_of_init_that_do_not_exist_say_what_does() -> None:
    zmesh.shutdown()
    for setting, text in {"dashboard_port": "zmesh status", "local_mode": "local=True", "nonsense": "api.md"}.items():
        with pytest.raises(ConfigError, match=text):
            zmesh.init("local", **{setting: True})
    with pytest.raises(ConfigError, match="labels"):
        zmesh.init("local", labels={"zone": 1})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="logging_level"):
        zmesh.init("local", logging_level="LOUD")
    before = logging.getLogger("zmesh").level
    zmesh.init("local", num_cpus=2, include_dashboard=False, dashboard_port=None, logging_level=logging.ERROR)
    assert logging.getLogger("zmesh").level == logging.ERROR
    logging.getLogger("zmesh").setLevel(before)


@pytest.mark.parametrize("name", ["workflow", "timeline", "java_function", "data", "tune"])
def test_names_that_do_not_exist_say_what_does(name: str) -> None:
    with pytest.raises(AttributeError, match=f"{name}': "):
        getattr(zmesh, name)
    with pytest.raises(AttributeError, match=r"no attribute 'gett'$"):
        zmesh.gett  # noqa: B018


def test_the_method_decorator_needs_no_parentheses() -> None:
    class Plain:
        @zmesh.method
        def one(self) -> int:
            return 1

        @zmesh.method()
        def two(self) -> int:
            return 2

    actor = zmesh.remote(Plain).remote()
    assert zmesh.get([actor.one.remote(), actor.two.remote()]) == [1, 2]
    with pytest.raises(TypeError):
        zmesh.method(2)


def test_arguments_that_an_actor_cannot_be_made_of_are_refused_at_once() -> None:
    class Made:
        def __init__(self, value: int, *, name: str = "") -> None:
            self.value = value

        def get(self) -> int:
            return self.value

    actor = zmesh.remote(Made)
    for args, kwargs in (((), {}), ((1, 2), {}), ((1,), {"nam": ""})):
        with pytest.raises(TypeError, match=r"Made\.remote\(\): "):
            actor.remote(*args, **kwargs)
    assert zmesh.get(actor.remote(zmesh.put(3), name="three").get.remote()) == 3

    def with_seven(init: Any) -> Any:
        return functools.wraps(init)(lambda self, **given: init(self, 7, **given))

    decorated = zmesh.remote(type("Decorated", (Made,), {"__init__": with_seven(Made.__init__)}))
    assert zmesh.get(decorated.remote(name="seven").get.remote()) == 7
    unknown = zmesh.remote(type("Unknown", (dict,), {}))  # what builtins take nobody can say
    assert zmesh.get(unknown.remote(a=1).get.remote("a")) == 1


def test_an_async_function_is_no_task() -> None:
    async def function() -> None:
        pass

    with pytest.raises(ConfigError, match="async function"):
        zmesh.remote(function)


def test_a_call_that_cannot_be_interrupted_may_look_whether_it_is_cancelled() -> None:
    @zmesh.remote(max_concurrency=2)
    class Patient:
        def __init__(self) -> None:
            self.inside = threading.Event()

        def run(self) -> str:
            self.inside.set()
            assert _until(lambda: zmesh.get_runtime_context().is_canceled(), 30.0)
            return "stopped early"

        def wait_inside(self) -> bool:
            return self.inside.wait(30)

    actor = Patient.remote()
    ref = actor.run.remote()
    assert zmesh.get(actor.wait_inside.remote())
    zmesh.cancel(ref)
    assert zmesh.get(ref) == "stopped early"
    assert not zmesh.get_runtime_context().is_canceled()


class Locked:
    def __init__(self, value: int) -> None:
        self.value = value
        self.lock = threading.Lock()


def test_a_registered_serializer_is_used_until_it_is_taken_back() -> None:
    @zmesh.remote
    def value_of(locked: Locked) -> int:
        return locked.value

    with pytest.raises(zmesh.exceptions.SerializationError):
        value_of.remote(Locked(1))
    register_serializer(Locked, serializer=lambda locked: locked.value, deserializer=Locked)
    assert zmesh.get(value_of.remote(Locked(2))) == 2
    assert zmesh.get(zmesh.put([Locked(3)]))[0].value == 3
    deregister_serializer(Locked)
    deregister_serializer(Locked)
    with pytest.raises(zmesh.exceptions.SerializationError):
        value_of.remote(Locked(1))


def test_inspect_serializability_names_the_culprit() -> None:
    out = io.StringIO()
    fine, failures = inspect_serializability(Locked(1), name="model", print_file=out)
    assert not fine
    assert [failure.name for failure in failures] == ["model.lock"]
    assert "model.lock" in out.getvalue()
    assert inspect_serializability(len, print_file=out) == (True, set())


def test_map_unordered_takes_remote_functions_and_sizes_from_one() -> None:
    for given in ({"backpressure_size": 0}, {"chunk_size": 0}):
        with pytest.raises(ConfigError):
            next(map_unordered(variables_of_task, [], **given))
    with pytest.raises(ConfigError, match="remote function"):
        next(map_unordered(len, []))  # type: ignore[arg-type]


def test_a_wait_for_streams_refuses_what_a_wait_refuses() -> None:
    @zmesh.remote
    def items() -> Iterator[int]:
        yield 1

    stream = items.remote()
    with pytest.raises(ConfigError, match="differ"):
        zmesh.wait([stream, stream])
    with pytest.raises(ConfigError, match="num_returns"):
        zmesh.wait([stream], num_returns=2)
    with pytest.raises(TypeError):
        zmesh.wait([stream, 1])
    assert zmesh.wait([stream, zmesh.put(1)], num_returns=2, timeout=30)[1] == []
    assert stream.next_ready()
    assert not stream.is_finished()
    zmesh.get(list(stream))
    assert zmesh.wait([stream]) == ([stream], [])
    assert stream.next_ready()
    assert stream.is_finished()


def test_a_stream_that_nobody_reads_any_more_leaves_its_worker_free() -> None:
    @zmesh.remote(generator_backpressure=2)
    def items() -> Iterator[int]:
        yield from range(20)

    stream = items.remote()
    next(stream)
    with pytest.raises(TypeError):
        items.remote(stream)
    with pytest.raises(TypeError):
        zmesh.get(stream)
    del stream
    assert _until(lambda: "attached" not in [w["state"] for w in zmesh.status()["workers"] if w["executing"]], 30.0)


def test_an_actor_of_a_removed_group_says_so() -> None:
    group = zmesh.util.placement_group([{"CPU": 1}])
    actor = Looking.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()
    zmesh.get(actor.variables.remote())
    zmesh.util.remove_placement_group(group)
    with pytest.raises(zmesh.exceptions.ActorPlacementGroupRemovedError):
        zmesh.get([actor.variables.remote() for _ in range(10_000)])  # it may answer some until its process is killed


def test_a_wait_for_streams_and_an_actors_runtime_env_work_in_local_mode(tmp_path: pathlib.Path) -> None:
    zmesh.shutdown()
    with zmesh.init(local=True):

        @zmesh.remote
        def items() -> Iterator[int]:
            yield 1

        stream = items.remote()
        assert zmesh.wait([stream]) == ([stream], [])
        actor = Looking.options(runtime_env={"env_vars": {"A": "actor"}}).remote()
        assert zmesh.get(actor.variables.remote()) == ("actor", None)
    zmesh.init("local", num_cpus=2)
