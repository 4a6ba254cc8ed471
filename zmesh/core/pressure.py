"""What a node does when memory runs short: it takes no more work, then kills a task before the kernel kills anything.

The kernel's killer may take the node, or the user's program, and says nothing to anybody. So above one share of the
memory no worker is started and no work of others is taken; above a second one task is killed at a time: first the
newest that may be retried of those that use more than they asked for, else the newest that may be retried of the
program that uses most. The newest has lost least. Memory is what only that process has (anonymous pages): arrays in the
store are nobody's own.

Source: Ray's memory monitor kills retriable tasks of the largest group first, the newest of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zmesh.wire.ids import PeerID
from zmesh.wire.messages import UNIT

STEADY_AT = 0.8  # of the memory
KILL_AT = 0.92
KILL_PAUSE_S = 1.0  # what the dead had must be seen to be free before another is killed
ROWS_MAX = 10  # in the table of an error


@dataclass(slots=True)
class Usage:
    """One worker that runs a task. Bytes; `asked` is its memory= option, 0 without one."""

    worker: PeerID
    pid: int
    job: PeerID
    function: str
    nbytes: int
    asked: int
    start_s: float
    retryable: bool


class Pressure:
    """The memory of one node.

    Args:
        steady_at, kill_at: shares of the memory from which on it does more and more.

    Attributes:
        used: share of the memory in use, as of the last sample.
    """

    def __init__(self, steady_at: float = STEADY_AT, kill_at: float = KILL_AT) -> None:
        self.steady_at = steady_at
        self.kill_at = kill_at
        self.used = 0.0
        self._killed_s = -KILL_PAUSE_S

    @property
    def short(self) -> str:
        """Why the node takes no more work, or ""."""
        return f"memory is short: {self.used:.0%} of it is in use" if self.used >= self.steady_at else ""

    def sample(self, used: float) -> bool:
        """Take in how much is in use; returns whether `short` is another than before."""
        before, self.used = self.short, used
        return bool(before) != bool(self.short)

    def victim(
        self,
        workers: list[Any],
        executing: Callable[[int], Any],
        told: Callable[[int, int], tuple[int, str, bool]],
        now: float,
    ) -> PeerID | None:
        """Return the worker to kill now, if one has to go; it is marked with the reason.

        Args:
            workers: of the matchmaking.
            executing: what runs in a slot.
            told: (bytes only it has, function, whether that may be retried) of (pid, slot).
        """
        if self.used < self.kill_at or now - self._killed_s < KILL_PAUSE_S:
            return None
        found: dict[PeerID, Any] = {}
        usages = []
        for worker in workers:
            box = executing(worker.slot)
            if box is not None and not worker.reason and worker.booking is not None:
                nbytes, function, retryable = told(worker.pid, worker.slot)
                asked = worker.booking.shape.get("memory", 0) // UNIT
                usages.append(Usage(worker.peer, worker.pid, box.job, function, nbytes, asked, box.start_s, retryable))
                found[worker.peer] = worker
        if not usages:
            return None
        self._killed_s = now
        chosen = self.choose(usages)
        worker = found[chosen.worker]
        worker.reason, worker.detail = "oom", self.describe(chosen, usages)
        return chosen.worker

    @staticmethod
    def choose(usages: list[Usage]) -> Usage:
        """Return whose task is to be killed. One that may not be retried goes last."""
        by_job: dict[PeerID, int] = {}
        for usage in usages:
            by_job[usage.job] = by_job.get(usage.job, 0) + usage.nbytes
        may_go = [usage for usage in usages if usage.retryable] or usages
        over = [usage for usage in may_go if 0 < usage.asked < usage.nbytes]
        largest = max((usage.job for usage in may_go), key=lambda job: by_job[job])
        return max(over or [usage for usage in may_go if usage.job == largest], key=lambda usage: usage.start_s)

    def describe(self, victim: Usage, usages: list[Usage]) -> str:
        """Return the text of an OutOfMemoryError: who used what when the victim was chosen."""
        lines = [
            f"was killed by its node, as {self.used:.0%} of the memory were in use (its limit is {self.kill_at:.0%}):",
            f"{'pid':>10} {'memory, MB':>12} {'memory=, MB':>12}  function",
        ]
        rows = sorted(usages, key=lambda usage: -usage.nbytes)
        for usage in [victim, *(row for row in rows if row is not victim)][:ROWS_MAX]:
            asked = f"{usage.asked / 1e6:,.0f}" if usage.asked else "-"
            mark = "  <- this one" if usage is victim else ""
            lines.append(f"{usage.pid:>10} {usage.nbytes / 1e6:>12,.0f} {asked:>12}  {usage.function}{mark}")
        if len(usages) > ROWS_MAX:
            lines.append(f"and {len(usages) - ROWS_MAX} others")
        return "\n".join([*lines, "Ask for memory= so that fewer run at once, or use less"])
