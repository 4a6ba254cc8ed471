"""What a core asks its shell to do. Plain data: built by core/, carried out in order by runtime/.

An effect is made per message or per process, never per task: a batch of 256 tasks is one Send.
"""

from dataclasses import dataclass
from typing import Any

from zmesh.wire.ids import NodeID, ObjectID, PeerID


@dataclass(slots=True)
class Send:
    """Send `message` to `to`. A peer that is gone is no error: its death is told separately."""

    to: PeerID
    message: Any


@dataclass(slots=True)
class Connect:
    """Open a link to the client `peer` (a worker to its victim)."""

    peer: PeerID


@dataclass(slots=True)
class Disconnect:
    """Close the link to `peer`; what was sent before still goes out."""

    peer: PeerID


@dataclass(slots=True)
class Resolved:
    """Entries somebody waits for have their value or error now."""

    entries: list[Any]


@dataclass(slots=True)
class Recycle:
    """Segments of this process have no reader left: they may be written again."""

    segments: list[int]


@dataclass(slots=True)
class UnmapSegments:
    """The node wants to write these to disk: unmap those that this process does not use, and say which."""

    segments: list[int]


@dataclass(slots=True)
class Interrupt:
    """Raise KeyboardInterrupt in the running task, if it is still `(owner, seq, attempt)`."""

    owner: PeerID
    seq: int
    attempt: int


@dataclass(slots=True)
class Spawn:
    """Fork a worker under this PeerID, with the black box `slot`."""

    peer: PeerID
    slot: int


@dataclass(slots=True)
class StartKeeper:
    """Have a keeper (core/keeper.py) live in this process, as the client `peer` of this node."""

    peer: PeerID


@dataclass(slots=True)
class StopKeeper:
    """The keeper `peer` is to be forgotten: it keeps nothing any more."""

    peer: PeerID


@dataclass(slots=True)
class KillProcess:
    """SIGKILL the worker `peer` now."""

    peer: PeerID


@dataclass(slots=True)
class DropSegments:
    """Close the node's descriptors of these segments; their pages go with the last mapping."""

    segments: list[int]


@dataclass(slots=True)
class DropUnused:
    """These producers are gone, and the program they worked for: drop their segments that no shared object lies in."""

    producers: list[PeerID]


@dataclass(slots=True)
class Exit:
    """Leave the loop: this process has nothing more to do."""


@dataclass(slots=True)
class Show:
    """Print a worker's output for the user. `stream` is 1 (stdout) or 2 (stderr); `text` ends with a newline."""

    stream: int
    text: str


@dataclass(slots=True)
class Warn:
    """Log a line somebody should act on: there is no caller to raise it to."""

    text: str


Address = tuple[str, int]  # (numeric IP or host name, base port P): P control, P + 1 gossip, P + 2 bulk


@dataclass(slots=True)
class Publish:
    """Publish a gossip message to whoever subscribes to this node."""

    message: Any


@dataclass(slots=True)
class Subscribe:
    """Hear what `node` publishes from now on."""

    node: NodeID
    address: Address


@dataclass(slots=True)
class Unsubscribe:
    """Hear it no more."""

    node: NodeID


@dataclass(slots=True)
class Tell:
    """Send one gossip message straight to a node's control socket; it may be lost.

    `node` is b"" if only the address is known yet: a seed to join through.
    """

    node: NodeID
    address: Address
    message: Any


@dataclass(slots=True)
class MemberUp:
    """A member is alive and was not before, or its row changed: `row` says all about it."""

    row: Any


@dataclass(slots=True)
class MemberDown:
    """A member is dead or has left, for good: `why` in words. Its NodeID never comes back."""

    node: NodeID
    why: str


@dataclass(slots=True)
class Joined:
    """The first member answered: this node is part of the mesh. `refused` is "" or why it may not be."""

    refused: str = ""


@dataclass(slots=True)
class Post:
    """Send one numbered parcel to a node; see core/links.py. It may be lost."""

    node: NodeID
    epoch: int
    seq: int
    ack: int
    more: bool
    source: PeerID
    to: PeerID
    frame: bytes


@dataclass(slots=True)
class PostAck:
    """Tell a node which parcels arrived, and if `missing`, that the next one did not. It may be lost."""

    node: NodeID
    epoch: int
    ack: int
    missing: bool


@dataclass(slots=True)
class Redial:
    """Connect to a node anew: the connection looks well, but nothing comes through."""

    node: NodeID


@dataclass(slots=True)
class Relay:
    """A frame from `source` on another node arrived for `to`, this node or a client of it."""

    source: PeerID
    to: PeerID
    frame: bytes


@dataclass(slots=True)
class LinkEnded:
    """The other side ended the link and began a new one: it took us for dead, so we take it for dead too."""

    node: NodeID


@dataclass(slots=True)
class Dial:
    """Guest: hang up, and dial the member at that address under this token."""

    address: Address
    token: bytes


@dataclass(slots=True)
class Talk:
    """Guest: say this to the member we dialled, outside the link; it may be lost."""

    message: Any


@dataclass(slots=True)
class Rehomed:
    """Guest: this process is `me` now. Bring its bytes to the new node's host, then call GuestCore.restored."""

    me: PeerID


@dataclass(slots=True)
class DialNode:
    """Driver: dial a far node's control port under this token; Shortcuts.connected hears of it."""

    node: NodeID
    address: Address
    token: bytes


@dataclass(slots=True)
class HangUp:
    """Driver: close the connection to a far node."""

    node: NodeID


@dataclass(slots=True)
class Detour:
    """Driver: send `message` to a peer on another host by way of our own node, though there is a shortcut."""

    to: PeerID
    message: Any


@dataclass(slots=True)
class FetchCopy:
    """Copy an object's bytes from another host into a segment of this one; NodeCore.fetched hears of the end."""

    oid: ObjectID
    segment: int
    nbytes: int
    producer: PeerID


@dataclass(slots=True)
class DropCopies:
    """These copies are not needed any more; if `clean`, their pages may be written again at once."""

    oids: list[ObjectID]
    clean: bool


Effect = (
    Send
    | Connect
    | Disconnect
    | Resolved
    | Recycle
    | UnmapSegments
    | Interrupt
    | Spawn
    | StartKeeper
    | StopKeeper
    | KillProcess
    | DropSegments
    | Exit
    | Show
    | Warn
    | Publish
    | Subscribe
    | Unsubscribe
    | Tell
    | MemberUp
    | MemberDown
    | Joined
    | Post
    | PostAck
    | Redial
    | Relay
    | LinkEnded
    | Dial
    | Talk
    | Rehomed
    | DialNode
    | HangUp
    | Detour
    | DropUnused
    | FetchCopy
    | DropCopies
)
