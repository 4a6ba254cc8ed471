"""Results as they come, with Ray's names and semantics; zmesh.as_completed and zmesh.map_unordered are their like."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from zmesh import api
from zmesh.exceptions import ConfigError
from zmesh.limits import check_whole
from zmesh.remote_function import RemoteFunction

__all__ = ["as_completed", "map_unordered"]


def as_completed(
    refs: Iterable[Any], *, chunk_size: int = 10, yield_obj_refs: bool = False, timeout: float | None = None
) -> Iterator[Any]:
    """Yield the values of refs in the order in which they are there.

    Args:
        refs: ObjectRefs.
        chunk_size: ignored: nothing is gained by waiting for several at once.
        yield_obj_refs: yield the refs instead.
        timeout: seconds for all of them.

    Raises:
        GetTimeoutError: not all were there in time.
        TaskError: a task raised; those after it are not yielded.
    """
    check_whole("chunk_size", chunk_size)
    for ref in api.as_completed(refs, timeout):
        yield ref if yield_obj_refs else api.get(ref)


def map_unordered(
    fn: RemoteFunction,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
) -> Iterator[Any]:
    """Yield the result of `fn.remote(item)` for each item, in the order in which they are there.

    Args:
        fn: a remote function.
        items: may be endless; they are read as results are taken.
        backpressure_size: calls under way at once; None: all.
        chunk_size: ignored, see as_completed.
        yield_obj_refs: yield refs instead of values.

    Raises:
        TaskError: a task raised; what comes after it is not yielded.
    """
    check_whole("chunk_size", chunk_size)
    if backpressure_size is not None:
        check_whole("backpressure_size", backpressure_size)
    if not isinstance(fn, RemoteFunction):
        raise ConfigError(f"map_unordered() takes a remote function, not {fn!r}: use @zmesh.remote, or zmesh.map")
    source = iter(items)
    under_way: list[Any] = [fn.remote(item) for item in itertools.islice(source, backpressure_size)]
    while under_way:
        ready, under_way = api.wait(under_way)
        under_way += [fn.remote(item) for item in itertools.islice(source, 1)]
        yield ready[0] if yield_obj_refs else api.get(ready[0])
