"""`wait` and `as_completed` over many refs, in loops: right, and no slower for each ref if there are more of them."""

import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy
import pytest

import zmesh
from zmesh.exceptions import ConfigError
from zmesh.runtime.rest_list import RestList, UnreadList


@pytest.fixture(autouse=True, scope="module")
def node() -> Iterator[None]:
    zmesh.init("local", num_cpus=2)
    yield
    zmesh.shutdown()


@zmesh.remote
def give(value: Any = None, seconds: float = 0.0) -> Any:
    time.sleep(seconds)
    if isinstance(value, Exception):
        raise value
    return value


def ended(count: int, start: int = 0) -> list[Any]:
    """Refs that have their value."""
    refs = [give.remote(number) for number in range(start, start + count)]
    zmesh.get(refs)
    return refs


def looping(refs: list[Any]) -> tuple[list[Any], list[Any]]:
    """Wait twice, so that the rest is waited for in rounds; returns the two taken and the rest."""
    first, rest = zmesh.wait(refs)
    second, rest = zmesh.wait(rest)
    return first + second, rest


def test_a_loop_takes_each_ref_once_in_the_order_given() -> None:
    refs = rest = ended(50)
    taken = []
    while rest:
        before = rest
        ready, rest = zmesh.wait(rest)
        assert before == ready + rest
        taken += ready
    assert taken == refs


@pytest.mark.parametrize("size", [1, 3, 40])
def test_a_loop_takes_several_at_once(size: int) -> None:
    rest = [give.remote(number, 0.001 * (number % 3)) for number in range(100)]
    order = {ref: number for number, ref in enumerate(rest)}
    seen = 0
    while rest:
        ready, rest = zmesh.wait(rest, num_returns=min(size, len(rest)))
        assert len(ready) == min(size, 100 - seen)
        seen += len(ready)
        for refs in (ready, rest):
            assert [order[ref] for ref in refs] == sorted(order[ref] for ref in refs)
    assert seen == 100


def test_a_loop_copies_no_list() -> None:
    _, rest = looping(ended(1_000))
    for taken in range(3, 200, 2):
        _, rest = zmesh.wait(rest)
        assert type(rest) is UnreadList
        rest += ended(1)
        (first,), rest = zmesh.wait(rest)
        assert sys.getsizeof(rest) < 200, "bytes; 8 for each ref that it holds"
        assert zmesh.get(first) == taken
    assert len(rest) == 899


def test_what_ends_while_a_round_waits_is_found() -> None:
    there = ended(2)
    slow, fast = give.remote(1, 0.5), give.remote(2, 0.1)
    _, rest = looping([*there, slow, fast])
    assert zmesh.wait(rest, timeout=0) == ([], [slow, fast])
    assert zmesh.wait(rest) == ([fast], [slow])
    assert zmesh.wait([slow, fast], num_returns=2) == ([slow, fast], [])


def test_a_round_counts_a_failure_as_ready() -> None:
    there = ended(2)
    failing = give.remote(ValueError("no"), 0.05)
    _, rest = looping([*there, failing])
    assert zmesh.wait(rest) == ([failing], [])


def test_refs_may_be_added_while_a_loop_goes_on() -> None:
    rest = ended(5)
    added = taken = 0
    while rest:
        ready, rest = zmesh.wait(rest)
        taken += len(ready)
        if added < 30:
            rest.append(give.remote(added))
            rest.extend([give.remote(added)])
            added += 2
    assert taken == 35


def test_a_list_that_was_changed_is_looked_at_anew() -> None:
    one, two, three, four, five = ended(5, 10)
    for change in (
        lambda rest: rest.pop(1),
        lambda rest: rest.reverse(),
        lambda rest: rest.insert(0, rest.pop()),
        lambda rest: rest.__setitem__(0, five),
    ):
        _, rest = looping([*ended(2), one, two, three, four])
        change(rest)
        before = list(rest)
        assert zmesh.wait(rest) == (before[:1], before[1:])


def test_an_older_list_of_the_loop_is_still_right() -> None:
    _, older = looping(ended(6))
    _, newer = zmesh.wait(older)
    assert zmesh.wait(older) == (older[:1], older[1:])
    assert zmesh.wait(newer) == (newer[:1], newer[1:])


