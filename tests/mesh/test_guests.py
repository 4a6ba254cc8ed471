"""Programs on a machine without a node: guests of one member, and of another when that one is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

import zmesh
from tests.mesh.test_hosts import Nodes, nodes  # noqa: F401  # a fixture
from tests.relay import Relay
from zmesh import lifecycle
from zmesh.exceptions import ConfigError, MeshError, NotRunningError, ObjectLostError, OwnerDiedError, StoreFullError
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@zmesh.remote
def double(x: Any, seconds: float = 0.0) -> Any:
    time.sleep(seconds)
    return 2 * x


@zmesh.remote
def first_of(refs: list[Any]) -> Any:
    return zmesh.get(refs[0])


@zmesh.remote
def held_by(ref: Any, seconds: float) -> Any:
    time.sleep(seconds)
    return ref


@pytest.fixture
def mesh(nodes: Nodes) -> Iterator[Nodes]:  # noqa: F811
    nodes.start()
    nodes.start()
    nodes.await_members(nodes.all[0], 2)
    yield nodes
    zmesh.shutdown()


def clients(node: lifecycle.RunningNode) -> list[dict[str, Any]]:
    """Return the drivers a node knows."""
    return [client for client in lifecycle.status(node.name)["clients"] if client["kind"] == "driver"]


def gone(node: lifecycle.RunningNode) -> None:
    """Kill a node as a power cut would."""
    os.kill(node.pid, signal.SIGKILL)


def test_a_guest_runs_tasks_and_reads_arrays(mesh: Nodes) -> None:
    found = zmesh.init(mesh.all[0].address)
    assert found["address"] == mesh.all[0].address
    assert zmesh.get([double.remote(i) for i in range(300)]) == [2 * i for i in range(300)]
    array = numpy.arange(1 << 20, dtype=numpy.int64)
    ref = zmesh.put(array)
    twice = zmesh.get(double.remote(ref))
    assert (twice == 2 * array).all()
    assert not twice.flags.writeable
    assert (zmesh.get(double.remote(array)) == 2 * array).all(), "a large argument of its own"
    assert zmesh.get(first_of.remote([double.remote(21)])) == 42
    assert (zmesh.get(zmesh.get(held_by.remote([ref], 0.0)))[0] == array).all()
    own = zmesh.get(ref, writable=True)
    own[0] = 7
    assert zmesh.get(ref)[0] == 0


def children() -> list[str]:
    """Return the pids of this process's children."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()


def test_nothing_listens_for_a_guest_and_no_process_is_started(mesh: Nodes) -> None:
    before = children()
    zmesh.init(mesh.all[0].address)
    assert zmesh.get(double.remote(1)) == 2
    inodes = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    with open("/proc/self/net/tcp") as file:
        listening = [line.split()[9] for line in file.readlines()[1:] if line.split()[3] == "0A"]
    assert not [inode for inode in listening if f"socket:[{inode}]" in inodes]
    assert children() == before
    assert len(clients(mesh.all[0])) == 1


