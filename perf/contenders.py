"""Who is measured: zmesh, the floor (a raw echo), and the peers, each with two workers behind the same few methods.

A contender lives in a driver process of its own (driver.py) and for one measurement; nothing heavy is imported before
`load`. Settings are those that favour the peer: no dashboard, no log forwarding, no memory limit.
"""

import contextlib
import importlib
import os
import pathlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import workloads
from processes import descendants_of

WORKERS = 2
CHUNK_ITEMS = 1000  # for those that cut no chunks themselves; 10 ms of work where items take 10 us
ECHO_BYTES = 64


class Contender:
    """Something that runs functions in other processes.

    Attributes:
        name: what tables call it.
        module: what its users import; it is skipped where that is not importable.
        package: whose version is noted; None: it comes with Python.
        tasks: no-op tasks in one round of throughput: enough for about a second.
        queued_share: which part of the queue of the memory question it gets; the slow ones get less.
        actors_share: which part of the actors it makes, likewise.
        stores: whether `share` puts a value into a store, instead of handing it to each task by value.
        answers: whether it runs functions; the raw echo does not.
        scratch: a directory for its files; whoever made it removes it.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    package: ClassVar[str | None] = None
    tasks: ClassVar[int] = 20_000
    queued_share: ClassVar[float] = 1.0
    actors_share: ClassVar[float] = 1.0
    stores: ClassVar[bool] = False
    answers: ClassVar[bool] = True

    def __init__(self, scratch: str) -> None:
        self.scratch = scratch

    def load(self) -> None:
        """Import what it needs."""
        importlib.import_module(self.module)

    def start(self) -> None:
        """Start its processes."""
        raise NotImplementedError

    def stop(self) -> None:
        """End its processes."""
        raise NotImplementedError

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Start one task; returns a handle."""
        raise NotImplementedError

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Wait for the results of handles, in order."""
        raise NotImplementedError

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run one task and wait for its result."""
        return self.gather([self.submit(function, *args)])[0]

    def map_burn(self, items: Sequence[int]) -> list[int]:
        """Map workloads.burn over items in the way its users would; here in chunks of a fixed size."""
        starts = range(0, len(items), CHUNK_ITEMS)
        handles = [self.submit(workloads.burn_all, list(items[start : start + CHUNK_ITEMS])) for start in starts]
        return [result for chunk in self.gather(handles) for result in chunk]

    def share(self, value: Any) -> Any:
        """Make a value ready to be the argument of many tasks."""
        return value

    def submit_many(self, function: Callable[..., Any], results: int) -> list[Any]:
        """Start one task, function(results), with so many results; returns a handle of each."""
        raise NotImplementedError

    def wait_for_each(self, handles: list[Any]) -> None:
        """Wait for handles one by one, as their tasks end."""
        raise NotImplementedError

    def processes(self) -> list[int]:
        """Return the pids of all its processes but the driver."""
        return descendants_of(os.getpid())

    def __enter__(self) -> "Contender":
        self.load()
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class Zmesh(Contender):
    """The mesh, with a private node."""

    name = "zmesh"
    module = "zmesh"
    package = "zmesh"
    stores = True

    def start(self) -> None:
        """Start a private node even where `zmesh up` runs."""
        import zmesh

        self._zmesh = zmesh
        self._remote: dict[Any, Any] = {}  # {function: its remote function}
        zmesh.init("local", num_cpus=WORKERS)

    def stop(self) -> None:
        """Disconnect."""
        self._zmesh.shutdown()

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call .remote()."""
        remote = self._remote.get(function)
        if remote is None:
            remote = self._remote[function] = self._zmesh.remote(function)
        return remote.remote(*args)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Get a list of refs."""
        return self._zmesh.get(handles)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Get one ref."""
        return self._zmesh.get(self.submit(function, *args))

    def map_burn(self, items: Sequence[int]) -> list[int]:
        """Leave the chunks to zmesh.map."""
        return list(self._zmesh.map(workloads.burn, items))

    def share(self, value: Any) -> Any:
        """Put it."""
        return self._zmesh.put(value)

    def submit_many(self, function: Callable[..., Any], results: int) -> list[Any]:
        """Ask for num_returns."""
        refs: list[Any] = self._zmesh.remote(num_returns=results)(function).remote(results)
        return refs

    def wait_for_each(self, handles: list[Any]) -> None:
        """Go on with the rest of each wait."""
        while handles:
            _, handles = self._zmesh.wait(handles)

    def processes(self) -> list[int]:
        """Return the node, its descendants, and whatever else descends from us."""
        node = self._zmesh.nodes()[0]["NodePid"]
        return sorted({node, *descendants_of(node), *super().processes()})


class RawEcho(Contender):
    """The floor: a ROUTER here, DEALERs that echo in two other processes, ipc between; functions are ignored."""

    name = "raw"
    module = "zmq"
    package = "pyzmq"
    answers = False

    def start(self) -> None:
        """Fork the echoes before there is a context, and wait until both said their names."""
        import zmq

        self._endpoint = f"ipc://{self.scratch}/echo"
        self._echoes = [pid for _ in range(WORKERS) if (pid := self._fork())]
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.set_hwm(0)  # a whole round may be queued
        self._router.bind(self._endpoint)
        self._peers = deque(self._router.recv_multipart()[0] for _ in range(WORKERS))
        self._payload = bytes(ECHO_BYTES)

    def _fork(self) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                _echo(self._endpoint)
            finally:
                os._exit(0)
        return pid

    def stop(self) -> None:
        """Tell the echoes to end."""
        for peer in self._peers:
            self._router.send_multipart([peer, b""])
        for pid in self._echoes:
            os.waitpid(pid, 0)
        self._context.destroy(linger=0)

    def submit(self, function: Callable[..., Any], *args: Any) -> None:
        """Send one message, to each echo in turn."""
        self._router.send_multipart([self._peers[0], self._payload])
        self._peers.rotate()

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Receive as many messages."""
        return [self._router.recv_multipart()[1] for _ in handles]

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Send one message, always to the same echo, and receive it."""
        self._router.send_multipart([self._peers[0], self._payload])
        return self._router.recv_multipart()[1]


def _echo(endpoint: str) -> None:
    """Be the other process: greet, then return each message until an empty one comes."""
    import zmq

    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.set_hwm(0)
    dealer.reconnect_ivl = 1  # ms: the socket is bound only after we were forked
    dealer.connect(endpoint)
    dealer.send(b"ready")
    while message := dealer.recv():
        dealer.send(message)


class ProcessPool(Contender):
    """concurrent.futures.ProcessPoolExecutor of the standard library, with its default start method."""

    name = "ppe"
    module = "concurrent.futures.process"

    def start(self) -> None:
        """Make the pool; its processes start with the first task."""
        self._pool = importlib.import_module(self.module).ProcessPoolExecutor(max_workers=WORKERS)

    def stop(self) -> None:
        """Drop what is queued, wait for the rest."""
        self._pool.shutdown(cancel_futures=True)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Submit one call."""
        return self._pool.submit(function, *args)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Wait for futures."""
        return [future.result() for future in handles]

    def map_burn(self, items: Sequence[int]) -> list[int]:
        """Use the pool's own map, with a chunk size, without which it takes one item a task."""
        return list(self._pool.map(workloads.burn, items, chunksize=CHUNK_ITEMS))


