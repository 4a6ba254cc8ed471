"""A worker that is an actor: makes the instance, then runs its methods until it is told to end.

A plain actor runs in the worker's main thread, which reads, runs and answers itself. One with places for more than one
call at a time has a thread for each that is taken; one with `async def` methods an event loop (runtime/actor_loop.py).
Which call is next is core/actor_server.py's business.
"""

import contextvars
import gc
import os
import queue
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from zmesh.core.records import Entry
from zmesh.core.running import Running
from zmesh.object_ref import ActorExit
from zmesh.runtime import calls, serialization
from zmesh.runtime.reactor import Waiter
from zmesh.wire.ids import actor_id
from zmesh.wire.messages import END, ERROR

if TYPE_CHECKING:
    from zmesh.runtime.actor_loop import ActorLoop

Outcome = tuple[int, Any, list[bytes], int]  # (status, value, ObjectIDs inside, bytes)

READY, CALL, TERMINATE = "__zmesh_ready__", "__zmesh_call__", "__zmesh_terminate__"

_running: contextvars.ContextVar[Running] = contextvars.ContextVar("_running")  # in threads and event loops


def entered(call: Running) -> None:
    """Note which call this thread, or this task of the event loop, runs."""
    _running.set(call)


def _who_runs() -> tuple[bytes, int] | None:
    """Return (caller, seq) of the call this thread, or this task of the event loop, runs."""
    running = _running.get(None)
    return None if running is None else (running.victim, running.seq)


