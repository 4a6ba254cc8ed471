"""Work larger than the store: everything comes back, whoever asks, and nothing is left behind, whoever dies."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest

import zmesh
from tests.mesh.test_hosts import Nodes, nodes, on  # noqa: F401  # a fixture
from zmesh import lifecycle
from zmesh.exceptions import ConfigError, ObjectLostError, SpillError, StoreFullError

STORE_BYTES = 64 << 20
ITEMS = 250_000  # of 8 bytes: 2 MB, of which 100 are three times the store


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Callable[..., pathlib.Path]]:
    """Start a private node with a store of 64 MB; returns its spill directory."""

    def begin(**settings: Any) -> pathlib.Path:
        directory = tmp_path / "spill"
        directory.mkdir(exist_ok=True)
        settings = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "spill_directory": str(directory)} | settings
        zmesh.init("local", **settings)
        return directory

    yield begin
    zmesh.shutdown()


@zmesh.remote
def array(number: int, items: int = ITEMS) -> Any:
    return numpy.full(items, number, numpy.int64)


@zmesh.remote
def sums(refs: list[Any]) -> list[int]:
    return [int(zmesh.get(ref).sum()) for ref in refs]


@zmesh.remote
def ends(values: Any) -> tuple[int, int]:
    return int(values[0]), int(values[-1])


def put(number: int, items: int = ITEMS) -> Any:
    return zmesh.put(numpy.full(items, number, numpy.int64))


def fill(refs: list[Any]) -> None:
    """Put three times the store."""
    for number in range(100):
        refs.append(put(number))  # noqa: PERF401  # those before the error count


def store() -> dict[str, int]:
    found: dict[str, int] = zmesh.status()["store"]
    return found


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def intact(ref: Any, number: int) -> None:
    values = zmesh.get(ref)
    assert (values[0], values[-1], len(values)) == (number, number, ITEMS)


def node_descriptors() -> list[str]:
    """Return what the node's descriptors are."""
    folder = f"/proc/{zmesh.status()['pid']}/fd"
    found = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"{folder}/{name}"))
    return found


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_program_puts_three_times_the_store_and_gets_it_back(start: Any, compression: str) -> None:
    directory = start(spill_compression=compression)
    refs = [put(number) for number in range(100)]
    assert store()["used"] <= STORE_BYTES
    assert store()["spilled"] > (100 << 20 if compression == "none" else 0)
    for number, ref in enumerate(refs):
        intact(ref, number)
    assert os.listdir(directory) == []
    del ref, refs
    wait_until(lambda: store()["spilled"] == 0)
    wait_until(lambda: not [one for one in node_descriptors() if str(directory) in one])


def test_a_map_gives_three_times_the_store(start: Any) -> None:
    start()
    refs = [array.remote(number) for number in range(100)]
    zmesh.wait(refs, num_returns=100, timeout=30)
    for number, ref in reversed(list(enumerate(refs))):
        intact(ref, number)


def test_tasks_read_what_lies_on_disk(start: Any) -> None:
    start()
    refs = [put(number) for number in range(60)]
    assert zmesh.get(sums.remote(refs)) == [number * ITEMS for number in range(60)]
    assert zmesh.get([ends.remote(ref) for ref in refs]) == [(number, number) for number in range(60)]


def test_arrays_in_use_stay_as_they_are(start: Any) -> None:
    start()
    refs = [put(number) for number in range(5)]
    held = [zmesh.get(ref) for ref in refs]
    private = zmesh.get(refs[0], writable=True)
    private[0] = -1
    more = [array.remote(100 + number) for number in range(60)]
    more += [put(200 + number) for number in range(60)]
    for values, number in zip(held, range(5), strict=True):
        assert (values == number).all()
    assert private[0] == -1
    assert (private[1:] == 0).all()
    for number, ref in enumerate(more):
        intact(ref, 100 + number if number < 60 else 140 + number)


def test_what_is_freed_makes_room_on_disk_and_in_memory(start: Any) -> None:
    start(spill_bytes_max=100 << 20)
    for round_ in range(4):
        refs = [put(round_) for _ in range(60)]
        intact(refs[0], round_)
        intact(refs[-1], round_)
        del refs
    wait_until(lambda: store()["spilled"] == 0)


def test_more_arrays_in_use_than_fit_are_refused_and_the_mesh_goes_on(start: Any) -> None:
    start()
    refs = [put(number) for number in range(60)]
    with pytest.raises(StoreFullError, match="in use"):
        zmesh.get(refs)
    intact(refs[0], 0)


def test_a_used_up_quota_is_an_error_of_the_put_that_needed_it(start: Any) -> None:
    start(spill_bytes_max=10 << 20)
    refs: list[Any] = []
    with pytest.raises(SpillError, match="spill_bytes_max"):
        fill(refs)
    assert 28 <= len(refs) < 40
    with pytest.raises(SpillError, match="spill_bytes_max"):
        zmesh.get(array.remote(1, 3_000_000))
    for number, ref in enumerate(refs):
        intact(ref, number)
    del refs, ref
    intact(put(7), 7)


