"""Processes that send a node, or a keeper in it, what is no message: they are dropped, and all others are served."""

import os
import pathlib
import signal

import msgpack
import pytest

import zmesh
from tests.mesh.test_detached import ADD, Programs, make, node, programs, until  # noqa: F401  # fixtures
from tests.mesh.test_hosts import nodes  # noqa: F401  # a fixture
from zmesh import lifecycle
from zmesh.wire import messages as m

# As a process of the same user that has found the socket of a node.
ROGUE = """
from zmesh.api import _session as session
def send(frame):
    with session.reactor.lock:
        session.reactor.sockets.send(session.core.node, frame)
"""


def frame(kind: type, *fields: object) -> bytes:
    packed: bytes = msgpack.packb([m.MESSAGES.index(kind), *fields])
    return packed


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (frame(m.Hold, 1, [[b"short", 7]]), "Hold.holders is malformed"),
        (frame(m.Release, [b"x"]), "Release.objects is malformed"),
        (b"\xc1", "frame of 1 bytes is not a message"),
    ],
)
def test_a_program_that_breaks_the_protocol_is_dropped_and_told_why(
    node: lifecycle.RunningNode,  # noqa: F811
    programs: Programs,  # noqa: F811
    bad: bytes,
    why: str,
) -> None:
    zmesh.init(node.name)
    counted = zmesh.put("held")
    code = f"""{ROGUE}
assert zmesh.get(zmesh.remote(abs).remote(-1)) == 1
send({bad!r})
try:
    while True:
        zmesh.get(zmesh.remote(abs).remote(-1), timeout=30)
except zmesh.exceptions.NodeDiedError as error:
    print(error)
"""
    assert why in programs.run(node, code)
    assert zmesh.get(zmesh.remote(len).remote([counted])) == 1
    assert [client["kind"] for client in zmesh.status()["clients"]].count("driver") == 1
    log = pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "zmesh", node.name, "log")
    until(lambda: f"is dropped: {why}" in log.read_text())


def test_a_worker_that_breaks_the_protocol_is_killed_and_its_task_fails(node: lifecycle.RunningNode) -> None:  # noqa: F811
    zmesh.init(node.name)

    @zmesh.remote(max_retries=0)
    def rogue() -> None:
        from zmesh.api import auto_init

        session = auto_init()
        with session.reactor.lock:
            session.reactor.sockets.send(session.core.node, frame(m.Fetch, ["x"]))
        signal.pause()

    with pytest.raises(zmesh.exceptions.WorkerDiedError):
        zmesh.get(rogue.remote(), timeout=30)
    assert zmesh.get(zmesh.remote(abs).remote(-1), timeout=30) == 1


def test_a_keeper_outlives_what_is_no_message(node: lifecycle.RunningNode, programs: Programs) -> None:  # noqa: F811
    programs.run(node, make())
    code = f"""
import zmq
from zmesh import lifecycle
keeper = lifecycle.status({node.name!r})["detached"][0]["keeper"]
path = os.path.join(os.environ["XDG_RUNTIME_DIR"], "zmesh", {node.name!r}, keeper[16:])
assert os.path.exists(path)
socket = zmq.Context().socket(zmq.DEALER)
socket.routing_id = bytes.fromhex(keeper)[:8] + b"\\x01" * 8
socket.connect("ipc://" + path)
for bad in ({frame(m.Done, [[1]], [], [])!r}, {frame(m.Steal, 1, [], "x")!r}, {frame(m.Ack, 1)!r}, b"", b"\\xc1"):
    socket.send(bad)
{ADD}
"""
    assert programs.run(node, code) == "1"
    log = pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "zmesh", node.name, "log")
    until(lambda: "Done.results is malformed" in log.read_text())
    assert programs.run(node, ADD) == "2"
