"""Does anything stay? Puts, nested refs, tasks, actors, closures, kills by the ten thousand; then every table is read.

    python -m perf.soak --puts 100000
    python -m perf.soak --puts 100000 --nodes 3

Programs share a mesh: one that lives to the end, and others beside it that are killed as they work, as are workers,
actors, and all nodes but that of the first; those are replaced. When the first has dropped all it had, no process may
keep more than at the start, in any table it has (core/tables.py); when it has left, the stores are empty, and no node
that was not killed has crashed. Prints what was done, how long it took, and what stayed.
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

import zmesh
from perf.soak_program import Program, measure
from zmesh import lifecycle
from zmesh.core.names import LOOK_S
from zmesh.core.tables import table_sizes
from zmesh.exceptions import MeshError
from zmesh.runtime import rundir, session

ROOMS = ("zmesh.core.", "zmesh.runtime.")
NAMESPACE = "soak"
# Tables that may be larger at the end, and why; those that begin with one of these names.
MAY_GROW = {
    "core._ended": "workers whose program lives, as long as what they made does",
    "core._clients": "idle workers stay for a while",
    "core.matchmaking.workers": "the same",
    "core.matchmaking._takers": "the same",
    "_segments.": "what idle workers keep to write it again",
    "_slots": "the same",
    "_streams": "the same",
    "_watch.": "the same",
    "_pidfds": "programs",
    "_timers": "cancelled ones stay until they come up",
    "_mesh.": "who died is remembered for a day, and connections to who lives are made when they are needed",
    "core.actors.names._dead": "the last thousand that died",
    "core.groups.placement._groups": "the last that were removed",
    "core.holder._gone": "who died in the last minute",
    "core.lending._parked": "other members have nothing to do",
    "core.lending._spare": "the same",
    "core.openings.": "programs on other nodes, and the last ways to them",
    "core._configs": "programs",
    "core.burials._spoken": "programs",
    "core.lending._numbers": "programs",
    "core.neighbours.": "programs",
}
AT_THE_END = (
    *("_timers", "_mesh.", "_watch.", "core.actors.names._dead", "core.groups.placement._groups", "core.holder._gone"),
    *("core.lending._parked", "core.lending._spare"),
)
# Tables with an entry for each other member (or for the node itself), and some for each that died not long ago.
OF_MEMBERS = (
    *("core.links._links", "core.neighbours.totals", "core.neighbours._watched", "core.neighbours._watchers"),
    "core.groups.placement._heard",
)
OF_DEAD = ("core.links._links", "core.links._closed", "core.links._early")
# Of a program: functions, also those for groups, and what is cached, live as long as it does.
OF_PROGRAMS = (
    "core.specs",
    "core.groups._groups",
    "core._impossible",
    "core.victim",
    "core.holder",
    "core.timers",
    "_specs",
    "actors.specs",
    "store.",
    "reactor.",
    "core.shortcuts.",
)
OF_WORKERS = (*OF_PROGRAMS, "core.thief.", "worker.")  # the task that asks is under way, and links to victims stay


def _own_tables() -> dict[str, int]:
    return table_sizes(session.current(), ROOMS)


@zmesh.remote(max_retries=-1)
def tables_of_worker() -> dict[str, int]:
    """Tell how much this process keeps."""
    gc.collect()
    return _own_tables()


def _beside(name: str, seed: int, *, spread: bool) -> None:
    """Be a program that is killed as it works."""
    zmesh.init(name, namespace=NAMESPACE)
    Program(seed, spread=spread).run(1 << 60)


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


class Node:
    """One node of the mesh, which may be killed."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self._settings = settings
        self._running = lifecycle.start(name, settings)
        self._before = self._tables()

    @property
    def address(self) -> tuple[str, int]:
        """Where others join it."""
        return lifecycle.parse_address(self._running.address)

    def signal(self, number: int) -> None:
        """Send its process a signal."""
        os.kill(self._running.pid, number)

    def replace(self) -> None:
        """Kill it, and start another in its place."""
        self.signal(signal.SIGKILL)
        self.check_log()
        self._running = lifecycle.start(self.name, self._settings)
        self._before = self._tables()

    def check_log(self) -> None:
        """It may not have crashed."""
        path = pathlib.Path(rundir.base(), self.name, "log")
        log = path.read_text() if path.exists() else ""
        assert "Traceback" not in log, log

    def look(self, what: str) -> Any:
        """Return how much there is: objects, used bytes of the store, workers, living members."""
        status = lifecycle.status(self.name)
        if what == "store":
            return status["store"]["used"]
        if what == "members":
            return sum(member["state"] == "alive" for member in status["members"])
        return status["objects"] if what == "objects" else len(status["workers"])

    def grown(self, may: tuple[str, ...], others: int, dead: int) -> dict[str, tuple[int, int]]:
        """Return the tables that are larger than at its start, but for an entry for each other node."""
        now = self._tables()
        for names, entries in ((OF_MEMBERS, others), (OF_DEAD, dead)):
            now |= {name: size - entries for name, size in now.items() if name.startswith(names)}
        return _grown(self._before, now, may)

    def _tables(self) -> dict[str, int]:
        tables: dict[str, int] = lifecycle.status(self.name)["tables"]
        return tables

    def stop(self) -> None:
        """End it in good order."""
        with contextlib.suppress(MeshError):
            lifecycle.stop(self.name)


