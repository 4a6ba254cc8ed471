"""Memory runs short: who takes no more work, who is killed, and what he is told."""

from typing import Any

import pytest

from tests.core.test_client import CPU, NODE, D, Driver, W, died
from tests.core.test_node import DRIVER, Host
from zmesh.core.client import DRAIN_S
from zmesh.core.effects import KillProcess
from zmesh.core.node import Executing
from zmesh.core.pressure import KILL_PAUSE_S, ROWS_MAX, Pressure, Usage
from zmesh.wire.ids import node_peer
from zmesh.wire.messages import PENDING, UNIT, Spare, WorkerDied

MB = 1_000_000


def usage(pid: int, start_s: float, nbytes: int, *, asked: int = 0, retryable: bool = True, job: bytes = b"j") -> Usage:
    return Usage(bytes([pid]), pid, job, f"f{pid}", nbytes * MB, asked * MB, start_s, retryable)


@pytest.mark.parametrize(
    ("usages", "victim"),
    [
        ([usage(1, 1.0, 10), usage(2, 2.0, 10)], 2),
        ([usage(1, 1.0, 90), usage(2, 2.0, 10)], 2),
        ([usage(1, 1.0, 90), usage(2, 2.0, 10, retryable=False)], 1),
        ([usage(1, 1.0, 90), usage(2, 2.0, 10, job=b"k")], 1),
        ([usage(1, 1.0, 30), usage(2, 2.0, 50, job=b"k"), usage(3, 3.0, 30)], 3),
        ([usage(1, 1.0, 90, retryable=False), usage(2, 2.0, 10, job=b"k")], 2),
        ([usage(1, 1.0, 20, asked=10), usage(2, 2.0, 90)], 1),
        ([usage(1, 1.0, 20, asked=10), usage(2, 2.0, 20, asked=10), usage(3, 3.0, 90)], 2),
        ([usage(1, 1.0, 20, asked=10, retryable=False), usage(2, 2.0, 9, asked=10)], 2),
        ([usage(1, 1.0, 20, retryable=False), usage(2, 2.0, 9, retryable=False)], 2),
        ([usage(1, 1.0, 20, asked=10, retryable=False), usage(2, 2.0, 90, asked=99, retryable=False)], 1),
    ],
    ids=[
        "the newest",
        "the newest, not the largest",
        "one that may be retried",
        "of the program that uses most",
        "the programs are summed up",
        "one that may be retried, of whatever program",
        "one over its own request first",
        "the newest of those",
        "over its request, but not to be retried",
        "if none may be retried, the newest",
        "and of those, too, one over its request first",
    ],
)
def test_who_is_killed(usages: list[Usage], victim: int) -> None:
    assert Pressure.choose(usages).pid == victim


def test_the_table_says_who_used_what_and_which_it_was() -> None:
    usages = [usage(pid, float(pid), pid, asked=pid % 2) for pid in range(1, 15)]
    pressure = Pressure()
    pressure.sample(0.95)
    lines = pressure.describe(usages[0], usages).splitlines()
    assert lines[0] == "was killed by its node, as 95% of the memory were in use (its limit is 92%):"
    assert lines[2].split() == ["1", "1", "1", "f1", "<-", "this", "one"]
    assert lines[3].split() == ["14", "14", "-", "f14"]
    assert len(lines) == ROWS_MAX + 4
    assert lines[-2] == "and 4 others"


def test_a_change_is_told_once() -> None:
    pressure = Pressure()
    assert [pressure.sample(used) for used in (0.5, 0.79, 0.8, 0.99, 0.7)] == [False, False, True, False, True]
    assert pressure.short == ""


# The node.


def running(host: Host, count: int, shape: dict[str, int] | None = None) -> list[bytes]:
    """Have `count` workers run a task each of the driver's; worker n started at n."""
    host.driver()
    host.demand(count, shape)
    peers = host.born()
    host.effects.clear()
    for number, peer in enumerate(peers):
        slot = host.core.matchmaking.workers[peer].slot
        host.boxes[slot] = Executing(DRIVER, number + 1, 0, DRIVER, start_s=float(number))
    return peers


def told(pid: int, slot: int) -> tuple[int, str, bool]:
    return 100 * MB, f"f{slot}", True


def killed(host: Host) -> list[bytes]:
    return [effect.peer for effect in host.effects if isinstance(effect, KillProcess)]


