"""runtime/rundir.py: one node a name, whoever else looks or cleans up; nothing of strangers is trusted or deleted."""

import fcntl
import os
import pathlib
import threading
import time
from typing import Any

import pytest

from zmesh.exceptions import ConfigError
from zmesh.runtime import rundir
from zmesh.runtime.rundir import RunDir


@pytest.fixture(autouse=True)
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Return the XDG_RUNTIME_DIR of this test. Short: pytest's own directories leave no room for sockets."""
    short = pathlib.Path(f"/tmp/zt-{os.getpid()}-{os.urandom(3).hex()}")
    short.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    yield short
    import shutil

    shutil.rmtree(short)


def record(**facts: Any) -> dict[str, Any]:
    """Return what a node says of itself."""
    return {"pid": os.getpid(), "node": "00" * 8, "private": False, **facts}


def killed(run_dir: RunDir) -> None:
    """Let go of the lock as a kill -9 does: everything else stays."""
    os.close(run_dir.lock_fd)


def test_a_node_is_found_while_it_holds_its_lock() -> None:
    run_dir = RunDir.create("default")
    assert rundir.find("default") is None
    run_dir.write_record(record())
    found = rundir.find("default")
    assert found is not None
    assert (found["pid"], found["path"], found["name"]) == (os.getpid(), run_dir.path, "default")
    run_dir.remove()
    assert rundir.find("default") is None
    assert not os.path.exists(run_dir.path)


def test_a_killed_node_is_not_found_and_its_name_can_be_taken() -> None:
    first = RunDir.create("default")
    first.write_record(record())
    killed(first)
    assert rundir.find("default") is None
    second = RunDir.create("default")
    assert os.listdir(second.path) in ([], ["lock"])
    second.remove()


def test_the_second_of_two_creators_is_told_the_pid_of_the_first() -> None:
    run_dir = RunDir.create("twice")
    run_dir.write_record(record())
    with pytest.raises(ConfigError, match=f"twice.*pid {os.getpid()}"):
        RunDir.create("twice")
    run_dir.remove()


def test_of_creators_at_once_exactly_one_wins() -> None:
    made: list[RunDir] = []
    refused: list[ConfigError] = []
    gate = threading.Barrier(8)

    def create() -> None:
        gate.wait()
        try:
            made.append(RunDir.create("race"))
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 7)
    made[0].remove()


def test_private_nodes_that_start_at_once_do_not_sweep_each_other() -> None:
    """Each start sweeps; the directory of another start may be made but not yet locked."""
    errors: list[BaseException] = []

    def create() -> None:
        try:
            for _ in range(40):
                RunDir.create(None).remove()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_looking_for_a_dead_node_never_makes_it_look_alive() -> None:
    """A probe must not take a lock that another probe, or the next node of that name, mistakes for a living node's."""
    dead = RunDir.create("dead")
    dead.write_record(record())
    killed(dead)
    found: list[Any] = []
    deadline = time.monotonic() + 0.15

    def look() -> None:
        while time.monotonic() < deadline:
            found.append(rundir.find("dead"))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one for one in found if one is not None] == []


def test_a_name_can_be_taken_while_others_look_for_it() -> None:
    deadline = time.monotonic() + 0.15
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            rundir.find("busy")

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        while time.monotonic() < deadline:
            taken = RunDir.create("busy")
            taken.write_record(record())
            killed(taken)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_lock_on_a_file_that_was_replaced_meanwhile_is_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last owner removes the directory and the next one makes it again, between our open and our flock."""
    path = pathlib.Path(rundir.base()) / "swap"
    path.mkdir(mode=0o700)
    (path / "lock").touch(mode=0o600)
    real = fcntl.flock
    others: list[RunDir] = []

    def flock(fd: int, kind: int) -> None:
        if not others:
            (path / "lock").unlink()
            path.rmdir()
            others.append(RunDir(str(path)))
            others[0] = RunDir.create("swap")
        real(fd, kind)

    monkeypatch.setattr(rundir.fcntl, "flock", flock)
    with pytest.raises(ConfigError, match="swap"):
        RunDir.create("swap")
    others[0].remove()


def test_directories_of_dead_private_nodes_are_swept_and_of_living_ones_not() -> None:
    dead, living = RunDir.create(None), RunDir.create(None)
    dead.write_record(record(private=True))
    killed(dead)
    new = RunDir.create("default")
    assert not os.path.exists(dead.path)
    assert os.path.exists(living.path)
    living.remove()
    new.remove()


def test_list_running_names_all_living_nodes() -> None:
    nodes = [RunDir.create("a"), RunDir.create("b"), RunDir.create(None)]
    for node in nodes:
        node.write_record(record())
    killed(nodes[0])
    assert {one["path"] for one in rundir.list_running()} == {nodes[1].path, nodes[2].path}
    nodes[1].remove()
    nodes[2].remove()


def test_what_zmesh_did_not_make_is_not_deleted() -> None:
    run_dir = RunDir.create("mine")
    precious = pathlib.Path(run_dir.path) / "thesis.tex"
    precious.write_text("x")
    run_dir.remove()
    assert precious.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x" * 33, "a b", "../x"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        RunDir.create(name)


def test_a_base_that_others_may_enter_is_refused(home: pathlib.Path) -> None:
    (home / "zmesh").mkdir()
    (home / "zmesh").chmod(0o755)
    with pytest.raises(ConfigError, match="0700"):
        RunDir.create("default")


def test_a_base_that_is_a_symbolic_link_is_refused(home: pathlib.Path) -> None:
    (home / "real").mkdir(mode=0o700)
    (home / "zmesh").symlink_to(home / "real")
    with pytest.raises(ConfigError, match="symlink"):
        RunDir.create("default")


def test_a_runtime_directory_that_is_not_ours_alone_is_passed_over(
    home: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.chmod(0o755)
    assert rundir.base() == f"/tmp/zmesh-{os.getuid()}"
    home.chmod(0o700)


def test_a_path_too_long_for_a_socket_is_refused(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = home / ("d" * 80)
    deep.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR"):
        RunDir.create("default")


def test_a_peer_and_a_node_have_the_sockets_their_ids_say() -> None:
    run_dir = RunDir("/run/x")
    assert run_dir.socket_of(bytes(8) + b"\x01" * 8) == "/run/x/" + "01" * 8
    assert run_dir.socket_of(bytes(16)) == "/run/x/" + "00" * 8


def test_a_farewell_can_be_read_when_the_directory_is_gone() -> None:
    made = RunDir.create("a")
    made.say_farewell({})
    fd = rundir.open_farewell(made.path)
    made.say_farewell({"moved": 3})
    made.remove()
    assert fd is not None
    assert rundir.read_farewell(fd) == {"moved": 3}
    assert rundir.open_farewell(made.path) is None


def test_a_node_that_was_killed_left_its_record() -> None:
    made = RunDir.create("a")
    made.write_record({"pid": os.getpid(), "node": "01"})
    assert rundir.was_killed("a", "01")
    assert not rundir.was_killed("a", "02"), "another one runs there now"
    made.remove()
    assert not rundir.was_killed("a", "01")


def test_the_last_words_of_a_node_are_the_end_of_its_log() -> None:
    made = RunDir.create("a")
    assert made.last_words() == "", "it has no log"
    log = pathlib.Path(made.log_path())
    log.write_text("")
    assert made.last_words() == "", "it said nothing"
    log.write_text("".join(f"line {i}\n" for i in range(10_000)))
    told = made.last_words().splitlines()
    assert told == [f". The end of its log, {log}:", *(f"    line {i}" for i in range(9988, 10_000))]
    made.remove()
