"""How an actor knows that who called it is still there: it awaits a call of his that ends with him, or with a word."""

import asyncio
import itertools
import os
from typing import Any

from zmesh import api
from zmesh.actor import ActorHandle
from zmesh.exceptions import LocalProtocolError, MeshError
from zmesh.limits import check_whole
from zmesh.remote_function import remote

_OPTIONS = {"num_cpus": 0, "max_concurrency": 1_000_000}  # each who is present has a call under way


class Presence:
    """The actor's side: a base of its class, with `left` to be overridden. In its event loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._stays: dict[bytes, asyncio.Event] = {}  # {token of who is present: set when he leaves}
        self._watching: dict[int, asyncio.Task[None]] = {}

    async def stay(self, token: bytes) -> None:
        """Last as long as the caller wants to be present."""
        await self._stays.setdefault(token, asyncio.Event()).wait()
        del self._stays[token]

    async def leave(self, token: bytes) -> None:
        """End his `stay`."""
        self._stays.setdefault(token, asyncio.Event()).set()

    async def call(self, method: str, held: list[Any], *args: Any) -> Any:
        """Call a method of this actor for somebody present: method(held, his number, *args)."""
        return await getattr(self, method)(held, next(self._numbers), *args)

    def watch(self, stays: Any, number: int) -> None:
        """Have `left(number)` called when the ref of a `stay` resolves, or its owner dies."""
        self._watching[number] = asyncio.ensure_future(self._watch(stays, number))

    async def _watch(self, stays: Any, number: int) -> None:
        try:
            await stays
        except MeshError:
            pass  # he died
        finally:
            del self._watching[number]
        self.left(number)

    def left(self, number: int) -> None:
        """Somebody is not present any more; he may never have been."""
        raise NotImplementedError


def start(cls: type[Presence], name: str, count: Any, actor_options: dict[str, Any] | None) -> ActorHandle:
    """Return an actor of that class, made with `count`.

    Raises:
        ConfigError: `count`, called `name`, is no whole number from 1.
        LocalProtocolError: zmesh runs with local=True.
    """
    check_whole(name, count)
    if api.auto_init().information.get("local"):
        raise LocalProtocolError(
            "with local=True everything runs in one thread, where nobody else could let go of a semaphore or come to a "
            "barrier: leave it out there, or use init() without local=True"
        )
    make: Any = remote(cls)
    actor: ActorHandle = make.options(**(_OPTIONS | (actor_options or {}))).remote(count)
    return actor


class Present:
    """The caller's side: one presence."""

    def __init__(self, actor: ActorHandle) -> None:
        self._actor = actor
        self._token = os.urandom(8)
        self._stays = actor.stay.remote(self._token)

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method of the actor and return its result; whoever gives that up is present no longer."""
        try:
            return api.get(self._actor.call.remote(method, [self._stays], *args))
        except BaseException:
            self.leave()
            raise

    async def ask_async(self, method: str, *args: Any) -> Any:
        """As `ask`, for a coroutine."""
        try:
            return await self._actor.call.remote(method, [self._stays], *args)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Be present no longer."""
        self._actor.leave.remote(self._token)
