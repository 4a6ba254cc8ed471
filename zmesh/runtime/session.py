"""What the face calls: one session of this process with a mesh. Values in, entries out; all threads welcome.

Packs and unpacks values, places large ones in shared memory, and drives the reactor while somebody waits. Every rule
about tasks and references is in core/; starting nodes is runtime/connect.py's business.
"""

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from time import monotonic
from typing import Any

from zmesh.core import effects as fx
from zmesh.core.client import ClientCore
from zmesh.core.records import Entry, Inputs, Spec, Task
from zmesh.exceptions import ArgumentError, GetTimeoutError, NotRunningError, SerializationError
from zmesh.object_ref import ObjectRef
from zmesh.runtime import calls, serialization
from zmesh.runtime.actor_session import ActorSession
from zmesh.runtime.environment_calls import EnvironmentCalls
from zmesh.runtime.errors import build_error
from zmesh.runtime.group_calls import GroupCalls
from zmesh.runtime.patience import when_full
from zmesh.runtime.reactor import LOOK_S, Reactor, Waiter, listen, unlisten
from zmesh.runtime.replica_calls import ReplicaCalls
from zmesh.runtime.rounds import RoundCalls
from zmesh.runtime.store import Store
from zmesh.runtime.stream_calls import StreamCalls, settle_future
from zmesh.runtime.values import Values, with_captured
from zmesh.wire.ids import NODE_ID_BYTES, PeerID
from zmesh.wire.messages import ERROR, FAILED, INLINE, PENDING, STORED, UNIT

INLINE_BYTES_MAX = 64 * 1024  # larger values go to shared memory: Source: perf/arrays.py, a put costs about 20 us


