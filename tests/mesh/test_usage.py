"""What programs do with remote functions, classes, refs and handles, rightly or not: it works, or says what to do."""

import copy
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import zmesh
from tests.mesh.test_actors import _until
from zmesh.exceptions import ArgumentError, ConfigError, MeshError, NotRunningError, SerializationError

REMOTE: Any = zmesh.remote


@pytest.fixture(scope="module", autouse=True)
def mesh() -> Iterator[None]:
    zmesh.init("local", num_cpus=2)
    yield
    zmesh.shutdown()


@zmesh.remote
def two(first: Any, second: int = 2, *, third: int = 3) -> Any:
    return first, second, third


@zmesh.remote
def stream() -> Iterator[int]:
    yield 1


def loose(function: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args[:2], **kwargs)

    return wrapper


class Base:
    kind = "base"

    def inherited(self, value: int) -> int:
        return value


@zmesh.remote
class Calculator(Base):
    unit = 10

    def __init__(self, start: int = 0) -> None:
        self.sum = start

    def __call__(self, value: int) -> int:
        return value * self.unit

    def add(self, value: int, *more: int) -> int:
        return self.sum + value + sum(more)

    def named(self, *, value: int) -> int:
        return value

    @staticmethod
    def twice(value: int) -> int:
        return 2 * value

    @classmethod
    def name(cls) -> str:
        return cls.__name__

    @loose
    def loosely(self, value: int) -> int:
        return value


def test_every_kind_of_method_is_called() -> None:
    calculator = Calculator.remote(1)
    calls = [calculator.__call__.remote(3), calculator.add.remote(1, 2, 3), calculator.named.remote(value=4)]
    calls += [calculator.twice.remote(5), calculator.name.remote(), calculator.inherited.remote(value=6)]
    calls.append(calculator.loosely.remote(7, 8, 9))
    assert zmesh.get(calls) == [30, 7, 4, 10, "Calculator", 6, 7]


def test_a_class_has_its_constants_and_static_methods_also_here() -> None:
    cls: Any = Calculator
    assert (cls.unit, cls.kind, cls.twice(4), cls.name()) == (10, "base", 8, "Calculator")
    with pytest.raises(AttributeError, match=r"add is a method of actors: .*Calculator\.remote\(\)"):
        cls.add.remote(1)
    with pytest.raises(AttributeError, match="Calculator has no attribute 'nothing'"):
        cls.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda calculator: two.remote(), r"two\.remote\(\): missing a required argument: 'first'"),
        (lambda calculator: two.remote(1, 2, 3), r"two\.remote\(\): too many positional"),
        (lambda calculator: two.remote(1, fourth=4), r"two\.remote\(\): got an unexpected keyword argument 'fourth'"),
        (lambda calculator: two.options(num_cpus=0).remote(), "missing a required"),
        (lambda calculator: Calculator.remote(1, 2), r"Calculator\.remote\(\): too many positional"),
        (lambda calculator: calculator.add.remote(), r"Calculator\.add\.remote\(\): missing a required argument"),
        (lambda calculator: calculator.named.remote(1), r"Calculator\.named\.remote\(\): "),
        (lambda calculator: calculator.named.remote(), "missing a required"),
        (lambda calculator: calculator.twice.remote(1, 2), "too many positional"),
        (lambda calculator: calculator.name.remote(1), "too many positional"),
        (lambda calculator: calculator.inherited.options(name="x").remote(), "missing a required"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_where_the_call_is_made(call: Callable[[Any], Any], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        call(Calculator.remote())


def test_a_handle_that_travelled_knows_what_its_methods_take() -> None:
    @zmesh.remote
    def wrong(calculator: Any) -> str:
        try:
            calculator.add.remote(much=1)
        except TypeError as error:
            return str(error)
        return ""

    assert "Calculator.add.remote(): " in zmesh.get(wrong.remote(Calculator.remote()))


def test_functions_of_which_nobody_can_say_what_they_take_are_called_all_the_same() -> None:
    assert zmesh.get([REMOTE(max).remote(1, 2), REMOTE(dict.fromkeys).remote("a"), REMOTE(len).remote("b")])


@pytest.mark.parametrize("target", [two, Calculator, 5])
def test_what_is_remote_already_or_cannot_be_is_refused(target: Any) -> None:
    with pytest.raises(TypeError, match=r"is remote already|needs a function or a class"):
        zmesh.remote(target)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda ref: Calculator.remote(), "ActorHandle: call one of its methods"),
        (lambda ref: [Calculator.remote()], "ActorHandle: call one of its methods"),
        (lambda ref: two, "RemoteFunction: call it"),
        (lambda ref: [[ref]], "list: all refs must be in one list"),
        (lambda ref: {"a": ref}, r"dict: get its values\(\)"),
        (lambda ref: stream.remote(), "ObjectRefGenerator: iterate over it"),
    ],
)
def test_get_says_what_was_given_for_a_ref(wrong: Callable[[Any], Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        zmesh.get(wrong(two.remote(1)))


def test_refs_and_handles_are_copied_as_themselves() -> None:
    ref, handle = zmesh.put(5), Calculator.remote()
    config = copy.deepcopy({"ref": ref, "handles": [handle]})
    assert (config["ref"], config["handles"][0]) == (ref, handle)
    assert (copy.copy(ref), copy.copy(handle)) == (ref, handle)
    assert zmesh.get(config["ref"]) == 5


def test_a_stream_among_arguments_is_refused_with_what_to_pass() -> None:
    for call in (lambda: two.remote(stream.remote()), lambda: zmesh.put([stream.remote()])):
        with pytest.raises(SerializationError, match="pass the refs it yields"):
            call()


@pytest.mark.parametrize("key", ["conda", "excludes", "nonsense"])
def test_a_key_of_runtime_env_that_is_not_there_says_what_is(key: str) -> None:
    instead = {"conda": "pip=", "excludes": r"\.zmeshignore", "nonsense": "valid keys"}[key]
    with pytest.raises(ConfigError, match=instead):
        two.options(runtime_env={key: "x"})


def test_refs_of_a_mesh_that_was_shut_down_are_refused_as_arguments() -> None:
    old = [zmesh.put(1), zmesh.put(np.zeros(100_000)), Calculator.remote()]
    zmesh.shutdown()
    zmesh.init("local", num_cpus=2)
    for one in (*old, [old[0]], [old[1]]):
        with pytest.raises(MeshError, match="shut down"):
            two.remote(one)
    with pytest.raises(MeshError, match="shut down"):
        zmesh.put([old[0]])
    assert zmesh.get(two.remote(1)) == (1, 2, 3)


def test_whoever_waits_while_another_thread_shuts_down_is_told_so() -> None:
    @zmesh.remote
    def nap() -> None:
        time.sleep(60)

    ref = nap.remote()
    told: list[BaseException] = []

    def wait(call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            told.append(error)

    calls = (lambda: zmesh.get(ref), lambda: zmesh.wait([ref]), lambda: zmesh.get(ref, timeout=60))
    threads = [threading.Thread(target=wait, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    assert _until(lambda: isinstance(ref._entry.waiter, list) and len(ref._entry.waiter) == len(calls), 10.0)
    zmesh.shutdown()
    for thread in threads:
        thread.join(30)
    zmesh.init("local", num_cpus=2)
    assert [type(error) for error in told] == [NotRunningError] * len(calls)
