"""Both halves of placement groups on real nodes, with a network that can lose one message at a time."""

import random
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from zmesh.core.bundles import Bundles
from zmesh.core.effects import Effect, KillProcess, Send, Spawn
from zmesh.core.node import Executing, NodeCore
from zmesh.core.placement import ANSWER_S, ENDED_MAX
from zmesh.core.records import Limits
from zmesh.core.resources import Resources
from zmesh.core.timers import Timers
from zmesh.wire import actor_messages as a
from zmesh.wire import group_messages as g
from zmesh.wire import messages as m
from zmesh.wire.ids import node_peer

NODES = [bytes([97 + index]) * 8 for index in range(4)]
DRIVER, OTHER = NODES[0] + b"driver..", NODES[1] + b"other..."
GROUP = NODES[0] + b"group..."
CPU = {"CPU": m.UNIT}


class Net:
    """Nodes whose words to each other arrive at once, unless `drop` says that they do not."""

    def __init__(self, count: int = 3, cpus: int = 2) -> None:
        self.now = 0.0
        self.drop: Callable[[Any], bool] = lambda message: False
        self.said: list[tuple[bytes, Any]] = []  # to clients
        self.effects: dict[bytes, list[Effect]] = {node: [] for node in NODES[:count]}
        self.timers = {node: Timers() for node in self.effects}
        self.boxes: dict[bytes, dict[int, Executing]] = {node: {} for node in self.effects}
        self.others: list[Effect] = []
        self.told: list[Any] = []  # between nodes
        total = {"CPU": cpus * m.UNIT, "GPU": 0}
        self.cores = {
            node: NodeCore(
                node,
                1,
                total,
                random.Random(1),
                self.effects[node],
                self.timers[node],
                self.boxes[node].get,
                Limits(),
            )
            for node in self.effects
        }
        for core in self.cores.values():
            for node, other in self.cores.items():
                core.member_up(node, other.resources.total, 0.0)
        for peer in (DRIVER, OTHER)[:count]:
            self.say(peer, m.Hello("driver", 5, {}))
        self.said.clear()

    def say(self, peer: bytes, message: Any, to: bytes = b"") -> None:
        self.cores[to or peer[:8]].receive(peer, message, self.now)
        self.settle()

    def settle(self) -> None:
        busy = True
        while busy:
            busy = False
            for node, effects in self.effects.items():
                self.timers[node].tick(self.now)
                taken, effects[:] = effects[:], []
                for effect in taken:
                    busy = True
                    self._carry_out(node, effect)
        for core in self.cores.values():
            core.check()

    def _carry_out(self, node: bytes, effect: Effect) -> None:
        if not isinstance(effect, Send):
            self.others.append(effect)
        elif effect.to == node_peer(effect.to[:8]):
            self.told.append(effect.message)
            if effect.to[:8] in self.cores and not self.drop(effect.message):
                self.cores[effect.to[:8]].receive(node_peer(node), effect.message, self.now)
        else:
            self.said.append((effect.to, effect.message))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.05)
            self.settle()

    def lose(self, node: bytes) -> None:
        """A node dies."""
        del self.cores[node]
        del self.effects[node]
        for core in self.cores.values():
            core.member_down(node, "killed", self.now)
        self.settle()

    def create(self, *bundles: dict[str, int], strategy: str = "PACK", group: bytes = GROUP, **fields: Any) -> str:
        message = g.CreateGroup(7, group, fields.pop("job", DRIVER), fields.pop("name", ""), strategy, list(bundles))
        self.say(DRIVER, message)
        return next(word.error for to, word in reversed(self.said) if isinstance(word, g.GroupReply) and to == DRIVER)

    def state(self, group: bytes = GROUP) -> str:
        return self.cores[group[:8]].groups.placement.describe()[group.hex()]["state"]

    def nodes(self, group: bytes = GROUP) -> list[str]:
        table = self.cores[group[:8]].groups.placement.describe()[group.hex()]
        return [bytes.fromhex(node)[:1].decode() for node in table["bundles_to_node_id"].values()]

    @property
    def held(self) -> list[int]:
        return [core.resources.held.get("CPU", 0) // m.UNIT for core in self.cores.values()]

    def states_told(self, peer: bytes) -> list[str]:
        return [word.state for to, word in self.said if to == peer and isinstance(word, g.GroupState)]


def first(kind: type[Any]) -> Callable[[Any], bool]:
    """Drop the first message of a kind."""
    seen: list[Any] = []

    def drop(message: Any) -> bool:
        if isinstance(message, kind):
            seen.append(message)
        return isinstance(message, kind) and len(seen) == 1

    return drop


def test_bundles_are_reserved_and_committed_and_given_back() -> None:
    net = Net()
    net.say(DRIVER, g.WatchGroup(GROUP))
    assert net.states_told(DRIVER) == ["REMOVED"], "it is not known yet"
    assert net.create(CPU, CPU, CPU, strategy="STRICT_SPREAD") == ""
    net.say(OTHER, g.WatchGroup(GROUP), to=NODES[0])
    assert (net.state(), net.held) == ("CREATED", [1, 1, 1])
    assert sorted(net.nodes()) == ["a", "b", "c"]
    net.say(OTHER, g.RemoveGroup(8, GROUP), to=NODES[0])
    assert (net.state(), net.held) == ("REMOVED", [0, 0, 0])
    net.say(OTHER, g.RemoveGroup(9, GROUP), to=NODES[0])
    assert net.states_told(OTHER) == ["CREATED", "REMOVED"]


@pytest.mark.parametrize("lost", [g.Reserve, g.Reserved, g.Commit, g.ReleaseBundles, g.Refused])
def test_one_lost_message_delays_a_group_and_no_more(lost: type[Any]) -> None:
    """Links lose nothing while both ends live; should it happen all the same, questions and patience mend it."""
    net = Net(4)
    net.create({"CPU": 2 * m.UNIT}, strategy="STRICT_PACK", group=NODES[0] + b"before..")
    net.cores[NODES[1]].drain(0.0)  # it refuses: so there is something to release
    net.drop = first(lost)
    net.create({"CPU": 2 * m.UNIT}, {"CPU": 2 * m.UNIT}, strategy="STRICT_SPREAD")
    net.run(2 * ANSWER_S + 30)
    assert net.state() == "CREATED"
    assert sorted(net.nodes()) == ["c", "d"]
    assert net.held == [2, 0, 2, 2]
    assert net.drop(lost(*[b""] * len(fields(lost)))) is False, "it was said, and lost"
    net.say(DRIVER, g.RemoveGroup(8, GROUP))
    assert net.held == [2, 0, 0, 0]


def test_words_of_an_attempt_that_is_over_change_nothing() -> None:
    net = Net()
    net.create(CPU, CPU, strategy="STRICT_SPREAD")
    epoch = next(word.epoch for word in net.told if isinstance(word, g.Reserve))
    for old in (
        g.Reserved(GROUP, epoch),
        g.Refused(GROUP, epoch, {}),
        g.AskGroup(GROUP, epoch),
        g.Reserved(GROUP, 99),
        g.Refused(GROUP, 99, {}),
        g.AskGroup(GROUP, 99),
        g.AskGroup(b"?" * 16, 1),
    ):
        net.cores[NODES[0]].receive(node_peer(NODES[1]), old, net.now)
        net.settle()
    assert net.state() == "CREATED"
    held = net.held
    for stranger in (
        g.Commit(GROUP, epoch),
        g.ReleaseBundles(GROUP, 0),
        g.Reserve(GROUP, 5, [(0, CPU)], 1.0),
    ):
        net.cores[NODES[1]].receive(node_peer(NODES[2]), stranger, net.now)
        net.settle()
    assert net.held == held, "only a group's coordinator has a say"


def test_a_second_commit_or_reserve_of_one_epoch_is_ignored() -> None:
    net = Net(2)
    net.drop = lambda message: isinstance(message, g.Reserved)  # its coordinator knows nothing of it
    reserve = g.Reserve(GROUP, 3, [(0, CPU)], 1.0)
    for message in (reserve, reserve, g.Commit(GROUP, 3), g.Commit(GROUP, 3)):
        net.cores[NODES[1]].receive(node_peer(NODES[0]), message, net.now)
        net.settle()
    assert net.held == [0, 1]
    for message in (g.ReleaseBundles(GROUP, 3), g.ReleaseBundles(GROUP, 3), g.Commit(GROUP, 3)):
        net.cores[NODES[1]].receive(node_peer(NODES[0]), message, net.now)
        net.settle()
    assert net.held == [0, 0]


def test_a_reservation_nobody_knows_of_is_given_back_when_its_node_asks() -> None:
    net = Net(2)
    net.drop = lambda message: isinstance(message, g.Reserved)
    net.cores[NODES[1]].receive(node_peer(NODES[0]), g.Reserve(GROUP, 3, [(0, CPU)], 1.0), net.now)
    net.settle()
    net.run(4.5)
    assert net.held == [0, 1]
    net.run(1.0)
    assert net.held == [0, 0]


@pytest.mark.parametrize(
    "bundles",
    [
        [],
        [(0, {})],
        [(0, {"CPU": -1})],
        [(0, {"CPU": 1.5})],
        [(0, {"a@b": 1})],
        [("x", CPU)],
        [0],
        [(0, {"spread": 1})],
    ],
)
def test_a_reservation_that_makes_no_sense_is_refused(bundles: list[Any]) -> None:
    net = Net(2)
    net.cores[NODES[1]].receive(node_peer(NODES[0]), g.Reserve(GROUP, 3, bundles, 1.0), net.now)
    net.settle()
    assert isinstance(net.told[-1], g.Refused)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"strategy": "NEAR"}, "PACK, SPREAD"),
        ({"group": NODES[1] + b"group..."}, "not one of this node's"),
        ({"group": b"short"}, "not one of this node's"),
        ({"job": NODES[0] + b"nobody.."}, "has ended"),
    ],
)
def test_a_group_that_makes_no_sense_is_refused(fields: dict[str, Any], text: str) -> None:
    net = Net()
    assert text in net.create(CPU, **fields)
    assert not net.cores[NODES[0]].groups.placement.describe()


