"""One owner whose results lie on hosts that die: what is kept, what runs again, and what says why it does not."""

from typing import Any

import pytest

from zmesh.core import lineage
from zmesh.core.client import ClientCore
from zmesh.core.effects import Effect, Recycle, Send
from zmesh.core.records import Entry, Inputs, Spec, Task
from zmesh.core.tasks import STARVED_MAX
from zmesh.core.timers import Timers
from zmesh.core.worker import WorkerCore
from zmesh.wire import messages as m
from zmesh.wire.codec import decode, encode
from zmesh.wire.ids import node_peer, object_id
from zmesh.wire.lineage_messages import Forget, Missing, Remember, Seek

US, FAR, THIRD = b"us......", b"far.....", b"third..."
NODE = node_peer(US)
D = US + b"driver.d"
NEAR, MAKER, OTHER_MAKER = US + b"worker.n", FAR + b"worker.m", FAR + b"worker.o"
STRANGER = THIRD + b"driver.s"
CPU = {"CPU": m.UNIT}
LOST = ("ObjectLostError", "its host is gone", {})


class Owner:
    """A driver with a worker on its own host and one on another."""

    core: Any

    def __init__(self) -> None:
        self.now = 0.0
        self.segments = 100
        self.core = ClientCore(D, [], Timers(), lambda status: (None, "SIGKILL", "was killed"))
        self.hear(NODE, m.Mesh([CPU, CPU]))
        self.spec = self.core.new_spec(D, "f", CPU)
        self.epoch = 0

    def hear(self, peer: bytes, message: Any) -> None:
        self.core.receive(peer, decode(encode(message)), self.now)
        self.core.check()

    def tick(self) -> None:
        self.core.timers.tick(self.now)
        self.core.check()

    def said(self, to: bytes, kind: type[Any] = object) -> list[Any]:
        """Return and forget what one peer was told; of the node, without demands."""
        found = [e.message for e in self.core.effects if isinstance(e, Send) and e.to == to]
        self.core.effects[:] = [e for e in self.core.effects if not (isinstance(e, Send) and e.to == to)]
        return [message for message in found if isinstance(message, kind) and not isinstance(message, m.Demand)]

    def steal(self, peer: bytes = MAKER) -> None:
        self.epoch += 1
        self.hear(peer, m.Steal(self.epoch, CPU, 0.05))

    def submit(self, *deps: Entry, spec: Spec | None = None, args: Any = b"args", held: Any = ()) -> Task:
        inputs = Inputs(list(deps), list(held)) if deps or held else None
        task: Task = self.core.submit(spec or self.spec, args, inputs, 0, self.now)
        return task

    def place(self, producer: bytes = MAKER) -> Any:
        self.segments += 1
        return (self.segments, 1000, producer)

    def done(self, task: Any, status: int = m.STORED, value: Any = None, peer: bytes = MAKER, inside: Any = ()) -> None:
        value = self.place(peer) if value is None else value
        seq, attempt = (task.seq, task.attempt) if isinstance(task, Task) else task
        self.hear(peer, m.Done([(seq, attempt, status, value, *([list(inside)] if inside else []))], [], []))

    def result(self, *deps: Entry, **call: Any) -> Task:
        """A task whose result lies on the other host."""
        if MAKER not in self.core.victim.thieves:
            self.steal()
        task = self.submit(*deps, **call)
        self.done(task)
        assert task.status == m.STORED
        return task

    def lose(self) -> None:
        """The other host dies."""
        self.hear(NODE, m.NodeGone(FAR, "killed"))
        self.said(NODE)
        self.core.effects.clear()

    def localize(self, *entries: Entry) -> Any:
        ticket = self.core.references.localize(list(entries))
        self.core.check()
        return ticket

    def pulls_fail(self) -> list[bytes]:
        """Every pull finds nothing; returns the objects."""
        asked = [one for pull in self.said(NODE, m.Pull) for one in pull.objects]
        for oid, *_ in asked:
            self.hear(NODE, m.Pulled([(oid, m.ERROR, LOST)]))
        self.tick()
        return [oid for oid, *_ in asked]

    def made_again(self, *wanted: Entry) -> tuple[int, int]:
        """The other host is lost, and what lay there wanted: returns (seq, attempt) of the run that makes it again."""
        self.lose()
        self.localize(*wanted)
        self.pulls_fail()
        self.steal(NEAR)
        [(seq, attempt, _)] = self.work()
        return seq, attempt

    def work(self, peer: bytes = NEAR) -> list[Any]:
        """Return the tasks a thief was sent: [(seq, attempt, dependencies), ...]."""
        return [(task[0], task[1], list(task[5:])) for work in self.said(peer, m.Work) for task in work.tasks]

    def oid(self, entry: Entry) -> bytes:
        oid: bytes = self.core.references.oid(entry)
        return oid

    def failure(self, entry: Entry) -> str:
        status, value = self.core.references.location(entry)
        assert (status, value[0]) == (m.ERROR, "ObjectLostError")
        return str(value[1])


