"""Every number of the membership protocol, with where it comes from. docs/membership.md explains how they fit."""

from dataclasses import dataclass


@dataclass(slots=True)
class GossipLimits:
    """Seconds, bytes and counts."""

    # Heartbeats and rumours.
    heartbeat_s: float = 1.0  # Source: ZRE and memberlist probe once a second; load for stealing rides on it
    heartbeat_jitter: float = 0.1  # of the interval: publishers that started together drift apart
    coalesce_s: float = 0.02  # Source: simulated floods of 20 ms rounds reach all in 5 rounds at 10,000 nodes
    frame_bytes_max: int = 1200  # fits one packet with the overhead of ZMTP, CURVE and TCP
    queue_max: int = 4096  # rumours waiting. Source: Serf's queue cap
    rumours_per_s: float = 200.0  # published by one node; Source: memberlist #159, a storm must not starve heartbeats
    row_bytes_max: int = 1000  # a rumour with it fits a frame. Source: memberlist allows 512 B of meta
    load_bytes_max: int = 600
    load_news_s: float = 1.0  # urgent loads of one node are flooded so often at most

    # The view.
    view_all: int = 32  # up to so many members everybody hears everybody
    view_extra: int = 4  # log2 N + this above. Source: HyParView's log n + c
    shuffle_s: float = 30.0  # one slot of the view is drawn anew: a PUB has no other randomness
    shuffle_jitter: float = 0.5

    # Suspicion.
    silence_s: float = 3.0  # three heartbeats
    silence_sigmas: float = 4.0  # beyond the mean of the gaps. Source: Chen, Toueg, Aguilera 2002, as a normal tail
    ping_s: float = 0.5  # Source: memberlist ProbeTimeout, LAN
    suspicion_s: float = 3.0  # times log10 N. Source: memberlist SuspicionMult 4; 3 survives a blackout of 5 s too
    suspicion_max_factor: float = 6.0  # Source: memberlist SuspicionMaxTimeoutMult
    confirmations: int = 2  # that bring the timer down to its least. Source: memberlist SuspicionMult - 2
    lonely_members: int = 3  # up to so many members nobody is left to confirm
    fast_s: float = 1.0  # timer if a redial was refused and another node agrees
    vouch_s: float = 1.0  # between two vouchings for one member
    deaf_s: float = 3.0  # without hearing half of the sources
    hard_of_hearing_s: float = 2.0  # from here on a node keeps its suspicions to itself
    alone_s: float = 8.0  # and here it takes it that it is alone: the others have given it up by now
    health_max: int = 8  # Source: Lifeguard, memberlist AwarenessMaxMultiplier
    lag_s: float = 0.25  # of the loop, that is held against ourselves

    # Repair.
    anti_entropy_s: float = 10.0  # a digest costs 2 KB; Source: memberlist's push-pull is 30 s, of everything
    anti_entropy_jitter: float = 0.2
    ask_s: float = 1.0  # between two digests because of gaps
    redial_s: float = 10.0  # one dead member. Source: Serf ReconnectInterval 30 s, quicker
    seed_s: float = 30.0  # one seed. Source: Serf
    dead_s: float = 86_400.0  # endpoints are kept for redialing. Source: Serf ReconnectTimeout 24 h
    dead_max: int = 1000
    tombstone_s: float = 3600.0  # that a member left is remembered so long: no rumour lives longer
    members_max: int = 20_000  # twice the largest mesh simulated

    # Joining and leaving.
    join_retry_s: float = 1.0
    join_retry_max_s: float = 10.0
    join_backoff: float = 1.5
    join_jitter_s: float = 5.0
    join_jitter_per_member_s: float = 0.005  # 1,000 nodes joining one seed cost it 3 s of CPU
    push_pulls_max: int = 32  # served in a window. Source: memberlist #158, 128 at once after 3,000 were deadly
    push_pull_window_s: float = 0.5
    busy_addresses: int = 3
    rows_bytes_max: int = 48 * 1024  # of one message; the gossip sockets take 64 KiB
    leave_s: float = 1.0  # Source: Serf LeavePropagateDelay
    leave_times: int = 3
