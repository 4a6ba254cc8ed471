"""The directory of a node: its sockets, its record, its lock. Private to the user; gone with the node.

    $XDG_RUNTIME_DIR/zmesh or /tmp/zmesh-<uid>     0700, ours, no symlink
        default/  or another name of `zmesh up`     lock, node.json, log, and the sockets
        p-<8 hex>/                                  of a private node

The lock (flock) is held for the node's life: a free one marks what a killed node left, which the next start removes.
"""

import contextlib
import fcntl
import json
import os
import re
import stat
from typing import Any

from zmesh.exceptions import ConfigError
from zmesh.wire.ids import NODE_ID_BYTES, PeerID

_NAME = re.compile(r"[A-Za-z0-9._-]{1,32}")
_SOCKET_PATH_BYTES_MAX = 107  # sun_path, less its final zero
_PRIVATE = "p-"


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
            raise ConfigError(f"{name!r} is no name for a node: use 1 to 32 letters, digits, dots, dashes, underscores")
        top = base()
        _sweep(top)
        path = os.path.join(top, name if name is not None else f"{_PRIVATE}{os.urandom(4).hex()}")
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            fd = _take_lock(path)
            if fd is None:
                running = _record(path)
                pid = running["pid"] if running else "?"
                raise ConfigError(f"a node named {name!r} runs already (pid {pid}): zmesh down, or use --name")
            if os.path.exists(os.path.join(path, "lock")):
                break
            os.close(fd)  # its last owner removed the directory while we took the lock
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

    def write_record(self, record: dict[str, Any]) -> None:
        """Publish what programs need to find the node; appears whole or not at all."""
        path = os.path.join(self.path, "node.json")
        with open(path + ".new", "w") as file:
            json.dump(record | {"path": self.path, "name": os.path.basename(self.path)}, file)
        os.rename(path + ".new", path)

    def remove(self) -> None:
        """Delete the directory; the lock goes last, with the descriptor."""
        _empty(self.path)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.path, "lock"))
            os.rmdir(self.path)
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1


def _take_lock(path: str) -> int | None:
    """Return a descriptor that holds the directory's lock, or None if somebody else does."""
    fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _is_held(path: str) -> bool:
    try:
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
            if entry.name != "lock" and not entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _sweep(top: str) -> None:
    """Remove what killed private nodes left."""
    for entry in os.scandir(top):
        if not entry.name.startswith(_PRIVATE) or not entry.is_dir(follow_symlinks=False):
            continue
        with contextlib.suppress(OSError):
            fd = _take_lock(entry.path)
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
    path = os.path.join(base(), name)
    return _record(path) if _NAME.fullmatch(name) and _is_held(path) else None


def list_running() -> list[dict[str, Any]]:
    """Return the records of all running nodes of this user, private ones included."""
    found = [_record(entry.path) for entry in os.scandir(base()) if _is_held(entry.path)]
    return [record for record in found if record is not None]