@pytest.fixture
def owner() -> Owner:
    return Owner()


def test_a_lost_result_is_made_again_when_somebody_wants_it_and_keeps_its_id(owner: Owner) -> None:
    task = owner.result()
    oid = owner.oid(task)
    owner.lose()
    assert owner.core.effects == [], "nobody wants it yet"
    ticket = owner.localize(task)
    assert owner.pulls_fail() == [oid]
    owner.steal(NEAR)
    [(seq, attempt, _)] = owner.work()
    assert attempt == 1, "a second start counts"
    owner.done((seq, attempt), peer=NEAR, value=(7, 1000, NEAR))
    assert ticket.status == m.INLINE
    assert task.value == (7, 1000, NEAR)
    assert owner.oid(task) == oid
    assert owner.localize(task) is None
    owner.core.references.drop(task)
    assert m.FreeSegments([(NEAR, 7, True)]) in owner.said(NODE)
    assert not owner.core.lineage


def test_a_copy_on_this_host_is_better_than_a_second_run(owner: Owner) -> None:
    task = owner.result()
    owner.lose()
    ticket = owner.localize(task)
    [pull] = owner.said(NODE, m.Pull)
    owner.hear(NODE, m.Pulled([(pull.objects[0][0], m.STORED, (9, 1000, NODE))]))
    owner.tick()
    assert ticket.status == m.INLINE
    assert not owner.core.tasks.open


def test_inputs_that_were_let_go_of_are_made_again_first(owner: Owner) -> None:
    first = owner.result()
    second = owner.result(first)
    third = owner.result(second, first)
    for task in (first, second):
        owner.core.references.drop(task)
    assert len(owner.core.lineage) == 3
    owner.lose()
    owner.localize(third)
    owner.pulls_fail()
    owner.steal(NEAR)
    for _ in range(3):
        [(seq, attempt, _)] = owner.work()
        owner.done((seq, attempt), peer=NEAR)
    assert third.value[2] == NEAR
    owner.core.references.drop(third)
    assert not owner.core.lineage
    freed = [one for message in owner.said(NODE, m.FreeSegments) for one in message.segments if one[0] == NEAR]
    assert len(freed) == 3, "and their bytes with them"


def test_small_inputs_are_kept_with_what_needs_them(owner: Owner) -> None:
    owner.steal()
    small = owner.submit()
    owner.done(small, m.INLINE, b"small")
    task = owner.result(small)
    owner.core.references.drop(small)
    owner.lose()
    owner.localize(task)
    owner.pulls_fail()
    owner.steal(NEAR)
    [(_, _, deps)] = owner.work()
    assert deps == [[(m.INLINE, b"small", None)]]


