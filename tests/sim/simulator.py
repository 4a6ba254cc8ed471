"""A host in one thread: the real cores of node, workers and drivers, with a heap for a network and a seed for fate.

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

from zmesh.core import effects as fx
from zmesh.core.client import ClientCore
from zmesh.core.node import Executing, Limits, NodeCore
from zmesh.core.records import Entry, Inputs, Spec, Task
from zmesh.core.timers import Timers
from zmesh.core.worker import WorkerCore
from zmesh.wire import messages as m
from zmesh.wire.codec import decode, encode
from zmesh.wire.ids import node_peer

NODE = b"simnode."
SIGKILL = 9
UNIT = m.UNIT


def describe_status(status: int) -> tuple[int | None, str | None, str]:
    """Return what runtime/forkserver.py says of a status."""
    if status == SIGKILL:
        return None, "SIGKILL", "was killed by SIGKILL"
    return status >> 8, None, f"ended with exit code {status >> 8}"


def program(kind: str, **fields: Any) -> bytes:
    """Return the arguments of a simulated task.

    Kinds: "work" (seconds, value), "die" (seconds, times: attempts that kill the worker), "raise", "retry" (times),
    "big" (value: stored), "nest" (children: programs it submits, waits for and returns the values of),
    "stream" (items), "many" (values), "hang".
    """
    packed: bytes = msgpack.packb({"kind": kind, **fields})
    return packed


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
    wake: float = -1.0
    slot: int = -1
    spec: Spec | None = None


class Simulation:
    """One host with its node.

    Args:
        seed: fate; the same seed gives the same trace.
        cpus: of the node.
        lossy: whether a dying process loses what it had just sent.
    """

    def __init__(self, seed: int, cpus: int = 2, *, lossy: bool = True, limits: Limits | None = None) -> None:
        self.seed = seed
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
        self.boxes: dict[int, Executing] = {}
        self.started: dict[tuple[bytes, int], int] = {}  # {(owner, seq): how often its code was entered}
        self.starts: list[tuple[float, bytes, int, int, bytes]] = []  # (time, owner, seq, attempt, worker)
        self.written: dict[int, int] = {}  # {segment: times it was written}
        self._segments = count(1)
        self._pids = count(1000)
        effects: list[fx.Effect] = []
        self.timers = Timers()
        self.node = NodeCore(
            NODE, 1, {"CPU": cpus * UNIT, "GPU": 0}, random.Random(seed), effects, self.timers, self.boxes.get,
            limits or Limits(),
        )  # fmt: skip
        self.node_process = Process("node", node_peer(NODE), self.node)
        self.processes[self.node_process.peer] = self.node_process
        self._node_effects = effects
        self.workers_max = 0

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

    def driver(self, name: str) -> Process:
        """Start a driver."""
        peer = NODE + name.encode().ljust(8, b".")[:8]
        process = Process(name, peer, ClientCore(peer, [], Timers(), describe_status))
        self.processes[peer] = process
        process.core.effects.append(fx.Send(node_peer(NODE), m.Hello("driver", next(self._pids), {"cwd": "/"})))
        self.settle(process)
        return process

    def spec(self, process: Process, **options: Any) -> Spec:
        """Register a function; `cpus` (1) makes its shape."""
        cpus = options.pop("cpus", 1)
        shape = {"CPU": int(cpus * UNIT)} if cpus else {}
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
        delay = self.rng.uniform(0.0001, 0.01)
        if process.slot >= 0:
            self.at(delay, lambda: self._reap(process, status))
        else:
            self.at(delay, lambda: self._on_node(lambda: self.node.client_ended(process.peer, self.now)))

    def _reap(self, process: Process, status: int) -> None:
        self._on_node(lambda: self.node.worker_ended(process.peer, status, self.now, "tail of stderr", ""))
        self.boxes.pop(process.slot, None)

    def stop(self, process: Process, seconds: float) -> None:
        """SIGSTOP a process for a while."""
        process.stopped_until = max(process.stopped_until, self.now + seconds)
        self._note(f"{process.name} stops for {seconds:.3f}")
        self.at(seconds, lambda: self._resume(process))

    def _resume(self, process: Process) -> None:
        if process.alive and self.now >= process.stopped_until:
            inbox, process.inbox = process.inbox, []
            for peer, message in inbox:
                self._receive(process, peer, message)
            self.settle(process)

    # The shell.

    def _on_node(self, action: Callable[[], None]) -> None:
        action()
        self.settle(self.node_process)

    def settle(self, process: Process) -> None:
        """Carry out what a core asked for, see what a worker runs next, and set its alarm."""
        effects = self._node_effects if process is self.node_process else process.core.effects
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
        timers = self.timers if process is self.node_process else process.core.timers
        deadline = timers.next_deadline()
        if deadline is None or (self.now < process.wake <= deadline):
            return
        process.wake = deadline

        def ring() -> None:
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
                self.kill(process, 0)
            case fx.Interrupt():
                self.interrupted(process, effect)
            case fx.DropSegments():
                for segment in effect.segments:
                    self.written.pop(segment, None)
            case fx.Warn():
                raise AssertionError(f"seed {self.seed}: {process.name} warns: {effect.text}")

    def interrupted(self, process: Process, effect: fx.Interrupt) -> None:
        """A running task is interrupted: its program ends as cancelled."""
        running = process.core.thief.running
        if running is not None and (running.seq, running.attempt) == (effect.seq, effect.attempt):
            process.core.wait_ends(self.now)  # the interrupt flies out of a get(), too
            self._finish(process, running, m.CANCELLED, None, [])

    def _send(self, process: Process, to: bytes, message: Any) -> None:
        frame = encode(message)
        self.messages += 1
        name = type(message).__name__
        self.message_counts[name] = self.message_counts.get(name, 0) + 1
        link = (process.peer, to)
        arrival = max(self._last.get(link, 0.0), self.now + self.rng.uniform(0.00002, 0.0003))
        self._last[link] = arrival
        delivery: list[Any] = []
        process.sent.append(delivery)

        def deliver() -> None:
            process.sent.remove(delivery)
            target = self.processes.get(to)
            if delivery or target is None or not target.alive:
                return
            self._note(f"{process.name} -> {target.name} {message}")
            if self.now < target.stopped_until:
                target.inbox.append((process.peer, decode(frame)))
                return
            self._receive(target, process.peer, decode(frame))
            self.settle(target)

        self.at(arrival - self.now, deliver)

    def _receive(self, target: Process, peer: bytes, message: Any) -> None:
        target.core.receive(peer, message, self.now)

    def _note(self, line: str) -> None:
        self.trace.append(f"{self.now:.6f} {line[:220]}")

    def _spawn(self, effect: fx.Spawn) -> None:
        name = f"w{len(self.processes)}"
        process = Process(name, effect.peer, None, slot=effect.slot)
        process.core = WorkerCore(effect.peer, [], Timers(), describe_status, lambda message: None)
        self.processes[effect.peer] = process
        self.workers_max = max(self.workers_max, sum(p.alive and p.slot >= 0 for p in self.processes.values()))

        def born() -> None:
            pid = next(self._pids)
            self._on_node(lambda: self.node.worker_started(effect.peer, pid, self.now))
            process.core.effects.append(fx.Send(node_peer(NODE), m.Hello("worker", pid)))
            self.settle(process)

        self.at(self.rng.uniform(0.001, 0.01), born)

    # User code.

    def _advance(self, process: Process) -> bool:
        """Let an idle worker take its next task; returns whether it took one."""
        core = process.core
        if core.thief.running is not None or self.now < process.stopped_until:
            return False
        running = core.next(self.now)
        if running is None:
            return bool(core.effects)
        owner = running.victim
        key = (owner, running.seq)
        self.started[key] = self.started.get(key, 0) + 1
        self.starts.append((self.now, owner, running.seq, running.attempt, process.peer))
        self.boxes[process.slot] = Executing(owner, running.seq, running.attempt, running.spec.job)
        stored = [(value, key) for status, value, key in running.deps if status == m.STORED]
        closings = [self._open(process, running, value, key) for value, key in stored]
        self._execute(process, running, msgpack.unpackb(running.args), closings)
        return True

    def _open(self, process: Process, running: Any, location: Any, key: Any) -> Callable[[], None]:
        segment = location[0]
        full = process.core.references.view_opened(running.victim, key)
        process.views[segment] = process.views.get(segment, 0) + 1
        assert segment in self.written, f"seed {self.seed}: {process.name} maps segment {segment}, which is gone"

        def close() -> None:
            if process.alive:
                process.views[segment] -= 1
                process.core.references.view_closed(full)
                self.settle(process)

        return close

    def _execute(
        self, process: Process, running: Any, code: dict[str, Any], closings: list[Callable[[], None]]
    ) -> None:
        seconds = code.get("seconds", 0.001)

        def still() -> bool:
            return process.alive and process.core.thief.running is running

        def end(status: int, value: Any, inside: list[bytes]) -> None:
            if not still():
                return
            if self.now < process.stopped_until:
                self.at(process.stopped_until - self.now, lambda: end(status, value, inside))
                return
            for close in closings:
                if self.rng.random() < 0.7:
                    close()
                else:  # a global keeps the array beyond the task
                    self.at(self.rng.uniform(0.0, 0.3), close)
            self._finish(process, running, status, value, inside)

        kind = code["kind"]
        if kind == "work":
            self.at(seconds, lambda: end(m.INLINE, msgpack.packb(code.get("value")), []))
        elif kind == "die" and running.attempt < code["times"]:
            self.at(seconds, lambda: self.kill(process, 3 << 8) if still() else None)
        elif kind == "raise" or (kind == "retry" and running.attempt < code["times"]):
            status = m.RETRYABLE if kind == "retry" else m.FAILED
            self.at(seconds, lambda: end(status, b"error", []))
        elif kind == "big":
            self.at(seconds, lambda: end(m.STORED, self.write(process, code.get("value")), []) if still() else None)
        elif kind == "nest":
            self._nest(process, running, code["children"], end)
        elif kind == "many":
            values = [(m.INLINE, msgpack.packb(value), []) for value in code["values"]]
            self.at(seconds, lambda: end(m.MANY, values, []))
        elif kind == "stream":
            self._stream(process, running, code["items"], seconds, end)
        elif kind == "borrow":
            self._borrow(process, code["oids"], seconds, still, end)
        elif kind == "give":
            self._give(process, running, code, still, end)
        elif kind != "hang":
            self.at(seconds, lambda: end(m.INLINE, msgpack.packb(code.get("value")), []))

    def write(self, process: Process, value: Any) -> Any:
        """Write a value into a recycled or new segment of the process; nobody may be reading it."""
        del value
        segment = process.free.pop() if process.free else next(self._segments)
        readers = [p.name for p in self.processes.values() if p.alive and p.views.get(segment)]
        assert not readers, f"seed {self.seed}: segment {segment} is written while {readers} read it\n{self.tail()}"
        self.written[segment] = self.written.get(segment, 0) + 1
        return (segment, 100_000, process.peer)

    def _recycle(self, process: Process, segment: int) -> None:
        readers = [p.name for p in self.processes.values() if p.alive and p.views.get(segment)]
        assert not readers, f"seed {self.seed}: segment {segment} freed while {readers} read it\n{self.tail()}"
        assert segment not in process.free, f"seed {self.seed}: segment {segment} freed twice\n{self.tail()}"
        process.free.append(segment)

    def _nest(self, process: Process, running: Any, children: list[bytes], end: Callable[..., None]) -> None:
        """Submit children and wait for them all, as `get([f.remote(...) ...])` does."""
        core = process.core
        if process.spec is None:
            process.spec = self.spec(process)
        tasks = [core.submit(process.spec, child, None, running.depth + 1, self.now) for child in children]
        core.wait_begins(self.now)

        def look() -> None:
            if not process.alive or core.thief.running is not running:
                return
            if any(task.status == m.PENDING for task in tasks):
                self.at(0.0005, look)
                return
            core.wait_ends(self.now)
            failed = [task for task in tasks if task.status in (m.FAILED, m.ERROR)]
            values = [None if task in failed else msgpack.unpackb(task.value) for task in tasks]
            for task in tasks:
                core.references.drop(task)
            if failed:
                end(m.FAILED, b"child failed", [])
            else:
                end(m.INLINE, msgpack.packb(values), [])
            self.settle(process)

        self.at(0.0005, look)

    def _stream(self, process: Process, running: Any, items: int, seconds: float, end: Callable[..., None]) -> None:
        def step() -> None:
            if not process.alive or process.core.thief.running is not running:
                return
            if running.items == items:
                end(m.END, items, [])
                self.settle(process)
                return
            if process.core.may_yield():
                process.core.item(m.INLINE, msgpack.packb(running.items), [], self.now)
                self.settle(process)
            self.at(seconds, step)

        self.at(seconds, step)

    def when(self, process: Process, entries: list[Entry], then: Callable[[], None], still: Callable[[], bool]) -> None:
        """Call `then` once all entries have a value, if the process still cares."""
        if still():
            if any(entry.status == m.PENDING for entry in entries):
                self.at(0.0003, lambda: self.when(process, entries, then, still))
            else:
                then()
                self.settle(process)

    def _borrow(
        self, process: Process, oids: list[bytes], seconds: float, still: Callable[[], bool], end: Callable[..., None]
    ) -> None:
        """Take refs out of the arguments, read what they name, and let go of them at the end or some time after."""
        references = process.core.references
        entries = [references.borrow(oid) for oid in oids]
        for entry in entries:
            process.core.fetch(entry)

        def drop() -> None:
            if process.alive:
                for entry in entries:
                    references.drop(entry)
                self.settle(process)

        def done() -> None:
            process.core.wait_ends(self.now)
            keep = self.rng.random() < 0.5
            values = [entry.status in (m.INLINE, m.STORED) for entry in entries]
            if not keep:
                drop()
            end(m.INLINE, msgpack.packb(values), [])
            if keep:
                self.at(self.rng.uniform(0.0, 0.3), drop)

        def wait() -> None:
            if still():
                process.core.wait_begins(self.now)
                self.settle(process)
                self.when(process, entries, done, still)

        self.at(seconds, wait)

    def _give(
        self, process: Process, running: Any, code: dict[str, Any], still: Callable[[], bool], end: Callable[..., None]
    ) -> None:
        """Put objects and return refs of them: the worker holds them until the victim does."""
        del running
        references = process.core.references
        made = []
        for index in range(code["count"]):
            stored = code["stored"] and index % 2 == 0
            status = m.STORED if stored else m.INLINE
            made.append(process.core.put(status, self.write(process, index) if stored else msgpack.packb(index), []))
        oids = [references.oid(entry) for entry in made]

        def promoted() -> None:
            process.core.give(made)
            end(m.INLINE, msgpack.packb(oids), oids)
            for entry in made:
                references.drop(entry)

        ticket = references.promote(made)
        assert ticket is not None
        self.settle(process)
        self.when(process, [ticket], promoted, still)

    def _finish(self, process: Process, running: Any, status: int, value: Any, inside: list[bytes]) -> None:
        del running
        self.boxes[process.slot].over = True
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
