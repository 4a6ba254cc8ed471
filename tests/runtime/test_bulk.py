"""Objects between hosts: every byte arrives, whatever happens to connections, and what is not there is said."""

import os
import secrets
import select
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.relay import Relay
from tests.runtime.test_mesh_sockets import new_keys
from zmesh.core.transfer import CHUNK_BYTES
from zmesh.runtime.bulk import FULL_THERE, Bulk
from zmesh.runtime.curve import CurveKeys
from zmesh.runtime.machine import PORTS, _free
from zmesh.runtime.segments import NO_ROOM

OBJECT = secrets.token_bytes(28)


def memory(data: bytes) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(fd, len(data))
    os.pwrite(fd, data, 0)
    return fd


class Side:
    """One node's bulk half; `segments` is what it has to offer."""

    ports = iter(PORTS)

    def __init__(self, name: bytes, keys: CurveKeys) -> None:
        self.me = name * 8
        self.segments: dict[int, int] = {}
        self.copies: dict[bytes, int] = {}
        self.ended: list[tuple[bytes, str]] = []
        self.full: list[bool] = []  # of those: whether a full store was why
        self.port = next(port for port in Side.ports if _free("127.0.0.1", port))
        self.bulk = Bulk(self.me, "127.0.0.1", self.port + 2, [keys], {keys.client_raw: keys.id}, self._open, self._end)

    def _open(self, oid: bytes, segment: int, then: Callable[[int, int], None]) -> None:
        place = self.copies.get(oid, segment)
        fd = self.copies.get(oid, self.segments.get(segment, -1))
        then(os.dup(fd) if fd >= 0 else fd, place)

    def _end(self, oid: bytes, error: str, full: bool) -> None:
        self.ended.append((oid, error))
        self.full.append(full)

    def offer(self, data: bytes, segment: int = 1) -> None:
        self.segments[segment] = memory(data)

    def knows(self, other: "Side", port: int | None = None) -> None:
        self.bulk.member(other.me, ("127.0.0.1", port or other.port), "k1")

    def fetch(self, origin: "Side", nbytes: int, oid: bytes = OBJECT, segment: int = 1) -> None:
        self.copies[oid] = memory(bytes(nbytes))
        self.bulk.fetch(oid, segment, nbytes, origin.me, os.dup(self.copies[oid]), nbytes, self.copies[oid])

    def bytes_of(self, oid: bytes = OBJECT) -> bytes:
        fd = self.copies[oid]
        return os.pread(fd, os.fstat(fd).st_size, 0)

    def close(self) -> None:
        self.bulk.close()
        for fd in (*self.segments.values(), *self.copies.values()):
            if fd != NO_ROOM:
                os.close(fd)


