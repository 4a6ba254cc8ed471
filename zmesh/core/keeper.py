"""A keeper: the client that owns the detached actors of one program. It lives in the node, as its only task is to own.

    KeepActor --its objects are counted for us--> --its arguments are here--> --the node knows the handle--> ...
         '----one of them is gone---------------------'--or never will be--> told why

    ... --we have the name--> the actor is made
         '--another has it--> told who

It runs no code of the user's and unpacks nothing: a creation comes as its owner would send it to a worker. All that
happens to actors afterwards, restarts, names, kills, is what happens to those of any client. An actor is kept, by one
handle, until it is dead; when none is left the keeper may end (core/keepers.py).

Of arguments whose bytes lie on another host there is a copy on this one as long as the actor is kept: so that it can be
made again when that host is gone. Those that are there as it is made are waited for, others are copied when they come.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from zmesh.core.client import ClientCore
from zmesh.core.counting_inputs import Input
from zmesh.core.effects import Send, Warn
from zmesh.core.records import Entry, Handle, Inputs, Spec
from zmesh.wire.actor_messages import NAME_TAKE, ShareActor
from zmesh.wire.ids import NODE_ID_BYTES, PeerID, node_peer
from zmesh.wire.keeper_messages import KeepActor, Keeps, Kept
from zmesh.wire.marks import NODE
from zmesh.wire.messages import ERROR, PENDING, STORED, Done, GiveBack, Hold, Steal, Unpin, Unsteal
from zmesh.wire.shortcut_messages import Shortcut

WORDS_OF_THIEVES = (Done, GiveBack, ShareActor, Steal, Unpin, Unsteal)


@dataclass(slots=True)
class Order:
    """An actor that is wanted and not made yet."""

    wanted: KeepActor
    claims: list[tuple[Entry, Entry]]  # (what it needs, the ticket of the claim)
    handle: Handle | None = None
    ticket: Entry | None = None  # of what its node was asked last
    copied: bool = False  # those of its arguments that were there are on this host


class KeeperCore(ClientCore):
    """The state of one keeper; see ClientCore."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._orders: list[Order] = []
        self._actors: dict[bytes, tuple[Handle, str, str]] = {}  # {ActorID: (handle, namespace, name)} made, not dead
        self._made: dict[str, Spec] = {}  # {what creations said of it: spec}
        self._awaited: list[Entry] = []  # arguments of kept actors that were not made yet when these were
        self._seen = 0
        self._told = Keeps(0, False, [])

    def hears(self, peer: PeerID, message: Any) -> bool:
        """Whether that peer may say this to a keeper: a node anything, others what thieves say of creations."""
        if type(message) is Done:
            return all(index < len(self.specs) for index, *_ in message.timings)
        return type(message) in WORDS_OF_THIEVES or peer == node_peer(peer[:NODE_ID_BYTES])

    def receive(self, peer: PeerID, message: Any, now: float) -> None:
        """Take one message; see ClientCore.receive."""
        super().receive(peer, message, now)
        if self._orders:
            self._orders = [order for order in self._orders if self._proceed(order, now)]
            self._flush()

    def _keep(self, peer: PeerID, m: KeepActor, now: float) -> None:
        """An actor is wanted: first have ourselves counted as a holder of what it needs."""
        del peer, now
        self._seen += 1
        claims = [self.references.claim_found(oid) for oid in (*m.deps, *m.held)]
        self._orders.append(Order(m, claims))

    def _proceed(self, order: Order, now: float) -> bool:
        """Take the steps that can be taken; returns whether there are more to come."""
        tickets = [ticket for _, ticket in order.claims] if order.ticket is None else [order.ticket]
        while all(ticket.status != PENDING for ticket in tickets):
            failed = [ticket.value[1] for ticket in tickets if ticket.status == ERROR]
            if failed:
                self._answer(order, Kept(0, [], error=f"{self._cannot(order)}{failed[0]}"))
                return False
            if not order.copied:
                order.copied = True
                order.ticket = self._bring(order)
            elif order.handle is None:
                failure = self._settle_copies(order)
                if failure is not None:
                    name, text, _ = failure
                    self._answer(order, Kept(0, [], error=f"{self._cannot(order)}{text}", kind=name))
                    return False
                order.handle = self._prepare(order)
                order.ticket = self.references.promote([order.handle])
            elif order.ticket is not None and order.ticket.value is None:  # an Ack says nothing, NameTold does
                m, oid = order.wanted, self.references.oid(order.handle)
                order.ticket = self.actors.ask_name(NAME_TAKE, m.namespace, m.name, oid, m.description)
            else:
                assert order.ticket is not None
                self._settle_name(order, order.handle, order.ticket.value, now)
                return False
            tickets = [] if order.ticket is None else [order.ticket]
        return True

    @staticmethod
    def _cannot(order: Order) -> str:
        return f"the actor {order.wanted.name!r} cannot be made: "

    # Arguments that lie on other hosts.

    def _deps(self, order: Order) -> list[Entry]:
        return [entry for entry, _ in order.claims[: len(order.wanted.deps)]]

    def _bring(self, order: Order) -> Entry | None:
        """Have arguments copied here of which is known where they lie; None if there are none."""
        deps, wanted = self._deps(order), order.wanted
        self.references.fetched(
            [(oid, STORED, place) for oid, place in zip(wanted.deps, wanted.places, strict=False) if place]
        )
        return self.references.localize(deps)

    def _settle_copies(self, order: Order) -> Any:
        """The copies are here: from now on the arguments lie here. Returns why one does not, or None."""
        for entry in self._deps(order):
            failure = self._settle_copy(entry)
            if failure is not None:
                return failure
        return None

    def _settle_copy(self, entry: Entry) -> Any:
        copy = entry.share.copy if entry.share is not None else None
        if copy is not None and copy.status == ERROR:
            return copy.value
        if copy is not None and copy.status == STORED:
            entry.value = copy.value  # pinned as long as this process needs the entry
        return None

    def _bring_late(self) -> None:
        """Have arguments copied here that were made after their actors."""
        made = [entry for entry in self._awaited if entry.status != PENDING]
        self._awaited = [entry for entry in self._awaited if entry.status == PENDING and entry.refs]
        for entry in made:
            self.references.when_local([entry], lambda entry=entry: self._late_one(entry))  # type: ignore[misc]

    def _late_one(self, entry: Entry) -> None:
        failure = self._settle_copy(entry)
        if failure is not None:
            text = f"an argument of a detached actor is not on this host, and may be lost with another: {failure[1]}"
            self.effects.append(Warn(text))

    def _prepare(self, order: Order) -> Handle:
        """Return the handle of the actor to be: from its start on it holds itself what it needs."""
        m = order.wanted
        entries = [entry for entry, _ in order.claims]
        inputs = Inputs(entries[: len(m.deps)], entries[len(m.deps) :]) if entries else None
        spec = self._spec_of(m)
        return self.new_actor(spec, m.args, inputs, 0, name=spec.name, ordered=m.ordered)

    def _spec_of(self, m: KeepActor) -> Spec:
        """Return the spec of a creation; programs that make the same actor again and again get the same."""
        name, shape, fallbacks, options, digest, blob, max_retries, priority = m.spec
        if m.here:  # so that no other node's death ends it; elsewhere if this node could never have it
            shape, fallbacks = shape | {f"{NODE}{self.node[:NODE_ID_BYTES].hex()}": 1}, [shape, *fallbacks]
        key = repr((name, shape, fallbacks, options, digest, max_retries, priority))
        spec = self._made.get(key)
        if spec is None:
            spec = self._made[key] = self.new_spec(
                self.me,
                name,
                shape,
                num_returns=-1,
                options=options,
                digest=digest,
                blob=blob,
                max_retries=max_retries,
                priority=priority,
                fallbacks=fallbacks,
            )
        return spec

    def _settle_name(self, order: Order, handle: Handle, found: Any, now: float) -> None:
        """The name is ours, or another's."""
        m, oid = order.wanted, self.references.oid(handle)
        if not found:  # who takes a name hears who has it, unless a member is out of its mind
            error = f"the actor {m.name!r} cannot be made: who keeps its name did not say whose it is; try again"
            self._answer(order, Kept(0, [], error=error))
            return
        if found[2] != oid:
            self._answer(order, Kept(0, list(found)))
            return
        self._actors[oid] = (handle, m.namespace, m.name)
        self._awaited += [entry for entry in self._deps(order) if entry.status == PENDING]
        self.start_actor(handle, now)
        # Counted before it is told, so that it finds the actor even if that dies at once.
        self.effects.append(Send(self.node, Hold(0, [(oid, m.asker)])))
        self._answer(order, Kept(0, list(found), made=True))

    def _answer(self, order: Order, answer: Kept) -> None:
        """Tell the asker, and let go of what the actor does not hold itself now."""
        answer.request, answer.asker = order.wanted.request, order.wanted.asker
        self.effects.append(Send(self.node, answer))
        if order.handle is not None and not answer.made:
            self.actors.abandon(order.handle, "another actor has its name")
            self.references.drop(order.handle)
        for entry, ticket in order.claims:
            if ticket.status == ERROR:
                self.references.unclaim(entry)
            else:
                self.references.drop(entry)

    def _flush(self) -> None:
        """After each input: let go of actors that are dead, and tell the node what is left."""
        super()._flush()
        if self._awaited:
            self._bring_late()
        for oid, (handle, _, _) in list(self._actors.items()):
            if handle.actor.failure is not None:
                del self._actors[oid]
                self.references.drop(handle)
        # One that has ended in good order may still be about to say so to its callers: its worker goes first.
        idle = not (self._orders or self._actors or self.tasks.open or self.victim.has_actors)
        kept = [(space, name, handle.actor.name, oid) for oid, (handle, space, name) in self._actors.items()]
        told = Keeps(self._seen, idle, kept)
        if told != self._told:
            self._told = told
            self.effects.append(Send(self.node, told))

    _inputs: ClassVar[dict[type[Any], Input]] = ClientCore._inputs | {
        KeepActor: _keep,
        Shortcut: lambda self, peer, message, now: None,  # only a process of its own gains by one
    }