class ActorProcess:
    """The actor of this process, from `__init__` to its end.

    Args:
        worker: the process.
        creation: the task that is this actor.
        plan: {"places": {group: calls at once}, "async": bool, "lent": resources it needs no more once it is made}.
    """

    def __init__(self, worker: Any, creation: Running, plan: dict[str, Any]) -> None:
        self._worker = worker
        self._core = worker.core
        self._reactor = worker.reactor
        self.creation = creation
        self._plan = plan
        self.name: str = creation.spec.name
        self.id = actor_id(creation.victim, creation.seq)
        self.called: str = plan["name"]
        self.restarts = creation.attempt
        self.instance: Any = None
        self.description: Any = None  # what handles know of it
        self._next: Running | None = None
        self.failure: Any = None  # what calls get once the actor has ended
        self._loop: ActorLoop | None = None
        self._threads_lock = threading.Lock()
        self._threads: dict[str, list[Any]] = {}  # {group: [its queue, number of threads]}
        self._serving = False

    def current(self) -> Running:
        """Return the call this thread runs; the creation task if none."""
        running = _running.get(None)
        return running if running is not None else self._worker.running

    # From birth to end.

    def live(self, made_of: tuple[type[Any], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        """Make the instance of (class, description for handles) and serve; returns the creation task's outcome."""
        cls, self.description = made_of
        if self._plan["async"]:
            from zmesh.runtime.actor_loop import ActorLoop  # asyncio takes 25 ms, and few actors need it

            self._loop = ActorLoop(self, self._worker)
        try:
            self.instance = cls(*args, **kwargs)
        except ActorExit:
            return self._stillborn("it called exit_actor() in __init__")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and self._worker.interrupted:
                raise  # it is to be cancelled
            told: Any = serialization.unpack_error(
                serialization.pack_error(error, f"{self.name}.__init__", os.getpid())
            )
            text = getattr(told, "traceback_text", None) or str(told.__cause__ or told)
            return self._stillborn(f"its __init__ raised {type(error).__name__}: {error}\n{text}")
        del args, kwargs
        places: dict[str, int] = self._plan["places"]
        self._worker.out_of_task()
        self._worker.called(self.name)
        with self._reactor.lock:
            self._reactor.holder = threading.get_ident()
            self._worker.sockets.listen()
            self._core.serve(places, self._plan["lent"], calls.NONE, monotonic())
            self._reactor.pump(monotonic())
            self._reactor.holder = 0
        self._serving = True
        if self._loop is not None or places != {"": 1}:
            self._core.who_runs = _who_runs
        if self._loop is not None:
            self._loop.serve()
        elif places == {"": 1}:
            self._serve_alone()
        else:
            self._serve_many()
        with self._reactor.lock:
            self._reactor.holder = threading.get_ident()
            self._core.actor_ended(self.failure or self._died("it has ended"), monotonic())
            self._reactor.pump(monotonic())
            self._reactor.holder = 0
        self.instance = None
        gc.collect()
        return END, self.creation.items, [], 0

    def _stillborn(self, why: str) -> Outcome:
        status, (name, text, attributes) = self._died(why)
        return status, (name, text, attributes | {"actor_init_failed": True}), [], len(text)

    def _died(self, why: str) -> tuple[int, Any]:
        told = {"actor_id": self.id.hex(), "class_name": self.name, "pid": os.getpid()}
        return ERROR, ("ActorDiedError", f"actor {self.name} ({self.id.hex()}) is dead: {why}", told)

    def _take(self) -> bool:
        """Take the next call, if there is one: asked under the lock after each look at the sockets, by anybody."""
        if self._next is None and self.failure is None:
            self._next = self._core.next_call(monotonic())
        return self._next is not None or self.failure is not None or self._core.server.over

    def _serve_alone(self) -> None:
        """Run one call after the other, in this thread: the hot path."""
        reactor, core, worker = self._reactor, self._core, self._worker
        idle = Waiter(1)
        me = threading.get_ident()
        while self.failure is None:
            call = self._next
            if call is None:
                idle.satisfied = False
                reactor.wait_until(idle, self._take)
                if self._next is None:
                    break  # retired
                continue
            worker.running = call
            outcome = self._run(call)
            worker.running = self.creation
            with reactor.lock:
                reactor.holder = me
                now = monotonic()
                core.call_finished(call, *outcome, now)
                self._next = core.next_call(now) if self.failure is None else None
                if core.effects:
                    reactor.send_out(now)
                reactor.holder = 0

    def _serve_many(self) -> None:
        """Hand calls to threads."""
        idle = Waiter(1)
        while self.failure is None:
            idle.satisfied = False
            self._reactor.wait_until(idle, self._take)
            with self._reactor.lock:
                call, self._next = self._next, None
                over = call is None and self._core.server.over
            if call is not None:
                self._hand_over(call)
            elif over:
                break

    # One call.

    def _run(self, call: Running) -> Outcome:
        """Run one call to its end, in this thread."""
        worker, spec = self._worker, call.spec
        worker.called(spec.name)
        worker.session.depth = call.depth + 1
        try:
            args, kwargs = worker.arguments(call)
            value = self.value_of(spec.options["method"], args, kwargs)
            del args, kwargs
            if spec.num_returns == -1:
                outcome: Outcome = worker.stream(call, value)
            else:
                outcome = worker.packed(call, spec, value)
        except (ActorExit, SystemExit) as error:
            outcome = self.exit(error)
        except BaseException as error:
            outcome = worker.failure(error, spec)
        if os.getpid() != worker.pid:
            os._exit(0)  # user code forked and its child came back here: it is not this actor
        return outcome

    def value_of(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method; raises what it raises."""
        if method == READY:
            return True
        if method == CALL:
            return args[0](self.instance, *args[1:], **kwargs)
        if method == TERMINATE:
            raise ActorExit
        return getattr(self.instance, method)(*args, **kwargs)

    def exit(self, error: BaseException) -> Outcome:
        """The actor ends itself, with this call."""
        how = "it called exit_actor()" if isinstance(error, ActorExit) else f"it called sys.exit({error})"
        self.failure = self._died(how)
        return (*self.failure, [], 0)

    def own_handle(self) -> Entry:
        """Return the entry of a handle of this actor, counted as any that arrives; asks for that, and waits."""
        session, references = self._worker.session, self._core.references
        for ask in (references.claim_found, self._core.ask_own_handle):  # its home may not have heard of it
            with self._reactor.lock:
                entry, ticket = ask(self.id)
            session._wait_entries([ticket], 1, None)
            if ticket.status != ERROR:
                return cast(Entry, entry)
            session._do(lambda entry=entry: references.unclaim(entry))
        return cast(Entry, session.borrow(self.id))  # nobody has one any more: its calls will say so

    def about_to_wait(self) -> None:
        """User code waits for objects in this thread."""
        if self._loop is not None:
            self._loop.about_to_wait()

    # Threads.

    def _hand_over(self, call: Running) -> None:
        """Give a call to a thread of its group; there is one for each place that was ever taken. Any thread."""
        name = call.spec.options.get("group", "")
        with self._threads_lock:
            group = self._threads.get(name)
            if group is None:
                group = self._threads[name] = [queue.SimpleQueue(), 0]
            more = group[1] < self._core.server.groups[name].busy
            group[1] += more
        if more:
            title = f"zmesh-{name or self.name}"
            threading.Thread(target=self._work, args=(group[0], name), name=title, daemon=True).start()
        group[0].put(call)

    def _work(self, waiting: "queue.SimpleQueue[Running]", group: str) -> None:
        call: Running | None = None
        while True:
            if call is None:
                call = waiting.get()
            entered(call)
            call = self._go_on(call, self._run(call), group)

    def _go_on(self, call: Running, outcome: Outcome, group: str) -> Running | None:
        """Send a result, and return the next call of the group: this thread runs it without waking another."""
        reactor, core = self._reactor, self._core
        with reactor.lock:
            reactor.holder = threading.get_ident()
            now = monotonic()
            core.call_finished(call, *outcome, now)
            following = None
            if self.failure is None:
                following, self._next = self._next, None  # the main thread has taken it, and is about to wake another
                if following is None:
                    following = core.next_call(now)
            core.server.flush()
            reactor.send_out(now)
            reactor.holder = 0
        if following is not None and following.spec.options.get("group", "") != group:
            self._hand_over(following)
            following = None
        if self.failure is not None:
            reactor.nudge()
        return following

    def interrupt(self, caller: bytes, seq: int) -> bool:
        """Cancel a call that runs in the event loop; others run on. False before the actor is made. Under the lock."""
        if not self._serving:
            return False
        if self._loop is not None:
            self._loop.cancel(caller, seq)
        return True
