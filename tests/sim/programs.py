"""User code in the simulator: a little language of programs, and what each does to the process that runs it.

`UserCode` is the part of the Simulation (simulator.py) that runs them; time, fate and messages are the Simulation's.
"""

from collections.abc import Callable
from typing import Any

import msgpack

from tests.sim.actors import ActorCode
from zmesh.core.records import Entry
from zmesh.wire import messages as m


def program(kind: str, **fields: Any) -> bytes:
    """Return the arguments of a simulated task.

    Kinds: "work" (seconds, value), "die" (seconds, times: attempts that kill the worker), "raise", "retry" (times),
    "big" (value: stored), "nest" (children: programs it submits, waits for and returns the values of),
    "stream" (items, stored), "many" (values), "parts" (count: all but the last are stored), "borrow" (oids), "unpack",
    (`keeps` them for a while, if not by chance), "hand_back" (oid), "give" (count, stored), "hang"; "actor" and
    "use": see actors.py.
    """
    packed: bytes = msgpack.packb({"kind": kind, **fields})
    return packed


SIGKILL = 9


def describe_status(status: int) -> tuple[int | None, str | None, str]:
    """Return what runtime/forkserver.py says of a status."""
    if status == SIGKILL:
        return None, "SIGKILL", "was killed by SIGKILL"
    return status >> 8, None, f"ended with exit code {status >> 8}"


class Reader:
    """Reads a stream as a for loop does: takes each item, says so, lets go of it; until the end, or `drop`."""

    def __init__(self, sim: Any, process: Any, task: Any, seconds: float = 0.001) -> None:
        self.sim = sim
        self.process = process
        self.task = task
        self.seconds = seconds
        self.seen: list[Any] = []
        self.taken = 0
        self.ended = False
        self.failure: Any = None
        sim.at(seconds, self._step)

    def drop(self) -> None:
        """Let go of the generator."""
        self.ended = True
        if self.process.alive:
            self.process.core.tasks.abandon(self.task, self.taken)
            self.sim.settle(self.process)

    def _read(self, entry: Entry) -> None:
        if self.process.alive:
            status, value = self.process.core.references.location(entry)
            if status in (m.FAILED, m.ERROR):
                self.failure = value
            else:
                self.seen.append(msgpack.unpackb(value) if status == m.INLINE else "stored")
            self.process.core.references.drop(entry)
            self.sim.settle(self.process)
        self.sim.at(self.seconds, self._step)

    def _step(self) -> None:
        outputs, core = self.task.outputs, self.process.core
        if self.ended or not self.process.alive:
            self.ended = True
        elif self.taken < len(outputs):
            entry = outputs[self.taken]
            self.taken += 1
            core.tasks.consumed(self.task, self.taken)
            ticket = core.references.localize([entry])
            self.sim.settle(self.process)
            self.sim.when(self.process, [ticket] if ticket else [], lambda: self._read(entry), lambda: not self.ended)
        elif self.task.status != m.PENDING:
            self.ended = True
        else:
            self.sim.at(self.seconds, self._step)


