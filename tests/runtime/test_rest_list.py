"""The list that a wait leaves is like any other, whatever is done with it, and is made only if somebody looks."""

import copy
import operator
import pickle
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from zmesh.runtime.rest_list import RestList, UnreadList, Version


class Rounds:
    """A Round without refs: numbers stand for them."""

    def __init__(self, count: int) -> None:
        self.state = threading.RLock()
        self.left = {number: number for number in range(count)}
        self.version = Version(count, count)

    def take(self, *numbers: int) -> UnreadList:
        """Take some, as a wait does; returns the rest."""
        taken = {number: self.left.pop(number) for number in numbers}
        self.version = self.version.after(taken, len(self.left), self.version.end)
        return UnreadList(self, self.version)


@pytest.fixture
def rest() -> UnreadList:
    made = Rounds(6).take(1, 3)
    made.append(7)
    return made


PLAIN = [0, 2, 4, 5, 7]


def test_its_length_and_what_is_appended_need_no_list(rest: UnreadList) -> None:
    rest += [8]
    rest.extend(iter([9]))
    assert len(rest) == 7
    assert rest
    assert type(rest) is UnreadList
    assert rest == [*PLAIN, 8, 9]
    assert type(rest) is RestList, "now there is one"  # type: ignore[comparison-overlap]
    assert len(rest) == 7


USES: dict[str, Callable[[Any], Any]] = {
    "iterated": lambda one: list(one),
    "unpacked": lambda one: [*one],
    "a tuple": tuple,
    "sorted": lambda one: sorted(one, reverse=True),
    "reversed": lambda one: list(reversed(one)),
    "indexed": lambda one: (one[0], one[-1], one[1:3]),
    "copied": lambda one: (one.copy(), copy.copy(one), copy.deepcopy(one)),
    "pickled": lambda one: pickle.loads(pickle.dumps(one)),
    "joined": lambda one: (one + PLAIN, PLAIN + one, one + one, one * 2, 2 * one),
    "compared": lambda one: (one == PLAIN, one != PLAIN, one < [9], one <= PLAIN, one > [9], one >= PLAIN),
    "compared with": lambda one: operator.eq(PLAIN, one),
    "searched": lambda one: (4 in one, 3 in one, one.index(4), one.count(7)),
    "written": repr,
    "passed on": lambda one: (lambda *all_of_it: all_of_it)(*one),
    "in a list": lambda one: [1, *[2].__iadd__(one)],
    "matched": lambda one: (lambda first, *others: (first, others))(*one),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_it_reads_as_a_list(rest: UnreadList, use: Callable[[Any], Any]) -> None:
    assert use(rest) == use(list(PLAIN))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "pop": lambda one: one.pop(),
    "pop of the first": lambda one: one.pop(0),
    "insert": lambda one: one.insert(1, 99),
    "remove": lambda one: one.remove(4),
    "set": lambda one: one.__setitem__(0, 99),
    "set a part": lambda one: one.__setitem__(slice(1, 3), [99]),
    "delete": lambda one: one.__delitem__(slice(0, 2)),
    "reverse": lambda one: one.reverse(),
    "sort": lambda one: one.sort(key=lambda number: -number),
    "clear": lambda one: one.clear(),
    "twice": lambda one: one.__imul__(2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_it_changes_as_a_list(rest: UnreadList, change: Callable[[Any], Any]) -> None:
    plain = list(PLAIN)
    assert change(rest) == change(plain)
    assert list(rest) == plain


def test_nothing_that_lists_have_is_forgotten() -> None:
    plain = {"append", "extend", "__iadd__"}  # what adds at the end
    own = {
        "__len__",
        "__init__",
        "__new__",
        "__getattribute__",
        "__hash__",
        "__doc__",
        "__class_getitem__",
        "__sizeof__",
    }
    names = {name for name in vars(list) if name not in plain | own}
    assert names <= set(vars(UnreadList)), names - set(vars(UnreadList))


def test_older_lists_stay_right_and_let_go_of_what_was_taken() -> None:
    rng = random.Random(3)
    rounds = Rounds(200)
    lists: list[tuple[UnreadList, list[int]]] = []
    while rounds.left:
        count = min(len(rounds.left), rng.randrange(3))
        rest = rounds.take(*rng.sample(sorted(rounds.left), count))
        lists.append((rest, list(rounds.left.values())))
    rng.shuffle(lists)
    for rest, plain in lists:
        assert len(rest) == len(plain)
        assert rest == plain

    class Large:
        pass

    rounds = Rounds(2)
    rounds.left[0] = Large()  # type: ignore[assignment]
    before = UnreadList(rounds, rounds.version)
    references = sys.getrefcount(rounds.left[0])
    rounds.take(0)
    taken = next(iter(before.version.taken.values())) if before.version is not None else None
    assert sys.getrefcount(taken) == references + 1, "it is held by the older list, instead of the round"


def test_two_threads_may_look_at_once() -> None:
    for _ in range(50):
        rest = Rounds(1000).take(*range(0, 1000, 2))
        seen: list[list[int]] = []
        threads = [threading.Thread(target=lambda one, to: to.append(list(one)), args=(rest, seen)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [list(range(1, 1000, 2))] * 4
