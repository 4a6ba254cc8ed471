"""What functions and methods take: so that a call with other arguments is refused where it is made, not in a worker."""

import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MANY = 1 << 31
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Takes:
    """The arguments of a function. Travels with handles of actors.

    Attributes:
        least, most: how many positional ones it takes, if there are no others: what a call looks at first.
        parameters: (name, kind, whether it has a default) of each.
    """

    least: int = 0
    most: int = _MANY
    parameters: tuple[tuple[str, int, bool], ...] = (
        ("args", int(inspect.Parameter.VAR_POSITIONAL), False),
        ("kwargs", int(inspect.Parameter.VAR_KEYWORD), False),
    )

    def check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a call.

        Raises:
            TypeError: the function takes no such arguments.
        """
        try:
            _signature(self.parameters).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}.remote(): {error}") from None


ANY = Takes()  # of what nobody can say


def of_function(function: Callable[..., Any]) -> Takes:
    """Return what a function takes; what a decorator of it takes, if it has one."""
    try:
        parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        return ANY
    return _of(parameters)


def of_method(cls: type[Any], name: str) -> Takes:
    """Return what a method of a class takes from those who call it."""
    found = inspect.getattr_static(cls, name)
    if isinstance(found, staticmethod):
        return of_function(found.__func__)
    plain = found.__func__ if isinstance(found, classmethod) else found
    if not isinstance(plain, types.FunctionType):
        return ANY
    parameters = list(inspect.signature(plain, follow_wrapped=False).parameters.values())
    return _of(parameters[1:] if parameters and parameters[0].kind in _POSITIONAL else parameters)


def _of(parameters: list[inspect.Parameter]) -> Takes:
    empty = inspect.Parameter.empty
    needed = [one for one in parameters if one.default is empty]
    positional = [one for one in parameters if one.kind in _POSITIONAL]
    keywords = any(one.kind is inspect.Parameter.KEYWORD_ONLY for one in needed)
    most = _MANY if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters) else len(positional)
    least = most + 1 if keywords else sum(one.kind in _POSITIONAL for one in needed)  # without keywords it is refused
    return Takes(least, most, tuple((one.name, int(one.kind), one.default is not empty) for one in parameters))


@functools.lru_cache(maxsize=1024)
def _signature(parameters: tuple[tuple[str, int, bool], ...]) -> inspect.Signature:
    kind_of: Any = type(inspect.Parameter.VAR_KEYWORD)
    empty = inspect.Parameter.empty
    made = [inspect.Parameter(name, kind_of(kind), default=None if has else empty) for name, kind, has in parameters]
    return inspect.Signature(made)
