"""Segments are shared, never change under a reader, and leave nothing behind."""

import contextlib
import fcntl
import gc
import mmap
import multiprocessing
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from zmesh.exceptions import LocalProtocolError, NodeDiedError, NotRunningError, ObjectLostError, StoreFullError
from zmesh.runtime import serialization, store
from zmesh.runtime.segments import SegmentServer
from zmesh.runtime.store import Store, class_bytes

MIB = 1024 * 1024
CAPACITY = 16 * MIB
ALICE, BOB = b"alice" * 3 + b"a", b"bobby" * 3 + b"b"


class Node:
    """A thread that serves segments as a node's loop does. `call` runs a function inside that loop."""

    def __init__(self, path: str, capacity: int = CAPACITY) -> None:
        self.path = path
        self.server = SegmentServer(path, capacity)
        self.polled = dict.fromkeys(self.server.filenos())
        self._calls: list[tuple[Callable[[], Any], list[Any], threading.Event]] = []
        self._wake, self._waker = socket.socketpair()
        self._stopped = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped:
            ready, _, _ = select.select([*self.polled, self._wake], [], [])
            for fd in ready:
                if fd is self._wake:
                    self._wake.recv(1)
                    function, result, done = self._calls.pop(0)
                    result.append(function())
                    done.set()
                    continue
                for what, changed in self.server.handle(fd):
                    if what == "opened":
                        self.polled[changed] = None
                    else:
                        del self.polled[changed]
            assert [*self.polled] == self.server.filenos()

    def call(self, function: Callable[[], Any]) -> Any:
        result: list[Any] = []
        done = threading.Event()
        self._calls.append((function, result, done))
        self._waker.send(b"x")
        assert done.wait(5)
        return result[0]

    def stop(self) -> None:
        if not self._stopped:
            self.call(lambda: setattr(self, "_stopped", True))
            self._thread.join()
            self.server.close()
            self._wake.close()
            self._waker.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(str(tmp_path / "segments"))
    yield node
    node.stop()


@pytest.fixture
def alice(node: Node) -> Iterator[Store]:
    alice = Store(node.path, ALICE)
    yield alice
    alice.close()


@pytest.fixture
def bob(node: Node) -> Iterator[Store]:
    bob = Store(node.path, BOB)
    yield bob
    bob.close()


def put(store: Store, value: Any) -> tuple[int, int]:
    packed = serialization.pack(value)
    nbytes = serialization.segment_bytes(packed)
    slab = store.allocate(nbytes)
    serialization.write_segment(packed, slab.view)
    return slab.segment, nbytes


def get(store: Store, where: tuple[int, int], on_unpin: Any = int, writable: bool = False) -> Any:
    return serialization.unpack_segment(store.view(*where, on_unpin, writable), writable=writable)


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def mapped_segments(pid: str = "self") -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:zmesh")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_size_classes_are_quarters_of_powers_of_two() -> None:
    kib = 1024
    assert [class_bytes(n) // kib for n in (0, 1, 64 * kib, 64 * kib + 1, 81 * kib, 100 * kib, 127 * kib)] == [
        *(64, 64, 64, 80, 96, 112, 128)
    ]
    for n in (65_537, 10**6, 64 * MIB, 64 * MIB + 1, 10**10, 2**40 - 1):
        size = class_bytes(n)
        assert n <= size <= 1.25 * n + 1
        assert size % mmap.PAGESIZE == 0
        assert class_bytes(size) == size
        assert class_bytes(size + 1) > size


# Writing and reading.


def test_another_client_reads_what_one_wrote(alice: Store, bob: Store) -> None:
    array = np.arange(100_000.0)
    where = put(alice, {"a": array})
    for reader in (alice, bob):
        result = get(reader, where)["a"]
        np.testing.assert_array_equal(result, array)
        assert not result.flags.writeable
        assert result.ctypes.data % 64 == 0


def test_a_reader_cannot_make_its_array_writable(alice: Store, bob: Store) -> None:
    where = put(alice, np.arange(100_000))
    for reader in (alice, bob):
        array = get(reader, where)
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
    assert bob.open(*where).memory.__class__ is mmap.mmap
    with pytest.raises(TypeError):
        bob.open(*where).memory[0] = 1


