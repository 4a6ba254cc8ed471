"""Scheduling promises that take seconds to check, with real processes; tests/sim checks the same ones in no time."""

import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import zmesh

pytestmark = pytest.mark.slow


@pytest.fixture
def runtime(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A runtime directory of the test's own, so that no node of the user is met."""
    path = pathlib.Path(f"/tmp/zs-{os.getpid()}-{time.monotonic_ns() % 10**6}")
    path.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    yield path
    zmesh.shutdown()
    subprocess.run(["rm", "-rf", str(path)], check=True)


@zmesh.remote
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.mark.parametrize("position", [0, 500, 1000])
def test_a_long_call_holds_up_nobody(runtime: pathlib.Path, position: int) -> None:
    """One call of 5 s and 1,000 calls of 1 ms of the same function on 2 workers: none waits for the long one."""
    zmesh.init("local", num_cpus=2)
    zmesh.get([nap.remote(0.001) for _ in range(20)])
    refs = [nap.remote(5 if i == position else 0.001) for i in range(1001)]
    assert list(zmesh.as_completed(refs))[-1] == refs[position]


def test_a_second_driver_starts_within_100_ms_beside_a_million_queued_tasks(runtime: pathlib.Path) -> None:
    from zmesh import lifecycle

    node = lifecycle.start("shared", {"num_cpus": 2})
    hog = """
import time, zmesh
zmesh.init("shared")
@zmesh.remote
def work():
    time.sleep(0.001)
refs = [work.remote() for _ in range(1_000_000)]
print("queued", flush=True)
zmesh.get(refs)
"""
    second = """
import time, zmesh
zmesh.init("shared")
@zmesh.remote
def started():
    return time.time()
asked = time.time()
print(zmesh.get(started.remote()) - asked)
"""
    first = subprocess.Popen([sys.executable, "-c", hog], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "queued\n"
        time.sleep(0.5)
        waits = []
        for _ in range(5):
            done = subprocess.run(
                [sys.executable, "-c", second], capture_output=True, text=True, timeout=30, check=True
            )
            waits.append(float(done.stdout))
        assert min(waits) < 0.1, waits  # the others may have met other work of the machine
    finally:
        first.kill()
        first.communicate()
        lifecycle.stop(node.name)


def test_fifty_levels_of_tasks_need_one_cpu(runtime: pathlib.Path) -> None:
    zmesh.init("local", num_cpus=1)

    @zmesh.remote
    def nest(n: int) -> int:
        return 0 if n == 0 else 1 + int(zmesh.get(nest.remote(n - 1)))

    assert zmesh.get(nest.remote(50), timeout=60) == 50


def test_a_task_may_wait_for_one_after_the_other_on_one_cpu(runtime: pathlib.Path) -> None:
    """It waited for ever, when the worker that came meanwhile stood by for the program."""
    zmesh.init("local", num_cpus=1)

    @zmesh.remote
    def child(number: int) -> int:
        return number

    @zmesh.remote
    def parent(count: int) -> int:
        return sum(zmesh.get(child.remote(number)) for number in range(count))

    assert zmesh.get(parent.remote(300), timeout=60) == sum(range(300))
    assert zmesh.get([parent.remote(50) for _ in range(6)], timeout=60) == [sum(range(50))] * 6


def test_a_thousand_blocked_parents_stay_under_sixteen_processes(runtime: pathlib.Path) -> None:
    zmesh.init("local", num_cpus=2)

    @zmesh.remote
    def child() -> int:
        time.sleep(0.005)
        return 1

    @zmesh.remote
    def parent() -> int:
        return int(zmesh.get(child.remote()))

    refs = [parent.remote() for _ in range(1000)]
    most = 0
    begun = time.monotonic()
    while zmesh.wait(refs, num_returns=len(refs), timeout=0.2)[1]:
        most = max(most, len(zmesh.status()["workers"]))
        assert time.monotonic() - begun < 120
    assert sum(zmesh.get(refs)) == 1000
    assert 0 < most < 16


def _wakes(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        for status in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
            total += sum(
                int(count)
                for count in re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.MULTILINE)
            )
    return total


def _tree(root: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(root)], capture_output=True, text=True, check=False).stdout.split()
    return [root, *(pid for child in found for pid in _tree(int(child)))]


def test_an_idle_mesh_hardly_ever_wakes_and_its_workers_end(runtime: pathlib.Path) -> None:
    context = zmesh.init("local", num_cpus=2)
    zmesh.get([nap.remote(0.01) for _ in range(10)])
    time.sleep(6)  # surplus workers were detached
    pids = [os.getpid(), *_tree(context["pid"])]
    assert len(pids) >= 4
    before = _wakes(pids)
    time.sleep(10)
    assert _wakes(pids) - before <= 20 + 2, "2 are this test's own"
    deadline = time.monotonic() + 45
    while zmesh.status()["workers"]:
        assert time.monotonic() < deadline
        time.sleep(1)


def test_a_flood_of_prints_is_capped_and_counted(runtime: pathlib.Path, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "flood.py"
    script.write_text(
        "import zmesh\nzmesh.init('local', num_cpus=1)\n"
        "def flood():\n    for i in range(200_000):\n        print('x' * 50, i)\n    return 7\n"
        "assert zmesh.get(zmesh.remote(flood).remote()) == 7\n"
        "import time; time.sleep(1.5)\nassert zmesh.get(zmesh.remote(lambda: print('after')).remote()) is None\n"
        "time.sleep(0.5)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    dropped = sum(map(int, re.findall(r"\[(\d+) lines dropped", done.stdout)))
    shown = len(re.findall(r"x{50} \d+$", done.stdout, re.MULTILINE))
    assert dropped > 0
    assert shown + dropped == 200_000
    assert "after" in done.stdout
