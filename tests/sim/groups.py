"""What scenarios with placement groups need: make and remove them, tasks in them, and books that must balance."""

from typing import Any

from tests.sim.simulator import Process, Simulation
from zmesh.core.records import BUNDLE, Entry, Spec, Task
from zmesh.wire import messages as m


class Group:
    """A placement group as the program that made it sees it."""

    def __init__(
        self, sim: Simulation, driver: Process, cpus: list[float], strategy: str = "PACK", name: str = ""
    ) -> None:
        self.sim = sim
        self.driver = driver
        self.id = driver.peer[:8] + sim.rng.randbytes(8)
        self.bundles = [{"CPU": int(one * m.UNIT)} for one in cpus]
        self.made: Entry = driver.core.groups.create(self.id, driver.peer, name, strategy, self.bundles)
        self.entry = self.ready(driver)
        self._specs: dict[Any, Spec] = {}

    def ready(self, process: Process) -> Entry:
        """Return an entry that has a value once the group is there."""
        entry: Entry = process.core.put(m.PENDING, None, [])
        process.core.groups.await_ready(self.id, entry, b"\x01", self.sim.now)
        self.sim.settle(process)
        return entry

    def remove(self, process: Process | None = None) -> Entry:
        """Have it removed."""
        process = process or self.driver
        ticket: Entry = process.core.groups.remove(self.id)
        self.sim.settle(process)
        return ticket

    def submit(
        self, args: bytes, index: int = -1, *, cpus: float = 1, driver: Process | None = None, **options: Any
    ) -> Task:
        """Submit a task that runs in one bundle, or, for -1, in any."""
        driver = driver or self.driver
        place = self.id.hex() if index < 0 else f"{self.id.hex()}:{index}"
        key = (driver.peer, place, cpus, *options.items())
        if key not in self._specs:
            shape = {f"CPU@{place}": int(cpus * m.UNIT)} if cpus else {}
            self._specs[key] = driver.core.new_spec(driver.peer, "f", shape | {f"{BUNDLE}@{place}": 1}, **options)
        return self.sim.submit(driver, self._specs[key], args)

    @property
    def table(self) -> dict[str, Any]:
        """What the coordinator tells of it."""
        told: dict[str, Any] = self.sim.hosts[self.id[:8]].core.groups.placement.describe()[self.id.hex()]
        return told

    @property
    def nodes(self) -> list[bytes]:
        """The node of each bundle, b"" of one that has none."""
        return [bytes.fromhex(node) for node in self.table["bundles_to_node_id"].values()]


def balance(sim: Simulation) -> None:
    """Verify that no amount is booked twice: what is free, held by bundles and booked by workers is all there is."""
    for host in sim.hosts.values():
        if not host.process.alive:
            continue
        books = host.core.resources
        bookings = [w.booking for w in host.core.matchmaking.workers.values() if w.booking is not None]
        booked = [booking for booking in bookings if not booking.blocked]
        plain = sum(booking.shape.get("CPU", 0) for booking in booked if booking.bundle is None)
        free = books.available["CPU"] + books.held.get("CPU", 0) + plain
        assert free == books.total["CPU"], f"seed {sim.seed}: {free} of {books.total}\n{sim.tail()}"
        assert books.held.get("CPU", 0) <= books.total["CPU"], f"seed {sim.seed}\n{sim.tail()}"
        for bundle in books.bundles.values():
            inside = sum(b.shape.get(bundle.names("CPU")[0], 0) for b in booked if b.bundle is bundle)
            if bundle.open:
                assert books.available[bundle.names("CPU")[0]] + inside == bundle.held.shape["CPU"], sim.tail()


def idle(sim: Simulation) -> bool:
    """Whether all living hosts have everything free."""
    living = [host for host in sim.hosts.values() if host.process.alive]
    return all(host.core.resources.available == host.core.resources.total for host in living)
