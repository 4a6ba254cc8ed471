"""What a process owns that takes memory of others: its stored objects, and those the node counts, for whoever asks.

Where each was made is noted only for these: a small result costs nothing here.
"""

from collections.abc import Callable, Iterable
from typing import Any

from zmesh.core.records import Entry, Handle, Spec
from zmesh.wire.ids import ObjectID
from zmesh.wire.messages import INLINE, STORED

ROWS_MAX = 1000  # of one process, the largest first: an answer must fit into a message


class Catalog:
    """Stored objects of one process."""

    def __init__(self) -> None:
        self._stored: dict[tuple[int, int], tuple[Entry, Spec | None]] = {}  # {(seq, index): (entry, what made it)}

    def add(self, entry: Entry, spec: Spec | None) -> None:
        """An own entry has a stored value now; `spec` is that of the task that made it, if one did."""
        self._stored[entry.seq, entry.index] = (entry, spec)
        if spec is not None:
            spec.stores = True

    def maker(self, entry: Entry) -> Spec | None:
        """Return the spec of the task that made the value, if one did."""
        return self._stored.get((entry.seq, entry.index), (entry, None))[1]

    def remove(self, entry: Entry) -> None:
        """Its value is gone."""
        self._stored.pop((entry.seq, entry.index), None)

    def rows(self, lent: Iterable[Entry], oid: Callable[[Entry], ObjectID], told: Callable[[Entry], Any]) -> list[Any]:
        """Return what Objects carries, see messages.Objects.

        Args:
            lent: own entries that others may name.
            told: returns the value of an entry as others know it.
        """
        found = dict(self._stored)
        for entry in lent:
            # A handle of an actor is counted as an object is, but there are no bytes behind it.
            if entry.share is not None and entry.share.promoted and not isinstance(entry, Handle):
                found.setdefault((entry.seq, entry.index), (entry, getattr(entry, "spec", None)))
        rows = [_row(entry, spec, oid(entry), told(entry)) for entry, spec in found.values()]
        return sorted(rows, key=lambda row: -row[2])[:ROWS_MAX]


def _row(entry: Entry, spec: Spec | None, oid: ObjectID, value: Any) -> Any:
    share = entry.share
    nbytes = value[1] if entry.status == STORED else len(value) if entry.status == INLINE else 0
    segment = value[0] if entry.status == STORED else 0
    pins, readers, made_at = (share.pins, len(share.readers), share.made_at) if share is not None else (0, 0, "")
    function = "put" if spec is None else spec.name
    made_at = made_at or ("" if spec is None else spec.made_at)
    return (oid, entry.status, nbytes, segment, entry.refs, pins, readers, function, made_at)
