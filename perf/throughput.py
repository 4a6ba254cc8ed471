"""How many no-op tasks a second does one driver get through, and what does a queued task cost it in memory?

Each task takes a small number, is submitted singly and its result is fetched; the clock runs from the first submit to
the last result. With --queued N the workers are held up while N tasks are queued, then released: the driver's
resident memory is read with all of them queued, and at its peak while their results come in. Slow peers get fewer
tasks in both.
"""

import argparse
import os
import pathlib
import sys
from time import perf_counter
from typing import Any

import harness
import workloads
from contenders import WORKERS, Contender
from harness import Column, Question
from processes import forget_peak, peak_resident_bytes, resident_bytes

MIB = 1 << 20
QUEUED_ROUNDS = 3  # memory hardly varies, and a million tasks take minutes in some

THROUGHPUT = Question(
    name="throughput",
    title="No-op tasks of one driver",
    function="measure",
    columns=[
        Column("tasks/s", "tasks_per_s", spread=True),
        Column("to PPE", "tasks_per_s", digits=2, against="ppe"),
        Column("to raw", "tasks_per_s", digits=2, against="raw"),
        Column("submit, µs/task", "submit_s", 1e6, digits=1),
        Column("tasks", "tasks"),
    ],
    parameters={"share": 1.0},
    quick={"share": 0.1},
)


def queued_question(tasks: int) -> Question:
    """Return the question after memory, for so many tasks."""
    return Question(
        name="queued",
        title="Driver memory with {queued:,} queued tasks",
        function="measure_queued",
        columns=[
            Column("queued, MiB more", "queued_bytes", 1 / MIB),
            Column("peak, MiB more", "peak_bytes", 1 / MIB),
            Column("bytes/task queued", "queued_task_bytes"),
            Column("bytes/task at peak", "peak_task_bytes"),
            Column("tasks", "tasks"),
        ],
        parameters={"queued": tasks},
        quick={"queued": min(tasks, 20_000)},
        exclude={"raw": "it runs no functions, so nothing queues"},
    )


def measure(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Submit all tasks of a round, then gather them."""
    tasks = int(contender.tasks * parameters["share"])
    with contender:
        contender.gather([contender.submit(workloads.increment, number) for number in range(tasks // 10)])
        started = perf_counter()
        handles = [contender.submit(workloads.increment, number) for number in range(tasks)]
        submitted = perf_counter()
        results = contender.gather(handles)
        ended = perf_counter()
    if contender.answers and results != list(range(1, tasks + 1)):
        raise ValueError("wrong results")
    return {"tasks_per_s": tasks / (ended - started), "submit_s": (submitted - started) / tasks, "tasks": tasks}


def measure_queued(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Hold up all workers, queue the tasks with all handles held, and look at our own memory."""
    tasks = max(1000, int(parameters["queued"] * contender.queued_share))
    gate = pathlib.Path(contender.scratch) / "gate"
    with contender:
        contender.gather([contender.submit(workloads.increment, number) for number in range(100)])
        held_up = [contender.submit(workloads.wait_for_file, os.fspath(gate)) for _ in range(WORKERS)]
        before = resident_bytes()
        forget_peak()
        handles = [contender.submit(workloads.increment, number) for number in range(tasks)]
        queued = resident_bytes() - before
        gate.touch()
        results = contender.gather(handles)
        peak = peak_resident_bytes() - before
        contender.gather(held_up)
        if results[-1] != tasks or len(results) != tasks:
            raise ValueError("wrong results")
    return {
        "queued_bytes": queued,
        "peak_bytes": peak,
        "queued_task_bytes": queued / tasks,
        "peak_task_bytes": peak / tasks,
        "tasks": tasks,
    }


def main() -> int:
    """Ask one of the two questions."""
    given: argparse.Namespace = harness.parse(
        __doc__, queued={"type": int, "metavar": "N", "help": "ask for memory instead"}
    )
    if given.queued is None:
        return harness.ask(THROUGHPUT, given)
    if given.rounds is None and not given.quick:
        given.rounds = QUEUED_ROUNDS
    return harness.ask(queued_question(given.queued), given)


if __name__ == "__main__":
    sys.exit(main())
