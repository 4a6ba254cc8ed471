"""The list of the rest that `wait` returns. In a loop of waits it is made only if somebody looks at it.

To copy n pointers in each of n calls took 18 s for 100,000 refs. So the list of a loop knows of which Version of its
Round it is, and holds only what was appended to it; whatever else is done with it puts the refs in first. A Version
keeps what was taken after it, and knows the next one: an older list is right as long as somebody has it, and one that
nobody has keeps nothing alive.

Waiting is runtime/rounds.py's business.
"""

import threading
from collections.abc import Callable
from typing import Any, Protocol


class Version:
    """What a Round knew after one of its waits.

    Attributes:
        count: how many refs there were.
        end: their numbers are less than this.
        taken: {number: ref} that the next wait took.
        next: what it left; None: there was none.
    """

    __slots__ = ("count", "end", "next", "taken")

    def __init__(self, count: int, end: int) -> None:
        self.count = count
        self.end = end
        self.taken: dict[int, Any] = {}
        self.next: Version | None = None

    def after(self, taken: dict[int, Any], count: int, end: int) -> "Version":
        """Note what was taken; returns the next version."""
        self.taken, self.next = taken, Version(count, end)
        return self.next

    def refs(self, left: dict[int, Any]) -> list[Any]:
        """Return the refs of this version, in their order. `left`: {number: ref} that nobody has taken yet."""
        found = {number: ref for number, ref in left.items() if number < self.end}
        one: Version | None = self
        while one is not None:
            found |= {number: ref for number, ref in one.taken.items() if number < self.end}
            one = one.next
        return [found[number] for number in sorted(found)]


class Source(Protocol):
    """A Round, as a list of its rest knows it."""

    state: threading.RLock
    left: dict[int, Any]


class RestList(list[Any]):
    """The refs that a wait left. A list like any other; pickled, it is a plain one."""

    __slots__ = ("version", "zmesh_round")

    def __init__(self, refs: list[Any], zmesh_round: Any) -> None:
        super().__init__(refs)
        self.zmesh_round = zmesh_round
        self.version: Version | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


class UnreadList(RestList):
    """One that nobody has looked at: of the list that it is there is only what was appended. Any thread."""

    __slots__ = ()

    def __init__(self, zmesh_round: Source, version: Version) -> None:
        super().__init__([], zmesh_round)
        self.version = version

    def __len__(self) -> int:
        with self.zmesh_round.state:
            return list.__len__(self) + (self.version.count if self.version is not None else 0)

    def __radd__(self, other: list[Any]) -> list[Any]:
        self.read()
        return other + self

    def appended(self) -> list[Any]:
        """Return what was appended."""
        return list.__getitem__(self, slice(None))

    def read(self) -> None:
        """Become a RestList."""
        with self.zmesh_round.state:
            if self.version is not None:
                refs = self.version.refs(self.zmesh_round.left)
                list.__setitem__(self, slice(0, 0), refs)
                self.version = None
                self.__class__ = RestList  # type: ignore[assignment]  # slots and bases are the same


def _reading(name: str) -> Callable[..., Any]:
    def method(self: UnreadList, *args: Any, **kwargs: Any) -> Any:
        self.read()
        for other in args:
            if type(other) is UnreadList:
                other.read()
        return getattr(self, name)(*args, **kwargs)

    method.__name__ = name
    return method


# All that lists have, but for what only adds at the end, which CPython does without asking for what is there.
for _name in (
    *("__add__", "__contains__", "__delitem__", "__eq__", "__ge__", "__getitem__", "__gt__", "__imul__", "__iter__"),
    *("__le__", "__lt__", "__mul__", "__ne__", "__repr__", "__reversed__", "__rmul__", "__setitem__", "clear"),
    *("copy", "count", "index", "insert", "pop", "remove", "reverse", "sort"),
):
    setattr(UnreadList, _name, _reading(_name))
