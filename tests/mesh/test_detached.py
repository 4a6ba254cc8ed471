"""Detached actors and placement groups: real programs that come, go and are killed, on one node and on several."""

import contextlib
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zmesh
from tests.mesh.test_hosts import ZMESH, Nodes, nodes  # noqa: F401  # a fixture
from zmesh import lifecycle
from zmesh.exceptions import (
    ActorDiedError,
    ActorNotFoundError,
    ConfigError,
    SerializationError,
    TaskPlacementGroupRemovedError,
)
from zmesh.util import get_placement_group, list_named_actors, placement_group, placement_group_table
from zmesh.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from zmesh.util.state import list_objects

COUNTER = """
import os, sys, time
import numpy
import zmesh

@zmesh.remote
class Counter:
    def __init__(self, start=0, inside=None):
        self.count, self.inside = start, inside
    def add(self, n=1):
        self.count += n
        print("count is", self.count)
        return self.count
    def where(self):
        return zmesh.get_runtime_context().get_node_id()
    def pid(self):
        return os.getpid()
    def read(self):
        return float(zmesh.get(self.inside[0]).sum())
    def end(self):
        zmesh.actor.exit_actor()
"""


class Programs:
    """Programs of their own, which use a node by its name."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.running: list[subprocess.Popen[str]] = []

    def start(self, node: lifecycle.RunningNode, code: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", f"{COUNTER}\nzmesh.init({node.name!r})\n{code}"],
            cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.running.append(process)
        return process

    def run(self, node: lifecycle.RunningNode, code: str) -> str:
        """Let one run to its end; returns the last line it printed."""
        process = self.start(node, code)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return (out.strip().splitlines() or [""])[-1]

    def close(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture
def programs(tmp_path: pathlib.Path) -> Iterator[Programs]:
    made = Programs(tmp_path)
    yield made
    made.close()


@pytest.fixture
def node(nodes: Nodes) -> lifecycle.RunningNode:  # noqa: F811
    return nodes.start(num_cpus=2)


def until(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def at_rest(one: lifecycle.RunningNode) -> bool:
    """Whether a node keeps nothing, and nobody but us is there."""
    told = lifecycle.status(one.name)
    busy = [worker for worker in told["workers"] if worker["state"] != "idle"]
    kinds = [client["kind"] for client in told["clients"] if client["kind"] in ("driver", "keeper")]
    return not (busy or kinds or told["objects"] or told["detached"] or told["names"])


def descendants(pid: int) -> list[int]:
    """Return the processes below one."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                child = int(path.parent.name)
                found += [child, *descendants(child)]
    return found


MAKE = 'counter = Counter.options(name="kept", lifetime="detached", max_restarts={restarts}).remote({arguments})'
ADD = 'print(zmesh.get(zmesh.get_actor("kept").add.remote(), timeout=30))'


def make(arguments: str = "", restarts: int = 0) -> str:
    return MAKE.format(arguments=arguments, restarts=restarts)


def test_a_detached_actor_outlives_its_program_with_all_it_needs(
    node: lifecycle.RunningNode, programs: Programs
) -> None:
    arguments = "numpy.full(300_000, 2.0).sum(), inside=[zmesh.put(numpy.ones(200_000))]"
    done = programs.run(node, f"{make(arguments, 1)}\nprint(zmesh.get(counter.add.remote()), flush=True)")
    assert done == "600001.0"
    assert programs.run(node, ADD) == "600002.0"
    zmesh.init(node.name)
    kept = zmesh.get_actor("kept")
    assert zmesh.get([kept.add.remote(), kept.read.remote()]) == [600003.0, 200_000.0]
    (told,) = zmesh.status()["detached"]
    assert (told["name"], told["class_name"], told["state"], told["node"]) == ("kept", "Counter", "alive", node.id)
    assert list_named_actors() == ["kept"]
    shown = subprocess.run([*ZMESH, "status", "--node", node.name], capture_output=True, text=True, check=True).stdout
    assert "detached   1 actor(s)\n    kept  Counter  alive" in shown
    assert all(row["size"] for row in list_objects()), "a handle of an actor is no object"
    assert list_objects()[0]["size"] >= 1_600_000, "a keeper tells what it owns, as every client does"
    os.kill(zmesh.get(kept.pid.remote()), signal.SIGKILL)  # it is made anew, with its arguments
    until(lambda add=kept.add: answer(add) == 600001.0)  # type: ignore[misc]
    assert zmesh.get(kept.read.remote(), timeout=30) == 200_000.0
    zmesh.kill(kept)  # its owner is asked to: a call made at once may still come first
    until(lambda add=kept.add: answer(add) is None)  # type: ignore[misc]
    with pytest.raises(ActorDiedError, match="killed"):
        zmesh.get(kept.add.remote(), timeout=30)
    until(lambda: not zmesh.status()["detached"])
    with pytest.raises(ActorNotFoundError):
        zmesh.get_actor("kept")
    del kept
    zmesh.shutdown()
    until(lambda: at_rest(node))


