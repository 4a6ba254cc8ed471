"""Nodes that outlive a program: what `zmesh up`, `down` and `status` do, also for scripts. Any thread."""

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh.exceptions import ConfigError, GetTimeoutError, NodeDiedError, NotRunningError

STOP_TIMEOUT_S = 65.0  # a node finishes what it runs for other hosts first, and has what lies only there copied


@dataclass(frozen=True)
class RunningNode:
    """A node of this user on this host."""

    name: str
    id: str
    pid: int
    address: str  # HOST:PORT, by which other hosts find it


@dataclass(frozen=True)
class StoppedNode:
    """A node that was stopped, and what became of objects of others that lay there alone."""

    name: str
    moved: int = 0  # copied to other hosts
    lost: int = 0
    notes: list[str] = field(default_factory=list)  # sentences about what was lost, or may be


def start(name: str, settings: dict[str, Any]) -> RunningNode:
    """Start a node that outlives this program.

    Args:
        settings: as the options of `zmesh up`: "host", "port", "advertise", "join" (pairs of host and port),
            "key_file", "labels", "num_cpus", "num_gpus", "resources", "store_bytes", "spill_directory",
            "spill_bytes_max", "spill_compression", "memory_limit" (bytes its workers may use together); all may be
            missing. "memory_steady_at" and "memory_kill_at" are the shares of memory, 0.8 and 0.92, from which on it
            takes no more work, and kills tasks.

    Raises:
        ConfigError: one of that name runs already, or a setting makes no sense.
    """
    from zmesh.runtime import processes

    node = processes.start_node(settings, private=False, name=name)
    host, port = node.record["host"], node.record["port"]
    return RunningNode(name, node.record["node"], node.pid, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def parse_address(text: str) -> tuple[str, int]:
    """Return (host, port) of `host`, `host:port` or `[v6]:port`; the port is 27700 if there is none.

    Raises:
        ConfigError: it is no address.
    """
    from zmesh.runtime import machine

    return machine.parse_address(text)


def stop(name: str) -> StoppedNode:
    """Stop a node that this user started, and wait for its end.

    Raises:
        NotRunningError: there is none of that name.
        ConfigError: it is an address.
    """
    from zmesh.runtime import processes, rundir

    record = rundir.find(name)
    if record is None and ":" in name:
        raise ConfigError(f"{name!r} is an address: a node is stopped on its own host, by its name")
    if record is None:
        raise NotRunningError(rundir.absence(name))
    return StoppedNode(name, **processes.stop_node(record, STOP_TIMEOUT_S))


def stop_all() -> list[StoppedNode]:
    """Stop all nodes that this user started with `zmesh up`, one after the other."""
    from zmesh.runtime import rundir

    return [stop(record["name"]) for record in rundir.list_running() if not record["private"]]


def status(name: str) -> dict[str, Any]:
    """Return what a node knows; see zmesh.status().

    Raises:
        NotRunningError: there is none of that name.
    """
    from zmesh.runtime import connect

    session = connect.observe(name)
    try:
        return session.status()
    finally:
        session.shutdown()


def objects(name: str) -> list[dict[str, Any]]:
    """Return the objects of the mesh of a node; see zmesh.util.state.list_objects.

    Raises:
        NotRunningError: there is no node of that name.
    """
    from zmesh.runtime import connect, listing

    session = connect.observe(name)
    try:
        return listing.list_objects(session)
    finally:
        session.shutdown()


def ask_all(name: str, timeout: float) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Return, for each member, its row in a node's status and its own status, None if it did not answer.

    Raises:
        NotRunningError: there is no node of that name.
    """
    from zmesh.runtime import connect

    session = connect.observe(name)
    try:
        own = session.status()
        found: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
        for member in own["members"]:
            told: dict[str, Any] | None = own if member["node"] == own["node"] else None
            if told is None and member["state"] in ("alive", "suspect"):
                with contextlib.suppress(GetTimeoutError):
                    told = session.status(timeout, member["node"])
            found.append((member, told))
        return found
    finally:
        session.shutdown()


def run(name: str, settings: dict[str, Any], announce: Callable[[RunningNode], None]) -> StoppedNode:
    """Start a node and wait until it ends. SIGINT, SIGTERM and SIGHUP stop it, a second one at once.

    Args:
        announce: called when it is up.

    Raises:
        NodeDiedError: it was killed.
    """
    from zmesh.runtime import processes, rundir

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    node = start(name, settings)
    try:
        announce(node)
        pidfd = processes.open_pidfd(node.pid)
        if pidfd is not None:
            processes.wait_exit(pidfd, None)
            os.close(pidfd)
    except KeyboardInterrupt:
        with contextlib.suppress(NotRunningError):
            try:
                return stop(name)
            except KeyboardInterrupt:
                return stop(name)  # its second SIGTERM: it waits for nobody any more
    if rundir.was_killed(name, node.id):
        words = rundir.RunDir(os.path.join(rundir.base(), name)).last_words()
        raise NodeDiedError(f"node {name!r} (pid {node.pid}) was killed, or crashed{words}")
    return StoppedNode(name)
