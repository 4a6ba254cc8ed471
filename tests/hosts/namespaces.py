"""Several hosts on one machine: a network namespace each, joined by a bridge in a namespace of its own.

Faults of the network are made here, real ones in the kernel: partitions, pulled cables, slow links, lost packets.
Delays, resets and flipped bits are for tests/relay.py, which may live on a host (`with hosts.inside(i): Relay(...)`).

What is shared, unlike on real hosts: the kernel (boot id, clock, CPUs), the pids, the file system with /tmp and
/dev/shm. A program has its own network, host name, HOME and XDG_RUNTIME_DIR.

A partition is silent by default: the sender's neighbour table gets the switch's address for the receiver, so that
packets leave and never arrive, as when a router dies. A blackhole route instead (`silent=False`) is noticed: connect()
fails with EINVAL at once.

Loss needs neither netem nor a tc action, which this kernel is built without (nor basic, matchall or act_bpf): eight
instructions of eBPF that ask bpf_get_prandom_u32, attached to the ingress of the host's link as a bpf_link (tcx, Linux
6.6). The link lives as long as its file descriptor, so that nothing is left when the test dies.

Needs root, iproute2 and Linux. Sources: ip-netns(8), setns(2), bpf(2), tc-tbf(8); reference/reliability.md 4.2.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

PREFIX = "zmt-"  # of namespaces and directories; then the pid of the test, then a number

_HOSTS_MAX = 200  # of a /24
_TOOL_S = 20.0  # for one call of ip or tc
_END_S = 5.0  # for killed processes to be gone
_SWITCH_MAC = "02:7a:6d:74:00:01"
_NETNS = "/run/netns"
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"

_CLONE_NEWUTS = 0x04000000
_CLONE_NEWNET = 0x40000000
_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
_BPF_PROG_LOAD = 5
_BPF_LINK_CREATE = 28
_BPF_PROG_TYPE_SCHED_CLS = 3
_BPF_TCX_INGRESS = 46
_BPF_ATTR_BYTES = 128

_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()
_swept = threading.Lock()


class Hosts:
    """Network namespaces that see each other through one switch; a context manager.

    Any thread, one at a time. Each call is bounded in time.
    """

    def __init__(
        self, count: int, rate: float | None = None, config_home: str | os.PathLike[str] | None = None
    ) -> None:
        """Make the hosts.

        Args:
            count: from 1 to 200.
            rate: bytes per second of each host's link, each way; None: as fast as the machine.
            config_home: XDG_CONFIG_HOME of all programs; None: an empty directory that they share.

        Raises:
            OSError, RuntimeError: it is not permitted here (see `why_not`); nothing is left.
        """
        if not 1 <= count <= _HOSTS_MAX:
            raise ValueError(f"count must be 1 to {_HOSTS_MAX}, not {count}")
        serial = next(_serial)
        self.count = count
        self.name = f"{PREFIX}{os.getpid()}-{serial}"
        # Each bridge is an island: equal subnets would do no harm, but different ones are easier to read in a trace.
        self._subnet = f"10.{os.getpid() >> 8 & 255}.{(os.getpid() + serial) & 255}"
        self._processes: list[subprocess.Popen[Any]] = []
        self._cuts: dict[tuple[int, int], bool] = {}  # {(from, to): silently}
        self._losses: dict[int, int] = {}  # {host: fd of the bpf_link}; only hosts that lose packets
        self._throttled: set[int] = set()
        with contextlib.ExitStack() as undo:
            sweep()
            self.directory = tempfile.mkdtemp(prefix=f"{self.name}-", dir="/tmp")
            undo.callback(shutil.rmtree, self.directory, ignore_errors=True)
            undo.callback(self._delete_namespaces)
            self._build()
            self._nets = [self._open(undo, f"{_NETNS}/{self._netns(i)}") for i in range(count)]  # {host: fd}
            self._hostnames = [self._new_hostname(undo, f"host-{i}") for i in range(count)]  # {host: fd}
            undo.callback(self._stop_losses)
            undo.callback(self._kill)
            self.config_home = os.fspath(config_home) if config_home is not None else f"{self.directory}/config"
            os.makedirs(self.config_home, mode=0o700, exist_ok=True)
            for i in range(count):
                for path in (self.directory_of(i), self.home(i), self.runtime(i)):
                    os.mkdir(path, mode=0o700)
            if rate is not None:
                for i in range(count):
                    self.throttle(i, rate)
            self._undo = undo.pop_all()

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill every process in the namespaces and remove these and the directories; again: nothing."""
        self._undo.close()

    def address(self, i: int) -> str:
        """Return the address of host i."""
        return f"{self._subnet}.{range(1, self.count + 1)[i]}"

    def directory_of(self, i: int) -> str:
        """Return the directory of host i, which ends with it."""
        return f"{self.directory}/{range(self.count)[i]}"

    def home(self, i: int) -> str:
        """Return HOME of host i."""
        return f"{self.directory_of(i)}/home"

    def runtime(self, i: int) -> str:
        """Return XDG_RUNTIME_DIR of host i: short enough for sockets."""
        return f"{self.directory_of(i)}/run"

    def environment(self, i: int) -> dict[str, str]:
        """Return the environment of programs on host i: ours, its own directories, and no ZMESH_*."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ZMESH_")}
        own = {"HOME": self.home(i), "XDG_RUNTIME_DIR": self.runtime(i), "XDG_CONFIG_HOME": self.config_home}
        return kept | own

    @contextlib.contextmanager
    def inside(self, i: int) -> Iterator[None]:
        """Put the calling thread on host i: its new sockets, threads and processes are there; never across an await."""
        with contextlib.ExitStack() as back:
            for kind, fd, flag in (("net", self._nets[i], _CLONE_NEWNET), ("uts", self._hostnames[i], _CLONE_NEWUTS)):
                here = os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
                back.callback(os.close, here)
                _setns(fd, flag)
                back.callback(_setns, here, flag)
            yield

    def popen(
        self, i: int, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **kw: Any
    ) -> subprocess.Popen[Any]:
        """Start a program on host i; `close` kills it, reaps it and closes its pipes.

        Args:
            env: added to `environment(i)`.
            kw: as of subprocess.Popen.

        Returns:
            The program itself, not a wrapper: its pid is the program's.
        """
        # A child has the namespaces of the thread that forks: no need for a preexec_fn, nor for `ip netns exec`.
        with self.inside(i):
            process = subprocess.Popen(argv, env=self.environment(i) | dict(env or {}), **kw)
        self._processes.append(process)
        return process

    def run(self, i: int, argv: Sequence[str], timeout: float = 30.0, **kw: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program on host i to its end; output is captured, as text unless text=False.

        Args:
            kw: `input`, and as of `popen`.

        Raises:
            subprocess.TimeoutExpired: it was killed; or it has ended, and a child of it, which lives on until `close`,
                holds its output open (give stdout=DEVNULL to what makes daemons).
        """
        given = kw.pop("input", None)
        kw.setdefault("stdin", subprocess.DEVNULL if given is None else subprocess.PIPE)
        kw = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | kw
        process = self.popen(i, argv, **kw)
        try:
            out, err = process.communicate(given, timeout)
        finally:
            _end(process)
            self._processes.remove(process)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def partition(self, a: Sequence[int], b: Sequence[int], one_way: bool = False, silent: bool = True) -> None:
        """Lose what hosts a send to hosts b, and the other way too unless one_way; connections stay as they are.

        Args:
            silent: packets are lost on the way; otherwise by a blackhole route, which connect() reports as EINVAL.
        """
        pairs = [(i, j) for i in a for j in b if i != j]
        self._cut(pairs if one_way else pairs + [(j, i) for i, j in pairs], silent)

    def heal(self) -> None:
        """End all partitions; links, rates and losses stay."""
        for i, group in itertools.groupby(sorted(self._cuts), key=lambda pair: pair[0]):
            self._ip(i, [self._cut_line("del", pair, self._cuts[pair]) for pair in group])
        self._cuts.clear()

    def link_down(self, i: int) -> None:
        """Pull the cable of host i, at the switch: nothing comes or goes, and no address or connection is lost."""
        self._ip(None, [f"link set p{range(self.count)[i]} down"])

    def link_up(self, i: int) -> None:
        """Plug the cable of host i in again."""
        self._ip(None, [f"link set p{range(self.count)[i]} up"])

    def throttle(self, i: int, bytes_per_s: float | None) -> None:
        """Limit the link of host i, each way by itself, with a queue of 100 ms; None: no more."""
        ends = ((self._netns(i), "eth0"), (self._netns(None), f"p{i}"))
        if bytes_per_s is None:
            lines = ["qdisc del dev {} root"] if i in self._throttled else []
            self._throttled.discard(i)
        else:
            rate = max(int(bytes_per_s), 1000)
            shape = f"burst {max(rate // 100, 4000)} limit {max(rate // 10, 16_000)}"
            lines = [f"qdisc replace dev {{}} root tbf rate {rate}bps {shape}"]  # bps: bytes per second, to tc
            self._throttled.add(i)
        for name, device in ends:
            _batch("tc", name, [line.format(device) for line in lines])

    def loss(self, i: int, fraction: float) -> None:
        """Drop that fraction of the IP packets that come in at host i, at random; 0: no more.

        While any host loses packets, all hosts send TCP in packets of 1,500 bytes, not in bundles of up to 64 KiB,
        which would be lost as one.

        Raises:
            OSError: the kernel has no tcx (before Linux 6.6), or bpf(2) is not permitted.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be 0 to 1, not {fraction}")
        had = bool(self._losses)
        link = _drop_link(self, i, fraction) if fraction else -1
        if i in self._losses:
            os.close(self._losses.pop(i))
        if fraction:
            self._losses[i] = link
        if had != bool(self._losses):
            segments = 1 if self._losses else 65535
            for host in range(self.count):
                # Connections read the limit again when their route is stale.
                self._ip(host, [f"link set eth0 gso_max_segs {segments}", "route flush cache"])

    def pids(self) -> list[int]:
        """Return the processes that live in the namespaces, whoever started them."""
        return _pids_in(self._nets)

    def _netns(self, i: int | None) -> str:
        return f"{self.name}-switch" if i is None else f"{self.name}-{range(self.count)[i]}"

    def _ip(self, i: int | None, lines: list[str]) -> None:
        _batch("ip", self._netns(i), lines)

    def _build(self) -> None:
        names = [self._netns(i) for i in (None, *range(self.count))]
        _batch("ip", None, [f"netns add {name}" for name in names])
        switch = [f"link add switch address {_SWITCH_MAC} type bridge", "link set switch up"]
        for i in range(self.count):
            switch += [
                f"link add p{i} type veth peer name eth0 netns {self._netns(i)}",
                f"link set p{i} addrgenmode none master switch up",
            ]
        self._ip(None, switch)
        for i in range(self.count):
            host = ["link set lo up", f"addr add {self.address(i)}/24 dev eth0", "link set eth0 addrgenmode none up"]
            self._ip(i, host)

    @staticmethod
    def _open(undo: contextlib.ExitStack, path: str) -> int:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        return fd

    @classmethod
    def _new_hostname(cls, undo: contextlib.ExitStack, name: str) -> int:
        here = os.open("/proc/thread-self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.unshare(_CLONE_NEWUTS), "unshare")
            try:
                socket.sethostname(name)
                return cls._open(undo, "/proc/thread-self/ns/uts")
            finally:
                _setns(here, _CLONE_NEWUTS)
        finally:
            os.close(here)

    def _cut(self, pairs: list[tuple[int, int]], silent: bool) -> None:
        new = sorted({pair for pair in pairs if self._cuts.get(pair) is not silent})
        for i, group in itertools.groupby(new, key=lambda pair: pair[0]):
            lines = []
            for pair in group:
                if pair in self._cuts:
                    lines.append(self._cut_line("del", pair, not silent))
                lines.append(self._cut_line("add", pair, silent))
                self._cuts[pair] = silent
            self._ip(i, lines)

    def _cut_line(self, verb: str, pair: tuple[int, int], silent: bool) -> str:
        to = self.address(pair[1])
        if not silent:
            return f"route {verb} blackhole {to}"
        if verb == "del":
            return f"neigh del {to} dev eth0"
        return f"neigh replace {to} lladdr {_SWITCH_MAC} nud permanent dev eth0"

    def _stop_losses(self) -> None:
        while self._losses:
            os.close(self._losses.popitem()[1])

    def _kill(self) -> None:
        _kill_all_in(self._nets)
        while self._processes:
            _end(self._processes.pop())

    def _delete_namespaces(self) -> None:
        made = os.listdir(_NETNS) if os.path.isdir(_NETNS) else []
        names = {self._netns(i) for i in (None, *range(self.count))}
        _batch("ip", None, [f"netns del {name}" for name in sorted(names.intersection(made))])


@functools.cache
def why_not() -> str:
    """Return why hosts cannot be made here, or "": tried for real, once."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool, path=_PATH) is None]
    if missing:
        return f"network namespaces need {' and '.join(missing)} of iproute2"
    try:
        with Hosts(1) as hosts:
            found = hosts.run(0, ["/bin/true"], timeout=10)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"network namespaces are not permitted here: {error}"
    return "" if found.returncode == 0 else f"a program in a network namespace ended with {found.returncode}"


