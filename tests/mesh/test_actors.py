"""Actors with real processes on one host; the cores' own corners are in tests/core and tests/sim."""

import asyncio
import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import zmesh
from zmesh.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorNotFoundError,
    ActorUnavailableError,
    ConfigError,
    LocalProtocolError,
    MeshError,
    NodeDiedError,
    NotRunningError,
    PendingCallsLimitExceededError,
    TaskCancelledError,
    TaskError,
)


@pytest.fixture(scope="module")
def mesh() -> Iterator[None]:
    zmesh.init("local", num_cpus=2, num_gpus=1, object_store_memory=200_000_000)
    yield
    zmesh.shutdown()


@pytest.fixture(autouse=True)
def _no_actor_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "mesh" in request.fixturenames:
        gc.collect()
        assert _until(lambda: "serving" not in [w["state"] for w in zmesh.status()["workers"]], 5.0)
        assert _until(lambda: zmesh.status()["objects"] == 0, 5.0)


def _until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


@zmesh.remote
class Counter:
    """Counts."""

    def __init__(self, start: int = 0) -> None:
        self.count = start

    def add(self, n: int = 1) -> int:
        self.count += n
        return self.count

    def pid(self) -> int:
        return os.getpid()

    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def fail(self) -> None:
        raise KeyError("mine")

    def fail_until(self, n: int) -> int:
        self.count += 1
        if self.count < n:
            raise KeyError("not yet")
        return self.count

    def items(self, n: int) -> Iterator[int]:
        yield from range(n)

    def end(self, how: str) -> None:
        if how == "exit_actor":
            zmesh.actor.exit_actor()
        elif how == "sys.exit":
            sys.exit(3)
        elif how == "os._exit":
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        os.kill(os.getpid(), getattr(signal, how))

    def me(self) -> Any:
        return zmesh.get_runtime_context().current_actor

    def context(self) -> Any:
        context = zmesh.get_runtime_context()
        return context.get_actor_id(), context.get_task_name(), context.was_current_actor_reconstructed

    def gpus(self) -> list[int]:
        return zmesh.get_gpu_ids()

    def resources(self) -> dict[str, float]:
        return zmesh.get_runtime_context().get_assigned_resources()


@zmesh.remote
def add_to(counter: Any, n: int) -> int:
    return zmesh.get(counter.add.remote(n))


@zmesh.remote
def add_to_first(counters: list[Any], n: int) -> int:
    return zmesh.get(counters[0].add.remote(n))


@zmesh.remote
def slow(value: Any, seconds: float) -> Any:
    time.sleep(seconds)
    return value


def test_calls_see_the_state_that_earlier_ones_left(mesh: None) -> None:
    counter = Counter.remote(10)
    assert zmesh.get([counter.add.remote(i) for i in range(5)]) == [10, 11, 13, 16, 20]
    assert zmesh.get(counter.add.remote(zmesh.put(1))) == 21
    assert zmesh.get(list(counter.items.remote(3))) == [0, 1, 2]


def test_calls_start_in_order_also_behind_one_that_waits_for_its_argument(mesh: None) -> None:
    @zmesh.remote
    class Order:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def note(self, what: Any) -> None:
            self.seen.append(what)

        def all(self) -> list[Any]:
            return self.seen

    order = Order.remote()
    for i in range(50):
        order.note.remote(slow.remote(i, 0.1) if i == 5 else i)
    assert zmesh.get(order.all.remote()) == list(range(50))


def test_an_exception_of_a_method_is_the_users_own_and_the_actor_lives_on(mesh: None) -> None:
    counter = Counter.remote()
    with pytest.raises(KeyError) as caught:
        zmesh.get(counter.fail.remote())
    assert isinstance(caught.value, TaskError)
    assert caught.value.function == "Counter.fail"
    assert zmesh.get(counter.add.remote()) == 1


def test_retry_exceptions_runs_a_method_again(mesh: None) -> None:
    counter = Counter.remote()
    with pytest.raises(KeyError):
        zmesh.get(counter.fail_until.options(max_task_retries=1, retry_exceptions=[KeyError]).remote(9))
    assert zmesh.get(counter.fail_until.options(max_task_retries=9, retry_exceptions=True).remote(5)) == 5
    with pytest.raises(KeyError):
        zmesh.get(counter.fail_until.options(max_task_retries=9, retry_exceptions=[OSError]).remote(99))