def test_the_newest_task_is_killed_and_its_owner_is_told_why() -> None:
    host = Host(cpus=4)
    peers = running(host, 3)
    host.core.memory(0.95, told, 10.0)
    assert killed(host) == [peers[2]]
    host.core.worker_ended(peers[2], 9, 10.0, "", "")
    (died,) = [message for message in host.said(DRIVER) if isinstance(message, WorkerDied)]
    assert died.reason == "oom"
    assert died.detail.count("\n") == 5
    assert "f2  <- this one" in died.detail


def test_one_is_killed_at_a_time_and_none_twice() -> None:
    host = Host(cpus=4)
    peers = running(host, 2)
    for now in (10.0, 10.0 + KILL_PAUSE_S / 2, 10.0 + KILL_PAUSE_S, 10.0 + 2 * KILL_PAUSE_S):
        host.core.memory(0.95, told, now)
    assert killed(host) == [peers[1], peers[0]]


def test_what_a_task_asked_for_is_what_it_booked() -> None:
    host = Host(cpus=4)
    host.core.resources.total["memory"] = host.core.resources.available["memory"] = 1000 * MB * UNIT
    small = running(host, 1, {"CPU": UNIT, "memory": 50 * MB * UNIT})
    large = running(host, 1, {"CPU": UNIT, "memory": 500 * MB * UNIT})
    host.core.memory(0.95, told, 10.0)
    assert killed(host) == small != large


def test_while_memory_is_short_no_worker_but_the_first_is_started() -> None:
    host = Host(cpus=4)
    host.driver()
    host.core.memory(0.85, told, 0.0)
    host.demand(3)
    assert len(host.born()) == 1
    (demand,) = host.core.status(0.0)["demands"]
    assert demand["waits_for"] == "memory is short: 85% of it is in use"
    host.effects.clear()
    host.core.memory(0.5, told, 1.0)
    assert len(host.born()) == 2
    assert host.core.status(1.0)["memory_used"] == 0.5


def test_while_memory_is_short_nothing_is_taken_from_other_nodes() -> None:
    host = Host(cpus=4)
    there = b"t" * 8
    host.core.member_up(there, {"CPU": 4 * UNIT}, 0.0)
    host.core.heard_load(there, {"backlog": [({"CPU": UNIT}, 9)]}, 0.0)
    assert [type(message).__name__ for message in host.said(node_peer(there))] == ["Spare"]
    host.core.memory(0.85, told, 0.0)
    (withdrawn,) = host.said(node_peer(there))
    assert withdrawn == Spare({})
    host.core.heard_load(there, {"backlog": [({"CPU": UNIT}, 9)]}, 0.0)
    assert host.said(node_peer(there)) == []


def test_a_node_without_tasks_kills_nothing() -> None:
    host = Host()
    host.core.memory(0.99, told, 0.0)
    assert host.effects == []


# The owner.


def oom(task: Any, **fields: Any) -> WorkerDied:
    notice = died(W, task, reason="oom", **fields)
    notice.detail = "was killed by its node: see the table"
    return notice


def kill_once(driver: Driver, task: Any) -> None:
    driver.steal()
    driver.hear(NODE, oom(task))
    driver.pass_time(DRAIN_S)


@pytest.mark.parametrize(("oom_retries", "kills"), [(0, 1), (1, 2), (3, 4)])
def test_a_task_that_memory_killed_is_retried_so_often(oom_retries: int, kills: int) -> None:
    driver = Driver()
    task = driver.submit(driver.core.new_spec(D, "g", CPU, max_retries=1, oom_retries=oom_retries))
    for number in range(kills):
        assert task.status == PENDING, number
        kill_once(driver, task)
    assert task.value[0] == "OutOfMemoryError"
    assert "was killed by its node: see the table" in task.value[1]
    assert not driver.core.tasks._oom_kills


def test_retries_for_memory_do_not_count_among_the_others() -> None:
    driver = Driver()
    task = driver.submit(driver.core.new_spec(D, "g", CPU, max_retries=1, oom_retries=-1))
    for _ in range(5):
        kill_once(driver, task)
    driver.steal()
    driver.hear(NODE, died(W, task))
    driver.pass_time(DRAIN_S)
    assert task.status == PENDING
    driver.steal()
    driver.hear(NODE, died(W, task))
    driver.pass_time(DRAIN_S)
    assert task.value[0] == "WorkerDiedError"


def test_a_task_that_must_not_run_twice_does_not_for_memory_either() -> None:
    driver = Driver()
    task = driver.submit(driver.core.new_spec(D, "g", CPU, max_retries=0, oom_retries=5))
    kill_once(driver, task)
    assert task.value[0] == "OutOfMemoryError"
