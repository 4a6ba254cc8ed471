"""Messages survive the wire, and nothing else gets in."""

import dataclasses
from typing import Any, get_type_hints

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmesh.exceptions import RemoteProtocolError
from zmesh.wire import messages as m
from zmesh.wire.codec import decode, encode
from zmesh.wire.ids import node_peer, object_id, split_object_id

VALUES = {
    int: st.integers(0, 2**63),
    float: st.floats(allow_nan=False),
    bytes: st.binary(max_size=40),
    str: st.text(max_size=20),
    bool: st.booleans(),
    list: st.lists(st.one_of(st.integers(0, 99), st.binary(max_size=5), st.none()), max_size=4),
    dict: st.dictionaries(st.text(max_size=5), st.integers(0, 10**9), max_size=4),
}


def tuples(value: Any) -> Any:
    """Return a value as it comes off the wire: lists are tuples."""
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("cls", m.MESSAGES, ids=lambda cls: cls.__name__)
@settings(deadline=None)  # the machine may be busy
@given(data=st.data())
def test_every_message_comes_back_as_it_was(cls: type[Any], data: st.DataObject) -> None:
    hints = get_type_hints(cls)
    fields = [getattr(hints[f.name], "__origin__", hints[f.name]) for f in dataclasses.fields(cls)]
    message = cls(*(data.draw(VALUES[kind]) for kind in fields))
    found = decode(encode(message))
    assert type(found) is cls
    for one in dataclasses.fields(cls):
        assert getattr(found, one.name) == tuples(getattr(message, one.name))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_are_a_message(frame: bytes) -> None:
    try:
        found = decode(frame)
    except RemoteProtocolError:
        return
    assert type(found) in m.MESSAGES


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([999], "unknown"),
        ([-1], "unknown"),
        (["x"], "not a message"),
        ([], "not a message"),
        ([m.MESSAGES.index(m.Free)], "1 are needed"),
        ([m.MESSAGES.index(m.Free), "seven"], "is str, not int"),
        ([m.MESSAGES.index(m.Work), {}, []], "is dict, not list"),
        (7, "not a message"),
    ],
)
def test_what_is_no_message_is_refused_with_the_reason(fields: Any, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        decode(msgpack.packb(fields))


def test_fields_of_a_newer_version_are_ignored_and_missing_ones_take_their_default() -> None:
    code = m.MESSAGES.index(m.Detach)
    assert decode(msgpack.packb([code, b"v", 3, True, "new", 9])) == m.Detach(b"v", 3, True)
    assert decode(msgpack.packb([code, b"v", 3])) == m.Detach(b"v", 3, False)


def test_a_whole_number_is_a_float_too() -> None:
    code = m.MESSAGES.index(m.Steal)
    assert decode(msgpack.packb([code, 1, {}, 2])).credit_s == 2


def test_an_object_id_names_its_owner_number_and_index() -> None:
    owner = node_peer(b"n" * 8)
    assert split_object_id(object_id(owner, 2**40, 7)) == (owner, 2**40, 7)
