"""How long until the first result, and how much memory do idle workers take?

The import is that of a fresh interpreter, less one that imports nothing. The first result is from starting to the
result of a first no-op task; what an import left for later counts here. Memory is the proportional set size (PSS:
a page shared by n processes counts 1/n) of all processes but the driver, some time after each worker ran a task.
"""

import os
import subprocess
import sys
import time
from time import perf_counter
from typing import Any

import harness
import workloads
from contenders import WORKERS, Contender
from harness import Column, Question
from processes import memory_of, total_pss

MIB = 1 << 20

QUESTION = Question(
    name="startup",
    title="Start, and memory of two idle workers",
    function="measure",
    columns=[
        Column("import, ms", "import_s", 1e3, digits=0, spread=True),
        Column("first result, s", "first_result_s", digits=3, spread=True),
        Column("both, s", "both_s", digits=3),
        Column("PSS, MiB", "pss_bytes", 1 / MIB, spread=True),
        Column("driver PSS, MiB", "driver_pss_bytes", 1 / MIB),
        Column("processes", "processes"),
        Column("stop, s", "stop_s", digits=3),
    ],
    parameters={"settle_s": 1.0},
    quick={"settle_s": 0.3},
)


def measure(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Import in an interpreter of its own, start, run, look, stop."""
    import_s = _time_interpreter(f"import {contender.module}") - _time_interpreter("pass")
    contender.load()
    started = perf_counter()
    contender.start()
    try:
        contender.run(workloads.nothing)
        first_result_s = perf_counter() - started
        _wake_workers(contender)
        time.sleep(parameters["settle_s"])
        processes = contender.processes()
        pss = total_pss(processes)
        driver_pss = memory_of(os.getpid())["Pss"]
    finally:
        stopping = perf_counter()
        contender.stop()
        stop_s = perf_counter() - stopping
    return {
        "import_s": import_s,
        "first_result_s": first_result_s,
        "both_s": import_s + first_result_s,
        "pss_bytes": pss,
        "driver_pss_bytes": driver_pss,
        "processes": len(processes),
        "stop_s": stop_s,
    }


def _time_interpreter(code: str) -> float:
    started = perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return perf_counter() - started


def _wake_workers(contender: Contender) -> None:
    """See that every worker has run a task, so that none is still starting."""
    if not contender.answers:
        return
    seen: set[int] = set()
    for _ in range(20):
        seen |= set(contender.gather([contender.submit(workloads.identify, 0.05) for _ in range(2 * WORKERS)]))
        if len(seen) >= WORKERS:
            return
    raise LookupError(f"{len(seen)} of {WORKERS} workers showed themselves")


if __name__ == "__main__":
    sys.exit(harness.ask(QUESTION, harness.parse(__doc__)))
