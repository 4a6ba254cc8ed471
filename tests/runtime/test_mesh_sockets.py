"""Sockets between hosts: who gets in, what gets through, and what the owner hears of connections."""

import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from tests.relay import Relay
from zmesh.exceptions import ConfigError
from zmesh.runtime import mesh_sockets, parcels
from zmesh.runtime.curve import CurveKeys, Gate, check_library, curve_keys, secure_client
from zmesh.runtime.machine import PORTS, _free
from zmesh.runtime.mesh_sockets import Heard, MeshSockets
from zmesh.runtime.sockets import new_context

A, B, C = (name * 8 for name in (b"a", b"b", b"c"))


def new_keys(key_id: str = "k1") -> CurveKeys:
    return curve_keys(key_id, secrets.token_bytes(32), secrets.token_bytes(32))


class Peer:
    """One node's sockets, and what it heard."""

    ports = iter(PORTS)

    def __init__(self, me: bytes, keys: CurveKeys, accepted: list[CurveKeys] | None = None) -> None:
        self.me = me
        self.heard: list[Any] = []
        self.context = new_context()
        self.gate = Gate(self.context)
        self.gate.accepted = {one.client_raw: one.id for one in accepted or [keys]}
        self.port = next(port for port in Peer.ports if _free("127.0.0.1", port))
        note = self.heard.append
        told = Heard(
            parcel=lambda *args: note(("parcel", *args)),
            ack=lambda *args: note(("ack", *args)),
            word=lambda *args: note(("word", *args)),
            knock=lambda *args: note(("knock", *args)),
            up=lambda node: note(("up", node)),
            down=lambda node, refused: note(("down", node, refused)),
            bad=lambda what: note(("bad", what)),
        )
        self.key = keys
        self.sockets = MeshSockets(self.context, self.gate, me, "127.0.0.1", self.port, [keys], told)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def close(self) -> None:
        self.sockets.close()
        self.gate.close()
        self.context.term()

    def drain(self) -> None:
        """As a loop does that saw everything readable."""
        for fd in self.sockets.descriptors():
            self.sockets.ready(fd)
        self.sockets.drain()

    def has(self, kind: str) -> list[Any]:
        return [heard for heard in self.heard if heard[0] == kind]


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(*args: Any) -> Peer:
        made.append(Peer(*args))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