@functools.cache
def why_no_loss() -> str:
    """Return why `Hosts.loss` cannot work here, or "": tried for real, once."""
    if why_not():
        return why_not()
    try:
        with Hosts(1) as hosts:
            hosts.loss(0, 0.5)
    except OSError as error:
        return f"packet loss needs eBPF and Linux 6.6: {error}"
    return ""


def sweep() -> None:
    """Remove what tests that were killed have left; those of living pids stay."""
    with _swept:
        for name in os.listdir(_NETNS) if os.path.isdir(_NETNS) else []:
            if _is_stale(name):
                # Another test may sweep the same at this moment.
                with contextlib.suppress(OSError, RuntimeError):
                    fd = os.open(f"{_NETNS}/{name}", os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        _kill_all_in([fd])
                    finally:
                        os.close(fd)
                    _batch("ip", None, [f"netns del {name}"])
        for name in os.listdir("/tmp"):
            if _is_stale(name):
                shutil.rmtree(f"/tmp/{name}", ignore_errors=True)


def _is_stale(name: str) -> bool:
    pid = name.removeprefix(PREFIX).partition("-")[0]
    return name.startswith(PREFIX) and pid.isdigit() and not os.path.exists(f"/proc/{pid}")


def _batch(tool: str, netns: str | None, lines: list[str]) -> None:
    if not lines:
        return
    argv = [shutil.which(tool, path=_PATH) or tool, *(["-n", netns] if netns else []), "-batch", "-"]
    text = "\n".join(lines) + "\n"
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=_TOOL_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{tool} on {netns or 'this host'} failed: {done.stderr.strip()}; of: {'; '.join(lines)}")


def _end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait(_END_S)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # what was buffered for a program that is gone
                pipe.close()


def _identities(nets: Sequence[int]) -> set[tuple[int, int] | None]:
    return {(stat.st_dev, stat.st_ino) for stat in map(os.fstat, nets)}


def _net_of(pid: int) -> tuple[int, int] | None:
    try:
        stat = os.stat(f"/proc/{pid}/ns/net")
    except OSError:  # it is gone, or a zombie, which has no namespace any more
        return None
    return stat.st_dev, stat.st_ino


def _pids_in(nets: Sequence[int]) -> list[int]:
    ours = _identities(nets)
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and _net_of(pid) in ours]


