"""Marks: names in the shape of a task, beside those of resources, that stand for a place or an environment.

    node:<id>         that node; <id> in hexadecimal
    label:zone        a node with that label; label:zone=a with that value of it
    labels:<which>    several labels, or none: core/labels.py
    env:<id>          a worker that serves that runtime environment
    spread            one node after the other

Each node has plenty of the marks that are its own.
"""

NODE = "node:"
LABEL = "label:"
SELECTION = "labels:"
ENVIRONMENT = "env:"  # any node can make any, and a worker serves one for life
SPREAD = "spread"
MARK_PLENTY = 1 << 40


def is_mark(name: str) -> bool:
    """Whether a name in a shape is a mark."""
    return name == SPREAD or name.startswith((NODE, LABEL, SELECTION, ENVIRONMENT))