def test_an_exception_in_init_comes_with_each_call_and_carries_the_traceback(mesh: None) -> None:
    @zmesh.remote
    class Broken:
        def __init__(self) -> None:
            raise OSError("no such device")

        def use(self) -> None:
            pass

    broken = Broken.options(max_restarts=3).remote()
    for ref in (broken.use.remote(), broken.__ray_ready__.remote()):
        with pytest.raises(ActorDiedError, match=r"OSError: no such device[^$]*Traceback[^$]*in __init__") as caught:
            zmesh.get(ref)
        assert caught.value.actor_init_failed
    assert caught.value.class_name.endswith("Broken")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("is_async", [False, True])
def test_whatever_init_raises_the_actor_is_dead(mesh: None, kind: type[BaseException], is_async: bool) -> None:
    class Plain:
        def __init__(self) -> None:
            raise kind("not today")

        def use(self) -> None:
            pass

    class Async(Plain):
        async def wait(self) -> None:
            pass

    broken = zmesh.remote(Async if is_async else Plain).remote()
    with pytest.raises(ActorDiedError, match=f"__init__ raised {kind.__name__}: not today") as caught:
        zmesh.get(broken.use.remote())
    assert caught.value.actor_init_failed


@pytest.mark.parametrize("is_async", [False, True])
def test_an_actor_makes_others_of_its_own_class(mesh: None, is_async: bool) -> None:
    """The class travels by value, with methods that name the actor class: that arrives before the class is whole."""

    @zmesh.remote(num_cpus=0)
    class Plain:
        def make(self, more: int) -> int:
            return 1 + zmesh.get(Plain.remote().make.remote(more - 1)) if more else 0

    @zmesh.remote(num_cpus=0)
    class Async:
        def __init__(self, more: int = 2) -> None:
            self.more = more

        async def make(self, more: int) -> int:
            return 1 + await Async.remote(self.more - 1).make.remote(more - 1) if more else 0

    assert zmesh.get((Async if is_async else Plain).remote().make.remote(2), timeout=20) == 2


@pytest.mark.parametrize("how", ["os._exit", "SIGKILL", "SIGSEGV"])
def test_an_actor_that_dies_says_how_at_each_call(mesh: None, how: str) -> None:
    counter = Counter.remote()
    calls = [counter.end.remote(how), counter.add.remote()]
    for ref in calls:
        with pytest.raises(ActorDiedError) as caught:
            zmesh.get(ref)
        error = caught.value
        assert (error.exit_code, error.signal_name) == ((3, None) if how == "os._exit" else (None, how))
        assert error.stderr_tail == ("last words" if how == "os._exit" else "")
        assert error.actor_id == counter._actor_id.hex()
    with pytest.raises(ActorDiedError):
        zmesh.get(counter.add.remote())


@pytest.mark.parametrize("how", ["exit_actor", "sys.exit"])
def test_an_actor_that_exits_fails_what_is_behind(mesh: None, how: str) -> None:
    counter = Counter.options(max_restarts=5).remote()
    calls = [counter.add.remote(), counter.end.remote(how), counter.add.remote()]
    assert zmesh.get(calls[0]) == 1
    for ref in (*calls[1:], counter.add.remote()):
        with pytest.raises(ActorDiedError, match=r"exit|ended in good order"):
            zmesh.get(ref)


def test_exit_actor_is_for_actors_only(mesh: None) -> None:
    with pytest.raises(LocalProtocolError, match="no actor runs"):
        zmesh.actor.exit_actor()


def test_terminate_waits_for_what_came_before(mesh: None) -> None:
    counter = Counter.remote()
    calls = [counter.nap.remote(0.05), counter.add.remote()]
    end = counter.__ray_terminate__.remote()
    assert zmesh.get(calls) == [0.05, 1]
    with pytest.raises(ActorDiedError):
        zmesh.get(end)


def test_a_restarted_actor_starts_anew_and_says_what_may_have_run(mesh: None) -> None:
    counter = Counter.options(max_restarts=1).remote(5)
    first = zmesh.get(counter.pid.remote())
    assert zmesh.get(counter.add.remote()) == 6
    napping = counter.nap.remote(60)
    assert _until(lambda: zmesh.explain(napping).startswith("Counter.nap was sent"), 5.0)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(ActorUnavailableError, match=r"may or may not have run.*Its worker was killed by SIGKILL"):
        zmesh.get(napping)
    assert zmesh.get(counter.add.remote()) == 6
    assert zmesh.get(counter.pid.remote()) != first
    assert zmesh.get(counter.context.remote())[2]
    os.kill(zmesh.get(counter.pid.remote()), signal.SIGKILL)
    with pytest.raises(ActorDiedError):
        zmesh.get(counter.nap.remote(60))


