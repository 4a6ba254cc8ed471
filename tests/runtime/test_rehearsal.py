"""runtime/rehearsal.py: that the play is a worker's life to its end, and that it leaves nothing in its process."""

import gc
import os
import pathlib
import signal
import statistics
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import zmesh
from zmesh.runtime import rehearsal, session
from zmesh.runtime.rundir import RunDir
from zmesh.wire.codec import decode
from zmesh.wire.messages import END, INLINE, ITEM, Done

IDLE_ACTOR_BYTES = 5_000_000  # what one may have of its own
ACTORS = 16


@pytest.fixture
def run_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDir]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    made = RunDir.create("play")
    yield made
    made.remove()


def test_the_task_and_the_calls_of_the_play_succeed(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    send = rehearsal._Prop.send

    def overheard(prop: rehearsal._Prop, frame: bytes, flags: int) -> None:
        said.append(decode(frame))
        send(prop, frame, flags)

    monkeypatch.setattr(rehearsal._Prop, "send", overheard)
    next(rehearsal.rehearse(run_dir))
    ends = [(row[0], row[2]) for message in said if type(message) is Done for row in message.results]
    assert ends == [(1, INLINE), (2, ITEM), (3, INLINE), (4, INLINE), (2, END)]


def test_a_play_leaves_nothing_in_its_process(run_dir: RunDir) -> None:
    def state() -> tuple[Any, ...]:
        gc.collect()
        threads = [thread.name for thread in threading.enumerate()]
        handlers = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGINT)]
        streams = [id(sys.stdout), id(sys.stderr)]
        descriptors = len(os.listdir("/proc/self/fd"))
        return dict(os.environ), os.getcwd(), list(sys.path), threads, handlers, streams, descriptors

    before = state()
    for _ in rehearsal.rehearse(run_dir):
        assert session.get_current() is None
    assert state() == before


def own_bytes(pid: int) -> int:
    """Return what only this process has in memory."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":", 1) for line in lines)}
    return sizes["Private_Dirty"] + sizes["Private_Clean"]


def test_an_idle_actor_has_less_than_five_megabytes_of_its_own() -> None:
    @zmesh.remote(num_cpus=0)
    class Idle:
        def pid(self) -> int:
            return os.getpid()

    with zmesh.init(num_cpus=1, log_to_driver=False):
        actors = [Idle.remote() for _ in range(ACTORS)]
        pids = zmesh.get([actor.pid.remote() for actor in actors])
        assert statistics.median(map(own_bytes, pids)) < IDLE_ACTOR_BYTES
