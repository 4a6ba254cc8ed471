"""The black box of each worker: memory shared with the node that names the task it executes right now.

Written before user code is entered and cleared after it. After a death the node reads what was executing; before a
kill it makes sure that it still is. One mapping for all workers, made by the node before the forkserver is forked.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass

from zmesh.wire.ids import PeerID

BOX_BYTES = 64
LABEL_BYTES = 128  # of the function, written only when that is another
_BOX = struct.Struct("=IIQ16s16sd")  # generation, attempt, seq, owner, job, start time
_GENERATION = struct.Struct("=I")
_READ_TRIES = 100
# The lowest bits of the generation; neither of them while the worker writes.
_EXECUTING = 1
_OVER = 2
_STATE = 3


@dataclass(slots=True)
class Box:
    """What a worker executes: attempt `attempt` of task `seq` of `owner`, for `job`, since `start_s` (monotonic)."""

    owner: PeerID
    seq: int
    attempt: int
    job: PeerID
    start_s: float
    over: bool  # it has left user code; the last task stays readable


class BlackBoxes:
    """The boxes of one node's workers."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._memory = mmap.mmap(-1, (BOX_BYTES + LABEL_BYTES) * slots)

    def entering(self, slot: int) -> Callable[[PeerID, int, int, PeerID, float], None]:
        """Return the worker's function to call before user code: (owner, seq, attempt, job, start time).

        It takes a new generation without a state, writes, and sets the state: a reader that sees the same generation
        with a state before and after has seen one task. x86 and ARM alike, as a syscall lies between a write here and
        the death that matters.
        """
        memory, at = self._memory, slot * BOX_BYTES
        pack, mark = _BOX.pack_into, _GENERATION.pack_into
        generation = _GENERATION.unpack_from(memory, at)[0] & ~_STATE

        def enter(owner: PeerID, seq: int, attempt: int, job: PeerID, start_s: float) -> None:
            nonlocal generation
            generation = (generation + 4) & 0xFFFFFFFC
            pack(memory, at, generation, attempt, seq, owner, job, start_s)
            mark(memory, at, generation | _EXECUTING)

        return enter

    def leaving(self, slot: int) -> Callable[[], None]:
        """Return the worker's function to call after user code."""
        memory, at = self._memory, slot * BOX_BYTES

        def leave() -> None:
            memory[at] = memory[at] & ~_STATE | _OVER

        return leave

    def labelling(self, slot: int) -> Callable[[str, bool], None]:
        """Return the worker's function that says which function it enters next: (name, whether it may be retried)."""
        memory, at = self._memory, self._label_of(slot)

        def label(name: str, retryable: bool) -> None:
            text = name.encode(errors="replace")[: LABEL_BYTES - 2]
            memory[at : at + LABEL_BYTES] = bytes([retryable, len(text)]) + text.ljust(LABEL_BYTES - 2, b"\0")

        return label

    def _label_of(self, slot: int) -> int:
        return BOX_BYTES * self.slots + LABEL_BYTES * slot

    def read(self, slot: int) -> Box | None:
        """Return what the worker in this slot executes or executed last. Node only; any moment.

        None before its first task, and if it died, or always was, just about to enter one.
        """
        at = slot * BOX_BYTES
        for _ in range(_READ_TRIES):
            generation, attempt, seq, owner, job, start_s = _BOX.unpack_from(self._memory, at)
            state = generation & _STATE
            if state and _GENERATION.unpack_from(self._memory, at)[0] == generation:
                return Box(owner, seq, attempt, job, start_s, state == _OVER)
        return None

    def label(self, slot: int) -> tuple[str, bool]:
        """Return (name, whether it may be retried) of the function the worker runs or ran last. Node only."""
        at = self._label_of(slot)
        retryable, length = self._memory[at], self._memory[at + 1]
        return self._memory[at + 2 : at + 2 + length].decode(errors="replace"), bool(retryable)

    def clear(self, slot: int) -> None:
        """Forget what a dead worker left. Node only."""
        at = slot * BOX_BYTES
        self._memory[at : at + BOX_BYTES] = bytes(BOX_BYTES)
