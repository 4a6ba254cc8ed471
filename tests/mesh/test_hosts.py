"""Several nodes on one machine, each a host of its own to the others: real processes, TCP and CURVE on loopback."""

import base64
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import pytest
from zmq.utils import z85

import zmesh
from tests.relay import Relay
from zmesh import keys, lifecycle
from zmesh.runtime.keyring import Keyring, keyring_path
from zmesh.runtime.machine import _free
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy

ZMESH = [os.path.join(os.path.dirname(sys.executable), "zmesh")]

Start = Callable[..., lifecycle.RunningNode]


class Nodes:
    """Nodes of one mesh on this machine."""

    def __init__(self) -> None:
        self.all: list[lifecycle.RunningNode] = []

    def start(self, **settings: Any) -> lifecycle.RunningNode:
        """Start one more; it joins the first, unless told otherwise."""
        if self.all and "join" not in settings:
            settings["join"] = [lifecycle.parse_address(self.all[0].address)]
        settings = {"num_cpus": 1, "store_bytes": 1 << 28} | settings
        node = lifecycle.start(f"n{len(self.all)}", settings)
        self.all.append(node)
        return node

    def await_members(self, node: lifecycle.RunningNode, count: int, seconds: float = 5.0) -> list[dict[str, Any]]:
        """Wait until a node knows so many living members."""
        deadline = time.monotonic() + seconds
        while True:
            members = lifecycle.status(node.name)["members"]
            living = [member for member in members if member["state"] in ("alive", "suspect")]
            if len(living) == count:
                return members
            assert time.monotonic() < deadline, members
            time.sleep(0.02)

    def close(self) -> None:
        """Stop all at once: each takes a second to say goodbye. None may have crashed: who ends well leaves no log."""

        def stop(node: lifecycle.RunningNode) -> None:
            with contextlib.suppress(zmesh.exceptions.NotRunningError):
                lifecycle.stop(node.name)

        with ThreadPoolExecutor(max(1, len(self.all))) as pool:
            list(pool.map(stop, self.all))
        logs = [log.read_text() for log in pathlib.Path(os.environ["XDG_RUNTIME_DIR"]).glob("zmesh/*/log")]
        assert not [log for log in logs if "Traceback" in log]


@pytest.fixture
def nodes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        directory = tmp_path / name[4:7].lower()
        directory.mkdir(mode=0o700)
        monkeypatch.setenv(name, str(directory))
    made = Nodes()
    yield made
    zmesh.shutdown()
    made.close()


@zmesh.remote
def where(seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return zmesh.get_runtime_context().get_node_id()


@zmesh.remote
def ones(count: int) -> Any:
    return numpy.ones(count), zmesh.get_runtime_context().get_node_id()


@zmesh.remote
def total(array: Any) -> tuple[float, str]:
    return float(array.sum()), zmesh.get_runtime_context().get_node_id()


def on(node: lifecycle.RunningNode, **options: Any) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.id), **options}


def test_a_backlog_is_worked_off_by_all_nodes(nodes: Nodes) -> None:
    made = [nodes.start() for _ in range(3)]
    nodes.await_members(made[0], 3)
    zmesh.init(made[0].name)
    found = zmesh.get([where.remote(0.05) for _ in range(60)])
    counts = {node.id: found.count(node.id) for node in made}
    assert min(counts.values()) >= 8, counts


def test_nodes_that_start_at_once_choose_ports_of_their_own(nodes: Nodes) -> None:
    def start(name: str) -> lifecycle.RunningNode:
        return lifecycle.start(name, {"num_cpus": 1, "store_bytes": 1 << 26})

    with ThreadPoolExecutor(4) as pool:
        nodes.all += pool.map(start, "abcd")
    assert len({node.address for node in nodes.all}) == 4


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_a_mesh_on_ipv6(nodes: Nodes) -> None:
    a = nodes.start(host="::1")
    assert a.address.startswith("[::1]:")
    b = nodes.start(host="::1", join=[lifecycle.parse_address(a.address)])
    nodes.await_members(a, 2)
    nodes.await_members(b, 2)
    zmesh.init(a.name)
    assert zmesh.get(where.options(**on(b)).remote()) == b.id
    array, maker = zmesh.get(ones.options(**on(b)).remote(1_000_000))
    assert (array.sum(), maker) == (1_000_000, b.id)
    assert zmesh.get(total.options(**on(b)).remote(numpy.ones(500_000))) == (500_000.0, b.id)
    zmesh.shutdown()
    zmesh.init(b.address)
    assert zmesh.get(where.options(**on(a)).remote()) == a.id
    for node in (b.name, b.address):
        for words in (["status"], ["doctor"]):
            told = subprocess.run([*ZMESH, *words, "--node", node], capture_output=True, text=True, check=True)
            assert f" {a.address}" in told.stdout
            assert f" {b.address}" in told.stdout


