"""How values, functions and errors become bytes and come back: the one home of pickle and cloudpickle.

A value is pickled once (protocol 5); the buffers that pickle offers stay where they are until they are copied, once,
into a message (`to_inline`) or a shared segment (`write_segment`), and come back as views of it. Where segments come
from, and who may write them again, is the business of store.py; who counts the refs inside a value, of the core.

    inline    the pickle stream itself (it starts with 0x80), or a head (it starts with 0x00), the stream, the buffers
    segment   a head, the stream, the buffers
    error     msgpack [type name, text, function, pid, traceback text, pickled exception or None]

Source: PEP 574 (out-of-band data); sizes and speeds in docs/design.md, "Objects".
"""

import collections
import contextlib
import functools
import io
import os
import pickle
import reprlib
import struct
import sys
import threading
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import msgpack

import zmesh.exceptions
from zmesh.exceptions import LocalProtocolError, MeshError, RemoteTraceback, SerializationError, TaskError
from zmesh.runtime.errors import portable, solid_base

ERROR_TEXT_BYTES_MAX = 64 * 1024
ERROR_PICKLE_BYTES_MAX = 1024 * 1024  # an error is inline: a message must stay a message
ERROR_CLASSES_MAX = 1024

_SEARCH_DEPTH_MAX = 6
_SEARCH_OBJECTS_MAX = 2000

_INLINE_ALIGN = 16  # bytes objects start at multiples of 16; no dtype wants more
_SEGMENT_ALIGN = 64  # a cache line, and the widest vector loads
_HEAD = struct.Struct("<B3xIQ")  # 0x00, number of buffers, bytes of the stream; then the bytes of each buffer

# From here on numpy copies: it lets other threads run meanwhile, a memoryview does not. Below, asking costs more.
_THREADED_COPY_BYTES = 256 * 1024

_HERE = os.path.dirname(os.path.abspath(zmesh.exceptions.__file__)) + os.sep
_PLAIN_TYPES = frozenset((bool, bytes, bytearray, complex, float, int, str, type(None)))

_dumps = pickle.dumps