def answer(method: Any) -> Any:
    """Return what a call gives, None if it fails."""
    with contextlib.suppress(zmesh.exceptions.ActorError):
        return zmesh.get(method.remote(), timeout=30)
    return None


def test_what_a_detached_actor_prints_goes_to_a_log_of_its_node(
    node: lifecycle.RunningNode, programs: Programs
) -> None:
    assert programs.run(node, f"{make()}\nprint(zmesh.get(counter.add.remote()))") == "1"
    log = pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "zmesh", node.name, "detached.log")
    until(lambda: log.exists() and "count is 1" in log.read_text())
    assert "(Counter.add pid=" in log.read_text()


def test_an_actor_may_end_itself_and_its_name_is_free(node: lifecycle.RunningNode, programs: Programs) -> None:
    programs.run(node, make())
    ended = """
try:
    zmesh.get(zmesh.get_actor("kept").end.remote(), timeout=30)
except zmesh.exceptions.ActorDiedError as error:
    print("exit_actor()" in str(error))
"""
    assert programs.run(node, ended) == "True"
    assert programs.run(node, f"{make('5')}\nprint(zmesh.get(counter.add.remote()))") == "6"


def test_an_error_in_init_is_told_to_the_one_who_made_it(node: lifecycle.RunningNode) -> None:
    @zmesh.remote(lifetime="detached", name="broken")
    class Broken:
        def __init__(self) -> None:
            raise KeyError("mine")

        def call(self) -> None:
            pass

    zmesh.init(node.name)
    broken = Broken.remote()
    with pytest.raises(ActorDiedError, match="KeyError: 'mine'"):
        zmesh.get(broken.call.remote(), timeout=30)
    del broken
    zmesh.shutdown()
    until(lambda: at_rest(node))


def test_of_many_creators_at_once_one_makes_it(node: lifecycle.RunningNode, programs: Programs) -> None:
    code = """
print("ready", flush=True)
sys.stdin.readline()
shared = Counter.options(name="kept", lifetime="detached", get_if_exists=True).remote()
print(zmesh.get(shared.add.remote(), timeout=30), flush=True)
try:
    Counter.options(name="kept", lifetime="detached").remote()
except zmesh.exceptions.ActorAlreadyExistsError:
    print("taken")
"""
    made = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", f"{COUNTER}\nzmesh.init({node.name!r})\n{code}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        programs.running.append(process)
        made.append(process)
    for process in made:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outs = [process.communicate("\n", timeout=60)[0].split() for process in made]
    assert sorted(int(out[-2]) for out in outs) == [1, 2, 3]
    assert [out[-1] for out in outs] == ["taken"] * 3


@pytest.mark.slow
def test_one_made_by_a_task_outlives_the_program_too_and_may_make_others(
    node: lifecycle.RunningNode, programs: Programs
) -> None:
    code = """
@zmesh.remote
class Maker:
    def make(self, name):
        Counter.options(name=name, lifetime="detached", num_cpus=0).remote(7)

@zmesh.remote
def task():
    maker = Maker.options(name="maker", lifetime="detached", num_cpus=0).remote()
    zmesh.get(maker.make.remote("kept"))

zmesh.get(task.remote())
"""
    programs.run(node, code)
    assert programs.run(node, ADD) == "8"
    told = lifecycle.status(node.name)
    assert len({one["keeper"] for one in told["detached"]}) == 1, "they belong to one program"
    end = """
for name in ("kept", "maker"):
    zmesh.kill(zmesh.get_actor(name))
"""
    programs.run(node, end)
    until(lambda: at_rest(node))