def test_status_is_json_on_every_member_and_tells_the_same_of_each(nodes: Nodes) -> None:
    made = [nodes.start(resources={"disk": 2}) for _ in range(3)]
    for node in made:
        nodes.await_members(node, 3)
    zmesh.init(made[0].name)
    assert zmesh.get(where.options(**on(made[1])).remote()) == made[1].id

    def told(node: lifecycle.RunningNode) -> dict[str, Any]:
        done = subprocess.run([*ZMESH, "status", "--json", "--node", node.name], capture_output=True, check=True)
        members = json.loads(done.stdout)["members"]
        return {member["node"]: [member[key] for key in ("state", "address", "total", "store")] for member in members}

    deadline = time.monotonic() + 10
    while any(told(node) != told(made[0]) or not all(row[3] for row in told(node).values()) for node in made):
        assert time.monotonic() < deadline, [told(node) for node in made]
    for row in lifecycle.status(made[2].name)["members"]:
        assert row["store"][1] == 1 << 28
        assert row["total"]["disk"] == 2
        assert row["available"]["CPU"] <= 1
        assert (row["version"], row["python"]) == (zmesh.__version__, ".".join(map(str, sys.version_info[:3])))
        assert row["workers"] >= 0
        assert row["backlog"] == 0


def test_a_node_that_was_killed_comes_back_under_its_address(nodes: Nodes) -> None:
    a, b = nodes.start(), nodes.start()
    nodes.await_members(a, 2)
    os.kill(b.pid, signal.SIGKILL)
    port = lifecycle.parse_address(b.address)[1]
    again = nodes.start(port=port)
    assert (again.address, again.id == b.id) == (b.address, False)
    nodes.await_members(a, 2)
    zmesh.init(a.name)
    assert zmesh.get(where.options(**on(again)).remote()) == again.id
    shown = subprocess.run([*ZMESH, "status", "--node", a.name], capture_output=True, text=True, check=True).stdout
    assert shown.count(again.address) == 1, shown
    _await_health(a, 2)
    zmesh.shutdown()
    lifecycle.stop(again.name)
    _await_health(a, 1)


def test_a_program_that_looks_at_a_node_keeps_its_own_session(nodes: Nodes) -> None:
    node = nodes.start()
    zmesh.init(node.name)
    for name in (node.name, node.address):
        assert lifecycle.status(name)["node"] == node.id
        assert zmesh.get(zmesh.get(zmesh.put([zmesh.put(1)]))) == [1]


def _await_health(node: lifecycle.RunningNode, members: int) -> None:
    """Wait until `zmesh doctor` finds that so many members reach each other, and nothing to complain of."""
    deadline = time.monotonic() + 15
    while True:
        told = subprocess.run([*ZMESH, "doctor", "--node", node.name], capture_output=True, text=True, check=False)
        if told.returncode == 0 and told.stdout.count("reaches all others") == members:
            return
        assert time.monotonic() < deadline, told.stdout + told.stderr


def test_every_node_shows_the_same_mesh(nodes: Nodes) -> None:
    made = [nodes.start(labels={"zone": str(index)}) for index in range(3)]
    for node in made:
        members = nodes.await_members(node, 3)
        assert sorted(member["name"] for member in members) == ["n0", "n1", "n2"]
        assert {member["address"] for member in members} == {one.address for one in made}
        assert all(member["version"] == zmesh.__version__ for member in members)


