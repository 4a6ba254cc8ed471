"""A worker: a thief of one victim at a time, and a client itself, as its tasks may submit tasks. Wiring only."""

from collections.abc import Callable
from typing import Any, ClassVar

from zmesh.core.actor_server import ActorServer
from zmesh.core.client import ClientCore
from zmesh.core.counting_inputs import Input
from zmesh.core.effects import Effect, Exit, Send
from zmesh.core.records import Entry
from zmesh.core.running import Running
from zmesh.core.thief import ATTACHED, CLOSING, FREE, ThiefHalf
from zmesh.core.timers import Timers
from zmesh.wire.actor_messages import ActorShared, Call, CallerGone, Retire, Settle, ShareActor
from zmesh.wire.ids import PEER_ID_BYTES, ObjectID, PeerID
from zmesh.wire.messages import (
    ERROR,
    INLINE,
    MANY,
    Attach,
    Blocked,
    Cancel,
    Consumed,
    Detach,
    Free,
    Pulled,
    Shape,
    Stop,
    Taken,
    Unblocked,
    Unstolen,
    Work,
)

BLOCK_AFTER_S = 0.002  # a wait longer than this gives the CPU back: shorter ones are not worth two messages


class WorkerCore(ClientCore):
    """A client that also runs tasks.

    Args:
        attached: called with each Attach before work comes: resources and settings of the process.
    """

    def __init__(
        self,
        me: PeerID,
        effects: list[Effect],
        timers: Timers,
        describe_status: Callable[[int], tuple[int | None, str | None, str]],
        attached: Callable[[Attach], None],
    ) -> None:
        super().__init__(me, effects, timers, describe_status)
        self._attached = attached
        # In an actor that runs several calls at once: which of them the thread runs that asks.
        self.who_runs: Callable[[], tuple[PeerID, int] | None] | None = None
        self._block_timer = 0
        self._may_block = True  # false for an actor that has given back all it had booked
        self._leaving = False  # takes no more tasks
        self._left = False  # has asked to end
        self.bereaved: dict[PeerID, bool] = {}  # {dead caller: True} of which a call unpacks its arguments just now
        self.thief = ThiefHalf(
            self.node,
            effects,
            keeps=self._keeps,
            watched=lambda: self.references.watched,
            pulls=self.pulls,
        )
        self.server = ActorServer(effects, keeps=self._keeps, pulls=self.pulls)

    @property
    def current(self) -> tuple[PeerID, int] | None:
        """(owner, seq) of the task or call that is running: the parent of what is submitted now."""
        return self._current if self.who_runs is None else self.who_runs()

    @current.setter
    def current(self, running: tuple[PeerID, int] | None) -> None:
        self._current = running

    def _keeps(self, victim: PeerID) -> list[Any]:
        return [] if self.references.keeps_nothing else self.references.keeps(victim)

    # From the worker's main thread.

    def next(self, now: float) -> Running | None:
        """Return the task to run now, or None if there is none yet."""
        if self._leaving:
            self._leave_if_idle(now)  # a thread that runs on may have let go of the last thing somebody needs
            return None
        running = self.thief.next(now)
        self.current = None if running is None else (running.victim, running.seq)
        return running

    def finished(self, status: int, value: Any, inside: list[bytes], size: int, now: float) -> None:
        """The running task ended; see ThiefHalf.finished."""
        running = self.thief.running
        assert running is not None
        calls_max = running.spec.options.get("max_calls", 0)
        self.current = None
        if not self.references.keeps_nothing:
            # What the task keeps must be told with its own result, before the victim lets go of its arguments.
            self.thief.finished(status, value, inside, size, now)
            self.thief.flush()
        else:
            self.thief.finished(status, value, inside, size, now)
        if calls_max and running.spec.calls >= calls_max:
            self._leaving = True
            self.thief.give_back()
            self.thief.flush()
            self.thief.blocked = True  # what still comes goes straight back
            self.effects.append(Send(self.node, Blocked()))
            self._leave_if_idle(now)

    def _leave_if_idle(self, now: float) -> None:
        """End, once nobody would miss what this process owns."""
        if self._leaving and self.server.groups:
            self.actors.dismiss(now)  # what the actor that was has in its variables holds nothing any more
        if self._leaving and not self._left and not self.tasks.open and self.references.idle:
            self._left = True
            self.effects.append(Exit())

    def receive(self, peer: PeerID, message: Any, now: float) -> None:
        """Take one message; see ClientCore.receive."""
        super().receive(peer, message, now)
        self._leave_if_idle(now)

    def item(self, running: Running, status: int, value: Any, inside: list[bytes], now: float) -> None:
        """A stream, of a task or a call, yielded."""
        if running is self.thief.running:
            self.thief.item(status, value, inside, now)
        else:
            self.server.item(running, status, value, inside, now)
            self._unsend(running, [inside])

    def give(self, running: Running, entries: list[Entry]) -> None:
        """A result of this task or call contains these references; see References.give."""
        if running is not self.thief.running or not self.thief.victim_dead:  # nobody else would say that they are taken
            self.references.give(running.victim, running.seq, entries)

    # From an actor's threads.

    def serve(self, places: dict[str, int], lent: Shape, ready: bytes, now: float) -> None:
        """The running task has made an actor: it is called from now on, and `lent` is what it needs no more."""
        self.server.open(places)
        self.thief.item(INLINE, ready, [], now)
        self.effects.append(Send(self.node, Settle(lent)))
        shape = {name: amount - lent.get(name, 0) for name, amount in self.thief.shape.items()}
        self.thief.shape = {name: amount for name, amount in shape.items() if amount > 0}
        self._may_block = bool(self.thief.shape)

    def next_call(self, now: float) -> Running | None:
        """Return a call to start now, or None if there is none yet."""
        running = self.server.next(now)
        self.current = None if running is None else (running.victim, running.seq)
        return running

    def call_finished(
        self, running: Running, status: int, value: Any, inside: list[bytes], size: int, now: float
    ) -> None:
        """A call is over; see ActorServer.finished."""
        self.server.finished(running, status, value, inside, size, now)
        if self.bereaved:
            self.mourn()
        self._unsend(running, [one[2] for one in value] if status == MANY else [inside])
        if not self.references.keeps_nothing:
            self.server.flush()  # what the call keeps must be told before the caller lets go of its arguments

    def ask_own_handle(self, actor: ObjectID) -> tuple[Entry, Entry]:
        """Have the home of the actor that this is count us as a holder; it may not have heard of it, as long as no
        handle has left its owner's process. So its owner is asked.

        Returns (the entry, with one reference more; a ticket that resolves with the owner's answer).
        """
        entry, ticket = self.references.borrow(actor, counted=True), self.references.ask()
        self.effects.append(Send(actor[:PEER_ID_BYTES], ShareActor(ticket.seq, actor)))
        return entry, ticket

    def actor_ended(self, failure: tuple[int, Any], now: float) -> None:
        """The actor is over; see ActorServer.end. Nobody reads what calls that still run have submitted: it is
        cancelled. What their threads submit from now on fails at once, or this process would never end."""
        self.refusal = failure[1]
        for call in self.server.running:
            self.tasks.cancel_children(call, now)
        self.server.end(failure, now)
        self.victim.serve(now)
        self._flush()

    def _unsend(self, running: Running, given: list[list[bytes]]) -> None:
        """If the actor has ended, the call was answered before: nobody takes the references in what it gives now."""
        if self.server.failure is not None:
            for _ in filter(None, given):
                self.references.take_back(running.victim, running.seq)

    def may_yield(self, running: Running) -> bool:
        """Whether a stream may go on, or need not as it is to end: see Running.stopped."""
        ahead_max = running.spec.options.get("backpressure", 0)
        return running.stopped is not None or not ahead_max or running.items - running.taken < ahead_max

    def wait_begins(self, now: float) -> None:
        """The task waits for others: its results go out, and soon its CPU is given back."""
        self.thief.flush()
        self.server.flush()
        if self._may_block and not self._block_timer:
            self._block_timer = self.timers.set(now + BLOCK_AFTER_S, self._block)

    def _block(self, now: float) -> None:
        self._block_timer = 0
        self.thief.flush()
        self.thief.give_back()
        self.thief.blocked = True
        self.effects.append(Send(self.node, Blocked()))

    def wait_ends(self, now: float) -> None:
        """The task goes on."""
        del now
        if self._block_timer:
            self.timers.cancel(self._block_timer)
            self._block_timer = 0
        if self.thief.blocked:
            self.thief.blocked = False
            self.effects.append(Send(self.node, Unblocked()))

    # From the network.

    def _attach(self, peer: PeerID, message: Attach, now: float) -> None:
        del peer, now
        self._attached(message)
        self.thief.attach(message)

    def _detach(self, message: Detach, now: float) -> None:
        if message.dead:
            self.references.victim_died(message.victim)
            self.references.inherit(message.victim, of_task=message.victim == self.thief.victim)
        self.thief.detach(message, now)

    def _pulled(self, peer: PeerID, message: Pulled, now: float) -> None:
        del peer
        self.pulls.pulled(message.objects)
        self.thief.pulled(now)
        self.server.pulled(now)

    def _cancel(self, peer: PeerID, message: Cancel, now: float) -> None:
        runs = self.server.cancel(peer, message, now) or self.thief.cancel(peer, message, now)
        if runs and message.recursive:
            self.tasks.cancel_children((peer, message.seq), now)

    def _consumed(self, peer: PeerID, message: Consumed, now: float) -> None:
        del now
        running = self.thief.running
        if self.server.taken(peer, message.seq, message.count):
            return
        if running is not None and running.victim == peer and running.seq == message.seq:
            running.consumed(message.count)

    def _retire(self, peer: PeerID, message: Retire, now: float) -> None:
        del peer, message, now
        self.server.retired = True

    def _actor_shared(self, peer: PeerID, message: ActorShared, now: float) -> None:
        del peer, now
        value: Any = ("ActorDiedError", message.error, {}) if message.error else None
        self.references.answered(message.request, INLINE if value is None else ERROR, value)

    def _caller_gone(self, peer: PeerID, message: CallerGone, now: float) -> None:
        del peer, now
        self.server.caller_gone(message.peer)
        self.references.victim_died(message.peer)
        self.bereaved[message.peer] = True
        self.mourn()

    def mourn(self) -> None:
        """Claim what dead callers gave, of each once all its calls that run have taken out of their arguments."""
        for caller in [caller for caller in self.bereaved if not self.server.unpacks(caller)]:
            del self.bereaved[caller]
            self.references.inherit(caller)

    def _stop(self, peer: PeerID, message: Stop, now: float) -> None:
        """End, unless somebody would miss what this process owns: then say that it is still there."""
        del peer, message
        if self.thief.state == FREE and not self.tasks.open and self.references.idle:
            self._leaving = True
            self._leave_if_idle(now)
        else:
            self.effects.append(Send(self.node, Free(self.thief.epoch)))

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        super().check()
        self.thief.check()
        self.server.check()
        assert self.thief.state in (FREE, ATTACHED, CLOSING)

    _inputs: ClassVar[dict[type[Any], Input]] = ClientCore._inputs | {
        Call: lambda self, peer, message, now: self.server.called(peer, message, now),
        CallerGone: _caller_gone,
        Retire: _retire,
        ActorShared: _actor_shared,
        Attach: _attach,
        Detach: lambda self, _, message, now: self._detach(message, now),
        Work: lambda self, peer, message, _: self.thief.work(peer, message),
        Unstolen: lambda self, peer, message, _: self.thief.unstolen(peer, message),
        Cancel: _cancel,
        Consumed: _consumed,
        Stop: _stop,
        Pulled: _pulled,
        Taken: lambda self, peer, message, _: self.references.taken(peer, message.seq),
    }