def test_bundles_that_make_no_sense_are_refused() -> None:
    net = Net()
    assert "amounts above 0" in net.create()
    assert "amounts above 0" in net.create({"CPU": 0})
    assert net.create(CPU) == ""
    assert "not new" in net.create(CPU)


def test_what_another_group_holds_is_refused_at_once_and_had_when_it_goes() -> None:
    net = Net(1)
    second = NODES[0] + b"second.."
    net.create({"CPU": 2 * m.UNIT})
    net.create(CPU, group=second)
    net.run(3.0)
    assert (net.state(), net.state(second)) == ("CREATED", "PENDING")
    net.say(DRIVER, g.RemoveGroup(8, GROUP))
    assert net.state(second) == "CREATED", "without a pause"


def test_a_plan_that_rests_on_old_news_is_refused_with_the_new_ones() -> None:
    net = Net(2)
    stale = {"available": {"CPU": 2.0}, "held": {}}
    net.create({"CPU": 2 * m.UNIT}, {"CPU": 2 * m.UNIT}, strategy="STRICT_SPREAD")
    second = NODES[0] + b"second.."
    net.cores[NODES[0]].heard_load(NODES[1], stale, net.now)
    net.create(CPU, group=second)
    assert any(isinstance(word, g.Refused) for word in net.told), "at once: nobody waits for what a group holds"
    net.cores[NODES[0]].heard_load(NODES[1], {"available": "none"}, net.now)
    net.run(3.0)
    assert net.state(second) == "PENDING"
    net.say(DRIVER, g.RemoveGroup(8, GROUP))
    net.run(3.0)
    assert net.state(second) == "CREATED"


