"""Hosts in one thread: the real cores of nodes, workers and drivers, with a heap for a network and a seed for fate.

The shell around each core is the same five lines as in runtime/: tick, receive, take effects, carry them out, sleep
until the next deadline. What is simulated: links (FIFO each, any order between them, delays, loss of what a dying
process had just sent), processes (fork, death, SIGSTOP), shared memory (who maps what), and user code, as a little
language of programs. Every step runs check() on the cores it touched; a broken invariant names the seed.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgpack

from tests.sim.network import Network
from tests.sim.programs import SIGKILL, UserCode, describe_status
from zmesh.core import effects as fx
from zmesh.core.client import ClientCore
from zmesh.core.node import Executing, Limits, NodeCore
from zmesh.core.records import Entry, Inputs, Spec, Task
from zmesh.core.shortcuts import LINK_NAME
from zmesh.core.timers import Timers
from zmesh.core.worker import WorkerCore
from zmesh.wire import messages as m
from zmesh.wire.codec import decode, encode
from zmesh.wire.ids import is_guest, node_peer

NODE = b"simnode."
UNIT = m.UNIT


@dataclass
class Process:
    """A simulated process around one core."""

    name: str
    peer: bytes
    core: Any
    alive: bool = True
    stopped_until: float = 0.0
    inbox: list[tuple[bytes, Any]] = field(default_factory=list)  # what came while it was stopped
    sent: list[Any] = field(default_factory=list)  # deliveries under way, for loss at death
    views: dict[int, int] = field(default_factory=dict)  # {segment: live views in this process}
    free: list[int] = field(default_factory=list)  # own segments it may write again
    maps: dict[int, bool] = field(default_factory=dict)  # {segment it maps: whether to write it}; if stores are limited
    opening: dict[int, int] = field(default_factory=dict)  # {segment: times it is about to be mapped}
    wake: float = -1.0
    slot: int = -1
    exited: bool = False  # it ended in good order
    spec: Spec | None = None


@dataclass
class Host:
    """A simulated host: its node, and what its processes share."""

    id: bytes
    core: NodeCore
    timers: Timers
    effects: list[fx.Effect]
    boxes: dict[int, Executing]
    process: Process
    copies: dict[bytes, int] = field(default_factory=dict)  # {object: segment of its copy here}


class Simulation(UserCode, Network):
    """Hosts with their nodes, which know each other from the start.

    Args:
        seed: fate; the same seed gives the same trace.
        cpus: of each node.
        hosts: how many.
        lossy: whether a dying process loses what it had just sent.
        shortcuts: whether drivers can reach far nodes.
    """

    def __init__(
        self, seed: int, cpus: int = 2, *, hosts: int = 1, lossy: bool = True, shortcuts: bool = True,
        limits: Limits | None = None,
    ) -> None:  # fmt: skip
        self.seed = seed
        self.shortcuts = shortcuts
        self.rng = random.Random(seed)
        self.now = 0.0
        self.lossy = lossy
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._last: dict[tuple[bytes, bytes], float] = {}  # {link: when its last message arrives}
        self.trace: list[str] = []
        self.messages = 0
        self.message_counts: dict[str, int] = {}
        self.processes: dict[bytes, Process] = {}
        self.started: dict[tuple[bytes, int], int] = {}  # {(owner, seq): how often its code was entered}
        self.starts: list[tuple[float, bytes, int, int, bytes]] = []  # (time, owner, seq, attempt, worker)
        self.call_starts: list[tuple[bytes, bytes, int, int]] = []  # (actor's worker, caller, seq, attempt)
        self.method_specs: dict[Any, Spec] = {}
        self.written: dict[int, int] = {}  # {segment: times it was written}
        self._segments = count(1)
        self._pids = count(1000)
        self.workers_max = 0
        self.partitioned = False  # it ever was: then bytes may be gone that somebody still expects
        self.unreadable = 0  # arguments that were gone when a call was about to read them
        self.makers: dict[int, bytes] = {}  # {segment: who made it}
        self.dialled: dict[bytes, Process] = {}  # {link name of a shortcut: its driver}
        self.link_names: dict[tuple[bytes, bytes], bytes] = {}  # {(driver, node): link name}
        self.full: list[Host] = []  # whose stores have no room for copies
        self.warnings: list[str] | None = None  # a list: warnings are noted there; None: they are faults
        self.cuts = 0.0  # which part of what nodes send each other is lost
        self.apart: dict[tuple[bytes, bytes], bool] = {}  # {(node, node): True} between which nothing passes
        self.lags: dict[tuple[bytes, bytes], float] = {}  # {(from node, to node): what passes takes up to so much more}
        self.hosts: dict[bytes, Host] = {}
        for index in range(hosts):
            host = self._host(NODE[:7] + bytes([NODE[7] + index]), index, cpus, limits or Limits())
            self.hosts[host.id] = host
            self.processes[host.process.peer] = host.process
        self.node = self.hosts[NODE].core
        self.node_process = self.hosts[NODE].process
        for host in self.hosts.values():
            for other in self.hosts:
                host.core.member_up(other, {"CPU": cpus * UNIT, f"node:{other.hex()}": 1 << 40, "spread": 1 << 40}, 0.0)
            self.settle(host.process)
            if hosts > 1:
                self._beat(host)

    def _beat(self, host: Host) -> None:
        """Gossip: every second a node tells its load."""
        if host.process.alive:
            self._hear(host.id, host.core.load())
            self.at(1.0, lambda: self._beat(host))

    def _host(self, node: bytes, index: int, cpus: int, limits: Limits) -> Host:
        effects: list[fx.Effect] = []
        timers = Timers()
        boxes: dict[int, Executing] = {}

        def announce(load: dict[str, Any], now: float, urgent: bool) -> None:
            del now
            self.at(0.03 if urgent else 0.5, lambda: self._hear(node, load))

        core = NodeCore(
            node, 1, {"CPU": cpus * UNIT, "GPU": 0}, random.Random(self.seed + index), effects, timers, boxes.get,
            limits, announce=announce, address=lambda: ("simulated", 1) if self.shortcuts else None,
        )  # fmt: skip
        process = Process(f"node{index}" if index else "node", node_peer(node), core)
        return Host(node, core, timers, effects, boxes, process)

    def _hear(self, node: bytes, load: dict[str, Any]) -> None:
        for host in self.hosts.values():
            if host.id != node and host.process.alive:
                host.core.heard_load(node, load, self.now)
                self.settle(host.process)

    def host_of(self, process: Process) -> Host:
        """Return the host a process runs on."""
        return self.hosts[process.peer[:8]]

    def kill_host(self, host: Host, seconds: float = 1.0) -> None:
        """A host dies with all it runs; the others hear of it after a while."""
        for process in self.processes.values():
            if process.peer[:8] == host.id and process.alive and not is_guest(process.peer):
                self._note(f"{process.name} dies with its host")
                process.alive = False
                process.views.clear()
                for delivery in process.sent[self.rng.randrange(len(process.sent) + 1) :]:
                    delivery.append("lost")
        for other in self.hosts.values():
            if other.process.alive:
                self.at(seconds + self.rng.uniform(0, 0.1), lambda other=other: self._bury(other, host))

    def _bury(self, other: Host, dead: Host) -> None:
        if other.process.alive:
            other.core.member_down(dead.id, "simulated", self.now)
            self.settle(other.process)

    # Time.

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Do something after `delay` seconds."""
        heapq.heappush(self._heap, (self.now + delay, next(self._order), action))

    def run(self, until: float) -> None:
        """Let events happen up to that time, or until nothing is left to happen."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = max(self.now, until)

    def run_until(self, condition: Callable[[], bool], limit: float) -> None:
        """Let events happen until the condition holds; fails with the seed if it does not in `limit` seconds."""
        end = self.now + limit
        while not condition():
            assert self._heap, f"seed {self.seed}: nothing left to happen at {self.now:.3f}\n{self.tail()}"
            assert self._heap[0][0] <= end, f"seed {self.seed}: not in {limit} s\n{self.tail()}"
            self.now, _, action = heapq.heappop(self._heap)
            action()

    def tail(self) -> str:
        """Return the end of the trace, for a failure."""
        return "\n".join(self.trace[-60:])

    # Processes.

    def driver(self, name: str, node: bytes = NODE) -> Process:
        """Start a driver."""
        peer = node + name.encode().ljust(8, b".")[:8]
        process = Process(name, peer, ClientCore(peer, [], Timers(), describe_status))
        self.processes[peer] = process
        process.core.effects.append(fx.Send(node_peer(node), m.Hello("driver", next(self._pids), {"cwd": "/"})))
        self.settle(process)
        return process

    def spec(self, process: Process, **options: Any) -> Spec:
        """Register a function; `cpus` (1) makes its shape, `environment` adds the mark of a runtime environment."""
        cpus = options.pop("cpus", 1)
        shape = {"CPU": int(cpus * UNIT)} if cpus else {}
        environment = options.pop("environment", "")
        if environment:
            shape[environment] = 1
        job = process.peer if process.slot < 0 else process.core.thief.job
        spec: Spec = process.core.new_spec(job, "f", shape, **options)
        return spec

    def submit(self, process: Process, spec: Spec, args: bytes, inputs: Inputs | None = None, depth: int = 0) -> Task:
        """Submit a task from a driver."""
        task: Task = process.core.submit(spec, args, inputs, depth, self.now)
        self.settle(process)
        return task

    def kill(self, process: Process, status: int = SIGKILL) -> None:
        """End a process at once; part of what it had just sent is lost."""
        if not process.alive:
            return
        self._note(f"{process.name} dies with {status}")
        process.alive = False
        if self.lossy and process.sent:
            for delivery in process.sent[self.rng.randrange(len(process.sent) + 1) :]:
                delivery.append("lost")
        process.views.clear()
        if is_guest(process.peer):
            return  # nobody is told: it falls silent
        delay = self.rng.uniform(0.0001, 0.01)
        host = self.host_of(process)
        if process.slot >= 0:
            self.at(delay, lambda: self._reap(process, status))
        else:
            self.at(delay, lambda: self._on_node(host, lambda: host.core.client_ended(process.peer, self.now)))

    def _reap(self, process: Process, status: int) -> None:
        host = self.host_of(process)
        self._on_node(host, lambda: host.core.worker_ended(process.peer, status, self.now, "tail of stderr", ""))
        host.boxes.pop(process.slot, None)

    def stop(self, process: Process, seconds: float) -> None:
        """SIGSTOP a process for a while."""
        process.stopped_until = max(process.stopped_until, self.now + seconds)
        self._note(f"{process.name} stops for {seconds:.3f}")
        self.at(seconds, lambda: self._resume(process))

    def _resume(self, process: Process) -> None:
        if process.alive and self.now >= process.stopped_until:
            inbox, process.inbox = process.inbox, []
            for peer, message in inbox:
                process.core.receive(peer, message, self.now)
            self.settle(process)

    # The shell.

    def _on_node(self, host: Host, action: Callable[[], None]) -> None:
        if host.process.alive:
            action()
            self.settle(host.process)

    def _is_node(self, process: Process) -> bool:
        return self.host_of(process).process is process

    def settle(self, process: Process) -> None:
        """Carry out what a core asked for, see what a worker runs next, and set its alarm."""
        effects = self.host_of(process).effects if self._is_node(process) else process.core.effects
        while process.alive:
            if not effects:
                if process.slot >= 0 and self._advance(process):
                    continue
                break
            taken, effects[:] = effects[:], []
            for effect in taken:
                self._carry_out(process, effect)
        if process.alive:
            process.core.check()
            self._alarm(process)

    def _alarm(self, process: Process) -> None:
        timers = self.host_of(process).timers if self._is_node(process) else process.core.timers
        deadline = timers.next_deadline()
        if deadline is None or (self.now < process.wake <= deadline):
            return
        process.wake = deadline

        def ring() -> None:
            if process.wake == deadline:
                process.wake = -1.0  # it may ring an ulp too early, and must ring again then
            if process.alive and self.now >= process.stopped_until:
                timers.tick(self.now)
                self.settle(process)
            elif process.alive:
                self.at(process.stopped_until - self.now + 1e-6, ring)

        self.at(max(0.0, deadline - self.now), ring)

    def _carry_out(self, process: Process, effect: fx.Effect) -> None:
        match effect:
            case fx.Send():
                self._send(process, effect.to, effect.message)
            case fx.Spawn():
                self._spawn(effect)
            case fx.KillProcess():
                self.at(self.rng.uniform(0.0001, 0.002), lambda: self.kill(self.processes[effect.peer]))
            case fx.Recycle():
                for segment in effect.segments:
                    self._recycle(process, segment)
            case fx.Exit():
                process.exited = True
                self.kill(process, 0)
            case fx.Interrupt():
                self.interrupted(process, effect)
            case fx.DropSegments():
                for segment in effect.segments:
                    self.written.pop(segment, None)
            case fx.Post() | fx.PostAck():
                self._post(process, effect)
            case fx.Redial() | fx.HangUp():
                pass  # there are no connections here
            case fx.Relay():
                self._relayed(process, effect)
            case fx.DialNode():
                self.at(self.rng.uniform(0.001, 0.02), lambda: self._connect(process, effect))
            case fx.StartKeeper() | fx.StopKeeper():
                self.keeper(process, effect)
            case fx.Detour():
                self._by_node(process, effect.to, effect.message)
            case fx.LinkEnded():
                process.core.link_ended(effect.node, "it took us for dead", self.now)
            case fx.FetchCopy():
                self.at(self.rng.uniform(0.0005, 0.05), lambda: self._fetch_copy(self.host_of(process), effect))
            case fx.DropCopies():
                for oid in effect.oids:
                    segment = self.host_of(process).copies.pop(oid)
                    if effect.clean:
                        self._unread(segment)
                    self.written.pop(segment)
            case fx.DropUnused():
                used = process.core.segments_in_use()
                for segment, maker in list(self.makers.items()):
                    if maker in effect.producers and segment not in used:
                        self.written.pop(segment, None)
                        del self.makers[segment]
            case fx.Warn() if self.warnings is not None:
                self.warnings.append(effect.text)
            case fx.Warn():
                raise AssertionError(f"seed {self.seed}: {process.name} warns: {effect.text}")

    def interrupted(self, process: Process, effect: fx.Interrupt) -> None:
        """A running task is interrupted: its program ends as cancelled."""
        running = process.core.thief.running
        if (effect.owner, effect.seq) in process.core.server.running:
            return  # a plain actor's call goes on
        if running is not None and (running.seq, running.attempt) == (effect.seq, effect.attempt):
            process.core.wait_ends(self.now)  # the interrupt flies out of a get(), too
            self._finish(process, running, m.CANCELLED, None, [])

    def _count_sent(self, process: Process, to: bytes, message: Any) -> None:
        self.messages += 1
        name = type(message).__name__
        self.message_counts[name] = self.message_counts.get(name, 0) + 1
        self._note_sent(process, to, message)

    def _send(self, process: Process, to: bytes, message: Any) -> None:
        self._count_sent(process, to, message)
        host = self.host_of(process)
        if to[:8] == host.id:
            self._transmit(process, to, process.peer, encode(message))
        elif not self._is_node(process) and to[:8] in process.core.shortcuts.open:
            process.core.shortcuts.send(to, encode(message), self.now)
        else:
            self._by_node(process, to, message)

    def _by_node(self, process: Process, to: bytes, message: Any) -> None:
        """Have the process's own node pass a message on."""
        core, frame = self.host_of(process).core, encode(message)
        if self._is_node(process):
            core.forward(process.peer, to, frame, self.now)
        else:
            target = self.host_of(process).process
            self._carry(process, target, lambda: core.forward(process.peer, to, frame, self.now))

    def _connect(self, process: Process, effect: fx.DialNode) -> None:
        if process.alive and self.hosts[effect.node].process.alive:
            name = self.link_names[process.peer, effect.node] = LINK_NAME + effect.token
            self.dialled[name] = process
            process.core.shortcuts.connected(effect.node, effect.token, self.now)
            self.settle(process)

    def _note_sent(self, process: Process, to: bytes, message: Any) -> None:
        target = self.processes.get(to)
        if target is not None and to[:8] != process.peer[:8]:
            self._note(f"{process.name} ~> {target.name} {message}")

    def _transmit(self, process: Process, to: bytes, source: bytes, frame: bytes) -> None:
        """Let a frame arrive at a process of the same host."""
        target = self.processes.get(to)
        if target is None:
            return

        def receive() -> None:
            message = decode(frame)
            self._note(f"{self.processes[source].name} -> {target.name} {message}")
            target.core.receive(source, message, self.now)

        self._carry(process, target, receive, (source, frame))

    def _carry(self, process: Process, target: Process, receive: Callable[[], None], late: Any = None) -> None:
        """Do something at `target` after a while; what one process sends another stays in order."""
        link = (process.peer, target.peer)
        longest = 0.0003 + self.lags.get((process.peer[:8], target.peer[:8]), 0.0)
        arrival = max(self._last.get(link, 0.0), self.now + self.rng.uniform(0.00002, longest))
        self._last[link] = arrival
        delivery: list[Any] = []
        process.sent.append(delivery)

        def deliver() -> None:
            process.sent = [other for other in process.sent if other is not delivery]  # equal ones are many
            if delivery or not target.alive:
                return
            if self.now < target.stopped_until and late is not None:
                target.inbox.append((late[0], decode(late[1])))
                return
            receive()
            self.settle(target)

        self.at(arrival - self.now, deliver)

    def _note(self, line: str) -> None:
        self.trace.append(f"{self.now:.6f} {line[:220]}")

    def _spawn(self, effect: fx.Spawn) -> None:
        name = f"w{len(self.processes)}"
        process = Process(name, effect.peer, None, slot=effect.slot)
        host = self.hosts[effect.peer[:8]]
        process.core = WorkerCore(effect.peer, [], Timers(), describe_status, lambda message: None)
        self.processes[effect.peer] = process
        self.workers_max = max(self.workers_max, sum(p.alive and p.slot >= 0 for p in self.processes.values()))

        def born() -> None:
            pid = next(self._pids)
            self._on_node(host, lambda: host.core.worker_started(effect.peer, pid, self.now))
            process.core.effects.append(fx.Send(host.process.peer, m.Hello("worker", pid)))
            self.settle(process)

        self.at(self.rng.uniform(0.001, 0.01), born)

    # User code.

    def _advance(self, process: Process) -> bool:
        """Let an idle worker take its next task; returns whether it took one."""
        core = process.core
        if core.server.groups and core.thief.running is not None:
            return self._advance_actor(process)
        if core.thief.running is not None or self.now < process.stopped_until:
            return False
        running = core.next(self.now)
        if running is None:
            return bool(core.effects)
        owner = running.victim
        key = (owner, running.seq)
        self.started[key] = self.started.get(key, 0) + 1
        self.starts.append((self.now, owner, running.seq, running.attempt, process.peer))
        self.host_of(process).boxes[process.slot] = Executing(owner, running.seq, running.attempt, running.spec.job)
        self._enter(process, running, [(value, key) for status, value, key in running.deps if status == m.STORED])
        return True

    def _enter(self, process: Process, running: Any, stored: list[Any]) -> None:
        """Map what the task needs, and run it."""
        gone = [(key, value[0], value[2]) for value, key in stored if self._is_gone(process, value[0])]
        if gone:
            self._finish(process, running, m.LOST, gone, [])
            return
        closings = [self._open(process, running, value, key) for value, key in stored]
        self._execute(process, running, msgpack.unpackb(running.args), closings)

    def _is_gone(self, process: Process, segment: int) -> bool:
        """Whether what a call is about to read is not there any more: only after a partition."""
        gone = segment not in self.written
        assert not gone or self.partitioned, f"seed {self.seed}: {process.name} maps segment {segment}, which is gone"
        self.unreadable += gone
        return gone

    def _open(self, process: Process, running: Any, location: Any, key: Any) -> Callable[[], None]:
        segment = location[0]
        full = process.core.references.view_opened(running.victim, key)
        process.views[segment] = process.views.get(segment, 0) + 1

        def close() -> None:
            if process.alive:
                process.views[segment] -= 1
                process.core.references.view_closed(full)
                self.settle(process)

        return close

    def write(self, process: Process, value: Any) -> Any:
        """Write a value into a recycled or new segment of the process; nobody may be reading it."""
        del value
        segment = process.free.pop() if process.free else next(self._segments)
        readers = [p.name for p in self.processes.values() if p.alive and p.views.get(segment)]
        assert not readers, f"seed {self.seed}: segment {segment} is written while {readers} read it\n{self.tail()}"
        self.written[segment] = self.written.get(segment, 0) + 1
        self.makers[segment] = process.peer
        return (segment, 100_000, process.peer)

    def _recycle(self, process: Process, segment: int) -> None:
        self._unread(segment)
        assert segment not in process.free, f"seed {self.seed}: segment {segment} freed twice\n{self.tail()}"
        process.free.append(segment)

    def _unread(self, segment: int) -> None:
        readers = [p.name for p in self.processes.values() if p.alive and p.views.get(segment)]
        assert not readers, f"seed {self.seed}: segment {segment} freed while {readers} read it\n{self.tail()}"

    def _finish(self, process: Process, running: Any, status: int, value: Any, inside: list[bytes]) -> None:
        del running
        self.host_of(process).boxes[process.slot].over = True
        process.core.finished(status, value, inside, 10, self.now)
        self.settle(process)

    # Looking.

    def live_workers(self) -> list[Process]:
        """Return the workers that are alive, in the order they were born."""
        return [process for process in self.processes.values() if process.slot >= 0 and process.alive]

    def ready_workers(self) -> list[Process]:
        """Return those of them that the node has greeted."""
        return [process for process in self.live_workers() if process.core.welcome is not None]

    def drop(self, process: Process, entry: Entry) -> None:
        """The program lets go of a ref."""
        process.core.references.drop(entry)
        self.settle(process)


def value_of(entry: Entry) -> Any:
    """Return the value of an INLINE entry."""
    assert entry.status == m.INLINE, (entry.status, entry.value)
    return msgpack.unpackb(entry.value)
