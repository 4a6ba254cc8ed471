"""Identifiers. An ID names its owner, so nobody has to be asked who that is.

    NodeID    8 bytes, random per start of a node process, never used again
    PeerID   16 bytes: the NodeID of its host, then 8 of its own; a node's own PeerID has eight zeros there. The first
             of the 8 is 0xff for a guest: a program elsewhere that reaches the mesh through this node
    ObjectID 28 bytes: the owner's PeerID, a sequence number (8), the index among the task's results (4)

A sequence number counts what one client has made, from 1: tasks and put objects share the count.
"""

import struct

NodeID = bytes
PeerID = bytes
ObjectID = bytes

NODE_ID_BYTES = 8
PEER_ID_BYTES = 16
TOKEN_BYTES = PEER_ID_BYTES - NODE_ID_BYTES
OBJECT_ID_BYTES = 28
ACTOR_INDEX = 1

_TAIL = struct.Struct(">QI")


def node_peer(node: NodeID) -> PeerID:
    """Return the PeerID under which a node itself speaks."""
    return node + bytes(PEER_ID_BYTES - NODE_ID_BYTES)


def local_peer(node: NodeID, chance: bytes) -> PeerID:
    """Return the PeerID of a process on a node's host, from 8 random bytes."""
    return node + bytes([chance[0] & 0x7F]) + chance[1:TOKEN_BYTES]


def guest_token(chance: bytes) -> bytes:
    """Return what tells a guest from all others, from 8 random bytes: the second half of its PeerID."""
    return b"\xff" + chance[1:TOKEN_BYTES]


def is_guest(peer: PeerID) -> bool:
    """Whether a PeerID is that of a guest, which only its node can reach."""
    return peer[NODE_ID_BYTES : NODE_ID_BYTES + 1] == b"\xff"


def guest_segment(segment: int, me: PeerID) -> int:
    """Return what the node of the guest `me` calls a segment the guest wrote, and of that, again the guest's own id.

    It brings the same bytes to each node it comes to, maybe to one where those of its former name still lie.
    """
    return segment ^ int.from_bytes(me[NODE_ID_BYTES + 1 :])


def store_peer(node: NodeID) -> PeerID:
    """Return the PeerID under which a node's shared memory answers guests."""
    return node + bytes(TOKEN_BYTES - 1) + b"\x01"


def object_id(owner: PeerID, seq: int, index: int = 0) -> ObjectID:
    """Return the ID of result `index` of the owner's task `seq`."""
    return owner + _TAIL.pack(seq, index)


def actor_id(owner: PeerID, seq: int) -> ObjectID:
    """Return the ID of the actor that the owner's task `seq` is: its handles are counted as an object's refs.

    The task's only item, which says that the actor is made, has index 0.
    """
    return object_id(owner, seq, ACTOR_INDEX)


def split_object_id(oid: ObjectID) -> tuple[PeerID, int, int]:
    """Return (owner, seq, index) of an ObjectID."""
    seq, index = _TAIL.unpack_from(oid, PEER_ID_BYTES)
    return oid[:PEER_ID_BYTES], seq, index
