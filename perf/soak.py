"""Does anything stay? Puts, nested refs, tasks, actors, closures, kills by the ten thousand; then every table is read.

    python -m perf.soak --puts 100000

Programs share one node: one that lives to the end, and others beside it that are killed as they work, as are workers
and actors. When the first has dropped all it had, no process may keep more than at the start, in any table it has
(core/tables.py); when it has left, the store is empty. Prints what was done, how long it took, and what stayed.
"""

import argparse
import contextlib
import gc
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import numpy

import zmesh
from zmesh import lifecycle
from zmesh.core.tables import table_sizes
from zmesh.exceptions import ActorDiedError, ActorUnavailableError, MeshError, ObjectLostError, WorkerDiedError
from zmesh.runtime import session

ROOMS = ("zmesh.core.", "zmesh.runtime.")
LARGE = 20_000  # numbers of 8 bytes: too many to travel inline
POOL = 60
RARE = 400  # puts between two kills, or closures
EVERY = 20  # one value in so many is large
# Tables that may be larger at the end, and why; those that begin with one of these names.
MAY_GROW = {
    "core._ended": "workers whose program lives, as long as what they made does",
    "core._clients": "idle workers stay for a while",
    "core.matchmaking.workers": "the same",
    "core.matchmaking._takers": "the same",
    "_segments.": "what idle workers keep to write it again",
    "_slots": "the same",
    "_streams": "the same",
    "_readers": "the same",
    "_pidfds": "programs",
    "_timers": "cancelled ones stay until they come up",
}
# Of a program: functions, and what is cached, live as long as it does.
OF_PROGRAMS = (
    "core.specs",
    "core.victim",
    "core.holder",
    "core.timers",
    "_specs",
    "actors.specs",
    "store.",
    "reactor.",
)
OF_WORKERS = (*OF_PROGRAMS, "core.thief.", "worker.")  # the task that asks is under way, and links to victims stay


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


@zmesh.remote(max_retries=-1)
def tables_of_worker() -> dict[str, int]:
    """Tell how much this process keeps."""
    gc.collect()
    return _own_tables()


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


def _own_tables() -> dict[str, int]:
    return table_sizes(session.current(), ROOMS)


