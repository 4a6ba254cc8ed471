"""Stores with a limit in the simulator: the real ledger of each host, a disk that answers later, and who maps what.

`Stores` is the part of Faulty (faults.py) for that, used only by scenarios that give the stores a size. It does what
runtime/segments.py, spill_files.py and bulk.py do at the node, and runtime/store.py in its clients. Every segment has
one size. Its content is the number of times it was written: who maps a segment must find there what was written last,
and nobody may write into pages that the node has let go of. Each word to a store and each deed of its disk is numbered
like a message, so that faults fall between them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from tests.sim.guests import FULL_WAIT_S, NBYTES, Guests
from tests.sim.simulator import Host, Process
from zmesh.core import effects as fx
from zmesh.core.spilling import (
    RESIDENT,
    AskUnmap,
    DropFile,
    Evict,
    Order,
    ReadBack,
    Spilling,
    WriteOut,
)
from zmesh.wire import messages as m
from zmesh.wire.ids import is_guest
from zmesh.wire.store_messages import Unmap

AGAIN_S = 0.05
TRIM_S = 0.05
FULL_ERROR = m.ERROR, ("StoreFullError", "simulated", {})

Then = Callable[[str], None]  # called with "" or why not


@dataclass(eq=False)
class Store:
    """What one node knows of its shared memory, and its disk."""

    ledger: Spilling
    orders: list[Order]
    memory: dict[int, int] = field(default_factory=dict)  # {segment in memory: its content}
    files: dict[int, int] = field(default_factory=dict)  # {segment with a file: its content}
    serving: dict[int, int] = field(default_factory=dict)  # {segment: transfers from it under way}
    over: dict[bytes, bool] = field(default_factory=dict)  # {client that is gone: True}
    wake: float = -1.0
    trimmed_s: float = -1.0


class Stores(Guests):
    """A simulation whose hosts may have stores of a limited size.

    Args:
        room: segments that fit into each; 0: no limit, and nothing of what is here takes part.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._contents = count(1)
        self._channels: dict[bytes, float] = {}  # {client: when its last word to the store arrives}
        self._parked: dict[int, tuple[bytes, int]] = {}  # {segment that waits for room: (client, request)}
        self.stores: dict[bytes, Store] = {}

    def store_of(self, host: Host) -> Store:
        """Return the store of a host."""
        found = self.stores.get(host.id)
        if found is None:
            orders: list[Order] = []
            found = self.stores[host.id] = Store(Spilling(self.room * NBYTES, 100 * NBYTES, orders), orders)
        return found

    # Faults at what is no message; see Faulty.

    def _step(self, who: Process, to: Process, what: str) -> bool:
        """Number a step; returns whether `who` lives after it."""
        raise NotImplementedError

    def _disk_fails(self, what: str) -> bool:
        """Whether this deed of a disk, a "write" or a "read", is to fail; counts it."""
        raise NotImplementedError

    # The node's side.

    def _on_store(self, host: Host, action: Callable[[Store], Any], *, settle: bool = True) -> None:
        """Do something at a node's store. `settle` unless the node's effects are being carried out anyway."""
        if not host.process.alive:
            return
        store = self.store_of(host)
        action(store)
        while store.orders:
            self._obey(host, store, store.orders.pop(0))
        store.ledger.check()
        if store.ledger.wants_trim and self.now - store.trimmed_s >= TRIM_S:
            store.ledger.wants_trim, store.trimmed_s = False, self.now
            host.core.replicas.make_room()
            host.core.copies.make_room()
            for peer in list(host.core._clients):
                self._send(host.process, peer, m.Trim())
        due = store.ledger.due(self.now)
        if due is not None and not self.now <= store.wake <= due:
            store.wake = due
            self.at(max(0.0, due - self.now), lambda: self._look(host, store, due))
        if settle:
            self.settle(host.process)

    def _look(self, host: Host, store: Store, due: float) -> None:
        if store.wake == due:
            store.wake = -1.0
            self._on_store(host, lambda store: store.ledger.look(self.now))

    def _obey(self, host: Host, store: Store, order: Order) -> None:
        match order:
            case AskUnmap():
                if order.peer == host.process.peer:
                    for segment in order.segments:
                        self.at(self.rng.uniform(0.0, 0.01), lambda segment=segment: self._bulk_unmaps(host, segment))
                elif self.processes[order.peer].alive:
                    self._send(host.process, order.peer, Unmap(list(order.segments)))
            case WriteOut():
                self._disk(host, "write", order.segment)
            case ReadBack():
                self._disk(host, "read", order.segment)
            case Evict():
                mappers = [p.name for p in self.processes.values() if p.alive and order.segment in p.maps]
                assert not mappers, f"{order.segment} goes while {mappers} map it\n{self.tail()}"
                del store.memory[order.segment]
            case DropFile():
                del store.files[order.segment]

    def _bulk_unmaps(self, host: Host, segment: int) -> None:
        """The thread that serves other hosts lets go of what it does not serve now."""
        busy = self.store_of(host).serving.get(segment, 0)
        word = "busy" if busy else "closed"

        def tell(store: Store) -> None:
            if word == "busy":
                store.ledger.busy(host.process.peer, segment, self.now)
            else:
                store.ledger.closed(host.process.peer, segment, 0, self.now)

        self._on_store(host, tell)

    def _disk(self, host: Host, what: str, segment: int) -> None:
        """The disk begins something, and ends some time later."""
        self._note(f"the disk of {host.process.name} begins to {what} {segment}")
        if not self._step(host.process, host.process, f"{what} {segment}"):
            return
        fails = self._disk_fails(what)

        def wrote(store: Store) -> None:
            self._note(f"the disk of {host.process.name} wrote {segment}{', not' * fails}")
            if not fails:
                store.files[segment] = store.memory[segment]
            store.ledger.wrote(segment, 0 if fails else NBYTES, "it is full" if fails else "", self.now)
            self._forget_if_gone(store, segment)

        def read(store: Store) -> None:
            self._note(f"the disk of {host.process.name} read {segment}{', not' * fails}")
            if not fails:
                store.memory[segment] = store.files[segment]
            damaged = self.rng.random() < 0.5
            store.ledger.restored(segment, "it is damaged" if fails else "", self.now, damaged=damaged)
            if store.ledger.state(segment) != RESIDENT:
                store.memory.pop(segment, None)
            self._forget_if_gone(store, segment)

        self.at(self.rng.uniform(0.0005, 0.01), lambda: self._on_store(host, wrote if what == "write" else read))

    @staticmethod
    def _forget_if_gone(store: Store, segment: int) -> None:
        if not store.ledger.state(segment):
            store.memory.pop(segment, None)
            store.files.pop(segment, None)

    def _drop(self, store: Store, segment: int) -> None:
        """A segment is no more. Unknown ones are no error."""
        if store.ledger.state(segment):
            self.written.pop(segment, None)
            if store.ledger.drop(segment, self.now):
                self._forget_if_gone(store, segment)

    def _drop_all(self, host: Host, segments: list[int]) -> None:
        """Carry out what the node wants dropped."""
        for segment in segments:
            self._on_store(host, lambda store, s=segment: self._drop(store, s), settle=False)

    # The channel of a client: what it asks, and the answer.

    def _ask(self, process: Process, what: str, action: Callable[[Store], None]) -> None:
        """Tell the node's store something over the channel, which is FIFO and knows nothing of other links."""
        host = self.host_of(process)
        if not process.alive or not self._step(process, host.process, what):
            return
        arrival = max(self._channels.get(process.peer, 0.0), self.now + self.rng.uniform(0.00002, 0.0003))
        self._channels[process.peer] = arrival
        self.at(arrival - self.now, lambda: self._on_store(host, action))

    def _answer(self, process: Process, action: Callable[[], None]) -> None:
        def arrive() -> None:
            if process.alive:
                action()
                self.settle(process)

        if process.alive and self._step(self.host_of(process).process, process, "answer"):
            self.at(self.rng.uniform(0.00002, 0.0003), arrive)

    def allocate(self, process: Process, then: Callable[[int], None]) -> None:
        """Have a segment to write; `then` gets it, or 0 if there is no room."""
        if process.free:
            then(process.free.pop())
            return
        segment, deadline, host = next(self._segments), self.now + FULL_WAIT_S, self.host_of(process)

        def register() -> None:
            self._ask(process, f"register {segment}", asked)

        def asked(store: Store) -> None:
            if process.peer in store.over:
                return
            request = store.ledger.room(NBYTES, process.peer, self.now, lambda why, text: granted(store, why))
            if request:
                self._parked[segment] = (process.peer, request)

        def granted(store: Store, why: str) -> None:
            self._parked.pop(segment, None)
            if not why:
                store.ledger.add(segment, NBYTES, [process.peer], self.now)
                store.memory[segment] = 0
                self.makers[segment] = process.peer
                process.maps[segment] = True
            self._answer(process, lambda: answered(why))

        def answered(why: str) -> None:
            if not why:
                then(segment)
            elif self.now >= deadline:
                then(0)
            else:
                self.at(AGAIN_S, register)

        assert host.process.alive or not process.alive
        register()

    def fill(self, process: Process, segment: int) -> tuple[int, int, bytes]:
        """Write a segment that the process has; returns its place."""
        store = self.store_of(self.host_of(process))
        assert process.maps.get(segment), f"{process.name} writes {segment}, which it does not keep\n{self.tail()}"
        assert segment in store.memory, f"{process.name} writes {segment}, which is not in memory\n{self.tail()}"
        assert segment not in store.files, f"{process.name} writes {segment}, of which there is a file\n{self.tail()}"
        self.written[segment] = store.memory[segment] = next(self._contents)
        return (segment, NBYTES, process.peer)

    def map_segment(self, process: Process, segment: int, then: Then) -> None:
        """Have a segment mapped; `then` hears "" or why not."""
        if segment in process.maps:
            then("")
            return

        def opened(store: Store, why: str) -> None:
            if not why and process.alive:
                seen = store.memory.get(segment)
                assert seen == self.written.get(segment), f"{process.name} sees {seen} in {segment}\n{self.tail()}"
            self._answer(process, lambda: answered(why))

        def answered(why: str) -> None:
            if not why:
                process.maps[segment] = False
            process.opening[segment] -= 1
            then(why)

        def ask(store: Store) -> None:
            store.ledger.open(segment, process.peer, self.now, lambda why, text: opened(store, why))

        process.opening[segment] = process.opening.get(segment, 0) + 1
        self._ask(process, f"open {segment}", ask)

    def _unmap(self, process: Process, segments: list[int]) -> None:
        """The node wants to spill these."""
        for segment in segments:
            own = process.maps.get(segment, False)
            if segment in process.free:
                process.free.remove(segment)
                self._unregister(process, segment)
            elif process.views.get(segment) or process.opening.get(segment) or (own and segment not in self.written):
                self._ask(
                    process, f"busy {segment}", lambda store, s=segment: store.ledger.busy(process.peer, s, self.now)
                )
            else:
                process.maps.pop(segment, None)
                size = NBYTES if own else 0
                self._ask(
                    process, f"closed {segment}",
                    lambda store, s=segment, size=size: store.ledger.closed(process.peer, s, size, self.now),
                )  # fmt: skip

    def _give_back_free(self, process: Process) -> None:
        free, process.free = process.free, []
        for segment in free:
            self._unregister(process, segment)

    def _unregister(self, process: Process, segment: int) -> None:
        process.maps.pop(segment, None)
        self._ask(process, f"unregister {segment}", lambda store: self._drop(store, segment))

    def _recycle(self, process: Process, segment: int) -> None:
        if not self.room:
            super()._recycle(process, segment)
        elif process.maps.get(segment):
            super()._recycle(process, segment)
            del self.written[segment]
            self.store_of(self.host_of(process)).memory[segment] = 0
        elif self.makers.get(segment) == process.peer:
            self._unregister(process, segment)

    def _channel_closed(self, host: Host, peer: bytes, *, settle: bool = True) -> None:
        """A process is gone, and with it all it maps and waits for."""

        def gone(store: Store) -> None:
            for segment in [one for one, (who, _) in self._parked.items() if who == peer]:
                store.ledger.withdraw(self._parked.pop(segment)[1])
            store.ledger.gone(peer, self.now)

        self._on_store(host, gone, settle=settle)

    def kill(self, process: Process, status: int = 9) -> None:
        """As Simulation.kill; its channel is closed at about that time."""
        was = process.alive
        super().kill(process, status)
        process.maps.clear()
        if was and self.room and not is_guest(process.peer):
            host = self.host_of(process)
            closes = max(self._channels.get(process.peer, 0.0), self.now + self.rng.uniform(0.0, 0.02))
            self.at(closes - self.now, lambda: self._channel_closed(host, process.peer))

    # Effects.

    def _carry_out(self, process: Process, effect: fx.Effect) -> None:
        if not self.room:
            super()._carry_out(process, effect)
            return
        match effect:
            case fx.UnmapSegments():
                self._unmap(process, effect.segments)
            case fx.Recycle() if not effect.segments:
                self._give_back_free(process)
            case fx.Exit():
                self._give_back_free(process)
                if process.alive:
                    super()._carry_out(process, effect)
            case fx.DropSegments():
                self._drop_all(self.host_of(process), effect.segments)
            case fx.DropCopies():
                host = self.host_of(process)
                self._drop_all(host, [host.copies.pop(oid) for oid in effect.oids])
            case fx.DropUnused():
                used, host = process.core.segments_in_use(), self.host_of(process)
                for peer in effect.producers:
                    self.store_of(host).over[peer] = True
                    self._channel_closed(host, peer, settle=False)
                made = [segment for segment, maker in self.makers.items() if maker in effect.producers]
                for segment in [one for one in made if one not in used]:
                    del self.makers[segment]
                    self._drop_all(host, [segment])
            case _:
                super()._carry_out(process, effect)

    def mapped_by_the_dead(self) -> list[Any]:
        """Return what ledgers take to be mapped by processes that are dead since a while: it could never be spilled."""
        return [
            (host.process.name, segment, self.processes[peer].name)
            for host in self.hosts.values()
            if host.process.alive and host.id in self.stores
            for segment, cell in self.stores[host.id].ledger._cells.items()
            for peer in cell.mappers
            if not self.processes[peer].alive
        ]

    def left_in_stores(self) -> list[Any]:
        """Return what is in any store that nobody needs.

        Not what living programs keep to write again, and what a killed worker kept, which goes with its program.
        """
        left: list[Any] = []
        free = [segment for process in self.processes.values() if process.alive for segment in process.free]
        for host in self.hosts.values():
            if not host.process.alive or host.id not in self.stores:
                continue
            store, name = self.stores[host.id], host.process.name
            killed = [peer for peers in host.core._ended.values() for peer in peers if not self.processes[peer].exited]
            free += [segment for segment, maker in self.makers.items() if maker in killed]
            kept = [segment for segment in store.ledger._cells if segment not in free]
            left += [(name, "segment", segment, store.ledger.state(segment)) for segment in kept]
            left += [(name, "waits", waiter) for waiter in store.ledger._waiters.values()]
            left += [(name, "memory", one) for one in (*store.memory, *store.files) if one not in store.ledger._cells]
        return left
