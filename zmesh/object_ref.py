"""Handles of results: ObjectRef for one object, ObjectRefGenerator for a stream of them."""

from collections.abc import AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

    from zmesh.runtime.session import Session

T = TypeVar("T")


class ActorExit(BaseException):
    """Raised by zmesh.actor.exit_actor(): the actor ends. User code lets it pass."""


class ObjectRef(Generic[T]):
    """A handle of an object that is there or will be; `zmesh.get` turns it into the value.

    Hashable; equal refs name the same object. It may be passed to tasks: as a top-level argument the task gets the
    value, inside a list or object it gets the ref. It can only be pickled inside zmesh calls. Any thread.
    """

    __slots__ = ("__weakref__", "_entry", "_session")

    def __init__(self, entry: Any, session: "Session") -> None:
        # One reference of the entry is ours already: the maker counted it.
        self._entry = entry
        self._session = session

    def __del__(self) -> None:
        # May run in any thread, inside a garbage collection, inside our own lock: append, and nothing that waits.
        entry = self._entry
        self._session.dropped.append(entry)
        if entry.share is not None or type(entry.value) is tuple:
            self._session.nudge()

    def binary(self) -> bytes:
        """Return the object's ID, 28 bytes."""
        return self._session.object_id(self._entry)

    def hex(self) -> str:
        """Return the object's ID as 56 hexadecimal digits."""
        return self.binary().hex()

    def task_id(self) -> str:
        """Return the ID of the task that makes the object, hexadecimal."""
        return self.binary()[:24].hex()

    def job_id(self) -> str:
        """Return the ID of the program that owns the object, hexadecimal."""
        return self.binary()[:16].hex()

    def future(self) -> "Future[T]":
        """Return a concurrent.futures.Future of the value. Cancelling it does not cancel the task."""
        return self._session.future(self)

    def __await__(self) -> Generator[Any, None, T]:
        """Wait in an asyncio event loop: `value = await ref`."""
        import asyncio

        return asyncio.wrap_future(self.future()).__await__()

    def __hash__(self) -> int:
        return hash(self.binary())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ObjectRef):
            return NotImplemented
        return self._entry is other._entry or self.binary() == other.binary()

    def __copy__(self) -> "ObjectRef[T]":
        return self

    def __deepcopy__(self, memo: Any) -> "ObjectRef[T]":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _borrow, (self._session.note(self),)

    __getstate__ = __reduce__  # who looks for what in it cannot be pickled finds nothing but itself

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"


def _borrow(oid: bytes) -> "ObjectRef[Any]":
    """Make the ref that arrived inside a value."""
    from zmesh.runtime import session

    current = session.current()
    return ObjectRef(current.borrow(oid), current)


class ObjectRefGenerator:
    """The stream of a task with num_returns="streaming": each `next` gives the ref of one yielded value.

    The ref is there as soon as the task has yielded, long before the task ends. If the task raises, the next ref
    carries the error and the stream ends after it. When this object is gone, the generator is closed where it yields
    next. Not picklable. One reader at a time.
    """

    def __init__(self, task: Any, session: "Session") -> None:
        self._task = task
        self._session = session
        self._taken = 0

    def __iter__(self) -> Iterator[ObjectRef[Any]]:
        return self

    def __next__(self) -> ObjectRef[Any]:
        """Wait for the next item; StopIteration after the last."""
        entry = self._session.next_item(self._task, self._taken, None)
        if entry is None:
            raise StopIteration
        self._taken += 1
        return ObjectRef(entry, self._session)

    def __aiter__(self) -> AsyncIterator[ObjectRef[Any]]:
        return self

    async def __anext__(self) -> ObjectRef[Any]:
        """As `next`, in an asyncio event loop."""
        import asyncio

        entry = await asyncio.wrap_future(self._session.item_future(self._task, self._taken))
        if entry is None:
            raise StopAsyncIteration
        self._taken += 1
        return ObjectRef(entry, self._session)

    def completed(self) -> bool:
        """Whether the task has ended and all its items were taken."""
        return self._session.stream_ended(self._task, self._taken)

    is_finished = completed  # as Ray calls it

    def next_ready(self) -> bool:
        """Whether `next` would not wait: another item is there, or none will come."""
        return bool(self._task.status) or self._taken < len(self._task.outputs)

    def __del__(self) -> None:
        self._session.abandon(self._task, self._taken)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("an ObjectRefGenerator cannot be pickled: pass the refs it yields")

    __getstate__ = __reduce__

    def __repr__(self) -> str:
        return f"ObjectRefGenerator(taken={self._taken})"
