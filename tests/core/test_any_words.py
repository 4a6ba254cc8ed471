"""Whatever the processes of a host say, well or badly made, a node and its keepers live on and serve the others."""

import random
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from zmesh.core.effects import Effect, KillProcess, Send, Spawn, StartKeeper, StopKeeper
from zmesh.core.keeper import WORDS_OF_THIEVES, KeeperCore
from zmesh.core.node import Executing, NodeCore
from zmesh.core.records import Limits
from zmesh.core.timers import Timers
from zmesh.exceptions import RemoteProtocolError, UnknownWordError
from zmesh.wire import actor_messages as a
from zmesh.wire import counting_messages as c
from zmesh.wire import death_messages as d
from zmesh.wire import group_messages as g
from zmesh.wire import keeper_messages as k
from zmesh.wire import lineage_messages as li
from zmesh.wire import messages as m
from zmesh.wire import shortcut_messages as s
from zmesh.wire import store_messages as st
from zmesh.wire.checks import checked
from zmesh.wire.codec import encode
from zmesh.wire.ids import node_peer, object_id

NODE, FAR = b"n" * 8, b"f" * 8
RIVAL = NODE + b"rival..."
CPU = {"CPU": m.UNIT}
LEAVES = (0, 1, -1, 2**31, 2**63, -(2**63), 2**64 - 1, 0.5, float("nan"), None, True, b"", b"x" * 16, "", "CPU", [], {})

WORDS_OF_HOMES = (m.Ack, m.Fetched, li.Missing, li.Forget, c.Recount, c.Uncounted)


