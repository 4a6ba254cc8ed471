"""A client without a node of its own: a guest of one member at a time, and of another when that one is gone.

    knocking --Opened--> restoring --bytes are there--> attached --silence, refusal--> knocking, at another member

All it says travels over one link to its node (core/links.py), which passes it on. When the node is gone, so is what lay
there and whoever counted on it: tasks without a result go to the next node, with the bytes this process still has.
"""

import random
from collections.abc import Callable
from typing import Any, ClassVar

from zmesh.core.client import ClientCore
from zmesh.core.counting_inputs import Input
from zmesh.core.effects import Address, Dial, Effect, Rehomed, Send, Talk
from zmesh.core.links import Links
from zmesh.core.records import LEASED, QUEUED, WAITING, Actor, Task, Thief
from zmesh.core.timers import Timers
from zmesh.wire.codec import encode
from zmesh.wire.guest import Knock, Opened
from zmesh.wire.ids import NODE_ID_BYTES, PeerID, guest_token, node_peer, store_peer
from zmesh.wire.messages import ERROR, PROTOCOL_MAJOR, Hello, Welcome

PING_S = 2.0
SILENCE_S = 8.0  # a node that says nothing for so long is gone, or as good as gone
TRY_S = 3.0  # a member that does not answer in this time is not waited for
PAUSE_S = 0.5  # before the members are tried once more
GIVE_UP_S = 60.0  # without a node

KNOCKING, RESTORING, ATTACHED, ENDED = "knocking", "restoring", "attached", "ended"


