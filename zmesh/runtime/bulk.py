"""The bytes of objects between hosts: one thread with sockets of its own, so that control never waits behind them.

Sends slices of a mapped segment with copy=False, receives straight into the destination. Who is asked for what is
core/transfer.py's business; what is done with an object that arrived, core/copies.py's. The loop thread gives orders
through a queue and gets answers through another.

    receiver to server   R, object, segment, offset, length, insist?
    server to receiver   C, object, offset, codec | the chunk
                         S, object, NodeID of who serves it instead
                         E, object, why not

Sources: "copy=False" and recv_into: pyzmq's documentation; figures: docs/performance.md.
"""

import contextlib
import mmap
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import lz4.block
import zmq

from zmesh.core.effects import Address
from zmesh.core.transfer import CHUNK_BYTES, Ask, Finished, Receiver, Server
from zmesh.runtime.curve import CurveKeys, Gate, secure_client, secure_server
from zmesh.runtime.mailbox import Mailbox
from zmesh.runtime.mesh_sockets import ROUTING_ID, Dialled, cannot_listen, endpoint, rebind, tune
from zmesh.runtime.segments import NO_ROOM
from zmesh.runtime.sockets import new_context
from zmesh.wire.ids import NODE_ID_BYTES, OBJECT_ID_BYTES, NodeID, ObjectID

FRAME_BYTES_MAX = 2 * CHUNK_BYTES
LOOK_S = 1.0
KEEP_MAPPED_S = 30.0  # a served object stays mapped so long after the last request
# ... but it may go to disk so soon: it comes back if its receiver is slower. As long as all that was served lately
# counted as in use, a store was full of it, and nothing else found room to be served.
IN_USE_S = 0.1
SAMPLE_BYTES = 32 * 1024
SAMPLE_EVERY = 16  # chunks
PAYS_BELOW = 0.6  # of the sample's size: lz4 runs at the speed of the encryption it saves
FULL_THERE = "it lies on the disk of a host whose store is full, so it cannot be read. Raise --store-memory there"
FRAMES_MAX = 32  # of one socket before the others are looked at

_REQUEST = struct.Struct(f">c{OBJECT_ID_BYTES}sQQQ?")
_CHUNK = struct.Struct(f">c{OBJECT_ID_BYTES}sQB")
_WORD = struct.Struct(f">c{OBJECT_ID_BYTES}s")
_DONTWAIT = int(zmq.DONTWAIT)
_MORE = int(zmq.SNDMORE | zmq.DONTWAIT)


@dataclass(slots=True, eq=False)
class Mapped:
    """An object's bytes in this thread: being received, or served."""

    view: memoryview
    nbytes: int
    here: dict[int, bool] | None  # {offset: True} received so far; None: all there is
    used_s: float
    place: int  # the segment of this host it lies in
    parked: list[tuple[bytes, int, int]] = field(default_factory=list)  # (who, offset, length) asked for too early
    codec: int = 0
    served: int = 0  # chunks


