"""What Linux says about processes: who descends from whom, their memory, their context switches; and ending leftovers.

Reads /proc only; a process that ends while it is looked at counts as nothing.
Source: proc(5); prctl(2), PR_SET_CHILD_SUBREAPER.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import time
from collections.abc import Iterable

_PR_SET_CHILD_SUBREAPER = 36
_PROC = pathlib.Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def adopt_orphans() -> None:
    """Make orphaned descendants children of this process, so that daemons stay findable by parentage.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def descendants_of(ancestor: int) -> list[int]:
    """Return the pids of all living descendants, without the ancestor; zombies do not count."""
    children: dict[int, list[int]] = {}  # {parent: pids}
    for path in _PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = _after_name(path)[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(path.parent.name))
    found: list[int] = []
    waiting = [ancestor]
    while waiting:
        offspring = children.get(waiting.pop(), [])
        found += offspring
        waiting += offspring
    return found


def _after_name(path: pathlib.Path) -> list[str]:
    """Split a stat file behind the name, which may hold anything: state, parent pid, ..."""
    return path.read_text(errors="replace").rpartition(")")[2].split()


def memory_of(pid: int) -> dict[str, int]:
    """Return the bytes of smaps_rollup by name (Rss, Pss, Private_Dirty, Anonymous, ...); empty if it is gone."""
    told = {}
    with contextlib.suppress(OSError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
            name, _, value = line.partition(":")
            told[name] = int(value.split()[0]) * 1024
    return told


def total_pss(pids: Iterable[int]) -> int:
    """Return the memory of processes in bytes, where pages shared by n processes count 1/n for each."""
    return sum(memory_of(pid).get("Pss", 0) for pid in pids)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int:
    """Return the most resident memory this process had since `forget_peak`."""
    return _status_bytes("VmHWM")


def forget_peak() -> None:
    """Let the peak of resident memory start again from the present."""
    (_PROC / "self/clear_refs").write_text("5")


def _status_bytes(name: str) -> int:
    for line in (_PROC / "self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {name}")


def context_switches(pids: Iterable[int]) -> int:
    """Return the context switches so far of all threads that live, voluntary and not."""
    total = 0
    for pid in pids:
        for path in (_PROC / str(pid) / "task").glob("*/status"):
            with contextlib.suppress(OSError):
                lines = path.read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return total


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time so far of processes, user and system; the clock counts in ticks of 10 ms."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += sum(int(ticks) for ticks in _after_name(_PROC / str(pid) / "stat")[11:13])
    return total * _TICK_S


def busy_share(seconds: float) -> float:
    """Return which part of all cores is in use, 0 to 1, by sleeping for some seconds; stolen time counts as used."""
    before = _core_ticks()
    time.sleep(seconds)
    total, idle = (late - early for late, early in zip(_core_ticks(), before, strict=True))
    return 1.0 - idle / total if total else 0.0


def _core_ticks() -> tuple[int, int]:
    """Return (ticks so far, those of them in which cores had nothing to do)."""
    ticks = [int(word) for word in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]


def end_descendants(grace_s: float) -> int:
    """Wait for the descendants of this process to end, kill those that do not, and return how many were killed."""
    deadline = time.monotonic() + grace_s
    while (left := descendants_of(os.getpid())) and time.monotonic() < deadline:
        _reap()
        time.sleep(0.02)
    killed = len(left)
    while left:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        left = descendants_of(os.getpid())
    _reap()
    return killed


def _reap() -> None:
    """Collect adopted children that ended; only for a process with no child of its own to wait for."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
