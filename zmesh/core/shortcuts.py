"""Shortcuts: a driver talks straight to a far node whose workers serve it, instead of by way of its own node.

A frame wakes some ten threads on its way past two nodes and back; a shortcut spares half of them. It is a reliable link
like that between nodes (core/links.py), so it may be cut as often as one likes.

    far node --Shortcut(token, address)--> driver     by way of the driver's node, with the first lease
    driver   dials the far node's control port
    driver   --Switch--> far node                     the last word by the old way; all others take the new one
    far node --Switch--> driver                       the same, in the other direction

What comes by the new way before the Switch came by the old one is held back. So to everything above it is still one
FIFO link. While there is no connection, parcels take the old way, as Carry. A shortcut ends with the client, or when
one of the two nodes takes the other for dead; what comes under the token of one that ended, or of another epoch than 0,
is ignored.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmesh.core.effects import Address, Detour, DialNode, Effect, HangUp, Post, PostAck, Send
from zmesh.wire.codec import encode
from zmesh.wire.ids import NODE_ID_BYTES, TOKEN_BYTES, NodeID, PeerID, node_peer
from zmesh.wire.shortcut_messages import Carry, Shortcut, Switch

Parcel = tuple[int, int, int, bool, PeerID, PeerID, bytes]  # epoch, seq, ack, more, source, to, frame
LinkName = bytes  # of a shortcut at the far node: LINK_NAME and the token
LINK_NAME = b"\x03"
LINK_NAME_BYTES = len(LINK_NAME) + TOKEN_BYTES
WAYS_MAX = (
    64  # of one driver; other nodes are reached by way of its own. Each takes 4 of the 1024 descriptors of a program
)
HELD_MAX = 1024  # parcels that came before the last word by the old way; what does not fit is sent again
HELD_BYTES_MAX = 9 * 1024 * 1024  # of them: the window of a link, and one piece beyond it


def carry(token: bytes, effect: Post | PostAck) -> Carry:
    """Return the message that carries a parcel, or, without one, an acknowledgement."""
    if isinstance(effect, PostAck):
        return Carry(token, effect.epoch, 0, effect.ack, effect.missing, b"", b"", b"")
    e = effect
    return Carry(token, e.epoch, e.seq, e.ack, e.more, e.source, e.to, e.frame)


def take(links: Any, name: bytes, word: Carry, now: float) -> None:
    """Feed a link with what was carried by the old way."""
    if word.seq:
        links.receive(name, word.epoch, word.seq, word.ack, word.more, word.source, word.to, word.frame, now)
    else:
        links.acknowledged(name, word.epoch, word.ack, word.more, now)


@dataclass(slots=True)
class Way:
    """One shortcut, as either side sees it."""

    token: bytes
    heard: bool = False  # the last word by the old way came
    held: list[Parcel] = field(default_factory=list)  # what came before that, with rising numbers
    held_bytes: int = 0

    def hold(self, parcel: Parcel) -> None:
        """Keep a parcel until the last word by the old way has come; one that was sent again is kept once."""
        room = len(self.held) < HELD_MAX and self.held_bytes + len(parcel[6]) <= HELD_BYTES_MAX
        if room and (not self.held or parcel[1] > self.held[-1][1]):
            self.held.append(parcel)
            self.held_bytes += len(parcel[6])

    def take_held(self) -> list[Parcel]:
        """That word has come: return what was kept."""
        held, self.held, self.heard = self.held, [], True
        return held


class Shortcuts:
    """Those of one driver. Effects: DialNode, HangUp, Detour, and those of the links.

    Args:
        links: its Links (core/links.py), one to each node there is a shortcut to.
    """

    def __init__(self, me: PeerID, effects: list[Effect], links: Any) -> None:
        self._me = me
        self._effects = effects
        self.links = links
        self._ways: dict[NodeID, Way] = {}
        self.open: dict[NodeID, bool] = {}  # {node: True} to which we send by the new way

    def offered(self, peer: PeerID, word: Shortcut, now: float) -> None:
        """A node that serves us may be dialled, unless there are enough of them."""
        del now
        node = peer[:NODE_ID_BYTES]
        self._forget(node)
        if len(self._ways) >= WAYS_MAX:
            return
        self._ways[node] = Way(word.token)
        self._effects.append(DialNode(node, (word.host, word.port), word.token))

    def _way(self, node: NodeID, token: bytes) -> Way | None:
        """Return the shortcut to that node; None if the one with that token is over."""
        way = self._ways.get(node)
        return way if way is not None and way.token == token else None

    def connected(self, node: NodeID, token: bytes, now: float) -> None:
        """Our connection to that node, under that token, was made, or made anew."""
        way = self._way(node, token)
        if way is not None:
            if node not in self.open:
                self.open[node] = True
                self._effects.append(Detour(node_peer(node), Switch(way.token)))
            self.links.reconnected(node, now)

    def send(self, to: PeerID, frame: bytes, now: float) -> None:
        """Send a frame to a peer on a node that is open."""
        self.links.send(to[:NODE_ID_BYTES], self._me, to, frame, now)

    def heard(self, node: NodeID) -> bool:
        """Whether that node sends by the new way."""
        return node in self._ways and self._ways[node].heard

    def unsent(self, effect: Post | PostAck) -> None:
        """There is no connection to post this on: it takes the old way."""
        way = self._ways.get(effect.node)
        if way is not None:
            self._effects.append(Detour(node_peer(effect.node), carry(way.token, effect)))

    def switched(self, peer: PeerID, word: Switch, now: float) -> None:
        """That was the node's last word by the old way."""
        way = self._way(peer[:NODE_ID_BYTES], word.token)
        if way is not None:
            for parcel in way.take_held():
                self.links.receive(peer[:NODE_ID_BYTES], *parcel, now)

    def parcel(self, node: NodeID, token: bytes, parcel: Parcel, now: float) -> None:
        """A parcel came by the new way, under that token. Only words of that host are taken."""
        way = self._way(node, token)
        if way is None or parcel[0] or parcel[4][:NODE_ID_BYTES] != node:
            return
        if way.heard:
            self.links.receive(node, *parcel, now)
        else:
            way.hold(parcel)

    def acknowledged(self, node: NodeID, token: bytes, epoch: int, ack: int, missing: bool, now: float) -> None:
        """The node says which parcels arrived."""
        if self._way(node, token) is not None and not epoch:
            self.links.acknowledged(node, epoch, ack, missing, now)

    def carried(self, peer: PeerID, word: Carry, now: float) -> None:
        """A parcel came by the old way, after the Switch, as there was no connection."""
        node = peer[:NODE_ID_BYTES]
        theirs = not word.seq or word.source[:NODE_ID_BYTES] == node
        if self._way(node, word.token) is not None and not word.epoch and theirs:
            take(self.links, node, word, now)

    def node_gone(self, node: NodeID) -> None:
        """That node is dead to our node, and so to us."""
        if node in self._ways:
            self._forget(node)
            self._effects.append(HangUp(node))

    def _forget(self, node: NodeID) -> None:
        self._ways.pop(node, None)
        self.open.pop(node, None)
        self.links.forget(node)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        self.links.check()
        assert len(self._ways) <= WAYS_MAX
        assert all(node in self._ways for node in self.open)
        assert not any(way.heard and way.held for way in self._ways.values())