def _kill_all_in(nets: Sequence[int]) -> None:
    ours = _identities(nets)
    deadline = time.monotonic() + _END_S
    while pids := _pids_in(nets):
        if time.monotonic() >= deadline:
            raise RuntimeError(f"processes {pids} do not end after SIGKILL")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                try:
                    # Asked again now that the pid cannot pass to another process.
                    if _net_of(pid) in ours:
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                finally:
                    os.close(fd)
        time.sleep(0.005)


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _setns(fd: int, kind: int) -> None:
    _check(_libc.setns(fd, kind), "setns")


def _bpf(command: int, attr: bytes) -> int:
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(f"the number of bpf(2) on {platform.machine()} is not known here")
    buffer = ctypes.create_string_buffer(attr.ljust(_BPF_ATTR_BYTES, b"\0"), _BPF_ATTR_BYTES)
    return _check(_libc.syscall(number, command, buffer, _BPF_ATTR_BYTES), "bpf")


def _drop_link(hosts: Hosts, i: int, fraction: float) -> int:
    """Return the fd of a bpf_link that drops a fraction of the IPv4 packets into host i; ARP always passes."""

    def instruction(code: int, to: int = 0, source: int = 0, jump: int = 0, value: int = 0) -> bytes:
        return struct.pack("<BBhI", code, to | source << 4, jump, value & 0xFFFFFFFF)

    program = b"".join(
        (
            instruction(0x61, to=0, source=1, jump=16),  # w0 = skb->protocol
            instruction(0x56, to=0, jump=4, value=socket.htons(0x0800)),  # if w0 != IPv4 goto pass
            instruction(0x85, value=7),  # w0 = bpf_get_prandom_u32()
            instruction(0x36, to=0, jump=2, value=min(int(fraction * 2**32), 2**32 - 1)),  # if w0 >= value goto pass
            instruction(0xB4, to=0, value=2),  # w0 = TCX_DROP
            instruction(0x95),  # return
            instruction(0xB4, to=0, value=-1),  # pass: w0 = TCX_NEXT
            instruction(0x95),
        )
    )
    code, license_ = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"GPL")
    where = (ctypes.addressof(code), ctypes.addressof(license_))
    loaded = _bpf(_BPF_PROG_LOAD, struct.pack("<IIQQ", _BPF_PROG_TYPE_SCHED_CLS, len(program) // 8, *where))
    try:
        with hosts.inside(i):
            attr = struct.pack("<IIII", loaded, socket.if_nametoindex("eth0"), _BPF_TCX_INGRESS, 0)
            link = _bpf(_BPF_LINK_CREATE, attr)
    finally:
        os.close(loaded)
    return link