class _Packing(threading.local):
    """The lists of refs of the pickles under way in this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[list[Any]] = []


_packing = _Packing()


@dataclass(slots=True)
class Packed:
    """A pickled value whose buffers still lie where the user has them.

    Attributes:
        data: the pickle stream.
        buffers: flat views of the value's own memory, in the order of the stream; valid while the value is unchanged.
        refs: the ObjectRefs inside the value, in order; one that occurs twice may be listed once.
        nbytes: len(data) and the bytes of all buffers.
    """

    data: bytes
    buffers: list[memoryview]
    refs: list[Any]
    nbytes: int


def note_ref(ref: Any) -> None:
    """Add a ref to the value that this thread pickles just now. ObjectRef.__reduce__ calls it. Any thread.

    Raises:
        LocalProtocolError: nobody is pickling for zmesh, so nobody could count the ref.
    """
    stack = _packing.stack
    if not stack:
        raise LocalProtocolError(
            "an ObjectRef or handle can only be pickled inside a zmesh call: pass it, return it, or put it"
        )
    stack[-1].append(ref)


def pack(value: Any, what: str = "value") -> Packed:
    """Pickle a value; by value what only this program's script defines. Any thread; runs user code; copies no buffer.

    Args:
        value: anything. Arrays of any size, if contiguous, stay out of the stream, so they come back read-only; others
            are copied into it.
        what: how an error names the value, e.g. "args".

    Raises:
        SerializationError: something in it cannot be pickled; the text and `path` say what and where.
    """
    found: list[pickle.PickleBuffer] = []
    refs: list[Any] = []
    stack = _packing.stack
    stack.append(refs)
    try:
        data = _dump(value, refs, found)
        if not found:
            return Packed(data, [], refs, len(data))
        buffers = [buffer.raw() for buffer in found]
    except Exception as error:
        raise _unpicklable(value, what, error) from error
    finally:
        stack.pop()
    return Packed(data, buffers, refs, len(data) + sum([view.nbytes for view in buffers]))


def _dump(value: Any, refs: list[Any], found: list[pickle.PickleBuffer] | None) -> bytes:
    """Pickle by name where the reader can import it, else by value. None for `found`: buffers go into the stream."""
    keep = None if found is None else found.append
    try:
        data = _dumps(value, 5, buffer_callback=keep)
        if b"__main__" not in data:
            return data
    except (RecursionError, MemoryError):
        raise
    except Exception:
        pass  # A lambda, a local class: what pickle refuses, cloudpickle mostly takes.
    refs.clear()
    if found is not None:
        found.clear()
    with io.BytesIO() as file:
        _by_value()(file, 5, buffer_callback=keep).dump(value)
        return file.getvalue()


@functools.cache
def _by_value() -> Any:
    """Return cloudpickle's pickler, changed so that functions keep the name of their file.

    Since 3.1.3 it writes "<dynamic-code>" instead, and a traceback would show no lines.
    """
    import cloudpickle

    table = cloudpickle.Pickler.dispatch_table

    def reduce_code(code: types.CodeType) -> Any:
        make, fields, *rest = table[types.CodeType](code)
        return (make, tuple(code.co_filename if field == "<dynamic-code>" else field for field in fields), *rest)

    tables = {"dispatch_table": collections.ChainMap({types.CodeType: reduce_code}, table)}
    return type("Pickler", (cloudpickle.Pickler,), tables)


def _unpicklable(value: Any, what: str, error: Exception) -> Exception:
    if isinstance(error, MemoryError):
        return error
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        limit = sys.getrecursionlimit()
        text = f"{what}: nested too deeply to pickle (the recursion limit is {limit:,}); flatten it, or raise the limit"
        return SerializationError(text, what)
    path, reason = find_unpicklable(value, what)
    return SerializationError(f"{path}: {reason}", path)


# What a message carries.


def to_inline(packed: Packed) -> bytes:
    """Return the value as one bytes object. Without buffers it is `packed.data` itself, else every buffer is copied."""
    buffers = packed.buffers
    if not buffers:
        return packed.data
    sizes = [view.nbytes for view in buffers]
    head = _HEAD.pack(0, len(sizes), len(packed.data)) + struct.pack(f"<{len(sizes)}Q", *sizes)
    parts: list[bytes | memoryview] = [head, packed.data]
    at = len(head) + len(packed.data)
    for view in buffers:
        pad = -at % _INLINE_ALIGN
        parts += (bytes(pad), view)
        at += pad + view.nbytes
    return b"".join(parts)


def unpack_inline(blob: bytes) -> Any:
    """Return the value of `to_inline`; arrays are read-only views of `blob`. Any thread; runs user code.

    Raises:
        SerializationError: `to_inline` did not make this. What unpickling a user's class raises comes as it is.
    """
    if blob[:1] == b"\x80":
        return pickle.loads(blob)
    stream, buffers = _split(memoryview(blob), _INLINE_ALIGN)
    return pickle.loads(stream, buffers=buffers)


def dumps_plain(value: Any) -> bytes:
    """Return what `to_inline(pack(value))` would, for a value without refs, buffers and classes of the user's."""
    return _dumps(value, 5)


def loads(data: bytes) -> Any:
    """Return what `dumps_function` was given. Any thread; runs user code."""
    return pickle.loads(data)


def dumps_function(function: Any, what: str = "") -> tuple[bytes, list[Any]]:
    """Pickle a function or class: by name if it can be imported, else by value. Any thread; runs user code.

    Arrays it captured are copied into the bytes and come back writable, as the function may keep its state in them.
    `what` is how an error names it; without, its qualified name.

    Returns:
        The bytes, and the ObjectRefs it captured.

    Raises:
        SerializationError: it captured something that cannot be pickled.
    """
    refs: list[Any] = []
    _packing.stack.append(refs)
    try:
        return _dump(function, refs, None), refs
    except Exception as error:
        name = what or getattr(function, "__qualname__", None) or type(function).__qualname__
        raise _unpicklable(function, name, error) from error
    finally:
        _packing.stack.pop()


# What a shared segment holds.


def segment_bytes(packed: Packed) -> int:
    """Return how many bytes `write_segment` writes."""
    at = _HEAD.size + 8 * len(packed.buffers) + len(packed.data)
    for view in packed.buffers:
        at += -at % _SEGMENT_ALIGN + view.nbytes
    return at


