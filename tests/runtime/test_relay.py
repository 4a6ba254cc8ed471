"""The relay of tests/relay.py does to connections what its commands say, and nothing of it is left."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.relay import Relay

WAIT_S = 5.0


class Server:
    """A TCP server that echoes, a thread a connection, and keeps what it was sent."""

    def __init__(self, echo: bool = True) -> None:
        self.echo = echo
        self.received: list[bytearray] = []  # of each connection
        self.ends: list[str] = []  # how connections ended: "fin" or "rst"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                self.received.append(bytearray())
                self._threads.append(threading.Thread(target=self._serve, args=(connection, self.received[-1])))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket, received: bytearray) -> None:
        try:
            while chunk := connection.recv(65536):
                received += chunk
                if self.echo:
                    connection.sendall(chunk)
            self.ends.append("fin")
        except OSError:
            self.ends.append("rst")
        connection.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(WAIT_S)
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_S)


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.close()


@pytest.fixture
def relay(server: Server) -> Iterator[Relay]:
    with Relay("127.0.0.1", server.port) as made:
        yield made


@contextlib.contextmanager
def client(relay: Relay) -> Iterator[socket.socket]:
    with socket.create_connection((relay.host, relay.port), timeout=WAIT_S) as connection:
        yield connection


def receive(connection: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (chunk := connection.recv(count - len(got))):
        got += chunk
    return got


def echo(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    return receive(connection, len(data))


def until(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.002)
    return True


def test_it_listens_below_the_ephemeral_ports_and_counts_what_it_forwards(relay: Relay, server: Server) -> None:
    assert 20000 <= relay.port < 30000
    with client(relay) as one, client(relay) as two:
        assert echo(one, b"one") == b"one"
        assert echo(two, b"two!") == b"two!"
        assert until(lambda: relay.bytes_down == 7)
        assert (relay.connections, relay.open_connections, relay.bytes_up) == (2, 2, 7)
        assert relay.bytes_forwarded == 14
    assert until(lambda: relay.open_connections == 0)
    assert server.ends == ["fin", "fin"]


def test_ten_megabytes_pass_unchanged_through_full_buffers(relay: Relay) -> None:
    data = os.urandom(10_000_000)
    with client(relay) as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        time.sleep(0.05)
        assert receive(connection, len(data)) == data
        sender.join()


def test_the_end_of_one_way_is_forwarded_and_the_other_way_goes_on() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Relay("127.0.0.1", listener.getsockname()[1]) as relay,
        client(relay) as near,
    ):
        far, _ = listener.accept()
        with far:
            near.sendall(b"all")
            near.shutdown(socket.SHUT_WR)
            assert receive(far, 4) == b"all"
            far.sendall(b"answer")
            assert receive(near, 6) == b"answer"
        assert near.recv(1) == b""


def test_a_cut_ends_both_sides_with_fin_also_when_bytes_are_unread(relay: Relay, server: Server) -> None:
    with client(relay) as connection:
        assert echo(connection, b"x") == b"x"
        relay.stall()
        connection.sendall(b"never read")
        relay.cut()
        relay.resume()
        assert connection.recv(1) == b""
        assert until(lambda: server.ends == ["fin"])
        assert bytes(server.received[0]) == b"x"
    with client(relay) as connection:
        assert echo(connection, b"again") == b"again"


def test_a_reset_reaches_both_sides(relay: Relay, server: Server) -> None:
    with client(relay) as connection:
        assert echo(connection, b"x") == b"x"
        relay.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        assert until(lambda: server.ends == ["rst"])
    assert relay.open_connections == 0


def test_a_reset_by_one_side_is_handed_on_to_the_other(relay: Relay, server: Server) -> None:
    with client(relay) as connection:
        assert echo(connection, b"x") == b"x"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert until(lambda: server.ends == ["rst"])


def test_a_target_that_is_not_there_is_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with Relay("127.0.0.1", port) as relay:
        with pytest.raises(ConnectionResetError), client(relay) as connection:  # by connect() already, if it is late
            connection.recv(1)
        assert until(lambda: relay.connections == 1 and relay.open_connections == 0)


def test_refusing_spares_open_connections_and_accepting_is_on_the_same_port(relay: Relay) -> None:
    with client(relay) as connection:
        assert echo(connection, b"x") == b"x"
        relay.refuse()
        relay.refuse()
        with pytest.raises(ConnectionRefusedError), client(relay):
            pass
        assert echo(connection, b"y") == b"y"
        relay.accept()
        relay.accept()
        with client(relay) as another:
            assert echo(another, b"z") == b"z"


def test_a_stall_forwards_nothing_and_notices_no_end_and_resuming_loses_nothing(relay: Relay, server: Server) -> None:
    with client(relay) as connection:
        assert echo(connection, b"x") == b"x"
        relay.stall()
        connection.sendall(b"held")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        with client(relay) as late:  # the kernel answers for the relay
            late.sendall(b"late")
            assert relay.connections == 1
            assert bytes(server.received[0]) == b"x"
            relay.resume()
            assert receive(late, 4) == b"late"
        connection.settimeout(WAIT_S)
        assert receive(connection, 4) == b"held"


def test_a_client_that_leaves_a_stalled_relay_is_still_there_for_the_server(relay: Relay, server: Server) -> None:
    with client(relay) as connection:
        assert echo(connection, b"x") == b"x"
        relay.stall()
    time.sleep(0.05)
    assert server.ends == []
    relay.resume()
    assert until(lambda: server.ends == ["fin"])


def test_a_delay_counts_each_way_and_keeps_the_order(relay: Relay) -> None:
    with client(relay) as connection:
        relay.delay(0.1)
        begun = time.monotonic()
        connection.sendall(b"slow")
        assert relay.bytes_forwarded == 0
        assert receive(connection, 4) == b"slow"
        assert 0.2 <= time.monotonic() - begun < 0.6
        connection.sendall(b"a")
        time.sleep(0.02)
        relay.delay(0.0)
        assert echo(connection, b"b") + receive(connection, 1) == b"ab"


def test_a_throttle_holds_its_rate_and_ends(relay: Relay) -> None:
    data = bytes(100_000)
    with client(relay) as connection:
        relay.throttle(200_000)
        begun = time.monotonic()
        assert echo(connection, data) == data
        taken = time.monotonic() - begun
        assert 0.4 < taken < 1.0
        relay.throttle(None)
        begun = time.monotonic()
        assert echo(connection, data) == data
        assert time.monotonic() - begun < 0.3


def test_a_throttled_relay_does_not_spin(relay: Relay) -> None:
    with client(relay) as connection:
        relay.throttle(10)
        begun = time.process_time()
        connection.sendall(b"xy")
        assert receive(connection, 2) == b"xy"
        assert time.process_time() - begun < 0.1


def test_one_bit_of_the_next_chunk_is_flipped(relay: Relay, server: Server) -> None:
    with client(relay) as connection:
        relay.flip_bit("up", bit=9)
        assert echo(connection, b"abc") == b"a" + bytes([ord("b") ^ 2]) + b"c"
        assert relay.flips == 1
        assert echo(connection, b"abc") == b"abc"
        relay.flip_bit("down")
        got = echo(connection, b"abc")
        assert sum((one ^ other).bit_count() for one, other in zip(got, b"abc", strict=True)) == 1
        assert bytes(server.received[0]).endswith(b"abcabc")


def test_what_clients_send_is_recorded_and_can_be_replayed(relay: Relay, server: Server) -> None:
    with client(relay) as one, client(relay) as two:
        echo(one, b"before")
        relay.record()
        echo(two, b"second")
        echo(one, b"first ")
        echo(one, b"client")
        assert relay.recorded() == [b"first client", b"second"]
        assert relay.replay(relay.recorded()[0], wait_s=0.2) == b"first client"
    assert bytes(server.received[-1]) == b"first client"
    assert relay.connections == 2


def test_nothing_is_left_after_close_also_when_the_body_raises(server: Server) -> None:
    threads, fds = threading.active_count(), len(os.listdir("/proc/self/fd"))
    relay = Relay("127.0.0.1", server.port)

    def body() -> None:
        with relay, client(relay) as connection:
            echo(connection, b"x")
            relay.stall()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()
    relay.close()
    assert until(lambda: threading.active_count() == threads)
    assert until(lambda: len(os.listdir("/proc/self/fd")) == fds)
    with pytest.raises(RuntimeError, match="closed"):
        relay.stall()
    with pytest.raises(ConnectionRefusedError), client(relay):
        pass
