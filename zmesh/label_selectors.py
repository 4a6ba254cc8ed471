"""What a task may ask of the labels of its node, as the marks of its shape: core/labels.py decides which nodes fit."""

import re
from collections.abc import Mapping
from typing import Any

from zmesh.exceptions import ConfigError
from zmesh.limits import is_text
from zmesh.wire.marks import LABEL, SELECTION

_LIST = re.compile(r"in\((.*)\)")
_FORMS = '"a", "!a", "in(a,b)" or "!in(a,b)"'


def any_of(key: str, values: tuple[str, ...]) -> str:
    """Return the mark of nodes whose label has one of these values.

    Raises:
        ConfigError: no value, or one that no label can have.
    """
    _check(key, values)
    return f"{LABEL}{key}={values[0]}" if len(values) == 1 else f"{SELECTION}{key}={','.join(values)}"


def none_of(key: str, values: tuple[str, ...]) -> str:
    """Return the mark of nodes whose label has none of these values, or that lack it.

    Raises:
        ConfigError: no value, or one that no label can have.
    """
    _check(key, values)
    return f"{SELECTION}{key}!={','.join(values)}"


def absent(key: str) -> str:
    """Return the mark of nodes that lack the label.

    Raises:
        ConfigError: that is no key.
    """
    _check(key, ("any",))
    return f"{SELECTION}!{key}"


def _check(key: str, values: tuple[str, ...]) -> None:
    if not is_text(key) or not key or any(sign in key for sign in "=!,"):
        raise ConfigError(f"the key of a label must be a text without any of '=!,', not {key!r}")
    if not values or not all(is_text(one) and one and "," not in one for one in values):
        raise ConfigError(f"label {key!r} must be compared with one or more texts without commas, not {values!r}")


def marks(selector: Any) -> tuple[str, ...]:
    """Return the marks that a label_selector= stands for.

    Raises:
        ConfigError: it is none; the text shows the forms there are.
    """
    given = {} if selector is None else selector
    if not isinstance(given, Mapping) or not all(is_text(one) for pair in given.items() for one in pair):
        raise ConfigError(f'label_selector must be a dict such as {{"zone": "a"}}, not {selector!r}')
    return tuple(_mark(key, text) for key, text in given.items())


def fallbacks(strategy: Any) -> list[tuple[str, ...]]:
    """Return the marks of each set of labels that a fallback_strategy= is content with, the most wanted first.

    Raises:
        ConfigError: it is none; the text shows what it may be.
    """
    if strategy is None:
        return []
    if not isinstance(strategy, list | tuple) or not all(
        isinstance(one, Mapping) and set(one) == {"label_selector"} for one in strategy
    ):
        raise ConfigError(
            f'fallback_strategy must be a list such as [{{"label_selector": {{"zone": "a"}}}}], not {strategy!r}'
        )
    return [marks(one["label_selector"]) for one in strategy]


def _mark(key: str, text: str) -> str:
    bare = text.removeprefix("!")
    listed = _LIST.fullmatch(bare)
    values = tuple(one.strip() for one in (listed[1].split(",") if listed else [bare]))
    if any(not one or sign in one for one in values for sign in "!(),"):
        raise ConfigError(f"label_selector must map a label to {_FORMS}, not {key!r} to {text!r}")
    return any_of(key, values) if bare == text else none_of(key, values)
