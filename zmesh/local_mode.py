"""`init(local=True)`: every task runs inline, at `.remote()`, in the calling thread, so that breakpoints work.

The same results and errors as with workers, and nothing else: no processes, no sockets, no retries of dead workers.
Values are pickled as they would be, so that what works here works there.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from zmesh import runtime_env as envs
from zmesh.core.records import GROUP_ID_BYTES, Entry, Spec, Task
from zmesh.exceptions import ArgumentError, ConfigError
from zmesh.local_actors import LocalActor, LocalActors
from zmesh.object_ref import ObjectRef
from zmesh.options import STREAMING
from zmesh.runtime import serialization
from zmesh.runtime.errors import build_error
from zmesh.runtime.session import set_current
from zmesh.wire.ids import object_id
from zmesh.wire.messages import ERROR, FAILED, INLINE, PENDING, UNIT

_ME = b"local".ljust(16, b"\0")


class _Sink:
    """Takes what finalizers append: nothing needs to be freed."""

    def append(self, entry: Any) -> None:
        """Ignore it: Python's own counting frees local values."""


class LocalSession:
    """The methods of runtime/session.py that the face uses, inline."""

    def __init__(self, namespace: str | None = None) -> None:
        self.closed = self.lost = False
        self.job = _ME
        self.group = None
        self.runtime_env_here: dict[str, Any] = {}
        self._environment = contextlib.ExitStack()  # what init() was given, until shutdown
        self._groups: dict[str, Any] = {}  # {ID: its entry in the table}
        self.dropped = _Sink()
        self.information: dict[str, Any] = {"node": "local", "pid": os.getpid(), "local": True}
        self._seq = 0
        self.actors = LocalActors(self, _ME, namespace)
        set_current(self)  # type: ignore[arg-type]  # the same methods; for refs that arrive inside values
        self._entries: dict[bytes, Entry] = {}  # those whose refs were pickled: they live as long as the session

    def nudge(self) -> None:
        """Nobody sleeps."""

    def own_handle(self) -> Entry:
        """Return the entry of a handle of the actor whose method runs."""
        actor = self.in_actor()
        assert actor is not None
        return self.borrow(actor.id)

    def in_actor(self) -> LocalActor | None:
        """Return the actor whose method runs now."""
        return self.actors.running[-1] if self.actors.running else None

    def next_seq(self) -> int:
        """Return the number of the next thing made."""
        self._seq += 1
        return self._seq

    def failed(self, spec: Spec, status: int, value: Any) -> Task:
        """Return a call that failed before it began."""
        task = Task(self.next_seq(), spec, b"", 0)
        if spec.num_returns != 1:
            task.outputs = [Entry(task.seq, index) for index in range(max(0, spec.num_returns))]
        self._fail(task, status, value)
        return task

    def total_cpus(self) -> float:
        """Return 1: tasks run one after the other."""
        return 1.0

    def spec(
        self, function: Any, name: str, shape: dict[str, int], num_returns: int, options: dict[str, Any], key: Any
    ) -> Spec:
        """Keep the function itself."""
        del key
        sent = dict(options["options"], function=function, retry_classes=options["retry_classes"])
        return Spec(0, _ME, name, shape, num_returns=num_returns, options=sent, max_retries=options["max_retries"])

    def captured(self, spec: Spec) -> list[Any]:
        """Return nothing: the function itself is kept, and holds what it captured."""
        del spec
        return []

    def enter_environment(self, given: dict[str, Any]) -> None:
        """Take on an environment until shutdown."""
        self._environment.enter_context(_inside(given))
        self.runtime_env_here = given

    def environment(self, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return the environment of a task, laid over that of init(); None if it needs nothing more.

        Raises:
            ConfigError: it asks for pip.
        """
        if not given:
            return None
        _refuse_pip(given)
        return envs.merge(self.runtime_env_here, given) | {"id": repr(given)}

    def packed_environment(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return it as it is: nothing leaves this machine."""
        return dict(given)

    def submit(self, spec: Spec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        """Run the call now."""
        task = Task(self.next_seq(), spec, b"", 0)
        if spec.num_returns != 1:
            task.outputs = [Entry(task.seq, index) for index in range(max(0, spec.num_returns))]
        for value in (*args, *kwargs.values()):
            if isinstance(value, ObjectRef) and value._entry.status in (FAILED, ERROR):
                self._fail(task, value._entry.status, value._entry.value)
                return task
        packed = serialization.pack((args, kwargs), f"arguments of {spec.name}")
        del packed  # it can be pickled: that is all we wanted to know
        args = tuple(self._argument(value) for value in args)
        kwargs = {name: self._argument(value) for name, value in kwargs.items()}
        retries = spec.max_retries if spec.max_retries >= 0 else sys.maxsize - 1
        for attempt in range(retries + 1):
            try:
                self._run(task, spec, args, kwargs)
            except Exception as error:
                classes = spec.options["retry_classes"] or (Exception,)
                again = spec.options.get("retry") and isinstance(error, classes) and attempt < retries
                if not again:
                    self._fail(task, FAILED, serialization.pack_error(error, spec.name, os.getpid()))
                    break
            else:
                break
        return task

    def _argument(self, value: Any) -> Any:
        return self.value(value._entry) if isinstance(value, ObjectRef) else value

    def _run(self, task: Task, spec: Spec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        described = spec.options.get("env")
        if described is None:
            self._call(task, spec, args, kwargs)
            return
        before, self.runtime_env_here = self.runtime_env_here, {key: described[key] for key in described if key != "id"}
        try:
            with _inside(described):
                self._call(task, spec, args, kwargs)
        finally:
            self.runtime_env_here = before

    def _call(self, task: Task, spec: Spec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = spec.options["function"](*args, **kwargs)
        if spec.num_returns == STREAMING:
            task.outputs = []
            for index, item in enumerate(value):
                task.outputs.append(Entry(task.seq, index, INLINE, self._pack(item, spec)))
        elif spec.num_returns != 1:
            assert task.outputs is not None
            values = list(value) if spec.num_returns else []
            if len(values) != spec.num_returns:
                raise ValueError(f"{spec.name} has num_returns={spec.num_returns}, but returned {len(values)} values")
            for output, item in zip(task.outputs, values, strict=True):
                output.value, output.status = self._pack(item, spec), INLINE
        task.value = self._pack(value, spec) if spec.num_returns == 1 else None
        task.status = INLINE

    @staticmethod
    def _pack(value: Any, spec: Spec) -> bytes:
        return serialization.to_inline(serialization.pack(value, f"result of {spec.name}"))

    def _fail(self, task: Task, status: int, value: Any) -> None:
        task.status, task.value = status, value
        if task.outputs is not None:
            if task.spec.num_returns == STREAMING:
                task.outputs.append(Entry(task.seq, len(task.outputs)))
            for output in task.outputs:
                if output.status == PENDING:
                    output.status, output.value = status, value

    def put(self, value: Any) -> "ObjectRef[Any]":
        """Keep a value."""
        if isinstance(value, ObjectRef):
            raise ArgumentError("put() of an ObjectRef: wrap it in a list if you want to pass the ref itself")
        entry = Entry(self.next_seq(), 0, INLINE, serialization.to_inline(serialization.pack(value, "value of put()")))
        return ObjectRef(entry, self)  # type: ignore[arg-type]  # the same methods

    def put_replicated(self, value: Any, replicas: int) -> "ObjectRef[Any]":
        """As `put`: there are no other hosts."""
        del replicas
        return self.put(value)

    def get(self, entries: list[Entry], timeout: float | None, *, writable: bool = False) -> list[Any]:
        """Return the values: all are there."""
        del timeout
        return [self.value(entry, writable=writable) for entry in entries]

    def value(self, entry: Entry, *, writable: bool = False) -> Any:
        """Return one value, or raise its error."""
        del writable  # every value is unpickled for its reader alone
        if entry.status == INLINE:
            return serialization.unpack_inline(entry.value)
        raise serialization.unpack_error(entry.value) if entry.status == FAILED else build_error(entry.value)

    def wait(self, entries: list[Entry], num_returns: int, timeout: float | None) -> None:
        """Return at once: everything is there."""

    def wait_with_streams(self, awaited: list[tuple[Entry, int]], needed: int, timeout: float | None) -> None:
        """Return at once: everything is there."""

    def rest(self, given: Any, rest: list[Any]) -> list[Any]:
        """Return it: a loop of waits has nothing to wait for."""
        del given
        return rest

    def completed(self, entries: list[Entry], timeout: float | None) -> Iterator[Entry]:
        """Yield them as they are."""
        del timeout
        return iter(entries)

    def note(self, ref: "ObjectRef[Any]") -> bytes:
        """Give the ref's ID; see borrow."""
        serialization.note_ref(ref)
        return self.keep(ref._entry)

    def keep(self, entry: Entry) -> bytes:
        """Keep an entry as long as the session lives; returns its ID."""
        oid = self.object_id(entry)
        self._entries[oid] = entry
        return oid

    def borrow(self, oid: bytes) -> Entry:
        """Return the entry of a ref that was pickled."""
        return self._entries[oid]

    def object_id(self, entry: Entry) -> bytes:
        """Return the ObjectID of an entry."""
        return object_id(_ME, entry.seq, entry.index)

    def next_item(self, task: Task, index: int, timeout: float | None) -> Entry | None:
        """Return item `index` of a stream, or None at its end."""
        del timeout
        assert task.outputs is not None
        return task.outputs[index] if index < len(task.outputs) else None

    def item_future(self, task: Task, index: int) -> "Future[Entry | None]":
        """Return a future that is done."""
        future: Future[Entry | None] = Future()
        future.set_result(self.next_item(task, index, None))
        return future

    def stream_ended(self, task: Task, taken: int) -> bool:
        """Whether all items were taken."""
        return taken >= len(task.outputs or ())

    def abandon(self, task: Task, taken: int) -> None:
        """Nothing to free."""

    def cancel(self, entry: Entry, *, force: bool, recursive: bool) -> None:
        """Nothing runs."""

    def future(self, ref: "ObjectRef[Any]") -> "Future[Any]":
        """Return a future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(self.value(ref._entry))
        except Exception as error:
            future.set_exception(error)
        return future

    def waits_for(self, entry: Entry) -> str:
        """Say that it does not."""
        del entry
        return "nothing: a local session runs tasks at once"

    def find_group(self, name: str) -> tuple[bytes, list[dict[str, float]]] | None:
        """Return (ID, what each bundle holds) of the group of that name."""
        for group, one in self._groups.items():
            if one["name"] == name and one["state"] != "REMOVED":
                return bytes.fromhex(group), list(one["bundles"].values())
        return None

    def create_group(self, name: str, strategy: str, bundles: list[dict[str, int]], *, detached: bool = False) -> bytes:
        """Make a placement group, which is there at once and has no effect; a detached one ends with us, too."""
        del detached
        if name and self.find_group(name) is not None:
            raise ConfigError(f"there is a placement group named {name!r} already: remove it, or take another name")
        group = os.urandom(GROUP_ID_BYTES)
        specs = {i: {one: amount / UNIT for one, amount in shape.items()} for i, shape in enumerate(bundles)}
        self._groups[group.hex()] = {
            "placement_group_id": group.hex(),
            "name": name,
            "strategy": strategy,
            "state": "CREATED",
            "why": "",
            "bundles": specs,
            "bundles_to_node_id": dict.fromkeys(specs, "local"),
        }
        return group

    def remove_group(self, group: bytes) -> None:
        """End a placement group."""
        if group.hex() in self._groups:
            self._groups[group.hex()] |= {"state": "REMOVED", "why": "it was removed"}

    def group_ready(self, group: bytes, value: Any) -> "ObjectRef[Any]":
        """Return a ref of `value`: groups are there at once."""
        ref = self.put(value)
        if self._groups.get(group.hex(), {"state": "REMOVED"})["state"] == "REMOVED":
            text = f"placement group {group.hex()} is no more"
            ref._entry.status, ref._entry.value = ERROR, ("TaskPlacementGroupRemovedError", text, {})
        return ref

    def status(self) -> dict[str, Any]:
        """Return the keys of a node's status for this process alone."""
        resources = {"total": {"CPU": 1.0}, "available": {"CPU": 1.0}}
        told = {"node": "local", "pid": os.getpid(), "resources": resources, "placement_groups": self._groups}
        return told | {"workers": [], "demands": [], "objects": 0}

    def shutdown(self) -> None:
        """Leave the environment of init(); nothing else is to stop."""
        self._environment.close()
        self.closed = True
        set_current(None)


def _refuse_pip(given: Mapping[str, Any]) -> None:
    if "pip" in given:
        raise ConfigError("runtime_env: pip has no place in init(local=True), as tasks run in this process: install it")


@contextlib.contextmanager
def _inside(given: Mapping[str, Any]) -> Iterator[None]:
    """Have this process find what a task in that environment would: variables, directory and import path."""
    _refuse_pip(given)
    variables = given.get("env_vars", {})
    before = {name: os.environ.get(name) for name in variables}
    directory = os.getcwd()
    places = [os.path.dirname(module) for module in given.get("py_modules", ())]
    os.environ.update(variables)
    if "working_dir" in given:
        os.chdir(given["working_dir"])
        places.insert(0, given["working_dir"])
    sys.path[:0] = places
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text
        for place in places:
            with contextlib.suppress(ValueError):  # the task took it off
                sys.path.remove(place)
        if "working_dir" in given:
            os.chdir(directory)
