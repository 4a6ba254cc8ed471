"""The node's role: who is greeted, who is told of a death, what is refused."""

import random
from typing import Any

import pytest

from zmesh.core.effects import Effect, KillProcess, Send, Spawn, Warn
from zmesh.core.matchmaking import SETTLE_S
from zmesh.core.node import Executing, NodeCore
from zmesh.core.overbooked import OVERBOOKED_S
from zmesh.core.records import Limits
from zmesh.core.timers import Timers
from zmesh.core.workers import AHEAD_S
from zmesh.wire import messages as m
from zmesh.wire.actor_messages import Settle
from zmesh.wire.death_messages import Expelled
from zmesh.wire.group_messages import CreateGroup

NODE = b"n" * 8
DRIVER, OTHER = NODE + b"driver..", NODE + b"other..."
CPU = {"CPU": m.UNIT}


class Host:
    """A node core with its effects, boxes and workers in view."""

    def __init__(self, cpus: int = 2, **limits: Any) -> None:
        self.effects: list[Effect] = []
        self.timers = Timers()
        self.boxes: dict[int, Executing] = {}
        total = {"CPU": cpus * m.UNIT, "GPU": m.UNIT}
        self.core = NodeCore(
            NODE,
            77,
            total,
            random.Random(1),
            self.effects,
            self.timers,
            self.boxes.get,
            Limits(**limits),
            python="3.11",
        )
        self.now = 0.0

    def driver(self, peer: bytes = DRIVER) -> None:
        self.core.receive(peer, m.Hello("driver", 5, {"cwd": "/here", "sys_path": []}), self.now)
        self.effects.clear()

    def demand(self, workers: int, shape: dict[str, int] | None = None, peer: bytes = DRIVER, **fields: Any) -> None:
        self.core.receive(peer, m.Demand(peer, CPU if shape is None else shape, workers, **fields), self.now)

    def said(self, to: bytes | None = None) -> list[Any]:
        """Return and forget the messages (to one peer)."""
        found = [e.message for e in self.effects if isinstance(e, Send) and to in (None, e.to)]
        self.effects.clear()
        self.core.check()
        return found

    def born(self) -> list[bytes]:
        """Let every worker asked for come to life; returns them."""
        spawned = [effect for effect in self.effects if isinstance(effect, Spawn)]
        self.effects.clear()
        for effect in spawned:
            self.core.worker_started(effect.peer, 100 + effect.slot, self.now)
            self.core.receive(effect.peer, m.Hello("worker", 100 + effect.slot), self.now)
        return [effect.peer for effect in spawned]

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.timers.tick(self.now)


@pytest.fixture
def host() -> Host:
    host = Host()
    host.driver()
    return host


def attached(host: Host, count: int = 1) -> list[bytes]:
    """Demand workers and have them attached."""
    host.demand(count)
    workers = host.born()
    host.effects.clear()
    return workers


def test_a_first_demand_forks_a_worker_which_is_attached_when_it_says_hello(host: Host) -> None:
    host.demand(1)
    (worker,) = host.born()
    welcome, attach = host.said(worker)
    assert welcome.total["CPU"] == 2 * m.UNIT
    assert (attach.victim, attach.job, attach.config["cwd"]) == (DRIVER, DRIVER, "/here")


def test_no_more_workers_are_forked_than_the_cpus_allow(host: Host) -> None:
    host.demand(10)
    assert len(host.born()) == 2


def test_a_workers_second_attachment_carries_no_config(host: Host) -> None:
    (worker,) = attached(host)
    host.demand(0)
    host.pass_time(3.0)
    (detach,) = host.said(worker)
    host.core.receive(worker, m.Free(detach.epoch), host.now)
    host.demand(1)
    (attach,) = host.said(worker)
    assert attach.config == {}
    assert attach.epoch > detach.epoch


def test_a_free_of_an_old_attachment_is_ignored(host: Host) -> None:
    (worker,) = attached(host)
    host.core.receive(worker, m.Free(99), host.now)
    assert host.core.status(0)["workers"][0]["state"] == "attached"


def test_an_unknown_kind_a_strange_worker_and_another_major_are_refused() -> None:
    host = Host()
    for hello in (m.Hello("spy", 1), m.Hello("worker", 1), m.Hello("driver", 1, {}, 99)):
        host.core.receive(OTHER, hello, 0.0)
        (welcome,) = host.said(OTHER)
        assert welcome.refused
    host.demand(1, peer=OTHER)
    assert host.said() == [], "who was not greeted is not heard"