class Talk:
    """Messages as processes send them, of the IDs that are about."""

    def __init__(self, rng: random.Random, host: "Host") -> None:
        self.rng = rng
        self.host = host

    def peer(self) -> bytes:
        far = [FAR + bytes([7]) * 8, node_peer(FAR), node_peer(NODE), NODE + b"nobody.."]
        return self.rng.choice([*self.host.core._clients, *self.host.core._clients, *far])

    def oid(self) -> bytes:
        owner = self.rng.choice([self.peer(), *self.host.core._clients])
        return object_id(owner, self.rng.randrange(1, 4), self.rng.randrange(2))

    def group(self) -> bytes:
        return NODE + bytes(7) + bytes([self.rng.randrange(3)])

    def some(self, make: Callable[[], Any]) -> list[Any]:
        return [make() for _ in range(self.rng.randrange(4))]

    def small(self) -> int:
        return self.rng.randrange(4)

    def shape(self) -> dict[str, int]:
        group = self.group().hex()
        names = ("CPU", "GPU", "spread", f"CPU@{group}:0", f"bundle@{group}", "label:x=1", "labels:a", "env:x", "other")
        return {self.rng.choice(names): self.rng.choice([0, 1, 5000, m.UNIT, 3 * m.UNIT]) for _ in range(self.small())}

    def place(self) -> list[Any]:
        return [self.small(), 1000, self.peer()]

    def value(self) -> list[Any]:
        error = ["ObjectLostError", "gone", {}]
        return self.rng.choice([[m.PENDING, None], [m.INLINE, b"value"], [m.STORED, self.place()], [m.ERROR, error]])

    def result(self) -> list[Any]:
        part = [m.INLINE, b"value", self.some(self.oid)]
        values = [
            [m.INLINE, b"v"], [m.STORED, self.place()], [m.FAILED, b"e"], [m.ERROR, ["MeshError", "x", {}]],
            [m.CANCELLED, None], [m.RETRYABLE, b"e"], [m.MANY, [part] * self.small()], [m.ITEM, [self.small(), *part]],
            [m.END, self.small()], [m.LOST, [[self.oid(), 1, self.peer()]]],
        ]  # fmt: skip
        inside = [self.some(self.oid)] if self.rng.random() < 0.3 else []
        return [self.small(), self.small(), *self.rng.choice(values), *inside]

    def name(self) -> str:
        return self.rng.choice("ab")

    def entry(self) -> list[Any]:
        return ["ns", self.name(), self.oid(), b"d"]

    def words(self) -> dict[type[Any], Callable[[], Any]]:
        small, oid, peer, group, shape, some = self.small, self.oid, self.peer, self.group, self.shape, self.some
        flag = lambda: self.rng.random() < 0.5  # noqa: E731
        obj = lambda: [oid(), *self.value(), some(oid)]  # noqa: E731
        spec = lambda: ["A", shape(), [shape()], {}, b"digest", b"blob", small(), 0]  # noqa: E731
        return {
            m.Hello: lambda: m.Hello(self.rng.choice(["driver", "worker", "observer"]), 7, {"cwd": "/"}),
            m.Goodbye: m.Goodbye,
            m.Demand: lambda: m.Demand(peer(), shape(), small(), small(), small()),
            m.Free: lambda: m.Free(small()),
            m.Blocked: m.Blocked,
            m.Unblocked: m.Unblocked,
            m.Kill: lambda: m.Kill(peer(), small(), small(), "cancel"),
            m.WorkerDied: lambda: m.WorkerDied(peer(), 9, 9, peer(), small(), small(), "", "tail"),
            m.StatusRequest: lambda: m.StatusRequest(small()),
            m.Promote: lambda: m.Promote(small(), some(obj)),
            m.Ack: lambda: m.Ack(small(), self.rng.choice(["", "no"])),
            m.Resolve: lambda: m.Resolve(some(obj)),
            m.Hold: lambda: m.Hold(small(), some(lambda: [oid(), peer()])),
            m.Release: lambda: m.Release(some(lambda: [oid(), 1 + small(), flag()])),
            m.Fetch: lambda: m.Fetch(some(oid)),
            m.Fetched: lambda: m.Fetched(some(lambda: [oid(), m.INLINE, b"v"])),
            m.FreeSegments: lambda: m.FreeSegments(some(lambda: [peer(), small(), flag()])),
            m.Steal: lambda: m.Steal(small(), shape(), 0.01),
            m.Done: lambda: m.Done(some(self.result), some(lambda: [small(), 0.1]), some(oid)),
            m.GiveBack: lambda: m.GiveBack(some(lambda: [small(), small()])),
            m.Unsteal: lambda: m.Unsteal(small()),
            m.Unpin: lambda: m.Unpin(some(lambda: [small(), small()])),
            m.Buried: lambda: m.Buried(peer()),
            m.Spare: lambda: m.Spare(shape()),
            m.Lease: lambda: m.Lease(FAR + bytes([7]) * 8, FAR + bytes([7]) * 8, shape(), small(), 0, 0, {}, small()),
            m.LeaseBack: lambda: m.LeaseBack(peer(), shape(), small(), small()),
            m.Watch: lambda: m.Watch(some(peer)),
            m.PeersGone: lambda: m.PeersGone(some(lambda: FAR + bytes([7]) * 8)),
            m.KeepSegments: lambda: m.KeepSegments(some(small)),
            m.Pull: lambda: m.Pull(some(lambda: [oid(), small(), 1000, peer()])),
            m.LetGo: lambda: m.LetGo(some(lambda: [oid(), flag()])),
            m.Leaving: lambda: m.Leaving(FAR),
            m.Evacuated: lambda: m.Evacuated(FAR, small(), small(), "why"),
            s.Switch: lambda: s.Switch(bytes(8)),
            s.Carry: lambda: s.Carry(bytes(8), 0, small(), small(), flag(), peer(), peer(), b"frame"),
            st.ListObjects: lambda: st.ListObjects(small()),
            st.Objects: lambda: st.Objects(small(), some(lambda: [oid(), small(), 9, 1, 1, flag(), 0, "f", "a.py:1"])),
            g.CreateGroup: lambda: g.CreateGroup(
                small(), group(), self.rng.choice([b"", peer()]), self.rng.choice(["", "a"]),
                self.rng.choice(["PACK", "STRICT_SPREAD"]), [{"CPU": 1 + small()} for _ in range(small())],
            ),
            g.RemoveGroup: lambda: g.RemoveGroup(small(), group()),
            g.WatchGroup: lambda: g.WatchGroup(group()),
            g.GroupState: lambda: g.GroupState(group(), "CREATED", "", []),
            g.Reserve: lambda: g.Reserve(FAR + bytes(8), small(), some(lambda: [small(), CPU]), 1.0),
            g.Reserved: lambda: g.Reserved(group(), small()),
            g.Refused: lambda: g.Refused(group(), small(), shape()),
            g.Commit: lambda: g.Commit(FAR + bytes(8), small()),
            g.ReleaseBundles: lambda: g.ReleaseBundles(FAR + bytes(8), small()),
            g.AskGroup: lambda: g.AskGroup(group(), small()),
            a.Settle: lambda: a.Settle(shape()),
            a.Follow: lambda: a.Follow(peer()),
            a.ActorState: lambda: a.ActorState(oid(), small(), self.rng.choice([b"", peer()]), [], flag()),
            a.ActorQuery: lambda: a.ActorQuery(oid(), small() - 1),
            a.Unheld: lambda: a.Unheld(oid()),
            a.KillActor: lambda: a.KillActor(oid(), flag()),
            a.NameAsk: lambda: a.NameAsk(small(), self.rng.randrange(3), "ns", self.name(), oid(), b"d", small()),
            a.NameTold: lambda: a.NameTold(small(), self.rng.choice([[], self.entry()])),
            a.NameCopy: lambda: a.NameCopy(small(), some(self.entry), some(lambda: self.entry()[:3])),
            a.NameCopied: lambda: a.NameCopied(small(), some(self.entry)),
            li.Missing: lambda: li.Missing(some(lambda: [oid(), small(), peer()])),
            li.Remember: lambda: li.Remember(some(oid)),
            li.Forget: lambda: li.Forget(some(oid)),
            li.Replicate: lambda: li.Replicate(small(), oid(), small()),
            li.KeepReplica: lambda: li.KeepReplica(oid(), self.place()),
            li.Replicated: lambda: li.Replicated(oid(), self.rng.choice(["", "no"])),
            li.DropReplica: lambda: li.DropReplica(oid()),
            li.Seek: lambda: li.Seek(some(oid)),
            li.AskReplica: lambda: li.AskReplica(oid()),
            li.ReplicaAt: lambda: li.ReplicaAt(oid(), self.rng.choice([[], self.place()])),
            c.Tally: lambda: c.Tally(small()),
            c.Recount: c.Recount,
            c.Holdings: lambda: c.Holdings(some(lambda: [oid(), small()])),
            c.Uncounted: lambda: c.Uncounted(some(oid)),
            c.WhoHolds: lambda: c.WhoHolds(FAR, small(), some(oid)),
            c.Held: lambda: c.Held(self.rng.choice([NODE, FAR]), small(), some(oid)),
            d.Dying: lambda: d.Dying(some(lambda: FAR + bytes([7]) * 8), flag()),
            d.Vouch: lambda: d.Vouch(small(), some(lambda: [oid(), small()])),
            k.KeepActor: lambda: k.KeepActor(
                small(), peer(), spec(), b"args", some(oid), some(oid), "ns", self.name(), b"d", ordered=flag(),
                here=flag(), places=some(lambda: self.rng.choice([[], self.place()])),
            ),
        }  # fmt: skip


