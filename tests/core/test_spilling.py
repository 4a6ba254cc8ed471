"""A full store: who goes to disk, who waits for whom, and what comes back."""

import random
from typing import Any

import pytest

from zmesh.core.spilling import (
    ASK_S,
    BUSY_S,
    FULL,
    FULL_WAIT_S,
    GONE,
    LOST,
    READING,
    RESIDENT,
    SPILL,
    SPILLED,
    TROUBLE_S,
    AskUnmap,
    DropFile,
    Evict,
    ReadBack,
    Spilling,
    WriteOut,
)

A, B = b"a" * 16, b"b" * 16
PLENTY = 1 << 40


class Desk:
    """A store of 100 bytes. `said` is what was asked for since last time."""

    def __init__(self, disk_bytes_max: int = PLENTY, capacity: int = 100) -> None:
        self.orders: list[Any] = []
        self.store = Spilling(capacity, disk_bytes_max, self.orders)
        self.told: list[Any] = []

    def said(self) -> list[Any]:
        taken, self.orders[:] = self.orders[:], []
        self.store.check()
        return taken

    def ask(self, name: str, nbytes: int, now: float = 0.0, peer: bytes = A) -> int:
        return self.store.room(nbytes, peer, now, lambda why, text: self.told.append((name, why, text)))

    def put(self, segment: int, size: int, now: float = 0.0, peer: bytes = A) -> None:
        self.store.room(size, peer, now, lambda why, text: None if why else self.store.add(segment, size, [peer], now))

    def open(self, segment: int, now: float = 0.0, peer: bytes = B) -> None:
        self.store.open(segment, peer, now, lambda why, text: self.told.append((segment, why, text)))

    def spill(self, segment: int, now: float = 0.0) -> None:
        """Carry a segment that was chosen, and is not mapped any more, to disk."""
        assert self.orders.pop(0) == WriteOut(segment, 40)
        self.store.wrote(segment, 40, "", now)
        assert self.said() == [Evict(segment)]


def full() -> Desk:
    """Return a desk with two segments of 40, A's, in memory."""
    desk = Desk()
    desk.put(1, 40)
    desk.put(2, 40)
    assert desk.said() == []
    return desk


def one_on_disk() -> Desk:
    desk = full()
    desk.put(3, 40)
    assert desk.said() == [AskUnmap(A, [1])]
    desk.store.closed(A, 1, 0, 0.0)
    desk.spill(1)
    assert [desk.store.state(one) for one in (1, 2, 3)] == [SPILLED, RESIDENT, RESIDENT]
    desk.store.look(0.0)
    return desk


def test_what_fits_is_let_in_at_once() -> None:
    desk = Desk()
    assert desk.ask("one", 100) == 0
    assert desk.told == [("one", "", "")]
    assert not desk.store.wants_trim


def test_without_a_disk_what_does_not_fit_is_refused_at_once() -> None:
    desk = Desk(disk_bytes_max=0)
    desk.put(1, 60)
    desk.ask("big", 60)
    assert desk.told == [("big", FULL, "")]
    assert desk.said() == []
    assert desk.store.wants_trim
    assert desk.store.due(0.0) is None


def test_what_can_never_fit_is_refused_at_once() -> None:
    desk = full()
    desk.ask("huge", 101)
    assert desk.told == [("huge", FULL, "")]
    assert desk.said() == []


def test_the_coldest_goes_when_somebody_waits_for_its_room() -> None:
    desk = full()
    desk.open(1)
    desk.ask("new", 60)
    assert desk.said() == [AskUnmap(A, [2])]
    assert desk.told == [(1, "", "")]
    desk.store.closed(A, 2, 33, 0.0)
    assert desk.said() == [WriteOut(2, 33)]
    desk.store.wrote(2, 30, "", 0.0)
    assert desk.said() == [Evict(2)]
    assert desk.told[1:] == [("new", "", "")]
    assert (desk.store.used_bytes, desk.store.disk_bytes, desk.store.spilled) == (40, 30, 1)


