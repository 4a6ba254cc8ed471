"""A warm process that forks workers and reaps them, so that a worker costs milliseconds and shares its pages.

Forked from the node before any socket or thread exists. The node asks over a socketpair, with the write ends of the
worker's stdout and stderr; the forkserver answers with pids and with waitpid statuses. PDEATHSIG chains node ->
forkserver -> worker, so that no kill -9 of anything leaves a worker; what a worker's task left behind in its session
ends with the worker. The forkserver's own is SIGTERM, as it has to kill what the tasks started before it ends; only a
process that made itself a session (a daemon) outlives its worker.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import NoReturn

import msgpack

from zmesh.runtime.blackbox import BlackBoxes
from zmesh.wire.ids import PeerID

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MESSAGE_BYTES_MAX = 4096
_SESSIONS_MAX = 1024  # of ended workers, whose leftovers may show up later
QUIET_MS = 100  # nobody asked for so long: there is time for a step of the rehearsal
FEW_WORKERS = 2  # who forks more saves more by a rehearsal than it takes
_END_TIMEOUT_S = 1.0  # for what was killed to be gone
_OOM_SCORE = b"800"  # the kernel should take a worker, never the node

_OVER = object()

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class WorkerStart:
    """What a freshly forked worker knows of itself."""

    peer: PeerID
    slot: int
    boxes: BlackBoxes


@dataclass(slots=True)
class Started:
    """A worker was forked."""

    peer: PeerID
    pid: int


@dataclass(slots=True)
class Ended:
    """A worker is gone and reaped; `status` is what waitpid gave. A fork that failed has pid 0."""

    peer: PeerID
    pid: int
    status: int


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when the thread that started it ends; end if that was before now.

    Args:
        parent: its pid, asked before the fork: afterwards getppid may already name the one that inherited us.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def describe_status(status: int) -> tuple[int | None, str | None, str]:
    """Return (exit code, signal name, text for a sentence) of a waitpid status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return None, name, f"was killed by {name}"
    code = os.waitstatus_to_exitcode(status)
    return code, None, f"ended with exit code {code}"


