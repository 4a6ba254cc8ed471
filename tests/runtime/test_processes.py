"""runtime/processes.py and runtime/forkserver.py with real processes: who starts, who is told, and that nobody is left.

A stand-in node (STAND_IN) does what node_main does with them, and obeys this test over its stdin. Its workers run the
program that the test wrote for their slot.
"""

import contextlib
import gc
import importlib.util
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from zmesh.exceptions import ConfigError, NotRunningError
from zmesh.runtime import processes, rundir
from zmesh.runtime.forkserver import describe_status

DEADLINE_S = 30.0
WAIT_S = 20.0  # for something to be gone

STAND_IN = r"""
import errno, importlib.util, json, os, select, signal, sys, time


def main(ready):
    "A node that is only its start and its end."
    settings = json.load(sys.stdin)
    do = settings["do"]
    if "pid_file" in settings:
        with open(settings["pid_file"], "w") as file:
            file.write(str(os.getpid()))
    if do == "die":
        print("the reason is here", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "hang":
        time.sleep(60)
    if do == "refuse":
        os.write(ready, json.dumps({"error": "no such setting: x"}).encode() + b"\n")
        sys.exit(2)
    from zmesh.runtime.rundir import RunDir

    if do == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run_dir = RunDir.create(settings["name"])
    record = {"pid": os.getpid(), "node": "00" * 8, "private": bool(settings["driver"]), "path": run_dir.path}
    record |= {"driver": settings["driver"], "hash": hash("x"), "zmesh": sys.modules["zmesh"].__file__}
    record |= {"hooked": importlib.util.find_spec("zmesh_cli") is not None, "given": settings}
    run_dir.write_record(record)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.write(ready, json.dumps(record).encode() + b"\n")
    os.close(ready)
    while True:
        signal.pause()


generation = 0  # 0 the node, 1 the forkserver, 2 a worker


def born():
    global generation
    generation += 1
    if generation == 2 and "slow-birth" in sys.argv:
        time.sleep(0.4)


def fork_server(folder):
    "A node that is only its forkserver: obeys lines of JSON, says what happened in lines of JSON."
    from zmesh.runtime.blackbox import BlackBoxes
    from zmesh.runtime.forkserver import ForkServer, Started

    os.register_at_fork(after_in_child=born)
    fork = os.fork

    def fork_or_fail():
        if generation and "no-fork" in sys.argv:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    os.fork = fork_or_fail

    def run_worker(start):
        with open(f"{folder}/{start.slot}.py") as file:
            program = file.read()
        exec(program, {"start": start})

    def say(*words):
        sys.stdout.write(json.dumps(words) + "\n")
        sys.stdout.flush()

    def drain(fd):
        text = b""
        try:
            while data := os.read(fd, 65536):
                text += data
        except BlockingIOError:
            pass
        os.close(fd)
        return text.decode()

    def rehearsal():
        for step in ("first", "second"):
            with open(f"{folder}/rehearsed", "a") as file:
                file.write(step + "\n")
            yield
            if "bad-rehearsal" in sys.argv:
                raise RuntimeError("forgot the lines")

    forks = ForkServer.start(BlackBoxes(1024), run_worker, [], ("colorsys",), rehearsal())
    pipes = {}
    say("forkserver", 0, forks.pid)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(forks.fileno(), select.POLLIN)
    lines = b""
    while True:
        for fd, _ in poll.poll():
            if fd != 0:
                for report in forks.reports():
                    slot = int.from_bytes(report.peer, "big")
                    if isinstance(report, Started):
                        say("started", slot, report.pid)
                    else:
                        out, err = pipes.pop(slot)
                        say("ended", slot, report.pid, report.status, drain(out), drain(err))
                if forks.died:
                    say("died", 0)
                    poll.unregister(forks.fileno())
                continue
            data = os.read(0, 65536)
            if not data:
                return
            *whole, lines = (lines + data).split(b"\n")
            for verb, slot in map(json.loads, whole):
                peer = slot.to_bytes(16, "big")
                if verb == "spawn":
                    pipes[slot] = forks.spawn(peer, slot)
                elif verb == "spawn_to":
                    for each in range(slot):
                        pipes[each] = forks.spawn(each.to_bytes(16, "big"), each)
                    say("asked", 0, forks.died)
                elif verb == "kill":
                    forks.kill(peer)
                elif verb == "close":
                    poll.unregister(forks.fileno())
                    forks.close()
                    say("closed", 0)


if __name__ == "__main__":
    fork_server(sys.argv[1])
"""


