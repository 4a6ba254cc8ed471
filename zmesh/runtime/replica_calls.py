"""What the face asks of a session about replicas. Mixed into runtime/session.py; the rules are in core/replicas.py."""

from typing import Any

from zmesh.core import effects as fx
from zmesh.exceptions import LocalProtocolError
from zmesh.object_ref import ObjectRef
from zmesh.runtime import serialization
from zmesh.wire.messages import STORED


class ReplicaCalls:
    """The part of a Session that deals with replicas. Any thread."""

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
        location = self._store(packed)
        with self.reactor.lock:
            entry = self.core.put(STORED, location, inside)
        ref: ObjectRef[Any] = ObjectRef(entry, self)
        self._promote([entry])
        with self.reactor.lock:
            ticket = self.core.references.replicate(entry, replicas)
        copies, why = self._redeem(ticket)
        if copies < replicas:
            text = f"put(replicas={replicas}): {copies} host(s) keep object {self.object_id(entry).hex()}: {why}"
            self._do(lambda: self.core.effects.append(fx.Warn(text)))
        return ref
