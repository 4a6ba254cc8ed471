"""Who is a member: join, gossip, suspicion, refutation, repair and leaving. The role that wires the parts.

A change is flooded: each node publishes once what was new to it. What PUB/SUB drops, digests find (anti-entropy). JOIN
is a request, as a publication would reach nobody yet. A member is declared dead by silence, an unanswered ping and
time; it may refute as long as it can speak, with a higher incarnation, even after it was declared dead. What comes from
outside is checked for shape first; what makes no sense is dropped. docs/membership.md tells the story, with figures.

Sources: SWIM, Das et al. 2002; Lifeguard, arXiv 1707.00788; memberlist and Serf of HashiCorp for constants and repair.
"""

import random
from collections.abc import Callable
from typing import Any

from zmesh.core.effects import Address, Effect, MemberDown, MemberUp, Publish, Tell, Warn
from zmesh.core.failure_detector import FailureDetector, Suspicion
from zmesh.core.gossip_limits import GossipLimits
from zmesh.core.joiner import Joiner
from zmesh.core.loads import Loads
from zmesh.core.members import Base, Members, merge
from zmesh.core.repair import Repair
from zmesh.core.rumours import DEATH, DETAIL, DOUBT, GONE, LIFE, Rumours
from zmesh.core.timers import Timers
from zmesh.core.view import View
from zmesh.wire.gossip import (
    ALIVE,
    BUCKETS,
    DEAD,
    GOSSIP_MAJOR,
    GOSSIP_MINOR,
    INC_MAX,
    LEAVING,
    LEFT,
    LOAD,
    ROW,
    SUSPECT,
    VOUCH,
    Busy,
    Digest,
    Heartbeat,
    Join,
    News,
    Ping,
    Pong,
    Refused,
    Row,
    Rows,
    packed_bytes,
    parse_row,
    row_major,
    sane,
    sane_rumour,
)
from zmesh.wire.ids import NodeID

SYNC_MEMBERS = 3

_URGENCY = {ALIVE: LIFE, SUSPECT: DOUBT, DEAD: DEATH, LEAVING: LIFE, LEFT: GONE}


