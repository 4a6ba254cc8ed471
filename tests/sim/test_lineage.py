"""Hosts that die with results on them, in the simulator: what can be made again is, what cannot says why."""

from typing import Any

import pytest

from tests.sim.programs import program
from tests.sim.simulator import NODE, Process, Simulation, value_of
from zmesh.core import copies, orphans
from zmesh.core.effects import Send
from zmesh.core.records import Entry, Inputs, Spec, Task
from zmesh.wire import messages as m

SEEDS = range(12)


def other(index: int) -> bytes:
    return NODE[:7] + bytes([NODE[7] + index])


def on(driver: Process, node: bytes, **options: Any) -> Spec:
    """A function whose tasks run there for choice, elsewhere if that host is gone."""
    wish = {"CPU": m.UNIT, f"node:{node.hex()}": 1}
    spec: Spec = driver.core.new_spec(driver.peer, "f", wish, fallbacks=[{"CPU": m.UNIT}], **options)
    return spec


def big(sim: Simulation, driver: Process, spec: Spec, *inputs: Entry, seconds: float = 0.02) -> Task:
    return sim.submit(driver, spec, program("big", seconds=seconds), Inputs(list(inputs)) if inputs else None)


def resolve(sim: Simulation, entries: list[Any], seconds: float = 60.0) -> None:
    sim.run_until(lambda: all(entry.status != m.PENDING for entry in entries), seconds)


def get(sim: Simulation, process: Process, entries: list[Any]) -> list[Any]:
    """As get() does: (status, place or failure) of each."""
    for entry in entries:
        process.core.fetch(entry)
    sim.settle(process)
    resolve(sim, entries)
    ticket = process.core.references.localize(entries)
    sim.settle(process)
    if ticket is not None:
        sim.run_until(lambda: ticket.status != m.PENDING, 60.0)
    return [process.core.references.location(entry) for entry in entries]


def borrow(sim: Simulation, owner: Process, entry: Entry, borrower: Process) -> Entry:
    ticket = owner.core.references.promote([entry])
    sim.settle(owner)
    if ticket is not None:
        sim.run_until(lambda: ticket.status != m.PENDING, 5.0)
    oid = owner.core.references.oid(entry)
    owner.core.effects.append(Send(sim.host_of(owner).process.peer, m.Hold(0, [(oid, borrower.peer)])))
    sim.settle(owner)
    return borrower.core.references.borrow(oid, counted=True)


def ends_clean(sim: Simulation, held: list[tuple[Process, Entry]]) -> None:
    """When all refs are gone, nothing is left anywhere."""
    for process, entry in held:
        sim.drop(process, entry)
    sim.run(sim.now + 2 * copies.UNUSED_S + 5)
    for process in sim.processes.values():
        if process.alive and hasattr(process.core, "lineage"):
            assert not process.core.lineage, process.name
    for host in sim.hosts.values():
        if host.process.alive:
            assert len(host.core.directory) == 0
            assert not host.core.copies
            assert not host.copies
    free = [segment for process in sim.processes.values() for segment in process.free]
    # What a worker had written when it was killed goes with its job.
    kept = [segment for segment, maker in sim.makers.items() if segment in sim.written and sim.processes[maker].alive]
    assert not [segment for segment in kept if segment not in free]


@pytest.mark.parametrize("cuts", [0.0, 0.2])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_chain_of_results_is_made_again_from_its_beginning(seed: int, cuts: float) -> None:
    sim = Simulation(seed, hosts=3, cpus=1)
    sim.cuts = cuts
    driver = sim.driver("d")
    spec = on(driver, other(1))
    chain = [big(sim, driver, spec)]
    for _ in range(4):
        chain.append(big(sim, driver, spec, chain[-1]))
    resolve(sim, chain)
    assert {task.value[2][:8] for task in chain} == {other(1)}
    dropped = chain[:-1] if seed % 2 else chain[1:-1:2]
    for task in dropped:
        sim.drop(driver, task)
    sim.run(sim.now + 0.2)
    sim.kill_host(sim.hosts[other(1)])
    sim.run(sim.now + 3.0)
    kept = [task for task in chain if task not in dropped]
    assert [status for status, _ in get(sim, driver, kept[::-1])] == [m.STORED] * len(kept)
    assert len(sim.started) <= 10
    ends_clean(sim, [(driver, task) for task in kept])


