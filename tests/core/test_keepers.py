"""The keepers of a node, message by message: what the simulator reaches only by chance."""

import random
from typing import Any

import pytest

from zmesh.core.actor_places import ActorPlaces
from zmesh.core.effects import Effect, Send, StartKeeper, StopKeeper
from zmesh.core.keeper import KeeperCore
from zmesh.core.node import NodeCore
from zmesh.core.records import Limits
from zmesh.core.timers import Timers
from zmesh.wire import keeper_messages as k
from zmesh.wire import messages as m
from zmesh.wire.actor_messages import ACTOR_DEAD, ActorState, NameAsk, NameTold, ShareActor
from zmesh.wire.codec import decode, encode
from zmesh.wire.ids import actor_id, node_peer, object_id
from zmesh.wire.shortcut_messages import Shortcut
from zmesh.wire.store_messages import ListObjects, Objects

N, FAR = b"n" * 8, b"f" * 8
NODE = node_peer(N)
D, OTHER, K = N + b"driver..", N + b"other...", N + b"keeper.."
SPEC = ["A", {"CPU": m.UNIT}, [], {"max_calls": 1}, b"digest", b"blob", 0, 0]


def order(request: int = 1, job: bytes = D, name: str = "x", here: bool = True, **needs: Any) -> k.KeepActor:
    return k.KeepActor(
        request, job, SPEC, b"", needs.get("deps", []), needs.get("held", []), "ns", name, b"told", True, here
    )


