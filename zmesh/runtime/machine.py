"""What this machine has: CPUs, GPUs, memory. Read once, when a node starts."""

import contextlib
import glob
import os
import re
import socket
import stat
import sys
from dataclasses import dataclass
from typing import Any

from zmesh.core.pressure import KILL_AT, STEADY_AT
from zmesh.exceptions import ConfigError
from zmesh.limits import AMOUNT_MAX, is_amount, is_text
from zmesh.options import ACCELERATOR
from zmesh.wire.marks import LABEL, is_mark

UNIT = 10_000
GPUS = "/proc/driver/nvidia/gpus"
DEFAULT_PORT = 27700  # P; P + 1 and P + 2 are used too. Source: below ip_local_port_range, so no dial takes it
PORTS = range(DEFAULT_PORT, DEFAULT_PORT + 1000, 10)  # tried in turn, if none was named: several nodes of one machine
_claims: list[socket.socket] = []  # of the base port that this process chose; open as long as it lives
WILDCARDS = ("0.0.0" + ".0", "::", "*")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
COMPRESSIONS = ("none", "lz4")
SPILL_BYTES_MAX = 1 << 62  # by default only the disk itself is the limit
MEMORY_LIMIT_MIN = 16 << 20
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
        return len(os.listdir(GPUS))
    except OSError:
        return 0


def accelerators(directory: str = GPUS) -> dict[str, int]:
    """Return what stands for the kind of GPUs in the resources of a node, e.g. {"accelerator_type:A100": 1}.

    Args:
        directory: where the driver tells of each of them.
    """
    found = {}
    for path in sorted(glob.glob(os.path.join(directory, "*", "information"))):
        with contextlib.suppress(OSError), open(path) as file:
            models = [line.partition(":")[2] for line in file if line.startswith("Model:")]
            found.update({f"{ACCELERATOR}{accelerator_name(model)}": 1 for model in models})
    return found


def accelerator_name(model: str) -> str:
    """Return what Ray calls GPUs of a model: "NVIDIA A100-SXM4-40GB" A100, "GeForce RTX 3090" GeForce-RTX-3090."""
    words = [word for word in model.split() if word not in ("NVIDIA", "Tesla", "Quadro")] or ["unknown"]
    number = next((index for index, word in enumerate(words) if any(map(str.isdigit, word))), len(words) - 1)
    name = [*words[:number], words[number].partition("-")[0]]
    return (" " if all(map(str.isupper, name[:-1])) else "-").join(name)


def python_minor() -> str:
    """Return this Python's version as far as pickled code must agree on it, as "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def job_config() -> dict[str, Any]:
    """Return what the workers of this program's job take over, and what they must agree on."""
    return {
        "cwd": os.getcwd(),
        "sys_path": [os.path.abspath(path) for path in sys.path],
        "python": python_minor(),
    }


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
        if is_mark(name):
            raise ConfigError(f"{name!r} is no resource: use --label KEY=VALUE")
        if "@" in name:
            raise ConfigError(f"the name of a resource must not hold '@', as {name!r} does")
        if not is_text(name):
            raise ConfigError(f"the name of a resource must be a text that can be encoded, not {name!r}")
    given = (accelerators() if given["GPU"] else {}) | given | (settings.get("resources") or {})
    if isinstance(given["GPU"], float) and given["GPU"] != int(given["GPU"]):
        raise ConfigError(f"num_gpus of a node must be a whole number, not {given['GPU']!r}")
    for name, amount in given.items():
        if not is_amount(amount):
            raise ConfigError(f"{name} must be a number from 0 to {AMOUNT_MAX:.0e}, not {amount!r}")
    return {name: round(amount * UNIT) for name, amount in given.items() if amount} | _marks(settings)


def _marks(settings: dict[str, Any]) -> dict[str, int]:
    """Return what stands for the node's labels in its resources: plenty of each."""
    labels = settings.get("labels") or {}
    names = [name for key, value in labels.items() for name in (f"{LABEL}{key}", f"{LABEL}{key}={value}")]
    return dict.fromkeys(names, 1 << 40)


def listen_address(settings: dict[str, Any]) -> tuple[str, int]:
    """Return (host, base port) of a node that others may find.

    Raises:
        ConfigError: the port is not one of three in a row, or the host is a wildcard that nobody asked for.
    """
    host, port = settings.get("host") or "127.0.0.1", settings.get("port")
    if port is None:
        port = next((port for port in PORTS if _claimed(host, port)), DEFAULT_PORT)
    if not isinstance(port, int) or not 1 <= port <= 65533:
        raise ConfigError(f"--port must be from 1 to 65533, as P, P + 1 and P + 2 are used; not {port!r}")
    if not isinstance(host, str) or not (host in WILDCARDS or _is_host(host)):
        raise ConfigError(f"--host must be an address of this machine, not {host!r}")
    if host in WILDCARDS and not settings.get("advertise"):
        raise ConfigError(
            f"--host {host} listens on every interface: also say --advertise ADDR, by which others find it"
        )
    return host, port


