"""Which segments of a full store go to disk, who must unmap them first, and who waits for room.

A segment keeps its id while its bytes lie on disk, so no place that anybody was told becomes wrong: who opens it waits
until it is back. It goes only when no process has it mapped: a producer that kept its mapping would write the next
object into pages that readers no longer see. So the coldest are chosen, those who map them are asked, and whoever has
live views of one says that it is busy. A sealed segment never changes: its file stays good while it is in memory again.

Also the ledger of the store: what is booked, and the requests that did not fit, in the order they came. How bytes get
to disk and back is runtime/spill_files.py's business.

Source: spilling above a share of the store is Ray's object_spilling_threshold.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from zmesh.wire.ids import PeerID

SPILL_ABOVE = 0.8  # of the store: from here on cold segments go, so that the next request finds room
FULL_WAIT_S = 1.0  # a request that does not fit is refused when nothing has been freed for so long
ASK_S = 0.3  # a process that does not answer for so long is not waited for; its answer counts whenever it comes
BUSY_S = 0.25  # a segment in use is asked for again after this time; if nobody waits for room, ever more rarely
BUSY_MAX_S = 60.0
TROUBLE_S = 0.5  # after an error of the disk nothing is written for so long
LOOK_S = 0.05

RESIDENT, SPILLED, READING, LOST = "resident", "spilled", "reading", "lost"

FULL, SPILL, GONE = "full", "spill", "lost"  # why a request is refused: no room, no room on disk, no such bytes

Then = Callable[[str, str], None]  # called with ("", "") when it may go on, else with why not, and a text


@dataclass(slots=True)
class AskUnmap:
    """Ask a process to unmap these segments; it answers `closed` or `busy` for each."""

    peer: PeerID
    segments: list[int]


@dataclass(slots=True)
class WriteOut:
    """Write the first `nbytes` of a segment to a file; `wrote` hears of the end."""

    segment: int
    nbytes: int


@dataclass(slots=True)
class Evict:
    """The file has it all: let go of a segment's memory."""

    segment: int


@dataclass(slots=True)
class ReadBack:
    """Fill a new segment of the same id from its file; `restored` hears of the end."""

    segment: int
    nbytes: int


@dataclass(slots=True)
class DropFile:
    """This file is needed no more."""

    segment: int


Order = AskUnmap | WriteOut | Evict | ReadBack | DropFile


@dataclass(slots=True)
class Cell:
    """One segment."""

    size: int
    nbytes: int  # of them hold an object; all, as long as nobody told
    mappers: dict[PeerID, bool] = field(default_factory=dict)
    state: str = RESIDENT
    held: int = 0  # it is being filled, or its node needs it here
    wanted: bool = False  # chosen to go
    asked_s: float = 0.0
    writing: bool = False
    dropped: bool = False  # while it was being written or read
    on_disk: int = 0  # bytes booked for its file
    filed: bool = False  # the file is complete
    busy_until: float = 0.0
    busy_s: float = BUSY_S
    opens: list[tuple[PeerID, Then]] = field(default_factory=list)  # who waits until it is back
    request: int = 0  # for room to come back to
    why_lost: str = ""


@dataclass(slots=True)
class _Waiter:
    nbytes: int
    since: float
    peer: PeerID
    then: Then


