"""What does a call of an actor's method cost, and an actor?

The raw echo is the yardstick of a call: 64 bytes from a ROUTER to a DEALER in another process and back, over ipc. Its
calls a second come from one driver with 1,000 under way. Actors are made all at once, and each has answered one call
when the clock stops; their memory is what the processes of the contender use then, in all, by PSS.
"""

import importlib
import sys
from time import perf_counter
from typing import Any

import harness
import workloads
from contenders import Contender
from harness import Column, Question
from processes import total_pss

NO_ACTORS = "it has no actors"
QUESTION = Question(
    name="actors",
    title="One call of an actor, {burst:,} calls at once, and {actors:,} actors",
    function="measure",
    columns=[
        Column("call p50, µs", "p50_s", 1e6, spread=True),
        Column("call p99, µs", "p99_s", 1e6),
        Column("p50 to raw", "p50_s", digits=2, against="raw"),
        Column("calls/s, at once", "calls_per_s"),
        Column("actors/s", "actors_per_s", spread=True),
        Column("KiB an actor", "actor_bytes", 1 / 1024),
    ],
    parameters={"calls": 3000, "seconds_max": 3.0, "warm_up_s": 0.5, "burst": 20_000, "actors": 1000},
    quick={"calls": 300, "seconds_max": 1.0, "warm_up_s": 0.1, "burst": 2000, "actors": 20},
    exclude=dict.fromkeys(("ppe", "loky", "dask", "ipyparallel"), NO_ACTORS),
)


class Nothing:
    """An actor that does nothing."""

    def call(self) -> None:
        """Return at once."""


def measure(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Take the time of calls one after the other; of actors also that of many, and of many calls."""
    with contender:
        if not contender.answers:
            return _times(lambda: contender.run(workloads.nothing), parameters)
        api = importlib.import_module(contender.module)
        cls = api.remote(Nothing)
        actor = cls.remote()
        api.get(actor.call.remote())
        figures = _times(lambda: api.get(actor.call.remote()), parameters)
        started = perf_counter()
        api.get([actor.call.remote() for _ in range(parameters["burst"])])
        figures["calls_per_s"] = parameters["burst"] / (perf_counter() - started)
        before = total_pss(contender.processes())
        started = perf_counter()
        actors = [cls.remote() for _ in range(parameters["actors"])]
        api.get([one.call.remote() for one in actors])
        figures["actors_per_s"] = len(actors) / (perf_counter() - started)
        figures["actor_bytes"] = (total_pss(contender.processes()) - before) / len(actors)
        return figures


def _times(call: Any, parameters: dict[str, Any]) -> dict[str, float]:
    warm_until = perf_counter() + parameters["warm_up_s"]
    while perf_counter() < warm_until:
        call()
    times: list[float] = []
    end = perf_counter() + parameters["seconds_max"]
    while len(times) < parameters["calls"] and perf_counter() < end:
        started = perf_counter()
        call()
        times.append(perf_counter() - started)
    return {"p50_s": harness.quantile(times, 0.5), "p99_s": harness.quantile(times, 0.99)}


if __name__ == "__main__":
    sys.exit(harness.ask(QUESTION, harness.parse(__doc__)))
