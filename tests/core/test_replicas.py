"""One node that has replicas made, keeps them and looks for them, message by message."""

from typing import Any

import pytest

from zmesh.core.copies import Copies
from zmesh.core.effects import DropCopies, Effect, FetchCopy, Send
from zmesh.core.replicas import ASK_MAX, Replicas
from zmesh.core.timers import Timers
from zmesh.wire.ids import NodeID, node_peer, object_id
from zmesh.wire.lineage_messages import AskReplica, DropReplica, Guarded, KeepReplica, ReplicaAt, Replicated
from zmesh.wire.messages import ERROR, STORED, Fetched

US, HOME = b"us......", b"home...."
NODE = node_peer(US)
D, E = US + b"driver.d", US + b"driver.e"
OTHERS = [b"member.%d" % index for index in range(5)]
MINE, THEIRS = object_id(D, 1), object_id(HOME + b"driver..", 1)
PLACE, HERE = (7, 1000, D), (9, 1000, NODE)


class Host:
    """The part of a node that deals with replicas."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.members: dict[NodeID, bool] = dict.fromkeys([HOME, *OTHERS], True)
        self.copies = Copies(
            NODE, self.effects, Timers(), reachable=self.members.__contains__, copied=lambda *word: self.copied(*word)
        )
        self.known: dict[bytes, Any] = {MINE: PLACE}
        self.replicas = Replicas(self.effects, copies=self.copies, members=self.members, directory=self)
        self.refused: list[bytes] = []

    def place_of(self, oid: bytes) -> Any:
        return self.known.get(oid)

    def copied(self, oid: bytes, error: str) -> None:
        if not self.replicas.copied(oid, error):
            self.refused.append(oid)

    def said(self) -> list[Any]:
        found = [(e.to, e.message) if isinstance(e, Send) else e for e in self.effects]
        self.effects.clear()
        self.replicas.check()
        self.copies.check()
        return found

    def asked(self) -> list[NodeID]:
        """The members that were asked for something."""
        return [to[:8] for to, _ in self.said()]


@pytest.fixture
def host() -> Host:
    return Host()


def test_the_owner_hears_when_as_many_hosts_as_it_wants_have_its_object(host: Host) -> None:
    host.replicas.replicate(D, 5, MINE, 3)
    [(first, word), (second, _)] = host.said()
    assert word == KeepReplica(MINE, list(PLACE))
    host.replicas.replicated(first[:8], MINE, "")
    assert host.said() == []
    host.replicas.replicated(second[:8], MINE, "")
    [(peer, guarded)] = host.said()
    assert (peer, guarded.request, guarded.copies) == (D, 5, 3)
    host.replicas.freed(MINE)
    assert host.said() == [(first, DropReplica(MINE)), (second, DropReplica(MINE))]
    host.replicas.freed(MINE)
    host.replicas.replicated(first[:8], MINE, "")
    assert host.said() == [], "late words of what is freed"


def test_a_member_that_cannot_is_not_asked_again_and_another_is(host: Host) -> None:
    host.replicas.replicate(D, 5, MINE, 2)
    tried = []
    for _ in host.members:
        [node] = host.asked()
        tried.append(node)
        host.replicas.replicated(node, MINE, "no room")
    assert sorted(tried) == sorted(host.members)
    assert host.said() == [(D, Guarded(5, 1, "no room"))]


def test_a_replica_that_died_is_made_elsewhere(host: Host) -> None:
    host.replicas.replicate(D, 5, MINE, 2)
    [node] = host.asked()
    host.replicas.replicated(node, MINE, "")
    host.said()
    del host.members[node]
    host.replicas.node_gone(node)
    [other] = host.asked()
    assert other != node


def test_what_is_no_stored_object_has_no_replicas(host: Host) -> None:
    host.replicas.replicate(D, 5, object_id(D, 2), 3)
    [(_, guarded)] = host.said()
    assert guarded.copies == 1


def test_a_replica_is_kept_until_its_home_says_otherwise(host: Host) -> None:
    host.replicas.keep(THEIRS, (7, 1000, HOME + b"driver.."))
    host.replicas.keep(THEIRS, (7, 1000, HOME + b"driver.."))
    assert [type(effect) for effect in host.said()] == [FetchCopy]
    host.copies.fetched(THEIRS, HERE, "", 0.0)
    assert host.said() == [(node_peer(HOME), Replicated(THEIRS, ""))]
    host.replicas.make_room()
    assert host.said() == []
    host.replicas.drop(THEIRS)
    host.replicas.drop(THEIRS)
    assert host.said() == [DropCopies([THEIRS], clean=True)]


def test_a_replica_that_cannot_be_made_is_told(host: Host) -> None:
    host.replicas.keep(THEIRS, (7, 1000, HOME + b"driver.."))
    host.said()
    host.copies.fetched(THEIRS, None, "no room", 0.0, full=True)
    [(peer, word)] = host.said()
    assert (peer, "no room" in word.why) == (node_peer(HOME), True)
    assert len(host.copies) == 0


def test_other_copies_of_this_node_are_none_of_ours(host: Host) -> None:
    host.copies.keep(MINE, *PLACE)
    host.copies.fetched(MINE, HERE, "", 0.0)
    assert host.refused == [MINE]


def test_a_replica_without_a_home_stays_until_its_room_is_needed(host: Host) -> None:
    host.replicas.keep(THEIRS, (7, 1000, HOME + b"driver.."))
    host.copies.fetched(THEIRS, HERE, "", 0.0)
    del host.members[HOME]
    host.replicas.node_gone(HOME)
    host.said()
    assert host.copies.place_of(THEIRS) == HERE
    host.replicas.make_room()
    assert host.said() == [DropCopies([THEIRS], clean=True)]


def test_a_client_finds_a_replica_wherever_it_is(host: Host) -> None:
    del host.members[HOME]
    host.replicas.seek(D, [THEIRS])
    host.replicas.seek(E, [THEIRS])
    asked = host.asked()
    assert sorted(asked) == sorted(OTHERS)[:ASK_MAX], "once, for both"
    host.replicas.found(asked[0], THEIRS, [])
    host.replicas.found(asked[1], THEIRS, [3, 1000, node_peer(asked[1])])
    place = (3, 1000, node_peer(asked[1]))
    assert host.said() == [(peer, Fetched([(THEIRS, STORED, place)])) for peer in (D, E)]
    host.replicas.found(asked[2], THEIRS, [4, 1000, node_peer(asked[2])])
    assert host.said() == []


def test_a_client_hears_when_nobody_has_one(host: Host) -> None:
    del host.members[HOME]
    host.replicas.seek(D, [THEIRS])
    first, *rest = host.asked()
    del host.members[first]
    host.replicas.node_gone(first)
    for node in rest:
        host.replicas.found(node, THEIRS, [])
    [(peer, word)] = host.said()
    assert (peer, word.objects[0][1], word.objects[0][2][0]) == (D, ERROR, "OwnerDiedError")
    host.members.clear()
    host.replicas.seek(D, [THEIRS])
    assert host.said()[0][1].objects[0][1] == ERROR, "nobody to ask"


def test_a_copy_on_this_host_is_found_by_its_clients_and_by_others(host: Host) -> None:
    host.replicas.asked(OTHERS[0], THEIRS)
    assert host.said() == [(node_peer(OTHERS[0]), ReplicaAt(THEIRS, []))]
    host.replicas.keep(THEIRS, (7, 1000, HOME + b"driver.."))
    host.copies.fetched(THEIRS, HERE, "", 0.0)
    host.said()
    host.replicas.asked(OTHERS[0], THEIRS)
    host.replicas.seek(D, [THEIRS])
    assert host.said() == [
        (node_peer(OTHERS[0]), ReplicaAt(THEIRS, list(HERE))),
        (D, Fetched([(THEIRS, STORED, HERE)])),
    ]


def test_all_who_know_the_same_members_ask_the_same(host: Host) -> None:
    host.replicas.seek(D, [MINE])
    asked = [to for to, word in host.said() if isinstance(word, AskReplica)]
    host.replicas.replicate(D, 1, MINE, 3)
    assert [to for to, _ in host.said()] == asked[:2]
