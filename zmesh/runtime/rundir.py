"""The directory of a node: its sockets, its record, its lock. Private to the user; gone with the node.

    $XDG_RUNTIME_DIR/zmesh or /tmp/zmesh-<uid>     0700, ours, no symlink
        default/  or another name of `zmesh up`     lock, node.json, log, detached.log, and the sockets
        p-<8 hex>/                                  of a private node

The lock (flock) is held for the node's life: a free one marks what a killed node left, which the next start removes.
Whoever looks or sweeps holds it too, for microseconds: so a held lock is a living node only together with a record
whose process has the start time in the record, and whoever wants the lock tries for a while.
"""

import contextlib
import fcntl
import json
import os
import re
import stat
import time
from typing import Any

from zmesh.exceptions import ConfigError
from zmesh.wire.ids import NODE_ID_BYTES, PeerID

DETACHED_LOGS = ("detached.log", "detached.log.old")  # what detached actors print; the second is the older half
_NAME = re.compile(r"[A-Za-z0-9._-]{1,32}")
_SOCKET_PATH_BYTES_MAX = 107  # sun_path, less its final zero
_PRIVATE = "p-"
_OURS = ("node.json", "node.json.new", "log", "farewell", *DETACHED_LOGS)  # besides sockets: nothing else is deleted
_LAST_WORDS_BYTES, _LAST_WORDS_LINES = 4096, 12
_LOCK_WAIT_S = 0.2
_LOCK_RETRY_S = 0.002


def base() -> str:
    """Return the directory that holds all nodes of this user, made if need be.

    Raises:
        ConfigError: it is not ours alone.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    path = os.path.join(runtime, "zmesh") if runtime and _is_ours(runtime) else f"/tmp/zmesh-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    if not _is_ours(path):
        raise ConfigError(f"{path} must be a directory of yours with mode 0700, no symlink: remove it and try again")
    return path


def _is_ours(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


class RunDir:
    """Paths in a node's directory; `lock_fd` is the held lock, in the node itself."""

    def __init__(self, path: str, lock_fd: int = -1) -> None:
        self.path = path
        self.lock_fd = lock_fd
        longest = os.path.join(path, "0" * 16)
        if len(longest.encode()) > _SOCKET_PATH_BYTES_MAX:
            raise ConfigError(f"the socket path {longest} is too long: set XDG_RUNTIME_DIR to a shorter directory")

    @classmethod
    def create(cls, name: str | None) -> "RunDir":
        """Make the directory of a new node and take its lock; None: of a private node.

        Raises:
            ConfigError: a node of that name runs already, or the name is no name.
        """
        if name is not None and (not _NAME.fullmatch(name) or name.startswith((_PRIVATE, "."))):
            text = "use 1 to 32 letters, digits, dots, dashes, underscores, and begin with neither a dot nor `p-`"
            raise ConfigError(f"{name!r} is no name for a node: {text}")
        top = base()
        _sweep(top)
        path = os.path.join(top, name if name is not None else f"{_PRIVATE}{os.urandom(4).hex()}")
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            try:
                fd = _take_lock(path, _LOCK_WAIT_S)
            except FileNotFoundError:
                continue  # a sweeper removed the directory as fast as we made it
            if fd is not None:
                break
            holder = _record(path)
            pid = holder["pid"] if holder else "?"
            raise ConfigError(f"a node named {name!r} runs already (pid {pid}): zmesh down, or use --name")
        _empty(path)
        return cls(path, fd)

    def socket_of(self, peer: PeerID) -> str:
        """Return the socket path of a process of this host; a node's own has zeros for a tail."""
        return os.path.join(self.path, peer[NODE_ID_BYTES:].hex())

    def segments_socket(self) -> str:
        """Return the socket path over which descriptors of segments travel."""
        return os.path.join(self.path, "segments")

    def log_path(self) -> str:
        """Return the path of the node's log."""
        return os.path.join(self.path, "log")

    def last_words(self) -> str:
        """Return the end of the log of a node that is gone, to be added to a sentence; nothing if it said nothing."""
        try:
            with open(self.log_path(), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_WORDS_BYTES))
                lines = file.read().decode(errors="replace").splitlines()[-_LAST_WORDS_LINES:]
        except OSError:
            return ""
        begin = [f". The end of its log, {self.log_path()}:"] if lines else []
        return "\n    ".join(begin + lines)

    def write_record(self, record: dict[str, Any]) -> None:
        """Publish what programs need to find the node; appears whole or not at all."""
        path = os.path.join(self.path, "node.json")
        with open(path + ".new", "w") as file:
            born = _born(record["pid"])
            json.dump(record | {"path": self.path, "name": os.path.basename(self.path), "born": born}, file)
        os.rename(path + ".new", path)

    def say_farewell(self, told: dict[str, Any]) -> None:
        """Write what a node leaves behind for whoever stops it. The file is there, and empty of facts, from the start.

        Whoever opened it before he stopped the node can read it when the directory is gone.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(os.path.join(self.path, "farewell"), flags, 0o600), "w") as file:
            json.dump(told, file)

    def remove(self) -> None:
        """Delete the directory; the lock goes last, with the descriptor."""
        _empty(self.path)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.path, "lock"))
            os.rmdir(self.path)
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1


def _take_lock(path: str, wait_s: float) -> int | None:
    """Return a descriptor that holds the directory's lock, or None if somebody else does for as long as we wait.

    Raises:
        FileNotFoundError: there is no such directory (any more).
    """
    deadline = time.monotonic() + wait_s
    lock = os.path.join(path, "lock")
    while True:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.lstat(lock)):
                return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                return None
            time.sleep(_LOCK_RETRY_S)
        except FileNotFoundError:
            pass
        os.close(fd)  # opened anew: its owner may remove the file, and then a lock on it is a lock on nothing


def _is_held(path: str) -> bool:
    try:
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who only look are not in each other's way
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _empty(path: str) -> None:
    """Delete what a node puts there: sockets, record, log. Never descends."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(path):
            if entry.name in _OURS or stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _sweep(top: str) -> None:
    """Remove what killed private nodes left."""
    for entry in os.scandir(top):
        if not entry.name.startswith(_PRIVATE) or not entry.is_dir(follow_symlinks=False):
            continue
        with contextlib.suppress(OSError):
            fd = _take_lock(entry.path, 0.0)
            if fd is not None:
                RunDir(entry.path, fd).remove()


