"""An array of 256 MB from one host to one other, and to seven, over links of 40 MB/s; the same with Dask, where it is.

    .venv/bin/python -m perf.broadcast [--rounds N] [--bytes N] [--peers PYTHON]

Hosts are network namespaces of this machine (tests/hosts/namespaces.py), each with its link throttled in both
directions by tbf. Bytes are random, so that nothing is gained by compressing them. `--peers` names an interpreter that
can import distributed; its scheduler and client run on the first host, a worker on each of the others. Prints medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from tests.hosts.cluster import Cluster
from tests.hosts.namespaces import why_not

HOSTS = 8
BYTES = 256_000_000
RATE = 40e6  # bytes a second, each way
PROGRAM = """
from zmesh.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
@zmesh.remote
def last(array): return int(array[-1]), zmesh.get_runtime_context().get_node_id()
tasks = [last.options(scheduling_strategy=On(node)) for node in IDS]
zmesh.get([task.remote(np.zeros(1, np.uint8)) for task in tasks])
array = np.frombuffer(os.urandom(BYTES), np.uint8)
ref = zmesh.put(array)
def out():
    with open("/proc/net/dev") as file:
        return int(next(line for line in file if "eth0" in line).split(":")[1].split()[8])
before, start = out(), time.perf_counter()
found = zmesh.get([task.remote(ref) for task in tasks])
taken = time.perf_counter() - start
assert [one for one, _ in found] == [int(array[-1])] * len(tasks)
assert [node for _, node in found] == IDS
print(json.dumps([taken, (out() - before) / BYTES]))
"""
DASK = """
import json, os, sys, time
import numpy as np
from distributed import Client
def last(array): return int(array[-1])
def out():
    with open("/proc/net/dev") as file:
        return int(next(line for line in file if "eth0" in line).split(":")[1].split()[8])
client = Client(sys.argv[1])
client.wait_for_workers(int(sys.argv[2]))
workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
for count in (1, len(workers)):
    array = np.frombuffer(os.urandom(int(sys.argv[3])), np.uint8)
    before, start = out(), time.perf_counter()
    client.scatter(array, workers=workers[:count], broadcast=True, hash=False)
    print(json.dumps([time.perf_counter() - start, (out() - before) / len(array)]), flush=True)
client.close()
"""


def measure_zmesh(rounds: int, size: int) -> dict[str, list[float]]:
    """Return {what: values}."""
    found: dict[str, list[float]] = {}
    with Cluster(HOSTS, cpus=1, store="1200M") as cluster:
        cluster.start()
        ids = [cluster.node_id(host) for host in range(HOSTS)]
        for host in range(HOSTS):
            cluster.hosts.throttle(host, RATE)
        for _ in range(rounds):
            for name, targets in (("one", ids[1:2]), ("seven", ids[1:])):
                code = PROGRAM.replace("IDS", repr(targets)).replace("BYTES", str(size))
                taken, copies = cluster.ask(0, code, seconds=240)
                found.setdefault(f"zmesh: to {name}, s", []).append(taken)
                found.setdefault(f"zmesh: to {name}, copies out of the source", []).append(copies)
            one, seven = found["zmesh: to one, s"][-1], found["zmesh: to seven, s"][-1]
            found.setdefault("zmesh: seven in times one", []).append(seven / one)
    return found


def measure_dask(python: str, rounds: int, size: int) -> dict[str, list[float]]:
    """Return {what: values}."""
    found: dict[str, list[float]] = {}
    with Cluster(HOSTS) as cluster:
        hosts, address = cluster.hosts, f"tcp://{cluster.hosts.address(0)}:8786"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        scheduler = [python, "-m", "distributed.cli.dask_scheduler", "--host", hosts.address(0), "--no-dashboard"]
        hosts.popen(0, scheduler, **quiet)
        time.sleep(5)
        for host in range(1, HOSTS):
            worker = [python, "-m", "distributed.cli.dask_worker", address, "--host", hosts.address(host)]
            hosts.popen(host, [*worker, "--nthreads", "1", "--memory-limit", "2GB", "--no-dashboard"], **quiet)
        for _ in range(rounds):
            argv = [python, "-c", DASK, address, str(HOSTS - 1), str(size)]
            time.sleep(5)
            for host in range(HOSTS):
                hosts.throttle(host, RATE)
            try:
                done = hosts.run(0, argv, timeout=300)
            except subprocess.TimeoutExpired:
                print("Dask: not done in 300 s", file=sys.stderr)
                break
            for name, line in zip(("one", "seven"), done.stdout.splitlines(), strict=True):
                taken, copies = json.loads(line)
                found.setdefault(f"Dask: to {name}, s", []).append(taken)
                found.setdefault(f"Dask: to {name}, copies out of the source", []).append(copies)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=BYTES)
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that can import distributed")
    given = parser.parse_args()
    if why_not():
        sys.exit(f"no namespaces here: {why_not()}")
    found = measure_zmesh(given.rounds, given.bytes)
    if given.peers:
        found |= measure_dask(given.peers, given.rounds, given.bytes)
    print(f"{given.rounds} rounds, medians; lowest and highest in brackets\n\n| | |\n|---|---:|")
    for name, values in found.items():
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f}) |")


if __name__ == "__main__":
    main()
