"""An actor's handle of itself: it passes it on, calls itself, and lives as long as others have it."""

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest

import zmesh
from tests.mesh.test_actors import _until


@pytest.fixture(scope="module", autouse=True)
def mesh() -> Iterator[None]:
    zmesh.init("local", num_cpus=2)
    yield
    zmesh.shutdown()


def myself() -> Any:
    return zmesh.get_runtime_context().current_actor


@zmesh.remote
class Registry:
    def __init__(self) -> None:
        self.members: list[Any] = []

    def register(self, member: Any) -> int:
        self.members.append(member)
        return len(self.members)

    def pids(self) -> list[int]:
        return zmesh.get([member.pid.remote() for member in self.members])

    def clear(self) -> None:
        self.members.clear()
        gc.collect()


@zmesh.remote
class Member:
    def __init__(self, registry: Any = None) -> None:
        if registry is not None:
            zmesh.get(registry.register.remote(myself()))

    def join(self, registry: Any) -> int:
        count: int = zmesh.get(registry.register.remote(myself()))
        return count

    def pid(self) -> int:
        return os.getpid()

    def pid_later(self) -> Any:
        return myself().pid.remote()

    async def twice(self) -> list[int]:
        return [await myself().pid.remote(), await myself().pid.remote()]

    def kill(self) -> None:
        zmesh.kill(myself())


@pytest.mark.parametrize("kept", [True, False])
def test_an_actor_passes_itself_on_and_ends_with_the_last_handle(kept: bool) -> None:
    registry = Registry.remote()
    member = Member.remote()
    assert zmesh.get(member.join.remote(registry), timeout=30) == 1
    assert zmesh.get(Member.remote().join.remote(registry), timeout=30) == 2, "the caller has no handle any more"
    other = Member.remote(registry)
    assert zmesh.get(other.pid.remote(), timeout=30) > 0
    if not kept:
        del member, other
        gc.collect()
    pids = zmesh.get(registry.pids.remote(), timeout=30)
    assert len(set(pids)) == 3
    zmesh.get(registry.clear.remote())
    left = 2 if kept else 0
    assert _until(lambda: sum(os.path.exists(f"/proc/{pid}") for pid in pids) == left, 20.0)


def test_an_actor_calls_itself() -> None:
    member = Member.remote()
    pid = zmesh.get(member.pid.remote())
    assert zmesh.get(member.twice.remote(), timeout=30) == [pid, pid]
    assert zmesh.get(zmesh.get(member.pid_later.remote()), timeout=30) == pid
    assert zmesh.get(zmesh.get(Member.remote().pid_later.remote()), timeout=30) > 0
    member.kill.remote()
    assert _until(lambda: not os.path.exists(f"/proc/{pid}"), 20.0)


def test_a_named_actor_and_a_detached_one_do_too() -> None:
    named = Member.options(name="named").remote()
    detached = Member.options(name="detached", lifetime="detached").remote()
    for member in (named, detached):
        assert zmesh.get(member.twice.remote(), timeout=30)[0] == zmesh.get(member.pid.remote())
    zmesh.kill(detached)