def test_it_goes_only_when_nobody_maps_it() -> None:
    desk = full()
    desk.open(1)
    desk.open(2)
    desk.ask("new", 60)
    assert desk.said() == [AskUnmap(A, [1]), AskUnmap(B, [1])]
    desk.store.closed(A, 1, 40, 0.0)
    assert desk.said() == []
    desk.store.closed(B, 1, 0, 0.0)
    desk.spill(1)
    assert desk.told[-1] == ("new", "", "")


def test_above_a_share_of_the_store_cold_ones_go_before_anybody_waits() -> None:
    desk = full()
    desk.store.reserve(20, 0.0)
    assert desk.said() == [AskUnmap(A, [1])]
    assert desk.store.due(0.0) is not None


def test_one_that_is_read_stays_and_the_next_goes() -> None:
    desk = full()
    desk.ask("new", 60)
    assert desk.said() == [AskUnmap(A, [1])]
    desk.store.busy(A, 1, 0.0)
    assert desk.said() == [AskUnmap(A, [2])]
    desk.store.busy(A, 2, 0.0)
    desk.store.busy(A, 2, 0.0)
    assert desk.said() == []
    desk.store.look(BUSY_S / 2)
    assert desk.said() == []
    desk.store.look(BUSY_S)
    assert desk.said() == [AskUnmap(A, [1])]


def test_one_that_is_read_is_asked_for_ever_more_rarely() -> None:
    desk = Desk()
    desk.put(1, 90)
    asked = []
    for tick in range(4000):
        now = tick * 0.05
        desk.store.look(now)
        for order in desk.said():
            assert order == AskUnmap(A, [1])
            asked.append(now)
            desk.store.busy(A, 1, now)
    assert 8 <= len(asked) <= 12


def test_while_somebody_waits_it_is_asked_for_again_and_again() -> None:
    desk = Desk()
    desk.put(1, 40)
    desk.put(2, 40)
    asked = 0
    for tick in range(100):
        now = tick * 0.05
        if tick % 10 == 0:
            desk.ask("new", 60, now)
        desk.store.look(now)
        for order in desk.said():
            asked += len(order.segments)
            for segment in order.segments:
                desk.store.busy(A, segment, now)
    assert asked >= 2 * 15


def test_whoever_does_not_answer_is_not_waited_for() -> None:
    desk = full()
    desk.ask("new", 20 + 1)
    assert desk.said() == [AskUnmap(A, [1])]
    desk.store.look(ASK_S / 2)
    assert desk.said() == []
    desk.store.look(ASK_S)
    assert desk.said() == [AskUnmap(A, [2])]
    desk.store.closed(A, 1, 0, ASK_S)  # late, and still true
    desk.store.busy(A, 2, ASK_S)
    assert desk.said() == []
    desk.store.look(ASK_S + BUSY_S)
    assert desk.said() == [WriteOut(1, 40)]


def test_who_waits_in_vain_is_refused() -> None:
    desk = full()
    desk.ask("new", 60)
    desk.store.busy(A, 1, 0.0)
    desk.store.busy(A, 2, 0.0)
    desk.store.look(FULL_WAIT_S / 2)
    assert desk.told == []
    desk.store.look(FULL_WAIT_S)
    assert desk.told == [("new", FULL, "")]


def test_who_waits_is_not_refused_while_something_is_written() -> None:
    desk = full()
    desk.ask("new", 100)
    desk.store.closed(A, 1, 0, 0.0)
    desk.store.look(10 * FULL_WAIT_S)
    assert desk.told == []
    assert [order for order in desk.said() if isinstance(order, WriteOut)] == [WriteOut(1, 40)]


def test_requests_are_let_in_in_the_order_they_came() -> None:
    desk = full()
    desk.ask("big", 90)
    small = desk.ask("small", 10)
    assert small
    desk.said()
    desk.store.drop(1, 0.0)
    assert desk.told == []
    desk.store.drop(2, 0.0)
    assert [name for name, _, _ in desk.told] == ["big", "small"]


