"""Scenarios with guests for tests/sim/faults.py: programs without a node, whose connection may be cut at any moment."""

from tests.sim.faults import EndedError, Faulty, Scenario
from tests.sim.guests import Guest
from tests.sim.programs import Reader, program
from tests.sim.scenarios import ACTOR, DIED, GONE, borrow, on, other, roles
from zmesh.core.records import Entry, Inputs
from zmesh.wire import messages as m

CUTS_S = {0.3: True, 5.0: True, 12.0: False, 40.0: False}  # {how long: whether it stays with its node}


def _begin(sim: Faulty) -> Guest:
    guest = sim.guest("g")
    sim.main = guest
    roles(sim, "actor", "worker")
    sim.roles["driver"] = lambda: guest
    for seconds, harmless in CUTS_S.items():
        name = f"the guest is cut off for {seconds:g} s"
        sim.events[name] = lambda seconds=seconds: sim.cut(guest, seconds)
        if harmless:
            sim.harmless.append(name)
    sim.await_true(lambda: sim.attached(guest) or guest.core.rounds > 0)
    if guest.core.welcome is None:
        guest.alive = False  # init() says that nobody took it in
        raise EndedError
    return guest


def _put(sim: Faulty, guest: Guest) -> Entry:
    entry = sim.put_large(guest)
    sim.alive()
    if entry is None:
        assert sim.struck, f"there is room on disk\n{sim.tail()}"
        raise EndedError
    sim.keep([entry])
    return entry


def _read(sim: Faulty, guest: Guest, entry: Entry) -> None:
    """What was read is there, or something was lost."""
    if entry.status == m.STORED:
        error = sim.read(guest, entry)
        sim.alive()
        assert not error or (sim.struck and error in (*DIED, *GONE, FULL)), f"{error}\n{sim.tail()}"


def _sure(sim: Faulty, tasks: list[Entry]) -> None:
    """Tasks that need nothing of others, and may run as often as it takes, succeed whatever happens."""
    sim.await_all(tasks)
    assert all(task.status in (m.INLINE, m.STORED) for task in tasks), f"{[task.value for task in tasks]}\n{sim.tail()}"


def guest_tasks(sim: Faulty) -> None:
    """A guest submits, puts, gets and shares, with workers on all hosts."""
    guest = _begin(sim)
    often, once = sim.spec(guest, max_retries=-1), sim.spec(guest, max_retries=0)
    sim.once([sim.submit(guest, once, program("work", seconds=0.01, value=i)) for i in range(2)])
    calls = [sim.submit(guest, often, program("work", seconds=0.01, value=i)) for i in range(3)]
    calls.append(sim.submit(guest, often, program("nest", children=[program("work", seconds=0.01)] * 2)))
    large = [sim.submit(guest, on(guest, other(i), max_retries=-1), program("big", seconds=0.01)) for i in range(2)]
    sim.keep([*calls, *large])
    _sure(sim, [*calls, *large])
    mine = _put(sim, guest)
    users = [sim.submit(guest, often, program("work", seconds=0.01), Inputs([one])) for one in (mine, *large)]
    users.append(sim.submit(guest, on(guest, other(1), max_retries=-1), program("work"), Inputs([mine])))
    sim.keep(users)
    for entry in (*large, mine):
        _read(sim, guest, entry)
    sim.await_all(users)
    items = sim.spec(guest, num_returns=-1, max_retries=-1)
    stream = Reader(sim, guest, sim.submit(guest, items, program("stream", items=4)))
    sim.await_true(lambda: stream.ended)


def guest_shares(sim: Faulty) -> None:
    """A guest and a program of another host share objects, in both directions, and by way of tasks."""
    sim.harmless.remove("host 1 leaves")  # what its programs own ends with it
    guest = _begin(sim)
    reader = sim.driver("r", other(1))
    often = sim.spec(guest, max_retries=-1)
    small = guest.core.put(m.INLINE, b"value", [])
    mine = _put(sim, guest)
    made = sim.submit(guest, on(guest, other(2), max_retries=-1), program("big", seconds=0.01))
    sim.keep([small, made])
    oids = sim.promote([small, mine, made])
    users = [sim.submit(guest, often, program("borrow", oids=oids), Inputs(held=[small, mine, made]))]
    users.append(sim.submit(guest, often, program("give", count=2, stored=True)))
    sim.keep(users)
    for entry in (small, mine):
        borrowed = borrow(sim, entry, reader)
        if borrowed is not None and reader.alive:
            reader.core.fetch(borrowed)
            sim.settle(reader)
    sim.await_all(users)
    if reader.alive:
        theirs = reader.core.put(m.STORED, sim.write(reader, 0), [])
        sim.keep([theirs], reader)
        sim.promote_of(reader, [theirs])
        entry = borrow(sim, theirs, guest, reader)
        if entry is not None:
            guest.core.fetch(entry)
            sim.settle(guest)
            sim.await_all([entry])
            _read(sim, guest, entry)


def guest_actors(sim: Faulty) -> None:
    """A guest makes an actor and calls it, calls one of another program, and lets go of both."""
    sim.harmless.remove("host 1 leaves")
    guest = _begin(sim)
    owner = sim.driver("r", other(1))
    handle = sim.create(guest, program("actor", seconds=0.01), restarts=-1)
    calls = [sim.call(guest, handle, program("work", value=i), retries=-1) for i in range(3)]
    sim.keep([handle, *calls])
    sim.once([sim.call(guest, handle, program("work", value=9))])
    sim.await_all(calls)
    [oid] = sim.promote([handle])
    code = program("use", oid=oid, calls=[program("work", value=1)], retries=-1)
    user = sim.submit(guest, sim.spec(guest, max_retries=-1), code, Inputs(held=[handle]))
    sim.keep([user])
    if owner.alive:
        theirs = sim.create(owner, program("actor"), restarts=-1)
        sim.keep([theirs], owner)
        sim.promote_of(owner, [theirs])
        entry = borrow(sim, theirs, guest, owner)
        if entry is not None:
            calls = [sim.call(guest, entry, program("work", value=i), retries=-1) for i in range(2)]
            sim.keep(calls)
            sim.await_all(calls)
    sim.await_all([user])


def guest_spilled(sim: Faulty) -> None:
    """A guest puts more than fits into the store of its node, and reads it again, as tasks do."""
    guest = _begin(sim)
    often = sim.spec(guest, max_retries=-1)
    mine = [_put(sim, guest) for _ in range(6)]
    large = [sim.submit(guest, often, program("big", seconds=0.005)) for _ in range(3)]
    users = [sim.submit(guest, often, program("work", seconds=0.005), Inputs([one])) for one in mine[:4]]
    sim.keep([*large, *users])
    sim.await_all(large)
    for entry in (*large, *mine):
        _read(sim, guest, entry)
    sim.await_all(users)


FULL = "StoreFullError"
ERRORS = (*DIED, *GONE, *ACTOR, FULL)
SCENARIOS = {
    "guest tasks": Scenario(guest_tasks, errors=ERRORS),
    "guest shares": Scenario(guest_shares, errors=ERRORS),
    "guest actors": Scenario(guest_actors, errors=ERRORS),
    "guest spilled": Scenario(guest_spilled, hosts=2, cpus=1, room=4, errors=ERRORS),
}
