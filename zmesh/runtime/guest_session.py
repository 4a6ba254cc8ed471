"""`zmesh.init("host:port")`: the session of a program on a machine without a node, a guest of one that has one."""

import logging
import os
import random
from collections.abc import Callable
from time import monotonic
from typing import Any

from zmesh.actor_options import DEFAULT_NAMESPACE
from zmesh.core import effects as fx
from zmesh.core.guest_client import ATTACHED, ENDED, GuestCore
from zmesh.core.records import Entry
from zmesh.core.timers import Timers
from zmesh.exceptions import MeshError, NodeDiedError, NotRunningError
from zmesh.runtime import machine
from zmesh.runtime.connect import show
from zmesh.runtime.curve import check_library, curve_keys
from zmesh.runtime.errors import build_error
from zmesh.runtime.forkserver import describe_status
from zmesh.runtime.guest_sockets import GuestSockets
from zmesh.runtime.guest_store import GuestStore
from zmesh.runtime.keyring import Keyring, keyring_path
from zmesh.runtime.machine import resolves
from zmesh.runtime.reactor import Reactor, Waiter
from zmesh.runtime.session import Session, set_current, unset_current
from zmesh.wire.ids import NODE_ID_BYTES, guest_segment, store_peer
from zmesh.wire.messages import Goodbye, Hello

WELCOME_TIMEOUT_S = 10.0

_log = logging.getLogger("zmesh.connect")


class GuestSession(Session):
    """The session of a guest."""

    def __init__(
        self, address: tuple[str, int], keyring: Keyring, kind: str, *, log_to_driver: bool, namespace: str
    ) -> None:
        check_library()
        config = machine.job_config() | {"namespace": namespace}
        rng = random.Random(os.urandom(16))
        core = GuestCore([address], rng, Hello(kind, os.getpid(), config), [], Timers(), describe_status)
        keys = [curve_keys(key.id, key.server_secret.reveal(), key.client_secret.reveal()) for key in keyring.keys]
        sockets = GuestSockets(core, keys)
        self._guest = core
        handlers: dict[type[Any], Callable[[Any], None]] = {
            fx.Recycle: self.recycle,
            fx.UnmapSegments: lambda effect: None,  # what it reads are copies of its own
            fx.Show: show if log_to_driver else lambda effect: None,
            fx.Warn: lambda effect: _log.warning("%s", effect.text),
            fx.Dial: sockets.dial,
            fx.Redial: sockets.redial,
            fx.Talk: sockets.talk,
            fx.Post: sockets.post,
            fx.PostAck: sockets.post_ack,
            fx.Relay: sockets.relay,
            fx.LinkEnded: lambda effect: core.detached("it began a new link", monotonic()),
            fx.Rehomed: self._rehomed,
        }
        reactor = Reactor(core, sockets, handlers, None)  # type: ignore[arg-type]  # the same calls
        store = GuestStore(self._to_store, self._do, self._wait_for, lambda segment: guest_segment(segment, core.me))
        sockets.store_heard = store.heard
        super().__init__(core, reactor, store, core.me)  # type: ignore[arg-type]  # the same calls
        self.actors.namespace = namespace

    def greet(self) -> None:
        """Find a node and be welcomed.

        Raises:
            NotRunningError: nobody answers there.
            MeshError: it speaks another version of the protocol.
        """
        core = self._guest
        self.reactor.start(handle_sigint=core.hello_kind == "driver")
        self._do(lambda: core.start(monotonic()))
        waiter = Waiter(1)
        waiter.condition = lambda: core.welcome is not None or core.rounds > 0
        self.reactor.wait(waiter, monotonic() + WELCOME_TIMEOUT_S)
        if core.welcome is None:
            raise NotRunningError(f"no member of a mesh took us in at {core.place}: {core.why}")
        if core.welcome.refused:
            raise MeshError(f"the node refused us: {core.welcome.refused}")

    def _rehomed(self, effect: fx.Rehomed) -> None:
        """Another node: bring what lay on the old one's host to it, then say hello."""
        self.job = effect.me
        self.information = {
            "node": effect.me[:NODE_ID_BYTES].hex(),
            "pid": 0,
            "private": False,
            "address": self._guest.place,
        }
        self.store.restore(self._restored)  # type: ignore[attr-defined]

    def _restored(self) -> None:
        self._guest.restored(monotonic())
        self.renew_packages()

    def _to_store(self, frame: bytes) -> None:
        core = self._guest
        core.send(store_peer(core.node[:NODE_ID_BYTES]), frame, monotonic())

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so, or no node is left."""
        core = self._guest
        self.reactor.check_usable()
        self.reactor.wait_until(Waiter(1), lambda: condition() or core.state == ENDED)
        if core.lost is not None:
            raise build_error(core.lost)

    def _promote(self, entries: list[Entry]) -> None:
        while True:
            if entries and self._guest.state != ATTACHED:
                self._wait_for(lambda: self._guest.state == ATTACHED)
            try:
                super()._promote(entries)
                return
            except NodeDiedError:
                if self._guest.state == ENDED:
                    raise

    def shutdown(self) -> None:
        """Leave."""
        with self.reactor.lock:
            self.core.effects.append(fx.Send(self.core.node, Goodbye()))
            self.reactor.pump(monotonic())
        self.close()
        unset_current(self)


def connect(
    address: tuple[str, int],
    kind: str,
    *,
    key_file: str | None,
    log_to_driver: bool,
    namespace: str = DEFAULT_NAMESPACE,
) -> GuestSession:
    """Become a guest of the member at an address.

    Raises:
        NotRunningError: nobody answers there.
        ConfigError: there is no key on this machine, or it makes no sense.
    """
    if not resolves(address[0]):
        raise NotRunningError(f"no address is known for the name {address[0]!r}: say HOST:PORT of a member of the mesh")
    keyring = Keyring.load(keyring_path("default", key_file))
    session = GuestSession(address, keyring, kind, log_to_driver=log_to_driver, namespace=namespace)
    try:
        session.greet()
    except BaseException:
        session.shutdown()
        raise
    if kind == "driver":
        set_current(session)
    return session
