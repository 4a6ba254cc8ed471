"""Messages to frames and back: a frame is one msgpack array, [code, field, ...]. Knows shapes, not meaning.

One frame a message, also for a batch of 256 tasks: packing a list of small arguments costs 0.2 us each, a frame
of its own more than 1 us. Large values never travel here, only their place in shared memory.
"""

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import Any, get_type_hints

import msgpack

from zmesh.exceptions import RemoteProtocolError, UnknownWordError
from zmesh.wire.messages import MESSAGES

_PLAIN = {int: int, float: float, bytes: bytes, str: str, bool: bool}
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def _values(cls: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    names = [f.name for f in dataclasses.fields(cls)]
    if not names:
        return lambda message: ()
    if len(names) == 1:
        one = attrgetter(names[0])
        return lambda message: (one(message),)
    return attrgetter(*names)


def _types(cls: type[Any]) -> tuple[type, ...]:
    hints = get_type_hints(cls)
    origins = [getattr(hints[f.name], "__origin__", hints[f.name]) for f in dataclasses.fields(cls)]
    return tuple(_PLAIN.get(origin, origin) for origin in origins)


class Codec:
    """The words of one kind of link: the place of a class in `words` is its code on the wire."""

    def __init__(self, words: tuple[type[Any], ...]) -> None:
        self._words = words
        self._code = {cls: code for code, cls in enumerate(words)}
        self._values = {cls: _values(cls) for cls in words}
        self._types = [_types(cls) for cls in words]
        self._exact = [tuple(tuple if one is list else one for one in types) for types in self._types]  # as unpacked
        self._required = [
            sum(f.default is f.default_factory is dataclasses.MISSING for f in dataclasses.fields(cls)) for cls in words
        ]

    def encode(self, message: Any) -> bytes:
        """Return the frame of a message. Its fields hold only what msgpack knows: the caller's duty."""
        cls = type(message)
        # Packer is not thread-safe: every caller holds the lock of the sockets the frame is for.
        return _pack((self._code[cls], *self._values[cls](message)))  # type: ignore[no-any-return]

    def decode(self, frame: bytes) -> Any:
        """Return the message of a frame.

        Fields behind those we know are ignored (a newer minor version sent them); missing ones take their default.

        Raises:
            UnknownWordError: an unknown code.
            RemoteProtocolError: not msgpack, too few fields or one of the wrong type.
        """
        try:
            code, *values = msgpack.unpackb(frame, use_list=False, strict_map_key=False)
            cls = self._words[code] if 0 <= code < len(self._words) else None
        except Exception as error:  # msgpack raises ValueError, its own classes, RecursionError, UnicodeDecodeError
            raise RemoteProtocolError(f"frame of {len(frame)} bytes is not a message: {type(error).__name__}") from None
        if cls is None:
            raise UnknownWordError(f"message code {code} is unknown")
        types = self._types[code]
        del values[len(types) :]
        if len(values) < self._required[code]:
            raise RemoteProtocolError(f"{cls.__name__} has {len(values)} fields, {self._required[code]} are needed")
        if tuple(map(type, values)) == self._exact[code]:
            return cls(*values)
        for value, expected in zip(values, types, strict=False):
            if type(value) is not expected and not (expected is list and type(value) is tuple):
                if expected is float and type(value) is int:
                    continue
                raise RemoteProtocolError(f"{cls.__name__}: a field is {type(value).__name__}, not {expected.__name__}")
        return cls(*values)


_host = Codec(MESSAGES)
encode = _host.encode
decode = _host.decode
