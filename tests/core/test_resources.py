"""The books: nothing is booked twice, and everything comes back."""

from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from zmesh.core.resources import Booking, Resources
from zmesh.wire.messages import UNIT


def test_what_the_node_never_has_is_named() -> None:
    resources = Resources({"CPU": 2 * UNIT})
    assert "CPU 3" in resources.missing({"CPU": 3 * UNIT})
    assert "disk 1" in resources.missing({"disk": UNIT})
    assert resources.missing({"CPU": 2 * UNIT}) == ""


def test_what_is_set_aside_for_others_does_not_fit() -> None:
    resources = Resources({"CPU": 2 * UNIT})
    assert resources.fits({"CPU": 2 * UNIT})
    assert not resources.fits({"CPU": 2 * UNIT}, {"CPU": 1})


def test_fractions_share_a_gpu_and_leave_the_others_whole() -> None:
    resources = Resources({"GPU": 2 * UNIT})
    half = {"GPU": UNIT // 2}
    first, second = resources.book(half), resources.book(half)
    assert first.gpus == second.gpus == [0]
    assert resources.book({"GPU": UNIT}).gpus == [1]
    assert not resources.fits({"GPU": 1})


def test_three_quarters_and_three_quarters_need_two_gpus() -> None:
    resources = Resources({"GPU": 2 * UNIT})
    most = {"GPU": 3 * UNIT // 4}
    assert resources.book(most).gpus == [0]
    assert resources.book(most).gpus == [1]
    assert not resources.fits(most), "half a GPU is left, but in two pieces"


def test_a_blocked_booking_keeps_its_gpu() -> None:
    resources = Resources({"CPU": UNIT, "GPU": UNIT})
    booking = resources.book({"CPU": UNIT, "GPU": UNIT})
    resources.block(booking)
    resources.block(booking)
    assert resources.fits({"CPU": UNIT})
    assert not resources.fits({"GPU": UNIT})
    resources.release(booking)
    assert resources.available == resources.total


class Booked(RuleBasedStateMachine):
    """What is booked, and may be blocked and released, in any order."""

    bookings = Bundle("bookings")
    total: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.resources = Resources(self.total)
        self.open: list[Booking] = []

    def booked(self, shape: dict[str, int]) -> Booking:
        if not self.resources.fits(shape):
            return Booking({})
        booking = self.resources.book(shape)
        self.open.append(booking)
        return booking

    @rule(booking=bookings)
    def block(self, booking: Booking) -> None:
        self.resources.block(booking)

    @rule(booking=bookings)
    def unblock(self, booking: Booking) -> None:
        self.resources.unblock(booking)

    @rule(booking=consumes(bookings))
    def release(self, booking: Booking) -> None:
        self.resources.release(booking)
        self.open = [other for other in self.open if other is not booking]

    @invariant()
    def the_tables_agree(self) -> None:
        self.resources.check()


class Books(Booked):
    """Any order of booking, blocking and releasing."""

    total: ClassVar = {"CPU": 4 * UNIT, "GPU": 2 * UNIT, "disk": 3 * UNIT}

    @rule(
        target=Booked.bookings,
        cpu=st.integers(0, 4 * UNIT),
        gpu=st.sampled_from([0, UNIT // 4, UNIT // 2, UNIT, 2 * UNIT]),
        disk=st.integers(0, UNIT),
    )
    def book(self, cpu: int, gpu: int, disk: int) -> Booking:
        shape = {name: amount for name, amount in (("CPU", cpu), ("GPU", gpu), ("disk", disk)) if amount}
        return self.booked(shape)

    @invariant()
    @precondition(lambda self: not any(booking.blocked for booking in self.open))
    def available_is_what_nobody_holds(self) -> None:
        for name, total in self.resources.total.items():
            held = sum(booking.shape.get(name, 0) for booking in self.open)
            assert self.resources.available[name] == total - held


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


GROUP, OTHER_GROUP = b"n" * 8 + b"group...", b"n" * 8 + b"other..."


def inside(index: int | None = None, group: bytes = GROUP, **amounts: int) -> dict[str, int]:
    """Return the shape of a task in one bundle, or, without an index, in any of the group."""
    place = group.hex() if index is None else f"{group.hex()}:{index}"
    return {f"{name}@{place}": amount for name, amount in ({"bundle": 1} | amounts).items()}


def made(total: dict[str, int], *bundles: dict[str, int]) -> Resources:
    resources = Resources(total)
    assert resources.hold(GROUP, dict(enumerate(bundles)))
    for index in range(len(bundles)):
        resources.open(GROUP, index)
    resources.check()
    return resources


def test_a_bundle_takes_from_the_node_and_has_names_of_its_own() -> None:
    resources = made({"CPU": 4 * UNIT}, {"CPU": UNIT}, {"CPU": 2 * UNIT})
    assert resources.available["CPU"] == UNIT
    assert resources.held == {"CPU": 3 * UNIT}
    assert resources.fits(inside(1, CPU=2 * UNIT))
    assert not resources.fits(inside(0, CPU=2 * UNIT))
    assert not resources.fits(inside(2, CPU=1))
    assert not resources.fits(inside(0, OTHER_GROUP, CPU=1))
    assert resources.missing(inside(7, CPU=9 * UNIT)) == "", "what a group has is known to its coordinator"
    assert resources.room({"CPU": UNIT})
    assert not resources.room({"CPU": 2 * UNIT})
    for index in range(2):
        resources.drop(GROUP, index)
    resources.check()
    assert resources.available == resources.total
    assert resources.held == {}


def test_bundles_are_held_together_or_not_at_all() -> None:
    resources = Resources({"CPU": 2 * UNIT})
    assert not resources.hold(GROUP, {0: {"CPU": UNIT}, 1: {"CPU": 2 * UNIT}})
    assert resources.available == resources.total
    assert not resources.bundles


def test_what_a_booking_gives_back_is_free_in_its_bundle_and_in_the_group() -> None:
    resources = Resources({"CPU": 2 * UNIT})
    assert resources.hold(GROUP, {0: {"CPU": UNIT}, 1: {"CPU": UNIT}})
    for index in range(2):
        resources.open(GROUP, index)
    of_one, of_all = f"CPU@{GROUP.hex()}:0", f"CPU@{GROUP.hex()}"
    booking = resources.book({of_one: UNIT})
    assert (resources.available[of_one], resources.available[of_all]) == (0, UNIT)
    resources.reduce(booking, {of_one: UNIT})
    assert (resources.available[of_one], resources.available[of_all]) == (UNIT, 2 * UNIT)
    resources.check()
    blocked = resources.book({of_all: UNIT})
    resources.block(blocked)
    resources.reduce(blocked, {of_all: UNIT})
    resources.check()
    gone = resources.book({of_one: UNIT})
    resources.drop(GROUP, 0)
    resources.reduce(gone, {of_one: UNIT})
    resources.check()
    for one in (booking, blocked, gone):
        resources.release(one)
    resources.check()


def test_nothing_runs_in_a_bundle_that_is_not_open() -> None:
    resources = Resources({"CPU": UNIT})
    assert resources.hold(GROUP, {0: {"CPU": UNIT}})
    assert not resources.fits(inside(0, CPU=1))
    assert not resources.fits(inside(CPU=1))
    resources.drop(GROUP, 0)
    assert resources.available == resources.total


def test_what_any_bundle_gives_is_not_given_a_second_time_by_its_number() -> None:
    resources = made({"CPU": 2 * UNIT}, {"CPU": UNIT}, {"CPU": UNIT})
    anywhere = resources.book(inside(CPU=UNIT))
    assert [resources.fits(inside(index, CPU=UNIT)) for index in range(2)] == [False, True]
    named = resources.book(inside(1, CPU=UNIT))
    assert not resources.fits(inside(CPU=1))
    resources.release(anywhere)
    assert [resources.fits(inside(index, CPU=UNIT)) for index in range(2)] == [True, False]
    resources.release(named)
    resources.check()


def test_a_task_does_not_fit_into_what_two_bundles_have_together() -> None:
    resources = made({"CPU": 2 * UNIT}, {"CPU": UNIT}, {"CPU": UNIT})
    assert not resources.fits(inside(CPU=2 * UNIT))


def test_the_fullest_bundle_with_room_is_taken_first() -> None:
    resources = made({"CPU": 4 * UNIT}, {"CPU": 2 * UNIT}, {"CPU": 2 * UNIT})
    resources.book(inside(1, CPU=UNIT))
    assert resources.book(inside(CPU=UNIT)).bundle is resources.bundles[GROUP, 1]
    assert resources.fits(inside(0, CPU=2 * UNIT))


def test_the_gpus_of_a_task_are_those_of_its_bundle() -> None:
    resources = made({"CPU": UNIT, "GPU": 4 * UNIT}, {"GPU": UNIT}, {"GPU": 2 * UNIT}, {"GPU": UNIT // 2})
    assert resources.book({"GPU": UNIT // 2}).gpus == [3], "the half a GPU that no bundle has"
    assert resources.book(inside(1, GPU=2 * UNIT)).gpus == [1, 2]
    assert resources.book(inside(2, GPU=UNIT // 2)).gpus == [3]
    assert not resources.fits(inside(2, GPU=1))
    booking = resources.book(inside(GPU=UNIT))
    assert booking.gpus == [0]
    resources.block(booking)
    assert not resources.fits(inside(0, GPU=1))
    resources.check()


def test_a_task_may_take_from_a_bundle_and_from_the_node() -> None:
    resources = made({"CPU": 2 * UNIT, "label:a": 9}, {"CPU": UNIT})
    booking = resources.book(inside(0, CPU=UNIT) | {"label:a": 1})
    assert (resources.available["label:a"], resources.available["CPU"]) == (8, UNIT)
    resources.release(booking)
    resources.check()
    assert resources.available["label:a"] == 9


def test_a_shape_of_two_groups_fits_nowhere() -> None:
    resources = Resources({"CPU": 2 * UNIT})
    for group in (GROUP, OTHER_GROUP):
        assert resources.hold(group, {0: {"CPU": UNIT}})
        resources.open(group, 0)
    assert not resources.fits(inside(0, CPU=UNIT) | inside(0, OTHER_GROUP, CPU=UNIT))


def test_a_bundle_that_ends_is_free_when_its_last_task_is() -> None:
    resources = made({"CPU": 2 * UNIT}, {"CPU": 2 * UNIT})
    running, waiting = resources.book(inside(0, CPU=UNIT)), resources.book(inside(CPU=UNIT))
    resources.block(waiting)
    resources.drop(GROUP, 0)
    resources.check()
    assert not resources.fits({"CPU": 1}), "somebody still runs on it"
    resources.unblock(waiting)
    resources.release(waiting)
    assert not resources.hold(GROUP, {0: {"CPU": 2 * UNIT}})
    resources.release(running)
    assert resources.hold(GROUP, {0: {"CPU": 2 * UNIT}})
    resources.drop(GROUP, 0)
    assert resources.available == resources.total


class Bundles(Booked):
    """Any order of reserving, opening and dropping bundles, and of tasks in them and beside them."""

    total: ClassVar = {"CPU": 6 * UNIT, "GPU": 3 * UNIT}

    @rule(
        group=st.sampled_from([GROUP, OTHER_GROUP]),
        index=st.integers(0, 2),
        cpu=st.integers(1, 3),
        gpu=st.sampled_from([0, UNIT // 2, UNIT, 2 * UNIT]),
    )
    def hold(self, group: bytes, index: int, cpu: int, gpu: int) -> None:
        shape = {"CPU": cpu * UNIT} | ({"GPU": gpu} if gpu else {})
        if (group, index) not in self.resources.bundles and self.resources.hold(group, {index: shape}):
            self.resources.open(group, index)

    @rule(group=st.sampled_from([GROUP, OTHER_GROUP]), index=st.integers(0, 2))
    def drop(self, group: bytes, index: int) -> None:
        if (group, index) in self.resources.bundles:
            self.resources.drop(group, index)

    @rule(
        target=Booked.bookings,
        group=st.sampled_from([None, GROUP, OTHER_GROUP]),
        index=st.sampled_from([None, 0, 1, 2]),
        cpu=st.integers(0, 2),
        gpu=st.sampled_from([0, UNIT // 2, UNIT]),
    )
    def book(self, group: bytes | None, index: int | None, cpu: int, gpu: int) -> Booking:
        amounts = {name: amount for name, amount in (("CPU", cpu * UNIT), ("GPU", gpu)) if amount}
        shape = amounts if group is None else inside(index, group, **amounts)
        return self.booked(shape)

    @invariant()
    def no_gpu_is_given_away_twice(self) -> None:
        used: dict[int, int] = {}
        for booking in self.open:
            for gpu in booking.gpus:
                amount = max(amount for name, amount in booking.shape.items() if name.startswith("GPU"))
                used[gpu] = used.get(gpu, 0) + min(UNIT, amount)
        assert all(amount <= UNIT for amount in used.values()), used

    def teardown(self) -> None:
        for booking in self.open:
            self.resources.release(booking)
        for group, index in list(self.resources.bundles):
            self.resources.drop(group, index)
        assert self.resources.available == self.resources.total
        assert self.resources.held == {}


TestBundles = Bundles.TestCase
TestBundles.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
