"""Pattern: tasks that submit tasks, as deep as they like, on two CPUs."""

import random

import pytest

import zmesh as ray

pytestmark = pytest.mark.usefixtures("ray_start")


def partition(items: list[int]) -> tuple[list[int], int, list[int]]:
    pivot = items[-1]
    return [x for x in items[:-1] if x < pivot], pivot, [x for x in items[:-1] if x >= pivot]


@ray.remote
def quick_sort(items: list[int]) -> list[int]:
    if len(items) <= 100:
        return sorted(items)
    less, pivot, greater = partition(items)
    return [*ray.get(quick_sort.remote(less)), pivot, *ray.get(quick_sort.remote(greater))]


@ray.remote
def leaf(x: int) -> int:
    return x + 1


@ray.remote
def give_refs() -> list[ray.ObjectRef[int]]:
    return [leaf.remote(x) for x in range(4)]


def test_a_recursive_sort_needs_no_more_than_two_cpus() -> None:
    items = random.Random(7).choices(range(10_000), k=500)
    assert ray.get(quick_sort.remote(items)) == sorted(items)


def test_refs_that_a_task_returns_are_there_though_the_task_is_over() -> None:
    assert ray.get(ray.get(give_refs.remote())) == [1, 2, 3, 4]
