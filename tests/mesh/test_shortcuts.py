"""A driver's own connections to the far nodes that serve it."""

import gc
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy
import pytest

import zmesh
from tests.mesh.test_hosts import Nodes, on, total, where
from tests.mesh.test_hosts import nodes as nodes  # the fixture
from zmesh import keys
from zmesh.runtime.session import current


def opened() -> int:
    session: Any = current()
    with session.reactor.lock:
        return len(session.core.shortcuts.open)


def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def listening() -> list[str]:
    """TCP ports this process listens on."""
    sockets = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path)]
    rows = [line.split() for line in pathlib.Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


@pytest.fixture
def two(nodes: Nodes) -> Nodes:
    nodes.start()
    nodes.start()
    nodes.await_members(nodes.all[0], 2)
    zmesh.init(nodes.all[0].name)
    return nodes


def test_a_driver_dials_a_far_node_that_serves_it_and_listens_nowhere(two: Nodes) -> None:
    there = where.options(**on(two.all[1]))
    assert zmesh.get(there.remote()) == two.all[1].id
    until(opened)
    assert [zmesh.get(there.remote()) for _ in range(50)] == [two.all[1].id] * 50
    array = numpy.arange(200_000.0)
    assert zmesh.get(total.options(**on(two.all[1])).remote(zmesh.put(array))) == (array.sum(), two.all[1].id)
    assert listening() == []


def test_a_driver_that_has_no_key_goes_by_way_of_its_node(two: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    session: Any = current()
    monkeypatch.setattr(session, "_keyring", "/nowhere/keyring.json")
    there = where.options(**on(two.all[1]))
    assert [zmesh.get(there.remote()) for _ in range(50)] == [two.all[1].id] * 50
    assert not opened()


def test_a_shortcut_goes_with_the_node_it_leads_to(two: Nodes) -> None:
    there = where.options(
        scheduling_strategy=zmesh.util.scheduling_strategies.NodeAffinitySchedulingStrategy(two.all[1].id, soft=True)
    )
    assert zmesh.get(there.remote()) == two.all[1].id
    until(opened)
    os.kill(two.all[1].pid, 9)
    assert zmesh.get(there.remote(), timeout=20) == two.all[0].id
    assert not opened()


@pytest.mark.slow
def test_a_shortcut_survives_a_change_of_the_key(two: Nodes) -> None:
    there = where.options(**on(two.all[1]))
    assert zmesh.get(there.remote()) == two.all[1].id
    until(opened)
    keys.rotate()
    end = time.monotonic() + 6.0  # nodes look at their keyring every 2 s
    count = 0
    while time.monotonic() < end:
        assert zmesh.get(there.remote(), timeout=10) == two.all[1].id
        count += 1
    assert count > 50
    assert opened()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_far_nodes_that_come_and_go_leave_no_descriptor_and_no_thread(nodes: Nodes) -> None:
    here = nodes.start()
    zmesh.init(here.name)
    counts = []
    for _ in range(10):
        there = nodes.start()
        nodes.await_members(here, 2, 20.0)
        assert zmesh.get(where.options(**on(there)).remote(), timeout=20) == there.id
        until(opened)
        os.kill(there.pid, 9)
        until(lambda: not opened(), 20.0)
        nodes.all.remove(there)
        nodes.await_members(here, 1, 20.0)
        until(lambda: not counts or descriptors() <= counts[0])
        counts.append(descriptors())
    session: Any = current()
    with session.reactor.lock:
        assert not session.core.shortcuts._ways
        assert not session.core.shortcuts.links._links
    assert zmesh.get(where.remote(), timeout=20) == here.id


def test_a_program_with_a_shortcut_shuts_down_and_begins_anew(two: Nodes) -> None:
    there = where.options(**on(two.all[1]))
    counts = []
    for _ in range(3):
        zmesh.init(two.all[0].name, ignore_reinit_error=True)
        assert zmesh.get(there.remote(), timeout=20) == two.all[1].id
        until(opened)
        begun = time.monotonic()
        zmesh.shutdown()
        assert time.monotonic() - begun < 2.0
        until(lambda: not counts or descriptors() <= counts[0])
        counts.append(descriptors())


def test_a_child_of_a_program_with_a_shortcut_leaves_it_alone(two: Nodes) -> None:
    there = where.options(**on(two.all[1]))
    assert zmesh.get(there.remote(), timeout=20) == two.all[1].id
    until(opened)
    ref = there.remote()
    child = os.fork()
    if not child:
        code = 1
        try:
            zmesh.get(ref, timeout=5)
        except zmesh.exceptions.MeshError:
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert zmesh.get(ref, timeout=20) == two.all[1].id
    assert [zmesh.get(there.remote(), timeout=20) for _ in range(20)] == [two.all[1].id] * 20
