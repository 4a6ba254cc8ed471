"""Hosts that come and go in the fault simulator: one that joins, and one that leaves as `zmesh down` makes it.

`Members` is the part of Faulty (faults.py) for that. Who joins knows all others at once, from its seed; they hear of it
at different times, the seed first. Who leaves does what runtime/node_main.py does: it takes no more work, has what lies
there copied, says that it leaves, and ends.
"""

from collections.abc import Callable
from typing import Any

from tests.sim.simulator import NODE, Host
from zmesh.core.node import Limits
from zmesh.wire import messages as m

DRAIN_S = 30.0
EVACUATE_S = 30.0
GOODBYE_S = 1.1
NEWS_S = 0.5  # gossip has told everybody after this time
LOOK_S = 0.005


class Members:
    """Mixed into Faulty."""

    hosts: dict[bytes, Host]
    processes: dict[bytes, Any]
    rng: Any
    now: float
    at: Callable[[float, Callable[[], None]], None]
    kill_host: Callable[..., None]
    settle: Callable[[Any], None]
    _beat: Callable[[Host], None]
    _host: Callable[..., Host]
    _note: Callable[[str], None]

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._buried: dict[tuple[bytes, bytes], bool] = {}  # {(node, dead node): True} as the first was told
        self._leaving: dict[bytes, bool] = {}
        self.newcomer: Host | None = None

    # One that joins.

    def join(self) -> None:
        """Another host joins, of which the first living one hears first."""
        seeds = [host for host in self.hosts.values() if host.process.alive and host.id not in self._leaving]
        if not seeds:
            return
        index = len(self.hosts)
        host = self._host(NODE[:7] + bytes([NODE[7] + index]), index, self._cpus, Limits())
        others = list(self.hosts.values())
        self.hosts[host.id] = self.newcomer = host
        self.processes[host.process.peer] = host.process
        self._note(f"{host.process.name} joins")
        self.settle(host.process)
        self._meets(seeds[0], host)
        self.at(self.rng.uniform(0.001, 0.02), lambda: self._meets(host, *others))
        for other in others:
            if other is not seeds[0]:
                self.at(self.rng.uniform(0.001, NEWS_S), lambda other=other: self._meets(other, host))
        self._beat(host)

    def _meets(self, one: Host, *others: Host) -> None:
        """A node hears of members, unless it heard of their end before."""
        if not one.process.alive:
            return
        for other in others:
            if (one.id, other.id) in self._buried:
                continue
            total = {"CPU": self._cpus * m.UNIT, f"node:{other.id.hex()}": 1 << 40, "spread": 1 << 40}
            one.core.member_up(other.id, total, self.now)
            if not other.process.alive:
                self.at(1.0, lambda other=other: self._bury(one, other))
        self.settle(one.process)

    def _bury(self, other: Host, dead: Host) -> None:
        self._buried[other.id, dead.id] = True
        if other.process.alive:
            why = "it left" if dead.id in self._leaving else "simulated"
            other.core.member_down(dead.id, why, self.now)
            self.settle(other.process)

    # One that leaves.

    def leave(self, host: Host) -> None:
        """A host is told to stop."""
        if not host.process.alive or host.id in self._leaving:
            return
        self._note(f"{host.process.name} leaves")
        self._leaving[host.id] = True
        core = host.core
        if not core.neighbours.totals:
            self.kill_host(host)
            return
        core.drain(self.now)
        self.settle(host.process)

        def gone() -> None:
            self._note(f"{host.process.name} says that it has left")
            for other in self.hosts.values():
                if other is not host:
                    self.at(self.rng.uniform(0.001, 0.1), lambda other=other: self._bury(other, host))
            self.at(GOODBYE_S, lambda: self.kill_host(host))

        def evacuate() -> None:
            core.evacuation.leave()
            self.settle(host.process)
            self._once(host, lambda: core.evacuation.done, self.now + EVACUATE_S, gone)

        self._once(host, lambda: core.drained, self.now + DRAIN_S, evacuate)

    def _once(self, host: Host, condition: Callable[[], bool], end: float, then: Callable[[], None]) -> None:
        """Do something once a condition holds on a living host, or at some time."""
        if host.process.alive:
            if condition() or self.now >= end:
                then()
            else:
                self.at(LOOK_S, lambda: self._once(host, condition, end, then))
