"""How much memory is in use: of this host, of the cgroup this process is in, and by single processes."""

import contextlib
import os

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CGROUP = "/sys/fs/cgroup"


class MemoryGauge:
    """Reads shares of the memory that are in use, some 50 microseconds a time.

    Args:
        limit_bytes: what the workers of this node may use together; 0: what the host and the cgroup have.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self._cgroup = _cgroup_directory()

    def read(self, anonymous_bytes: int) -> float:
        """Return the largest of the shares in use: of the limit, of the cgroup, of the host.

        Args:
            anonymous_bytes: what the workers use.
        """
        shares = [_host_share(), self._cgroup_share()]
        if self.limit_bytes:
            shares.append(anonymous_bytes / self.limit_bytes)
        return max(shares)

    def _cgroup_share(self) -> float:
        """Return the share of the cgroup's limit in use, without pages of files that can be dropped."""
        with contextlib.suppress(OSError, ValueError):
            with open(f"{self._cgroup}/memory.max") as file:
                limit = file.read().strip()
            if limit != "max":
                with open(f"{self._cgroup}/memory.current") as file:
                    current = int(file.read())
                return max(0, current - self._droppable()) / int(limit)
        return 0.0

    def _droppable(self) -> int:
        with open(f"{self._cgroup}/memory.stat") as file:
            for line in file:
                if line.startswith("inactive_file "):
                    return int(line.split()[1])
        return 0


def _cgroup_directory() -> str:
    """Return the directory of this process's cgroup (version 2)."""
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as file:
        for line in file:
            if line.startswith("0::"):
                path = _CGROUP + line[3:].strip().rstrip("/")
                if os.path.exists(f"{path}/memory.max"):
                    return path
    return _CGROUP


def _host_share() -> float:
    total = 0
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemTotal:"):
                total = int(line.split()[1])
            elif line.startswith("MemAvailable:"):
                return 1 - int(line.split()[1]) / total
    return 0.0


def anonymous_bytes(pid: int) -> int:
    """Return the memory that only this process has, without shared memory and files; 0 if it is gone."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/statm") as file:
        _, resident, shared = file.read().split()[:3]
        return max(0, int(resident) - int(shared)) * _PAGE_BYTES
    return 0
