"""The hosts of tests/hosts/namespaces.py are apart, their faults are as said, and nothing of them is left."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.hosts import namespaces
from tests.hosts.namespaces import Hosts, why_no_loss, why_not
from tests.relay import Relay

pytestmark = pytest.mark.slow

WAIT_S = 10.0
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

ECHO = """
import socket, sys, threading
def serve(connection):
    with connection:
        while chunk := connection.recv(65536):
            connection.sendall(chunk)
with socket.create_server(("0.0.0.0", 5555)) as listener:
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=listener.accept()[:1]).start()
"""


@pytest.fixture(autouse=True)
def _permitted() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
def hosts(_permitted: None) -> Iterator[Hosts]:
    with Hosts(3) as made:
        yield made
    assert left(made.name) == []


def left(name: str) -> list[str]:
    names = os.listdir("/run/netns") if os.path.isdir("/run/netns") else []
    return [found for found in names + os.listdir("/tmp") if found.startswith(f"{name}-")]


def until(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def serve_echo(hosts: Hosts, i: int) -> subprocess.Popen[str]:
    process = hosts.popen(i, [sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@contextlib.contextmanager
def call(hosts: Hosts, i: int, j: int) -> Iterator[socket.socket]:
    with hosts.inside(i):
        connection = socket.create_connection((hosts.address(j), 5555), timeout=WAIT_S)
    with connection:
        yield connection


def receive(connection: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (chunk := connection.recv(count - len(got))):
        got += chunk
    return got


def echo(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    return receive(connection, len(data))


def arrived(hosts: Hosts, i: int, j: int, count: int = 10) -> int:
    """Send datagrams from host i to host j and count those that arrive."""
    with hosts.inside(j):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with hosts.inside(i):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender, receiver:
        receiver.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE: what is lost is lost by the network
        receiver.bind((hosts.address(j), 0))
        for _ in range(count):
            with contextlib.suppress(OSError):  # a blackhole route
                sender.sendto(b"x", receiver.getsockname())
        receiver.settimeout(0.1)
        got = 0
        with contextlib.suppress(TimeoutError):
            while got < count and receiver.recv(1):
                got += 1
        return got


def ways(hosts: Hosts) -> set[tuple[int, int]]:
    pairs = [(i, j) for i in range(hosts.count) for j in range(hosts.count) if i != j]
    return {(i, j) for i, j in pairs if arrived(hosts, i, j)}


ALL = {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)}


def test_hosts_reach_each_other_and_themselves_and_not_this_machine(hosts: Hosts) -> None:
    serve_echo(hosts, 1)
    for i in range(3):
        with call(hosts, i, 1) as connection:
            assert echo(connection, b"ping") == b"ping"
    with socket.create_server(("127.0.0.1", 0)) as listener, hosts.inside(0), pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.getsockname(), timeout=1)
    assert ways(hosts) == ALL


def test_a_program_has_a_name_and_directories_of_its_host_and_its_own_pid(hosts: Hosts) -> None:
    script = (
        "import os, socket; from zmesh.runtime import rundir; print(os.getpid(), socket.gethostname(), rundir.base())"
    )
    here = socket.gethostname()
    for i in (0, 2):
        process = hosts.popen(i, [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        out, _ = process.communicate(timeout=WAIT_S)
        assert out.split() == [str(process.pid), f"host-{i}", f"{hosts.runtime(i)}/zmesh"]
    assert socket.gethostname() == here


def test_the_environment_has_no_node_of_ours_and_a_shared_configuration(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZMESH_NODE", "ours")
    with Hosts(1, config_home=tmp_path) as hosts:
        lines = hosts.run(0, ["env"], env={"ADDED": "1"}).stdout.splitlines()
    assert f"XDG_CONFIG_HOME={tmp_path}" in lines
    assert "ADDED=1" in lines
    assert not any(line.startswith("ZMESH_") for line in lines)
    assert tmp_path.exists()


def test_a_run_has_input_output_and_an_end_in_time(hosts: Hosts) -> None:
    done = hosts.run(0, ["sh", "-c", "cat; echo oops >&2; exit 3"], input="in")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in", "oops\n")
    begun = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):  # the child of the shell holds the pipes
        hosts.run(0, ["sh", "-c", "sleep 60 & sleep 60"], timeout=0.2)
    assert time.monotonic() - begun < 2


def test_a_one_way_partition_is_one_way(hosts: Hosts) -> None:
    hosts.partition([0], [1, 2], one_way=True)
    assert ways(hosts) == ALL - {(0, 1), (0, 2)}
    hosts.heal()
    assert ways(hosts) == ALL


@pytest.mark.parametrize("silent", [True, False])
def test_a_partition_is_both_ways_and_adds_to_others_until_healed(hosts: Hosts, silent: bool) -> None:
    hosts.partition([0], [1], one_way=True)
    hosts.partition([0], [1], silent=silent)
    hosts.partition([0], [1], silent=silent)
    assert ways(hosts) == ALL - {(0, 1), (1, 0)}
    hosts.partition([2], [0, 1, 2], silent=silent)
    assert ways(hosts) == set()
    hosts.heal()
    hosts.heal()
    assert ways(hosts) == ALL


def test_a_silent_partition_is_a_timeout_and_a_blackhole_an_error_at_once(hosts: Hosts) -> None:
    for silent, error in ((True, TimeoutError), (False, OSError)):
        hosts.partition([0], [1], silent=silent)
        with hosts.inside(0), pytest.raises(error) as raised:
            socket.create_connection((hosts.address(1), 5555), timeout=0.3)
        assert silent or not isinstance(raised.value, TimeoutError)


@pytest.mark.parametrize("silent", [True, False])
def test_a_connection_survives_a_partition(hosts: Hosts, silent: bool) -> None:
    serve_echo(hosts, 1)
    with call(hosts, 0, 1) as connection:
        assert echo(connection, b"before") == b"before"
        hosts.partition([0], [1], silent=silent)
        connection.sendall(b"during")
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        hosts.heal()
        connection.settimeout(WAIT_S)
        assert receive(connection, 6) == b"during"


def test_a_pulled_cable_is_silent_and_can_be_plugged_in_again(hosts: Hosts) -> None:
    serve_echo(hosts, 1)
    with call(hosts, 0, 1) as connection:
        assert echo(connection, b"before") == b"before"
        hosts.partition([1], [2], one_way=True)
        hosts.link_down(1)
        assert ways(hosts) == {(0, 2), (2, 0)}
        connection.sendall(b"during")
        hosts.link_up(1)
        assert receive(connection, 6) == b"during"
    assert until(lambda: ways(hosts) == ALL - {(1, 2)})


@pytest.mark.parametrize("throttled", [0, 1])
def test_a_throttled_link_holds_its_rate_each_way_until_it_is_free(hosts: Hosts, throttled: int) -> None:
    serve_echo(hosts, 1)
    data, rate = bytes(400_000), 500_000

    def seconds() -> float:
        with call(hosts, 0, 1) as connection:
            begun = time.monotonic()
            sender = threading.Thread(target=connection.sendall, args=(data,))
            sender.start()
            assert receive(connection, len(data)) == data
            sender.join()
            return time.monotonic() - begun

    assert seconds() < 0.4
    hosts.throttle(throttled, rate)
    hosts.throttle(throttled, rate)
    assert 0.7 < seconds() * rate / len(data) < 2
    hosts.throttle(throttled, None)
    hosts.throttle(throttled, None)
    assert seconds() < 0.4


def test_the_rate_given_at_the_start_holds_for_all() -> None:
    with Hosts(2, rate=100_000) as hosts:
        for i in range(2):
            assert "tbf" in hosts.run(i, ["tc", "qdisc", "show", "dev", "eth0"]).stdout


def test_the_lost_fraction_is_lost_at_the_receiver_only() -> None:
    if reason := why_no_loss():
        pytest.skip(reason)
    with Hosts(2) as hosts:
        hosts.loss(0, 0.9)
        hosts.loss(0, 0.2)
        assert 720 <= arrived(hosts, 1, 0, 1000) <= 880
        assert arrived(hosts, 0, 1, 1000) == 1000
        hosts.loss(0, 1.0)
        assert arrived(hosts, 1, 0, 1000) == 0
        hosts.loss(0, 0)
        assert arrived(hosts, 1, 0, 1000) == 1000


def test_tcp_gets_through_loss_in_packets_of_ethernet_size() -> None:
    if reason := why_no_loss():
        pytest.skip(reason)
    with Hosts(2) as hosts:
        serve_echo(hosts, 1)
        with call(hosts, 0, 1) as connection:
            hosts.loss(1, 0.05)

            def packets() -> int:
                with hosts.inside(1):
                    rows = pathlib.Path("/proc/thread-self/net/dev").read_text().splitlines()
                return next(int(row.split()[2]) for row in rows if "eth0:" in row)

            before = packets()
            data = os.urandom(200_000)
            assert echo(connection, data) == data
            assert packets() - before > len(data) / 1500


def test_a_relay_can_live_on_a_host(hosts: Hosts) -> None:
    serve_echo(hosts, 1)
    with hosts.inside(0):
        relay = Relay(hosts.address(1), 5555)
    with relay, hosts.inside(0), socket.create_connection((relay.host, relay.port), timeout=WAIT_S) as connection:
        assert echo(connection, b"ping") == b"ping"


def test_nothing_is_left_after_close_also_when_the_body_raises() -> None:
    fds, names = len(os.listdir("/proc/self/fd")), []
    daemon = "import os, time; os.fork() or os.setsid() or os.fork() or time.sleep(600); os._exit(0)"

    def body() -> None:
        with Hosts(2) as hosts:
            names.append(hosts.name)
            names.append(hosts.directory)
            serve_echo(hosts, 0)
            stubborn = "trap '' TERM INT HUP; echo ready; while :; do sleep 1; done"
            hosts.popen(1, ["sh", "-c", stubborn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            hosts.run(1, [sys.executable, "-c", daemon], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            hosts.partition([0], [1])
            hosts.link_down(0)
            if not why_no_loss():
                hosts.loss(0, 0.5)
            assert until(lambda: len(hosts.pids()) >= 3)
            pids.extend(hosts.pids())
            raise ZeroDivisionError

    pids: list[int] = []
    why_no_loss()
    with pytest.raises(ZeroDivisionError):
        body()
    assert left(names[0]) == []
    assert not os.path.exists(names[1])
    assert len(os.listdir("/proc/self/fd")) == fds
    assert until(lambda: not any(_lives(pid) for pid in pids))


def _lives(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_nothing_is_left_when_the_start_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(left(f"zmt-{os.getpid()}"))

    def fail(*_: object) -> None:
        raise RuntimeError("no tbf")

    monkeypatch.setattr(Hosts, "throttle", fail)
    with pytest.raises(RuntimeError, match="no tbf"):
        Hosts(2, rate=1e6)
    assert set(left(f"zmt-{os.getpid()}")) == before


def test_what_a_killed_test_leaves_is_swept_by_the_next() -> None:
    script = """
import sys, time
from tests.hosts.namespaces import Hosts
hosts = Hosts(2)
program = hosts.popen(1, ["sleep", "600"])
print(hosts.name, program.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout is not None
        name, pid = test.stdout.readline().split()
        namespaces.sweep()
        assert len(left(name)) == 4  # a living test is let alone
        test.send_signal(signal.SIGKILL)
    assert left(name)
    namespaces.sweep()
    assert left(name) == []
    assert until(lambda: not _lives(int(pid)))


def test_two_at_a_time_do_not_meet() -> None:
    with Hosts(2) as one, Hosts(2) as other:
        assert one.address(0) != other.address(0)
        with other.inside(0):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender, pytest.raises(OSError, match="unreachable"):
            sender.sendto(b"x", (one.address(0), 5555))
        assert ways(one) == ways(other) == {(0, 1), (1, 0)}