def test_a_withdrawn_request_takes_no_room() -> None:
    desk = full()
    number = desk.ask("new", 60)
    desk.store.withdraw(number)
    desk.store.withdraw(number)
    desk.store.drop(1, 0.0)
    assert desk.told == []


def test_a_dead_process_maps_nothing_and_waits_for_nothing() -> None:
    desk = full()
    desk.open(1, peer=B)
    desk.ask("his", 60, peer=B)
    desk.ask("mine", 60, peer=A)
    desk.said()
    desk.store.closed(A, 1, 0, 0.0)
    desk.store.gone(B, 0.0)
    desk.spill(1)
    assert [name for name, _, _ in desk.told] == [1, "mine"]


@pytest.mark.parametrize("has_room", [False, True])
def test_one_that_comes_back_is_not_mapped_by_who_died_meanwhile(has_room: bool) -> None:
    """Nobody would ever say that he unmaps it."""
    desk = one_on_disk()
    if has_room:
        desk.store.drop(2, 0.0)
    desk.said()
    desk.open(1, peer=B)
    assert desk.store.state(1) == READING
    desk.store.gone(B, 0.0)
    if has_room:
        desk.store.restored(1, "", 0.0)
        assert desk.store.reusable(1, B) is False
    assert desk.store.state(1) == (RESIDENT if has_room else SPILLED)
    assert desk.told == []
    desk.said()


def test_whoever_opens_one_on_disk_waits_until_it_is_back() -> None:
    desk = one_on_disk()
    desk.store.drop(2, 0.0)
    desk.open(1)
    desk.open(1, peer=A)
    assert desk.said() == [ReadBack(1, 40)]
    assert desk.store.state(1) == READING
    assert desk.told == []
    desk.store.restored(1, "", 0.0)
    assert desk.told == [(1, "", ""), (1, "", "")]
    assert desk.store.state(1) == RESIDENT
    assert desk.store.reusable(1, B)
    assert desk.said() == []


def test_one_that_comes_back_waits_for_room_like_all_others() -> None:
    desk = one_on_disk()
    desk.open(1)
    assert desk.said() == [AskUnmap(A, [2])]
    desk.store.closed(A, 2, 40, 0.0)
    assert desk.said() == [WriteOut(2, 40)]
    desk.store.wrote(2, 40, "", 0.0)
    assert desk.said() == [Evict(2), ReadBack(1, 40)]


def test_one_of_which_a_guest_reads_pieces_stays_for_the_next() -> None:
    desk = one_on_disk()
    desk.store.drop(2, 0.0)
    desk.store.drop(3, 0.0)
    desk.open(1, peer=b"")
    desk.said()
    desk.store.restored(1, "", 0.0)
    desk.open(1, peer=b"")
    desk.store.reserve(60, 0.0)
    assert desk.said() == []
    assert desk.store.due(0.0) == BUSY_S
    desk.store.look(BUSY_S)
    assert desk.said() == [Evict(1)]


def test_one_that_came_back_goes_again_without_being_written() -> None:
    desk = one_on_disk()
    desk.store.drop(2, 0.0)
    desk.open(1)
    desk.said()
    desk.store.restored(1, "", 0.0)
    desk.ask("new", 60, BUSY_S)
    assert desk.said() == [AskUnmap(A, [3])]
    desk.store.busy(A, 3, BUSY_S)
    assert desk.said() == [AskUnmap(B, [1])]
    desk.store.closed(B, 1, 0, BUSY_S)
    assert desk.said() == [Evict(1)]
    assert desk.told[-1] == ("new", "", "")


def test_one_that_finds_no_room_to_come_back_stays_on_disk() -> None:
    desk = one_on_disk()
    desk.open(1)
    desk.said()
    desk.store.busy(A, 2, 0.0)
    desk.store.busy(A, 3, 0.0)
    desk.said()
    desk.store.look(FULL_WAIT_S)
    assert desk.told == [(1, FULL, "")]
    assert desk.store.state(1) == SPILLED


