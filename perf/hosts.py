"""What another host costs: a no-op task there and here, tasks a second, 1 GB from host to host, an idle node.

    .venv/bin/python -m perf.hosts [--rounds N] [--peers PYTHON]

Two hosts are network namespaces of this machine, joined by a bridge (tests/hosts/namespaces.py), which it needs the
right to make. In the same run, between the same namespaces: a raw DEALER/ROUTER echo with CURVE, and a plain pyzmq
transfer of 1 GB in chunks of 1 MiB with the same security. Bytes are random, so that nothing is gained by compressing
them. `--peers` names an interpreter that can import distributed
and ray, which are then asked the same (hosts_peers.py). Prints medians; docs/performance.md has them.
"""

import argparse
import os
import statistics
import sys
import time

from perf import hosts_peers
from tests.hosts.cluster import Cluster
from tests.hosts.namespaces import why_not

KEYS = """
import sys, time, numpy as np, zmq
from zmesh.runtime.curve import Gate, curve_keys, secure_client, secure_server
keys = curve_keys("k", b"s" * 32, b"c" * 32)
context = zmq.Context()
"""
ECHO = """
gate = Gate(context)
gate.accepted = {keys.client_raw: "k"}
router = context.socket(zmq.ROUTER)
router.sndhwm = 64
secure_server(router, keys)
router.bind(f"tcp://{sys.argv[1]}:27800")
data = memoryview(np.ones(1 << 30, dtype=np.uint8))
poller = zmq.Poller()
poller.register(router, 1)
poller.register(gate.fileno(), 1)
print("ready", flush=True)
while True:
    poller.poll()
    gate.serve()
    while router.poll(0):
        who, word = router.recv_multipart()
        if word == b"ping":
            router.send_multipart([who, word])
        else:
            at = int(word)
            router.send(who, zmq.SNDMORE)
            router.send(word, zmq.SNDMORE)
            router.send(data[at : at + (1 << 20)], copy=False)
"""
RAW = """
import json
dealer = context.socket(zmq.DEALER)
dealer.rcvhwm = 64
secure_client(dealer, keys)
dealer.connect(f"tcp://{sys.argv[1]}:27800")
times = []
for _ in range(3000):
    start = time.perf_counter()
    dealer.send(b"ping")
    dealer.recv()
    times.append(time.perf_counter() - start)
place = memoryview(np.ones(1 << 30, dtype=np.uint8))
for _ in range(2):
    start, asked, got = time.perf_counter(), 0, 0
    while got < 1024:
        while asked < 1024 and asked - got < 16:
            dealer.send(str(asked << 20).encode())
            asked += 1
        at = int(dealer.recv())
        dealer.recv_into(place[at : at + (1 << 20)])
        got += 1
    taken = time.perf_counter() - start
print(json.dumps([sorted(times)[1500], (1 << 30) / taken]))
"""
TASKS = """
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy
@zmesh.remote
def nothing(): pass
f = nothing.options(scheduling_strategy=NodeAffinitySchedulingStrategy(TARGET))
for _ in range(300): zmesh.get(f.remote())
times = []
for _ in range(2000):
    start = time.perf_counter(); zmesh.get(f.remote()); times.append(time.perf_counter() - start)
start = time.perf_counter(); zmesh.get([f.remote() for _ in range(30000)])
print(json.dumps([sorted(times)[1000], 30000 / (time.perf_counter() - start)]))
"""
TRANSFER = """
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy
@zmesh.remote
def ends(array): return int(array[0]) + int(array[-1])
f = ends.options(scheduling_strategy=NodeAffinitySchedulingStrategy(TARGET))
zmesh.get(f.remote(np.ones(10)))
taken = []
for turn in range(2):
    array = np.tile(np.frombuffer(os.urandom(1 << 24), np.uint8), 64); ref = zmesh.put(array)
    both = int(array[0]) + int(array[-1]); del array
    start = time.perf_counter(); assert zmesh.get(f.remote(ref)) == both
    taken.append(time.perf_counter() - start)
    del ref
    time.sleep(33)  # until the copy is let go of and its pages can be used again
print(json.dumps([(1 << 30) / one for one in taken]))
"""