def wait_until(true: Callable[[], bool]) -> bool:
    """Return whether it became true before the deadline."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def gone(pid: int) -> bool:
    """Return whether a process runs no more; a zombie does not run."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class StandIn:
    """A stand-in node with a forkserver."""

    def __init__(self, folder: pathlib.Path, *flags: str) -> None:
        script = folder / "stand_in.py"
        script.write_text(STAND_IN)
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(folder), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._told: list[list[Any]] = []
        self._rest = b""
        self.left: list[int] = []  # pids to kill at the end, if a test failed
        self.pid = self._process.pid
        self.forkserver: int = self.hear("forkserver")[2]

    def say(self, verb: str, slot: int = 0) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps((verb, slot)).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self, verb: str, slot: int = 0) -> list[Any]:
        """Return the first line of that kind about that slot, at the latest at the deadline."""
        deadline = time.monotonic() + DEADLINE_S
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while True:
            for told in self._told:
                if told[:2] == [verb, slot]:
                    self._told.remove(told)
                    return told
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(fd, 65536) if ready else b""
            assert data, f"the stand-in never said {verb} {slot}; it said {self._told}"
            *whole, self._rest = (self._rest + data).split(b"\n")
            self._told += map(json.loads, whole)

    def spawn(self, slot: int, program: str) -> int:
        """Have a worker run a program; returns its pid."""
        (self._folder / f"{slot}.py").write_text(program)
        self.say("spawn", slot)
        pid: int = self.hear("started", slot)[2]
        self.left.append(pid)
        return pid

    def pid_in(self, name: str) -> int:
        """Return the pid that a program wrote to a file."""
        path = self._folder / name
        assert wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
        self.left.append(int(path.read_text()))
        return self.left[-1]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        for pid in self.left:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def node(tmp_path: pathlib.Path) -> Iterator[StandIn]:
    stand_in = StandIn(tmp_path)
    yield stand_in
    stand_in.end()


SLEEP = """
import os, time
with open({path!r}, "w") as file:
    file.write(f"{{os.getpid()}}\\n")
time.sleep(60)
"""

LEAVE_BEHIND = """
import os, subprocess
child = subprocess.Popen({command})
with open({path!r}, "w") as file:
    file.write(f"{{child.pid}}\\n")
{then}
"""


def leaving(node: StandIn, tmp_path: pathlib.Path, command: str, then: str) -> tuple[int, int]:
    """Run a worker that starts a process; returns the pids of both."""
    worker = node.spawn(1, LEAVE_BEHIND.format(command=command, path=str(tmp_path / "child"), then=then))
    return worker, node.pid_in("child")


def sleeping(node: StandIn, tmp_path: pathlib.Path) -> int:
    """Run a worker that sleeps; returns its pid once it is in its program."""
    node.spawn(1, SLEEP.format(path=str(tmp_path / "worker")))
    return node.pid_in("worker")


# The forkserver.


def test_what_a_worker_prints_is_in_its_pipes(node: StandIn) -> None:
    node.spawn(1, "import sys; print('out'); print('err', file=sys.stderr)")
    ended = node.hear("ended", 1)
    assert ended[3:] == [0, "out\n", "err\n"]


def test_workers_share_what_the_forkserver_imported_for_them(node: StandIn) -> None:
    node.spawn(1, "import sys; print('colorsys' in sys.modules)")
    assert node.hear("ended", 1)[4] == "True\n"


def test_the_exit_code_of_a_worker_is_reported(node: StandIn) -> None:
    pid = node.spawn(1, "import os; os._exit(3)")
    ended = node.hear("ended", 1)
    assert ended[2] == pid
    assert describe_status(ended[3])[0] == 3