class ForkServer:
    """The node's handle of the forkserver. Loop thread only; never blocks."""

    def __init__(self, link: socket.socket, pid: int) -> None:
        self._link = link
        self.pid = pid
        self.died = False
        # Requests for which the socket has no room yet, with the descriptors they carry. It has room again once the
        # forkserver has served some, of which it tells: so reports() sends on.
        self._pending: deque[tuple[bytes, list[int]]] = deque()

    @classmethod
    def start(
        cls,
        boxes: BlackBoxes,
        run_worker: Callable[[WorkerStart], None],
        close: list[int],
        modules: tuple[str, ...] = (),
        rehearsal: Iterable[None] = (),
    ) -> "ForkServer":
        """Fork the forkserver. Call it before any thread or ZeroMQ context exists.

        Args:
            run_worker: what a worker does; its process ends when that returns.
            close: descriptors of the node that its children must not keep, e.g. of its lock.
            modules: what the forkserver imports for its workers, while the node opens its sockets.
            rehearsal: makes workers cheaper, step by step: taken in the forkserver when it has time, or before it
                forks many.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        node = os.getpid()
        gc.collect()
        gc.freeze()  # so that a collection in a child does not copy every page that holds an object of ours
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                for fd in close:
                    os.close(fd)
                for name in modules:
                    importlib.import_module(name)
                gc.collect()
                gc.freeze()
                _Server(theirs, boxes, run_worker, iter(rehearsal), node).serve()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()
        ours.setblocking(False)
        return cls(ours, pid)

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are reports."""
        return self._link.fileno()

    def spawn(self, peer: PeerID, slot: int) -> tuple[int, int]:
        """Ask for a worker; returns the read ends of its stdout and stderr, which do not block."""
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        self._say(("spawn", peer, slot), [out_write, err_write])
        os.set_blocking(out_read, False)
        os.set_blocking(err_read, False)
        return out_read, err_read

    def kill(self, peer: PeerID) -> None:
        """SIGKILL a worker and its process group; done by its parent, so the pid is surely still its own."""
        self._say(("kill", peer), [])

    def _say(self, request: tuple[object, ...], fds: list[int]) -> None:
        """Send a request as soon as there is room; closes the descriptors once they are on their way."""
        self._pending.append((msgpack.packb(request), fds))
        self._send_pending()

    def _send_pending(self) -> None:
        while self._pending:
            data, fds = self._pending[0]
            try:
                socket.send_fds(self._link, [data], fds)
            except BlockingIOError:
                return
            except OSError:
                self.died = True
            self._pending.popleft()
            for fd in fds:
                os.close(fd)

    def reports(self) -> list[Started | Ended]:
        """Return what happened since the last call; sets `died` if the forkserver is gone."""
        found: list[Started | Ended] = []
        while True:
            try:
                data = self._link.recv(_MESSAGE_BYTES_MAX)
            except BlockingIOError:
                self._send_pending()
                return found
            except OSError:
                data = b""
            if not data:
                self.died = True
                return found
            kind, *fields = msgpack.unpackb(data)
            found.append(Started(*fields) if kind == "started" else Ended(*fields))

    def close(self) -> None:
        """End the forkserver and all workers, their process groups included; waits for it."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        self._link.setblocking(False)
        while poll.poll(2000):
            with contextlib.suppress(BlockingIOError):
                if not self._link.recv(_MESSAGE_BYTES_MAX):
                    break
        else:
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._link.close()


class _Server:
    """The forkserver process itself."""

    def __init__(
        self,
        link: socket.socket,
        boxes: BlackBoxes,
        run_worker: Callable[[WorkerStart], None],
        rehearsal: Iterator[None],
        node: int,
    ) -> None:
        self._link = link
        self._boxes = boxes
        self._run_worker = run_worker
        self._rehearsal = rehearsal
        self._rehearsed = False
        self._workers: dict[int, PeerID] = {}  # {pid: peer} not reaped yet
        self._sessions: dict[int, None] = {}  # {session: None} of workers that ended, the last ones
        self._pid = os.getpid()
        self._stop = False
        signal.signal(signal.SIGTERM, self._on_term)
        die_with_parent(node, signal.SIGTERM)
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        """Fork, kill and reap until the node closes the link."""
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while not self._stop:
            ready = poll.poll(None if self._rehearsed else QUIET_MS)
            if not ready:
                self._rehearse()
            for fd, _ in ready:
                if fd == self._wake_read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                    self._reap()
                elif not self._serve_one():
                    self._stop = True
        self._end()

    def _on_term(self, number: int, frame: object) -> None:
        """The node is dead, or somebody wants us to end; the wakeup descriptor ends the poll."""
        del number, frame
        self._stop = True

    def _serve_one(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._link, _MESSAGE_BYTES_MAX, 2)
        except ConnectionResetError:  # the node was killed before it had read all our reports
            return False
        if not data:
            return False
        verb, peer, *rest = msgpack.unpackb(data)
        if verb == "spawn":
            self._spawn(peer, rest[0], fds)
            for fd in fds:
                os.close(fd)
        else:
            for pid, known in self._workers.items():
                if known == peer:
                    self._kill(pid)
        return True

    def _rehearse(self) -> None:
        """Take the next step of the rehearsal, or be done with it."""
        try:
            self._rehearsed = next(self._rehearsal, _OVER) is _OVER
        except Exception:  # workers do without
            traceback.print_exc()
            self._rehearsed = True
        if self._rehearsed:
            gc.collect()
            gc.freeze()

    def _spawn(self, peer: PeerID, slot: int, fds: list[int]) -> None:
        while len(self._workers) >= FEW_WORKERS and not self._rehearsed:
            self._rehearse()
        try:
            pid = os.fork()
        except OSError as error:
            self._report(("ended", peer, 0, (error.errno or 1) << 8))
            return
        if pid == 0:
            self._be_worker(peer, slot, fds)
        self._workers[pid] = peer
        self._sessions.pop(pid, None)
        self._report(("started", peer, pid))

    def _be_worker(self, peer: PeerID, slot: int, fds: list[int]) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            die_with_parent(self._pid)
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
            os.setsid()
            os.dup2(fds[0], 1)
            os.dup2(fds[1], 2)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            for fd in {null, *fds, self._wake_read, self._wake_write}:
                os.close(fd)
            self._link.close()
            with contextlib.suppress(OSError):
                score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
                os.write(score, _OOM_SCORE)
                os.close(score)
            self._run_worker(WorkerStart(peer, slot, self._boxes))
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _kill(self, pid: int) -> None:
        """Kill an unreaped child and its process group."""
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Reap who ended, and kill what workers that ended left."""
        reaped = False
        while True:
            try:
                # Only looked at: as long as the zombie has its pid, the group of that number is the worker's.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                if reaped:
                    self._kill_leftovers()
                return
            reaped = True
            pid = ended.si_pid
            peer = self._workers.pop(pid, None)
            if peer is not None:  # else an orphan of a worker, adopted by us
                self._kill(pid)
                self._sessions[pid] = None
                if len(self._sessions) > _SESSIONS_MAX:
                    del self._sessions[next(iter(self._sessions))]
            _, status = os.waitpid(pid, 0)
            if peer is not None:
                self._report(("ended", peer, pid, status))

    def _kill_leftovers(self) -> bool:
        """Kill what ended workers started in process groups of their own, as timeout(1) does: we inherited them.

        The children of what is killed here come to us too, and so does the news that it ended: we look again.
        Returns whether there was anything.
        """
        found = False
        try:
            with open(f"/proc/{self._pid}/task/{self._pid}/children") as file:
                children = [int(pid) for pid in file.read().split()]
        except OSError:
            return False  # a kernel without CONFIG_PROC_CHILDREN: what is in the worker's own group was killed anyway
        for pid in children:
            with contextlib.suppress(OSError):
                if pid not in self._workers and os.getsid(pid) in self._sessions:
                    found = True
                    if os.getpgid(pid) == pid:
                        os.killpg(pid, signal.SIGKILL)
                    os.kill(pid, signal.SIGKILL)
        return found

    def _report(self, report: tuple[object, ...]) -> None:
        with contextlib.suppress(OSError):  # the node is gone: so are we, in a moment
            self._link.send(msgpack.packb(report))

    def _end(self) -> NoReturn:
        for pid in self._workers:
            self._kill(pid)
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        deadline = monotonic() + _END_TIMEOUT_S
        while monotonic() < deadline:
            self._reap()
            if not self._workers and not self._kill_leftovers():
                break
            if poll.poll(10):
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
        os._exit(0)
