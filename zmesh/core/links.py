"""One reliable link between each two nodes: frames arrive in order, exactly once, until one of the nodes is dead.

A TCP connection may be cut at any moment, and what was on it is lost without a word. So frames are numbered, kept until
they are acknowledged, and sent again. Everything above sees FIFO links that lose nothing, as on one host. A link ends
only with the death of the member; one that comes back gets a new link, of a higher epoch, on which nothing old counts.

Sources: go-back-N with cumulative acknowledgement, RFC 793; the doubling of the pause, RFC 6298; the youngest parcel as
a probe, tail loss probes of RFC 8985.
"""

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from zmesh.core.effects import Effect, LinkEnded, Post, PostAck, Redial, Relay
from zmesh.core.timers import Timers
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, PeerID

WINDOW_BYTES = 8 * 1024 * 1024  # sent and not acknowledged: a round trip of 50 ms at 160 MB/s
FRAGMENT_BYTES = 1024 * 1024  # one frame holds up everything behind it on the wire for as long as it takes
CONGESTED_BYTES = 32 * 1024 * 1024  # waiting to be sent: no more work is taken over such a link
ACK_DELAY_S = 0.02  # an answer mostly carries the acknowledgement; this is for when there is none
ACK_FRAMES = 64
ACK_BYTES = WINDOW_BYTES // 8
RESEND_S = 0.5  # without progress; doubles up to RESEND_MAX_S
RESEND_MAX_S = 2.0
REDIAL_S = 2.0  # a pause so long says that it is not the parcels, but the connection
RESEND_FRAMES = 16  # of the oldest, each time, and the youngest
CLOSED_MAX = 256  # links of dead nodes that are remembered, in case they come back


@dataclass(slots=True)
class Parcel:
    """One frame, or a fragment of one, until it is acknowledged."""

    seq: int
    more: bool  # the next one continues it
    source: PeerID
    to: PeerID
    frame: bytes


@dataclass(slots=True)
class Link:
    """Both directions between us and one node."""

    node: NodeID
    epoch: int = 0
    open: bool = True
    made: int = 0  # number of the last parcel made
    unsent: deque[Parcel] = field(default_factory=deque)
    unacked: deque[Parcel] = field(default_factory=deque)
    unsent_bytes: int = 0
    unacked_bytes: int = 0
    delivered: int = 0  # number of the last parcel taken in, in order
    told: int = 0  # the last acknowledgement sent
    owed_bytes: int = 0  # taken in since then
    fragments: list[bytes] = field(default_factory=list)
    asked: bool = False  # told the other side that something is missing
    ack_timer: int = 0
    resend_timer: int = 0  # set while anything is unacknowledged, and a while after
    progress_s: float = 0.0  # since when the oldest unacknowledged parcel has been it
    pause_s: float = RESEND_S