class Program:
    """One program that does everything at random; `done` counts what it did."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.refs: list[Any] = []  # of bytes and arrays
        self.boxes: list[Any] = []  # of lists of refs
        self.done: Counter[str] = Counter()
        self.keeper: Any = Keeper.remote()
        self.rare = 0  # puts at which something rare is next

    def run(self, puts: int) -> None:
        """Go on until so many values were put."""
        acts = [self.put] * 8 + [self.nest, self.open, self.pass_one, self.pass_nested, self.take, self.keep]
        while self.done["puts"] < puts:
            act = self.rng.choice(acts)
            if self.done["puts"] >= self.rare:
                self.rare += RARE
                act = self.rng.choice([self.kill_worker, self.kill_actor, self.close_over])
            try:
                act()
            except (WorkerDiedError, ActorDiedError, ActorUnavailableError, ObjectLostError) as error:
                self.done[type(error).__name__] += 1
            self.trim()

    def trim(self) -> None:
        """Let go of what is too much."""
        for some in (self.refs, self.boxes):
            while len(some) > POOL:
                del some[self.rng.randrange(len(some))]

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
            found = zmesh.get(self.rng.choice(self.boxes), timeout=60)
            for ref in found:
                value = zmesh.get(ref, timeout=60)
                (self.boxes if isinstance(value, list) else self.refs).append(ref)
            self.done["opened"] += 1

    def pass_one(self) -> None:
        """Have a task read a value."""
        if self.refs:
            zmesh.get(measure.remote(self.rng.choice(self.refs)), timeout=60)
            self.done["tasks"] += 1

    def pass_nested(self) -> None:
        """Have tasks read what refs inside their arguments name."""
        zmesh.get([read_nested.remote(self.some()) for _ in range(3)], timeout=60)
        self.done["tasks"] += 3

    def take(self) -> None:
        """Take refs out of results."""
        self.boxes += [wrap.remote(self.some(), 2), child_of.remote(self.some(1))]
        self.done["puts"] += 3
        self.done["tasks"] += 3

    def keep(self) -> None:
        """Have an actor keep some, and take what it gives back."""
        self.refs += zmesh.get(self.keeper.keep.remote(self.some()), timeout=60)
        if self.rng.random() < 0.2:
            zmesh.get(self.keeper.read.remote(), timeout=60)
        self.done["calls"] += 1

    def kill_worker(self) -> None:
        """Kill the worker of a task."""
        self.done["killed workers"] += 1
        zmesh.get(die.remote(), timeout=60)

    def kill_actor(self) -> None:
        """Kill the actor, with what it keeps, and make another."""
        self.done["killed actors"] += 1
        zmesh.kill(self.keeper, no_restart=self.rng.random() < 0.5)
        self.keeper = Keeper.remote()

    def close_over(self) -> None:
        """Call a function that captured refs."""
        refs = self.some()

        @zmesh.remote(max_retries=-1)
        def inside() -> int:
            return sum(len(value) for value in zmesh.get(refs))

        zmesh.get(inside.remote(), timeout=60)
        self.done["closures"] += 1

    def end(self) -> None:
        """Let go of everything."""
        self.refs.clear()
        self.boxes.clear()
        del self.keeper
        gc.collect()


def _beside(name: str, seed: int) -> None:
    """Be a program that is killed as it works."""
    zmesh.init(name)
    Program(seed).run(1 << 60)


def _until_quiet(look: Any, seconds: float) -> Any:
    """Return what is left when nothing is, or the time is over."""
    deadline = time.monotonic() + seconds
    left = look()
    while left and time.monotonic() < deadline:
        time.sleep(0.3)
        left = look()
    return left


def _grown(before: dict[str, int], now: dict[str, int], may: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    grown = {name: (before.get(name, 0), size) for name, size in now.items() if size > before.get(name, 0)}
    return {name: sizes for name, sizes in grown.items() if not name.startswith(may)}


class Soak:
    """One run."""

    def __init__(self, name: str, puts: int, beside: int, seed: int) -> None:
        self.name = name
        self.puts = puts
        self.beside = beside
        self.rng = random.Random(seed)
        self.children: list[subprocess.Popen[bytes]] = []
        self.killed = 0

    def run(self) -> dict[str, Any]:
        """Do it; returns {"done", "left", "seconds"}."""
        begun = time.monotonic()
        node_before = lifecycle.status(self.name)["tables"]
        zmesh.init(self.name)
        zmesh.get(measure.remote(b"x"))
        program_before, worker_before = _own_tables(), zmesh.get(tables_of_worker.remote())
        program = Program(self.rng.randrange(1 << 30))
        self._start()
        portion = max(1, self.puts // max(1, self.beside))
        for part in range(1, max(1, self.beside) + 1):
            program.run(min(self.puts, part * portion))
            self._kill_one()
        for child in self.children:
            self._kill(child)
        done = dict(program.done) | {"killed programs": self.killed}
        program.end()
        del program
        left: dict[str, Any] = {}
        left["objects"] = _until_quiet(lambda: zmesh.status()["objects"], 60.0)
        left["program"] = _until_quiet(lambda: _grown(program_before, _own_tables(), OF_PROGRAMS), 20.0)
        left["workers"] = self._workers(worker_before)
        left["node"] = _until_quiet(lambda: _grown(node_before, self._tables(), tuple(MAY_GROW)), 30.0)
        zmesh.shutdown()
        left["store"] = _until_quiet(lambda: lifecycle.status(self.name)["store"]["used"], 60.0)
        left["processes"] = _until_quiet(lambda: len(lifecycle.status(self.name)["workers"]), 60.0)
        left["node at the end"] = _until_quiet(lambda: _grown(node_before, self._tables(), ("_timers",)), 30.0)
        seconds = round(time.monotonic() - begun, 1)
        return {"done": done, "left": {what: much for what, much in left.items() if much}, "seconds": seconds}

    def _tables(self) -> dict[str, int]:
        tables: dict[str, int] = lifecycle.status(self.name)["tables"]
        return tables

    def _workers(self, before: dict[str, int]) -> dict[str, tuple[int, int]]:
        """Ask workers until all that are idle have surely been asked."""

        def look() -> dict[str, tuple[int, int]]:
            found: dict[str, tuple[int, int]] = {}
            for tables in zmesh.get([tables_of_worker.remote() for _ in range(8)]):
                found |= _grown(before, tables, OF_WORKERS)
            return found

        left: dict[str, tuple[int, int]] = _until_quiet(look, 20.0)
        return left

    def _start(self) -> None:
        if self.beside:
            code = ["-m", "perf.soak", "--beside-of", self.name, "--seed", str(self.rng.randrange(1 << 30))]
            self.children.append(subprocess.Popen([sys.executable, *code], stderr=subprocess.DEVNULL))

    def _kill_one(self) -> None:
        if self.children:
            self._kill(self.children[-1])
            self.killed += 1
            self._start()

    @staticmethod
    def _kill(child: "subprocess.Popen[bytes]") -> None:
        child.kill()
        child.wait()


def soak(puts: int, *, beside: int, seed: int = 0, num_cpus: int = 2) -> dict[str, Any]:
    """Run it on a node of its own; the environment says where that may be."""
    name = f"soak{os.getpid()}"
    lifecycle.start(name, {"num_cpus": num_cpus, "store_bytes": 1 << 28})
    try:
        return Soak(name, puts, beside, seed).run()
    finally:
        zmesh.shutdown()
        with contextlib.suppress(MeshError):
            lifecycle.stop(name)


def main() -> None:
    """Run it as the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--puts", type=int, default=100_000)
    parser.add_argument("--beside", type=int, default=10, help="how many other programs are killed meanwhile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside-of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.beside_of:
        _beside(given.beside_of, given.seed)
        return
    with tempfile.TemporaryDirectory() as directory:
        for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
            path = pathlib.Path(directory, name)
            path.mkdir(mode=0o700)
            os.environ[name] = str(path)
        outcome = soak(given.puts, beside=given.beside, seed=given.seed)
    print(json.dumps(outcome, indent=2))
    sys.exit(1 if outcome["left"] else 0)


if __name__ == "__main__":
    main()
