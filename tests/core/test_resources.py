"""The books: nothing is booked twice, and everything comes back."""

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


class Books(RuleBasedStateMachine):
    """Any order of booking, blocking and releasing."""

    bookings = Bundle("bookings")

    def __init__(self) -> None:
        super().__init__()
        self.resources = Resources({"CPU": 4 * UNIT, "GPU": 2 * UNIT, "disk": 3 * UNIT})
        self.open: list[Booking] = []

    @rule(
        target=bookings,
        cpu=st.integers(0, 4 * UNIT),
        gpu=st.sampled_from([0, UNIT // 4, UNIT // 2, UNIT, 2 * UNIT]),
        disk=st.integers(0, UNIT),
    )
    def book(self, cpu: int, gpu: int, disk: int) -> Booking:
        shape = {name: amount for name, amount in (("CPU", cpu), ("GPU", gpu), ("disk", disk)) if amount}
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

    @invariant()
    @precondition(lambda self: not any(booking.blocked for booking in self.open))
    def available_is_what_nobody_holds(self) -> None:
        for name, total in self.resources.total.items():
            held = sum(booking.shape.get(name, 0) for booking in self.open)
            assert self.resources.available[name] == total - held


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
