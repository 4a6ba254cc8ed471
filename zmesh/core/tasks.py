"""The life of the tasks this process owns: from submission to exactly one accepted outcome.

    WAITING --inputs there--> QUEUED --sent--> LEASED --result, error, cancel--> RESOLVED
                                 ^------------- given back, retried ----'

A success of any attempt resolves an unresolved task; a failure counts only from the current attempt; a give-back is
no attempt. Which thief runs what is core/victim.py's business, who holds the results core/references.py's.
"""

from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.records import LEASED, QUEUED, RESOLVED, WAITING, Entry, Inputs, Spec, Task
from zmesh.core.streams import Streams, is_abandoned
from zmesh.core.timers import Timers
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, PeerID, node_peer
from zmesh.wire.messages import (
    CANCELLED,
    END,
    ERROR,
    FAILED,
    INLINE,
    MANY,
    PENDING,
    RETRYABLE,
    STORED,
    Cancel,
    Kill,
)

STARVED_MAX = 16  # a task whose inputs are lost so often before it starts fails: something is wrong with its hosts

Failure = tuple[str, str, dict[str, Any]]  # (class in zmesh.exceptions, text, attributes): an ERROR value


def death_text(name: str, how: str, attempts: int, pid: int, tail: str) -> str:
    """Return the text of a WorkerDiedError."""
    text = f"the worker (pid {pid}) that ran {name} {how}; the task was started {attempts} time(s)"
    if "SIGKILL" in how:
        text += ". A SIGKILL that nobody sent is often the kernel's out-of-memory killer: see dmesg"
    return f"{text}. Last of its stderr:\n{tail}" if tail else f"{text}. It wrote nothing to stderr."