def test_a_message_that_is_not_for_a_node_is_dropped_with_a_warning(host: Host) -> None:
    host.core.receive(DRIVER, m.Work([], []), 0.0)
    assert [type(effect) for effect in host.effects] == [Warn]


def test_a_death_is_told_to_everybody_the_worker_ever_served(host: Host) -> None:
    (worker,) = attached(host)
    host.boxes[0] = Executing(DRIVER, 12, 1, DRIVER)
    host.core.worker_ended(worker, 9, host.now, "last words", "")
    (died,) = [message for message in host.said(DRIVER) if isinstance(message, m.WorkerDied)]
    assert (died.seq, died.attempt, died.status, died.tail, died.over) == (12, 1, 9, "last words", False)
    assert host.core.resources.available == host.core.resources.total
    host.core.worker_ended(worker, 9, host.now, "", "")
    assert host.said() == []


def test_a_kill_acts_only_on_the_attempt_it_names(host: Host) -> None:
    (worker,) = attached(host)
    host.boxes[0] = Executing(DRIVER, 12, 1, DRIVER)
    host.core.receive(DRIVER, m.Kill(worker, 12, 0, "timeout"), 0.0)
    host.core.receive(DRIVER, m.Kill(b"?" * 16, 12, 1, "timeout"), 0.0)
    assert not any(isinstance(effect, KillProcess) for effect in host.effects)
    host.core.receive(DRIVER, m.Kill(worker, 12, 1, "timeout"), 0.0)
    assert KillProcess(worker) in host.effects
    host.core.worker_ended(worker, 9, host.now, "", "oom")
    assert host.said(DRIVER)[-1].reason == "timeout"


def test_a_dead_drivers_running_work_is_killed_and_its_idle_workers_stop(host: Host) -> None:
    first, second = attached(host, 2)
    host.boxes[0] = Executing(DRIVER, 1, 0, DRIVER)
    host.core.client_ended(DRIVER, host.now)
    assert KillProcess(first) in host.effects
    assert [message.dead for message in host.said(second)] == [True]
    host.core.receive(second, m.Free(2), host.now)
    assert [type(message) for message in host.said(second)] == [m.Stop]
    host.core.client_ended(DRIVER, host.now)


def test_blocked_workers_lend_their_cpu_and_take_it_back(host: Host) -> None:
    workers = attached(host, 2)
    host.demand(3)
    assert host.said() == []
    host.core.receive(workers[0], m.Blocked(), host.now)
    (third,) = host.born()
    assert [type(message) for message in host.said(third)] == [m.Welcome, m.Attach]
    host.core.receive(workers[0], m.Unblocked(), host.now)
    assert host.core.resources.available["CPU"] == -m.UNIT
    states = [worker["state"] for worker in host.core.status(0)["workers"]]
    assert states == ["attached"] * 3


def test_a_worker_that_came_for_the_program_as_its_parent_task_waited_goes_to_that() -> None:
    """Blocked may come before the Demand it is about. Then nothing else happened, and the task waited for ever."""
    host = Host(cpus=1)
    host.driver()
    (parent,) = attached(host)
    host.core.receive(parent, m.Blocked(), host.now)
    (other,) = host.born()
    host.said()
    host.core.receive(parent, m.Demand(DRIVER, CPU, 1, depth=1), host.now)
    assert host.said(other) == [], "its client may be about to send it something"
    host.pass_time(Limits().fresh_s)
    assert [type(message) for message in host.said(other)] == [m.Detach]


def test_those_that_run_more_than_there_is_after_waits_come_back_when_their_tasks_are_over(host: Host) -> None:
    parents = attached(host, 2)
    host.demand(4)
    for parent in parents:
        host.core.receive(parent, m.Blocked(), host.now)
    children = host.born()
    assert len(children) == 2
    host.said()
    host.boxes.update(dict.fromkeys(range(4), Executing(DRIVER, 1, 0, DRIVER)))
    for parent in parents:
        host.core.receive(parent, m.Unblocked(), host.now)
    assert host.core.resources.available["CPU"] == -2 * m.UNIT
    host.pass_time(OVERBOOKED_S)
    detached = {effect.to: type(effect.message) for effect in host.effects if isinstance(effect, Send)}
    assert detached == dict.fromkeys(children, m.Detach), "the last that came"
    host.effects.clear()
    host.pass_time(OVERBOOKED_S)
    assert host.said() == [], "they are on their way"


def test_who_has_no_work_is_not_one_too_many(host: Host) -> None:
    parents = attached(host, 2)
    host.demand(3)
    host.core.receive(parents[0], m.Blocked(), host.now)
    (child,) = host.born()
    host.said()
    host.boxes.update(dict.fromkeys(range(2), Executing(DRIVER, 1, 0, DRIVER)))
    host.core.receive(parents[0], m.Unblocked(), host.now)
    host.pass_time(OVERBOOKED_S)
    assert host.said(child) == []


