"""What this machine has: CPUs, GPUs, memory. Read once, when a node starts."""

import os
from typing import Any

from zmesh.exceptions import ConfigError

UNIT = 10_000
STORE_FRACTION = 0.3  # of physical memory. Source: Ray's default, which users know


def cpus() -> int:
    """Return how many CPUs this process may use: its affinity, bounded by its cgroup's quota."""
    allowed = len(os.sched_getaffinity(0))
    quota = _cgroup_cpus()
    return max(1, min(allowed, quota) if quota else allowed)


def _cgroup_cpus() -> int:
    """Return the cgroup's CPU quota, rounded up; 0 without one."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return 0 if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return 0


def memory_bytes() -> int:
    """Return the memory this process may use, in bytes."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            text = file.read().strip()
        return physical if text == "max" else min(physical, int(text))
    except (OSError, ValueError):
        return physical


def gpus() -> int:
    """Return how many NVIDIA GPUs are visible."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip()])
    try:
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0


def total_resources(settings: dict[str, Any]) -> dict[str, int]:
    """Return what a node of these settings has, in units of 1/10,000.

    Raises:
        ConfigError: a negative amount, or a name that has an option of its own.
    """
    given: dict[str, Any] = {
        "CPU": cpus() if settings.get("num_cpus") is None else settings["num_cpus"],
        "GPU": gpus() if settings.get("num_gpus") is None else settings["num_gpus"],
        "memory": memory_bytes() if settings.get("memory") is None else settings["memory"],
    }
    for name in settings.get("resources") or {}:
        if name in given:
            raise ConfigError(f"resources must not hold {name!r}: it has an option of its own")
    given.update(settings.get("resources") or {})
    for name, amount in given.items():
        if not isinstance(amount, int | float) or not 0 <= amount < float("inf"):
            raise ConfigError(f"{name} must be a number from 0, not {amount!r}")
    return {name: round(amount * UNIT) for name, amount in given.items() if amount}


def store_bytes(settings: dict[str, Any]) -> int:
    """Return how much shared memory objects may take, in bytes.

    Raises:
        ConfigError: less than one slab.
    """
    given = settings.get("store_bytes")
    if given is None:
        return int(memory_bytes() * STORE_FRACTION)
    if not isinstance(given, int) or given < 1 << 20:
        raise ConfigError(f"the object store needs at least {1 << 20} bytes, not {given!r}")
    return given


def oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since it started."""
    try:
        with open("/proc/vmstat") as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
