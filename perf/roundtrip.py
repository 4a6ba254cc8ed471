"""How long does one no-op task take, from `f.remote()` to its result?

The raw echo is the yardstick: 64 bytes from a ROUTER to a DEALER in another process and back, over ipc. It sleeps in
each of its waits; zmesh looks for a moment before it sleeps, so it may be faster.
"""

import sys
from time import perf_counter
from typing import Any

import harness
import workloads
from contenders import Contender
from harness import Column, Question

QUESTION = Question(
    name="roundtrip",
    title="Round trip of one no-op task",
    function="measure",
    columns=[
        Column("p50, µs", "p50_s", 1e6, spread=True),
        Column("p99, µs", "p99_s", 1e6),
        Column("p50 to raw", "p50_s", digits=2, against="raw"),
        Column("p50 to PPE", "p50_s", digits=2, against="ppe"),
        Column("p99 to PPE", "p99_s", digits=2, against="ppe"),
    ],
    parameters={"tasks": 3000, "seconds_max": 3.0, "warm_up_s": 0.5},
    quick={"tasks": 300, "seconds_max": 1.0, "warm_up_s": 0.1},
)


def measure(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Run task after task and take the time of each."""
    times: list[float] = []
    with contender:
        warm_until = perf_counter() + parameters["warm_up_s"]
        contender.run(workloads.nothing)
        while perf_counter() < warm_until:
            contender.run(workloads.nothing)
        end = perf_counter() + parameters["seconds_max"]
        while len(times) < parameters["tasks"] and perf_counter() < end:
            started = perf_counter()
            contender.run(workloads.nothing)
            times.append(perf_counter() - started)
    return {"p50_s": harness.quantile(times, 0.5), "p99_s": harness.quantile(times, 0.99), "tasks": len(times)}


if __name__ == "__main__":
    sys.exit(harness.ask(QUESTION, harness.parse(__doc__)))
