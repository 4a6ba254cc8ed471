"""Detached actors on simulated hosts: whole or not at all, found by all, and nothing is left when they are dead."""

import random
from typing import Any

import msgpack
import pytest

from tests.sim.programs import program
from tests.sim.simulator import NODE, Process, Simulation, value_of
from zmesh.core.records import Entry, Inputs, Task
from zmesh.wire import messages as m
from zmesh.wire.actor_messages import NAME_FIND

SEEDS = range(20)
ACTOR = program("actor")


def resolved(sim: Simulation, entries: list[Any], limit: float = 60.0) -> None:
    sim.run_until(lambda: all(entry.status != m.PENDING for entry in entries), limit)


def find(sim: Simulation, process: Process, name: str) -> Entry | None:
    """Return a handle of the actor of that name, None if there is none."""
    told = process.core.actors.ask_name(NAME_FIND, "ns", name)
    sim.settle(process)
    resolved(sim, [told])
    if not told.value:
        return None
    handle, ticket = process.core.references.claim_found(told.value[2])
    sim.settle(process)
    resolved(sim, [ticket])
    found: Entry = handle
    if ticket.status == m.INLINE:
        return found
    process.core.references.unclaim(handle)
    return None


def take(sim: Simulation, process: Process, ticket: Entry) -> Entry:
    """Return the handle that came with Kept."""
    handle: Entry = process.core.references.borrow(ticket.value.found[2], counted=True)
    sim.settle(process)
    return handle


def call(sim: Simulation, process: Process, handle: Entry, value: int = 7) -> Task:
    task = sim.call(process, handle, program("work", value=value))
    resolved(sim, [task])
    return task


def end(sim: Simulation, process: Process, handle: Entry) -> None:
    actor = process.core.actors.find(handle, "A", ordered=True)
    process.core.kill_actor(actor, sim.now, no_restart=True)
    sim.settle(process)


def rest(sim: Simulation, process: Process, entries: list[Any]) -> None:
    """Let go of everything: then nothing is left, and no keeper."""
    for entry in entries:
        if entry.refs:
            sim.drop(process, entry)
    sim.run(sim.now + 60.0)
    for host in sim.hosts.values():
        if host.process.alive:
            assert len(host.core.directory) == 0, sim.tail()
            assert not host.core.actors.places._places, sim.tail()
            assert not host.core.actors.names._entries, sim.tail()
            assert host.core.keepers.describe() == [], sim.tail()
            assert host.core.resources.available == host.core.resources.total, sim.tail()
    living = [one.name for one in sim.processes.values() if one.alive and one.name[0] in "kw"]
    assert not living, sim.tail()


def promoted(sim: Simulation, process: Process, entries: list[Entry]) -> None:
    ticket = process.core.references.promote(entries)
    sim.settle(process)
    resolved(sim, [ticket])


@pytest.mark.parametrize("seed", SEEDS)
def test_an_actor_outlives_its_program_and_is_called_from_every_host(seed: int) -> None:
    sim = Simulation(seed, hosts=1 + seed % 3)
    maker = sim.driver("maker")
    held = maker.core.put(m.STORED, sim.write(maker, 1), [])
    promoted(sim, maker, [held])
    ticket = sim.keep(maker, ACTOR, "x", restarts=1, inputs=Inputs([held], [held]))
    resolved(sim, [ticket])
    assert ticket.value.made
    first = call(sim, maker, take(sim, maker, ticket), 1)
    assert value_of(first) == [1, 0]
    sim.kill(maker)
    sim.run(sim.now + 60.0)
    assert sum(host.core.tallies.repaired for host in sim.hosts.values()) == 0, "all is counted as it is held"
    sim.kill(sim.ready_workers()[0])
    sim.run(sim.now + 1.0)
    for index, host in enumerate(sim.hosts):
        user = sim.driver(f"user{index}", host)
        handle = find(sim, user, "x")
        assert handle is not None
        assert value_of(call(sim, user, handle, index)) == [index, 1]
    (told,) = sim.node.keepers.describe()
    assert (told["name"], told["state"], told["node"]) == ("x", "alive", sim.node.node.hex())
    end(sim, user, handle)
    for process in list(sim.processes.values()):
        if process.name.startswith("user") and process is not user:
            sim.kill(process)
    rest(sim, user, [handle])


