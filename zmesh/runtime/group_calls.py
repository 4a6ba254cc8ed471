"""What the face asks of a session about placement groups. Mixed into runtime/session.py; the rules are in core/."""

import logging
import os
from time import monotonic
from typing import Any

from zmesh.core.records import GROUP_ID_BYTES, Entry
from zmesh.exceptions import ConfigError
from zmesh.object_ref import ObjectRef
from zmesh.runtime import serialization
from zmesh.wire.actor_messages import GROUPS, NAME_FIND
from zmesh.wire.ids import NODE_ID_BYTES
from zmesh.wire.messages import PENDING, UNIT

_log = logging.getLogger("zmesh.detached")


class GroupCalls:
    """The part of a Session that deals with placement groups. Any thread."""

    warned = False  # see warn_if_private

    def create_group(
        self: Any, name: str, strategy: str, bundles: list[dict[str, int]], *, detached: bool = False
    ) -> bytes:
        """Have our node make a placement group; returns its ID once the node has taken that on.

        Raises:
            ConfigError: the node refuses; the text says why.
        """
        self.reactor.check_usable()
        specs = [{one: amount / UNIT for one, amount in shape.items()} for shape in bundles]
        told = serialization.to_inline(serialization.pack(specs))
        job = b"" if detached else self.job
        if detached:
            self.warn_if_private()
        tries = 0
        while True:
            with self.reactor.lock:
                group: bytes = self.core.node[:NODE_ID_BYTES] + os.urandom(GROUP_ID_BYTES - NODE_ID_BYTES)
                ticket = self.core.groups.create(group, job, name, strategy, bundles, told)
            try:
                self.redeem(ticket)
                return group
            except ConfigError as error:
                holder = getattr(error, "holder", b"")
                if not holder or self._group_lives(holder):
                    raise
            self.actors.await_name(GROUPS, name, holder, tries)
            tries += 1

    def _group_lives(self: Any, group: bytes) -> bool:
        """Whether a group is there, as its coordinator says."""
        told = self.status()
        node = group[:NODE_ID_BYTES].hex()
        if node != told["node"]:
            living = [one["node"] for one in told["members"] if one["state"] in ("alive", "suspect")]
            told = self.status(node=node) if node in living else {}
        table = told.get("placement_groups", {}).get(group.hex(), {"state": "REMOVED"})
        return bool(table["state"] != "REMOVED")

    def find_group(self: Any, name: str) -> tuple[bytes, list[dict[str, float]]] | None:
        """Return (ID, what each bundle holds) of the group of that name, anywhere in the mesh; None if none has."""
        found = self.actors.ask_name(NAME_FIND, GROUPS, name)
        if not found or not self._group_lives(found[2]):
            return None
        return found[2], serialization.unpack_inline(found[3])

    def warn_if_private(self: Any) -> None:
        """Say once that what is detached, actors too, ends with this program if it has a node of its own."""
        if self.information.get("private") and not self.warned:
            self.warned = True
            _log.warning(
                "what is detached lives as long as its node, and this one was started for this program alone and ends "
                "with it: run `zmesh up` first if actors or placement groups are to outlive the program"
            )

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