class GuestCore(ClientCore):
    """The state of one guest and all its inputs.

    Args:
        seeds: (host, port) of members, at least one.
        rng: the only source of chance.
        config: of the Hello.

    Attributes:
        state: KNOCKING, RESTORING, ATTACHED or ENDED.
        why: what the last failure was, in words.
        rounds: how often all members were tried in vain.
    """

    def __init__(
        self,
        seeds: list[Address],
        rng: random.Random,
        hello: Hello,
        effects: list[Effect],
        timers: Timers,
        describe_status: Callable[[int], tuple[int | None, str | None, str]],
    ) -> None:
        self._rng = rng
        self._token = guest_token(rng.randbytes(8))
        super().__init__(bytes(NODE_ID_BYTES) + self._token, effects, timers, describe_status)
        self.state = KNOCKING
        self.why = "it does not answer"
        self.rounds = 0
        self.links = Links(effects, timers)
        self._hello = hello
        self._members: list[Address] = list(seeds)
        self._untried: list[Address] = []
        self._address: Address = seeds[0]
        self._timer = 0
        self._heard_s = 0.0  # when the node last said anything
        self._since_s = 0.0  # without a node
        self._early: list[tuple[PeerID, bytes]] = []  # (to, frame) of what is said after the hello

    @property
    def hello_kind(self) -> str:
        """What this process is: "driver" or "observer"."""
        return self._hello.kind

    # Finding a node.

    def start(self, now: float) -> None:
        """Knock at the first member."""
        self._since_s = now
        self._untried = list(self._members)
        self._next(now)

    def _next(self, now: float) -> None:
        """Try another member."""
        self.timers.cancel(self._timer)
        if now - self._since_s >= GIVE_UP_S:
            self._end(now)
            return
        if not self._untried:
            self.rounds += 1
            self._untried = list(self._members)
            self._rng.shuffle(self._untried)
            self._timer = self.timers.set(now + PAUSE_S, self._next)
            return
        self._address = self._untried.pop(0)
        self._token = guest_token(self._rng.randbytes(8))
        self.effects += [Dial(self._address, self._token), Talk(Knock(PROTOCOL_MAJOR))]
        self._timer = self.timers.set(now + TRY_S, self._next)

    def _end(self, now: float) -> None:
        self.state = ENDED
        self.node_lost(f"no member of the mesh took us in for {GIVE_UP_S:g} s; the last, {self.place}: {self.why}", now)

    @property
    def place(self) -> str:
        """The member this guest is at, or knocks at, as HOST:PORT."""
        host, port = self._address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def opened(self, word: Opened, now: float) -> None:
        """A node answered our knock."""
        if word.members:
            self._members = [self._address] + [(str(host), int(str(port))) for host, port in word.members]
        if self.state == KNOCKING and not word.gone:
            if word.refused:
                self.why = word.refused
                self._next(now)
                return
            self.timers.cancel(self._timer)
            self._heard_s = now
            self.state = RESTORING
            self._rehome(word, now)
            self._timer = self.timers.set(now + PING_S, self._ping)
        elif word.node == self.node[:NODE_ID_BYTES]:
            self._heard_s = now
            if word.gone:
                self.detached("it took us for dead", now)

    def restored(self, now: float) -> None:
        """What the tasks need of this process's bytes lies on the node's host: say hello, and all else after it."""
        if self.state == RESTORING:
            self.state = ATTACHED
            self.send(self.node, encode(self._hello), now)
            early, self._early = self._early, []
            for to, frame in early:
                self.send(to, frame, now)

    def _ping(self, now: float) -> None:
        if now - self._heard_s > SILENCE_S:
            self.detached("it has fallen silent", now)
        elif self.state in (RESTORING, ATTACHED):
            self.effects.append(Talk(Knock(PROTOCOL_MAJOR, self.node[:NODE_ID_BYTES])))
            self._timer = self.timers.set(now + PING_S, self._ping)

    def refused(self, why: str, now: float) -> None:
        """Nobody listens where we knocked or stayed, or it is none of ours."""
        if self.state == KNOCKING:
            self.why = why
            self._next(now)
        elif self.state in (RESTORING, ATTACHED):
            self.detached(why, now)

    def detached(self, why: str, now: float) -> None:
        """Our node is gone: go on at another."""
        self.why = why
        self.state = KNOCKING
        self._since_s = now
        self._untried = [address for address in self._members if address != self._address]
        self._rng.shuffle(self._untried)
        self._next(now)

    # The link.

    def parcel(
        self, epoch: int, seq: int, ack: int, more: bool, source: PeerID, to: PeerID, frame: bytes, now: float
    ) -> None:
        """A parcel of the node came in."""
        if self.state in (RESTORING, ATTACHED):
            self._heard_s = now
            self.links.receive(self.node[:NODE_ID_BYTES], epoch, seq, ack, more, source, to, frame, now)

    def acknowledged(self, epoch: int, ack: int, missing: bool, now: float) -> None:
        """The node says which parcels arrived."""
        if self.state in (RESTORING, ATTACHED):
            self._heard_s = now
            self.links.acknowledged(self.node[:NODE_ID_BYTES], epoch, ack, missing, now)

    def reconnected(self, now: float) -> None:
        """Our connection was made anew: what was on the old one may be lost."""
        if self.state in (RESTORING, ATTACHED):
            self.links.reconnected(self.node[:NODE_ID_BYTES], now)

    def send(self, to: PeerID, frame: bytes, now: float) -> None:
        """Have the node pass on a frame. Without one it is lost: whoever it was for is lost to us as well.

        Nobody knows us before our hello, so all but bytes waits for that.
        """
        node = self.node[:NODE_ID_BYTES]
        if self.state == ATTACHED or (self.state == RESTORING and to == store_peer(node)):
            self.links.send(node, self.me, to, frame, now)
        elif self.state == RESTORING:
            self._early.append((to, frame))

    # Another node.

    def _rehome(self, word: Opened, now: float) -> None:
        """Be a client of that node from now on, under another PeerID."""
        before, first = self.node[:NODE_ID_BYTES], not any(self.node)
        name_before = self.me
        self.links.forget(before)
        self.links.forget(word.node)
        self.me = word.node + self._token
        self.node = node_peer(word.node)
        self.welcome = None
        self.victim.rehome(self.node)
        error: Any = ("NodeDiedError", f"the node {before.hex()} this program was a guest of is gone: {self.why}", {})
        # What was to be said under the old name is not said under the new one.
        self.effects[:] = [effect for effect in self.effects if not isinstance(effect, Send)]
        self._early.clear()
        lost = self.references.rehome(self.me, self.node, error)
        self.pulls.rehome(name_before, self.node, error)
        for spec in self.specs:
            spec.job = self.me
        self._forget_impossible()
        if not first:
            self.actors.lose_all(f"the node {before.hex()} its caller was a guest of is gone: {self.why}", now)
            self.groups.node_gone(before, self.why, now)
            self.groups.rewatch()
            thieves = list(self.victim.thieves.values())
            for thief in thieves:
                self.victim.close(thief)
            for thief in thieves:
                self._lose_thief(thief, before, self.why, now)
            for entry in lost:
                self.tasks.entry_resolved(entry, now)
            self._fail_holders(before, now)
            self.lineage.lose_node(error, now)
        self.effects.append(Rehomed(self.me))
        self._flush()

    def _fail_holders(self, before: bytes, now: float) -> None:
        """Arguments that hold references name the old node as their home: nobody can find them any more."""
        text = f"its arguments hold references that node {before.hex()} counted, which is gone: {self.why}"
        for task in self.unresolved():
            held = task.inputs.held if task.inputs is not None else []
            args_entry = 1 if type(task.args) is not bytes else 0
            if task.state in (QUEUED, WAITING) and (len(held) > args_entry or task.spec.held):
                if task.state == QUEUED:
                    self.victim.forget(task)
                self.tasks.resolve(task, ERROR, ("OwnerDiedError", f"{task.spec.name}: {text}", {}))
                self.tasks.entry_resolved(task, now)
        assert not any(task.state == LEASED for task in self.unresolved())

    def _welcome(self, peer: PeerID, message: Welcome, now: float) -> None:
        self.victim.told_nothing()
        super()._welcome(peer, message, now)

    def _arguments(self, task: Task, thief: Thief | Actor) -> tuple[Any, list[Any]]:
        args, deps = super()._arguments(task, thief)
        if self.references.moved:
            place = self.references.place
            if type(args) is not bytes:
                args = (*place(args[:3]), *args[3:])
            deps = [(status, place(value) if key is not None else value, key) for status, value, key in deps]
        return args, deps

    _inputs: ClassVar[dict[type[Any], Input]] = ClientCore._inputs | {Welcome: _welcome}
