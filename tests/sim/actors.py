"""Actors in the simulator: a program that serves calls, and one that borrows a handle and calls.

`ActorCode` is mixed into UserCode (programs.py). A call's program is one of "work", "die" (kills the actor's process in
its first `times` incarnations), "hang", "exit", "stream" (items), "keep" (oids: takes refs out of its arguments, reads
what they name, and lets go of them at the end or some time after, or `holds` seconds after; gives whether all could be
read), "give" (count: puts
objects and returns refs of them).
"""

from collections.abc import Callable
from typing import Any

import msgpack

from zmesh.core import effects as fx
from zmesh.core.keeper import KeeperCore
from zmesh.core.records import Entry, Handle, Inputs, Task
from zmesh.core.timers import Timers
from zmesh.wire import messages as m
from zmesh.wire.ids import PeerID
from zmesh.wire.keeper_messages import KeepActor

FAILURE = m.ERROR, ("ActorDiedError", "it has ended", {})


class ActorCode:
    """Runs actors; mixed into UserCode."""

    def create(self, process: Any, init: bytes, *, restarts: int = 0, cpus: float = 1, places: int = 1) -> Handle:
        """Make an actor; `init` is a program of kind "actor"."""
        job = process.peer if process.slot < 0 else process.core.thief.job
        shape = {"CPU": int(cpus * m.UNIT)} if cpus else {}
        options = {"max_calls": 1, "places": places}
        spec = process.core.new_spec(job, "A", shape, num_returns=-1, max_retries=restarts, options=options)
        handle: Handle = process.core.new_actor(spec, init, None, 0, name="A", ordered=places == 1)
        process.core.start_actor(handle, self.now)
        self.settle(process)
        return handle

    def keep(
        self,
        process: Any,
        init: bytes,
        name: str,
        *,
        restarts: int = 0,
        here: bool = True,
        inputs: Inputs | None = None,
    ) -> Entry:
        """Have a detached actor made; the entry resolves with Kept. What it needs must be promoted."""
        job = process.peer if process.slot < 0 else process.core.thief.job
        spec = ["A", {"CPU": m.UNIT}, [], {"max_calls": 1, "places": 1}, b"digest", b"blob", restarts, 0]
        inputs = inputs or Inputs()
        deps, held = ([process.core.references.oid(entry) for entry in some] for some in (inputs.deps, inputs.held))
        order = KeepActor(0, job, spec, init, deps, held, "ns", name, b"told", ordered=True, here=here)
        ticket: Entry = process.core.actors.keep(order, inputs.deps)
        self.settle(process)
        return ticket

    def keeper(self, node: Any, effect: fx.StartKeeper | fx.StopKeeper) -> None:
        """A keeper lives as long as its node wants: as a process like others here, that only its host can kill."""
        if isinstance(effect, fx.StopKeeper):
            self.processes[effect.peer].alive = False
            return
        core = KeeperCore(effect.peer, [], Timers(), lambda status: (status >> 8, None, f"ended with {status}"))
        self.processes[effect.peer] = type(node)(f"k{len(self.processes)}", effect.peer, core)

    def call(
        self,
        process: Any,
        handle: Entry,
        code: bytes,
        *,
        retries: int = 0,
        inputs: Inputs | None = None,
        returns: int = 1,
        ordered: bool = True,
        backpressure: int = 0,
    ) -> Task:
        """Call an actor."""
        core = process.core
        job = process.peer if process.slot < 0 else core.thief.job
        key = (process.peer, retries, returns, backpressure)
        spec = self.method_specs.get(key)
        if spec is None:
            options = {"method": "m", "backpressure": backpressure}
            spec = core.new_spec(job, "A.m", {}, num_returns=returns, max_retries=retries, options=options)
            self.method_specs[key] = spec
        actor = core.actors.find(handle, "A", ordered=ordered)
        task: Task = core.call(actor, handle, spec, code, inputs, 0, self.now)
        self.settle(process)
        return task

    def _live(self, process: Any, running: Any, code: dict[str, Any], end: Callable[..., None]) -> None:
        """Be an actor: serve once `seconds` have passed, or fail."""

        def made() -> None:
            if not process.alive or process.core.thief.running is not running:
                return
            if running.attempt < code.get("dies", 0):
                self.kill(process, 3 << 8)
            elif code.get("fails"):
                end(m.ERROR, ("ActorDiedError", "its __init__ raised", {}), [])
            else:
                lent = {"CPU": m.UNIT} if code.get("lends", True) else {}
                process.core.serve({"": running.spec.options["places"]}, lent, b"", self.now)
                self.settle(process)

        self.at(code.get("seconds", 0.001), made)

    def _advance_actor(self, process: Any) -> bool:
        """Let an actor take its next call, or end; returns whether it did."""
        core = process.core
        if self.now < process.stopped_until:
            return False
        call = core.next_call(self.now)
        if call is not None:
            self.call_starts.append((process.peer, call.victim, call.seq, call.attempt))
            self._run_call(process, call, msgpack.unpackb(call.args))
            return True
        if core.server.retired and core.server.idle and core.server.failure is None:
            self._end_actor(process)
            return True
        return bool(core.effects)

    def _end_actor(self, process: Any) -> None:
        core = process.core
        running = core.thief.running
        core.actor_ended(FAILURE, self.now)
        self._finish(process, running, m.END, running.items, [])

    def _run_call(self, process: Any, call: Any, code: dict[str, Any]) -> None:
        core = process.core
        stored = [(value, key) for status, value, key in call.deps if status == m.STORED]
        if any(self._is_gone(process, value[0]) for value, _ in stored):
            core.call_finished(call, m.ERROR, ("ObjectLostError", "its bytes are gone", {}), [], 10, self.now)
            self.settle(process)
            return
        closings = [self._open(process, call, value, key) for value, key in stored]

        def end() -> None:
            if not process.alive or core.server.running.get((call.victim, call.seq)) is not call:
                return
            if self.now < process.stopped_until:
                self.at(process.stopped_until - self.now, end)
                return
            for close in closings:
                if self.rng.random() < 0.7:
                    close()
                else:
                    self.at(self.rng.uniform(0.0, 0.3), close)
            if code["kind"] == "die" and core.thief.running.attempt < code["times"]:
                self.kill(process, 3 << 8)
                return
            if code["kind"] == "exit":
                core.call_finished(call, *FAILURE, [], 10, self.now)
                self._end_actor(process)
                return
            value = msgpack.packb([code.get("value"), core.thief.running.attempt])
            core.call_finished(call, m.INLINE, value, [], 10, self.now)
            self.settle(process)

        if code["kind"] == "keep" and "unpacks" in code:
            self.at(code["unpacks"], lambda: self._keep_refs(process, call, code))
            return
        if code["kind"] == "stream":
            self._stream_call(process, call, code, end)
        elif code["kind"] == "keep":
            self._keep_refs(process, call, code)
        elif code["kind"] == "give":
            self._give_refs(process, call, code["count"])
        elif code["kind"] != "hang":
            self.at(code.get("seconds", 0.0005), end)
        self._unpacked(process, call)

    def _unpacked(self, process: Any, call: Any) -> None:
        call.unpacked = True
        process.core.mourn()

    def _under_way(self, process: Any, call: Any) -> bool:
        return bool(process.alive and process.core.server.running.get((call.victim, call.seq)) is call)

    def _keep_refs(self, process: Any, call: Any, code: dict[str, Any]) -> None:
        if not self._under_way(process, call):
            return
        core = process.core
        entries = [core.references.borrow(oid, caller=call.victim) for oid in code["oids"]]
        self._unpacked(process, call)
        for entry in entries:
            core.fetch(entry)

        def drop() -> None:
            if process.alive:
                for entry in entries:
                    core.references.drop(entry)
                self.settle(process)

        def done() -> None:
            late = self.rng.random() < 0.5 or "holds" in code
            found = all(entry.status in (m.INLINE, m.STORED) for entry in entries)
            if not late:
                drop()
            core.call_finished(call, m.INLINE, msgpack.packb([found, 0]), [], 10, self.now)
            if late:
                self.at(code.get("holds", self.rng.uniform(0.0, 0.3)), drop)

        self.settle(process)
        self.when(process, entries, done, lambda: self._under_way(process, call))

    def _give_refs(self, process: Any, call: Any, count: int) -> None:
        core = process.core
        made = [core.put(m.STORED, self.write(process, i), []) for i in range(count)]
        oids = [core.references.oid(entry) for entry in made]

        def promoted() -> None:
            core.give(call, made)
            core.call_finished(call, m.INLINE, msgpack.packb([oids, 0]), oids, 10, self.now)
            for entry in made:
                core.references.drop(entry)

        ticket = core.references.promote(made)
        self.settle(process)
        self.when(process, [ticket], promoted, lambda: self._under_way(process, call))

    def _stream_call(self, process: Any, call: Any, code: dict[str, Any], end: Callable[[], None]) -> None:
        del end
        core = process.core

        def step() -> None:
            if not process.alive or core.server.running.get((call.victim, call.seq)) is not call:
                return
            if call.stopped is not None or call.items == code["items"]:
                core.call_finished(call, call.stopped or m.END, call.items, [], 10, self.now)
            else:
                if core.may_yield(call):
                    core.item(call, m.INLINE, msgpack.packb(call.items), [], self.now)
                self.at(0.001, step)
            self.settle(process)

        self.at(0.001, step)

    def _use(
        self, process: Any, running: Any, code: dict[str, Any], still: Callable[[], bool], end: Callable[..., None]
    ) -> None:
        """A task borrows a handle, calls, waits, and lets go of the handle now or some time after."""
        del running
        core = process.core
        handle = core.references.borrow(code["oid"])

        def drop() -> None:
            if process.alive:
                core.references.drop(handle)
                self.settle(process)

        def begin() -> None:
            if not still():
                drop()
                return
            passed = [core.references.borrow(oid) for oid in code.get("passes", ())]
            tasks = [
                self.call(process, handle, call, retries=code.get("retries", 0), inputs=Inputs(held=list(passed)))
                for call in code["calls"]
            ]
            for entry in passed:
                core.references.drop(entry)
            core.wait_begins(self.now)

            def done() -> None:
                core.wait_ends(self.now)
                values = [msgpack.unpackb(task.value)[0] if task.status == m.INLINE else None for task in tasks]
                for task in tasks:
                    core.references.drop(task)
                keep = self.rng.random() < 0.5
                if not keep:
                    drop()
                end(m.INLINE, msgpack.packb(values), [])
                if keep:
                    self.at(self.rng.uniform(0.0, 0.3), drop)

            self.settle(process)
            self.when(process, tasks, done, still)

        self.at(code.get("seconds", 0.001), begin)

    def check_order(self) -> None:
        """Each caller's calls started in the order they were made, in each incarnation; none twice in one."""
        last: dict[tuple[PeerID, PeerID], int] = {}
        for worker, caller, seq, _ in self.call_starts:
            assert last.get((worker, caller), 0) < seq, f"seed {self.seed}: call {seq} out of order\n{self.tail()}"
            last[worker, caller] = seq