class Loky(ProcessPool):
    """loky's executor: spawned workers, cloudpickle."""

    name = "loky"
    module = "loky"
    package = "loky"

    def stop(self) -> None:
        """Kill the workers: it cannot cancel what is queued."""
        self._pool.shutdown(kill_workers=True)


class Ray(Contender):
    """Ray on this host alone."""

    name = "ray"
    module = "ray"
    package = "ray"
    tasks = 4_000
    queued_share = 0.02
    actors_share = 0.04
    stores = True

    def start(self) -> None:
        """Start a head node without dashboard, usage reports and log forwarding."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        self._ray = ray
        self._remote: dict[Any, Any] = {}  # {function: its remote function}
        ray.init(
            address="local",
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=self.scratch,
        )

    def stop(self) -> None:
        """Shut down."""
        self._ray.shutdown()

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call .remote()."""
        remote = self._remote.get(function)
        if remote is None:
            remote = self._remote[function] = self._ray.remote(function)
        return remote.remote(*args)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Get a list of refs."""
        return self._ray.get(handles)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Get one ref."""
        return self._ray.get(self.submit(function, *args))

    def share(self, value: Any) -> Any:
        """Put it."""
        return self._ray.put(value)

    def submit_many(self, function: Callable[..., Any], results: int) -> list[Any]:
        """Ask for num_returns."""
        refs: list[Any] = self._ray.remote(num_returns=results)(function).remote(results)
        return refs

    def wait_for_each(self, handles: list[Any]) -> None:
        """Go on with the rest of each wait."""
        while handles:
            _, handles = self._ray.wait(handles)


class Dask(Contender):
    """dask.distributed: a LocalCluster of two processes with a thread each."""

    name = "dask"
    module = "distributed"
    package = "distributed"
    tasks = 1_000
    queued_share = 0.01
    stores = True

    def start(self) -> None:
        """Start scheduler (a thread here), nannies and workers."""
        import dask
        import distributed

        dask.config.set(temporary_directory=self.scratch)
        self._cluster = distributed.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit=0,
            silence_logs="ERROR",
            local_directory=self.scratch,
        )
        self._client = distributed.Client(self._cluster)

    def stop(self) -> None:
        """Close both."""
        self._client.close()
        self._cluster.close()

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Submit one call, which is never taken for an earlier one."""
        return self._client.submit(function, *args, pure=False)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Gather futures."""
        return self._client.gather(list(handles))

    def share(self, value: Any) -> Any:
        """Scatter it, without hashing its content."""
        return self._client.scatter(value, hash=False)


class Ipyparallel(Contender):
    """ipyparallel: a controller, its schedulers and two engines, through the load balanced view."""

    name = "ipyparallel"
    module = "ipyparallel"
    package = "ipyparallel"
    tasks = 600
    queued_share = 0.01

    def start(self) -> None:
        """Start the cluster and connect."""
        os.environ["IPYTHONDIR"] = self.scratch
        import ipyparallel

        self._cluster = ipyparallel.Cluster(n=WORKERS, log_level=40)
        with pathlib.Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            self._client = self._cluster.start_and_connect_sync(activate=False)
        self._view = self._client.load_balanced_view()

    def stop(self) -> None:
        """End engines and controller."""
        self._client.close()
        self._cluster.stop_cluster_sync()

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Apply asynchronously."""
        return self._view.apply_async(function, *args)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Get results."""
        return [handle.get() for handle in handles]


ALWAYS: tuple[type[Contender], ...] = (Zmesh, RawEcho, ProcessPool)
PEERS: tuple[type[Contender], ...] = (Loky, Ray, Dask, Ipyparallel)
BY_NAME = {contender.name: contender for contender in (*ALWAYS, *PEERS)}