def until(condition: Callable[[], Any], *peers: Peer, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, [peer.heard for peer in peers]
        for peer in peers:
            peer.drain()
        time.sleep(0.002)


def quiet(*peers: Peer, seconds: float = 0.4) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for peer in peers:
            peer.drain()
        time.sleep(0.002)


def test_parcels_acks_and_words_arrive_as_they_were_sent(peers: Any) -> None:
    keys = new_keys()
    a, b = peers(A, keys), peers(B, keys)
    a.sockets.knows(B, b.address, b.key.id)
    a.sockets.post(B, 1, 7, 3, True, A + b"client.." + B + b"worker..", b"frame")  # not connected yet: lost
    until(lambda: a.has("up"), a, b)
    a.sockets.post(B, 1, 8, 3, True, A + b"client.." + B + b"worker..", b"frame")
    a.sockets.post_ack(B, 1, 9, True)
    a.sockets.tell(B, b.address, b"word")
    until(lambda: len(b.heard) == 3, a, b)
    assert b.heard == [
        ("parcel", A, (1, 8, 3, True, A + b"client..", B + b"worker..", b"frame")),
        ("ack", A, 1, 9, True),
        ("word", A, b"word"),
    ]


def test_a_burst_that_nobody_reads_yet_is_not_dropped(peers: Any) -> None:
    """What is under way is bounded by the window of the link; what is dropped costs it half a second."""
    keys = new_keys()
    a, b = peers(A, keys), peers(B, keys)
    a.sockets.knows(B, b.address, keys.id)
    until(lambda: a.sockets.post(B, 0, 1, 0, False, A + bytes(8) + B + bytes(8), b""), a, b)
    ids, frame = A + bytes(8) + B + bytes(8), bytes(200)
    assert all(a.sockets.post(B, 0, number, 0, False, ids, frame) for number in range(2, 40_000))


def test_what_is_published_reaches_those_who_subscribe(peers: Any) -> None:
    keys = new_keys()
    a, b = peers(A, keys), peers(B, keys)
    b.sockets.subscribe(A, a.address)

    def heard() -> bool:
        a.sockets.publish(b"news")
        return bool(b.has("word"))

    until(heard, a, b)
    assert b.has("word")[0] == ("word", A, b"news")


def test_a_word_to_a_seed_waits_for_the_connection(peers: Any) -> None:
    keys = new_keys()
    a, b = peers(A, keys), peers(B, keys)
    a.sockets.tell(b"", b.address, b"join")
    until(lambda: b.has("word"), a, b)
    assert b.has("word") == [("word", A, b"join")]


def test_words_to_an_address_leave_the_link_to_the_node_that_is_there_alone(peers: Any) -> None:
    """A dead member is redialled, and a restarted node may be at its address: it must not lose its connection."""
    keys = new_keys()
    a, b = peers(A, keys), peers(B, keys)
    a.sockets.knows(B, b.address, b.key.id)
    a.sockets.post_ack(B, 1, 1, False)
    until(lambda: a.has("up"), a, b)
    a.sockets.tell(C, b.address, b"are you back?")
    until(lambda: b.has("word"), a, b)
    assert b.has("word") == [("word", A, b"are you back?")]
    a.sockets.post_ack(B, 1, 2, False)
    until(lambda: ("ack", A, 1, 2, False) in b.heard, a, b)
    assert not a.has("down")


def test_only_so_many_addresses_are_kept_dialled(peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_sockets, "SEEDS_MAX", 2)
    a = peers(A, new_keys())
    addresses = [("127.0.0.1", 1), ("127.0.0.1", 2), ("127.0.0.1", 3)]
    for address in addresses:
        a.sockets.tell(b"", address, b"join")
    assert a.sockets.state_of(addresses[:1]) == "not dialled"
    assert a.sockets.state_of(addresses[2:]) != "not dialled"


def test_a_lost_connection_and_a_refused_redial_are_told(peers: Any) -> None:
    keys = new_keys()
    a, b = peers(A, keys), Peer(B, keys)
    a.sockets.knows(B, b.address, b.key.id)
    a.sockets.post_ack(B, 0, 0, False)
    until(lambda: a.has("up"), a, b)
    b.close()
    started = time.monotonic()
    until(lambda: ("down", B, True) in a.heard, a, seconds=2.0)
    assert ("down", B, False) in a.heard
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("wrong", ["client", "server"])
def test_another_key_gets_nothing_through(peers: Any, wrong: str) -> None:
    right, other = new_keys("right"), new_keys("other")
    mixed = CurveKeys(
        "mixed",
        (other if wrong == "server" else right).server_public,
        right.server_secret,
        (other if wrong == "client" else right).client_public,
        (other if wrong == "client" else right).client_secret,
    )
    a, b = peers(A, mixed), peers(B, right)
    a.sockets.tell(b"", b.address, b"let me in")
    b.sockets.subscribe(A, a.address)
    quiet(a, b, seconds=0.7)
    assert not b.heard
    if wrong == "client":
        assert b.gate.denied


def test_without_an_answer_to_zap_nothing_is_taken_in(peers: Any) -> None:
    """libzmq lets everybody in when nobody answers ZAP: the User-Id on each frame is what counts."""
    right, other = new_keys("right"), new_keys("other")
    b = peers(B, right)
    b.gate.close()
    b.gate.serve = b.gate.fileno = lambda: False
    a = peers(A, CurveKeys("mixed", right.server_public, right.server_secret, other.client_public, other.client_secret))
    a.sockets.tell(b"", b.address, b"let me in")
    quiet(a, b, seconds=0.7)
    assert not b.heard
    assert b.gate.denied, "it was refused frame by frame"


def test_a_key_that_is_accepted_no_more_gets_nothing_through_on_an_old_connection(peers: Any) -> None:
    old, new = new_keys("old"), new_keys("new")
    a, b = peers(A, old), peers(B, old, [old, new])
    a.sockets.tell(b"", b.address, b"before")
    until(lambda: b.has("word"), a, b)
    b.gate.accepted = {new.client_raw: new.id}
    a.sockets.tell(b"", b.address, b"after")
    quiet(a, b)
    assert b.has("word") == [("word", A, b"before")]


def test_a_node_changes_its_key_on_the_same_ports(peers: Any) -> None:
    old, new = new_keys("old"), new_keys("new")
    a, b = peers(A, old, [old, new]), peers(B, old, [old, new])
    a.sockets.knows(B, b.address, b.key.id)
    a.sockets.tell(B, b.address, b"1")
    until(lambda: b.has("word"), a, b)
    for peer in (a, b):
        peer.sockets.take_keys([new, old])
    b.sockets.rekey(new)
    a.sockets.knows(B, b.address, new.id)
    until(lambda: len(a.has("up")) == 2, a, b)
    a.sockets.tell(B, b.address, b"2")
    until(lambda: len(b.has("word")) == 2, a, b)


def test_a_port_that_is_taken_is_an_error_that_names_it(peers: Any) -> None:
    a = peers(A, new_keys())
    with pytest.raises(ConfigError, match=f"port {a.port} is in use"):
        MeshSockets(a.context, a.gate, B, "127.0.0.1", a.port, [new_keys()], a.sockets._heard)


# Bytes from strangers.


def greeting(mechanism: bytes) -> bytes:
    """Return a ZMTP 3.1 greeting. Source: RFC 37."""
    return b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + mechanism.ljust(20, b"\0") + b"\x00" + bytes(31)


@pytest.mark.parametrize("port", [0, 1])
@pytest.mark.parametrize(
    "data",
    [
        secrets.token_bytes(4096),
        b"GET / HTTP/1.1\r\nHost: zmesh\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        greeting(b"NULL") + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER",
        greeting(b"PLAIN") + b"\x04\x0d\x05HELLO\x03bob\x02pw",
        greeting(b"CURVE") + b"\x06" + struct.pack(">Q", 1 << 32) + bytes(1 << 16),
        greeting(b"CURVE") + b"\x04\xff" + bytes(255),
    ],
    ids=["random", "http", "tls", "null", "plain", "4 GiB frame", "garbage hello"],
)
def test_bytes_of_strangers_are_cut_off_and_members_still_get_through(peers: Any, data: bytes, port: int) -> None:
    keys = new_keys()
    b = peers(B, keys)
    with socket.create_connection(("127.0.0.1", b.port + port)) as stranger:
        stranger.sendall(data)
        stranger.settimeout(0.01)
        closed = False

        def cut() -> bool:
            nonlocal closed
            try:
                while True:
                    if not stranger.recv(65536):
                        closed = True
                        break
            except TimeoutError:
                pass
            except OSError:
                closed = True
            return closed

        until(cut, b, seconds=2 * mesh_sockets.HANDSHAKE_MS / 1000)
    a = peers(A, keys)
    a.sockets.tell(b"", b.address, b"hello")
    until(lambda: b.has("word"), a, b)
    assert b.heard == [("word", A, b"hello")]


@pytest.mark.slow
def test_a_thousand_half_open_connections_do_not_keep_members_out(peers: Any) -> None:
    keys = new_keys()
    b = peers(B, keys)
    strangers = []
    try:
        for index in range(1000):
            strangers.append(socket.create_connection(("127.0.0.1", b.port)))
            strangers[-1].sendall(greeting(b"CURVE")[: index % 64])
            if index % 100 == 0:
                b.drain()
        a = peers(A, keys)
        a.sockets.tell(b"", b.address, b"hello")
        until(lambda: b.has("word"), a, b, seconds=5.0)
    finally:
        for stranger in strangers:
            stranger.close()


def raw_dealer(context: Any, keys: CurveKeys, identity: bytes, address: tuple[str, int]) -> Any:
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.routing_id = identity
    secure_client(dealer, keys)
    dealer.connect(mesh_sockets.endpoint(*address))
    return dealer


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"", b""],
        [b"X", b"frame"],
        [b"P"],
        [b"P" * 54, b"short"],
        [b"W"],
        [b"W", b"word", b"more"],
        [parcels._HEAD.pack(b"A", 0, 1, 0, False), b"more"],
        [b"x"] * 1000,
        [parcels._HEAD.pack(b"P", 0, 1, 0, False) + bytes(32), b"from nobody"],
        [parcels._HEAD.pack(b"P", 0, 1, 0, False) + C + bytes(8) + B + bytes(8), b"in the name of another"],
    ],
    ids=lambda frames: f"{len(frames)} frames of {len(frames[0])}",
)
def test_nonsense_of_a_member_is_dropped(peers: Any, frames: list[bytes]) -> None:
    keys = new_keys()
    b = peers(B, keys)
    context = new_context()
    dealer = raw_dealer(context, keys, mesh_sockets.ROUTING_ID + A, b.address)
    dealer.send_multipart(frames)
    dealer.send_multipart([b"W", b"sense"])
    until(lambda: b.has("word"), b)
    assert b.has("word") == [("word", A, b"sense")]
    assert not b.has("parcel")
    dealer.close()
    context.term()


