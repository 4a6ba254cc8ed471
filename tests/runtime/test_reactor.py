"""The three rules of runtime/reactor.py, each against what breaks it: other threads, signals, garbage collections."""

import gc
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import zmesh
from zmesh import api


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    zmesh.init(num_cpus=2)
    yield api._session
    zmesh.shutdown()


@zmesh.remote
def same(value: int) -> int:
    return value


def test_a_thread_that_swallows_an_edge_wakes_the_one_that_slept_on_it(mesh: Any) -> None:
    """Others enter the reactor all the time, at no moment of the sleeper's choosing."""
    reactor = mesh.reactor
    stop = threading.Event()

    def meddle() -> None:
        while not stop.is_set():
            with reactor.lock:
                reactor.holder = threading.get_ident()
                reactor.pump(time.monotonic())
                reactor.holder = 0
            time.sleep(0.00005)

    meddlers = [threading.Thread(target=meddle, daemon=True) for _ in range(2)]
    for thread in meddlers:
        thread.start()
    try:
        for i in range(1500):
            assert zmesh.get(same.remote(i), timeout=5) == i
    finally:
        stop.set()
        for thread in meddlers:
            thread.join()


def test_what_another_thread_took_from_the_socket_is_seen_before_one_sleeps(mesh: Any) -> None:
    reactor = mesh.reactor
    ref = same.remote(1)
    with reactor.lock:
        reactor.holder = threading.get_ident()
        deadline = time.monotonic() + 5
        while ref._entry.status == 0 and time.monotonic() < deadline:
            reactor.pump(time.monotonic())
        reactor.holder = 0
    assert zmesh.get(ref, timeout=0) == 1


def test_many_threads_wait_at_once_and_each_gets_its_own(mesh: Any) -> None:
    wrong: list[Any] = []

    def loop(base: int) -> None:
        for i in range(200):
            if zmesh.get(same.remote(base + i), timeout=20) != base + i:
                wrong.append(base + i)  # noqa: PERF401  # each get must be awaited on its own

    threads = [threading.Thread(target=loop, args=(1000 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_a_leader_that_times_out_hands_the_lead_to_a_follower(mesh: Any) -> None:
    @zmesh.remote
    def nap(seconds: float) -> str:
        import time

        time.sleep(seconds)
        return "awake"

    slow, slower = nap.remote(0.4), nap.remote(0.5)
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append(_timed_out(slow)))
    second = threading.Thread(target=lambda: found.append(zmesh.get(slower, timeout=10)))
    first.start()
    second.start()
    first.join(10)
    second.join(10)
    assert sorted(map(str, found)) == ["True", "awake"]


def test_the_background_thread_looks_again_when_it_was_asked_to(mesh: Any) -> None:
    """A task that had just begun at the first look may be a long one, and nothing comes that wakes anybody."""
    looks: list[float] = []

    def look(now: float) -> float | None:
        looks.append(now)
        return now + 0.01 if len(looks) < 5 else None

    before, mesh.reactor.look = mesh.reactor.look, look
    try:
        mesh.reactor.nudge()
        deadline = time.monotonic() + 30
        while len(looks) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        mesh.reactor.look = before
    assert len(looks) >= 5


def _timed_out(ref: Any) -> bool:
    try:
        zmesh.get(ref, timeout=0.1)
    except zmesh.exceptions.GetTimeoutError:
        return True
    return False


def test_a_watched_descriptor_may_have_the_number_of_a_socket_that_was_closed(mesh: Any) -> None:
    reactor = mesh.reactor
    numbers = reactor.sockets.descriptors
    watched, end = os.pipe()
    os.write(end, b"x")
    try:
        with reactor.lock:
            reactor.sockets.descriptors = lambda: [*numbers(), watched]  # as if it were a socket's
            reactor.sockets.changed = True
        reactor.watch(-1)
        with reactor.lock:
            reactor.sockets.descriptors = numbers  # as if the socket had been closed
            reactor.sockets.changed = True
        reactor.watch(watched)
        with reactor.lock:
            reactor.sockets.changed = True
        deadline = time.monotonic() + 10
        while not reactor.stirred:
            assert zmesh.get(same.remote(1), timeout=5) == 1
            assert time.monotonic() < deadline
    finally:
        reactor.watch(-1)
        os.close(watched)
        os.close(end)


def test_finalizers_inside_the_lock_never_wait_for_it(mesh: Any) -> None:
    """A collection at nearly every allocation, with refs and views in cycles: a lock in a finalizer would deadlock."""

    class Knot:
        def __init__(self, *held: Any) -> None:
            self.held = held
            self.me = self

    gc_was = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        for i in range(300):
            ref = zmesh.put(np.full(20_000, i))
            Knot(ref, zmesh.get(ref), same.remote(i))
            assert zmesh.get(same.remote(i), timeout=10) == i
    finally:
        gc.set_threshold(*gc_was)
    gc.collect()
    deadline = time.monotonic() + 5
    mesh.nudge()
    while mesh.reactor.unpinned or mesh.reactor.dropped:
        assert time.monotonic() < deadline
        time.sleep(0.005)
        mesh.nudge()


INTERRUPTED = """
import signal, threading, time, os
import zmesh
zmesh.init(num_cpus=2)

@zmesh.remote
def same(value):
    return value

main = threading.main_thread().ident
going = True

def annoy():
    while going:
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.0007)

thread = threading.Thread(target=annoy)
interrupts = good = 0
try:
    thread.start()
except KeyboardInterrupt:
    pass
i = 0
begun = time.monotonic()
while interrupts < 300 and time.monotonic() - begun < 20:
    try:
        i += 1
        value = zmesh.get(same.remote(i))
        assert value == i, (value, i)
        good += 1
    except KeyboardInterrupt:
        interrupts += 1
    except zmesh.exceptions.TaskCancelledError:
        pass
while True:
    try:
        going = False
        thread.join()
        break
    except KeyboardInterrupt:
        pass
assert zmesh.get([same.remote(i) for i in range(1000)]) == list(range(1000))
print(interrupts, "interrupts,", good, "good")
"""


def test_interrupts_at_any_moment_glue_no_messages_together(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) >= 100, done.stdout