def test_a_damaged_file_loses_that_object_only() -> None:
    desk = one_on_disk()
    desk.store.drop(2, 0.0)
    desk.open(1)
    desk.said()
    desk.store.restored(1, "its file is too short", 0.0)
    assert desk.said() == [DropFile(1)]
    desk.open(1)
    desk.open(3)
    assert desk.told == [(1, GONE, "its file is too short")] * 2 + [(3, "", "")]
    assert desk.store.state(1) == LOST
    assert (desk.store.used_bytes, desk.store.disk_bytes) == (40, 0)
    assert desk.store.drop(1, 0.0)
    assert desk.store.used_bytes == 40


def test_a_host_without_memory_loses_nothing() -> None:
    desk = one_on_disk()
    desk.store.drop(2, 0.0)
    desk.open(1)
    desk.said()
    desk.store.restored(1, "no memory", 0.0, damaged=False)
    assert desk.told == [(1, FULL, "no memory")]
    assert desk.store.state(1) == SPILLED
    desk.open(1)
    assert desk.said() == [ReadBack(1, 40)]


def test_one_that_is_opened_while_it_is_written_stays() -> None:
    desk = full()
    desk.ask("new", 30)
    desk.store.closed(A, 1, 0, 0.0)
    desk.open(1)
    assert desk.told == [(1, "", "")]
    assert desk.said() == [AskUnmap(A, [1]), WriteOut(1, 40)]
    desk.store.wrote(1, 40, "", 0.0)
    assert desk.store.state(1) == RESIDENT
    desk.store.look(0.1)
    assert desk.said() == [AskUnmap(A, [2])]


def test_one_that_is_held_stays() -> None:
    desk = Desk()
    desk.store.add(1, 40, [], 0.0, held=True)
    desk.put(2, 40)
    desk.ask("new", 60)
    assert desk.said() == [AskUnmap(A, [2])]
    desk.store.busy(A, 2, 0.0)
    desk.store.unhold(1, 0.0)
    assert desk.said() == [WriteOut(1, 40)]
    desk.store.hold(1)
    desk.store.wrote(1, 40, "", 0.0)
    assert desk.store.state(1) == RESIDENT
    desk.store.unhold(7, 0.0)
    assert not desk.store.reusable(1, A)


@pytest.mark.parametrize("when", ["waiting", "reading", "writing", "spilled"])
def test_one_that_is_dropped_leaves_nothing(when: str) -> None:
    desk = full() if when == "writing" else one_on_disk()
    if when == "reading":
        desk.store.drop(2, 0.0)
    if when == "writing":
        desk.ask("new", 30)
        desk.store.closed(A, 1, 0, 0.0)
    elif when != "spilled":
        desk.open(1)
    assert desk.store.drop(1, 0.0) == (when in ("waiting", "spilled"))
    desk.said()
    if when == "reading":
        assert desk.told == [(1, GONE, "the node let go of it")]
        desk.open(1)
        assert desk.told[1][1] == GONE
        desk.store.restored(1, "", 0.0)
    elif when == "writing":
        desk.store.wrote(1, 40, "", 0.0)
        assert desk.told == [("new", "", "")]
    assert desk.store.state(1) == ""
    assert desk.store.disk_bytes == (40 if when == "waiting" else 0)  # of the one that was to make room for it
    assert desk.store.used_bytes == {"waiting": 80, "reading": 40, "writing": 40, "spilled": 80}[when]
    desk.open(1)
    assert desk.told[-1][1] == GONE
    desk.said()


def test_a_disk_in_trouble_is_left_alone_for_a_while_and_named() -> None:
    desk = full()
    desk.ask("new", 60)
    desk.said()
    desk.store.closed(A, 1, 0, 0.0)
    desk.said()
    desk.store.wrote(1, 0, "the disk is full", 0.0)
    assert desk.said() == []
    assert not desk.store.reserve(40, 0.0)
    desk.store.look(TROUBLE_S / 2)
    assert desk.said() == []
    assert desk.store.due(0.0) is not None
    desk.store.look(TROUBLE_S)
    assert desk.said() == [WriteOut(1, 40)]
    desk.store.wrote(1, 0, "the disk is full", TROUBLE_S)
    desk.store.look(FULL_WAIT_S)
    assert desk.said() == [WriteOut(1, 40)]
    desk.store.wrote(1, 0, "the disk is full", FULL_WAIT_S)
    desk.store.look(FULL_WAIT_S)
    assert desk.told == [("new", SPILL, "the disk is full")]
    assert desk.store.disk_bytes == 0
    assert desk.store.state(1) == RESIDENT


