"""Scenarios for tests/sim/faults.py: each protocol in all its phases, in brief."""

from typing import Any

import msgpack

from tests.sim.faults import EndedError, Faulty, Scenario
from tests.sim.groups import Group
from tests.sim.programs import Reader, program
from tests.sim.simulator import NODE, Host, Process
from zmesh.core.records import Entry, Handle, Inputs, Spec
from zmesh.wire import messages as m
from zmesh.wire.actor_messages import NAME_FIND, NAME_TAKE

DIED = ("WorkerDiedError", "NodeDiedError")
GONE = ("OwnerDiedError", "ObjectLostError")
ACTOR = ("ActorDiedError", "ActorUnavailableError")


def other(index: int) -> bytes:
    """Return the ID of a host."""
    return NODE[:7] + bytes([NODE[7] + index])


def on(driver: Process, node: bytes, **options: Any) -> Spec:
    """A function whose tasks run there for choice, elsewhere if that host is gone."""
    wish = {"CPU": m.UNIT, f"node:{node.hex()}": 1}
    spec: Spec = driver.core.new_spec(driver.peer, "f", wish, fallbacks=[{"CPU": m.UNIT}], **options)
    return spec


def _hosts(sim: Faulty) -> None:
    for index, host in enumerate(sim.hosts.values()):
        sim.roles[f"host {index}"] = lambda host=host: host
    sim.roles["driver"] = lambda: sim.main


def _worker(sim: Faulty, kind: str) -> Process | Host | None:
    for worker in sim.ready_workers():
        serves = bool(worker.core.server.groups)
        owns = bool(worker.core.tasks.open)
        runs = worker.core.thief.running is not None
        if {"actor": serves, "owner": owns, "worker": runs and not serves}[kind]:
            return worker
    return None


def roles(sim: Faulty, *kinds: str) -> None:
    """Have hosts, the program and workers of these kinds be killed."""
    _hosts(sim)
    for kind in kinds:
        sim.roles[kind] = lambda kind=kind: _worker(sim, kind)


def tasks(sim: Faulty) -> None:
    """Tasks of all kinds, served by all hosts: round trips, leases, children, results that lie elsewhere."""
    roles(sim, "owner", "worker")
    driver = sim.main
    often, once = sim.spec(driver, max_retries=-1), sim.spec(driver, max_retries=0)
    calls = [sim.submit(driver, often, program("work", seconds=0.03, value=i)) for i in range(6)]
    calls.append(sim.submit(driver, often, program("nest", children=[program("work", seconds=0.02)] * 3)))
    calls += [sim.submit(driver, often, program("big", seconds=0.03)) for _ in range(2)]
    calls.append(sim.submit(driver, often, program("work", seconds=0.01), Inputs(calls[-2:])))
    sim.keep(calls)
    sim.once([sim.submit(driver, once, program("work", seconds=0.03)) for _ in range(4)])
    sim.await_all(calls)


def detach(sim: Faulty) -> None:
    """Two programs want the workers of one host, with other shapes and priorities: unsteal, give-back, claims."""
    roles(sim, "worker")
    driver, rival = sim.main, sim.driver("r")
    mine, theirs = sim.spec(driver, max_retries=-1), sim.spec(rival, max_retries=-1, priority=1)
    wide = sim.spec(driver, max_retries=-1, cpus=2)
    calls = [sim.submit(driver, mine, program("work", seconds=0.02)) for _ in range(12)]
    sim.keep(calls)
    sim.pause(0.06)
    others = [sim.submit(rival, theirs, program("work", seconds=0.03)) for _ in range(6)] if rival.alive else []
    sim.keep(others, rival)
    calls.append(sim.submit(driver, wide, program("work", seconds=0.02)))
    sim.keep(calls[-1:])
    sim.await_all(calls)


def _share(sim: Faulty, handle: Handle) -> bytes:
    return sim.promote([handle])[0]


