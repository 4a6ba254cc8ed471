"""A worker process: its main thread reads, runs and writes; the background thread answers only while a task runs.

Which task is next, when results leave and what is given back is core/worker.py's business. Here user code is called,
and nothing that it does may cost more than this process: the forkserver reaps it, the node tells the victim.
"""

import atexit
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

from zmesh.core import effects as fx
from zmesh.core.logs import LABEL
from zmesh.core.records import Copy, Entry, outside_group
from zmesh.core.running import Running, WorkSpec
from zmesh.core.timers import Timers
from zmesh.core.worker import WorkerCore
from zmesh.exceptions import ObjectLostError
from zmesh.object_ref import ObjectRef
from zmesh.runtime import calls, serialization, session
from zmesh.runtime.actor_main import ActorProcess
from zmesh.runtime.environments import Environment
from zmesh.runtime.errors import build_error
from zmesh.runtime.forkserver import WorkerStart, describe_status
from zmesh.runtime.patience import when_full
from zmesh.runtime.reactor import Reactor, Waiter
from zmesh.runtime.rundir import RunDir
from zmesh.runtime.session import INLINE_BYTES_MAX, Session
from zmesh.runtime.sockets import ClientSockets
from zmesh.runtime.store import Store
from zmesh.wire.ids import NODE_ID_BYTES, node_peer
from zmesh.wire.messages import (
    CANCELLED,
    END,
    ERROR,
    FAILED,
    INLINE,
    LOST,
    MANY,
    PENDING,
    RETRYABLE,
    STORED,
    UNIT,
    Attach,
    Hello,
)

CAPTURED_S = 10.0  # a function that captured refs holds them here for so long after its last call


class LabelledOutput(io.RawIOBase):
    """A worker's stdout or stderr: says which function writes, whenever that changes."""

    def __init__(self, fd: int, label: Callable[[], str]) -> None:
        self._fd = fd
        self._label = label
        self._last = ""

    def writable(self) -> bool:
        """Say that it is."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the pipe."""
        return self._fd

    def write(self, data: Any) -> int:
        """Write all of `data`; blocks while the node is behind."""
        label = self._label()
        prefix = b""
        if label != self._last:
            self._last = label
            prefix = LABEL + label.encode(errors="replace") + b"\n"
        view = memoryview(prefix + bytes(data))
        while view:
            view = view[os.write(self._fd, view) :]
        return len(data)


