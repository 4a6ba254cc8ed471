"""`map` and `map_unordered`: many small calls in few tasks, over inputs of any length, in bounded memory."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from zmesh import api
from zmesh.limits import check_whole
from zmesh.remote_function import RemoteFunction, remote

CHUNK_S = 0.02  # a chunk should take so long: its overhead is then below 1 %, and the last ones end together
CHUNK_ITEMS_MAX = 10_000
FIRST_CHUNK_S = 0.002  # while nothing is known, chunks double from 1 item


def _run_chunk(function: Callable[..., Any], items: list[Any]) -> tuple[float, list[Any]]:
    """Run in a worker: returns (seconds it took, results)."""
    from time import perf_counter

    started = perf_counter()
    results = [function(item) for item in items]
    return perf_counter() - started, results


class _Sizer:
    """How many items the next chunk takes, from how long the last ones took."""

    def __init__(self, chunksize: int | None) -> None:
        self._fixed = chunksize
        self._next = 1
        self._item_s: float | None = None

    def size(self) -> int:
        return self._fixed or self._next

    def took(self, seconds: float, items: int) -> None:
        if self._fixed:
            return
        item_s = max(seconds / items, 1e-7)
        # The slower of old and new counts more: a chunk too long delays its neighbours, one too short costs little.
        self._item_s = item_s if self._item_s is None else max(item_s, 0.7 * self._item_s + 0.3 * item_s)
        wanted = int(CHUNK_S / self._item_s)
        self._next = max(1, min(wanted, self._next * 4, CHUNK_ITEMS_MAX))


def _prepare(
    function: Any, iterables: tuple[Iterable[Any], ...], chunksize: int | None
) -> tuple[Any, Any, Iterator[Any]]:
    if chunksize is not None:
        check_whole("chunksize", chunksize)
    if not iterables:
        raise TypeError("map() needs at least one iterable")
    if isinstance(function, RemoteFunction):
        runner = RemoteFunction(_run_chunk, function._options)
        plain = function.function
    else:
        runner = remote(_run_chunk)
        plain = function
    if len(iterables) == 1:
        return runner, plain, iter(iterables[0])
    return runner, _Star(plain), zip(*iterables, strict=False)


class _Star:
    """Calls a function with the members of a tuple as arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, item: tuple[Any, ...]) -> Any:
        return self._function(*item)


def map(  # noqa: A001  # the name and meaning of the builtin
    function: Any, *iterables: Iterable[Any], chunksize: int | None = None, buffersize: int | None = None
) -> Iterator[Any]:
    """Yield function(item) for each item, in order, computed in workers. Lazy in its input, which may be endless.

    Args:
        function: a function of one item (of one from each iterable), plain or remote; a remote one brings its options.
        iterables: the inputs; with several it stops at the shortest.
        chunksize: items a task; by default as many as take about 20 ms.
        buffersize: tasks under way at most; by default 4 for each CPU of the mesh.

    Raises:
        TaskError: the function raised; earlier results were yielded.
    """
    runner, plain, items = _prepare(function, iterables, chunksize)
    return _ordered(runner, plain, items, _Sizer(chunksize), buffersize)


def map_unordered(
    function: Any, *iterables: Iterable[Any], chunksize: int | None = None, buffersize: int | None = None
) -> Iterator[Any]:
    """As `map`, in the order in which chunks are ready."""
    runner, plain, items = _prepare(function, iterables, chunksize)
    return _unordered(runner, plain, items, _Sizer(chunksize), buffersize)


def _window(buffersize: int | None) -> int:
    if buffersize is not None:
        check_whole("buffersize", buffersize)
        return buffersize
    return max(8, int(4 * api.auto_init().total_cpus()))


def _chunks(items: Iterator[Any], sizer: _Sizer) -> Iterator[list[Any]]:
    """Cut the input into chunks, each sized when it is asked for."""
    while chunk := list(itertools.islice(items, sizer.size())):
        yield chunk


def _ordered(runner: Any, plain: Any, items: Iterator[Any], sizer: _Sizer, buffersize: int | None) -> Iterator[Any]:
    window = _window(buffersize)
    held = api.put(plain)  # pickled once, not with each chunk
    chunks = _chunks(items, sizer)
    under_way: deque[tuple[Any, int]] = deque()
    while True:
        for chunk in itertools.islice(chunks, window - len(under_way)):
            under_way.append((runner.remote(held, chunk), len(chunk)))
        if not under_way:
            return
        ref, count = under_way.popleft()
        seconds, results = api.get(ref)
        sizer.took(seconds, count)
        yield from results


def _unordered(runner: Any, plain: Any, items: Iterator[Any], sizer: _Sizer, buffersize: int | None) -> Iterator[Any]:
    window = _window(buffersize)
    held = api.put(plain)
    chunks = _chunks(items, sizer)
    under_way: dict[Any, int] = {}
    while True:
        for chunk in itertools.islice(chunks, window - len(under_way)):
            under_way[runner.remote(held, chunk)] = len(chunk)
        if not under_way:
            return
        for ref in api.wait(list(under_way))[0]:
            count = under_way.pop(ref)
            seconds, results = api.get(ref)
            sizer.took(seconds, count)
            yield from results
