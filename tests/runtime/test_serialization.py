"""Values, functions and errors survive the way to another process and back; what cannot go says why."""

import copy
import functools
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from zmesh.exceptions import (
    LocalProtocolError,
    MeshError,
    RemoteTraceback,
    SerializationError,
    TaskError,
    WorkerDiedError,
)
from zmesh.runtime import serialization
from zmesh.runtime.serialization import pack, pack_error, to_inline, unpack_error, unpack_inline


class Ref:
    """Pickles as an ObjectRef does."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        serialization.note_ref(self)
        return Ref, (self.number,)


class Model:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


def inline(value: Any) -> Any:
    return unpack_inline(to_inline(pack(value)))


def segment(value: Any, *, writable: bool = False) -> Any:
    packed = pack(value)
    memory = np.zeros(serialization.segment_bytes(packed) + 1000, np.uint8)
    serialization.write_segment(packed, memoryview(memory))
    return serialization.unpack_segment(memoryview(memory), writable=writable)


VALUES = {
    "none": None,
    "nested": {"a": [1, (2.5, "x")], b"b": {3, 4}},
    "bytes": b"\x00" * 100_000,
    "bytearray": bytearray(b"abc"),
    "array": np.arange(1000.0).reshape(10, 100),
    "fortran": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "strided": np.arange(100)[::3],
    "empty array": np.zeros((0, 3)),
    "scalar array": np.array(3.5),
    "objects": np.array([1, "two", None], dtype=object),
    "records": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "several": [np.arange(3, dtype=np.uint8), np.arange(5, dtype=np.complex128), b"z"],
    "dates": np.array(["2024-01-01"], dtype="datetime64[D]"),
}


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_the_same_after_a_message(name: str) -> None:
    assert_same(inline(VALUES[name]), VALUES[name])


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_the_same_after_a_segment(name: str, writable: bool) -> None:
    assert_same(segment(VALUES[name], writable=writable), VALUES[name])


def test_a_small_value_travels_as_its_bare_pickle() -> None:
    packed = pack((1, "a"))
    assert to_inline(packed) is packed.data
    assert packed.data[:1] == b"\x80"
    assert (packed.buffers, packed.refs, packed.nbytes) == ([], [], len(packed.data))
    assert serialization.dumps_plain((1, "a")) == packed.data


def test_packing_does_not_copy_arrays() -> None:
    array = np.arange(1000)
    packed = pack([array, array[:500]])
    assert [view.nbytes for view in packed.buffers] == [8000, 4000]
    assert np.shares_memory(np.frombuffer(packed.buffers[0], np.uint8), array)
    assert packed.nbytes == len(packed.data) + 12_000


@pytest.mark.parametrize("size", [1, 10, 100_000])
@pytest.mark.parametrize("through", [inline, segment])
def test_arrays_of_every_size_arrive_read_only_and_aligned(through: Any, size: int) -> None:
    _, array = through(["x" * size, np.ones(size, np.complex128)])
    assert not array.flags.writeable
    assert array.flags.aligned
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2


def test_buffers_in_a_segment_start_at_multiples_of_64() -> None:
    packed = pack([np.ones(3, np.uint8), np.ones(7)])
    memory = np.zeros(1024, np.uint8)
    start = -memory.ctypes.data % 64
    serialization.write_segment(packed, memoryview(memory)[start:])
    arrays = serialization.unpack_segment(memoryview(memory)[start:])
    assert [array.ctypes.data % 64 for array in arrays] == [0, 0]


def test_arrays_from_a_segment_are_views_of_it() -> None:
    packed = pack(np.zeros(100))
    memory = np.zeros(serialization.segment_bytes(packed), np.uint8)
    serialization.write_segment(packed, memoryview(memory))
    assert np.shares_memory(serialization.unpack_segment(memoryview(memory)), memory)


def test_a_writable_read_gives_writable_arrays_even_of_a_read_only_original() -> None:
    array = np.arange(10)
    array.flags.writeable = False
    for result in (segment(array, writable=True), segment(np.arange(10), writable=True)):
        result[0] = 7
        assert result.tolist() == [7, *range(1, 10)]


class Gaps:
    def __reduce_ex__(self, protocol: int) -> Any:
        return bytes, (pickle.PickleBuffer(memoryview(b"abcdef")[::2]),)


@pytest.mark.parametrize("blob", [b"", b"\x00", b"\x00" * 40, b"\x01" * 40, b"\x00\x00\x00\x00\xff\xff\xff\xff" * 4])
def test_bytes_that_hold_no_value_are_refused(blob: bytes) -> None:
    with pytest.raises(SerializationError):
        unpack_inline(blob)
    with pytest.raises(SerializationError):
        serialization.unpack_segment(memoryview(blob))


def test_a_truncated_container_is_refused() -> None:
    blob = to_inline(pack(np.arange(100)))
    for length in range(0, len(blob), 7):
        with pytest.raises((SerializationError, pickle.UnpicklingError)):
            unpack_inline(blob[:length])


# Refs.


def test_refs_inside_a_value_are_collected_in_order() -> None:
    refs = [Ref(number) for number in range(3)]
    assert pack({"a": refs[2], "b": [refs[0], np.arange(3), refs[1]]}).refs == [refs[2], refs[0], refs[1]]


def test_a_retry_with_cloudpickle_collects_refs_once() -> None:
    ref = Ref(1)
    packed = pack([ref, np.arange(3), lambda: None])
    assert packed.refs == [ref]
    assert len(packed.buffers) == 1


def test_packing_inside_a_pack_keeps_its_refs_apart() -> None:
    inner_refs: list[Any] = []

    class Nesting:
        def __reduce__(self) -> Any:
            inner_refs.extend(pack(Ref(1)).refs)
            return str, ()

    outer = Ref(2)
    packed = pack([Nesting(), outer])
    assert packed.refs == [outer]
    assert [ref.number for ref in inner_refs] == [1]


def test_a_ref_cannot_be_pickled_by_anybody_else() -> None:
    pack(Ref(1))
    with pytest.raises(SerializationError):
        pack([Ref(1), threading.Lock()])
    with pytest.raises(LocalProtocolError, match="inside a zmesh call"):
        pickle.dumps(Ref(1))


def test_refs_captured_by_a_function_are_returned() -> None:
    ref = Ref(4)
    data, refs = serialization.dumps_function(lambda: ref.number)
    assert refs == [ref]
    assert serialization.loads(data)() == 4


# Functions and classes.


def test_an_importable_function_travels_by_name() -> None:
    data, _ = serialization.dumps_function(textwrap.dedent)
    assert len(data) < 60
    assert serialization.loads(data) is textwrap.dedent


def test_arrays_captured_by_a_function_stay_writable() -> None:
    state = np.zeros(3)

    def count() -> float:
        state[0] += 1
        return float(state[0])

    loaded = serialization.loads(serialization.dumps_function(count)[0])
    assert (loaded(), loaded(), state[0]) == (1, 2, 0)


def test_what_a_script_defines_travels_by_value() -> None:
    script = """
        import sys
        from zmesh.runtime.serialization import dumps_function, pack, to_inline
        class Point:
            def __init__(self, x): self.x = x
            def double(self): return Point(2 * self.x)
        def make(x): return Point(x).double().x
        sys.stdout.write(to_inline(pack(Point(4))).hex() + " " + dumps_function(make)[0].hex())
    """
    run = [sys.executable, "-c", textwrap.dedent(script)]
    value, function = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    point = unpack_inline(bytes.fromhex(value))
    assert point.double().x == 8
    assert serialization.loads(bytes.fromhex(function))(3) == 6


def test_neither_numpy_nor_cloudpickle_is_imported_before_it_is_needed() -> None:
    script = (
        "import sys; from zmesh.runtime import serialization as s, store\n"
        "s.unpack_inline(s.to_inline(s.pack([1, 'a']))); s.unpack_error(s.pack_error(ValueError(1), 'f', 1))\n"
        "assert not {'numpy', 'cloudpickle'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# What cannot be pickled.


def use_lock() -> Any:
    return GLOBAL_LOCK


GLOBAL_LOCK = threading.Lock()


def closing_over(value: Any) -> Any:
    return lambda: value


class Refusing:
    def __getstate__(self) -> Any:
        raise RuntimeError("not this one")


class Omitting:
    """Has a lock that it leaves out, and something worse that it does not."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stream = sys.stdout

    def __getstate__(self) -> Any:
        return {"worse": iter_frames()}


