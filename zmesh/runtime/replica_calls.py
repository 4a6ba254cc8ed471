"""What a session does about copies of values: to have one here, or several. Mixed into runtime/session.py.

The rules are in core/restored.py and core/replicas.py.
"""

from time import monotonic
from typing import Any

from zmesh.core import effects as fx
from zmesh.core.records import Entry
from zmesh.exceptions import GetTimeoutError, LocalProtocolError
from zmesh.object_ref import ObjectRef
from zmesh.runtime import calls, serialization
from zmesh.wire.messages import PENDING, STORED


class ReplicaCalls:
    """The part of a Session that deals with copies. Any thread."""

    def put_replicated(self: Any, value: Any, replicas: int) -> ObjectRef[Any]:
        """Own a value that so many hosts keep; returns its ref when they do, or as many as can.

        Raises:
            LocalProtocolError, SerializationError, StoreFullError: as `put`.
        """
        if isinstance(value, ObjectRef):
            raise LocalProtocolError("put() of an ObjectRef: wrap it in a list if you want to pass the ref itself")
        self.reactor.check_usable()
        packed = serialization.pack(value, "value of put()")
        inside = [ref._entry for ref in packed.refs]
        self._promote(inside)
        location, site = self._store(packed), calls.call_site()
        with self.reactor.lock:
            entry = self.core.put(STORED, location, inside, site)
        ref: ObjectRef[Any] = ObjectRef(entry, self)
        self._promote([entry])
        with self.reactor.lock:
            ticket = self.core.references.replicate(entry, replicas)
        copies, why = self.redeem(ticket)
        if copies < replicas:
            text = f"put(replicas={replicas}): {copies} host(s) keep object {self.object_id(entry).hex()}: {why}"
            self._do(lambda: self.core.effects.append(fx.Warn(text)))
        return ref

    def _localize(self: Any, entries: list[Entry], deadline: float | None = None) -> None:
        """Have stored bytes of other hosts copied here, made again if they are lost; GetTimeoutError if not in time."""
        with self.reactor.lock:
            ticket = self.core.references.localize(entries)
        if ticket is not None:
            self._wait_entries([ticket], 1, None if deadline is None else max(0.0, deadline - monotonic()))
            if ticket.status == PENDING:
                raise GetTimeoutError(f"the bytes of some of {len(entries)} objects were not on this host in time")
