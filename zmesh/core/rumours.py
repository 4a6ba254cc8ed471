"""The rumours a node still has to pass on: the important first, then the newest, so many a second, packed in frames.

Knows sizes and urgency, not what a rumour says. Source: memberlist #159, ALIVE before SUSPECT and DEAD, newest first.
"""

from typing import Any

from zmesh.core.gossip_limits import GossipLimits

LIFE, GONE, DEATH, DOUBT, DETAIL = range(5)  # urgencies: alive or refuted, left, dead, suspected, anything else

_FRAME_OVERHEAD = 64  # code, cluster, node, seq and the array around the rumours: at most


class Rumours:
    """What is to be published; of two rumours with one key only the newer."""

    def __init__(self, limits: GossipLimits) -> None:
        self._limits = limits
        self._queues: list[dict[Any, tuple[int, Any]]] = [{} for _ in range(5)]  # [urgency] {key: (bytes, rumour)}
        self._count = 0
        self._tokens = limits.rumours_per_s
        self._refilled_s = 0.0
        self.dropped = 0

    def __len__(self) -> int:
        return self._count

    def add(self, urgency: int, key: Any, rumour: Any, size: int) -> None:
        """Queue a rumour of `size` bytes. Above the limit the least urgent, oldest one is dropped."""
        queue = self._queues[urgency]
        self._count -= queue.pop(key, None) is not None
        queue[key] = (size, rumour)
        self._count += 1
        if self._count > self._limits.queue_max:
            victim = next(queue for queue in reversed(self._queues) if queue)
            del victim[next(iter(victim))]
            self._count -= 1
            self.dropped += 1

    def take(self, now: float) -> list[list[Any]]:
        """Return the rumours to publish now, one list a frame."""
        limits = self._limits
        self._tokens = min(limits.rumours_per_s, self._tokens + (now - self._refilled_s) * limits.rumours_per_s)
        self._refilled_s = now
        frames: list[list[Any]] = []
        room = 0
        for queue in self._queues:
            while queue and self._tokens >= 1.0:
                size, rumour = queue.pop(next(reversed(queue)))
                self._count -= 1
                self._tokens -= 1.0
                if size > room:
                    frames.append([])
                    room = limits.frame_bytes_max - _FRAME_OVERHEAD
                frames[-1].append(rumour)
                room -= size
        return frames

    def wait_s(self) -> float:
        """Return how long until the next rumour may go out."""
        return max(self._limits.coalesce_s, (1.0 - self._tokens) / self._limits.rumours_per_s)

    def check(self) -> None:
        """Verify the count."""
        assert self._count == sum(map(len, self._queues)) <= self._limits.queue_max
