"""Nodes that outlive a program: what `zmesh up`, `down` and `status` do, also for scripts. Any thread."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zmesh.exceptions import NotRunningError

STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class RunningNode:
    """A node of this user on this host."""

    name: str
    id: str
    pid: int


def start(name: str, settings: dict[str, Any]) -> RunningNode:
    """Start a node that outlives this program.

    Raises:
        ConfigError: one of that name runs already, or a setting makes no sense.
    """
    from zmesh.runtime import processes

    node = processes.start_node(settings, private=False, name=name)
    return RunningNode(name, node.record["node"], node.pid)


def stop(name: str) -> str:
    """Stop a node that this user started; returns its name.

    Raises:
        NotRunningError: there is none of that name.
    """
    from zmesh.runtime import processes, rundir

    record = rundir.find(name)
    if record is None:
        raise NotRunningError(f"no node named {name!r} of this user runs on this host")
    processes.stop_node(record, STOP_TIMEOUT_S)
    return name


def stop_all() -> list[str]:
    """Stop all nodes that this user started with `zmesh up`; returns their names."""
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


def run(name: str, settings: dict[str, Any], announce: Callable[[RunningNode], None]) -> None:
    """Start a node and wait until it ends; SIGINT, SIGTERM and SIGHUP stop it. `announce` is called when it is up."""
    from zmesh.runtime import processes

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
        stop(node.name)