def test_one_comes_back_over_the_books_if_the_disk_is_full_too() -> None:
    desk = one_on_disk()
    desk.open(1)
    assert desk.said() == [AskUnmap(A, [2])]
    desk.store.closed(A, 2, 40, 0.0)
    desk.said()
    desk.store.wrote(2, 0, "the disk is full", 0.0)
    desk.store.look(0.05)
    assert desk.said() == [ReadBack(1, 40)]
    desk.store.restored(1, "", 0.1)
    assert desk.told == [(1, "", "")]
    assert desk.said() == [DropFile(1)]
    assert desk.store.used_bytes == 120
    desk.store.look(TROUBLE_S)
    assert desk.said() == [WriteOut(2, 40)]


def test_a_quota_that_is_used_up_is_named() -> None:
    desk = Desk(disk_bytes_max=50)
    desk.put(1, 40)
    desk.put(2, 40)
    desk.ask("one", 40)
    assert desk.said() == [AskUnmap(A, [1])]
    desk.store.closed(A, 1, 0, 0.0)
    desk.spill(1)
    desk.put(3, 40)
    desk.ask("two", 40)
    assert desk.said() == []
    desk.store.look(FULL_WAIT_S)
    assert desk.told == [("one", "", ""), ("two", SPILL, "40 of 50 bytes of spill_bytes_max are in use")]


def test_files_of_those_in_memory_make_place_for_others() -> None:
    desk = Desk(disk_bytes_max=50)
    for segment in (1, 2):
        desk.put(segment, 40)
    desk.put(3, 40)
    desk.said()
    desk.store.closed(A, 1, 0, 0.0)
    desk.spill(1)
    desk.store.drop(2, 0.0)
    desk.open(1)
    desk.said()
    desk.store.restored(1, "", 0.0)
    desk.ask("new", 60, 0.1)
    assert desk.said() == [DropFile(1), AskUnmap(A, [3])]


def test_reserved_bytes_run_over_the_books_while_others_can_go() -> None:
    desk = full()
    assert desk.store.reserve(30, 0.0)
    assert desk.said() == [AskUnmap(A, [1])]
    assert desk.store.used_bytes == 110
    desk.store.release(30, 0.0)
    desk.store.hold(1)
    desk.store.hold(2)
    assert not desk.store.reserve(30, 0.0)
    with pytest.raises(AssertionError):
        desk.store.release(90, 0.0)


