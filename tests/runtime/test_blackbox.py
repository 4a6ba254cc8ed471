"""runtime/blackbox.py: what the node reads is what the worker wrote, of one task, at any moment."""

import os
import time

import pytest

from zmesh.runtime.blackbox import LABEL_BYTES, BlackBoxes

OWNER = b"o" * 16
JOB = b"j" * 16


def test_a_fresh_box_is_empty() -> None:
    assert BlackBoxes(2).read(1) is None


def test_a_box_names_the_task_and_whether_it_is_over() -> None:
    boxes = BlackBoxes(3)
    boxes.entering(1)(OWNER, 2**40, 7, JOB, 12.5)
    found = boxes.read(1)
    assert found is not None
    assert (found.owner, found.seq, found.attempt, found.job, found.start_s) == (OWNER, 2**40, 7, JOB, 12.5)
    assert not found.over
    boxes.leaving(1)()
    found = boxes.read(1)
    assert found is not None
    assert (found.owner, found.seq, found.attempt, found.job, found.over) == (OWNER, 2**40, 7, JOB, True)


def test_a_second_task_replaces_the_first() -> None:
    boxes = BlackBoxes(1)
    enter, leave = boxes.entering(0), boxes.leaving(0)
    for seq in (1, 2):
        enter(OWNER, seq, 0, JOB, 0.0)
        found = boxes.read(0)
        assert found is not None
        assert (found.seq, found.over) == (seq, False)
        leave()


def test_neighbours_do_not_touch_each_other() -> None:
    boxes = BlackBoxes(3)
    for slot in range(3):
        boxes.entering(slot)(OWNER, slot, 0, JOB, 0.0)
    boxes.leaving(1)()
    found = [boxes.read(slot) for slot in range(3)]
    assert [(box.seq, box.over) for box in found if box] == [(0, False), (1, True), (2, False)]


def test_clear_empties_a_box_and_the_next_worker_can_use_it() -> None:
    boxes = BlackBoxes(1)
    boxes.entering(0)(OWNER, 1, 0, JOB, 0.0)
    boxes.clear(0)
    assert boxes.read(0) is None
    boxes.entering(0)(OWNER, 2, 0, JOB, 0.0)
    found = boxes.read(0)
    assert found is not None
    assert found.seq == 2


def test_what_a_dead_process_wrote_can_still_be_read() -> None:
    boxes = BlackBoxes(1)
    enter = boxes.entering(0)
    pid = os.fork()
    if pid == 0:
        enter(OWNER, 5, 1, JOB, 0.0)
        os._exit(0)
    os.waitpid(pid, 0)
    found = boxes.read(0)
    assert found is not None
    assert (found.seq, found.attempt) == (5, 1)


def test_a_reader_never_sees_a_mix_of_two_tasks() -> None:
    """Each task of the writer has the same number in all its fields."""
    boxes = BlackBoxes(1)
    pid = os.fork()
    if pid == 0:
        enter, leave = boxes.entering(0), boxes.leaving(0)
        n = 0
        while True:
            n = (n + 1) % 256
            enter(bytes([n]) * 16, n, n, bytes([n]) * 16, float(n))
            leave()
    seen = 0
    try:
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            found = boxes.read(0)
            if found is not None:
                seen += 1
                n = found.seq
                assert (found.attempt, found.start_s) == (n, n)
                assert found.owner == found.job == bytes([n]) * 16
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert seen > 0


@pytest.mark.slow
def test_enter_and_leave_take_less_than_a_microsecond() -> None:
    boxes = BlackBoxes(1)
    enter, leave = boxes.entering(0), boxes.leaving(0)
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(20_000):
            enter(OWNER, 1, 0, JOB, 0.0)
            leave()
        best = min(best, (time.perf_counter() - start) / 20_000)
    assert best < 1e-6


def test_a_label_names_the_function_and_whether_it_may_be_retried() -> None:
    boxes = BlackBoxes(2)
    assert boxes.label(1) == ("", False)
    label = boxes.labelling(1)
    label("räume", True)
    assert boxes.label(1) == ("räume", True)
    label("x" * 1000, False)
    assert boxes.label(1) == ("x" * (LABEL_BYTES - 2), False)
    assert boxes.label(0) == ("", False)