def test_a_worker_that_is_one_too_many_after_its_wait_is_detached_in_the_end(host: Host) -> None:
    (worker,) = attached(host)
    host.core.receive(worker, m.Blocked(), host.now)
    host.demand(0)  # as a lease that was handed back while the worker did not count
    host.core.receive(worker, m.Unblocked(), host.now)
    host.said()
    host.boxes.clear()
    host.pass_time(10.0)
    assert [type(message) for message in host.said(worker)] == [m.Detach]


def test_logs_go_to_the_driver_of_the_workers_job(host: Host) -> None:
    (worker,) = attached(host)
    host.core.log(worker, "f", 1, "hello\n", 0.0)
    (log,) = host.said(DRIVER)
    assert (log.name, log.stream, log.text, log.pid) == ("f", 1, "hello\n", 100)
    host.core.log(b"?" * 16, "f", 1, "lost\n", 0.0)
    assert host.said() == []


def test_an_infeasible_demand_is_told_at_once_and_never_served(host: Host) -> None:
    host.demand(1, {"CPU": 3 * m.UNIT})
    (told,) = host.said(DRIVER)
    assert isinstance(told, m.Infeasible)
    assert "CPU 3" in told.text


def test_the_status_names_workers_demands_and_the_store(host: Host) -> None:
    attached(host)
    host.core.store_report(10, 100, 0)
    host.core.receive(DRIVER, m.StatusRequest(4), 0.0)
    (reply,) = host.said(DRIVER)
    assert reply.request == 4
    assert reply.status["resources"]["available"]["CPU"] == 1.0
    assert reply.status["store"] == {"used": 10, "capacity": 100, "spilled": 0}
    assert reply.status["demands"][0]["attached"] == 1
    assert host.core.segments_in_use() == []


def test_an_idle_worker_stops_and_one_that_refuses_is_used_again(host: Host) -> None:
    (worker,) = attached(host)
    host.demand(0)
    host.pass_time(3.0)
    host.core.receive(worker, m.Free(1), host.now)
    host.said()
    host.pass_time(31.0)
    assert [type(message) for message in host.said(worker)] == [m.Stop]
    host.core.receive(worker, m.Free(1), host.now)
    host.demand(1)
    assert [type(message) for message in host.said(worker)] == [m.Attach]


def test_a_worker_that_refuses_to_stop_though_its_job_is_over_is_killed(host: Host) -> None:
    """It was asked again at once, and refused again, thousands of times a second for ever."""
    (worker,) = attached(host)
    host.core.client_ended(DRIVER, host.now)
    (detach,) = [said for said in host.said(worker) if isinstance(said, m.Detach)]
    host.core.receive(worker, m.Free(detach.epoch), host.now)
    assert [type(message) for message in host.said(worker)] == [m.Stop]
    host.core.receive(worker, m.Free(detach.epoch), host.now)
    assert host.effects == [KillProcess(worker)]
    host.core.worker_ended(worker, 9, host.now, "", "")
    host.core.check()


def test_a_surplus_worker_that_runs_something_is_looked_at_again(host: Host) -> None:
    (worker,) = attached(host)
    host.boxes[0] = Executing(DRIVER, 1, 0, DRIVER)
    host.demand(0)
    host.pass_time(2.0)
    assert host.said() == []
    host.boxes.clear()
    host.pass_time(2.0)
    assert [type(message) for message in host.said(worker)] == [m.Detach]
    host.pass_time(100.0)
    assert host.timers.next_deadline() is None


def test_workers_that_cannot_start_are_not_forked_for_ever() -> None:
    host = Host()
    host.driver()
    host.demand(1)
    for _ in range(3):
        (spawn,) = [effect for effect in host.effects if isinstance(effect, Spawn)]
        host.effects.clear()
        host.core.worker_ended(spawn.peer, 256, host.now, "", "")
    assert any(isinstance(effect, Warn) for effect in host.effects)
    assert not any(isinstance(effect, Spawn) for effect in host.effects)
    assert "fail to start" in host.core.status(0)["demands"][0]["waits_for"]
    host.effects.clear()
    host.pass_time(1.0)
    assert len(host.born()) == 1