class Tasks(Streams):
    """Tasks of one client.

    Args:
        push: queues a task whose inputs are there: (task, now, front).
        forget: a queued task was cancelled.
        drop: lets go of one reference to an entry.
        fetch: asks for the value of a borrowed entry.
        settled: an own entry got its value, from a task of that spec.
        free: frees the segment of a result nobody accepts.
        inside: notes the references inside a value that arrived.
        waited: collects resolved entries that somebody waits for.
        ended: a task that concerns an actor was resolved.
        note: results of a task are stored: called before its arguments are let go of.
        replace: gives an entry the value of another.
    """

    def __init__(
        self,
        effects: list[Effect],
        timers: Timers,
        *,
        push: Callable[[Task, float, bool], None],
        forget: Callable[[Task], None],
        drop: Callable[[Entry], None],
        fetch: Callable[[Entry], None],
        settled: Callable[[Entry, Spec], None],
        free: Callable[[Any], None],
        inside: Callable[[Entry, list[bytes]], None],
        waited: list[Entry],
        ended: Callable[[Task], None],
        note: Callable[[Task, list[Entry]], None],
        replace: Callable[[Entry, Entry], None],
    ) -> None:
        super().__init__()
        self._effects = effects
        self._timers = timers
        self._push = push
        self._forget = forget
        self._drop = drop
        self._fetch = fetch
        self._settled = settled
        self._free = free
        self._inside = inside
        self._waited = waited
        self._ended = ended
        self._note = note
        self._replace = replace
        # {id() of a pending entry: tasks that wait for it, and others to call}
        self._dependents: dict[int, list[Task | Callable[[float], None]]] = {}
        self.retried: dict[int, Task] = {}  # {seq: task} charged at least once and unresolved
        self.parents: dict[Any, list[Task]] = {}  # {parent task: its unresolved children}, in a worker
        self._oom_kills: dict[int, int] = {}  # {seq of one in `retried`: how often memory ran out while it ran}
        self.many: dict[int, Task] = {}  # {seq: unresolved task with other than one result}
        self.open = 0  # unresolved tasks

    # Submission.

    def submit(self, task: Task, now: float) -> None:
        """Take a new task; it is queued when none of its dependencies is pending."""
        self.open += 1
        spec = task.spec
        if spec.num_returns != 1:
            count = max(spec.num_returns, 0)
            task.outputs = [Entry(task.seq, index) for index in range(count)]
            self.many[task.seq] = task
        if task.parent is not None:
            self.parents.setdefault(task.parent, []).append(task)
        inputs = task.inputs
        if inputs is not None:
            for entry in inputs.deps:
                entry.refs += 1
            for entry in inputs.held:
                entry.refs += 1
            self._await_inputs(task, inputs)
            if task.state == RESOLVED or inputs.missing:
                return
        self._push(task, now, False)

    def _await_inputs(self, task: Task, inputs: Inputs) -> None:
        for entry in inputs.deps:
            if entry.status == PENDING:
                task.state = WAITING
                inputs.missing += 1
                self._dependents.setdefault(id(entry), []).append(task)
                self._fetch(entry)
        for entry in inputs.deps:
            if entry.status in (FAILED, ERROR):
                self._fail_dependent(task, entry)
                return

    def entry_resolved(self, entry: Entry, now: float) -> None:
        """An entry got its value or error: tasks that waited for it go on."""
        if not self._dependents:
            return
        for task in self._dependents.pop(id(entry), ()):
            if not isinstance(task, Task):
                task(now)
                continue
            if task.state != WAITING:
                continue  # cancelled, or failed by another of its inputs
            assert task.inputs is not None
            task.inputs.missing -= 1
            if entry.status in (FAILED, ERROR):
                self._fail_dependent(task, entry)
                self.announce(task, now)
            elif not task.inputs.missing:
                self._push(task, now, False)

    def _wait_no_more(self, task: Task, entry: Entry) -> None:
        """The task failed or was cancelled before this input of it had a value, which may never come."""
        waiting = self._dependents.get(id(entry), [])
        if task in waiting:
            waiting.remove(task)
        if not waiting:
            self._dependents.pop(id(entry), None)

    def when_resolved(self, entry: Entry, then: Callable[[float], None]) -> None:
        """Call `then` once a pending entry has its value or error."""
        self._dependents.setdefault(id(entry), []).append(then)

    def starved(self, task: Task, tickets: list[Entry], now: float) -> None:
        """A task whose lease is over could not have all its inputs, and was not started: it waits for them again.

        Args:
            tickets: one for each of these inputs; they resolve when they can be had, or with why they cannot.
        """
        inputs = task.inputs
        if task.timer:
            self._timers.cancel(task.timer)
            task.timer = 0
        failed = [ticket for ticket in tickets if ticket.status == ERROR]
        pending = [ticket for ticket in tickets if ticket.status == PENDING]
        if task.cancelled or inputs is None:
            self._cancelled(task)
        elif failed:
            self._fail_dependent(task, failed[0])
        elif inputs.starved >= STARVED_MAX:
            text = f"inputs of {task.spec.name} were lost {STARVED_MAX} times before it could start"
            self.resolve(task, ERROR, ("ObjectLostError", text, {}))
        else:
            inputs.starved += 1
            inputs.missing = len(pending)
            for ticket in pending:
                task.state = WAITING
                self._dependents.setdefault(id(ticket), []).append(task)
            if not pending:
                self._push(task, now, True)
            return
        self.announce(task, now)

    def announce(self, task: Task, now: float) -> None:
        """The task was resolved: those that waited for any of its results go on."""
        self.entry_resolved(task, now)
        for output in task.outputs or ():
            self.entry_resolved(output, now)

    def _fail_dependent(self, task: Task, entry: Entry) -> None:
        """A task whose input failed fails with the same error."""
        self.resolve(task, entry.status, entry.value)

    # Outcomes.

    def outcome(self, task: Task, result: Any, now: float) -> None:
        """Take the result that ended a lease of a task, or the late success of an earlier one."""
        attempt, status, value = result[1], result[2], result[3]
        if status in (INLINE, STORED):
            if len(result) > 4:
                self._inside(task, result[4])
            if status == STORED:
                self._note(task, [task])
            self.resolve(task, status, value)
        elif attempt != task.attempt and status not in (MANY, END):
            return  # a failure of an attempt that no longer counts
        elif status == MANY:
            self._many(task, value)
        elif status == END:
            self._end(task, value)
        elif task.cancelled or status == CANCELLED:
            self._cancelled(task)
        elif status == RETRYABLE and self._may_retry(task):
            self._retry(task, now)
            return
        else:
            self.resolve(task, FAILED if status == RETRYABLE else status, value)
        self.announce(task, now)

    def _many(self, task: Task, values: list[Any]) -> None:
        assert task.outputs is not None
        stored = [output for output, one in zip(task.outputs, values, strict=True) if one[0] == STORED]
        if stored:
            self._note(task, stored)
        for output, (status, value, inside) in zip(task.outputs, values, strict=True):
            if inside:
                self._inside(output, inside)
            self._set(output, status, value, task.spec)
        self.resolve(task, INLINE, None)

    def _set(self, entry: Entry, status: int, value: Any, maker: Spec) -> None:
        entry.status = status
        entry.value = value
        if entry.waiter is not None:
            self._waited.append(entry)
        self._settled(entry, maker)

    def resolve(self, task: Task, status: int, value: Any) -> None:
        """Give the task its one outcome; an error also goes to each of its outputs that has none."""
        assert task.state != RESOLVED, "a task is resolved once"
        task.state = RESOLVED
        self.open -= 1
        task.status = status
        task.value = value
        task.args = None
        if task.attempt:
            self.retried.pop(task.seq, None)
            self._oom_kills.pop(task.seq, None)
        if task.timer:
            self._timers.cancel(task.timer)
        if task.parent is not None:
            children = self.parents[task.parent]
            children.remove(task)
            if not children:
                del self.parents[task.parent]
        if task.outputs is not None:
            self.many.pop(task.seq, None)
            self.stream_over(task)
            if status in (FAILED, ERROR):
                self._fail_outputs(task, status, value)
        if task.waiter is not None:
            self._waited.append(task)
        if task.share is not None or status == STORED:
            self._settled(task, task.spec)
        inputs = task.inputs
        if inputs is not None:
            task.inputs = None
            for entry in inputs.deps:
                if entry.status == PENDING and inputs.missing:
                    self._wait_no_more(task, entry)
                self._drop(entry)
            for entry in inputs.held:
                self._drop(entry)
        if type(task) is not Task:
            self._ended(task)

    def _fail_outputs(self, task: Task, status: int, value: Any) -> None:
        assert task.outputs is not None
        if task.spec.num_returns < 0:
            task.outputs.append(Entry(task.seq, len(task.outputs), refs=1 if task.refs else 0))
        for output in task.outputs:
            if output.status == PENDING:
                self._set(output, status, value, task.spec)

    # Retries, deaths, time limits.

    def charged(self, task: Task) -> int:
        """Return how many attempts of an unresolved task count against max_retries, besides the first."""
        return task.attempt - self._oom_kills.get(task.seq, 0)  # what memory cost has a count of its own

    def _may_retry(self, task: Task) -> bool:
        if is_abandoned(task):
            return False
        return task.spec.max_retries < 0 or self.charged(task) < task.spec.max_retries

    def _may_retry_for_memory(self, task: Task) -> bool:
        kills = self._oom_kills.get(task.seq, 0)
        if is_abandoned(task) or not task.spec.max_retries or 0 <= task.spec.oom_retries <= kills:
            return False
        self._oom_kills[task.seq] = kills + 1
        return True

    def _retry(self, task: Task, now: float) -> None:
        if task.timer:
            self._timers.cancel(task.timer)
            task.timer = 0
        task.attempt += 1
        self._seen.pop(task.seq, None)
        self.retried[task.seq] = task
        self._push(task, now, True)

    def worker_died(
        self,
        task: Task,
        pid: int,
        how: tuple[int | None, str | None, str],
        reason: str,
        tail: str,
        now: float,
        *,
        detail: str = "",
    ) -> None:
        """The worker died while it executed this task: charge it, and retry or fail it.

        Args:
            how: (exit code, signal name, text).
            reason: why the node killed it, "" if it did not.
            detail: the same at length.
        """
        if task.cancelled:
            self._cancelled(task)
        elif reason == "group":
            text = f"{task.spec.name} was ended, as its placement group was removed"
            self.resolve(task, ERROR, ("TaskPlacementGroupRemovedError", text, {}))
        elif self._may_retry_for_memory(task) if reason == "oom" else self._may_retry(task):
            self._retry(task, now)
            return
        else:
            exit_code, signal_name, text = how
            attempts = task.attempt + 1
            name = "WorkerDiedError"
            if reason == "timeout":
                name = "TaskTimeoutError"
                text = f"was killed, as the task ran longer than timeout={task.spec.timeout_s:g} s"
            elif reason == "oom":
                name = "OutOfMemoryError"
                text = detail or "was killed by the kernel for want of memory"
            attributes = {
                "exit_code": exit_code,
                "signal_name": signal_name,
                "stderr_tail": tail,
                "attempts": attempts,
                "pid": pid,
            }
            message = death_text(task.spec.name, text, attempts, pid, tail)
            self.resolve(task, ERROR, (name, message, attributes))
        self.announce(task, now)

    def node_died(self, task: Task, node: NodeID, why: str, now: float) -> None:
        """The node whose worker may have been running this task is gone: charge it, and retry or fail it."""
        if task.cancelled:
            self._cancelled(task)
        elif self._may_retry(task):
            self._retry(task, now)
            return
        else:
            text = f"the node {node.hex()} that ran {task.spec.name} is gone ({why}); it was started {task.attempt + 1}"
            self.resolve(task, ERROR, ("NodeDiedError", f"{text} time(s)", {"attempts": task.attempt + 1}))
        self.announce(task, now)

    def interrupted(self, task: Task, failure: Any, now: float, *, final: bool) -> None:
        """The actor went while it may have been running this call: charge it, and retry it or fail it with `failure`.

        Args:
            final: the actor will not come back, so there is nothing to retry.
        """
        if task.cancelled:
            self._cancelled(task)
        elif not final and self._may_retry(task):
            self._retry(task, now)
            return
        else:
            self.resolve(task, *failure)
        self.announce(task, now)

    def _kill(self, worker: PeerID, seq: int, attempt: int, reason: str) -> None:
        """Ask the worker's node to kill it if it still runs that attempt."""
        self._effects.append(Send(node_peer(worker[:NODE_ID_BYTES]), Kill(worker, seq, attempt, reason)))

    def limit_time(self, task: Task, now: float) -> None:
        """A task with timeout= was sent, alone: it starts now."""
        timeout_s = task.spec.timeout_s
        assert timeout_s is not None
        attempt = task.attempt

        def expire(then: float) -> None:
            task.timer = 0
            if task.state == LEASED and task.attempt == attempt and task.thief is not None:
                self._kill(task.thief.peer, task.seq, attempt, "timeout")
                # The worker may not have entered the task yet when the node looks: ask again.
                task.timer = self._timers.set(then + max(0.05, timeout_s / 10), expire)

        task.timer = self._timers.set(now + timeout_s, expire)

    # Cancellation.

    def cancel(self, task: Task, now: float, *, force: bool, recursive: bool) -> None:
        """Ask that a task end without a result; one that is resolved is left alone."""
        if task.state == RESOLVED:
            return
        if task.state == LEASED:
            assert task.thief is not None
            task.cancelled = True
            self._effects.append(Send(task.thief.peer, Cancel(task.seq, task.attempt, recursive)))
            if force:
                self._kill(task.thief.peer, task.seq, task.attempt, "cancel")
            return
        if task.state == QUEUED:
            self._forget(task)
        self._cancelled(task)
        self.announce(task, now)

    def _cancelled(self, task: Task) -> None:
        self.resolve(task, ERROR, ("TaskCancelledError", f"{task.spec.name} was cancelled", {}))

    def cancel_children(self, parent: Any, now: float) -> None:
        """Cancel all that the task `parent` submitted from this process."""
        for task in list(self.parents.get(parent, ())):
            self.cancel(task, now, force=False, recursive=True)

    # Looking.

    def maker_of(self, entry: Entry) -> Task | None:
        """Return the unresolved task of this process that makes the entry, if there is one."""
        if isinstance(entry, Task):
            return entry
        task = self.many.get(entry.seq)
        outputs = task.outputs if task is not None else None
        return task if outputs and any(output is entry for output in outputs) else None

    def waiting(self) -> list[Task]:
        """Return the tasks that wait for inputs."""
        tasks = [task for waiting in self._dependents.values() for task in waiting if isinstance(task, Task)]
        return list({task.seq: task for task in tasks if task.state == WAITING}.values())

    @staticmethod
    def waits_for(task: Task) -> str:
        """Say why the task has no result yet, in words for the user."""
        spec: Spec = task.spec
        if task.state == WAITING:
            assert task.inputs is not None
            return f"{spec.name} waits for {task.inputs.missing} of its arguments"
        if task.state == QUEUED:
            return f"{spec.name} is queued"
        if task.state == LEASED:
            assert task.thief is not None
            return f"{spec.name} was sent to worker {task.thief.peer.hex()[-8:]}, attempt {task.attempt + 1}"
        return f"{spec.name} is done"
