"""What the list of objects says: whose they are, where they lie, who reads them, and which line made them."""

import time
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

import zmesh
from tests.mesh.test_hosts import Nodes, nodes, on  # noqa: F401  # a fixture
from zmesh.util.state import list_objects

ITEMS = 100_000


@pytest.fixture
def mesh() -> Iterator[None]:
    zmesh.init("local", num_cpus=2, object_store_memory=64 << 20)
    yield
    zmesh.shutdown()


@zmesh.remote
def zeros(items: int = ITEMS) -> Any:
    return numpy.zeros(items)


@zmesh.remote
def keep(refs: list[Any], seconds: float) -> int:
    values = [zmesh.get(ref) for ref in refs]
    time.sleep(seconds)
    return len(values)


@zmesh.remote
def put_and_wait(seconds: float) -> Any:
    ref = zmesh.put(numpy.ones(3 * ITEMS))
    time.sleep(seconds)
    return ref


def here(offset: int = 0) -> int:
    import sys

    return sys._getframe(1).f_lineno + offset


def test_a_put_names_its_line_and_its_reader(mesh: None) -> None:
    ref, line = zmesh.put(numpy.zeros(ITEMS)), here()
    (row,) = list_objects()
    assert row["made_at"] == f"{__file__}:{line}"
    assert (row["function"], row["state"], row["copies"], row["refs"], row["readers"], row["holders"]) == (
        *("put", "memory", 1, 1, 0, 0),
    )
    assert row["object_id"] == ref.hex()
    assert 8 * ITEMS < row["size"] < 8 * ITEMS + 1000
    view = zmesh.get(ref)
    assert list_objects()[0]["readers"] == 1
    del view, ref
    assert list_objects() == []


def test_a_result_names_the_line_of_its_call(mesh: None) -> None:
    first, line = zeros.remote(), here()
    zmesh.get(first)
    second, later = zeros.remote(ITEMS + 1), here()
    zmesh.get(second)
    small = zeros.remote(1)
    zmesh.get(small)
    rows = list_objects()
    assert [row["made_at"] for row in rows] == [f"{__file__}:{later}", f"{__file__}:{line}"]
    assert {row["function"] for row in rows} == {"zeros"}


def test_what_a_task_reads_and_what_it_owns_is_listed(mesh: None) -> None:
    ref = zmesh.put(numpy.zeros(ITEMS))
    reader, owner = keep.remote([ref], 3.0), put_and_wait.remote(3.0)
    deadline = time.monotonic() + 10
    while len(rows := list_objects()) < 2 or rows[1]["holders"] < 1:
        assert time.monotonic() < deadline, rows
        time.sleep(0.02)
    assert rows[0]["owner"] != rows[1]["owner"]
    assert rows[0]["owner_pid"] != rows[1]["owner_pid"]
    assert rows[0]["function"] == "put"
    assert rows[0]["made_at"]
    assert zmesh.get(reader) == 1
    assert zmesh.get(zmesh.get(owner)).sum() == 3 * ITEMS
    assert len(list_objects(limit=1)) == 1


def test_what_lies_on_disk_is_said(mesh: None) -> None:
    refs = [zmesh.put(numpy.zeros(10 * ITEMS)) for _ in range(20)]
    states = [row["state"] for row in list_objects()]
    assert len(states) == len(refs)
    assert states.count("disk") >= 10


def test_a_guest_sees_the_objects_of_all_hosts(nodes: Nodes) -> None:  # noqa: F811
    a, b = nodes.start(), nodes.start()
    nodes.await_members(a, 2)
    zmesh.init(a.address)
    made, put = zeros.options(**on(b)).remote(), zmesh.put(numpy.zeros(2 * ITEMS))
    zmesh.wait([made])
    first, second = list_objects()
    assert (first["object_id"], first["state"], first["made_at"]) == (put.hex(), "memory", f"{__file__}:{here(-3)}")
    assert (second["object_id"], second["state"]) == (made.hex(), "elsewhere")


def test_copies_on_other_hosts_are_counted(nodes: Nodes) -> None:  # noqa: F811
    a, b = nodes.start(), nodes.start()
    nodes.await_members(a, 2)
    zmesh.init(a.name)
    made, put = zeros.options(**on(b)).remote(), zmesh.put(numpy.zeros(2 * ITEMS))
    assert zmesh.get(keep.options(**on(b)).remote([put], 0.0)) == 1
    zmesh.wait([made])
    first, second = list_objects()
    assert (first["object_id"], first["state"], first["copies"]) == (put.hex(), "memory", 2)
    assert (second["object_id"], second["state"], second["copies"]) == (made.hex(), "elsewhere", 1)
    assert first["node"] == second["node"] == a.id
