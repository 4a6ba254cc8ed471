"""The cache of a host, and how a process takes on an environment."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator

import pytest

from zmesh import runtime_env as envs
from zmesh.exceptions import NodeDiedError, RuntimeEnvError
from zmesh.runtime import environments
from zmesh.runtime.environments import Cache, Environment


@pytest.fixture
def root(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("ZMESH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test does to this process is undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    directory, variables = os.getcwd(), dict(os.environ)
    yield
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(variables)


def writes(text: str, made: list[str] | None = None) -> Callable[[str], None]:
    def make(path: str) -> None:
        if made is not None:
            made.append(path)
        os.mkdir(path)
        with open(os.path.join(path, "file"), "w") as file:
            file.write(text)

    return make


def end(cache: Cache) -> None:
    """Let go of what a cache uses, as the end of its process would."""
    for fd in cache._used.values():
        os.close(fd)
    cache._used.clear()


def wheel(directory: pathlib.Path, name: str = "tiny", version: str = "1.0", body: str = "VALUE = 7\n") -> str:
    """Write a wheel with one module, as any build tool would."""
    path = directory / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", body)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    return str(path)


def packed(directory: pathlib.Path, *, module: bool = False) -> tuple[str, bytes]:
    return envs.pack(envs.files_of(str(directory), module=module))


# The cache.


def test_many_who_want_the_same_make_it_once(root: pathlib.Path) -> None:
    made: list[str] = []

    def slow(path: str) -> None:
        writes("x", made)(path)
        time.sleep(0.05)

    threads = [threading.Thread(target=lambda: Cache(str(root)).get("a", slow)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [str(root / "a")]
    assert (root / "a/file").read_text() == "x"
    assert root.stat().st_mode & 0o777 == 0o700


def test_what_failed_to_be_made_leaves_nothing_and_is_made_by_the_next(root: pathlib.Path) -> None:
    def fail(path: str) -> None:
        writes("half")(path)
        raise RuntimeEnvError("no")

    with pytest.raises(RuntimeEnvError, match="no"):
        Cache(str(root)).get("a", fail)
    assert not (root / "a").exists()
    assert (pathlib.Path(Cache(str(root)).get("a", writes("whole"))) / "file").read_text() == "whole"


def test_a_maker_that_is_killed_leaves_nothing_that_counts(root: pathlib.Path) -> None:
    code = f"""
import os, time
from zmesh.runtime.environments import Cache
def make(path):
    os.mkdir(path)
    open(os.path.join(path, "half"), "w").close()
    print("begun", flush=True)
    time.sleep(60)