def test_calls_with_retries_are_sent_again_in_order(mesh: None) -> None:
    counter = Counter.options(max_restarts=-1, max_task_retries=-1).remote()
    pid = zmesh.get(counter.pid.remote())
    calls = [counter.nap.remote(0.3), *(counter.add.remote() for _ in range(600))]
    time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    assert zmesh.get(calls) == [0.3, *range(1, 601)]


def test_kill_ends_an_actor_whatever_it_does(mesh: None) -> None:
    counter = Counter.options(max_restarts=9).remote()
    pid = zmesh.get(counter.pid.remote())
    calls = [counter.nap.remote(60), counter.add.remote()]
    zmesh.kill(counter)
    for ref in (*calls, counter.add.remote()):
        with pytest.raises(ActorDiedError, match=r"killed by zmesh\.kill"):
            zmesh.get(ref)
    assert _until(lambda: not os.path.exists(f"/proc/{pid}"), 5.0)


def test_kill_of_an_actor_that_is_not_made_yet_ends_it(mesh: None) -> None:
    started = time.monotonic()
    many = [Counter.remote() for _ in range(6)]
    calls = [counter.nap.remote(60) for counter in many]
    for counter in many:
        zmesh.kill(counter)
    for ref in calls:
        with pytest.raises(ActorDiedError):
            zmesh.get(ref)
    assert time.monotonic() - started < 10


def test_kill_with_restart_makes_the_actor_anew(mesh: None) -> None:
    counter = Counter.options(max_restarts=1, max_task_retries=-1).remote()
    assert zmesh.get(counter.add.remote()) == 1
    zmesh.kill(counter, no_restart=False)
    assert _until(lambda: zmesh.get(counter.context.remote())[2], 5.0)
    assert zmesh.get(counter.add.remote()) == 1


def test_handles_travel_and_keep_the_actor_alive(mesh: None) -> None:
    counter = Counter.remote()
    assert zmesh.get(add_to.remote(counter, 1)) == 1
    assert zmesh.get(add_to_first.remote([counter], 1)) == 2
    same = zmesh.get(slow.remote([counter], 0.0))[0]
    assert same == counter
    assert hash(same) == hash(counter)
    assert len({same, counter, Counter.remote()}) == 2
    pending = add_to.remote(slow.remote(counter, 0.2), 5)
    del counter, same
    gc.collect()
    assert zmesh.get(pending) == 7


def test_an_actor_made_in_a_task_outlives_the_task(mesh: None) -> None:
    @zmesh.remote
    def make() -> Any:
        return Counter.remote(40)

    counter = zmesh.get(make.remote())
    assert zmesh.get(counter.add.remote()) == 41
    assert zmesh.get(add_to.remote(counter, 1)) == 42


def test_actors_call_each_other_and_themselves_by_handle(mesh: None) -> None:
    @zmesh.remote
    class Link:
        def __init__(self, after: Any = None) -> None:
            self.after = after

        def depth(self) -> int:
            return 1 if self.after is None else 1 + zmesh.get(self.after.depth.remote())

    chain = None
    for _ in range(5):
        chain = Link.remote(chain)
    assert chain is not None
    assert zmesh.get(chain.depth.remote()) == 5
    counter = Counter.remote(3)
    myself = zmesh.get(counter.me.remote())
    assert myself == counter
    assert zmesh.get(myself.add.remote()) == 4
    assert zmesh.get(counter.context.remote())[:2] == (counter._actor_id.hex(), "Counter.context")