def write_segment(packed: Packed, target: memoryview) -> None:
    """Copy the value into shared memory, once. Any thread; big buffers are copied without the GIL.

    Args:
        packed: its buffers must still hold what was pickled.
        target: (>= segment_bytes(packed),) bytes, writable, starting at a multiple of 64; untouched behind the value.
    """
    sizes = [view.nbytes for view in packed.buffers]
    _HEAD.pack_into(target, 0, 0, len(sizes), len(packed.data))
    struct.pack_into(f"<{len(sizes)}Q", target, _HEAD.size, *sizes)
    at = _HEAD.size + 8 * len(sizes)
    _copy(target[at : at + len(packed.data)], packed.data)
    at += len(packed.data)
    for view, size in zip(packed.buffers, sizes, strict=True):
        at += -at % _SEGMENT_ALIGN
        _copy(target[at : at + size], view)
        at += size


def unpack_segment(view: memoryview, *, writable: bool = False) -> Any:
    """Return the value in a segment; its arrays are slices of `view` and keep it alive. Any thread; runs user code.

    Args:
        view: the segment, flat bytes; may be longer than the value.
        writable: arrays may be written, also those that were read-only when packed. Needs a private mapping.

    Raises:
        SerializationError: there is no packed value in it. What unpickling a user's class raises comes as it is.
    """
    stream, buffers = _split(view if writable else view.toreadonly(), _SEGMENT_ALIGN)
    if writable and pickle.READONLY_BUFFER in bytes(stream):
        return _WritableUnpickler(io.BytesIO(stream), buffers=buffers).load()
    return pickle.loads(stream, buffers=buffers)


class _WritableUnpickler(pickle._Unpickler):
    """Makes writable what was read-only when pickled; ten times slower, so only where that is asked for.

    An array that came from a get is read-only; if it is put again, the stream says so.
    """

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.READONLY_BUFFER[0]: lambda _: None}


def _copy(target: memoryview, source: bytes | memoryview) -> None:
    numpy = sys.modules.get("numpy") if target.nbytes >= _THREADED_COPY_BYTES else None
    if numpy is None:
        target[:] = source
    else:
        numpy.copyto(numpy.frombuffer(target, numpy.uint8), numpy.frombuffer(source, numpy.uint8))


def _split(view: memoryview, align: int) -> tuple[memoryview, list[memoryview]]:
    """Return the stream and the buffers of a packed value."""
    try:
        zero, count, length = _HEAD.unpack_from(view)
        at = _HEAD.size + 8 * count
        if zero or not length or at > view.nbytes:
            raise struct.error
        sizes = struct.unpack_from(f"<{count}Q", view, _HEAD.size)
        stream = view[at : at + length]
        at += length
        buffers = []
        for size in sizes:
            at += -at % align
            buffers.append(view[at : at + size])
            at += size
        if at > view.nbytes:
            raise struct.error
    except struct.error:
        raise SerializationError(f"{view.nbytes:,} bytes that hold no packed value") from None
    return stream, buffers


# Which part of a value cannot be pickled.


def find_unpicklable(value: Any, what: str) -> tuple[str, str]:
    """Return where in an unpicklable value the trouble lies, and why. Never raises; runs user code.

    Walks containers, attributes, slots, closures and the globals that functions use, 6 levels and 2000 objects at most;
    at a limit it names the innermost object that it knows to fail. E.g. ("args[0].lock", "cannot pickle ... object").
    """
    failed: set[int] = {id(value)}
    seen: dict[int, Any] = {id(value): value}  # {id: object}: holds it, so that its id stays its own

    def descend(value: Any, path: str, reason: str, depth: int) -> tuple[str, str] | None:
        """Return the culprit in or below `value`, or None if it fails only by a part that is searched elsewhere."""
        if depth == _SEARCH_DEPTH_MAX:
            return path, reason
        elsewhere = False
        with contextlib.suppress(Exception):  # The user's __getstate__ may raise anything.
            for name, part in _parts(value, path):
                if type(part) in _PLAIN_TYPES:
                    continue
                if id(part) in seen:
                    elsewhere = elsewhere or id(part) in failed
                    continue
                if len(seen) >= _SEARCH_OBJECTS_MAX:
                    return path, reason
                seen[id(part)] = part
                why = _why_unpicklable(part)
                if why is None:
                    continue
                failed.add(id(part))
                culprit = descend(part, name, why, depth + 1)
                if culprit is not None:
                    return culprit
                elsewhere = True
        return None if elsewhere else (path, reason)

    reason = _why_unpicklable(value) or "cannot be pickled"
    return descend(value, what, reason, 0) or (what, reason)