def actors(sim: Faulty) -> None:
    """An actor that dies once, with calls of its owner and of tasks on other hosts; then its last handle goes."""
    roles(sim, "actor", "owner", "worker")
    driver = sim.main
    handle = sim.create(driver, program("actor", seconds=0.01), restarts=2)
    calls = [sim.call(driver, handle, program("work", value=i), retries=-1) for i in range(4)]
    sim.keep([handle, *calls])
    oid = _share(sim, handle)
    spec = sim.spec(driver, max_retries=-1)
    code = program("use", oid=oid, calls=[program("work", value=i) for i in range(3)], retries=-1)
    users = [sim.submit(driver, spec, code, Inputs(held=[handle])) for _ in range(2)]
    sim.keep(users)
    sim.await_all(calls)
    sim.once([sim.call(driver, handle, program("work", seconds=0.01, value=i)) for i in range(3)])
    dying = [sim.call(driver, handle, program("die", times=1, value=1), retries=-1)]
    dying += [sim.call(driver, handle, program("work", value=i), retries=-1) for i in range(3)]
    sim.keep(dying)
    sim.await_all([*users, *dying])


def killing(sim: Faulty) -> None:
    """Actors that are killed: while they are made, while they serve, by who borrowed a handle, with a restart."""
    roles(sim, "actor")
    driver, reader = sim.main, sim.driver("r", other(1))
    handles = [sim.create(driver, program("actor", seconds=0.01), restarts=1) for _ in range(3)]
    calls = [sim.call(driver, handle, program("work"), retries=-1) for handle in handles]
    sim.keep([*handles, *calls])
    driver.core.kill_actor(handles[0].actor, sim.now, no_restart=True)
    sim.settle(driver)
    _share(sim, handles[1])
    sim.await_all(calls)
    borrowed = borrow(sim, handles[1], reader)
    if borrowed is not None and reader.alive:
        theirs = sim.call(reader, borrowed, program("work"), retries=-1)
        sim.keep([theirs], reader)
        sim.run_until(lambda: not reader.alive or theirs.status != m.PENDING, 300.0)
        if reader.alive:
            reader.core.kill_actor(reader.core.actors.find(borrowed, "A", ordered=True), sim.now, no_restart=False)
            sim.settle(reader)
    sim.alive()
    driver.core.kill_actor(handles[2].actor, sim.now, no_restart=False)
    sim.settle(driver)
    after = [sim.call(driver, handle, program("work"), retries=-1) for handle in handles]
    sim.keep(after)
    sim.await_all(after)


def borrow(sim: Faulty, entry: Entry, borrower: Process, owner: Process | None = None) -> Entry | None:
    """Have a program of another host hold what the driver, or who owns it, promoted; None if one of them is dead."""
    sim.alive()
    held = None
    if borrower.alive:
        try:
            held = _claim(sim, borrower, (None, None, entry_id(owner or sim.main, entry)))
        except EndedError:
            return None
        if held is not None:
            sim.keep([held], borrower)
    return held


def entry_id(process: Process, entry: Entry) -> bytes:
    """Return an ObjectID."""
    oid: bytes = process.core.references.oid(entry)
    return oid


def names(sim: Faulty) -> None:
    """Two programs take a name, a third finds it and calls; it is free when the actor is gone, and taken again."""
    roles(sim, "actor")
    programs = [sim.main, sim.driver("e", other(1)), sim.driver("f", other(2))]
    home = sim.node.actors.names.line(("", "n"))[0]
    sim.roles["home"] = lambda: sim.hosts[home]
    handles = [_take(sim, one) for one in programs[:2]]
    owners = [one for one, handle in zip(programs, handles, strict=False) if handle is not None and one.alive]
    assert len(owners) <= 1 or sim.struck, "a name has one owner"
    for process in programs:
        if process.alive:
            _find_and_call(sim, process)
    for process, handle in zip(programs, handles, strict=False):
        if handle is not None and process.alive:
            sim.drop(process, handle)
    sim.run(sim.now + 90.0)
    again = programs[2] if programs[2].alive else programs[1]
    if again.alive:
        handle = _take(sim, again)
        assert handle is not None or not again.alive, f"the name is not free\n{sim.tail()}"
        if handle is not None and again.alive:
            sim.drop(again, handle)


def _ask(sim: Faulty, process: Process, ticket: Any) -> Any:
    sim.settle(process)
    sim.await_all([ticket], process)
    return ticket.value


