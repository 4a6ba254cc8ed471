"""How a session reads values: inline ones, views of segments, and the refs that values and functions contain.

A ref inside the arguments of a task is held by whoever sent them until the task is over (core/references.py). One
inside a value that this process borrowed itself is claimed here, before the value can be let go of (core/nested.py).
"""

import threading
from collections.abc import Callable
from typing import Any

from zmesh.core.client import ClientCore
from zmesh.core.records import Entry, Inputs, Spec
from zmesh.object_ref import ObjectRef
from zmesh.runtime import serialization
from zmesh.runtime.errors import build_error
from zmesh.runtime.reactor import Reactor
from zmesh.runtime.store import Store
from zmesh.wire.messages import FAILED, INLINE, STORED


class Reading(threading.local):
    """What each thread reads now: `found` collects entries of refs that must be claimed; None outside such a value."""

    found: list[Entry] | None = None


class Values:
    """Reading; mixed into Session, which makes what is used here. Any thread."""

    core: ClientCore
    reactor: Reactor
    store: Store
    _localize: Any

    def __init__(self) -> None:
        self._reading = Reading()
        self.borrows = 0  # refs that arrived inside values and functions

    def value(self, entry: Entry, *, writable: bool = False) -> Any:
        """Return the value of a resolved entry, or raise its error. Arrays are read-only views of shared memory."""
        status = entry.status
        if status == INLINE:
            if entry.share is None or entry.share.oid is None:
                return serialization.unpack_inline(entry.value)
            return self._borrowed(entry, lambda: serialization.unpack_inline(entry.value))
        if status == STORED:
            if entry.share is None or entry.share.oid is None:
                return self._open(entry, writable)
            return self._borrowed(entry, lambda: self._open(entry, writable))
        if status == FAILED:
            raise serialization.unpack_error(entry.value)
        raise build_error(entry.value)

    def _open(self, entry: Entry, writable: bool) -> Any:
        references, unpinned, nudge = self.core.references, self.reactor.unpinned, self.reactor.nudge
        self._localize([entry])
        with self.reactor.lock:
            status, place = references.location(entry)
            if status == STORED:
                references.pin(entry)
        if status == INLINE:  # it was lost, and is small now that it was made again
            return serialization.unpack_inline(place)
        if status != STORED:
            raise build_error(place)
        segment, nbytes, _ = place

        def on_unpin() -> None:
            unpinned.append(lambda: references.unpin(entry))
            nudge()

        try:
            view = self.store.view(segment, nbytes, on_unpin, writable)
        except BaseException:
            with self.reactor.lock:
                references.unpin(entry)
            raise
        return serialization.unpack_segment(view, writable=writable)

    def _borrowed(self, entry: Entry, read: Callable[[], Any]) -> Any:
        """Read a value that this process borrowed; what it contains is claimed even if reading fails halfway."""
        reading = self._reading
        before = reading.found
        found: list[Entry] = []
        reading.found = found
        try:
            return read()
        finally:
            reading.found = before
            if found:
                with self.reactor.lock:
                    self.core.references.claim_inside(entry, found)

    def borrow(self, oid: bytes) -> Entry:
        """Return the entry of a ref that arrived inside a value, one reference more."""
        found, caller = self._reading.found, self._caller()
        with self.reactor.lock:
            self.borrows += 1
            if found is None:
                return self.core.references.borrow(oid, caller=caller)
            entry, new = self.core.references.borrow_inside(oid)
            if new:
                found.append(entry)
            return entry

    def captured(self, spec: Spec) -> list[ObjectRef[Any]]:
        """Return refs of what a function captured, for whoever calls it: it may be called after they are gone there."""
        with self.reactor.lock:
            for entry in spec.held:
                entry.refs += 1
        return [ObjectRef(entry, self) for entry in spec.held]  # type: ignore[arg-type]  # mixed into one

    def _caller(self) -> bytes:
        """Return whose call of an actor this thread serves; empty if none."""
        return b""


def with_captured(spec: Spec, inputs: Inputs | None) -> Inputs:
    """Have a call hold what its function captured, as workers find refs of that in the function."""
    if inputs is None:
        return Inputs(held=list(spec.held))
    inputs.held = [*spec.held, *inputs.held]
    return inputs