def test_a_task_goes_to_the_node_or_the_label_it_names(nodes: Nodes) -> None:
    made = [nodes.start(labels={"zone": str(index)}) for index in range(3)]
    nodes.await_members(made[0], 3)
    zmesh.init(made[0].name)
    for node in made:
        assert zmesh.get(where.options(**on(node)).remote()) == node.id
    labelled = where.options(scheduling_strategy=NodeLabelSchedulingStrategy(hard={"zone": "2"}))
    assert zmesh.get(labelled.remote()) == made[2].id
    for text, index in (("!in(0,1)", 2), ("in(1,9)", 1)):
        assert zmesh.get(where.options(label_selector={"zone": text}).remote()) == made[index].id
    wished = where.options(scheduling_strategy=NodeAffinitySchedulingStrategy("00" * 8, soft=True))
    assert zmesh.get(wished.remote()) in [node.id for node in made]
    with pytest.raises(zmesh.exceptions.TaskUnschedulableError, match="node:00"):
        zmesh.get(where.options(scheduling_strategy=NodeAffinitySchedulingStrategy("00" * 8)).remote())


def test_spread_tasks_run_on_every_node(nodes: Nodes) -> None:
    made = [nodes.start(num_cpus=3) for _ in range(3)]
    nodes.await_members(made[0], 3)
    zmesh.init(made[0].name)
    found = zmesh.get([where.options(scheduling_strategy="SPREAD").remote(1.0) for _ in range(3)])
    assert sorted(found) == sorted(node.id for node in made)


def test_arrays_cross_hosts_as_results_and_as_arguments(nodes: Nodes) -> None:
    a, b = nodes.start(), nodes.start()
    nodes.await_members(a, 2)
    zmesh.init(a.name)
    array, maker = zmesh.get(ones.options(**on(b)).remote(1_000_000))
    assert maker == b.id
    assert array.sum() == 1_000_000
    assert not array.flags.writeable
    mine = zmesh.put(numpy.arange(1_000_000.0))
    assert zmesh.get(total.options(**on(b)).remote(mine)) == (499999500000.0, b.id)
    assert zmesh.get(total.options(**on(b)).remote(numpy.ones(500_000))) == (500_000.0, b.id)
    there = ones.options(**on(b)).remote(300_000)
    with pytest.raises(zmesh.exceptions.TaskError):  # a tuple has no sum
        zmesh.get(total.options(**on(a)).remote(there))


def test_refs_inside_values_work_from_any_host(nodes: Nodes) -> None:
    a, b = nodes.start(), nodes.start()
    nodes.await_members(a, 2)
    zmesh.init(a.name)

    @zmesh.remote
    def opened(box: list[Any]) -> float:
        return float(sum(numpy.sum(one) for one in zmesh.get(box)))

    @zmesh.remote
    def boxed() -> list[Any]:
        return [zmesh.put(numpy.ones(200_000)), zmesh.put("small")]

    large, small = zmesh.put(numpy.ones(200_000)), zmesh.put(numpy.ones(3))
    assert zmesh.get(opened.options(**on(b)).remote([large, small])) == 200_003.0
    box = zmesh.get(boxed.options(**on(b)).remote())
    values = zmesh.get(box)
    assert values[0].sum() == 200_000
    assert values[1] == "small"


def test_tasks_of_tasks_streams_and_cancels_cross_hosts(nodes: Nodes) -> None:
    a, b = nodes.start(num_cpus=2), nodes.start(num_cpus=2)
    nodes.await_members(a, 2)
    zmesh.init(a.name)

    @zmesh.remote
    def parent() -> list[str]:
        return list(zmesh.get([where.remote(0.1) for _ in range(8)]))

    assert len(zmesh.get(parent.options(**on(b)).remote())) == 8

    @zmesh.remote
    def count(limit: int) -> Iterator[int]:
        yield from range(limit)

    stream = count.options(num_returns="streaming", **on(b)).remote(5)
    assert [zmesh.get(ref) for ref in stream] == [0, 1, 2, 3, 4]
    long = where.options(**on(b)).remote(60)
    time.sleep(0.3)
    zmesh.cancel(long)
    with pytest.raises(zmesh.exceptions.TaskCancelledError):
        zmesh.get(long, timeout=5)