def test_the_descriptor_a_reader_gets_is_read_only(node: Node, alice: Store) -> None:
    segment, _ = put(alice, np.arange(100_000))
    channel = store._Channel(node.path, b"x")
    (size,), (fd,) = channel.ask("open", segment)
    assert size == class_bytes(800_000)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    with pytest.raises(PermissionError):
        mmap.mmap(fd, size)
    os.close(fd)
    channel.close()


def test_a_segment_cannot_shrink_under_its_readers(node: Node, alice: Store) -> None:
    segment, _ = put(alice, np.arange(100_000))
    found: list[int] = []
    node.call(lambda: node.server.open(segment, b"", found.append))
    with pytest.raises(PermissionError):
        os.ftruncate(found[0], 0)


def test_a_writable_view_is_private(alice: Store, bob: Store) -> None:
    where = put(alice, np.arange(100_000))
    for reader in (alice, bob):
        unpinned: list[int] = []
        mine = get(reader, where, lambda seen=unpinned: seen.append(1), writable=True)
        mine[:10] = -1
        assert get(bob, where)[:3].tolist() == [0, 1, 2]
        assert get(reader, where, writable=True)[:3].tolist() == [0, 1, 2]
        assert unpinned == []
        del mine
        assert unpinned == [1]


def test_a_recycled_slab_is_written_again_and_read_through_the_same_mapping(alice: Store, bob: Store) -> None:
    first = put(alice, np.full(100_000, 1))
    assert get(bob, first)[0] == 1
    mapping = bob.open(*first)
    alice.recycle(first[0])
    second = put(alice, np.full(99_000, 2))
    assert second[0] == first[0]
    assert get(bob, second)[0] == 2
    assert bob.open(*second) is mapping


def test_the_slab_used_last_is_taken_first(alice: Store) -> None:
    slabs = [alice.allocate(100_000) for _ in range(3)]
    for slab in slabs:
        alice.recycle(slab.segment)
    assert alice.allocate(100_000) is slabs[2]
    assert alice.allocate(100_000) is slabs[1]
    assert alice.allocate(200_000) is not slabs[0]


def test_no_array_changes_while_a_reader_holds_it(alice: Store, bob: Store) -> None:
    where = put(alice, np.full(100_000, 7))
    array = get(bob, where)
    later = [put(alice, np.full(100_000, number)) for number in range(10)]
    assert where not in later
    assert (array == 7).all()


def test_a_slab_recycled_twice_is_given_out_once(alice: Store) -> None:
    slab = alice.allocate(100_000)
    alice.recycle(slab.segment)
    alice.recycle(slab.segment)
    assert alice.allocate(100_000) is slab
    assert alice.allocate(100_000) is not slab


def test_a_discarded_slab_is_never_written_again_but_still_read(node: Node, alice: Store, bob: Store) -> None:
    where = put(alice, np.full(100_000, 7))
    mine = get(alice, where)
    alice.discard(where[0])
    alice.recycle(where[0])
    put(alice, np.full(100_000, 8))
    assert (mine == 7).all()
    for reader in (alice, bob):
        assert (get(reader, where) == 7).all()
    assert where[0] in node.server.segments_of(ALICE)


def test_a_view_is_unpinned_once_when_its_last_array_goes(alice: Store, bob: Store) -> None:
    where = put(alice, [np.arange(50_000), np.arange(60_000)])
    for reader in (alice, bob):
        unpinned: list[int] = []
        one, other = get(reader, where, lambda seen=unpinned: seen.append(1))
        part = other[5:10]
        del one, other
        gc.collect()
        assert unpinned == []
        assert part.tolist() == [5, 6, 7, 8, 9]
        del part
        assert unpinned == [1]


def test_a_value_without_arrays_is_unpinned_at_once(alice: Store, bob: Store) -> None:
    unpinned: list[int] = []
    assert get(bob, put(alice, b"x" * 100_000), lambda: unpinned.append(1)) == b"x" * 100_000
    assert unpinned == [1]


def test_a_view_in_a_cycle_is_unpinned_by_the_garbage_collector(alice: Store, bob: Store) -> None:
    unpinned: list[int] = []
    cycle: list[Any] = [get(bob, put(alice, np.arange(100_000)), lambda: unpinned.append(1))]
    cycle.append(cycle)
    del cycle
    assert unpinned == []
    gc.collect()
    assert unpinned == [1]


def test_views_stay_good_after_everything_is_closed(node: Node) -> None:
    alice, bob = Store(node.path, ALICE), Store(node.path, BOB)
    where = put(alice, np.full(100_000, 7))
    arrays = [get(alice, where), get(bob, where), get(bob, where, writable=True)]
    alice.close()
    bob.close()
    node.stop()
    assert [int(array.sum()) for array in arrays] == [700_000] * 3