Cache({str(root)!r}).get("a", make)
"""
    maker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert maker.stdout is not None
    assert maker.stdout.readline() == b"begun\n"
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    Cache(str(root)).get("a", writes("whole"))
    assert sorted(os.listdir(root / "a")) == ["file"]


def test_what_a_killed_maker_left_is_removed_when_something_else_is_made(root: pathlib.Path) -> None:
    (root / "half").mkdir(parents=True, mode=0o700)
    root.chmod(0o700)
    (root / "half.lock").touch()
    Cache(str(root)).get("a", writes("x"))
    assert sorted(os.listdir(root)) == ["a", "a.lock", "a.making"]


def test_the_longest_unused_goes_first_and_what_is_in_use_stays(root: pathlib.Path) -> None:
    for name, used_s in (("old", 100), ("older", 50), ("new", 200)):
        first = Cache(str(root))
        first.get(name, writes("12345"))
        end(first)
        os.utime(root / f"{name}.lock", (used_s, used_s))
    user = Cache(str(root))
    user.get("older", writes("never"))  # it is in use from now on
    os.utime(root / "older.lock", (50, 50))
    Cache(str(root), bytes_max=10).get("a", writes("1"))
    assert sorted(name for name in os.listdir(root) if "." not in name) == ["a", "new", "older"]
    end(user)


def test_use_is_noted(root: pathlib.Path) -> None:
    Cache(str(root)).get("a", writes("1"))
    os.utime(root / "a.lock", (1, 1))
    Cache(str(root)).get("a", writes("2"))
    assert (root / "a.lock").stat().st_mtime > 1
    assert (root / "a/file").read_text() == "1"


def test_a_cache_that_others_may_write_is_refused(root: pathlib.Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(RuntimeEnvError, match=r"chmod 700, or ZMESH_CACHE_DIR"):
        Cache(str(root)).get("a", writes("x"))


def test_a_disk_that_fails_is_said_to(root: pathlib.Path) -> None:
    def fail(path: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RuntimeEnvError, match=r"No space left on device; ZMESH_CACHE_DIR names another"):
        Cache(str(root)).get("a", fail)

    def lost(path: str) -> None:
        raise NodeDiedError("gone")

    with pytest.raises(NodeDiedError):
        Cache(str(root)).get("a", lost)


def test_a_lock_file_that_was_removed_while_we_waited_is_made_anew(root: pathlib.Path) -> None:
    cache = Cache(str(root))
    cache._open_root()
    fd = cache._lock("a.making", environments.fcntl.LOCK_EX)
    waiter = threading.Thread(target=lambda: cache.get("a", writes("x")))
    waiter.start()
    time.sleep(0.02)  # it waits for the file that goes now, or comes later: both are to work
    (root / "a.making").unlink()
    os.close(fd)
    waiter.join(10)
    assert (root / "a.lock").read_text() == "1"


def test_who_comes_while_it_is_made_does_not_wait_for_those_who_use_it(root: pathlib.Path) -> None:
    """Each of these uses it to the end of the test."""
    for round_ in range(40):
        caches = [Cache(str(root)) for _ in range(4)]
        threads = [
            threading.Thread(target=cache.get, args=(f"a{round_}", writes("x")), daemon=True) for cache in caches
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        for cache in caches:
            end(cache)


def test_where_the_cache_lies_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZMESH_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert environments.cache_root() == "/x/zmesh"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/h")
    assert environments.cache_root() == "/h/.cache/zmesh"


# Taking one on.


@pytest.mark.usefixtures("process")
def test_a_process_takes_on_variables_directory_and_modules(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "wd").mkdir()
    (tmp_path / "wd/run.sh").write_text("echo")
    (tmp_path / "wd/run.sh").chmod(0o755)
    (tmp_path / "mod_of_env.py").write_text("X = 1")
    packages = [packed(tmp_path / "wd"), packed(tmp_path / "mod_of_env.py", module=True)]
    zips = {digest.encode(): data for digest, data in packages}
    described = {
        "id": "1",
        "env_vars": {"OF_ENV": "yes"},
        "working_dir": [packages[0][0], packages[0][0].encode()],
        "py_modules": [[packages[1][0], packages[1][0].encode()]],
    }
    environment = Environment(zips.__getitem__)
    environment.enter(described)
    assert os.environ["OF_ENV"] == "yes"
    assert os.getcwd() == environment.here["working_dir"] == sys.path[0]
    assert environment.here["py_modules"] == [sys.path[1]]
    assert os.access("run.sh", os.X_OK)
    assert os.stat("run.sh").st_mode & 0o222 == 0
    assert __import__("mod_of_env").X == 1
    environment.enter(described)
    assert sys.path.count(os.getcwd()) == 1
    Environment(lambda oid: b"is not asked").enter(described)  # what the host has is not fetched


@pytest.mark.usefixtures("process", "root")
def test_a_package_that_is_not_what_it_should_be_is_refused() -> None:
    with pytest.raises(RuntimeEnvError, match="did not arrive as it was sent"):
        Environment(lambda oid: b"other").enter({"id": "1", "working_dir": ["d", b"o"]})


@pytest.mark.usefixtures("process", "root")
def test_a_failure_is_told_again_for_a_while_and_then_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    environment = Environment(lambda oid: asked.append(oid) or b"other")  # type: ignore[func-returns-value]
    for _ in range(3):
        with pytest.raises(RuntimeEnvError):
            environment.enter({"id": "1", "working_dir": ["d", b"o"]})
    assert len(asked) == 1
    monkeypatch.setattr(environments, "monotonic", lambda: time.monotonic() + environments.RETRY_AFTER_S)
    with pytest.raises(RuntimeEnvError):
        environment.enter({"id": "1", "working_dir": ["d", b"o"]})
    assert len(asked) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("process")
def test_pip_installs_beside_what_is_there(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lines = [wheel(tmp_path, "tiny_of_env"), "numpy", "msgpack"]  # the last two are there, so nobody is asked for them
    environment = Environment(lambda oid: b"")
    environment.enter({"id": "1", "pip": list(envs.requirements(lines))})
    assert __import__("tiny_of_env").VALUE == 7
    (venv,) = [name for name in os.listdir(root) if name.startswith("venv-") and "." not in name]
    assert sys.path[0] == environments.site_packages(str(root / venv))
    assert not any(name.startswith("numpy") for name in os.listdir(sys.path[0]))
    assert os.environ["PATH"].startswith(str(root / venv / "bin"))


@pytest.mark.slow
@pytest.mark.usefixtures("process", "root")
def test_a_failed_installation_has_pips_text(tmp_path: pathlib.Path) -> None:
    broken = tmp_path / "broken-1.0-py3-none-any.whl"
    broken.write_bytes(b"no zip")
    with pytest.raises(RuntimeEnvError, match=r"(?s)could not install .*broken.*ended with 1. It wrote:.*is invalid"):
        Environment(lambda oid: b"").enter({"id": "1", "pip": list(envs.requirements([str(broken)]))})
