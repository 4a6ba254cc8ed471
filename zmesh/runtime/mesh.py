"""A node's half that faces other nodes: membership, the sockets between hosts, and the copies of far objects.

Carries out what the cores ask for beyond this host, and feeds them what comes from there. A private node has none.
Loop thread only.
"""

import os
import platform
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

from zmesh._version import __version__
from zmesh.core import effects as fx
from zmesh.core.effects import Address
from zmesh.core.membership import Membership
from zmesh.core.node import NodeCore
from zmesh.core.shortcuts import LINK_NAME_BYTES, Parcel
from zmesh.core.spares import Spares
from zmesh.core.spilling import FULL
from zmesh.core.status import labels, natural
from zmesh.core.timers import Timers
from zmesh.exceptions import ConfigError, RemoteProtocolError
from zmesh.runtime import machine
from zmesh.runtime.bulk import Bulk
from zmesh.runtime.curve import CurveKeys, Gate, check_library, curve_keys
from zmesh.runtime.keyring import Keyring
from zmesh.runtime.mesh_sockets import Heard, MeshSockets
from zmesh.runtime.segments import SegmentServer
from zmesh.runtime.sockets import new_context
from zmesh.runtime.store import class_bytes
from zmesh.wire.gossip import ALIVE, GOSSIP_CODEC, Row
from zmesh.wire.guest import GUEST_CODEC
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID, PeerID, is_guest, node_peer, store_peer
from zmesh.wire.messages import PROTOCOL_MAJOR

STATES = ("alive", "suspect", "dead", "leaving", "left")
KEYRING_LOOK_S = 2.0
KEY_NOTICE_S = 0.3  # between telling that we shall be known by another key and being it
LOAD_S = 0.5  # what heartbeats say of the load is at most so old
SPARE_BYTES_SHARE = 4  # segments of dropped copies are kept for the next ones: at most capacity / 4


