"""Tasks, objects and their failures with real processes; the cores' own corners are in tests/core and tests/sim."""

import asyncio
import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import zmesh
from zmesh import api
from zmesh.exceptions import (
    ArgumentError,
    ConfigError,
    GetTimeoutError,
    NodeDiedError,
    SerializationError,
    StoreFullError,
    TaskCancelledError,
    TaskError,
    TaskTimeoutError,
    TaskUnschedulableError,
    WorkerDiedError,
)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    zmesh.init("local", num_cpus=2, num_gpus=2, resources={"disk": 1}, object_store_memory=200_000_000)
    yield api._session
    zmesh.shutdown()


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    zmesh.shutdown()
    assert not _until(lambda: bool(_nodes()), 0.0) or _until(lambda: not _nodes(), 5.0)


def _nodes() -> list[str]:
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "node_main"], capture_output=True, text=True, check=False
    )
    return found.stdout.split()


def _until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


@zmesh.remote
def same(value: Any = None) -> Any:
    return value


@zmesh.remote
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@zmesh.remote
def end_badly(how: str) -> None:
    print("last words", file=sys.stderr, flush=True)
    if how == "exit":
        os._exit(3)
    elif how == "fds":
        os.closerange(3, 1000)
        time.sleep(5)
    else:
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(5)


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_worker_that_dies_is_named_with_how_and_its_last_words(mesh: Any, how: str) -> None:
    neighbours = [same.remote(i) for i in range(50)]
    with pytest.raises(WorkerDiedError) as caught:
        zmesh.get(end_badly.options(max_retries=1).remote(how))
    error = caught.value
    assert (error.exit_code, error.signal_name) == ((3, None) if how == "exit" else (None, how))
    assert error.attempts == 2
    assert error.stderr_tail == "last words"
    assert error.pid > 0
    assert zmesh.get(neighbours) == list(range(50))


def test_a_worker_that_closes_its_descriptors_dies_and_harms_nobody(mesh: Any) -> None:
    with pytest.raises(WorkerDiedError):
        zmesh.get(end_badly.options(max_retries=0, timeout=2).remote("fds"))
    assert zmesh.get(same.remote(1)) == 1


def test_what_a_task_starts_inherits_none_of_our_descriptors(mesh: Any) -> None:
    @zmesh.remote
    def inherited() -> list[str]:
        listing = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, close_fds=False, check=True)
        return listing.stdout.split()

    assert zmesh.get(inherited.remote()) == ["0", "1", "2", "3"], "the fourth is the directory it lists"


def test_a_task_that_forks_gives_one_result_and_leaves_nobody(mesh: Any) -> None:
    @zmesh.remote
    def fork() -> int:
        pid = os.fork()
        return 1 if pid == 0 else 2

    @zmesh.remote
    def leave_a_child(path: str) -> int:
        child = subprocess.Popen(["sleep", "300"])
        return child.pid

    assert zmesh.get(fork.remote()) == 2
    pid = zmesh.get(leave_a_child.options(max_retries=0).remote("x"))
    with pytest.raises(WorkerDiedError):
        zmesh.get([end_badly.options(max_retries=0).remote("SIGKILL") for _ in range(3)])
    for worker in mesh.status()["workers"]:
        if worker["pid"]:
            with contextlib.suppress(ProcessLookupError):  # one of those that end badly may not be reaped yet
                os.kill(worker["pid"], signal.SIGKILL)
    assert _until(lambda: not pathlib.Path(f"/proc/{pid}").exists(), 5)


def test_os_exit_in_the_middle_of_ten_thousand_is_charged_to_one_task(mesh: Any, tmp_path: pathlib.Path) -> None:
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    path = str(tmp_path / "log")

    @zmesh.remote
    def note(index: int) -> int:
        attempt = zmesh.get_runtime_context().get_attempt_number()
        with open(path, "a") as file:
            file.write(f"{index} {attempt}\n")
        if index == 5000 and attempt == 0:
            os._exit(1)
        return index

    assert zmesh.get([note.remote(i) for i in range(10_000)]) == list(range(10_000))
    lines = (tmp_path / "log").read_text().splitlines()
    assert {line.split()[0] for line in lines if line.split()[1] != "0"} == {"5000"}
    os.close(log)