class Links:
    """The links of one node. Effects: Post and PostAck to the other side, Relay of what arrived, LinkEnded.

    Args:
        known: whether what that one says can be understood. One who joins may speak before we heard that he is there:
            his parcels are not taken, so he sends them again.
    """

    def __init__(
        self, effects: list[Effect], timers: Timers, *, known: Callable[[NodeID], bool] = lambda node: True
    ) -> None:
        self._effects = effects
        self._timers = timers
        self._known = known
        self._links: dict[NodeID, Link] = {}
        self._closed: dict[NodeID, bool] = {}  # {node: True} of links that ended, the first to end first
        self._early: dict[NodeID, bool] = {}  # {node not known yet: True} of which something was not taken; old first
        self._epoch = 0  # of a first link: above that of all that were forgotten, as one of these may come back

    def _link(self, node: NodeID) -> Link:
        link = self._links.get(node)
        if link is None:
            # What guests and shortcuts have begins at 0: their names are never used again.
            link = self._links[node] = Link(node, self._epoch if len(node) == NODE_ID_BYTES else 0)
        return link

    # Sending.

    def send(self, node: NodeID, source: PeerID, to: PeerID, frame: bytes, now: float) -> None:
        """Have `frame` delivered to `to`, a peer on that node. To a dead node it is lost: its death is told."""
        link = self._link(node)
        if not link.open:
            return
        for start in range(0, max(len(frame), 1), FRAGMENT_BYTES):
            link.made += 1
            more = start + FRAGMENT_BYTES < len(frame)
            piece = frame[start : start + FRAGMENT_BYTES] if more or start else frame
            link.unsent.append(Parcel(link.made, more, source, to, piece))
            link.unsent_bytes += len(piece)
        self._pump(link, now)

    def _pump(self, link: Link, now: float) -> None:
        """Send what the window allows."""
        if not link.unacked:
            link.progress_s = now
        while link.unsent and (link.unacked_bytes < WINDOW_BYTES or not link.unacked):
            parcel = link.unsent.popleft()
            link.unsent_bytes -= len(parcel.frame)
            link.unacked.append(parcel)
            link.unacked_bytes += len(parcel.frame)
            self._post(link, parcel)
        if link.unacked and not link.resend_timer:
            link.resend_timer = self._timers.set(now + link.pause_s, lambda then: self._overdue(link, then))

    def _post(self, link: Link, parcel: Parcel) -> None:
        link.told = link.delivered
        link.owed_bytes = 0
        self._effects.append(
            Post(link.node, link.epoch, parcel.seq, link.delivered, parcel.more, parcel.source, parcel.to, parcel.frame)
        )

    def _overdue(self, link: Link, now: float) -> None:
        """No progress for long: send the first again, and the last, which shows the other side what is missing."""
        link.resend_timer = 0
        due = link.progress_s + link.pause_s
        if link.open and link.unacked and now < due - 1e-6:
            # There was progress since the timer was set: setting one anew for each parcel would cost more than this.
            link.resend_timer = self._timers.set(due, lambda then: self._overdue(link, then))
        elif link.open and link.unacked:
            if link.pause_s >= REDIAL_S:
                self._effects.append(Redial(link.node))
            link.pause_s = min(2 * link.pause_s, RESEND_MAX_S)
            link.progress_s = now
            for parcel in itertools.islice(link.unacked, RESEND_FRAMES):
                self._post(link, parcel)
            if len(link.unacked) > RESEND_FRAMES:
                self._post(link, link.unacked[-1])
            self._pump(link, now)

    def reconnected(self, node: NodeID, now: float) -> None:
        """Our connection to that node was made anew: what was on the old one may be lost."""
        link = self._links.get(node)
        if link is not None and link.open:
            self._again(link, now)

    def _again(self, link: Link, now: float) -> None:
        for parcel in link.unacked:
            self._post(link, parcel)
        self._pump(link, now)

    def congested(self, node: NodeID) -> bool:
        """Whether so much waits for that node that nothing should be added without need."""
        link = self._links.get(node)
        return link is not None and link.unsent_bytes > CONGESTED_BYTES

    # Receiving.

    def receive(
        self, node: NodeID, epoch: int, seq: int, ack: int, more: bool, source: PeerID, to: PeerID, frame: bytes,
        now: float,
    ) -> None:  # fmt: skip
        """Take a parcel. Relay follows if it is the next in order and completes its frame."""
        link = self._current(node, epoch)
        if link is None:
            return
        self._acknowledged(link, ack, now)
        if seq <= link.delivered:
            self._tell(link)  # it was sent again, so our word got lost
            return
        if seq > link.delivered + 1:
            if not link.asked:
                link.asked = True
                self._tell(link, missing=True)
            return
        link.delivered = seq
        link.asked = False
        link.owed_bytes += len(frame)
        if more:
            link.fragments.append(frame)
        else:
            if link.fragments:
                frame = b"".join([*link.fragments, frame])
                link.fragments.clear()
            self._effects.append(Relay(source, to, frame))
        if link.delivered - link.told >= ACK_FRAMES or link.owed_bytes >= ACK_BYTES:
            self._tell(link)
        elif not link.ack_timer:
            link.ack_timer = self._timers.set(now + ACK_DELAY_S, lambda then: self._ack_due(link))

    def acknowledged(self, node: NodeID, epoch: int, ack: int, missing: bool, now: float) -> None:
        """The other side has everything up to `ack`; if `missing`, it saw that something after that got lost."""
        link = self._current(node, epoch)
        if link is not None:
            self._acknowledged(link, ack, now)
            if missing:
                self._again(link, now)

    def _acknowledged(self, link: Link, ack: int, now: float) -> None:
        progress = False
        while link.unacked and link.unacked[0].seq <= ack:
            link.unacked_bytes -= len(link.unacked.popleft().frame)
            progress = True
        if progress:
            link.progress_s = now
            if link.pause_s != RESEND_S:
                link.pause_s = RESEND_S
                self._timers.cancel(link.resend_timer)
                link.resend_timer = 0
            self._pump(link, now)

    def _tell(self, link: Link, *, missing: bool = False) -> None:
        link.told = link.delivered
        link.owed_bytes = 0
        self._effects.append(PostAck(link.node, link.epoch, link.delivered, missing))

    def _ack_due(self, link: Link) -> None:
        link.ack_timer = 0
        if link.open and link.told < link.delivered:
            self._tell(link)

    # Beginnings and ends.

    def _current(self, node: NodeID, epoch: int) -> Link | None:
        """Return the link a word of that epoch belongs to; None if it is of a link that ended, or of a stranger."""
        if not self._known(node):
            self._early[node] = True
            if len(self._early) > CLOSED_MAX:
                del self._early[next(iter(self._early))]
            return None
        link = self._link(node)
        if epoch > link.epoch:
            # The other side took us for dead, and began anew: what was agreed before is over on both sides.
            if link.open and (link.made or link.delivered):
                self._effects.append(LinkEnded(node))
            self._close(link)
            self._closed.pop(node, None)
            link = self._links[node] = Link(node, epoch)
        elif epoch < link.epoch == self._epoch and link.open and not (link.made or link.delivered):
            self._tell(link)  # it may have been forgotten here, and knows no reason to begin anew
        return link if link.open and epoch == link.epoch else None

    def died(self, node: NodeID) -> None:
        """The member is dead: nothing of this link counts any more."""
        link = self._link(node)
        if link.open:
            self._close(link)
            self._links[node] = Link(node, link.epoch + 1, open=False)
            self._closed[node] = True
            while len(self._closed) > CLOSED_MAX:
                oldest = next(iter(self._closed))
                self._epoch = max(self._epoch, self._links[oldest].epoch)
                self.forget(oldest)

    def came_back(self, node: NodeID) -> bool:
        """A member is alive; returns whether we had taken it for dead."""
        link = self._link(node)
        link.open, before = True, link.open
        self._closed.pop(node, None)
        if self._early.pop(node, False):
            self._tell(link, missing=True)
        return not before

    def ended(self, node: NodeID) -> bool:
        """Whether that member is known to be dead."""
        return node in self._closed

    def forget(self, node: NodeID) -> None:
        """That NodeID will never be heard of again."""
        self._closed.pop(node, None)
        link = self._links.pop(node, None)
        if link is not None:
            self._close(link)

    def _close(self, link: Link) -> None:
        link.open = False
        self._timers.cancel(link.ack_timer)
        self._timers.cancel(link.resend_timer)
        link.unsent.clear()
        link.unacked.clear()

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert list(self._closed) == [node for node in self._closed if not self._links[node].open]
        assert len(self._closed) <= CLOSED_MAX
        for link in self._links.values():
            assert link.unacked_bytes == sum(len(parcel.frame) for parcel in link.unacked) or not link.open
            assert link.unsent_bytes == sum(len(parcel.frame) for parcel in link.unsent) or not link.open
            assert not link.unacked or link.resend_timer or not link.open
            numbers = [parcel.seq for parcel in (*link.unacked, *link.unsent)]
            assert numbers == list(range(numbers[0], link.made + 1)) if numbers else True