@pytest.mark.parametrize("cuts", [0.0, 0.2])
@pytest.mark.parametrize("seed", SEEDS)
def test_tasks_whose_arguments_are_lost_wait_until_they_are_made_again(seed: int, cuts: float) -> None:
    sim = Simulation(seed, hosts=3, cpus=1)
    sim.cuts = cuts
    driver = sim.driver("d")
    first, anywhere = on(driver, other(1)), sim.spec(driver)
    tasks = [big(sim, driver, first) for _ in range(6)]
    resolve(sim, tasks)
    later = [big(sim, driver, anywhere, task, tasks[0], seconds=0.1) for task in tasks for _ in "ab"]
    for task in tasks[1:3]:
        sim.drop(driver, task)
    sim.run(sim.now + sim.rng.uniform(0.0, 0.6))
    sim.kill_host(sim.hosts[other(1)], seconds=sim.rng.uniform(0.1, 1.0))
    more = [sim.submit(driver, anywhere, program("work"), Inputs([task])) for task in tasks[3:]]
    resolve(sim, [*later, *more])
    assert [task.status for task in more] == [m.INLINE] * 3, [task.value for task in more]
    assert [task.status for task in later] == [m.STORED] * 12, [task.value for task in later]
    ends_clean(sim, [(driver, task) for task in [tasks[0], *tasks[3:], *later, *more]])


