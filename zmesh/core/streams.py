"""The owner's half of streams: which items count, how far the reader is, and when the generator may stop.

    worker --ITEM 0, 1, ...--> owner: accepts each index once, whichever attempt it comes from
           <--Consumed(n)----- the reader took n: the generator may be so many items ahead of that
           <--Consumed(-1)---- nobody reads any more: the generator is closed where it yields next

An attempt knows nothing of those before it. It begins with item 0 and is told with that how far the reader is, or it
would wait for one who waits for later items. An item whose bytes were lost with a node is had again from the attempt
after that. A part of Tasks (core/tasks.py), whose tables these are.
"""

from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.records import LEASED, Creation, Entry, Spec, Task
from zmesh.core.timers import Timers
from zmesh.wire.ids import NODE_ID_BYTES, NodeID
from zmesh.wire.messages import ABANDONED, ERROR, INLINE, PENDING, STORED, Consumed

REPLAY_WAIT_S = 10.0  # for the news that a node is gone whose bytes cannot be had: longer than its suspicion lasts

Over = Callable[[bool, float], None]  # called with whether an item has another place now, and the time


class Streams:
    """Streaming tasks and calls of one client; mixed into Tasks."""

    _effects: list[Effect]
    _drop: Callable[[Entry], None]
    _free: Callable[[Any], None]
    _inside: Callable[[Entry, list[bytes]], None]
    _note: Callable[[Task, list[Entry]], None]
    _replace: Callable[[Entry, Entry], None]
    _set: Callable[[Entry, int, Any, Spec], None]
    _timers: Timers
    _waited: list[Entry]
    many: dict[int, Task]
    resolve: Callable[[Task, int, Any], None]

    def __init__(self) -> None:
        self._taken: dict[int, int] = {}  # {seq of an unresolved stream with back-pressure: items its reader took}
        self._seen: dict[int, int] = {}  # {seq of an unresolved stream that was retried: items of this attempt}
        # {seq of an unresolved stream: {member that is gone, with the bytes of some items: True}}
        self._gone: dict[int, dict[NodeID, bool]] = {}
        self._missed: dict[tuple[int, int], list[Over]] = {}  # {(seq, index) of a lost item: who waits for it}

    def item(self, task: Task, item: Any) -> None:
        """A running stream yielded: [index, status, value, references inside]. The task goes on."""
        index, status, value, inside = item
        assert task.outputs is not None
        if not index:
            self._begun(task)
        if task.attempt:
            self._seen[task.seq] = index + 1
        if index < len(task.outputs):
            self._replayed(task, item)
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

    def _replayed(self, task: Task, item: Any) -> None:
        """An item comes once more, by a retry: it is of use if the bytes of the first went with a node."""
        index, status, value, inside = item
        assert task.outputs is not None
        output = task.outputs[index]
        if _node_of(output) in self._gone.get(task.seq, ()):
            made = Entry(task.seq, index, status, value)
            if inside:
                self._inside(made, inside)
            self._replace(output, made)
        elif status == STORED:
            self._free(value)
        self._tell_missed(task.seq, index, made=True)

    def _tell_missed(self, seq: int, index: int, *, made: bool) -> None:
        for over in self._missed.pop((seq, index), ()):
            self._timers.set(0.0, lambda now, over=over: over(made, now))  # type: ignore[misc]  # `over` is bound

    def await_item(self, item: Entry, place: Any, now: float, over: Over) -> bool:
        """Wait until an item whose bytes cannot be had is yielded again; False, and nothing else, if it will not be."""
        task = self.many.get(item.seq)
        if task is None or task.spec.num_returns >= 0:
            return False
        if task.state == LEASED and not (task.attempt and self._seen.get(item.seq, 0) <= item.index):
            assert task.thief is not None
            node, attempt = place[2][:NODE_ID_BYTES], task.attempt
            if task.thief.peer and task.thief.peer[:NODE_ID_BYTES] != node:
                return False

            def expire(then: float) -> None:
                del then
                if task.state == LEASED and task.attempt == attempt:
                    self._tell_missed(item.seq, item.index, made=False)

            self._timers.set(now + REPLAY_WAIT_S, expire)
        self._missed.setdefault((item.seq, item.index), []).append(over)
        return True

    def stream_over(self, task: Task) -> None:
        """A stream is resolved: what it has not yielded again it never will."""
        self._taken.pop(task.seq, None)
        self._seen.pop(task.seq, None)
        self._gone.pop(task.seq, None)
        for seq, index in [key for key in self._missed if key[0] == task.seq]:
            self._tell_missed(seq, index, made=False)

    def node_gone(self, node: NodeID) -> None:
        """A member is gone, with the bytes that lay there. To be told before its tasks are retried."""
        for task in self.many.values():
            if task.spec.num_returns < 0 and any(_node_of(output) == node for output in task.outputs or ()):
                self._gone.setdefault(task.seq, {})[node] = True

    def _begun(self, task: Task) -> None:
        """An attempt has yielded for the first time: tell it what those before it were told."""
        if is_abandoned(task):
            self._tell(task, ABANDONED)
        elif task.seq in self._taken:
            self._tell(task, self._taken[task.seq])

    def _tell(self, task: Task, count: int) -> None:
        # An actor has no peer between its death and the news of it.
        if task.state == LEASED and task.thief is not None and task.thief.peer:
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


def _node_of(output: Entry) -> NodeID | None:
    """Return the node on which the bytes of an item lie, None if it has none."""
    node: NodeID | None = output.value[2][:NODE_ID_BYTES] if output.status == STORED and output.value else None
    return node


def is_abandoned(task: Task) -> bool:
    """Whether nobody reads a stream any more. An actor's creation is no stream that anybody reads."""
    return not task.refs and task.spec.num_returns < 0 and type(task) is not Creation