class Openings:
    """Those of drivers elsewhere that one node offered.

    Args:
        node: its ID.
        links: its links; a shortcut is one of them, under its own name.
        address: where it can be dialled, None if nowhere.
    """

    def __init__(
        self,
        node: NodeID,
        rng: random.Random,
        effects: list[Effect],
        links: Any,
        *,
        address: Callable[[], Address | None],
    ) -> None:
        self._me = node_peer(node)
        self._rng = rng
        self._effects = effects
        self._links = links
        self._address = address
        self._ways: dict[PeerID, Way] = {}
        self._clients: dict[LinkName, PeerID] = {}
        self.names: dict[PeerID, LinkName] = {}  # {client to which we send by the new way: name of the link}

    def offer(self, client: PeerID) -> None:
        """Workers of this node are going to serve a driver elsewhere: it may dial us. Once for each."""
        address = self._address()
        if client not in self._ways and address is not None:
            way = self._ways[client] = Way(self._rng.randbytes(TOKEN_BYTES))
            self._clients[LINK_NAME + way.token] = client
            self._effects.append(Send(client, Shortcut(way.token, *address)))

    def switch(self, client: PeerID, word: Switch, now: float) -> None:
        """That was the client's last word by the old way, and our answer is ours."""
        way = self._ways.get(client)
        if way is None or way.token != word.token or way.heard:
            return
        name = LINK_NAME + way.token
        # Not an effect: nothing may leave by the new way before this took the old one.
        self._links.send(client[:NODE_ID_BYTES], self._me, client, encode(Switch(way.token)), now)
        self.names[client] = name
        for parcel in way.take_held():
            self._links.receive(name, *parcel, now)

    def parcel(self, name: LinkName, parcel: Parcel, now: float) -> None:
        """A parcel came by the new way. Only its owner's words are taken; of a link that ended, none."""
        client = self._clients.get(name)
        if client is None or parcel[0] or parcel[4] != client:
            return
        way = self._ways[client]
        if way.heard:
            self._links.receive(name, *parcel, now)
        else:
            way.hold(parcel)

    def acknowledged(self, name: LinkName, epoch: int, ack: int, missing: bool, now: float) -> None:
        """The client says which parcels arrived."""
        if name in self._clients and not epoch:
            self._links.acknowledged(name, epoch, ack, missing, now)

    def unsent(self, effect: Post | PostAck, now: float) -> None:
        """The client is not connected: this takes the old way."""
        client = self._clients.get(effect.node)
        if client is not None:
            word = encode(carry(self._ways[client].token, effect))
            self._links.send(client[:NODE_ID_BYTES], self._me, client, word, now)

    def carried(self, client: PeerID, word: Carry, now: float) -> None:
        """A parcel came by the old way, after the Switch, as there was no connection."""
        way = self._ways.get(client)
        theirs = not word.seq or word.source == client
        if way is not None and way.token == word.token and not word.epoch and theirs:
            take(self._links, LINK_NAME + way.token, word, now)

    def gone(self, client: PeerID) -> None:
        """A client is no more, or its node is dead to us."""
        way = self._ways.pop(client, None)
        if way is not None:
            name = LINK_NAME + way.token
            del self._clients[name]
            self.names.pop(client, None)
            self._links.forget(name)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert len(self._ways) == len(self._clients)
        assert all(self._clients[name] == client for client, name in self.names.items())
