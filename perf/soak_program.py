"""What a program of perf/soak.py does, at random: everything that makes, passes, keeps or loses an object."""

import contextlib
import gc
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy

import zmesh
from zmesh.exceptions import (
    ActorDiedError,
    ActorNotFoundError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    TaskCancelledError,
    WorkerDiedError,
)
from zmesh.util import list_named_actors, placement_group, remove_placement_group
from zmesh.util.scheduling_strategies import PlacementGroupSchedulingStrategy

LARGE = 20_000  # numbers of 8 bytes: too many to travel inline
POOL = 60
RARE = 400  # puts between two kills, or closures
EVERY = 20  # one value in so many is large
NAMES = ("one", "two", "three")  # of detached actors, which all programs share
WAIT_S = 60.0  # what has not happened by then will never
# What may happen to one whose worker, actor, node or neighbour was killed.
LOSSES = (WorkerDiedError, NodeDiedError, ActorDiedError, ActorUnavailableError, ActorNotFoundError, ObjectLostError)


@zmesh.remote(max_retries=-1)
def measure(value: Any) -> int:
    """Read one value."""
    return len(value)


@zmesh.remote(max_retries=-1)
def read_nested(refs: list[Any]) -> int:
    """Read what some refs name."""
    return sum(len(value) for value in zmesh.get(refs))


@zmesh.remote(max_retries=-1)
def wrap(refs: list[Any], fresh: int) -> list[Any]:
    """Return the refs, and some of values put here."""
    return [*refs, *(zmesh.put(bytes(100)) for _ in range(fresh))]


@zmesh.remote(max_retries=-1)
def child_of(refs: list[Any]) -> list[Any]:
    """Return a ref whose value holds refs, and that this process owns."""
    return [wrap.remote(refs, 1)]


@zmesh.remote(max_retries=0)
def die() -> None:
    """Kill the worker."""
    os.kill(os.getpid(), signal.SIGKILL)


@zmesh.remote(num_cpus=0, max_restarts=-1)
class Keeper:
    """Keeps refs in its state, and gives some of them back."""

    def __init__(self) -> None:
        self.refs: list[Any] = []

    def keep(self, refs: list[Any]) -> list[Any]:
        """Keep these, and give back some of those kept for long."""
        self.refs += refs
        given, self.refs = self.refs[:-20], self.refs[-20:]
        return given[:3]

    def read(self) -> int:
        """Read all that is kept."""
        return sum(len(value) for value in zmesh.get(self.refs))


@zmesh.remote(max_retries=-1)
def stream(refs: list[Any], count: int) -> Iterator[Any]:
    """Yield the refs, and values small and large."""
    yield from refs
    for i in range(count):
        yield numpy.zeros(LARGE) if i == 1 else bytes(100)


@zmesh.remote(max_retries=-1)
def measure_all(*values: Any) -> int:
    """Read many values."""
    return sum(map(len, values))


@zmesh.remote(max_retries=-1)
def nap(seconds: float, refs: list[Any]) -> int:
    """Take a while, and keep refs meanwhile."""
    time.sleep(seconds)
    return len(refs)


@zmesh.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Passer:
    """An async actor that gives back what it was given."""

    async def give(self, refs: list[Any]) -> list[Any]:
        """Return the refs, and one of its own."""
        return [*refs, zmesh.put(bytes(100))]


