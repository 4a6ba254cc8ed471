"""The arguments of a call as bytes: a pickled (args, kwargs) in which top-level refs are placeholders."""

from typing import Any

from zmesh.runtime import serialization

_PLAIN = frozenset((int, float, str, bool, bytes, type(None)))

NONE = serialization.to_inline(serialization.pack(None))  # the result of a function that returns nothing


class Placeholder:
    """Stands for the value of dependency `index` among a call's arguments."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return Placeholder, (self.index,)


def all_plain(args: tuple[Any, ...]) -> bool:
    """Whether plain pickle will do, as nothing in `args` can hold a ref, a buffer or a class of the user's."""
    return _PLAIN.issuperset(map(type, args))


def dumps_plain(args: tuple[Any, ...]) -> bytes:
    """Return the bytes of a call with these arguments, none of them a keyword."""
    return serialization.dumps_plain((args, {}))


def fill(values: tuple[Any, ...], found: list[Any]) -> tuple[Any, ...]:
    """Put the dependencies where their placeholders are."""
    return tuple(found[value.index] if type(value) is Placeholder else value for value in values)
