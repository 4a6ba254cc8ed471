"""Identifiers. An ID names its owner, so nobody has to be asked who that is.

    NodeID    8 bytes, random per start of a node process, never used again
    PeerID   16 bytes: the NodeID of its host, then 8 of its own; a node's own PeerID has eight zeros there
    ObjectID 28 bytes: the owner's PeerID, a sequence number (8), the index among the task's results (4)

A sequence number counts what one client has made, from 1: tasks and put objects share the count.
"""

import struct

NodeID = bytes
PeerID = bytes
ObjectID = bytes

NODE_ID_BYTES = 8
PEER_ID_BYTES = 16
OBJECT_ID_BYTES = 28

_TAIL = struct.Struct(">QI")


def node_peer(node: NodeID) -> PeerID:
    """Return the PeerID under which a node itself speaks."""
    return node + bytes(PEER_ID_BYTES - NODE_ID_BYTES)


def object_id(owner: PeerID, seq: int, index: int = 0) -> ObjectID:
    """Return the ID of result `index` of the owner's task `seq`."""
    return owner + _TAIL.pack(seq, index)


def split_object_id(oid: ObjectID) -> tuple[PeerID, int, int]:
    """Return (owner, seq, index) of an ObjectID."""
    seq, index = _TAIL.unpack_from(oid, PEER_ID_BYTES)
    return oid[:PEER_ID_BYTES], seq, index