def bent(rng: random.Random, value: Any) -> Any:
    """Return a value with one thing changed, somewhere inside of it."""
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        how = rng.randrange(5)
        if how == 0:
            return value[:at] + value[at + 1 :]
        if how == 1:
            return [*value, rng.choice(LEAVES)]
        return [*value[:at], bent(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        return value | rng.choice([{key: rng.choice(LEAVES)}, {7: 1}, {b"x": 1}, {key: bent(rng, value[key])}])
    if isinstance(value, bytes) and value and rng.random() < 0.5:
        return rng.choice([value[:-1], value + b"x", value.hex(), bytes(len(value))])
    return rng.choice(LEAVES)


class Host:
    """A node, its keepers, and processes that say anything."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.effects: list[Effect] = []
        self.timers = Timers()
        self.now = 0.0
        self.boxes: dict[int, Executing] = {}
        self.keepers: dict[bytes, KeeperCore] = {}
        self.told: list[tuple[bytes, Any]] = []
        self.dead: list[bytes] = []
        self.core = NodeCore(
            NODE, 77, {"CPU": 4 * m.UNIT, "GPU": m.UNIT}, random.Random(seed), self.effects, self.timers,
            self.boxes.get, Limits(workers_max=6),
        )  # fmt: skip
        self.core.member_up(FAR, dict(CPU), 0.0)
        self.drivers = [NODE + bytes([index]) * 8 for index in (1, 2, 3)]
        self.hello(RIVAL)

    def hello(self, peer: bytes) -> None:
        self.core.receive(peer, m.Hello("driver", 5, {"cwd": "/"}), self.now)
        self.carry_out()

    def carry_out(self) -> None:
        """Do what the cores ask for: what they say must be such as a frame can carry."""
        busy = True
        while busy:
            busy = bool(self.effects)
            taken, self.effects[:] = self.effects[:], []
            for effect in taken:
                self.one(effect)
            for peer, keeper in list(self.keepers.items()):
                said, keeper.effects[:] = keeper.effects[:], []
                busy = busy or bool(said)
                for effect in said:
                    if isinstance(effect, Send):
                        encode(effect.message)
                        if effect.to == node_peer(NODE):
                            self.core.receive(peer, effect.message, self.now)
                keeper.check()
        self.core.check()

    def one(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            encode(effect.message)
            if effect.to in self.keepers:
                self.keepers[effect.to].receive(node_peer(NODE), effect.message, self.now)
            else:
                self.told.append((effect.to, effect.message))
        elif isinstance(effect, Spawn):
            self.core.worker_started(effect.peer, 100, self.now)
            self.core.receive(effect.peer, m.Hello("worker", 100), self.now)
        elif isinstance(effect, KillProcess):
            self.dead.append(effect.peer)
            self.core.worker_ended(effect.peer, 9, self.now, "tail", "")
        elif isinstance(effect, StartKeeper):
            self.keepers[effect.peer] = KeeperCore(effect.peer, [], Timers(), lambda status: (1, None, "ended"))
        elif isinstance(effect, StopKeeper):
            del self.keepers[effect.peer]

    def say(self, peer: bytes, frame: bytes) -> str:
        """Have a process send a frame to the node, as its shell takes it; returns what became of it."""
        try:
            message = checked(frame)
        except UnknownWordError:
            return "unknown"
        except RemoteProtocolError as error:
            self.core.expel(peer, str(error), self.now)
            self.carry_out()
            return "refused"
        self.core.receive(peer, message, self.now)
        self.carry_out()
        return "taken"

    def say_to_keeper(self, peer: bytes, frame: bytes) -> None:
        """Have a process send a frame to a keeper."""
        for keeper in list(self.keepers.values()):
            try:
                message = checked(frame)
            except RemoteProtocolError:
                continue
            if keeper.hears(peer, message):
                keeper.receive(peer, message, self.now)
                self.carry_out()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.timers.tick(self.now)
        for keeper in list(self.keepers.values()):
            keeper.timers.tick(self.now)
        self.carry_out()

    def serves(self) -> None:
        """The rival, who says nothing wrong, is served as ever."""
        assert RIVAL in self.core._clients
        self.told.clear()
        oid = object_id(RIVAL, 99)
        for word in (
            m.Promote(7, [(oid, m.INLINE, b"v", [])]), m.Fetch([oid]), m.Release([(oid, 1, True)]),
            m.StatusRequest(8),
        ):  # fmt: skip
            assert self.say(RIVAL, encode(word)) == "taken"
        told = [message for peer, message in self.told if peer == RIVAL]
        assert m.Ack(7) in told
        assert m.Fetched([(oid, m.INLINE, b"v")]) in told
        assert any(isinstance(one, m.StatusReply) for one in told)


def speakers(host: Host) -> list[bytes]:
    return [*host.drivers, *host.core.matchmaking.workers, FAR + bytes([7]) * 8, node_peer(FAR)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("worse", [False, True])
def test_whatever_processes_say_the_node_lives_and_serves_others(seed: int, worse: bool) -> None:
    host = Host(seed)
    rng = host.rng
    words = Talk(rng, host).words()
    outcomes: dict[str, int] = {}
    for index in range(1000):
        for driver in host.drivers:
            if driver not in host.core._clients:
                host.hello(driver)
        peer = rng.choice(speakers(host))
        kinds = list(words)
        kind = rng.choice([m.Demand, a.Settle, k.KeepActor]) if rng.random() < 0.1 else rng.choice(kinds)
        fields = msgpack.unpackb(encode(words[kind]()), strict_map_key=False)
        at = rng.randrange(1, len(fields)) if worse and len(fields) > 1 and rng.random() < 0.7 else 0
        if at:
            fields[at] = bent(rng, fields[at])
        frame = msgpack.packb(fields)
        if worse and rng.random() < 0.05:
            frame = rng.choice([frame[:-1], b"", rng.randbytes(rng.randrange(40))])
        if kind in WORDS_OF_THIEVES or (peer == node_peer(FAR) and kind in WORDS_OF_HOMES):
            host.say_to_keeper(peer, frame)
        else:
            outcome = host.say(peer, frame)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if host.core.matchmaking.workers and rng.random() < 0.05:
            worker = rng.choice(list(host.core.matchmaking.workers.values()))
            host.boxes[worker.slot] = Executing(rng.choice(host.drivers), rng.randrange(4), 0, worker.job)
        if index % 10 == 0:
            host.pass_time(rng.choice([0.0, 0.01, 1.0]))
        if index % 100 == 0:
            host.serves()
    host.serves()
    assert outcomes["taken"] > 100
    assert ("refused" in outcomes) == worse
