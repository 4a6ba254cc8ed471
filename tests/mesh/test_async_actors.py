"""The event loop of an actor: one thread for the mesh and for what the actor's own coroutines wait for."""

import asyncio
import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import zmesh
from zmesh.exceptions import ActorDiedError, TaskCancelledError, TaskError
from zmesh.runtime import session

GET_S = 20.0


@pytest.fixture(autouse=True, scope="module")
def mesh() -> Iterator[None]:
    zmesh.init("local", num_cpus=2)
    yield
    zmesh.shutdown()


@zmesh.remote
def same(value: int) -> int:
    return value


@zmesh.remote
class Loop:
    def __init__(self) -> None:
        self.loop = asyncio.get_event_loop()
        self.early = self.loop.run_until_complete(asyncio.sleep(0.001, "early"))
        self.gate = asyncio.Event()
        self.read, self.write = os.pipe()

    async def where(self) -> tuple[str, bool, str]:
        return threading.current_thread().name, asyncio.get_running_loop() is self.loop, self.early

    def plain(self) -> str:
        return threading.current_thread().name

    async def nap(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def wait(self) -> str:
        await self.gate.wait()
        return "in"

    async def let_in(self) -> None:
        self.gate.set()

    async def read_pipe(self) -> bytes:
        came: asyncio.Future[bytes] = self.loop.create_future()
        self.loop.add_reader(self.read, lambda: came.set_result(os.read(self.read, 100)))
        try:
            return await came
        finally:
            self.loop.remove_reader(self.read)

    async def write_pipe(self, data: bytes) -> None:
        os.write(self.write, data)

    async def in_a_thread(self) -> int:
        return await asyncio.to_thread(lambda: zmesh.get(zmesh.put(7)))

    async def run_a_program(self) -> bytes:
        child = await asyncio.create_subprocess_exec("echo", "hello", stdout=asyncio.subprocess.PIPE)
        return (await child.communicate())[0]

    async def block(self, seconds: float) -> None:
        time.sleep(seconds)

    async def spin(self) -> int:
        rounds = 0
        while not self.gate.is_set():
            await asyncio.sleep(0)
            rounds += 1
        return rounds

    async def block_beside_a_waiting_thread(self, seconds: float) -> tuple[int, int]:
        def slow() -> int:
            time.sleep(3 * seconds)
            return 7

        ref = zmesh.remote(slow).remote()
        waiting = asyncio.create_task(asyncio.to_thread(zmesh.get, ref))
        await asyncio.sleep(seconds)
        reactor = session.current().reactor
        before = reactor.pumps
        self.loop.call_soon_threadsafe(int)
        time.sleep(seconds)
        return reactor.pumps - before, await waiting

    async def gather_in_threads(self, count: int) -> list[int]:
        return await asyncio.gather(*[asyncio.to_thread(zmesh.get, same.remote(i)) for i in range(count)])

    async def warned_of(self, refs: list[Any]) -> int:
        with contextlib.redirect_stderr(io.StringIO()) as told:
            for ref in refs or [zmesh.put(1)]:
                zmesh.get(ref)
        return told.getvalue().count("`await` the ref")

    async def await_ref(self, refs: list[Any]) -> Any:
        return await refs[0]

    async def count(self, items: int) -> AsyncIterator[int]:
        for number in range(items):
            yield number

    async def cancel_all(self) -> None:
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    async def interrupted(self) -> None:
        raise KeyboardInterrupt

    async def interrupt_in(self, what: str) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        if what == "a callback":
            self.loop.call_soon(interrupt)
            await asyncio.sleep(0.01)
        else:
            await asyncio.gather(self.interrupted())

    async def stop_the_loop(self) -> str:
        self.loop.stop()
        await asyncio.sleep(0.01)
        return "stopped"

    async def leave(self) -> None:
        zmesh.actor.exit_actor()

    async def leave_by_callback(self) -> None:
        self.loop.call_soon(sys.exit, 3)
        await asyncio.sleep(GET_S)


@pytest.fixture
def actor() -> Any:
    return Loop.remote()


def get(ref: Any) -> Any:
    return zmesh.get(ref, timeout=GET_S)


def test_the_loop_runs_in_the_main_thread_and_is_there_in_init(actor: Any) -> None:
    assert get(actor.where.remote()) == ("MainThread", True, "early")
    assert get(actor.plain.remote()) == "MainThread"


def test_calls_that_wait_for_each_other_all_run(actor: Any) -> None:
    waiting = [actor.wait.remote() for _ in range(300)]
    get(actor.let_in.remote())
    assert get(waiting) == ["in"] * 300


def test_timers_and_descriptors_of_the_actor_wake_it(actor: Any) -> None:
    assert get(actor.nap.remote(0.01)) == 0.01
    reading = actor.read_pipe.remote()
    get(actor.write_pipe.remote(b"data"))
    assert get(reading) == b"data"


def test_threads_and_programs_of_the_actor_wake_it(actor: Any) -> None:
    assert get(actor.in_a_thread.remote()) == 7
    assert get(actor.run_a_program.remote()) == b"hello\n"


def test_a_coroutine_that_never_waits_keeps_no_call_out(actor: Any) -> None:
    """The loop always has something to do, so it never sleeps; it looks for calls all the same."""
    spinning = actor.spin.remote()
    get(actor.let_in.remote())
    assert get(spinning) > 0


def test_calls_made_while_the_loop_is_blocked_run_afterwards(actor: Any) -> None:
    refs = [actor.block.remote(0.05), *[actor.nap.remote(0) for _ in range(50)]]
    assert get(refs) == [None, *[0] * 50]


def test_a_ref_is_awaited_and_a_stream_read(actor: Any) -> None:
    @zmesh.remote
    def number() -> int:
        return 11

    assert get(actor.await_ref.remote([number.remote()])) == 11
    assert [get(item) for item in actor.count.remote(100)] == list(range(100))


def test_a_call_is_cancelled_and_the_others_run_on(actor: Any) -> None:
    waiting = [actor.wait.remote() for _ in range(3)]
    get(actor.nap.remote(0))
    zmesh.cancel(waiting[1])
    with pytest.raises(TaskCancelledError):
        get(waiting[1])
    get(actor.let_in.remote())
    assert get([waiting[0], waiting[2]]) == ["in", "in"]


def test_a_call_whose_task_the_user_cancels_before_it_began_is_answered(actor: Any) -> None:
    """All come while the loop is blocked, so none has made its first step when the first of them cancels the others.
    One that comes later on a busy machine is not cancelled, and answered too."""
    calls = [actor.block.remote(0.1), actor.cancel_all.remote(), *[actor.nap.remote(0.2) for _ in range(3)]]
    ready, waiting = zmesh.wait(calls, num_returns=len(calls), timeout=GET_S)
    assert (len(ready), waiting) == (5, [])


def test_a_get_that_holds_up_the_loop_is_warned_of_once(actor: Any) -> None:
    """A ref that has its value holds up nothing, nor does a get() in a thread."""
    assert get(actor.warned_of.remote([])) == 0
    assert get(actor.in_a_thread.remote()) == 7
    slow = zmesh.remote(lambda: time.sleep(0.05))
    assert get(actor.warned_of.remote([slow.remote(), slow.remote()])) == 1


def test_threads_that_end_at_once_always_wake_the_loop(actor: Any) -> None:
    """One was woken to lead, had what it waited for, and left: nobody slept on what the loop waits for."""
    for _ in range(10):
        assert get([actor.gather_in_threads.remote(40) for _ in range(3)]) == [list(range(40))] * 3


def test_a_thread_that_waits_sleeps_while_the_loop_is_blocked(actor: Any) -> None:
    """It leads, and so is woken for what the loop should look at; once, and not for as long as the loop does not."""
    looks, value = get(actor.block_beside_a_waiting_thread.remote(0.2))
    assert value == 7
    assert looks < 1000


@pytest.mark.parametrize("how", ["a task", "a callback"])
def test_a_keyboard_interrupt_of_the_users_own_ends_no_actor(actor: Any, how: str) -> None:
    ref = actor.interrupt_in.remote(how)
    if how == "a task":
        with pytest.raises(TaskError, match="KeyboardInterrupt"):
            get(ref)
    else:
        assert get(ref) is None
    assert get(actor.nap.remote(0)) == 0


def test_an_actor_goes_on_when_a_method_stops_the_loop(actor: Any) -> None:
    assert get(actor.stop_the_loop.remote()) == "stopped"
    assert get(actor.nap.remote(0)) == 0


@pytest.mark.parametrize("how", ["leave", "leave_by_callback"])
def test_an_actor_that_ends_itself_fails_what_still_waits(actor: Any, how: str) -> None:
    waiting = actor.wait.remote()
    get(actor.nap.remote(0))
    ending = getattr(actor, how).remote()
    for ref in (ending, waiting):
        with pytest.raises(ActorDiedError):
            get(ref)


def test_an_actor_without_handles_ends_after_its_last_call() -> None:
    actor = Loop.remote()
    pid = get(actor.__zmesh_call__.remote(lambda self: os.getpid()))
    last = actor.nap.remote(0.05)
    del actor
    assert get(last) == 0.05
    deadline = time.monotonic() + GET_S
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{pid}")
