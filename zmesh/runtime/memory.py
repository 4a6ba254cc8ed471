"""How much memory is in use: of this host, of the cgroups this process is in, and by single processes."""

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
        self._cgroups = _limited_cgroups()

    def read(self, anonymous_bytes: int) -> float:
        """Return the largest of the shares in use: of the limit, of the cgroup, of the host.

        Args:
            anonymous_bytes: what the workers use.
        """
        shares = [_host_share(), *map(_cgroup_share, self._cgroups)]
        if self.limit_bytes:
            shares.append(anonymous_bytes / self.limit_bytes)
        return max(shares)


def _limited_cgroups() -> list[str]:
    """Return the directories of this process's cgroup (version 2) and those around it that have a limit."""
    path = ""
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as file:
        path = next((line[3:].strip().strip("/") for line in file if line.startswith("0::")), "")
    found = []
    while True:
        directory = f"{_CGROUP}/{path}".rstrip("/")
        with contextlib.suppress(OSError), open(f"{directory}/memory.max") as file:
            if file.read().strip() != "max":
                found.append(directory)
        if not path:
            return found
        path = os.path.dirname(path)


def _cgroup_share(directory: str) -> float:
    """Return the share of a cgroup's limit in use, without pages of files that can be dropped."""
    with contextlib.suppress(OSError, ValueError):
        with open(f"{directory}/memory.max") as file:
            limit = file.read().strip()
        with open(f"{directory}/memory.current") as file:
            used = int(file.read())
        with open(f"{directory}/memory.stat") as file:
            used -= next((int(line.split()[1]) for line in file if line.startswith("inactive_file ")), 0)
        return 0.0 if limit == "max" else max(0, used) / int(limit)
    return 0.0


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
