"""What the face calls for actors: make one, call it, kill it. The part of a session that knows them; any thread.

Every rule about actors is in core/actor_calls.py; here arguments are packed and the reactor is driven.
"""

import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from zmesh.core.records import Entry, Handle, Inputs, MethodCall, Spec, Task
from zmesh.exceptions import PendingCallsLimitExceededError
from zmesh.runtime import calls
from zmesh.runtime.reactor import LOOK_S

if TYPE_CHECKING:
    from zmesh.runtime.session import Session

INLINE_ARGUMENTS_MAX = 64 * 1024  # larger ones go to shared memory, as those of tasks


class ActorSession:
    """The actors of one session.

    Args:
        session: whose; it packs values and waits.
    """

    def __init__(self, session: "Session") -> None:
        self._session = session
        self.specs: dict[Any, Spec] = {}  # {how a method is called, as the face puts it: its spec}

    def create(self, spec: Spec, args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str, ordered: bool) -> Handle:
        """Make an actor; never waits for it. Returns the entry of its first handle, with one reference counted.

        Raises:
            SerializationError: an argument cannot be pickled.
            StoreFullError: large arguments do not fit.
        """
        payload, inputs = self._pack(spec, args, kwargs)
        session = self._session
        reactor = session.reactor
        with reactor.lock:
            reactor.holder = threading.get_ident()
            now = monotonic()
            handle = session.core.create_actor(spec, payload, inputs, session.depth, now, name=name, ordered=ordered)
            reactor.send_out(now)
            reactor.holder = 0
        if reactor.signalled is not None:
            reactor.raise_signal()
        return handle

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
        """
        payload, inputs = self._pack(spec, args, kwargs)
        session = self._session
        reactor, core = session.reactor, session.core
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
        payload = None if kwargs else calls.pack_plain(args)
        if payload is None or len(payload) > INLINE_ARGUMENTS_MAX:
            return self._session._pack_call(spec, args, kwargs)
        return payload, None

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
