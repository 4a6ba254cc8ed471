"""What the fields of a message hold inside: the lists, IDs and amounts in it, beyond the types that the codec knows.

A node takes frames of any process of its user, and must outlive all of them: what it decodes is checked here before a
core sees it, so nothing is ever half applied. Clients do not check: they hear only of their own node and of processes
of their own program, and the path of a task would pay for it.

A check is a function that says whether a value is well made. It never raises.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from zmesh.exceptions import RemoteProtocolError, UnknownWordError
from zmesh.wire import actor_messages as a
from zmesh.wire import counting_messages as c
from zmesh.wire import death_messages as d
from zmesh.wire import group_messages as g
from zmesh.wire import keeper_messages as k
from zmesh.wire import lineage_messages as li
from zmesh.wire import messages as m
from zmesh.wire import shortcut_messages as s
from zmesh.wire import store_messages as st
from zmesh.wire.codec import decode
from zmesh.wire.ids import NODE_ID_BYTES, OBJECT_ID_BYTES, PEER_ID_BYTES, TOKEN_BYTES

Check = Callable[[Any], bool]

COUNT_MAX = 1 << 31  # of workers, holds, items: sums of them are numbers that a message can carry
AMOUNT_MAX = 1 << 60  # of a resource, and of bytes
NUMBER_MAX = 1 << 62  # of requests, segments, versions: they are compared and told, and one is added at most
SECONDS_MAX = 1e9


# What checks are made of.


def _of_bytes(count: int) -> Check:
    return lambda value: type(value) is bytes and len(value) == count


def _number(least: int, most: int) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _kind(*kinds: type) -> Check:
    return lambda value: type(value) in kinds


def _either(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


def _only(*values: Any) -> Check:
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def _list(one: Check) -> Check:
    return lambda value: type(value) is tuple and all(map(one, value))


def _row(*checks: Check) -> Check:
    """A list of just so many fields: readers take it apart."""
    count = len(checks)

    def check(value: Any) -> bool:
        if type(value) is not tuple or len(value) != count:
            return False
        # Thousands of rows may come, and a generator takes three times as long.
        for at in range(count):  # noqa: SIM110  # see above
            if not checks[at](value[at]):
                return False
        return True

    return check


def _by_status(checks: dict[int, Check]) -> Check:
    """A status and the value that goes with it."""

    def check(value: Any) -> bool:
        if type(value) is not tuple or len(value) != 2 or type(value[0]) is not int:
            return False
        one = checks.get(value[0])
        return one is not None and one(value[1])

    return check


_node, _peer, _oid = _of_bytes(NODE_ID_BYTES), _of_bytes(PEER_ID_BYTES), _of_bytes(OBJECT_ID_BYTES)
_token = _of_bytes(TOKEN_BYTES)
_group = _of_bytes(PEER_ID_BYTES)
_no_bytes = _of_bytes(0)
_bytes, _text, _flag, _dict = _kind(bytes), _kind(str), _kind(bool), _kind(dict)
_count = _number(0, COUNT_MAX)
_whole = _number(-NUMBER_MAX, NUMBER_MAX)
_segment = _number(0, (1 << 64) - 1)
_size = _number(0, AMOUNT_MAX)
_oids = _list(_oid)
_place = _row(_segment, _size, _peer)


def _seconds(value: Any) -> bool:
    return type(value) in (float, int) and 0 <= value <= SECONDS_MAX  # which no NaN is


def _shape(value: Any) -> bool:
    return type(value) is dict and all(
        type(name) is str and type(amount) is int and 0 <= amount <= AMOUNT_MAX for name, amount in value.items()
    )


def _nothing(value: Any) -> bool:
    return value is None


_error = _row(_text, _text, _dict)
_value = _by_status({m.PENDING: _nothing, m.INLINE: _bytes, m.STORED: _place, m.FAILED: _bytes, m.ERROR: _error})
_resolved = _by_status({m.INLINE: _bytes, m.STORED: _place, m.FAILED: _bytes, m.ERROR: _error})


def _object(value: Any) -> bool:
    """As Promote and Resolve have them: [ObjectID, status, value, ObjectIDs inside]."""
    return type(value) is tuple and len(value) == 4 and _oid(value[0]) and _value(value[1:3]) and _oids(value[3])


def _told(value: Any) -> bool:
    """As Fetched has them: [ObjectID, status, value]."""
    return type(value) is tuple and len(value) == 3 and _oid(value[0]) and _resolved(value[1:])


# Only a keeper hears these: it is a victim. Its thieves run actors, whose creation tasks are streams.


def _part(value: Any) -> bool:
    return type(value) is tuple and len(value) == 3 and _resolved(value[:2]) and _oids(value[2])


def _item(value: Any) -> bool:
    return type(value) is tuple and len(value) == 4 and _count(value[0]) and _part(value[1:])


_key = _either(_oid, _row(_whole, _count))
_outcome = _by_status(
    {
        m.INLINE: _bytes,
        m.STORED: _place,
        m.FAILED: _bytes,
        m.ERROR: _error,
        m.CANCELLED: _nothing,
        m.RETRYABLE: _bytes,
        m.MANY: _list(_part),
        m.ITEM: _item,
        m.END: _count,
        m.LOST: _list(_row(_key, _segment, _peer)),
    }
)


def _result(value: Any) -> bool:
    return (
        type(value) is tuple
        and 4 <= len(value) <= 5
        and _whole(value[0])
        and _count(value[1])
        and _outcome(value[2:4])
        and (len(value) == 4 or _oids(value[4]))
    )


_attempts = _list(_row(_whole, _count))
_name_entry = _row(_text, _text, _bytes, _bytes)
_found = _either(_only(()), _name_entry)
_place_or_none = _either(_only(()), _place)
_failure = _either(_only(()), _resolved)
_shapes = _list(_shape)
_listed = _row(_oid, _number(m.PENDING, m.ERROR), _size, _segment, _count, _either(_flag, _count), _count, _text, _text)
_creation = _row(_text, _shape, _list(_shape), _dict, _bytes, _bytes, _whole, _whole)

CHECKS: dict[type[Any], tuple[Check, ...]] = {
    # {message that a node or its keepers take from other processes: a check for each field}
    m.Hello: (_text, _number(1, COUNT_MAX - 1), _dict, _whole),
    m.Goodbye: (),
    m.Demand: (_peer, _shape, _count, _count, _whole),
    m.Free: (_whole,),
    m.Blocked: (),
    m.Unblocked: (),
    m.Kill: (_peer, _whole, _count, _text),
    m.WorkerDied: (_peer, _count, _whole, _either(_peer, _no_bytes), _whole, _count, _text, _text, _flag, _text),
    m.StatusRequest: (_whole,),
    m.Promote: (_whole, _list(_object)),
    m.Ack: (_whole, _text),
    m.Resolve: (_list(_object),),
    m.Hold: (_whole, _list(_row(_oid, _peer))),
    m.Release: (_list(_row(_oid, _number(1, COUNT_MAX), _flag)),),
    m.Fetch: (_oids,),
    m.Fetched: (_list(_told),),
    m.FreeSegments: (_list(_row(_peer, _segment, _flag)),),
    m.Steal: (_whole, _shape, _seconds),
    m.Done: (_list(_result), _list(_row(_count, _seconds)), _list(_key)),
    m.GiveBack: (_attempts,),
    m.Unsteal: (_whole,),
    m.Unpin: (_list(_row(_whole, _count)),),
    m.Buried: (_peer,),
    m.Spare: (_shape,),
    m.Lease: (_peer, _peer, _shape, _count, _count, _whole, _dict, _whole),
    m.LeaseBack: (_peer, _shape, _count, _whole),
    m.Watch: (_list(_peer),),
    m.PeersGone: (_list(_peer),),
    m.KeepSegments: (_list(_segment),),
    m.Pull: (_list(_row(_oid, _segment, _size, _peer)),),
    m.LetGo: (_list(_row(_oid, _flag)),),
    m.Leaving: (_node,),
    m.Evacuated: (_node, _count, _count, _text),
    s.Switch: (_token,),
    s.Carry: (_token, _whole, _whole, _whole, _flag, _either(_peer, _no_bytes), _either(_peer, _no_bytes), _bytes),
    st.ListObjects: (_whole,),
    st.Objects: (_whole, _list(_listed)),
    g.CreateGroup: (_whole, _group, _either(_peer, _no_bytes), _text, _text, _shapes, _bytes),
    g.RemoveGroup: (_whole, _group),
    g.WatchGroup: (_group,),
    g.GroupState: (_group, _text, _text, _shapes),
    g.Reserve: (_group, _whole, _list(_row(_count, _shape)), _seconds),
    g.Reserved: (_group, _whole),
    g.Refused: (_group, _whole, _shape),
    g.Commit: (_group, _whole),
    g.ReleaseBundles: (_group, _whole),
    g.AskGroup: (_group, _whole),
    a.Settle: (_shape,),
    a.Follow: (_peer,),
    a.ActorState: (_oid, _whole, _either(_peer, _no_bytes), _failure, _flag),
    a.ActorQuery: (_oid, _whole),
    a.Unheld: (_oid,),
    a.KillActor: (_oid, _flag),
    a.ShareActor: (_whole, _oid),
    a.NameAsk: (
        _whole, _only(a.NAME_TAKE, a.NAME_FIND, a.NAME_DROP, a.NAME_DOUBT), _text, _text, _bytes, _bytes, _count,
    ),
    a.NameTold: (_whole, _found),
    a.NameCopy: (_whole, _list(_name_entry), _list(_row(_text, _text, _bytes))),
    a.NameCopied: (_whole, _list(_name_entry)),
    li.Missing: (_list(_row(_oid, _segment, _peer)),),
    li.Remember: (_oids,),
    li.Forget: (_oids,),
    li.Replicate: (_whole, _oid, _count),
    li.KeepReplica: (_oid, _place),
    li.Replicated: (_oid, _text),
    li.DropReplica: (_oid,),
    li.Seek: (_oids,),
    li.AskReplica: (_oid,),
    li.ReplicaAt: (_oid, _place_or_none),
    c.Tally: (_segment,),
    c.Recount: (),
    c.Holdings: (_list(_row(_oid, _count)),),
    c.Uncounted: (_oids,),
    c.WhoHolds: (_node, _whole, _oids),
    c.Held: (_node, _whole, _oids),
    d.Dying: (_list(_peer), _flag),
    d.Vouch: (_whole, _list(_row(_oid, _count))),
    k.KeepActor: (
        _whole, _peer, _creation, _bytes, _oids, _oids, _text, _text, _bytes, _flag, _flag, _either(_peer, _no_bytes),
        _list(_place_or_none),
    ),
}  # fmt: skip

_by_name = {
    cls: [(field.name, check) for field, check in zip(dataclasses.fields(cls), checks, strict=True)]
    for cls, checks in CHECKS.items()
}


def checked(frame: bytes) -> Any:
    """Return the message of a frame that some process sent to a node, whole down to its last field.

    Raises:
        UnknownWordError: it is nothing that a node of this version hears; a newer one may.
        RemoteProtocolError: it is no message, or malformed.
    """
    message = decode(frame)
    cls = type(message)
    checks = _by_name.get(cls)
    if checks is None:
        raise UnknownWordError(f"{cls.__name__} is not for a node")
    for name, check in checks:
        if not check(getattr(message, name)):
            raise RemoteProtocolError(f"{cls.__name__}.{name} is malformed")
    return message
