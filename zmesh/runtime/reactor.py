"""Drive one client core: one lock, whoever waits drives the sockets, and a background thread for when nobody does.

Three rules, each with a test that fails without it (tests/runtime/test_reactor.py):

- Lost wake-up. A thread that touches a socket swallows the edge another thread sleeps on. So if anybody sleeps,
  whoever sends or receives drains the sockets it touched to EAGAIN, feeds the core and carries out the effects before
  it lets go of the lock; if what it did concerns the sleeper, it writes its eventfd. If nobody does, the sockets stay
  marked as touched, and whoever sleeps next drains them first.
- Signals. A KeyboardInterrupt between the two frames of a message would glue it to the next. Our handler only notes a
  signal that arrives while the main thread holds the lock, and the thread raises it after letting go.
- Finalizers take no lock: they append to a deque, and write the eventfd if somebody should look soon.

At most one thread sleeps on the sockets, the *leader*: a thread in `wait` (foreground), else the background thread.
While anybody has looked in the last 20 ms the background thread only sleeps, without entering: a loop of get() calls
runs in one thread. Never branches on what a message is.
"""

import os
import select
import signal
import threading
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic, sleep
from typing import Any

from zmesh.core import effects as fx
from zmesh.core.client import ClientCore
from zmesh.core.records import Entry
from zmesh.exceptions import InternalError, MeshError, NotRunningError, RemoteProtocolError
from zmesh.runtime.sockets import ClientSockets
from zmesh.wire.codec import decode, encode
from zmesh.wire.ids import PeerID
from zmesh.wire.messages import ERROR, FAILED

WATCH_S = 0.02  # how long nobody may have looked before the background thread does
SPIN_S = 0.0001  # a wait that follows a short one looks so long before it sleeps, letting others run between looks,
SPIN_MAX_S = 0.0006  # or twice as long as that took, but no longer than this: a task on another host and back.
# Waking an idle CPU costs more than the message: it took a round trip from 1.8 to 0.8 times the raw echo, which sleeps.
# Source: perf/roundtrip.py. Precedents: adaptive mutexes, MPI's polling receives.
SHORT_WAIT_S = 0.0006
FULL_LOOK_S = 0.005  # a thread that is busy with one socket looks at the others so often: the node may want something
LOOK_S = 0.001  # a thread that submits in a loop looks at the sockets so often

_NOBODY, _FOREGROUND, _BACKGROUND = 0, 1, 2


class Waiter:
    """Somebody waits for `remaining` of some entries; `ready` collects those that resolve, in order of completion."""

    __slots__ = ("callback", "condition", "first_error", "gate", "ready", "remaining", "satisfied", "sleeping")

    def __init__(
        self, remaining: int, *, first_error: bool = False, callback: Callable[[Entry], None] | None = None
    ) -> None:
        self.remaining = remaining
        self.first_error = first_error
        self.callback = callback  # called under the lock: it must only hand the entry on
        self.condition: Callable[[], bool] | None = None
        self.ready: deque[Entry] = deque()
        self.satisfied = remaining <= 0
        self.sleeping = False
        self.gate: Any = None  # made when a second thread has to wait

    def resolved(self, entry: Entry) -> None:
        """An entry this waiter was registered on has its value."""
        if self.callback is not None:
            self.callback(entry)
            return
        self.ready.append(entry)
        self.remaining -= 1
        if self.remaining <= 0 or (self.first_error and entry.status in (FAILED, ERROR)):
            self.satisfied = True


def listen(entry: Entry, waiter: Waiter) -> None:
    """Register a waiter on an entry; under the lock."""
    if entry.waiter is None:
        entry.waiter = waiter
    elif isinstance(entry.waiter, list):
        entry.waiter.append(waiter)
    else:
        entry.waiter = [entry.waiter, waiter]


def unlisten(entry: Entry, waiter: Waiter) -> None:
    """Take a waiter that gave up off an entry; under the lock."""
    if entry.waiter is waiter:
        entry.waiter = None
    elif isinstance(entry.waiter, list) and waiter in entry.waiter:
        entry.waiter.remove(waiter)
        if not entry.waiter:
            entry.waiter = None