def test_several_results_are_made_by_one_run_and_only_those_lost_are_replaced(owner: Owner) -> None:
    spec = owner.core.new_spec(D, "many", CPU, num_returns=3)
    owner.steal()
    task = owner.submit(spec=spec)
    places = [(1, 10, MAKER), (2, 10, NEAR)]
    owner.done(task, m.MANY, [(m.STORED, places[0], []), (m.STORED, places[1], []), (m.INLINE, b"x", [])])
    outputs = task.outputs
    assert outputs is not None
    seq, attempt = owner.made_again(*outputs)
    again = [(m.STORED, (3, 10, NEAR), []), (m.STORED, (4, 10, NEAR), []), (m.INLINE, b"x", [])]
    owner.done((seq, attempt), m.MANY, again, peer=NEAR)
    assert [output.value for output in outputs] == [(3, 10, NEAR), (2, 10, NEAR), b"x"]
    assert m.FreeSegments([(NEAR, 4, True)]) in owner.said(NODE)


def pair(owner: Owner, *, spec: Any = None) -> tuple[Task, list[Entry]]:
    """A task with two results on the other host."""
    owner.steal()
    task = owner.submit(spec=spec or owner.core.new_spec(D, "pair", CPU, num_returns=2, max_retries=1))
    owner.done(task, m.MANY, [(m.STORED, (1, 10, MAKER), []), (m.STORED, (2, 10, MAKER), [])])
    assert task.outputs is not None
    return task, task.outputs


AGAIN = [(m.STORED, (3, 10, NEAR), []), (m.STORED, (4, 10, NEAR), [])]


def test_what_was_lost_with_a_result_is_made_by_the_same_run(owner: Owner) -> None:
    """One run for each would cost a retry for each: with max_retries=1 all but the first were lost."""
    _, outputs = pair(owner)
    seq, attempt = owner.made_again(outputs[0])
    owner.done((seq, attempt), m.MANY, AGAIN, peer=NEAR)
    assert [output.value for output in outputs] == [(3, 10, NEAR), (4, 10, NEAR)]
    assert owner.localize(*outputs) is None
    assert not owner.work()
    for output in outputs:
        owner.core.references.drop(output)
    assert not owner.core.lineage


def test_what_was_lost_with_it_and_only_others_need_is_told_to_its_home(owner: Owner) -> None:
    _, outputs = pair(owner)
    first, second = outputs
    oid = owner.oid(second)
    owner.core.references.promote([second])
    owner.core.references.drop(second)
    seq, attempt = owner.made_again(first)
    owner.said(NODE)
    owner.done((seq, attempt), m.MANY, AGAIN, peer=NEAR)
    assert m.Resolve([(oid, m.STORED, (4, 10, NEAR), [])]) in owner.said(NODE)
    owner.hear(NODE, Missing([(oid, 2, MAKER)]))  # asked before that was told
    assert not owner.work()
    owner.hear(NODE, Forget([oid]))
    owner.core.references.drop(first)
    assert not owner.core.lineage


def test_what_lay_with_it_and_has_a_copy_here_stays_where_it_is(owner: Owner) -> None:
    _, outputs = pair(owner)
    owner.localize(outputs[1])
    [pull] = owner.said(NODE, m.Pull)
    owner.hear(NODE, m.Pulled([(pull.objects[0][0], m.STORED, (9, 10, NODE))]))
    seq, attempt = owner.made_again(outputs[0])
    owner.done((seq, attempt), m.MANY, AGAIN, peer=NEAR)
    assert [output.value for output in outputs] == [(3, 10, NEAR), (2, 10, MAKER)]
    assert m.FreeSegments([(NEAR, 4, True)]) in owner.said(NODE)


def test_a_result_that_is_small_the_second_time_is_inline(owner: Owner) -> None:
    task = owner.result()
    seq, attempt = owner.made_again(task)
    owner.done((seq, attempt), m.INLINE, b"small", peer=NEAR)
    assert owner.core.references.location(task) == (m.INLINE, b"small")
    assert not owner.core.lineage


