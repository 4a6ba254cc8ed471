"""Nodes and programs that are killed around actors, names and streams: several nodes on one machine, real processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest

import zmesh
from tests.mesh.test_hosts import Nodes, nodes  # noqa: F401  # a fixture
from tests.mesh.test_streams import Counter
from zmesh import lifecycle
from zmesh.exceptions import ActorNotFoundError
from zmesh.runtime.session import current
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy

pytestmark = pytest.mark.slow


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def made(nodes: Nodes) -> list[lifecycle.RunningNode]:  # noqa: F811
    """Three nodes that know each other; this program is a client of the first."""
    for _ in range(3):
        nodes.start()
    for node in nodes.all:
        nodes.await_members(node, 3)
    zmesh.init(nodes.all[0].name)
    return nodes.all


def at(node: lifecycle.RunningNode, **options: Any) -> dict[str, Any]:
    """That node, or another when it is gone."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=True), **options}


def program(node: lifecycle.RunningNode, code: str, *args: str) -> "subprocess.Popen[str]":
    """Start a program on a node; it says "ready" on its output when it is so far."""
    head = "import os, sys, time, zmesh\nzmesh.init(sys.argv[1])\n"
    started = subprocess.Popen([sys.executable, "-c", head + code, node.name, *args], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def killed(started: "subprocess.Popen[str]") -> None:
    started.kill()
    started.wait()
    assert started.stdout is not None
    started.stdout.close()


def workers(node: lifecycle.RunningNode) -> list[str]:
    return [worker["state"] for worker in lifecycle.status(node.name)["workers"]]


@zmesh.remote(num_cpus=0)
class Log:
    """Notes the calls it had, in a file that outlives it."""

    def __init__(self, path: str, pause: float = 0.0) -> None:
        self.path = path
        time.sleep(pause)

    def note(self, number: int) -> int:
        with open(self.path, "a") as file:
            file.write(f"{number}\n")
        return number


def noted(path: pathlib.Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_the_home_of_a_name_is_killed_and_the_name_stays_and_is_free_in_the_end(
    made: list[lifecycle.RunningNode], tmp_path: pathlib.Path
) -> None:
    ids = {node.id: node for node in made}
    names = [f"n{i}" for i in range(12)]
    logs = {name: Log.options(name=name).remote(str(tmp_path / name)) for name in names}
    zmesh.get([log.note.remote(0) for log in logs.values()])
    home = next(node for node in made[1:] if lifecycle.status(node.name)["names"])
    theirs = [name for _, name in lifecycle.status(home.name)["names"]]
    os.kill(home.pid, signal.SIGKILL)
    assert [zmesh.get(zmesh.get_actor(name).note.remote(1), timeout=30) for name in names] == [1] * len(names)
    for name in theirs:  # while the death of the home may not be known everywhere
        zmesh.kill(logs.pop(name))
    for name in theirs:
        until(lambda name=name: _is_free(name))
        again = Log.options(name=name).remote(str(tmp_path / name))
        assert zmesh.get(again.note.remote(2), timeout=20) == 2
    assert ids[home.id] is home


def _is_free(name: str) -> bool:
    try:
        zmesh.get_actor(name)
    except ActorNotFoundError:
        return True
    return False


def test_the_node_of_an_actor_is_killed_and_its_calls_go_on_in_order(
    made: list[lifecycle.RunningNode], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "log"
    log = Log.options(**at(made[1], max_restarts=2, max_task_retries=-1)).remote(str(path))
    refs = [log.note.remote(i) for i in range(300)]
    zmesh.get(refs[50])
    os.kill(made[1].pid, signal.SIGKILL)
    refs += [log.note.remote(i) for i in range(300, 320)]
    assert zmesh.get(refs, timeout=60) == list(range(320))
    lines = noted(path)
    first = list(dict.fromkeys(lines))
    assert first == list(range(320)), "in order, but for those that were sent again"
    assert len(lines) < 320 + 600


def test_a_program_killed_while_its_actor_is_made_leaves_no_worker(
    made: list[lifecycle.RunningNode], tmp_path: pathlib.Path
) -> None:
    code = """
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@zmesh.remote
class Slow:
    def __init__(self, path):
        open(path, "w").close()
        time.sleep(60)

options = dict(name="slow", scheduling_strategy=NodeAffinitySchedulingStrategy(sys.argv[2], soft=False))
slow = Slow.options(**options).remote(sys.argv[3])
print("ready", flush=True)
time.sleep(60)
"""
    for node in made[1:]:
        path = tmp_path / node.id
        started = program(made[1], code, node.id, str(path))
        until(path.exists)
        killed(started)
        until(lambda node=node: not workers(node))
        until(lambda: _is_free("slow"))


def test_a_caller_killed_in_the_midst_of_its_calls_holds_up_nobody(
    made: list[lifecycle.RunningNode], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "log"
    log = Log.options(**at(made[1], name="log")).remote(str(path))
    zmesh.get(log.note.remote(-1))
    code = """
log = zmesh.get_actor("log")
refs = [log.note.remote(i) for i in range(100000)]
zmesh.get(refs[10])
print("ready", flush=True)
time.sleep(60)
"""
    killed(program(made[2], code))
    assert zmesh.get(log.note.remote(-2), timeout=30) == -2
    theirs = [number for number in noted(path) if number >= 0]
    assert theirs == list(range(len(theirs))), "each once, and in order"
    del log
    until(lambda: "serving" not in workers(made[1]))
    assert current().core.actors.known == {}


def test_a_stream_goes_on_elsewhere_when_the_node_of_its_generator_is_killed(
    made: list[lifecycle.RunningNode], tmp_path: pathlib.Path
) -> None:
    log = tmp_path / "log"
    log.touch()
    there, reader = at(made[1]), at(made[2])

    @zmesh.remote
    def arrays(n: int) -> Iterator[Any]:
        for i in range(n):
            yield numpy.full(200_000, float(i))

    @zmesh.remote
    def read(n: int, kill: int) -> list[float]:
        """Read two streams that come from another host, whose node is killed in the midst."""
        counter = Counter.options(**there, max_restarts=1, max_task_retries=1, num_cpus=0).remote()
        numbers = counter.count.options(generator_backpressure=2).remote(str(log), n)
        stream = arrays.options(**there, generator_backpressure=2).remote(n)
        seen = []
        for i in range(n):
            seen.append(float(zmesh.get(next(stream))[0]) + zmesh.get(next(numbers)))
            if i == 3:
                time.sleep(0.2)  # let the streams get ahead: those items are lost
                os.kill(kill, signal.SIGKILL)
        return seen

    task = read.options(**reader).remote(10, made[1].pid)
    assert zmesh.get(task, timeout=60) == [2.0 * i for i in range(10)]
