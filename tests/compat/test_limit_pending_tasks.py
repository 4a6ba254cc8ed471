"""Pattern: a loop that keeps no more than so many tasks under way, by `wait`."""

import pytest

import zmesh as ray

pytestmark = pytest.mark.usefixtures("ray_start")

MAX_PENDING = 8


@ray.remote
def process(n: int) -> int:
    return n * 2


def test_results_are_taken_while_others_are_made() -> None:
    pending: list[ray.ObjectRef[int]] = []
    results: list[int] = []
    most = 0
    for n in range(100):
        if len(pending) >= MAX_PENDING:
            ready, pending = ray.wait(pending, num_returns=1)
            results += ray.get(ready)
        pending.append(process.remote(n))
        most = max(most, len(pending))
    results += ray.get(pending)
    assert sorted(results) == [n * 2 for n in range(100)]
    assert most == MAX_PENDING


def test_results_are_taken_in_the_order_in_which_they_are_ready() -> None:
    unfinished = [process.remote(n) for n in range(20)]
    seen: list[int] = []
    while unfinished:
        finished, unfinished = ray.wait(unfinished, num_returns=1)
        seen.append(ray.get(finished[0]))
    assert sorted(seen) == [n * 2 for n in range(20)]


def test_a_wait_gives_up_after_its_timeout() -> None:
    @ray.remote
    class Never:
        async def come(self) -> None:
            import asyncio

            await asyncio.Event().wait()

    never = Never.remote()
    refs = [never.come.remote(), process.remote(1)]
    ready, rest = ray.wait(refs, num_returns=2, timeout=0.1)
    assert refs[0] in rest
    ready, rest = ray.wait(refs, num_returns=1)
    assert (ready, rest) == ([refs[1]], [refs[0]])
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(refs, timeout=0)


def test_the_helpers_do_the_same() -> None:
    refs = [process.remote(n) for n in range(30)]
    assert sorted(ray.util.as_completed(refs, chunk_size=5)) == [n * 2 for n in range(30)]
    assert set(ray.util.as_completed(refs, yield_obj_refs=True)) == set(refs)
    assert sorted(ray.util.map_unordered(process, range(30), backpressure_size=4)) == [n * 2 for n in range(30)]
    assert sorted(ray.util.map_unordered(process, range(3), backpressure_size=None)) == [0, 2, 4]
