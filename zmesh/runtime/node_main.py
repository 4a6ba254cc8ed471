"""The node process: one thread, one poller. Matches workers with work, keeps shared objects, watches everybody.

Never runs user code, never unpickles anything, sits in the path of no local task. All its decisions are in
core/node.py; this file is sockets, pipes, pidfds and signals.
"""

import contextlib
import json
import os
import queue
import random
import signal
import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from zmesh._version import __version__
from zmesh.core import effects as fx
from zmesh.core.logs import LogStream
from zmesh.core.node import Executing, Limits, NodeCore
from zmesh.core.pressure import Pressure
from zmesh.core.tables import table_sizes
from zmesh.core.timers import Timers
from zmesh.exceptions import ConfigError, RemoteProtocolError, UnknownWordError
from zmesh.runtime import machine
from zmesh.runtime.blackbox import BlackBoxes
from zmesh.runtime.forkserver import Ended, ForkServer, Started
from zmesh.runtime.memory import MemoryGauge, anonymous_bytes
from zmesh.runtime.processes import open_pidfd, raise_fd_limit
from zmesh.runtime.rehearsal import rehearse
from zmesh.runtime.rundir import RunDir
from zmesh.runtime.segments import SegmentServer
from zmesh.runtime.spill_files import SpillDisk
from zmesh.runtime.watch import Watch
from zmesh.runtime.worker_main import run_worker
from zmesh.wire.checks import checked
from zmesh.wire.codec import encode
from zmesh.wire.ids import NODE_ID_BYTES, PEER_ID_BYTES, PeerID, is_guest, node_peer
from zmesh.wire.messages import Trim
from zmesh.wire.store_messages import Unmap

READ_BYTES_MAX = 64 * 1024  # of a worker's output at a time
BOX_SLOTS = 4096
# What the pickles of programs and handles refer to, so that workers share its pages instead of importing it each.
WORKER_MODULES = ("cloudpickle", "zmesh.actor")
MEMORY_LOOK_S = 0.5
MEMORY_IDLE_LOOK_S = 2.0  # while no task runs
JOIN_TIMEOUT_S = 10.0
DRAIN_S = 30.0  # tasks that run for other hosts may take so long to end when this node is told to stop
EVACUATE_S = 30.0  # then members may take so long to copy what lies only here
GOODBYE_S = 1.1  # membership says three times that this node has left
TRIM_S = 0.1  # between two calls to give back what is kept for later
LAG_S = 0.25  # a loop that is so late makes this node doubt itself before it accuses others


