"""What does it cost to hand a large array to tasks?

Two questions. The time to put 64 MB and let 8 tasks read one item of each page, after a first time that is not
counted, and the put alone as a share of what memcpy into touched pages needs. And how much private memory a worker
gains while a task has an array of 1 GB in its hands: nothing, if it sees the memory of the store itself.
Peers without a store are handed the array by value, with each task.
"""

import os
import statistics
import sys
import time
from time import perf_counter
from typing import Any

import harness
import workloads
from contenders import WORKERS, Contender
from harness import Column, Question

MB = 1_000_000
MIB = 1 << 20
ITEM_BYTES = 8
PRIVATE_ROUNDS = 3  # bytes, not times; and a gigabyte by value takes its time
PAUSE_S = 0.1  # between repetitions, for references to be counted down and memory to be recycled

READERS = Question(
    name="arrays",
    title="Put {megabytes:,} MB and read it in {readers} tasks",
    function="measure_readers",
    columns=[
        Column("put + 8 readers, ms", "total_s", 1e3, digits=1, spread=True),
        Column("to Ray", "total_s", digits=2, against="ray"),
        Column("put alone, ms", "put_s", 1e3, digits=1),
        Column("put, % of memcpy", "put_to_memcpy", 100, digits=0),
        Column("memcpy, ms", "memcpy_s", 1e3, digits=1),
    ],
    parameters={"megabytes": 64, "readers": 8, "repeats": 5},
    quick={"megabytes": 16, "repeats": 2},
    exclude={"raw": "it runs no functions"},
)

PRIVATE = Question(
    name="arrays_private",
    title="Memory a worker gains by a task that is handed {megabytes:,} MB",
    function="measure_private",
    columns=[
        Column("anonymous, MiB", "anonymous_bytes", 1 / MIB, digits=1),
        Column("private dirty, MiB", "private_dirty_bytes", 1 / MIB, digits=1),
        Column("put + task, s", "total_s", digits=2),
    ],
    parameters={"megabytes": 1000},
    quick={"megabytes": 64},
    exclude={"raw": "it runs no functions"},
)


def measure_readers(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Share and read the array several times; another content each time, so that no cache can help."""
    import numpy as np

    array = np.arange(parameters["megabytes"] * MB // ITEM_BYTES, dtype=np.float64)
    target = np.zeros_like(array)
    target.fill(1.0)  # memory that was only asked for has no pages yet
    put_s: list[float] = []
    total_s: list[float] = []
    memcpy_s: list[float] = []
    with contender:
        for _ in range(1 + parameters["repeats"]):
            # Both copies find the array as just written, and their target as untouched since the last time.
            array += 1.0
            memcpy_s.append(_time_memcpy(target, array))
            array += 1.0
            expected = [workloads.touch(array)] * parameters["readers"]
            started = perf_counter()
            token = contender.share(array)
            shared = perf_counter()
            handles = [contender.submit(workloads.touch, token) for _ in range(parameters["readers"])]
            results = contender.gather(handles)
            ended = perf_counter()
            if results != expected:
                raise ValueError("wrong results")
            put_s.append(shared - started)
            total_s.append(ended - started)
            del token, handles
            time.sleep(PAUSE_S)
    figures = {"total_s": statistics.median(total_s[1:]), "first_s": total_s[0]}
    if contender.stores:
        figures["memcpy_s"] = statistics.median(memcpy_s[1:])
        figures["put_s"] = statistics.median(put_s[1:])
        figures["put_to_memcpy"] = figures["memcpy_s"] / figures["put_s"]
    return figures


def _time_memcpy(target: Any, array: Any) -> float:
    import numpy as np

    started = perf_counter()
    np.copyto(target, array)
    return perf_counter() - started


def measure_private(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Compare a worker's memory before and inside the task."""
    import numpy as np

    array = np.ones(parameters["megabytes"] * MB // ITEM_BYTES)
    with contender:
        before = _look_at_workers(contender)
        started = perf_counter()
        token = contender.share(array)
        pid, anonymous, private_dirty, total = contender.run(workloads.get_memory_with, token)
        ended = perf_counter()
        if total != workloads.touch(array):
            raise ValueError("wrong result")
        if pid not in before or pid == os.getpid():
            raise LookupError(f"the task ran in a worker that was not there before ({pid})")
        del token
    return {
        "anonymous_bytes": anonymous - before[pid][0],
        "private_dirty_bytes": private_dirty - before[pid][1],
        "total_s": ended - started,
    }


def _look_at_workers(contender: Contender) -> dict[int, tuple[int, int]]:
    """Return {pid: (anonymous bytes, private dirty bytes)} of all workers, once they have numpy."""
    before: dict[int, tuple[int, int]] = {}
    for _ in range(20):
        handles = [contender.submit(workloads.get_memory, 0.1) for _ in range(2 * WORKERS)]
        before |= {pid: (anonymous, private_dirty) for pid, anonymous, private_dirty in contender.gather(handles)}
        if len(before) >= WORKERS:
            return before
    raise LookupError(f"{len(before)} of {WORKERS} workers showed themselves")


def main() -> int:
    """Ask both."""
    given = harness.parse(__doc__)
    failed = harness.ask(READERS, given)
    if given.rounds is None and not given.quick:
        given.rounds = PRIVATE_ROUNDS
    return failed | harness.ask(PRIVATE, given)


if __name__ == "__main__":
    sys.exit(main())