def iter_frames() -> Any:
    yield


def ring() -> Any:
    one, two = Model(), Model()
    one.other, two.other, one.lock = two, one, threading.Lock()
    return one


LOCK = "cannot pickle '_thread.lock' object"
UNPICKLABLE = {
    "value": (threading.Lock, LOCK),
    "value[0].model.lock": (lambda: [Model(model=Model(lock=threading.Lock()))], LOCK),
    "value[1][2]": (lambda: (0, [1, 2, threading.Lock()]), LOCK),
    "value['key']": (lambda: {"fine": 1, "key": threading.Lock()}, LOCK),
    "value.inner": (lambda: Slotted(threading.Lock()), LOCK),
    "value.<closure>.value": (lambda: closing_over(threading.Lock()), LOCK),
    "value.<closure>.value.lock": (lambda: closing_over(Model(lock=threading.Lock())), LOCK),
    "value.keywords['a']": (lambda: functools.partial(print, a=threading.Lock()), LOCK),
    "value.lock": (ring, LOCK),
    "value.worse": (Omitting, "cannot pickle 'generator' object"),
    "value[0]": (lambda: [Refusing()], "not this one"),
    "value[1]": (lambda: [1, Gaps()], "PickleBuffer can not be pickled when pointing to a non-contiguous buffer"),
    "value.part": (lambda: Model(array=np.ones(3), part=iter_frames()), "cannot pickle 'generator' object"),
}