class World:
    """Processes that map, read and drop segments as chance has it, and a disk that sometimes fails."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.desk = Desk(disk_bytes_max=self.rng.choice([150, PLENTY]))
        self.now = 0.0
        self.memory: dict[int, bool] = {}  # segments whose memory the node has
        self.files: dict[int, bool] = {}
        self.mapped: dict[tuple[bytes, int], int] = {}  # {(peer, segment): live views}
        self.jobs: list[Any] = []
        self.asked: list[tuple[bytes, int]] = []
        self.open_requests = 0
        self.answers = 0
        self.made = 0

    def carry_out(self) -> None:
        while self.desk.orders:
            order = self.desk.orders.pop(0)
            match order:
                case AskUnmap():
                    self.asked += [(order.peer, segment) for segment in order.segments]
                case Evict():
                    assert order.segment in self.files
                    assert not any(segment == order.segment for _, segment in self.mapped), "evicted under a mapping"
                    del self.memory[order.segment]
                case DropFile():
                    del self.files[order.segment]
                case WriteOut():
                    assert not any(segment == order.segment for _, segment in self.mapped), "written under a mapping"
                    self.jobs.append(order)
                case ReadBack():
                    assert order.segment in self.files
                    self.jobs.append(order)
        self.desk.store.check()

    def end_job(self) -> None:
        job = self.jobs.pop(self.rng.randrange(len(self.jobs)))
        store = self.desk.store
        fails = self.rng.random() < 0.1
        if isinstance(job, WriteOut):
            if not fails:
                self.files[job.segment] = True
            store.wrote(job.segment, 0 if fails else job.nbytes, "no" if fails else "", self.now)
        else:
            self.memory[job.segment] = True
            store.restored(job.segment, "no" if fails else "", self.now, damaged=self.rng.random() < 0.5)
            if store.state(job.segment) != RESIDENT:
                self.memory.pop(job.segment, None)
        if not store.state(job.segment):
            self.memory.pop(job.segment, None)
            self.files.pop(job.segment, None)

    def make(self) -> None:
        self.made += 1
        segment, peer, size = self.made, self.rng.choice([A, B]), self.rng.randint(5, 40)

        def granted(why: str, text: str) -> None:
            self.answers += 1
            if not why:
                self.desk.store.add(segment, size, [peer], self.now)
                self.memory[segment] = True
                self.mapped[peer, segment] = 0

        self.open_requests += 1
        self.desk.store.room(size, peer, self.now, granted)

    def open(self, segment: int) -> None:
        peer = self.rng.choice([A, B])

        def opened(why: str, text: str) -> None:
            self.answers += 1
            if not why:
                assert segment in self.memory, "handed over without memory"
                self.mapped[peer, segment] = self.mapped.get((peer, segment), 0) + self.rng.randint(0, 1)

        self.open_requests += 1
        self.desk.store.open(segment, peer, self.now, opened)

    def answer(self) -> None:
        peer, segment = self.asked.pop(self.rng.randrange(len(self.asked)))
        if self.mapped.get((peer, segment)):
            self.desk.store.busy(peer, segment, self.now)
        else:
            self.mapped.pop((peer, segment), None)
            self.desk.store.closed(peer, segment, 0, self.now)

    def drop(self, segment: int) -> None:
        if self.desk.store.drop(segment, self.now):
            self.memory.pop(segment, None)
            self.files.pop(segment, None)
        for key in [key for key in self.mapped if key[1] == segment]:
            del self.mapped[key]

    def step(self) -> None:
        known = list(self.desk.store._cells)
        known = [one for one in known if not self.desk.store._cells[one].dropped]
        choice = self.rng.random()
        if choice < 0.2:
            self.make()
        elif choice < 0.45 and known:
            self.open(self.rng.choice(known))
        elif choice < 0.6 and self.asked:
            self.answer()
        elif choice < 0.8 and self.jobs:
            self.end_job()
        elif choice < 0.9 and self.mapped:
            key = self.rng.choice(list(self.mapped))
            self.mapped[key] = 0
        elif choice < 0.93 and known:
            self.drop(self.rng.choice(known))
        else:
            self.now += 0.05
            self.desk.store.look(self.now)
        self.carry_out()

    def finish(self) -> None:
        """All views end and all jobs are done: everybody must have been answered."""
        for _ in range(2000):
            if self.answers == self.open_requests:
                return
            self.mapped = dict.fromkeys(self.mapped, 0)
            while self.asked:
                self.answer()
                self.carry_out()
            while self.jobs:
                self.end_job()
                self.carry_out()
            self.now += 0.05
            self.desk.store.look(self.now)
            self.carry_out()
        raise AssertionError(f"{self.open_requests - self.answers} requests were never answered")


@pytest.mark.parametrize("seed", range(40))
def test_nobody_loses_what_he_maps_and_everybody_is_answered(seed: int) -> None:
    world = World(seed)
    for _ in range(400):
        world.step()
    world.finish()
    sizes = [cell.size for cell in world.desk.store._cells.values() if cell.state in (RESIDENT, READING)]
    assert world.desk.store.used_bytes == sum(sizes)