def test_references_inside_are_those_of_the_run_that_counts(owner: Owner) -> None:
    task = owner.result()
    owner.core.references.promote([task])
    seq, attempt = owner.made_again(task)
    inner = object_id(NEAR, 5)
    owner.done((seq, attempt), peer=NEAR, value=(7, 1000, NEAR), inside=[inner])
    told = owner.said(NODE)
    assert m.Resolve([(owner.oid(task), m.STORED, (7, 1000, NEAR), [inner])]) in told
    owner.core.references.drop(task)
    assert m.Release([(inner, 1, True)]) in owner.said(NODE)


# Who asks.


def test_a_task_that_could_not_have_its_argument_waits_and_is_charged_nothing(owner: Owner) -> None:
    task = owner.result()
    place = task.value
    owner.lose()
    user = owner.submit(task)
    owner.steal(NEAR)
    [(seq, attempt, [[(_, _, key)]])] = owner.work()
    owner.done((seq, attempt), m.LOST, [(key, place[0], place[2])], peer=NEAR)
    owner.pulls_fail()
    [(again, tries, _)] = owner.work()
    assert (again, tries) != (seq, 0)
    owner.done((again, tries), peer=NEAR, value=(7, 1000, NEAR))
    assert owner.work() == [(seq, 0, [[(m.STORED, (7, 1000, NEAR), (1, 0))]])]
    owner.done((seq, 0), m.INLINE, b"r", peer=NEAR)
    assert (user.status, user.attempt) == (m.INLINE, 0)


def test_a_task_that_missed_what_was_made_again_meanwhile_goes_out_at_once(owner: Owner) -> None:
    task = owner.result()
    user = owner.submit(task)
    owner.core.references.moved_to(task, m.STORED, (7, 1000, NEAR))
    owner.done(user, m.LOST, [((task.seq, 0), 1, MAKER)])
    assert [work[0] for work in owner.work(MAKER)][-1] == user.seq


def test_a_task_that_is_starved_for_ever_fails(owner: Owner) -> None:
    task = owner.result()
    user = owner.submit(task)
    for _ in range(STARVED_MAX):
        owner.done(user, m.LOST, [((task.seq, 0), 1, MAKER)])
        assert user.status == m.PENDING
    owner.done(user, m.LOST, [((task.seq, 0), 1, MAKER)])
    assert user.value[0] == "ObjectLostError"


def test_a_starved_task_that_was_cancelled_is_over(owner: Owner) -> None:
    task = owner.result()
    user = owner.submit(task)
    owner.core.cancel(user, 0.0)
    owner.done(user, m.LOST, [((task.seq, 0), task.value[0], MAKER)])
    assert user.value[0] == "TaskCancelledError"


def test_a_starved_task_with_a_time_limit_is_not_timed_while_it_waits(owner: Owner) -> None:
    task = owner.result()
    user = owner.submit(task, spec=owner.core.new_spec(D, "g", CPU, timeout_s=1.0))
    assert user.timer
    owner.done(user, m.LOST, [((task.seq, 0), task.value[0], MAKER)])
    assert not user.timer


def test_what_others_could_not_get_is_read_from_this_host_if_it_can_be(owner: Owner) -> None:
    task = owner.result()
    owner.core.references.promote([task])
    owner.said(NODE)
    owner.hear(NODE, Missing([(owner.oid(task), task.value[0], MAKER)]))
    [pull] = owner.said(NODE, m.Pull)
    owner.hear(NODE, m.Pulled([(pull.objects[0][0], m.STORED, (9, 1000, NODE))]))
    owner.tick()
    assert owner.said(NODE) == [m.Resolve([(owner.oid(task), m.STORED, task.value, [])])]


def test_the_home_may_ask_for_what_the_owner_let_go_of_until_nobody_has_it(owner: Owner) -> None:
    task = owner.result()
    oid = owner.oid(task)
    owner.core.references.promote([task])
    owner.core.references.drop(task)
    assert owner.said(NODE)[1:] == [Remember([oid]), m.Release([(oid, 1, True)])]
    owner.lose()
    owner.hear(NODE, Missing([(oid, task.seq, MAKER)]))
    owner.steal(NEAR)
    [(seq, attempt, _)] = owner.work()
    owner.done((seq, attempt), peer=NEAR, value=(7, 1000, NEAR))
    assert owner.said(NODE) == [m.Resolve([(oid, m.STORED, (7, 1000, NEAR), [])])], "and it frees nothing"
    owner.hear(NODE, Forget([oid, object_id(D, 99)]))
    assert not owner.core.lineage


