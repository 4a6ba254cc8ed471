"""zmesh on the hosts that namespaces.py makes: `zmesh up` on each, and programs that run on any of them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.hosts.namespaces import Hosts

ZMESH = os.path.join(os.path.dirname(sys.executable), "zmesh")
PREAMBLE = """
import os, sys, time, json, signal
import numpy as np
import zmesh

@zmesh.remote
def where(seconds=0.0):
    time.sleep(seconds)
    return zmesh.get_runtime_context().get_node_id()
"""


class Cluster:
    """Hosts with a node each, one mesh."""

    def __init__(self, count: int, *, cpus: int = 1, store: str = "400M") -> None:
        self.hosts = Hosts(count)
        self.count = count
        self._options = ["--num-cpus", str(cpus), "--store-memory", store]

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *exc: object) -> None:
        self.hosts.close()

    def up(self, host: int, join: int | None = None, *options: str) -> None:
        """Start the node of a host."""
        argv = [ZMESH, "up", "--host", self.hosts.address(host), "--name", "default", *self._options, *options]
        if join is not None:
            argv += ["--join", self.hosts.address(join)]
        result = self.hosts.run(host, argv, timeout=30)
        assert result.returncode == 0, result.stdout + result.stderr

    def start(self) -> None:
        """Start all; each joins through the first."""
        self.up(0)
        for host in range(1, self.count):
            self.up(host, 0)
        for host in range(self.count):
            self.await_members(host, self.count)

    def status(self, host: int) -> dict[str, Any]:
        """Return what `zmesh status --json` says there."""
        result = self.hosts.run(host, [ZMESH, "status", "--json"], timeout=20)
        assert result.returncode == 0, result.stdout + result.stderr
        told: dict[str, Any] = json.loads(result.stdout)
        return told

    def living(self, host: int) -> list[str]:
        """Return the addresses of the members a host takes for alive."""
        members = self.status(host)["members"]
        return sorted(member["address"] for member in members if member["state"] in ("alive", "suspect"))

    def await_members(self, host: int, count: int, seconds: float = 10.0) -> float:
        """Wait until a host knows so many living members; returns how long that took, in seconds."""
        started = time.monotonic()
        while len(found := self.living(host)) != count:
            assert time.monotonic() < started + seconds, (host, found)
            time.sleep(0.05)
        return time.monotonic() - started

    def node_id(self, host: int) -> str:
        """Return the NodeID of a host's node."""
        found: str = self.status(host)["node"]
        return found

    def pid(self, host: int) -> int:
        """Return the pid of a host's node."""
        found: int = self.status(host)["pid"]
        return found

    def program(self, host: int, code: str) -> "subprocess.Popen[str]":
        """Run a program on a host; it talks to the host's node."""
        return self.hosts.popen(
            host, [sys.executable, "-c", PREAMBLE + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self, host: int, code: str, seconds: float = 60.0) -> Any:
        """Run a program that prints one line of JSON; returns that."""
        with self.program(host, code) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"not in {seconds} s: {out}\n{err[-3000:]}") from None
        assert process.returncode == 0, out + err[-3000:]
        return json.loads(out.splitlines()[-1])


def until(condition: Callable[[], Any], seconds: float) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
