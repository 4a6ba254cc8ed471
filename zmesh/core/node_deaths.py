"""The part of a node's role that faces the end of processes: who is told, what stops, what may go. Wiring only.

A base of NodeCore (core/node.py), which makes what is used here.
"""

from collections.abc import Callable
from typing import Any

from zmesh.core.burials import Burials
from zmesh.core.effects import DropUnused, Effect, KillProcess, Send, Warn
from zmesh.core.matchmaking import Matchmaking
from zmesh.core.neighbours import Neighbours
from zmesh.core.records import Client, Executing
from zmesh.core.workers import ATTACHED, DETACHING, IDLE, SERVING
from zmesh.wire.death_messages import Expelled
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, PeerID
from zmesh.wire.messages import Buried, Detach, WorkerDied


class DeathInputs:
    """What a node does about processes that end, on this host or elsewhere."""

    actors: Any
    burials: Burials
    copies: Any
    directory: Any
    enclosed: Any
    evacuation: Any
    groups: Any
    lending: Any
    links: Any
    matchmaking: Matchmaking
    neighbours: Neighbours
    node: NodeID
    openings: Any
    orphans: Any
    _alive: Callable[[PeerID], bool]
    _black_box: Callable[[int], Executing | None]
    _clients: dict[PeerID, Client]
    _configs: dict[PeerID, dict[str, Any]]
    _effects: list[Effect]
    _ended: dict[PeerID, list[PeerID]]
    _executing: Callable[[int], Executing | None]
    _has_segments: Callable[[PeerID], bool]

    def worker_ended(self, peer: PeerID, status: int, now: float, tail: str, reason: str) -> None:
        """A worker was reaped. Its black box must still be as it left it.

        Args:
            status: what waitpid gave.
            tail: the last of its stderr.
            reason: "oom" if the kernel killed it for want of memory; else ours counts.
        """
        worker = self.matchmaking.workers.get(peer)
        if worker is None:
            return
        box = self._black_box(worker.slot)
        owner, seq, attempt = (box.owner, box.seq, box.attempt) if box is not None else (b"", 0, 0)
        self.matchmaking.gone(worker, now)
        self._clients.pop(peer, None)
        self.copies.client_gone(peer, now)
        self.orphans.client_gone(peer, now)
        if worker.job and self._alive(worker.job):
            ended = self._ended.setdefault(worker.job, [])
            ended[:] = [*filter(self._has_segments, ended), peer]
        else:
            self._effects.append(DropUnused([peer]))
        mourners = {victim: 1 for victim in worker.victims if self._alive(victim)}
        notice = WorkerDied(peer, worker.pid, status, owner, seq, attempt, worker.reason or reason, tail)
        notice.over = box is not None and box.over
        notice.detail = worker.detail
        self._effects += [Send(victim, notice) for victim in mourners]
        self.burials.died(peer, self._client_died(peer, mourners), self.neighbours.watchers(peer))
        self.groups.client_gone(peer, now)
        self.matchmaking.match(now)

    def _buried(self, peer: PeerID, message: Buried, now: float) -> None:
        """A client, or a node for its own, has taken in all that a dead process sent it, and claimed what it gave."""
        del now
        self.burials.said(peer, message.worker)

    def _all_have_buried(self, peer: PeerID) -> None:
        """What a dead client held may go. First what its values contain is held by us, whatever it could say of that.

        Its own word may be lost with it, but the homes hear of its end from us, and after this.
        """
        if peer[:NODE_ID_BYTES] == self.node:
            self.enclosed.vouch(self.directory.contained_in(peer))
        self.directory.holder_died(peer)
        self.neighbours.client_ended(peer)

    def client_ended(self, peer: PeerID, now: float) -> None:
        """A driver or observer is gone, or said goodbye."""
        client = self._clients.pop(peer, None)
        if client is None:
            return
        self.burials.died(peer, self._client_died(peer, {}), self.neighbours.watchers(peer))
        self.copies.client_gone(peer, now)
        self.orphans.client_gone(peer, now)
        self._job_ended(peer)
        self.groups.client_gone(peer, now)
        self._effects.append(DropUnused([peer]))
        self.matchmaking.match(now)

    def _guest_ended(self, peer: PeerID, now: float) -> None:
        self.client_ended(peer, now)
        self.links.forget(peer)

    def _job_ended(self, peer: PeerID) -> None:
        """A driver is gone, here or far away: its workers stop, and what they made that nobody shares goes."""
        self._configs.pop(peer, None)
        ended = self._ended.pop(peer, [])
        if ended:
            self._effects.append(DropUnused(ended))
        for worker in list(self.matchmaking.workers.values()):
            if worker.job != peer:
                continue
            box = self._executing(worker.slot)
            if worker.state == IDLE:
                self.matchmaking.stop(worker)
            elif box is not None and box.job == peer:
                self._effects.append(KillProcess(worker.peer))

    def _client_died(self, peer: PeerID, mourners: dict[PeerID, int]) -> dict[PeerID, int]:
        """Tell all whom the death of a client concerns; returns those of ours that will say Buried, and how often."""
        self.evacuation.client_gone(peer)
        self.lending.client_gone(peer)
        self.openings.gone(peer)
        lent: list[PeerID] = []
        for worker in self.matchmaking.client_gone(peer):
            box = self._executing(worker.slot)
            if (box is not None and box.owner == peer) or worker.state == SERVING:
                self._effects.append(KillProcess(worker.peer))
            if worker.state in (ATTACHED, DETACHING):
                self.matchmaking.leave(worker)
            lent.append(worker.peer)
        for worker in self.matchmaking.workers.values():
            if worker.state != SERVING and worker.victim != peer and worker.victims.pop(peer, False):
                # It served that client before, and may hold what it gave it until that says Taken.
                self._effects.append(Send(worker.peer, Detach(peer, 0, dead=True)))
                lent.append(worker.peer)
        self.directory.owner_died(peer)
        lent += self.actors.client_gone(peer)
        for heir in lent:
            mourners[heir] = mourners.get(heir, 0) + 1
        return mourners

    def pid_of(self, peer: PeerID) -> int:
        """Return the pid of a client, 0 if it is none."""
        client = self._clients.get(peer)
        return client.pid if client is not None else 0

    def expel(self, peer: PeerID, why: str, now: float) -> None:
        """A process of this host broke the rules of the protocol: it is told so, and is no client any more.

        What it said before counts, as if it had died then. A worker is killed.
        """
        self._effects.append(Warn(f"{peer.hex()} is dropped: {why}"))
        if peer in self.matchmaking.workers:
            self._effects += [Send(peer, Expelled(why)), KillProcess(peer)]
        elif peer in self._clients:
            self._effects.append(Send(peer, Expelled(why)))
            self.client_ended(peer, now)