def _take(sim: Faulty, process: Process) -> Handle | None:
    """As a program does that makes an actor with a name; None if another has it."""
    if not process.alive:
        return None
    core = process.core
    spec = core.new_spec(process.peer, "A", {"CPU": m.UNIT}, num_returns=-1, options={"max_calls": 1, "places": 1})
    handle: Handle = core.new_actor(spec, program("actor"), None, 0, name="A", ordered=True)
    try:
        [oid] = sim.promote([handle], process)
        for _ in range(200):
            taken = _ask(sim, process, core.actors.ask_name(NAME_TAKE, "", "n", oid, b"d"))
            if taken and taken[2] == oid:
                core.start_actor(handle, sim.now)
                sim.settle(process)
                return handle
            claimed = _claim(sim, process, taken)
            if claimed is not None:
                sim.drop(process, claimed)
                break
            sim.run(sim.now + 0.05)
            if not process.alive:
                return None
        core.actors.abandon(handle, "another has its name")
        sim.drop(process, handle)
    except EndedError:
        pass
    return None


def _claim(sim: Faulty, process: Process, taken: Any) -> Entry | None:
    if not taken:
        return None
    entry, ticket = process.core.references.claim_found(taken[2])
    _ask(sim, process, ticket)
    if ticket.status == m.ERROR:
        process.core.references.unclaim(entry)
        sim.settle(process)
        return None
    return entry


def _find_and_call(sim: Faulty, process: Process) -> None:
    try:
        found = _ask(sim, process, process.core.actors.ask_name(NAME_FIND, "", "n"))
        entry = _claim(sim, process, found)
        if entry is not None:
            call = sim.call(process, entry, program("work", value=7))
            sim.keep([call], process)
            sim.drop(process, entry)
            sim.run_until(lambda: not process.alive or call.status != m.PENDING, 300.0)
    except EndedError:
        pass


def groups(sim: Faulty) -> None:
    """A placement group on three hosts with tasks of two programs in it, removed while some of them run."""
    roles(sim, "worker")
    driver, guest = sim.main, sim.driver("e", other(1))
    group = Group(sim, driver, [1, 1, 1], "STRICT_SPREAD" if sim.seed % 2 else "SPREAD")
    sim.keep([group.entry, group.made])
    calls = [group.submit(program("work", seconds=0.02, value=i), i % 3, max_retries=-1) for i in range(6)]
    sim.keep(calls)
    if guest.alive:
        sim.keep([group.submit(program("work", seconds=0.02), driver=guest, max_retries=-1) for _ in range(2)], guest)
    sim.run_until(lambda: not driver.alive or all(call.status != m.PENDING for call in calls), 300.0)
    sim.alive()
    late = [group.submit(program("work", seconds=5.0), i % 3) for i in range(4)]
    sim.keep(late)
    sim.pause(0.05)
    sim.keep([group.remove()])
    sim.await_all(late)


def groups_moved(sim: Faulty) -> None:
    """A host with a bundle dies, and then there is the fault: reserved anew, with tasks that run again."""
    _hosts(sim)
    driver = sim.main
    group = Group(sim, driver, [1, 1], "STRICT_SPREAD")
    sim.keep([group.entry, group.made])
    sim.await_all([group.entry])
    calls = [group.submit(program("work", seconds=0.05, value=i), i % 2, max_retries=-1) for i in range(6)]
    sim.keep(calls)
    sim.pause(0.02)
    for node in group.nodes:
        if node and node != NODE and sim.hosts[node].process.alive:
            sim.kill_host(sim.hosts[node], 0.3)
            break
    sim.run_until(lambda: not driver.alive or all(call.status != m.PENDING for call in calls), 300.0)
    sim.alive()
    sim.keep([group.remove()])


def references(sim: Faulty) -> None:
    """References inside arguments and results, read on other hosts: promoted, held, claimed, released."""
    roles(sim, "owner", "worker")
    driver = sim.main
    spec = sim.spec(driver, max_retries=-1)
    inline = driver.core.put(m.INLINE, b"value", [])
    made = sim.submit(driver, spec, program("big", seconds=0.02))
    sim.keep([inline, made])
    oids = sim.promote([inline, made])
    users = [sim.submit(driver, spec, program("borrow", oids=oids), Inputs(held=[inline, made])) for _ in range(3)]
    sim.keep(users)
    givers = [sim.submit(driver, spec, program("give", count=2, stored=i % 2 == 0)) for i in range(3)]
    sim.keep(givers)
    sim.await_all([*users, *givers])
    for giver in givers:
        for oid in msgpack.unpackb(giver.value) if giver.status == m.INLINE else ():
            entry = driver.core.references.borrow(oid)
            sim.keep([entry])
            driver.core.fetch(entry)
            sim.settle(driver)
            sim.alive()


