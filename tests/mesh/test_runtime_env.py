"""Runtime environments with real processes: one private node, two nodes with caches of their own, faults."""

import contextlib
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zmesh
from tests.mesh.test_hosts import Nodes, nodes, on  # noqa: F401  # a fixture
from tests.runtime.test_environments import wheel
from zmesh.exceptions import ConfigError, RuntimeEnvError, TaskCancelledError
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("ZMESH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def start(cache: pathlib.Path) -> Iterator[Callable[..., None]]:
    """Start a private node with two CPUs."""
    yield lambda **settings: zmesh.init("local", num_cpus=2, **settings)  # type: ignore[misc]
    zmesh.shutdown()


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory of a program, with a module that only tasks can import."""
    path = tmp_path / "program"
    path.mkdir()
    (path / "only_in_tasks.py").write_text("import os\nVALUE = 7\ndef here():\n    return os.getcwd()\n")
    (path / "data.txt").write_text("some data")
    return path


@zmesh.remote
def variables(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


@zmesh.remote
def reads(name: str) -> tuple[str, str, int]:
    import only_in_tasks

    return pathlib.Path(name).read_text(), only_in_tasks.here(), only_in_tasks.VALUE


@zmesh.remote
def who() -> tuple[int, dict[str, Any]]:
    return os.getpid(), zmesh.get_runtime_context().runtime_env


@zmesh.remote
def imports(name: str) -> tuple[Any, str, int]:
    module = __import__(name)
    return module.VALUE, module.__file__ or "", os.getpid()


def unpacked(cache: pathlib.Path, kind: str = "files") -> list[str]:
    found = sorted(os.listdir(cache)) if cache.exists() else []
    return [name for name in found if name.startswith(kind) and "." not in name]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_variables_of_a_task_are_laid_over_those_of_the_program(start: Callable[..., None]) -> None:
    start(runtime_env={"env_vars": {"A": "job", "B": "job"}})
    own = variables.options(runtime_env={"env_vars": {"B": "task", "C": "task"}})
    assert zmesh.get(variables.remote("A", "B", "C")) == ["job", "job", None]
    assert zmesh.get(own.remote("A", "B", "C")) == ["job", "task", "task"]
    assert zmesh.get(variables.remote("A", "B", "C")) == ["job", "job", None]
    assert zmesh.get_runtime_context().runtime_env == {"env_vars": {"A": "job", "B": "job"}}


def test_a_task_without_an_environment_finds_nothing_of_one(start: Callable[..., None]) -> None:
    start()
    own = variables.options(runtime_env={"env_vars": {"OF_ENV": "1", "OMP_NUM_THREADS": "5"}})
    for _ in range(3):
        results = zmesh.get([task.remote("OF_ENV", "OMP_NUM_THREADS") for _ in range(20) for task in (own, variables)])
        assert results == [["1", "5"], [None, "1"]] * 20
    first, shown = zmesh.get(who.options(runtime_env={"env_vars": {"OF_ENV": "1"}}).remote())
    assert shown == {"env_vars": {"OF_ENV": "1"}}
    assert zmesh.get(who.remote())[1] == {}
    assert zmesh.get(who.remote())[0] != first


def test_tasks_that_tasks_submit_inherit(start: Callable[..., None], tree: pathlib.Path) -> None:
    @zmesh.remote
    def parent() -> Any:
        more = variables.options(runtime_env={"env_vars": {"B": "child"}})
        return zmesh.get([more.remote("A", "B"), reads.remote("data.txt")])

    start(runtime_env={"env_vars": {"A": "job"}})
    own = parent.options(runtime_env={"env_vars": {"B": "parent"}, "working_dir": tree})
    inherited, (text, _, value) = zmesh.get(own.remote())
    assert inherited == ["job", "child"]
    assert (text, value) == ("some data", 7)


def test_a_working_dir_is_where_tasks_are_and_travels_by_content(
    start: Callable[..., None], tree: pathlib.Path, cache: pathlib.Path
) -> None:
    start()
    task = reads.options(runtime_env={"working_dir": str(tree)})
    results = zmesh.get([task.remote("data.txt") for _ in range(10)])
    (name,) = unpacked(cache)
    assert results == [("some data", str(cache / name), 7)] * 10
    again = reads.options(runtime_env={"working_dir": tree})
    assert zmesh.get(again.remote("data.txt")) == results[0]
    (tree / "data.txt").write_text("other data")
    assert zmesh.get(task.remote("data.txt")) == results[0]  # what was captured first counts, as for functions
    changed = reads.options(runtime_env={"working_dir": tree})
    assert zmesh.get(changed.remote("data.txt"))[0] == "other data"
    assert len(unpacked(cache)) == 2


def test_modules_travel_as_directories_files_and_modules(
    start: Callable[..., None], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {
        "pack_of_env": "pack_of_env/__init__.py",
        "file_of_env": "file_of_env.py",
        "live_of_env": "live_of_env.py",
    }
    for name, place in places.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(f"VALUE = {name!r}\n")
    start()  # before the path is changed, which workers take over
    monkeypatch.syspath_prepend(str(tmp_path))
    live = __import__("live_of_env")
    given = {"py_modules": [str(tmp_path / "pack_of_env"), tmp_path / "file_of_env.py", live]}
    task = imports.options(runtime_env=given)
    for name in places:
        value, file, _ = zmesh.get(task.remote(name))
        assert value == name
        assert "/cache/files-" in file
    with pytest.raises(ModuleNotFoundError):
        zmesh.get(imports.remote("pack_of_env"))


def test_a_remote_function_takes_its_files_along(start: Callable[..., None], tree: pathlib.Path) -> None:
    """What another task submits later does not look for the directory again: it may run elsewhere."""
    start()
    own = reads.options(runtime_env={"working_dir": str(tree)})

    @zmesh.remote
    def submits(function: Any) -> Any:
        for path in tree.iterdir():
            path.unlink()
        return zmesh.get(function[0].remote("data.txt"))

    assert zmesh.get(submits.remote([own]))[0] == "some data"


def test_what_tasks_share_they_cannot_change(start: Callable[..., None], tree: pathlib.Path) -> None:
    @zmesh.remote
    def writes() -> int:
        pathlib.Path("new.txt").write_text("may be")
        return os.stat("data.txt").st_mode & 0o222

    start(runtime_env={"working_dir": tree})
    assert zmesh.get(writes.remote()) == 0


@pytest.mark.slow
def test_pip_installs_once_whoever_asks(
    start: Callable[..., None], tmp_path: pathlib.Path, cache: pathlib.Path
) -> None:
    built = wheel(tmp_path, "tiny_of_env")
    start()
    task = imports.options(runtime_env={"pip": [built]}, num_cpus=0)
    results = zmesh.get([task.remote("tiny_of_env") for _ in range(6)])
    assert {value for value, _, _ in results} == {7}
    assert len(unpacked(cache, "venv")) == 1
    wheel(tmp_path, "tiny_of_env", body="VALUE = 8\n")
    (tmp_path / "wanted.txt").write_text(f"{built}\n")
    changed = imports.options(runtime_env={"pip": str(tmp_path / "wanted.txt")})
    assert zmesh.get(changed.remote("tiny_of_env"))[0] == 8


@pytest.mark.slow
def test_a_failed_installation_fails_the_tasks_that_need_it_with_pips_text(
    start: Callable[..., None], tmp_path: pathlib.Path, cache: pathlib.Path
) -> None:
    (tmp_path / "broken-1.0-py3-none-any.whl").write_text("no zip")
    start()
    task = who.options(runtime_env={"pip": [str(tmp_path / "broken-1.0-py3-none-any.whl")]})
    refs = [task.remote() for _ in range(4)]
    for ref in refs:
        with pytest.raises(RuntimeEnvError, match=r"(?s)could not install .*It wrote:.*broken"):
            zmesh.get(ref)
    assert unpacked(cache, "venv") == []
    assert zmesh.get(who.remote())[1] == {}


def test_what_makes_no_sense_is_refused_before_anything_starts(cache: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="valid keys are: env_vars, working_dir, py_modules, pip"):
        zmesh.init("local", runtime_env={"envvars": {}})
    assert not zmesh.is_initialized()
    with pytest.raises(ValueError, match="unknown key 'envvars'"):
        who.options(runtime_env={"envvars": {}})


def test_an_init_that_cannot_pack_leaves_nothing_running(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch, cache: pathlib.Path
) -> None:
    monkeypatch.setattr("zmesh.runtime_env.PACKAGE_BYTES_MAX", 1)
    with pytest.raises(ConfigError, match="zmeshignore"):
        zmesh.init("local", num_cpus=1, runtime_env={"working_dir": tree})
    assert not zmesh.is_initialized()


def slow_fetch(cache: pathlib.Path, tree: pathlib.Path) -> Any:
    """Hold the lock of a package, so that workers which need it wait; returns its descriptor."""
    import fcntl

    from zmesh import runtime_env

    digest, _ = runtime_env.pack(runtime_env.files_of(str(tree), module=False))
    cache.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(cache / f"files-{digest}.making", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def executing() -> list[int]:
    return [worker["pid"] for worker in zmesh.status()["workers"] if worker["executing"]]


def test_a_worker_killed_while_it_sets_up_costs_nothing(
    start: Callable[..., None], tree: pathlib.Path, cache: pathlib.Path
) -> None:
    fd = slow_fetch(cache, tree)
    start()
    ref = reads.options(runtime_env={"working_dir": tree}).remote("data.txt")
    until(lambda: bool(executing()))
    killed = executing()[0]
    os.kill(killed, signal.SIGKILL)
    until(lambda: bool(executing()) and executing() != [killed])
    os.close(fd)
    assert zmesh.get(ref, timeout=10)[0] == "some data"


def test_a_task_can_be_cancelled_while_its_worker_sets_up(
    start: Callable[..., None], tree: pathlib.Path, cache: pathlib.Path
) -> None:
    fd = slow_fetch(cache, tree)
    start()
    ref = reads.options(runtime_env={"working_dir": tree}).remote("data.txt")
    until(lambda: bool(executing()))
    zmesh.cancel(ref)
    with pytest.raises(TaskCancelledError):
        zmesh.get(ref, timeout=10)
    os.close(fd)
    assert zmesh.get(reads.options(runtime_env={"working_dir": tree}).remote("data.txt"), timeout=10)[2] == 7


def test_two_hosts_get_a_package_once_each(
    nodes: Nodes,  # noqa: F811
    tree: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tree / "large.bin").write_bytes(os.urandom(3 << 20))
    made = []
    for name in ("one", "two"):
        monkeypatch.setenv("ZMESH_CACHE_DIR", str(tmp_path / name))
        made.append(nodes.start(num_cpus=2))
    nodes.await_members(made[0], 2)
    zmesh.init(made[0].name, runtime_env={"working_dir": str(tree)})
    for node, name in zip(made, ("one", "two"), strict=True):
        refs = [reads.options(**on(node)).remote("data.txt") for _ in range(4)]
        (directory,) = unpacked(tmp_path / name) if zmesh.get(refs, timeout=20) else ()
        assert zmesh.get(refs) == [("some data", str(tmp_path / name / directory), 7)] * 4
        assert os.path.getsize(tmp_path / name / directory / "large.bin") == 3 << 20


@pytest.mark.slow
def test_a_guest_takes_its_packages_to_another_node(
    nodes: Nodes,  # noqa: F811
    tree: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tree / "large.bin").write_bytes(os.urandom(1 << 20))
    made = []
    for name in ("one", "two"):
        monkeypatch.setenv("ZMESH_CACHE_DIR", str(tmp_path / name))
        made.append(nodes.start())
    nodes.await_members(made[0], 2)
    zmesh.init(made[0].address, runtime_env={"working_dir": tree})

    @zmesh.remote
    def works(seconds: float) -> int:
        time.sleep(seconds)
        return os.path.getsize("large.bin")

    here = {"scheduling_strategy": NodeAffinitySchedulingStrategy(made[0].id, soft=True)}
    assert zmesh.get(works.options(**here).remote(0)) == 1 << 20
    assert unpacked(tmp_path / "two") == []
    refs = [works.options(**here).remote(0.2) for _ in range(10)]
    zmesh.get(refs[0])
    os.kill(made[0].pid, signal.SIGKILL)
    assert zmesh.get(refs, timeout=30) == [1 << 20] * 10
    assert zmesh.get(works.remote(0), timeout=10) == 1 << 20
    assert len(unpacked(tmp_path / "two")) == 1


def test_a_program_elsewhere_that_is_killed_leaves_only_the_cache(
    nodes: Nodes,  # noqa: F811
    tree: pathlib.Path,
    tmp_path: pathlib.Path,
    cache: pathlib.Path,
) -> None:
    import subprocess

    (tree / "large.bin").write_bytes(os.urandom(1 << 20))
    node = nodes.start()
    code = f"""
import os, zmesh
zmesh.init({node.name!r}, runtime_env={{"working_dir": {str(tree)!r}}})
@zmesh.remote
def f():
    return os.path.getsize("large.bin")
print(zmesh.get(f.remote()), flush=True)
import time; time.sleep(60)
"""
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == b"1048576\n"
    program.send_signal(signal.SIGKILL)
    program.wait()
    program.stdout.close()
    zmesh.init(node.name)
    until(lambda: not zmesh.status()["objects"] and not zmesh.status()["store"]["used"])
    assert len(unpacked(cache)) == 1


def test_a_local_session_takes_it_on_inline_and_off_again(
    tree: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEPT", "before")
    (tmp_path / "local_of_env.py").write_text("VALUE = 3\n")
    before = os.getcwd(), list(sys.path)
    with zmesh.init(local=True, runtime_env={"env_vars": {"A": "job", "KEPT": "job"}, "working_dir": tree}):
        assert zmesh.get(variables.remote("A", "KEPT", "C")) == ["job", "job", None]
        own = {"env_vars": {"A": "task", "C": "task"}, "py_modules": [tmp_path / "local_of_env.py"]}
        assert zmesh.get(variables.options(runtime_env=own).remote("A", "KEPT", "C")) == ["task", "job", "task"]
        assert zmesh.get(imports.options(runtime_env=own).remote("local_of_env"))[0] == 3
        assert zmesh.get(who.options(runtime_env=own).remote())[1]["env_vars"]["KEPT"] == "job"
        assert zmesh.get(reads.remote("data.txt"))[0] == "some data"
        assert os.environ["A"] == "job"
        with pytest.raises(ConfigError, match="pip has no place in init"):
            who.options(runtime_env={"pip": ["x"]}).remote()
    assert (os.getcwd(), sys.path) == before
    assert os.environ["KEPT"] == "before"
    assert "A" not in os.environ
    with pytest.raises(ConfigError, match="pip has no place"):
        zmesh.init(local=True, runtime_env={"pip": ["x"]})
    for name in ("only_in_tasks", "local_of_env"):
        with contextlib.suppress(KeyError):
            del sys.modules[name]