def test_an_input_that_only_others_have_is_borrowed_from_them(owner: Owner) -> None:
    first = owner.result()
    oid = owner.oid(first)
    second = owner.result(first)
    owner.core.references.promote([first])
    owner.core.references.drop(first)
    owner.lose()
    owner.localize(second)
    asked = owner.said(NODE, m.Pull)[0].objects[0][0]
    owner.hear(NODE, m.Pulled([(asked, m.ERROR, LOST)]))
    owner.tick()
    assert owner.said(NODE) == [m.Hold(0, [(oid, D)]), m.Fetch([oid])]
    owner.steal(NEAR)
    owner.hear(NODE, m.Fetched([(oid, m.STORED, (5, 1000, NEAR))]))
    [(seq, attempt, deps)] = owner.work()
    assert deps == [[(m.STORED, (5, 1000, NEAR), oid)]]
    owner.done((seq, attempt), peer=NEAR)
    assert m.Release([(oid, 1, True)]) in owner.said(NODE)
    assert second.value[2] == NEAR


def test_an_owner_asked_for_what_is_elsewhere_by_now_says_where(owner: Owner) -> None:
    task = owner.result()
    owner.core.references.promote([task])
    owner.said(NODE)
    owner.hear(NODE, Missing([(owner.oid(task), 1, MAKER)]))
    assert owner.said(NODE) == [m.Resolve([(owner.oid(task), m.STORED, task.value, [])])]


def test_an_owner_asked_for_what_it_put_says_that_it_is_lost(owner: Owner) -> None:
    entry = owner.core.put(m.STORED, (3, 10, D), [])
    owner.core.references.promote([entry])
    owner.said(NODE)
    for oid, segment in ((owner.oid(entry), 3), (object_id(D, 77), 4)):
        owner.hear(NODE, Missing([(oid, segment, D)]))
        owner.tick()
        [(told, status, (name, text, _), _)] = owner.said(NODE)[0].objects
        assert (told, status, name) == (oid, m.ERROR, "ObjectLostError")
        assert "it was put" in text


def test_a_borrower_asks_the_home_where_a_lost_object_is_now(owner: Owner) -> None:
    oid = object_id(STRANGER, 3)
    entry = owner.core.references.borrow(oid, counted=True)
    owner.core.fetch(entry)
    owner.hear(NODE, m.Fetched([(oid, m.STORED, (5, 1000, MAKER))]))
    owner.core.effects.clear()
    tickets = [owner.localize(entry), owner.localize(entry)]
    owner.pulls_fail()
    assert owner.said(node_peer(THIRD)) == [Missing([(oid, 5, MAKER)])], "once, whoever waits"
    owner.hear(node_peer(THIRD), m.Fetched([(oid, m.STORED, (6, 1000, NEAR))]))
    assert [ticket.status for ticket in tickets] == [m.INLINE] * 2
    assert owner.core.references.location(entry) == (m.STORED, (6, 1000, NEAR))


@pytest.mark.parametrize("end", ["home", "node", "answer"])
def test_a_borrower_hears_that_an_object_is_lost_for_good(owner: Owner, end: str) -> None:
    oid = object_id(STRANGER, 3)
    entry = owner.core.references.borrow(oid, counted=True)
    owner.core.fetch(entry)
    owner.hear(NODE, m.Fetched([(oid, m.STORED, (5, 1000, MAKER))]))
    ticket = owner.localize(entry)
    owner.pulls_fail()
    if end == "home":
        owner.hear(NODE, m.NodeGone(THIRD, "killed"))
        assert owner.said(NODE) == [Seek([oid])], "there may be a replica"
        owner.hear(NODE, m.Fetched([(oid, m.ERROR, ("OwnerDiedError", "nobody has one", {}))]))
    elif end == "node":
        owner.core.node_lost("the node is gone", 0.0)
    else:
        owner.hear(node_peer(THIRD), m.Fetched([(oid, m.ERROR, LOST)]))
    assert ticket.status == m.INLINE
    name = {"home": "OwnerDiedError", "node": "NodeDiedError", "answer": "ObjectLostError"}[end]
    assert (entry.status, entry.value[0]) == (m.ERROR, name)