def test_at_the_limit_of_workers_an_idle_one_of_another_job_makes_room() -> None:
    host = Host(workers_max=1)
    host.driver()
    (worker,) = attached(host)
    host.demand(0)
    host.pass_time(2.0)
    host.core.receive(worker, m.Free(1), host.now)
    host.driver(OTHER)
    host.demand(1, peer=OTHER)
    assert [type(message) for message in host.said(worker)] == [m.Stop]
    assert "as many as it may" in host.core.status(0)["demands"][0]["waits_for"]
    host.core.worker_ended(worker, 0, host.now, "", "")
    assert len(host.born()) == 1


def test_tasks_without_resources_have_a_limit_of_their_own() -> None:
    host = Host(zero_cpu_workers_max=2)
    host.driver()
    host.demand(5, {})
    host.born()
    assert len(host.born()) == 0
    assert "without resources" in host.core.status(0)["demands"][0]["waits_for"]


def test_a_parked_worker_of_the_same_job_is_taken_before_one_is_forked() -> None:
    host = Host(cpus=4)
    host.driver()
    (first,) = attached(host)
    host.now += 1.0
    host.core.receive(first, m.Demand(DRIVER, CPU, 1, 1), host.now)
    assert [type(message) for message in host.said()] == [m.Detach]


def test_a_goodbye_is_a_death_without_the_word(host: Host) -> None:
    host.core.receive(DRIVER, m.Goodbye(), 0.0)
    assert host.core.status(0)["clients"] == []


def test_what_a_dead_worker_held_goes_when_its_victims_have_buried_it(host: Host) -> None:
    (worker,) = attached(host)
    oid = worker + bytes(12)
    host.core.receive(worker, m.Promote(1, [(oid, m.INLINE, b"v", [])]), 0.0)
    host.core.worker_ended(worker, 9, host.now, "", "")
    assert host.core.status(0)["objects"] == 1
    host.core.receive(DRIVER, m.Hold(2, [(oid, DRIVER)]), 0.0)
    host.core.receive(DRIVER, m.Buried(worker), 0.0)
    assert host.core.status(0)["objects"] == 1
    host.core.receive(DRIVER, m.Release([(oid, 1, True)]), 0.0)
    assert host.core.status(0)["objects"] == 0
    host.core.receive(DRIVER, m.Buried(worker), 0.0)


def test_the_death_of_a_mourner_counts_as_its_burial(host: Host) -> None:
    (worker,) = attached(host)
    oid = worker + bytes(12)
    host.core.receive(worker, m.Promote(1, [(oid, m.INLINE, b"v", [])]), 0.0)
    host.core.worker_ended(worker, 9, host.now, "", "")
    host.core.client_ended(DRIVER, host.now)
    assert host.core.status(0)["objects"] == 0


def test_a_program_on_another_python_is_refused_as_its_functions_need_not_load() -> None:
    host = Host()
    for python, refused in (("3.11", False), ("", False), ("3.12", True)):
        host.core.receive(DRIVER, m.Hello("driver", 5, {"python": python}), 0.0)
        (welcome,) = host.said(DRIVER)
        assert bool(welcome.refused) == refused
    assert "3.11" in welcome.refused
    assert "3.12" in welcome.refused
    host.core.receive(OTHER, m.Hello("observer", 6, {"python": "3.12"}), 0.0)
    assert not host.said(OTHER)[0].refused, "one may look"


def test_no_tasks_go_between_nodes_on_different_pythons(host: Host) -> None:
    far, near = b"f" * 8, b"g" * 8
    many = {"CPU": 8 * m.UNIT}
    host.core.member_up(far, many, 0.0, "3.12")
    host.demand(1, many)
    assert any(isinstance(word, m.Infeasible) for word in host.said(DRIVER)), "only that one has so many"
    host.demand(5)
    host.said()
    host.core.receive(far + bytes(8), m.Spare(many), 0.0)
    host.core.heard_load(far, {"backlog": [(CPU, 3)]}, 0.0)
    assert not [word for word in host.said() if isinstance(word, m.Lease | m.Spare)]
    host.core.link_ended(far, "it took us for dead", 0.0)
    host.core.member_up(near, many, 0.0, "3.11")
    host.core.receive(near + bytes(8), m.Spare(many), 0.0)
    (lease,) = [word for word in host.said() if isinstance(word, m.Lease)]
    assert lease.workers == 3
    host.core.member_down(far, "killed", 0.0)
    host.core.check()


