"""A client and the groups it has to do with: what it asks, what it is told, who gets a value or an error."""

from typing import Any

import pytest

from zmesh.core.client import ClientCore
from zmesh.core.effects import Resolved, Send
from zmesh.core.group_watch import GRACE_S
from zmesh.core.records import Entry, Task, group_of
from zmesh.core.timers import Timers
from zmesh.wire import group_messages as g
from zmesh.wire import messages as m
from zmesh.wire.codec import decode, encode
from zmesh.wire.ids import node_peer

N, FAR = b"n" * 8, b"f" * 8
NODE, COORDINATOR = node_peer(N), node_peer(FAR)
D = N + b"driver.."
GROUP = FAR + b"group..."
SHAPE = {f"CPU@{GROUP.hex()}:1": m.UNIT, f"bundle@{GROUP.hex()}:1": 1}
BUNDLES = [{"CPU": m.UNIT}, {"CPU": 4 * m.UNIT}]


class Client:
    def __init__(self) -> None:
        self.now = 0.0
        self.core = ClientCore(D, [], Timers(), lambda status: (None, "SIGKILL", "was killed by SIGKILL"))
        self.hear(NODE, m.Welcome(N, 1, {"CPU": 2 * m.UNIT}))

    def hear(self, peer: bytes, message: Any) -> None:
        self.core.receive(peer, decode(encode(message)), self.now)
        self.core.check()

    def state(self, state: str, text: str = "so it is", bundles: list[Any] = BUNDLES) -> None:
        self.hear(COORDINATOR, g.GroupState(GROUP, state, text, bundles))

    def ready(self) -> Entry:
        entry = self.core.put(m.PENDING, None, [])
        self.core.groups.await_ready(GROUP, entry, b"there", self.now)
        return entry

    def task(self) -> Task:
        return self.core.submit(self.core.new_spec(D, "f", SHAPE), b"x", None, 0, self.now)

    def said(self, to: bytes) -> list[Any]:
        found = [e.message for e in self.core.effects if isinstance(e, Send) and e.to == to]
        self.core.effects.clear()
        return found

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.core.timers.tick(self.now)
        self.core.check()


@pytest.fixture
def client() -> Client:
    return Client()


def test_a_group_is_watched_once_by_whoever_needs_it(client: Client) -> None:
    client.task()
    client.task()
    client.ready()
    assert client.said(COORDINATOR) == [g.WatchGroup(GROUP)]


def test_workers_are_asked_for_as_many_as_the_bundle_has_room_for(client: Client) -> None:
    client.state("PENDING")
    for _ in range(10):
        client.task()
    assert client.said(NODE)[-1].workers == 1, "nothing is known of it yet"
    client.state("PENDING")
    assert client.said(NODE)[-1].workers == 4


def test_who_waits_for_a_group_gets_its_value_when_it_is_there(client: Client) -> None:
    entry = client.ready()
    dependent = client.core.submit(client.core.new_spec(D, "g", {"CPU": m.UNIT}), b"x", m_inputs(entry), 0, client.now)
    entry.waiter = object()
    client.state("PENDING", "")
    assert "is PENDING" in client.core.waits_for(entry)
    assert client.core.waits_for(Entry(99)).startswith("the object belongs")
    client.state("CREATED", "")
    assert (entry.status, entry.value) == (m.INLINE, b"there")
    assert [effect.entries for effect in client.core.effects if isinstance(effect, Resolved)] == [[entry]]
    assert client.core.waits_for(dependent).startswith("g is queued")
    assert client.ready().status == m.INLINE, "and at once from then on"


def m_inputs(entry: Entry) -> Any:
    from zmesh.core.records import Inputs

    return Inputs([entry])


def test_an_entry_that_nobody_holds_any_more_is_not_kept_for_a_group(client: Client) -> None:
    entry = client.ready()
    client.core.references.drop(entry)
    client.ready()
    client.state("CREATED")
    assert entry.status == m.PENDING


def test_what_waits_for_a_removed_group_fails_and_so_does_what_comes_later(client: Client) -> None:
    entry, task = client.ready(), client.task()
    assert "is PENDING" in client.core.waits_for(task)
    client.state("REMOVED")
    assert [one.value[0] for one in (entry, task)] == ["TaskPlacementGroupRemovedError"] * 2
    client.state("CREATED")
    late = client.task()
    assert "is no more" in client.core.waits_for(late)
    client.pass_time(0.0)
    assert late.value[0] == "TaskPlacementGroupRemovedError"
    client.hear(NODE, m.Mesh([{"CPU": m.UNIT}]))
    again = client.task()
    client.pass_time(0.0)
    assert again.value[0] == "TaskPlacementGroupRemovedError"


def test_an_infeasible_group_may_become_feasible(client: Client) -> None:
    entry, task = client.ready(), client.task()
    client.state("INFEASIBLE")
    assert entry.value[0] == "PlacementGroupUnschedulableError"
    assert task.value[0] == "TaskUnschedulableError"
    patient, impatient = client.ready(), client.ready()
    client.core.references.drop(impatient)
    client.pass_time(GRACE_S - 0.1)
    assert patient.status == m.PENDING
    client.state("RESCHEDULING")
    client.pass_time(0.2)
    assert patient.status == m.PENDING
    waiting = client.task()
    client.pass_time(5.0)
    assert waiting.status == m.PENDING
    client.state("CREATED")
    assert patient.status == m.INLINE
    client.state("INFEASIBLE")
    hopeless = client.ready()
    client.pass_time(GRACE_S)
    assert "so it is" in hopeless.value[1]


def test_a_coordinator_that_is_gone_answers_by_its_death(client: Client) -> None:
    entry = client.ready()
    ticket = client.core.groups.remove(GROUP)
    assert client.said(COORDINATOR)[-1] == g.RemoveGroup(ticket.seq, GROUP)
    client.hear(NODE, m.NodeGone(FAR, "killed"))
    assert entry.value[0] == "TaskPlacementGroupRemovedError"
    assert "killed" in entry.value[1]
    assert ticket.status == m.INLINE


def test_without_a_node_nothing_waits_for_a_group(client: Client) -> None:
    entry = client.ready()
    client.core.node_lost("killed", client.now)
    create = client.core.groups.create(GROUP, D, "", "PACK", BUNDLES)
    for one in (entry, client.ready(), create, client.core.groups.remove(GROUP)):
        assert one.value[0] == "NodeDiedError"


def test_a_refusal_is_the_callers_error(client: Client) -> None:
    ticket = client.core.groups.create(GROUP, D, "x", "PACK", BUNDLES)
    client.hear(COORDINATOR, g.GroupReply(ticket.seq, "no"))
    assert ticket.value == ("ConfigError", "no", {})


def test_a_task_that_was_ended_with_its_group_is_not_retried(client: Client) -> None:
    worker = N + b"worker.."
    task = client.task()
    client.hear(worker, m.Steal(1, SHAPE, 0.005))
    client.hear(NODE, m.WorkerDied(worker, 1, 9, D, task.seq, 0, "group", ""))
    client.pass_time(0.1)
    assert task.value[0] == "TaskPlacementGroupRemovedError"


def test_a_state_that_makes_no_sense_or_is_not_asked_for_does_no_harm(client: Client) -> None:
    client.state("CREATED")
    client.task()
    client.state("CREATED", bundles=[5, {"CPU": "x"}])


@pytest.mark.parametrize("name", ["CPU@zz", "CPU@00", "CPU@", "CPU@00:1"])
def test_a_name_that_is_no_groups_names_none(name: str) -> None:
    assert group_of({name: 1}) == b""