def test_a_loop_refuses_what_a_wait_refuses() -> None:
    _, rest = looping(ended(5))
    with pytest.raises(ConfigError, match="num_returns must be from 1 to the number of refs"):
        zmesh.wait(rest, num_returns=4)
    with pytest.raises(ConfigError, match="differ"):
        zmesh.wait(RestList([*rest, rest[0]], rest.zmesh_round))  # type: ignore[attr-defined]
    rest.append(rest[0])
    with pytest.raises(ConfigError, match="differ"):
        zmesh.wait(rest)
    rest[-1] = 3
    with pytest.raises(TypeError, match="ObjectRefs"):
        zmesh.wait(rest)


def test_the_rest_is_a_list_like_any_other() -> None:
    _, rest = looping(ended(4))
    assert isinstance(rest, list)
    assert rest == [*rest]
    assert zmesh.get(give.remote([len(rest), type(rest[:])])) == [2, list]

    @zmesh.remote
    def kind(refs: Any) -> tuple[str, list[int]]:
        return type(refs).__name__, zmesh.get(refs)

    assert zmesh.get(kind.remote(rest)) == ("list", [2, 3])
    assert type(pickle.loads(pickle.dumps(RestList([1], None)))) is list


def test_an_array_of_refs_is_no_loop() -> None:
    refs = ended(3)
    array = numpy.array([None] * 3, object)
    array[:] = refs
    assert zmesh.wait(array) == (refs[:1], refs[1:])  # type: ignore[arg-type]


def test_two_threads_may_wait_for_the_same_list() -> None:
    _, rest = looping([*ended(2), *(give.remote(number, 0.2) for number in range(4))])
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(zmesh.wait(rest, num_returns=4))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(list(rest), [])] * 3


def test_a_loop_that_is_given_up_keeps_nothing() -> None:
    large = [zmesh.put(numpy.zeros(100_000)) for _ in range(6)]
    never = give.remote(1, 60)
    _, rest = looping([*large, never])
    del large
    assert zmesh.status()["store"]["used"] > 0
    del rest, _
    zmesh.wait([never], timeout=0.05)
    assert never._entry.waiter is None, "nobody listens any more"
    zmesh.cancel(never, force=True)


def test_a_task_may_loop_too() -> None:
    @zmesh.remote
    def parent() -> list[int]:
        rest, values = [give.remote(number, 0.01) for number in range(20)], []
        while rest:
            ready, rest = zmesh.wait(rest)
            values += zmesh.get(ready)
        return sorted(values)

    assert zmesh.get(parent.remote(), timeout=20) == list(range(20))


# Many.


def test_many_objects_go_through_one_task_and_one_get() -> None:
    refs = [zmesh.put(number) for number in range(10_000)]

    @zmesh.remote
    def add(*numbers: int) -> int:
        return sum(numbers)

    @zmesh.remote(num_returns=3_000)
    def split() -> Any:
        return range(3_000)

    assert zmesh.get(add.remote(*refs)) == sum(range(10_000))
    assert zmesh.get(split.remote()) == list(range(3_000))
    assert zmesh.get(refs) == list(range(10_000))


def lines_per_ref(count: int, loop: Callable[[list[Any]], None], make: Callable[[int], list[Any]] = ended) -> float:
    """Return how many lines of Python run in `loop`, for each ref: the same on a fast machine and a slow one."""
    refs, lines = make(count), 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        loop(refs)
    finally:
        sys.settrace(before)
    return lines / count


def wait_for_all(refs: list[Any]) -> None:
    rest = refs
    while rest:
        _, rest = zmesh.wait(rest)


def take_all(refs: list[Any]) -> None:
    assert sum(1 for _ in zmesh.as_completed(refs)) == len(refs)


def running(count: int) -> list[Any]:
    return [give.remote() for _ in range(count)]


@pytest.mark.parametrize("loop", [wait_for_all, take_all])
@pytest.mark.parametrize("make", [ended, running])
def test_more_refs_cost_each_of_them_no_more(
    loop: Callable[[list[Any]], None], make: Callable[[int], list[Any]]
) -> None:
    few, many = (lines_per_ref(count, loop, make) for count in (250, 2_000))
    assert many < 2 * few, (few, many)


@pytest.mark.slow
def test_a_hundred_thousand_refs_are_waited_for() -> None:
    take_all(running(100_000))
    wait_for_all(running(100_000))