def test_a_task_for_a_node_on_another_python_is_told_why_it_cannot_run(host: Host) -> None:
    far = b"f" * 8
    there = f"node:{far.hex()}"
    host.demand(1, CPU | {there: 1})
    assert "is no member" in host.said(DRIVER)[-1].text
    host.core.member_up(far, {"CPU": m.UNIT, there: 1 << 40}, 0.0, "3.12")
    host.demand(1, CPU | {there: 1})
    told = host.said(DRIVER)[-1]
    assert isinstance(told, m.Infeasible)
    assert all(part in told.text for part in (far.hex(), "Python 3.12"))
    host.demand(1, {"CPU": 9 * m.UNIT})
    assert "CPU 9" in host.said(DRIVER)[-1].text


def test_a_spread_counts_only_members_that_can_take_part(host: Host) -> None:
    for number in range(8):
        host.core.member_up(b"far%05d" % number, {"CPU": m.UNIT, "spread": 1 << 40}, 0.0, "3.12")
    host.demand(2, CPU | {"spread": 1})
    assert len(host.born()) == 2


def test_room_is_made_by_those_alone_who_have_what_is_lacking() -> None:
    host = Host(cpus=2)
    host.driver()
    host.demand(1, {"GPU": m.UNIT})
    (spares,) = host.born()
    host.demand(1)
    (gives,) = host.born()
    host.said()
    for slot in range(2):
        host.boxes[slot] = Executing(DRIVER, slot + 1, 0, DRIVER)
    host.pass_time(0.1)
    group = NODE + b"group..."
    host.core.receive(DRIVER, CreateGroup(1, group, DRIVER, "", "PACK", [{"CPU": 2 * m.UNIT}]), host.now)
    host.pass_time(0.0)
    asked = [effect.to for effect in host.effects if isinstance(effect, Send) and isinstance(effect.message, m.Detach)]
    assert asked == [gives]
    assert spares in host.core.matchmaking.workers


def spawned(host: Host) -> int:
    """Return how many workers were asked for since the last look, and let them come to life."""
    return len(host.born())


def test_workers_are_ready_for_the_next_actors_while_these_are_made(host: Host) -> None:
    """Resources for two at a time: the next two workers are forked meanwhile, and wait for them."""
    host.demand(2)
    first, second = host.born()
    host.effects.clear()
    host.core.receive(first, Settle(CPU), host.now)
    assert spawned(host) == 0, "it may be the only one that is made"
    host.pass_time(SETTLE_S)
    (third,) = host.born()
    host.core.receive(second, Settle(CPU), host.now)
    _, ahead = host.born()
    host.effects.clear()
    host.core.receive(third, Settle(CPU), host.now)
    attached = [e.to for e in host.effects if isinstance(e, Send) and isinstance(e.message, m.Attach)]
    assert attached == [ahead]


def test_actors_made_now_and_then_have_no_worker_forked_ahead(host: Host) -> None:
    host.demand(1)
    for _ in range(3):
        (worker,) = host.born()
        host.core.receive(worker, Settle(CPU), host.now)
        assert spawned(host) == 0
        host.pass_time(AHEAD_S)


def test_a_worker_hears_of_the_end_of_a_client_it_served_before(host: Host) -> None:
    """What it gave in its last result it holds until that client says Taken, or is dead."""
    (worker,) = attached(host)
    host.demand(0)
    host.pass_time(3.0)
    (detach,) = host.said(worker)
    host.core.receive(worker, m.Free(detach.epoch), host.now)
    host.said()
    host.core.client_ended(DRIVER, host.now)
    assert m.Detach(DRIVER, 0, dead=True) in host.said(worker)


def test_who_breaks_the_protocol_is_told_so_and_is_no_client_any_more(host: Host) -> None:
    [worker] = attached(host)
    host.core.expel(OTHER, "a stranger", host.now)
    assert [type(effect) for effect in host.effects] == [Warn]
    host.effects.clear()
    host.core.expel(worker, "Hold.holders is malformed", host.now)
    assert KillProcess(worker) in host.effects
    assert host.said(worker) == [Expelled("Hold.holders is malformed")]
    assert host.core.pid_of(DRIVER) == 5
    host.core.expel(DRIVER, "it is no message", host.now)
    assert Expelled("it is no message") in host.said(DRIVER)
    assert host.core.pid_of(DRIVER) == 0


def test_a_worker_is_no_driver_and_a_driver_no_worker(host: Host) -> None:
    [worker] = attached(host)
    host.core.receive(worker, m.Hello("driver", 7, {}), host.now)
    [welcome] = host.said(worker)
    assert welcome.refused == "this node did not start you as that"


def test_the_job_of_a_demand_stays_what_it_was(host: Host) -> None:
    attached(host)
    host.core.receive(DRIVER, m.Demand(OTHER, CPU, 1), host.now)
    host.core.check()
    assert [demand.job for demand in host.core.matchmaking.demands.values()] == [DRIVER]