class Spilling:
    """The ledger of one node's store, and what of it lies on disk.

    Args:
        capacity_bytes: how much may be booked.
        disk_bytes_max: how much may lie on disk; 0: nothing is spilled, and what does not fit is refused at once.
        orders: where what is to be done is appended, in order.

    Attributes:
        wants_trim: somebody waits for room, or was refused, since this was last set to False.
    """

    def __init__(self, capacity_bytes: int, disk_bytes_max: int, orders: list[Order]) -> None:
        self.capacity_bytes = capacity_bytes
        self.disk_bytes_max = disk_bytes_max
        self.used_bytes = 0
        self.disk_bytes = 0
        self.wants_trim = False
        self._orders = orders
        self._cells: dict[int, Cell] = {}  # {segment: cell}
        self._warm: dict[int, Cell] = {}  # {segment: cell} in memory, the coldest first
        self._wanted: dict[int, Cell] = {}  # {segment: cell} chosen to go, or being written
        self._waiters: dict[int, _Waiter] = {}  # {number: request}, the oldest first
        self._numbers = 0
        self._progress_s = 0.0
        self._trouble = ""  # what the disk said last, until something could be written
        self._quota = ""  # why nothing more may be written
        self._trouble_until = 0.0
        self._again_s: float | None = None  # when one that was busy may be asked again

    # The ledger.

    def reserve(self, nbytes: int, now: float) -> bool:
        """Book bytes that are no segment's; returns whether they fit. The books may run over while others can go."""
        if self.used_bytes + nbytes > self.capacity_bytes:
            self.wants_trim = True
            if not self._may_go(now):
                return False
        self.used_bytes += nbytes
        self._press(now)
        return True

    def _may_go(self, now: float) -> bool:
        if not self.disk_bytes_max or now < self._trouble_until:
            return False
        return bool(self._wanted) or any(not cell.held and cell.busy_until <= now for cell in self._warm.values())

    def release(self, nbytes: int, now: float) -> None:
        """Undo a `reserve`."""
        assert nbytes <= self.used_bytes, "more released than reserved"
        self._freed(nbytes, now)

    def room(self, nbytes: int, peer: PeerID, now: float, then: Then) -> int:
        """Have `then` called when `nbytes` fit, or when they will not: at once, or later.

        Returns the number under which to `withdraw` the request, 0 if it was answered. `peer` is b"" for a segment
        that comes back from disk.
        """
        if not self._waiters and self.used_bytes + nbytes <= self.capacity_bytes:
            then("", "")
            return 0
        self.wants_trim = True
        if not self.disk_bytes_max or nbytes > self.capacity_bytes:
            then(FULL, "")
            return 0
        self._numbers += 1
        number = self._numbers
        self._waiters[number] = _Waiter(nbytes, now, peer, then)
        self._press(now)
        self._grant(now)
        return number if number in self._waiters else 0

    def withdraw(self, number: int) -> None:
        """Whoever waited does not want it any more."""
        self._waiters.pop(number, None)

    def _freed(self, nbytes: int, now: float) -> None:
        self.used_bytes -= nbytes
        self._progress_s = now
        self._grant(now)

    def _grant(self, now: float) -> None:
        """Let those in who fit, in the order they came."""
        while self._waiters:
            number, waiter = next(iter(self._waiters.items()))
            # One that comes back frees its room on disk. If that is full, too, the books run over by one: else none
            # could ever move.
            swaps = not waiter.peer and (self._trouble or self._quota) and self.used_bytes <= self.capacity_bytes
            if self.used_bytes + waiter.nbytes > self.capacity_bytes and not swaps:
                return
            del self._waiters[number]
            self._progress_s = now
            waiter.then("", "")

    # Segments.

    def add(self, segment: int, size: int, mappers: list[PeerID], now: float, *, held: bool = False) -> None:
        """Book a segment for which there is room, mapped by these; `held` until `unhold`."""
        assert segment not in self._cells
        cell = Cell(size, size, dict.fromkeys(mappers, True), held=int(held))
        self._cells[segment] = self._warm[segment] = cell
        self.used_bytes += size
        self._press(now)

    def state(self, segment: int) -> str:
        """Return where a segment's bytes are; "" if it is not known."""
        cell = self._cells.get(segment)
        return "" if cell is None else cell.state

    def reusable(self, segment: int, peer: PeerID) -> bool:
        """Whether that process may write the segment again: it is here, mapped by it, and nobody chose it to go."""
        cell = self._cells.get(segment)
        return cell is not None and cell.state == RESIDENT and peer in cell.mappers and not cell.wanted

    def hold(self, segment: int) -> None:
        """Keep a segment in memory until `unhold`."""
        cell = self._cells[segment]
        cell.held += 1
        self._keep(segment, cell)

    def unhold(self, segment: int, now: float) -> None:
        """Undo a `hold`. A segment that is gone is no error."""
        cell = self._cells.get(segment)
        if cell is not None and cell.held:
            cell.held -= 1
            self._press(now)

    def open(self, segment: int, peer: PeerID, now: float, then: Then) -> None:
        """Somebody wants to map a segment, b"" only to read it: `then` is called once it is here, or with why not."""
        cell = self._cells.get(segment)
        if cell is None or cell.dropped:
            then(GONE, "the node let go of it, or never had it")
        elif cell.state == LOST:
            then(GONE, cell.why_lost)
        elif cell.state == RESIDENT:
            self._keep(segment, cell)
            if peer:
                cell.mappers[peer] = True
            del self._warm[segment]
            self._warm[segment] = cell
            then("", "")
        else:
            cell.opens.append((peer, then))
            if cell.state == SPILLED:
                cell.state = READING
                cell.request = self.room(cell.size, b"", now, lambda why, text: self._read(segment, cell, why, text))

    def _keep(self, segment: int, cell: Cell) -> None:
        """A segment that was chosen to go stays after all; what is being written is kept as a file, too."""
        cell.wanted = False
        if not cell.writing:
            self._wanted.pop(segment, None)
            if not cell.filed:
                self.disk_bytes -= cell.on_disk
                cell.on_disk = 0

    def _read(self, segment: int, cell: Cell, why: str, text: str) -> None:
        cell.request = 0
        if why:
            cell.state = SPILLED
            self._answer(cell, why, text)
        else:
            self.used_bytes += cell.size
            self._orders.append(ReadBack(segment, cell.nbytes))

    @staticmethod
    def _answer(cell: Cell, why: str, text: str) -> None:
        opens, cell.opens = cell.opens, []
        for peer, then in opens:
            if peer and not why:
                cell.mappers[peer] = True
            then(why, text)

    def restored(self, segment: int, error: str, now: float, *, damaged: bool = True) -> None:
        """A ReadBack is over; `state` says what came of it.

        Args:
            error: why it failed, or "".
            damaged: the file will never give it; else there was no memory for it.
        """
        cell = self._cells[segment]
        if cell.dropped:
            self._forget(segment, cell)
            self._freed(cell.size, now)
        elif not error:
            cell.state = RESIDENT
            if not cell.opens or not all(peer for peer, _ in cell.opens):
                # Who only reads it will ask for the next piece. And never does it go within the call that brings it.
                cell.asked_s, cell.busy_until = now, now + BUSY_S
            if self._trouble:
                self._drop_file(segment, cell)
            self._warm[segment] = cell
            self._answer(cell, "", "")
            self._press(now)
        elif damaged:
            cell.state, cell.why_lost = LOST, error
            self._drop_file(segment, cell)
            self._answer(cell, GONE, error)
            self._freed(cell.size, now)
        else:
            cell.state = SPILLED
            self._answer(cell, FULL, error)
            self._freed(cell.size, now)

    def closed(self, peer: PeerID, segment: int, nbytes: int, now: float) -> None:
        """A process has no mapping of a segment any more. Its producer says how many bytes of it hold something."""
        cell = self._cells.get(segment)
        if cell is not None:
            cell.mappers.pop(peer, None)
            cell.busy_s = BUSY_S
            if 0 < nbytes <= cell.size:
                cell.nbytes = nbytes
            self._go(segment, cell, now)

    def busy(self, peer: PeerID, segment: int, now: float) -> None:
        """A process cannot unmap a segment: it has views of it, or is still writing it."""
        cell = self._cells.get(segment)
        if cell is not None and cell.wanted and peer in cell.mappers:
            self._put_off(segment, cell, now)
            self._press(now)

    def _put_off(self, segment: int, cell: Cell, now: float) -> None:
        self._keep(segment, cell)
        cell.asked_s, cell.busy_until = now, now + cell.busy_s
        cell.busy_s = min(2 * cell.busy_s, BUSY_MAX_S)

    def gone(self, peer: PeerID, now: float) -> None:
        """A process is gone, with all its mappings and requests."""
        for number in [number for number, waiter in self._waiters.items() if waiter.peer == peer]:
            del self._waiters[number]
        for segment, cell in list(self._warm.items()):
            if cell.mappers.pop(peer, False):
                self._go(segment, cell, now)
        for cell in self._cells.values():
            if any(who == peer for who, _ in cell.opens):
                cell.opens = [(who, then) for who, then in cell.opens if who != peer]
                if cell.request and not cell.opens:
                    self.withdraw(cell.request)
                    cell.request, cell.state = 0, SPILLED
        self._grant(now)

    def drop(self, segment: int, now: float) -> bool:
        """A segment is no more. Returns whether its memory and its file may go at once, or when `state` says so."""
        cell = self._cells[segment]
        if cell.request:
            self.withdraw(cell.request)
            cell.request, cell.state = 0, SPILLED
        self._answer(cell, GONE, "the node let go of it")
        if cell.writing or cell.state == READING:
            cell.dropped, cell.wanted = True, False
            self._warm.pop(segment, None)
            return False
        self._forget(segment, cell)
        if cell.state == RESIDENT:
            self._freed(cell.size, now)
        return True

    def _forget(self, segment: int, cell: Cell) -> None:
        self.disk_bytes -= cell.on_disk
        del self._cells[segment]
        self._warm.pop(segment, None)
        self._wanted.pop(segment, None)

    def _drop_file(self, segment: int, cell: Cell) -> None:
        self.disk_bytes -= cell.on_disk
        cell.on_disk, cell.filed = 0, False
        self._orders.append(DropFile(segment))

    # Who goes.

    def _press(self, now: float) -> None:
        """Choose the coldest segments, as many as must go, and ask those who map them."""
        self._again_s = None
        if not self.disk_bytes_max:
            return
        waiting = sum(waiter.nbytes for waiter in self._waiters.values())
        need = self.used_bytes - int(self.capacity_bytes * SPILL_ABOVE)
        need = max(need, self.used_bytes + waiting - self.capacity_bytes if waiting else 0)
        need -= sum(cell.size for cell in self._wanted.values() if cell.wanted)
        if need <= 0:
            return
        if now < self._trouble_until:
            self._again_s = self._trouble_until
            return
        self._quota = ""
        asked: dict[PeerID, list[int]] = {}
        chosen = []
        for segment, cell in self._warm.items():
            if cell.wanted or cell.held:
                continue
            again_s = min(cell.busy_until, cell.asked_s + BUSY_S) if waiting else cell.busy_until
            if now < again_s:
                self._again_s = again_s if self._again_s is None else min(self._again_s, again_s)
                continue
            if not cell.on_disk and not self._book_disk(cell):
                break
            cell.wanted, cell.asked_s = True, now
            self._wanted[segment] = cell
            for peer in cell.mappers:
                asked.setdefault(peer, []).append(segment)
            chosen.append((segment, cell))
            need -= cell.size
            if need <= 0:
                break
        self._orders += [AskUnmap(peer, segments) for peer, segments in asked.items()]
        for segment, cell in chosen:
            self._go(segment, cell, now)

    def _book_disk(self, cell: Cell) -> bool:
        """Book room on disk for a segment; files of those that are in memory again make place."""
        for segment, other in self._warm.items():
            if self.disk_bytes + cell.nbytes <= self.disk_bytes_max:
                break
            if other.filed and not other.wanted:
                self._drop_file(segment, other)
        if self.disk_bytes + cell.nbytes > self.disk_bytes_max:
            self._quota = f"{self.disk_bytes:,} of {self.disk_bytes_max:,} bytes of spill_bytes_max are in use"
            return False
        cell.on_disk = cell.nbytes
        self.disk_bytes += cell.nbytes
        return True

    def _go(self, segment: int, cell: Cell, now: float) -> None:
        """A chosen segment that nobody maps is written, or goes at once if its file is there."""
        if not cell.wanted or cell.mappers or cell.writing or cell.held:
            return
        if cell.filed:
            cell.wanted, cell.state = False, SPILLED
            del self._wanted[segment], self._warm[segment]
            self._orders.append(Evict(segment))
            self._freed(cell.size, now)
        else:
            cell.writing = True
            self._orders.append(WriteOut(segment, cell.nbytes))

    def wrote(self, segment: int, file_bytes: int, error: str, now: float) -> None:
        """A WriteOut is over: the file takes so many bytes, or there is none, and `error` says why."""
        cell = self._cells[segment]
        cell.writing = False
        if cell.dropped:
            self._forget(segment, cell)
            self._freed(cell.size, now)
            return
        if error:
            self._trouble, self._trouble_until = error, now + TROUBLE_S
            for other, warm in self._warm.items():
                if warm.filed and not warm.wanted:
                    self._drop_file(other, warm)
            self._put_off(segment, cell, now)
            self._press(now)
            return
        self._trouble = ""
        cell.filed = True
        self.disk_bytes += file_bytes - cell.on_disk
        cell.on_disk = file_bytes
        if cell.wanted and not cell.mappers:
            self._go(segment, cell, now)
        elif not cell.wanted:
            self._keep(segment, cell)

    # Time.

    def due(self, now: float) -> float | None:
        """Return when to call `look`, if nothing happens before."""
        if self._waiters or self._wanted:
            return now + LOOK_S
        return self._again_s

    def look(self, now: float) -> None:
        """Give up on those who do not answer, ask again those who were busy, refuse who has waited in vain."""
        for segment, cell in list(self._wanted.items()):
            if cell.wanted and cell.mappers and now - cell.asked_s >= ASK_S:
                self._put_off(segment, cell, now)
        self._press(now)
        self._grant(now)
        if any(cell.writing for cell in self._wanted.values()):
            return
        for number, waiter in list(self._waiters.items()):
            if now - max(waiter.since, self._progress_s) >= FULL_WAIT_S and number in self._waiters:
                del self._waiters[number]
                why = self._trouble or self._quota
                waiter.then(SPILL if why else FULL, why)

    @property
    def spilled(self) -> int:
        """How many segments lie on disk only."""
        return len(self._cells) - len(self._warm)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert self.disk_bytes == sum(cell.on_disk for cell in self._cells.values()) >= 0
        for segment, cell in self._cells.items():
            here = cell.state == RESIDENT and not cell.dropped
            assert here == (segment in self._warm)
            assert (segment in self._wanted) == (cell.wanted or cell.writing)
            assert cell.state == RESIDENT or not (cell.mappers or cell.wanted)
            assert not cell.opens or cell.state == READING
            assert cell.filed or cell.state in (RESIDENT, LOST)