def test_two_actors_call_each_other_with_handles_that_come_and_go(mesh: None) -> None:
    @zmesh.remote
    class Peer:
        def call(self, others: list[Any], turns: int) -> int:
            return 0 if not turns else 1 + zmesh.get(others[0].one.remote())

        def one(self) -> int:
            return 1

        def stream(self, others: list[Any], n: int) -> list[int]:
            return zmesh.get(list(others[0].count.remote(n)))

        def count(self, n: int) -> Iterator[int]:
            yield from range(n)

    one, two = Peer.remote(), Peer.remote()
    for turn in range(3):
        assert zmesh.get(one.call.remote([two], turn)) == (2 if turn else 0)
        assert zmesh.get(two.call.remote([one], turn)) == (2 if turn else 0)
        gc.collect()
        assert zmesh.get(one.stream.remote([two], 20)) == list(range(20))
        assert zmesh.get(two.stream.remote([one], 20)) == list(range(20))


def test_a_borrower_hears_of_a_restart_and_of_the_end(mesh: None) -> None:
    @zmesh.remote
    class Caller:
        def __init__(self, target: Any) -> None:
            self.target = target[0]

        def call(self) -> Any:
            try:
                return zmesh.get(self.target.pid.remote())
            except (ActorDiedError, ActorUnavailableError) as error:
                return type(error).__name__

        def end(self) -> str:
            try:
                return str(zmesh.get(self.target.end.remote("SIGKILL")))
            except (ActorDiedError, ActorUnavailableError) as error:
                return type(error).__name__

        def kill(self) -> None:
            zmesh.kill(self.target)

    counter = Counter.options(max_restarts=1).remote()
    caller = Caller.remote([counter])
    first = zmesh.get(caller.call.remote())
    assert first == zmesh.get(counter.pid.remote())
    assert zmesh.get(caller.end.remote()) == "ActorUnavailableError"
    assert zmesh.get(caller.call.remote()) not in (first, "ActorDiedError")
    zmesh.get(caller.kill.remote())
    assert _until(lambda: zmesh.get(caller.call.remote()) == "ActorDiedError", 5.0)
    with pytest.raises(ActorDiedError):
        zmesh.get(counter.add.remote())


def test_an_actor_lets_go_of_a_caller_that_died(mesh: None) -> None:
    @zmesh.remote(max_retries=0)
    def call_and_die(counter: Any, values: list[Any]) -> None:
        counter.nap.remote(0.2)
        for value in values:
            counter.add.remote(value)
        time.sleep(0.05)
        os._exit(1)

    counter = Counter.remote()
    with pytest.raises(zmesh.exceptions.WorkerDiedError):
        zmesh.get(call_and_die.remote(counter, [zmesh.put(1)]))
    assert _until(lambda: zmesh.get(counter.add.remote(0)) in (0, 1), 5.0)


@pytest.mark.parametrize("how", ["exit_actor", "its handle goes"])
@pytest.mark.parametrize("places", [1, 2])
def test_the_actors_of_an_actor_that_ends_end_with_it(mesh: None, how: str, places: int) -> None:
    """It has their handles in its variables, which nobody else can use."""

    @zmesh.remote
    class Parent:
        def __init__(self) -> None:
            self.child = Counter.remote()
            self.me = self

        def pids(self) -> list[int]:
            return [os.getpid(), zmesh.get(self.child.pid.remote())]

        def share(self) -> Any:
            return self.child

        def end(self) -> None:
            zmesh.actor.exit_actor()

    parent = Parent.options(max_concurrency=places).remote()
    pids = zmesh.get(parent.pids.remote())
    child = zmesh.get(parent.share.remote()) if places == 1 else None
    if how == "exit_actor":
        with pytest.raises(ActorDiedError):
            zmesh.get(parent.end.remote())
    del parent
    gc.collect()
    if child is not None:
        assert zmesh.get(child.add.remote()) == 1, "we have its handle, so both stay"
        del child
        gc.collect()
    assert _until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 10.0)


def test_an_actor_dies_with_the_worker_that_made_it(mesh: None) -> None:
    @zmesh.remote
    class Parent:
        def pid(self) -> int:
            return os.getpid()

        def bear(self) -> Any:
            return Counter.options(max_restarts=-1, name="child").remote(5)

    parent = Parent.remote()
    child = zmesh.get(parent.bear.remote())
    assert zmesh.get(child.add.remote()) == 6
    pid = zmesh.get(child.pid.remote())
    os.kill(zmesh.get(parent.pid.remote()), signal.SIGKILL)
    with pytest.raises(ActorDiedError, match="the program that made it has ended"):
        zmesh.get([child.nap.remote(60)])
    assert _until(lambda: not os.path.exists(f"/proc/{pid}"), 5.0)
    with pytest.raises(ActorNotFoundError):
        zmesh.get_actor("child")