def test_a_node_that_dies_while_it_is_asked_is_replaced_and_the_others_keep_nothing() -> None:
    net = Net(3)
    net.drop = lambda message: isinstance(message, g.Reserved)
    net.create({"CPU": 2 * m.UNIT}, {"CPU": 2 * m.UNIT}, strategy="STRICT_SPREAD", group=GROUP)
    asked = [node for node, core in net.cores.items() if node != NODES[0] and core.resources.held]
    assert net.state() == "PENDING"
    net.drop = lambda message: False
    net.lose(asked[0])
    net.run(3.0)
    assert net.state() == "CREATED"
    assert asked[0][:1].decode() not in net.nodes()
    net.say(DRIVER, g.RemoveGroup(8, GROUP))
    assert net.held == [0, 0]


def test_a_second_node_that_dies_while_the_first_is_replaced_is_replaced_too() -> None:
    net = Net(3)
    net.create(CPU, CPU, strategy="STRICT_SPREAD")
    kept, spare = (NODES[1], NODES[2]) if "b" in net.nodes() else (NODES[2], NODES[1])
    net.drop = lambda message: isinstance(message, g.Reserved)
    net.cores[NODES[0]].groups.placement.node_gone(kept, net.now)
    net.settle()
    assert net.state() == "RESCHEDULING"
    net.drop = lambda message: False
    net.lose(spare)
    net.run(2.0)
    assert net.state() in ("RESCHEDULING", "CREATED")