class Bulk:
    """The bulk socket of one node, and its thread.

    Args:
        accepted: {client key: key id} of the gate; replaced as a whole by `rekey`.
        open_segment: asked in the loop thread for the bytes of (object, segment): tells, now or later, a descriptor to
            keep, or LOST or NO_ROOM (runtime/segments.py), and the segment of this host they lie in.
        arrived: told in the loop thread that a transfer is over: (object, error, whether a full store is why).

    Raises:
        ConfigError: the port is taken.
    """

    def __init__(
        self,
        me: NodeID,
        host: str,
        port: int,
        keys: list[CurveKeys],
        accepted: dict[bytes, str],
        open_segment: Callable[[ObjectID, int, Callable[[int, int], None]], None],
        arrived: Callable[[ObjectID, str, bool], None],
    ) -> None:
        self._me = me
        self._host, self._port = host, port
        self._keys = {key.id: key for key in keys}
        self._key = keys[0]  # by which we are known
        self._known_by: dict[NodeID, str] = {}
        self._open_segment = open_segment
        self._arrived = arrived
        self._orders = Mailbox()
        self._answers = Mailbox()
        self._effects: list[Any] = []
        self._addresses: dict[NodeID, Address] = {}
        self._receiver = Receiver(self._effects, reachable=self._addresses.__contains__)
        self._server = Server()
        self._links: dict[NodeID, Dialled] = {}
        self._objects: dict[ObjectID, Mapped] = {}
        # Mapped pages are what costs: a fresh mapping of touched memory takes in 2.5 GB/s, an old one 11.
        self._places: dict[int, memoryview] = {}  # {segment of ours: its bytes, writable}
        self._sources: dict[int, tuple[memoryview, float]] = {}  # {segment of a client: (its bytes, when last used)}
        self._opening: dict[ObjectID, list[tuple[bytes, int, int, bool]]] = {}  # requests that wait for the loop thread
        self._running = True
        self._changed = True  # the list of sockets is not what it was
        self._context = new_context(io_threads=1)
        self._gate = Gate(self._context)
        self._gate.accepted = accepted
        self._router: Any = None
        self._bind()
        self._thread = threading.Thread(target=self._run, name="zmesh-bulk", daemon=True)
        self._thread.start()

    def _bind(self) -> None:
        router = tune(self._context.socket(zmq.ROUTER), self._host, FRAME_BYTES_MAX)
        router.router_mandatory = True
        router.router_handover = True
        router.sndhwm = router.rcvhwm = 0  # what was asked for bounds what is under way
        secure_server(router, self._key)
        try:
            router.bind(endpoint(self._host, self._port))
        except zmq.ZMQError as error:
            router.close()
            raise cannot_listen(self._host, self._port, error) from None
        self._router = router

    # From the loop thread.

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are answers."""
        return self._answers.fileno()

    def answers(self) -> None:
        """Do what the thread asked of the loop thread."""
        self._answers.empty()

    def member(self, node: NodeID, address: Address, key_id: str) -> None:
        """That node's base address is known, and the key by which it is known."""
        self._orders.put(lambda: self._know(node, address, key_id))

    def gone(self, node: NodeID) -> None:
        """That node is dead."""
        self._orders.put(lambda: self._forget_node(node))

    def fetch(self, oid: ObjectID, segment: int, nbytes: int, origin: NodeID, fd: int, size: int, place: int) -> None:
        """Fetch an object into the `size` bytes of our segment `place`; its descriptor `fd` is ours from now on."""
        self._orders.put(lambda: self._start(oid, segment, nbytes, origin, fd, size, place))

    def drop(self, oid: ObjectID) -> None:
        """A copy is no more: serve it to nobody. Its segment may be the place of the next one."""
        self._orders.put(lambda: self._drop(oid))

    def forget(self, place: int) -> None:
        """That segment of ours is gone for good."""
        self._orders.put(lambda: self._forget_place(place))

    def unmap(self, segments: list[int], then: Callable[[list[int], list[int]], None]) -> None:
        """Let go of these segments; `then` gets those that are, and those that are in use, in the loop thread."""
        self._orders.put(lambda: self._unmap(segments, then))

    def take_keys(self, keys: list[CurveKeys], accepted: dict[bytes, str]) -> None:
        """These are the keys from now on, and those that are accepted."""
        self._orders.put(lambda: self._take_keys(keys, accepted))

    def rekey(self, keys: list[CurveKeys], key: CurveKeys, accepted: dict[bytes, str]) -> None:
        """Have these keys and be known by `key` from now on, on the same port; transfers go on."""
        self._orders.put(lambda: self._rekey(keys, key, accepted))

    def close(self) -> None:
        """End the thread; waits for it."""
        self._orders.put(self._stop)
        self._thread.join(timeout=5.0)
        self._answers.close()

    # The thread.

    def _stop(self) -> None:
        self._running = False

    def _run(self) -> None:
        looked_s = 0.0
        while self._running:
            poller = zmq.Poller()
            for one in (self._orders.fileno(), self._gate.fileno(), self._router):
                poller.register(one, zmq.POLLIN)
            for link in self._links.values():
                poller.register(link.socket, zmq.POLLIN)
                poller.register(link.monitor, zmq.POLLIN)
            self._changed = False
            while self._running and not self._changed:
                busy = self._receiver.transfers or self._objects or self._sources
                self._gate.serve()
                poller.poll(int(LOOK_S * 1000) if busy else None)
                self._orders.empty()
                self._gate.serve()
                self._serve()
                for node, link in list(self._links.items()):
                    self._receive(node, link)
                    self._watch(node, link)
                now = monotonic()
                if now - looked_s >= LOOK_S:
                    looked_s = now
                    self._look(now)
                self._carry_out()
        for link in self._links.values():
            link.close()
        self._router.close(linger=0)
        self._gate.close()
        self._context.term()
        self._orders.close()

    def _carry_out(self) -> None:
        while self._effects:
            effects, self._effects[:] = self._effects[:], []
            for effect in effects:
                if isinstance(effect, Ask):
                    self._ask(effect)
                else:
                    self._finished(effect)

    def _look(self, now: float) -> None:
        self._receiver.look(now)
        self._server.look(now)
        for oid, mapped in list(self._objects.items()):
            if mapped.here is None and now - mapped.used_s > KEEP_MAPPED_S:
                del self._objects[oid]
        for segment, (_, used_s) in list(self._sources.items()):
            if now - used_s > 2 * KEEP_MAPPED_S:
                del self._sources[segment]

    def _know(self, node: NodeID, address: Address, key_id: str) -> None:
        same_key = self._known_by.get(node, key_id) == key_id
        self._addresses[node], self._known_by[node] = address, key_id
        if not same_key and node in self._links:
            self._links.pop(node).close()
            self._changed = True
            self._receiver.reconnected(node, monotonic())

    def _forget_node(self, node: NodeID) -> None:
        self._addresses.pop(node, None)
        self._known_by.pop(node, None)
        self._receiver.node_gone(node, monotonic())
        self._server.node_gone(node)
        link = self._links.pop(node, None)
        if link is not None:
            link.close()
            self._changed = True

    def _take_keys(self, keys: list[CurveKeys], accepted: dict[bytes, str]) -> None:
        self._keys = {one.id: one for one in keys}
        self._gate.accepted = accepted

    def _rekey(self, keys: list[CurveKeys], key: CurveKeys, accepted: dict[bytes, str]) -> None:
        self._take_keys(keys, accepted)
        if key.id != self._key.id:
            self._key = key
            self._router.close(linger=0)
            rebind(self._bind)
            self._changed = True

    # Receiving.

    def _start(self, oid: ObjectID, segment: int, nbytes: int, origin: NodeID, fd: int, size: int, place: int) -> None:
        try:
            if place not in self._places:
                os.posix_fallocate(fd, 0, size)
                self._places[place] = memoryview(mmap.mmap(fd, size))
            view = self._places[place][:nbytes]
        except OSError as error:
            why = f"this host has no memory for it: {error.strerror}"
            self._answers.put(lambda: self._arrived(oid, why, False))
            return
        finally:
            os.close(fd)
        self._objects[oid] = Mapped(view, nbytes, {}, monotonic(), place)
        self._receiver.start(oid, segment, nbytes, origin, monotonic())

    def _ask(self, ask: Ask) -> None:
        link = self._links.get(ask.node)
        if link is None:
            address = self._addresses.get(ask.node)
            if address is None:
                self._receiver.node_gone(ask.node, monotonic())
                return
            socket = tune(self._context.socket(zmq.DEALER), address[0], FRAME_BYTES_MAX)
            socket.routing_id = ROUTING_ID + self._me
            socket.sndhwm = socket.rcvhwm = 0
            secure_client(socket, self._keys.get(self._known_by.get(ask.node, ""), self._key))
            link = self._links[ask.node] = Dialled(socket, address)
            self._changed = True
            with contextlib.suppress(zmq.ZMQError):
                socket.connect(endpoint(address[0], address[1] + 2))
        request = _REQUEST.pack(b"R", ask.oid, ask.segment, ask.offset, ask.length, ask.insist)
        with contextlib.suppress(zmq.ZMQError):
            link.socket.send(request, _DONTWAIT)

    def _receive(self, node: NodeID, link: Dialled) -> None:
        for _ in range(FRAMES_MAX):
            try:
                head = link.socket.recv(_DONTWAIT)
            except zmq.ZMQError:
                return
            payload = link.socket.getsockopt(zmq.RCVMORE)
            if head[:1] == b"C" and len(head) == _CHUNK.size and payload:
                _, oid, offset, codec = _CHUNK.unpack(head)
                self._take(node, link.socket, oid, offset, codec)
            elif len(head) >= _WORD.size:
                oid, rest = head[1 : _WORD.size], head[_WORD.size :]
                if head[:1] == b"S":
                    self._receiver.referred(node, oid, rest[:NODE_ID_BYTES], monotonic())
                elif head[:1] in (b"E", b"F"):
                    why, full = rest.decode(errors="replace"), head[:1] == b"F"
                    self._receiver.refused(node, oid, why, monotonic(), full=full)
            self._drop_rest(link.socket)
            self._carry_out()

    @staticmethod
    def _drop_rest(socket: Any) -> None:
        while socket.getsockopt(zmq.RCVMORE):
            socket.recv(_DONTWAIT)

    def _take(self, node: NodeID, socket: Any, oid: ObjectID, offset: int, codec: int) -> None:
        """Write one chunk in place. What was not asked for, or has the wrong length, is dropped."""
        mapped = self._objects.get(oid)
        if mapped is None or mapped.here is None or offset in mapped.here or not 0 <= offset < mapped.nbytes:
            return
        if offset % CHUNK_BYTES:
            return
        length = min(CHUNK_BYTES, mapped.nbytes - offset)
        place = mapped.view[offset : offset + length]
        if codec:
            try:
                data = lz4.block.decompress(socket.recv(_DONTWAIT), uncompressed_size=length)
            except lz4.block.LZ4BlockError:
                return
            if len(data) != length:
                return
            place[:] = data
        elif socket.recv_into(place, flags=_DONTWAIT) != length:
            return
        mapped.here[offset] = True
        self._receiver.arrived(node, oid, offset, monotonic())
        if mapped.parked:
            ready = [one for one in mapped.parked if one[1] in mapped.here]
            mapped.parked = [one for one in mapped.parked if one[1] not in mapped.here]
            for who, at, size in ready:
                self._send_chunk(who, oid, mapped, at, size)

    def _watch(self, node: NodeID, link: Dialled) -> None:
        if link.events():
            self._receiver.reconnected(node, monotonic())

    def _finished(self, effect: Finished) -> None:
        oid, error = effect.oid, effect.error
        mapped = self._objects.get(oid)
        if mapped is not None:
            if error:
                del self._objects[oid]
                for who, _, _ in mapped.parked:
                    self._say(who, b"E", oid, error.encode())
            else:
                mapped.here = None
        self._answers.put(lambda: self._arrived(oid, error, effect.full))

    def _forget_place(self, place: int) -> None:
        self._places.pop(place, None)

    def _unmap(self, segments: list[int], then: Callable[[list[int], list[int]], None]) -> None:
        now = monotonic()
        busy: dict[int, bool] = {}
        idle: list[ObjectID] = []
        for oid, mapped in self._objects.items():
            if mapped.place in segments:
                if mapped.here is not None or mapped.parked or (mapped.served and now - mapped.used_s < IN_USE_S):
                    busy[mapped.place] = True
                else:
                    idle.append(oid)
        for oid in idle:
            if self._objects[oid].place not in busy:
                del self._objects[oid]
        closed = [segment for segment in segments if segment not in busy]
        for segment in closed:
            self._sources.pop(segment, None)
            self._places.pop(segment, None)
        self._answers.put(lambda: then(closed, list(busy)))

    def _drop(self, oid: ObjectID) -> None:
        self._receiver.stop(oid, monotonic())
        self._objects.pop(oid, None)

    # Serving.

    def _serve(self) -> None:
        for _ in range(FRAMES_MAX):
            try:
                frames = self._router.recv_multipart(_DONTWAIT, copy=False)
            except zmq.ZMQError:
                return
            if not self._gate.admits(frames[-1]):
                continue
            who, request = frames[0].bytes, frames[-1].bytes
            if len(frames) != 2 or len(request) != _REQUEST.size or len(who) != len(ROUTING_ID) + NODE_ID_BYTES:
                continue
            kind, oid, segment, offset, length, insist = _REQUEST.unpack(request)
            if kind == b"R" and length <= CHUNK_BYTES:
                self._requested(who, oid, segment, offset, length, insist)

    def _requested(self, who: bytes, oid: ObjectID, segment: int, offset: int, length: int, insist: bool) -> None:
        mapped = self._objects.get(oid)
        if mapped is None:
            waiting = self._opening.get(oid)
            if waiting is None:
                self._opening[oid] = [(who, offset, length, insist)]
                self._answers.put(lambda: self._open(oid, segment))
            else:
                waiting.append((who, offset, length, insist))
            return
        if offset + length > mapped.nbytes or offset % CHUNK_BYTES:
            self._say(who, b"E", oid, f"bytes {offset}-{offset + length} of {mapped.nbytes} were asked for".encode())
            return
        if mapped.here is not None:
            if offset in mapped.here:
                self._send_chunk(who, oid, mapped, offset, length)
            else:
                mapped.parked.append((who, offset, length))
            return
        if not insist and mapped.view.readonly:  # it was made here: we know all who fetch it
            parent = self._server.parent(who[len(ROUTING_ID) :], oid, monotonic())
            if parent is not None:
                self._say(who, b"S", oid, parent)
                return
        self._send_chunk(who, oid, mapped, offset, length)

    def _open(self, oid: ObjectID, segment: int) -> None:
        """In the loop thread: find the bytes somebody asks for."""
        self._open_segment(oid, segment, lambda fd, place: self._orders.put(lambda: self._opened(oid, place, fd)))

    def _opened(self, oid: ObjectID, place: int, fd: int) -> None:
        waiting = self._opening.pop(oid, [])
        if fd >= 0:
            try:
                known = self._sources.get(place)
                size = os.fstat(fd).st_size
                view = known[0] if known is not None else memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ))
                self._sources[place] = (view, monotonic())
                self._objects.setdefault(oid, Mapped(view, size, None, monotonic(), place))
            except OSError:
                fd_failed = True
            else:
                fd_failed = False
            os.close(fd)
            if not fd_failed:
                for who, offset, length, insist in waiting:
                    self._requested(who, oid, place, offset, length, insist)
                return
        kind, why = (b"F", FULL_THERE) if fd == NO_ROOM else (b"E", "its node let go of it, or never heard of it")
        for who, _, _, _ in waiting:
            self._say(who, kind, oid, why.encode())

    def _send_chunk(self, who: bytes, oid: ObjectID, mapped: Mapped, offset: int, length: int) -> None:
        chunk = mapped.view[offset : offset + length]
        mapped.used_s = monotonic()
        if mapped.served % SAMPLE_EVERY == 0:
            sample = chunk[:SAMPLE_BYTES]
            packed = lz4.block.compress(sample, store_size=False)
            mapped.codec = int(len(packed) < PAYS_BELOW * len(sample))
        mapped.served += 1
        payload: Any = lz4.block.compress(chunk, store_size=False) if mapped.codec else chunk
        with contextlib.suppress(zmq.ZMQError):
            self._router.send(who, _MORE)
            self._router.send(_CHUNK.pack(b"C", oid, offset, mapped.codec), _MORE)
            self._router.send(payload, _DONTWAIT, copy=False)

    def _say(self, who: bytes, kind: bytes, oid: ObjectID, rest: bytes) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self._router.send(who, _MORE)
            self._router.send(_WORD.pack(kind, oid) + rest, _DONTWAIT)