@pytest.mark.parametrize("seed", range(60))
def test_a_program_killed_at_any_time_leaves_a_whole_actor_or_none(seed: int) -> None:
    fate = random.Random(seed)
    sim = Simulation(seed, hosts=1 + seed % 2)
    maker = sim.driver("maker")
    held = maker.core.put(m.STORED, sim.write(maker, 1), [])
    first = maker.core.put(m.INLINE, msgpack.packb(1), [])
    promoted(sim, maker, [held, first])
    sim.keep(maker, ACTOR, "x", inputs=Inputs([first], [held]))
    sim.run(sim.now + fate.uniform(0.0, 0.0012))
    sim.kill(maker)
    sim.run(sim.now + 5.0)
    user = sim.driver("user", list(sim.hosts)[-1])
    handle = find(sim, user, "x")
    if handle is not None:
        assert value_of(call(sim, user, handle)) == [7, 0]
        assert len(sim.node.directory) == 3, "the actor and what it was made with"
        end(sim, user, handle)
    rest(sim, user, [handle] if handle is not None else [])


@pytest.mark.parametrize("seed", SEEDS)
def test_an_argument_that_never_comes_is_the_error_of_the_actor(seed: int) -> None:
    sim = Simulation(seed)
    maker, user = sim.driver("maker"), sim.driver("user")
    slow = sim.submit(maker, sim.spec(maker), program("work", seconds=3.0))
    promoted(sim, maker, [slow])
    ticket = sim.keep(maker, ACTOR, "x", inputs=Inputs([slow], []))
    resolved(sim, [ticket])
    handle = find(sim, user, "x")
    assert handle is not None
    sim.kill(maker)
    task = call(sim, user, handle)
    assert task.value[0] in ("ActorDiedError", "OwnerDiedError"), task.value
    rest(sim, user, [handle, task])


@pytest.mark.parametrize("seed", SEEDS)
def test_of_all_who_make_it_at_once_one_does(seed: int) -> None:
    sim = Simulation(seed, hosts=3)
    makers = [sim.driver(f"d{index}", host) for index, host in enumerate(sim.hosts)]
    tickets = [sim.keep(maker, ACTOR, "x") for maker in makers]
    resolved(sim, tickets)
    assert [ticket.value.made for ticket in tickets].count(True) == 1
    assert len({bytes(ticket.value.found[2]) for ticket in tickets}) == 1
    sim.run(sim.now + 5.0)
    assert sum(len(host.core.keepers.describe()) for host in sim.hosts.values()) == 1
    maker = makers[[ticket.value.made for ticket in tickets].index(True)]
    handle = take(sim, maker, tickets[makers.index(maker)])
    end(sim, maker, handle)
    rest(sim, maker, [handle])


@pytest.mark.parametrize("seed", SEEDS)
def test_what_it_needs_must_be_there_when_it_is_asked_for(seed: int) -> None:
    sim = Simulation(seed, hosts=2)
    far, maker = list(sim.hosts.values())[1], sim.driver("maker")
    other = sim.driver("other", far.id)
    there = other.core.put(m.INLINE, msgpack.packb(1), [])
    promoted(sim, other, [there])
    handle, claimed = maker.core.references.claim_found(other.core.references.oid(there))
    sim.settle(maker)
    resolved(sim, [claimed])
    lost = seed % 2
    if lost:
        sim.kill_host(far)
    ticket = sim.keep(maker, ACTOR, "x", inputs=Inputs([handle], []))
    resolved(sim, [ticket])
    if lost:
        assert ticket.status == m.ERROR
        assert "which is gone" in ticket.value[1]
        rest(sim, maker, [handle])
    else:
        made = take(sim, maker, ticket)
        sim.kill(other)
        assert value_of(call(sim, maker, made)) == [7, 0]
        end(sim, maker, made)
        rest(sim, maker, [handle, made])