# What cannot be made again.


def lost(owner: Owner, task: Entry) -> str:
    owner.lose()
    ticket = owner.localize(task)
    owner.pulls_fail()
    assert ticket.status == m.INLINE
    return owner.failure(task)


def test_a_task_without_retries_is_not_run_again(owner: Owner) -> None:
    once = owner.result(spec=owner.core.new_spec(D, "once", CPU, max_retries=0))
    task = owner.result(once)
    oid = owner.oid(once)
    owner.core.references.drop(once)
    text = lost(owner, task)
    assert f"f needs object {oid.hex()} to make it again, and once has max_retries=0" in text


def test_retries_and_second_runs_come_out_of_one_budget(owner: Owner) -> None:
    spec = owner.core.new_spec(D, "twice", CPU, max_retries=1)
    task = owner.result(spec=spec)
    owner.lose()
    owner.localize(task)
    owner.pulls_fail()
    owner.steal(THIRD + b"worker.t")
    [(seq, attempt, _)] = owner.work(THIRD + b"worker.t")
    owner.done((seq, attempt), peer=THIRD + b"worker.t")
    owner.pulls_fail()
    assert "twice was started 2 times, as often as max_retries=1 allows" in owner.failure(task)


def test_runs_that_memory_cost_do_not_count_against_second_runs(owner: Owner) -> None:
    spec = owner.core.new_spec(D, "h", CPU, max_retries=1, oom_retries=2)
    owner.steal()
    task = owner.submit(spec=spec)
    owner.hear(NODE, m.WorkerDied(MAKER, 1, 9, D, task.seq, 0, "oom", ""))
    owner.now += 1.0
    owner.tick()
    owner.steal(OTHER_MAKER)
    owner.done(task, peer=OTHER_MAKER)
    assert (task.status, task.attempt) == (m.STORED, 1)
    seq, attempt = owner.made_again(task)
    owner.hear(NODE, m.WorkerDied(NEAR, 1, 9, D, seq, attempt, "oom", ""))
    owner.now += 1.0
    owner.tick()
    owner.steal(US + b"worker.2")
    [(seq, attempt, _)] = owner.work(US + b"worker.2")
    assert attempt == 2, "started anew, and again for want of memory"
    owner.done((seq, attempt), peer=US + b"worker.2")
    assert task.value[2] == US + b"worker.2"
    assert owner.core.lineage._recipes[task.seq].attempt == 1


def test_a_stream_is_not_run_again_for_one_of_its_items(owner: Owner) -> None:
    owner.steal()
    task = owner.submit(spec=owner.core.new_spec(D, "stream", CPU, num_returns=-1))
    owner.done(task, m.ITEM, (0, m.STORED, owner.place(), []))
    owner.done(task, m.ITEM, (1, m.INLINE, b"x", []))
    owner.done(task, m.END, 2)
    assert task.outputs is not None
    assert "stream is a stream" in lost(owner, task.outputs[0])
    owner.core.references.drop(task.outputs[0])
    assert not owner.core.lineage


def test_a_run_that_fails_this_time_is_told(owner: Owner) -> None:
    task = owner.result()
    seq, attempt = owner.made_again(task)
    owner.done((seq, attempt), m.FAILED, b"error", peer=NEAR)
    assert "f was run again to make it, and failed: it raised an exception this time" in owner.failure(task)


