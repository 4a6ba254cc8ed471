"""The node's role: wires books, matchmaking, directory, copies and lending, and knows who is there. Wiring only.

Every input carries the time; what to send, fork, kill or forget comes out as effects.
"""

import random
from collections.abc import Callable
from typing import Any

from zmesh.core.actor_home import ActorHome
from zmesh.core.burials import Burials, lends
from zmesh.core.copies import Copies
from zmesh.core.directory import Directory
from zmesh.core.effects import Address, Effect, KillProcess, Send, Warn
from zmesh.core.enclosed import Enclosed
from zmesh.core.evacuation import Evacuation
from zmesh.core.groups import Groups
from zmesh.core.guests import Guests
from zmesh.core.holdings import Holder
from zmesh.core.keepers import Keepers
from zmesh.core.lending import Lending
from zmesh.core.links import Links
from zmesh.core.listing import Listing
from zmesh.core.matchmaking import Matchmaking
from zmesh.core.neighbours import Neighbours
from zmesh.core.node_deaths import DeathInputs
from zmesh.core.node_members import MemberInputs
from zmesh.core.orphans import Orphans
from zmesh.core.pressure import Pressure
from zmesh.core.records import Client, Executing, Limits
from zmesh.core.replicas import Replicas
from zmesh.core.resources import Resources
from zmesh.core.shortcuts import Openings
from zmesh.core.status import ending, load, status
from zmesh.core.strangers import Strangers
from zmesh.core.tallies import Tallies
from zmesh.core.timers import Timers
from zmesh.core.workers import IDLE, STARTING, STOPPING
from zmesh.wire.actor_messages import GROUPS, KillActor
from zmesh.wire.counting_messages import Held, Recount, Uncounted, WhoHolds
from zmesh.wire.death_messages import Dying, Vouch
from zmesh.wire.ids import NODE_ID_BYTES, PEER_ID_BYTES, NodeID, ObjectID, PeerID, node_peer
from zmesh.wire.marks import MARK_PLENTY, NODE, SPREAD
from zmesh.wire.messages import (
    PROTOCOL_MAJOR,
    Blocked,
    Buried,
    Demand,
    Evacuated,
    Fetch,
    Free,
    FreeSegments,
    Goodbye,
    Hello,
    Hold,
    KeepSegments,
    Kill,
    Lease,
    LeaseBack,
    Leaving,
    LetGo,
    Log,
    PeersGone,
    Promote,
    Pull,
    Release,
    Resolve,
    Shape,
    Spare,
    StatusReply,
    StatusRequest,
    Unblocked,
    Watch,
    Welcome,
)
from zmesh.wire.shortcut_messages import Carry, Switch
from zmesh.wire.store_messages import ListObjects, Objects

__all__ = ["Executing", "Limits", "NodeCore"]


