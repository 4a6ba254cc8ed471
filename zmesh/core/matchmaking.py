"""Who works for whom: gives workers to clients that can keep them busy, and takes them back.

A demand says how many workers of a shape a client could use in all. High priority first, then the job with fewer
workers, then the deepest task (else parents would beget parents), then the oldest demand. What does not fit is not
starved by what does: while workers are detached for it, the resources they free are set aside.

Knows bookings and black boxes; what a client's death means is core/node.py's business.
"""

import random
from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Send, Spawn, Warn
from zmesh.core.overbooked import Overbooked
from zmesh.core.records import Limits, ShapeKey, add_to, shape_key
from zmesh.core.timers import Timers
from zmesh.core.workers import AHEAD_S, ATTACHED, DETACHING, IDLE, SERVING, STARTING, STOPPING, Demanded, Worker
from zmesh.wire.ids import TOKEN_BYTES, NodeID, PeerID, local_peer
from zmesh.wire.marks import SPREAD, is_mark
from zmesh.wire.messages import Attach, Detach, Infeasible, Shape, Stop

SETTLE_S = 0.002  # so long after a worker became an actor its owner may say that it needs no other
AHEAD_MAX = 8  # so many are then forked before there are resources for them
SPREAD_S = 0.3  # so long a demand to be spread waits for other nodes to take their part, before this one takes all