@pytest.mark.parametrize("seed", SEEDS)
def test_only_the_death_of_its_own_node_ends_it(seed: int) -> None:
    sim = Simulation(seed, hosts=3)
    _, second, third = sim.hosts.values()
    maker, user = sim.driver("maker", second.id), sim.driver("user")
    ticket = sim.keep(maker, ACTOR, "x", restarts=seed % 2)
    resolved(sim, [ticket])
    handle = find(sim, user, "x")
    assert handle is not None
    assert value_of(call(sim, user, handle)) == [7, 0]
    sim.kill_host(third)
    sim.run(sim.now + 5.0)
    assert value_of(call(sim, user, handle)) == [7, 0]
    sim.kill_host(second)
    task = call(sim, user, handle)
    assert task.value[0] == "ActorDiedError"
    again = sim.keep(user, ACTOR, "x")
    resolved(sim, [again])
    assert again.value.made, "the name is free"
    made = take(sim, user, again)
    end(sim, user, made)
    rest(sim, user, [handle, task, made])


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_made_anew_whatever_dies_as_often_as_it_may(seed: int) -> None:
    fate = random.Random(seed)
    sim = Simulation(seed, hosts=1 + seed % 2)
    maker, user = sim.driver("maker"), sim.driver("user", list(sim.hosts)[-1])
    ticket = sim.keep(maker, ACTOR, "x", restarts=-1, here=bool(seed % 3))
    resolved(sim, [ticket])
    sim.kill(maker)
    handle = find(sim, user, "x")
    assert handle is not None
    calls: list[Task] = []
    for _ in range(6):
        calls += [sim.call(user, handle, program("work", value=1), retries=-1) for _ in range(5)]
        sim.run(sim.now + fate.uniform(0.0, 0.05))
        workers = sim.ready_workers()
        if workers and fate.random() < 0.7:
            sim.kill(fate.choice(workers))
    resolved(sim, calls)
    assert all(value_of(one)[0] == 1 for one in calls)
    end(sim, user, handle)
    rest(sim, user, [handle, *calls])


@pytest.mark.parametrize("seed", SEEDS)
def test_one_that_ends_itself_or_fails_frees_its_name_and_its_keeper_goes(seed: int) -> None:
    sim = Simulation(seed)
    maker = sim.driver("maker")
    for how in (program("actor", fails=True), ACTOR, ACTOR):
        ticket = sim.keep(maker, how, "x")
        resolved(sim, [ticket])
        assert ticket.value.made
        handle = take(sim, maker, ticket)
        task = sim.call(maker, handle, program("exit"))
        resolved(sim, [task])
        assert task.value[0] == "ActorDiedError"
        sim.run(sim.now + 0.2)
        sim.drop(maker, handle)
        sim.drop(maker, task)
    rest(sim, maker, [])


def other(index: int) -> bytes:
    return NODE[:7] + bytes([NODE[7] + index])