@pytest.mark.parametrize("after", [0, 120, 180, 240, 330])
def test_a_creator_that_is_killed_leaves_the_whole_actor_or_nothing(
    node: lifecycle.RunningNode, programs: Programs, after: int
) -> None:
    """It is killed as it has asked its node, or so many of its lines of Python later: some 480 until it is answered."""
    code = f"""
lines = -1
def count(frame, event, argument):
    global lines
    if lines >= 0 or frame.f_code.co_name == "keep":
        lines += 1
    if lines == {after}:
        os.kill(os.getpid(), 9)
    return count
data = [zmesh.put(numpy.ones(200_000))]
sys.settrace(count)
{make("3, inside=data")}
sys.settrace(None)
print("made", flush=True)
os.kill(os.getpid(), 9)
"""
    process = programs.start(node, code)
    out, err = process.communicate(timeout=60)
    assert process.returncode == -9, err
    until(lambda: not [one for one in lifecycle.status(node.name)["clients"] if one["kind"] == "driver"])
    zmesh.init(node.name)
    try:
        kept = zmesh.get_actor("kept")
    except ActorNotFoundError:
        assert "made" not in out
    else:
        assert zmesh.get([kept.add.remote(), kept.read.remote()], timeout=30) == [4, 200_000.0]
        zmesh.kill(kept)
        del kept
    zmesh.shutdown()
    until(lambda: at_rest(node))


def test_zmesh_down_ends_what_is_detached_and_leaves_no_process(
    node: lifecycle.RunningNode, programs: Programs
) -> None:
    programs.run(node, f"{make()}\nprint(zmesh.get(counter.add.remote()))")
    processes = descendants(node.pid)
    assert len(processes) >= 2, "the forkserver and the actor"
    group = 'group = zmesh.util.placement_group([{"CPU": 1}], name="places", lifetime="detached")\ngroup.wait(10)'
    programs.run(node, f"{group}\nzmesh.util.placement_group([{{'CPU': 1}}], lifetime='detached')")
    shown = subprocess.run([*ZMESH, "status", "--node", node.name], capture_output=True, text=True, check=True).stdout
    assert "2 placement group(s)\n    places  PACK  CREATED" in shown
    actors, groups = lifecycle.stop(node.name).notes
    assert actors == "1 detached actor(s) end with this node: kept"
    assert groups.startswith("2 detached placement group(s) end with this node: places, ")
    until(lambda: not [pid for pid in processes if os.path.exists(f"/proc/{pid}")])


def test_a_detached_actor_must_have_a_name_and_a_lifetime_that_is_one(private: None) -> None:
    @zmesh.remote(lifetime="detached")
    class Plain:
        def __init__(self, value: Any = None) -> None:
            pass

    with pytest.raises(ConfigError, match="needs a name="):
        Plain.remote()
    for wrong in ("for ever", 7, True):
        with pytest.raises(ConfigError, match="lifetime must be None, 'non_detached' or 'detached'"):
            Plain.options(lifetime=wrong)
    with pytest.raises(SerializationError, match=r"args\[0\]"):
        Plain.options(name="x").remote(threading.Lock())
    assert not list_named_actors()
    Plain.options(lifetime="non_detached", name="x").remote()


@pytest.fixture
def private() -> Iterator[None]:
    zmesh.init("local", num_cpus=2)
    yield
    zmesh.shutdown()


def test_a_program_with_a_node_of_its_own_is_warned_once(private: None, caplog: pytest.LogCaptureFixture) -> None:
    @zmesh.remote(num_cpus=0)
    class Plain:
        def call(self) -> int:
            return 7

    with caplog.at_level(logging.WARNING, "zmesh"):
        for name in "ab":
            made = Plain.options(name=name, lifetime="detached").remote()
            assert zmesh.get(made.call.remote()) == 7
        assert placement_group([{"CPU": 1}], lifetime="detached").wait(10)
    assert [record.message.count("zmesh up") for record in caplog.records] == [1]


def test_local_mode_has_detached_actors_too() -> None:
    zmesh.init(local=True)
    try:
        made = zmesh.remote(Here).options(name="x", lifetime="detached").remote()
        assert zmesh.get(made.call.remote()) == 7
        assert zmesh.get(zmesh.get_actor("x").call.remote()) == 7
    finally:
        zmesh.shutdown()


class Here:
    """An actor of local mode."""

    def call(self) -> int:
        return 7


def test_one_in_a_runtime_environment_is_made_anew_in_it_when_its_program_is_gone(
    node: lifecycle.RunningNode, programs: Programs
) -> None:
    (programs.directory / "theirs.py").write_text("VALUE = 11\n")
    code = """
zmesh.shutdown()
zmesh.init(NODE, runtime_env={"py_modules": ["theirs.py"], "env_vars": {"MINE": "yes"}})

@zmesh.remote(max_restarts=1)
class There:
    def value(self):
        import theirs
        return theirs.VALUE, os.environ["MINE"], os.getpid()

there = There.options(name="there", lifetime="detached").remote()
print(zmesh.get(there.value.remote()))
"""
    programs.run(node, code.replace("NODE", repr(node.name)))
    (programs.directory / "theirs.py").unlink()
    zmesh.init(node.name)
    value = zmesh.get_actor("there").value
    before = zmesh.get(value.remote(), timeout=30)
    assert before[:2] == (11, "yes")
    os.kill(before[2], signal.SIGKILL)
    until(lambda: answer(value) not in (None, before))
    assert zmesh.get(value.remote())[:2] == (11, "yes")