def test_an_actor_whose_process_dies_in_init_is_made_again(mesh: None, tmp_path: pathlib.Path) -> None:
    @zmesh.remote
    class Shaky:
        def __init__(self, path: str) -> None:
            with open(path, "a") as file:
                file.write("x")
            if os.path.getsize(path) < 3:
                os._exit(1)

        def tries(self, path: str) -> int:
            return os.path.getsize(path)

    path = str(tmp_path / "tries")
    shaky = Shaky.options(max_restarts=2).remote(path)
    assert zmesh.get(shaky.tries.remote(path)) == 3
    with pytest.raises(ActorDiedError, match="started 1 time"):
        zmesh.get(Shaky.remote(str(tmp_path / "others")).tries.remote(path))


def test_by_default_an_actor_needs_a_cpu_only_to_start(mesh: None) -> None:
    counters = [Counter.remote(i) for i in range(6)]
    assert zmesh.get([counter.add.remote() for counter in counters]) == [1, 2, 3, 4, 5, 6]
    assert zmesh.get([slow.remote(i, 0.0) for i in range(4)], timeout=10) == [0, 1, 2, 3]
    holder = Counter.options(num_cpus=2, num_gpus=1).remote()
    assert zmesh.get(holder.gpus.remote()) == [0]
    assert zmesh.get([holder.resources.remote(), counters[0].resources.remote()]) == [{"CPU": 2, "GPU": 1}, {}]
    assert zmesh.available_resources().get("CPU", 0) == 0
    waiting = slow.remote(1, 0.0)
    assert zmesh.wait([waiting], timeout=0.2) == ([], [waiting])
    del holder
    assert zmesh.get(waiting, timeout=10) == 1


def test_arrays_reach_an_actor_without_a_copy_and_stay(mesh: None) -> None:
    @zmesh.remote
    class Keeper:
        def keep(self, array: Any) -> bool:
            self.array = array
            return bool(array.flags.writeable)

        def total(self) -> float:
            return float(self.array.sum())

        def give(self) -> Any:
            return self.array

        def refs(self) -> list[Any]:
            return [zmesh.put(self.array), zmesh.put(1)]

    keeper = Keeper.remote()
    assert not zmesh.get(keeper.keep.remote(np.ones(500_000)))
    ref = zmesh.put(np.full(500_000, 2.0))
    assert zmesh.get(keeper.total.remote()) == 500_000
    zmesh.get(keeper.keep.remote(ref))
    del ref
    gc.collect()
    assert zmesh.get(keeper.total.remote()) == 1_000_000
    assert zmesh.get(keeper.give.remote()).shape == (500_000,)
    array, one = zmesh.get(keeper.refs.remote())
    assert (zmesh.get(array).sum(), zmesh.get(one)) == (1_000_000, 1)


def test_async_actors_run_many_calls_at_once_and_await_refs(mesh: None) -> None:
    @zmesh.remote
    class Gate:
        def __init__(self) -> None:
            self.open = asyncio.Event()

        async def wait(self, refs: list[Any]) -> Any:
            await self.open.wait()
            return await refs[0]

        async def let_in(self) -> None:
            self.open.set()

        async def items(self, n: int) -> Any:
            for i in range(n):
                await asyncio.sleep(0.001)
                yield i

        async def sleep(self) -> None:
            await asyncio.sleep(60)

    gate = Gate.remote()
    waiting = [gate.wait.remote([slow.remote(i, 0.0)]) for i in range(50)]
    zmesh.get(gate.let_in.remote())
    assert zmesh.get(waiting) == list(range(50))
    assert zmesh.get(list(gate.items.remote(4))) == [0, 1, 2, 3]
    asleep = gate.sleep.remote()
    zmesh.get(gate.let_in.remote())
    zmesh.cancel(asleep)
    with pytest.raises(TaskCancelledError):
        zmesh.get(asleep)
    assert zmesh.get(gate.wait.remote([zmesh.put(7)])) == 7


