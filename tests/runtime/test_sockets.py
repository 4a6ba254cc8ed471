"""The sockets of processes on one host: who dials whom, and what happens to words for those who hung up."""

import pathlib
import select
from collections.abc import Iterator

import pytest

from zmesh.runtime.sockets import SOME_FRAMES, ClientSockets
from zmesh.wire.ids import node_peer

N = b"n" * 8
A, B = N + b"peer..aa", N + b"peer..bb"


class Two:
    """Two processes' sockets; the node they dial is not there."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.sides = {me: ClientSockets(me, node_peer(N), lambda peer: str(directory / peer.hex())) for me in (A, B)}
        for side in self.sides.values():
            side.listen()

    def hear(self, me: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """Wait until so many frames are there, and return them with who sent them."""
        found: list[tuple[bytes, bytes]] = []
        side = self.sides[me]
        poll = select.poll()
        for fd in side.descriptors():
            poll.register(fd, select.POLLIN)
        for _ in range(500):
            side.drain(lambda peer, frame: found.append((peer, frame)))
            if len(found) >= count:
                break
            poll.poll(10)
        return found


@pytest.fixture
def two(tmp_path: pathlib.Path) -> Iterator[Two]:
    made = Two(tmp_path)
    yield made
    for side in made.sides.values():
        side.close(0)


def test_who_was_dialled_answers_and_asks_over_the_same_connection(two: Two) -> None:
    a, b = two.sides[A], two.sides[B]
    a.connect(B)
    a.send(B, b"one")
    assert two.hear(B, 1) == [(A, b"one")]
    before = len(b.descriptors())
    b.connect(A)
    assert len(b.descriptors()) == before, "a second connection could overtake the first"
    for i in range(20):
        b.send(A, b"%d" % i)
    assert two.hear(A, 20) == [(B, b"%d" % i) for i in range(20)]


def test_who_dials_first_and_is_dialled_too_keeps_to_its_own_connection(two: Two) -> None:
    a, b = two.sides[A], two.sides[B]
    a.connect(B)
    b.connect(A)
    a.send(B, b"one")
    b.send(A, b"two")
    assert two.hear(B, 1) == [(A, b"one")]
    assert two.hear(A, 1) == [(B, b"two")]
    b.send(A, b"three")
    assert two.hear(A, 1) == [(B, b"three")]


def test_a_reader_takes_some_frames_at_a_time_and_knows_that_there_may_be_more(two: Two) -> None:
    a, b = two.sides[A], two.sides[B]
    a.connect(B)
    a.send(B, b"first")
    two.hear(B, 1)
    for i in range(SOME_FRAMES + 1):
        a.send(B, b"%d" % i)
    poll = select.poll()
    poll.register(b.descriptors()[-1], select.POLLIN)
    found: list[bytes] = []
    looks = 0
    while len(found) <= SOME_FRAMES:
        assert b.touched or poll.poll(5000), "an edge was swallowed"
        before = len(found)
        b.take_some(lambda peer, frame: found.append(frame), of_all=not b.touched)
        assert len(found) - before <= SOME_FRAMES
        looks += 1
    assert looks > 1
    assert found == [b"%d" % i for i in range(SOME_FRAMES + 1)]


def test_a_word_for_a_peer_that_hung_up_is_lost_without_an_error(two: Two) -> None:
    a, b = two.sides[A], two.sides[B]
    a.connect(B)
    a.send(B, b"one")
    two.hear(B, 1)
    b.close(0)
    for _ in range(50):
        a.send(B, b"lost")
        two.hear(A, 0)
        select.select([], [], [], 0.002)
    del two.sides[B]
