"""What numbers and names may be: amounts of resources, counts, seconds. Larger ones would not fit into a message."""

from typing import Any

from zmesh.exceptions import ConfigError

AMOUNT_MAX = 10**14  # of a resource: 100 TB; times 10,000 it still fits into 63 bits
WHOLE_MAX = 2**31 - 1


def is_amount(value: Any) -> bool:
    """Whether it may be an amount of a resource."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= AMOUNT_MAX


def is_whole(value: Any, least: int) -> bool:
    """Whether it is a whole number from `least`, and not too large."""
    return type(value) is int and least <= value <= WHOLE_MAX


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Check what must be a whole number from `least`.

    Args:
        name: what the caller calls it.

    Raises:
        ConfigError: it is something else, or too large.
    """
    if not is_whole(value, least):
        raise ConfigError(f"{name} must be a whole number from {least}, not {value!r}")


def is_text(value: Any) -> bool:
    """Whether it is a text that a message can carry: half a surrogate pair, as odd file names give, cannot travel."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_seconds(timeout: Any) -> None:
    """Check how long somebody wants to wait.

    Raises:
        ConfigError: it is no number from 0, nor None.
    """
    if timeout is not None and not (isinstance(timeout, int | float) and timeout >= 0):
        raise ConfigError(f"timeout must be seconds from 0, or None, not {timeout!r}")