class UserCode(ActorCode):
    """Runs programs; mixed into Simulation."""

    def _execute(self, process: Any, running: Any, code: dict[str, Any], closings: list[Callable[[], None]]) -> None:
        seconds = code.get("seconds", 0.001)

        def still() -> bool:
            return process.alive and process.core.thief.running is running

        def end(status: int, value: Any, inside: list[bytes]) -> None:
            if not still():
                return
            if self.now < process.stopped_until:
                self.at(process.stopped_until - self.now, lambda: end(status, value, inside))
                return
            for close in closings:
                if self.rng.random() < 0.7:
                    close()
                else:  # a global keeps the array beyond the task
                    self.at(self.rng.uniform(0.0, 0.3), close)
            self._finish(process, running, status, value, inside)

        kind = code["kind"]
        if kind == "work":
            self.at(seconds, lambda: end(m.INLINE, msgpack.packb(code.get("value")), []))
        elif kind == "die" and running.attempt < code["times"]:
            self.at(seconds, lambda: self.kill(process, 3 << 8) if still() else None)
        elif kind == "raise" or (kind == "retry" and running.attempt < code["times"]):
            status = m.RETRYABLE if kind == "retry" else m.FAILED
            self.at(seconds, lambda: end(status, b"error", []))
        elif kind == "big":
            self.at(seconds, lambda: end(m.STORED, self.write(process, code.get("value")), []) if still() else None)
        elif kind == "nest":
            self._nest(process, running, code["children"], end)
        elif kind == "many":
            values = [(m.INLINE, msgpack.packb(value), []) for value in code["values"]]
            self.at(seconds, lambda: end(m.MANY, values, []))
        elif kind == "parts":
            self.at(seconds, lambda: self._parts(process, code["count"], end) if still() else None)
        elif kind == "stream":
            self._stream(process, running, code, end)
        elif kind == "borrow":
            self._borrow(process, code["oids"], seconds, still, end)
        elif kind == "unpack":
            self._unpack(process, running, code, still, end)
        elif kind == "hand_back":
            self._hand_back(process, running, code["oid"], end)
        elif kind == "give":
            self._give(process, running, code, still, end)
        elif kind == "actor":
            self._live(process, running, code, end)
        elif kind == "use":
            self._use(process, running, code, still, end)
        elif kind != "hang":
            self.at(seconds, lambda: end(m.INLINE, msgpack.packb(code.get("value")), []))

    def _parts(self, process: Any, count: int, end: Callable[..., None]) -> None:
        parts = [(m.STORED, self.write(process, index), []) for index in range(count - 1)]
        end(m.MANY, [*parts, (m.INLINE, msgpack.packb(count), [])], [])

    def _nest(self, process: Any, running: Any, children: list[bytes], end: Callable[..., None]) -> None:
        """Submit children and wait for them all, as `get([f.remote(...) ...])` does."""
        core = process.core
        if process.spec is None:
            process.spec = self.spec(process)
        tasks = [core.submit(process.spec, child, None, running.depth + 1, self.now) for child in children]
        core.wait_begins(self.now)

        def look() -> None:
            if not process.alive or core.thief.running is not running:
                return
            if any(task.status == m.PENDING for task in tasks):
                self.at(0.0005, look)
                return
            core.wait_ends(self.now)
            failed = [task for task in tasks if task.status in (m.FAILED, m.ERROR)]
            values = [None if task in failed else msgpack.unpackb(task.value) for task in tasks]
            for task in tasks:
                core.references.drop(task)
            if failed:
                end(m.FAILED, b"child failed", [])
            else:
                end(m.INLINE, msgpack.packb(values), [])
            self.settle(process)

        self.at(0.0005, look)

    def _stream(self, process: Any, running: Any, code: dict[str, Any], end: Callable[..., None]) -> None:
        items, seconds = code["items"], code.get("seconds", 0.001)

        def step() -> None:
            if not process.alive or process.core.thief.running is not running:
                return
            if running.stopped is not None or running.items == items:
                end(running.stopped or m.END, running.items, [])
                self.settle(process)
                return
            if process.core.may_yield(running):
                if code.get("stored"):
                    process.core.item(running, m.STORED, self.write(process, running.items), [], self.now)
                else:
                    process.core.item(running, m.INLINE, msgpack.packb(running.items), [], self.now)
                self.settle(process)
            self.at(seconds, step)

        self.at(seconds, step)

    def when(self, process: Any, entries: list[Entry], then: Callable[[], None], still: Callable[[], bool]) -> None:
        """Call `then` once all entries have a value, if the process still cares."""
        if still():
            if any(entry.status == m.PENDING for entry in entries):
                self.at(0.0003, lambda: self.when(process, entries, then, still))
            else:
                then()
                self.settle(process)

    def _borrow(
        self,
        process: Any,
        oids: list[bytes],
        seconds: float,
        still: Callable[[], bool],
        end: Callable[..., None],
        *,
        keeps: bool = False,
    ) -> None:
        """Take refs out of the arguments, read what they name, and let go of them at the end or some time after."""
        references = process.core.references
        entries = [references.borrow(oid) for oid in oids]
        for entry in entries:
            process.core.fetch(entry)

        def drop() -> None:
            if process.alive:
                for entry in entries:
                    references.drop(entry)
                self.settle(process)

        def done() -> None:
            process.core.wait_ends(self.now)
            keep = self.rng.random() < 0.5 or keeps
            values = [entry.status in (m.INLINE, m.STORED) for entry in entries]
            if not keep:
                drop()
            end(m.INLINE, msgpack.packb(values), [])
            if keep:
                self.at(self.rng.uniform(0.2 if keeps else 0.0, 0.3), drop)

        def wait() -> None:
            if still():
                process.core.wait_begins(self.now)
                self.settle(process)
                self.when(process, entries, done, still)

        self.at(seconds, wait)

    def _unpack(
        self, process: Any, running: Any, code: dict[str, Any], still: Callable[[], bool], end: Callable[..., None]
    ) -> None:
        """Take refs out of values that came as arguments, and do with them as `_borrow`."""
        values = [msgpack.unpackb(value) for status, value, _ in running.deps if status == m.INLINE]
        oids = [oid for value in values for oid in value]
        self._borrow(process, oids, code.get("seconds", 0.001), still, end, keeps=code.get("keeps", False))

    def _hand_back(self, process: Any, running: Any, oid: bytes, end: Callable[..., None]) -> None:
        """Return a ref that this process kept from a task before."""
        references = process.core.references
        entry = references._borrowed[oid]
        process.core.give(running, [entry])
        end(m.INLINE, msgpack.packb([oid]), [oid])

    def _give(
        self, process: Any, running: Any, code: dict[str, Any], still: Callable[[], bool], end: Callable[..., None]
    ) -> None:
        """Put objects and return refs of them: the worker holds them until the victim does."""
        references = process.core.references
        made = []
        for index in range(code["count"]):
            stored = code["stored"] and index % 2 == 0
            status = m.STORED if stored else m.INLINE
            made.append(process.core.put(status, self.write(process, index) if stored else msgpack.packb(index), []))
        oids = [references.oid(entry) for entry in made]

        def promoted() -> None:
            process.core.give(running, made)
            end(m.INLINE, msgpack.packb(oids), oids)
            for entry in made:
                references.drop(entry)

        ticket = references.promote(made)
        assert ticket is not None
        self.settle(process)
        self.when(process, [ticket], promoted, still)
