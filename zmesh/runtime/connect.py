"""From `zmesh.init()` to a session: find the running node of this user or start a private one, and say hello."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

from zmesh.actor_options import DEFAULT_NAMESPACE
from zmesh.core import effects as fx
from zmesh.core.client import ClientCore
from zmesh.core.timers import Timers
from zmesh.exceptions import MeshError, NotRunningError
from zmesh.runtime import machine, processes, rundir
from zmesh.runtime.forkserver import describe_status
from zmesh.runtime.reactor import Reactor, Waiter
from zmesh.runtime.session import Session, set_current, unset_current
from zmesh.runtime.sockets import ClientSockets
from zmesh.runtime.store import Store
from zmesh.wire.ids import TOKEN_BYTES, local_peer, node_peer
from zmesh.wire.messages import Goodbye, Hello

HELLO_TIMEOUT_S = 10.0
SCHEMES = ("zmesh://", "ray://")
STOP_TIMEOUT_S = 5.0  # a private node that has not ended by then is killed
GONE = "the node of this host is gone, and with it its workers; what they ran is lost. Call zmesh.init()"

_log = logging.getLogger("zmesh.connect")


def show(effect: fx.Show) -> None:
    """Print what a task printed."""
    stream = sys.stdout if effect.stream == 1 else sys.stderr
    try:
        stream.write(effect.text)
        stream.flush()
    except (OSError, ValueError):
        pass  # the program closed its stdout: nobody is left to show it to


class DriverSession(Session):
    """The session of a program that called init(), or of a command that only looks."""

    def __init__(
        self, record: dict[str, Any], run_dir: rundir.RunDir, node: processes.NodeProcess | None, *, log_to_driver: bool
    ) -> None:
        node_id = bytes.fromhex(record["node"])
        me = local_peer(node_id, os.urandom(TOKEN_BYTES))
        self._node = node
        self._keyring: str | None = record.get("keyring")  # of the mesh, if the node is part of one
        self._pidfd = processes.open_pidfd(record["pid"])
        if self._pidfd is None:
            raise NotRunningError(f"the node with pid {record['pid']} ended while we connected to it")
        core = ClientCore(me, [], Timers(), describe_status)
        sockets = ClientSockets(me, node_peer(node_id), run_dir.socket_of)
        handlers: dict[type[Any], Callable[[Any], None]] = {
            fx.Recycle: self.recycle,
            fx.UnmapSegments: lambda effect: self.store.unmap(effect.segments),
            fx.Show: show if log_to_driver else lambda effect: None,
            fx.Warn: lambda effect: _log.warning("%s", effect.text),
            fx.DialNode: self._dial_node,
        }
        reactor = Reactor(core, sockets, handlers, self._pidfd, lambda: GONE + run_dir.last_words())
        # A node that does not answer is found out when it is greeted: its store waits for longer.
        super().__init__(core, reactor, Store(run_dir.segments_socket(), me, late=True), me)
        self.information = {
            "node": record["node"],
            "pid": record["pid"],
            "private": node is not None,
            "run_dir": run_dir.path,
        }

    def _dial_node(self, effect: fx.DialNode) -> None:
        """The first shortcut to a far node is offered: from now on others carry out what concerns them."""
        if self._keyring is not None:
            from zmesh.runtime.shortcut_sockets import ShortcutSockets

            reactor = self.reactor
            far = ShortcutSockets(self.core.shortcuts, reactor.sockets, self._keyring, reactor.deliver)
            reactor.handlers |= far.handlers
            reactor.handlers[fx.DialNode](effect)

    def greet(self, kind: str) -> None:
        """Introduce this process to the node and wait for its welcome.

        Raises:
            NotRunningError: it does not answer.
            MeshError: it speaks another version of the protocol.
        """
        config = machine.job_config() | {"namespace": self.actors.namespace}
        if kind == "driver":
            self.reactor.sockets.listen()
        self.reactor.start(handle_sigint=kind == "driver")
        core = self.core
        with self.reactor.lock:
            core.effects.append(fx.Send(core.node, Hello(kind, os.getpid(), config)))
        waiter = Waiter(1)
        waiter.condition = lambda: core.welcome is not None or core.lost is not None
        self.reactor.wait(waiter, monotonic() + HELLO_TIMEOUT_S)
        if core.welcome is None:
            node = f"the node (pid {self.information['pid']})"
            why = "it was stopped, or the machine has too much to do; `zmesh down` ends it"
            raise NotRunningError(f"{node} did not answer in {HELLO_TIMEOUT_S:g} s: {why}")
        if core.welcome.refused:
            raise MeshError(f"the node refused us: {core.welcome.refused}")

    def shutdown(self) -> None:
        """Leave; a private node ends with us."""
        with self.reactor.lock:
            self.core.effects.append(fx.Send(self.core.node, Goodbye()))
            self.reactor.pump(monotonic())
        self.close()
        if self._pidfd is not None:
            if self._node is not None:
                processes.kill(self._pidfd, signal.SIGTERM)
                if not processes.wait_exit(self._pidfd, STOP_TIMEOUT_S):
                    processes.kill(self._pidfd)
                processes.reap(self._node.pid)
            os.close(self._pidfd)
            self._pidfd = None
        unset_current(self)


def far_address(name: str | None) -> tuple[str, int] | None:
    """Return (host, port) if that is where a member of a mesh listens, and not the name of a node of this host.

    Raises:
        ConfigError: it looks like an address, and is none.
    """
    text = name or ""
    for scheme in SCHEMES:
        text = text.removeprefix(scheme)
    return machine.parse_address(text) if ":" in text or text != (name or "") else None


def connect(
    name: str | None,
    settings: dict[str, Any],
    *,
    key_file: str | None = None,
    log_to_driver: bool,
    namespace: str | None = None,
) -> Session:
    """Find or start a node and connect to it; see zmesh.init for the names.

    Raises:
        NotRunningError: no node of that name runs.
        ConfigError: a setting makes no sense.
    """
    far = far_address(name)
    if far is not None:
        from zmesh.runtime import guest_session

        return guest_session.connect(
            far, "driver", key_file=key_file, log_to_driver=log_to_driver, namespace=namespace or DEFAULT_NAMESPACE
        )
    node = None
    record = None
    if name != "local":
        record = rundir.find("default" if name in (None, "auto") else str(name))
        if record is None and name is not None:
            raise NotRunningError(_start_one("default" if name == "auto" else str(name)))
    if record is None:
        node = processes.start_node(settings, private=True)
        record = node.record
    session = DriverSession(record, rundir.RunDir(record["path"]), node, log_to_driver=log_to_driver)
    session.actors.namespace = namespace or DEFAULT_NAMESPACE
    try:
        session.greet("driver")
    except BaseException:
        session.shutdown()
        raise
    set_current(session)
    return session


def observe(name: str) -> Session:
    """Connect to a running node of this host, by name, or to a member elsewhere, by address, just to look at it.

    Raises:
        NotRunningError: there is none.
    """
    far = far_address(name)
    if far is not None:
        from zmesh.runtime import guest_session

        return guest_session.connect(far, "observer", key_file=None, log_to_driver=False)
    record = rundir.find(name)
    if record is None:
        raise NotRunningError(_start_one(name))
    session = DriverSession(record, rundir.RunDir(record["path"]), None, log_to_driver=False)
    try:
        session.greet("observer")
    except BaseException:
        session.shutdown()
        raise
    return session


def _start_one(name: str) -> str:
    named = "" if name == "default" else f" --name {name}"
    return f"{rundir.absence(name)}. Start one with `zmesh up{named}`"