@pytest.mark.parametrize("token", [bytes(8), b"driver.."])
def test_a_guest_by_the_name_of_a_process_of_the_host_is_not_heard(peers: Any, token: bytes) -> None:
    """It could speak for the node itself, or for a program there."""
    keys = new_keys()
    b = peers(B, keys)
    context = new_context()
    dealer = raw_dealer(context, keys, mesh_sockets.GUEST_ID + token, b.address)
    dealer.send_multipart([b"W", b"knock"])
    dealer.send_multipart([parcels.parcel_head(0, 1, 0, False, B + token + B + bytes(8)), b"frame"])
    until(lambda: len(b.has("bad")) == 2, b)
    assert not b.has("knock")
    assert not b.has("parcel")
    dealer.close()
    context.term()


def test_a_frame_over_the_limit_ends_the_connection_and_the_next_gets_through(peers: Any) -> None:
    keys = new_keys()
    b = peers(B, keys)
    context = new_context()
    dealer = raw_dealer(context, keys, mesh_sockets.ROUTING_ID + A, b.address)
    dealer.send_multipart([b"W", bytes(mesh_sockets.CONTROL_BYTES_MAX + 1)])
    quiet(b)
    again = raw_dealer(context, keys, mesh_sockets.ROUTING_ID + C, b.address)
    again.send_multipart([b"W", b"sense"])
    until(lambda: b.has("word"), b)
    assert b.has("word") == [("word", C, b"sense")]
    dealer.close()
    again.close()
    context.term()


