"""The functions of the face: start and stop, put and get, wait, cancel, look around. Any thread may call them."""

import atexit
import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zmesh import init_settings
from zmesh import runtime_env as envs
from zmesh.exceptions import ArgumentError, ConfigError, LocalProtocolError, NotRunningError
from zmesh.limits import check_seconds, check_whole
from zmesh.object_ref import ObjectRef, ObjectRefGenerator

if TYPE_CHECKING:
    from zmesh.runtime.session import Session

_lock = threading.Lock()
_session: "Session | None" = None
_pid = 0


class Context:
    """What `init` returns; as a context manager it shuts down at the end."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.address_info = info

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *exc: object) -> None:
        shutdown()

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __repr__(self) -> str:
        return f"zmesh.Context({self.address_info})"


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: int | None = None,
    resources: Mapping[str, float] | None = None,
    memory: int | None = None,
    object_store_memory: int | None = None,
    ignore_reinit_error: bool = False,
    log_to_driver: bool = True,
    local: bool = False,
    key_file: str | None = None,
    spill_directory: str | None = None,
    spill_bytes_max: int | None = None,
    spill_compression: str = "none",
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    logging_level: int | str | None = None,
    **others: Any,
) -> Context:
    """Connect this program to a mesh; docs/api.md says more.

    Args:
        address: None: the running node of this user (`zmesh up`; ZMESH_NODE picks one by name), else a private node
            that lives as long as this program; "auto": the running node, or an error; "local": always a private one;
            "HOST:PORT": be a guest of a member of a mesh elsewhere, and of another when that one dies; any other text:
            the name of a node of this user.
        key_file: keyring for "HOST:PORT"; see `zmesh key path`.
        num_cpus, num_gpus: of a private node; all that this process may use by default.
        resources: {name: amount} of custom resources of a private node.
        memory: bytes that tasks may book on a private node; physical memory by default.
        object_store_memory: bytes of shared memory a private node may use; 30 % of physical memory by default.
        spill_directory: where a private node writes cold objects; in the user's cache, or /var/tmp, by default.
        spill_bytes_max: bytes it may write there; until 5 % of the disk are left by default; 0: it never spills.
        spill_compression: "none" or "lz4".
        ignore_reinit_error: a second call is no error.
        log_to_driver: print what tasks print.
        namespace: where names of actors are looked for and taken; "default", so that programs share them, by default.
        local: run every task inline in this process, at `.remote()`, so that breakpoints and profilers work.
        runtime_env: what all tasks find around them; see docs/runtime-env.md.
        labels: {label: value} of a private node.
        logging_level: of zmesh's loggers in this process.
        others: settings of Ray's that ask for nothing; more is refused.

    Raises:
        LocalProtocolError: zmesh runs in this process already.
        NotRunningError: no such node.
        ConfigError: a setting makes no sense.
    """
    global _session, _pid
    with _lock:
        if _session is not None and _session.lost:
            _session.shutdown()  # its node is gone: there is nothing to keep
            _session = None
        if is_initialized():
            if ignore_reinit_error:
                return Context(_information())
            raise LocalProtocolError("zmesh.init() was called before: zmesh.shutdown(), or ignore_reinit_error=True")
        init_settings.check_others(others)
        init_settings.set_logging_level(logging_level)
        environment = envs.check(runtime_env)
        settings: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus, "memory": memory}
        settings |= init_settings.check_offer(resources, labels)
        settings |= {"store_bytes": object_store_memory, "spill_compression": spill_compression}
        settings |= {"spill_directory": spill_directory, "spill_bytes_max": spill_bytes_max}
        session = _connect(address, settings, key_file, log_to_driver=log_to_driver, local=local, namespace=namespace)
        _enter(session, environment)
        _session, _pid = session, os.getpid()
        return Context(_information())


def _enter(session: "Session", environment: dict[str, Any]) -> None:
    if environment:
        try:
            session.enter_environment(environment)
        except BaseException:
            session.shutdown()
            raise


def _connect(
    address: str | None,
    settings: dict[str, Any],
    key_file: str | None,
    *,
    log_to_driver: bool,
    local: bool,
    namespace: str | None,
) -> "Session":
    spill_directory = settings["spill_directory"]
    init_settings.check_texts(address=address, key_file=key_file, namespace=namespace, spill_directory=spill_directory)
    if local:
        from zmesh.local_mode import LocalSession

        return LocalSession(namespace)  # type: ignore[return-value]  # the same methods, inline
    from zmesh.runtime import connect

    name = address if address is not None else os.environ.get("ZMESH_NODE") or None
    return connect.connect(name, settings, key_file=key_file, log_to_driver=log_to_driver, namespace=namespace)


def _information() -> dict[str, Any]:
    return dict(require_running().information)


def _alive() -> bool:
    return _session is not None and _pid == os.getpid()


def auto_init() -> "Session":
    """Return the session of this process, started with the defaults if there is none."""
    session = _session
    if session is not None and _pid == os.getpid():
        return session
    if session is None:
        inside = _of_worker()
        if inside is not None:
            return inside
    with contextlib.suppress(LocalProtocolError):  # another thread was faster
        init()
    assert _session is not None
    return _session


def _of_worker() -> "Session | None":
    """Return the session of a worker process, which nobody calls init() in."""
    import sys

    module = sys.modules.get("zmesh.runtime.session")
    return module.get_current() if module is not None else None


def shutdown(*, wait_for_processes: bool = True) -> None:
    """Disconnect; end the private node if this program started one. Refs are dead afterwards. Idempotent.

    Args:
        wait_for_processes: ignored: a private node is always waited for.
    """
    del wait_for_processes
    global _session
    with _lock:
        session, _session = _session, None
        if session is not None and _pid == os.getpid():
            session.shutdown()


atexit.register(shutdown)


def is_initialized() -> bool:
    """Whether this process is connected."""
    return _alive() or _of_worker() is not None


def _listed(refs: Any, what: str) -> list[Any]:
    if isinstance(refs, ObjectRef | ObjectRefGenerator) or not isinstance(refs, Iterable):
        raise ArgumentError(f"{what} takes a list of ObjectRefs, not {type(refs).__name__}")
    return list(refs)


def _entries(refs: Iterable[Any], what: str) -> list[Any]:
    entries = []
    for ref in refs:
        if not isinstance(ref, ObjectRef):
            raise ArgumentError(f"{what} takes ObjectRefs, not {_described(ref)}")
        entries.append(ref._entry)
    return entries


def _described(value: Any) -> str:
    """Say what was given for a ref, and what may have been meant."""
    kind = type(value).__name__
    if isinstance(value, ObjectRefGenerator):
        return f"{kind}: iterate over it, and get what it yields"
    if kind == "ActorHandle":
        return f"{kind}: call one of its methods by .remote(), and get what that returns"
    if kind in ("ActorMethod", "RemoteFunction", "ActorClass"):
        return f"{kind}: call it by .remote(), and get what that returns"
    if isinstance(value, Mapping):
        return f"{kind}: get its values(), which must be refs"
    return f"{kind}: all refs must be in one list" if isinstance(value, list | tuple | set) else kind


def get(refs: Any, timeout: float | None = None, *, writable: bool = False) -> Any:
    """Return the value of a ref, or the list of values of a sequence of refs, waiting for them.

    Ctrl-C here cancels all that this program has submitted and has no result of.

    Arrays come as read-only views of shared memory, without a copy; they stay valid as long as they live.

    Args:
        refs: an ObjectRef, or a sequence of them.
        timeout: seconds to wait at most; 0 only looks; None: without limit.
        writable: arrays are private copies-on-write instead.

    Raises:
        GetTimeoutError: not all were there in time; the tasks go on.
        ArgumentError: that is no ref, nor a list of them.
        TaskError: a task raised; also an instance of the class it raised. The first error that happens is raised.
        MeshError: a worker, the node or an object was lost; see zmesh.exceptions.
    """
    check_seconds(timeout)
    if type(refs) is ObjectRef:
        session, entries = refs._session, [refs._entry]
    else:
        if isinstance(refs, ObjectRef | ObjectRefGenerator | Mapping) or not isinstance(refs, Iterable):
            raise ArgumentError(f"get() takes an ObjectRef or a list of them, not {_described(refs)}")
        refs = list(refs)
        entries = _entries(refs, "get()")
        if not entries:
            return []
        session = refs[0]._session
    values = session.get(entries, timeout, writable=writable)
    return values[0] if type(refs) is ObjectRef else values


def put(value: Any, *, replicas: int = 1) -> "ObjectRef[Any]":
    """Store a value and return its ref; large ones go to shared memory, with one copy.

    Args:
        replicas: on so many hosts in all, or on as many as there are, with a warning in the log. When one dies, it is
            read from another.

    Raises:
        ConfigError: `replicas` is less than 1.
        SerializationError: it cannot be pickled; the text names the attribute.
        StoreFullError: it does not fit; the text has the numbers.
        ArgumentError: it is itself an ObjectRef.
    """
    check_whole("replicas", replicas)
    session = auto_init()
    return session.put(value) if replicas == 1 else session.put_replicated(value, replicas)


def wait(
    refs: Sequence[Any], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
) -> tuple[list[Any], list[Any]]:
    """Wait until `num_returns` of the refs have a value or an error, or the timeout.

    An ObjectRefGenerator among them is ready when `next` would not wait.

    Returns:
        (ready, rest), both in the order given; at most num_returns are in ready. In a loop over `rest`, as it is or
        with more refs at its end, a call does not look at the refs again.
    """
    del fetch_local  # every object of a host is local
    check_seconds(timeout)
    again = getattr(refs, "zmesh_round", None)  # of a list that a wait returned
    if again is not None:
        found: tuple[list[Any], list[Any]] | None = again.wait(refs, num_returns, timeout)
        if found is not None:
            return found
    given, refs = refs, _listed(refs, "wait()")
    if any(isinstance(ref, ObjectRefGenerator) for ref in refs):
        return _wait_with_streams(refs, num_returns, timeout)
    entries = _entries(refs, "wait()")
    _check_wait(entries, num_returns)
    if not refs:
        return [], []
    refs[0]._session.wait(entries, num_returns, timeout)
    ready: list[Any] = []
    rest: list[Any] = []
    for ref in refs:
        (ready if ref._entry.status and len(ready) < num_returns else rest).append(ref)
    return ready, refs[0]._session.rest(given, rest)


def _check_wait(entries: list[Any], num_returns: int) -> None:
    if len({id(entry) for entry in entries}) != len(entries):
        raise ConfigError("wait() needs refs that differ")
    if type(num_returns) is not int or not 0 < num_returns <= max(1, len(entries)):
        raise ConfigError(f"num_returns must be from 1 to the number of refs ({len(entries)}), not {num_returns!r}")


def _wait_with_streams(refs: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
    awaited = [
        (ref._task, ref._taken) if isinstance(ref, ObjectRefGenerator) else (_entries([ref], "wait()")[0], -1)
        for ref in refs
    ]
    _check_wait([entry for entry, _ in awaited], num_returns)
    refs[0]._session.wait_with_streams(awaited, num_returns, timeout)
    ready: list[Any] = []
    rest: list[Any] = []
    for ref, (entry, taken) in zip(refs, awaited, strict=True):
        there = entry.status or 0 <= taken < len(entry.outputs)
        (ready if there and len(ready) < num_returns else rest).append(ref)
    return ready, rest


def as_completed(refs: Iterable[Any], timeout: float | None = None) -> Iterator[Any]:
    """Yield the refs in the order in which they get their value or error; linear in their number.

    Raises:
        GetTimeoutError: the next one was not there `timeout` seconds after the first call.
    """
    check_seconds(timeout)
    refs = _listed(refs, "as_completed()")
    if not refs:
        return
    by_entry: dict[int, list[Any]] = {}
    for ref, entry in zip(refs, _entries(refs, "as_completed()"), strict=True):
        by_entry.setdefault(id(entry), []).append(ref)
    session = refs[0]._session
    entries = [same[0]._entry for same in by_entry.values()]
    del refs, ref
    for entry in session.completed(entries, timeout):
        yield from by_entry.pop(id(entry))


def cancel(ref: Any, *, force: bool = False, recursive: bool = True) -> None:
    """Cancel a task: drop it if it is queued, raise KeyboardInterrupt in it if it runs. Does not wait.

    Args:
        ref: the ref or generator of the task.
        force: also kill its worker, for code that does not let itself be interrupted.
        recursive: also what the task itself submitted.
    """
    if isinstance(ref, ObjectRefGenerator):
        entry = ref._task
    elif isinstance(ref, ObjectRef):
        entry = ref._entry
    else:
        raise ArgumentError(f"cancel() takes an ObjectRef or an ObjectRefGenerator, not {type(ref).__name__}")
    if force and ref._session.actors.is_call(entry):
        raise ConfigError("force=True would kill the actor, with all it has to do: zmesh.kill(actor) if you mean that")
    ref._session.cancel(entry, force=force, recursive=recursive)


def explain(ref: "ObjectRef[Any]") -> str:
    """Say what a pending ref waits for, in one line."""
    if not isinstance(ref, ObjectRef):
        raise ArgumentError(f"explain() takes an ObjectRef, not {type(ref).__name__}")
    return ref._session.waits_for(ref._entry)


def status() -> dict[str, Any]:
    """Return what the node knows: node, resources, workers, demands, store. docs/api.md lists the keys."""
    return auto_init().status()


def objects() -> list[dict[str, Any]]:
    """Return one dict an object that takes memory of the mesh, the largest first; see zmesh.util.state.list_objects."""
    from zmesh.runtime import listing

    return listing.list_objects(auto_init())


def nodes() -> list[dict[str, Any]]:
    """Return one dict for each node the mesh knows, ours first.

    The keys are NodeID, NodeName, Alive, NodeManagerAddress, NodeManagerPort, NodePid, Resources (in all; {} of a dead
    one) and Labels. A private node has no port: 0.
    """
    return [
        {
            "NodeID": member["node"],
            "NodeName": member["name"],
            "Alive": _lives(member),
            "NodeManagerAddress": member["address"].rpartition(":")[0].strip("[]"),
            "NodeManagerPort": int(member["address"].rpartition(":")[2]),
            "NodePid": member["pid"],
            "Resources": dict(member["total"]) if _lives(member) else {},
            "Labels": dict(member["labels"]),
        }
        for member in _members()
    ]


def _lives(member: dict[str, Any]) -> bool:
    return member["state"] in ("alive", "suspect", "leaving")


def _members() -> list[dict[str, Any]]:
    """Return what our node knows of each member; of itself alone, if it is a private one."""
    told = status()
    resources, store = told["resources"], told.get("store")
    alone = {"node": told["node"], "name": "", "state": "alive", "address": "127.0.0.1:0", "pid": told["pid"]}
    alone |= {"labels": told.get("labels", {}), "store": [store["used"], store["capacity"]] if store else []}
    members: list[dict[str, Any]] = told.get("members") or [alone | resources]
    return members


def cluster_resources() -> dict[str, float]:
    """Return what the living nodes of the mesh have in all, e.g. {"CPU": 8.0, "object_store_memory": 1e9}.

    What placement groups hold is part of it.
    """
    living = [member for member in _members() if _lives(member)]
    return _sum([member["total"] | _store(member, 0) for member in living])


def available_resources() -> dict[str, float]:
    """Return what of that is not booked, neither by tasks nor by placement groups.

    What other nodes say may be a second old.
    """
    living = [member for member in _members() if _lives(member)]
    return _sum([member["available"] | _store(member, 1) for member in living])


def _store(member: dict[str, Any], share: int) -> dict[str, float]:
    """Return the bytes of shared memory of a member, or, for `share` 1, what of it is free; {} if it has not said."""
    if not member["store"]:
        return {}
    used, capacity = member["store"]
    return {"object_store_memory": float(capacity - share * used)}


def _sum(amounts: list[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in amounts:
        for name, amount in one.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def current_group() -> dict[str, Any] | None:
    """Return {"id", "bundles", "capture"} of the placement group the running task is in, or None."""
    worker = getattr(require_running(), "worker", None)
    if worker is None:
        return None
    running = worker.running if worker.actor is None else worker.actor.creation  # calls are where their actor is
    return None if running is None else running.spec.options.get("group")


def get_gpu_ids() -> list[int]:
    """Return the GPUs of the running task."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [int(part) for part in text.split(",") if part.strip().isdigit()]


def require_running() -> "Session":
    """Return the session, without starting one.

    Raises:
        NotRunningError: there is none.
    """
    session = _session if _alive() else _of_worker()
    if session is None:
        raise NotRunningError("zmesh is not running in this process: call zmesh.init()")
    return session
