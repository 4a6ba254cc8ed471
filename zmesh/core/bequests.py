"""What callers and victims gave this process: they say that it keeps it; when they die it says so itself.

A reference that comes with a call is counted for its caller. What of it the actor keeps it tells with the result, and
the caller has it counted. If the caller dies before, or its word is lost with it, the actor has itself counted, and its
node waits for that before what the caller held may go (core/burials.py). The part of References for that.
"""

from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.records import Entry, View
from zmesh.wire.death_messages import Vouch
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID, PeerID, node_peer
from zmesh.wire.messages import Buried


class Bequests:
    """Claims after deaths; mixed into References, whose tables these are."""

    _effects: list[Effect]
    _node: PeerID
    _requests: int
    _borrowed: dict[ObjectID, Entry]
    _uncounted: dict[ObjectID, tuple[Entry, dict[PeerID, bool]]]
    _views: dict[Any, View]
    wake: Callable[[], None]

    def __init__(self) -> None:
        # {borrowed object: those who were told that we keep it, and were to have us counted}
        self._on_word: dict[ObjectID, tuple[PeerID, ...]] = {}
        # {request: (dead caller that our node buries, homes that have not answered)}
        self._inherited: dict[int, tuple[PeerID, dict[PeerID, bool]]] = {}

    def keeps(self, victim: PeerID) -> list[Any]:
        """Return the keys for Done.kept, as a task or call of `victim` ends: live views, and references that came
        with it."""
        keys: list[Any] = []
        for full, view in self._views.items():
            if view.victim != victim:
                continue  # told to its own, or to be told
            if isinstance(full, bytes):
                if not view.kept:
                    self.wake()
                    view.kept = 1
                    keys.append(full)
            else:
                view.kept = 1
                keys.append(full[1:])
        for oid, (entry, callers) in list(self._uncounted.items()):
            if victim in callers or b"" in callers:
                del self._uncounted[oid]
                assert entry.share is not None
                entry.share.holds += 1
                self._kept_on_word(oid, victim)
                keys.append(oid)
        return keys

    @property
    def keeps_nothing(self) -> bool:
        """Whether `keeps` would return nothing: asked once per task, so it is cheap."""
        return not self._views and not self._uncounted

    def _kept_on_word(self, oid: ObjectID, teller: PeerID) -> None:
        self._on_word[oid] = (*self._on_word.get(oid, ()), teller)

    def inherit(self, dead: PeerID, *, of_task: bool = False) -> None:
        """A caller, or the victim of whose task this process has something, is dead: claim it, then tell our node.

        Args:
            of_task: what came with the running task, or the last, was that victim's.
        """
        homes = self._vouch(dead, of_task=of_task, request=self._requests + 1)
        if not homes:
            self._effects.append(Send(self._node, Buried(dead)))
            return
        self._requests += 1
        self._inherited[self._requests] = (dead, homes)

    def _vouch(self, dead: PeerID, *, of_task: bool, request: int) -> dict[PeerID, bool]:
        """Have homes count us for what the dead had not, or may not have, told them; returns those asked."""
        found: dict[ObjectID, bool] = {}
        for oid, (entry, callers) in list(self._uncounted.items()):
            callers.pop(dead, None)
            if of_task:
                callers.pop(b"", None)
            if not callers:
                del self._uncounted[oid]
                assert entry.share is not None
                entry.share.holds += 1
                found[oid] = True
        for oid, tellers in list(self._on_word.items()):
            if dead in tellers:
                found[oid] = True
                self._forget_word(oid, dead)
        by_home: dict[PeerID, list[Any]] = {}
        for oid in found:
            share = self._borrowed[oid].share
            assert share is not None
            if share.holds:
                by_home.setdefault(node_peer(oid[:NODE_ID_BYTES]), []).append((oid, share.holds))
        self._effects += [Send(home, Vouch(request, objects)) for home, objects in by_home.items()]
        return dict.fromkeys(by_home, True)

    def _forget_word(self, oid: ObjectID, teller: PeerID) -> None:
        left = tuple(one for one in self._on_word[oid] if one != teller)
        if left:
            self._on_word[oid] = left
        else:
            del self._on_word[oid]

    def _vouched(self, request: int, home: PeerID) -> None:
        """A home has counted us, or will never."""
        dead, homes = self._inherited[request]
        homes.pop(home, None)
        if not homes:
            del self._inherited[request]
            self._effects.append(Send(self._node, Buried(dead)))

    def _forget_vouches(self, node: NodeID | None) -> None:
        """That node, or any, will not answer."""
        for request, (_, homes) in list(self._inherited.items()):
            for home in [home for home in homes if node is None or home[:NODE_ID_BYTES] == node]:
                self._vouched(request, home)