def test_without_retries_no_task_starts_twice(mesh: Any, tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "log")

    @zmesh.remote(max_retries=0)
    def note(index: int) -> int:
        with open(path, "a") as file:
            file.write(f"{index}\n")
        if index == 500:
            os._exit(1)
        return index

    refs = [note.remote(i) for i in range(1000)]
    with pytest.raises(WorkerDiedError):
        zmesh.get(refs[500])
    assert zmesh.get(refs[:500] + refs[501:]) == [i for i in range(1000) if i != 500]
    started = (tmp_path / "log").read_text().split()
    assert len(started) == len(set(started)) == 1000


class OwnError(ValueError):
    """A user's class with a signature of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self) -> Any:
        return OwnError, (self.code,)


def test_an_exception_is_the_users_class_and_ours_and_travels_on(mesh: Any) -> None:
    @zmesh.remote
    def fail() -> None:
        raise OwnError(7)

    @zmesh.remote
    def pass_on(refs: list[Any]) -> Any:
        return zmesh.get(refs[0])

    for ref in (fail.remote(), pass_on.remote([fail.remote()]), same.remote(fail.remote())):
        with pytest.raises(OwnError) as caught:
            zmesh.get(ref)
        assert isinstance(caught.value, TaskError)
        assert caught.value.code == 7
        assert "raise OwnError(7)" in str(caught.value.__cause__)


def test_exceptions_are_retried_only_if_asked(mesh: Any, tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "tries")

    @zmesh.remote
    def flaky(error: type[Exception]) -> int:
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) % 3:
            raise error("not yet")
        return os.path.getsize(path)

    assert zmesh.get(flaky.options(retry_exceptions=True).remote(ValueError)) == 3
    assert zmesh.get(flaky.options(retry_exceptions=[ValueError]).remote(ValueError)) == 6
    with pytest.raises(KeyError):
        zmesh.get(flaky.options(retry_exceptions=[ValueError]).remote(KeyError))


def test_a_task_past_its_time_is_killed(mesh: Any) -> None:
    begun = time.monotonic()
    with pytest.raises(TaskTimeoutError):
        zmesh.get(nap.options(timeout=0.3, max_retries=0).remote(60))
    assert time.monotonic() - begun < 3


def test_cancel_ends_queued_running_and_stubborn_tasks(mesh: Any) -> None:
    @zmesh.remote
    def stubborn() -> None:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(60)

    running = [nap.remote(60), nap.remote(60)]
    queued = nap.remote(60)
    time.sleep(0.2)
    for ref in [*running, queued]:
        zmesh.cancel(ref)
        with pytest.raises(TaskCancelledError):
            zmesh.get(ref, timeout=5)
    ref = stubborn.remote()
    time.sleep(0.2)
    zmesh.cancel(ref, force=True)
    with pytest.raises(TaskCancelledError):
        zmesh.get(ref, timeout=5)
    assert zmesh.get(same.remote(1)) == 1


def test_get_waits_in_time_and_raises_the_first_error_that_happens(mesh: Any) -> None:
    slow = nap.remote(0.5)
    with pytest.raises(GetTimeoutError, match="nap"):
        zmesh.get(slow, timeout=0.05)
    begun = time.monotonic()
    pending = nap.remote(30)
    with pytest.raises(ZeroDivisionError):
        zmesh.get([pending, zmesh.remote(lambda: 1 / 0).remote()])
    assert time.monotonic() - begun < 2
    zmesh.cancel(pending)
    assert zmesh.get(slow) == 0.5


def test_wait_and_as_completed_give_what_is_ready(mesh: Any) -> None:
    slow, fast = nap.remote(0.4), nap.remote(0.01)
    assert zmesh.wait([slow, fast]) == ([fast], [slow])
    assert zmesh.wait([slow, fast], num_returns=2) == ([slow, fast], [])
    slow, fast = nap.remote(0.3), nap.remote(0.01)
    assert [zmesh.get(ref) for ref in zmesh.as_completed([slow, fast, fast])] == [0.01, 0.01, 0.3]
    with pytest.raises(ConfigError):
        zmesh.wait([fast, fast])


def test_as_completed_is_linear(mesh: Any) -> None:
    def took(count: int) -> float:
        refs = [same.remote(i) for i in range(count)]
        begun = time.perf_counter()
        assert sorted(zmesh.get(ref) for ref in zmesh.as_completed(refs)) == list(range(count))
        return time.perf_counter() - begun

    took(1000)
    assert took(10_000) < 40 * max(took(1000), 0.005)


def test_results_by_number_and_by_stream(mesh: Any) -> None:
    @zmesh.remote(num_returns=2)
    def two(values: Any) -> Any:
        return values

    @zmesh.remote
    def count(n: int) -> Iterator[int]:
        for i in range(n):
            if i == 3:
                raise ValueError("three")
            yield i

    assert zmesh.get(two.remote((1, 2))) == [1, 2]
    with pytest.raises(ValueError, match="returned 3"):
        zmesh.get(two.remote((1, 2, 3)))
    assert two.options(num_returns=0).remote((1, 2)) is None
    refs = list(count.remote(5))
    assert zmesh.get(refs[:3]) == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        zmesh.get(refs[3])
    assert len(refs) == 4


def test_an_item_is_there_while_the_generator_sleeps_and_waits_for_its_reader(
    mesh: Any, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "yielded"

    @zmesh.remote
    def slow() -> Iterator[int]:
        for i in range(4):
            path.write_text(str(i))
            yield i

    @zmesh.remote
    def sleeps() -> Iterator[str]:
        yield "first"
        time.sleep(2)
        yield "second"

    begun = time.monotonic()
    stream = sleeps.remote()
    assert zmesh.get(next(stream)) == "first"
    assert time.monotonic() - begun < 1.5
    held = slow.options(generator_backpressure=1).remote()
    first = next(held)
    time.sleep(0.3)
    assert int(path.read_text()) <= 2
    assert [zmesh.get(first), *(zmesh.get(ref) for ref in held)] == [0, 1, 2, 3]


def test_refs_resolve_on_top_and_stay_refs_inside(mesh: Any) -> None:
    @zmesh.remote
    def look(value: Any, box: list[Any]) -> Any:
        return value, type(box[0]).__name__, zmesh.get(box[0]), box

    ref = zmesh.put(np.arange(100_000))
    value, kind, inner, box = zmesh.get(look.remote(ref, [ref]))
    assert kind == "ObjectRef"
    assert value.sum() == inner.sum() == zmesh.get(box[0]).sum()
    with pytest.raises(ArgumentError, match="wrap it in a list"):
        zmesh.put(ref)
    del box


def test_arrays_are_read_only_views_and_writable_ones_private(mesh: Any) -> None:
    ref = zmesh.put(np.zeros(1_000_000))
    view = zmesh.get(ref)
    assert not view.flags.writeable
    assert not view.flags.owndata
    own = zmesh.get(ref, writable=True)
    own[:] = 1
    assert zmesh.get(ref).sum() == 0
    small = zmesh.get(same.remote(np.ones(3)))
    assert not small.flags.writeable


def test_objects_outlive_their_makers_and_are_freed_with_their_last_ref(mesh: Any) -> None:
    @zmesh.remote
    def make() -> Any:
        return [zmesh.put(np.full(200_000, 7.0)), os.getpid()]

    (ref, pid) = zmesh.get(make.remote())
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert zmesh.get(ref)[0] == 7.0
    for i in range(200):  # 2 GB through a store of 200 MB
        again = zmesh.put(np.full(1_250_000, i))
        assert zmesh.get(again)[0] == i
    with pytest.raises(StoreFullError, match="200,000,000"):
        zmesh.put(np.zeros(40_000_000))


@pytest.mark.parametrize("seconds", [0, pytest.param(8, marks=pytest.mark.slow)])
def test_a_stopped_reader_never_sees_its_array_change(mesh: Any, tmp_path: pathlib.Path, seconds: float) -> None:
    ready, go = tmp_path / "ready", tmp_path / "go"

    @zmesh.remote
    def read(array: Any) -> tuple[float, float]:
        before = float(array.sum())
        ready.write_text(str(os.getpid()))
        while not go.exists():
            time.sleep(0.01)
        return before, float(array.sum())

    ref = zmesh.put(np.full(500_000, 3.0))
    result = read.remote(ref)
    del ref
    assert _until(lambda: ready.exists() and bool(ready.read_text()), 5)
    pid = int(ready.read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        for i in itertools.count():
            zmesh.put(np.full(500_000, float(i)))
            if i >= 60 and time.monotonic() - begun >= seconds:
                break
    finally:
        os.kill(pid, signal.SIGCONT)
    go.touch()
    assert zmesh.get(result) == (1_500_000.0, 1_500_000.0)


def test_nothing_lies_in_shared_memory_under_a_name(mesh: Any) -> None:
    zmesh.put(np.zeros(1_000_000))
    assert not [name for name in os.listdir("/dev/shm") if "zmesh" in name]


@pytest.mark.parametrize("depth", [1, 20])
def test_nested_tasks_need_no_cpu_while_they_wait(mesh: Any, depth: int) -> None:
    @zmesh.remote
    def nest(n: int) -> int:
        return 0 if n == 0 else 1 + int(zmesh.get(nest.remote(n - 1)))

    assert zmesh.get(nest.remote(depth), timeout=30) == depth


def test_resources_are_booked_masked_and_missed(mesh: Any, tmp_path: pathlib.Path) -> None:
    @zmesh.remote
    def meet(count: int, index: int) -> list[int]:
        (tmp_path / f"{count}-{index}").touch()
        while len(list(tmp_path.glob(f"{count}-*"))) < count:  # all run at once
            time.sleep(0.01)
        return zmesh.get_gpu_ids()

    assert sorted(zmesh.get([meet.options(num_gpus=1).remote(2, i) for i in range(2)], timeout=20)) == [[0], [1]]
    zmesh.get([meet.options(num_cpus=0.5).remote(4, i) for i in range(4)], timeout=20)
    with pytest.raises(TaskUnschedulableError, match="tape 1"):
        zmesh.get(same.options(resources={"tape": 1}).remote())
    assert zmesh.get(same.options(resources={"disk": 1}).remote(1)) == 1
    assert zmesh.get([same.options(num_cpus=0).remote(i) for i in range(20)]) == list(range(20))


def test_with_the_node_stopped_an_attached_driver_goes_on(mesh: Any) -> None:
    zmesh.get([same.remote(i) for i in range(1000)])
    os.kill(mesh.information["pid"], signal.SIGSTOP)
    try:
        assert zmesh.get([same.remote(i) for i in range(10_000)], timeout=20) == list(range(10_000))
    finally:
        os.kill(mesh.information["pid"], signal.SIGCONT)


def test_a_warm_call_is_two_messages_and_one_thread(mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < 0.5:  # the demand of earlier bursts is forgotten
        zmesh.get(same.remote())
    sent: list[bytes] = []
    threads: list[int] = []
    send, pump = mesh.reactor.sockets.send, mesh.reactor.pump
    monkeypatch.setattr(mesh.reactor.sockets, "send", lambda to, frame: (sent.append(to), send(to, frame)))
    monkeypatch.setattr(
        mesh.reactor, "pump", lambda now, **how: (threads.append(threading.get_ident()), pump(now, **how))
    )
    for i in range(200):
        assert zmesh.get(same.remote(i)) == i
    monkeypatch.undo()
    assert len(sent) == 200
    assert mesh.core.node not in sent
    assert set(threads) == {threading.get_ident()}


def test_what_cannot_be_sent_is_named_by_its_path(mesh: Any) -> None:
    with pytest.raises(SerializationError, match=r"args\[0\]\['a'\]\[1\]"):
        same.remote({"a": [1, threading.Lock()]})
    with pytest.raises(ConfigError, match="valid options are: num_returns"):
        same.options(nonsense=1)
    with pytest.raises(TypeError, match=r"same.remote\(\)"):
        same(1)


def test_futures_and_asyncio(mesh: Any) -> None:
    async def gather() -> list[Any]:
        return await asyncio.gather(*(same.remote(i) for i in range(20)))

    assert asyncio.run(gather()) == list(range(20))
    assert same.remote(5).future().result(timeout=5) == 5
    with pytest.raises(ZeroDivisionError):
        zmesh.remote(lambda: 1 / 0).remote().future().result(timeout=5)


def test_map_is_lazy_ordered_and_stops_at_an_error(mesh: Any) -> None:
    endless = zmesh.map(lambda x: x * x, iter(int, 1), chunksize=3)
    assert [next(endless) for _ in range(10)] == [0] * 10
    del endless
    assert list(zmesh.map(pow, [2, 3], [3, 2])) == [8, 9]
    assert sorted(zmesh.map_unordered(abs, range(-1000, 0))) == list(range(1, 1001))
    with pytest.raises(ZeroDivisionError):
        list(zmesh.map(lambda x: 1 // x, [1, 0]))


def test_prints_reach_the_driver_with_name_and_pid(mesh: Any, capfd: pytest.CaptureFixture[str]) -> None:
    @zmesh.remote(name="talker")
    def talk() -> int:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        return os.getpid()

    pid = zmesh.get(talk.remote())
    found = ["", ""]

    def seen() -> bool:
        out, err = capfd.readouterr()
        found[0] += out
        found[1] += err
        return "to stdout" in found[0] and "to stderr" in found[1]

    assert _until(seen, 5), found
    assert f"(talker pid={pid}) to stdout\n" in found[0]
    assert f"(talker pid={pid}) to stderr\n" in found[1]


# What ends a mesh: each with a mesh, or a program, of its own.


def run(code: str, tmp_path: pathlib.Path, **how: Any) -> subprocess.Popen[str]:
    script = tmp_path / "program.py"
    script.write_text("import os, signal, sys, time, zmesh\n" + code)
    return subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )


def test_when_the_node_dies_every_waiting_thread_is_told(tmp_path: pathlib.Path) -> None:
    zmesh.shutdown()
    context = zmesh.init("local", num_cpus=1)
    found: list[type] = []

    def wait() -> None:
        try:
            zmesh.get(nap.remote(60))
        except NodeDiedError as error:
            found.append(type(error))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    begun = time.monotonic()
    os.kill(context["pid"], signal.SIGKILL)
    for thread in threads:
        thread.join(5)
    assert time.monotonic() - begun < 2
    assert found == [NodeDiedError] * 2
    zmesh.init("local", num_cpus=1)
    assert zmesh.get(same.remote(2)) == 2
    zmesh.shutdown()


def test_a_node_without_its_forkserver_ends_and_says_why() -> None:
    zmesh.shutdown()
    context = zmesh.init("local", num_cpus=1)
    forkserver = zmesh.get(zmesh.remote(os.getppid).remote())
    os.kill(forkserver, signal.SIGKILL)
    with pytest.raises(NodeDiedError, match=r"is gone(.|\n)*the process that starts workers was killed"):
        zmesh.get(nap.remote(60), timeout=20)
    assert pathlib.Path(context["run_dir"], "log").exists()
    zmesh.shutdown()


def test_a_killed_driver_leaves_no_process(tmp_path: pathlib.Path) -> None:
    code = """