# Placement groups.


def test_a_detached_group_outlives_its_program_until_it_is_removed(
    node: lifecycle.RunningNode, programs: Programs
) -> None:
    code = """
group = zmesh.util.placement_group([{"CPU": 1}], name="g", lifetime="detached")
assert group.wait(10)
zmesh.util.placement_group([{"CPU": 1}], name="gone")
print(group.id.hex())
"""
    made = programs.run(node, code)
    until(lambda: lifecycle.status(node.name)["resources"]["available"]["CPU"] == 1)
    zmesh.init(node.name)
    group = get_placement_group("g")
    assert group.id.hex() == made
    assert placement_group_table(group)["state"] == "CREATED"
    with pytest.raises(ConfigError, match="named 'gone'"):
        get_placement_group("gone")
    with pytest.raises(ConfigError, match="named 'g' already"):
        placement_group([{"CPU": 1}], name="g", lifetime="detached")
    inside = PlacementGroupSchedulingStrategy(group, 0)
    assert zmesh.get(zmesh.remote(lambda: 7).options(scheduling_strategy=inside).remote(), timeout=30) == 7
    remove = 'zmesh.util.remove_placement_group(zmesh.util.get_placement_group("g"))'
    programs.run(node, remove)
    with pytest.raises(TaskPlacementGroupRemovedError):
        zmesh.get(group.ready(), timeout=30)
    assert placement_group([{"CPU": 1}] * 2, name="g").wait(10), "its name and its CPU are free"
    zmesh.shutdown()
    until(lambda: at_rest(node))


def test_an_actor_in_a_group_ends_with_the_group(node: lifecycle.RunningNode, programs: Programs) -> None:
    code = """
from zmesh.util.scheduling_strategies import PlacementGroupSchedulingStrategy
group = zmesh.util.placement_group([{"CPU": 1}], name="g", lifetime="detached")
inside = PlacementGroupSchedulingStrategy(group)
Counter.options(name="kept", lifetime="detached", scheduling_strategy=inside).remote()
"""
    programs.run(node, code)
    zmesh.init(node.name)
    kept = zmesh.get_actor("kept")
    assert zmesh.get(kept.add.remote(), timeout=30) == 1
    zmesh.util.remove_placement_group(get_placement_group("g"))
    until(lambda: not list_named_actors())
    with pytest.raises(zmesh.exceptions.MeshError):
        zmesh.get(kept.add.remote(), timeout=30)
    del kept
    zmesh.shutdown()
    until(lambda: at_rest(node))


# Three nodes.


@pytest.fixture
def three(nodes: Nodes) -> list[lifecycle.RunningNode]:  # noqa: F811
    for index in range(3):
        nodes.start(resources={"disk": 1.0} if index == 2 else {})
    for one in nodes.all:
        nodes.await_members(one, 3)
    return nodes.all


def test_on_a_mesh_it_lives_on_the_node_of_its_program_unless_told_otherwise(
    three: list[lifecycle.RunningNode], programs: Programs
) -> None:
    code = f"""
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy
Counter.options(name="here", lifetime="detached").remote()
there = NodeAffinitySchedulingStrategy({three[2].id!r})
Counter.options(name="there", lifetime="detached", scheduling_strategy=there).remote()
Counter.options(name="must", lifetime="detached", resources={{"disk": 1}}).remote()
group = zmesh.util.placement_group([{{"CPU": 1}}], name="g", lifetime="detached")
"""
    programs.run(three[1], code)
    zmesh.init(three[0].name)
    made = [zmesh.get_actor(name) for name in ("here", "there", "must")]
    where = zmesh.get([one.where.remote() for one in made], timeout=30)
    assert where == [three[1].id, three[2].id, three[2].id], "the last needs what only that node has"
    assert list_named_actors() == ["here", "must", "there"]
    assert get_placement_group("g").wait(10)
    with pytest.raises(ConfigError, match="named 'g' already"):
        placement_group([{"CPU": 1}], name="g")
    zmesh.util.remove_placement_group(get_placement_group("g"))
    assert placement_group([{"CPU": 1}], name="g").wait(10)
    while made:
        zmesh.kill(made.pop())
    zmesh.shutdown()
    until(lambda: all(at_rest(one) for one in three))