def test_a_node_that_dies_while_another_is_replaced_is_replaced_next() -> None:
    net = Net(4)
    net.create(CPU, CPU, CPU, strategy="STRICT_SPREAD")
    assert sorted(net.nodes()) == ["a", "b", "c"]
    net.drop = lambda message: isinstance(message, g.Reserved)
    net.lose(NODES[1])
    assert net.held == [1, 1, 1]
    net.lose(NODES[2])
    net.run(7.0)  # the last one asks what becomes of its reservation
    assert sorted(net.nodes()) == ["", "a", "d"]
    assert net.state() == "INFEASIBLE"


def test_a_coordinator_that_dies_takes_its_groups_along() -> None:
    net = Net()
    net.create(CPU, CPU, CPU, strategy="STRICT_SPREAD")
    net.lose(NODES[0])
    assert net.held == [0, 0]


def test_a_program_that_ends_takes_its_groups_along() -> None:
    net = Net()
    net.create(CPU, CPU, CPU, strategy="STRICT_SPREAD")
    net.cores[NODES[0]].client_ended(DRIVER, net.now)
    net.settle()
    assert (net.state(), net.held) == ("REMOVED", [0, 0, 0])


def test_who_is_not_there_is_told_nothing_and_what_is_not_there_is_removed_already() -> None:
    net = Net()
    net.create(CPU)
    net.say(NODES[1] + b"nobody..", g.WatchGroup(GROUP), to=NODES[0])
    net.say(NODES[1] + b"nobody..", g.RemoveGroup(1, b"?" * 16), to=NODES[0])
    net.cores[NODES[0]].member_down(NODES[1], "killed", net.now)
    net.settle()
    net.cores[NODES[0]].groups.placement.watch(OTHER, g.WatchGroup(GROUP))
    net.settle()
    assert not net.states_told(OTHER)


def test_a_program_elsewhere_that_ends_takes_along_what_its_tasks_made() -> None:
    net = Net()
    net.create(CPU, job=OTHER)
    assert net.state() == "CREATED"
    net.say(OTHER, g.WatchGroup(GROUP), to=NODES[0])
    net.cores[NODES[1]].client_ended(OTHER, net.now)
    net.settle()
    assert net.state() == "REMOVED"


