"""What a node has, and who has booked how much of it. Amounts are integers, in units of 1/10,000.

A booking may be blocked: its task waits, so all but its GPUs may be used meanwhile. Taking it up again is never
refused, so the books may go negative; nothing new is booked until they are not.

A *bundle* of a placement group is a booking that is itself booked from, under names of its own (core/records.py). What
is asked of any bundle of a group is taken from one of them, and charged under both names: so nothing is spent twice,
and what is free of a group is always the sum of what is free of its bundles.
"""

from dataclasses import dataclass, field

from zmesh.core.labels import amount_of, is_selection, said
from zmesh.core.records import BUNDLE, BUNDLE_TASKS_MAX, bundle_names, in_group
from zmesh.wire.messages import UNIT, Shape


class Gpus:
    """How much of each GPU is free, by index."""

    def __init__(self, free: dict[int, int]) -> None:
        self.free = free

    def choose(self, amount: int) -> list[int] | None:
        """Return the GPUs that would serve `amount`, or None if none are free."""
        if not amount:
            return []
        if amount < UNIT:
            # The fullest that still has room: whole ones stay whole for those who need them.
            room = [index for index, free in self.free.items() if free >= amount]
            return [min(room, key=lambda index: self.free[index])] if room else None
        whole = [index for index, free in self.free.items() if free == UNIT][: amount // UNIT]
        return whole if len(whole) == amount // UNIT else None

    def move(self, gpus: list[int], amount: int) -> None:
        """Give back `amount` over these GPUs, or take it if it is negative."""
        for index in gpus:
            self.free[index] += max(-UNIT, min(UNIT, amount))


@dataclass(slots=True)
class Booking:
    """What one worker, or one bundle, has booked. `gpus` are indices; a fraction of a GPU names one index."""

    shape: Shape  # as it is charged: in a group by two names each
    gpus: list[int] = field(default_factory=list)
    blocked: bool = False
    bundle: "Bundle | None" = None  # it was booked from


@dataclass(slots=True, eq=False)
class Bundle:
    """One bundle of a group on this node."""

    group: bytes
    index: int
    held: Booking  # of the node's own resources
    gpus: Gpus
    open: bool = False  # tasks may run in it
    users: int = 0  # bookings from it that are not released

    def names(self, base: str) -> tuple[str, str]:
        """Return the names of a resource in this bundle, and in any of the group."""
        return bundle_names(self.group, self.index, base)

    @property
    def amounts(self) -> Shape:
        """What it has in all."""
        return self.held.shape | {BUNDLE: BUNDLE_TASKS_MAX}


class Resources:
    """The books of one node."""

    def __init__(self, total: Shape) -> None:
        self.total = dict(total)  # without what bundles are called
        self.available = dict(total)
        self.held: Shape = {}  # what bundles hold of the total
        self.bundles: dict[tuple[bytes, int], Bundle] = {}
        self._gpus = Gpus(dict.fromkeys(range(total.get("GPU", 0) // UNIT), UNIT))

    def missing(self, shape: Shape) -> str:
        """Say which resource this node can never give, or return "". What a group has is not for us to say."""
        for name, amount in shape.items():
            if amount > amount_of(name, self.total) and not in_group(name):
                if label := said(name):
                    return f"it needs a node with {label}, and the node has none such: `zmesh up --label KEY=VALUE`"
                has = self.total.get(name, 0) / UNIT
                return f"it needs {name} {amount / UNIT:g}, and the node has {has:g} in all: start it with more"
        return ""

    @staticmethod
    def count(shape: Shape, free: Shape) -> int:
        """Return how many bookings of a shape fit into what is free."""
        return min((amount_of(name, free) // amount for name, amount in shape.items() if amount), default=1)

    def free(self, name: str) -> int:
        """Return how much of one resource is free."""
        return amount_of(name, self.available)

    def fits(self, shape: Shape, reserved: Shape | None = None) -> bool:
        """Whether the shape can be booked now, with `reserved` set aside for others."""
        aside = reserved or {}
        for name, amount in shape.items():
            if amount and amount > self.free(name) - aside.get(name, 0):
                return False
        return self._choose(shape) is not None

    def _choose(self, shape: Shape) -> tuple[Bundle | None, list[int]] | None:
        """Return the bundle a shape is to be taken from, and the GPUs; None if it does not fit."""
        inside = {name: amount for name, amount in shape.items() if amount and in_group(name)}
        if not inside:
            gpus = self._gpus.choose(shape.get("GPU", 0))
            return None if gpus is None else (None, gpus)
        best = None
        for bundle in self.bundles.values():
            found = self._gpus_in(bundle, inside) if bundle.open else None
            if found is not None:
                # The fullest that still has room: others stay free for those who need more.
                left = sum(self.available[bundle.names(base)[0]] for base in bundle.amounts)
                if best is None or left < best[0]:
                    best = (left, bundle, found)
        return None if best is None else best[1:]

    def _gpus_in(self, bundle: Bundle, inside: Shape) -> list[int] | None:
        """Return the GPUs for a shape in that bundle, or None if it is not for that bundle or does not fit."""
        gpus: list[int] | None = []
        for name, amount in inside.items():
            base = name.partition("@")[0]
            one, every = bundle.names(base)
            if name not in (one, every) or amount > self.available.get(one, 0):
                return None
            if base == "GPU":
                gpus = bundle.gpus.choose(amount)
        return gpus

    def book(self, shape: Shape) -> Booking:
        """Book a shape that fits."""
        chosen = self._choose(shape)
        assert chosen is not None
        bundle, gpus = chosen
        charged = {name: amount for name, amount in shape.items() if not is_selection(name)}
        if bundle is not None:
            bundle.users += 1
            charged = {name: amount for name, amount in shape.items() if not in_group(name)}
            for name, amount in shape.items():
                if in_group(name):
                    charged |= dict.fromkeys(bundle.names(name.partition("@")[0]), amount)
        booking = Booking(charged, gpus, bundle=bundle)
        self._move(booking, -1, gpu=False)
        self._move(booking, -1, gpu=True)
        return booking

    def _move(self, booking: Booking, sign: int, *, gpu: bool) -> None:
        """Charge a booking's GPUs or all else of it, or give it back."""
        bundle = booking.bundle
        gone = bundle is not None and not bundle.open
        for name, amount in booking.shape.items():
            if _is_gpu(name) == gpu and not (gone and in_group(name)):
                self.available[name] += sign * amount
        if gpu and booking.gpus:
            amount = max(amount for name, amount in booking.shape.items() if _is_gpu(name))
            (self._gpus if bundle is None else bundle.gpus).move(booking.gpus, sign * amount)

    def block(self, booking: Booking) -> None:
        """Let others use what a waiting task has booked, GPUs excepted."""
        if not booking.blocked:
            booking.blocked = True
            self._move(booking, 1, gpu=False)

    def unblock(self, booking: Booking) -> None:
        """The task goes on, whatever others have booked meanwhile."""
        if booking.blocked:
            booking.blocked = False
            self._move(booking, -1, gpu=False)

    def reduce(self, booking: Booking, shape: Shape) -> None:
        """Give back part of a booking for good; GPUs stay booked."""
        bundle = booking.bundle
        for name, amount in shape.items():
            part = min(amount, booking.shape.get(name, 0)) if not _is_gpu(name) else 0
            if not part:
                continue
            charged = bundle.names(name.partition("@")[0]) if bundle is not None and in_group(name) else (name,)
            for one in charged:
                booking.shape[one] -= part
                if not booking.blocked and not (in_group(one) and bundle is not None and not bundle.open):
                    self.available[one] += part

    def release(self, booking: Booking) -> None:
        """Undo a booking."""
        self.block(booking)
        self._move(booking, 1, gpu=True)
        bundle, booking.bundle = booking.bundle, None
        booking.shape = {}
        booking.gpus = []
        if bundle is not None:
            bundle.users -= 1
            self._give_up(bundle)

    # Bundles.

    def room(self, shape: Shape) -> bool:
        """Whether a shape would fit, if every task made way and every bundle stayed."""
        return all(amount <= self.total.get(name, 0) - self.held.get(name, 0) for name, amount in shape.items())

    def hold(self, group: bytes, shapes: dict[int, Shape]) -> bool:
        """Set aside what these bundles need, {index: shape}: all of them, or, if one does not fit, none."""
        made: list[Bundle] = []
        for index, shape in shapes.items():
            if (group, index) in self.bundles or not self.fits(shape):
                for bundle in made:
                    self.drop(group, bundle.index)
                return False
            held = self.book(shape)
            gpus = Gpus({gpu: min(UNIT, shape["GPU"]) for gpu in held.gpus})
            made.append(Bundle(group, index, held, gpus))
            self.bundles[group, index] = made[-1]
            for name, amount in held.shape.items():
                self.held[name] = self.held.get(name, 0) + amount
        return True

    def open(self, group: bytes, index: int) -> None:
        """Let tasks run in a bundle that is held."""
        bundle = self.bundles[group, index]
        bundle.open = True
        for base, amount in bundle.amounts.items():
            one, every = bundle.names(base)
            self.available[one] = amount
            self.available[every] = self.available.get(every, 0) + amount

    def drop(self, group: bytes, index: int) -> Bundle:
        """End a bundle: nothing new is booked from it, and what it holds is free once nobody uses it."""
        bundle = self.bundles.pop((group, index))
        if bundle.open:
            bundle.open = False
            others = [other for other in self._open() if other.group == group]
            for base in bundle.amounts:
                one, every = bundle.names(base)
                self.available[every] -= self.available.pop(one)
                if not any(base in other.amounts for other in others):
                    del self.available[every]
        self._give_up(bundle)
        return bundle

    def _give_up(self, bundle: Bundle) -> None:
        """Release what a dropped bundle holds, if nobody uses it."""
        if bundle.users or self.bundles.get((bundle.group, bundle.index)) is bundle:
            return
        for name, amount in bundle.held.shape.items():
            self.held[name] -= amount
            if not self.held[name]:
                del self.held[name]
        self.release(bundle.held)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        sums: Shape = {}
        for bundle in self._open():
            for base, amount in bundle.amounts.items():
                one, every = bundle.names(base)
                assert self.available[one] <= amount, (one, self.available[one])
                sums[every] = sums.get(every, 0) + self.available[one]
        for name, amount in self.available.items():
            if not in_group(name):
                assert amount <= self.total[name] - self.held.get(name, 0), (name, amount)
            elif ":" not in name:
                assert amount == sums[name], (name, amount)
        for gpus in (self._gpus, *(bundle.gpus for bundle in self.bundles.values())):
            assert all(0 <= free <= UNIT for free in gpus.free.values()), gpus.free

    def _open(self) -> list[Bundle]:
        return [bundle for bundle in self.bundles.values() if bundle.open]


def _is_gpu(name: str) -> bool:
    return name == "GPU" or name.startswith("GPU@")
