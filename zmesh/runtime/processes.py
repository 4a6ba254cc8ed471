"""Start and stop a node from a program or a command; watch processes by pidfd."""

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
from time import monotonic
from typing import Any

import zmesh
from zmesh.exceptions import ConfigError, NotRunningError
from zmesh.runtime import rundir

START_TIMEOUT_S = 15.0
_BOOT = "import sys; sys.path[:] = {path!r}; from zmesh.runtime.node_main import main; main({ready})"


class NodeProcess:
    """A node this program started; `record` as in rundir.find."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.pid: int = record["pid"]


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor that is readable once the process is gone, or None if it is already."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):  # the last two: it is no process but a thread
            raise
        return None


def wait_exit(pidfd: int, timeout_s: float | None) -> bool:
    """Wait until the process of a pidfd is gone; False after the timeout."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


def kill(pidfd: int, number: int = signal.SIGKILL) -> None:
    """Signal the process of a pidfd; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def start_node(settings: dict[str, Any], *, private: bool, name: str = "default") -> NodeProcess:
    """Start a node and wait until it is ready.

    Args:
        settings: see runtime/machine.py; they travel over a pipe, never in argv or the environment.
        private: it ends with this process; else it outlives it, under `name`.

    Raises:
        ConfigError: the node refused its settings, or one of that name runs.
        NotRunningError: it died before it was ready.
    """
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    order = settings | {"name": None if private else name, "driver": os.getpid() if private else 0}
    # The node runs the zmesh of this program, so its path is ours; an editable zmesh is on none: its home goes last.
    path = [*(os.path.abspath(entry) for entry in sys.path), os.path.dirname(os.path.dirname(zmesh.__file__))]
    try:
        # Not -S, though it saves 3 ms (15 where an editable install is): workers are forks of the node, and what the
        # driver imports by the hook of an editable install, they must too. Not -E: PYTHONHASHSEED is for them.
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT.format(path=path, ready=ready_write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[ready_write],
            start_new_session=True,
            cwd="/",
        )
    except BaseException:
        os.close(ready_read)
        raise
    finally:
        os.close(ready_write)
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode())
            process.stdin.close()
        answer = _read_answer(ready_read, START_TIMEOUT_S)
    except BaseException:  # Ctrl-C, most likely: it reaches only us
        process.kill()
        process.wait()
        process.stdin.close()
        process.stderr.close()
        raise
    finally:
        os.close(ready_read)
    if answer is None:
        process.kill()
        tail = process.stderr.read()[-2000:].decode(errors="replace")
        process.stderr.close()
        raise NotRunningError(f"the node did not start (exit code {process.wait()}):\n{tail}")
    process.stderr.close()
    if "error" in answer:
        process.wait()
        raise ConfigError(answer["error"])
    _adopt(process)
    return NodeProcess(answer)


def _adopt(process: "subprocess.Popen[bytes]") -> None:
    """Keep subprocess from warning of a node that runs on when our handle of it is collected."""
    process.returncode = 0


def _read_answer(fd: int, timeout_s: float) -> dict[str, Any] | None:
    """Read the one line of JSON a node writes when it is ready, or None if it never does."""
    deadline = monotonic() + timeout_s
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = b""
    while not data.endswith(b"\n"):
        if not poll.poll(max(0.0, (deadline - monotonic()) * 1000)):
            return None
        chunk = os.read(fd, 65536)
        if not chunk:
            return None
        data += chunk
    answer: dict[str, Any] = json.loads(data)
    return answer


def stop_node(record: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Stop a node found by rundir.find; kill it after the timeout. Does nothing if it ended since.

    Returns its farewell: "moved", "lost" and "notes", if anything of others lay there.
    """
    pidfd = open_pidfd(record["pid"])
    if pidfd is None:
        return {}
    farewell = rundir.open_farewell(record["path"])
    try:
        # In this order: what runs after the pidfd was opened is what it stands for, not a later owner of the pid.
        now = rundir.running(record["path"])
        if now is None or (now["pid"], now["node"]) != (record["pid"], record["node"]):
            return {}
        kill(pidfd, signal.SIGTERM)
        obeyed = wait_exit(pidfd, timeout_s)
        if not obeyed:
            kill(pidfd)
            wait_exit(pidfd, timeout_s)
        fd, farewell = farewell, None
        told = rundir.read_farewell(fd) if fd is not None else {}
        return told if obeyed else told | {"notes": [f"the node did not end in {timeout_s:g} s, and was killed"]}
    finally:
        os.close(pidfd)
        if farewell is not None:
            os.close(farewell)


def reap(pid: int) -> None:
    """Take note of the end of a child of ours, so that no zombie stays."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def raise_fd_limit() -> None:
    """Allow this process as many descriptors as it may have."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
