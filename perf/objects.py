"""What do many objects at once cost: as arguments of one task, as results of one, in one get, in a loop of waits?

The objects are numbers, so nothing but the counting costs anything. Ray names these as the limits it was tested to:
10,000 arguments, 3,000 results, 10,000 in one get. A second question: one wait for so many objects that are all there,
and puts of a number and of an array, whose object goes before the next is put.
"""

import importlib
import sys
from time import perf_counter
from typing import Any

import harness
import workloads
from contenders import Contender
from harness import Column, Question

_NO_STORE = "its objects live in the driver"

QUESTION = Question(
    name="objects",
    title="Many objects: {arguments:,} arguments, {results:,} results, {objects:,} in one get and in a loop of waits",
    function="measure",
    columns=[
        Column("arguments, ms", "arguments_s", 1e3, digits=1, spread=True),
        Column("results, ms", "results_s", 1e3, digits=1, spread=True),
        Column("get, ms", "get_s", 1e3, digits=1, spread=True),
        Column("waits, ms", "waits_s", 1e3, digits=1, spread=True),
        Column("arguments to Ray", "arguments_s", digits=2, against="ray"),
        Column("results to Ray", "results_s", digits=2, against="ray"),
        Column("get to Ray", "get_s", digits=2, against="ray"),
        Column("waits to Ray", "waits_s", digits=2, against="ray"),
    ],
    parameters={"arguments": 10_000, "results": 3_000, "objects": 10_000},
    quick={"arguments": 500, "results": 200, "objects": 500},
    exclude={
        "raw": "it runs no functions",
        "ppe": _NO_STORE,
        "loky": _NO_STORE,
        "dask": "a task of its has one result, and it has no wait in a loop",
    },
)

WAITS = Question(
    name="waits",
    title="One wait for objects that are there, and puts",
    function="measure_waits",
    columns=[
        *(
            column
            for count in (1_000, 10_000, 100_000)
            for column in (
                Column(f"wait for {count:,}, ms", f"wait_{count}_s", 1e3, digits=1),
                Column("to Ray", f"wait_{count}_s", digits=2, against="ray"),
            )
        ),
        Column("put a number, µs", "put_small_s", 1e6, digits=1),
        Column("to Ray", "put_small_s", digits=2, against="ray"),
        Column("put 10 MB, ms", "put_large_s", 1e3, digits=2),
        Column("to Ray", "put_large_s", digits=2, against="ray"),
    ],
    parameters={"counts": [1_000, 10_000, 100_000], "puts": 2000, "large_bytes": 10_000_000, "large_puts": 50},
    quick={"counts": [1_000], "puts": 200, "large_puts": 5},
    exclude=QUESTION.exclude | {"dask": "its wait is another"},
)


def measure_waits(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Wait for all of so many objects in one call; put one object after the other."""
    import numpy as np

    figures = {}
    with contender:
        api = importlib.import_module(contender.module)
        for count in parameters["counts"]:
            objects = [contender.share(number) for number in range(count)]
            started = perf_counter()
            done, rest = api.wait(objects, num_returns=count)
            figures[f"wait_{count}_s"] = perf_counter() - started
            if (len(done), len(rest)) != (count, 0):
                raise ValueError("wrong results")
            del objects, done, rest
        array = np.zeros(parameters["large_bytes"] // 8)
        for name, value, puts in (("small", 7, parameters["puts"]), ("large", array, parameters["large_puts"])):
            times = []
            for _ in range(puts):
                started = perf_counter()
                contender.share(value)
                times.append(perf_counter() - started)
            figures[f"put_{name}_s"] = harness.quantile(times, 0.5)
    return figures


def measure(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Time each once, after the workers are warm."""
    with contender:
        contender.gather([contender.submit(workloads.increment, number) for number in range(1000)])
        arguments = [contender.share(number) for number in range(parameters["arguments"])]
        started = perf_counter()
        counted = contender.run(workloads.count, *arguments)
        arguments_s = perf_counter() - started
        del arguments
        started = perf_counter()
        results = contender.gather(contender.submit_many(workloads.numbers, parameters["results"]))
        results_s = perf_counter() - started
        objects = [contender.share(number) for number in range(parameters["objects"])]
        started = perf_counter()
        gotten = contender.gather(objects)
        get_s = perf_counter() - started
        del objects
        tasks = [contender.submit(workloads.increment, number) for number in range(parameters["objects"])]
        started = perf_counter()
        contender.wait_for_each(tasks)
        waits_s = perf_counter() - started
    if (counted, len(results), len(gotten)) != tuple(parameters[name] for name in ("arguments", "results", "objects")):
        raise ValueError("wrong results")
    return {"arguments_s": arguments_s, "results_s": results_s, "get_s": get_s, "waits_s": waits_s}


if __name__ == "__main__":
    given = harness.parse(__doc__)
    sys.exit(harness.ask(QUESTION, given) | harness.ask(WAITS, given))