class Session(GroupCalls, EnvironmentCalls, ReplicaCalls, RoundCalls, StreamCalls, Values):
    """A client of a mesh.

    Args:
        core: the client's state.
        reactor: what drives it.
        store: shared memory of this host.
        job: PeerID of the driver whose work this is; a driver's own.
    """

    def __init__(self, core: ClientCore, reactor: Reactor, store: Store, job: PeerID) -> None:
        Values.__init__(self)
        self.core = core
        self.reactor = reactor
        self.store = store
        self.actors = ActorSession(self)
        self.job = job
        self.information: dict[str, Any] = {"node": core.node[:NODE_ID_BYTES].hex(), "pid": 0}
        self.depth = 0  # of the tasks this process submits now
        self.group: Any = None  # the placement group of the task this process runs: see zmesh/options.py
        self.dropped = reactor.dropped
        self.nudge = reactor.nudge
        self._specs: dict[Any, Spec] = {}  # {(digest, options key): spec}
        self.packages: dict[Any, Any] = {}  # {(path, module?): (files, package)} as they were packed last
        self.shared: dict[str, Any] = {}  # {digest: (package, ref)} of what this process packed
        self._futures: queue.SimpleQueue[Callable[[], None] | None] | None = None
        self._task_thread = 0  # ident of a worker's main thread
        self.closed = False  # also in a forked child, which must start anew

    # Submitting.

    def spec(
        self, function: Any, name: str, shape: dict[str, int], num_returns: int, options: dict[str, Any], key: Any
    ) -> Spec:
        """Register a function with its options; the same content and options give the same spec.

        Raises:
            SerializationError: the function captures something that cannot be pickled.
        """
        blob, refs = serialization.dumps_function((function, options.pop("retry_classes", ())))
        digest = hashlib.blake2b(blob, digest_size=16).digest()
        held = [ref._entry for ref in refs]
        self._promote(held)
        full = (digest, key, self.job)
        with self.reactor.lock:
            spec = self._specs.get(full)
            if spec is None:
                spec = self._specs[full] = self.core.new_spec(
                    self.job,
                    name,
                    shape,
                    num_returns=num_returns,
                    digest=digest,
                    made_at=calls.call_site(),
                    blob=blob,
                    **options,
                )
            spec.held = tuple(held)
        return spec

    def submit(self, spec: Spec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        """Submit one call; never waits for the work. Returns the task, with a reference counted for each result.

        Raises:
            SerializationError: an argument cannot be pickled.
            StoreFullError: large arguments do not fit.
        """
        payload: Any = None if kwargs else calls.pack_plain(args)
        inputs = None
        if payload is None or len(payload) > INLINE_BYTES_MAX:
            payload, inputs = self._pack_call(spec, args, kwargs)
        if spec.held:
            inputs = with_captured(spec, inputs)
        reactor = self.reactor
        with reactor.lock:
            reactor.holder = threading.get_ident()
            now = monotonic()
            task = self.core.submit(spec, payload, inputs, self.depth, now)
            if spec.stores:
                self.core.references.share(task).made_at = calls.call_site()
            if now - reactor.last_pump > LOOK_S:
                reactor.pump(now)
            elif self.core.effects:
                reactor.send_out(now)
            reactor.holder = 0
        if reactor.signalled is not None:
            reactor.raise_signal()
        return task

    def _pack_call(self, spec: Spec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Inputs | None]:
        """Pack arguments with refs, keywords or large values; top-level refs become placeholders."""
        self.reactor.check_usable()
        deps: list[Entry] = []

        def place(value: Any) -> Any:
            if isinstance(value, ObjectRef):
                value._session.check_open()
                deps.append(value._entry)
                return calls.Placeholder(len(deps) - 1)
            return value

        call = (tuple(place(value) for value in args), {name: place(value) for name, value in kwargs.items()})
        try:
            packed = serialization.pack(call, f"arguments of {spec.name}")
        except SerializationError as error:
            raise _in_terms_of_the_call(error, spec.name, args, kwargs) from None
        held = [ref._entry for ref in packed.refs]
        if held:
            self._promote(held)
        payload: Any
        if packed.nbytes <= INLINE_BYTES_MAX:
            payload = serialization.to_inline(packed)
        else:
            location, site = self._store(packed), calls.call_site()
            with self.reactor.lock:
                entry = self.core.put(STORED, location, [], site)
                entry.refs = 0  # the task alone holds it
            held.append(entry)
            payload = (*location, entry.seq)
        return payload, Inputs(deps, held) if deps or held else None

    def _store(self, packed: serialization.Packed) -> tuple[int, int, PeerID]:
        """Copy a packed value into shared memory; returns its location."""
        nbytes = serialization.segment_bytes(packed)
        slab = self.store.allocate(nbytes)
        serialization.write_segment(packed, slab.view)
        self.store.commit(slab, nbytes)
        return (slab.segment, nbytes, self.core.me)

    def pack_value(self, value: Any, what: str) -> tuple[int, Any, list[Entry], int]:
        """Return (status, value for the wire, entries of refs inside, size in a message in bytes)."""
        packed = serialization.pack(value, what)
        inside = [ref._entry for ref in packed.refs]
        if inside:
            self._promote(inside)
        if packed.nbytes <= INLINE_BYTES_MAX:
            blob = serialization.to_inline(packed)
            return INLINE, blob, inside, len(blob)
        return STORED, self._store(packed), inside, 64

    def put(self, value: Any) -> "ObjectRef[Any]":
        """Own a value; returns its ref.

        Raises:
            ArgumentError: the value is itself a ref.
            SerializationError, StoreFullError: it cannot be kept.
        """
        if isinstance(value, ObjectRef):
            raise ArgumentError("put() of an ObjectRef: wrap it in a list if you want to pass the ref itself")
        self.reactor.check_usable()
        status, packed, inside, _ = self.pack_value(value, "value of put()")
        site = calls.call_site() if status == STORED else ""
        with self.reactor.lock:
            entry = self.core.put(status, packed, inside, site)
        return ObjectRef(entry, self)

    def _promote(self, entries: list[Entry]) -> None:
        """Have the node keep these before anybody else hears of them; waits for its answer."""
        if not entries:
            return
        with self.reactor.lock:
            ticket = self.core.references.promote(entries)
        self.redeem(ticket)

    def redeem(self, ticket: Entry | None, timeout: float | None = None) -> Any:
        """Wait for the answer to a request to a node, and return it."""
        if ticket is None:
            return None
        self._wait_entries([ticket], 1, timeout)
        if ticket.status == PENDING:
            raise GetTimeoutError(f"the node did not answer within {timeout:g} s" if timeout else "no answer")
        if ticket.status == ERROR:
            raise build_error(ticket.value)
        return ticket.value

    # Waiting.

    def _wait_entries(
        self, entries: list[Entry], needed: int, timeout: float | None, *, first_error: bool = False
    ) -> list[Entry]:
        """Wait until `needed` of the entries resolve, or the timeout; returns those that were pending at first."""
        deadline = None if timeout is None else monotonic() + timeout
        reactor, core = self.reactor, self.core
        reactor.check_usable()
        waiter = Waiter(needed, first_error=first_error)
        listening: list[Entry] = []

        def register() -> None:
            for entry in entries:
                if entry.status == PENDING:
                    listen(entry, waiter)
                    listening.append(entry)
                    if entry.share is not None:
                        core.fetch(entry)
                else:
                    waiter.resolved(entry)

        try:
            self.wait_for(waiter, deadline, register)
        finally:
            if needed - waiter.remaining < len(entries):  # some are pending
                with reactor.lock:
                    for entry in listening:
                        if entry.status == PENDING:
                            unlisten(entry, waiter)
        return listening

    def get(self, entries: list[Entry], timeout: float | None, *, writable: bool = False) -> list[Any]:
        """Return the values of entries; the first error that happens is raised, whichever entry it belongs to.

        Raises:
            GetTimeoutError: with what the first pending one waits for.
        """
        deadline = monotonic() + timeout if timeout else None  # 0: only whether there are values, wherever they lie
        pending = [entry for entry in entries if entry.status == PENDING]
        if len(pending) == 1 and len(entries) == 1 and timeout is None:
            self._wait_one(pending[0])
        elif pending:
            self._wait_entries(pending, len(pending), timeout, first_error=True)
            for entry in pending:
                if entry.status in (FAILED, ERROR):
                    self.value(entry)
            late = [entry for entry in pending if entry.status == PENDING]
            if late:
                with self.reactor.lock:
                    why = self.core.waits_for(late[0])
                raise GetTimeoutError(
                    f"{len(late)} of {len(entries)} objects were not there after timeout={timeout} s; the first: {why}"
                )
        elif self.core.timers.next_deadline() is not None and monotonic() - self.reactor.last_pump > 0.1:
            self.reactor.nudge()
        if len(self.core.victim.totals) > 1 or deadline is not None:
            self._localize(entries, deadline)
        if writable:
            return [self.value(entry, writable=True) for entry in entries]
        value = self.value
        if len(entries) == 1 or not self._task_thread:
            return [value(entry) for entry in entries]
        return when_full(lambda: [value(entry) for entry in entries])

    def _wait_one(self, entry: Entry) -> None:
        """Wait for one entry without limit: what a program does most."""
        reactor = self.reactor
        reactor.check_usable()
        waiter = Waiter(1)

        def register() -> None:
            if entry.status == PENDING:
                listen(entry, waiter)
                if entry.share is not None:
                    self.core.fetch(entry)
            else:
                waiter.satisfied = True

        self.wait_for(waiter, None, register)

    def wait_for(self, waiter: Waiter, deadline: float | None, prepare: Callable[[], None] | None = None) -> bool:
        """Wait as Reactor.wait does; a Ctrl-C in a program also cancels what it has submitted."""
        try:
            in_task = threading.get_ident() == self._task_thread
            return self.reactor.wait(waiter, deadline, in_task=in_task, prepare=prepare)
        except KeyboardInterrupt:
            if not self._task_thread:
                self.cancel_all()
            raise

    def wait(self, entries: list[Entry], num_returns: int, timeout: float | None) -> None:
        """Wait until `num_returns` of the entries have a value or an error."""
        self._wait_entries(entries, num_returns, timeout)

    def completed(self, entries: list[Entry], timeout: float | None) -> Iterator[Entry]:
        """Yield the entries as they resolve, in that order; linear in their number."""
        deadline = None if timeout is None else monotonic() + timeout
        reactor = self.reactor
        reactor.check_usable()
        waiter = Waiter(1)
        with reactor.lock:
            for entry in entries:
                if entry.status == PENDING:
                    listen(entry, waiter)
                    self.core.fetch(entry)
                else:
                    waiter.ready.append(entry)
        left = len(entries)
        while left:
            while waiter.ready:
                left -= 1
                yield waiter.ready.popleft()
            if not left:
                return
            with reactor.lock:
                waiter.remaining = 0 if waiter.ready else 1
                waiter.satisfied = bool(waiter.ready)
            if not self.wait_for(waiter, deadline):
                raise GetTimeoutError(f"{left} of {len(entries)} objects were not there after timeout={timeout} s")

    # References that travel.

    def note(self, ref: "ObjectRef[Any]") -> bytes:
        """A ref is being pickled: note it for the value under way; returns its ID."""
        self.check_open()
        serialization.note_ref(ref)
        return self.object_id(ref._entry)

    def object_id(self, entry: Entry) -> bytes:
        """Return the ObjectID of an entry."""
        return self.core.references.oid(entry)

    # The rest of the face.

    def cancel(self, entry: Entry, *, force: bool, recursive: bool) -> None:
        """Cancel the task that makes this entry, if it is ours and unresolved."""
        task = self.core.tasks.maker_of(entry)
        if task is not None:
            self._do(lambda: self.core.cancel(task, monotonic(), force=force, recursive=recursive))

    def cancel_all(self) -> None:
        """Cancel everything this program submitted and has no result of; does not wait."""
        self._do(lambda: self.core.cancel_all(monotonic()))

    def check_open(self) -> None:
        """Check that what belongs to this session is of any use. Before the lock: it may have been held at a fork.

        Raises:
            MeshError: it was shut down, or belongs to the process this one was forked from.
        """
        if self.closed:
            self.reactor.check_usable()

    def _do(self, action: Callable[[], None]) -> None:
        """Run one input of the core under the lock and carry out what it asks for.

        Raises:
            MeshError: this session was shut down, or belongs to the process this one was forked from.
        """
        reactor = self.reactor
        self.check_open()
        with reactor.lock:
            reactor.holder = threading.get_ident()
            action()
            reactor.pump(monotonic())
            reactor.holder = 0
        if reactor.signalled is not None:
            reactor.raise_signal()

    def status(self, timeout: float | None = 10.0, node: str = "") -> dict[str, Any]:
        """Ask our node, or another member by its ID, what is going on."""
        self.reactor.check_usable()
        if self.core.lost is not None:
            raise build_error(self.core.lost)
        with self.reactor.lock:
            ticket = self.core.ask_status(bytes.fromhex(node) if node else None)
        answer: dict[str, Any] = self.redeem(ticket, timeout)
        return answer

    def total_cpus(self) -> float:
        """Return the CPUs of the node."""
        welcome = self.core.welcome
        return welcome.total.get("CPU", 0) / UNIT if welcome is not None else 1.0

    def waits_for(self, entry: Entry) -> str:
        """Say why an entry has no value yet."""
        with self.reactor.lock:
            return self.core.waits_for(entry)

    def future(self, ref: "ObjectRef[Any]") -> "Future[Any]":
        """Return a future of the ref's value; it is set by a thread of its own."""
        future: Future[Any] = Future()
        entry = ref._entry

        def settle(_: Entry) -> None:
            # `ref` is captured: the object must live until its value was taken.
            self._later(lambda: settle_future(future, lambda: self.value(ref._entry)))

        waiter = Waiter(1, callback=settle)
        with self.reactor.lock:
            if entry.status == PENDING:
                listen(entry, waiter)
                self.core.fetch(entry)
            else:
                settle(entry)
        self.nudge()
        return future

    def _later(self, action: Callable[[], None]) -> None:
        """Run `action` in the thread that settles futures: user callbacks never run under the lock."""
        if self._futures is None:
            self._futures = queue.SimpleQueue()
            threading.Thread(target=_settle_all, args=(self._futures,), name="zmesh-futures", daemon=True).start()
        self._futures.put(action)

    def recycle(self, effect: fx.Recycle) -> None:
        """Let the store write segments again; none named: give back all that lie free. Under the lock."""
        for segment in effect.segments:
            self.store.recycle(segment)
        if not effect.segments:
            self.store.trim()

    def in_task_thread(self) -> None:
        """This thread runs tasks: its waits give the CPU back."""
        self._task_thread = threading.get_ident()

    def in_actor(self) -> Any:
        """Return the actor this process is: none, if it is no worker."""
        return None

    @property
    def lost(self) -> bool:
        """Whether the node is gone."""
        return self.core.lost is not None

    def shutdown(self) -> None:
        """Leave the mesh."""
        self.close()

    def close(self, linger_ms: int = 500) -> None:
        """End the session; refs of it are dead from now on."""
        if self.closed:
            return
        self.closed = True
        if self._futures is not None:
            self._futures.put(None)
        self.reactor.close(linger_ms)
        self.store.close()


def _settle_all(actions: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (action := actions.get()) is not None:
        action()


def _in_terms_of_the_call(
    error: SerializationError, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> SerializationError:
    """Return the error with the path as the user wrote the call: `args[0].model.lock`."""
    named = [(f"args[{index}]", value) for index, value in enumerate(args)]
    named += [(f"kwargs[{key!r}]", value) for key, value in kwargs.items()]
    for where, value in named:
        if not isinstance(value, ObjectRef):
            try:
                serialization.pack(value, where)
            except SerializationError as found:
                return SerializationError(f"{name}.remote(): {found}", found.path)
    return error


_current: Session | None = None


def _forget() -> None:
    """Start anew in a forked child, if it uses zmesh at all."""
    if _current is not None:
        _current.closed = True
        _current.reactor.disown()
        set_current(None)


os.register_at_fork(after_in_child=_forget)


def current() -> Session:
    """Return the session of this process.

    Raises:
        NotRunningError: there is none.
    """
    if _current is None:
        raise NotRunningError("zmesh is not running in this process: call zmesh.init()")
    return _current


def set_current(session: Session | None) -> None:
    """Make `session` the one of this process."""
    global _current
    _current = session


def unset_current(session: Session) -> None:
    """`session` has ended. One that only looked at a node was never the one of this process."""
    if _current is session:
        set_current(None)


def get_current() -> Session | None:
    """Return the session of this process, or None."""
    return _current