class Node:
    """One node, from its sockets to its end. Loop thread only.

    Args:
        settings: what zmesh.init or `zmesh up` was given; see runtime/machine.py for the defaults.
        run_dir: its directory, locked.
        forks: the forkserver, started before any socket or thread.
        boxes: the workers' black boxes, mapped before the forkserver was forked.
        driver: pid of the program a private node lives for, else 0.
    """

    def __init__(
        self, settings: dict[str, Any], run_dir: RunDir, forks: ForkServer, boxes: BlackBoxes, driver: int
    ) -> None:
        # Imported here, after the forkserver was forked: workers must not inherit a ZeroMQ context.
        from zmesh.runtime.keepers import Keepers
        from zmesh.runtime.sockets import NodeSocket

        self._mesh: Any = None  # a private node has none: no other host can find it
        self.node_id = os.urandom(NODE_ID_BYTES)
        self._me = node_peer(self.node_id)
        self.record = {"pid": os.getpid(), "node": self.node_id.hex(), "private": bool(driver), "version": __version__}
        self.record |= {"path": run_dir.path, "name": os.path.basename(run_dir.path)}
        self._run_dir = run_dir
        self._forks = forks
        self._boxes = boxes
        self._timers = Timers()
        self._gauge = MemoryGauge(machine.memory_limit(settings))
        self._memory_timer = 0
        self._effects: list[fx.Effect] = []
        total = machine.total_resources(settings)
        # Closing the last descriptor of 1 GB takes 180 ms, in which the loop must not stand still.
        self._closing: queue.SimpleQueue[int] = queue.SimpleQueue()
        threading.Thread(target=_close_all, args=(self._closing,), name="zmesh-close", daemon=True).start()
        self._segments = self._make_store(settings)
        self._store_timer = 0
        self._trimmed_s = 0.0
        self.core = NodeCore(
            self.node_id,
            os.getpid(),
            total,
            random.Random(self.node_id),
            self._effects,
            self._timers,
            self._black_box,
            Limits(workers_max=BOX_SLOTS),
            pressure=Pressure(*machine.memory_shares(settings)),
            reserve=self._segments.reserve,
            release=self._segments.release,
            segment_state=self._segments.ledger.state,
            announce=self._announce,
            members=lambda: self._mesh.describe(monotonic()) if self._mesh is not None else [],
            addresses=lambda: self._mesh.addresses(),
            address=lambda: self._mesh.address if self._mesh is not None else None,
            python=machine.python_minor(),
            has_segments=lambda peer: bool(self._segments.segments_of(peer)),
            tables=lambda: table_sizes(self, ("zmesh.core.", "zmesh.runtime.")),
        )
        self._socket = NodeSocket(run_dir.socket_of(node_peer(self.node_id)))
        self._watch = Watch()
        self._keepers = Keepers(run_dir, self._timers, lambda: self.core, self._socket, self._watch)
        self._pidfds: dict[PeerID, int] = {}  # of drivers; workers are reaped by the forkserver
        self._slots: dict[PeerID, int] = {}
        self._streams: dict[PeerID, list[Any]] = {}  # {worker: [(fd, LogStream, 1 or 2), ...]}
        self._oom_kills = machine.oom_kills()
        self._running = True
        self._handlers = self._handlers_of_effects()
        if not driver:
            self._open_to_others(settings)
        self._watch_all(driver)

    def _watch_all(self, driver: int) -> None:
        """Sleep on sockets, pipes, signals, and the program a private node is for."""
        self._watch.add(self._socket.fileno(), lambda fd: None)
        for disk in self._segments.disk_filenos():
            self._watch.add(disk, lambda fd: self._segments.disk_done())
        self._watch.add(self._forks.fileno(), self._on_reports)
        self._watch_segments()
        self._wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._watch.add(self._wake_read, self._on_wake)
        self._driver_fd = -1
        if driver:
            fd = open_pidfd(driver)
            if fd is None:
                raise ConfigError(f"the program with pid {driver}, which this private node is for, is gone")
            self._driver_fd = fd
            self._watch.add(fd, lambda fd: self._stop())

    def _make_store(self, settings: dict[str, Any]) -> SegmentServer:
        spill = machine.spill_settings(settings)
        return SegmentServer(
            self._run_dir.segments_socket(),
            machine.store_bytes(settings),
            close=self._closing.put,
            disk=SpillDisk(spill.directory, spill.compression) if spill.bytes_max else None,
            disk_bytes_max=spill.bytes_max,
            unmap=self._unmap,
        )

    def _handlers_of_effects(self) -> dict[type[Any], Callable[[Any], None]]:
        return {
            fx.Send: self._send,
            fx.Spawn: self._spawn,
            fx.StartKeeper: self._keepers.start,
            fx.StopKeeper: self._keepers.stop,
            fx.KillProcess: lambda effect: self._forks.kill(effect.peer),
            fx.DropSegments: lambda effect: self._segments.drop(effect.segments),
            fx.DropUnused: self._drop_unused,
            fx.Warn: lambda effect: print(f"zmesh node: {effect.text}", file=sys.stderr, flush=True),
        }

    def _open_to_others(self, settings: dict[str, Any]) -> None:
        """Become a member of a mesh."""
        from zmesh.runtime.keyring import Keyring, keyring_path
        from zmesh.runtime.mesh import Mesh

        path = keyring_path("default", settings.get("key_file"))
        # One who joins must have the key of those he joins, and who names a file means one that is there: a new key
        # would be of no use, or behind a slip of the pen a mesh of its own.
        old = settings.get("join") or settings.get("key_file")
        keyring = Keyring.load(path) if old else Keyring.load_or_create(path)
        host, port = machine.listen_address(settings)
        self._mesh = Mesh(
            settings | {"host": host, "port": port},
            keyring,
            self.core,
            self._effects,
            self._timers,
            random.Random(os.urandom(16)),
            self._segments,
            self._keepers.relay,
            self._arrived,
        )
        self._handlers |= self._mesh.handlers
        self.record |= {"host": self._mesh.address[0], "port": self._mesh.address[1], "keyring": path}
        self._mesh.start(monotonic())

    def _announce(self, load: dict[str, Any], now: float, urgent: bool) -> None:
        if self._mesh is not None:
            self._mesh.announce(load, now, urgent)

    def _arrived(self, source: PeerID, frame: bytes) -> None:
        """A word for this node came from another host."""
        try:
            message = checked(frame)
        except RemoteProtocolError as error:
            self._complain(source, error)
            return
        self.core.receive(source, message, monotonic())

    def _complain(self, source: PeerID, error: RemoteProtocolError) -> None:
        print(f"zmesh node: {source.hex()}: {error}", file=sys.stderr, flush=True)

    def _forward(self, source: PeerID, to: PeerID, frame: bytes) -> None:
        """A client of this host sends a peer something that only we can reach."""
        if self._is_client(source) and len(to) == PEER_ID_BYTES:
            self.core.forward(source, to, frame, monotonic())

    def _is_client(self, peer: PeerID) -> bool:
        """Whether that may be the name of a process of this host: not this node's own, nor one it speaks for itself."""
        ours = len(peer) == PEER_ID_BYTES and peer[:NODE_ID_BYTES] == self.node_id and not is_guest(peer)
        return ours and peer != self._me and peer not in self._keepers

    def _send(self, effect: fx.Send) -> None:
        if effect.to in self._keepers:
            self._keepers.deliver(effect.to, self._me, effect.message)
            return
        frame = encode(effect.message)
        if effect.to[:NODE_ID_BYTES] == self.node_id and not is_guest(effect.to):
            self._socket.send(effect.to, frame)
        else:
            self.core.forward(self._me, effect.to, frame, monotonic())

    def _on_signal(self, number: int, frame: Any) -> None:
        del number, frame
        self._running = False

    def _on_wake(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(fd, 512)

    def _stop(self) -> None:
        self._running = False

    # The loop.

    def run(self) -> None:
        """Serve until told to stop, or until the driver of a private node is gone."""
        while self._running and not self._forks.died:
            self._work()
            self._sleep()
        if not self._forks.died:
            self._leave()
        self._close()
        if self._forks.died:  # the directory stays, as after every death that nobody asked for
            raise SystemExit("zmesh node: the process that starts workers was killed: so this node ends")
        self._run_dir.remove()

    def _leave(self) -> None:
        """Finish what runs for other hosts, have what lies only here copied, say goodbye; a second signal ends it."""
        ending = self.core.ending()
        if self._mesh is None or not self.core.neighbours.totals:
            if ending:
                self._run_dir.say_farewell({"notes": ending})
            return
        self._running = True
        self.core.drain(monotonic())
        self._serve_until(lambda: self.core.drained, DRAIN_S)
        self.core.evacuation.leave()
        self._serve_until(lambda: self.core.evacuation.done, EVACUATE_S)
        farewell = self.core.evacuation.farewell(len(self.core.directory.held_elsewhere()))
        for note in farewell.notes:
            print(f"zmesh node: {note}", file=sys.stderr, flush=True)
        self._run_dir.say_farewell({"moved": farewell.moved, "lost": farewell.lost, "notes": ending + farewell.notes})
        self._mesh.leave(monotonic())
        self._serve_until(lambda: False, GOODBYE_S)

    def _serve_until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = monotonic() + seconds
        wake = self._timers.set(deadline, lambda now: None)
        while True:
            self._work()
            if condition() or monotonic() >= deadline or not self._running or self._forks.died:
                break
            self._sleep()
        self._timers.cancel(wake)

    def join(self, timeout_s: float) -> None:
        """Serve until the mesh took us in.

        Raises:
            ConfigError: it refused us, or nobody answered in time.
        """
        mesh = self._mesh
        if mesh is None:
            return
        started = monotonic()
        self._serve_until(lambda: mesh.joined is not None or mesh.shut_out, timeout_s)
        if mesh.refused:
            raise ConfigError(f"the mesh refused this node: {mesh.refused}")
        if not mesh.joined:
            raise ConfigError(mesh.why_not_joined(monotonic() - started))

    def _work(self) -> None:
        """Once around: deadlines, what came, what is to be done."""
        self._timers.tick(monotonic())
        self._carry_out()
        mesh = self._mesh
        more = True
        while more or self._effects:
            more = mesh is not None and mesh.drain(monotonic())
            more = self._socket.drain(self._deliver, self._forward) or more
            self._carry_out()
        self._look_at_store()
        if mesh is not None and mesh.changed:
            self._watch.replace(mesh.descriptors(), mesh.ready)

    def _sleep(self) -> None:
        """Until the next deadline, or until something comes."""
        deadline = self._timers.next_deadline()
        timeout_s = None if deadline is None else max(0.0, deadline - monotonic())
        ready = self._watch.wait(timeout_s)
        if self._mesh is not None and deadline is not None and monotonic() - deadline > LAG_S:
            self._mesh.lagged(monotonic() - deadline)
        self._watch.dispatch(ready)

    def _deliver(self, peer: PeerID, frame: bytes) -> None:
        if not self._is_client(peer):
            return
        try:
            message = checked(frame)
        except UnknownWordError as error:
            self._complain(peer, error)
            return
        except RemoteProtocolError as error:
            self.core.expel(peer, str(error), monotonic())
            self._carry_out()
            return
        self.core.receive(peer, message, monotonic())
        if peer not in self._slots and peer not in self._pidfds:
            self._note(peer)
        self._carry_out()

    def _note(self, peer: PeerID) -> None:
        """Watch the process of a client that has come."""
        pid = self.core.pid_of(peer)
        fd = open_pidfd(pid) if pid else None
        if fd is not None:
            self._pidfds[peer] = fd
            self._watch.add(fd, lambda _: self._client_ended(peer))

    def _carry_out(self) -> None:
        while self._effects:
            effects, self._effects[:] = self._effects[:], []
            for effect in effects:
                self._handlers[type(effect)](effect)

    def _black_box(self, slot: int) -> Executing | None:
        found = self._boxes.read(slot)
        if found is None:
            return None
        return Executing(found.owner, found.seq, found.attempt, found.job, found.over, found.start_s)

    # Memory. Looked at while there are workers: only they can be told to use less.

    def _look_at_memory(self, now: float) -> None:
        pids = [worker.pid for worker in self.core.matchmaking.workers.values() if worker.pid]
        anonymous = sum(map(anonymous_bytes, pids)) if self._gauge.limit_bytes else 0
        self.core.memory(self._gauge.read(anonymous), self._usage, now)
        workers = self.core.matchmaking.workers.values()
        wait_s = MEMORY_LOOK_S if any(map(self.core.matchmaking.executes, workers)) else MEMORY_IDLE_LOOK_S
        self._memory_timer = self._timers.set(now + wait_s, self._look_at_memory) if self._slots else 0

    def _usage(self, pid: int, slot: int) -> tuple[int, str, bool]:
        return anonymous_bytes(pid), *self._boxes.label(slot)

    # Workers.

    def _spawn(self, effect: fx.Spawn) -> None:
        if not self._memory_timer:
            self._memory_timer = self._timers.set(monotonic() + MEMORY_LOOK_S, self._look_at_memory)
        self._boxes.clear(effect.slot)
        self._slots[effect.peer] = effect.slot
        out, err = self._forks.spawn(effect.peer, effect.slot)
        streams = [(out, LogStream(), 1), (err, LogStream(), 2)]
        self._streams[effect.peer] = streams
        for fd, stream, number in streams:
            self._watch.add(fd, self._reader(effect.peer, stream, number))

    def _reader(self, peer: PeerID, stream: LogStream, number: int) -> Callable[[int], None]:
        def read(fd: int) -> None:
            try:
                data = os.read(fd, READ_BYTES_MAX)
            except BlockingIOError:
                return
            if not data:
                self._watch.remove(fd)
                return
            self._log(peer, number, stream.feed(data, monotonic()))

        return read

    def _log(self, peer: PeerID, number: int, texts: list[Any]) -> None:
        for text in texts:
            self.core.log(peer, text.name, number, text.text, monotonic())

    def _on_reports(self, fd: int) -> None:
        del fd
        for report in self._forks.reports():
            if isinstance(report, Started):
                self.core.worker_started(report.peer, report.pid, monotonic())
            else:
                assert isinstance(report, Ended)
                self._worker_ended(report)

    def _worker_ended(self, report: Ended) -> None:
        tail = ""
        for fd, stream, number in self._streams.pop(report.peer, ()):
            for _ in range(64):  # what is still in the pipe, 4 MiB at most
                if fd in self._watch:
                    self._watch.read(fd)
            if fd in self._watch:
                self._watch.remove(fd)
            self._log(report.peer, number, stream.end(monotonic()))
            os.close(fd)
            if number == 2:
                tail = stream.tail()
        kills = machine.oom_kills()
        reason = "oom" if report.status == signal.SIGKILL and kills > self._oom_kills else ""
        self._oom_kills = kills
        self.core.worker_ended(report.peer, report.status, monotonic(), tail, reason)
        self._boxes.clear(self._slots.pop(report.peer))

    def _client_ended(self, peer: PeerID) -> None:
        self._watch_no_more(peer)
        self.core.client_ended(peer, monotonic())

    def _watch_no_more(self, peer: PeerID) -> None:
        """A driver is gone, or said goodbye: its process may live on for long, and come again as another."""
        fd = self._pidfds.pop(peer, None)
        if fd is not None:
            self._watch.remove(fd)
            os.close(fd)

    def _drop_unused(self, effect: fx.DropUnused) -> None:
        in_use = dict.fromkeys(self.core.segments_in_use())
        for producer in effect.producers:
            self._watch_no_more(producer)
            self._segments.drop_unused_of(producer, in_use)

    # Shared memory.

    def _watch_segments(self) -> None:
        for fd in self._segments.filenos():
            if fd not in self._watch:
                self._watch.add(fd, self._on_segments)

    def _on_segments(self, fd: int) -> None:
        self._segments.handle(fd)
        if self._segments.listens(fd):
            self._watch_segments()
        elif not self._segments.serves(fd):
            self._watch.remove(fd)

    def _look_at_store(self) -> None:
        """Have others make room for who waits, and come back in time if nobody does."""
        segments, ledger = self._segments, self._segments.ledger
        self.core.store_report(ledger.used_bytes, ledger.capacity_bytes, ledger.disk_bytes)
        if ledger.wants_trim and monotonic() - self._trimmed_s >= TRIM_S:
            ledger.wants_trim = False
            self._trimmed_s = monotonic()
            if self._mesh is not None:
                self._mesh.trim()
            for peer in (*self._pidfds, *self._slots):
                self._socket.send(peer, encode(Trim()))
            self._carry_out()
        due = segments.due()
        if due is not None and not self._store_timer:
            self._store_timer = self._timers.set(due, self._look_later)

    def _look_later(self, now: float) -> None:
        del now
        self._store_timer = 0
        self._segments.look()

    def _unmap(self, peer: PeerID, segments: list[int]) -> None:
        """Ask a process, or our own bulk thread, to let go of segments."""
        if peer != self._me:
            self._socket.send(peer, encode(Unmap(segments)))
        elif self._mesh is not None:
            self._mesh.unmap(segments)

    def _close(self) -> None:
        self._forks.close()
        if self._mesh is not None:
            self._mesh.close()
        self._keepers.close()
        self._socket.close()
        self._segments.close()


def _close_all(descriptors: "queue.SimpleQueue[int]") -> None:
    while True:
        os.close(descriptors.get())


def main(ready: int) -> None:
    """Be a node: settings come as JSON on standard input, readiness goes to descriptor `ready` as one line of JSON."""
    os.umask(0o077)
    try:
        settings = json.load(sys.stdin)
        node = _start(settings, ready)
        node.join(JOIN_TIMEOUT_S)
    except ConfigError as error:
        os.write(ready, json.dumps({"error": str(error)}).encode() + b"\n")
        raise SystemExit(2) from None
    os.write(ready, json.dumps(node.record).encode() + b"\n")
    os.close(ready)
    node.run()


def _start(settings: dict[str, Any], ready: int) -> Node:
    """Take the lock, fork the forkserver, and only then open sockets."""
    machine.total_resources(settings)  # a setting that makes no sense is refused before anything is made
    machine.store_bytes(settings)
    machine.spill_settings(settings)
    raise_fd_limit()
    run_dir = RunDir.create(settings["name"])
    try:
        log = os.open(run_dir.log_path(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.close(null)
        boxes = BlackBoxes(BOX_SLOTS)
        forks = ForkServer.start(
            boxes,
            lambda start: run_worker(start, run_dir),
            [run_dir.lock_fd, ready],
            WORKER_MODULES,
            rehearse(run_dir),
        )
        node = Node(settings, run_dir, forks, boxes, settings["driver"])
        run_dir.write_record(node.record)
        run_dir.say_farewell({})
    except BaseException:
        run_dir.remove()
        raise
    return node
