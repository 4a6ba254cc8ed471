"""What the face calls for actors: make one, call it, kill it. The part of a session that knows them; any thread.

Every rule about actors is in core/actor_calls.py; here arguments are packed and the reactor is driven.
"""

import threading
import time
from time import monotonic
from typing import TYPE_CHECKING, Any

from zmesh.actor_options import DEFAULT_NAMESPACE
from zmesh.core.records import Entry, Handle, Inputs, MethodCall, Spec, Task
from zmesh.exceptions import MeshError, PendingCallsLimitExceededError, SerializationError
from zmesh.object_ref import ObjectRef
from zmesh.runtime import calls, serialization
from zmesh.runtime.reactor import LOOK_S
from zmesh.runtime.values import with_captured
from zmesh.runtime_env import packages_of
from zmesh.wire.actor_messages import NAME_FIND, NAME_TAKE
from zmesh.wire.keeper_messages import KeepActor
from zmesh.wire.messages import ERROR

if TYPE_CHECKING:
    from zmesh.runtime.session import Session

# So often a name may belong to an actor or group that is gone, for some 10 s in all; after the first 0.5 s its node is
# asked about it.
NAME_TRIES, DOUBT_TRIES = 150, 50
INLINE_ARGUMENTS_MAX = 64 * 1024  # larger ones go to shared memory, as those of tasks