class Membership:
    """One node's part in it.

    Args:
        me: our own row, ALIVE.
        cluster: 8 bytes that name the mesh; words of another are dropped.
        base: rows that many nodes of one simulation share.

    Attributes:
        members: {node: Member} of everybody else, the dead that may come back included.
        loads: what members say of their load; set its `heard` to be told.
    """

    def __init__(
        self,
        me: Row,
        rng: random.Random,
        effects: list[Effect],
        timers: Timers,
        limits: GossipLimits | None = None,
        cluster: bytes = b"",
        base: Base | None = None,
    ) -> None:
        self._rng = rng
        self._effects = effects
        self._timers = timers
        self._limits = limits or GossipLimits()
        self._cluster = cluster
        me = Row(
            me.node,
            me.inc,
            me.state,
            me.name,
            me.host,
            me.port,
            {"major": GOSSIP_MAJOR, "minor": GOSSIP_MINOR} | me.meta,
        )
        self.members = Members(me, base)
        self.detector = FailureDetector(self._limits)
        self.view = View(rng, effects, self._limits, self.members, self.detector.watch, self.detector.unwatch)
        self._rumours = Rumours(self._limits)
        self.loads = Loads(self.members, self._limits, timers, self._tell_load, self._pass_load_on)
        self._joiner = Joiner(cluster, self.members, self._limits, rng, effects, timers, self._say)
        self._repair = Repair(cluster, self.members, self._limits, rng, timers, self._say)
        self._seq = 0  # of what we published
        self._pings = 0
        self._flush_timer = 0
        self._seeds: list[Address] = []
        self._gone = False
        self._vouched: dict[NodeID, float] = {}  # {member: when we last vouched for it}
        self._push_pulls = 0
        self._warned: dict[str, bool] = {}
        self._inputs: dict[type[Any], Callable[[NodeID, Any, float], None]] = {
            Heartbeat: self._heartbeat,
            News: self._news,
            Join: self._join,
            Refused: lambda sender, message, now: self._joiner.refused(message),
            Busy: lambda sender, message, now: self._joiner.busy(message, now),
            Rows: self._rows,
            Digest: self._digest,
            Ping: self._ping,
            Pong: self._pong,
        }

    # Outputs.

    @property
    def me(self) -> Row:
        """Our own row."""
        return self.members.me

    def living(self) -> list[Row]:
        """Return the rows of all who take part, ourselves first."""
        return [self.me, *(member.row for member in self.members.values() if member.alive)]

    def is_suspect(self, node: NodeID) -> bool:
        """Whether a member is suspected now."""
        return node in self.detector.suspicions

    def deaf(self, now: float) -> bool:
        """Whether we hear hardly anybody."""
        return bool(self.detector.pulses) and self.detector.deaf(now)

    @property
    def _size(self) -> int:
        return self.members.living + 1

    # Beginning and end.

    def start(self, now: float, seeds: list[Address]) -> None:
        """Join the mesh of any of the seeds; without seeds, be a mesh of one."""
        self._seeds = list(seeds)
        self.detector.hears_s = now
        limits = self._limits
        self._every(now, limits.heartbeat_s, limits.heartbeat_jitter, self._beat)
        self._every(now, limits.shuffle_s, limits.shuffle_jitter, self.view.shuffle)
        self._every(now, limits.anti_entropy_s, limits.anti_entropy_jitter, self._mend)
        self._every(now, limits.redial_s, limits.anti_entropy_jitter, self._repair.redial)
        self._every(now, limits.seed_s, limits.anti_entropy_jitter, self._knock)
        self.view.fit(now)
        self._joiner.start(self._seeds, now)

    def _every(self, now: float, seconds: float, jitter: float, action: Callable[[float], None]) -> None:
        def fire(then: float) -> None:
            if not self._gone:
                self._every(then, seconds, jitter, action)
                action(then)

        self._timers.set(now + seconds * self._rng.uniform(1 - jitter, 1 + jitter), fire)

    def set_meta(self, meta: dict[str, Any], now: float) -> None:
        """Say something else of ourselves."""
        self._renew(self.me.inc + 1, self.me.state, now, {"major": GOSSIP_MAJOR, "minor": GOSSIP_MINOR} | meta)

    def sync(self, now: float) -> None:
        """Compare tables with a few members at once: they may have missed what we published."""
        for _ in range(SYNC_MEMBERS):
            self._repair.compare(now)

    def set_load(self, load: dict[str, Any], now: float, *, urgent: bool) -> None:
        """Say how busy we are: with the next heartbeat, or, if it is urgent, to all within moments."""
        self.loads.set(load, now, urgent=urgent and not self._gone)

    def _tell_load(self, now: float) -> None:
        if not self._gone and self.members.living:
            self._publish_heartbeat(now)
            if self.view.size < self.members.living:
                self._pass_load_on(self.me.node, self._seq, self.loads.own, now)

    def _pass_load_on(self, node: NodeID, seq: int, load: dict[str, Any], now: float) -> None:
        self._spread(DETAIL, (LOAD, node), [LOAD, node, seq, load], now)

    def leave(self, now: float) -> None:
        """Say goodbye: LEAVING now, LEFT several times in the next second. Nothing else is said after that."""
        self._renew(self.me.inc + 1, LEAVING, now, self.me.meta)
        self._flush(now)
        limits = self._limits
        for time in range(limits.leave_times):
            self._timers.set(now + limits.leave_s * (0.2 + 0.8 * time / limits.leave_times), self._say_left)
        self._timers.set(now + limits.leave_s, self._end)

    def _say_left(self, now: float) -> None:
        if self.me.state != LEFT:
            self.members.set_me(self.me.at(self.me.inc + 1, LEFT))
        self._seq += 1
        rumour = [ROW, self.me.packed(), b"", 0, False]
        self._effects.append(Publish(News(self._cluster, self.me.node, self._seq, [rumour])))
        del now

    def _end(self, now: float) -> None:
        del now
        self._gone = True
        self.view.clear()

    # Speaking.

    def _say(self, node: NodeID, address: Address, message: Any) -> None:
        self._effects.append(Tell(node, address, message))

    def _say_to(self, node: NodeID, message: Any) -> None:
        member = self.members.get(node)
        if member is not None:
            self._say(node, member.row.address, message)

    def _spread(self, urgency: int, key: Any, rumour: Any, now: float) -> None:
        """Have a rumour published with others that come in the next moment."""
        self._rumours.add(urgency, key, rumour, packed_bytes(rumour))
        if not self._flush_timer:
            self._flush_timer = self._timers.set(now + self._limits.coalesce_s, self._flush)

    def _flush(self, now: float) -> None:
        self._timers.cancel(self._flush_timer)
        self._flush_timer = 0
        for rumours in self._rumours.take(now):
            self._seq += 1
            self._effects.append(Publish(News(self._cluster, self.me.node, self._seq, rumours)))
        if len(self._rumours) and not self._gone:
            self._flush_timer = self._timers.set(now + self._rumours.wait_s(), self._flush)

    def _beat(self, now: float) -> None:
        """Once a second: say that we are here, and look who is silent."""
        self.detector.listen(now)
        if self.members.living:
            self._publish_heartbeat(now)
            for node in self.detector.silent(now):
                self._probe(node, now)

    def _publish_heartbeat(self, now: float) -> None:
        self._seq += 1
        age = self.detector.rx_age(now)
        self._effects.append(
            Publish(Heartbeat(self._cluster, self.me.node, self._seq, self.me.inc, age, self.loads.own))
        )

    # Suspicion.

    def _probe(self, node: NodeID, now: float) -> None:
        """Ask a silent member whether it is there."""
        pulse = self.detector.pulses[node]
        self._pings += 1
        number = pulse.ping = self._pings
        suspicion = self.detector.suspicions.get(node)
        accused = suspicion.inc if suspicion is not None else -1
        self._say_to(node, Ping(self._cluster, self.me.node, node, number, accused))

        def unanswered(then: float) -> None:
            current = self.detector.pulses.get(node)
            if current is not None and current.ping == number:
                current.ping = 0
                self.detector.feel(1)
                self._accuse(node, then, refused=False)

        self._timers.set(now + self._limits.ping_s * (1 + self.detector.health), unanswered)

    def link_down(self, node: NodeID, refused: bool, now: float) -> None:
        """Our connection to a member was lost; if `refused`, its port is closed: nothing listens there any more."""
        if refused:
            self._accuse(node, now, refused=True)

    def _accuse(self, node: NodeID, now: float, *, refused: bool) -> None:
        member = self.members.get(node)
        if member is None or not member.alive or not (refused or self.detector.may_accuse(now)):
            return
        pulse = self.detector.pulses.get(node)
        seq = pulse.seq if pulse is not None else 0
        self._suspected(member.row, self.me.node, seq, refused, now)

    def _suspected(self, row: Row, accuser: NodeID, seq: int, refused: bool, now: float) -> None:
        """Somebody, maybe we, says that a member is dead."""
        detector = self.detector
        if accuser != self.me.node and not refused and detector.fresh(row.node, seq, now):
            self._vouch(row.node, now)
            return
        suspicion = detector.suspicions.get(row.node)
        if suspicion is None or suspicion.inc < row.inc:
            self._clear(row.node)
            suspicion = detector.suspect(row.node, row.inc, seq, now)
            if row.state != LEAVING:
                self.members.put(row.at(row.inc, SUSPECT), now)
        news = accuser not in suspicion.accusers or (refused and not suspicion.refused)
        suspicion.refused = suspicion.refused or refused
        if not news or len(suspicion.accusers) > self._limits.confirmations:
            return
        suspicion.accusers[accuser] = True
        self._await_death(row.node, suspicion, now)
        rumour = [ROW, row.at(row.inc, SUSPECT).packed(), accuser, seq, refused]
        self._spread(DOUBT, (row.node, accuser), rumour, now)

    def _await_death(self, node: NodeID, suspicion: Suspicion, now: float) -> None:
        self._timers.cancel(suspicion.timer)
        due = max(now, self.detector.deadline(suspicion, self._size))
        suspicion.timer = self._timers.set(due, lambda then: self._expired(node, suspicion, then))

    def _expired(self, node: NodeID, suspicion: Suspicion, now: float) -> None:
        if self.detector.suspicions.get(node) is not suspicion:
            return
        if not suspicion.refused and not self.detector.may_accuse(now):
            suspicion.timer = self._timers.set(now + 1.0, lambda then: self._expired(node, suspicion, then))
            return
        row = self.members[node].row
        why = (
            "its port is closed"
            if suspicion.refused
            else f"silent, for {now - suspicion.since_s:.1f} s after the alarm"
        )
        self._take(row.at(row.inc, DEAD), now, why)

    def _clear(self, node: NodeID) -> None:
        suspicion = self.detector.clear(node)
        if suspicion is not None:
            self._timers.cancel(suspicion.timer)

    def _acquit(self, node: NodeID, now: float) -> None:
        """There is evidence that a suspect lives."""
        self._clear(node)
        row = self.members[node].row
        if row.state == SUSPECT:
            self.members.put(row.at(row.inc, ALIVE), now)

    def _vouch(self, node: NodeID, now: float) -> None:
        """Tell all what we heard of a member that somebody suspects, and tell the member."""
        pulse = self.detector.pulses[node]
        if now - self._vouched.get(node, -1e9) < self._limits.vouch_s:
            return
        self._vouched[node] = now
        row = self.members[node].row
        rumour = [VOUCH, node, row.inc, pulse.seq, now - pulse.heard_s]
        self._spread(LIFE, (VOUCH, node), rumour, now)
        self._say_to(node, Ping(self._cluster, self.me.node, node, 0, row.inc))

    def lagged(self, seconds: float, now: float) -> None:
        """Our own loop ran late: silence may be our fault."""
        del now
        if seconds > self._limits.lag_s:
            self.detector.feel(1)

    def _renew(self, inc: int, state: int, now: float, meta: dict[str, Any]) -> None:
        """Become a new incarnation and tell all."""
        me = self.me
        self.members.set_me(Row(me.node, min(inc, INC_MAX), state, me.name, me.host, me.port, meta))
        self._spread(LIFE, me.node, [ROW, self.me.packed(), b"", 0, False], now)

    def _refute(self, accused: int, now: float) -> None:
        if accused >= self.me.inc and self.me.state in (ALIVE, LEAVING):
            self.detector.feel(1)
            self._renew(accused + 1, self.me.state, now, self.me.meta)

    # Receiving.

    def receive(self, sender: NodeID, message: Any, now: float) -> None:
        """Take a word of wire/gossip.py. What makes no sense, or is of another mesh, is dropped."""
        if self._gone or type(message) not in self._inputs:
            return
        if message.cluster != self._cluster and isinstance(message, Join):
            self._refuse(message, "it belongs to another mesh: import this mesh's key with `zmesh key import`")
        elif message.cluster == self._cluster and sane(message) and message.node == sender != self.me.node:
            self._inputs[type(message)](sender, message, now)
        elif message.node != self.me.node:
            self._warn(type(message).__name__)

    def _warn(self, what: str) -> None:
        if what not in self._warned:
            self._warned[what] = True
            self._effects.append(Warn(f"gossip: a {what} that makes no sense was dropped, as others like it will be"))

    def _heartbeat(self, sender: NodeID, message: Heartbeat, now: float) -> None:
        self._published(sender, message.seq, now)
        member = self.members.get(sender)
        if member is None or not member.alive:
            return
        if message.inc > member.row.inc:
            self._repair.ask(sender, now)
        self.loads.take(sender, message.load, message.seq, now)

    def _published(self, sender: NodeID, seq: int, now: float) -> None:
        """Somebody we subscribe to published something: it lives."""
        lost = self.detector.heard(sender, seq, now)
        if lost:
            self._repair.ask(sender, now)
        suspicion = self.detector.suspicions.get(sender)
        if suspicion is not None and seq > suspicion.seq and sender in self.detector.pulses:
            self._vouch(sender, now)
            self._acquit(sender, now)

    def _news(self, sender: NodeID, message: News, now: float) -> None:
        self._published(sender, message.seq, now)
        for rumour in message.rumours:
            if not sane_rumour(rumour):
                self._warn("rumour")
            elif rumour[0] == ROW:
                row = parse_row(rumour[1], self._limits.row_bytes_max)
                if row is None:
                    self._warn("row")
                else:
                    self._rumoured(row, rumour[2], rumour[3], rumour[4], now)
            elif rumour[0] == VOUCH:
                self._vouched_for(list(rumour[:5]), now)
            else:
                self.loads.news(rumour[1], rumour[2], rumour[3], now)

    def _vouched_for(self, rumour: list[Any], now: float) -> None:
        _, node, inc, seq, age = rumour
        suspicion = self.detector.suspicions.get(node)
        if suspicion is None or suspicion.inc > inc or seq <= suspicion.seq or age > self._limits.silence_s:
            return
        self._acquit(node, now)
        self._spread(LIFE, (VOUCH, node), rumour, now)

    def _rumoured(self, row: Row, accuser: NodeID, seq: int, refused: bool, now: float) -> None:
        """Take what somebody says of a member, which may be ourselves."""
        if row.node == self.me.node:
            if row.state in (SUSPECT, DEAD):
                self._refute(row.inc, now)
            return
        known = self.members.get(row.node)
        if row.state == SUSPECT:
            if known is not None and known.alive and known.row.inc <= row.inc and known.row.state != LEAVING:
                self._suspected(row, accuser or self.me.node, seq, refused, now)
            elif known is not None and known.alive and known.row.inc > row.inc:
                self._spread(LIFE, row.node, [ROW, known.row.packed(), b"", 0, False], now)
            return
        if row.state == DEAD and known is not None and known.alive and self.detector.fresh(row.node, seq, now):
            self._vouch(row.node, now)
            return
        self._take(row, now, "another member found it dead")

    def _take(self, row: Row, now: float, why: str = "") -> None:
        """Take a row into the table if it beats what is there, and pass it on."""
        known = self.members.get(row.node)
        if known is None:
            if not row.alive or row_major(row) != GOSSIP_MAJOR or len(self.members) >= self._limits.members_max:
                return
        elif merge(known.row, row) != row or known.row == row:
            return
        was_alive = known is not None and known.alive
        old = known.row if known is not None else None
        self._replace_at(row, now)
        self.members.put(row, now)
        self._clear(row.node)
        self._spread(_URGENCY[row.state], row.node, [ROW, row.packed(), b"", 0, False], now)
        if row.alive:
            if not was_alive:
                self.view.welcome(row.node, now)
                self._repair.sync_soon(now)
            if old is None or not was_alive or (old.meta, old.address, old.state) != (row.meta, row.address, row.state):
                self._effects.append(MemberUp(row))
        elif was_alive:
            self.view.drop(row.node)
            self.view.fit(now)
            self._effects.append(MemberDown(row.node, "it left" if row.state == LEFT else why))

    def _replace_at(self, row: Row, now: float) -> None:
        """Whoever was at a newcomer's address before is gone: it was restarted."""
        if row.alive:
            before = self.members.at(row.address)
            if before is not None and before != row.node and row.node not in self.members:
                gone = self.members[before].row
                self._take(gone.at(gone.inc, DEAD), now, "another node runs at its address")

    # Joining.

    def _join(self, sender: NodeID, message: Join, now: float) -> None:
        row = parse_row(message.row, self._limits.row_bytes_max)
        if row is None or row.node != sender:
            self._warn("Join")
        elif message.major != GOSSIP_MAJOR:
            self._refuse(
                message, f"it speaks version {message.major} of the gossip protocol, this mesh {GOSSIP_MAJOR}: install "
                "the same zmesh on both",
            )  # fmt: skip
        elif self._push_pulls >= self._limits.push_pulls_max:
            ask = [list(self.members[node].row.address) for node in self.view._nodes][: self._limits.busy_addresses]
            self._say(sender, row.address, Busy(self._cluster, self.me.node, self._size, ask))
        else:
            self._push_pulls += 1
            self._timers.set(now + self._limits.push_pull_window_s, self._served)
            self._take(row, now)
            self._repair.tell_rows(sender, row.address, list(range(BUCKETS)), answer=False)

    def _served(self, now: float) -> None:
        del now
        self._push_pulls -= 1

    def _refuse(self, message: Join, why: str) -> None:
        row = parse_row(message.row, self._limits.row_bytes_max) if sane(message) else None
        if row is not None:
            self._say(row.node, row.address, Refused(message.cluster, self.me.node, row.node, why))

    def _rows(self, sender: NodeID, message: Rows, now: float) -> None:
        address: Address | None = None
        for raw in message.rows:
            row = parse_row(raw, self._limits.row_bytes_max)
            if row is None:
                self._warn("row")
                continue
            if row.node == sender:
                address = row.address
            # Another's verdict is old news by now: as a suspicion, the subject can still answer it.
            known = self.members.get(row.node)
            if row.state == DEAD and (row.node == self.me.node or (known is not None and known.alive)):
                row = row.at(row.inc, SUSPECT)
            self._rumoured(row, sender, 0, False, now)
        member = self.members.get(sender)
        if address is None and member is not None:
            address = member.row.address
        if message.answer and address is not None:
            self._repair.tell_rows(sender, address, list(message.buckets), answer=False)
        if not message.more and self._joiner.answered():
            self._repair.sync_soon(now)

    def _digest(self, sender: NodeID, message: Digest, now: float) -> None:
        row = parse_row(message.row, self._limits.row_bytes_max)
        if row is None or row.node != sender:
            self._warn("Digest")
            return
        known = self.members.get(sender)
        if known is not None and not known.alive and row.inc <= known.row.inc and known.row.state == DEAD:
            # It lives, and does not know that we took it for dead: it answers with a higher incarnation.
            self._say(sender, row.address, Ping(self._cluster, self.me.node, sender, 0, known.row.inc))
        self._take(row, now)
        differing = self.members.differing(message.buckets)
        if differing:
            self._repair.tell_rows(sender, row.address, differing, answer=True)

    def _mend(self, now: float) -> None:
        """Every 10 s: compare tables with somebody, and forget who is gone for long."""
        self._repair.compare(now)
        self.detector.feel(-1)
        for node in self._repair.outdated(now):
            self.members.forget(node)
            self._repair.forget(node)
            self.loads.forget(node)
            self._vouched.pop(node, None)

    def _knock(self, now: float) -> None:
        """Try a seed, in case we lost everybody."""
        if self._joiner.joined:
            self._repair.knock(self._seeds, now)

    def _ping(self, sender: NodeID, message: Ping, now: float) -> None:
        if message.to != self.me.node:
            return
        if message.accused >= 0:
            self._refute(message.accused, now)
        member = self.members.get(sender)
        if member is not None and member.row.state == DEAD:  # it lives: it should know, and say so
            self._say_to(sender, Ping(self._cluster, self.me.node, sender, 0, member.row.inc))
        if message.number:
            pong = Pong(self._cluster, self.me.node, sender, message.number, self._seq, self.me.inc)
            self._say_to(sender, pong)
        elif message.accused >= 0:  # it may not hear what we publish: answer straight
            self._say_to(sender, News(self._cluster, self.me.node, 0, [[ROW, self.me.packed(), b"", 0, False]]))

    def _pong(self, sender: NodeID, message: Pong, now: float) -> None:
        pulse = self.detector.pulses.get(sender)
        if message.to != self.me.node or pulse is None or pulse.ping != message.number:
            return
        pulse.heard_s, pulse.ping = now, 0
        self.detector.feel(-1)
        if message.seq > pulse.seq + 1:
            self._repair.ask(sender, now)
        if sender in self.detector.suspicions:
            pulse.seq = max(pulse.seq, message.seq)
            self._vouch(sender, now)
            self._acquit(sender, now)

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        self.members.check()
        self._rumours.check()
        if not self._gone:
            self.view.check()
        for node in self.detector.suspicions:
            assert self.members[node].row.state in (SUSPECT, LEAVING), "a suspicion without a suspect"
