"""A worker's life, played in the forkserver before most workers are forked.

CPython learns while it runs: it specialises code after some calls, remembers where methods were found, notes which
attributes the instances of a class have. A worker that had to learn all this would write on pages that it shares with
all others as long as nobody writes: it was 0.6 of the 5.3 MB that an idle actor had of its own. So it is learnt once,
by the process that workers are forked from. The play is a worker's true code on sockets that lead nowhere.

Source: how CPython learns: PEP 659, and its Objects/typeobject.c, "type cache"; how it allocates:
Objects/obmalloc.c. The figures: docs/design.md, "An idle actor costs what it touches".
"""

import gc
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zmesh.runtime import calls, serialization
from zmesh.runtime.blackbox import BlackBoxes
from zmesh.runtime.forkserver import WorkerStart
from zmesh.runtime.rundir import RunDir
from zmesh.runtime.sockets import FD, ClientSockets
from zmesh.runtime.worker_main import Worker
from zmesh.wire.actor_messages import Call, Retire
from zmesh.wire.codec import encode
from zmesh.wire.ids import NODE_ID_BYTES, PeerID, local_peer, node_peer
from zmesh.wire.messages import Attach, Work

SIZE_STEP, SMALL_BYTES_MAX = 16, 512  # CPython keeps small objects of one size, in these steps, together
FILLING_BYTES = 16 * 1024  # of each size: more fills no more holes, by test
PLAYS = 10  # CPython 3.11 specialises code with its ninth call, later versions before

_NODE = bytes(range(NODE_ID_BYTES))
_HOME, _ME, _VICTIM = node_peer(_NODE), local_peer(_NODE, b"worker--"), local_peer(_NODE, b"victim--")

_filling: list[bytes] = []


class _Stage:
    """What the sockets of one play have in common, in place of their context: the frames that are still to come."""

    def __init__(self, lines: list[tuple[PeerID, Any]]) -> None:
        self.lines = deque((peer, encode(message)) for peer, message in lines)
        self.props: dict[PeerID, _Prop] = {}
        self.cued = False  # the next line can be read

    def cue(self) -> None:
        """Have the next line come, if the worker has dialled who says it."""
        if self.lines and not self.cued and self.lines[0][0] in self.props:
            self.cued = True
            os.eventfd_write(self.props[self.lines[0][0]].fd, 1)

    def term(self) -> None:
        """As a context."""


class _Prop:
    """A socket that leads nowhere: what is sent is lost, what is received is in the script."""

    closed = False

    def __init__(self, stage: _Stage, kind: int) -> None:
        del kind
        self._stage = stage
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return what zmq.backend.zmq_poll looks at."""
        return self.fd

    def set(self, option: int, value: Any) -> None:
        """As zmq.backend.Socket."""

    def get(self, option: int) -> int:
        """As zmq.backend.Socket; each message has one frame."""
        return self.fd if option == FD else 0

    def bind(self, address: str) -> None:
        """As zmq.backend.Socket."""

    def connect(self, address: str) -> None:
        """Take the part of a peer, who may have the first line."""
        self._stage.props[bytes.fromhex(address.removeprefix("ipc://"))] = self
        self._stage.cue()

    def send(self, frame: bytes, flags: int) -> None:
        """Be answered by the next line."""
        self._stage.cue()

    def recv(self, flags: int) -> bytes:
        """Return the next line, which is this peer's."""
        os.eventfd_read(self.fd)
        self._stage.cued = False
        return self._stage.lines.popleft()[1]

    def close(self, linger: int = 0) -> None:
        """As zmq.backend.Socket."""
        self.closed = True
        os.close(self.fd)


def rehearse(run_dir: RunDir) -> Iterator[None]:
    """Play it often enough, one time a step. Only for a process with one thread and without a session of its own."""
    sys._clear_type_cache()  # full of what imports looked up, and who replaces a name there lets go of it
    script = _script()
    for _ in range(PLAYS):
        with _same_environment():
            _play(script, run_dir)
        yield
    _fill_holes()


def _fill_holes() -> None:
    """Take what is free between objects of ours, for good: a worker's new ones shall lie together, on new pages."""
    gc.collect()
    empty = sys.getsizeof(b"")
    for size in range(SIZE_STEP * (empty // SIZE_STEP + 1), SMALL_BYTES_MAX + 1, SIZE_STEP):
        _filling.extend(bytes(size - empty) for _ in range(FILLING_BYTES // size))


def _play(script: list[tuple[PeerID, Any]], run_dir: RunDir) -> None:
    stage = _Stage(script)
    sockets = ClientSockets(_ME, _HOME, lambda peer: peer.hex(), stage, _Prop)
    worker = Worker(WorkerStart(_ME, 0, BlackBoxes(1)), run_dir, sockets)
    worker.work()
    worker.session.close(linger_ms=0)


def _script() -> list[tuple[PeerID, Any]]:
    """A task, then an actor with two calls, which ends as its last handle goes."""
    plan = {"places": {"": 1}, "async": False, "lent": {}, "name": ""}
    call = calls.pack_plain(())
    task = [0, _VICTIM, "task", 1, {}, b"task", serialization.dumps_function((_task, ()))[0]]
    made_of = type("Actor", (), {"call": _method, "__module__": "__main__"}), None
    actor = serialization.dumps_function((made_of, ()))[0]
    creation = [1, _VICTIM, "Actor", -1, {"max_calls": 1, "actor": plan}, b"actor", actor]
    method = [1, _VICTIM, "Actor.call", 1, {"method": "call"}, b"method", serialization.dumps_function((None, ()))[0]]
    return [
        (_HOME, Attach(_VICTIM, 1, _VICTIM, {}, [], {})),
        (_VICTIM, Work([task], [[1, 0, 0, 0, call, ()]])),
        (_VICTIM, Work([creation], [[2, 0, 1, 0, call, ()]])),
        (_VICTIM, Call([method], [[3, 0, 1, 0, call]], 0)),
        (_VICTIM, Call([], [[4, 0, 1, 0, call]], 0)),
        (_VICTIM, Retire()),
    ]


def _task() -> None:
    pass


def _method(self: Any) -> None:
    pass


@contextmanager
def _same_environment() -> Iterator[None]:
    """Undo what a worker does to the variables of its process."""
    before = dict(os.environ)
    yield
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]
    os.environ.update(before)