def test_a_lost_segment_says_so(node: Node, alice: Store, bob: Store) -> None:
    with pytest.raises(ObjectLostError, match="segment 7b"):
        bob.open(123, 1)
    where = put(alice, np.arange(100_000))
    node.call(lambda: node.server.drop([where[0]]))
    unpinned: list[int] = []
    for writable in (False, True):
        with pytest.raises(ObjectLostError):
            bob.view(*where, lambda: unpinned.append(1), writable)
    assert unpinned == []


def test_an_object_longer_than_its_segment_is_lost(alice: Store, bob: Store) -> None:
    segment, _ = put(alice, np.arange(100_000))
    for reader in (alice, bob, bob):
        with pytest.raises(ObjectLostError, match="it has 917,504 bytes, the object 1,000,000"):
            reader.open(segment, 1_000_000)


# The cache of mappings.


def test_idle_mappings_are_limited_in_number(monkeypatch: pytest.MonkeyPatch, alice: Store, bob: Store) -> None:
    monkeypatch.setattr(store, "MAPPINGS_MAX", 3)
    places = [put(alice, np.arange(10_000)) for _ in range(8)]
    before = mapped_segments()
    for where in places:
        get(bob, where)
    assert mapped_segments() == before + 3


def test_idle_mappings_are_limited_in_bytes(alice: Store, bob: Store) -> None:
    places = [put(alice, np.zeros(MIB, np.uint8)) for _ in range(8)]
    before = mapped_segments()
    for where in places:
        get(bob, where)
    assert mapped_segments() == before + 3  # of 1.25 MiB each, in a quarter of 16 MiB


def test_a_pinned_mapping_is_never_forgotten(monkeypatch: pytest.MonkeyPatch, alice: Store, bob: Store) -> None:
    monkeypatch.setattr(store, "MAPPINGS_MAX", 2)
    places = [put(alice, np.full(10_000, number)) for number in range(8)]
    arrays = [get(bob, where) for where in places]
    before = mapped_segments()
    again = [get(bob, where) for where in places]
    assert mapped_segments() == before
    assert [array[0] for array in arrays] == [array[0] for array in again] == [*range(8)]


def test_trim_unmaps_what_nobody_views(alice: Store, bob: Store) -> None:
    places = [put(alice, np.arange(100_000)) for _ in range(3)]
    arrays = [get(bob, where) for where in places]
    before = mapped_segments()
    del arrays[1:]
    bob.trim()
    assert mapped_segments() == before - 2


# The ledger.


def test_trim_gives_free_slabs_back(node: Node, alice: Store) -> None:
    kept = alice.allocate(MIB)
    for slab in [alice.allocate(MIB) for _ in range(3)]:
        alice.recycle(slab.segment)
    assert node.server.used_bytes == 4 * MIB
    before = descriptors()
    assert alice.trim() == 3 * MIB
    wait_until(lambda: node.server.used_bytes == MIB)
    del slab
    assert node.server.segments_of(ALICE) == [kept.segment]
    assert descriptors() == before - 6  # a mapping here and one descriptor at the node, of each


def test_a_full_store_says_its_numbers(node: Node, alice: Store) -> None:
    alice.allocate(10 * MIB)
    with pytest.raises(StoreFullError) as caught:
        alice.allocate(8 * MIB, wait_s=0.01)
    text = str(caught.value)
    for number in ("8,388,608 bytes", "6,291,456 of 16,777,216 are free", "object_store_memory"):
        assert number in text
    facts = {"needed_bytes": 8 * MIB, "free_bytes": 6 * MIB, "capacity_bytes": CAPACITY}
    assert facts.items() <= caught.value.__dict__.items()
    assert node.server.ledger.wants_trim
    assert node.server.used_bytes == 10 * MIB


def test_what_can_never_fit_is_refused_without_waiting(alice: Store) -> None:
    start = time.monotonic()
    with pytest.raises(StoreFullError):
        alice.allocate(CAPACITY + 1, wait_s=60)
    assert time.monotonic() - start < 5


def test_own_free_slabs_make_room(node: Node, alice: Store) -> None:
    for slab in [alice.allocate(5 * MIB) for _ in range(3)]:
        alice.recycle(slab.segment)
    assert alice.allocate(12 * MIB, wait_s=0).size == 12 * MIB
    assert node.server.used_bytes == 12 * MIB


