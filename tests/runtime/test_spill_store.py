"""A store with a disk behind it: who may be unmapped, who waits for whom, and what comes back."""

import contextlib
import gc
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from tests.runtime.test_store import ALICE, BOB, get, wait_until
from zmesh.core import spilling
from zmesh.core.spilling import RESIDENT, SPILLED
from zmesh.exceptions import ObjectLostError, SpillError, StoreFullError
from zmesh.runtime import serialization
from zmesh.runtime.segments import NO_ROOM, SegmentServer
from zmesh.runtime.spill_files import SpillDisk, SpillFile
from zmesh.runtime.store import Store

MIB = 1024 * 1024
CAPACITY = 16 * MIB


class Node:
    """A node's loop with a disk; `stores` answer its Unmaps as their reactors would, in a thread of their own."""

    def __init__(self, path: Path, disk: Any, disk_bytes_max: int = 1 << 40) -> None:
        self.path = str(path)
        self.stores: dict[bytes, Store] = {}
        self.asked: list[tuple[bytes, list[int]]] = []
        self.server = SegmentServer(
            self.path, CAPACITY, disk=disk, disk_bytes_max=disk_bytes_max, unmap=lambda *ask: self.asked.append(ask)
        )
        self._calls: list[tuple[Callable[[], Any], list[Any], threading.Event]] = []
        self._stopped = False
        self._threads = [threading.Thread(target=self._run), threading.Thread(target=self._answer)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stopped:
            ready, _, _ = select.select([*self.server.filenos(), *self.server.disk_filenos()], [], [], 0.005)
            for fd in ready:
                if fd in self.server.disk_filenos():
                    self.server.disk_done()
                else:
                    self.server.handle(fd)
            while self._calls:
                function, result, done = self._calls.pop(0)
                result.append(function())
                done.set()
            self.server.look()
            self.server.ledger.check()

    def _answer(self) -> None:
        while not self._stopped:
            if self.asked and self.asked[0][0] in self.stores:
                peer, segments = self.asked.pop(0)
                self.stores[peer].unmap(segments)
            else:
                time.sleep(0.001)

    def call(self, function: Callable[[], Any]) -> Any:
        result: list[Any] = []
        done = threading.Event()
        self._calls.append((function, result, done))
        assert done.wait(5)
        return result[0]

    def state(self, where: tuple[int, int]) -> str:
        return self.server.ledger.state(where[0])

    def stop(self) -> None:
        self._stopped = True
        for thread in self._threads:
            thread.join()
        self.server.close()


@pytest.fixture(params=["none", "lz4"])
def node(tmp_path: Path, request: Any) -> Iterator[Node]:
    node = Node(tmp_path / "segments", SpillDisk(str(tmp_path), request.param))
    yield node
    node.stop()


@pytest.fixture
def alice(node: Node) -> Iterator[Store]:
    alice = node.stores[ALICE] = Store(node.path, ALICE)
    yield alice
    alice.close()


@pytest.fixture
def bob(node: Node) -> Iterator[Store]:
    bob = node.stores[BOB] = Store(node.path, BOB)
    yield bob
    bob.close()


def put(store: Store, value: Any) -> tuple[int, int]:
    packed = serialization.pack(value)
    nbytes = serialization.segment_bytes(packed)
    slab = store.allocate(nbytes)
    serialization.write_segment(packed, slab.view)
    store.commit(slab, nbytes)
    return slab.segment, nbytes


def put_many(store: Store, count: int) -> list[tuple[int, int]]:
    """Put arrays of a MiB; a store has room for 12."""
    return [put(store, np.full(MIB // 8, number)) for number in range(count)]


def test_what_nobody_reads_goes_and_comes_back(node: Node, alice: Store, bob: Store) -> None:
    places = put_many(alice, 40)
    assert node.server.used_bytes <= CAPACITY
    for reader in (bob, alice):
        for number, where in enumerate(places):
            assert (get(reader, where) == number).all()


def test_random_bytes_come_back(node: Node, alice: Store) -> None:
    values = [np.random.default_rng(number).bytes(MIB + number) for number in range(40)]
    places = [put(alice, value) for value in values]
    assert [get(alice, where) for where in places] == values


def test_what_somebody_reads_stays_in_memory(node: Node, alice: Store, bob: Store) -> None:
    places = put_many(alice, 4)
    held = [get(alice, places[0]), get(bob, places[1]), get(bob, places[2], writable=True)]
    put_many(alice, 30)
    assert [node.state(where) for where in places] == [RESIDENT, RESIDENT, RESIDENT, SPILLED]
    assert [values[0] for values in held] == [0, 1, 2]
    del held
    gc.collect()
    wait_until(lambda: put_many(alice, 1) and all(node.state(where) == SPILLED for where in places))


def test_what_is_being_written_stays_in_memory(node: Node, alice: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    slab = alice.allocate(MIB)
    slab.view[:5] = b"hello"
    allocate = os.posix_fallocate

    def unmap_meanwhile(*what: int) -> None:
        alice.unmap(list(node.server._segments))
        allocate(*what)

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", unmap_meanwhile)
        other = alice.allocate(MIB)
    put_many(alice, 30)
    assert [node.state((one.segment, 0)) for one in (slab, other)] == [RESIDENT] * 2
    assert bytes(slab.view[:5]) == b"hello"
    other.view[:5] = b"there"


def test_a_free_slab_goes_without_being_written(node: Node, alice: Store) -> None:
    places = put_many(alice, 4)
    for segment, _ in places:
        alice.recycle(segment)
    alice.unmap([segment for segment, _ in places])
    wait_until(lambda: node.server.used_bytes == 0)
    assert node.server.ledger.disk_bytes == 0
    assert alice.trim() == 0


def test_one_on_the_disk_of_a_full_store_is_not_called_lost(
    node: Node, alice: Store, bob: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilling, "FULL_WAIT_S", 0.1)
    (cold,) = put_many(alice, 1)
    held = []
    while node.server.used_bytes + 2 * MIB <= CAPACITY or node.state(cold) != SPILLED:
        held.append(get(alice, put(alice, np.arange(MIB // 8))))
    found: list[int] = []
    told: list[bytes] = []
    node.call(lambda: node.server.open(cold[0], b"", found.append))
    node.call(lambda: node.server.serve_guest(BOB, msgpack.packb([1, "read", cold[0], 0, 100]), told.append))
    wait_until(lambda: found and told)
    assert (found, [msgpack.unpackb(answer) for answer in told]) == ([NO_ROOM], [[1, b"", CAPACITY]])
    del held


def test_one_on_disk_that_nobody_needs_is_no_more(node: Node, alice: Store, bob: Store) -> None:
    places = put_many(alice, 40)
    on_disk = [where for where in places if node.state(where) == SPILLED]
    for segment, _ in on_disk:
        alice.recycle(segment)
    alice.recycle(on_disk[0][0])
    wait_until(lambda: not any(node.state(where) for where in on_disk))
    with pytest.raises(ObjectLostError):
        get(bob, on_disk[0])
    alice.discard(places[-1][0])
    for where in places:
        if where not in on_disk:
            get(bob, where)


def test_nobody_can_see_the_files(tmp_path: Path, node: Node, alice: Store) -> None:
    put_many(alice, 40)
    assert os.listdir(tmp_path) == ["segments"]


def test_an_allocation_waits_for_the_disk(node: Node, alice: Store, bob: Store) -> None:
    held = [get(alice, where) for where in put_many(alice, 12)]
    begun = threading.Event()

    def let_go() -> None:
        begun.wait()
        time.sleep(0.05)
        held.clear()

    helper = threading.Thread(target=let_go)
    helper.start()
    begun.set()
    where = put(bob, np.arange(8 * MIB // 8))
    helper.join()
    assert get(bob, where)[-1] == MIB - 1


class SlowDisk(SpillDisk):
    """A disk that reads only when it is told to."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.go = threading.Event()

    def _read(self, file: SpillFile, fd: int, done: Callable[[str, bool], None]) -> None:
        self.go.wait()
        super()._read(file, fd, done)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Node, SlowDisk, Store]]:
    disk = SlowDisk(str(tmp_path))
    node = Node(tmp_path / "segments", disk)
    alice = node.stores[ALICE] = Store(node.path, ALICE)
    yield node, disk, alice
    disk.go.set()
    alice.close()
    node.stop()


def test_one_that_comes_from_disk_holds_up_no_other_request(slow: tuple[Node, SlowDisk, Store]) -> None:
    node, disk, alice = slow
    places = put_many(alice, 40)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(get(alice, places[0])[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: node.state(places[0]) == "reading")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(node.path)
    assert get(alice, places[-1])[0] == 39
    put(alice, np.arange(100_000))
    assert found == []
    disk.go.set()
    for thread in threads:
        thread.join(5)
    assert found == [0, 0]


def test_one_that_is_dropped_while_it_comes_back_is_lost(slow: tuple[Node, SlowDisk, Store]) -> None:
    node, disk, alice = slow
    places = put_many(alice, 40)
    failed: list[Any] = []

    def read() -> None:
        try:
            get(alice, places[0])
        except ObjectLostError as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: node.state(places[0]) == "reading")
    node.call(lambda: node.server.drop([places[0][0]]))
    thread.join(5)
    assert "let go of it" in str(failed[0])
    disk.go.set()
    wait_until(lambda: not node.state(places[0]))


def test_a_stranger_that_goes_takes_nobodys_place_in_the_queue(node: Node, alice: Store) -> None:
    places = put_many(alice, 40)
    held = [get(alice, where) for where in places[-12:]]
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(get(alice, places[0])[0]))
    thread.start()
    wait_until(lambda: node.state(places[0]) == "reading")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(node.path)
    wait_until(lambda: len(node.server.filenos()) == 2)
    held.clear()
    thread.join(5)
    assert found == [0]


def test_a_client_that_goes_while_it_waits_for_room_leaves_nothing(node: Node, alice: Store) -> None:
    held = [get(alice, where) for where in put_many(alice, 12)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(node.path)
        client.send(msgpack.packb([1, "hello", b"carol"]))
        client.recv(100)
        fd = SegmentServer._memory(8 * MIB)
        socket.send_fds(client, [msgpack.packb([2, "register", 7])], [fd])
        socket.send_fds(client, [msgpack.packb([3, "register", 8])], [fd])
        wait_until(lambda: len(node.server._parked) == 2)
        client.send(msgpack.packb([0, "unregister", [8]]))
        wait_until(lambda: len(node.server._parked) == 1)
        os.close(fd)
    wait_until(lambda: not node.server._parked)
    del held
    put_many(alice, 12)
    assert node.server.segments_of(b"carol") == []


def test_a_producer_may_die_when_it_was_asked_to_unmap_what_is_to_be_spilled(tmp_path: Path) -> None:
    disk, asked = SpillDisk(str(tmp_path)), []
    server = SegmentServer(
        str(tmp_path / "s"), CAPACITY, disk=disk, disk_bytes_max=1 << 30, unmap=lambda *ask: asked.append(ask)
    )
    for segment in range(1, 5):
        server.make(CAPACITY // 4, ALICE, lambda segment, why: None, segment=segment, mapped=True)
        server.fill(segment)
    assert {peer for peer, _ in asked} == {ALICE}, "the store is full: some have to go"
    server.drop_unused_of(ALICE, [])
    wait_until(lambda: server.disk_done() or server.used_bytes == server.ledger.disk_bytes == 0)
    server.ledger.check()
    server.close()


def test_the_quota_of_the_disk_is_named(tmp_path: Path) -> None:
    node = Node(tmp_path / "segments", SpillDisk(str(tmp_path)), disk_bytes_max=MIB // 2)
    alice = node.stores[ALICE] = Store(node.path, ALICE)
    with contextlib.closing(alice), pytest.raises(SpillError, match="of 524,288 bytes of spill_bytes_max") as caught:
        put_many(alice, 40)
    assert isinstance(caught.value, StoreFullError)
    node.stop()


def test_a_directory_that_vanished_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "disk"
    directory.mkdir()
    node = Node(tmp_path / "segments", SpillDisk(str(directory)))
    alice = node.stores[ALICE] = Store(node.path, ALICE)
    directory.rmdir()
    with contextlib.closing(alice), pytest.raises(SpillError, match="No such file"):
        put_many(alice, 40)
    node.stop()


@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize("damage", ["short", "half a head", "empty", "nonsense"])
def test_a_damaged_file_is_found_out(tmp_path: Path, compression: str, damage: str) -> None:
    disk = SpillDisk(str(tmp_path), compression)
    fd = SegmentServer._memory(3 * MIB)
    os.pwrite(fd, b"abcd" * (MIB // 2), 0)
    told: list[Any] = []
    disk.write(fd, 2 * MIB + 100, lambda *what: told.append(what))
    answered(disk, told)
    file, error = told.pop()
    assert not error
    if damage == "nonsense":
        os.pwrite(file.fd, b"\xff" * 50, 5)
    else:
        os.ftruncate(file.fd, {"short": file.file_bytes - 10, "half a head": 3, "empty": 0}[damage])
    disk.read(file, fd, lambda *what: told.append(what))
    answered(disk, told)
    error, damaged = told.pop()
    if compression == "none" and damage == "nonsense":
        assert not error  # only its length is known
    else:
        assert "spill file" in error
        assert damaged
    os.close(fd)
    os.close(file.fd)
    disk.close()


def test_a_file_system_without_unnamed_files_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_RDWR)  # a directory cannot be opened for writing: EISDIR
    disk = SpillDisk(str(tmp_path))
    fd = SegmentServer._memory(MIB)
    told: list[Any] = []
    disk.write(fd, MIB, lambda *what: told.append(what))
    answered(disk, told)
    file, error = told.pop()
    assert (error, file.file_bytes) == ("", MIB)
    assert os.listdir(tmp_path) == []
    os.close(fd)
    os.close(file.fd)
    disk.close()


def answered(disk: SpillDisk, told: list[Any]) -> None:
    def look() -> bool:
        disk.answers()
        return bool(told)

    wait_until(look)