def test_only_the_last_groups_that_ended_are_remembered() -> None:
    net = Net(1)
    for index in range(ENDED_MAX + 20):
        group = NODES[0] + index.to_bytes(8, "big")
        net.create(CPU, group=group, name="again")
        net.say(DRIVER, g.RemoveGroup(8, group))
    assert len(net.cores[NODES[0]].groups.placement.describe()) == ENDED_MAX


def answers(net: Net) -> list[g.GroupReply]:
    return [word for to, word in net.said if to == DRIVER and isinstance(word, g.GroupReply)]


def test_a_name_is_unique_in_the_mesh_until_its_group_is_gone() -> None:
    net = Net()
    assert net.create(CPU, name="x") == ""
    other = NODES[1] + b"group..."
    net.say(OTHER, g.CreateGroup(7, other, OTHER, "x", "PACK", [CPU]))
    (reply,) = [word for to, word in net.said if to == OTHER and isinstance(word, g.GroupReply)]
    assert "named 'x' already" in reply.error
    assert reply.holder == GROUP
    net.say(DRIVER, g.RemoveGroup(8, GROUP))
    net.say(OTHER, g.CreateGroup(9, other, OTHER, "x", "PACK", [CPU]))
    assert net.state(other) == "CREATED"


def test_what_is_wanted_of_a_group_that_waits_for_its_name_is_done_afterwards() -> None:
    net = Net()
    held: list[Any] = []
    name = next(n for n in "abcdefgh" if net.cores[NODES[0]].actors.names.line(("", n))[0] != NODES[0])

    def hold(message: Any) -> bool:
        if isinstance(message, a.NameTold):
            held.append(message)
        return isinstance(message, a.NameTold)

    net.drop = hold
    message = g.CreateGroup(7, GROUP, DRIVER, name, "PACK", [CPU])
    net.say(DRIVER, message)
    net.say(DRIVER, g.WatchGroup(GROUP))
    net.say(DRIVER, g.RemoveGroup(8, GROUP))
    assert answers(net) == []
    net.say(DRIVER, message)  # the ID is not new
    assert "not new" in answers(net)[0].error
    net.say(node_peer(NODES[1]), held[0], to=NODES[0])
    assert [reply.error for reply in answers(net)[1:]] == ["", ""]
    assert net.states_told(DRIVER) == ["PENDING", "REMOVED"]
    assert net.held == [0, 0, 0]


def test_a_program_that_ends_while_its_group_is_named_leaves_no_name() -> None:
    net = Net()
    name = next(n for n in "abcdefgh" if net.cores[NODES[0]].actors.names.line(("", n))[0] != NODES[0])
    held: list[Any] = []
    net.drop = lambda message: isinstance(message, a.NameTold) and not held.append(message)
    net.say(DRIVER, g.CreateGroup(7, GROUP, DRIVER, name, "PACK", [CPU]))
    net.cores[NODES[0]].client_ended(DRIVER, net.now)
    net.drop = lambda message: False
    net.say(node_peer(NODES[1]), held[0], to=NODES[0])
    assert "has ended" in answers(net)[0].error
    assert all(not core.actors.names._entries for core in net.cores.values())


def test_a_detached_group_outlives_its_program_but_not_its_coordinator() -> None:
    net = Net()
    net.create(CPU, CPU, CPU, job=b"", strategy="STRICT_SPREAD", name="x")
    net.cores[NODES[0]].client_ended(DRIVER, net.now)
    net.run(10.0)
    assert net.state() == "CREATED"
    assert net.held == [1, 1, 1]
    net.lose(NODES[0])
    net.run(10.0)
    assert net.held == [0, 0]
    assert all(not core.actors.names._entries for core in net.cores.values())