def test_without_spilling_a_full_store_says_so(start: Any) -> None:
    start(spill_bytes_max=0)
    with pytest.raises(StoreFullError, match="drop references") as caught:
        refs = [put(number) for number in range(100)]  # noqa: F841  # they fill it
    assert not isinstance(caught.value, SpillError)


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[str]:
    """A file system of 4 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this user may not mount a file system")
    yield str(directory)
    zmesh.shutdown()
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_full_disk_is_an_error_of_the_put_that_needed_it(start: Any, small_disk: str) -> None:
    start(spill_directory=small_disk)
    refs: list[Any] = []
    with pytest.raises(SpillError, match="bytes are free"):
        fill(refs)
    for number, ref in enumerate(refs):
        intact(ref, number)
    del refs, ref
    intact(put(7), 7)


def test_a_damaged_file_loses_one_object_only(start: Any) -> None:
    directory = start()
    refs = [put(number) for number in range(60)]
    folder = f"/proc/{zmesh.status()['pid']}/fd"
    found = [one for one in os.listdir(folder) if os.readlink(f"{folder}/{one}").startswith(str(directory))]
    os.truncate(f"{folder}/{found[0]}", 1000)
    lost = []
    for number, ref in enumerate(refs):
        try:
            intact(ref, number)
        except ObjectLostError:
            lost.append(number)
    assert len(lost) == 1
    with pytest.raises(ObjectLostError, match="spill file"):
        zmesh.get(refs[lost[0]])


@pytest.mark.parametrize("setting", [{"spill_compression": "zip"}, {"spill_bytes_max": -1}, {"spill_directory": "/no"}])
def test_a_setting_that_makes_no_sense_is_refused(start: Any, setting: Any) -> None:
    if os.geteuid() == 0 and "spill_directory" in setting:
        setting = {"spill_directory": "/proc/no"}
    with pytest.raises(ConfigError, match=next(iter(setting))):
        start(**setting)


def test_threads_put_and_get_at_once(start: Any) -> None:
    start()
    failed: list[BaseException] = []

    def work(first: int) -> None:
        try:
            refs = [put(first + number) for number in range(25)]
            for number, ref in enumerate(refs):
                intact(ref, first + number)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=(100 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed


# Two hosts, and guests.


def test_objects_of_another_host_come_from_its_disk(nodes: Nodes) -> None:  # noqa: F811
    a, b = nodes.start(store_bytes=STORE_BYTES), nodes.start(store_bytes=STORE_BYTES)
    nodes.await_members(a, 2)
    zmesh.init(a.name)
    refs = [array.options(**on(b)).remote(number) for number in range(60)]
    zmesh.wait(refs, num_returns=60, timeout=60)
    assert lifecycle.status(b.name)["store"]["spilled"] > 40 << 20
    for number, ref in enumerate(refs):
        intact(ref, number)
    for number, ref in enumerate(refs):
        intact(ref, number)
    assert zmesh.get(sums.options(**on(b)).remote(refs)) == [number * ITEMS for number in range(60)]


@pytest.mark.slow
def test_three_times_the_store_is_read_on_another_host(nodes: Nodes) -> None:  # noqa: F811
    """What was served a moment ago took all the room, and what came next was told to be lost."""
    a, b = nodes.start(store_bytes=STORE_BYTES // 4), nodes.start(store_bytes=STORE_BYTES // 4)
    nodes.await_members(a, 2)
    zmesh.init(a.name)
    refs = [put(number, ITEMS // 2) for number in range(50)]
    far = ends.options(**on(b))
    assert zmesh.get([far.remote(ref) for ref in refs]) == [(number, number) for number in range(50)]
    assert zmesh.get([ends.remote(ref) for ref in refs]) == [(number, number) for number in range(50)]


@zmesh.remote
def sum_of_ends(*values: Any) -> int:
    return sum(int(one[0]) + int(one[-1]) for one in values)


@zmesh.remote
def sum_after_a_wait(refs: list[Any]) -> int:
    return sum(sum(zmesh.get(ends.options(num_cpus=0).remote(ref))) for ref in refs)


@pytest.mark.slow
def test_tasks_with_several_arguments_share_two_full_stores(nodes: Nodes) -> None:  # noqa: F811
    """Those that had some of them waited for each other, and there were ever more of them."""
    a, _ = (nodes.start(store_bytes=STORE_BYTES // 4, num_cpus=2) for _ in range(2))
    nodes.await_members(a, 2)
    zmesh.init(a.name)
    refs = [array.options(scheduling_strategy="SPREAD").remote(number, ITEMS // 2) for number in range(60)]
    parts = [refs[first::6] for first in range(6)]
    want = [2 * sum(range(first, 60, 6)) for first in range(6)]
    assert zmesh.get([sum_after_a_wait.remote(part) for part in parts]) == want
    for _ in range(3):
        threes = [refs[number : number + 3] for number in range(0, 60, 3)]
        want = [6 * number + 6 for number in range(0, 60, 3)]
        assert zmesh.get([sum_of_ends.remote(*three) for three in threes]) == want


def test_a_guest_puts_three_times_the_store(nodes: Nodes) -> None:  # noqa: F811
    nodes.start(store_bytes=STORE_BYTES)
    zmesh.init(nodes.all[0].address)
    refs = [put(number) for number in range(60)]
    assert zmesh.get([ends.remote(ref) for ref in refs]) == [(number, number) for number in range(60)]


# Deaths.

PROGRAM = """
import sys, numpy, zmesh
zmesh.init({address!r}, **{settings!r})
print(zmesh.status()["pid"], flush=True)
refs = []
while True:
    refs.append(zmesh.put(numpy.full({items}, len(refs), numpy.int64)))
    if len(refs) == 60:
        print("spilling", flush=True)
    del refs[:-80]