def test_the_signal_that_ended_a_worker_is_reported(node: StandIn) -> None:
    node.spawn(1, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert describe_status(node.hear("ended", 1)[3])[1] == "SIGSEGV"


def test_a_worker_that_raises_leaves_its_traceback_on_stderr(node: StandIn) -> None:
    node.spawn(1, "1 / 0")
    ended = node.hear("ended", 1)
    assert describe_status(ended[3])[0] == 1
    assert "ZeroDivisionError" in ended[5]


def test_kill_ends_a_worker_and_what_it_started(node: StandIn, tmp_path: pathlib.Path) -> None:
    worker, child = leaving(node, tmp_path, "['sleep', '60']", "child.wait()")
    node.say("kill", 1)
    assert describe_status(node.hear("ended", 1)[3])[1] == "SIGKILL"
    assert wait_until(lambda: gone(worker) and gone(child))


def test_what_a_task_left_behind_ends_with_its_worker(node: StandIn, tmp_path: pathlib.Path) -> None:
    _, child = leaving(node, tmp_path, "['sleep', '60']", "os._exit(0)")
    assert node.hear("ended", 1)[3] == 0
    assert wait_until(lambda: gone(child))


def test_a_command_with_a_process_group_of_its_own_ends_with_its_worker(node: StandIn, tmp_path: pathlib.Path) -> None:
    """`timeout 60 COMMAND` makes itself one; only the session says whose it is."""
    _, child = leaving(node, tmp_path, "['sleep', '60'], process_group=0", "os._exit(0)")
    node.hear("ended", 1)
    assert wait_until(lambda: gone(child))


def test_workers_end_when_the_forkserver_is_killed(node: StandIn, tmp_path: pathlib.Path) -> None:
    worker = sleeping(node, tmp_path)
    os.kill(node.forkserver, signal.SIGKILL)
    node.hear("died")
    assert wait_until(lambda: gone(worker))


def test_a_worker_ends_although_the_forkserver_died_before_it_could_ask_for_its_signal(
    tmp_path: pathlib.Path,
) -> None:
    node = StandIn(tmp_path, "slow-birth")
    try:
        worker = node.spawn(1, "import time; time.sleep(60)")
        os.kill(node.forkserver, signal.SIGKILL)
        node.hear("died")
        assert wait_until(lambda: gone(worker))
    finally:
        node.end()


def test_forkserver_and_workers_end_when_the_node_is_killed(node: StandIn, tmp_path: pathlib.Path) -> None:
    worker = sleeping(node, tmp_path)
    os.kill(node.pid, signal.SIGKILL)
    assert wait_until(lambda: gone(node.forkserver) and gone(worker))


def test_what_tasks_started_ends_when_the_node_is_killed(node: StandIn, tmp_path: pathlib.Path) -> None:
    _, child = leaving(node, tmp_path, "['sleep', '60']", "child.wait()")
    os.kill(node.pid, signal.SIGKILL)
    assert wait_until(lambda: gone(child))


def test_what_tasks_started_ends_when_a_node_is_killed_that_had_reports_to_read(
    node: StandIn, tmp_path: pathlib.Path
) -> None:
    brief = node.spawn(2, "import time; time.sleep(60)")
    _, child = leaving(node, tmp_path, "['sleep', '60'], process_group=0", "child.wait()")
    os.kill(node.pid, signal.SIGSTOP)
    os.kill(brief, signal.SIGKILL)
    assert wait_until(lambda: not pathlib.Path(f"/proc/{brief}").exists())  # reaped, so it was reported
    os.kill(node.pid, signal.SIGKILL)
    assert wait_until(lambda: gone(child))


def test_close_ends_forkserver_workers_and_what_they_started(node: StandIn, tmp_path: pathlib.Path) -> None:
    worker, child = leaving(node, tmp_path, "['sleep', '60']", "child.wait()")
    node.say("close")
    node.hear("closed")
    assert wait_until(lambda: gone(node.forkserver) and gone(worker) and gone(child))


def test_a_worker_has_no_descriptors_but_its_three(node: StandIn) -> None:
    node.spawn(1, "import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:-1])")
    assert node.hear("ended", 1)[4] == "[0, 1, 2]\n"


def test_a_worker_leads_a_session_of_its_own(node: StandIn) -> None:
    pid = node.spawn(1, "import os; print(os.getsid(0), os.getpgid(0))")
    assert node.hear("ended", 1)[4] == f"{pid} {pid}\n"


def test_many_workers_are_forked_of_a_rehearsed_forkserver(node: StandIn, tmp_path: pathlib.Path) -> None:
    node.spawn(1, "import time; time.sleep(60)")
    node.spawn(2, "import time; time.sleep(60)")
    node.spawn(3, f"print(open({str(tmp_path / 'rehearsed')!r}).read())")
    assert node.hear("ended", 3)[4].split() == ["first", "second"]


@pytest.mark.parametrize(("flag", "steps"), [("", "first\nsecond\n"), ("bad-rehearsal", "first\n")])
def test_a_forkserver_with_nothing_to_do_rehearses(tmp_path: pathlib.Path, flag: str, steps: str) -> None:
    told = tmp_path / "rehearsed"
    node = StandIn(tmp_path, flag)
    try:
        assert wait_until(lambda: told.exists() and told.read_text() == steps)
        node.spawn(1, "print('at work')")
        assert node.hear("ended", 1)[4] == "at work\n"
        assert told.read_text() == steps
    finally:
        node.end()


def test_the_kernel_would_rather_kill_a_worker_than_the_node(node: StandIn) -> None:
    node.spawn(1, "print(open('/proc/self/oom_score_adj').read().strip())")
    assert int(node.hear("ended", 1)[4]) >= 800


def test_a_fork_that_fails_is_a_worker_that_ended(tmp_path: pathlib.Path) -> None:
    node = StandIn(tmp_path, "no-fork")
    try:
        for slot in (1, 2):
            node.say("spawn", slot)
            ended = node.hear("ended", slot)
            assert ended[2] == 0
            assert ended[3] != 0
    finally:
        node.end()


def test_a_burst_of_spawns_is_not_taken_for_the_death_of_the_forkserver(node: StandIn, tmp_path: pathlib.Path) -> None:
    """A stopped forkserver stands for one that is slower than the node: its socket fills, then comes the rest."""
    count = 400
    for slot in range(count):
        (tmp_path / f"{slot}.py").write_text("")
    os.kill(node.forkserver, signal.SIGSTOP)
    node.say("spawn_to", count)
    died = node.hear("asked")[2]
    os.kill(node.forkserver, signal.SIGCONT)
    assert not died
    for slot in range(count):
        node.hear("ended", slot)


def test_fifty_workers_are_forked_at_once(node: StandIn, tmp_path: pathlib.Path) -> None:
    for slot in range(50):
        (tmp_path / f"{slot}.py").write_text("import time; time.sleep(60)")
    node.say("spawn_to", 50)
    node.left += [node.hear("started", slot)[2] for slot in range(50)]


# A node and its starter.


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """Have start_node start the stand-in, in a run directory of this test; returns a directory for its files."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "zmesh.runtime.node_main" in processes._BOOT
    monkeypatch.setattr(processes, "_BOOT", processes._BOOT.replace("zmesh.runtime.node_main", "stand_in"))
    short = pathlib.Path(f"/tmp/zt-{os.getpid()}-{os.urandom(3).hex()}")
    short.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    yield tmp_path
    for record in rundir.list_running():
        os.kill(record["pid"], signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(record["pid"], 0)
    shutil.rmtree(short)


def stop(node: processes.NodeProcess) -> None:
    """Stop a node of this test and reap it."""
    processes.stop_node(node.record, DEADLINE_S)
    processes.reap(node.pid)


def test_a_ready_node_is_found_and_leads_a_session_of_its_own(home: pathlib.Path) -> None:
    node = processes.start_node({"do": "ready"}, private=False, name="here")
    found = rundir.find("here")
    assert found is not None
    assert found["pid"] == node.pid == os.getsid(node.pid)
    assert node.record["driver"] == 0
    stop(node)


def test_a_private_node_is_told_its_driver(home: pathlib.Path) -> None:
    node = processes.start_node({"do": "ready"}, private=True)
    assert node.record["driver"] == os.getpid()
    stop(node)


def test_settings_are_in_neither_arguments_nor_environment(home: pathlib.Path) -> None:
    node = processes.start_node({"do": "ready", "key": "s3cret"}, private=True)
    assert node.record["given"]["key"] == "s3cret"
    for name in ("cmdline", "environ"):
        assert b"s3cret" not in pathlib.Path(f"/proc/{node.pid}/{name}").read_bytes()
    stop(node)


def test_a_node_runs_the_zmesh_of_its_starter(home: pathlib.Path) -> None:
    node = processes.start_node({"do": "ready"}, private=True)
    assert node.record["zmesh"] == sys.modules["zmesh"].__file__
    stop(node)


def test_a_node_outlives_the_thread_that_started_it(home: pathlib.Path) -> None:
    nodes: list[processes.NodeProcess] = []
    thread = threading.Thread(target=lambda: nodes.append(processes.start_node({"do": "ready"}, private=True)))
    thread.start()
    thread.join()
    pidfd = processes.open_pidfd(nodes[0].pid)
    assert pidfd is not None
    assert not processes.wait_exit(pidfd, 0.1)
    os.close(pidfd)
    stop(nodes[0])


def test_a_node_that_refuses_says_why(home: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="no such setting: x"):
        processes.start_node({"do": "refuse", "pid_file": str(home / "pid")}, private=True)
    assert gone(int((home / "pid").read_text()))


def test_a_node_that_dies_before_it_is_ready_says_what_it_last_said(home: pathlib.Path) -> None:
    with pytest.raises(NotRunningError, match=r"(?s)(-9|SIGKILL).*the reason is here"):
        processes.start_node({"do": "die"}, private=True)


def test_a_node_that_is_not_ready_in_time_is_killed(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_TIMEOUT_S", 0.3)
    with pytest.raises(NotRunningError):
        processes.start_node({"do": "hang", "pid_file": str(home / "pid")}, private=True)
    assert gone(int((home / "pid").read_text()))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupting_the_start_leaves_no_node(home: pathlib.Path) -> None:
    pid_file = home / "pid"

    def interrupt(number: int, frame: Any) -> None:
        if pid_file.exists() and pid_file.read_text():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    interrupted = False
    try:
        processes.start_node({"do": "hang", "pid_file": str(pid_file)}, private=True)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    pid = int(pid_file.read_text())
    try:
        assert interrupted
        assert gone(pid)
    finally:
        gc.collect()  # what start_node left open is reported here, not in the next test
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def test_workers_hash_strings_as_the_driver_was_told_to(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that splits keys by hash() over its tasks sets PYTHONHASHSEED; its workers are forks of the node."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    told = subprocess.run([sys.executable, "-c", "print(hash('x'))"], stdout=subprocess.PIPE, check=True)
    node = processes.start_node({"do": "ready"}, private=True)
    assert node.record["hash"] == int(told.stdout)
    stop(node)


@pytest.mark.skipif(importlib.util.find_spec("zmesh_cli") is None, reason="zmesh is not installed as editable")
def test_workers_can_import_what_the_driver_finds_by_an_import_hook(home: pathlib.Path) -> None:
    """An editable install is a .pth file that adds a hook: it is on no path that the driver could hand over."""
    node = processes.start_node({"do": "ready"}, private=True)
    assert node.record["hooked"]
    stop(node)


def test_stop_kills_a_node_that_does_not_end(home: pathlib.Path) -> None:
    node = processes.start_node({"do": "stubborn"}, private=False, name="mule")
    processes.stop_node(node.record, 0.1)
    assert gone(node.pid)
    processes.reap(node.pid)


def test_stop_does_not_touch_a_process_that_is_no_node(home: pathlib.Path) -> None:
    """The node of the record died long ago, and its pid was given to somebody else."""
    stranger = subprocess.Popen(["sleep", "60"])
    run_dir = rundir.RunDir.create("old")
    record = {"pid": stranger.pid, "node": "00" * 8, "private": False, "path": run_dir.path, "name": "old"}
    run_dir.write_record(record)
    os.close(run_dir.lock_fd)
    try:
        with contextlib.suppress(NotRunningError):
            processes.stop_node(record, 0.2)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


# Small things.


def test_a_pid_that_is_gone_has_no_pidfd() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert processes.open_pidfd(child.pid) is None


def test_wait_exit_says_whether_the_process_ended() -> None:
    child = subprocess.Popen(["sleep", "60"])
    pidfd = processes.open_pidfd(child.pid)
    assert pidfd is not None
    assert not processes.wait_exit(pidfd, 0.01)
    child.kill()
    assert processes.wait_exit(pidfd, DEADLINE_S)
    os.close(pidfd)
    child.wait()


def test_a_status_is_told_in_words() -> None:
    assert describe_status(3 << 8) == (3, None, "ended with exit code 3")
    assert describe_status(signal.SIGSEGV) == (None, "SIGSEGV", "was killed by SIGSEGV")
    assert describe_status(63) == (None, "signal 63", "was killed by signal 63")


def test_the_fd_limit_is_raised_to_what_is_allowed() -> None:
    program = (
        "import resource as r; from zmesh.runtime.processes import raise_fd_limit;"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (64, hard)); raise_fd_limit();"
        "assert r.getrlimit(r.RLIMIT_NOFILE)[0] == hard"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
