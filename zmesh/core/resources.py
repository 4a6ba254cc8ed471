"""What a node has, and who has booked how much of it. Amounts are integers, in units of 1/10,000.

A booking may be blocked: its task waits, so all but its GPUs may be used meanwhile. Taking it up again is never
refused, so the books may go negative; nothing new is booked until they are not.
"""

from dataclasses import dataclass, field

from zmesh.wire.messages import UNIT, Shape


@dataclass(slots=True)
class Booking:
    """What one worker has booked. `gpus` are indices; a fraction of a GPU names one index."""

    shape: Shape
    gpus: list[int] = field(default_factory=list)
    blocked: bool = False


class Resources:
    """The books of one node."""

    def __init__(self, total: Shape) -> None:
        self.total = dict(total)
        self.available = dict(total)
        self._gpu_free = [UNIT] * (total.get("GPU", 0) // UNIT)  # by index

    def missing(self, shape: Shape) -> str:
        """Say which resource this node can never give, or return ""."""
        for name, amount in shape.items():
            if amount > self.total.get(name, 0):
                has = self.total.get(name, 0) / UNIT
                return f"it needs {name} {amount / UNIT:g}, and the node has {has:g} in all: start it with more"
        return ""

    @staticmethod
    def count(shape: Shape, free: Shape) -> int:
        """Return how many bookings of a shape fit into what is free."""
        return min((free.get(name, 0) // amount for name, amount in shape.items() if amount), default=1)

    def fits(self, shape: Shape, reserved: Shape | None = None) -> bool:
        """Whether the shape can be booked now, with `reserved` set aside for others."""
        aside = reserved or {}
        for name, amount in shape.items():
            if amount and amount > self.available.get(name, 0) - aside.get(name, 0):
                return False
        return self._gpus_for(shape.get("GPU", 0)) is not None

    def _gpus_for(self, amount: int) -> list[int] | None:
        """Return the GPUs that would serve `amount`, or None if none are free."""
        if not amount:
            return []
        if amount < UNIT:
            # The fullest that still has room: whole ones stay whole for those who need them.
            room = [index for index, free in enumerate(self._gpu_free) if free >= amount]
            return [min(room, key=lambda index: self._gpu_free[index])] if room else None
        whole = [index for index, free in enumerate(self._gpu_free) if free == UNIT][: amount // UNIT]
        return whole if len(whole) == amount // UNIT else None

    def book(self, shape: Shape) -> Booking:
        """Book a shape that fits."""
        gpus = self._gpus_for(shape.get("GPU", 0))
        assert gpus is not None
        for index in gpus:
            self._gpu_free[index] -= min(UNIT, shape["GPU"])
        for name, amount in shape.items():
            self.available[name] -= amount
        return Booking(dict(shape), gpus)

    def block(self, booking: Booking) -> None:
        """Let others use what a waiting task has booked, GPUs excepted."""
        if not booking.blocked:
            booking.blocked = True
            for name, amount in booking.shape.items():
                if name != "GPU":
                    self.available[name] += amount

    def unblock(self, booking: Booking) -> None:
        """The task goes on, whatever others have booked meanwhile."""
        if booking.blocked:
            booking.blocked = False
            for name, amount in booking.shape.items():
                if name != "GPU":
                    self.available[name] -= amount

    def reduce(self, booking: Booking, shape: Shape) -> None:
        """Give back part of a booking for good; GPUs stay booked."""
        for name, amount in shape.items():
            part = min(amount, booking.shape.get(name, 0)) if name != "GPU" else 0
            if part:
                booking.shape[name] -= part
                if not booking.blocked:
                    self.available[name] += part

    def release(self, booking: Booking) -> None:
        """Undo a booking."""
        self.block(booking)
        if booking.gpus:
            self.available["GPU"] += booking.shape["GPU"]
            for index in booking.gpus:
                self._gpu_free[index] += min(UNIT, booking.shape["GPU"])
        booking.shape = {}
        booking.gpus = []

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        for name, amount in self.available.items():
            assert amount <= self.total[name], (name, amount)
        assert all(0 <= free <= UNIT for free in self._gpu_free), self._gpu_free