def _why_unpicklable(value: Any) -> str | None:
    import cloudpickle

    _packing.stack.append([])
    try:
        cloudpickle.dumps(value, 5, lambda _: None)
    except Exception as error:
        return _clip(_text_of(error), 1024) or type(error).__name__
    finally:
        _packing.stack.pop()
    return None


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, object) for what pickles with `value`."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}[{reprlib.repr(key)}]", item
            yield f"{path}.keys()[{reprlib.repr(key)}]", key
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield f"{path}[{index}]", item
    elif isinstance(value, set | frozenset):
        for item in value:
            yield f"{path}{{{reprlib.repr(item)}}}", item
    if isinstance(value, types.FunctionType):
        yield from _parts_of_function(value, path)
    elif isinstance(value, types.MethodType):
        yield f"{path}.__self__", value.__self__
        yield f"{path}.__func__", value.__func__
    elif isinstance(value, functools.partial):
        yield f"{path}.func", value.func
        yield f"{path}.args", value.args
        yield f"{path}.keywords", value.keywords
    elif isinstance(value, type):
        for name, item in list(vars(value).items()):
            if name not in ("__dict__", "__weakref__"):
                yield f"{path}.{name}", getattr(item, "__func__", item)
    else:
        yield from _parts_of_state(value, path)


def _parts_of_function(function: types.FunctionType, path: str) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            yield f"{path}.<closure>.{name}", cell.cell_contents
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        for name in code.co_names:
            if name in function.__globals__:
                yield f"{path}.<globals>.{name}", function.__globals__[name]
        todo += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    yield from _parts(function.__defaults__ or (), f"{path}.__defaults__")
    yield from _parts(function.__kwdefaults__ or {}, f"{path}.__kwdefaults__")


