"""What the face asks of a session about placement groups. Mixed into runtime/session.py; the rules are in core/."""

import os
from time import monotonic
from typing import Any

from zmesh.core.records import GROUP_ID_BYTES, Entry
from zmesh.object_ref import ObjectRef
from zmesh.wire.ids import NODE_ID_BYTES
from zmesh.wire.messages import PENDING


class GroupCalls:
    """The part of a Session that deals with placement groups. Any thread."""

    def create_group(self: Any, name: str, strategy: str, bundles: list[dict[str, int]]) -> bytes:
        """Have our node make a placement group; returns its ID once the node has taken that on.

        Raises:
            ConfigError: the node refuses; the text says why.
        """
        self.reactor.check_usable()
        with self.reactor.lock:
            group: bytes = self.core.node[:NODE_ID_BYTES] + os.urandom(GROUP_ID_BYTES - NODE_ID_BYTES)
            ticket = self.core.groups.create(group, self.job, name, strategy, bundles)
        self.redeem(ticket)
        return group

    def remove_group(self: Any, group: bytes) -> None:
        """Have a placement group removed; returns once its coordinator has done so, or is gone with it."""
        self.reactor.check_usable()
        with self.reactor.lock:
            ticket = self.core.groups.remove(group)
        self.redeem(ticket)

    def group_ready(self: Any, group: bytes, value: Any) -> ObjectRef[Any]:
        """Return a ref that gets `value` once the group has all its bundles."""
        _, packed, _, _ = self.pack_value(value, "a placement group")
        made: list[Entry] = []

        def begin() -> None:
            made.append(self.core.put(PENDING, None, []))
            self.core.groups.await_ready(group, made[0], packed, monotonic())

        self._do(begin)
        return ObjectRef(made[0], self)
