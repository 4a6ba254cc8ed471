from zmesh.core.spares import SPARE_S, Spares
from zmesh.core.timers import Timers


class Rig:
    """Spares of at most 100 bytes, and what they gave back."""

    def __init__(self) -> None:
        self.timers = Timers()
        self.dropped: list[int] = []
        self.spares = Spares(self.timers, 100, self.dropped.append)


def test_a_spare_segment_is_taken_by_one_of_its_size() -> None:
    rig = Rig()
    assert rig.spares.keep(1, 40, 0.0)
    assert rig.spares.keep(2, 60, 0.0)
    assert rig.spares.take(50) == 0
    assert rig.spares.take(60) == 2
    assert rig.spares.take(60) == 0
    assert 1 in rig.spares
    assert 2 not in rig.spares


def test_no_more_is_kept_than_there_is_room_for() -> None:
    rig = Rig()
    assert rig.spares.keep(1, 60, 0.0)
    assert not rig.spares.keep(2, 60, 0.0)
    rig.spares.take(60)
    assert rig.spares.keep(2, 60, 0.0)


def test_what_nobody_needs_for_long_goes_the_oldest_first() -> None:
    rig = Rig()
    rig.spares.keep(1, 10, 0.0)
    rig.spares.keep(2, 10, 20.0)
    rig.timers.tick(SPARE_S - 0.1)
    assert rig.dropped == []
    rig.timers.tick(SPARE_S)
    assert rig.dropped == [1]
    rig.timers.tick(SPARE_S + 20.0)
    assert rig.dropped == [1, 2]
    assert rig.timers.next_deadline() is None
    rig.spares.keep(3, 100, 100.0)
    rig.timers.tick(100.0 + SPARE_S)
    assert rig.dropped == [1, 2, 3]


def test_one_that_was_taken_meanwhile_is_not_dropped() -> None:
    rig = Rig()
    rig.spares.keep(1, 10, 0.0)
    rig.spares.take(10)
    rig.spares.keep(2, 10, 10.0)
    rig.timers.tick(SPARE_S)
    assert rig.dropped == []
    rig.timers.tick(SPARE_S + 10.0)
    assert rig.dropped == [2]


def test_all_go_when_the_store_is_full() -> None:
    rig = Rig()
    for segment in (1, 2, 3):
        rig.spares.keep(segment, 10, 0.0)
    rig.spares.drop(2)
    rig.spares.clear()
    assert rig.dropped == [2, 1, 3]
    assert rig.spares.keep(4, 100, 0.0)
