"""The part of a client's role that concerns lost objects, and lost counts. Wiring only.

A base of ClientCore (core/client.py), which makes what is used here.
"""

from typing import Any, ClassVar

from zmesh.core.counting_inputs import CountingInputs, Input
from zmesh.core.effects import Effect, Recycle
from zmesh.core.lineage import Lineage
from zmesh.core.records import Inputs, Spec, Task
from zmesh.core.references import References
from zmesh.core.tasks import Tasks
from zmesh.core.timers import Timers
from zmesh.core.victim import Victim
from zmesh.wire.ids import PeerID
from zmesh.wire.lineage_messages import Forget, Guarded, Missing
from zmesh.wire.messages import INLINE, Trim


class LineageInputs(CountingInputs):
    """What a client hears of objects that are lost, or shall not be."""

    effects: list[Effect]
    lineage: Lineage
    node: PeerID
    references: References
    tasks: Tasks
    timers: Timers
    victim: Victim
    _seq: int

    def _new_lineage(self) -> Lineage:
        lineage = Lineage(
            self.effects, self.timers, references=self.references, tasks=self.tasks, home=lambda: self.node,
            run=self._run_again, needed=lambda: len(self.victim.totals) > 1,
        )  # fmt: skip
        self.references.freed, self.references.remake = lineage.freed, lineage.remake
        self._start_counting()
        return lineage

    def _run_again(self, spec: Spec, args: Any, inputs: Inputs | None, depth: int, attempt: int, now: float) -> Task:
        """Run a task once more, as a task of its own, for results that were lost."""
        self._seq += 1
        task = Task(self._seq, spec, args, depth)
        task.inputs, task.attempt = inputs, attempt
        self.tasks.submit(task, now)
        return task

    def _trim(self, peer: PeerID, message: Trim, now: float) -> None:
        del peer, message, now
        self.lineage.make_room()
        self.effects.append(Recycle([]))

    _inputs: ClassVar[dict[type[Any], Input]] = CountingInputs._inputs | {
        Missing: lambda self, peer, message, now: self.lineage.missing(message.objects, now),
        Forget: lambda self, peer, message, now: self.lineage.forget(message.objects),
        Trim: _trim,
        Guarded: lambda self, peer, message, now: self.references.answered(
            message.request, INLINE, (message.copies, message.why)
        ),
    }