class Matchmaking:
    """Workers and demands of one node.

    Args:
        fits, book, release, missing: of the node's Resources.
        executing: whether the worker in a slot runs user code now.
        config_of: the settings of a job, for a worker that joins it.
        elsewhere: whether another member could ever give a shape.
        explain: says why none can, from what this node lacks.
        members: how many nodes the mesh has.
        matched: called after each round of matching.
        short: why no more workers may be started than the first, or "".
    """

    def __init__(
        self,
        node: NodeID,
        rng: random.Random,
        effects: list[Effect],
        timers: Timers,
        limits: Limits,
        *,
        resources: Any,
        executing: Callable[[int], Any],
        config_of: Callable[[PeerID], dict[str, Any]],
        elsewhere: Callable[[Shape], bool] = lambda shape: False,
        explain: Callable[[Shape, str], str] = lambda shape, missing: missing,
        members: Callable[[], int] = lambda: 1,
        matched: Callable[[float], None] = lambda now: None,
        short: Callable[[], str] = lambda: "",
    ) -> None:
        self._elsewhere = elsewhere
        self._explain = explain
        self._members = members
        self._matched = matched
        self._short = short
        self._reserved: Shape = {}  # for workers on their way to a demand
        self._node = node
        self._rng = rng
        self._effects = effects
        self._timers = timers
        self._limits = limits
        self._resources = resources
        self._executing = executing
        self._config_of = config_of
        self._overbooked = Overbooked(
            timers, available=resources.available, takers=lambda: self._takers.values(), detach=self.recall,
            works=lambda worker: worker.state == ATTACHED and self.executes(worker),
        )  # fmt: skip
        self.workers: dict[PeerID, Worker] = {}
        self._takers: dict[PeerID, Worker] = {}  # those that take tasks: all but the actors, of which there may be many
        self.demands: dict[tuple[PeerID, ShapeKey], Demanded] = {}
        self._slots = list(range(limits.workers_max - 1, -1, -1))
        self._orders = 0
        self._epochs = 0
        self._idle_timer = 0
        self._slice_timer = 0
        self._start_failures = 0
        self._paused_until = 0.0

    # Demands.

    def demand(
        self,
        client: PeerID,
        job: PeerID,
        shape: Shape,
        workers: int,
        depth: int,
        priority: int,
        now: float,
        *,
        lease: int = 0,
    ) -> None:
        """Take what a client could use; the latest word wins. `lease` is the number of the lease of a far one."""
        key = shape_key(shape)
        found = self.demands.get((client, key))
        if found is None:
            self._orders += 1
            found = self.demands[client, key] = Demanded(client, job, dict(shape), key, self._orders, born_s=now)
        found.far, found.number = bool(lease), lease
        found.workers, found.depth, found.priority = workers, depth, priority
        missing = self._resources.missing(found.needs)
        if missing and workers and not lease and not self._elsewhere(found.needs):
            found.waits_for = self._explain(found.needs, missing)
            found.workers = 0
            self._effects.append(Send(client, Infeasible(dict(shape), found.waits_for)))
        self._forget_empty(found)
        self._watch_surplus(found, now)
        self.match(now)

    def reserve(self, group: bytes, shape: Shape, grant: Callable[[float], None], now: float) -> None:
        """Call `grant` once when a shape is free, for which workers make way as for a demand of one worker."""
        key = shape_key(shape)
        self._orders += 1
        self.demands[group, key] = Demanded(
            group, group, dict(shape), key, self._orders, workers=1, born_s=now, grant=grant
        )
        self.match(now)

    def _forget_empty(self, demand: Demanded) -> None:
        if not demand.workers and not demand.attached and not demand.lent:
            self.demands.pop((demand.client, demand.key), None)
            if demand.surplus_timer:
                self._timers.cancel(demand.surplus_timer)
                demand.surplus_timer = 0

    def _watch_surplus(self, demand: Demanded, now: float) -> None:
        staying = sum(worker.state == ATTACHED for worker in demand.attached.values())  # blocked ones too: they go on
        if staying > max(0, demand.workers - demand.lent) and not demand.surplus_timer:
            until = now + self._limits.surplus_s
            demand.surplus_timer = self._timers.set(until, lambda then: self._take_surplus(demand, then))

    def _take_surplus(self, demand: Demanded, now: float) -> None:
        """Detach parked workers a client has had no use for."""
        demand.surplus_timer = 0
        for worker in list(demand.attached.values()):
            if demand.lacks >= 0:
                break
            if worker.state == ATTACHED and not self.executes(worker):
                self._detach(worker, None)
        self._watch_surplus(demand, now)

    # Workers.

    def said_hello(self, worker: Worker, now: float) -> None:
        """A forked worker is ready."""
        self._start_failures = 0
        self._make_idle(worker, now)
        self.match(now)

    def free(self, worker: Worker, epoch: int, now: float) -> None:
        """A worker left its victim, or refuses to stop."""
        if worker.state == DETACHING and epoch == worker.epoch:
            self._unbook(worker)
            self._make_idle(worker, now)
        elif worker.state == STOPPING:
            self._make_idle(worker, now)
        else:
            return
        self.match(now)

    def _make_idle(self, worker: Worker, now: float) -> None:
        worker.state = IDLE
        worker.idle_s = now
        worker.detached_for = None
        if not self._idle_timer:
            self._idle_timer = self._timers.set(now + self._limits.worker_idle_s, self._reap)

    def _reap(self, now: float) -> None:
        """Stop workers that were idle for long; look again when the next one will have been."""
        self._idle_timer = 0
        waiting = []
        for worker in [worker for worker in self._takers.values() if worker.state == IDLE]:
            if worker.idle_s + self._limits.worker_idle_s <= now:
                self.stop(worker)
            else:
                waiting.append(worker.idle_s)
        if waiting:
            self._idle_timer = self._timers.set(min(waiting) + self._limits.worker_idle_s, self._reap)

    def stop(self, worker: Worker) -> None:
        """Ask an idle worker to end; one that owns something answers Free."""
        worker.state = STOPPING
        self._effects.append(Send(worker.peer, Stop()))

    def _unbook(self, worker: Worker) -> None:
        if worker.booking is not None:
            self._resources.release(worker.booking)
            worker.booking = None
        if worker.demand is not None:
            worker.demand.attached.pop(worker.peer, None)
            self._forget_empty(worker.demand)
            worker.demand = None
        worker.victim = b""

    def gone(self, worker: Worker, now: float) -> None:
        """A worker ended: its bookings and its slot are free. The caller matches again when all is told."""
        if worker.state == STARTING:
            self._start_failures += 1
            if self._start_failures >= self._limits.start_failures_max:
                self._paused_until = now + self._limits.start_pause_s
                self._timers.set(self._paused_until, self.match)
                self._effects.append(Warn(f"{self._start_failures} workers ended before they were ready: see the log"))
        self._unbook(worker)
        del self.workers[worker.peer]
        self._takers.pop(worker.peer, None)
        self._slots.append(worker.slot)
        self._slots.sort(reverse=True)

    def client_gone(self, client: PeerID) -> list[Worker]:
        """Forget a client's demands; returns the workers attached to it, for the caller to kill or detach."""
        for demand in [demand for demand in self.demands.values() if demand.client == client]:
            demand.workers = demand.lent = 0
            self._forget_empty(demand)
        return [worker for worker in self.workers.values() if worker.victim == client]

    def recall(self, worker: Worker) -> None:
        """Detach a worker from its client, whoever may want it."""
        if worker.state == ATTACHED:
            self._detach(worker, None)

    def leave(self, worker: Worker) -> None:
        """Detach a worker from a client that is dead."""
        worker.state = DETACHING
        self._effects.append(Send(worker.peer, Detach(worker.victim, worker.epoch, dead=True)))

    def blocked(self, worker: Worker, now: float) -> None:
        """The worker's task waits: what it has booked may be used meanwhile."""
        if worker.booking is not None:
            self._resources.block(worker.booking)
            self.match(now)

    def unblocked(self, worker: Worker, now: float) -> None:
        """The worker's task goes on. Its place may have been handed back while it did not count."""
        if worker.booking is not None:
            self._resources.unblock(worker.booking)
            self._overbooked.look(now)
        if worker.demand is not None:
            self._watch_surplus(worker.demand, now)

    def settled(self, worker: Worker, shape: Shape, now: float) -> None:
        """The worker's task is an actor: it never comes back, and of what it has booked it needs `shape` no more."""
        if worker.booking is None:
            return
        self._resources.reduce(worker.booking, shape)
        worker.state = SERVING
        self._takers.pop(worker.peer, None)
        worker.detached_for = None
        demand, worker.demand = worker.demand, None
        if demand is not None:
            demand.attached.pop(worker.peer)
            self._forget_empty(demand)
            one_of_many, demand.settled_s = now - demand.settled_s < AHEAD_S, now
            if one_of_many:
                self._fork_ahead(demand, now)
                self.match(now)
                return
        self._timers.set(now + SETTLE_S, self.match)

    def _fork_ahead(self, demand: Demanded, now: float) -> None:
        """Have workers ready for the next actors while these are made; they book nothing before they are attached."""
        ready = sum(w.state == STARTING or (w.state == IDLE and not w.job) for w in self._takers.values())
        while ready < min(demand.workers, AHEAD_MAX) and self._more_workers(demand, now):
            ready += 1

    # Matching.

    def match(self, now: float) -> None:
        """Serve what can be served; called after every change."""
        while self._match_one(now):
            pass
        self._matched(now)
        for demand in list(self.demands.values()):
            self._forget_empty(demand)

    def drain(self) -> None:
        """Have every worker that serves another host come back as soon as its task is over."""
        for demand in [demand for demand in self.demands.values() if demand.far]:
            demand.overflow = demand.workers
            for worker in list(demand.attached.values()):
                self.recall(worker)

    def spare(self) -> Shape:
        """Return what is free and promised to nobody; {} if that is of no use to others."""
        free = {name: amount - self._reserved.get(name, 0) for name, amount in self._resources.available.items()}
        free = {name: amount for name, amount in free.items() if amount > 0}
        return free if any(name != "memory" and not is_mark(name) for name in free) else {}

    def own(self) -> list[Demanded]:
        """Return the demands of this host's clients."""
        return [demand for demand in self.demands.values() if not demand.far and demand.grant is None]

    def executes(self, worker: Worker) -> bool:
        """Whether user code runs in a worker now."""
        return self._executing(worker.slot) is not None

    def _match_one(self, now: float) -> bool:
        """Attach one worker, if any demand allows it; else start or detach workers so that it may, soon."""
        shares = self._shares()
        unmet = [demand for demand in self.demands.values() if demand.lacks > 0]
        unmet.sort(key=lambda d: (not d.claiming, -d.priority, shares.get(d.job, 0), -d.depth, d.order))
        reserved = self._reserved = {}
        for demand in self.demands.values():
            demand.overflow = 0
        starting = [worker for worker in self._takers.values() if worker.state == STARTING]
        for demand in unmet:
            demand.waits_for = ""
            if not demand.needs and self._zero_cpu() >= self._limits.zero_cpu_workers_max:
                demand.waits_for = f"the node runs {self._limits.zero_cpu_workers_max} tasks without resources already"
                continue
            lacks = demand.lacks
            elsewhere = max(0, lacks - self._here(demand, now))
            lacks -= elsewhere
            while lacks > 0 and self._resources.fits(demand.needs, reserved):
                if demand.grant is not None:
                    demand.workers, demand.claiming = 0, False
                    demand.grant(now)
                    return True
                worker = self._idle_for(demand)
                if worker is not None:
                    self._attach(worker, demand, now)
                    return True
                lacks -= 1
                if starting:
                    starting.pop()
                elif not self._more_workers(demand, now):
                    break
                add_to(reserved, demand.needs)
            demand.overflow = lacks + elsewhere
            if lacks > 0 and not demand.waits_for:
                demand.waits_for = "resources are in use"
                if not demand.far and self._make_room(demand, now):
                    add_to(reserved, demand.needs)
        return False

    def _here(self, demand: Demanded, now: float) -> int:
        """Return how many of the workers it lacks this node should give, rather than others."""
        if self._resources.missing(demand.needs):
            return 0
        members = self._members()
        spread_until = demand.born_s + SPREAD_S
        if SPREAD not in demand.shape or demand.far or members == 1 or now >= spread_until:
            return demand.lacks
        self._look_later(spread_until)
        return max(0, -(-demand.workers // members) - demand.serving)

    def _shares(self) -> dict[PeerID, int]:
        """Workers by job that use resources now."""
        shares: dict[PeerID, int] = {}
        for worker in self._takers.values():
            if worker.booking is not None and not worker.booking.blocked:
                shares[worker.job] = shares.get(worker.job, 0) + 1
        return shares

    def _zero_cpu(self) -> int:
        return sum(worker.demand is not None and not worker.demand.needs for worker in self._takers.values())

    def _idle_for(self, demand: Demanded) -> Worker | None:
        """Return an idle worker that may serve a demand: one of its job first, the last to become idle."""
        fit = [w for w in self._takers.values() if w.state == IDLE and (not w.job or _alike(w, demand))]
        return max(fit, key=lambda w: (w.job == demand.job, w.idle_s), default=None)

    def _attach(self, worker: Worker, demand: Demanded, now: float) -> None:
        self._epochs += 1
        config = {} if worker.job else self._config_of(demand.job)
        worker.state = ATTACHED
        worker.job, worker.environment = demand.job, demand.environment
        worker.victim = demand.client
        worker.victims[demand.client] = True
        worker.epoch = self._epochs
        worker.booking = self._resources.book(demand.needs)
        worker.attached_s = now
        worker.demand = demand
        demand.claiming = False
        demand.attached[worker.peer] = worker
        self._effects.append(
            Send(
                worker.peer,
                Attach(demand.client, worker.epoch, demand.job, dict(demand.shape), list(worker.booking.gpus), config),
            )
        )

    def _more_workers(self, demand: Demanded, now: float) -> bool:
        """Get one more worker on its way for a demand whose resources are free; False if none can be had."""
        parked = self._parked(demand, now)
        if parked is not None:
            self._detach(parked, demand)
            return True
        if now < self._paused_until:
            demand.waits_for = "workers fail to start: see the node's log"
            return False
        if self.workers and (why := self._short()):
            demand.waits_for = why
            return False
        if not self._slots:
            demand.waits_for = f"the node has {self._limits.workers_max} workers already, as many as it may"
            for worker in self._takers.values():
                if worker.state == IDLE:  # of another job: its place is worth more
                    self.stop(worker)
                    break
            return False
        peer = local_peer(self._node, self._rng.randbytes(TOKEN_BYTES))
        worker = self.workers[peer] = self._takers[peer] = Worker(peer, self._slots.pop())
        self._effects.append(Spawn(peer, worker.slot))
        return True

    def _parked(self, demand: Demanded, now: float) -> Worker | None:
        """Return a worker of the same job that waits for work somewhere else, where it is not needed."""
        for worker in self._takers.values():
            if worker.state == ATTACHED and _alike(worker, demand) and worker.demand is not demand:
                assert worker.demand is not None
                needless = worker.demand.lacks < 0 or now - worker.attached_s >= self._limits.fresh_s
                if needless and not self.executes(worker):
                    return worker
        return None

    def _detach(self, worker: Worker, demand: Demanded | None) -> None:
        worker.state = DETACHING
        worker.detached_for = demand
        self._effects.append(Send(worker.peer, Detach(worker.victim, worker.epoch)))

    def _make_room(self, demand: Demanded, now: float) -> bool:
        """Detach workers so that the demand will fit; returns whether some are on their way for it."""
        coming: Shape = {}
        for worker in self._takers.values():
            if worker.detached_for is demand and worker.booking is not None and not worker.booking.blocked:
                add_to(coming, worker.booking.shape)
        if coming:
            return True
        chosen: list[Worker] = []
        for worker in [*self._needless(demand, now), *self._unfair(demand, now)]:
            if self._fits_with(demand.needs, coming):
                break
            if worker not in chosen and self._gives(worker, demand.needs, coming):
                chosen.append(worker)
                add_to(coming, worker.booking.shape)
        if not chosen or not self._fits_with(demand.needs, coming):
            return False
        for worker in chosen:
            self._detach(worker, demand)
        demand.claiming = True
        return True

    def _fits_with(self, shape: Shape, coming: Shape) -> bool:
        free = self._resources.free
        return all(amount <= free(name) + coming.get(name, 0) for name, amount in shape.items())

    def _gives(self, worker: Worker, shape: Shape, coming: Shape) -> bool:
        """Whether a worker has booked something of what a shape still lacks."""
        free, booked = self._resources.free, worker.booking.shape
        return any(booked.get(name) and amount > free(name) + coming.get(name, 0) for name, amount in shape.items())

    def _detachable(self, demand: Demanded) -> list[Worker]:
        """Return the workers whose taking would give the demand something."""
        return [
            worker
            for worker in self._takers.values()
            if worker.state == ATTACHED
            and worker.demand is not None
            and worker.demand is not demand
            and not worker.booking.blocked
        ]

    def _needless(self, demand: Demanded, now: float) -> list[Worker]:
        """Attached workers that wait for work: surplus ones of anybody, and parked ones of the same job."""
        found = []
        for worker in self._detachable(demand):
            surplus = worker.demand is not None and worker.demand.lacks < 0
            due = worker.attached_s + self._limits.fresh_s
            if now < due and worker.job == demand.job:
                self._look_later(due)  # nothing else may ever happen: what it waits for may wait for this demand
            if (surplus or (worker.job == demand.job and now >= due)) and not self.executes(worker):
                found.append((not surplus, worker))
        return [worker for _, worker in sorted(found, key=lambda pair: pair[0])]

    def _unfair(self, demand: Demanded, now: float) -> list[Worker]:
        """Workers of the group that has too many, compared with this demand's: by job and shape."""
        groups: dict[tuple[PeerID, ShapeKey], list[Worker]] = {}
        for worker in self._takers.values():
            if worker.demand is not None and worker.booking is not None and not worker.booking.blocked:
                groups.setdefault((worker.job, worker.demand.key), []).append(worker)
        mine = len(groups.pop((demand.job, demand.key), ()))
        largest = max(groups.values(), key=len, default=[])
        if demand.grant is not None:
            largest = [worker for group in groups.values() for worker in group]  # bundles may need a whole node
        elif len(largest) < mine + 2 and (mine or not largest):
            return []
        found = []
        for worker in largest:
            assert worker.demand is not None
            if worker.state != ATTACHED or worker.demand.priority > demand.priority:
                continue
            due = worker.attached_s + self._limits.slice_s
            if now < due:
                self._look_later(due)
                continue
            busy = self.executes(worker)
            found.append(((busy, worker.demand.priority, worker.demand.depth, worker.attached_s), worker))
        return [worker for _, worker in sorted(found, key=lambda pair: pair[0])]

    def _look_later(self, at: float) -> None:
        if not self._slice_timer:

            def look(now: float) -> None:
                self._slice_timer = 0
                self.match(now)

            self._slice_timer = self._timers.set(at, look)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        for worker in self.workers.values():
            booked = worker.state in (ATTACHED, DETACHING, SERVING)
            assert booked == (worker.booking is not None), worker
            assert (worker.peer in self._takers) == (worker.state != SERVING)
            if worker.demand is not None:
                assert worker.demand.attached[worker.peer] is worker
                assert _alike(worker, worker.demand), worker
        for demand in self.demands.values():
            assert all(worker.demand is demand for worker in demand.attached.values())
            assert demand.lent >= 0
        assert len(self._slots) + len(self.workers) == self._limits.workers_max


def _alike(worker: Worker, demand: Demanded) -> bool:
    """Whether a worker that has served somebody may serve a demand: it is of that job, in that environment."""
    return worker.job == demand.job and worker.environment == demand.environment