class Mesh:
    """Membership, sockets and copies of one node.

    Args:
        settings: "host", "port", "advertise", "join", "name"; see runtime/machine.py.
        keyring: the keys of the mesh (runtime/keyring.py).
        relay: hands a frame that arrived to a client of this host: (to, source, frame).
        deliver: hands one to this node's core: (source, frame).

    Raises:
        ConfigError: a port is taken, an address is not ours, or libzmq is too old.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        keyring: Keyring,
        core: NodeCore,
        effects: list[fx.Effect],
        timers: Timers,
        rng: Any,
        segments: SegmentServer,
        relay: Callable[[PeerID, PeerID, bytes], None],
        deliver: Callable[[PeerID, bytes], None],
    ) -> None:
        check_library()
        self._core = core
        self._effects = effects
        self._timers = timers
        self._segments = segments
        self._relay = relay
        self._deliver = deliver
        self._me = node_peer(core.node)
        self._store = store_peer(core.node)
        self.joined: bool | None = None  # once the first member answered, or refused
        self.refused = ""
        self._load_s = 0.0
        self._versions: dict[str, bool] = {}  # of Python, that were warned of
        self._copies: dict[ObjectID, tuple[int, int, int]] = {}  # {object: (segment, bytes of it, nbytes)}
        self._crowded: dict[ObjectID, bool] = {}  # {object that found no room before others were dropped: True}
        self._spares = Spares(timers, segments.ledger.capacity_bytes // SPARE_BYTES_SHARE, self._drop_segment)
        host, port = settings["host"], settings["port"]
        self.address = machine.parse_address(settings["advertise"], port) if settings.get("advertise") else (host, port)
        self._host, self._port = host, port
        self._keyring = keyring
        self._keyring_looked_s = 0.0
        self._keyring_mtime = _mtime(keyring.path)
        self._keys = keys = _curve(keyring)
        self._key = keys[0]  # by which we are known
        self._context = new_context(io_threads=1)
        self._gate = Gate(self._context)
        self._gate.accepted = {key.client_raw: key.id for key in keys}
        heard = Heard(self._parcel, self._ack, self._word, self._knocked, self._up, self._down, self._bad)
        self._sockets = MeshSockets(self._context, self._gate, core.node, host, port, keys, heard)
        self._bulk = Bulk(core.node, host, port + 2, keys, self._gate.accepted, self._open_segment, self._bytes_arrived)
        meta = {
            "total": dict(core.resources.total),
            "version": __version__,
            "protocol": PROTOCOL_MAJOR,
            "python": platform.python_version(),
            "pid": os.getpid(),
            "key": self._key.id,
            "keys": [key.id for key in keys],
        }
        row = Row(core.node, 0, ALIVE, settings["name"] or "", self.address[0], self.address[1], meta)
        self.membership = Membership(row, rng, effects, timers, cluster=keyring.cluster)
        self.membership.loads.heard = core.heard_load
        self._seeds: list[Address] = [(seed_host, seed_port) for seed_host, seed_port in settings.get("join") or ()]
        self.handlers = self._handlers_of_effects()

    def _handlers_of_effects(self) -> dict[type[Any], Callable[[Any], None]]:
        core = self._core
        return {
            fx.Publish: lambda effect: self._sockets.publish(GOSSIP_CODEC.encode(effect.message)),
            fx.Subscribe: lambda effect: self._sockets.subscribe(effect.node, effect.address),
            fx.Unsubscribe: lambda effect: self._sockets.unsubscribe(effect.node),
            fx.Tell: self._tell,
            fx.Joined: self._on_joined,
            fx.MemberUp: self._member_up,
            fx.MemberDown: self._member_down,
            fx.Post: self._post,
            fx.PostAck: self._post_ack,
            fx.Redial: lambda effect: self._sockets.redial(effect.node),
            fx.Relay: self._relayed,
            fx.LinkEnded: lambda e: core.link_ended(e.node, "it took us for dead", monotonic()),
            fx.FetchCopy: self._fetch_copy,
            fx.DropCopies: self._drop_copies,
        }

    def start(self, now: float) -> None:
        """Join the mesh, or be the first of one."""
        self.membership.start(now, self._seeds)

    @property
    def shut_out(self) -> bool:
        """Whether every member we asked has another key."""
        return bool(self._seeds) and self._sockets.shut_out(self._seeds)

    def why_not_joined(self, timeout_s: float) -> str:
        """Say why nobody took us in, as far as we know."""
        seeds = ", ".join(f"{host}:{port}" for host, port in self._seeds)
        return (
            f"no member took us in at {seeds} ({timeout_s:.0f} s): {self._sockets.state_of(self._seeds)}. "
            f"A member answers to {self._host}:{self._port}-{self._port + 2}: see --host, --advertise, the firewall"
        )

    # The loop.

    @property
    def changed(self) -> bool:
        """Whether the list of descriptors is not what it was."""
        return self._sockets.changed

    def descriptors(self) -> list[int]:
        """Return the descriptors to sleep on: edge-triggered, so drain before each sleep."""
        return [*self._sockets.descriptors(), self._bulk.fileno()]

    def ready(self, fd: int) -> None:
        """A sleeper saw this descriptor readable."""
        if fd == self._bulk.fileno():
            self._bulk.answers()
        else:
            self._sockets.ready(fd)

    def drain(self, now: float) -> bool:
        """Take in what came from other hosts; returns whether more may be waiting."""
        if now - self._load_s >= LOAD_S:
            self._load_s = now
            self.membership.set_load(self._core.load(), now, urgent=False)
        if now - self._keyring_looked_s >= KEYRING_LOOK_S:
            self._keyring_looked_s = now
            self._look_at_keyring(now)
        return self._sockets.drain()

    def announce(self, load: dict[str, Any], now: float, urgent: bool) -> None:
        """Have gossip carry a load."""
        self._load_s = now
        self.membership.set_load(load, now, urgent=urgent)

    # Membership.

    def _tell(self, effect: fx.Tell) -> None:
        self._sockets.tell(effect.node, effect.address, GOSSIP_CODEC.encode(effect.message))

    def _word(self, node: NodeID, frame: bytes) -> None:
        try:
            message = GOSSIP_CODEC.decode(frame)
        except RemoteProtocolError as error:
            self._bad(f"from {node.hex()}: {error}")
            return
        self.membership.receive(node, message, monotonic())

    def _on_joined(self, effect: fx.Joined) -> None:
        self.joined, self.refused = not effect.refused, effect.refused

    def _member_up(self, effect: fx.MemberUp) -> None:
        row = effect.row
        total = row.meta.get("total")
        if row.node == self._core.node or not isinstance(total, dict):
            return
        key_id = str(row.meta.get("key", ""))
        self._sockets.knows(row.node, (row.host, row.port), key_id)
        self._bulk.member(row.node, (row.host, row.port), key_id)
        self._choose_key(monotonic())
        python = str(row.meta.get("python", ""))
        minor = ".".join(python.split(".")[:2])
        if minor != machine.python_minor() and minor not in self._versions:
            self._versions[minor] = True
            print(
                f"zmesh node: {row.name or row.node.hex()} runs Python {python}, we {platform.python_version()}: "
                "functions pickled by one need not load on the other, so no tasks go between them",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        self._core.member_up(row.node, total, monotonic(), minor)

    def _member_down(self, effect: fx.MemberDown) -> None:
        self._core.member_down(effect.node, effect.why, monotonic())
        self._sockets.forgets(effect.node)
        self._bulk.gone(effect.node)
        self._choose_key(monotonic())

    # Keys.

    def _look_at_keyring(self, now: float) -> None:
        """Take over a key that was rotated or imported while we run; a file that makes no sense changes nothing."""
        mtime = _mtime(self._keyring.path)
        if mtime == self._keyring_mtime:
            return
        self._keyring_mtime = mtime
        try:
            ring = Keyring.load(self._keyring.path)
            if ring.cluster != self._keyring.cluster:
                raise ConfigError(f"{ring.path} holds the key of another mesh now: restart the node to join that")
        except ConfigError as error:
            self._bad(f"the keyring: {error}")
            return
        self._keyring = ring
        self._keys = _curve(ring)
        self._gate.accepted = {key.client_raw: key.id for key in self._keys}
        self._sockets.take_keys(self._keys)
        self._choose_key(now)
        self._tell_keys(now)
        self._bulk.take_keys(self._keys, self._gate.accepted)

    def _choose_key(self, now: float) -> None:
        """Be known by the newest key that every living member has: then nobody is shut out while a key is carried."""
        theirs = [row.meta.get("keys", ()) for row in self.membership.living() if row.node != self._core.node]
        shared = [key for key in self._keys if all(key.id in ids for ids in theirs)]
        key = (shared or self._keys)[0]
        if key.id != self._key.id:
            # Told before it is done: afterwards only those who know of it could hear it from us.
            self._key = key
            self._tell_keys(now)
            self._timers.set(now + KEY_NOTICE_S, lambda then: self._switch(key, then))

    def _switch(self, key: CurveKeys, now: float) -> None:
        if key is self._key:
            self._sockets.rekey(key)
            self._bulk.rekey(self._keys, key, self._gate.accepted)
            self.membership.sync(now)

    def _tell_keys(self, now: float) -> None:
        ids = {"key": self._key.id, "keys": [key.id for key in self._keys]}
        self.membership.set_meta(self.membership.me.meta | ids, now)

    def _up(self, node: NodeID) -> None:
        self._core.links.reconnected(node, monotonic())

    def _down(self, node: NodeID, refused: bool) -> None:
        self.membership.link_down(node, refused, monotonic())

    def _bad(self, what: str) -> None:
        print(f"zmesh node: dropped what makes no sense: {what}", file=sys.stderr, flush=True)

    def describe(self, now: float) -> list[dict[str, Any]]:
        """Return members as `zmesh status` shows them, this one first, without the dead that were replaced."""
        membership = self.membership
        others = [member.row for member in membership.members.values()]
        rows = [membership.me, *(row for row in others if row.alive or not membership.members.replaced(row))]
        loads = {row.node: membership.members[row.node].load for row in rows[1:]} | {rows[0].node: self._core.load()}
        return [
            {
                "node": row.node.hex(),
                "name": row.name,
                "state": STATES[row.state],
                "address": f"[{row.host}]:{row.port}" if ":" in row.host else f"{row.host}:{row.port}",
                "total": natural(row.meta.get("total", {})),
                "labels": labels(row.meta.get("total", {})),
                "available": loads[row.node].get("available", {}),
                "store": loads[row.node].get("store", []),
                "workers": loads[row.node].get("workers", 0),
                "backlog": sum(workers for _, workers in loads[row.node].get("backlog", ())),
                "version": row.meta.get("version", ""),
                "python": row.meta.get("python", ""),
                "pid": row.meta.get("pid", 0),
                "key": row.meta.get("key", ""),
                "link": "" if row.node == membership.me.node else self._sockets.link_to(row.node),
            }
            for row in rows
        ]

    # Links.

    def _post(self, effect: fx.Post) -> None:
        e = effect
        sent = self._sockets.post(e.node, e.epoch, e.seq, e.ack, e.more, e.source + e.to, e.frame)
        if not sent and len(e.node) == LINK_NAME_BYTES:
            self._core.openings.unsent(e, monotonic())

    def _post_ack(self, effect: fx.PostAck) -> None:
        e = effect
        if not self._sockets.post_ack(e.node, e.epoch, e.ack, e.missing) and len(e.node) == LINK_NAME_BYTES:
            self._core.openings.unsent(e, monotonic())

    def _parcel(self, link: bytes, parcel: Parcel) -> None:
        if len(link) == NODE_ID_BYTES or link in self._core.guests:
            self._core.links.receive(link, *parcel, monotonic())
        elif len(link) == LINK_NAME_BYTES:
            self._core.openings.parcel(link, parcel, monotonic())

    def _ack(self, link: bytes, epoch: int, ack: int, missing: bool) -> None:
        if len(link) == NODE_ID_BYTES or link in self._core.guests:
            self._core.links.acknowledged(link, epoch, ack, missing, monotonic())
        elif len(link) == LINK_NAME_BYTES:
            self._core.openings.acknowledged(link, epoch, ack, missing, monotonic())

    def _relayed(self, effect: fx.Relay) -> None:
        to, source = effect.to, effect.source
        if to == self._me:
            self._deliver(source, effect.frame)
        elif to == self._store:
            self._segments.serve_guest(
                source, effect.frame, lambda answer: self._core.forward(to, source, answer, monotonic())
            )
        elif to[:NODE_ID_BYTES] == self._core.node and not is_guest(to):
            self._relay(to, source, effect.frame)
        else:
            self._core.forward(source, to, effect.frame, monotonic())

    def _knocked(self, guest: PeerID, frame: bytes) -> None:
        """Somebody without a node wants to be a client of this one, or still is."""
        try:
            word = GUEST_CODEC.decode(frame)
        except RemoteProtocolError as error:
            self._bad(f"from a guest: {error}")
            return
        answer = self._core.guests.knock(guest, word, monotonic())
        self._sockets.tell_guest(guest, GUEST_CODEC.encode(answer))

    def addresses(self) -> list[Address]:
        """Return where the other living members are."""
        return [(row.host, row.port) for row in self.membership.living() if row.node != self._core.node]

    # Copies.

    def _fetch_copy(self, effect: fx.FetchCopy) -> None:
        size = class_bytes(effect.nbytes)
        segment = self._spares.take(size)
        if segment:
            self._fill(effect, size, segment, self._segments.reuse(segment))
            return

        def made(segment: int, why: str) -> None:
            if segment:
                self._segments.open(segment, self._me, lambda fd: self._fill(effect, size, segment, os.dup(fd)))
                return
            used, capacity = self._segments.used_bytes, self._segments.ledger.capacity_bytes
            error = f"{size:,} bytes do not fit into the store of this host, where {used:,} of {capacity:,} are in use"
            text = error if why == FULL else f"{error}: {why}"
            self._core.fetched(effect.oid, None, text, monotonic(), full=True)

        crowded = self._segments.used_bytes + size > self._segments.ledger.capacity_bytes
        if crowded and effect.oid not in self._crowded:
            self._crowded[effect.oid] = True
            self.trim()
            self._effects.append(effect)  # after what trim() asks for
            return
        self._crowded.pop(effect.oid, None)
        self._segments.make(size, self._me, made, mapped=True)

    def _fill(self, effect: fx.FetchCopy, size: int, segment: int, fd: int) -> None:
        """Fetch an object's bytes into a segment of ours; the descriptor is the bulk thread's from now on."""
        self._copies[effect.oid] = (segment, size, effect.nbytes)
        origin = effect.producer[:NODE_ID_BYTES]
        self._bulk.fetch(effect.oid, effect.segment, effect.nbytes, origin, fd, size, segment)

    def _bytes_arrived(self, oid: ObjectID, error: str, full: bool) -> None:
        found = self._copies.get(oid)
        if found is None:
            return
        segment, _, nbytes = found
        if error:
            del self._copies[oid]
            self._drop_segment(segment)
            self._core.fetched(oid, None, error, monotonic(), full=full)
        else:
            self._segments.fill(segment)
            self._core.fetched(oid, (segment, nbytes, self._me), "", monotonic())

    def _drop_copies(self, effect: fx.DropCopies) -> None:
        for oid in effect.oids:
            segment, size, _ = self._copies.pop(oid)
            self._bulk.drop(oid)
            reusable = effect.clean and self._segments.ledger.reusable(segment, self._me)
            if not reusable or not self._spares.keep(segment, size, monotonic()):
                self._drop_segment(segment)

    def _drop_segment(self, segment: int) -> None:
        self._bulk.forget(segment)
        self._segments.drop([segment])

    def trim(self) -> None:
        """The store is full: give back what is kept for later."""
        self._core.replicas.make_room()
        self._core.copies.make_room()
        self._spares.clear()

    def unmap(self, segments: list[int]) -> None:
        """The store wants to write these to disk: the bulk thread lets go of those it does not use."""
        for segment in [segment for segment in segments if segment in self._spares]:
            segments.remove(segment)
            self._spares.drop(segment)
        if segments:
            self._bulk.unmap(segments, lambda closed, busy: self._segments.closed(self._me, closed, busy))

    def _open_segment(self, oid: ObjectID, segment: int, then: Callable[[int, int], None]) -> None:
        """Find the bytes somebody asks for: `then` gets a descriptor to keep, or why not, and the segment."""
        copy = self._copies.get(oid)
        place = copy[0] if copy is not None else segment
        self._segments.open(place, self._me, lambda fd: then(os.dup(fd) if fd >= 0 else fd, place))

    # The end.

    def lagged(self, seconds: float) -> None:
        """The loop ran late."""
        self.membership.lagged(seconds, monotonic())

    def leave(self, now: float) -> None:
        """Tell the others that we go."""
        self.membership.leave(now)

    def close(self) -> None:
        """Close everything at once."""
        self._bulk.close()
        self._sockets.close()
        self._gate.close()
        self._context.term()


def _curve(ring: Keyring) -> list[CurveKeys]:
    return [curve_keys(key.id, key.server_secret.reveal(), key.client_secret.reveal()) for key in ring.keys]


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