@pytest.mark.parametrize("places", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_calls_whose_arguments_are_lost_wait_for_them_and_those_behind_keep_their_order(seed: int, places: int) -> None:
    sim = Simulation(seed, hosts=3, cpus=1)
    sim.cuts = 0.1 * (seed % 3)
    driver, second = sim.driver("d"), sim.driver("e", other(2))
    handle = sim.create(driver, program("actor"), restarts=-1, places=places)
    made = {one.name: [big(sim, one, on(one, other(1))) for _ in range(3)] for one in (driver, second)}
    resolve(sim, [*made["d"], *made["e"]])
    handles = {"d": handle, "e": borrow(sim, driver, handle, second)}
    calls: dict[str, list[Task]] = {"d": [], "e": []}
    sim.at(sim.rng.uniform(0.0, 0.05), lambda: sim.kill_host(sim.hosts[other(1)], sim.rng.uniform(0.1, 0.5)))
    for step in range(20):
        for caller in (driver, second):
            argument = made[caller.name][step % 3] if step % 5 < 2 else None
            inputs = Inputs([argument]) if argument is not None else None
            code, of = program("work", value=step, seconds=0.003), handles[caller.name]
            calls[caller.name].append(sim.call(caller, of, code, inputs=inputs, retries=-1, ordered=places == 1))
        sim.run(sim.now + sim.rng.uniform(0.0, 0.01))
    cancelled = calls["d"][13]
    driver.core.cancel(cancelled, sim.now)
    sim.settle(driver)
    resolve(sim, [*calls["d"], *calls["e"]])
    told = [value_of(call)[0] for one in calls.values() for call in one if call is not cancelled]
    assert told == [step for step in range(20) if step != 13] + list(range(20))
    assert cancelled.status == m.INLINE or cancelled.value[0] == "TaskCancelledError"
    starts = [(worker, caller, seq) for worker, caller, seq, _ in sim.call_starts]
    assert len(starts) == len(dict.fromkeys(starts)), "none started twice in one incarnation"
    if places == 1:
        sim.check_order()
    for caller in (driver, second):
        for entry in (handles[caller.name], *made[caller.name], *calls[caller.name]):
            sim.drop(caller, entry)
    ends_clean(sim, [])


def test_a_call_whose_argument_cannot_be_made_again_fails_and_those_behind_it_go_on() -> None:
    sim = Simulation(3, hosts=2, cpus=1)
    driver = sim.driver("d")
    handle = sim.create(driver, program("actor"))
    lost = big(sim, driver, on(driver, other(1), max_retries=0))
    resolve(sim, [lost])
    sim.kill_host(sim.hosts[other(1)], 0.2)
    calls = [
        sim.call(driver, handle, program("work", value=step), inputs=Inputs([lost]) if step == 1 else None)
        for step in range(4)
    ]
    resolve(sim, calls)
    assert [call.status for call in calls] == [m.INLINE, m.ERROR, m.INLINE, m.INLINE]
    assert "max_retries=0" in calls[1].value[1]
    ends_clean(sim, [(driver, entry) for entry in (handle, lost, *calls)])


@pytest.mark.parametrize("cuts", [0.0, 0.2])
@pytest.mark.parametrize("seed", SEEDS)
def test_borrowers_on_any_host_get_what_was_made_again(seed: int, cuts: float) -> None:
    sim = Simulation(seed, hosts=4, cpus=1)
    sim.cuts = cuts
    driver = sim.driver("d")
    readers = [sim.driver("e"), sim.driver("f", other(2)), sim.driver("g", other(3))]
    spec = on(driver, other(1))
    parent = big(sim, driver, spec)
    task = big(sim, driver, spec, parent)
    resolve(sim, [task])
    sim.drop(driver, parent)
    entries = [borrow(sim, driver, task, reader) for reader in readers]
    if seed % 3 == 0:  # one knows the old place, one has a copy
        assert get(sim, readers[1], entries[1:2])[0][0] == m.STORED
        readers[2].core.fetch(entries[2])
        sim.settle(readers[2])
        resolve(sim, entries[2:])
    held = list(zip(readers, entries, strict=True))
    if seed % 2:
        sim.drop(driver, task)
    else:
        held.append((driver, task))
    sim.run(sim.now + 0.2)
    sim.kill_host(sim.hosts[other(1)])
    if seed % 4 < 2:
        sim.run(sim.now + 2.0)
    assert [get(sim, reader, [entry])[0][0] for reader, entry in held] == [m.STORED] * len(held)
    borrowing = sim.spec(readers[1])
    use = sim.submit(readers[1], borrowing, program("work"), Inputs([entries[1]]))
    resolve(sim, [use])
    assert use.status == m.INLINE
    ends_clean(sim, [*held, (readers[1], use)])


@pytest.mark.parametrize("seed", SEEDS)
def test_all_hosts_but_one_die_one_after_the_other_and_the_results_are_there(seed: int) -> None:
    sim = Simulation(seed, hosts=4, cpus=1)
    sim.cuts = 0.1
    driver = sim.driver("d")
    spec = sim.spec(driver, max_retries=-1)
    tasks = [big(sim, driver, spec) for _ in range(10)]
    tasks += [big(sim, driver, spec, task) for task in tasks]
    tasks += [big(sim, driver, spec, task, tasks[0]) for task in tasks[10:]]
    ends = tasks[20:]
    for task in tasks[:20]:
        sim.drop(driver, task)
    for index in (1, 2, 3):
        sim.run(sim.now + sim.rng.uniform(0.0, 0.5))
        sim.kill_host(sim.hosts[other(index)], seconds=sim.rng.uniform(0.1, 1.0))
    assert [status for status, _ in get(sim, driver, ends)] == [m.STORED] * 10
    ends_clean(sim, [(driver, task) for task in ends])


@pytest.mark.parametrize("seed", SEEDS)
def test_what_cannot_be_made_again_says_why_and_for_what(seed: int) -> None:
    sim = Simulation(seed, hosts=2, cpus=1)
    driver = sim.driver("d")
    once, often = on(driver, other(1), max_retries=0), on(driver, other(1))
    parent = big(sim, driver, once)
    child = big(sim, driver, often, parent)
    grandchild = big(sim, driver, often, child)
    resolve(sim, [grandchild])
    oids = [driver.core.references.oid(task).hex() for task in (parent, child, grandchild)]
    if seed % 2:
        sim.drop(driver, parent)
        sim.drop(driver, child)
    sim.run(sim.now + 0.1)
    sim.kill_host(sim.hosts[other(1)])
    sim.run(sim.now + 3.0)
    user = sim.submit(driver, sim.spec(driver), program("work"), Inputs([grandchild]))
    [(status, failure)] = get(sim, driver, [grandchild])
    assert (status, failure[0]) == (m.ERROR, "ObjectLostError")
    assert "max_retries=0" in failure[1]
    assert all(oid in failure[1] for oid in oids), failure[1]
    resolve(sim, [user])
    assert user.value[0] == "ObjectLostError"
    ends_clean(sim, [(driver, task) for task in ([] if seed % 2 else [parent, child]) + [grandchild, user]])


@pytest.mark.parametrize("seed", range(40))
def test_whatever_dies_every_ref_ends_with_its_value_or_the_reason(seed: int) -> None:
    """Tasks of all kinds on hosts and workers that die at any time: nothing hangs, and nothing is left."""
    sim = Simulation(seed, hosts=4, cpus=2)
    sim.warnings = []
    sim.cuts = sim.rng.choice([0.0, 0.1, 0.3])
    driver, reader = sim.driver("d"), sim.driver("r", other(sim.rng.randrange(4)))
    reader_host = sim.host_of(reader).id
    specs = [sim.spec(driver, max_retries=retries) for retries in (-1, -1, 3, 1, 0)]
    specs.append(sim.spec(driver, max_retries=-1, timeout_s=5.0))
    many = sim.spec(driver, max_retries=-1, num_returns=3)
    held: list[tuple[Process, Any]] = []
    dying = [index for index in (1, 2, 3) if other(index) != reader_host]
    for step in range(40):
        stored = [entry for process, entry in held if process is driver]
        inputs = sim.rng.sample(stored, min(len(stored), sim.rng.choice([0, 1, 1, 2])))
        kind = sim.rng.random()
        if kind < 0.6:
            spec = sim.rng.choice(specs)
            held.append((driver, big(sim, driver, spec, *inputs, seconds=sim.rng.uniform(0.001, 0.05))))
        elif kind < 0.75:
            task = sim.submit(driver, many, program("parts", count=3), Inputs(inputs) if inputs else None)
            held += [(driver, output) for output in task.outputs or ()]
        elif kind < 0.85:
            held.append((driver, driver.core.put(m.STORED, sim.write(driver, step), [])))
        elif stored:
            entry = sim.rng.choice(stored)
            held.append((reader, borrow(sim, driver, entry, reader)))
        if len(held) > 12:
            for _ in range(3):
                process, entry = held.pop(sim.rng.randrange(len(held)))
                sim.drop(process, entry)
        if step % 10 == 9 and dying:
            doomed = sim.hosts[other(dying.pop())]
            sim.at(sim.rng.uniform(0.0, 0.3), lambda doomed=doomed: sim.kill_host(doomed, 0.4))
        if sim.rng.random() < 0.1 and sim.live_workers():
            sim.kill(sim.rng.choice(sim.live_workers()))
        sim.run(sim.now + sim.rng.uniform(0.0, 0.1))
    for process, entry in held:
        status, value = get(sim, process, [entry])[0]
        assert status in (m.STORED, m.INLINE, m.ERROR)
        if status == m.ERROR:
            assert value[0] in ("ObjectLostError", "NodeDiedError", "WorkerDiedError"), value
    ends_clean(sim, held)


def replicate(sim: Simulation, owner: Process, copies_wanted: int) -> tuple[Entry, Any]:
    """As put(replicas=...) does; returns the entry and what Guarded said."""
    entry = owner.core.put(m.STORED, sim.write(owner, 0), [])
    tickets = [owner.core.references.promote([entry]), owner.core.references.replicate(entry, copies_wanted)]
    sim.settle(owner)
    resolve(sim, tickets)
    return entry, tickets[1].value


@pytest.mark.parametrize("cuts", [0.0, 0.2])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_replica_is_read_when_the_host_of_the_owner_is_gone(seed: int, cuts: float) -> None:
    sim = Simulation(seed, hosts=5, cpus=1)
    sim.cuts = cuts
    owner = sim.driver("o", other(1))
    readers = [sim.driver("d"), sim.driver("e", other(2)), sim.driver("f", other(3))]
    entry, (count, _) = replicate(sim, owner, 3)
    assert count == 3
    entries = [borrow(sim, owner, entry, reader) for reader in readers]
    lonely, (count, _) = replicate(sim, owner, 1)
    assert count == 1
    lost = borrow(sim, owner, lonely, readers[0])
    if seed % 2:  # one knows the value already
        readers[1].core.fetch(entries[1])
        sim.settle(readers[1])
        resolve(sim, entries[1:2])
    sim.run(sim.now + 1.0)
    keepers = [host for host in sim.hosts.values() if entry_id(owner, entry) in host.copies]
    assert len(keepers) == 2
    sim.kill_host(sim.hosts[other(1)], 0.5)
    if seed % 3 == 0:
        sim.run(sim.now + 1.0)
    assert [get(sim, *one)[0][0] for one in zip(readers, [[e] for e in entries], strict=True)] == [m.STORED] * 3
    assert get(sim, readers[0], [lost])[0][1][0] == "OwnerDiedError"
    use = sim.submit(readers[0], sim.spec(readers[0]), program("work"), Inputs([entries[0]]))
    resolve(sim, [use])
    assert use.status == m.INLINE
    for process, one in [*zip(readers, entries, strict=True), (readers[0], lost), (readers[0], use)]:
        sim.drop(process, one)
    sim.run(sim.now + 2 * copies.UNUSED_S + 5 * orphans.ROUND_S)
    assert all(not host.core.copies for host in keepers), "nobody counts it, but its warden asked who holds it"
    assert not any(reader.core.sightings._since for reader in readers)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_replica_without_a_home_stays_as_long_as_a_reference_goes_from_hand_to_hand(seed: int) -> None:
    sim = Simulation(seed, hosts=4, cpus=1)
    owner = sim.driver("o", other(1))
    readers = [sim.driver("d"), sim.driver("e", other(2)), sim.driver("f", other(3))]
    entry, (count, _) = replicate(sim, owner, 3)
    assert count == 3
    oid = entry_id(owner, entry)
    held = [borrow(sim, owner, entry, readers[0])]
    sim.run(sim.now + 0.5)
    sim.kill_host(sim.hosts[other(1)], 0.5)
    sim.run(sim.now + 1.0)
    at, stopped = 0, sim.now + 120.0
    while sim.now < stopped:
        after = (at + sim.rng.choice([1, 2])) % 3
        held.append(readers[after].core.references.borrow(oid))
        sim.drop(readers[at], held.pop(0))
        at = after
        sim.run(sim.now + sim.rng.choice([0.0001, 0.001, 0.1]))
    assert [get(sim, readers[at], held)[0][0]] == [m.STORED]
    sim.drop(readers[at], held[0])
    sim.run(sim.now + 2 * orphans.ROUND_MAX_S)
    assert not any(host.core.copies for host in sim.hosts.values() if host.process.alive)


@pytest.mark.parametrize("seed", SEEDS)
def test_replicas_are_made_anew_elsewhere_and_go_with_the_object(seed: int) -> None:
    sim = Simulation(seed, hosts=4, cpus=1)
    sim.cuts = 0.1 * (seed % 3)
    owner = sim.driver("o")
    entry, (count, _) = replicate(sim, owner, 2)
    assert count == 2
    oid = entry_id(owner, entry)
    for left in (2, 1):
        [keeper] = [host for host in sim.hosts.values() if oid in host.copies and host.process.alive]
        sim.kill_host(keeper, 0.5)
        sim.run_until(lambda: any(oid in h.copies and h.process.alive for h in sim.hosts.values()), 20.0)
        assert left
    second, (count, why) = replicate(sim, owner, 5)
    assert (count, why) == (2, "the mesh has no more nodes")
    ends_clean(sim, [(owner, entry), (owner, second)])


def entry_id(process: Process, entry: Entry) -> bytes:
    oid: bytes = process.core.references.oid(entry)
    return oid