def worker_in(net: Net, *, running: bool) -> bytes:
    """Have a worker attached to a bundle of the group; returns it."""
    shape = {f"CPU@{GROUP.hex()}:0": m.UNIT, f"bundle@{GROUP.hex()}:0": 1}
    net.say(DRIVER, m.Demand(DRIVER, shape, 1))
    (spawn,) = [effect for effect in net.others if isinstance(effect, Spawn)]
    net.say(spawn.peer, m.Hello("worker", 100))
    assert any(to == spawn.peer and isinstance(word, m.Attach) for to, word in net.said)
    if running:
        net.boxes[NODES[0]][spawn.slot] = Executing(DRIVER, 1, 0, DRIVER)
    net.others.clear()
    return spawn.peer


def test_removal_kills_what_runs_and_frees_its_share_when_that_is_gone() -> None:
    net = Net(1)
    net.create({"CPU": 2 * m.UNIT})
    worker = worker_in(net, running=True)
    net.say(DRIVER, g.RemoveGroup(8, GROUP))
    net.run(0.2)
    assert net.others == [KillProcess(worker)], "once"
    assert net.held == [2]
    net.cores[NODES[0]].worker_ended(worker, 9, net.now, "", "")
    net.settle()
    died = next(word for to, word in net.said if isinstance(word, m.WorkerDied))
    assert died.reason == "group"
    assert net.held == [0]
    net.run(0.2)


def test_removal_recalls_a_worker_that_runs_nothing_and_kills_it_if_it_does_after_all() -> None:
    net = Net(1)
    net.create(CPU)
    worker = worker_in(net, running=False)
    net.say(DRIVER, g.RemoveGroup(8, GROUP))
    assert any(to == worker and isinstance(word, m.Detach) for to, word in net.said)
    assert not net.others
    net.boxes[NODES[0]][0] = Executing(DRIVER, 1, 0, DRIVER)
    net.run(0.1)
    assert net.others == [KillProcess(worker)]


def test_a_worker_that_does_not_leave_its_bundle_is_killed_after_a_while() -> None:
    net = Net(1)
    net.create(CPU)
    worker = worker_in(net, running=False)
    net.say(DRIVER, g.RemoveGroup(8, GROUP))
    net.run(1.5)
    assert not net.others
    net.run(1.0)
    assert net.others == [KillProcess(worker)]


def test_a_node_that_leaves_takes_no_bundles() -> None:
    net = Net(2)
    net.cores[NODES[1]].drain(0.0)
    net.create(CPU, CPU, strategy="STRICT_SPREAD")
    net.run(3.0)
    assert (net.state(), net.held) == ("PENDING", [0, 0])


def test_a_group_may_be_infeasible_for_a_while() -> None:
    net = Net(1)
    net.say(DRIVER, g.WatchGroup(GROUP))
    net.create(CPU, {"GPU": m.UNIT})
    net.say(DRIVER, g.WatchGroup(GROUP))
    net.run(0.9)
    assert net.state() == "PENDING"
    net.run(0.2)
    assert net.state() == "INFEASIBLE"
    net.cores[NODES[0]].member_up(NODES[1], CPU | {"GPU": m.UNIT}, net.now)
    net.settle()
    assert net.state() == "PENDING", "it waits for an answer"
    assert net.states_told(DRIVER) == ["REMOVED", "PENDING", "INFEASIBLE", "PENDING"]


def test_a_group_that_lost_a_node_for_good_is_infeasible_until_another_comes() -> None:
    net = Net(2)
    net.create(CPU, CPU, strategy="STRICT_SPREAD")
    net.lose(NODES[1])
    assert net.state() == "RESCHEDULING"
    net.run(1.2)
    assert net.state() == "INFEASIBLE"
    net.cores[NODES[0]].member_up(NODES[2], CPU, net.now)
    net.settle()
    assert net.state() == "RESCHEDULING"