def test_a_recorded_session_played_again_says_nothing(peers: Any) -> None:
    keys = new_keys()
    a, b = peers(A, keys), peers(B, keys)
    with Relay("127.0.0.1", b.port) as relay:
        relay.record()
        a.sockets.tell(b"", ("127.0.0.1", relay.port), b"once")
        until(lambda: b.has("word"), a, b)
        (recorded,) = relay.recorded()
        assert len(recorded) > 300
        replay = threading.Thread(target=relay.replay, args=(recorded,), kwargs={"wait_s": 0.5})
        replay.start()
        quiet(b, seconds=0.7)
        replay.join()
    assert b.has("word") == [("word", A, b"once")]


def test_a_flipped_bit_ends_the_connection_and_the_next_one_works(peers: Any) -> None:
    keys = new_keys()
    a, b = peers(A, keys), peers(B, keys)
    with Relay("127.0.0.1", b.port) as relay:
        address = ("127.0.0.1", relay.port)
        a.sockets.tell(b"", address, b"before")
        until(lambda: b.has("word"), a, b)
        relay.flip_bit("up")
        a.sockets.tell(b"", address, b"x" * 500)
        quiet(a, b)
        assert all(word in (b"before", b"x" * 500) for _, _, word in b.has("word")), "nothing arrives changed"

        def heard() -> bool:
            a.sockets.tell(b"", address, b"after")
            return ("word", A, b"after") in b.heard

        until(heard, a, b)
        assert relay.flips == 1


def test_an_old_libzmq_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_library()
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    with pytest.raises(ConfigError, match=r"needs 4\.3\.5"):
        check_library()
    monkeypatch.undo()
    monkeypatch.setattr(zmq, "has", lambda feature: False)
    with pytest.raises(ConfigError, match="lacks CURVE"):
        check_library()


def test_another_takes_over_an_identity_and_the_parcels_name_their_sender(peers: Any) -> None:
    """Only a member can: it has the key. Its parcels are for us to number, so nothing is doubled (core/links.py)."""
    keys = new_keys()
    b = peers(B, keys)
    context = new_context()
    first = raw_dealer(context, keys, mesh_sockets.ROUTING_ID + A, b.address)
    first.send_multipart([b"W", b"1"])
    until(lambda: b.has("word"), b)
    second = raw_dealer(context, keys, mesh_sockets.ROUTING_ID + A, b.address)
    second.send_multipart([b"W", b"2"])
    until(lambda: len(b.has("word")) == 2, b)
    assert b.has("word") == [("word", A, b"1"), ("word", A, b"2")]
    first.close()
    second.close()
    context.term()
