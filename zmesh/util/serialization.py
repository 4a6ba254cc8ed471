"""How values of a class are pickled, and why one cannot be. Names and semantics are Ray's."""

import copyreg
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

from zmesh.exceptions import SerializationError
from zmesh.runtime import serialization

__all__ = ["Failure", "deregister_serializer", "inspect_serializability", "register_serializer"]


class Failure(NamedTuple):
    """What of a value cannot be pickled.

    Attributes:
        name: where, e.g. `model.lock`.
        reason: why.
    """

    name: str
    reason: str


def register_serializer(
    cls: type[Any], *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]
) -> None:
    """Have this process pickle instances of `cls` as `serializer` puts them; readers make them by `deserializer`.

    It holds for all of this process's pickles, and in no other process: a task that returns instances registers too.

    Args:
        cls: exactly that class; subclasses are pickled as before.
        serializer: turns an instance into what can be pickled.
        deserializer: makes an instance of that. It travels with each pickle.
    """
    copyreg.pickle(cls, lambda value: (deserializer, (serializer(value),)))


def deregister_serializer(cls: type[Any]) -> None:
    """Pickle instances of `cls` as if nothing had been registered. Nothing happens if nothing was."""
    copyreg.dispatch_table.pop(cls, None)


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[Failure]]:
    """Say whether an object can be passed to tasks, and print what of it cannot.

    Args:
        base_obj: a value, function or class.
        name: how to call it.
        depth: ignored: as deep as an error would look.
        print_file: where to print; stdout by default.

    Returns:
        Whether it can be pickled, and what of it cannot be.

    Example:
        >>> inspect_serializability(threading.Lock(), "lock")
        (False, {Failure(name='lock', reason="cannot pickle '_thread.lock' object")})
    """
    del depth
    called = name or str(getattr(base_obj, "__qualname__", "") or type(base_obj).__qualname__)
    stream = print_file or sys.stdout
    try:
        serialization.pack(base_obj, called)
    except SerializationError as error:
        print(f"{called} cannot be pickled: {error}", file=stream)
        return False, {Failure(error.path, str(error).removeprefix(f"{error.path}: "))}
    print(f"{called} can be pickled", file=stream)
    return True, set()