class Program:
    """One program that does everything at random; `done` counts what it did."""

    def __init__(self, seed: int, *, closures: bool = True, spread: bool = False) -> None:
        self.rng = random.Random(seed)
        self.spread = spread
        self.rarely = [self.kill_worker, self.kill_actor, self.kill_named, *([self.close_over] if closures else [])]
        self.refs: list[Any] = []  # of bytes and arrays
        self.boxes: list[Any] = []  # of lists of refs
        self.done: Counter[str] = Counter()
        self.keeper: Any = self.anywhere(Keeper).remote()
        self.passer: Any = self.anywhere(Passer).remote()
        self.rare = 0  # puts at which something rare is next

    def run(self, puts: int) -> None:
        """Go on until so many values were put."""
        acts = [self.put] * 40 + [self.nest, self.open, self.pass_one, self.pass_nested, self.take, self.keep]
        acts += [self.stream, self.call_async, self.call_named, self.wait, self.cancel, self.reserve]
        while self.done["puts"] < puts:
            act = self.rng.choice(acts)
            if self.done["puts"] >= self.rare:
                self.rare += RARE
                act = self.rng.choice(self.rarely)
            try:
                act()
            except LOSSES as error:
                self.done[type(error).__name__] += 1
            self.trim()

    def trim(self) -> None:
        """Let go of what is too much."""
        for some in (self.refs, self.boxes):
            while len(some) > POOL:
                del some[self.rng.randrange(len(some))]

    def anywhere(self, what: Any) -> Any:
        """Return a task or actor that, if there are several nodes, mostly runs on another."""
        return what.options(scheduling_strategy="SPREAD") if self.spread else what

    def some(self, count: int = 3) -> list[Any]:
        """Return some of the refs."""
        return self.rng.sample(self.refs, min(count, len(self.refs)))

    def put(self) -> None:
        """Put values, small or large."""
        large = self.rng.randrange(EVERY) == 0
        for _ in range(4):
            self.refs.append(zmesh.put(numpy.zeros(LARGE) if large else bytes(100)))
        self.done["puts"] += 4
        self.done["large"] += 4 * large

    def nest(self) -> None:
        """Put a value that contains refs."""
        self.boxes.append(zmesh.put(self.some()))
        self.done["puts"] += 1

    def open(self) -> None:
        """Take refs out of a value, which may be borrowed; one that is no list of refs has none."""
        if self.boxes:
            found = zmesh.get(self.rng.choice(self.boxes), timeout=WAIT_S)
            for ref in found:
                value = zmesh.get(ref, timeout=WAIT_S)
                (self.boxes if isinstance(value, list) else self.refs).append(ref)
            self.done["opened"] += 1

    def pass_one(self) -> None:
        """Have a task read a value."""
        if self.refs:
            zmesh.get(self.anywhere(measure).remote(self.rng.choice(self.refs)), timeout=WAIT_S)
            self.done["tasks"] += 1

    def pass_nested(self) -> None:
        """Have tasks read what refs inside their arguments name."""
        zmesh.get([self.anywhere(read_nested).remote(self.some()) for _ in range(3)], timeout=WAIT_S)
        self.done["tasks"] += 3

    def take(self) -> None:
        """Take refs out of results."""
        self.boxes += [self.anywhere(wrap).remote(self.some(), 2), self.anywhere(child_of).remote(self.some(1))]
        self.done["puts"] += 3
        self.done["tasks"] += 3

    def keep(self) -> None:
        """Have an actor keep some, and take what it gives back."""
        self.refs += zmesh.get(self.keeper.keep.remote(self.some()), timeout=WAIT_S)
        if self.rng.random() < 0.2:
            zmesh.get(self.keeper.read.remote(), timeout=WAIT_S)
        self.done["calls"] += 1

    def stream(self) -> None:
        """Read some of a stream, and leave the rest."""
        made = self.anywhere(stream).remote(self.some(), 4)
        for _, ref in zip(range(self.rng.randrange(1, 9)), made, strict=False):
            value = zmesh.get(ref, timeout=WAIT_S)
            self.refs.append(value if isinstance(value, zmesh.ObjectRef) else ref)
        self.done["streams"] += 1

    def call_async(self) -> None:
        """Have several calls of an async actor under way at once."""
        calls = [self.passer.give.remote(self.some()) for _ in range(5)]
        self.refs += [given[-1] for given in zmesh.get(calls, timeout=WAIT_S)]
        self.done["calls"] += 5

    def call_named(self) -> None:
        """Find or make a detached actor, and have it keep some."""
        name = self.rng.choice(NAMES)
        named = self.anywhere(Keeper).options(name=name, get_if_exists=True, lifetime="detached").remote()
        self.refs += zmesh.get(named.keep.remote(self.some()), timeout=WAIT_S)
        self.done["named calls"] += 1

    def wait(self) -> None:
        """Wait for some of several tasks with many arguments."""
        tasks = [self.anywhere(measure_all).remote(*self.some(20)) for _ in range(4)]
        ready, _ = zmesh.wait(tasks, num_returns=2, timeout=WAIT_S)
        assert len(ready) == 2, "they did not end"
        zmesh.get(ready)
        self.done["waits"] += 1

    def cancel(self) -> None:
        """Cancel a task."""
        ref = self.anywhere(nap).remote(20.0, self.some())
        zmesh.cancel(ref, force=self.rng.random() < 0.5)
        with contextlib.suppress(TaskCancelledError):
            zmesh.get(ref, timeout=WAIT_S)
        self.done["cancelled"] += 1

    def reserve(self) -> None:
        """Run a task in a placement group."""
        group = placement_group([{"CPU": 1}], strategy=self.rng.choice(("PACK", "SPREAD")))
        assert group.wait(WAIT_S), "it was not reserved"
        where = PlacementGroupSchedulingStrategy(group)
        try:
            zmesh.get(measure_all.options(scheduling_strategy=where).remote(*self.some()), timeout=WAIT_S)
        finally:
            remove_placement_group(group)
        self.done["groups"] += 1

    def kill_named(self) -> None:
        """Kill a detached actor."""
        zmesh.kill(zmesh.get_actor(self.rng.choice(NAMES)))
        self.done["killed named"] += 1

    def kill_worker(self) -> None:
        """Kill the worker of a task."""
        self.done["killed workers"] += 1
        zmesh.get(die.remote(), timeout=WAIT_S)

    def kill_actor(self) -> None:
        """Kill the actor, with what it keeps, and make another."""
        self.done["killed actors"] += 1
        zmesh.kill(self.keeper, no_restart=self.rng.random() < 0.5)
        self.keeper = self.anywhere(Keeper).remote()

    def close_over(self) -> None:
        """Call a function that captured refs."""
        refs = self.some()

        @zmesh.remote(max_retries=-1)
        def inside() -> int:
            return sum(len(value) for value in zmesh.get(refs))

        zmesh.get(inside.remote(), timeout=WAIT_S)
        self.done["closures"] += 1

    def end(self) -> None:
        """Let go of everything."""
        self.refs.clear()
        self.boxes.clear()
        del self.keeper, self.passer
        for name in list_named_actors():
            with contextlib.suppress(ActorNotFoundError):
                zmesh.kill(zmesh.get_actor(name))
        gc.collect()