c = zmesh.init("local", num_cpus=2)
refs = [zmesh.remote(lambda: (os.getpid(), time.sleep(0.2))[0]).remote() for _ in range(2)]
pids = zmesh.get(refs)
more = [zmesh.remote(lambda: time.sleep(60)).remote() for _ in range(2)]
print(c["pid"], *pids, flush=True)
time.sleep(60)
"""
    process = run(code, tmp_path)
    assert process.stdout is not None
    pids = process.stdout.readline().split()
    process.kill()
    process.communicate()
    assert _until(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids), 3)


def test_ctrl_c_gives_the_prompt_back_at_once(tmp_path: pathlib.Path) -> None:
    code = """
zmesh.init("local", num_cpus=2)
def nap():
    print("napping", flush=True)
    time.sleep(60)
zmesh.get([zmesh.remote(nap).remote() for _ in range(4)])
"""
    process = run(code, tmp_path)
    assert process.stdout is not None
    assert "napping" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)  # the tasks sleep for twice as long
    assert process.returncode in (-signal.SIGINT, 1)


def test_ctrl_c_in_any_wait_cancels_what_was_submitted(tmp_path: pathlib.Path) -> None:
    code = """
zmesh.init("local", num_cpus=2)
def nap():
    print("napping", flush=True)
    time.sleep(60)