class NodeCore(DeathInputs, MemberInputs):
    """The state of one node and all its inputs.

    Args:
        node: its ID; `pid` its process.
        total: what it has, in units of 1/10,000.
        rng: the only source of chance.
        black_box: reads the black box in a slot; None if no user code ever ran there.
        reserve, release: book and free bytes of the store for inline values.
        segment_state: where the bytes of a segment are; see core/spilling.py.
        announce: has gossip carry a load to all members: (load, now, urgent).
        members: describes all members for the status.
        addresses: where the other living members are.
        address: where drivers elsewhere may dial this node, None if nowhere.
        python: the minor version its workers run, as "3.11"; code pickled by another is not taken.
        has_segments: whether anything that a process made lies here.
        tables: how much is kept in each table of the process, for the status.
    """

    def __init__(
        self,
        node: NodeID,
        pid: int,
        total: Shape,
        rng: random.Random,
        effects: list[Effect],
        timers: Timers,
        black_box: Callable[[int], Executing | None],
        limits: Limits,
        *,
        pressure: Pressure | None = None,
        reserve: Callable[[int], bool] = lambda nbytes: True,
        release: Callable[[int], None] = lambda nbytes: None,
        segment_state: Callable[[int], str] = lambda segment: "resident",
        announce: Callable[[dict[str, Any], float, bool], None] = lambda load, now, urgent: None,
        members: Callable[[], list[Any]] = list,
        addresses: Callable[[], list[Address]] = list,
        address: Callable[[], Address | None] = lambda: None,
        python: str = "",
        has_segments: Callable[[PeerID], bool] = lambda peer: True,
        tables: Callable[[], dict[str, int]] = dict,
    ) -> None:
        total = total | {SPREAD: MARK_PLENTY, f"{NODE}{node.hex()}": MARK_PLENTY}
        self.node = node
        self._timers = timers
        self._announce = announce
        self._python = python
        self._has_segments = has_segments
        self._tables = tables
        self._draining = False
        self._members = members
        self._told_shapes: list[Any] = []  # of the backlog last told urgently
        self._mesh_timer = 0
        self._ended: dict[PeerID, list[PeerID]] = {}  # {living job: its workers that ended: they may have made objects}
        self._kept: dict[int, NodeID] = {}  # {segment here: the other node whose shared object lies in it}
        self._configs: dict[PeerID, dict[str, Any]] = {}  # {job of another host: what its workers take over}
        self.links = Links(effects, timers, known=lambda name: self.neighbours.hears(name))
        self.openings = Openings(node, rng, effects, self.links, address=address)
        self.neighbours = Neighbours(node, effects)
        self._pid = pid
        self._effects = effects
        self._black_box = black_box
        self._clients: dict[PeerID, Client] = {}
        totals = self.neighbours.totals
        self.copies = Copies(node_peer(node), effects, timers, reachable=totals.__contains__, copied=self._copied)
        self.evacuation = Evacuation(
            node, effects, copies=self.copies, members=totals, clients=self._clients, directly=self.openings.names
        )
        self.strangers = Strangers(effects, timers, send=self.forward, dead=self.links.ended)
        self._store = (0, 0, 0)
        self.pressure = pressure or Pressure()
        self._announced: dict[PeerID, bool] = {}  # {dead client of another member, not buried: True}
        self.burials = Burials(node, effects, members=totals, buried=self._all_have_buried)
        self.resources = Resources(total)
        self.matchmaking = self._make_matchmaking(rng, limits)
        self.groups = self._make_groups(rng)
        self.lending = self._make_lending(rng)
        self.guests = Guests(node, timers, members=addresses, ended=self._guest_ended)
        self.actors = self._make_actors()
        self.directory = self._make_directory(reserve, release)
        self.keepers = self._make_keepers(rng)
        self.replicas = self._make_replicas(totals)
        self.listing = self._make_listing(effects, timers, segment_state)
        shared = self.directory.of_clients | self.replicas.of_clients | self.tallies.of_clients
        shared |= self.keepers.of_clients
        self._inputs = self._words_of_clients() | self.groups.of_clients | self.actors.words() | shared
        self._between_nodes = self._words_of_nodes() | self.groups.of_nodes | self.replicas.of_nodes

    def _make_matchmaking(self, rng: random.Random, limits: Limits) -> Matchmaking:
        return Matchmaking(
            self.node,
            rng,
            self._effects,
            self._timers,
            limits,
            resources=self.resources,
            executing=self._executing,
            config_of=self._config_of,
            elsewhere=self.neighbours.elsewhere,
            explain=self.neighbours.explain,
            members=lambda: 1 + len(self.neighbours.usable),
            matched=self._matched,
            short=lambda: self.pressure.short,
        )

    def _make_actors(self) -> ActorHome:
        others = self.neighbours.totals
        return ActorHome(
            self.node, self._effects, self._timers, self.matchmaking, alive=self._alive, members=lambda: list(others),
            held=lambda oid: oid in self.directory, nameless=self._nameless,
        )  # fmt: skip

    def _make_groups(self, rng: random.Random) -> Groups:
        return Groups(
            self.node, rng, self._effects, self._timers, self.resources, self.matchmaking, self.neighbours, self._alive,
            draining=lambda: self._draining, take=lambda *name: self.actors.names.take(*name),
            free=lambda group: self.actors.names.actor_gone(group),
        )  # fmt: skip

    def _make_keepers(self, rng: random.Random) -> Keepers:
        return Keepers(
            self.node, self._pid, rng, self._effects, clients=self._clients, config_of=self._config_of,
            greet=self._greeting, ended=self.client_ended, state_of=self.actors.places.describe,
            refuse=lambda: "this node is being stopped" if self._draining else "",
        )  # fmt: skip

    def _make_lending(self, rng: random.Random) -> Lending:
        return Lending(
            rng, self._effects, demands=self.matchmaking.own, fits=Resources.count, congested=self.links.congested,
            config_of=self._config_of, members=lambda: 1 + len(self.neighbours.usable),
        )  # fmt: skip

    def _make_directory(self, reserve: Callable[[int], bool], release: Callable[[int], None]) -> Directory:
        self.enclosed = Enclosed(self.node, self._effects)
        self.holder = Holder(self._effects, self._timers, self.enclosed.held)
        self.enclosed.wake = self.holder.wake
        self.tallies = Tallies(
            self._effects, self._timers, alive=self._alive, counts=lambda holder: self.directory.counts_of(holder),
            recount=lambda oid, holder, holds: self.directory.recount(oid, holder, holds),
        )  # fmt: skip
        return Directory(
            self.node, self._effects, self.evacuation, tallies=self.tallies, enclosed=self.enclosed,
            alive=self._alive, reserve=reserve, release=release, freed=self._freed,
        )  # fmt: skip

    def _make_replicas(self, members: dict[NodeID, Shape]) -> Replicas:
        replicas = Replicas(self._effects, copies=self.copies, members=members, directory=self.directory)
        self.orphans = Orphans(
            self.node, self._effects, self._timers, members=members, clients=self._clients,
            orphans=replicas.orphans, drop=replicas.drop, holds=self.enclosed.holds,
        )  # fmt: skip
        self.enclosed.let_go = self.orphans.sightings.let_go
        return replicas

    def _make_listing(self, effects: list[Effect], timers: Timers, state: Callable[[int], str]) -> Listing:
        return Listing(
            self.node,
            effects,
            timers,
            clients=lambda: {peer: one.pid for peer, one in self._clients.items() if one.kind != "observer"},
            shared=self.directory.counted,
            copies=self.copies.here,
            state=state,
        )

    def _words_of_nodes(self) -> dict[type[Any], Callable[[NodeID, Any, float], None]]:
        return {
            Spare: self._spare,
            Lease: self._lease,
            LeaseBack: self._lease_back,
            Watch: lambda node, m, now: self.neighbours.watch(node, m.peers, self._living),
            PeersGone: self._peers_gone,
            Dying: self._dying,
            KeepSegments: lambda node, m, now: self._kept.update(dict.fromkeys(m.segments, node)),
            Leaving: lambda node, m, now: self.evacuation.leaving(node, self.directory.lying_on(node)),
            Evacuated: lambda node, m, now: self.evacuation.member_evacuated(node, m),
            Recount: lambda node, m, now: self.holder.recount(node_peer(node)),
            Uncounted: lambda node, m, now: self.enclosed.lost(m.objects),
            WhoHolds: lambda node, m, now: self.orphans.asked(m, now),
            Held: self.orphans.answered,
        }

    def _words_of_clients(self) -> dict[type[Any], Callable[[PeerID, Any, float], None]]:
        directory = self.directory
        return {
            Hello: self._hello,
            Goodbye: lambda peer, _, now: self.client_ended(peer, now),
            Demand: self._demand,
            Free: self._free,
            Blocked: self._blocked,
            Unblocked: self._unblocked,
            Kill: self._kill,
            StatusRequest: self._status_request,
            ListObjects: self.listing.asked,
            Objects: self.listing.told,
            Promote: lambda peer, m, now: directory.promote(peer, m.request, m.objects),
            Resolve: lambda peer, m, now: directory.resolve(m.objects),
            Hold: lambda peer, m, now: directory.hold(peer, m.request, m.holders),
            Vouch: lambda peer, m, now: directory.vouch(peer, m.request, m.objects),
            Release: lambda peer, m, now: directory.release(peer, m.objects),
            Fetch: lambda peer, m, now: directory.fetch(peer, m.objects),
            Buried: self._buried,
            FreeSegments: self._free_segments,
            Pull: lambda peer, m, now: self.copies.pull(peer, m.objects, now),
            LetGo: lambda peer, m, now: self.copies.let_go(peer, m.objects, now),
            Switch: self.openings.switch,
            Carry: self.openings.carried,
            Evacuated: lambda peer, m, now: self.evacuation.evacuated(peer, m),
            Held: self.orphans.told,
        }

    def _alive(self, peer: PeerID) -> bool:
        """Whether a client lives, here or, as far as we know, on another host."""
        if peer[:NODE_ID_BYTES] == self.node:
            return peer in self._clients
        return peer not in self._announced and self.neighbours.alive(peer)

    def _living(self, peer: PeerID) -> bool:
        """Whether a client of this host lives, or is not buried yet; or it is this node itself."""
        return peer in self._clients or peer in self.burials or peer == node_peer(self.node)

    def _config_of(self, job: PeerID) -> dict[str, Any]:
        return self._clients[job].config if job in self._clients else self._configs.get(job, {})

    def _nameless(self, namespace: str, name: str, what: ObjectID) -> None:
        """One of ours has lost its name while members took us for dead; what is detached can never be found again."""
        if namespace == GROUPS:
            self._timers.set(0.0, lambda now: self.groups.placement.nameless(what, now))
        elif what[:PEER_ID_BYTES] in self.keepers:
            self.actors.places.kill(KillActor(what, no_restart=True))
        text = f"{name!r} is another's name now, given away while other nodes took this one for dead"
        self._effects.append(Warn(f"{text}: {what.hex()} has none, and ends if it is detached"))

    def _freed(self, oid: ObjectID) -> None:
        self.actors.freed(oid)
        self.replicas.freed(oid)

    def _copied(self, oid: ObjectID, error: str) -> None:
        if not self.replicas.copied(oid, error):
            self.evacuation.copied(oid, error)

    def _executing(self, slot: int) -> Executing | None:
        """Return what runs in a slot now."""
        box = self._black_box(slot)
        return None if box is None or box.over else box

    # From clients.

    def receive(self, peer: PeerID, message: Any, now: float) -> None:
        """Take one message. What makes no sense is dropped with a warning."""
        node = peer[:NODE_ID_BYTES]
        far = node != self.node
        if far and node not in self.neighbours.totals:
            return  # the last words of a member that is gone
        handle = self._inputs.get(type(message))
        between = self._between_nodes.get(type(message)) if far and peer == node_peer(node) else None
        if between is not None:
            between(node, message, now)
        elif handle is None or (far and type(message) is Hello):
            self._effects.append(Warn(f"{type(message).__name__} from {peer.hex()} is not for a node: dropped"))
        elif not far and peer not in self._clients and type(message) is not Hello:
            return  # the last words of a process whose death is known already
        else:
            handle(peer, message, now)

    def _hello(self, peer: PeerID, message: Hello, now: float) -> None:
        worker = self.matchmaking.workers.get(peer)
        refused = ""
        if message.major != PROTOCOL_MAJOR:
            refused = f"the node speaks version {PROTOCOL_MAJOR} of the protocol, you {message.major}"
        elif message.kind not in ("driver", "worker", "observer"):
            refused = f"{message.kind!r} is no kind of client"
        elif message.kind == "driver" and self._foreign(str(message.config.get("python", ""))):
            refused = (
                f"its workers run Python {self._python}, this program {message.config['python']}, and functions "
                "pickled by one need not load on the other: start a node with this Python, or the program with that one"
            )
        elif (message.kind == "worker") != (worker is not None) or (worker is not None and worker.state != STARTING):
            refused = "this node did not start you as that"
        self._effects += [Send(peer, word) for word in self._greeting(refused)]
        if refused:
            return
        self._clients[peer] = Client(message.kind, message.pid, dict(message.config))
        if worker is not None:
            worker.pid = message.pid
            self.matchmaking.said_hello(worker, now)

    def _greeting(self, refused: str = "") -> list[Any]:
        """Return what a new client is told."""
        welcome = Welcome(self.node, self._pid, dict(self.resources.total), refused)
        return [welcome, self._mesh()] if self.neighbours.totals and not refused else [welcome]

    def _foreign(self, python: str) -> bool:
        """Whether what a Python of that minor version pickles may not load here."""
        return bool(python and self._python and python != self._python)

    def _demand(self, peer: PeerID, m: Demand, now: float) -> None:
        self.matchmaking.demand(peer, m.job, dict(m.shape), m.workers, m.depth, m.priority, now)

    def _free(self, peer: PeerID, message: Free, now: float) -> None:
        worker = self.matchmaking.workers.get(peer)
        if worker is not None:
            refuses = worker.state == STOPPING
            self.matchmaking.free(worker, message.epoch, now)
            if worker.state == IDLE and worker.job and not self._alive(worker.job):
                # What it shared lives on here; it would refuse again and again for what is not.
                if refuses:
                    self._effects.append(KillProcess(worker.peer))
                else:
                    self.matchmaking.stop(worker)

    def _blocked(self, peer: PeerID, message: Blocked, now: float) -> None:
        del message
        worker = self.matchmaking.workers.get(peer)
        if worker is not None:
            self.matchmaking.blocked(worker, now)

    def _unblocked(self, peer: PeerID, message: Unblocked, now: float) -> None:
        del message
        worker = self.matchmaking.workers.get(peer)
        if worker is not None:
            self.matchmaking.unblocked(worker, now)

    def _kill(self, peer: PeerID, message: Kill, now: float) -> None:
        """Kill a worker that still executes that very attempt; else its result or its death is on the way."""
        del now
        worker = self.matchmaking.workers.get(message.worker)
        box = self._executing(worker.slot) if worker is not None else None
        if worker is None or box is None or (box.owner, box.seq, box.attempt) != (peer, message.seq, message.attempt):
            return
        worker.reason = message.reason
        self._effects.append(KillProcess(worker.peer))

    def _status_request(self, peer: PeerID, message: StatusRequest, now: float) -> None:
        self._effects.append(Send(peer, StatusReply(message.request, self.status(now))))

    # From the processes of this host.

    def worker_started(self, peer: PeerID, pid: int, now: float) -> None:
        """The forkserver forked a worker; it will say Hello itself."""
        del now
        worker = self.matchmaking.workers.get(peer)
        if worker is not None:
            worker.pid = pid

    def forward(self, source: PeerID, to: PeerID, frame: bytes, now: float) -> None:
        """Pass a frame on to a guest, or to a peer on another host."""
        node = to[:NODE_ID_BYTES]
        if node == self.node:
            if to in self.guests:
                self.links.send(to, source, to, frame, now)
        elif node in self.neighbours.totals:
            if source in self._clients:
                self.burials.spoke(source, node)
            elif source != node_peer(self.node) and lends(frame):
                return
            self.links.send(self.openings.names.get(to, node), source, to, frame, now)
        elif source in self._clients:
            self.strangers.keep(node, source, to, frame, now)

    def log(self, peer: PeerID, name: str, stream: int, text: str, now: float) -> None:
        """A worker wrote whole lines: they go to the driver of its job."""
        del now
        worker = self.matchmaking.workers.get(peer)
        if worker is not None and worker.job and self._alive(worker.job):
            self._effects.append(Send(worker.job, Log(worker.pid, name, stream, text)))

    def store_report(self, used: int, capacity: int, spilled: int) -> None:
        """Note how full the store is and how much lies on disk, in bytes, for the status."""
        self._store = (used, capacity, spilled)

    def segments_in_use(self) -> list[int]:
        """Return the segments that shared objects lie in."""
        return [*self.directory.segments_in_use(), *self._kept]

    def fetched(self, oid: ObjectID, location: Any, error: str, now: float, *, full: bool = False) -> None:
        """A FetchCopy is over; see Copies.fetched."""
        self.copies.fetched(oid, location, error, now, full=full)

    def _free_segments(self, peer: PeerID, message: FreeSegments, now: float) -> None:
        del peer, now
        for _, segment, _ in message.segments:
            self._kept.pop(segment, None)
        self.directory.free_segments(message.segments)

    def memory(self, used: float, told: Callable[[int, int], tuple[int, str, bool]], now: float) -> None:
        """So much of the memory is in use, 0 to 1. `told` tells of (pid, slot) what Pressure.victim wants to know."""
        if self.pressure.sample(used):
            self.matchmaking.match(now)
        victim = self.pressure.victim(list(self.matchmaking.workers.values()), self._executing, told, now)
        if victim is not None:
            self._effects.append(KillProcess(victim))

    # Outputs.

    def load(self) -> dict[str, Any]:
        """Return what gossip tells all members of this one."""
        return load(self.resources, self.matchmaking, self._store[:2], len(self.directory))

    def status(self, now: float) -> dict[str, Any]:
        """Return what StatusReply carries; amounts in natural units."""
        del now
        told = {"node": self.node.hex(), "pid": self._pid}
        told |= status(self.resources, self.matchmaking, self._clients, self._store)
        return told | {
            "memory_used": round(self.pressure.used, 3),
            "objects": len(self.directory),
            "names": self.actors.names.listed(),
            "detached": self.keepers.describe(),
            "copies": len(self.copies),
            "placement_groups": self.groups.placement.describe(),
            "members": self._members(),
            "tables": self._tables(),
        }

    def ending(self) -> list[str]:
        """Return sentences about what outlives its program and ends with this node."""
        return ending(self.keepers.describe(), self.groups.placement.detached())

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        self.resources.check()
        self.matchmaking.check()
        self.groups.check()
        self.directory.check()
        self.tallies.check()
        self.actors.check()
        self.keepers.check()
        self.copies.check()
        self.evacuation.check()
        self.replicas.check()
        self.orphans.check()
        self.burials.check()
        self.links.check()
        self.openings.check()
        self.neighbours.check()
        self.strangers.check()
        self.lending.check(self.matchmaking.own())
