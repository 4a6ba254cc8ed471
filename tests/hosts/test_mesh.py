"""Real nodes on hosts of their own: join, steal, arrays, and every way to lose a host or the network between them."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.hosts.cluster import Cluster, until
from tests.hosts.namespaces import why_no_loss, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "namespaces are permitted")]


@pytest.fixture
def three() -> Iterator[Cluster]:
    with Cluster(3) as cluster:
        cluster.start()
        yield cluster


def test_hosts_join_steal_and_exchange_arrays(three: Cluster) -> None:
    ids = [three.node_id(host) for host in range(3)]
    found = three.ask(1, "print(json.dumps(zmesh.get([where.remote(0.05) for _ in range(90)])))")
    assert sorted(set(found)) == sorted(ids)
    assert min(found.count(node) for node in ids) >= 10
    code = """
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
@zmesh.remote
def make(n): return np.arange(n, dtype=float)
@zmesh.remote
def total(a): return float(a.sum()), zmesh.get_runtime_context().get_node_id()
far, near = IDS
there = make.options(scheduling_strategy=On(far)).remote(4_000_000)
summed = total.options(scheduling_strategy=On(near)).remote(there)
print(json.dumps([float(zmesh.get(there).sum()), *zmesh.get(summed)]))
""".replace("IDS", repr((ids[2], ids[0])))
    whole = 4_000_000 * 3_999_999 / 2
    assert three.ask(1, code) == [whole, whole, ids[0]]


def test_eight_hosts_share_work_and_an_array_and_outlive_three() -> None:
    with Cluster(8, store="100M") as cluster:
        cluster.start()
        found = cluster.ask(3, "print(json.dumps(zmesh.get([where.remote(0.05) for _ in range(240)])))")
        assert len(set(found)) == 8
        code = """
@zmesh.remote
def total(a, seconds):
    time.sleep(seconds)
    return float(a.sum())
ref = zmesh.put(np.ones(2_000_000))
print('started', flush=True)
print(json.dumps(zmesh.get([total.remote(ref, 0.2) for _ in range(80)], timeout=60)))
"""
        with cluster.program(3, code) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "started\n"
            time.sleep(0.8)
            for host in (0, 5, 6):
                os.kill(cluster.pid(host), signal.SIGKILL)
            out, err = program.communicate(timeout=90)
        assert program.returncode == 0, err
        assert out.count("2000000.0") == 80
        for host in (1, 2, 3, 4, 7):
            cluster.await_members(host, 5)


@pytest.mark.parametrize("victim", [0, 2], ids=["joined through", "another"])
def test_a_killed_node_is_missed_everywhere_and_its_tasks_run_again(three: Cluster, victim: int) -> None:
    code = """
refs = [where.remote(0.1) for _ in range(80)]
print('started', flush=True)
print(json.dumps(zmesh.get(refs, timeout=60)))
"""
    pid = three.pid(victim)
    with three.program(1, code) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "started\n"
        time.sleep(1.0)
        os.kill(pid, signal.SIGKILL)
        took = max(three.await_members(host, 2) for host in range(3) if host != victim)
        out, _ = program.communicate(timeout=60)
    assert took < 4.0, f"known everywhere after {took:.1f} s"
    assert program.returncode == 0
    assert len(out) > 80 * 16
    three.up(victim, 1)
    for host in range(3):
        three.await_members(host, 3)


def test_a_worker_a_driver_and_a_forkserver_may_be_killed(three: Cluster) -> None:
    code = """
@zmesh.remote
def suicide(): os.kill(os.getpid(), signal.SIGKILL)
try:
    zmesh.get([suicide.options(max_retries=1).remote() for _ in range(6)])
except zmesh.exceptions.WorkerDiedError as error:
    print(json.dumps(error.signal_name))
"""
    assert three.ask(0, code) == "SIGKILL"
    hang = "refs = [where.remote(60) for _ in range(6)]; time.sleep(2); print(1, flush=True); time.sleep(60)"
    with three.program(0, hang) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        assert all(three.status(host)["workers"] for host in range(3))
        driver.kill()
    until(lambda: not any(three.status(host)["workers"] for host in range(3)), 15)


def test_a_partition_heals_and_both_sides_went_on(three: Cluster) -> None:
    three.hosts.partition([0], [1, 2])
    three.await_members(0, 1, seconds=25)
    three.await_members(1, 2, seconds=25)
    assert three.ask(0, "print(json.dumps(len(zmesh.get([where.remote() for _ in range(20)]))))") == 20
    assert three.ask(2, "print(json.dumps(len(zmesh.get([where.remote(0.05) for _ in range(20)]))))") == 20
    three.hosts.heal()
    for host in range(3):
        three.await_members(host, 3, seconds=30)
    found = three.ask(0, "print(json.dumps(zmesh.get([where.remote(0.1) for _ in range(90)])))")
    assert len(set(found)) == 3


def test_a_blackout_of_four_seconds_costs_nothing(three: Cluster) -> None:
    code = """
refs = [where.remote(0.1) for _ in range(150)]
print('started', flush=True)
print(json.dumps(zmesh.get(refs)))
"""
    with three.program(1, code) as program:
        assert program.stdout is not None
        program.stdout.readline()
        three.hosts.partition([2], [0, 1])
        deadline = time.monotonic() + 4.0
        while time.monotonic() < deadline:
            assert len(three.living(0)) == 3, "a false death"
            time.sleep(0.1)
        three.hosts.heal()
        out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err[-2000:]
    assert len(out) > 150 * 16
    assert len(three.living(2)) == 3


@pytest.mark.skipif(bool(why_no_loss()), reason=why_no_loss() or "packet loss can be had")
def test_ten_percent_of_packets_lost_lose_no_task_and_kill_nobody(three: Cluster) -> None:
    for host in range(3):
        three.hosts.loss(host, 0.1)
    found = three.ask(1, "print(json.dumps(zmesh.get([where.remote(0.05) for _ in range(100)])))", seconds=120)
    assert len(found) == 100
    assert all(len(three.living(host)) == 3 for host in range(3))