def far_argument(sim: Simulation, maker: Process, seed: int, seconds: float = 0.01) -> Entry:
    """Return an argument that lies on the second host: a task made it there for the maker, or a program put it."""
    if seed % 2:
        there = maker.core.new_spec(maker.peer, "f", {"CPU": m.UNIT, f"node:{other(1).hex()}": 1}, max_retries=0)
        made: Entry = sim.submit(maker, there, program("big", seconds=seconds))
        promoted(sim, maker, [made])
        return made
    putter = sim.driver("putter", other(1))
    put = putter.core.put(m.STORED, sim.write(putter, 1), [])
    promoted(sim, putter, [put])
    handle, claim = maker.core.references.claim_found(putter.core.references.oid(put))
    maker.core.fetch(handle)
    sim.settle(maker)
    resolved(sim, [handle, claim])
    return handle


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_it_is_made_anew_when_the_host_is_gone_where_its_argument_lay(seed: int, here: bool) -> None:
    sim = Simulation(seed, hosts=3)
    maker, user = sim.driver("maker"), sim.driver("user", other(2))
    argument = far_argument(sim, maker, seed)
    resolved(sim, [argument])
    ticket = sim.keep(maker, ACTOR, "x", restarts=-1, inputs=Inputs([argument], []), here=here)
    resolved(sim, [ticket])
    assert ticket.value.made
    sim.kill(maker)
    sim.kill_host(sim.hosts[other(1)], seconds=0.1)
    sim.run(sim.now + 2.0)
    handle = find(sim, user, "x")
    assert handle is not None
    first = sim.call(user, handle, program("work", value=1), retries=-1)
    resolved(sim, [first])
    before = value_of(first)[1]
    for worker in sim.ready_workers():
        sim.kill(worker)
    again = sim.call(user, handle, program("work", value=2), retries=-1)
    resolved(sim, [again])
    assert value_of(again) == [2, before + 1]
    end(sim, user, handle)
    rest(sim, user, [handle, first, again])
    assert not sim.node.copies.here(), "the copy went with the actor"


@pytest.mark.parametrize("seed", range(1, 20, 2))
def test_an_argument_that_is_made_after_the_actor_is_copied_as_it_comes(seed: int) -> None:
    sim = Simulation(seed, hosts=3)
    maker, user = sim.driver("maker"), sim.driver("user", other(2))
    argument = far_argument(sim, maker, seed, seconds=1.0)
    ticket = sim.keep(maker, ACTOR, "x", restarts=-1, inputs=Inputs([argument], []))
    resolved(sim, [ticket], 0.5)
    handle = find(sim, user, "x")
    assert handle is not None
    first = sim.call(user, handle, program("work", value=1), retries=-1)
    resolved(sim, [first])
    assert value_of(first) == [1, 0]
    sim.kill(maker)
    sim.kill_host(sim.hosts[other(1)], seconds=0.1)
    sim.run(sim.now + 2.0)
    sim.kill(next(worker for worker in sim.ready_workers() if worker.core.server.groups))
    again = sim.call(user, handle, program("work", value=2), retries=-1)
    resolved(sim, [again])
    assert value_of(again) == [2, 1]
    end(sim, user, handle)
    rest(sim, user, [handle, first, again])


@pytest.mark.parametrize("seed", SEEDS)
def test_an_argument_that_finds_no_room_is_said_to_whoever_wants_the_actor(seed: int) -> None:
    sim = Simulation(seed, hosts=2)
    maker = sim.driver("maker")
    argument = far_argument(sim, maker, seed)
    resolved(sim, [argument])
    sim.full = [sim.hosts[NODE]]
    ticket = sim.keep(maker, ACTOR, "x", inputs=Inputs([argument], []))
    resolved(sim, [ticket])
    assert ticket.value[0] == "StoreFullError"
    assert "the actor 'x' cannot be made" in ticket.value[1]
    assert find(sim, maker, "x") is None
    for process in sim.processes.values():
        if process.name == "putter":
            sim.kill(process)
    rest(sim, maker, [argument])


@pytest.mark.parametrize("seed", range(1, 8, 2))
def test_an_argument_that_comes_late_and_finds_no_room_is_warned_of(seed: int) -> None:
    sim = Simulation(seed, hosts=2)
    sim.warnings = []
    maker = sim.driver("maker")
    argument = far_argument(sim, maker, seed, seconds=1.0)
    ticket = sim.keep(maker, ACTOR, "x", inputs=Inputs([argument], []))
    resolved(sim, [ticket])
    sim.full = [sim.hosts[NODE]]
    resolved(sim, [argument])
    sim.run(sim.now + 1.0)
    assert "is not on this host" in sim.warnings[0]
