"""What does a call of an actor's method cost, and a stream's item, and an actor?

Three questions. Calls: one after the other, many at once to a plain actor and to one of `async def` methods, and from
two tasks to two actors. The raw echo is the yardstick of a call: 64 bytes from a ROUTER to a DEALER in another process
and back, over ipc. Streams: what an actor yields, item by item. Actors: made all at once, and each has answered one
call when the clock stops; their memory is what the processes of the contender use then, in all, by PSS. Who takes
minutes for a thousand makes fewer.
"""

import importlib
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import harness
import workloads
from contenders import WORKERS, Contender
from harness import Column, Question
from processes import total_pss

NO_ACTORS = "it has no actors"
_NONE = dict.fromkeys(("ppe", "loky", "dask", "ipyparallel"), NO_ACTORS)
CALLS = Question(
    name="actors",
    title="One call of an actor, and {burst:,} at once",
    function="measure_calls",
    columns=[
        Column("call p50, µs", "p50_s", 1e6, spread=True),
        Column("p99, µs", "p99_s", 1e6),
        Column("p50 to raw", "p50_s", digits=2, against="raw"),
        Column("to Ray", "p50_s", digits=2, against="ray"),
        Column("calls/s, at once", "calls_per_s"),
        Column("to Ray", "calls_per_s", digits=1, against="ray"),
        Column("async def", "async_calls_per_s"),
        Column("to Ray", "async_calls_per_s", digits=1, against="ray"),
        Column("n:n", "crossing_calls_per_s"),
        Column("to Ray", "crossing_calls_per_s", digits=1, against="ray"),
    ],
    parameters={"calls": 3000, "seconds_max": 3.0, "warm_up_s": 0.5, "burst": 20_000},
    quick={"calls": 300, "seconds_max": 1.0, "warm_up_s": 0.1, "burst": 2000},
    exclude=_NONE,
)
STREAMS = Question(
    name="streams",
    title="A stream of {items:,} items from an actor",
    function="measure_streams",
    columns=[
        Column("items/s", "items_per_s", spread=True),
        Column("to Ray", "items_per_s", digits=1, against="ray"),
        Column("first item, ms", "first_s", 1e3, digits=2),
        Column("to Ray", "first_s", digits=2, against="ray"),
        Column("async def: items/s", "async_items_per_s"),
        Column("to Ray", "async_items_per_s", digits=1, against="ray"),
    ],
    parameters={"items": 5000, "streams": 50},
    quick={"items": 500, "streams": 10},
    exclude=_NONE | {"raw": NO_ACTORS},
)
CREATION = Question(
    name="actor_creation",
    title="{actors:,} actors made at once",
    function="measure_creation",
    columns=[
        Column("actors", "actors"),
        Column("actors/s", "actors_per_s", spread=True),
        Column("to Ray", "actors_per_s", digits=1, against="ray"),
        Column("KiB an actor", "actor_bytes", 1 / 1024),
    ],
    parameters={"actors": 1000},
    quick={"actors": 20},
    exclude=_NONE | {"raw": NO_ACTORS},
)


def measure_calls(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Take the time of calls one after the other; of actors also that of many at once."""
    with contender:
        if not contender.answers:
            return _times(lambda: contender.run(workloads.nothing), parameters)
        api = importlib.import_module(contender.module)
        burst = parameters["burst"]
        plain, looping = api.remote(workloads.Nothing).remote(), api.remote(workloads.AsyncNothing).remote()
        api.get([plain.call.remote(), looping.call.remote()])
        figures = _times(lambda: api.get(plain.call.remote()), parameters)
        figures["calls_per_s"] = burst / _time(lambda: api.get([plain.call.remote() for _ in range(burst)]))
        api.get([looping.call.remote() for _ in range(burst // 10)])
        figures["async_calls_per_s"] = burst / _time(lambda: api.get([looping.call.remote() for _ in range(burst)]))
        both = [plain, api.remote(workloads.Nothing).remote()]
        call_all = api.remote(workloads.call_all)
        share = burst // WORKERS
        api.get([call_all.remote(contender.module, both, share // 10) for _ in range(WORKERS)])
        taken = _time(lambda: api.get([call_all.remote(contender.module, both, share) for _ in range(WORKERS)]))
        figures["crossing_calls_per_s"] = share * WORKERS / taken
        return figures


def measure_streams(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Read what a plain and an async actor yield, as it comes."""
    with contender:
        api = importlib.import_module(contender.module)
        figures = {}
        for prefix, cls in (("", workloads.Nothing), ("async_", workloads.AsyncNothing)):
            count = api.remote(cls).remote().count
            api.get([next(count.remote(10)) for _ in range(3)])
            firsts = [_time(lambda count=count: api.get(next(count.remote(1)))) for _ in range(parameters["streams"])]
            figures[f"{prefix}first_s"] = harness.quantile(firsts, 0.5)
            taken = _time(lambda count=count: [api.get(item) for item in count.remote(parameters["items"])])
            figures[f"{prefix}items_per_s"] = parameters["items"] / taken
        return figures


def measure_creation(contender: Contender, parameters: dict[str, Any]) -> dict[str, float]:
    """Make many actors."""
    with contender:
        api = importlib.import_module(contender.module)
        cls = api.remote(workloads.Nothing)
        api.get(cls.remote().call.remote())
        count = max(10, int(parameters["actors"] * contender.actors_share))
        before = total_pss(contender.processes())
        started = perf_counter()
        actors = [cls.remote() for _ in range(count)]
        api.get([one.call.remote() for one in actors])
        rate = count / (perf_counter() - started)
        return {
            "actors": count,
            "actors_per_s": rate,
            "actor_bytes": (total_pss(contender.processes()) - before) / count,
        }


def _time(action: Callable[[], Any]) -> float:
    started = perf_counter()
    action()
    return perf_counter() - started


def _times(call: Callable[[], Any], parameters: dict[str, Any]) -> dict[str, float]:
    warm_until = perf_counter() + parameters["warm_up_s"]
    while perf_counter() < warm_until:
        call()
    times: list[float] = []
    end = perf_counter() + parameters["seconds_max"]
    while len(times) < parameters["calls"] and perf_counter() < end:
        times.append(_time(call))
    return {"p50_s": harness.quantile(times, 0.5), "p99_s": harness.quantile(times, 0.99)}


def main() -> int:
    """Ask all three, or one."""
    questions = {"calls": CALLS, "streams": STREAMS, "creation": CREATION}
    given = harness.parse(__doc__, only={"choices": list(questions), "help": "ask only this"})
    failed = 0
    for name, question in questions.items():
        if given.only in (None, name):
            failed |= harness.ask(question, given)
    return failed


if __name__ == "__main__":
    sys.exit(main())