def rebuilt(sim: Faulty) -> None:
    """Results lay on a host that died: made again for a reader, a task and a call, while something else goes wrong."""
    roles(sim, "worker", "actor")
    driver, reader = sim.main, sim.driver("r", other(2))
    spec = on(driver, other(1), max_retries=-1)
    chain = [sim.submit(driver, spec, program("big", seconds=0.01))]
    for _ in range(2):
        chain.append(sim.submit(driver, spec, program("big", seconds=0.01), Inputs([chain[-1]])))
    handle = sim.create(driver, program("actor"), restarts=-1)
    sim.keep([*chain[1:], handle])
    sim.await_all(chain)
    sim.drop(driver, chain[0])
    sim.promote([chain[2]])
    borrowed = borrow(sim, chain[2], reader)
    if sim.hosts[other(1)].process.alive:
        sim.kill_host(sim.hosts[other(1)], 0.2)
    users = [sim.submit(driver, sim.spec(driver, max_retries=-1), program("work"), Inputs([one])) for one in chain[1:]]
    calls = [sim.call(driver, handle, program("work", value=i), retries=-1) for i in range(2)]
    calls.append(sim.call(driver, handle, program("work", value=2), retries=-1, inputs=Inputs([chain[1]])))
    calls.append(sim.call(driver, handle, program("work", value=3), retries=-1))
    sim.keep([*users, *calls])
    if borrowed is not None and reader.alive:
        local = sim.submit(reader, sim.spec(reader, max_retries=-1), program("work"), Inputs([borrowed]))
        sim.keep([local], reader)
    sim.await_all([*users, *calls])


def leaving(sim: Faulty) -> None:
    """A host leaves in good order, with results on it that are read elsewhere."""
    _hosts(sim)
    driver, reader = sim.main, sim.driver("r", other(2))
    spec = on(driver, other(1), max_retries=-1)
    made = [sim.submit(driver, spec, program("big", seconds=0.01)) for _ in range(4)]
    sim.keep(made)
    sim.await_all(made)
    sim.promote(made[:2])
    borrow(sim, made[0], reader)
    host = sim.hosts[other(1)]
    if host.process.alive:
        host.core.drain(sim.now)
        sim.settle(host.process)
        sim.run_until(lambda: not host.process.alive or host.core.drained, 300.0)
    if host.process.alive:
        host.core.evacuation.leave()
        sim.settle(host.process)
        sim.run_until(lambda: not host.process.alive or host.core.evacuation.done, 300.0)
    sim.kill_host(host, 0.0)
    sim.alive()
    sim.pause(1.0)
    users = [sim.submit(driver, sim.spec(driver, max_retries=-1), program("work"), Inputs([one])) for one in made]
    sim.keep(users)
    sim.await_all(users)


def bequests(sim: Faulty) -> None:
    """A program dies that gave an actor of another one what only it held, with a call and a value."""
    roles(sim, "actor")
    driver, caller = sim.main, sim.driver("e", other(1))
    handle = sim.create(driver, program("actor", seconds=0.01), restarts=1, cpus=0)
    sim.keep([handle])
    held = _borrow_by(sim, caller, handle)
    if held is not None:
        made = caller.core.put(m.INLINE, msgpack.packb([]), [])
        box = caller.core.put(m.INLINE, msgpack.packb([]), [])
        try:
            oids = sim.promote([made, box], caller)
            code = program("keep", oids=oids, holds=1.0, unpacks=0.002)
            call = sim.call(caller, held, code, inputs=Inputs(held=[made, box]))
            sim.await_true(lambda: bool(sim.call_starts) or call.status != m.PENDING, caller)
        except EndedError:
            pass
        sim.kill(caller)
    sim.run(sim.now + 0.5)
    for actor in [worker for worker in sim.live_workers() if worker.core.server.groups]:
        for oid, entry in actor.core.references._borrowed.items():
            home = sim.hosts[oid[:8]]
            assert entry.status != m.ERROR or not home.process.alive, f"{entry.value}\n{sim.tail()}"
            assert oid in home.core.directory or not home.process.alive, f"{oid.hex()} is gone\n{sim.tail()}"
    sim.alive()


