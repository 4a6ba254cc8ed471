"""Errors as they travel, and as they are raised."""

import types
from typing import Any

from zmesh import exceptions

HEAP_TYPE = 1 << 9  # of type.__flags__: made by a class statement


def build_error(failure: Any) -> exceptions.MeshError:
    """Return the exception of an ERROR value: (class in zmesh.exceptions, text, attributes)."""
    name, text, attributes = failure
    cls = getattr(exceptions, name, exceptions.MeshError)
    error = exceptions.bare(cls)
    error.args = (text,)
    error.__dict__.update(attributes)
    return error


class Portable:
    """What is pickled instead of an error whose class has an `__init__` of its own, and becomes that error again.

    Pickle calls the class with `error.args`: what `__init__` gave to that of Exception, often a text, not what it takes
    itself. So the error is made without it. Errors of kinds that keep something in C, as OSError, are left to pickle.
    """

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self._error
        cls = type(error)
        held = [field for base in cls.__mro__ if base.__flags__ & HEAP_TYPE for field in vars(base).items()]
        slots = [name for name, field in held if isinstance(field, types.MemberDescriptorType) and hasattr(error, name)]
        return _made, (cls, error.args, error.__dict__ | {name: getattr(error, name) for name in slots})


def portable(error: BaseException) -> Any:
    """Return what to pickle in the place of an error: itself, if pickle can make it again."""
    cls = type(error)
    solid = solid_base(cls)
    own = cls.__init__ is not solid.__init__
    plain = solid.__basicsize__ == BaseException.__basicsize__  # nothing is kept in C but args and the like
    standard = cls.__reduce__ is BaseException.__reduce__ and cls.__reduce_ex__ is object.__reduce_ex__
    return Portable(error) if own and plain and standard else error


def solid_base(cls: type[BaseException]) -> Any:
    """Return the first of its classes that is written in C, and so lays out its instances."""
    while cls.__flags__ & HEAP_TYPE:
        cls = cls.__base__  # type: ignore[assignment]  # it ends at BaseException at the latest
    return cls


def _made(cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    error: BaseException = solid_base(cls).__new__(cls, *args)
    for name, value in {"args": args, **attributes}.items():
        object.__setattr__(error, name, value)  # the class may be a frozen one
    return error