def test_allocation_waits_for_others_to_trim(node: Node, alice: Store, bob: Store) -> None:
    bob.recycle(bob.allocate(12 * MIB).segment)

    def trim_when_asked() -> None:
        wait_until(lambda: node.server.ledger.wants_trim)
        bob.trim()

    helper = threading.Thread(target=trim_when_asked)
    helper.start()
    assert alice.allocate(12 * MIB, wait_s=5).size == 12 * MIB
    helper.join()


def test_reserved_bytes_count(node: Node, alice: Store) -> None:
    assert node.call(lambda: node.server.reserve(10 * MIB))
    assert not node.call(lambda: node.server.reserve(7 * MIB))
    with pytest.raises(StoreFullError):
        alice.allocate(8 * MIB, wait_s=0)
    node.call(lambda: node.server.release(10 * MIB))
    alice.allocate(8 * MIB, wait_s=0)
    with pytest.raises(AssertionError):
        node.server.release(9 * MIB)


def test_pages_that_the_host_does_not_have_are_refused(
    node: Node, alice: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(StoreFullError, match="no memory left"):
            alice.allocate(MIB)
    wait_until(lambda: node.server.used_bytes == 0)
    assert descriptors() == before
    alice.allocate(MIB)


def test_an_interrupted_allocation_is_not_booked(node: Node, alice: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(fd: int, offset: int, length: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            alice.allocate(MIB)
    wait_until(lambda: node.server.used_bytes == 0)


def test_free_slabs_are_limited_in_number(node: Node, alice: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FREE_SLABS_MAX", 2)
    for slab in [alice.allocate(MIB) for _ in range(5)]:
        alice.recycle(slab.segment)
    wait_until(lambda: node.server.used_bytes == 2 * MIB)


def test_the_segments_of_a_client_outlive_it_until_they_are_dropped(node: Node, alice: Store, bob: Store) -> None:
    used, unused = put(alice, np.full(100_000, 7)), put(alice, np.arange(100_000))
    polled = len(node.polled)
    alice.close()
    wait_until(lambda: len(node.polled) == polled - 1)
    assert (get(bob, used) == 7).all()
    node.call(lambda: node.server.drop_unused_of(ALICE, [used[0]]))
    assert node.server.segments_of(ALICE) == [used[0]]
    with pytest.raises(ObjectLostError):
        get(bob, unused)
    node.call(lambda: node.server.drop([used[0], 12345]))
    assert node.server.used_bytes == 0
    assert node.server.segments_of(ALICE) == []


def test_a_node_can_have_segments_of_its_own(node: Node, bob: Store) -> None:
    made: list[Any] = []
    node.call(lambda: node.server.make(MIB, b"node", lambda *told: made.append(told), segment=5))
    node.call(lambda: node.server.open(5, b"node", lambda fd: os.pwrite(fd, b"hello", 0)))
    node.call(lambda: node.server.make(CAPACITY, b"node", lambda *told: made.append(told), segment=6))
    assert made == [(5, ""), (0, "full")]
    assert bytes(bob.view(5, 5, int)) == b"hello"
    with pytest.raises(ObjectLostError):
        bob.view(6, 5, int)


def test_dropped_descriptors_go_to_whoever_shall_close_them(tmp_path: Path) -> None:
    closed: list[int] = []
    server = SegmentServer(str(tmp_path / "s"), CAPACITY, closed.append)
    kept: list[int] = []
    server.make(MIB, b"node", lambda segment, why: None, segment=1)
    server.open(1, b"", kept.append)
    server.drop([1])
    assert closed == kept
    server.close()
    os.close(kept[0])


# What goes wrong on the channel.


@contextlib.contextmanager
def raw_client(node: Node) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(5)
        client.connect(node.path)
        yield client


HELLO = [1, "hello", b"raw"]
MALFORMED = {
    "no msgpack": b"\xc1",
    "no list": msgpack.packb(5),
    "too short": msgpack.packb([1, "hello"]),
    "unknown verb": msgpack.packb([1, "destroy", 1]),
    "a second hello": msgpack.packb(HELLO),
    "hello with a number": msgpack.packb([1, "hello", 5]),
    "open without an id": msgpack.packb([1, "open", None]),
    "unregister of a number": msgpack.packb([1, "unregister", 5]),
    "too long": msgpack.packb([1, "unregister", [1] * 70_000]),
    "half": msgpack.packb(HELLO)[:-1],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_ends_that_connection_only(node: Node, alice: Store, name: str) -> None:
    with raw_client(node) as client:
        client.send(msgpack.packb(HELLO))
        assert msgpack.unpackb(client.recv(100)) == [1, CAPACITY]
        client.send(MALFORMED[name])
        assert client.recv(100) == b""
    alice.allocate(MIB)


def test_a_client_that_did_not_say_hello_is_cut_off(node: Node) -> None:
    with raw_client(node) as client:
        client.send(msgpack.packb([1, "open", 1]))
        assert client.recv(100) == b""


def test_a_descriptor_that_is_no_sealed_memfd_is_refused_and_closed(node: Node, tmp_path: Path) -> None:
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    for fd in (loose, file):
        before = descriptors()
        with raw_client(node) as client:
            client.send(msgpack.packb(HELLO))
            client.recv(100)
            socket.send_fds(client, [msgpack.packb([2, "register", 9])], [fd])
            assert client.recv(100) == b""
        assert descriptors() == before
        os.close(fd)
    assert node.server.used_bytes == 0


def test_descriptors_that_nobody_asked_for_are_closed(node: Node) -> None:
    reader, writer = os.pipe()
    with raw_client(node) as client:
        socket.send_fds(client, [msgpack.packb(HELLO)], [writer])
        assert msgpack.unpackb(client.recv(100)) == [1, CAPACITY]
        os.close(writer)
        assert os.read(reader, 1) == b""
    os.close(reader)


def test_what_a_client_said_before_it_died_registers_nothing_after_its_death(node: Node) -> None:
    """The death of a process may be heard before its last words: nobody would ever drop that segment."""
    fd = os.memfd_create("late", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, store.SEALS)
    with raw_client(node) as client:
        client.send(msgpack.packb(HELLO))
        client.recv(100)
        node.call(lambda: node.server.drop_unused_of(b"raw", []))
        socket.send_fds(client, [msgpack.packb([2, "register", 9])], [fd])
        assert client.recv(100) == b""
    os.close(fd)
    assert node.server.used_bytes == 0


def test_nobody_unregisters_or_takes_over_the_segment_of_another(node: Node, alice: Store) -> None:
    segment = alice.allocate(MIB).segment
    with raw_client(node) as client:
        client.send(msgpack.packb(HELLO))
        client.recv(100)
        client.send(msgpack.packb([0, "unregister", [segment, "x", None]]))
        client.send(msgpack.packb([2, "open", segment]))
        assert msgpack.unpackb(client.recv(100)) == [2, MIB]
        client.send(msgpack.packb([3, "register", segment]))
        assert client.recv(100) == b""
    assert node.server.segments_of(ALICE) == [segment]


def test_a_client_that_reads_no_answers_is_cut_off(node: Node, alice: Store) -> None:
    with raw_client(node) as client:
        client.send(msgpack.packb(HELLO))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                client.send(msgpack.packb([1, "open", 1]))
    alice.allocate(MIB)


def test_a_process_of_another_user_is_cut_off(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(NodeDiedError):
        Store(node.path, BOB)


def test_a_late_store_talks_to_the_node_when_there_is_something_to_ask(node: Node, alice: Store) -> None:
    where = put(alice, np.full(100_000, 7))
    late = Store(node.path, BOB, late=True)
    late.trim()
    late.unmap([where[0]])
    assert late._channel.socket is None
    assert (get(late, where) == 7).all()
    late.close()


def test_a_late_store_of_a_dead_node_says_so_when_it_is_needed(node: Node) -> None:
    node.stop()
    late = Store(node.path, BOB, late=True)
    with pytest.raises(NodeDiedError, match="no node serves"):
        late.allocate(MIB)
    late.close()


def test_a_late_store_that_was_closed_connects_no_more(node: Node) -> None:
    late = Store(node.path, BOB, late=True)
    late.close()
    with pytest.raises(NodeDiedError, match="closed"):
        late._channel.ask("open", 1)
    assert late._channel.socket is None


def test_an_answer_left_unread_is_not_taken_for_the_next(node: Node, alice: Store, bob: Store) -> None:
    """As after a KeyboardInterrupt between request and answer."""
    where = put(alice, np.full(100_000, 7))
    other = put(alice, np.zeros(300_000))
    before = descriptors()
    bob._channel.socket.send(msgpack.packb([0, "open", other[0]]))
    assert (get(bob, where) == 7).all()
    assert descriptors() == before + 1  # the mapping


def test_a_node_that_is_gone_is_said_to_be(node: Node, alice: Store) -> None:
    alice.allocate(MIB)
    node.stop()
    with pytest.raises(NodeDiedError):
        alice.allocate(MIB)
    with pytest.raises(NodeDiedError):
        alice.open(5, 1)
    with pytest.raises(NodeDiedError, match="no node serves"):
        Store(node.path, BOB)


def test_too_many_open_files_are_refused_with_the_limit(alice: Store, bob: Store) -> None:
    resource = store.resource
    where = put(alice, np.arange(100_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        for refused in (lambda: bob.open(*where), lambda: alice.allocate(MIB)):
            with pytest.raises(
                (StoreFullError, NodeDiedError), match=r"limit of 200 open files|no more|Too many open files"
            ):
                refused()
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_closed_store_is_of_no_use(node: Node) -> None:
    alice = Store(node.path, ALICE)
    slab = alice.allocate(MIB)
    alice.close()
    alice.close()
    alice.recycle(slab.segment)
    for use in (lambda: alice.allocate(MIB), lambda: alice.open(1, 1), lambda: alice.view(1, 1, int, True)):
        with pytest.raises(NotRunningError):
            use()
    assert alice.trim() == 0


def test_no_descriptor_is_left_after_use(tmp_path: Path) -> None:
    before = descriptors()
    node = Node(str(tmp_path / "segments"))
    alice, bob = Store(node.path, ALICE), Store(node.path, BOB)
    for number in range(20):
        where = put(alice, np.arange(10_000 * number))
        get(bob, where)
        get(bob, where, writable=True)
        (alice.recycle if number % 2 else alice.discard)(where[0])
    alice.close()
    bob.close()
    node.stop()
    assert descriptors() == before
    assert mapped_segments() == 0
    assert not os.path.exists(node.path)


# Processes.


def test_a_forked_child_cannot_use_the_store_and_leaves_the_parents_alone(node: Node, alice: Store) -> None:
    array = get(alice, put(alice, np.full(100_000, 7)), lambda: os.write(writer, b"unpinned"))
    reader, writer = os.pipe()
    alice._lock.acquire()  # another thread might hold it just then
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ok = int(array.sum()) == 700_000
            for use in (lambda: alice.allocate(1), lambda: alice.open(1, 1), lambda: alice.view(1, 1, int)):
                with pytest.raises(LocalProtocolError):
                    use()
            del array
            alice.recycle(1)
            alice.close()
            code = 0 if ok else 2
        finally:
            os._exit(code)
    alice._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 100)
    alice.allocate(MIB)
    del array
    assert os.read(reader, 100) == b"unpinned"
    os.close(reader)
    os.close(writer)


def _produce(path: str, pipe: Any) -> None:
    mine = Store(path, ALICE)
    pipe.send(put(mine, np.full(100_000, 7)))
    pipe.recv()


@pytest.mark.slow
def test_a_spawned_process_shares_its_arrays(node: Node, bob: Store) -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_produce, args=(node.path, there))
    process.start()
    where = here.recv()
    array = get(bob, where)
    process.kill()
    process.join()
    assert (array == 7).all()
    assert (get(bob, where) == 7).all()
    here.close()
    there.close()


def test_nothing_is_left_when_all_are_killed(tmp_path: Path) -> None:
    """A server and a client in a child, killed with a segment in use: there was never a name to leave behind."""
    names = sorted(os.listdir("/dev/shm"))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            node = Node(str(tmp_path / "segments"))
            client = Store(node.path, ALICE)
            put(client, np.ones(1_000_000))
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(reader, 1) == b"x"
        assert mapped_segments(str(child)) == 1
        assert sorted(os.listdir("/dev/shm")) == names
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert sorted(os.listdir("/dev/shm")) == names
    os.close(reader)
    os.close(writer)


def test_threads_share_a_store(alice: Store, bob: Store) -> None:
    trouble: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_ in range(30):
                where = put(alice, np.full(20_000, number * 1000 + round_))
                array = get(bob, where)
                assert (array == number * 1000 + round_).all()
                del array
                alice.recycle(where[0])
                if round_ % 10 == number:
                    alice.trim()
                    bob.trim()
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trouble == []