class Host:
    """A node core with a driver, and what it says."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.core = NodeCore(N, 77, {"CPU": m.UNIT}, random.Random(1), self.effects, Timers(), {}.get, Limits())
        self.hear(D, m.Hello("driver", 5, {"cwd": "/here"}))
        self.effects.clear()

    def hear(self, peer: bytes, message: Any) -> None:
        self.core.receive(peer, decode(encode(message)), 0.0)
        self.core.check()

    def take(self, kind: type[Any]) -> list[Any]:
        """Return effects, or messages, of a kind; all others are forgotten."""
        found = [e.message if isinstance(e, Send) else e for e in self.effects]
        self.effects.clear()
        return [one for one in found if isinstance(one, kind)]

    def keep(self, **fields: Any) -> bytes:
        """Have an actor kept; returns the keeper."""
        self.hear(D, order(**fields))
        return next(e.to for e in self.effects if isinstance(e, Send) and isinstance(e.message, k.KeepActor))


def test_each_program_has_one_keeper_and_what_is_kept_belongs_to_it() -> None:
    host = Host()
    keeper = host.keep()
    assert [one.peer for one in host.take(StartKeeper)] == [keeper]
    assert host.keep(request=2) == keeper
    assert host.keep(request=3, job=keeper) == keeper, "made by an actor that is kept"
    assert host.take(StartKeeper) == []
    host.hear(OTHER, m.Hello("driver", 6, {"cwd": "/there"}))
    host.hear(OTHER, order(job=OTHER))
    assert len(host.take(StartKeeper)) == 1
    kinds = [one["kind"] for one in host.core.status(0.0)["clients"]]
    assert kinds == ["driver", "keeper", "driver", "keeper"]


def test_a_new_keeper_is_greeted_before_it_is_asked() -> None:
    host = Host()
    host.core.member_up(FAR, {"CPU": m.UNIT}, 0.0)
    host.effects.clear()
    keeper = host.keep()
    words = [type(e.message) for e in host.effects if isinstance(e, Send) and e.to == keeper]
    assert words == [m.Welcome, m.Mesh, k.KeepActor]


def test_nothing_is_kept_for_a_program_that_has_ended_or_by_a_node_that_is_being_stopped() -> None:
    host = Host()
    host.hear(D, order(job=OTHER))
    (refused,) = host.take(k.Kept)
    assert "the program it would belong to has ended" in refused.error
    host.core.drain(0.0)
    host.hear(D, order())
    (refused,) = host.take(k.Kept)
    assert "being stopped" in refused.error
    assert host.core.keepers.describe() == []


def test_a_keeper_ends_when_it_keeps_nothing_and_nothing_is_on_its_way() -> None:
    host = Host()
    keeper = host.keep()
    host.keep(request=2)
    host.effects.clear()
    actor = actor_id(keeper, 1)
    host.hear(keeper, k.Keeps(1, True, []))
    assert host.take(StopKeeper) == [], "the second was on its way"
    host.hear(keeper, k.Keeps(2, False, [("ns", "x", "A", actor)]))
    (told,) = host.core.status(0.0)["detached"]
    assert (told["name"], told["state"], told["node"]) == ("x", "dead", ""), "nobody said where it is"
    host.hear(keeper, k.Keeps(2, True, []))
    assert [one.peer for one in host.take(StopKeeper)] == [keeper]
    assert host.core.status(0.0)["detached"] == []
    host.hear(keeper, k.Keeps(3, True, []))
    assert host.take(StopKeeper) == []


def test_words_of_a_keeper_by_anybody_else_are_ignored() -> None:
    host = Host()
    host.hear(D, k.Kept(1, [], asker=D))
    host.hear(D, k.Keeps(0, True, []))
    assert host.effects == []


@pytest.mark.parametrize(
    ("version", "peer", "told"),
    [
        (0, b"", ("pending", b"")),
        (1, FAR + b"worker..", ("alive", FAR)),
        (2, b"", ("restarting", b"")),
        (ACTOR_DEAD, b"", ("dead", b"")),
    ],
)
def test_where_an_actor_is_and_how(version: int, peer: bytes, told: tuple[str, bytes]) -> None:
    places = ActorPlaces([], gone=lambda actor: None, held=lambda oid: True)
    places.tell(K, ActorState(actor_id(K, 1), version, peer, first=True))
    assert places.describe(actor_id(K, 1)) == told
    assert places.describe(actor_id(K, 2)) == ("dead", b"")


class Keeper:
    """A keeper core, and what it says."""

    def __init__(self) -> None:
        self.core = KeeperCore(K, [], Timers(), lambda status: (status, None, "ended"))
        self.hear(NODE, m.Welcome(N, 1, {"CPU": m.UNIT}))

    def hear(self, peer: bytes, message: Any) -> None:
        self.core.receive(peer, decode(encode(message)), 0.0)
        self.core.check()

    def said(self, kind: type[Any]) -> list[Any]:
        found = [e.message for e in self.core.effects if isinstance(e, Send) and isinstance(e.message, kind)]
        self.core.effects.clear()
        return found

    def ask(self, **fields: Any) -> None:
        message = order(**fields)
        message.asker = D
        self.hear(NODE, message)

    def named(self, request: int = 1) -> Any:
        """Let its node know the handle, and the name be free; returns what it said then."""
        (promote,) = self.said(m.Promote)
        self.hear(NODE, m.Ack(promote.request))
        (asked,) = self.said(NameAsk)
        self.hear(NODE, NameTold(asked.request, ["ns", asked.name, asked.actor, b"told"]))
        return asked.actor


def test_a_keeper_makes_the_actor_once_it_has_what_it_needs_and_its_name() -> None:
    keeper = Keeper()
    dep, held = object_id(D, 1, 0), object_id(OTHER, 2, 0)
    keeper.ask(deps=[dep], held=[held])
    holds = keeper.said(m.Hold)
    assert [[tuple(one) for one in hold.holders] for hold in holds] == [[(dep, K)], [(held, K)]]
    keeper.hear(NODE, m.Ack(holds[0].request))
    assert keeper.said(m.Promote) == []
    keeper.hear(NODE, m.Ack(holds[1].request))
    actor = keeper.named()
    effects = [e.message for e in keeper.core.effects if isinstance(e, Send)]
    (kept,) = [one for one in effects if isinstance(one, k.Kept)]
    (counted,) = [one for one in effects if isinstance(one, m.Hold)]
    assert (kept.request, kept.made, kept.asker, kept.found[2]) == (1, True, D, actor)
    assert list(map(tuple, counted.holders)) == [(actor, D)]
    assert effects.index(counted) < effects.index(kept)
    assert [one.objects for one in effects if isinstance(one, m.Fetch)] == [[dep]]
    assert not [one for one in effects if isinstance(one, m.Release)], "the actor holds both"


def test_an_argument_that_is_gone_is_told_and_the_others_are_let_go() -> None:
    keeper = Keeper()
    keeper.ask(deps=[object_id(D, 1, 0)], held=[object_id(D, 2, 0)])
    first, second = keeper.said(m.Hold)
    keeper.hear(NODE, m.Ack(first.request))
    keeper.hear(NODE, m.Ack(second.request, "it was freed"))
    effects = [e.message for e in keeper.core.effects if isinstance(e, Send)]
    (kept,) = [one for one in effects if isinstance(one, k.Kept)]
    assert "'x' cannot be made: it was freed" in kept.error
    assert [one.objects[0][0] for one in effects if isinstance(one, m.Release)] == [object_id(D, 1, 0)]
    assert [one.idle for one in effects if isinstance(one, k.Keeps)] == [True]


def test_an_argument_whose_home_is_gone_is_one_that_is_gone() -> None:
    keeper = Keeper()
    keeper.ask(deps=[object_id(FAR + b"program.", 1, 0), object_id(D, 1, 0)])
    keeper.said(m.Hold)
    keeper.hear(NODE, m.NodeGone(FAR, "killed"))
    assert keeper.said(k.Kept) == [], "the other home has not answered"
    keeper = Keeper()
    keeper.ask(deps=[object_id(FAR + b"program.", 1, 0)])
    keeper.hear(NODE, m.NodeGone(FAR, "killed"))
    assert "which is gone" in keeper.said(k.Kept)[0].error


def test_a_name_that_another_has_is_told_and_nothing_is_made() -> None:
    keeper = Keeper()
    keeper.ask()
    (promote,) = keeper.said(m.Promote)
    keeper.hear(NODE, m.Ack(promote.request))
    (asked,) = keeper.said(NameAsk)
    theirs = ["ns", "x", actor_id(OTHER, 1), b"told"]
    keeper.hear(NODE, NameTold(asked.request, theirs))
    effects = [e.message for e in keeper.core.effects if isinstance(e, Send)]
    (kept,) = [one for one in effects if isinstance(one, k.Kept)]
    assert (kept.made, list(kept.found)) == (False, theirs)
    assert not [one for one in effects if isinstance(one, m.Demand)]


def test_a_name_that_nobody_is_said_to_have_is_told_and_nothing_is_made() -> None:
    keeper = Keeper()
    keeper.ask()
    (promote,) = keeper.said(m.Promote)
    keeper.hear(NODE, m.Ack(promote.request))
    (asked,) = keeper.said(NameAsk)
    keeper.hear(NODE, NameTold(asked.request, []))
    effects = [e.message for e in keeper.core.effects if isinstance(e, Send)]
    (kept,) = [one for one in effects if isinstance(one, k.Kept)]
    assert "try again" in kept.error
    assert not [one for one in effects if isinstance(one, m.Demand)]


def test_the_same_creation_again_is_the_same_function_and_only_here_by_wish() -> None:
    keeper = Keeper()
    shapes = []
    for request, here in enumerate((True, True, False)):
        keeper.ask(request=request, name=f"x{request}", here=here)
        keeper.named()
        shapes += [demand.shape for demand in keeper.said(m.Demand)]
    assert len(keeper.core.specs) == 2
    assert keeper.core.specs[0].fallbacks == [{"CPU": m.UNIT}]
    assert f"node:{N.hex()}" in keeper.core.specs[0].shape
    assert keeper.core.specs[1].shape == {"CPU": m.UNIT}


def test_a_keeper_dials_nobody() -> None:
    keeper = Keeper()
    keeper.core.effects.clear()
    keeper.hear(node_peer(FAR), Shortcut(b"token678", "host", 1))
    assert keeper.core.effects == []


def test_a_keeper_has_nothing_on_a_node_that_leaves_and_owns_no_bytes() -> None:
    keeper = Keeper()
    keeper.ask()
    keeper.named()
    keeper.core.effects.clear()
    keeper.hear(NODE, m.Leaving(FAR))
    assert [(one.moved, one.lost) for one in keeper.said(m.Evacuated)] == [(0, 0)]
    keeper.hear(NODE, ListObjects(7))
    (told,) = keeper.said(Objects)
    assert told.request == 7


def test_a_keeper_hears_thieves_and_actors_and_nodes_and_nobody_else() -> None:
    keeper = KeeperCore(K, [], Timers(), lambda status: (1, None, "ended"))
    for word in (ShareActor(1, actor_id(K, 1)), m.Steal(1, {}, 0.1), m.Done([], [], [])):
        assert keeper.hears(OTHER, word)
    assert not keeper.hears(OTHER, m.Done([], [[7, 0.1]], [])), "of no function it has"
    assert not keeper.hears(OTHER, m.Ack(1))
    assert keeper.hears(node_peer(FAR), m.Ack(1))