def stream():
    nap()
    yield 1
one, two = zmesh.remote(nap), zmesh.remote(stream)
for wait in (
    lambda: zmesh.get(one.remote()),
    lambda: zmesh.get([one.remote(), one.remote()]),
    lambda: zmesh.wait([one.remote()]),
    lambda: list(zmesh.as_completed([one.remote()])),
    lambda: next(two.remote()),
    lambda: zmesh.wait([two.remote()]),
):
    more = one.remote()
    try:
        wait()
    except KeyboardInterrupt:
        try:
            zmesh.get(more)
        except zmesh.exceptions.TaskCancelledError:
            print("cancelled", flush=True)
"""
    process = run(code, tmp_path)
    assert process.stdout is not None
    for _ in range(6):
        assert all("napping" in process.stdout.readline() for _ in range(2))
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cancelled\n"
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_script_of_ray_runs_with_one_import_changed(tmp_path: pathlib.Path) -> None:
    code = """
import zmesh as ray
ray.init()

class Point:
    def __init__(self, x):
        self.x = x

@ray.remote
def slow_function(point):
    return Point(point.x + 1)

@ray.remote(num_returns=2)
def multiple():
    return 1, 2

assert ray.get(slow_function.remote(ray.put(Point(1)))).x == 2
a, b = multiple.remote()
assert ray.get([a, b]) == [1, 2]
ready, rest = ray.wait([slow_function.remote(Point(i)) for i in range(4)], num_returns=2)
assert len(ready) == 2 and len(rest) == 2
ray.shutdown()
print("fine")
"""
    out, err = run(code, tmp_path).communicate(timeout=30)
    assert out == "fine\n", err


def test_a_local_session_runs_everything_here() -> None:
    zmesh.shutdown()
    zmesh.init(local=True)
    try:
        assert zmesh.get(zmesh.remote(os.getpid).remote()) == os.getpid()
        with pytest.raises(ZeroDivisionError):
            zmesh.get(zmesh.remote(lambda: 1 / 0).remote())
        assert [
            zmesh.get(ref) for ref in zmesh.remote(lambda: iter(range(3))).options(num_returns="streaming").remote()
        ] == [0, 1, 2]
        assert list(zmesh.map(abs, [-1, -2])) == [1, 2]
    finally:
        zmesh.shutdown()
