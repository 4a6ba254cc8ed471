"""Whether the labels of a node fit: the one place that decides it, for tasks, offers and totals of other nodes alike.

A node with the label zone=a has plenty of the marks "label:zone" and "label:zone=a". What one mark can ask for needs no
rule. A *selection* asks for more: it is no resource of anybody, so it is worked out from the marks beside it.

    labels:zone=a,b     the label has one of these values
    labels:zone!=a,b    it has none of these, or the node lacks the label
    labels:!zone        the node lacks the label
"""

from zmesh.wire.marks import LABEL, MARK_PLENTY, SELECTION
from zmesh.wire.messages import Shape


def is_selection(name: str) -> bool:
    """Whether the name in a shape asks for several labels, or for none."""
    return name.startswith(SELECTION)


def amount_of(name: str, amounts: Shape) -> int:
    """Return how much of a resource there is; of a selection plenty if the labels among the amounts fit, else 0."""
    if not name.startswith(SELECTION):
        return amounts.get(name, 0)
    return MARK_PLENTY if _fit(name.removeprefix(SELECTION), amounts) else 0


def _fit(selection: str, amounts: Shape) -> bool:
    key, _, values = selection.partition("=")
    if key.startswith("!"):
        return f"{LABEL}{key[1:]}" not in amounts
    label = key.removesuffix("!")
    has = any(f"{LABEL}{label}={value}" in amounts for value in values.split(","))
    return not has if key.endswith("!") else has


def said(name: str) -> str:
    """Return what a mark of labels asks for, as a person would say it: `label zone=a`; "" if it is none."""
    if name.startswith(LABEL):
        return f"label {name.removeprefix(LABEL)}"
    if not name.startswith(SELECTION):
        return ""
    key, _, values = name.removeprefix(SELECTION).partition("=")
    if key.startswith("!"):
        return f"lack of a label {key[1:]}"
    return f"label {key.removesuffix('!')} {'not ' if key.endswith('!') else ''}in ({values})"
