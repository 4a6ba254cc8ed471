"""How much of two cores does a map over many tiny items use?

100,000 items of 10 µs: a loop whose length is calibrated once. The ideal is half of what the same loop takes in the
driver alone, measured in the same turn. The driver needs some of the two cores too, so 100 % cannot be reached.
zmesh.map finds its own chunks; the executors' own map gets chunks of 1,000; the rest are given tasks of 1,000 items.
"""

import sys
from time import perf_counter
from typing import Any

import harness
import workloads
from contenders import WORKERS, Contender
from harness import Column, Question

ITEM_S = 10e-6

QUESTION = Question(
    name="map_efficiency",
    title="Map over {items:,} items of 10 µs",
    function="measure",
    columns=[
        Column("% of ideal", "efficiency", 100, digits=1, spread=True),
        Column("seconds", "map_s", digits=3),
        Column("one core, s", "serial_s", digits=3),
        Column("speed-up", "speed_up", digits=2),
    ],
    parameters={"items": 100_000},
    quick={"items": 20_000},
    exclude={"raw": "it runs no functions"},
)


def calibrate() -> int:
    """Return how many loops of workloads.burn take ITEM_S; the best of many, since disturbances only add."""
    loops = 1000
    best = float("inf")
    for _ in range(2000):
        started = perf_counter()
        workloads.burn(loops)
        best = min(best, perf_counter() - started)
    return max(1, round(loops * ITEM_S / best))


def measure(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Take the time of the loop here alone, then of the map."""
    items = [parameters["loops"]] * parameters["items"]
    workloads.burn_all(items[: len(items) // 10])
    started = perf_counter()
    expected = workloads.burn_all(items)
    serial_s = perf_counter() - started
    with contender:
        contender.map_burn(items[: len(items) // 10])
        started = perf_counter()
        results = contender.map_burn(items)
        map_s = perf_counter() - started
    if results != expected:
        raise ValueError("wrong results")
    return {
        "efficiency": serial_s / WORKERS / map_s,
        "map_s": map_s,
        "serial_s": serial_s,
        "speed_up": serial_s / map_s,
    }


if __name__ == "__main__":
    QUESTION.parameters["loops"] = calibrate()
    sys.exit(harness.ask(QUESTION, harness.parse(__doc__)))
