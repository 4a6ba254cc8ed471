"""A hostile TCP relay: between a client and a server on one machine it delays, stalls, cuts, resets and flips bits.

One thread serves all connections of a relay, and lives in the network namespace of its maker. Commands come from any
thread and have been carried out when they return. "Up" is from client to target, "down" the way back.

A relay is TCP twice: what the kernels on both sides have acknowledged or buffered is beyond its reach. In particular a
connect() to a stalled relay succeeds, and a sender to it blocks only when the buffers of both kernels are full.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Literal, TypeVar

_PORTS = range(20000, 30000)  # below what the kernel gives to others (ip_local_port_range), so that nobody takes it
_PORT_TRIES_MAX = 100
_CHUNK_BYTES = 65536
_HELD_BYTES_MAX = 4 << 20  # a connection and way, on top of the kernel's buffers; then the sender waits
_RECORD_BYTES_MAX = 64 << 20  # a relay; what comes then is forwarded, not recorded
_DRAIN_BYTES_MAX = 64 << 20
_BURST_S = 0.02  # of a throttled way
_COMMAND_S = 5.0

Way = Literal["up", "down"]
T = TypeVar("T")


class Relay:
    """A relay to one target on a loopback port of its own; a context manager. Any thread; commands block < 5 s."""

    def __init__(self, target_host: str, target_port: int, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen at once; the target is called once a client is there.

        Args:
            host: where to listen.
            port: where to listen; 0: a free one of 20000 to 29999.

        Raises:
            OSError: no port is free.
        """
        self.target = (target_host, target_port)
        self.host = host
        self.connections = 0  # accepted so far
        self.bytes_up = 0  # forwarded so far
        self.bytes_down = 0
        self.flips = 0  # bits flipped so far
        self._listener: socket.socket | None = self._listen(port)
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[_Pair] = []
        self._stalled = False
        self._delay_s = 0.0
        self._buckets: dict[Way, _Bucket] = {"up": _Bucket(), "down": _Bucket()}
        self._flips: list[tuple[Way | None, int | None]] = []  # still to do
        self._recording = False
        self._recorded: dict[int, bytearray] = {}  # {number of the connection: bytes up}
        self._recorded_bytes = 0
        self._closing = False  # no command is taken any more
        self._closed = False  # by `close`
        self._lock = threading.Lock()  # of _commands, _closing and _closed
        self._commands: collections.deque[Callable[[], None]] = collections.deque()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=f"relay-{self.port}", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def open_connections(self) -> int:
        """Return how many connections the relay holds now."""
        return len(self._pairs)

    @property
    def bytes_forwarded(self) -> int:
        """Return how many bytes were forwarded, both ways."""
        return self.bytes_up + self.bytes_down

    def close(self) -> None:
        """Cut all, stop listening and end the thread; again: nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = self._closing = True
        self._wake()
        self._thread.join(_COMMAND_S)
        if self._thread.is_alive():
            raise RuntimeError(f"the relay on port {self.port} does not end")
        self._waker.close()
        self._woken.close()

    def cut(self) -> None:
        """Close all connections now, on both sides, with FIN; what was on its way is lost. New ones are welcome."""
        self._do(lambda: self._end_all(_close_with_fin))

    def reset(self) -> None:
        """Close all connections now, on both sides, with RST. New ones are welcome."""
        self._do(lambda: self._end_all(_close_with_rst))

    def refuse(self) -> None:
        """Stop listening: connect() fails with ECONNREFUSED; open connections stay."""
        self._do(self._stop_listening)

    def accept(self) -> None:
        """Listen on the same port again."""
        self._do(self._listen_again)

    def stall(self) -> None:
        """Forward nothing, read nothing, accept nothing and notice no end, but keep all open: as a dead path does."""
        self._do(lambda: setattr(self, "_stalled", True))

    def resume(self) -> None:
        """End a stall: what was held goes on, nothing is lost."""
        self._do(lambda: setattr(self, "_stalled", False))

    def delay(self, seconds: float) -> None:
        """Forward what arrives from now on that much later, each way; 0: no more. The order of bytes stays."""
        self._do(lambda: setattr(self, "_delay_s", seconds))

    def throttle(self, bytes_per_s: float | None) -> None:
        """Forward at most so much, each way by itself, all connections together; None: no more."""

        def change() -> None:
            self._buckets = {"up": _Bucket(bytes_per_s), "down": _Bucket(bytes_per_s)}

        self._do(change)

    def flip_bit(self, way: Way | None = None, bit: int | None = None) -> None:
        """Flip one bit of the next chunk that arrives; `flips` counts those done.

        Args:
            way: only on this way; None: on either.
            bit: its number in the chunk, modulo its length; None: the middle one.
        """
        self._do(lambda: self._flips.append((way, bit)))

    def record(self) -> None:
        """Record what clients send from now on, in place of what was recorded before; at most 64 MiB."""

        def begin() -> None:
            self._recording, self._recorded, self._recorded_bytes = True, {}, 0

        self._do(begin)

    def recorded(self) -> list[bytes]:
        """Return what each client has sent since `record`, in the order of their connections; only those that did."""
        return self._do(lambda: [bytes(self._recorded[number]) for number in sorted(self._recorded)])

    def replay(self, data: bytes, wait_s: float = 1.0) -> bytes:
        """Send bytes to the target over a connection of its own, not through the relay.

        Returns:
            The answer until the target closes or resets, or for `wait_s` at most.
        """
        deadline = time.monotonic() + wait_s
        answer = bytearray()
        connection = socket.create_connection(self.target, timeout=max(wait_s, 0.001))
        with connection as target, contextlib.suppress(TimeoutError, ConnectionError):
            target.sendall(data)
            while (left := deadline - time.monotonic()) > 0:
                target.settimeout(left)
                chunk = target.recv(_CHUNK_BYTES)
                if not chunk:
                    break
                answer += chunk
        return bytes(answer)

    def _listen(self, port: int) -> socket.socket:
        error: OSError | None = None
        for candidate in [port] if port else random.sample(_PORTS, _PORT_TRIES_MAX):
            listener = socket.socket()
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((self.host, candidate))
                listener.listen(128)
                listener.setblocking(False)
            except OSError as caught:
                listener.close()
                error = caught
            else:
                return listener
        assert error is not None
        raise error

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it wakes anyway
            self._waker.send(b"!")

    def _do(self, command: Callable[[], T]) -> T:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(command())
            except Exception as error:
                future.set_exception(error)

        with self._lock:
            if self._closing:
                raise RuntimeError("the relay is closed")
            self._commands.append(run)
            self._wake()
        return future.result(_COMMAND_S)

    # From here on: the relay's thread only.

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        finally:
            with self._lock:
                self._closing = True  # also if this thread dies of a bug: no command may wait for it
            self._run_commands()
            self._stop_listening()
            self._end_all(_close_with_fin)

    def _turn(self) -> None:
        now = time.monotonic()
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        wake_at = [now + 60.0]
        if not self._stalled:
            if self._listener is not None:
                poll.register(self._listener, select.POLLIN)
            for pair in self._pairs:
                for end, events in pair.interest(now, self._buckets, wake_at):
                    poll.register(end, events)
        ready = dict(poll.poll(max(0.0, min(wake_at) - now) * 1000))
        if self._woken.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
        # A command may have closed sockets, whose numbers the next ones would have: what poll said is void then.
        if self._run_commands() or self._stalled or self._closing:
            return
        if self._listener is not None and self._listener.fileno() in ready:
            self._welcome()
        for pair in list(self._pairs):
            try:
                alive = self._serve(pair, ready)
            except OSError:  # one side has reset: so does the other
                _close_with_rst(pair.client)
                _close_with_rst(pair.target)
                alive = False
            if not alive:
                self._pairs.remove(pair)

    def _run_commands(self) -> int:
        count = 0
        while self._commands:
            self._commands.popleft()()
            count += 1
        return count

    def _welcome(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:  # it has gone again
            return
        self.connections += 1
        target = socket.socket()
        for end in (client, target):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(self.connections, client, target)
        self._pairs.append(pair)
        try:
            target.connect(self.target)
        except BlockingIOError:
            pass
        except OSError:
            _close_with_rst(client)
            _close_with_rst(target)
            self._pairs.remove(pair)

    def _serve(self, pair: "_Pair", ready: dict[int, int]) -> bool:
        """Move what can be moved; return whether the pair lives on. Raises OSError when one side has reset."""
        if not pair.connected:
            if pair.target.fileno() not in ready:
                return True
            error = pair.target.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "the target cannot be reached")
            pair.connected = True
        now = time.monotonic()
        for end in (pair.client, pair.target):
            # With both streams read to their ends, a reset shows only here: there is nothing left to read.
            if ready.get(end.fileno(), 0) & select.POLLERR:
                error = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                raise OSError(error or errno.ECONNRESET, "the connection was reset")
        for stream in pair.streams:
            events = ready.get(stream.source.fileno(), 0)
            if events & (select.POLLIN | select.POLLHUP) and stream.wants_more():
                self._read(pair, stream, now)
            self._write(stream, now)
        if all(stream.done for stream in pair.streams):
            pair.client.close()
            pair.target.close()
            return False
        return True

    def _read(self, pair: "_Pair", stream: "_Stream", now: float) -> None:
        try:
            chunk = stream.source.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        if chunk and stream.way == "up" and self._recording:
            kept = chunk[: _RECORD_BYTES_MAX - self._recorded_bytes]
            self._recorded_bytes += len(kept)
            if kept:
                self._recorded.setdefault(pair.number, bytearray()).extend(kept)
        if chunk:
            chunk = self._flipped(stream.way, chunk)
        stream.push(now + self._delay_s, chunk)

    def _flipped(self, way: Way, chunk: bytes) -> bytes:
        for flip in self._flips:
            if flip[0] in (None, way):
                self._flips.remove(flip)
                changed = bytearray(chunk)
                bit = (len(chunk) * 4 if flip[1] is None else flip[1]) % (len(chunk) * 8)
                changed[bit // 8] ^= 1 << bit % 8
                self.flips += 1
                return bytes(changed)
        return chunk

    def _write(self, stream: "_Stream", now: float) -> None:
        bucket = self._buckets[stream.way]
        while stream.queue and stream.queue[0][0] <= now:
            due, chunk = stream.queue[0]
            if not chunk:
                stream.queue.popleft()
                stream.done = True
                with contextlib.suppress(OSError):  # it is gone already
                    stream.sink.shutdown(socket.SHUT_WR)
                return
            allowed = bucket.allowed(now, len(chunk))
            if not allowed:
                return
            try:
                sent = stream.sink.send(chunk[:allowed])
            except BlockingIOError:
                return
            bucket.take(sent)
            stream.held -= sent
            stream.queue.popleft()
            if sent < len(chunk):
                stream.queue.appendleft((due, chunk[sent:]))
            if stream.way == "up":
                self.bytes_up += sent
            else:
                self.bytes_down += sent

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _listen_again(self) -> None:
        if self._listener is None:
            self._listener = self._listen(self.port)

    def _end_all(self, end: Callable[[socket.socket], None]) -> None:
        for pair in self._pairs:
            end(pair.client)
            end(pair.target)
        self._pairs.clear()


@dataclasses.dataclass(slots=True)
class _Bucket:
    """How much may go now: tokens that come at a rate; None: all."""

    rate: float | None = None
    _tokens: float = 0.0
    _at: float = 0.0

    def allowed(self, now: float, wanted: int) -> int:
        """Return how many of the wanted bytes may go now."""
        if self.rate is None:
            return wanted
        self._tokens = min(self._full(), self._tokens + (now - self._at) * self.rate)
        self._at = now
        return min(wanted, int(self._tokens)) if self._tokens >= self._need(wanted) else 0

    def take(self, sent: int) -> None:
        """Count bytes that went."""
        self._tokens -= sent

    def next_at(self, now: float, wanted: int) -> float:
        """Return when `allowed` will answer more than 0: now, or later."""
        if self.rate is None:
            return now
        missing = self._need(wanted) - self._tokens - (now - self._at) * self.rate
        return now + max(0.0, missing) / self.rate

    def _full(self) -> float:
        assert self.rate is not None
        return max(self.rate * _BURST_S, 1.0)

    def _need(self, wanted: int) -> float:
        # Not byte by byte: half a bucket at least, or all that is wanted.
        return max(1.0, min(wanted, self._full() / 2))


class _Stream:
    """One way of a connection."""

    def __init__(self, way: Way, source: socket.socket, sink: socket.socket) -> None:
        self.way = way
        self.source = source
        self.sink = sink
        self.queue: collections.deque[tuple[float, bytes]] = collections.deque()  # (when, what); b"" is the end
        self.held = 0  # bytes in queue
        self.ended = False  # the end was read
        self.done = False  # and forwarded

    def wants_more(self) -> bool:
        return not self.ended and self.held < _HELD_BYTES_MAX

    def push(self, due: float, chunk: bytes) -> None:
        if self.queue:
            due = max(due, self.queue[-1][0])  # a shorter delay overtakes nothing
        self.queue.append((due, chunk))
        self.held += len(chunk)
        self.ended = not chunk


class _Pair:
    """One connection: the client's, ours to the target, and both streams."""

    def __init__(self, number: int, client: socket.socket, target: socket.socket) -> None:
        self.number = number
        self.client = client
        self.target = target
        self.connected = False
        self.streams = (_Stream("up", client, target), _Stream("down", target, client))

    def interest(
        self, now: float, buckets: dict[Way, _Bucket], wake_at: list[float]
    ) -> Iterator[tuple[socket.socket, int]]:
        """Yield what to wait for; append to wake_at when the clock alone allows more."""
        if not self.connected:
            yield self.target, select.POLLOUT
            return
        events = {self.client: 0, self.target: 0}
        for stream in self.streams:
            if stream.wants_more():
                events[stream.source] |= select.POLLIN
            if stream.queue:
                due, chunk = stream.queue[0]
                due = max(due, buckets[stream.way].next_at(now, len(chunk)) if chunk else now)
                if due <= now:
                    events[stream.sink] |= select.POLLOUT
                else:
                    wake_at.append(due)
        # poll reports a hang-up unasked, again and again: an end that has nothing to do is not registered.
        yield from ((end, event) for end, event in events.items() if event)


def _close_with_rst(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def _close_with_fin(end: socket.socket) -> None:
    # To close a socket with unread bytes sends RST: these are read first. A sender who goes on gets RST after FIN, as
    # from any closed program.
    with contextlib.suppress(OSError):
        end.setblocking(False)
        drained = 0
        while drained < _DRAIN_BYTES_MAX and (chunk := end.recv(_CHUNK_BYTES)):
            drained += len(chunk)
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