def test_an_input_that_was_put_and_let_go_of_is_told(owner: Owner) -> None:
    put = owner.core.put(m.STORED, (3, 10, D), [])
    nested = owner.core.put(m.INLINE, b"x", [])
    task, other = owner.result(put), owner.result(held=[nested])
    for entry in (put, nested):
        owner.core.references.drop(entry)
    owner.lose()
    owner.localize(task, other)
    owner.pulls_fail()
    assert f"f needs object {owner.oid(put).hex()}" in owner.failure(task)
    assert f"f needs object {owner.oid(nested).hex()}" in owner.failure(other)


def test_a_result_from_the_time_before_there_were_other_hosts_is_told(owner: Owner) -> None:
    owner.hear(NODE, m.Mesh([CPU]))
    task = owner.result()
    assert not owner.core.lineage
    assert "when there were no other hosts" in lost(owner, task)


def test_what_an_actor_gave_is_not_made_again(owner: Owner) -> None:
    actor = owner.core.new_spec(D, "A", CPU, num_returns=-1, options={"max_calls": 1})
    handle = owner.core.new_actor(actor, b"x", None, 0, name="A", ordered=True)
    owner.core.start_actor(handle, owner.now)
    owner.steal()
    creation = handle.actor.creation
    owner.hear(MAKER, m.Done([(creation.seq, 0, m.ITEM, (0, m.INLINE, b"", []))], [], []))
    method = owner.core.new_spec(D, "A.m", {}, max_retries=3, options={"method": "m"})
    call = owner.core.call(handle.actor, handle, method, b"x", None, 0, owner.now)
    owner.done(call)
    assert not owner.core.lineage
    owner.lose()
    assert "it was put, came from an actor" in lost(owner, call)


def test_an_actor_whose_argument_is_lost_before_it_is_made_waits_for_it(owner: Owner) -> None:
    argument = owner.result()
    spec = owner.core.new_spec(D, "A", CPU, num_returns=-1, max_retries=0, options={"max_calls": 1})
    owner.steal(NEAR)
    handle = owner.core.new_actor(spec, b"x", Inputs([argument]), 0, name="A", ordered=True)
    owner.core.start_actor(handle, owner.now)
    creation = handle.actor.creation
    [(seq, attempt, [[(_, place, key)]])] = owner.work()
    assert seq == creation.seq
    owner.lose()
    owner.done((seq, attempt), m.LOST, [(key, place[0], place[2])], NEAR)
    owner.pulls_fail()
    [(again, again_attempt, _)] = owner.work()
    owner.done((again, again_attempt), peer=NEAR)
    [(seq, attempt, _)] = owner.work()
    assert (seq, attempt) == (creation.seq, 0), "it had not started"
    owner.hear(NEAR, m.Done([(seq, 0, m.ITEM, (0, m.INLINE, b"", []))], [], []))
    assert handle.actor.peer == NEAR


def test_what_was_made_again_is_listed_with_the_function_that_made_it(owner: Owner) -> None:
    task = owner.result()
    assert [row[:4] for row in owner.core.references.listed()] == [(owner.oid(task), m.STORED, 1000, task.value[0])]
    seq, attempt = owner.made_again(task)
    owner.done((seq, attempt), peer=NEAR, value=(7, 2000, NEAR))
    [row] = owner.core.references.listed()
    assert row[:4] == (owner.oid(task), m.STORED, 2000, 7)
    assert row[7] == "f"
    owner.core.references.drop(task)
    assert owner.core.references.listed() == []


def test_no_room_for_a_copy_is_no_loss(owner: Owner) -> None:
    task = owner.result()
    ticket = owner.localize(task)
    owner.hear(NODE, m.Pulled([(owner.oid(task), m.ERROR, ("StoreFullError", "no room", {}))]))
    owner.tick()
    assert ticket.status == m.INLINE
    assert not owner.core.tasks.open


def test_a_run_whose_input_failed_meanwhile_ends_at_once(owner: Owner) -> None:
    entry = owner.core.references.borrow(object_id(STRANGER, 3), counted=True)
    owner.core.fetch(entry)
    owner.hear(NODE, m.Fetched([(object_id(STRANGER, 3), m.STORED, (5, 1000, NEAR))]))
    task = owner.result(entry)
    owner.core.references.moved_to(entry, m.ERROR, ("OwnerDiedError", "its owner is gone", {}))
    assert "f was run again to make it, and failed: its owner is gone" in lost(owner, task)
    assert owner.core.tasks.open == 0