def _is_host(text: str) -> bool:
    """Whether this could be a host: a name, or a numeric address that is whole."""
    if ":" not in text and text.strip("0123456789."):
        return bool(_NAME.fullmatch(text))
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text.partition("%")[0])
    except OSError:
        return False
    return True


def resolves(host: str) -> bool:
    """Whether an address is known for a name; asks the name server, which may take seconds."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _claimed(host: str, port: int) -> bool:
    """Whether this process may have these three ports: no other node is about to bind them, and they are free."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0zmesh-port-{port}")  # an abstract name: it goes with the process
    except OSError:
        claim.close()
        return False
    if not _free(host, port):
        claim.close()
        return False
    _claims.append(claim)
    return True


def _free(host: str, port: int) -> bool:
    """Whether three ports in a row can be had. A stranger may still be faster: then binding says so."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for one in range(port, port + 3):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, one))
            except OSError:
                return False
    return True


def parse_address(text: str, port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Return (host, port) of `host`, `host:port`, `[v6]:port` or a plain IPv6 address.

    Raises:
        ConfigError: it is none.
    """
    host, colon, number = text.rpartition(":")
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        number, colon = rest.removeprefix(":"), rest[:1]
    elif not colon or ":" in host:
        host, number, colon = text, "", ""
    if not _is_host(host) or (colon and not (number.isdigit() and 1 <= int(number) <= 65533)):
        raise ConfigError(f"{text!r} is no address: use HOST:PORT, e.g. 192.168.1.7:{port} or [fe80::1]:{port}")
    return host, int(number) if colon else port


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
    if given > memory_bytes():
        raise ConfigError(f"the object store cannot have {given:,} bytes: this machine has {memory_bytes():,} in all")
    return given


@dataclass(frozen=True)
class SpillSettings:
    """Where cold objects go when the store is full."""

    directory: str
    bytes_max: int  # 0: nowhere
    compression: str


def spill_settings(settings: dict[str, Any]) -> SpillSettings:
    """Return where objects are spilled to, and how much; the directory is made if need be.

    Raises:
        ConfigError: the directory cannot be written, or a value makes no sense.
    """
    compression = settings.get("spill_compression") or "none"
    if compression not in COMPRESSIONS:
        raise ConfigError(f"spill_compression must be one of {', '.join(COMPRESSIONS)}, not {compression!r}")
    bytes_max = settings.get("spill_bytes_max")
    if bytes_max is not None and (not isinstance(bytes_max, int) or bytes_max < 0):
        raise ConfigError(f"spill_bytes_max must be bytes from 0 (nothing is spilled), or None, not {bytes_max!r}")
    if bytes_max is None:
        bytes_max = SPILL_BYTES_MAX
    given = settings.get("spill_directory")
    if given:
        if bytes_max and not _usable(given):
            raise ConfigError(f"spill_directory {given!r} must be a directory that this user may write to")
        return SpillSettings(given, bytes_max, compression)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    usable = [path for path in (f"{cache}/zmesh", f"/var/tmp/zmesh-{os.getuid()}") if _usable(path)]
    found = next((path for path in usable if not _in_memory(path)), next(iter(usable), ""))
    return SpillSettings(found, bytes_max if found else 0, compression)


def _usable(path: str) -> bool:
    """Whether that is a directory of ours for files, made if need be."""
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        return stat.S_ISDIR(os.stat(path).st_mode) and os.access(path, os.W_OK | os.X_OK)
    except OSError:
        return False


def _in_memory(path: str) -> bool:
    """Whether files there take memory: what is spilled would gain nothing."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo") as file:
            mounts = [line.split(" - ") for line in file]
    except OSError:
        return False
    return any(left.split()[2] == number and right.split()[0] in ("tmpfs", "ramfs") for left, right in mounts)


def memory_limit(settings: dict[str, Any]) -> int:
    """Return how much memory the workers of a node may use together, in bytes; 0: all there is.

    Raises:
        ConfigError: it is no number of bytes.
    """
    given = settings.get("memory_limit") or 0
    if not isinstance(given, int) or given < 0:
        raise ConfigError(f"memory_limit must be bytes, not {given!r}")
    if 0 < given < MEMORY_LIMIT_MIN:
        text = f"memory_limit must be at least {MEMORY_LIMIT_MIN:,} bytes, as one worker takes that, not {given:,}"
        raise ConfigError(text)
    return given


def memory_shares(settings: dict[str, Any]) -> tuple[float, float]:
    """Return from which share of the memory on a node takes no more work, and from which on it kills tasks.

    Raises:
        ConfigError: they are no shares, or not in this order.
    """
    steady, kill = settings.get("memory_steady_at", STEADY_AT), settings.get("memory_kill_at", KILL_AT)
    if not (isinstance(steady, int | float) and isinstance(kill, int | float) and 0 < steady <= kill):
        raise ConfigError(f"0 < memory_steady_at <= memory_kill_at must hold, not {steady!r} and {kill!r}")
    return steady, kill


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