@pytest.mark.slow
def test_other_nodes_die_and_it_goes_on_but_with_its_own_it_ends(
    three: list[lifecycle.RunningNode], programs: Programs
) -> None:
    code = f"""
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy
Counter.options(name="here", lifetime="detached", num_cpus=0).remote(1)
there = NodeAffinitySchedulingStrategy({three[2].id!r}, soft=True)
Counter.options(name="moves", lifetime="detached", num_cpus=0, scheduling_strategy=there, max_restarts=1,
    max_task_retries=-1).remote(5)
"""
    programs.run(three[1], code)
    zmesh.init(three[0].name)
    here, moves = zmesh.get_actor("here"), zmesh.get_actor("moves")
    assert zmesh.get([here.add.remote(), moves.where.remote()], timeout=30) == [2, three[2].id]
    os.kill(three[2].pid, signal.SIGKILL)
    assert zmesh.get(here.add.remote(), timeout=30) == 3
    assert zmesh.get(moves.add.remote(), timeout=30) == 6, "made anew"
    os.kill(three[1].pid, signal.SIGKILL)
    for one in (here, moves):
        with pytest.raises(ActorDiedError, match="gone"):
            zmesh.get(one.add.remote(), timeout=30)
    until(lambda: list_named_actors() == [])


FAR = """
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy
there = NodeAffinitySchedulingStrategy({there!r}, soft=False)
@zmesh.remote(scheduling_strategy=there)
def far(nbytes):
    return numpy.ones(nbytes // 8)
@zmesh.remote
class Total:
    def __init__(self, values):
        self.total = float(values.sum())
    def add(self):
        return self.total
    def pid(self):
        return os.getpid()
ref = far.remote({nbytes})
zmesh.wait([ref], fetch_local=False)
"""


@pytest.mark.slow
def test_it_is_made_anew_though_its_argument_lay_on_a_node_that_is_gone(
    nodes: Nodes,  # noqa: F811
    programs: Programs,
) -> None:
    home, far = nodes.start(num_cpus=2), nodes.start()
    nodes.await_members(home, 2)
    made = "Total.options(name='kept', lifetime='detached', max_restarts=-1, max_task_retries=-1).remote(ref)"
    programs.run(home, FAR.format(there=far.id, nbytes=8_000_000) + made)
    os.kill(far.pid, signal.SIGKILL)
    nodes.await_members(home, 1, 15.0)
    zmesh.init(home.name)
    kept = zmesh.get_actor("kept")
    assert zmesh.get(kept.add.remote(), timeout=30) == 1_000_000.0
    os.kill(zmesh.get(kept.pid.remote()), signal.SIGKILL)
    assert zmesh.get(kept.add.remote(), timeout=30) == 1_000_000.0, "made again, of the copy"


@pytest.mark.slow
def test_an_argument_that_does_not_fit_on_its_node_is_said_at_once(nodes: Nodes, programs: Programs) -> None:  # noqa: F811
    home, far = nodes.start(num_cpus=2, store_bytes=1 << 24, spill_bytes_max=0), nodes.start()
    nodes.await_members(home, 2)
    made = """
try:
    Total.options(name="kept", lifetime="detached").remote(ref)
except zmesh.exceptions.StoreFullError as error:
    print(error)
"""
    said = programs.run(home, FAR.format(there=far.id, nbytes=40_000_000) + made)
    assert "the actor 'kept' cannot be made: " in said


@pytest.mark.slow
def test_a_guest_makes_one_that_outlives_it(three: list[lifecycle.RunningNode], programs: Programs) -> None:
    code = f"""
zmesh.shutdown()
zmesh.init({three[2].address!r})
kept = Counter.options(name="kept", lifetime="detached").remote(3, inside=[zmesh.put(numpy.ones(200_000))])
print(zmesh.get(kept.add.remote()))
"""
    assert programs.run(three[0], code) == "4"
    zmesh.init(three[0].name)
    kept = zmesh.get_actor("kept")
    assert zmesh.get([kept.where.remote(), kept.add.remote()], timeout=30) == [three[2].id, 5]
    assert zmesh.get(kept.read.remote(), timeout=30) == 200_000.0
    zmesh.kill(kept)
    del kept
    zmesh.shutdown()
    until(lambda: all(at_rest(one) for one in three))
