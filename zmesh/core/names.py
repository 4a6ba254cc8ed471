"""Names of actors and placement groups, mesh-wide: what has a name, and that no two have the same.

A name has a home, the living node that comes first in an order that each pair of name and node has of its own; the
next two keep copies. Taking a name is decided at its home, and told only when the copies are there. When members come
or go, whoever keeps a name hands it to those who are first in line now. Groups have a namespace of their own, and their
node takes names for them; what is said of actors here goes for them too.

Source: rendezvous hashing, Thaler and Ravishankar, IEEE/ACM ToN 1998: of n nodes, one that comes or goes moves 1/n of
the names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.timers import Timers
from zmesh.wire.actor_messages import (
    GROUPS,
    NAME_DOUBT,
    NAME_DROP,
    NAME_FIND,
    NAME_TAKE,
    NameAsk,
    NameCopied,
    NameCopy,
    NameTold,
)
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID, PeerID, node_peer

COPIES = 3  # nodes that keep a name, its home among them
DEAD_MAX = 1024  # dead actors, and dead nodes, whose names may still be handed over by somebody who has not heard
LOOK_S = 0.5  # after a death, or after members met again that took each other for dead
HOPS_MAX = 3  # nodes whose views differ pass a question on so often, before the one who has it answers
_MASK = (1 << 64) - 1

Key = tuple[str, str]  # (namespace, name)
Entry = tuple[str, str, ObjectID, bytes]  # see messages.NameAsk


@dataclass(slots=True)
class Asked:
    """A question passed on, or a name taken or dropped of which those who keep copies have yet to hear."""

    asker: PeerID
    message: NameAsk
    at: NodeID = b""  # the node it was passed on to
    missing: dict[NodeID, bool] = field(default_factory=dict)  # {node that has not confirmed: True}
    line: list[NodeID] = field(default_factory=list)  # those who were told


class Names:
    """The names that one node keeps, and the questions of its clients.

    Args:
        node: its ID.
        members: the other living members.
        alive: whether a client of this node lives.
        lost: called with (namespace, name, actor) of an actor of this node whose name another got, while members took
            this node for dead.
    """

    def __init__(
        self,
        node: NodeID,
        effects: list[Effect],
        timers: Timers,
        *,
        members: Callable[[], list[NodeID]],
        alive: Callable[[PeerID], bool],
        lost: Callable[[str, str, ObjectID], None],
    ) -> None:
        self._node = node
        self._effects = effects
        self._timers = timers
        self._lost = lost
        self._timer = 0
        self._members = members
        self._alive = alive
        self._entries: dict[Key, Entry] = {}
        self._lines: dict[Key, list[NodeID]] = {}  # {name kept here: the nodes that were first in line}
        self._asked: dict[int, Asked] = {}
        self._dead: dict[ObjectID | NodeID, bool] = {}  # {dead actor, or node with all of its: True}, the oldest first
        self._requests = 0
        self._ours: dict[ObjectID, Entry] = {}  # of actors whose home is this node
        self._takers: dict[int, Callable[[Entry], None]] = {}  # {request of this node's own: what hears the answer}

    def line(self, key: Key) -> list[NodeID]:
        """Return the nodes that keep a name, its home first."""
        mark = _mixed(f"{key[0]}\0{key[1]}".encode())
        ranked = sorted([self._node, *self._members()], key=lambda node: _mixed(node, mark))
        return ranked[:COPIES]

    # Questions.

    def take(self, namespace: str, name: str, owner: bytes, description: bytes, then: Callable[[Entry], None]) -> None:
        """Take a name for something of this node's own; `then` gets the entry that has it, once that is sure."""

        def told(entry: Entry) -> None:
            if entry[2] == owner:
                self._ours[owner] = entry
            then(entry)

        self._take((namespace, name, owner, description), told)

    def _take(self, entry: Entry, told: Callable[[Entry], None]) -> None:
        self._requests += 1
        self._takers[self._requests] = told
        self.ask(node_peer(self._node), NameAsk(self._requests, NAME_TAKE, *entry))

    def ask(self, peer: PeerID, message: NameAsk) -> None:
        """A client of this node asks, or another node whose view says that this one should know."""
        key = (message.namespace, message.name)
        if message.kind == NAME_DOUBT:
            self._doubt(key, message)
            return
        line = self.line(key)
        if line[0] != self._node and message.hops < HOPS_MAX:
            self._pass_on(peer, message, line[0])
            return
        held = self._entries.get(key)
        if message.kind == NAME_DROP:
            self._forget(key, message.actor)
            self._copy(peer, message, line, [], [(*key, message.actor)])
        elif message.kind == NAME_FIND or held is not None:
            self._tell(peer, message, held)
        else:
            entry = (message.namespace, message.name, message.actor, message.description)
            self._keep(entry, line)
            self._copy(peer, message, line, [entry], [])

    def _doubt(self, key: Key, message: NameAsk) -> None:
        """A client found that what has a name is gone. Members that miss each other may pass on what has ended."""
        home, members = message.actor[:NODE_ID_BYTES], self._members()
        if home in members and message.hops < HOPS_MAX:
            again = NameAsk(0, NAME_DOUBT, *key, message.actor, hops=message.hops + 1)
            self._effects.append(Send(node_peer(home), again))
        elif home not in members and not (home == self._node and self._lives(message.actor)):
            self._drop((*key, message.actor, b""))

    def _lives(self, actor: ObjectID) -> bool:
        """Whether an actor whose home is this node has a name, or is about to."""
        return actor in self._ours or any(asked.message.actor == actor for asked in self._asked.values())

    def _pass_on(self, peer: PeerID, message: NameAsk, node: NodeID) -> None:
        self._requests += 1
        self._asked[self._requests] = Asked(peer, message, at=node)
        fields = (message.kind, message.namespace, message.name, message.actor, message.description)
        self._effects.append(Send(node_peer(node), NameAsk(self._requests, *fields, message.hops + 1)))

    def _copy(self, peer: PeerID, message: NameAsk, line: list[NodeID], entries: list[Entry], gone: list[Any]) -> None:
        """Have the others keep or drop a name; the question is answered when they have, or are dead."""
        others = {node: True for node in line if node != self._node}
        if not others:
            self._tell(peer, message, entries[0] if entries else None)
            return
        self._requests += 1
        self._asked[self._requests] = Asked(peer, message, missing=others, line=line)
        for node in others:
            self._effects.append(Send(node_peer(node), NameCopy(self._requests, entries, gone)))

    def _tell(self, peer: PeerID, message: NameAsk, entry: Entry | None) -> None:
        takes = message.kind == NAME_TAKE
        if takes and entry is None and not self._is_dead(message.actor):
            self.ask(peer, message)  # another had it first, and died while copies were made
            return
        if takes and peer == node_peer(self._node):
            told = self._takers.pop(message.request)
            if entry is not None:  # else what it is for has ended
                told(entry)
            return
        if takes and entry is not None and peer[:NODE_ID_BYTES] == self._node and entry[2] == message.actor:
            self._ours[message.actor] = entry
            if not self._alive(peer):
                self.actor_gone(message.actor)
                return
        if message.request:  # else it is this node that dropped a name
            self._effects.append(Send(peer, NameTold(message.request, list(entry or ()))))

    # Answers of other nodes.

    def told(self, message: NameTold) -> None:
        """A node answers what was passed on to it."""
        asked = self._asked.pop(message.request, None)
        if asked is not None:
            self._tell(asked.asker, asked.message, tuple(message.found) if message.found else None)

    def copied(self, node: NodeID, message: NameCopied) -> None:
        """A node keeps a copy; if it knows of another actor by that name, that one has it."""
        asked = self._asked.get(message.request)
        if asked is None:
            return
        late = [entry for entry in message.found if self._is_dead(entry[2])]
        if late:  # that node has not heard of it yet
            kept = [self._entries[entry[0], entry[1]] for entry in late if (entry[0], entry[1]) in self._entries]
            gone = [tuple(entry[:3]) for entry in late]
            self._effects.append(Send(node_peer(node), NameCopy(message.request, kept, gone)))
            return
        for entry in message.found:
            self._keep(tuple(entry), self.line((entry[0], entry[1])))
        self._confirmed(message.request, asked, node)

    def _confirmed(self, request: int, asked: Asked, node: NodeID) -> None:
        asked.missing.pop(node, None)
        if not asked.missing:
            del self._asked[request]
            key = (asked.message.namespace, asked.message.name)
            if asked.message.kind == NAME_DROP and self.line(key) != asked.line:
                self.ask(asked.asker, asked.message)  # who is new in line may have got it from one not told yet
                return
            self._tell(asked.asker, asked.message, self._entries.get(key))

    # Copies.

    def keep(self, peer: PeerID, message: NameCopy, now: float) -> None:
        """Keep what another node hands over, unless an actor has that name here already."""
        for namespace, name, actor in message.gone:
            self._forget((namespace, name), actor)
        found = []
        for entry in message.entries:
            held = self._entries.get((entry[0], entry[1]))
            if held is not None and held[2] != entry[2]:
                found.append(held)
            elif not self._is_dead(entry[2]):
                line = self.line((entry[0], entry[1]))
                self._keep(tuple(entry), line)
                if self._node not in line:  # whoever sent it sees other members than we do, for now
                    self.look_into(now)
        if message.request:
            self._effects.append(Send(peer, NameCopied(message.request, found)))

    def _keep(self, entry: Entry, line: list[NodeID]) -> None:
        self._entries[entry[0], entry[1]] = entry
        self._lines[entry[0], entry[1]] = line

    def _forget(self, key: Key, actor: ObjectID) -> None:
        """A dead actor has no name. Its entry may still be on its way here, from one who kept it."""
        self._bury(actor)
        held = self._entries.get(key)
        if held is not None and held[2] == actor:
            self._let_go(key)

    def _bury(self, who: ObjectID | NodeID) -> None:
        self._dead[who] = True
        if len(self._dead) > DEAD_MAX:
            del self._dead[next(iter(self._dead))]

    def _is_dead(self, actor: ObjectID) -> bool:
        home = actor[:NODE_ID_BYTES]
        return actor in self._dead or (home in self._dead and home not in self._members())

    def _let_go(self, key: Key) -> None:
        del self._entries[key]
        del self._lines[key]

    # What happens to actors, clients and members.

    def actor_gone(self, actor: ObjectID) -> None:
        """An actor whose home is this node is dead: its name is free."""
        entry = self._ours.pop(actor, None)
        if entry is not None:
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        self.ask(node_peer(self._node), NameAsk(0, NAME_DROP, *entry[:3]))

    def members_changed(self, gone: NodeID = b"") -> None:
        """A member came, or `gone` is dead, with the actors whose home it was."""
        if gone:
            self._bury(gone)
        for key, entry in list(self._entries.items()):
            if gone and entry[2][:NODE_ID_BYTES] == gone:
                self._let_go(key)
                continue
            line, before = self.line(key), self._lines[key]
            for node in line:
                # Who was in line before may have no copy yet, if its home died as it was taken.
                if node != self._node and (node not in before or (line[0] == self._node and line != before)):
                    self._effects.append(Send(node_peer(node), NameCopy(0, [entry])))
            self._lines[key] = line
            if self._node not in line:
                self._let_go(key)
        for request, asked in list(self._asked.items()):
            if gone and asked.at == gone:
                del self._asked[request]
                self.ask(asked.asker, asked.message)
            elif gone in asked.missing:
                self._confirmed(request, asked, gone)

    # Names may be lost with all who kept them. Members that took each other for dead may have given away the other's.

    def taken_for_dead(self) -> None:
        """A member took this node for dead: until `look_into` has looked, others may have the names of ours."""
        for entry in self._ours.values():
            if self._entries.get(entry[:2]) == entry:
                self._let_go(entry[:2])

    def look_into(self, now: float) -> None:
        """Look soon, when all see the same members, whether our names are still ours, and whether we keep others'."""
        if not self._timer:
            self._timer = self._timers.set(now + LOOK_S, self._look)

    def _look(self, now: float) -> None:
        del now
        self._timer = 0
        for key in [key for key in self._entries if self._node not in self.line(key)]:
            self._let_go(key)
        for entry in list(self._ours.values()):
            if self.line(entry[:2])[0] != self._node or self._entries.get(entry[:2]) != entry:
                self._take_again(entry)

    def _take_again(self, entry: Entry) -> None:
        self._take(entry, lambda found: self._looked(entry, found))

    def _looked(self, entry: Entry, found: Entry) -> None:
        """An actor of ours has its name still, or again, or another has it."""
        ended = entry[2] not in self._ours
        if found[2] != entry[2] and not ended:
            del self._ours[entry[2]]
            self._lost(*entry[:3])
        elif found[2] == entry[2] and ended:
            self._drop(entry)

    def listed(self) -> list[tuple[str, str]]:
        """Return the names of actors this node is the home of."""
        return sorted(key for key, line in self._lines.items() if line[0] == self._node and key[0] != GROUPS)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert list(self._entries) == list(self._lines) or dict.fromkeys(self._entries) == dict.fromkeys(self._lines)
        assert all(key == (entry[0], entry[1]) for key, entry in self._entries.items())
        assert all(bool(asked.at) != bool(asked.missing) for asked in self._asked.values())


def _mixed(data: bytes, start: int = 0xCBF29CE484222325) -> int:
    """Return 64 bits that depend on all of `data`: FNV-1a, then splitmix64's finish."""
    value = start
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
