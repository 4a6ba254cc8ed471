"""How quiet is a mesh that has nothing to do?

Context switches, voluntary and not, and processor time of all its processes in 10 s, after some work and a rest.
"""

import os
import sys
import time
from typing import Any

import harness
import workloads
from contenders import Contender
from harness import Column, Question
from processes import context_switches, cpu_seconds

QUESTION = Question(
    name="idle",
    title="Context switches in {seconds:g} s of idleness",
    function="measure",
    columns=[
        Column("switches", "switches", spread=True),
        Column("of these, driver", "driver_switches"),
        Column("CPU, ms", "cpu_s", 1e3),
        Column("processes", "processes"),
    ],
    parameters={"tasks": 100, "settle_s": 3.0, "seconds": 10.0},
    quick={"settle_s": 1.0, "seconds": 2.0},
)


def measure(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Work a little, rest, then count for a while."""
    with contender:
        contender.gather([contender.submit(workloads.increment, number) for number in range(parameters["tasks"])])
        driver = [os.getpid()]
        everyone = driver + contender.processes()
        time.sleep(parameters["settle_s"])
        # Our own switch for the sleep below is among them: one in all.
        before = context_switches(everyone), context_switches(driver), cpu_seconds(everyone)
        time.sleep(parameters["seconds"])
        after = context_switches(everyone), context_switches(driver), cpu_seconds(everyone)
    return {
        "switches": after[0] - before[0],
        "driver_switches": after[1] - before[1],
        "cpu_s": after[2] - before[2],
        "processes": len(everyone) - 1,
    }


if __name__ == "__main__":
    sys.exit(harness.ask(QUESTION, harness.parse(__doc__)))