def test_a_group_waits_for_a_task_to_end_and_gives_up_for_a_while_if_it_does_not() -> None:
    net = Net(1, cpus=1)
    net.say(DRIVER, m.Demand(DRIVER, CPU, 1))
    (spawn,) = [effect for effect in net.others if isinstance(effect, Spawn)]
    net.say(spawn.peer, m.Hello("worker", 100))
    net.boxes[NODES[0]][spawn.slot] = Executing(DRIVER, 1, 0, DRIVER)
    net.run(0.1)
    second = NODES[0] + b"second.."
    net.create(CPU)
    net.create(CPU, group=second)
    assert any(to == spawn.peer and isinstance(word, m.Detach) for to, word in net.said), "it is asked to make way"
    net.run(3.0)
    assert (net.state(), net.state(second)) == ("PENDING", "PENDING")
    attach = next(word for to, word in net.said if isinstance(word, m.Attach))
    net.say(DRIVER, m.Demand(DRIVER, CPU, 0))
    net.say(spawn.peer, m.Free(attach.epoch))
    net.run(2.0)
    assert sorted([net.state(), net.state(second)]) == ["CREATED", "PENDING"], "one has it, the other waits no more"
    made = GROUP if net.state() == "CREATED" else second
    net.say(DRIVER, g.RemoveGroup(8, made))
    net.run(1.5)
    assert net.state(second if made == GROUP else GROUP) == "CREATED"


def test_a_group_that_is_removed_while_it_waits_leaves_no_claim() -> None:
    net = Net(1, cpus=1)
    net.say(DRIVER, m.Demand(DRIVER, CPU, 1))
    (spawn,) = [effect for effect in net.others if isinstance(effect, Spawn)]
    net.say(spawn.peer, m.Hello("worker", 100))
    net.create(CPU)
    assert net.cores[NODES[0]].groups.bundles._parts
    net.say(DRIVER, g.RemoveGroup(8, GROUP))
    assert not net.cores[NODES[0]].groups.bundles._parts
    assert not any(demand.grant for demand in net.cores[NODES[0]].matchmaking.demands.values())


def test_what_others_leave_room_for_goes_on_waiting() -> None:
    grants, told = [], []
    bundles = Bundles(
        Timers(),
        Resources({"CPU": 2 * m.UNIT}),
        tell=lambda node, message, now: told.append(type(message)),
        want=lambda group, shape, grant, now: grants.append(grant),
        unwant=lambda group: None,
        evict=lambda bundles, now: None,
        refuse=lambda: False,
    )
    for index in range(3):
        bundles.reserve(NODES[0], g.Reserve(NODES[0] + bytes([index]) * 8, 1, [(0, CPU)], 1.0), 0.0)
    grants[0](0.0)
    assert told == [g.Reserved]
    grants[2](0.0)
    assert told == [g.Reserved, g.Reserved, g.Refused]
    bundles.check()


def test_bundles_whose_parts_of_gpus_lie_on_no_one_gpu_are_refused() -> None:
    """Two halves on two GPUs are a whole in the sum, and no GPU."""
    timers, told = Timers(), []
    resources = Resources({"GPU": 2 * m.UNIT})
    for _ in range(2):
        resources.book({"GPU": m.UNIT // 2})
        resources.release(resources.book({"GPU": m.UNIT}))
    bundles = Bundles(
        timers,
        resources,
        tell=lambda node, message, now: told.append(message),
        want=lambda group, shape, grant, now: grant(now),
        unwant=lambda group: None,
        evict=lambda bundles, now: None,
        refuse=lambda: False,
    )
    three_quarters = {"GPU": 3 * m.UNIT // 4}
    bundles.reserve(NODES[0], g.Reserve(GROUP, 1, [(0, three_quarters), (1, three_quarters)], 1.0), 0.0)
    assert isinstance(told.pop(), g.Refused)
    assert timers.next_deadline() is None
    bundles.check()