def test_a_guest_that_leaves_or_dies_leaves_nothing(mesh: Nodes) -> None:
    zmesh.init(mesh.all[0].address)
    ref = zmesh.put(numpy.ones(1 << 20))
    assert lifecycle.status(mesh.all[0].name)["store"]["used"] >= 8 << 20
    del ref
    zmesh.get(double.remote(1))
    deadline = time.monotonic() + 5
    while lifecycle.status(mesh.all[0].name)["store"]["used"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kept = zmesh.put(numpy.ones(1 << 20))
    zmesh.shutdown()
    del kept
    assert clients(mesh.all[0]) == []
    assert lifecycle.status(mesh.all[0].name)["store"]["used"] == 0


def test_a_guest_goes_on_at_another_member_when_its_own_is_killed(mesh: Nodes) -> None:
    zmesh.init(mesh.all[0].address)
    array = numpy.arange(1 << 18, dtype=numpy.int64)
    ref = zmesh.put(array)
    before = zmesh.get(double.remote(ref))
    refs = [double.remote(ref, 0.05) for _ in range(30)]
    pending = double.remote(refs[-1])
    zmesh.get(refs[0])
    gone(mesh.all[0])
    results = []
    for one in refs:  # some had their result, which lay there, and is made again
        try:
            results.append(zmesh.get(one, timeout=30))
        except ObjectLostError:  # it was being read when its node died
            results.append(None)
    late = [result for result in results if result is not None]
    assert len(late) >= 28, "at most the one being read"
    assert all((result == 2 * array).all() for result in late)
    assert (zmesh.get(pending, timeout=30) == 4 * array).all()
    assert (before == 2 * array).all(), "what was read stays"
    assert (zmesh.get(double.remote(ref)) == 2 * array).all(), "what this program put is taken along"
    assert zmesh.get(double.remote(4)) == 8
    assert len(clients(mesh.all[1])) == 1
    assert zmesh.status()["node"] == mesh.all[1].id


def test_references_counted_by_a_dead_node_fail_with_a_reason(mesh: Nodes) -> None:
    zmesh.init(mesh.all[0].address)
    inner = double.remote(1)
    zmesh.get(inner)
    refs = [held_by.remote([inner], 30.0) for _ in range(5)]  # two run, three are queued
    time.sleep(0.3)
    gone(mesh.all[0])
    for ref in refs:
        with pytest.raises(OwnerDiedError, match="hold references"):
            zmesh.get(ref, timeout=30)
    assert zmesh.get(first_of.remote([inner]), timeout=30) == 2, "shared anew"


def test_a_guest_without_any_member_left_says_so(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from zmesh.core import guest_client

    monkeypatch.setattr(guest_client, "GIVE_UP_S", 1.0)
    node = nodes.start()
    zmesh.init(node.address)
    ref = double.remote(1, 60.0)
    time.sleep(0.2)
    gone(node)
    with pytest.raises(MeshError, match="no member of the mesh took us in"):
        zmesh.get(ref, timeout=20)


def test_cut_connections_lose_nothing_of_a_guest(mesh: Nodes) -> None:
    host, port = lifecycle.parse_address(mesh.all[0].address)
    with Relay(host, port) as relay:
        zmesh.init(f"127.0.0.1:{relay.port}")
        refs = [double.options(max_retries=0).remote(i, 0.002) for i in range(400)]
        for _ in range(8):
            time.sleep(0.1)
            relay.cut()
        assert zmesh.get(refs, timeout=60) == [2 * i for i in range(400)]
        assert zmesh.status()["node"] == mesh.all[0].id


def test_a_full_store_is_told_to_a_guest(nodes: Nodes) -> None:  # noqa: F811
    node = nodes.start(store_bytes=1 << 22)
    zmesh.init(node.address)
    with pytest.raises(StoreFullError, match="--store-memory"):
        zmesh.put(numpy.ones(1 << 20))
    assert zmesh.get(zmesh.put(numpy.ones(1 << 17)))[-1] == 1


@pytest.mark.parametrize("address", ["127.0.0.1:0", "host:port", "ray://", "a/b:1"])
def test_what_is_no_address_is_refused(address: str, nodes: Nodes) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="no address"):
        zmesh.init(address)


def test_no_key_wrong_key_and_nobody_there(nodes: Nodes, tmp_path: Any) -> None:  # noqa: F811
    from zmesh.runtime.keyring import Keyring

    with pytest.raises(ConfigError, match="key"):
        zmesh.init("127.0.0.1:27999")
    node = nodes.start()
    other = tmp_path / "other.json"
    Keyring.load_or_create(str(other))
    with pytest.raises(NotRunningError, match="another key"):
        zmesh.init(node.address, key_file=str(other))
    with pytest.raises(NotRunningError, match="nobody listens there"):
        zmesh.init("127.0.0.1:27999")
    assert not zmesh.is_initialized()


def test_status_of_a_member_elsewhere(mesh: Nodes) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zmesh_cli.main", "status", "--node", mesh.all[1].address],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert mesh.all[1].id in done.stdout
    assert "members    2" in done.stdout


def test_the_schemes_of_programs_written_for_others(mesh: Nodes) -> None:
    zmesh.init(f"ray://{mesh.all[0].address}")
    assert zmesh.get(double.remote(2)) == 4


def test_a_guest_keeps_results_that_lay_on_another_node_that_is_stopped(mesh: Nodes) -> None:
    a, b = mesh.all
    zmesh.init(a.address)
    there = double.options(scheduling_strategy=NodeAffinitySchedulingStrategy(b.id))
    ref = there.remote(numpy.ones(1 << 17))
    zmesh.wait([ref], timeout=10)
    told = lifecycle.stop(b.name)
    assert (told.moved, told.lost, told.notes) == (1, 0, [])
    assert zmesh.get(ref).sum() == 2 << 17


def test_a_guest_goes_on_when_its_node_is_stopped_which_tells_what_it_loses(mesh: Nodes) -> None:
    zmesh.init(mesh.all[0].address)
    ref = double.remote(numpy.ones(1 << 17))
    zmesh.wait([ref], timeout=10)
    assert "1 guest(s) of this node go on elsewhere" in lifecycle.stop(mesh.all[0].name).notes[0]
    assert zmesh.get(double.remote(21), timeout=20) == 42
    assert zmesh.get(ref, timeout=20).sum() == 2 << 17, "it is made again"
