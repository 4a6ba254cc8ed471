"""Parcels, acknowledgements and words as frames: what travels over control sockets between hosts."""

import struct

from zmesh.core.shortcuts import Parcel
from zmesh.wire.ids import PEER_ID_BYTES

# What a control message is, in its first frame: kind, epoch, seq, ack, more?
_PARCEL, _ACK, WORD = b"P", b"A", b"W"
_HEAD = struct.Struct(">cIQQ?")


def parcel_head(epoch: int, seq: int, ack: int, more: bool, ids: bytes) -> bytes:
    """Return the first frame of a parcel; `ids` are the PeerIDs of sender and receiver."""
    return _HEAD.pack(_PARCEL, epoch, seq, ack, more) + ids


def ack_head(epoch: int, ack: int, missing: bool) -> bytes:
    """Return the only frame of an acknowledgement."""
    return _HEAD.pack(_ACK, epoch, 0, ack, missing)


def read_ack(frames: list[bytes]) -> tuple[int, int, bool] | None:
    """Return (epoch, ack, missing) if these frames are an acknowledgement."""
    if len(frames) != 1 or len(frames[0]) != _HEAD.size or frames[0][:1] != _ACK:
        return None
    _, epoch, _, ack, missing = _HEAD.unpack(frames[0])
    return epoch, ack, missing


def read_parcel(frames: list[bytes]) -> Parcel | None:
    """Return (epoch, seq, ack, more, source, to, frame) if these frames are a parcel."""
    head = frames[0]
    if len(frames) != 2 or len(head) != _HEAD.size + 2 * PEER_ID_BYTES or head[:1] != _PARCEL:
        return None
    _, epoch, seq, ack, more = _HEAD.unpack_from(head)
    source, to = head[_HEAD.size : _HEAD.size + PEER_ID_BYTES], head[_HEAD.size + PEER_ID_BYTES :]
    return epoch, seq, ack, more, source, to, frames[1]