def test_threaded_actors_and_concurrency_groups_have_so_many_places(mesh: None) -> None:
    @zmesh.remote(max_concurrency=2, concurrency_groups={"io": 3})
    class Pool:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.now = {"": 0, "io": 0}
            self.most = {"": 0, "io": 0}

        def _work(self, group: str) -> None:
            with self.lock:
                self.now[group] += 1
                self.most[group] = max(self.most[group], self.now[group])
            time.sleep(0.05)
            with self.lock:
                self.now[group] -= 1

        @zmesh.method(concurrency_group="io")
        def io(self) -> None:
            self._work("io")

        def compute(self) -> None:
            self._work("")

        def seen(self) -> dict[str, int]:
            return self.most

    pool = Pool.remote()
    zmesh.get([method.remote() for _ in range(8) for method in (pool.io, pool.compute)])
    assert zmesh.get(pool.seen.options(concurrency_group="io").remote()) == {"": 2, "io": 3}
    with pytest.raises(ConfigError, match="has: io"):
        pool.io.options(concurrency_group="disk")


def test_max_pending_calls_refuses_more(mesh: None) -> None:
    counter = Counter.options(max_pending_calls=2).remote()
    calls = [counter.nap.remote(0.05), counter.nap.remote(0.05)]
    with pytest.raises(PendingCallsLimitExceededError, match="max_pending_calls=2"):
        counter.add.remote()
    zmesh.get(calls)
    assert zmesh.get(counter.add.remote()) == 1


def test_cancel_drops_a_call_that_waits_and_cannot_be_forced(mesh: None) -> None:
    counter = Counter.remote()
    running, behind = counter.nap.remote(0.1), counter.add.remote()
    zmesh.cancel(behind)
    with pytest.raises(TaskCancelledError):
        zmesh.get(behind)
    with pytest.raises(ConfigError, match=r"zmesh\.kill"):
        zmesh.cancel(running, force=True)
    assert zmesh.get([running, counter.add.remote()]) == [0.1, 1]


def test_the_built_in_methods_have_rays_names_too(mesh: None) -> None:
    counter = Counter.remote(2)
    assert zmesh.get(counter.__ray_ready__.remote()) is True
    assert zmesh.get(counter.__zmesh_ready__.remote()) is True
    assert zmesh.get(counter.__ray_call__.remote(lambda self, n: self.count + n, 40)) == 42


def test_misuse_says_what_to_write(mesh: None) -> None:
    with pytest.raises(TypeError, match=r"Counter\.remote\(\)"):
        Counter()
    with pytest.raises(TypeError, match="keep the plain class"):

        class Sub(Counter):
            pass

    counter = Counter.remote()
    with pytest.raises(TypeError, match=r"add\.remote\(\)"):
        counter.add(1)
    with pytest.raises(AttributeError, match="it has: add, context"):
        counter.count  # noqa: B018  # attributes cannot be read
    with pytest.raises(ValueError, match=r"unknown option 'cpus'.*num_cpus"):
        Counter.options(cpus=1)
    with pytest.raises(ValueError, match=r"unknown option 'retries'.*max_task_retries"):
        counter.add.options(retries=1)
    with pytest.raises(ValueError, match="get_if_exists=True needs a name"):
        Counter.options(get_if_exists=True)
    with pytest.raises(TypeError, match="ActorHandle"):
        zmesh.kill(counter.add.remote())


def test_a_name_finds_the_actor_and_is_free_when_it_is_gone(mesh: None) -> None:
    @zmesh.remote
    def add_by_name(n: int) -> int:
        return zmesh.get(zmesh.get_actor("counter").add.remote(n))

    with pytest.raises(ActorNotFoundError, match="'counter'"):
        zmesh.get_actor("counter")
    counter = Counter.options(name="counter").remote()
    assert zmesh.get([add_by_name.remote(1), zmesh.get_actor("counter").add.remote(1)]) in ([1, 2], [2, 1])
    assert zmesh.get_actor("counter") == counter
    with pytest.raises(ActorAlreadyExistsError):
        Counter.options(name="counter").remote()
    assert Counter.options(name="counter", get_if_exists=True).remote() == counter
    other = Counter.options(name="counter", namespace="elsewhere").remote(100)
    assert zmesh.get(zmesh.get_actor("counter", namespace="elsewhere").add.remote()) == 101
    assert zmesh.util.list_named_actors() == ["counter"]
    everywhere = [{"namespace": "default", "name": "counter"}, {"namespace": "elsewhere", "name": "counter"}]
    assert zmesh.util.list_named_actors(all_namespaces=True) == everywhere
    zmesh.kill(counter)
    again = Counter.options(name="counter", get_if_exists=True).remote(50)
    assert zmesh.get(again.add.remote()) == 51
    del counter, other, again
    gc.collect()
    assert _until(lambda: zmesh.util.list_named_actors(all_namespaces=True) == [], 5.0)