class Soak:
    """One run."""

    def __init__(self, nodes: list[Node], puts: int, beside: int, seed: int, *, closures: bool) -> None:
        self.closures = closures
        self.nodes = nodes
        self.puts = puts
        self.beside = beside
        self.rng = random.Random(seed)
        self.stopped: Node | None = None
        self.child: subprocess.Popen[str] | None = None  # the program beside
        self.failed: list[str] = []  # what programs said that ended though they were not killed, nor their node
        self.killed: Counter[str] = Counter()

    def run(self) -> dict[str, Any]:
        """Do it; returns {"done", "left", "seconds"}."""
        begun = time.monotonic()
        zmesh.init(self.nodes[0].name, namespace=NAMESPACE)
        zmesh.get(measure.remote(b"x"))
        program_before, worker_before = _own_tables(), zmesh.get(tables_of_worker.remote())
        program = Program(self.rng.randrange(1 << 30), closures=self.closures, spread=len(self.nodes) > 1)
        self._start()
        portion = max(1, self.puts // max(1, self.beside))
        for part in range(1, max(1, self.beside) + 1):
            program.run(min(self.puts, part * portion))
            self._kill_one()
        if self.end():
            _until_quiet(lambda: [node for node in self.nodes if node.look("members") < len(self.nodes)], 60.0)
            time.sleep(4 * LOOK_S)  # names of actors of that node may just be coming back
        done = dict(program.done + self.killed)
        program.end()
        del program
        left: dict[str, Any] = {"failed programs": self.failed}
        left["objects"] = self._of_nodes("objects")
        left["program"] = _until_quiet(lambda: _grown(program_before, _own_tables(), OF_PROGRAMS), 20.0)
        left["workers"] = self._workers(worker_before)
        left["nodes"] = self._grown(tuple(MAY_GROW))
        zmesh.shutdown()
        left["store"] = self._of_nodes("store")
        left["processes"] = self._of_nodes("workers")
        left["nodes at the end"] = self._grown(AT_THE_END)
        for node in self.nodes:
            node.check_log()
        seconds = round(time.monotonic() - begun, 1)
        return {"done": done, "left": {what: much for what, much in left.items() if much}, "seconds": seconds}

    def _of_nodes(self, what: str) -> list[Any]:
        """Return how much of it each node has; nothing once none has any."""

        def look() -> list[Any]:
            found = [node.look(what) for node in self.nodes]
            return found if any(found) else []

        left: list[Any] = _until_quiet(look, 60.0)
        return left

    def _grown(self, may: tuple[str, ...]) -> list[Any]:
        others, dead = len(self.nodes) - 1, self.killed["killed nodes"]

        def look() -> list[Any]:
            return [grown for node in self.nodes if (grown := node.grown(may, others, dead))]

        left: list[Any] = _until_quiet(look, 30.0)
        return left

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
            node = self.rng.choice([node for node in self.nodes if node is not self.stopped])
            where = ":".join(map(str, node.address)) if self.rng.random() < 0.5 else node.name  # a guest, or not
            code = ["-m", "perf.soak", "--beside-of", where]
            code += ["--nodes", str(len(self.nodes)), "--seed", str(self.rng.randrange(1 << 30))]
            self.child = subprocess.Popen([sys.executable, *code], stderr=subprocess.PIPE, text=True)

    def _kill_one(self) -> None:
        """Kill the program beside, and kill or stop a node that is not ours; what was stopped goes on."""
        self.end()
        self.killed["killed programs"] += 1
        if len(self.nodes) > 1:
            node = self.rng.choice(self.nodes[1:])
            if self.rng.random() < 0.5:
                node.replace()
                self.killed["killed nodes"] += 1
            else:
                node.signal(signal.SIGSTOP)
                self.stopped = node
                self.killed["stopped nodes"] += 1
        self._start()

    def end(self) -> bool:
        """End the program beside, and have a node that was stopped go on; returns whether there was one."""
        child, self.child = self.child, None
        if child is not None:
            ended = child.poll() is not None
            child.kill()
            _, said = child.communicate()
            if ended and "NodeDiedError" not in said:
                self.failed.append(said)
        node, self.stopped = self.stopped, None
        if node is not None:
            node.signal(signal.SIGCONT)
        return node is not None


def soak(
    puts: int,
    *,
    beside: int,
    seed: int = 0,
    num_cpus: int = 2,
    closures: bool = True,
    nodes: int = 1,
    store_bytes: int = 1 << 28,
) -> dict[str, Any]:
    """Run it on nodes of its own; the environment says where that may be.

    Args:
        closures: with functions that capture refs, which workers hold for some seconds after the last call.
    """
    settings: dict[str, Any] = {"num_cpus": num_cpus, "store_bytes": store_bytes}
    made = [Node(f"soak{os.getpid()}", settings)]
    run = Soak(made, puts, beside, seed, closures=closures)
    try:
        while len(made) < nodes:
            made.append(Node(f"soak{os.getpid()}-{len(made)}", settings | {"join": [made[0].address]}))
        return run.run()
    finally:
        run.end()
        zmesh.shutdown()
        for node in made:
            node.stop()


def main() -> None:
    """Run it as the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--puts", type=int, default=100_000)
    parser.add_argument("--beside", type=int, default=10, help="how many other programs are killed meanwhile")
    parser.add_argument("--nodes", type=int, default=1, help="all but the first are killed or stopped in turn")
    parser.add_argument("--store-mb", type=int, default=256, help="of each node; what does not fit is spilled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside-of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.beside_of:
        _beside(given.beside_of, given.seed, spread=given.nodes > 1)
        return
    with tempfile.TemporaryDirectory() as directory:
        for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
            path = pathlib.Path(directory, name)
            path.mkdir(mode=0o700)
            os.environ[name] = str(path)
        outcome = soak(
            given.puts, beside=given.beside, seed=given.seed, nodes=given.nodes, store_bytes=given.store_mb << 20
        )
    print(json.dumps(outcome, indent=2))
    sys.exit(1 if outcome["left"] else 0)


if __name__ == "__main__":
    main()