class ActorSession:
    """The actors of one session.

    Args:
        session: whose; it packs values and waits.
    """

    def __init__(self, session: "Session") -> None:
        self._session = session
        self.namespace = DEFAULT_NAMESPACE
        self.specs: dict[Any, Spec] = {}  # {how a method is called, as the face puts it: its spec}

    def create(self, spec: Spec, args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str, ordered: bool) -> Handle:
        """Make an actor; never waits for it. Returns the entry of its first handle, with one reference counted.

        Raises:
            SerializationError: an argument cannot be pickled.
            StoreFullError: large arguments do not fit.
        """
        payload, inputs = self._pack(spec, args, kwargs)
        session, core = self._session, self._session.core
        reactor = session.reactor
        with reactor.lock:
            reactor.holder = threading.get_ident()
            now = monotonic()
            handle = core.new_actor(spec, payload, inputs, session.depth, name=name, ordered=ordered)
            core.start_actor(handle, now)
            reactor.send_out(now)
            reactor.holder = 0
        if reactor.signalled is not None:
            reactor.raise_signal()
        return handle

    def create_named(
        self,
        spec: Spec,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        name: str,
        ordered: bool,
        called: tuple[str, str],
        description: Any,
        detached: bool = False,
        here: bool = True,
    ) -> tuple[Entry, Any, bool]:
        """Make an actor unless one has that name; waits until that is sure.

        Args:
            called: (namespace, name).
            description: what a handle knows of it, for those who find it.
            detached: it is to outlive this program: our node's keeper makes it.
            here: a detached one should live on this node.

        Returns:
            (entry of a handle of the actor that has the name, its description, whether it is ours); if it is not, the
            entry's reference is counted, so that the actor stays.

        Raises:
            SerializationError, StoreFullError: as `create`.
            MeshError: the node was lost.
        """
        blob = serialization.to_inline(serialization.pack(description))
        if detached:
            return self._create_detached(spec, args, kwargs, (*called, blob), description, ordered=ordered, here=here)
        payload, inputs = self._pack(spec, args, kwargs)
        session, core = self._session, self._session.core
        with session.reactor.lock:
            handle = core.new_actor(spec, payload, inputs, session.depth, name=name, ordered=ordered)
            oid = core.references.oid(handle)
        why = "its name could not be taken"
        try:
            session._promote([handle])
            tries = 0
            while True:
                taken = self.ask_name(NAME_TAKE, *called, oid, blob)
                if taken[2] == oid:
                    session._do(lambda: core.start_actor(handle, monotonic()))
                    return handle, description, True
                found = self._claim(taken)
                if found is not None:
                    why = "another actor has its name"
                    break
                self.await_name(*called, taken[2], tries)
                tries += 1
        except BaseException:
            self._abandon(handle, why)
            raise
        self._abandon(handle, why)
        return (*found, False)

    def _create_detached(
        self,
        spec: Spec,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        called: tuple[str, str, bytes],
        description: Any,
        *,
        ordered: bool,
        here: bool,
    ) -> tuple[Entry, Any, bool]:
        """As `create_named`; `called` is (namespace, name, packed description). The keeper waits for nothing of ours
        once it has answered: all that the actor needs is counted for it then."""
        session, core = self._session, self._session.core
        session.warn_if_private()
        args, kwargs = self._lighten(args, kwargs)  # until the answer, ours is what keeps these objects
        payload, inputs = self._pack(spec, args, kwargs)
        inputs = inputs or Inputs()
        session._promote(inputs.deps)
        held = [session.object_id(entry) for entry in inputs.held]
        held += [package[1] for package in packages_of(spec.options.get("env", {}))]
        deps = [session.object_id(entry) for entry in inputs.deps]
        told: list[Any] = [spec.name, spec.shape, spec.fallbacks, spec.options, spec.digest, spec.blob]
        told += [spec.max_retries, spec.priority]
        tries = 0
        while True:
            with session.reactor.lock:
                order = KeepActor(0, session.job, told, payload, deps, held, *called, ordered, here)
                ticket = core.actors.keep(order, inputs.deps)
            kept = session.redeem(ticket)
            if kept.made:
                with session.reactor.lock:
                    return core.references.borrow(kept.found[2], counted=True), description, True
            found = self._claim(kept.found)
            if found is not None:
                return (*found, False)
            self.await_name(*called[:2], kept.found[2], tries)
            tries += 1

    def _lighten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put what is large into objects of its own, so that the arguments themselves fit into a message."""
        limit = INLINE_ARGUMENTS_MAX // (2 * max(1, len(args) + len(kwargs)))

        def light(value: Any) -> Any:
            try:
                small = isinstance(value, ObjectRef) or serialization.pack(value, "an argument").nbytes <= limit
            except SerializationError:
                return value  # whoever packs the whole call says better where it is
            return value if small else self._session.put(value)

        return tuple(map(light, args)), {name: light(value) for name, value in kwargs.items()}

    def _abandon(self, handle: Handle, why: str) -> None:
        core = self._session.core

        def abandon() -> None:
            core.actors.abandon(handle, why)
            core.references.drop(handle)

        self._session._do(abandon)

    def ask_name(self, *question: Any) -> Any:
        """Ask about a name, and wait for the answer; see ActorCalls.ask_name."""
        with self._session.reactor.lock:
            ticket = self._session.core.actors.ask_name(*question)
        return self._session.redeem(ticket)

    def _claim(self, taken: Any) -> tuple[Entry, Any] | None:
        """Become a holder of the actor of a name; None if it is gone."""
        session, references = self._session, self._session.core.references
        with session.reactor.lock:
            entry, ticket = references.claim_found(taken[2])
        session._wait_entries([ticket], 1, None)
        if ticket.status == ERROR:
            session._do(lambda: references.unclaim(entry))
            return None
        return entry, serialization.unpack_inline(taken[3])

    def find(self, namespace: str, name: str) -> tuple[Entry, Any] | None:
        """Return (entry, description) of the actor with that name, with a reference counted; None if there is none."""
        taken = self.ask_name(NAME_FIND, namespace, name)
        found = self._claim(taken) if taken else None
        if taken and found is None:
            self._doubt(namespace, name, taken[2])
        return found

    def _doubt(self, namespace: str, name: str, holder: bytes) -> None:
        self._session._do(lambda: self._session.core.actors.doubt_name(namespace, name, holder))

    def await_name(self, namespace: str, name: str, holder: bytes, tries: int) -> None:
        """What has a name is gone, of which the name's home is about to hear: wait a moment, and then help.

        Args:
            tries: how often that was so before.

        Raises:
            MeshError: it was too often.
        """
        if tries >= NAME_TRIES:
            raise MeshError(f"the name {name!r} belongs to what is gone, and is not given free")
        if tries >= DOUBT_TRIES:
            self._doubt(namespace, name, holder)
        time.sleep(0.1 if tries >= DOUBT_TRIES else 0.01)

    def names(self) -> list[tuple[str, str]]:
        """Return (namespace, name) of all actors of the mesh that have one."""
        here = self._session.status()
        names = list(here["names"])
        for member in here["members"]:
            if member["node"] != here["node"] and member["state"] == "alive":
                names += self._session.status(node=member["node"])["names"]
        return sorted((str(namespace), str(name)) for namespace, name in names)

    def call(
        self,
        handle: Entry,
        name: str,
        spec: Spec,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        ordered: bool,
        pending_max: int,
    ) -> Task:
        """Call a method; never waits for it. Returns the call, with a reference counted for each result.

        Raises:
            PendingCallsLimitExceededError: so many calls of this process wait for their results already.
            SerializationError, StoreFullError: as `create`.
            MeshError: the session was shut down, or belongs to the process this one was forked from.
        """
        session = self._session
        reactor, core = session.reactor, session.core
        session.check_open()
        payload, inputs = self._pack(spec, args, kwargs)
        with reactor.lock:
            reactor.holder = threading.get_ident()
            now = monotonic()
            actor = core.actors.find(handle, name, ordered=ordered)
            full = 0 < pending_max <= actor.open
            task = None if full else core.call(actor, handle, spec, payload, inputs, session.depth, now)
            if now - reactor.last_pump > LOOK_S:
                reactor.pump(now)
            elif core.effects:
                reactor.send_out(now)
            reactor.holder = 0
        if reactor.signalled is not None:
            reactor.raise_signal()
        if task is None:
            raise PendingCallsLimitExceededError(
                f"{pending_max} calls of actor {name} have no result yet, and max_pending_calls={pending_max}: get some"
            )
        return task

    def _pack(self, spec: Spec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Inputs | None]:
        payload: Any = None if kwargs else calls.pack_plain(args)
        inputs = None
        if payload is None or len(payload) > INLINE_ARGUMENTS_MAX:
            payload, inputs = self._session._pack_call(spec, args, kwargs)
        return payload, with_captured(spec, inputs) if spec.held else inputs

    def kill(self, handle: Entry, name: str, *, ordered: bool, no_restart: bool) -> None:
        """End an actor at once; does not wait for it."""
        core = self._session.core
        self._session._do(
            lambda: core.kill_actor(core.actors.find(handle, name, ordered=ordered), monotonic(), no_restart=no_restart)
        )

    @staticmethod
    def is_call(entry: Entry) -> bool:
        """Whether an entry is the result of an actor's method."""
        return isinstance(entry, MethodCall)