def test_two_that_need_the_same_input_have_it_made_once(owner: Owner) -> None:
    first = owner.result()
    children = [owner.result(first), owner.result(first)]
    owner.core.references.drop(first)
    owner.lose()
    owner.localize(children[0])
    owner.pulls_fail()
    owner.localize(children[1])
    owner.pulls_fail()
    assert owner.core.tasks.open == 3
    owner.steal(NEAR)
    for _ in range(3):
        [(seq, attempt, _)] = owner.work()
        owner.done((seq, attempt), peer=NEAR)
    assert [child.value[2] for child in children] == [NEAR, NEAR]


# The budget.


def test_the_largest_of_the_oldest_goes_first_and_says_so(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "LINEAGE_BYTES_MAX", 10_000)
    small, large = owner.result(), owner.result(args=b"x" * 7000)
    child = owner.result(large)
    more = owner.result(args=b"x" * 3000)
    huge = owner.result(args=b"x" * 20_000)
    owner.lose()
    owner.localize(small, large, more, huge, child)
    owner.pulls_fail()
    for task in (large, huge):
        assert "was dropped, as such things took more than" in owner.failure(task)
    assert owner.core.tasks.open == 3
    for task in (small, large, child, more, huge):
        owner.core.references.drop(task)
    owner.core.cancel_all(0.0)
    assert not owner.core.lineage


def test_stored_arguments_are_held_and_go_when_the_store_is_full(owner: Owner) -> None:
    owner.steal()
    args = owner.core.put(m.STORED, (3, 1000, D), [])
    args.refs = 0
    task = owner.submit(args=(3, 1000, D, args.seq), held=[args])
    owner.done(task)
    assert Recycle([3]) not in owner.core.effects
    owner.hear(NODE, m.Trim())
    assert owner.core.effects[-2:] == [Recycle([3]), Recycle([])]
    assert "their room was needed" in lost(owner, task)


def test_stored_arguments_serve_a_second_run(owner: Owner) -> None:
    owner.steal()
    args = owner.core.put(m.STORED, (3, 1000, D), [])
    args.refs = 0
    task = owner.submit(args=(3, 1000, D, args.seq), held=[args])
    owner.done(task)
    owner.lose()
    owner.localize(task)
    owner.pulls_fail()
    owner.steal(NEAR)
    [work] = owner.said(NEAR, m.Work)
    assert work.tasks[0][4] == (3, 1000, D, args.seq)
    owner.done((work.tasks[0][0], 1), peer=NEAR)
    owner.core.references.drop(task)
    assert Recycle([3]) in owner.core.effects


# The thief.


def test_a_thief_says_which_arguments_it_could_not_have_and_runs_what_it_can() -> None:
    effects: list[Effect] = []
    core = WorkerCore(NEAR, effects, Timers(), lambda status: (None, None, ""), lambda message: None)
    core.receive(NODE, m.Attach(D, 1, D, CPU, [], {}), 0.0)
    spec = (0, D, "f", 1, {}, b"", b"")
    far = (5, 1000, MAKER)
    starving = (1, 0, 0, 0, (6, 1000, MAKER, 9), [(m.STORED, far, (4, 0)), (m.INLINE, b"x", None)])
    core.receive(D, decode(encode(m.Work([spec], [starving, (2, 0, 0, 0, b"args")]))), 0.0)
    effects.clear()
    for seq in (4, 9):
        core.receive(NODE, m.Pulled([(object_id(D, seq), m.ERROR, LOST)]), 0.0)
    running = core.next(0.0)
    assert running is not None
    assert running.seq == 2
    core.check()
    [done] = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, m.Done)]
    assert done.results == [(1, 0, m.LOST, [((4, 0), 5, MAKER), ((9, 0), 6, MAKER)])]
