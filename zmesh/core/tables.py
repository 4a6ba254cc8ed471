"""How much a core keeps, table by table: what grows and never shrinks is a leak, whatever it is called.

Walks what belongs to a core and knows no table by name, so a new one is seen without being listed.
"""

from collections import deque
from typing import Any

DEPTH_MAX = 6


def table_sizes(root: Any, packages: tuple[str, ...] = ("zmesh.core.",)) -> dict[str, int]:
    """Return {path of a table: entries in it}, of all that belongs to `root`.

    Args:
        packages: beginnings of the names of modules whose objects are walked into.
    """
    found: dict[str, int] = {}
    seen = {id(root): True}

    def walk(owner: Any, path: str, depth: int) -> None:
        for name, value in _attributes(owner):
            here = f"{path}.{name}" if path else name
            if isinstance(value, dict | list | deque):
                if id(value) not in seen:
                    seen[id(value)] = True
                    found[here] = len(value)
            elif type(value).__module__.startswith(packages) and depth < DEPTH_MAX and id(value) not in seen:
                seen[id(value)] = True
                walk(value, here, depth + 1)

    walk(root, "", 0)
    return found


def _attributes(owner: Any) -> list[tuple[str, Any]]:
    slots = [name for kind in type(owner).__mro__ for name in getattr(kind, "__slots__", ())]
    named = [(name, getattr(owner, name)) for name in slots if name != "__weakref__" and hasattr(owner, name)]
    return named + list(getattr(owner, "__dict__", {}).items())