def turn(sides: list[Side], until: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, [side.ended for side in sides]
        ready, _, _ = select.select([side.bulk.fileno() for side in sides], [], [], 0.1)
        for side in sides:
            if side.bulk.fileno() in ready:
                side.bulk.answers()


@pytest.fixture
def sides() -> Iterator[list[Side]]:
    keys = new_keys()
    made = [Side(bytes([name]), keys) for name in b"abcd"]
    yield made
    for side in made:
        side.close()


@pytest.mark.parametrize(
    "data",
    [
        secrets.token_bytes(1),
        secrets.token_bytes(CHUNK_BYTES),
        secrets.token_bytes(5 * CHUNK_BYTES + 17),
        bytes(3 * CHUNK_BYTES + 5),
        (b"text that packs well " * 100_000)[: 2 * CHUNK_BYTES - 1],
    ],
    ids=["a byte", "a chunk", "random", "zeros", "text"],
)
def test_every_byte_arrives(sides: list[Side], data: bytes) -> None:
    a, b, *_ = sides
    a.offer(data)
    b.knows(a)
    b.fetch(a, len(data))
    turn([a, b], lambda: b.ended)
    assert b.ended == [(OBJECT, "")]
    assert b.bytes_of() == data


def test_what_is_not_there_is_said(sides: list[Side]) -> None:
    a, b, *_ = sides
    b.knows(a)
    b.fetch(a, 100)
    turn([a, b], lambda: b.ended)
    assert b.ended == [(OBJECT, "its node let go of it, or never heard of it")]
    b.fetch(sides[2], 100, secrets.token_bytes(28))
    turn([a, b], lambda: len(b.ended) == 2)
    assert "gone" in b.ended[1][1]
    a.segments[2] = NO_ROOM
    b.fetch(a, 100, secrets.token_bytes(28), segment=2)
    turn([a, b], lambda: len(b.ended) == 3)
    assert b.ended[2][1] == FULL_THERE
    assert b.full == [False, False, True]


def test_what_was_served_may_go_to_disk_soon_and_what_arrives_may_not(sides: list[Side]) -> None:
    a, b, *_ = sides
    data = secrets.token_bytes(CHUNK_BYTES)
    a.offer(data)
    b.knows(a)
    b.fetch(a, len(data))
    told: list[tuple[list[int], list[int]]] = []
    place = b.copies[OBJECT]
    b.bulk.unmap([place], lambda closed, busy: told.append((closed, busy)))
    turn([a, b], lambda: b.ended and told)
    assert told.pop() == ([], [place])
    b.bulk.unmap([place], lambda closed, busy: told.append((closed, busy)))
    turn([a, b], lambda: told)
    assert told.pop() == ([place], []), "nobody reads it"

    def gone() -> bool:
        if told and told.pop() == ([1], []):
            return True
        a.bulk.unmap([1], lambda closed, busy: told.append((closed, busy)))
        time.sleep(0.02)
        return False

    turn([a, b], gone)
    b.fetch(a, len(data), secrets.token_bytes(28))
    turn([a, b], lambda: len(b.ended) == 2)
    assert b.ended[1][1] == "", "it came back"


def test_a_range_beyond_the_end_is_refused(sides: list[Side]) -> None:
    a, b, *_ = sides
    a.offer(b"short")
    b.knows(a)
    b.fetch(a, 3 * CHUNK_BYTES)
    turn([a, b], lambda: b.ended)
    assert "of 5 were asked for" in b.ended[0][1]


def test_a_node_that_dies_in_the_middle_ends_the_transfer(sides: list[Side]) -> None:
    a, b, *_ = sides
    data = secrets.token_bytes(40 * CHUNK_BYTES)
    a.offer(data)
    with Relay("127.0.0.1", a.port + 2) as relay:
        relay.throttle(20_000_000)
        b.knows(a, relay.port - 2)
        b.fetch(a, len(data))
        turn([a, b], lambda: relay.bytes_forwarded > 3 * CHUNK_BYTES)
        b.bulk.gone(a.me)
        turn([a, b], lambda: b.ended)
    assert "gone" in b.ended[0][1]


def test_connections_may_be_reset_in_the_middle_as_often_as_one_likes(sides: list[Side]) -> None:
    a, b, *_ = sides
    data = secrets.token_bytes(24 * CHUNK_BYTES + 3)
    a.offer(data)
    with Relay("127.0.0.1", a.port + 2) as relay:
        relay.throttle(30_000_000)
        b.knows(a, relay.port - 2)
        b.fetch(a, len(data))
        next_cut = time.monotonic() + 0.1
        cuts = 0

        def ended() -> bool:
            nonlocal next_cut, cuts
            if time.monotonic() > next_cut and cuts < 5:
                (relay.reset if cuts % 2 else relay.cut)()
                cuts += 1
                next_cut = time.monotonic() + 0.3
            return bool(b.ended)

        turn([a, b], ended, seconds=40)
    assert b.ended == [(OBJECT, "")]
    assert b.bytes_of() == data
    assert cuts >= 2


def test_three_receivers_get_it_though_the_source_serves_two_itself(sides: list[Side]) -> None:
    a, *others = sides
    data = secrets.token_bytes(16 * CHUNK_BYTES)
    a.offer(data)
    for one in others:
        for other in sides:
            if other is not one:
                one.knows(other)
        one.fetch(a, len(data))
    turn(sides, lambda: all(one.ended for one in others))
    assert all(one.bytes_of() == data for one in others)
    assert all(one.ended == [(OBJECT, "")] for one in others)


def test_a_copy_that_is_dropped_sends_receivers_back_to_the_source(sides: list[Side]) -> None:
    a, b, c, d = sides
    data = secrets.token_bytes(4 * CHUNK_BYTES)
    a.offer(data)
    for one in (b, c, d):
        one.knows(a)
        one.knows(b)
    for one in (b, c):
        one.fetch(a, len(data))
        turn(sides, lambda one=one: one.ended)
    os.close(b.copies.pop(OBJECT))
    b.bulk.drop(OBJECT)
    d.fetch(a, len(data))
    turn(sides, lambda: d.ended)
    assert d.bytes_of() == data