def test_of_many_who_want_a_name_one_gets_it(mesh: None) -> None:
    @zmesh.remote
    def take() -> Any:
        return Counter.options(name="one", get_if_exists=True).remote()

    handles = zmesh.get([take.remote() for _ in range(6)])
    assert len(set(handles)) == 1
    assert sorted(zmesh.get([handle.add.remote() for handle in handles])) == [1, 2, 3, 4, 5, 6]


def test_a_handle_is_of_no_use_in_a_forked_child(mesh: None) -> None:
    """The sockets are its parent's: a call through them waited for ever. What the child makes itself works."""
    counter = Counter.remote()
    zmesh.get(counter.add.remote())
    child = os.fork()
    if not child:
        refused = 0
        signal.alarm(10)
        try:
            for use in (counter.add.remote, lambda: zmesh.kill(counter)):
                try:
                    use()
                except MeshError:
                    refused += 1
        finally:
            os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert zmesh.get(counter.add.remote()) == 2


def test_actors_end_with_their_program_whoever_holds_them() -> None:
    code = """
import os, time, zmesh
@zmesh.remote
class A:
    def pid(self): return os.getpid()
    def nap(self): time.sleep(60)
zmesh.init("local", num_cpus=2)
actors = [A.remote() for _ in range(3)]
print(*zmesh.get([a.pid.remote() for a in actors]), flush=True)
actors[0].nap.remote()
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 3, done.stderr
    assert _until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 10.0)


def test_a_handle_of_a_session_that_is_over_says_so() -> None:
    zmesh.shutdown()
    zmesh.init("local", num_cpus=1)
    counter = Counter.remote()
    ref = counter.add.remote()
    zmesh.shutdown()
    for use in (counter.add.remote, lambda: zmesh.kill(counter), lambda: zmesh.cancel(ref)):
        with pytest.raises(NotRunningError, match=r"zmesh\.init\(\)"):
            use()


def test_local_mode_runs_actors_inline() -> None:
    zmesh.shutdown()
    with zmesh.init(local=True):
        counter = Counter.options(name="c").remote(1)
        assert zmesh.get(counter.pid.remote()) == os.getpid()
        assert zmesh.get(zmesh.get_actor("c").add.remote(zmesh.put(4))) == 5
        assert zmesh.get(list(counter.items.remote(3))) == [0, 1, 2]
        assert zmesh.get(counter.me.remote()) == counter
        with pytest.raises(KeyError):
            zmesh.get(counter.fail.remote())
        with pytest.raises(ActorDiedError):
            zmesh.get(counter.end.remote("exit_actor"))
        with pytest.raises(ActorNotFoundError):
            zmesh.get_actor("c")


def test_calls_fail_when_the_node_is_killed() -> None:
    zmesh.shutdown()
    zmesh.init("local", num_cpus=1)
    counter = Counter.remote()
    pid = zmesh.get(counter.pid.remote())
    running = counter.nap.remote(60)
    os.kill(zmesh.status()["pid"], signal.SIGKILL)
    for ref in (running, counter.add.remote()):
        with pytest.raises((NodeDiedError, ActorDiedError)):
            zmesh.get(ref)
    assert _until(lambda: not os.path.exists(f"/proc/{pid}"), 10.0)
    zmesh.shutdown()


def test_each_thread_of_an_actor_takes_call_after_call(mesh: None) -> None:
    @zmesh.remote(max_concurrency=3, concurrency_groups={"io": 1})
    class Threads:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.inside = self.most = 0

        def enter(self) -> int:
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            time.sleep(0.0002)
            with self.lock:
                self.inside -= 1
            return threading.get_ident()

        @zmesh.method(concurrency_group="io")
        def read(self) -> int:
            return threading.get_ident()

        def greatest(self) -> int:
            return self.most

    actor = Threads.remote()
    refs = [actor.read.remote() if number % 4 == 0 else actor.enter.remote() for number in range(600)]
    threads = zmesh.get(refs, timeout=20)
    assert len(set(threads[::4])) == 1
    assert len({ident for number, ident in enumerate(threads) if number % 4}) <= 3
    assert zmesh.get(actor.greatest.remote()) <= 3