class Worker:
    """One worker process from its first to its last breath."""

    def __init__(self, start: WorkerStart, run_dir: RunDir, sockets: ClientSockets) -> None:
        self._start = start
        self.pid = os.getpid()
        self._functions: dict[bytes, Any] = {}  # {digest: (function, classes to retry) or the error of loading it}
        # {digest of a function that captured refs, which it holds here: last used}
        self._capturing: dict[bytes, float] = {}
        self._forget_timer = 0  # set while there are any
        self._in_user_code: Any = None  # (owner, seq, attempt) while an interrupt may be raised
        self._interrupt: Any = None  # the same of a task to interrupt, that was not yet in user code
        self._exiting = False
        # The node may have been started with some GPUs hidden: its first is not the machine's.
        self._visible_gpus = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        self.running: Running | None = None
        self.actor: ActorProcess | None = None
        self._name = ""
        self._enter = start.boxes.entering(start.slot)
        self._leave = start.boxes.leaving(start.slot)
        self._label = start.boxes.labelling(start.slot)
        self._labelled_spec: WorkSpec | None = None  # what the black box says we run
        self.core = WorkerCore(start.peer, [], Timers(), describe_status, self._attached)
        self.sockets = sockets
        self.store = Store(run_dir.segments_socket(), start.peer, late=True)
        handlers: dict[type[Any], Callable[[Any], None]] = {
            fx.Recycle: lambda effect: self.session.recycle(effect),
            fx.UnmapSegments: lambda effect: self.store.unmap(effect.segments),
            fx.Interrupt: self._interrupt_task,
            fx.Exit: self._exit,
            fx.Show: lambda effect: None,
            fx.Warn: lambda effect: print(f"zmesh worker: {effect.text}", file=sys.stderr),
        }
        self.reactor = Reactor(self.core, self.sockets, handlers, None)
        self.reactor.look = self._look
        self.session = WorkerSession(self)
        self.environment = Environment(self._fetch_package)

    def run(self) -> None:
        """Work until told to stop."""
        signal.signal(signal.SIGUSR1, self._on_interrupt)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout = self._labelled(1)
        sys.stderr = self._labelled(2)
        session.set_current(self.session)
        self.session.in_task_thread()
        self.reactor.start(handle_sigint=False)
        with self.reactor.lock:
            self.core.effects.append(fx.Send(self.core.node, Hello("worker", self.pid)))
            self.reactor.pump(monotonic())
        self.work()
        atexit._run_exitfuncs()  # what user code registered, as at the end of any program; forks skip it otherwise
        self.session.close(linger_ms=1000)

    def _labelled(self, fd: int) -> Any:
        raw = LabelledOutput(fd, lambda: self._name)
        return io.TextIOWrapper(
            raw, encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=True
        )

    def current(self) -> Running | None:
        """Return the task or call this thread runs."""
        return self.running if self.actor is None else self.actor.current()

    def out_of_task(self) -> None:
        """What was the running task's code waits for calls now: a signal for it has come too late."""
        self._in_user_code = None

    @property
    def interrupted(self) -> bool:
        """Whether the running task is to be cancelled."""
        return self._interrupt is not None and self._interrupt == self._in_user_code

    def called(self, name: str) -> None:
        """Say in logs that this function runs now."""
        self._name = name

    # The loop.

    def work(self) -> None:
        """Run one task after the other until told to stop."""
        reactor, core = self.reactor, self.core
        idle = Waiter(1)
        me = threading.get_ident()
        running: Running | None = None

        def take() -> bool:
            """Take the next task, if there is one: asked under the lock after each look at the sockets, by anybody."""
            nonlocal running
            if running is None:
                running = core.next(monotonic())
            return running is not None or self._exiting

        while not self._exiting:
            if running is None:
                idle.satisfied = False
                reactor.wait_until(idle, take)
                continue
            outcome = self._run(running)
            with reactor.lock:
                reactor.holder = me
                now = monotonic()
                core.finished(*outcome, now)
                running = core.next(now)
                if core.effects:
                    reactor.send_out(now)
                reactor.holder = 0

    def _look(self, now: float) -> float | None:
        due = [self.core.thief.stalled(now), self.core.server.stalled(now)]
        return min((time for time in due if time is not None), default=None)

    # One task.

    def _run(self, running: Running) -> tuple[int, Any, list[bytes], int]:
        """Run one task; returns (status, value, ObjectIDs inside, bytes) for its Done."""
        spec = running.spec
        self.running = running
        self._name = spec.name
        self.session.depth = running.depth + 1
        group = spec.options.get("group")
        self.session.group = group if group is not None and group["capture"] else None
        if spec is not self._labelled_spec:
            self._labelled_spec = spec
            self._label(spec.name, not spec.options.get("once"))
        self._enter(running.victim, running.seq, running.attempt, spec.job, running.started)
        try:
            try:
                self._in_user_code = key = (running.victim, running.seq, running.attempt)
                if self._interrupt == key:
                    raise KeyboardInterrupt
                return self._call(running, spec)
            except KeyboardInterrupt:
                self._in_user_code = None
                if self._interrupt == (running.victim, running.seq, running.attempt):
                    return CANCELLED, None, [], 0
                raise
        except BaseException as error:
            self._in_user_code = None
            return self.failure(error, spec)
        finally:
            self._in_user_code = self._interrupt = None
            if os.getpid() != self.pid:
                os._exit(0)  # user code forked and its child came back here: it is not this worker
            self._leave()
            self.running = None

    def _call(self, running: Running, spec: WorkSpec) -> tuple[int, Any, list[bytes], int]:
        loaded = self._functions.get(spec.digest)
        if loaded is None:
            self._enter_environment(spec)  # what the function imports may be part of it
            loaded = self._load(spec)
        elif spec.digest in self._capturing:
            self._capturing[spec.digest] = monotonic()
        try:
            args, kwargs = self._arguments(running)
        except _ArgumentLost as lost:  # no attempt: the owner may know another place, or make it again
            return LOST, [lost.named], [], 64
        plan = spec.options.get("actor")
        if plan is not None:
            self.actor = ActorProcess(self, running, plan)
            return self.actor.live(loaded[0], args, kwargs)
        if spec.num_returns == -1:
            return self.stream(running, loaded[0](*args, **kwargs))
        value = loaded[0](*args, **kwargs)
        del args, kwargs
        return self.packed(running, spec, value)

    def packed(self, running: Running, spec: WorkSpec, value: Any) -> tuple[int, Any, list[bytes], int]:
        """Return a result as `Done` carries it, and its size."""
        if spec.num_returns == 1:
            plain = calls.pack_plain_value(value)
            if plain is not None and len(plain) <= INLINE_BYTES_MAX:
                return INLINE, plain, [], len(plain)
            status, packed, inside, size = self.session.pack_value(value, f"result of {spec.name}")
            oids = self._give(running, inside)
            del value  # only now: it may have the last ref, and the background thread lets go of what nobody holds
            return status, packed, oids, size
        return self._many(running, spec, value)

    def _load(self, spec: WorkSpec) -> Any:
        borrows = self.session.borrows
        loaded = self._functions[spec.digest] = serialization.loads(spec.blob)
        if self.session.borrows != borrows:
            self._capturing[spec.digest] = monotonic()
            with self.reactor.lock:
                if not self._forget_timer:
                    self._forget_timer = self.core.timers.set(monotonic() + CAPTURED_S, self._forget_unused)
        return loaded

    def _forget_unused(self, now: float) -> None:
        """Let go of functions that hold refs and were not called for a while; called again, they are loaded again."""
        for digest in [digest for digest, used in self._capturing.items() if used + CAPTURED_S <= now + 1e-6]:
            del self._capturing[digest]
            self._functions.pop(digest, None)
        self._forget_timer = 0
        if self._capturing:
            due = min(self._capturing.values()) + CAPTURED_S
            self._forget_timer = self.core.timers.set(due, self._forget_unused)

    def _enter_environment(self, spec: WorkSpec) -> None:
        described = spec.options.get("env")
        if described is not None:
            self.environment.enter(described)
            self.session.runtime_env, self.session.runtime_env_here = described, self.environment.here

    def _fetch_package(self, oid: bytes) -> bytes:
        ref: ObjectRef[bytes] = ObjectRef(self.session.borrow(oid), self.session)
        data: bytes = self.session.get([ref._entry], None)[0]
        return data

    def arguments(self, running: Running) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Unpack the arguments of a call.

        Raises:
            ObjectLostError: the bytes of one are gone.
        """
        try:
            return self._arguments(running)
        except _ArgumentLost as lost:
            raise lost.error from None
        finally:
            # In this order: who notes that a caller is dead asks for the first after it has set the second.
            running.unpacked = True
            if self.core.bereaved:
                self._mourn()

    def _mourn(self) -> None:
        with self.reactor.lock:
            self.reactor.holder = threading.get_ident()
            self.core.mourn()
            self.reactor.pump(monotonic())
            self.reactor.holder = 0

    def _arguments(self, running: Running) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if running.deps == () and type(running.args) is bytes:
            plain: tuple[tuple[Any, ...], dict[str, Any]] = serialization.unpack_inline(running.args)
            return plain
        for status, value, _ in running.deps:
            if status not in (INLINE, STORED):
                raise build_error(value) if status == ERROR else serialization.unpack_error(value)
        if type(running.args) is not bytes and len(running.args) == 2:  # what was to be copied here is lost
            raise build_error(running.args[1])
        return when_full(lambda: self._unpacked(running))

    def _unpacked(self, running: Running) -> tuple[tuple[Any, ...], dict[str, Any]]:
        values = [self._dependency(running, status, value, key) for status, value, key in running.deps]
        if type(running.args) is bytes:
            args, kwargs = serialization.unpack_inline(running.args)
        else:
            *spot, key = running.args
            key = (key, 0) if isinstance(key, int) else key
            args, kwargs = serialization.unpack_segment(self._view(running, spot, key))
        place = calls.fill
        return place(args, values), dict(zip(kwargs, place(tuple(kwargs.values()), values), strict=True))

    def _dependency(self, running: Running, status: int, value: Any, key: Any) -> Any:
        if status == INLINE:
            return serialization.unpack_inline(value)
        return serialization.unpack_segment(self._view(running, value, key))

    def _view(self, running: Running, spot: Sequence[Any], key: Any) -> memoryview:
        """Map an object of the victim's at a place; its key is told to the victim if views outlive the task."""
        segment, nbytes, producer = spot
        references, unpinned, nudge = self.core.references, self.reactor.unpinned, self.reactor.nudge
        with self.reactor.lock:
            full = references.view_opened(running.victim, key)

        def on_unpin() -> None:
            unpinned.append(lambda: references.view_closed(full))
            nudge()

        try:
            return self.store.view(segment, nbytes, on_unpin, writable=False)
        except BaseException as error:
            with self.reactor.lock:
                references.view_closed(full)
            if isinstance(error, ObjectLostError) and not isinstance(
                key, Copy
            ):  # copies are here as long as they are used
                raise _ArgumentLost((key, segment, producer), error) from None
            raise

    def _give(self, running: Running, inside: list[Any]) -> list[bytes]:
        """Keep the refs inside a result alive until the victim holds them itself; returns their IDs."""
        if not inside:
            return []
        with self.reactor.lock:
            self.core.give(running, inside)
        return [self.core.references.oid(entry) for entry in inside]

    def _many(self, running: Running, spec: WorkSpec, value: Any) -> tuple[int, Any, list[bytes], int]:
        count = spec.num_returns
        if count == 0:
            return INLINE, calls.NONE, [], 8
        values = list(value)
        if len(values) != count:
            raise ValueError(f"{spec.name} has num_returns={count}, but returned {len(values)} values")
        results = []
        total = 0
        for index, one in enumerate(values):
            status, packed, inside, size = self.session.pack_value(one, f"result {index} of {spec.name}")
            results.append((status, packed, self._give(running, inside)))
            total += size
        return MANY, results, [], total

    def stream(self, running: Running, values: Iterator[Any]) -> tuple[int, Any, list[bytes], int]:
        """Send each yielded value at once; wait while the reader is too far behind."""
        if hasattr(values, "__aiter__"):
            values = _from_async(values)
        if not hasattr(values, "__next__"):
            raise TypeError(f'{running.spec.name} has num_returns="streaming", but is no generator')
        reactor, core = self.reactor, self.core
        room = Waiter(1)
        in_task = threading.current_thread() is threading.main_thread()
        for value in values:
            self.send_item(running, value)
            if not core.may_yield(running):
                room.satisfied = False
                reactor.wait_until(room, lambda: core.may_yield(running), in_task=in_task)
            del value
            if running.stopped is not None:
                if hasattr(values, "close"):
                    values.close()  # raises GeneratorExit in it, where it yielded
                break
        return self.stream_ended(running)

    @staticmethod
    def stream_ended(running: Running) -> tuple[int, Any, list[bytes], int]:
        """Return how a stream ends as `Done` carries it."""
        return running.stopped or END, running.items, [], 0

    def send_item(self, running: Running, value: Any) -> None:
        """Send what a stream yielded."""
        reactor = self.reactor
        status, packed, inside, _ = self.session.pack_value(value, f"item of {running.spec.name}")
        oids = self._give(running, inside)
        with reactor.lock:
            reactor.holder = threading.get_ident()
            self.core.item(running, status, packed, oids, monotonic())
            reactor.pump(monotonic())
            reactor.holder = 0
        if reactor.signalled is not None:
            reactor.raise_signal()

    def failure(self, error: BaseException, spec: WorkSpec) -> tuple[int, Any, list[bytes], int]:
        """Return what user code raised as `Done` carries it, and its size."""
        blob = serialization.pack_error(error, spec.name, self.pid)
        status = FAILED
        if spec.options.get("retry"):
            loaded = self._functions.get(spec.digest)
            if loaded is None and spec.blob:
                loaded = self._load(spec)
            classes = loaded[1] if loaded is not None else ()
            if not classes or isinstance(error, tuple(classes)):
                status = RETRYABLE
        error.__traceback__ = None
        return status, blob, [], len(blob)

    # Effects.

    def _exit(self, effect: fx.Exit) -> None:
        del effect
        self._exiting = True
        self.reactor.nudge()

    def _interrupt_task(self, effect: fx.Interrupt) -> None:
        if self.actor is not None and self.actor.interrupt(effect.owner, effect.seq):
            return
        self._interrupt = (effect.owner, effect.seq, effect.attempt)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _on_interrupt(self, number: int, frame: Any) -> None:
        """Raise in the task to cancel, and nowhere else: not in its neighbour, not in our own loop."""
        if self._interrupt is None or self._in_user_code != self._interrupt:
            return
        if self.reactor.holder == threading.get_ident():
            self.reactor.note_signal(number, frame, self._on_interrupt)
            return
        raise KeyboardInterrupt

    def _attached(self, message: Attach) -> None:
        """Become a process of the job: its directory, its import path, the GPUs it was given."""
        config = message.config
        if config:
            with contextlib.suppress(OSError):
                os.chdir(config["cwd"])
            known = dict.fromkeys(sys.path)
            sys.path[:] = [*config["sys_path"], *(path for path in known if path not in config["sys_path"])]
            self.session.actors.namespace = config.get("namespace", self.session.actors.namespace)
        self.session.job = message.job
        cpus = max(1, outside_group(message.shape).get("CPU", 0) // UNIT)
        if "ZMESH_KEEP_THREADS" not in os.environ:
            os.environ["OMP_NUM_THREADS"] = str(cpus)
        visible = self._visible_gpus
        names = [visible[gpu] if gpu < len(visible) else str(gpu) for gpu in message.gpus]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names)
        for name, value in self.environment.variables.items():
            os.environ[name] = value


