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
    todo = deque([(root, "", 0)])
    while todo:  # what is near the root first, so that names are short
        owner, path, depth = todo.popleft()
        for name, value in _attributes(owner):
            here = f"{path}.{name}" if path else name
            is_table = isinstance(value, dict | list | deque)
            if id(value) in seen or not (is_table or type(value).__module__.startswith(packages)):
                continue
            seen[id(value)] = True
            if is_table:
                found[here] = len(value)
            elif depth < DEPTH_MAX:
                todo.append((value, here, depth + 1))
    return found


def _attributes(owner: Any) -> list[tuple[str, Any]]:
    slots = [name for kind in type(owner).__mro__ for name in getattr(kind, "__slots__", ())]
    named = [(name, getattr(owner, name)) for name in slots if name != "__weakref__" and hasattr(owner, name)]
    return named + list(getattr(owner, "__dict__", {}).items())
