"""The questions of hosts.py, put to Dask and Ray: a no-op task on another host, tasks a second, 1 GB between hosts.

Each runs with what serves it best: head or scheduler and client on the first host, one worker of one CPU on the other.
Neither encrypts or authenticates here; zmesh does.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator

from tests.hosts.cluster import Cluster

DASK = """
import json, os, sys, time
import numpy as np
from distributed import Client
def nothing(): pass
def ends(array): return int(array[0]) + int(array[-1])
client = Client(sys.argv[1])
client.wait_for_workers(1)
(worker,) = client.scheduler_info(n_workers=-1)["workers"]
run = lambda: client.submit(nothing, pure=False, workers=[worker]).result()
for _ in range(50): run()
times = []
for _ in range(300):
    start = time.perf_counter(); run(); times.append(time.perf_counter() - start)
start = time.perf_counter(); client.gather([client.submit(nothing, pure=False) for _ in range(3000)])
rate = 3000 / (time.perf_counter() - start)
taken = []
for turn in range(2):
    array = np.tile(np.frombuffer(os.urandom(1 << 24), np.uint8), 64)
    both = ends(array)
    start = time.perf_counter()
    future = client.scatter(array, workers=[worker], direct=True, hash=False)
    assert client.submit(ends, future).result() == both
    taken.append(time.perf_counter() - start)
    del future, array
print(json.dumps([sorted(times)[150], rate, (1 << 30) / taken[1]]))
"""
RAY = """
import json, logging, os, sys, time
import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
(there,) = [node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == sys.argv[2] and node["Alive"]]
@ray.remote(scheduling_strategy=NodeAffinitySchedulingStrategy(there, soft=False))
def nothing(): pass
@ray.remote(scheduling_strategy=NodeAffinitySchedulingStrategy(there, soft=False))
def ends(array): return int(array[0]) + int(array[-1])
for _ in range(50): ray.get(nothing.remote())
times = []
for _ in range(300):
    start = time.perf_counter(); ray.get(nothing.remote()); times.append(time.perf_counter() - start)
start = time.perf_counter(); ray.get([nothing.remote() for _ in range(3000)])
rate = 3000 / (time.perf_counter() - start)
taken = []
for turn in range(2):
    array = np.tile(np.frombuffer(os.urandom(1 << 24), np.uint8), 64)
    both, ref = int(array[0]) + int(array[-1]), ray.put(array)
    start = time.perf_counter()
    assert ray.get(ends.remote(ref)) == both
    taken.append(time.perf_counter() - start)
    del ref
print(json.dumps([sorted(times)[150], rate, (1 << 30) / taken[1]]))
"""
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
START_S = 6.0


def _ask(cluster: Cluster, python: str, code: str, *arguments: str) -> list[float]:
    done = cluster.hosts.run(0, [python, "-c", code, *arguments], timeout=240)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:])
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def dask(python: str) -> list[float]:
    """Return [seconds of a no-op task, tasks a second, bytes a second]."""
    with Cluster(2) as cluster:
        hosts = cluster.hosts
        address = f"tcp://{hosts.address(0)}:8786"
        part = [python, "-m", "distributed.cli.dask_scheduler", "--host", hosts.address(0), "--no-dashboard"]
        hosts.popen(0, part, **QUIET)
        time.sleep(START_S)
        part = [python, "-m", "distributed.cli.dask_worker", address, "--host", hosts.address(1), "--no-dashboard"]
        hosts.popen(1, [*part, "--nthreads", "1", "--memory-limit", "0"], **QUIET)
        return _ask(cluster, python, DASK, address)


@contextlib.contextmanager
def _ray(cluster: Cluster, python: str) -> Iterator[str]:
    """Start Ray's head on the first host and a node on the second; stop both."""
    hosts = cluster.hosts
    ray = os.path.join(os.path.dirname(python), "ray")
    address = f"{hosts.address(0)}:6379"
    common = ["--num-cpus", "1", "--object-store-memory", str(3 << 30), "--disable-usage-stats", "--block"]
    with tempfile.TemporaryDirectory(prefix="zr-") as directory:
        head = [
            ray,
            "start",
            "--head",
            "--node-ip-address",
            hosts.address(0),
            "--port",
            "6379",
            "--temp-dir",
            directory,
        ]
        parts = [hosts.popen(0, [*head, "--include-dashboard", "false", *common], **QUIET)]
        time.sleep(2 * START_S)
        node = [ray, "start", "--address", address, "--node-ip-address", hosts.address(1)]
        parts.append(hosts.popen(1, [*node, *common], **QUIET))
        time.sleep(2 * START_S)
        try:
            yield address
        finally:
            for part in reversed(parts):
                part.terminate()
                part.wait(timeout=30)


def ray(python: str) -> list[float]:
    """Return [seconds of a no-op task, tasks a second, bytes a second]."""
    with Cluster(2) as cluster, _ray(cluster, python) as address:
        return _ask(cluster, python, RAY, address, cluster.hosts.address(1))
