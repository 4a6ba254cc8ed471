"""Copies of far objects that this process reads: asked for once, let go of when nobody here needs them any more.

The node keeps the copies of its host and fetches each only once, whoever asks (core/copies.py). An ObjectID is never
used again, so a copy is never stale. Knows nothing of tasks or entries.
"""

from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.records import Copy
from zmesh.wire.ids import NODE_ID_BYTES, ObjectID, PeerID
from zmesh.wire.messages import ERROR, PENDING, STORED, LetGo, Pull


class Pulls:
    """The copies of one process.

    Args:
        node: PeerID of this host's node.
    """

    def __init__(self, node: PeerID, effects: list[Effect]) -> None:
        self._node = node
        self._effects = effects
        self._copies: dict[ObjectID, Copy] = {}
        self._moved: dict[PeerID, bool] = {}  # {what this process was called before: True}
        self.lost: Any = None  # the failure of every pull, once the node is gone

    def is_far(self, location: Any) -> bool:
        """Whether the bytes at (segment, nbytes, producer, ...) must be pulled: they lie on another host.

        Those of the node itself are copies, which stay only as long as somebody pulled them.
        """
        here: bool = location[2][:NODE_ID_BYTES] == self._node[:NODE_ID_BYTES] and location[2] != self._node
        return not here and location[2] not in self._moved

    def want(self, oid: ObjectID, location: Any) -> Copy:
        """Return the copy, with one user more; the node is asked for it if this process has none yet."""
        copy = self._copies.get(oid)
        if copy is None or copy.status == ERROR:  # one that failed may lie elsewhere now
            copy = self._copies[oid] = Copy(oid)
            if self.lost is not None:
                copy.status, copy.value = ERROR, self.lost
            else:
                self._effects.append(Send(self._node, Pull([(oid, *location[:3])])))
        copy.users += 1
        return copy

    def use(self, copy: Copy) -> None:
        """One user more, of a copy that has one."""
        assert copy.users > 0
        copy.users += 1

    def drop(self, copy: Copy) -> None:
        """One user less."""
        copy.users -= 1
        assert copy.users >= 0
        if not copy.users:
            if self._copies.get(copy.oid) is copy:
                del self._copies[copy.oid]
            self._effects.append(Send(self._node, LetGo([(copy.oid, True)])))

    def pulled(self, objects: list[Any]) -> None:
        """The node has copies, or says why not."""
        for oid, status, value in objects:
            copy = self._copies.get(oid)
            if copy is not None and copy.status == PENDING:
                self._set(copy, status, value)

    def _set(self, copy: Copy, status: int, value: Any) -> None:
        assert status in (STORED, ERROR)
        copy.status, copy.value = status, value
        waiters, copy.waiters = copy.waiters, []
        for waiter in waiters:
            waiter(copy)

    def rehome(self, before: PeerID, node: PeerID, error: Any) -> None:
        """This process, called `before`, is a client of another node now: the copies it had went with the old one."""
        self._moved[before] = True
        self._node = node
        for copy in list(self._copies.values()):
            copy.waiters, waiters = [], copy.waiters
            copy.status, copy.value = ERROR, error
            for waiter in waiters:
                waiter(copy)

    def lose_node(self, error: Any) -> None:
        """The node is gone: no pull will be answered."""
        self.lost = error
        for copy in list(self._copies.values()):
            if copy.status == PENDING:
                self._set(copy, ERROR, error)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        for oid, copy in self._copies.items():
            assert copy.oid == oid
            assert copy.users > 0
            assert copy.status == PENDING or not copy.waiters