@pytest.mark.parametrize("path", UNPICKLABLE)
def test_an_error_names_the_part_that_cannot_be_pickled(path: str) -> None:
    make, reason = UNPICKLABLE[path]
    with pytest.raises(SerializationError) as caught:
        pack(make())
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: {reason}")


def test_an_error_names_the_global_that_a_function_uses() -> None:
    function = type(use_lock)(use_lock.__code__, {"GLOBAL_LOCK": GLOBAL_LOCK})
    with pytest.raises(SerializationError, match=r"use_lock\.<globals>\.GLOBAL_LOCK: cannot pickle '_thread.lock'"):
        serialization.dumps_function(function)


def test_the_search_ends_in_a_value_without_end() -> None:
    class Endless:
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            return {"next": Endless()}

        def __reduce__(self) -> Any:
            raise TypeError("never")

    path, reason = serialization.find_unpicklable(Endless(), "x")
    assert path == "x" + 6 * ".next"
    assert reason == "never"


def test_the_search_gives_up_after_many_objects() -> None:
    path, _ = serialization.find_unpicklable([*(Model() for _ in range(3000)), threading.Lock()], "x")
    assert path == "x"


def test_a_value_nested_too_deeply_is_refused_with_a_clear_text() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match=r"args: nested too deeply to pickle \(the recursion limit is"):
        pack(deep, "args")


# Errors.


class PlainError(ValueError):
    pass


class DetailedError(RuntimeError):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


class NeedsTwoError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class SlottedError(Exception):
    __slots__ = ("detail",)

    def __reduce__(self) -> Any:
        return slotted_error, (self.detail,)


class KeyedError(KeyError):
    pass


class StopEverything(BaseException):
    pass


@dataclass(frozen=True)
class FrozenError(Exception):
    number: int