class Reactor:
    """The shell of one ClientCore. Any thread may call it, unless said otherwise.

    Args:
        handlers: {effect class: what carries it out}, beyond those the reactor knows itself.
        node_pidfd: readable when the node is dead; None if nobody can tell us.
        obituary: returns the sentence that says so then.
    """

    def __init__(
        self,
        core: ClientCore,
        sockets: ClientSockets,
        handlers: dict[type[Any], Callable[[Any], None]],
        node_pidfd: int | None,
        obituary: Callable[[], str] = str,
    ) -> None:
        self.core = core
        self.sockets = sockets
        self.lock = threading.Lock()
        self.holder = 0  # ident of the thread inside the lock
        self.dropped: deque[Entry] = deque()  # entries that lost a reference, from finalizers
        self.unpinned: deque[Callable[[], None]] = deque()  # what to do about views that died, from finalizers
        self.last_pump = 0.0
        self._last_full = 0.0  # when somebody last looked at all sockets
        self.pumps = 0  # how often somebody entered; tests count
        self.signalled: Any = None  # (number, frame, handler, thread) noted while that thread held the lock
        self._broken: MeshError | None = None
        self._node_pidfd = node_pidfd
        self._obituary = obituary
        self._leader = _NOBODY
        self._leading: Waiter | None = None  # of the foreground leader
        self._until = inf  # when that leader wakes by itself
        self._followers: deque[Waiter] = deque()
        self._front_wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._back_wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._front_poll = select.poll()
        self._back_poll = select.poll()
        self._registered: list[int] = []
        self._watched = -1  # a descriptor that is not of the mesh
        self.stirred = False  # a foreground leader saw it readable, and sleeps on it no more until `watch_again`
        self._back_gate = threading.Lock()
        self._back_gate.acquire()
        self._back_parked = False
        self._may_spin = len(os.sched_getaffinity(0)) > 1
        self._spin_s = 0.0  # so long the next wait of a foreground leader looks: the last one was short
        self._closed = False
        self.look: Callable[[float], float | None] = lambda now: None  # of the background leader; returns when again
        self.handlers: dict[type[Any], Callable[[Any], None]] = {
            fx.Send: self._send,
            fx.Detour: lambda effect: sockets.send_by_node(effect.to, encode(effect.message)),
            fx.Resolved: self._resolved,
            fx.Connect: lambda effect: sockets.connect(effect.peer),
            fx.Disconnect: lambda effect: sockets.disconnect(effect.peer),
            **handlers,
        }
        self._thread = threading.Thread(target=self._background, name="zmesh", daemon=True)
        self._previous_handler: Any = None
        self._main_ident = 0

    def start(self, *, handle_sigint: bool) -> None:
        """Start the background thread; in the main thread also take over SIGINT (it still does what it did)."""
        self._thread.start()
        if handle_sigint and threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous_handler = previous
                self._main_ident = threading.get_ident()
                signal.signal(signal.SIGINT, self._on_signal)

    def watch(self, fd: int) -> None:
        """Have a foreground leader wake for this descriptor too, and say so in `stirred`; -1: no more."""
        with self.lock:
            if self.sockets.changed:  # a socket that was closed may have had its number
                self._register()
            if self._watched >= 0:
                self._front_poll.unregister(self._watched)
            self._watched = fd
            self.stirred = False
            if fd >= 0:
                self._front_poll.register(fd, select.POLLIN)

    def watch_again(self) -> None:
        """What the watched descriptor had was seen to: wake for it again."""
        with self.lock:
            if self.stirred:
                self.stirred = False
                self._front_poll.modify(self._watched, select.POLLIN)
                if self._leading is not None and self._leading.sleeping:
                    os.eventfd_write(self._front_wake, 1)

    def _stir(self) -> None:
        """Tell who watches. The leader may be another thread: it does not wake again and again until he has looked."""
        with self.lock:
            if self._watched >= 0:
                self.stirred = True
                self._front_poll.modify(self._watched, 0)

    # Entering.

    def send_out(self, now: float) -> None:
        """Carry out effects now, and leave the looking to whoever sleeps next, if nobody sleeps now. Under the lock."""
        if self._leader == _NOBODY and self._broken is None and now - self._last_full < FULL_LOOK_S:
            try:
                self._carry_out()
            except Exception as error:
                self._break(error)
            self.last_pump = now
        else:
            self.pump(now, everything=False)

    def pump(self, now: float, *, everything: bool = True, one: bool = False, some: bool = False) -> None:
        """Drain the sockets, feed the core, carry out its effects, until there is nothing more. Under the lock.

        Args:
            everything: look at all sockets; else only at those somebody sent on, or saw readable in a poll: the
                others still have the edge that wakes whoever sleeps on them.
            one: of those, take one frame each, which is mostly the only one; drain them before sleeping.
            some: take some of each, unless somebody sleeps on the rest; again, before sleeping, until no socket is
                touched. Who drains one into which another process writes without end never comes to what he waits for.
        """
        self.pumps += 1
        if everything or now - self._last_full >= FULL_LOOK_S:
            everything = True
            self._last_full = now
        core, effects = self.core, self.core.effects
        if self._leader == _BACKGROUND and self.holder != self._thread.ident:
            self._leader = _NOBODY
            os.eventfd_write(self._back_wake, 1)
        some = (some or (one and everything)) and not (self._leading is not None and self._leading.sleeping)
        try:
            while True:
                if self.dropped or self.unpinned:
                    self._bury()
                deadline = core.timers.next_deadline()
                if deadline is not None and deadline <= now:
                    core.timers.tick(now)
                if effects:
                    self._carry_out()
                if some:
                    self.sockets.take_some(self.deliver, of_all=everything)
                    self._carry_out()
                    break
                if everything:
                    self.sockets.drain(self.deliver)
                elif one:
                    self.sockets.take_seen(self.deliver)
                else:
                    self.sockets.drain_touched(self.deliver)
                # Each socket said EAGAIN; only what we send now could hide a new edge.
                if not effects and not self.dropped and not self.unpinned:
                    break
        except Exception as error:  # a broken promise of our own: nobody may wait for ever because of it
            self._break(error)
        self.last_pump = now
        leading = self._leading
        if leading is not None and leading.sleeping:
            deadline = core.timers.next_deadline()
            concerned = leading.condition is not None and leading.condition()
            if concerned or self.sockets.changed or (deadline is not None and deadline < self._until):
                os.eventfd_write(self._front_wake, 1)
        for follower in self._followers:
            if follower.sleeping and follower.condition is not None and follower.condition():
                self._wake(follower)

    def deliver(self, peer: PeerID, frame: bytes) -> None:
        """Feed the core with a frame. Under the lock."""
        try:
            message = decode(frame)
        except RemoteProtocolError as error:
            self.core.effects.append(fx.Warn(str(error)))
            return
        self.core.receive(peer, message, monotonic())

    def _carry_out(self) -> None:
        effects, handlers = self.core.effects, self.handlers
        for effect in effects:
            handlers[type(effect)](effect)
        effects.clear()

    def _send(self, effect: fx.Send) -> None:
        self.sockets.send(effect.to, encode(effect.message))

    def _resolved(self, effect: fx.Resolved) -> None:
        for entry in effect.entries:
            waiter, entry.waiter = entry.waiter, None
            if waiter is None:
                continue
            for one in waiter if isinstance(waiter, list) else (waiter,):
                one.resolved(entry)
                if one.satisfied and one.sleeping:
                    self._wake(one)

    def _wake(self, waiter: Waiter) -> None:
        """Wake a thread that sleeps in `wait`, unless it is this one."""
        if waiter is self._leading:
            os.eventfd_write(self._front_wake, 1)
        elif waiter.gate is not None:
            waiter.sleeping = False
            waiter.gate.release()

    def _bury(self) -> None:
        """Let go of what finalizers noted."""
        drop = self.core.references.drop
        dropped = self.dropped
        while dropped:
            drop(dropped.popleft())
        while self.unpinned:
            self.unpinned.popleft()()

    def _break(self, error: Exception) -> None:
        if self._broken is None:
            self._broken = InternalError(f"zmesh broke a promise of its own, please report: {error!r}")
            self._broken.__cause__ = error
            self.core.effects.clear()
            self.core.node_lost(str(self._broken), monotonic())
            for effect in self.core.effects:
                if isinstance(effect, fx.Resolved):
                    self._resolved(effect)
            self.core.effects.clear()

    def nudge(self) -> None:
        """Have somebody look soon. Takes no lock: also for finalizers and signal handlers."""
        if self._closed or self._broken is not None:
            return
        if self._leader == _FOREGROUND:
            os.eventfd_write(self._front_wake, 1)
        elif self._leader == _BACKGROUND:
            os.eventfd_write(self._back_wake, 1)

    def check_usable(self) -> None:
        """Raise if this reactor cannot work any more.

        Raises:
            MeshError: it broke, or this is a forked child of the process that made it.
        """
        if self._broken is not None:
            raise self._broken
        if self._closed:
            raise NotRunningError("this mesh was shut down, and its refs with it: call zmesh.init() and submit again")

    def disown(self) -> None:
        """This is a forked child: the sockets and threads stayed with the parent."""
        self._broken = MeshError(
            "this ObjectRef or handle belongs to the process this one was forked from: use it there"
        )

    # Signals.

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.holder == self._main_ident:
            self.note_signal(number, frame, self._previous_handler)
        else:
            self._previous_handler(number, frame)

    def note_signal(self, number: int, frame: Any, handler: Callable[[int, Any], None]) -> None:
        """Keep a signal that came while this thread held the lock; `handler` is called once it let go."""
        self.signalled = (number, frame, handler, threading.get_ident())

    def raise_signal(self) -> None:
        """Do now what a signal that came inside the lock asked for. Called by whoever left the lock and sees one."""
        if self.signalled is not None and threading.get_ident() == self.signalled[3]:
            (number, frame, handler, _), self.signalled = self.signalled, None
            handler(number, frame)

    # Waiting.

    def wait_until(self, waiter: Waiter, condition: Callable[[], bool], *, in_task: bool = False) -> None:
        """Drive the sockets until `condition`, asked under the lock after each look, is true."""
        waiter.condition = condition
        self.wait(waiter, None, in_task=in_task)

    def wait(
        self,
        waiter: Waiter,
        deadline: float | None,
        *,
        in_task: bool = False,
        prepare: Callable[[], None] | None = None,
    ) -> bool:
        """Drive the sockets until the waiter is satisfied; False if the deadline (monotonic seconds) came first.

        Args:
            prepare: called first, under the lock: registers the waiter.
            in_task: the thread is a worker's main thread, whose CPU others may use meanwhile.
        """
        me = threading.get_ident()
        begun = slept = left = False
        try:
            while True:
                with self.lock:
                    self.holder = me
                    waiter.sleeping = False
                    if self._closed:  # by another thread, in the midst of our wait
                        break
                    now = monotonic()
                    if prepare is not None:
                        prepare()
                        prepare = None
                        if waiter.satisfied and not self.core.effects:
                            left = True
                            self.holder = 0
                            break
                    if in_task and not begun:
                        self.core.wait_begins(now)  # type: ignore[attr-defined]  # a WorkerCore, if in a task
                        begun = True
                    if slept or self.core.effects or self.dropped or self.unpinned:
                        self.pump(now, everything=False, one=True)  # what else came wakes us at once
                    now = self._look_for(waiter, now, deadline)
                    if waiter.satisfied or self.signalled is not None or (deadline is not None and now >= deadline):
                        if begun:
                            self._resume_task()
                        self._leave(waiter)
                        self.holder = 0
                        left = True
                        break
                    lead = self._lead(waiter)
                    until = self.core.timers.next_deadline() if lead else None
                    if deadline is not None and (until is None or deadline < until):
                        until = deadline
                    if lead:
                        self._until = inf if until is None else until
                    slept = True
                    self.holder = 0
                if lead:
                    self._sleep(self._front_poll, self._front_wake, until)
                else:
                    waiter.gate.acquire(timeout=-1 if until is None else max(0.0, until - monotonic()))
        finally:
            if not left:  # an exception of a signal handler
                with self.lock:
                    self.holder = me
                    if begun:
                        self._resume_task()
                    self._leave(waiter)
                    self.holder = 0
        if self.signalled is not None:
            self.raise_signal()
        if self._closed and not waiter.satisfied:
            self.check_usable()
        return waiter.satisfied

    def _look_for(self, waiter: Waiter, now: float, deadline: float | None) -> float:
        """Look at what there is, until the waiter has what it waits for or we may sleep; returns the time then."""
        while True:
            if waiter.condition is not None and not waiter.satisfied and waiter.condition():
                waiter.satisfied = True
            put_off = self.core.timers.next_deadline()  # what was only put off until somebody looks
            overdue = put_off is not None and put_off <= now
            over = waiter.satisfied or self.signalled is not None or (deadline is not None and now >= deadline)
            if over or self._broken is not None or not (self.sockets.touched or self.core.effects or overdue):
                return now
            self.pump(now, everything=False, some=True)
            now = monotonic()

    def _resume_task(self) -> None:
        self.core.wait_ends(monotonic())  # type: ignore[attr-defined]
        if self.core.effects:
            self.pump(monotonic(), everything=False)

    def _lead(self, waiter: Waiter) -> bool:
        """Become the leader, or a follower that sleeps on its gate."""
        waiter.sleeping = True
        if self._leading is None or self._leading is waiter:
            if self._leader == _BACKGROUND:
                os.eventfd_write(self._back_wake, 1)
            self._leader = _FOREGROUND
            self._leading = waiter
            if self.sockets.changed:
                self._register()
            return True
        if waiter.gate is None:
            waiter.gate = threading.Lock()
            waiter.gate.acquire()
        if waiter not in self._followers:
            self._followers.append(waiter)
        return False

    def _leave(self, waiter: Waiter) -> None:
        """Stop waiting; a leader that leaves wakes the next, and so does one that was woken to lead and need not."""
        waiter.sleeping = False
        if self._leading is waiter:
            self._leading = None
            self._leader = _NOBODY
        elif waiter in self._followers:
            self._followers.remove(waiter)
        if self._leading is None:
            while self._followers:
                follower = self._followers.popleft()
                if follower.sleeping:
                    follower.sleeping = False
                    follower.gate.release()
                    return
            if self._back_parked:
                self._back_parked = False
                self._back_gate.release()

    def _sleep(self, poll: Any, wake: int, until: float | None) -> None:
        """Sleep on the sockets. Outside the lock."""
        begun = monotonic()
        found: Any = ()
        if self._spin_s and wake == self._front_wake:
            enough = begun + self._spin_s
            while not (found := poll.poll(0)) and monotonic() < enough:
                os.sched_yield()
        if not found:
            # Poll rounds to whole milliseconds, upwards: a deadline is never spun for.
            found = poll.poll(None if until is None else max(0.0, (until - monotonic()) * 1000))
        if wake == self._front_wake:
            waited = monotonic() - begun
            short = self._may_spin and waited < SHORT_WAIT_S
            self._spin_s = min(SPIN_MAX_S, max(SPIN_S, 2 * waited)) if short else 0.0
        for fd, _ in found:
            if fd == wake:
                os.eventfd_read(wake)
            elif fd == self._node_pidfd:
                self._node_died()
            elif fd == self._watched:
                self._stir()
            else:
                self.sockets.ready(fd)

    def _register(self) -> None:
        """Bring both poll objects up to date with the sockets. Under the lock."""
        for fd in self._registered:
            self._front_poll.unregister(fd)
            self._back_poll.unregister(fd)
        self._registered = self.sockets.descriptors()
        if self._node_pidfd is not None:
            self._registered.append(self._node_pidfd)
        for fd in self._registered:
            self._front_poll.register(fd, select.POLLIN)
            self._back_poll.register(fd, select.POLLIN)
        self._front_poll.register(self._front_wake, select.POLLIN)
        self._back_poll.register(self._back_wake, select.POLLIN)

    def _node_died(self) -> None:
        with self.lock:
            self.holder = threading.get_ident()
            if self._node_pidfd is not None:
                self._node_pidfd = None
                self._register()
                self.core.node_lost(self._obituary(), monotonic())
                self.pump(monotonic())
            self.holder = 0

    # The background thread.

    def _background(self) -> None:
        me = threading.get_ident()
        while not self._closed:
            if monotonic() - self.last_pump < WATCH_S:
                self._back_gate.acquire(timeout=WATCH_S)
                continue
            with self.lock:
                self.holder = me
                park = self._leader == _FOREGROUND
                until = None
                if park:
                    self._back_parked = True
                else:
                    again = self.look(monotonic())
                    self._leader = _BACKGROUND
                    self.pump(monotonic())
                    if self.sockets.changed:
                        self._register()
                    due = [time for time in (again, self.core.timers.next_deadline()) if time is not None]
                    until = min(due, default=None)
                self.holder = 0
            if park:
                self._back_gate.acquire()
                continue
            self._sleep(self._back_poll, self._back_wake, until)
            with self.lock:
                self.holder = me
                if self._leader == _BACKGROUND:
                    self._leader = _NOBODY
                    self.pump(monotonic(), everything=False)
                    self.last_pump = 0.0  # it may lead again at once: nobody else has looked
                self.holder = 0

    def close(self, linger_ms: int) -> None:
        """Stop the background thread and close the sockets. Loop-free: call it once, from any thread but ours."""
        with self.lock:
            self.holder = threading.get_ident()
            self._closed = True
            self.core.effects.clear()
            os.eventfd_write(self._back_wake, 1)
            os.eventfd_write(self._front_wake, 1)
            if self._back_parked:
                self._back_parked = False
                self._back_gate.release()
            self.holder = 0
        if self._thread.ident is not None:  # else it was never started
            self._thread.join(timeout=5)
        until = monotonic() + 1.0
        while self._leader == _FOREGROUND and monotonic() < until:  # threads that wait leave one after the other
            sleep(0.001)
        self.sockets.close(linger_ms)
        in_main = threading.current_thread() is threading.main_thread()
        if self._previous_handler is not None and in_main and signal.getsignal(signal.SIGINT) == self._on_signal:
            signal.signal(signal.SIGINT, self._previous_handler)
        os.close(self._front_wake)
        os.close(self._back_wake)