def _parts_of_state(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    cls: Any = type(value)
    if cls.__getstate__ is not object.__getstate__:
        state = value.__getstate__()  # what it wants pickled, which may leave attributes out
    else:
        state = getattr(value, "__dict__", None)
        for base in cls.__mro__:
            slots = base.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(value, name):
                    yield f"{path}.{name}", getattr(value, name)
    if isinstance(state, dict):
        for name, item in state.items():
            yield f"{path}.{name}", item
    elif state is not None:
        yield f"{path}.__getstate__()", state


# Errors.


def pack_error(error: BaseException, function: str, pid: int) -> bytes:
    """Return what `unpack_error` needs to raise a task's error elsewhere. Any thread; runs user code; never raises.

    An exception that cannot be pickled, is bigger than 1 MiB or holds ObjectRefs (nobody counts them) travels as text.

    Args:
        error: what the user's code raised, with its traceback.
        function: name of the remote function.
        pid: of this worker.
    """
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"
    text = _clip(_text_of(error), ERROR_TEXT_BYTES_MAX)
    head = [_clip(name, 1024), text, _clip(function, 1024), pid, _traceback_of(error)]
    return msgpack.packb([*head, _pickled_error(error)])  # type: ignore[no-any-return]  # msgpack has no types


def unpack_error(blob: bytes) -> BaseException:
    """Return the error that `get` raises for a packed one. Any thread; runs user code; raises nothing itself.

    Returns:
        A MeshError of the worker's as itself. For anything else an instance of TaskError and of the user's class, named
        e.g. `TaskError(ValueError)`, with the user's attributes and text; a plain TaskError that names the class where
        the two cannot be one. An error that crossed several tasks keeps the function and pid of the first.
        `__cause__` is the worker's traceback.
    """
    try:
        name, text, function, pid, traceback_text, pickled = msgpack.unpackb(blob)
        cause = _loaded_error(pickled)
        if isinstance(cause, TaskError):
            cause.__dict__["traceback_text"] = traceback_text
        elif not isinstance(cause, MeshError):
            cause = _task_error(cause, name, text, function, pid, traceback_text)
        object.__setattr__(cause, "__cause__", RemoteTraceback(traceback_text))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        return TaskError(f"the task failed, and its error cannot be read: {_clip(_text_of(error), 1024)}")
    return cause


def _task_error(
    cause: BaseException | None, name: str, text: str, function: str, pid: int, traceback_text: str
) -> TaskError:
    facts = {"cause": cause, "function": function, "traceback_text": traceback_text, "pid": pid}
    error = None
    # A get that raised one of these would end the getter instead of telling it what happened.
    if cause is not None and not isinstance(cause, SystemExit | KeyboardInterrupt | GeneratorExit):
        try:
            error = _combined(cause)
            error.__dict__["_zmesh_text"] = text
        except Exception:  # User classes may refuse to be subclassed, made or copied, in any way they like.
            error = None
    if error is None:
        error = TaskError(f"{name}: {text}" if text else name)
    error.__dict__.update(facts)
    return error


def _combined(cause: BaseException) -> TaskError:
    """Return an instance of TaskError and of the cause's class, like the cause, without running the user's __init__."""
    cls = type(cause)
    combined = _task_error_class(cls)
    error: TaskError = solid_base(combined).__new__(combined, *cause.args)
    error.args = cause.args
    for base in cls.__mro__:
        for name, field in vars(base).items():
            # Slots of the user's, and what the interpreter keeps in C: errno, object, value, name and the like.
            if isinstance(field, types.MemberDescriptorType | types.GetSetDescriptorType) and name[:2] != "__":
                held = getattr(cause, name, None)
                if held is not None and name != "args":
                    with contextlib.suppress(AttributeError, TypeError):  # read-only, and set by __new__
                        object.__setattr__(error, name, held)
    error.__dict__.update(cause.__dict__)
    return error


_classes: dict[type[BaseException], type[TaskError]] = {}  # {the user's class: it and TaskError in one}


def _task_error_class(cls: type[BaseException]) -> type[TaskError]:
    combined = _classes.get(cls)
    if combined is None:
        name = f"TaskError({cls.__name__})"
        body = {
            "__doc__": f"A {cls.__name__} that was raised in a task.",
            "__module__": TaskError.__module__,
            "__qualname__": name,
            "__str__": lambda self: self.__dict__.get("_zmesh_text", ""),
            "__reduce_ex__": _reduce_task_error,
        }
        combined = types.new_class(name, (TaskError, cls), {}, lambda namespace: namespace.update(body))
        if len(_classes) >= ERROR_CLASSES_MAX:
            _classes.clear()
        _classes[cls] = combined
    return combined


def _reduce_task_error(error: TaskError, _: object) -> tuple[Any, ...]:
    """Pickle as the blob from which unpack_error makes this error once more: that never fails."""
    pickled = None if error.cause is None else _pickled_error(error.cause)
    facts = [str(error), error.function, error.pid, error.traceback_text]
    return unpack_error, (msgpack.packb([type(error.cause).__qualname__, *facts, pickled]),)


def _pickled_error(error: BaseException) -> bytes | None:
    refs: list[Any] = []
    _packing.stack.append(refs)
    try:
        data = _dump(portable(error), refs, None)
    except BaseException:  # The user's __reduce__ may raise anything, and the task's error matters more.
        return None
    finally:
        _packing.stack.pop()
    return None if refs or len(data) > ERROR_PICKLE_BYTES_MAX else data


def _loaded_error(pickled: bytes | None) -> BaseException | None:
    if pickled is None:
        return None
    try:
        error = pickle.loads(pickled)
    except KeyboardInterrupt:
        raise  # this program's user pressed Ctrl-C
    except BaseException:  # The class may be unknown here, or its __init__ may raise anything.
        return None
    return error if isinstance(error, BaseException) else None


def _traceback_of(error: BaseException) -> str:
    """Return the formatted traceback, without frames of zmesh where others remain."""
    try:
        story = traceback.TracebackException.from_exception(error, compact=True)
        todo = [story]
        while todo:
            part = todo.pop()
            frames = [frame for frame in part.stack if not frame.filename.startswith(_HERE)]
            if frames:
                part.stack = traceback.StackSummary.from_list(frames)
            todo += [other for other in (part.__cause__, part.__context__, *(part.exceptions or ())) if other]
        return _clip("".join(story.format()), ERROR_TEXT_BYTES_MAX)
    except BaseException:  # The user's __str__ may raise anything; so may its repr in a group or a note.
        return f"{type(error).__qualname__} (its traceback cannot be formatted)\n"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as trouble:  # The user's __str__ may raise anything.
        return f"<its text cannot be had: {type(trouble).__name__}>"


def _clip(text: str, bytes_max: int) -> str:
    """Return the text in at most `bytes_max` bytes of UTF-8, the middle cut out; lone surrogates are escaped."""
    if len(text) > 2 * bytes_max:
        text = text[:bytes_max] + text[-bytes_max:]
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > bytes_max:
        half = (bytes_max - 16) // 2
        data = data[:half] + b"\n... cut ...\n" + data[-half:]
    return data.decode("utf-8", "ignore")