class WorkerSession(Session):
    """A worker's session: it listens for thieves only once its tasks submit tasks."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker.core, worker.reactor, worker.store, b"")
        self.worker = worker

    def spec(self, *args: Any, **kwargs: Any) -> Any:
        """As Session.spec; the first one opens the ROUTER."""
        with self.reactor.lock:
            self.worker.sockets.listen()
        return super().spec(*args, **kwargs)

    def get(self, entries: list[Entry], timeout: float | None, *, writable: bool = False) -> list[Any]:
        """As Session.get."""
        actor = self.worker.actor
        if actor is not None and any(entry.status == PENDING for entry in entries):
            actor.about_to_wait()
        return super().get(entries, timeout, writable=writable)

    def in_actor(self) -> "ActorProcess | None":
        """Return the actor this process is, if it is one."""
        return self.worker.actor

    def own_handle(self) -> Entry:
        """Return the entry of a handle of the actor this process is."""
        assert self.worker.actor is not None
        return self.worker.actor.own_handle()

    def _caller(self) -> bytes:
        running = self.worker.current() if self.worker.actor is not None else None
        return b"" if running is None else running.victim


class _ArgumentLost(Exception):
    """The bytes of an argument are not where they were said to lie; `named` is what Done says of it."""

    def __init__(self, named: tuple[Any, int, bytes], error: ObjectLostError) -> None:
        super().__init__()
        self.named = named
        self.error = error


def _from_async(values: Any) -> Iterator[Any]:
    """Drive an async generator to its end."""
    import asyncio

    loop = asyncio.new_event_loop()
    try:
        while True:
            try:
                yield loop.run_until_complete(values.__anext__())
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(values.aclose())
        loop.close()


def run_worker(start: WorkerStart, run_dir: RunDir) -> None:
    """Be a worker: called in the freshly forked process."""
    sockets = ClientSockets(start.peer, node_peer(start.peer[:NODE_ID_BYTES]), run_dir.socket_of)
    Worker(start, run_dir, sockets).run()
