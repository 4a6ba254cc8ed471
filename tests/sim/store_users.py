"""Who uses stores with a limit in the simulator: copies between hosts, guests, tasks and programs.

`StoreUsers` is the part of Faulty (faults.py) for that; the stores themselves are in stores.py.
"""

from collections.abc import Callable
from typing import Any

import msgpack

from tests.sim.guests import NBYTES
from tests.sim.simulator import Host, Process
from tests.sim.stores import FULL_ERROR, Store, Stores
from zmesh.core import effects as fx
from zmesh.core.records import Entry
from zmesh.core.spilling import GONE
from zmesh.wire import messages as m
from zmesh.wire.ids import store_peer


class StoreUsers(Stores):
    """A simulation in which limited stores are used; without a limit all is as before."""

    # Other hosts, and guests.

    def _fetch_copy(self, host: Host, effect: fx.FetchCopy) -> None:
        """Copy an object here: room for it first, then its bytes from where they lie, or from its home."""
        if not self.room:
            super()._fetch_copy(host, effect)
            return
        segment = next(self._segments)

        def granted(store: Store, why: str) -> None:
            if why:
                text = "it finds no room here"
                self._soon(host, lambda: host.core.fetched(effect.oid, None, text, self.now, full=True))
                return
            store.ledger.add(segment, NBYTES, [], self.now, held=True)
            self._from_source(host, effect, segment, [effect.producer[:8], effect.oid[:8]])

        def ask(store: Store) -> None:
            store.ledger.room(NBYTES, host.process.peer, self.now, lambda why, text: granted(store, why))

        self._on_store(host, ask)

    def _from_source(
        self, host: Host, effect: fx.FetchCopy, segment: int, sources: list[bytes], full: bool = False
    ) -> None:
        """Ask the next that may have it; `full`: one has, on disk, and no room for it."""
        if not sources:
            self._drop_all(host, [segment])
            host.core.fetched(effect.oid, None, "nobody has it", self.now, full=full)
            return
        source = self.hosts[sources[0]]
        place = source.copies.get(effect.oid, effect.segment if sources[0] == effect.producer[:8] else 0)

        def go_on(no_room: bool = False) -> None:
            self._soon(host, lambda: self._from_source(host, effect, segment, sources[1:], full or no_room))

        answered = False

        def look() -> None:
            if not answered and source.process.alive:
                self.at(1.0, look)
            elif not answered:
                go_on()

        def served(store: Store, why: str) -> None:
            nonlocal answered
            answered = True
            if why:
                go_on(why != GONE)
                return
            content = store.memory[place]
            assert content == self.written[place], f"{content} is served of {place}\n{self.tail()}"
            store.serving[place] = store.serving.get(place, 0) + 1
            self.at(self.rng.uniform(0.001, 0.03), lambda: arrived(store, content))

        def arrived(store: Store, content: int) -> None:
            store.serving[place] -= 1
            if source.process.alive:
                self._on_store(host, lambda mine: written(mine, content))
            else:
                go_on()

        def written(mine: Store, content: int) -> None:
            mine.memory[segment] = self.written[segment] = content
            host.copies[effect.oid] = segment
            mine.ledger.unhold(segment, self.now)
            host.core.fetched(effect.oid, (segment, effect.nbytes, host.process.peer), "", self.now)

        def ask(store: Store) -> None:
            store.ledger.open(place, source.process.peer, self.now, lambda why, text: served(store, why))

        if not source.process.alive or not place or source is host:
            go_on()
        else:
            self._on_store(source, ask)
            look()

    def _soon(self, host: Host, action: Callable[[], None]) -> None:
        self.at(self.rng.uniform(0.001, 0.05), lambda: self._on_store(host, lambda store: action()))

    # Programs.

    def _enter(self, process: Process, running: Any, stored: list[Any]) -> None:
        if not self.room:
            super()._enter(process, running, stored)
            return
        closings: list[Callable[[], None]] = []
        gone: list[Any] = []

        def go_on(left: list[Any]) -> None:
            if not process.alive or process.core.thief.running is not running:
                return
            if left:
                self.map_segment(process, left[0][0][0], lambda why: mapped(left, why))
            elif gone:
                self._finish(process, running, m.LOST, gone, [])
            else:
                self._execute(process, running, msgpack.unpackb(running.args), closings)

        def mapped(left: list[Any], why: str) -> None:
            value, key = left[0]
            if not process.alive or process.core.thief.running is not running:
                return
            if not why:
                closings.append(self._open(process, running, value, key))
            elif why == GONE:
                gone.append((key, value[0], value[2]))
            else:
                for close in closings:
                    close()
                self._finish(process, running, *FULL_ERROR, [])
                return
            go_on(left[1:])

        go_on(stored)

    def _execute(self, process: Any, running: Any, code: dict[str, Any], closings: list[Callable[[], None]]) -> None:
        if not self.room or code["kind"] != "big":
            super()._execute(process, running, code, closings)
            return

        def still() -> bool:
            return bool(process.alive and process.core.thief.running is running)

        def write(segment: int) -> None:
            if not still():
                if process.alive and segment:
                    process.free.append(segment)
                return
            for close in closings:
                close()
            if segment:
                self._finish(process, running, m.STORED, self.fill(process, segment), [])
            else:
                self._finish(process, running, *FULL_ERROR, [])

        self.at(code.get("seconds", 0.001), lambda: self.allocate(process, write) if still() else None)

    def put_stored(self, process: Process) -> Entry | None:
        """Put something large, as `zmesh.put` does; None if there was no room, or the program died."""
        found: list[int] = []
        self.allocate(process, found.append)
        self.run_until(lambda: bool(found) or not process.alive, 300.0)
        if not process.alive or not found[0]:
            return None
        entry: Entry = process.core.put(m.STORED, self.fill(process, found[0]), [])
        return entry

    def look_at(self, process: Process, entry: Entry, seconds: float) -> str:
        """Read a resolved entry and keep a view of it for so long; returns "" or the error."""
        references = process.core.references
        ticket = references.localize([entry])
        self.settle(process)
        if ticket is not None:
            self.run_until(lambda: not process.alive or ticket.status != m.PENDING, 300.0)
        status, place = references.location(entry)
        if not process.alive or status != m.STORED:
            return str(place[0]) if process.alive and status == m.ERROR else ""
        found: list[str] = []
        references.pin(entry)
        self.map_segment(process, place[0], found.append)
        self.run_until(lambda: not process.alive or bool(found), 300.0)
        if not process.alive:
            return ""
        process.views[place[0]] = process.views.get(place[0], 0) + 1

        def close() -> None:
            if process.alive:
                process.views[place[0]] -= 1
                references.unpin(entry)
                self.settle(process)

        self.at(0.0 if found[0] else seconds, close)
        return {"": "", GONE: "ObjectLostError"}.get(found[0], "StoreFullError")

    def _serve_guest(self, host: Host, guest: bytes, request: list[Any]) -> None:
        if not self.room:
            super()._serve_guest(host, guest, request)
            return
        number, verb, segment = request

        def answer(*facts: Any) -> None:
            host.core.forward(store_peer(host.id), guest, msgpack.packb([number, *facts]), self.now)

        def granted(store: Store, why: str) -> None:
            if why:
                answer("full")
                return
            store.ledger.add(segment, NBYTES, [], self.now, held=True)
            self.written[segment] = store.memory[segment] = next(self._contents)
            self.makers[segment] = guest
            store.ledger.unhold(segment, self.now)
            answer()

        def opened(store: Store, why: str) -> None:
            assert why or store.memory[segment] == self.written[segment], f"of {segment}\n{self.tail()}"
            answer(*([b"bytes"] if not why else [] if why == GONE else [b"", 1]))

        def carry_out(store: Store) -> None:
            if verb == "write":
                store.ledger.room(NBYTES, guest, self.now, lambda why, text: granted(store, why))
            elif verb == "read":
                store.ledger.open(segment, b"", self.now, lambda why, text: opened(store, why))
            elif self.makers.get(segment) == guest:
                self._drop(store, segment)

        self._on_store(host, carry_out, settle=False)
