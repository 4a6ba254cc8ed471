"""The owner's half of streams: which items count, how far the reader is, and when the generator may stop.

    worker --ITEM 0, 1, ...--> owner: accepts each index once, whichever attempt it comes from
           <--Consumed(n)----- the reader took n: the generator may be so many items ahead of that
           <--Consumed(-1)---- nobody reads any more: the generator is closed where it yields next

An attempt knows nothing of those before it. It begins with item 0 and is told with that how far the reader is, or it
would wait for one who waits for later items. A part of Tasks (core/tasks.py), whose tables these are.
"""

from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.records import LEASED, Creation, Entry, Spec, Task
from zmesh.wire.messages import ABANDONED, ERROR, INLINE, PENDING, STORED, Consumed


class Streams:
    """Streaming tasks and calls of one client; mixed into Tasks."""

    _effects: list[Effect]
    _drop: Callable[[Entry], None]
    _free: Callable[[Any], None]
    _inside: Callable[[Entry, list[bytes]], None]
    _note: Callable[[Task, list[Entry]], None]
    _set: Callable[[Entry, int, Any, Spec], None]
    _waited: list[Entry]
    resolve: Callable[[Task, int, Any], None]

    def __init__(self) -> None:
        self._taken: dict[int, int] = {}  # {seq of an unresolved stream with back-pressure: items its reader took}

    def item(self, task: Task, item: Any) -> None:
        """A running stream yielded: [index, status, value, references inside]. The task goes on."""
        index, status, value, inside = item
        assert task.outputs is not None
        if not index:
            self._begun(task)
        if index < len(task.outputs):  # replayed by a retry
            if status == STORED:
                self._free(value)
            return
        assert index == len(task.outputs), "the items of a stream arrive in order"
        output = Entry(task.seq, index)
        if inside:
            self._inside(output, inside)
        task.outputs.append(output)
        if not task.refs:
            output.refs = 0  # the generator is gone: nobody will take it
        self._set(output, status, value, task.spec)
        if task.waiter is not None:
            self._waited.append(task)

    def _begun(self, task: Task) -> None:
        """An attempt has yielded for the first time: tell it what those before it were told."""
        if is_abandoned(task):
            self._tell(task, ABANDONED)
        elif task.seq in self._taken:
            self._tell(task, self._taken[task.seq])

    def _tell(self, task: Task, count: int) -> None:
        if task.state == LEASED and task.thief is not None:
            self._effects.append(Send(task.thief.peer, Consumed(task.seq, count)))

    def _end(self, task: Task, count: int) -> None:
        """The generator has ended; of one that was closed nobody counts the items."""
        assert task.outputs is not None
        if count != len(task.outputs) and not is_abandoned(task):
            text = f"{task.spec.name} gave {len(task.outputs)} items, but {count} when it was retried"
            self.resolve(task, ERROR, ("StreamReplayError", text, {}))
        else:
            stored = [output for output in task.outputs if output.status == STORED and output.refs]
            if stored:
                self._note(task, stored)
            self.resolve(task, INLINE, None)

    def consumed(self, task: Task, count: int) -> None:
        """The reader took `count` items of a stream in all; the generator may run ahead of that again."""
        if task.status == PENDING and task.spec.options.get("backpressure"):
            self._taken[task.seq] = count
            self._tell(task, count)

    def abandon(self, task: Task, taken: int) -> None:
        """The reader of a stream is gone: free the items it did not take, and have the generator stop."""
        task.refs = 0
        assert task.outputs is not None
        for output in task.outputs[taken:]:
            self._drop(output)
        self._tell(task, ABANDONED)


def is_abandoned(task: Task) -> bool:
    """Whether nobody reads a stream any more. An actor's creation is no stream that anybody reads."""
    return not task.refs and task.spec.num_returns < 0 and type(task) is not Creation