class OnlyKeywordsError(LookupError):
    __slots__ = ("needed",)

    def __init__(self, *, needed: int, told: str) -> None:
        super().__init__(f"needs {needed}")
        self.needed, self.told = needed, told


class FinalError(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("no subclasses")


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class DeadlyError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


class DeadlyToLoadError(Exception):
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


class OwnMeshError(WorkerDiedError):
    pass


def raised(error: BaseException) -> BaseException:
    try:
        raise error.with_traceback(None)
    except BaseException as caught:
        return caught


def travelled(error: BaseException) -> Any:
    return unpack_error(pack_error(raised(error), "work", 42))


def os_error() -> OSError:
    try:
        open("/nonexistent/file")  # noqa: SIM115  # it does not open
    except OSError as error:
        return error
    raise AssertionError


def decode_error() -> UnicodeDecodeError:
    try:
        b"a\xff".decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError


def slotted_error(detail: int) -> SlottedError:
    error = SlottedError("s")
    error.detail = detail
    return error


COMBINED = [
    ValueError("boom"),
    KeyError("missing"),
    PlainError("plain", 2),
    DetailedError(3, "x"),
    KeyedError("k"),
    StopEverything("all"),
    StopIteration(5),
    ImportError("no module", name="x", path="/x"),
    SyntaxError("bad", ("file.py", 3, 4, "x = = 1")),
    os_error(),
    decode_error(),
    slotted_error(5),
    ExceptionGroup("both", [ValueError(1), ExceptionGroup("in", [KeyError(2)])]),
    RecursionError("deep"),
    MemoryError(),
    AssertionError(),
]


@pytest.mark.parametrize("error", COMBINED, ids=lambda error: type(error).__name__)
def test_an_error_is_of_the_users_class_and_a_task_error(error: BaseException) -> None:
    result = travelled(error)
    assert isinstance(result, TaskError)
    assert isinstance(result, type(error))
    assert type(result).__name__ == f"TaskError({type(error).__name__})"
    assert str(result) == str(error)
    assert repr(result.args) == repr(error.args)
    assert (result.function, result.pid, type(result.cause)) == ("work", 42, type(error))
    assert isinstance(result.__cause__, RemoteTraceback)
    assert result.traceback_text in str(result.__cause__)
    assert "in raised\n" in result.traceback_text
    assert "raise error.with_traceback(None)\n" in result.traceback_text
    assert type(travelled(error)) is type(result)


def test_an_error_can_be_raised_and_caught_as_either_class() -> None:
    for expected in (PlainError, ValueError, TaskError, MeshError):
        with pytest.raises(expected):
            raise travelled(PlainError("x"))
    group = travelled(ExceptionGroup("both", [ValueError(1), KeyError(2)]))
    caught = []
    try:
        raise group
    except* KeyError as part:
        caught += part.exceptions
    except* ValueError as part:
        caught += part.exceptions
    assert [str(error) for error in caught] == ["2", "1"]


def test_attributes_of_the_users_error_are_there() -> None:
    detailed = DetailedError(3, "x")
    detailed.add_note("a note")
    result = travelled(detailed)
    assert (result.code, result.__notes__, result.cause.code) == (3, ["a note"], 3)
    missing = travelled(os_error())
    assert (missing.errno, missing.filename, missing.strerror) == (2, "/nonexistent/file", "No such file or directory")
    decode = travelled(decode_error())
    assert (decode.object, decode.start, decode.end, decode.encoding) == (b"a\xff", 1, 2, "utf-8")
    assert travelled(slotted_error(5)).detail == 5
    assert travelled(StopIteration(5)).value == 5
    assert [str(error) for error in travelled(ExceptionGroup("g", [KeyError(2)])).exceptions] == ["2"]


def local_class_error() -> BaseException:
    class LocalError(Exception):
        def __init__(self, *, needed: int) -> None:
            super().__init__("local")

    return LocalError(needed=1)


PLAIN = {
    "exits": (SystemExit(3), "SystemExit: 3"),
    "interrupts": (KeyboardInterrupt(), "KeyboardInterrupt"),
    "closes a generator": (GeneratorExit("x"), "GeneratorExit: x"),
    "cannot be subclassed": (FinalError("final"), "tests.runtime.test_serialization.FinalError: final"),
    "cannot be pickled": (ValueError(threading.Lock()), "ValueError: <unlocked _thread.lock"),
    "ends who pickles it": (DeadlyError(), "DeadlyError: <its text cannot be had: SystemExit>"),
    "ends who unpickles it": (DeadlyToLoadError("x"), "DeadlyToLoadError: x"),
    "holds a group that cannot be one": (BaseExceptionGroup("g", [SystemExit(1)]), "BaseExceptionGroup: g (1 sub-"),
    "holds a ref": (ValueError(Ref(1)), "ValueError: <tests.runtime.test_serialization.Ref object"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_an_error_that_cannot_be_combined_becomes_a_task_error_that_names_it(name: str) -> None:
    error, text = PLAIN[name]
    result = travelled(error)
    assert type(result) is TaskError
    assert text in str(result)
    assert "in raised" in result.traceback_text or isinstance(error, DeadlyError)
    assert (result.function, result.pid) == ("work", 42)
    assert str(pickle.loads(pickle.dumps(result))) == str(result)


def test_an_error_is_itself_whatever_its_init_takes() -> None:
    two: Any = travelled(NeedsTwoError(1, 2))
    assert isinstance(two, NeedsTwoError)
    assert str(two) == str(two.cause) == "1 and 2"
    frozen: Any = travelled(FrozenError(3))
    assert isinstance(frozen, FrozenError)
    assert (frozen.number, frozen.cause) == (3, FrozenError(3))
    keyed: Any = travelled(OnlyKeywordsError(needed=4, told="b"))
    assert isinstance(keyed, OnlyKeywordsError)
    assert (keyed.needed, keyed.told, str(keyed)) == (4, "b", "needs 4")
    local = local_class_error()
    assert isinstance(travelled(local), type(local))
    again: Any = pickle.loads(pickle.dumps(keyed))
    assert (type(again), again.needed, again.told) == (type(keyed), 4, "b")


def test_an_error_whose_str_raises_keeps_its_class() -> None:
    result = travelled(MuteError())
    assert isinstance(result, MuteError)
    assert str(result) == "<its text cannot be had: RuntimeError>"


def test_a_class_that_the_reader_does_not_know_becomes_text() -> None:
    script = """
        import sys, types
        module = types.ModuleType("only_there"); sys.modules["only_there"] = module
        exec("class ThereError(Exception): pass", module.__dict__)
        from zmesh.runtime.serialization import pack_error
        sys.stdout.write(pack_error(module.ThereError("x"), "f", 1).hex())
    """
    run = [sys.executable, "-c", textwrap.dedent(script)]
    blob = bytes.fromhex(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    result = unpack_error(blob)
    assert type(result) is TaskError
    assert str(result) == "only_there.ThereError: x"


def test_the_class_of_a_script_comes_home_as_itself() -> None:
    """It went to the worker by value; `except MyError` at home must still catch it."""
    script = """
        import pickle, subprocess, sys
        from zmesh.runtime.serialization import dumps_function, unpack_error
        class MyError(Exception): pass
        def fail(): raise MyError("x")
        worker = '''
        import sys
        from zmesh.runtime.serialization import loads, pack_error
        try: loads(bytes.fromhex(sys.argv[1]))()
        except BaseException as error: print(pack_error(error, "fail", 1).hex())
        '''.replace("        ", "")
        run = [sys.executable, "-c", worker, dumps_function(fail)[0].hex()]
        blob = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        error = unpack_error(bytes.fromhex(blob))
        assert isinstance(error, MyError), type(error).__mro__
        assert str(error) == "x"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_a_huge_message_is_cut() -> None:
    blob = pack_error(raised(ValueError("x" * 30_000_000 + "end")), "work", 1)
    assert len(blob) < 200_000
    result: Any = unpack_error(blob)
    assert type(result) is TaskError
    assert str(result).startswith("ValueError: xxx")
    assert str(result).endswith("end")
    assert len(str(result)) < 66_000


def test_arguments_nested_too_deeply_do_not_stop_an_error() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    result = travelled(ValueError(deep))
    assert type(result) is TaskError
    assert str(result) == "ValueError: <its text cannot be had: RecursionError>"


def test_text_that_is_no_unicode_travels_escaped() -> None:
    assert str(travelled(ValueError("a\udc80b"))) == "a\\udc80b"


@pytest.mark.parametrize("blob", [b"", b"\xc1", b"\x00" * 9, b"\x96\x01\x02\x03\x04\x05\x06", b"\x92\xa1x"])
def test_a_blob_that_is_no_error_gives_an_error_all_the_same(blob: bytes) -> None:
    assert isinstance(unpack_error(blob), TaskError)


@pytest.mark.parametrize("error", [WorkerDiedError("died", exit_code=3), OwnMeshError("own", signal_name="SIGSEGV")])
def test_an_error_of_the_mesh_passes_as_itself(error: WorkerDiedError) -> None:
    result = travelled(error)
    assert type(result) is type(error)
    assert not isinstance(result, TaskError)
    assert (str(result), result.exit_code, result.signal_name) == (str(error), error.exit_code, error.signal_name)
    assert "in raised" in str(result.__cause__)


@pytest.mark.parametrize("error", COMBINED, ids=lambda error: type(error).__name__)
def test_an_error_that_crosses_three_tasks_is_still_both_classes(error: BaseException) -> None:
    inner = travelled(error)
    outer: Any = unpack_error(pack_error(raised(unpack_error(pack_error(raised(inner), "middle", 2))), "outer", 1))
    assert isinstance(outer, TaskError)
    assert isinstance(outer, type(error))
    assert str(outer) == str(error)
    assert (outer.function, outer.pid) == ("work", 42)
    assert outer.traceback_text.count("in raised") == 3
    assert type(outer) is type(inner)


def test_a_task_error_can_be_pickled_and_copied() -> None:
    error = travelled(DetailedError(3, "x"))
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), inline([error])[0]):
        assert isinstance(again, DetailedError)
        assert isinstance(again, TaskError)
        assert (str(again), again.code, again.function, again.pid) == ("code 3", 3, "work", 42)
        assert again.traceback_text == error.traceback_text
        assert str(again.__cause__) == str(error.__cause__)


def test_frames_of_zmesh_are_left_out_of_the_traceback() -> None:
    def user_code() -> Any:
        pack([Ref(1), threading.Lock()])

    try:
        user_code()
    except SerializationError as error:
        result: Any = unpack_error(pack_error(error, "work", 1))
    assert "in user_code" in str(result.__cause__)
    assert "runtime/serialization.py" not in str(result.__cause__)


def test_an_error_raised_by_zmesh_alone_keeps_its_frames() -> None:
    try:
        exec(compile("1 / 0", serialization.__file__, "exec"))
    except ZeroDivisionError as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        result: Any = unpack_error(pack_error(error, "work", 1))
    assert "runtime/serialization.py" in result.traceback_text


def test_a_printed_error_shows_the_workers_traceback_first() -> None:
    text = "".join(traceback.format_exception(travelled(PlainError("boom"))))
    assert text.index("in raised") < text.index("direct cause") < text.index("TaskError(PlainError): ")


def test_the_table_of_classes_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "ERROR_CLASSES_MAX", 3)
    for number in range(10):
        assert isinstance(travelled(type(f"Number{number}Error", (ValueError,), {})()), ValueError)
    assert len(serialization._classes) <= 3
