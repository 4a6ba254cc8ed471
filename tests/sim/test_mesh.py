"""Who is a member, at 2 to 1,000 nodes: joins, deaths, blackouts, partitions, restarts, loss and hostile gossip."""

import random

import pytest

from tests.sim.mesh import CLUSTER, Mesh, Node
from zmesh.wire import gossip
from zmesh.wire.gossip import ALIVE, DEAD, INC_MAX, ROW, SUSPECT, Heartbeat, Join, News, Row


def joined(seed: int, size: int, **options: float) -> Mesh:
    """Start nodes one after the other, each joining through the first."""
    mesh = Mesh(seed, **options)
    first = mesh.add()
    for _ in range(size - 1):
        mesh.add([first])
        mesh.run(0.05)
    mesh.until(mesh.agree, 15)
    return mesh


def ready(seed: int, size: int, **options: float) -> Mesh:
    mesh = Mesh(seed, **options)
    mesh.full(size)
    mesh.run(5)
    assert mesh.agree()
    return mesh


def known_by_all(mesh: Mesh, node: Node) -> bool:
    return all(node.name not in [row.node for row in other.core.living()] for other in mesh.living())


@pytest.mark.parametrize("size", [2, 3, 10, 40])
def test_nodes_that_join_know_each_other(size: int) -> None:
    mesh = joined(1, size)
    assert all(node.joined for node in mesh.nodes)
    assert all(len(node.up) == size - 1 for node in mesh.nodes)


@pytest.mark.parametrize("size", [10, 100])
def test_one_more_is_known_to_all_within_a_second(size: int) -> None:
    mesh = ready(2, size)
    newcomer = mesh.add([mesh.nodes[3]])
    assert mesh.until(mesh.agree, 5) <= 1.5
    assert newcomer.joined