def test_a_node_that_is_killed_is_missed_and_its_tasks_run_elsewhere(nodes: Nodes) -> None:
    made = [nodes.start() for _ in range(3)]
    nodes.await_members(made[0], 3)
    zmesh.init(made[0].name)
    refs = [where.remote(0.1) for _ in range(60)]
    time.sleep(0.8)
    os.kill(made[1].pid, signal.SIGKILL)
    killed = time.monotonic()
    nodes.await_members(made[0], 2, seconds=3.0)
    assert time.monotonic() - killed < 3.0
    found = zmesh.get(refs, timeout=20)
    assert len(found) == 60
    assert set(found) <= {node.id for node in made}


def test_the_node_that_was_joined_through_may_die_and_others_join_the_rest(nodes: Nodes) -> None:
    made = [nodes.start() for _ in range(2)]
    nodes.await_members(made[1], 2)
    os.kill(made[0].pid, signal.SIGKILL)
    third = nodes.start(join=[lifecycle.parse_address(made[1].address)])
    nodes.await_members(third, 2, seconds=5.0)
    nodes.await_members(made[1], 2, seconds=5.0)


def test_a_driver_that_is_killed_leaves_no_worker_on_other_nodes(nodes: Nodes) -> None:
    a, b = nodes.start(), nodes.start()
    nodes.await_members(a, 2)
    script = (
        "import time, zmesh\n"
        f"zmesh.init({a.name!r})\n"
        "@zmesh.remote\n"
        "def hang(): time.sleep(60)\n"
        "refs = [hang.remote() for _ in range(4)]\n"
        "time.sleep(1.5); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"ready\n"
        assert [w["state"] for w in lifecycle.status(b.name)["workers"]] == ["attached"]
        driver.kill()
    deadline = time.monotonic() + 10
    while lifecycle.status(b.name)["workers"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_prints_and_errors_of_far_tasks_reach_the_driver(nodes: Nodes, capfd: pytest.CaptureFixture[str]) -> None:
    a, b = nodes.start(), nodes.start()
    nodes.await_members(a, 2)
    zmesh.init(a.name)

    @zmesh.remote
    def shout() -> None:
        print("hello from afar")
        raise KeyError("far")

    with pytest.raises(KeyError) as caught:
        zmesh.get(shout.options(max_retries=0, **on(b)).remote())
    assert isinstance(caught.value, zmesh.exceptions.TaskError)
    deadline = time.monotonic() + 5
    text = ""
    while "hello from afar" not in text:
        assert time.monotonic() < deadline
        zmesh.get(where.remote())
        text += capfd.readouterr().out
    assert "(test_prints" in text


def test_joining_needs_the_key(nodes: Nodes, tmp_path: pathlib.Path) -> None:
    first = nodes.start()
    seed = [lifecycle.parse_address(first.address)]
    with pytest.raises(zmesh.exceptions.ConfigError, match="there is no key"):
        nodes.start(join=seed, key_file=str(tmp_path / "none.json"))
    keys.create(str(tmp_path / "other.json"))
    with pytest.raises(zmesh.exceptions.ConfigError, match=r"no member took us in.*has another key"):
        nodes.start(join=seed, key_file=str(tmp_path / "other.json"))
    assert json.loads(json.dumps(nodes.await_members(first, 1)))[0]["node"] == first.id


@zmesh.remote(max_retries=0)
def noted(path: str, index: int) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\n" % index)
    os.close(fd)
    time.sleep(0.002)
    return index


@pytest.mark.slow
def test_cutting_connections_under_load_loses_and_doubles_nothing(nodes: Nodes, tmp_path: pathlib.Path) -> None:
    """Everything that reaches the second node passes a relay, which cuts and resets connections all the while."""
    first = nodes.start()
    base = next(port for port in range(21000, 29000, 10) if _free("127.0.0.1", port))
    outer = next(port for port in range(base + 10, 29000, 10) if _free("127.0.0.1", port))
    with contextlib.ExitStack() as stack:
        relays = [stack.enter_context(Relay("127.0.0.1", base + part, port=outer + part)) for part in range(3)]
        second = nodes.start(port=base, advertise=f"127.0.0.1:{outer}")
        nodes.await_members(first, 2)
        zmesh.init(first.name)
        log = tmp_path / "log"
        refs = [noted.remote(str(log), index) for index in range(3000)]
        arrays = [ones.options(**on(second)).remote(300_000) for _ in range(5)]
        end = time.monotonic() + 8.0
        turn = 0
        while time.monotonic() < end:
            time.sleep(0.15)
            (relays[0].reset if turn % 2 else relays[0].cut)()
            if turn % 5 == 0:
                relays[2].reset()
            turn += 1
        assert zmesh.get(refs, timeout=60) == list(range(3000))
        assert all(array.sum() == 300_000 for array, _ in zmesh.get(arrays, timeout=60))
        written = sorted(int(line) for line in log.read_text().split())
        assert written == list(range(3000)), "each ran once"
        assert relays[0].connections > 10
        assert len(lifecycle.status(first.name)["members"]) == 2
        zmesh.shutdown()
        nodes.close()


@pytest.mark.slow
def test_the_key_is_changed_while_work_goes_on(nodes: Nodes, tmp_path: pathlib.Path) -> None:
    files = [str(tmp_path / f"{name}.json") for name in "abc"]
    keys.create(files[0])
    for path in files[1:]:
        keys.import_text(keys.export(files[0]), path)
    first = nodes.start(key_file=files[0])
    second = nodes.start(key_file=files[1])
    nodes.await_members(first, 2)
    zmesh.init(first.name)
    refs = [where.remote(0.02) for _ in range(600)]
    rotated = keys.rotate(files[0])
    time.sleep(3)
    assert {member["key"] for member in lifecycle.status(first.name)["members"]} == {rotated.ids[1]}
    keys.import_text(keys.export(files[0]), files[1])

    def changed() -> bool:
        return all(
            {member["key"] for member in lifecycle.status(node.name)["members"]} == {rotated.ids[0]}
            for node in (first, second)
        )

    deadline = time.monotonic() + 10
    while not changed():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for path in files[:2]:
        keys.rotate(path, finish=True)
    found = zmesh.get(refs, timeout=60)
    assert len(set(found)) == 2
    time.sleep(3)
    assert len(set(zmesh.get([where.remote(0.05) for _ in range(60)], timeout=60))) == 2
    assert all(len(nodes.await_members(node, 2)) == 2 for node in (first, second))
    with pytest.raises(zmesh.exceptions.ConfigError, match="another key"):
        nodes.start(key_file=files[2], join=[lifecycle.parse_address(first.address)])


def _listening(pids: list[int]) -> list[str]:
    """Return the addresses on which these processes accept TCP connections, in hexadecimal, as the kernel tells."""
    inodes = {}
    for pid in pids:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if target.startswith("socket:["):
                    inodes[target[8:-1]] = True
    found = []
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.append(fields[1])
    return sorted(found)


def _family(pid: int) -> list[int]:
    """Return a process and all that came of it."""
    found = [pid]
    for one in found:
        for thread in os.listdir(f"/proc/{one}/task"):
            found += [int(child) for child in pathlib.Path(f"/proc/{one}/task/{thread}/children").read_text().split()]
    return found


def test_by_default_a_node_listens_on_loopback_alone_and_shows_no_secret(nodes: Nodes) -> None:
    node = nodes.start()
    second = nodes.start()
    nodes.await_members(node, 2)
    zmesh.init(node.name)
    zmesh.get([where.remote(0.05) for _ in range(20)])
    pids = [pid for one in (node, second) for pid in _family(one.pid)]
    assert len(pids) >= 6
    ports = [int(one.address.rpartition(":")[2]) for one in (node, second)]
    expected = sorted(f"0100007F:{port + part:04X}" for port in ports for part in range(3))
    assert _listening(pids) == expected
    ring = Keyring.load(keyring_path())
    secrets = [key.secret.reveal() for key in ring.keys]
    secrets += [key.server_secret.reveal() for key in ring.keys] + [key.client_secret.reveal() for key in ring.keys]
    shown = [form for secret in secrets for form in (secret, secret.hex().encode(), base64.b64encode(secret))]
    shown += [z85.encode(secret) for secret in secrets]
    seen = b""
    for pid in pids:
        seen += pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() + pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    for directory, _, names in os.walk(os.environ["XDG_RUNTIME_DIR"]):
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path):
                seen += pathlib.Path(path).read_bytes()
    seen += json.dumps(lifecycle.status(node.name)).encode()
    assert len(seen) > 1000
    assert not [form for form in shown if form in seen]


def test_a_private_node_listens_on_no_port() -> None:
    zmesh.init("local", num_cpus=1)
    pid = zmesh.status()["pid"]
    assert _listening(_family(pid)) == []
    zmesh.shutdown()


def test_arguments_are_never_unpickled_in_a_node(nodes: Nodes, tmp_path: pathlib.Path) -> None:
    a, b = nodes.start(), nodes.start()
    nodes.await_members(a, 2)
    zmesh.init(a.name)
    log = tmp_path / "pids"

    class Bomb:
        def __reduce__(self) -> Any:
            code = f"open({str(log)!r}, 'a').write(str(__import__('os').getpid()) + ' ')"
            return eval, (code,)

    @zmesh.remote
    def take(value: Any) -> int:
        return os.getpid()

    workers = {zmesh.get(take.options(**on(node)).remote([Bomb()])) for node in (a, b) for _ in range(2)}
    unpickled = {int(pid) for pid in log.read_text().split()}
    assert unpickled <= workers
    assert not unpickled & {a.pid, b.pid}


def test_doctor_says_who_reaches_whom_and_why_not(nodes: Nodes) -> None:
    made = [nodes.start() for _ in range(3)]
    nodes.await_members(made[0], 3)
    nodes.await_members(made[2], 3)
    command = [*ZMESH, "doctor", "--node", made[0].name]
    well = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert well.returncode == 0, well.stdout
    assert well.stdout.count("reaches all others") == 3
    os.kill(made[1].pid, signal.SIGKILL)
    nodes.await_members(made[0], 2)
    ill = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ill.returncode == 1
    assert f"{made[1].address}: \n  does not answer us: it is dead" in ill.stdout.replace(":\n", ": \n")


@zmesh.remote
def summed(box: list[Any]) -> tuple[float, str]:
    return float(numpy.sum(zmesh.get(box[0]))), zmesh.get_runtime_context().get_node_id()


@zmesh.remote
def count_up(count: int) -> Any:
    return numpy.arange(count)


def test_results_that_lay_on_a_node_that_goes_down_are_there_for_owner_and_borrower(nodes: Nodes) -> None:
    a, b, c = (nodes.start() for _ in range(3))
    nodes.await_members(a, 3)
    zmesh.init(a.name)
    own, shared, borrowed = (count_up.options(**on(b)).remote(125_000) for _ in range(3))
    zmesh.wait([own, shared, borrowed], num_returns=3, timeout=10)
    expected = 125_000 * 124_999 / 2
    before = summed.options(**on(c)).remote([borrowed])  # counted by the owner's node from now on
    assert zmesh.get(before) == (expected, c.id)
    told = lifecycle.stop(b.name)
    assert (told.moved, told.lost, told.notes) == (3, 0, [])
    nodes.await_members(a, 2)
    nodes.await_members(c, 2)
    assert zmesh.get(own).sum() == expected
    assert zmesh.get(total.options(**on(c)).remote(own)) == (expected, c.id)
    assert zmesh.get(summed.options(**on(c)).remote([borrowed])) == (expected, c.id)
    assert zmesh.get(summed.options(**on(c)).remote([shared])) == (expected, c.id)
    assert zmesh.get(summed.options(**on(a)).remote([shared])) == (expected, a.id)
    lifecycle.stop(c.name)
    nodes.await_members(a, 1)
    assert zmesh.get(summed.remote([borrowed])) == (expected, a.id)


def test_what_a_node_that_goes_down_counted_for_others_is_told_as_lost(nodes: Nodes) -> None:
    a, b = nodes.start(), nodes.start()
    nodes.await_members(a, 2)
    zmesh.init(a.name)

    @zmesh.remote
    def boxed() -> list[Any]:
        return [zmesh.put(numpy.ones(200_000)), zmesh.put("small")]

    box = zmesh.get(boxed.options(**on(b)).remote())
    result = ones.options(**on(b)).remote(200_000)
    zmesh.wait([result], timeout=10)
    done = subprocess.run([*ZMESH, "down", "--node", b.name], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "1 object(s) that lay there alone were copied" in done.stdout
    assert "zmesh: 2 object(s) are lost" in done.stderr
    assert "belong to programs of this node" in done.stderr
    assert zmesh.get(result)[0].sum() == 200_000
    with pytest.raises(zmesh.exceptions.ObjectLostError):
        zmesh.get(box[1])


def test_an_object_that_finds_no_room_elsewhere_is_told_as_lost(nodes: Nodes) -> None:
    a, b = nodes.start(store_bytes=8 << 20), nodes.start()
    nodes.await_members(a, 2)
    zmesh.init(a.name)
    fits, too_large = count_up.options(**on(b)).remote(100_000), count_up.options(**on(b)).remote(4_000_000)
    zmesh.wait([fits, too_large], num_returns=2, timeout=10)
    told = lifecycle.stop(b.name)
    assert (told.moved, told.lost) == (1, 1)
    assert f"could not be moved to node {a.id}" in told.notes[0]
    assert "do not fit into the store of this host" in told.notes[0]
    assert len(zmesh.get(fits)) == 100_000
    with pytest.raises(zmesh.exceptions.ObjectLostError):
        zmesh.get(too_large)


@pytest.mark.slow
def test_a_node_killed_while_it_leaves_takes_no_more_with_it_than_what_lay_there(nodes: Nodes) -> None:
    a, b = nodes.start(store_bytes=1 << 30), nodes.start(store_bytes=1 << 30)
    nodes.await_members(a, 2)
    zmesh.init(a.name)
    refs = [count_up.options(**on(b)).remote(1 << 22) for _ in range(12)]
    zmesh.wait(refs, num_returns=len(refs), timeout=60)
    os.kill(b.pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while lifecycle.status(a.name)["copies"] < 3:
        assert time.monotonic() < deadline
    os.kill(b.pid, signal.SIGKILL)
    nodes.await_members(a, 1)
    found = 0
    for ref in refs:
        with contextlib.suppress(zmesh.exceptions.ObjectLostError):
            assert zmesh.get(ref, timeout=20)[-1] == (1 << 22) - 1
            found += 1
    assert zmesh.get(where.remote()) == a.id
    del refs
    assert found < 12, "it was killed in time"


@pytest.mark.slow
def test_a_member_that_never_answers_holds_up_the_leaver_for_a_while_only(nodes: Nodes) -> None:
    a, b, c = (nodes.start() for _ in range(3))
    nodes.await_members(a, 3)
    nodes.await_members(b, 3)
    zmesh.init(a.name)
    result = ones.options(**on(b)).remote(200_000)
    zmesh.wait([result], timeout=10)
    os.kill(c.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        told = lifecycle.stop(b.name)
        took = time.monotonic() - started
    finally:
        os.kill(c.pid, signal.SIGKILL)
    assert told.moved == 1
    assert took < 35, took
    assert zmesh.get(result)[0].sum() == 200_000


@pytest.mark.slow
def test_a_program_that_never_answers_is_told_and_a_second_signal_ends_the_wait(nodes: Nodes) -> None:
    a, b = nodes.start(), nodes.start()
    nodes.await_members(a, 2)
    script = f"import time, zmesh; zmesh.init({a.name!r}); print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"ready\n"
        driver.send_signal(signal.SIGSTOP)
        with subprocess.Popen(
            [*ZMESH, "down", "--node", b.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as down:
            assert down.stderr is not None
            with pytest.raises(subprocess.TimeoutExpired):
                down.wait(timeout=2)
            os.kill(b.pid, signal.SIGTERM)
            assert down.wait(timeout=5) == 0
            assert f"node {a.id} did not say whether it has all it needs".encode() in down.stderr.read()
        driver.kill()
