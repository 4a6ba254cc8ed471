"""How a worker takes on a runtime environment: fetch, unpack, install, once a host; then variables, path, directory.

A worker takes on one for life, before it loads the first function of the job, so nothing is ever undone. What a host
keeps lies in a cache under the digest of what it is made of (see Cache); any number of workers, also of different
nodes, may ask for the same at once.

    $ZMESH_CACHE_DIR, or $XDG_CACHE_HOME/zmesh, or ~/.cache/zmesh      0700, ours
        files-<digest>/     an unpacked package
        venv-<digest>/      a virtual environment
        <either>.making     locked by who makes it, or looks whether somebody has
        <either>.lock       locked by all who use it; its size once it is whole, empty before
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import io
import json
import os
import shutil
import site
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

from zmesh import runtime_env as envs
from zmesh.exceptions import MeshError, RuntimeEnvError

CACHE_BYTES_MAX = 10 << 30  # what nobody uses goes, the longest unused first, if there is more. Source: Ray's limit
RETRY_AFTER_S = 10.0  # a worker that could not make an environment tells the next tasks so, and tries again after this
TAIL_CHARS = 4000  # of what pip wrote, in the error

_LOCK, _MAKING = ".lock", ".making"


class Cache:
    """A directory of things named after what they are made of. Any process of this user may use it at the same time.

    Args:
        bytes_max: what nobody uses is removed while there is more than this.
    """

    def __init__(self, root: str, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._root = root
        self._bytes_max = bytes_max
        self._used: dict[str, int] = {}  # {name: descriptor that holds its lock, as long as this process lives}

    def get(self, name: str, make: Callable[[str], None]) -> str:
        """Return the path of a directory that `make(path)` fills, if nobody has. It stays as long as this process.

        Waits while another process makes it. May take as long as `make`, whose errors come through.

        Raises:
            RuntimeEnvError: the cache is not to be used, e.g. as the disk is full.
        """
        path = os.path.join(self._root, name)
        try:
            if name not in self._used:
                self._open_root()
                self._used[name] = self._use(name, path, make)
        except OSError as error:
            if isinstance(error, MeshError):
                raise
            raise RuntimeEnvError(
                f"cannot keep {name} in {self._root}: {error}; ZMESH_CACHE_DIR names another directory"
            ) from error
        return path

    def _open_root(self) -> None:
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        found = os.lstat(self._root)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise RuntimeEnvError(
                f"{self._root} must be a directory of yours that nobody else may write: chmod 700, or ZMESH_CACHE_DIR"
            )

    def _lock(self, file: str, how: int) -> int:
        """Return a descriptor that holds a lock. Its file may be removed, but only by who has it for himself."""
        path = os.path.join(self._root, file)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, how)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), os.stat(path)):
                        return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _use(self, name: str, path: str, make: Callable[[str], None]) -> int:
        """Make what is not there, in its place, as a moved virtual environment would not work; returns its lock.

        It counts once its lock file says how large it is. What a maker that was killed left has none, and goes.
        """
        # Two locks: who waited for the first with the second in hand would wait for all who use it.
        making = self._lock(name + _MAKING, fcntl.LOCK_EX)
        try:
            fd = self._lock(name + _LOCK, fcntl.LOCK_SH)
            whole = os.fstat(fd).st_size > 0
            try:
                if whole:
                    os.utime(fd)
                    return fd
                shutil.rmtree(path, ignore_errors=True)
                self._make_room()
                make(path)
                os.write(fd, str(max(1, sum(found.st_size for found in _files(path)))).encode())
            except BaseException:  # also a cancellation, which may come anywhere
                if not whole:
                    os.truncate(fd, 0)
                    shutil.rmtree(path, ignore_errors=True)
                os.close(fd)
                raise
            return fd
        finally:
            os.close(making)

    def _make_room(self) -> None:
        """Remove what was not used for longest, while there is too much, but nothing that is in use."""
        found = []
        for entry in os.scandir(self._root):
            if entry.name.endswith(_LOCK):
                with contextlib.suppress(OSError, ValueError), open(entry.path) as file:
                    found.append((entry.stat().st_mtime, int(file.read() or 0), entry.name.removesuffix(_LOCK)))
        left = sum(size for _, size, _ in found)
        for _, size, name in sorted(found):
            # What has no size is being made, or its maker was killed.
            if (not size or left > self._bytes_max) and self._remove(name):
                left -= size

    def _remove(self, name: str) -> bool:
        """Remove something, unless somebody makes or uses it."""
        with contextlib.ExitStack() as locks:
            for end in (_MAKING, _LOCK):
                try:
                    fd = self._lock(name + end, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    return False
                locks.callback(os.close, fd)
            os.truncate(fd, 0)  # first of all: if we are killed now, it does not count
            shutil.rmtree(os.path.join(self._root, name), ignore_errors=True)
            for end in (_LOCK, _MAKING):
                os.unlink(os.path.join(self._root, name + end))
        return True


def _files(path: str) -> Iterator[os.stat_result]:
    for here, _, names in os.walk(path):
        for name in names:
            yield os.lstat(os.path.join(here, name))


def cache_root() -> str:
    """Return where this user keeps what environments are made of."""
    named = os.environ.get("ZMESH_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.abspath(named or os.path.join(base, "zmesh"))


class Environment:
    """The environment of one worker. Main thread only.

    Args:
        fetch: returns the bytes of a package by its ObjectID; waits for them.
    """

    def __init__(self, fetch: Callable[[bytes], bytes]) -> None:
        self._fetch = fetch
        self._cache = Cache(cache_root())
        self._entered = ""  # ID of the environment this process has taken on
        self._failed: tuple[float, str] = (0.0, "")  # until when, and why
        self.variables: dict[str, str] = {}
        self.here: dict[str, Any] = {}  # as users see it, with the paths of this host

    def enter(self, described: dict[str, Any]) -> None:
        """Take on an environment, if this process has not; waits for bytes, for pip, and for others who do the same.

        Raises:
            RuntimeEnvError: it cannot be made; the text has the last of what pip wrote.
        """
        if self._entered:
            assert self._entered == described["id"], "a worker serves one environment for life"
            return
        until, why = self._failed
        if monotonic() < until:
            raise RuntimeEnvError(why)
        try:
            self._enter(described)
        except RuntimeEnvError as error:
            self._failed = (monotonic() + RETRY_AFTER_S, str(error))
            raise
        self._entered = described["id"]

    def _enter(self, described: dict[str, Any]) -> None:
        """Make all there is to make, and only then change this process."""
        variables = dict(described.get("env_vars", {}))
        packages = [self._unpacked(digest, oid) for digest, oid in envs.packages_of(described)]
        here: dict[str, Any] = {"env_vars": dict(variables)} if variables else {}
        installed: list[str] = []
        if "pip" in described:
            lines, contents = described["pip"]
            venv = self._cache.get(*virtual_environment(lines, contents))
            installed = [site_packages(venv)]
            variables.setdefault("PATH", os.path.join(venv, "bin") + os.pathsep + os.environ.get("PATH", os.defpath))
            here["pip"] = lines
        if "working_dir" in described:
            os.chdir(packages[0])
            here["working_dir"] = packages[0]
        if "py_modules" in described:
            here["py_modules"] = packages["working_dir" in described :]
        os.environ.update(variables)
        extend_path(packages, installed)
        self.variables, self.here = variables, here

    def _unpacked(self, digest: str, oid: bytes) -> str:
        def unpack(path: str) -> None:
            data = self._fetch(oid)
            if envs.digest_of(data) != digest:
                raise RuntimeEnvError(f"the package {digest} did not arrive as it was sent: please report this")
            unzip(data, path)

        return self._cache.get(f"files-{digest}", unpack)


def unzip(data: bytes, path: str) -> None:
    """Unpack a package into a new directory.

    Its files cannot be written: they lie under the digest of what they were, and others use them.
    """
    os.mkdir(path, 0o700)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            made = archive.extract(info, path)
            os.chmod(made, info.external_attr >> 16 & 0o777)


def extend_path(directories: list[str], installed: list[str]) -> None:
    """Put directories first on the import path, then those of installed packages, with what their .pth files name."""
    before = list(sys.path)
    for path in installed:
        site.addsitedir(path)
    added = [path for path in sys.path if path not in before]
    first = [*directories, *added]
    sys.path[:] = [*first, *(path for path in before if path not in first)]
    importlib.invalidate_caches()


# Packages that pip installs.


def virtual_environment(lines: list[str], contents: str) -> tuple[str, Callable[[str], None]]:
    """Return the name under which requirements are kept, and what installs them.

    What this interpreter can import counts as installed: so it is part of the name.
    """
    key = json.dumps([lines, contents, sys.version, sys.prefix, sys.base_prefix])
    digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    return f"venv-{digest}", lambda path: install(lines, path)


def site_packages(venv: str) -> str:
    """Return where a virtual environment of this Python keeps its packages."""
    return os.path.join(venv, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")


def install(lines: list[str], venv: str) -> None:
    """Make a virtual environment that sees the packages of this one, and have pip install requirements into it.

    Raises:
        RuntimeEnvError: it cannot; the text has the last of what pip wrote.
    """
    has_pip = importlib.util.find_spec("pip") is not None  # else the new one gets its own, which takes seconds
    make = [sys.executable, "-m", "venv", "--system-site-packages", *(["--without-pip"] if has_pip else []), venv]
    _run(make, "make a virtual environment")
    # "System" is the interpreter's own directory: if that is itself a virtual environment, pip must see it, too.
    seen = [path for path in site.getsitepackages() if os.path.isdir(path)]
    with open(os.path.join(site_packages(venv), "zmesh_seen.pth"), "w", encoding="utf-8") as file:
        file.write("".join(f"{path}\n" for path in seen))
    wanted = os.path.join(venv, "requirements.txt")
    with open(wanted, "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
    python = os.path.join(venv, "bin", "python")
    pip = [sys.executable, "-m", "pip", "--python", python] if has_pip else [python, "-m", "pip"]
    _run([*pip, "install", "--disable-pip-version-check", "--no-input", "-r", wanted], f"install {', '.join(lines)}")


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise RuntimeEnvError(
            f"runtime_env: could not {what}: `{' '.join(command)}` ended with {done.returncode}. It wrote:\n"
            f"{done.stdout[-TAIL_CHARS:]}"
        )