@pytest.mark.parametrize(("size", "most"), [(2, 8), (3, 8), (10, 9), (100, 13)])
def test_a_silent_host_is_dead_after_the_time_of_the_table(size: int, most: float) -> None:
    mesh = ready(3, size)
    victim = mesh.nodes[size // 2]
    mesh.crash(victim)
    took = mesh.until(lambda: known_by_all(mesh, victim), most)
    assert took > 5.0, "a blackout of 5 s would have been fatal"
    assert not mesh.false_deaths()


@pytest.mark.parametrize("size", [2, 3, 8, 40])
def test_a_killed_process_is_known_everywhere_in_about_a_second_and_a_half(size: int) -> None:
    mesh = ready(4, size)
    victim = mesh.nodes[size // 2]
    mesh.crash(victim, closed_port=True)
    assert mesh.until(lambda: known_by_all(mesh, victim), 5) <= 1.6
    assert not mesh.false_deaths()


@pytest.mark.parametrize("size", [2, 3, 10, 50])
def test_blackouts_of_five_seconds_kill_nobody(size: int) -> None:
    mesh = ready(5, size)
    for turn in range(4):
        node = mesh.nodes[turn % size]
        mesh.block([node], [other for other in mesh.nodes if other is not node])
        mesh.run(5.0)
        mesh.heal()
        mesh.run(15.0)
    assert not mesh.false_deaths()
    mesh.until(mesh.agree, 30)


@pytest.mark.parametrize("size", [3, 10])
def test_a_stop_of_four_seconds_kills_nobody_and_one_of_a_minute_is_a_death_and_a_return(size: int) -> None:
    mesh = ready(6, size)
    for _ in range(3):
        mesh.pause(mesh.nodes[1], 4.0)
        mesh.run(12.0)
    assert not mesh.false_deaths()
    mesh.pause(mesh.nodes[1], 60.0)
    mesh.until(lambda: all(mesh.nodes[1].name not in node.up for node in mesh.nodes if node.index != 1), 30)
    mesh.run(60.0 - 30.0)
    mesh.until(mesh.agree, 60)


@pytest.mark.parametrize("size", [2, 6, 20])
def test_both_halves_of_a_partition_go_on_and_merge(size: int) -> None:
    mesh = ready(7, size)
    left, right = mesh.nodes[: size // 2], mesh.nodes[size // 2 :]
    mesh.block(left, right)
    mesh.until(lambda: mesh.agree(left) and mesh.agree(right), 60)
    mesh.run(60)
    assert mesh.agree(left)
    assert mesh.agree(right)
    mesh.heal()
    mesh.until(mesh.agree, 45)


def test_a_node_that_hears_nobody_does_not_bring_down_the_others() -> None:
    mesh = ready(8, 10)
    deaf = mesh.nodes[4]
    others = [node for node in mesh.nodes if node is not deaf]
    mesh.block(others, [deaf], both=False)
    mesh.run(4.0)
    assert deaf.core.deaf(mesh.now)
    mesh.run(30.0)
    assert not [down for node in others for down in node.downs if mesh.by_id[down[1]] is not deaf]
    mesh.heal()
    mesh.until(mesh.agree, 60)


def test_the_dead_at_whose_address_another_one_was_are_replaced() -> None:
    mesh = Mesh(5)
    first, old = mesh.full(2)
    mesh.crash(old, closed_port=True)
    mesh.until(lambda: not first.core.members[old.name].alive, 5.0)
    assert not first.core.members.replaced(first.core.members[old.name].row)
    new = mesh.add([first], at=old)
    mesh.until(lambda: new.name in first.core.members, 5.0)
    assert first.core.members.replaced(first.core.members[old.name].row)
    assert new.core.members.replaced(old.core.me)
    new.core.leave(mesh.now)
    mesh.settle(new)
    mesh.until(lambda: not first.core.members[new.name].alive, 5.0)
    assert first.core.members.replaced(first.core.members[old.name].row)


def test_a_node_restarts_under_its_address_as_often_as_it_likes() -> None:
    mesh = joined(9, 5)
    node = mesh.nodes[-1]
    for turn in range(20):
        mesh.crash(node, closed_port=turn % 2 == 0)
        mesh.run(0.1 if turn % 3 else 3.0)
        node = mesh.add([mesh.nodes[0]], at=node)
        mesh.until(mesh.agree, 10)


def test_others_join_after_the_seed_died() -> None:
    mesh = joined(10, 4)
    mesh.crash(mesh.nodes[0], closed_port=True)
    mesh.add([mesh.nodes[0], mesh.nodes[2]])
    mesh.until(mesh.agree, 10)


def test_all_restart_within_a_second() -> None:
    mesh = joined(11, 20)
    old = list(mesh.nodes)
    first = None
    for node in old:
        mesh.crash(node, closed_port=True)
    for node in old:
        mesh.run(0.05)
        started = mesh.add([first] if first is not None else None, at=node)
        first = first or started
    mesh.until(mesh.agree, 20)


@pytest.mark.parametrize("size", [3, 10])
def test_ten_minutes_at_five_percent_loss_kill_nobody(size: int) -> None:
    mesh = ready(12, size, loss=0.05)
    mesh.run(600)
    assert not mesh.false_deaths()
    mesh.until(mesh.agree, 30)


def test_a_mesh_of_one_says_nothing() -> None:
    mesh = Mesh(13)
    node = mesh.add()
    mesh.run(120)
    assert node.joined
    assert node.sent_bytes == 0


def test_an_idle_node_says_less_than_three_kilobytes_a_second() -> None:
    mesh = ready(14, 8)
    before = [node.sent_bytes for node in mesh.nodes]
    mesh.run(100)
    rates = [(node.sent_bytes - old) / 100 for node, old in zip(mesh.nodes, before, strict=True)]
    assert max(rates) < 3000, rates


def test_loads_are_heard_and_urgent_ones_at_once() -> None:
    mesh = ready(15, 100)
    heard: dict[int, float] = {}
    for node in mesh.nodes[1:]:
        node.core.loads.heard = lambda who, load, now, node=node: (
            heard.setdefault(node.index, now) if load.get("backlog") and who == mesh.nodes[0].name else None
        )
    start = mesh.now
    mesh.nodes[0].core.set_load({"backlog": [({"CPU": 1}, 5)]}, mesh.now, urgent=True)
    mesh.settle(mesh.nodes[0])
    mesh.until(lambda: len(heard) == 99, 3.0)
    assert max(heard.values()) - start < 0.5


def test_a_node_that_leaves_is_gone_at_once_and_for_good() -> None:
    mesh = ready(16, 5)
    leaver = mesh.nodes[2]
    leaver.core.leave(mesh.now)
    mesh.settle(leaver)
    others = [node for node in mesh.nodes if node is not leaver]
    assert mesh.until(lambda: all(leaver.name not in node.up for node in others), 3) < 1.5
    assert all(why == "it left" for node in others for _, _, why in node.downs)
    mesh.crash(leaver)
    mesh.run(60)
    assert mesh.agree()


def test_the_same_seed_gives_the_same_story() -> None:
    def story() -> list[str]:
        mesh = joined(17, 12, loss=0.1)
        mesh.crash(mesh.nodes[3])
        mesh.run(40)
        return mesh.trace

    assert story() == story() != []


# Words of strangers and of broken members.


def strange(mesh: Mesh, message: object, sender: bytes | None = None) -> None:
    """Let every node receive a word."""
    for node in mesh.living():
        node.core.receive(sender or message.node, message, mesh.now)  # type: ignore[attr-defined]
        mesh.settle(node)


def test_lies_about_ourselves_are_refuted() -> None:
    mesh = ready(18, 4)
    victim = mesh.nodes[1]
    liar = mesh.nodes[2].name
    for state in (SUSPECT, DEAD):
        row = victim.core.me.at(victim.core.me.inc, state)
        strange(mesh, News(CLUSTER, liar, 0, [[ROW, row.packed(), liar, 10**9, False]]))
        mesh.run(20)
        assert mesh.agree()
        assert victim.core.me.inc > 0
    row = victim.core.me.at(INC_MAX, DEAD)
    victim.core.receive(liar, News(CLUSTER, liar, 0, [[ROW, row.packed(), liar, 0, False]]), mesh.now)
    assert victim.core.me.inc == INC_MAX


def test_a_million_invented_members_do_not_fill_the_table() -> None:
    mesh = ready(19, 3)
    node = mesh.nodes[0]
    rng = random.Random(1)
    for start in range(0, 30_000, 100):
        rumours = [
            [ROW, Row(rng.randbytes(8), 0, ALIVE, "x", "10.9.9.9", 1 + (start + i) % 60000, {}).packed(), b"", 0, False]
            for i in range(100)
        ]
        node.core.receive(mesh.nodes[1].name, News(CLUSTER, mesh.nodes[1].name, 0, rumours), mesh.now)
        node.effects.clear()
    assert len(node.core.members) <= 20_000


@pytest.mark.parametrize(
    "host", ["tcp://169.254.169.254", "ipc:///etc/passwd", "inproc://x", "a" * 300, "", "a b", "x/y"]
)
def test_addresses_that_are_none_are_not_dialled(host: str) -> None:
    mesh = ready(20, 3)
    row = Row(b"stranger", 0, ALIVE, "x", host, 80, {})
    strange(mesh, News(CLUSTER, mesh.nodes[1].name, 0, [[ROW, row.packed(), b"", 0, False]]))
    strange(mesh, Join(CLUSTER, b"stranger", list(row.packed())))
    mesh.run(5)
    assert all(b"stranger" not in node.core.members for node in mesh.nodes)
    assert all(b"stranger" not in mesh.subscribers for node in mesh.nodes)


def test_nonsense_is_dropped() -> None:
    mesh = ready(21, 3)
    name = mesh.nodes[1].name
    for message in (
        Heartbeat(CLUSTER, name, -1, 0, 0.0, {}),
        Heartbeat(CLUSTER, name, 1, 0, float("nan"), {}),
        Heartbeat(CLUSTER, name, 10**6, 0, 0.0, {"x": float("nan")}),
        Heartbeat(CLUSTER, name, 10**6, 0, 0.0, {"x": "y" * 10_000}),
        News(CLUSTER, name, 0, [1, [], [ROW], [9, 9, 9, 9, 9], [ROW, [1, 2], b"", 0, False]]),
        gossip.Rows(CLUSTER, name, [[b"x"]], [999], True, False),
        gossip.Digest(CLUSTER, name, [], b""),
        gossip.Busy(CLUSTER, name, 3, [["tcp://x", 1], 5]),
        gossip.Ping(CLUSTER, name, b"somebody", 1, 0),
    ):
        strange(mesh, message)
    strange(mesh, Heartbeat(b"another!", name, 10**6, 0, 0.0, {}))
    mesh.run(5)
    assert mesh.agree()
    assert not mesh.false_deaths()


def test_another_major_is_refused_with_a_line_and_another_minor_joins() -> None:
    mesh = ready(22, 2)
    newer = mesh.add([mesh.nodes[0]])
    assert newer.joined is None
    newer.effects.clear()
    join = Join(CLUSTER, newer.name, list(newer.core.me.packed()), major=2)
    mesh.nodes[0].core.receive(newer.name, join, mesh.now)
    (tell,) = [e for e in mesh.nodes[0].effects if type(e).__name__ == "Tell"]
    mesh.nodes[0].effects.clear()
    newer.core.receive(mesh.nodes[0].name, tell.message, mesh.now)
    mesh.settle(newer)
    assert newer.joined is False
    assert "version 2" in newer.refused
    minor = mesh.add([mesh.nodes[0]], minor=7)
    mesh.until(lambda: minor.joined is True, 5)


@pytest.mark.slow
def test_a_thousand_nodes_hear_of_a_join_and_a_death() -> None:
    mesh = ready(23, 1000)
    mesh.add([mesh.nodes[0]])
    assert mesh.until(mesh.agree, 10) < 3.0
    mesh.crash(mesh.nodes[500], closed_port=True)
    assert mesh.until(lambda: known_by_all(mesh, mesh.nodes[500]), 10) < 2.0
    assert not mesh.false_deaths()


def test_a_mesh_that_is_busy_names_others_to_ask() -> None:
    mesh = ready(24, 4)
    mesh.limits.push_pulls_max = 0
    asked = mesh.nodes[0]
    newcomer = mesh.add([asked])
    mesh.run(0.5)
    assert newcomer.joined is None
    mesh.limits.push_pulls_max = 32
    mesh.until(lambda: newcomer.joined is True, 5)
    mesh.until(mesh.agree, 5)


def test_a_changed_row_is_known_to_all_and_a_load_that_is_too_large_is_cut() -> None:
    mesh = ready(25, 5)
    node = mesh.nodes[1]
    node.core.set_meta(node.core.me.meta | {"key": "new"}, mesh.now)
    mesh.settle(node)
    others = [other for other in mesh.nodes if other is not node]
    mesh.until(lambda: all(o.core.members[node.name].row.meta.get("key") == "new" for o in others), 1)
    node.core.sync(mesh.now)
    assert len(node.effects) == 3
    mesh.settle(node)
    node.core.set_load({"backlog": [("x" * 100, 1)] * 9, "workers": 1}, mesh.now, urgent=False)
    mesh.run(2)
    assert all(0 < len(o.core.members[node.name].load["backlog"]) < 9 for o in others)
    for load, told in (
        ({"backlog": [("x" * 900, 1)], "workers": 1}, {"backlog": (), "workers": 1}),
        ({"available": {"x" * 900: 1}}, {}),
    ):
        node.core.set_load(load, mesh.now, urgent=False)
        mesh.run(2)
        assert all(o.core.members[node.name].load == told for o in others)


def test_a_late_loop_makes_a_node_patient_and_time_makes_it_sound_again() -> None:
    mesh = ready(26, 3)
    node = mesh.nodes[0].core
    for _ in range(20):
        node.lagged(1.0, mesh.now)
    node.lagged(0.1, mesh.now)
    assert node.detector.health == mesh.limits.health_max
    mesh.run(120)
    assert node.detector.health == 0
    assert not node.is_suspect(mesh.nodes[1].name)


def test_an_accusation_is_answered_by_those_who_hear_the_accused() -> None:
    """One node does not hear another, which does not hear of it either: the third vouches."""
    mesh = ready(27, 6)
    blind, victim = mesh.nodes[0], mesh.nodes[1]
    mesh.block([victim], [blind])
    mesh.run(60)
    assert not mesh.false_deaths()
    mesh.heal()
    mesh.until(mesh.agree, 20)


def test_the_gone_are_forgotten_in_time() -> None:
    mesh = ready(28, 4)
    mesh.limits.dead_s = mesh.limits.tombstone_s = 20.0
    leaver, dead = mesh.nodes[2], mesh.nodes[3]
    leaver.core.leave(mesh.now)
    mesh.settle(leaver)
    mesh.run(2)
    mesh.crash(leaver)
    mesh.crash(dead, closed_port=True)
    mesh.run(5)
    assert dead.name in mesh.nodes[0].core.members
    mesh.run(60)
    assert len(mesh.nodes[0].core.members) == 1
    mesh.nodes[0].core.check()
