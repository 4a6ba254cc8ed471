"""Names of actors, on one node and on many that exchange nothing but the messages of names."""

import random
from collections import deque
from typing import Any

import pytest

from zmesh.core.effects import Effect, Send
from zmesh.core.names import COPIES, DEAD_MAX, LOOK_S, Names
from zmesh.core.timers import Timers
from zmesh.wire import actor_messages as m
from zmesh.wire.codec import decode, encode
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, PeerID, actor_id, node_peer


class Net:
    """Nodes that know each other, and links that deliver in order when told to."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.living: list[NodeID] = []
        self.names: dict[NodeID, Names] = {}
        self.effects: dict[NodeID, list[Effect]] = {}
        self.links: dict[tuple[NodeID, NodeID], deque[bytes]] = {}
        self.told: dict[int, Any] = {}  # {request: what the client heard}
        self.dead_clients: list[PeerID] = []
        self.requests = 0
        self.timers: dict[NodeID, Timers] = {}
        self.lost: list[bytes] = []  # actors that lost their name
        self.apart: dict[tuple[NodeID, NodeID], bool] = {}  # pairs that take each other for dead
        for _ in range(count):
            self.join()

    def join(self) -> NodeID:
        node = self.rng.randbytes(NODE_ID_BYTES)
        self.living.append(node)
        self.effects[node] = []
        self.timers[node] = Timers()
        self.names[node] = Names(
            node,
            self.effects[node],
            self.timers[node],
            members=lambda: [other for other in self.living if other != node and (other, node) not in self.apart],
            alive=lambda peer: peer not in self.dead_clients,
            lost=lambda namespace, name, actor: self._lose(node, actor),
        )
        for other in self.living:
            self.names[other].members_changed()
        self._collect()
        return node

    def die(self, *nodes: NodeID) -> None:
        self.living = [node for node in self.living if node not in nodes]
        for link in [link for link in self.links if link[0] in nodes or link[1] in nodes]:
            del self.links[link]
        for other in self.living:
            for node in nodes:
                self.names[other].members_changed(node)
            self.names[other].look_into(0.0)
        self._collect()

    def _lose(self, node: NodeID, actor: bytes) -> None:
        """Its owner has it killed."""
        self.lost.append(actor)
        self.names[node].actor_gone(actor)

    def part(self, some: list[NodeID], *, stopped: bool = False) -> None:
        """These and the others take each other for dead: no word gets across. Who is `stopped` notices nothing."""
        for one in some:
            for other in [node for node in self.living if node not in some]:
                for pair in ((one, other), (other, one)):
                    self.apart[pair] = True
                    self.links.pop(pair, None)
                self.names[other].members_changed(one)
                if not stopped:
                    self.names[one].members_changed(other)
        self._collect()

    def meet(self, stopped: NodeID = b"") -> None:
        """All see each other again, and look into what became of names."""
        self.see_each_other(stopped)
        self.settle()
        for node in self.rng.sample(self.living, len(self.living)):
            self.timers[node].tick(LOOK_S)
            self._collect()
        self.settle()

    def see_each_other(self, stopped: NodeID) -> None:
        """One that was `stopped` hears that it was taken for dead; without one each side took the other for it."""
        pairs, self.apart = list(self.apart), {}
        for node, other in self.rng.sample(pairs, len(pairs)):
            if node == stopped:
                self.names[node].members_changed(other)
                self.names[node].taken_for_dead()
            self.names[node].look_into(0.0)
            self.names[node].members_changed()
        self._collect()

    def client(self, node: NodeID) -> PeerID:
        return node + b"client.."

    def ask(self, node: NodeID, kind: int, name: str, actor: bytes = b"") -> int:
        self.requests += 1
        self.names[node].ask(self.client(node), m.NameAsk(self.requests, kind, "ns", name, actor, b"told"))
        self._collect()
        return self.requests

    def take(self, node: NodeID, name: str, seq: int = 1) -> int:
        return self.ask(node, m.NAME_TAKE, name, actor_id(self.client(node), seq))

    def _collect(self) -> None:
        for node in self.living:
            for effect in self.effects[node]:
                assert isinstance(effect, Send)
                target = effect.to[:NODE_ID_BYTES]
                if effect.to != node_peer(target):
                    self.told[effect.message.request] = effect.message.found
                elif target in self.living and (node, target) not in self.apart:
                    self.links.setdefault((node, target), deque()).append(encode(effect.message))
            self.effects[node].clear()
            self.names[node].check()

    def step(self) -> bool:
        """Deliver the first message of some link."""
        links = sorted(link for link, queue in self.links.items() if queue)
        if not links:
            return False
        source, target = self.rng.choice(links)
        message = decode(self.links[source, target].popleft())
        names, peer = self.names[target], node_peer(source)
        if isinstance(message, m.NameAsk):
            names.ask(peer, message)
        elif isinstance(message, m.NameTold):
            names.told(message)
        elif isinstance(message, m.NameCopy):
            names.keep(peer, message, 0.0)
        else:
            names.copied(source, message)
        self._collect()
        return True

    def settle(self) -> None:
        while self.step():
            pass

    def holders(self, name: str) -> list[NodeID]:
        return [node for node in self.living if ("ns", name) in self.names[node]._entries]


def test_on_one_node_a_name_is_taken_found_and_dropped_at_once() -> None:
    net = Net(1)
    node = net.living[0]
    actor = actor_id(net.client(node), 1)
    assert net.told[net.take(node, "a")][2] == actor
    assert net.told[net.ask(node, m.NAME_FIND, "a")] == ["ns", "a", actor, b"told"]
    assert net.told[net.take(node, "a", seq=2)][2] == actor
    assert net.names[node].listed() == [("ns", "a")]
    net.names[node].actor_gone(actor_id(net.client(node), 2))
    assert net.told[net.ask(node, m.NAME_FIND, "a")] != []
    net.names[node].actor_gone(actor)
    assert net.told[net.ask(node, m.NAME_FIND, "a")] == []


@pytest.mark.parametrize("seed", range(20))
def test_a_name_is_kept_by_three_nodes_and_found_from_all(seed: int) -> None:
    net = Net(7, seed)
    request = net.take(net.living[3], "a")
    net.settle()
    actor = net.told[request][2]
    assert len(net.holders("a")) == COPIES
    finds = [net.ask(node, m.NAME_FIND, "a") for node in net.living]
    net.settle()
    assert all(net.told[find][2] == actor for find in finds)
    assert sum(len(net.names[node].listed()) for node in net.living) == 1
    net.names[net.living[3]].actor_gone(actor)
    net._collect()
    net.settle()
    assert net.holders("a") == []


@pytest.mark.parametrize("seed", range(5))
def test_a_name_is_found_in_one_round_trip_from_everywhere(seed: int) -> None:
    net = Net(9, seed)
    net.take(net.living[3], "a")
    net.settle()
    for name, there in (("a", True), ("b", False)):
        words = []
        for node in net.living:
            request, count = net.ask(node, m.NAME_FIND, name), 0
            while net.step():
                count += 1
            assert bool(net.told[request]) == there
            words.append(count)
        assert sorted(words) == [0, *[2] * 8], "its home need ask nobody, all others ask it"


@pytest.mark.parametrize("seed", range(20))
def test_of_all_who_take_a_name_at_once_one_gets_it(seed: int) -> None:
    net = Net(5, seed)
    requests = [net.take(node, "a") for node in net.living]
    net.settle()
    assert len({bytes(net.told[request][2]) for request in requests}) == 1


@pytest.mark.parametrize("seed", range(30))
def test_names_survive_the_death_of_two_nodes_and_move_to_new_ones(seed: int) -> None:
    net = Net(6, seed)
    owner = net.living[0]
    for i in range(20):
        net.take(owner, f"a{i}", seq=i)
    net.settle()
    for _ in range(8):
        victims = [node for node in net.living if node != owner]
        if net.rng.random() < 0.5 and len(victims) > 2:
            for node in net.rng.sample(victims, 2):
                net.die(node)
        else:
            net.join()
        net.settle()
        finds = [net.ask(net.rng.choice(net.living), m.NAME_FIND, f"a{i}") for i in range(20)]
        net.settle()
        assert [net.told[find][1] for find in finds] == [f"a{i}" for i in range(20)]
        assert all(len(net.holders(f"a{i}")) == min(COPIES, len(net.living)) for i in range(20))


@pytest.mark.parametrize("seed", range(30))
def test_the_death_of_a_names_home_answers_every_question(seed: int) -> None:
    net = Net(5, seed)
    owner = net.living[0]
    requests = [net.take(owner, f"a{i}", seq=i) for i in range(10)]
    for _ in range(net.rng.randrange(30)):
        net.step()
    net.die(net.living[1])
    net.settle()
    assert all(request in net.told for request in requests)
    finds = [net.ask(net.living[1], m.NAME_FIND, f"a{i}") for i in range(10)]
    net.settle()
    assert all(net.told[find] for find in finds)


def test_names_go_with_the_node_of_their_actors() -> None:
    net = Net(4)
    net.take(net.living[0], "a")
    net.settle()
    net.die(net.living[0])
    net.settle()
    assert net.holders("a") == []


def test_a_name_whose_program_died_while_it_was_taken_is_free_again() -> None:
    net = Net(4)
    node = net.living[0]
    net.take(node, "a")
    net.dead_clients.append(net.client(node))
    net.settle()
    assert net.holders("a") == []


def test_a_new_home_that_does_not_know_a_name_yet_hears_of_it_before_it_gives_it_away() -> None:
    for seed in range(200):
        net = Net(3, seed)
        node = net.living[0]
        first = net.take(node, "a")
        net.settle()
        joined = net.join()
        if net.names[node].line(("ns", "a"))[0] != joined:
            continue
        net.links.clear()  # what the others hand over is late
        second = net.take(joined, "a")
        net.settle()
        assert net.told[second][2] == net.told[first][2]
        return
    raise AssertionError("no seed made the new node the home")


@pytest.mark.parametrize("seed", range(10))
def test_a_node_takes_names_for_its_groups_and_they_are_no_actors(seed: int) -> None:
    net = Net(5, seed)
    heard: list[Any] = []
    for node in net.living:
        net.names[node].take(m.GROUPS, "g", node + b"group...", b"told", heard.append)
    net._collect()
    net.settle()
    assert len(heard) == 5
    assert len({entry[2] for entry in heard}) == 1
    owner = heard[0][2][:NODE_ID_BYTES]
    assert all(net.names[node].listed() == [] for node in net.living)
    net.names[owner].actor_gone(heard[0][2])
    net._collect()
    net.settle()
    net.names[net.living[0]].take(m.GROUPS, "g", net.living[0] + b"another.", b"told", heard.append)
    net._collect()
    net.settle()
    assert heard[-1][2] == net.living[0] + b"another."


def test_a_name_whose_first_owner_died_while_it_was_taken_goes_to_the_next() -> None:
    """The home asks for copies and hears of another owner, whose node dies before the last copy is confirmed."""
    for seed in range(200):
        net = Net(4, seed)
        first, second, third, fourth = net.living
        if net.names[first].line(("ns", "a"))[:3] != [first, second, third]:
            continue
        older = ("ns", "a", actor_id(net.client(fourth), 1), b"told")
        net.names[second].keep(node_peer(third), m.NameCopy(0, [older]), 0.0)
        request = net.take(first, "a")
        net.links.pop((first, third))  # so the second answer is still to come
        net.settle()
        assert request not in net.told
        net.die(fourth)
        net.names[first].copied(third, m.NameCopied(1, []))
        net._collect()
        net.settle()
        assert net.told[request][2] == actor_id(net.client(first), 1)
        return
    raise AssertionError("no seed gave that line")


@pytest.mark.parametrize("seed", range(20))
def test_the_name_of_a_group_goes_to_the_next_while_its_end_is_still_told(seed: int) -> None:
    net = Net(4, seed)
    heard: list[Any] = []
    groups = [node + b"group..." for node in net.living]
    for _ in range(3):
        for node, group in zip(net.living, groups, strict=True):
            net.names[node].take(m.GROUPS, "g", group, b"told", heard.append)
            for other in net.living:
                net.names[other].actor_gone(heard[-1][2] if heard else b"")
            net._collect()
            net.step()
        net.settle()
        groups = [group[:NODE_ID_BYTES] + bytes([group[8] + 1]) + group[9:] for group in groups]
    assert len(heard) == 12
    for node in net.living:
        for group in {entry[2] for entry in heard}:
            net.names[node].actor_gone(group)
    net._collect()
    net.settle()
    assert all(("", "g") not in net.names[node]._entries for node in net.living)


@pytest.mark.parametrize("seed", range(20))
def test_a_name_that_a_node_took_as_it_died_is_free(seed: int) -> None:
    net = Net(4, seed)
    dying = net.living[1]
    net.names[dying].take(m.GROUPS, "g", dying + b"group...", b"told", lambda entry: None)
    net._collect()
    for _ in range(net.rng.randrange(6)):
        net.step()
    net.die(dying)
    net.settle()
    assert all(("", "g") not in net.names[node]._entries for node in net.living)


def test_a_late_answer_is_ignored() -> None:
    net = Net(2)
    net.names[net.living[0]].told(m.NameTold(99, []))
    net.names[net.living[0]].copied(net.living[1], m.NameCopied(99, []))
    net._collect()
    assert net.told == {}


@pytest.mark.parametrize("seed", range(40))
def test_a_name_that_is_dropped_is_free_whoever_dies_meanwhile(seed: int) -> None:
    net = Net(5, seed)
    owner = net.living[0]
    net.take(owner, "a")
    net.settle()
    net.names[owner].actor_gone(actor_id(net.client(owner), 1))
    net._collect()
    for _ in range(net.rng.randrange(6)):
        net.step()
    net.die(net.rng.choice(net.living[1:]))
    net.settle()
    assert net.holders("a") == []


def test_a_name_that_is_handed_over_after_it_was_dropped_is_not_kept() -> None:
    net = Net(2)
    node, home = net.living
    actor = actor_id(net.client(node), 1)
    net.names[home].keep(node_peer(node), m.NameCopy(0, [], [("ns", "a", actor)]), 0.0)
    net.names[home].keep(node_peer(node), m.NameCopy(0, [("ns", "a", actor, b"")]), 0.0)
    assert net.names[home]._entries == {}
    for seq in range(2, DEAD_MAX + 3):  # that many deaths later it is not remembered
        net.names[home].keep(node_peer(node), m.NameCopy(0, [], [("ns", "b", actor_id(net.client(node), seq))]), 0.0)
    net.names[home].keep(node_peer(node), m.NameCopy(0, [("ns", "a", actor, b"")]), 0.0)
    assert len(net.names[home]._entries) == 1


def test_a_node_that_has_not_heard_of_a_death_does_not_keep_a_name_for_the_dead() -> None:
    for seed in range(50):
        net = Net(4, seed)
        dead, asker, late = net.living[0], net.living[1], net.living[2]
        net.take(dead, "a")
        net.settle()
        if net.names[dead].line(("ns", "a"))[0] != dead or late not in net.names[dead].line(("ns", "a")):
            continue
        net.living.remove(dead)
        for node in net.living:
            if node != late:
                net.names[node].members_changed(dead)
        net._collect()
        request = net.take(asker, "a", seq=2)
        net.settle()
        assert net.told[request][2] == actor_id(net.client(asker), 2)
        net.names[late].members_changed(dead)
        net._collect()
        net.settle()
        assert len(net.holders("a")) == COPIES
        return
    raise AssertionError("no seed made the dead node the home")


def stale(net: Net, *, home_is_dead: bool) -> bytes:
    """Have the name "a" belong to an actor that is gone, of which a new home of the name never heard."""
    owner = net.living[0]
    actor = actor_id(net.client(owner), 1)
    net.take(owner, "a")
    net.settle()
    net.names[owner].actor_gone(actor)
    net._collect()
    net.settle()
    if home_is_dead:
        net.die(owner)
    net.join()
    while net.names[net.living[0]].line(("ns", "a"))[0] != net.living[-1]:
        net.join()
    net.settle()
    old, new = net.living[-2:]
    # As a node does that was stopped while all this happened.
    net.names[new].keep(node_peer(old), m.NameCopy(0, [("ns", "a", actor, b"told")]), 0.0)
    net._collect()
    net.settle()
    find = net.ask(net.living[1], m.NAME_FIND, "a")
    net.settle()
    assert net.told[find][2] == actor
    return actor


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("home_is_dead", [False, True])
def test_a_name_of_who_is_gone_is_given_free_when_somebody_doubts_it(home_is_dead: bool, seed: int) -> None:
    net = Net(4, seed)
    actor = stale(net, home_is_dead=home_is_dead)
    net.ask(net.living[1], m.NAME_DOUBT, "a", actor)
    net.settle()
    assert net.holders("a") == []
    request = net.take(net.living[1], "a", seq=2)
    net.settle()
    assert net.told[request][2] == actor_id(net.client(net.living[1]), 2)


@pytest.mark.parametrize("seed", range(20))
def test_whoever_lives_keeps_its_name_when_somebody_doubts_it(seed: int) -> None:
    net = Net(5, seed)
    owner = net.living[0]
    request = net.take(owner, "a")
    for _ in range(net.rng.randrange(8)):  # maybe it is being taken
        net.step()
    for node in net.living:
        net.ask(node, m.NAME_DOUBT, "a", actor_id(net.client(owner), 1))
    net.settle()
    assert net.told[request][2] == actor_id(net.client(owner), 1)
    find = net.ask(net.living[1], m.NAME_FIND, "a")
    net.settle()
    assert net.told[find][2] == actor_id(net.client(owner), 1)
    assert len(net.holders("a")) == COPIES


def stopped(net: Net) -> tuple[NodeID, bytes]:
    """Stop a node with an actor called "a" for so long that the others take it for dead; returns both."""
    node = net.living[2]
    request = net.take(node, "a")
    net.settle()
    net.part([node], stopped=True)
    return node, net.told[request][2]


@pytest.mark.parametrize("seed", range(40))
def test_an_actor_keeps_its_name_while_others_take_its_node_for_dead(seed: int) -> None:
    net = Net(5, seed)
    node, actor = stopped(net)
    find = net.ask(net.living[0], m.NAME_FIND, "a")
    net.settle()
    assert net.told[find] == []
    net.meet(stopped=node)
    finds = [net.ask(one, m.NAME_FIND, "a") for one in net.living]
    net.settle()
    assert all(net.told[find][2] == actor for find in finds)
    assert net.lost == []
    assert len(net.holders("a")) == COPIES


@pytest.mark.parametrize("seed", range(40))
def test_an_actor_loses_its_name_to_one_that_got_it_while_its_node_was_taken_for_dead(seed: int) -> None:
    net = Net(5, seed)
    node, actor = stopped(net)
    second = net.take(net.living[0], "a")
    net.settle()
    assert net.told[second][2] != actor
    net.meet(stopped=node)
    finds = [net.ask(one, m.NAME_FIND, "a") for one in net.living]
    net.settle()
    assert all(net.told[find][2] == net.told[second][2] for find in finds)
    assert net.lost == [actor]
    assert len(net.holders("a")) == COPIES


@pytest.mark.parametrize("seed", range(40))
def test_when_two_sides_meet_again_each_name_belongs_to_one(seed: int) -> None:
    net = Net(6, seed)
    sides = net.living[:3], net.living[3:]
    net.part(sides[0])
    takes = [net.take(side[net.rng.randrange(3)], f"a{i}", seq=i) for i in range(8) for side in sides]
    net.settle()
    actors = [bytes(net.told[take][2]) for take in takes]
    net.meet()
    finds = [net.ask(net.rng.choice(net.living), m.NAME_FIND, f"a{i}") for i in range(8)]
    net.settle()
    winners = [bytes(net.told[find][2]) for find in finds]
    assert sorted(net.lost + winners) == sorted(actors)
    assert all(len(net.holders(f"a{i}")) == COPIES for i in range(8))


@pytest.mark.parametrize("seed", range(40))
def test_an_actor_that_ends_while_its_name_is_looked_into_gives_it_free(seed: int) -> None:
    net = Net(4, seed)
    node, actor = stopped(net)
    net.see_each_other(stopped=node)
    net.timers[node].tick(LOOK_S)
    net._collect()
    for _ in range(net.rng.randrange(12)):
        net.step()
    assert net.holders("a") or net.links, "it is, or will be, where it belongs"
    net.names[node].actor_gone(actor)
    net._collect()
    net.settle()
    assert net.holders("a") == []
    assert net.lost == []


def test_a_copy_on_a_node_that_is_not_in_line_goes_soon() -> None:
    net = Net(6)
    net.take(net.living[0], "a")
    net.settle()
    holder, *_ = net.holders("a")
    other = next(node for node in net.living if node not in net.holders("a"))
    entry = net.names[holder]._entries["ns", "a"]
    net.names[other].keep(node_peer(holder), m.NameCopy(0, [entry]), 0.0)
    assert other in net.holders("a"), "it may be right, and this node wrong"
    net.timers[other].tick(LOOK_S)
    assert other not in net.holders("a")
    assert len(net.holders("a")) == COPIES


@pytest.mark.parametrize("seed", range(20))
def test_a_name_comes_back_when_all_who_kept_it_have_died_at_once(seed: int) -> None:
    net = Net(7, seed)
    request = net.take(net.living[0], "a")
    net.settle()
    net.die(*[node for node in net.holders("a") if node != net.living[0]])
    for node in net.living:
        net.timers[node].tick(LOOK_S)
        net._collect()
    net.settle()
    find = net.ask(net.living[1], m.NAME_FIND, "a")
    net.settle()
    assert net.told[find] == net.told[request]
    assert len(net.holders("a")) == COPIES