def _borrow_by(sim: Faulty, caller: Process, handle: Handle) -> Entry | None:
    try:
        oid = _share(sim, handle)
        return _claim(sim, caller, (None, None, oid)) if caller.alive else None
    except EndedError:
        return None


def joining(sim: Faulty) -> None:
    """A host joins in the midst of work, makes what others read and an actor; then another leaves."""
    roles(sim, "actor", "worker")
    sim.roles["newcomer"] = lambda: sim.newcomer
    driver, reader = sim.main, sim.driver("r", other(1))
    spec = sim.spec(driver, max_retries=-1)
    first = [sim.submit(driver, spec, program("work", seconds=0.03)) for _ in range(4)]
    sim.keep(first)
    sim.join()
    there = on(driver, other(2), max_retries=-1)
    made = [sim.submit(driver, there, program("big", seconds=0.01)) for _ in range(2)]
    sim.keep(made)
    handle = sim.create(driver, program("actor"), restarts=-1)
    sim.keep([handle])
    sim.await_all([*first, *made])
    sim.promote([made[0]])
    borrow(sim, made[0], reader)
    calls = [sim.call(driver, handle, program("work", value=i), retries=-1) for i in range(3)]
    users = [sim.submit(driver, spec, program("work"), Inputs([one])) for one in made]
    sim.keep([*calls, *users])
    sim.leave(sim.hosts[other(1)])
    sim.await_all([*calls, *users])


def streams(sim: Faulty) -> None:
    """Streams of a task and of an actor's call, with back-pressure, on other hosts; then those that nobody reads on."""
    roles(sim, "actor", "worker")
    driver = sim.main
    options = {"backpressure": 2}
    spec = on(driver, other(1), num_returns=-1, max_retries=-1, options=options)
    handle = sim.create(driver, program("actor"), restarts=-1)
    call = sim.call(driver, handle, program("stream", items=8), retries=-1, returns=-1, backpressure=2)
    reader = sim.call(driver, handle, program("work"), retries=-1)
    task = sim.submit(driver, spec, program("stream", items=8, seconds=0.002))
    sim.keep([handle, reader])
    readers = [Reader(sim, driver, one) for one in (task, call)]
    sim.await_true(lambda: all(one.ended for one in readers))
    assert [one.seen for one in readers] == [list(range(8))] * 2, f"{[one.seen for one in readers]}\n{sim.tail()}"
    left = sim.submit(driver, spec, program("stream", items=10000, seconds=0.002))
    call = sim.call(driver, handle, program("stream", items=10000), retries=-1, returns=-1, backpressure=2)
    readers = [Reader(sim, driver, one) for one in (left, call)]
    sim.await_true(lambda: all(len(one.seen) > 3 for one in readers))
    for one in readers:
        one.drop()
    after = sim.call(driver, handle, program("work"), retries=-1)
    sim.keep([after])
    sim.await_all([after, left, call])


SCENARIOS = {
    "bequests": Scenario(bequests, errors=(*DIED, *ACTOR, *GONE)),
    "streams": Scenario(streams, errors=(*DIED, *ACTOR)),
    "tasks": Scenario(tasks, errors=DIED),
    "detach": Scenario(detach, hosts=1, cpus=2, errors=DIED),
    "actors": Scenario(actors, errors=(*DIED, *ACTOR)),
    "killing": Scenario(killing, hosts=2, cpus=2, errors=(*DIED, *ACTOR, *GONE), planned=ACTOR),
    "names": Scenario(names, cpus=2, errors=(*DIED, *ACTOR, *GONE)),
    "groups": Scenario(groups, hosts=4, errors=DIED, planned=("TaskPlacementGroupRemovedError",)),
    "groups moved": Scenario(groups_moved, hosts=4, errors=(*DIED, "TaskPlacementGroupRemovedError")),
    "references": Scenario(references, errors=(*DIED, *GONE)),
    "rebuilt": Scenario(rebuilt, errors=(*DIED, *GONE, *ACTOR)),
    "joining": Scenario(joining, hosts=2, errors=(*DIED, *GONE, *ACTOR)),
    "leaving": Scenario(leaving, errors=(*DIED, *GONE)),
}