def _record(path: str) -> dict[str, Any] | None:
    try:
        with open(os.path.join(path, "node.json")) as file:
            record: dict[str, Any] = json.load(file)
            return record
    except (OSError, ValueError):
        return None


def find(name: str) -> dict[str, Any] | None:
    """Return the record of the running node of that name, or None: pid, node, path, name, private, version."""
    return running(os.path.join(base(), name)) if _NAME.fullmatch(name) else None


def running(path: str) -> dict[str, Any] | None:
    """Return the record of the node whose directory this is, or None if it does not run."""
    record = _record(path) if _is_held(path) else None
    return record if record is not None and record.get("born") == _born(record["pid"]) != 0 else None


def absence(name: str) -> str:
    """Say that no node of a name runs, and what has become of the last one, if that ended in no good order."""
    text = f"no node named {name!r} of this user runs on this host"
    path = os.path.join(base(), name)
    last = _record(path) if _NAME.fullmatch(name) else None
    return text if last is None else f"{text}: the last one (pid {last['pid']}) was killed, or crashed; see {path}/log"


def was_killed(name: str, node: str) -> bool:
    """Whether a node that has ended left its record: one that ends in good order takes it along."""
    record = _record(os.path.join(base(), name))
    return record is not None and record["node"] == node


def _born(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if there is none.

    Source: proc_pid_stat(5), field 22, counted from behind the name, which may hold anything.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return 0


def open_farewell(path: str) -> int | None:
    """Return a descriptor of the farewell of the node whose directory this is, or None if it is gone."""
    try:
        return os.open(os.path.join(path, "farewell"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None


def read_farewell(fd: int) -> dict[str, Any]:
    """Return what a node that has ended said in its farewell, and close the descriptor; {} if it was killed."""
    try:
        with open(fd) as file:
            told: dict[str, Any] = json.load(file)
            return told
    except ValueError:
        return {}


def list_running() -> list[dict[str, Any]]:
    """Return the records of all running nodes of this user, private ones included."""
    found = [running(entry.path) for entry in os.scandir(base())]
    return [record for record in found if record is not None]