PING = """
import threading
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy
@zmesh.remote(num_cpus=0)
def nothing(): pass
@zmesh.remote(num_cpus=0)
def ends(array): return int(array[0]) + int(array[-1])
there = NodeAffinitySchedulingStrategy(TARGET)
ping, f = nothing.options(scheduling_strategy=there), ends.options(scheduling_strategy=there)
array = np.tile(np.frombuffer(os.urandom(1 << 24), np.uint8), 64); ref = zmesh.put(array)
both = int(array[0]) + int(array[-1]); del array
for _ in range(300): zmesh.get(ping.remote())
done = threading.Event()
def transfer():
    assert zmesh.get(f.remote(ref)) == both
    done.set()
times = []
thread = threading.Thread(target=transfer); thread.start()
while not done.is_set():
    start = time.perf_counter(); zmesh.get(ping.remote()); times.append(time.perf_counter() - start)
    time.sleep(0.001)
thread.join()
times.sort()
print(json.dumps([times[len(times) // 2], times[int(len(times) * 0.99)], len(times)]))
"""


PEERS_TOLD = ("no-op task on the other, µs", "tasks/s on the other", "1 GB, second array, MB/s")


def _idle(cluster: Cluster, seconds: float) -> tuple[float, float]:
    """Return (% of a CPU, bytes out a second) of the second node."""

    def look() -> tuple[int, int]:
        with open(f"/proc/{cluster.pid(1)}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        table = cluster.hosts.run(1, ["cat", "/proc/net/dev"], timeout=5).stdout
        line = next(line for line in table.splitlines() if "eth0" in line)
        return int(fields[11]) + int(fields[12]), int(line.split(":")[1].split()[8])

    before = look()
    time.sleep(seconds)
    after = look()
    return (after[0] - before[0]) / os.sysconf("SC_CLK_TCK") / seconds * 100, (after[1] - before[1]) / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that can import distributed and ray")
    given = parser.parse_args()
    rounds = given.rounds
    if why_not():
        sys.exit(f"no namespaces here: {why_not()}")
    found: dict[str, list[float]] = {}
    with Cluster(2, cpus=1, store="6G") as cluster:
        cluster.start()
        ids = [cluster.node_id(host) for host in range(2)]
        address = cluster.hosts.address(0)
        for _ in range(rounds):
            echo = cluster.hosts.popen(0, [sys.executable, "-c", KEYS + ECHO, address], stdout=-1, text=True)
            assert echo.stdout is not None
            echo.stdout.readline()
            raw = cluster.hosts.run(1, [sys.executable, "-c", KEYS + RAW, address], timeout=120).stdout
            echo.kill()
            echo.communicate()
            link_s, raw_rate = [float(part) for part in raw.strip(" []\n").split(",")]
            here_s, here_rate = cluster.ask(0, TASKS.replace("TARGET", repr(ids[0])))
            there_s, there_rate = cluster.ask(0, TASKS.replace("TARGET", repr(ids[1])))
            _, second = cluster.ask(0, TRANSFER.replace("TARGET", repr(ids[1])), seconds=120)
            ping_s, slow_ping_s, _ = cluster.ask(0, PING.replace("TARGET", repr(ids[1])), seconds=120)
            for name, value in (
                ("link: raw echo with CURVE, µs", link_s * 1e6),
                ("no-op task on this host, µs", here_s * 1e6),
                ("no-op task on the other, µs", there_s * 1e6),
                ("  of (2.5 x this host + link)", there_s / (2.5 * here_s + link_s)),
                ("tasks/s on this host", here_rate),
                ("tasks/s on the other", there_rate),
                ("  of this host's", there_rate / here_rate),
                ("1 GB, raw pyzmq with CURVE, MB/s", raw_rate / 1e6),
                ("1 GB, second array, MB/s", second / 1e6),
                ("  of raw", second / raw_rate),
                ("a task there and back during 1 GB, ms, p50", ping_s * 1e3),
                ("a task there and back during 1 GB, ms, p99", slow_ping_s * 1e3),
            ):
                found.setdefault(name, []).append(value)
        cpu, sent = _idle(cluster, 20.0)
    for name, peer in (("Dask", hosts_peers.dask), ("Ray", hosts_peers.ray)):
        for _ in range(rounds if given.peers else 0):
            for what, value in zip(PEERS_TOLD, peer(given.peers), strict=True):
                found.setdefault(f"{name}: {what}", []).append(
                    value * (1e6 if "µs" in what else 1e-6 if "MB" in what else 1)
                )
    print(f"{rounds} rounds, medians; lowest and highest in brackets\n\n| | |\n|---|---:|")
    for name, values in found.items():
        digits = 2 if name.startswith("  ") or " ms" in name else 0
        low, high = min(values), max(values)
        print(f"| {name} | {statistics.median(values):,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f}) |")
    print(f"| idle node of two: % of a CPU | {cpu:.1f} |\n| idle node of two: bytes/s out | {sent:,.0f} |")


if __name__ == "__main__":
    main()
