"""Actors of `init(local=True)`: instances in this process, whose methods run inline, at `.remote()`."""

import asyncio
import inspect
import os
from typing import Any

from zmesh.actor_options import DEFAULT_NAMESPACE
from zmesh.core.records import Entry, Spec, Task
from zmesh.object_ref import ActorExit
from zmesh.runtime import serialization
from zmesh.wire.messages import ERROR, INLINE


class LocalActor:
    """One actor: its instance, or why it has none any more."""

    def __init__(self, oid: bytes, name: str, called: str, description: Any) -> None:
        self.id = oid
        self.name = name
        self.description = description
        self.called = called
        self.environment: Any = None  # what its calls find around them
        self.restarts = 0
        self.instance: Any = None
        self.failure: Any = None

    def died(self, why: str, **attributes: Any) -> None:
        """Have every call fail from now on."""
        text = f"actor {self.name} ({self.id.hex()}) is dead: {why}"
        told = {"actor_id": self.id.hex(), "class_name": self.name, "pid": os.getpid(), **attributes}
        self.failure = ERROR, ("ActorDiedError", text, told)
        self.instance = None


class LocalActors:
    """The methods of runtime/actor_session.py that the face uses, inline.

    Args:
        session: a LocalSession.
        me: PeerID that names its objects.
    """

    def __init__(self, session: Any, me: bytes, namespace: str | None) -> None:
        self.namespace = namespace or DEFAULT_NAMESPACE
        self._names: dict[tuple[str, str], Entry] = {}
        self._session = session
        self._me = me
        self._actors: dict[int, LocalActor] = {}  # {seq of the handles' entry: actor}
        self.specs: dict[Any, Spec] = {}
        self.running: list[LocalActor] = []  # whose methods are under way, innermost last

    def create(self, spec: Spec, args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str, ordered: bool) -> Entry:
        """Make the instance now."""
        del ordered
        cls, description = spec.options["function"]
        made: list[Any] = []

        def init(*args: Any, **kwargs: Any) -> None:
            made.append(cls(*args, **kwargs))

        entry = Entry(self._session.next_seq(), 0, INLINE, b"")
        actor = self._actors[entry.seq] = LocalActor(
            self._session.keep(entry), name, spec.options["actor"]["name"], description
        )
        actor.environment = spec.options.get("env")
        task = self._submit(actor, spec, init, args, kwargs, returns=1)
        if made:
            actor.instance = made[0]
        elif actor.failure is None:
            told: Any = serialization.unpack_error(task.value)
            text = getattr(told, "traceback_text", "")
            name = type(told.cause or told).__name__
            actor.died(f"its __init__ raised {name}: {told}\n{text}", actor_init_failed=True)
        return entry

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
        """Make the instance, unless one has that name; a detached one ends with this process, too."""
        del detached, here
        found = self.find(*called)
        if found is not None:
            return (*found, False)
        self._names[called] = entry = self.create(spec, args, kwargs, name=name, ordered=ordered)
        return entry, description, True

    def find(self, namespace: str, name: str) -> tuple[Entry, Any] | None:
        """Return the living actor that has a name."""
        entry = self._names.get((namespace, name))
        actor = None if entry is None else self._actors[entry.seq]
        return None if entry is None or actor is None or actor.failure else (entry, actor.description)

    def names(self) -> list[tuple[str, str]]:
        """Return the names of living actors."""
        return sorted(called for called in self._names if self.find(*called) is not None)

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
        """Run the method now."""
        del name, ordered, pending_max
        actor = self._actors[handle.seq]
        method = spec.options["method"]

        def run(*args: Any, **kwargs: Any) -> Any:
            if method == "__zmesh_ready__":
                return True
            if method == "__zmesh_terminate__":
                raise ActorExit
            if method == "__zmesh_call__":
                return args[0](actor.instance, *args[1:], **kwargs)
            value = getattr(actor.instance, method)(*args, **kwargs)
            if inspect.isasyncgen(value):
                return asyncio.run(_items(value))
            return asyncio.run(value) if inspect.iscoroutine(value) else value

        return self._submit(actor, spec, run, args, kwargs, returns=spec.num_returns)

    def _submit(
        self, actor: LocalActor, spec: Spec, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], returns: int
    ) -> Task:
        if actor.failure is not None:
            return self._session.failed(spec, *actor.failure)  # type: ignore[no-any-return]  # a LocalSession
        options = spec.options | {"function": function, "env": actor.environment}
        one = Spec(0, self._me, spec.name, {}, num_returns=returns, options=options, max_retries=spec.max_retries)
        self.running.append(actor)
        try:
            task: Task = self._session.submit(one, args, kwargs)
        except ActorExit:
            actor.died("it called exit_actor()")
            task = self._session.failed(spec, *actor.failure)  # type: ignore[misc]  # died() has set it
        finally:
            self.running.pop()
        return task

    def kill(self, handle: Entry, name: str, *, ordered: bool, no_restart: bool) -> None:
        """Drop the instance."""
        del name, ordered, no_restart
        self._actors[handle.seq].died("it was killed by zmesh.kill()")

    @staticmethod
    def is_call(entry: Entry) -> bool:
        """Return False: nothing is left to cancel."""
        del entry
        return False


async def _items(values: Any) -> list[Any]:
    return [value async for value in values]
