"""How lost objects are made again: what the tasks behind stored results need to run once more, kept by their owner.

    bytes lost --Missing--> home --Missing--> owner: runs the task again, and what it needs first
                <--Fetched--     <--Resolve--

Nothing is made again before somebody asks for it, as a copy may be known. A recipe lives as long as the result, or
what was made from it. It holds no other objects: an input that was freed is made again too, under a new ID, and one
that cannot be, as it was put or came out of another process, must still be held by somebody. How often a task may run
is its max_retries, whatever for. Who needs which bytes is core/references.py's business.

Source: ownership and lineage reconstruction, Wang et al., NSDI 2021.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from zmesh.core.effects import Effect, Send
from zmesh.core.records import Entry, Inputs, Spec, Task
from zmesh.core.timers import Timers
from zmesh.wire.ids import NODE_ID_BYTES, NodeID, ObjectID, node_peer, split_object_id
from zmesh.wire.lineage_messages import Missing, Remember, Seek
from zmesh.wire.messages import ERROR, FAILED, INLINE, PENDING, STORED, Resolve

LINEAGE_BYTES_MAX = 64 * 1024 * 1024  # of one owner
RECIPE_BYTES = 512  # of a recipe without its arguments
EVICT_AMONG = 16  # the largest of so many of the oldest goes first
_GONE_FROM = "its bytes are gone from where they lay"
NOT_MADE_BY_A_TASK = "it was put, came from an actor, or is an item of a stream: these cannot be made again"

Failure = tuple[str, str, dict[str, Any]]  # an ERROR value
Then = Callable[[Failure | None, float], None]  # called with why it could not be made, and the time
Source = Entry | tuple[int, int]  # an input: an entry, held by others or ours alone, or (seq, index) of another recipe


@dataclass(slots=True)
class Recipe:
    """One task with stored results. `why` is "" or why it can never run again; then there is nothing else."""

    seq: int
    spec: Spec
    depth: int
    attempt: int
    why: str = ""
    args: Any = None
    deps: list[Source] = field(default_factory=list)
    nested: list[Entry] = field(default_factory=list)  # refs inside arguments: others must hold them
    large: Entry | None = None  # of stored arguments, held
    nbytes: int = 0
    entries: dict[int, Entry] = field(default_factory=dict)  # {index: stored result that this process needs}
    remembered: dict[int, NodeID] = field(default_factory=dict)  # {index: where it lies} that only others need now
    children: int = 0  # inputs of other recipes
    again: Task | None = None  # its run under way
    wanted: dict[int, list[Then]] = field(default_factory=dict)  # {index: who waits for it}
    gone: dict[NodeID, bool] = field(default_factory=dict)  # {node: True} on which those lay


class Lineage:
    """The recipes of one client, and what is being made again.

    Args:
        references, tasks: those of the client.
        home: PeerID of this host's node.
        run: submits a task again: (spec, args, inputs, depth, attempt, now).
        needed: whether results may be lost while this process lives: there are other hosts.
    """

    def __init__(
        self,
        effects: list[Effect],
        timers: Timers,
        *,
        references: Any,
        tasks: Any,
        home: Callable[[], bytes],
        run: Callable[[Spec, Any, Inputs | None, int, int, float], Task],
        needed: Callable[[], bool],
    ) -> None:
        self._effects = effects
        self._timers = timers
        self._references = references
        self._tasks = tasks
        self._home = home
        self._run_task = run
        self._needed = needed
        self._recipes: dict[int, Recipe] = {}  # {seq of the task: recipe}
        self._whole: dict[int, Recipe] = {}  # those that can run, oldest first
        self._nbytes = 0  # of these
        self._over: deque[tuple[Recipe, float]] = deque()  # runs that ended and were not dealt with
        self._busy = False  # dealing with them
        self._sought: dict[ObjectID, tuple[Entry, list[Then]]] = {}  # borrowed ones, asked for at their homes

    def __len__(self) -> int:
        return len(self._recipes)

    # What is kept.

    def note(self, task: Task, results: list[Entry]) -> None:
        """A task is about to be resolved, and these results are stored: keep what it takes to make them again.

        What an actor gives is never made again: it comes of the state that the actor had then.
        """
        if type(task) is not Task or not self._needed():
            return
        recipe = Recipe(task.seq, task.spec, task.depth, self._tasks.charged(task))
        recipe.entries = {entry.index: entry for entry in results}
        self._recipes[task.seq] = recipe
        name = task.spec.name
        if task.spec.num_returns < 0:
            recipe.why = f"{name} is a stream, of which no single item can be made again"
        elif not task.spec.max_retries:
            recipe.why = f"{name} has max_retries=0"
        else:
            self._keep(recipe, task)
            if recipe.nbytes > LINEAGE_BYTES_MAX:
                self._evict(recipe)  # alone: it would take all others with it
            self._trim()

    def _keep(self, recipe: Recipe, task: Task) -> None:
        args, inputs = task.args, task.inputs
        recipe.args = args
        recipe.nbytes = RECIPE_BYTES + (len(args) if type(args) is bytes else args[1])
        for entry in inputs.held if inputs is not None else ():
            if type(args) is not bytes and entry.seq == args[3] and not _is_borrowed(entry):
                entry.refs += 1
                recipe.large = entry
            else:
                recipe.nested.append(entry)
        for entry in inputs.deps if inputs is not None else ():
            parent = self._recipes.get(entry.seq)
            if entry.status == INLINE:
                recipe.deps.append(Entry(0, 0, INLINE, entry.value))
                recipe.nbytes += len(entry.value)
                recipe.nested += entry.share.inside if entry.share is not None else []
            elif parent is not None and parent.entries.get(entry.index) is entry:
                recipe.deps.append((entry.seq, entry.index))
                parent.children += 1
            else:
                recipe.deps.append(entry)
        self._whole[recipe.seq] = recipe
        self._nbytes += recipe.nbytes

    def _trim(self) -> None:
        while self._nbytes > LINEAGE_BYTES_MAX:
            oldest = islice(self._whole.values(), EVICT_AMONG)
            self._evict(max(oldest, key=lambda recipe: recipe.nbytes))

    def _evict(self, recipe: Recipe) -> None:
        recipe.why = (
            f"what it takes to run {recipe.spec.name} again was dropped, as such things took more than "
            f"{LINEAGE_BYTES_MAX:,} bytes or their room was needed"
        )
        self._drop_unused(self._empty(recipe))

    def make_room(self) -> None:
        """The store is full: what holds arguments there goes."""
        for recipe in [recipe for recipe in self._whole.values() if recipe.large is not None]:
            self._evict(recipe)

    def _empty(self, recipe: Recipe) -> list[Recipe]:
        """Let go of what a recipe has; returns the recipes it needed."""
        if self._whole.pop(recipe.seq, None) is None:
            return []
        self._nbytes -= recipe.nbytes
        parents = [self._recipes[source[0]] for source in recipe.deps if isinstance(source, tuple)]
        for parent in parents:
            parent.children -= 1
        large, recipe.large = recipe.large, None
        recipe.args, recipe.deps, recipe.nested, recipe.nbytes = None, [], [], 0
        if large is not None:
            self._references.drop(large)
        return parents

    def _drop_unused(self, todo: list[Recipe]) -> None:
        while todo:
            recipe = todo.pop()
            used = recipe.entries or recipe.remembered or recipe.children or recipe.again is not None
            if not used and self._recipes.get(recipe.seq) is recipe:
                todo += self._empty(recipe)
                del self._recipes[recipe.seq]

    def freed(self, entry: Entry, place: Any) -> None:
        """This process needs a stored result no more. If its home counts it, it is asked to say when that ends."""
        recipe = self._recipes.get(entry.seq)
        if recipe is None or recipe.entries.get(entry.index) is not entry:
            return
        del recipe.entries[entry.index]
        if entry.share is not None and entry.share.promoted:
            recipe.remembered[entry.index] = _node(place) if entry.status == STORED else b""
            self._effects.append(Send(self._home(), Remember([self._references.oid(entry)])))
        self._drop_unused([recipe])

    def forget(self, oids: list[ObjectID]) -> None:
        """Nobody needs these results any more."""
        for oid in oids:
            _, seq, index = split_object_id(oid)
            recipe = self._recipes.get(seq)
            if recipe is not None and recipe.remembered.pop(index, None) is not None:
                self._drop_unused([recipe])

    # What is lost.

    def remake(self, entry: Entry, place: Any, why: str, then: Then) -> None:
        """Have the bytes of a stored entry made again, which cannot be had at that place; `then` hears of the end.

        The entry has its new place, or value, by then. Nothing happens before the next tick.
        """
        entry.refs += 1

        def over(failure: Failure | None, now: float) -> None:
            then(failure, now)
            self._references.drop(entry)

        if _is_borrowed(entry):
            self._seek(entry, place, over)
        else:
            self._timers.set(0.0, lambda now: self._remake(entry, place, why, over, now))

    def _remake(self, entry: Entry, place: Any, why: str, then: Then, now: float) -> None:
        recipe = self._recipes.get(entry.seq)
        if entry.status != STORED or _spot(entry.value) != _spot(place):
            then(None, now)  # it was made again already
        elif recipe is None or recipe.entries.get(entry.index) is not entry:
            failure = self._lost(self._references.oid(entry), why, self._maker_unknown(entry))
            if not self._tasks.await_item(entry, place, now, lambda made, at: then(None if made else failure, at)):
                then(failure, now)
        else:
            self._want(recipe, entry.index, _node(place), why, then, now)

    @staticmethod
    def _maker_unknown(entry: Entry) -> str:
        if type(entry) is Task:
            return f"{entry.spec.name} made it when there were no other hosts, so how was not kept"
        return NOT_MADE_BY_A_TASK

    def recover(self, entry: Entry, then: Then) -> None:
        """As `remake`, of an entry that somebody else could not get: a copy that this host can have will do."""
        place = entry.value
        if _is_borrowed(entry) or not self._references.is_away(entry):
            self.remake(entry, place, _GONE_FROM, then)
            return
        entry.refs += 1

        def looked() -> None:
            status, value = self._references.location(entry)
            if status == ERROR and value[0] == "ObjectLostError":
                self.remake(entry, place, value[1], then)
            else:
                self._timers.set(0.0, lambda now: then(value if status == ERROR else None, now))
            self._references.drop(entry)

        self._references.when_local([entry], looked)

    def _want(self, recipe: Recipe, index: int, lay_on: NodeID, why: str, then: Then, now: float) -> None:
        """Run the task of a recipe for one of its results, and for all that lay where that did."""
        if recipe.again is None:
            chain = self._why_never(recipe)
            if chain:
                then(self._lost(self._references.own_id(recipe.seq, index), why, chain), now)
                return
        recipe.wanted.setdefault(index, []).append(then)
        recipe.gone[lay_on] = True
        if recipe.again is None:
            self._start(recipe, now)

    @staticmethod
    def _lost(oid: ObjectID, why: str, chain: str) -> Failure:
        return "ObjectLostError", f"object {oid.hex()} is lost ({why}): {chain}", {}

    # Running tasks again.

    def _freed_inputs(self, recipe: Recipe) -> list[tuple[Recipe, int]]:
        """Return what must run first: (recipe, index) of inputs that nobody has any more."""
        found = []
        for source in recipe.deps:
            if isinstance(source, tuple):
                parent, index = self._recipes[source[0]], source[1]
                if index not in parent.entries and index not in parent.remembered:
                    found.append((parent, index))
        return found

    def _why_never(self, recipe: Recipe) -> str:
        """Return "" if the task can run again and so can all it needs; else the chain to the one that cannot."""
        seen = {recipe.seq: True}
        todo = [(recipe, "")]
        while todo:
            one, chain = todo.pop()
            if one.again is not None:
                continue
            reason = self._reason(one)
            if reason:
                return f"{chain}{reason}"
            for parent, index in self._freed_inputs(one):
                if parent.seq not in seen:
                    seen[parent.seq] = True
                    oid = self._references.own_id(parent.seq, index).hex()
                    todo.append((parent, f"{chain}{one.spec.name} needs object {oid} to make it again, and "))
        return ""

    def _reason(self, recipe: Recipe) -> str:
        spec, name = recipe.spec, recipe.spec.name
        if recipe.why:
            return recipe.why
        if 0 < spec.max_retries <= recipe.attempt:
            return f"{name} was started {recipe.attempt + 1} times, as often as max_retries={spec.max_retries} allows"
        needs = [source for source in recipe.deps if isinstance(source, Entry)]
        for entry in (*needs, *recipe.nested):
            if not entry.refs:
                oid = self._references.oid(entry).hex()
                return f"{name} needs object {oid} to make it again, which was put or borrowed, and let go of"
        return ""

    def _start(self, recipe: Recipe, now: float) -> None:
        """Run it again, and before it whatever it needs and nobody has."""
        todo = [recipe]
        started = []
        while todo:
            one = todo[-1]
            first = [parent for parent, _ in self._freed_inputs(one) if parent.again is None]
            if one.again is not None or not first:
                todo.pop()
                if one.again is None:
                    self._run(one, now)
                    started.append(one)
            else:
                todo += first
        for one in started:
            assert one.again is not None
            if one.again.status != PENDING:  # an input had failed
                self._ended(one, now)

    def _run(self, recipe: Recipe, now: float) -> None:
        deps, borrowed = [], []
        for source in recipe.deps:
            if isinstance(source, Entry):
                deps.append(source)
                continue
            parent, index = self._recipes[source[0]], source[1]
            if index in parent.entries:
                deps.append(parent.entries[index])
            elif index in parent.remembered:
                entry = self._references.reclaim(self._references.own_id(parent.seq, index))
                deps.append(entry)
                borrowed.append(entry)
            else:
                assert parent.again is not None
                deps.append(_results(parent.again)[index])
        held = [*recipe.nested, *([recipe.large] if recipe.large is not None else [])]
        inputs = Inputs(deps, held) if deps or held else None
        recipe.attempt += 1
        recipe.again = self._run_task(recipe.spec, recipe.args, inputs, recipe.depth, recipe.attempt, now)
        if recipe.again.status == PENDING:
            self._tasks.when_resolved(recipe.again, lambda then: self._ended(recipe, then))
        for entry in borrowed:
            self._references.drop(entry)

    def _ended(self, recipe: Recipe, now: float) -> None:
        """A run is over. One that fails those that wait for it is dealt with here, whatever the length of the chain."""
        self._over.append((recipe, now))
        if self._busy:
            return
        self._busy = True
        while self._over:
            self._finish(*self._over.popleft())
        self._busy = False

    def _finish(self, recipe: Recipe, now: float) -> None:
        task, recipe.again = recipe.again, None
        assert task is not None
        noted = self._recipes.get(task.seq)
        recipe.attempt = task.attempt if noted is None else noted.attempt
        wanted, recipe.wanted = recipe.wanted, {}
        results = _results(task)
        if task.status not in (FAILED, ERROR):
            for index in self._lost_besides(recipe, wanted):
                self._adopt(recipe, index, results[index])
        recipe.gone.clear()
        for index, thens in wanted.items():
            failure = self._failure(recipe, index, task)
            if failure is None:
                self._adopt(recipe, index, results[index])
            for then in thens:
                then(failure, now)
        for entry in results:
            self._references.drop(entry)
        self._drop_unused([recipe])

    def _lost_besides(self, recipe: Recipe, wanted: dict[int, list[Then]]) -> list[int]:
        """Return the results that lay where those that are wanted did: each in a run of its own would cost retries."""
        entries = {index: entry for index, entry in recipe.entries.items() if entry.status == STORED}
        found = [index for index, entry in entries.items() if self._references.is_away(entry)]
        places = {index: _node(entries[index].value) for index in found} | recipe.remembered
        return [index for index, node in places.items() if node in recipe.gone and index not in wanted]

    def _failure(self, recipe: Recipe, index: int, task: Task) -> Failure | None:
        if task.status not in (FAILED, ERROR):
            return None
        told = task.value[1] if task.status == ERROR else "it raised an exception this time"
        oid = self._references.own_id(recipe.seq, index)
        return self._lost(oid, "its bytes are gone", f"{recipe.spec.name} was run again to make it, and failed: {told}")

    def _adopt(self, recipe: Recipe, index: int, made: Entry) -> None:
        """Give a result that was made again to whoever has the old one."""
        copy = self._recipes.get(made.seq)  # of the run itself
        if copy is not None and copy.entries.pop(made.index, None) is not None:
            self._drop_unused([copy])
        entry = recipe.entries.get(index)
        if entry is not None:
            self._references.replace(entry, made)
            if entry.status != STORED:
                recipe.entries.pop(index, None)
        else:
            if index in recipe.remembered:
                recipe.remembered[index] = _node(made.value) if made.status == STORED else b""
            self._references.hand_over(self._references.own_id(recipe.seq, index), made)

    # Who asks.

    def starved(self, task: Task, lost: list[Any], now: float) -> None:
        """A thief could not have these arguments: [[key, segment, producer], ...]. The task waits for them again."""
        tried = {key if isinstance(key, bytes) else tuple(key): (segment, by) for key, segment, by in lost}
        inputs = task.inputs
        tickets = []
        for entry in (*inputs.deps, *inputs.held) if inputs is not None else ():
            if entry.status == STORED:
                segment, _, producer = self._references.place(entry.value)
                if tried.pop(self._references.lend(entry), None) == (segment, producer):
                    tickets.append(self._ticket(entry))
        self._tasks.starved(task, tickets, now)

    def _ticket(self, entry: Entry) -> Entry:
        ticket = Entry(0)

        def over(failure: Failure | None, now: float) -> None:
            ticket.status, ticket.value = (INLINE, None) if failure is None else (ERROR, failure)
            self._tasks.entry_resolved(ticket, now)

        self.recover(entry, over)
        return ticket

    def missing(self, objects: list[Any], now: float) -> None:
        """The home asks for objects of ours that somebody could not get: [[ObjectID, segment, producer], ...]."""
        for oid, segment, producer in objects:
            _, seq, index = split_object_id(oid)
            recipe = self._recipes.get(seq)
            entry = self._references.own(seq, index)
            answer = self._answer(oid, entry)
            if (
                entry is not None
                and entry.status == STORED
                and _spot(self._references.told(entry)) == (segment, producer)
            ):
                self.recover(entry, answer)
            elif entry is not None:
                answer(None, now)
            elif recipe is not None and index in recipe.remembered:
                if recipe.remembered[index] == producer[:NODE_ID_BYTES]:  # else the home was told meanwhile
                    self._want(recipe, index, producer[:NODE_ID_BYTES], _GONE_FROM, answer, now)
            else:
                answer(self._lost(oid, _GONE_FROM, NOT_MADE_BY_A_TASK), now)

    def _answer(self, oid: ObjectID, entry: Entry | None) -> Then:
        def answer(failure: Failure | None, now: float) -> None:
            del now
            if failure is not None:
                self._effects.append(Send(self._home(), Resolve([(oid, ERROR, failure, [])])))
            elif entry is not None:
                self._references.tell(entry)

        return answer

    # Borrowed ones.

    def _seek(self, entry: Entry, place: Any, then: Then) -> None:
        oid = entry.share.oid if entry.share is not None else None
        assert oid is not None
        known = self._sought.get(oid)
        if known is not None:
            known[1].append(then)
            return
        self._sought[oid] = (entry, [then])
        segment, _, producer = place
        self._effects.append(Send(node_peer(oid[:NODE_ID_BYTES]), Missing([(oid, segment, producer)])))

    def fetched(self, objects: list[Any], now: float) -> None:
        """Homes say where objects lie now, or why they are lost."""
        for oid, status, value in objects:
            entry, thens = self._sought.pop(oid, (None, []))
            if entry is not None:
                self._references.moved_to(entry, status, value)
            for then in thens:
                then(value if status == ERROR else None, now)

    def home_gone(self, node: NodeID) -> None:
        """A home answers no more: there may be replicas."""
        gone = [oid for oid in self._sought if oid[:NODE_ID_BYTES] == node]
        if gone:
            self._effects.append(Send(self._home(), Seek(gone)))

    def lose_node(self, failure: Any, now: float) -> None:
        """Our own node is gone, and with it whoever could answer, and all that others have of ours."""
        self.fetched([(oid, ERROR, failure) for oid in list(self._sought)], now)
        for recipe in list(self._recipes.values()):
            recipe.remembered.clear()
            self._drop_unused([recipe])

    def check(self) -> None:
        """Verify the tables; for tests and the simulator."""
        assert self._nbytes == sum(recipe.nbytes for recipe in self._whole.values())
        assert self._nbytes <= LINEAGE_BYTES_MAX
        assert not self._over
        needed: dict[int, int] = {}
        for recipe in self._whole.values():
            for source in recipe.deps:
                if isinstance(source, tuple):
                    needed[source[0]] = needed.get(source[0], 0) + 1
        for seq, recipe in self._recipes.items():
            assert recipe.children == needed.get(seq, 0), (recipe.children, needed.get(seq, 0))
            assert recipe.entries or recipe.remembered or recipe.children or recipe.again is not None
            assert bool(recipe.why) != (seq in self._whole)
            assert not recipe.wanted or recipe.again is not None
            assert bool(recipe.wanted) == bool(recipe.gone)
            assert all(entry.refs or (entry.share is not None) for entry in recipe.entries.values())


def _is_borrowed(entry: Entry) -> bool:
    return entry.share is not None and entry.share.oid is not None


def _spot(place: Any) -> tuple[int, bytes]:
    return place[0], place[2]


def _node(place: Any) -> NodeID:
    node: NodeID = place[2][:NODE_ID_BYTES]
    return node


def _results(task: Task) -> list[Entry]:
    return [task] if task.outputs is None else task.outputs
