"""The event loop of an actor with `async def` methods: in the main thread of the worker, which drives the sockets too.

The loop sleeps where every client sleeps, in the reactor, with the loop's own descriptors among those of the mesh. So
one thread reads a call, runs it and answers it, as for a plain actor, and what ends in one round of the loop leaves in
one message. Handing calls to a loop in a thread of its own took three times as long.
"""

import asyncio
import contextlib
import inspect
import os
import selectors
import sys
import threading
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any

from zmesh.core.running import Running
from zmesh.object_ref import ActorExit
from zmesh.runtime.actor_main import Outcome, entered
from zmesh.runtime.reactor import LOOK_S, Waiter
from zmesh.wire.messages import CANCELLED

if TYPE_CHECKING:
    from zmesh.runtime.actor_main import ActorProcess

YIELD_S = 0.001  # how often a stream looks whether its reader has taken what it was sent


class _Selector(selectors.EpollSelector):
    """What an event loop asks once a round which descriptors are ready.

    Args:
        sleep: sleeps instead, for so many seconds at most, and returns how much is left of them.
    """

    def __init__(self, sleep: Callable[[float | None], float | None]) -> None:
        super().__init__()
        self._sleep = sleep

    def select(self, timeout: float | None = None) -> Any:
        """Return what is ready, after `timeout` seconds at the latest; None: when there is something."""
        return super().select(self._sleep(timeout))


class _Call(asyncio.Task[None]):
    """A call in the event loop. Cancelled before its first step, as by a method that cancels all tasks, it would end
    without that step, and nobody would answer it: so it is told, and ends there."""

    def __init__(self, steps: Coroutine[Any, Any, None], call: Running, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(steps, loop=loop)
        self._steps = steps
        self._running = call

    def cancel(self, msg: Any = None) -> bool:
        """Cancel it; see asyncio.Task.cancel."""
        if inspect.getcoroutinestate(self._steps) != inspect.CORO_CREATED:
            return super().cancel(msg)
        self._running.cancelled = True
        return True


class ActorLoop:
    """The event loop of one actor. Main thread only, unless said otherwise.

    Args:
        actor: runs methods and says what becomes of them.
        worker: the process.
    """

    def __init__(self, actor: "ActorProcess", worker: Any) -> None:
        self._actor = actor
        self._worker = worker
        self._core = worker.core
        self._reactor = worker.reactor
        self._selector = _Selector(self._between_rounds)
        self._loop = asyncio.SelectorEventLoop(self._selector)
        asyncio.set_event_loop(self._loop)
        self._serving = self._warned = False
        self._idle = Waiter(1)
        self._looked_s = 0.0  # when we last looked for calls
        self._taken: list[Running] = []  # calls to start
        self._done: list[tuple[Running, Outcome]] = []  # not told yet
        self._tasks: dict[tuple[bytes, int], asyncio.Task[None]] = {}  # {(caller, seq): call under way}

    def serve(self) -> None:
        """Run calls until the actor ends."""
        self._idle.condition = self._take
        self._reactor.watch(self._selector.fileno())
        self._serving = True
        try:
            while not self._ended:
                try:
                    self._loop.run_forever()
                except KeyboardInterrupt as error:  # of a callback or task as below: nobody pressed a key here
                    self._loop.call_exception_handler({"message": "raised in the event loop", "exception": error})
        except (ActorExit, SystemExit) as error:  # of a callback, or of a task that no call is
            self._actor.exit(error)
        finally:
            self._serving = False
            self._reactor.watch(-1)
        self._tell()

    def _between_rounds(self, timeout: float | None) -> float | None:
        """Answer what ended, start what came, and sleep while there is nothing to do."""
        if not self._serving:  # `__init__` runs something in the loop
            return timeout
        if self._done:
            self._tell()
        reactor = self._reactor
        now = monotonic()
        if timeout is None or timeout > 0:
            self._idle.satisfied = False
            if reactor.stirred:
                reactor.watch_again()
            reactor.wait(self._idle, None if timeout is None else now + timeout)
        elif now - self._looked_s >= LOOK_S:
            with reactor.lock:
                reactor.holder = threading.get_ident()
                reactor.pump(now, everything=False)
                self._take()
                reactor.holder = 0
        self._looked_s = now
        if self._taken:
            calls, self._taken = self._taken, []
            for call in calls:
                self._tasks[call.victim, call.seq] = _Call(self._run(call), call, self._loop)
        if self._ended:
            self._loop.stop()
        return 0.0

    @property
    def _ended(self) -> bool:
        return self._actor.failure is not None or self._core.server.over

    def _take(self) -> bool:
        """Take all calls that may start: asked under the lock after each look at the sockets, by anybody."""
        if self._actor.failure is None:
            now = monotonic()
            while (call := self._core.next_call(now)) is not None:
                self._taken.append(call)
        return bool(self._taken) or self._reactor.stirred or self._ended

    def _tell(self) -> None:
        """Send the results of a round."""
        done, self._done = self._done, []
        reactor, core = self._reactor, self._core
        with reactor.lock:
            reactor.holder = threading.get_ident()
            now = monotonic()
            for call, outcome in done:
                core.call_finished(call, *outcome, now)
            core.server.flush()
            if core.effects:
                reactor.send_out(now)
            reactor.holder = 0

    async def _run(self, call: Running) -> None:
        entered(call)
        worker, spec = self._worker, call.spec
        try:
            if call.cancelled:
                raise asyncio.CancelledError
            args, kwargs = worker.arguments(call)
            value = self._actor.value_of(spec.options["method"], args, kwargs)
            del args, kwargs
            if isinstance(value, Coroutine):
                value = await value
            if spec.num_returns == -1:
                outcome = await self._stream(call, value)
            else:
                outcome = worker.packed(call, spec, value)
        except asyncio.CancelledError:
            outcome = (CANCELLED, None, [], 0)
        except (ActorExit, SystemExit) as error:
            outcome = self._actor.exit(error)
        except BaseException as error:
            outcome = worker.failure(error, spec)
        if os.getpid() != worker.pid:
            os._exit(0)  # user code forked and its child came back here: it is not this actor
        del self._tasks[call.victim, call.seq]
        self._done.append((call, outcome))

    async def _stream(self, call: Running, values: Any) -> Outcome:
        if not hasattr(values, "__aiter__"):
            outcome: Outcome = self._worker.stream(call, values)
            return outcome
        async for value in values:
            self._worker.send_item(call, value)
            while not self._core.may_yield(call):
                await asyncio.sleep(YIELD_S)
            if call.stopped is not None:
                await values.aclose()
                break
        return self._worker.stream_ended(call)  # type: ignore[no-any-return]

    def about_to_wait(self) -> None:
        """Warn, once, of a get() that holds up the loop, and waits for ever if it is for another call. Any thread."""
        if self._warned or not self._loop.is_running() or threading.current_thread() is not threading.main_thread():
            return
        self._warned = True
        text = "get() in the event loop holds up all its calls: `await` the ref, or get() in asyncio.to_thread"
        print(f"zmesh worker: actor {self._actor.name}: {text}", file=sys.stderr)

    def cancel(self, caller: bytes, seq: int) -> None:
        """Cancel a call; others run on. Any thread."""
        task = self._tasks.get((caller, seq))
        if task is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(task.cancel)