"""


@contextlib.contextmanager
def running_program(address: str, settings: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a program that spills; yields it and the pid of its node."""
    text = PROGRAM.format(address=address, settings=settings, items=ITEMS)
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            node = int(program.stdout.readline())
            assert program.stdout.readline() == "spilling\n"
            yield program, node
        finally:
            program.kill()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.parametrize("victim", ["node", "driver"])
def test_a_kill_while_it_spills_leaves_nothing(tmp_path: pathlib.Path, victim: str) -> None:
    settings = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "spill_directory": str(tmp_path)}
    with running_program("local", settings) as (program, node):
        os.kill(node if victim == "node" else program.pid, signal.SIGKILL)
        wait_until(lambda: gone(node))
    assert os.listdir(tmp_path) == []


@zmesh.remote(max_retries=20)
def total(ref: Any, number: int) -> Any:
    return numpy.full(ITEMS, int(ref[0]) + number, numpy.int64)


@pytest.mark.slow
def test_workers_that_die_while_they_spill_cost_no_value(start: Any) -> None:
    """Their slabs and mappings go with them; what they made is made again, or is still there."""
    start(num_cpus=3)
    first = [array.options(max_retries=20).remote(number) for number in range(60)]
    second = [total.remote(ref, number) for number, ref in enumerate(first)]
    deadline = time.monotonic() + 60
    for _ in range(6):
        running = [worker["pid"] for worker in zmesh.status()["workers"] if worker["executing"]]
        for pid in running[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        zmesh.wait(second, num_returns=len(second), timeout=0.2)
        assert time.monotonic() < deadline
    for number, (one, two) in enumerate(zip(first, second, strict=True)):
        intact(one, number)
        intact(two, 2 * number)


def test_a_process_that_stands_still_holds_up_nobody(start: Any) -> None:
    start()
    refs = [put(number) for number in range(10)]
    pid, _ = zmesh.get(look_at.remote(refs))
    os.kill(pid, signal.SIGSTOP)
    try:
        refs += [put(10 + number) for number in range(50)]
        for number, ref in enumerate(refs):
            intact(ref, number)
    finally:
        os.kill(pid, signal.SIGCONT)


@zmesh.remote
def look_at(refs: list[Any]) -> tuple[int, int]:
    """Map them all, and go; the mappings stay for a while."""
    return os.getpid(), sum(int(zmesh.get(ref)[0]) for ref in refs)


def test_a_host_that_dies_takes_only_its_own_objects(nodes: Nodes, tmp_path: pathlib.Path) -> None:  # noqa: F811
    directory = tmp_path / "spill"
    directory.mkdir()
    settings = {"store_bytes": STORE_BYTES, "spill_directory": str(directory)}
    a, b = nodes.start(**settings), nodes.start(**settings)
    nodes.await_members(a, 2)
    zmesh.init(a.name)
    theirs = [array.options(**on(b)).remote(number) for number in range(50)]
    ours = [put(number) for number in range(50)]
    zmesh.wait(theirs, num_returns=50, timeout=60)
    intact(theirs[0], 0)
    os.kill(b.pid, signal.SIGKILL)
    with pytest.raises(ObjectLostError):
        zmesh.get(theirs[1:], timeout=30)
    for number, ref in enumerate(ours):
        intact(ref, number)
    assert os.listdir(directory) == []


def test_what_a_dead_driver_put_goes_from_memory_and_disk(nodes: Nodes) -> None:  # noqa: F811
    node = nodes.start(store_bytes=STORE_BYTES)
    with running_program(node.name, {}):
        pass  # and kill it
    wait_until(lambda: lifecycle.status(node.name)["store"]["spilled"] == 0)
    wait_until(lambda: lifecycle.status(node.name)["store"]["used"] == 0)
    zmesh.init(node.name)
    refs = [put(number) for number in range(60)]
    intact(refs[0], 0)
