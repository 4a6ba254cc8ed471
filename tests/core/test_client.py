"""One client and its thieves, message by message: what the simulator reaches only by chance."""

from typing import Any

import pytest

from zmesh.core.client import DRAIN_S, INFEASIBLE_GRACE_S, ClientCore
from zmesh.core.effects import Connect, Disconnect, Effect, Exit, Interrupt, Recycle, Resolved, Send, Show, Warn
from zmesh.core.records import LEASED, Entry, Inputs, Spec, Task
from zmesh.core.thief import LINKS_MAX
from zmesh.core.timers import Timers
from zmesh.core.worker import BLOCK_AFTER_S, WorkerCore
from zmesh.wire import actor_messages as a
from zmesh.wire import messages as m
from zmesh.wire.codec import decode, encode
from zmesh.wire.ids import actor_id, node_peer, object_id

N = b"n" * 8
NODE = node_peer(N)
D, W, W2 = N + b"driver..", N + b"worker..", N + b"worker2."
CPU = {"CPU": m.UNIT}


def describe(status: int) -> tuple[int | None, str | None, str]:
    return (
        (status >> 8, None, f"ended with exit code {status >> 8}")
        if status > 255
        else (None, "SIGKILL", "was killed by SIGKILL")
    )


class Side:
    """A core with its effects and its clock in view."""

    core: ClientCore

    def __init__(self) -> None:
        self.now = 0.0

    def hear(self, peer: bytes, message: Any) -> None:
        self.core.receive(peer, decode(encode(message)), self.now)
        self.core.check()

    def said(self, to: bytes | None = None) -> list[Any]:
        found = [e.message for e in self.core.effects if isinstance(e, Send) and to in (None, e.to)]
        self.core.effects.clear()
        return found

    def did(self, kind: type[Effect]) -> list[Any]:
        found = [effect for effect in self.core.effects if isinstance(effect, kind)]
        self.core.effects.clear()
        return found

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.core.timers.tick(self.now)
        self.core.check()


class Driver(Side):
    def __init__(self) -> None:
        super().__init__()
        self.core = ClientCore(D, [], Timers(), describe)
        self.hear(NODE, m.Welcome(N, 1, {"CPU": 2 * m.UNIT}))
        self.spec = self.core.new_spec(D, "f", CPU)

    def submit(self, spec: Spec | None = None, inputs: Inputs | None = None, args: Any = b"x") -> Task:
        return self.core.submit(spec or self.spec, args, inputs, 0, self.now)

    def steal(self, peer: bytes = W, epoch: int = 1) -> list[Any]:
        self.hear(peer, m.Steal(epoch, CPU, 0.005))
        return self.said(peer)

    def done(self, task: Task, status: int = m.INLINE, value: Any = b"r", peer: bytes = W, **fields: Any) -> list[Any]:
        inside = fields.pop("inside", None)
        result = (task.seq, fields.pop("attempt", task.attempt), status, value, *([inside] if inside else []))
        self.hear(peer, m.Done([result], fields.pop("timings", []), fields.pop("kept", [])))
        return self.said(peer)


@pytest.fixture
def driver() -> Driver:
    return Driver()


def died(worker: bytes = W, task: Task | None = None, **fields: Any) -> m.WorkerDied:
    seq, attempt = (task.seq, task.attempt) if task is not None else (0, 0)
    told = {"status": 9, "reason": "", "tail": "", "over": False} | fields
    return m.WorkerDied(
        worker, 1, told["status"], D if seq else b"", seq, attempt, told["reason"], told["tail"], told["over"]
    )


# Tasks.


def test_a_failure_of_an_earlier_attempt_does_not_count_and_its_success_does(driver: Driver) -> None:
    task = driver.submit()
    driver.steal()
    driver.hear(NODE, died(W, task))
    driver.pass_time(DRAIN_S)
    assert task.attempt == 1
    driver.hear(W, m.Done([(task.seq, 0, m.FAILED, b"late")], [], []))
    assert task.status == m.PENDING
    driver.hear(W, m.Done([(task.seq, 0, m.INLINE, b"late")], [], []))
    assert (task.status, task.value) == (m.INLINE, b"late")
    driver.hear(W, m.Done([(task.seq, 0, m.INLINE, b"again")], [], []))
    assert task.value == b"late"


def test_a_late_success_while_the_retry_runs_is_left_to_the_retry(driver: Driver) -> None:
    task = driver.submit()
    driver.steal()
    driver.hear(NODE, died(W, task))
    driver.pass_time(DRAIN_S)
    driver.steal(W2)
    driver.hear(W, m.Done([(task.seq, 0, m.INLINE, b"late")], [], []))
    assert task.state == LEASED
    driver.done(task, peer=W2)
    assert task.value == b"r"


def test_the_segment_of_a_result_nobody_leases_is_freed(driver: Driver) -> None:
    driver.hear(W, m.Done([(99, 0, m.STORED, (7, 100, W))], [], []))
    assert driver.said(NODE) == [m.FreeSegments([(W, 7, True)])]


def test_nothing_is_kept_of_a_worker_that_died(driver: Driver) -> None:
    """Not even how to answer it: a program may outlive any number of workers."""
    driver.steal()
    driver.hear(NODE, died())
    driver.core.effects.clear()
    driver.pass_time(DRAIN_S)
    assert driver.did(Disconnect) == [Disconnect(W)]
    assert W not in driver.core.victim.thieves


@pytest.mark.parametrize(
    ("reason", "name"), [("", "WorkerDiedError"), ("timeout", "TaskTimeoutError"), ("oom", "OutOfMemoryError")]
)
def test_the_last_attempt_fails_with_how_the_worker_died(driver: Driver, reason: str, name: str) -> None:
    task = driver.submit(driver.core.new_spec(D, "g", CPU, max_retries=0, timeout_s=5.0))
    driver.steal()
    driver.hear(NODE, died(W, task, reason=reason, tail="boom"))
    driver.pass_time(DRAIN_S)
    assert task.value[0] == name
    assert task.value[2] == {
        "exit_code": None,
        "signal_name": "SIGKILL",
        "stderr_tail": "boom",
        "attempts": 1,
        "pid": 1,
    }
    assert "boom" in task.value[1]


def test_a_finished_task_whose_result_was_lost_runs_again_free_of_charge(driver: Driver) -> None:
    task = driver.submit()
    driver.steal()
    driver.hear(NODE, died(W, task, over=True))
    driver.pass_time(DRAIN_S)
    assert (task.status, task.attempt) == (m.PENDING, 0)


def test_without_retries_a_lost_result_is_an_error(driver: Driver) -> None:
    task = driver.submit(driver.core.new_spec(D, "g", CPU, max_retries=0))
    driver.steal()
    driver.hear(NODE, died(W, task, over=True))
    driver.pass_time(DRAIN_S)
    assert task.value[0] == "WorkerDiedError"


def test_an_exception_is_retried_only_where_the_worker_says_so(driver: Driver) -> None:
    task = driver.submit(driver.core.new_spec(D, "g", CPU, max_retries=1))
    driver.steal()
    driver.done(task, m.RETRYABLE, b"e")
    assert (task.status, task.attempt) == (m.PENDING, 1)
    driver.done(task, m.RETRYABLE, b"e")
    assert (task.status, task.value) == (m.FAILED, b"e")


@pytest.mark.parametrize("how", ["result", "cancelled", "retryable", "death", "give-back"])
def test_a_cancelled_task_ends_whatever_its_worker_says(driver: Driver, how: str) -> None:
    task = driver.submit()
    driver.steal()
    driver.core.cancel(task, driver.now, force=True)
    assert driver.said() == [m.Cancel(task.seq, 0, True), m.Kill(W, task.seq, 0, "cancel")]
    if how == "result":
        driver.done(task)
    elif how == "cancelled":
        driver.done(task, m.CANCELLED, None)
    elif how == "retryable":
        driver.done(task, m.RETRYABLE, b"e")
    elif how == "give-back":
        driver.hear(W, m.GiveBack([(task.seq, 0)]))
    else:
        driver.hear(NODE, died(W, task))
        driver.pass_time(DRAIN_S)
    if how == "result":
        assert task.status == m.INLINE
    else:
        assert task.value[0] == "TaskCancelledError"
    driver.core.cancel(task, driver.now)
    assert driver.said(W) == []


def test_cancel_all_ends_what_is_queued_and_what_waits(driver: Driver) -> None:
    first = driver.submit()
    second = driver.submit(inputs=Inputs([first]))
    many = driver.submit(driver.core.new_spec(D, "g", CPU, num_returns=2))
    driver.core.cancel_all(driver.now)
    for entry in (first, second, *(many.outputs or ())):
        assert entry.status == m.ERROR
        assert entry.value[0] == "TaskCancelledError"


def test_a_dependent_starts_when_its_input_is_there_and_fails_with_it(driver: Driver) -> None:
    good, bad = driver.submit(), driver.submit()
    after_good, after_bad = driver.submit(inputs=Inputs([good, good])), driver.submit(inputs=Inputs([good, bad]))
    third = driver.submit(inputs=Inputs([after_bad]))
    assert "waits for 2" in driver.core.waits_for(after_good)
    driver.steal()
    driver.done(good)
    driver.done(bad, m.FAILED, b"e")
    assert (after_bad.status, third.status) == (m.FAILED, m.FAILED)
    assert "was sent to worker" in driver.core.waits_for(after_good)
    assert driver.submit(inputs=Inputs([bad])).status == m.FAILED


def test_inputs_travel_with_the_task_and_are_let_go_after_it(driver: Driver) -> None:
    stored = driver.core.put(m.STORED, (5, 100, D), [])
    inline = driver.core.put(m.INLINE, b"v", [])
    task = driver.submit(inputs=Inputs([stored, inline]))
    driver.core.references.drop(stored)
    driver.core.references.drop(inline)
    (work,) = driver.steal()
    assert work.tasks[0][5] == [(m.STORED, (5, 100, D), (stored.seq, 0)), (m.INLINE, b"v", None)]
    driver.hear(W, m.Done([(task.seq, 0, m.INLINE, b"r")], [], [(stored.seq, 0)]))
    assert driver.did(Recycle) == [], "the worker kept a view"
    driver.hear(W, m.Unpin([(stored.seq, 0)]))
    assert driver.did(Recycle) == [Recycle([5])]
    driver.hear(W, m.Unpin([(stored.seq, 0)]))


def test_a_dead_reader_makes_its_segment_unclean(driver: Driver) -> None:
    stored = driver.core.put(m.STORED, (5, 100, D), [])
    task = driver.submit(inputs=Inputs([stored]))
    driver.core.references.drop(stored)
    driver.steal()
    driver.done(task, kept=[(stored.seq, 0)])
    driver.hear(NODE, died(W))
    driver.pass_time(DRAIN_S)
    assert m.FreeSegments([(D, 5, False)]) in driver.said(NODE)


def test_large_arguments_travel_as_their_place(driver: Driver) -> None:
    large = driver.core.put(m.STORED, (5, 100, D), [])
    large.refs = 0
    task = driver.submit(inputs=Inputs(held=[large]), args=(5, 100, D, large.seq))
    (work,) = driver.steal()
    assert work.tasks[0][4] == (5, 100, D, large.seq)
    driver.hear(W, m.Done([(task.seq, 0, m.INLINE, b"r")], [], []))
    assert driver.did(Recycle) == [Recycle([5])]


def test_several_results_have_an_entry_each(driver: Driver) -> None:
    task = driver.submit(driver.core.new_spec(D, "g", CPU, num_returns=2))
    driver.steal()
    driver.done(task, m.MANY, [(m.INLINE, b"1", []), (m.STORED, (7, 9, W), [])])
    assert task.outputs is not None
    assert [output.status for output in task.outputs] == [m.INLINE, m.STORED]
    driver.core.references.drop(task.outputs[1])
    assert driver.said(NODE)[-1] == m.FreeSegments([(W, 7, True)])


def stream(driver: Driver, **options: Any) -> Task:
    task = driver.submit(driver.core.new_spec(D, "g", CPU, num_returns=-1, **options))
    driver.steal()
    return task


def item(driver: Driver, task: Task, index: int, status: int = m.INLINE, value: Any = b"i") -> None:
    driver.done(task, m.ITEM, (index, status, value, []))


def test_a_replayed_item_is_dropped_and_its_segment_freed(driver: Driver) -> None:
    task = stream(driver)
    item(driver, task, 0)
    driver.hear(W, m.Done([(task.seq, 0, m.ITEM, (0, m.STORED, (7, 9, W), []))], [], []))
    assert driver.said(NODE) == [m.FreeSegments([(W, 7, True)])]
    assert task.outputs is not None
    assert len(task.outputs) == 1


def test_a_retried_stream_of_another_length_is_an_error(driver: Driver) -> None:
    task = stream(driver)
    item(driver, task, 0)
    driver.done(task, m.END, 2)
    assert task.value[0] == "StreamReplayError"


def test_an_error_in_a_stream_is_its_next_item(driver: Driver) -> None:
    task = stream(driver)
    item(driver, task, 0)
    driver.done(task, m.FAILED, b"e")
    assert task.outputs is not None
    assert [output.status for output in task.outputs] == [m.INLINE, m.FAILED]


def test_an_abandoned_stream_frees_what_was_not_taken_and_what_comes(driver: Driver) -> None:
    task = stream(driver, options={"backpressure": 2})
    item(driver, task, 0)
    item(driver, task, 1, m.STORED, (7, 9, W))
    driver.core.tasks.consumed(task, 1)
    assert driver.said(W) == [m.Consumed(task.seq, 1)]
    driver.core.tasks.abandon(task, 1)
    assert driver.said(NODE) == [m.FreeSegments([(W, 7, True)])]
    driver.hear(W, m.Done([(task.seq, 0, m.ITEM, (2, m.STORED, (8, 9, W), []))], [], []))
    assert driver.said(NODE) == [m.FreeSegments([(W, 8, True)])]


def test_references_inside_a_result_are_claimed_before_the_thief_lets_go(driver: Driver) -> None:
    task = driver.submit()
    driver.steal()
    oid = object_id(W, 3)
    driver.hear(W, m.Done([(task.seq, 0, m.INLINE, b"r", [oid])], [], []))
    (hold,) = driver.said(NODE)
    assert hold.holders == [(oid, D)]
    driver.hear(NODE, m.Ack(hold.request))
    assert driver.said(W) == [m.Taken(task.seq)]
    driver.core.references.drop(task)
    assert driver.said(NODE) == [m.Release([(oid, 1, True)])]


def test_a_result_with_references_that_nobody_wants_is_given_back(driver: Driver) -> None:
    driver.hear(W, m.Done([(99, 0, m.INLINE, b"r", [object_id(W, 3)])], [], []))
    (hold,) = driver.said(NODE)
    assert hold.holders == []
    driver.hear(NODE, m.Ack(hold.request))
    assert driver.said(W) == [m.Taken(99)]


def test_items_of_a_stream_are_taken_one_by_one_in_their_order(driver: Driver) -> None:
    sender = Worker()
    sender.attach()
    refs = sender.core.references
    made = [sender.core.put(m.INLINE, b"v", []) for _ in range(2)]
    for entry in made:
        refs.promote([entry])
        refs.give(D, 4, [entry])
        refs.drop(entry)
    sender.said()
    sender.hear(D, m.Taken(4))
    assert [message.objects[0][0] for message in sender.said(NODE)] == [refs.oid(made[0])]
    sender.hear(D, m.Taken(4))
    sender.hear(D, m.Taken(4))
    assert [message.objects[0][0] for message in sender.said(NODE)] == [refs.oid(made[1])]


def test_a_borrowed_entry_is_not_taken_for_an_own_one_of_the_same_number(driver: Driver) -> None:
    many = driver.submit(driver.core.new_spec(D, "g", CPU, num_returns=2))
    assert many.outputs is not None
    assert driver.core.tasks.maker_of(many.outputs[1]) is many
    borrowed = driver.core.references.borrow(object_id(W, many.seq))
    assert driver.core.tasks.maker_of(borrowed) is None
    assert "another process" in driver.core.waits_for(borrowed)


def test_the_time_of_a_task_starts_when_it_is_sent_and_kills_until_it_ends(driver: Driver) -> None:
    task = driver.submit(driver.core.new_spec(D, "g", CPU, timeout_s=1.0))
    driver.pass_time(5.0)
    driver.steal()
    driver.pass_time(1.0)
    assert m.Kill(W, task.seq, 0, "timeout") in driver.said(NODE)
    driver.pass_time(0.2)
    assert m.Kill(W, task.seq, 0, "timeout") in driver.said(NODE)
    driver.done(task)
    driver.pass_time(1.0)
    assert not [message for message in driver.said(NODE) if isinstance(message, m.Kill)]


def test_a_thief_that_withdrew_and_gives_back_all_it_had_is_forgotten(driver: Driver) -> None:
    """Work crossed its Unsteal: no Done follows a GiveBack if nothing ran. Who stays counts as busy for ever."""
    driver.steal()
    task = driver.submit()
    driver.hear(W, m.Unsteal(1))
    driver.hear(W, m.GiveBack([(task.seq, 0)]))
    assert not driver.core.victim.thieves
    driver.core.cancel(task, driver.now)
    driver.pass_time(1.0)
    driver.pass_time(1.0)
    assert [said.workers for said in driver.said(NODE) if isinstance(said, m.Demand)][-1:] == [0]


@pytest.mark.parametrize("options", [{"max_retries": 0}, {"timeout_s": 5.0}, {}], ids=["once", "limited", "not timed"])
def test_what_travels_alone_does_not_follow_a_task_whose_arguments_travel(driver: Driver, options: Any) -> None:
    far = b"f" * 8 + b"worker.."
    driver.core.victim.totals = [CPU]
    driver.steal(far)
    before = driver.submit()
    argument = driver.core.put(m.STORED, (1, 1 << 20, D), [])
    first = driver.submit(inputs=Inputs([argument]))
    second = driver.submit(driver.core.new_spec(D, "g", CPU, **options))
    driver.done(before, peer=far, timings=[(0, 0.5)])
    assert [task.thief is not None for task in (first, second)] == [True, False]
    driver.done(first, peer=far)
    assert second.thief is not None
    driver.core.check()


def test_the_limit_of_a_task_given_back_starts_anew(driver: Driver) -> None:
    task = driver.submit(driver.core.new_spec(D, "g", CPU, timeout_s=1.0))
    driver.steal()
    driver.hear(W, m.GiveBack([(task.seq, 0), (77, 0)]))
    driver.pass_time(2.0)
    assert not [message for message in driver.said(NODE) if isinstance(message, m.Kill)]
    driver.hear(W2, m.GiveBack([]))


def test_work_no_node_can_run_fails_after_a_grace_also_when_it_comes_later(driver: Driver) -> None:
    task = driver.submit()
    driver.hear(NODE, m.Infeasible(CPU, "no CPU at all"))
    assert "no CPU at all" in driver.core.waits_for(task)
    driver.pass_time(INFEASIBLE_GRACE_S)
    assert task.value[0] == "TaskUnschedulableError"
    later = driver.submit()
    driver.pass_time(INFEASIBLE_GRACE_S)
    assert later.value[0] == "TaskUnschedulableError"


def test_wishes_that_no_node_meets_are_given_up_one_after_the_other(driver: Driver) -> None:
    wishes = [CPU | {f"label:zone={zone}": 1} for zone in "abc"]
    spec = driver.core.new_spec(D, "g", wishes[0], fallbacks=wishes[1:])
    tasks = [driver.submit(spec), driver.submit(spec)]
    for wish in wishes:
        assert spec.shape == wish
        driver.hear(NODE, m.Infeasible(wish, "no node has that"))
        assert tasks[1].status == m.PENDING
        driver.pass_time(INFEASIBLE_GRACE_S)
    assert [task.value[0] for task in tasks] == ["TaskUnschedulableError"] * 2


def test_a_node_that_is_gone_is_asked_for_anew_though_it_was_asked_for_before(driver: Driver) -> None:
    """The last Demand was for as many workers, and nobody looks at it again."""
    driver.hear(NODE, m.Mesh([CPU, CPU]))
    task = driver.submit()
    driver.steal()
    driver.done(task)
    driver.hear(W, m.Unsteal(1))
    driver.said()
    driver.hear(NODE, m.Mesh([CPU]))
    driver.submit()
    assert [word.workers for word in driver.said(NODE) if isinstance(word, m.Demand)] == [0, 1]


def test_when_the_node_is_lost_everything_fails_and_nothing_hangs(driver: Driver) -> None:
    leased = driver.submit(driver.core.new_spec(D, "g", CPU, max_retries=0))
    driver.steal()
    queued, waiting = driver.submit(), driver.submit(inputs=Inputs([leased]))
    ticket = driver.core.ask_status()
    ticket.waiter = "somebody"
    borrowed = driver.core.references.borrow(object_id(W, 9))
    driver.core.node_lost("gone", driver.now)
    driver.core.node_lost("gone", driver.now)
    for entry in (leased, queued, waiting, ticket, borrowed, driver.submit()):
        assert (entry.status, entry.value[0]) == (m.ERROR, "NodeDiedError")
    more = driver.submit(driver.core.new_spec(D, "g", CPU, num_returns=2))
    assert [output.status for output in more.outputs or ()] == [m.ERROR, m.ERROR]
    late = driver.core.references.borrow(object_id(W, 10))
    driver.core.fetch(late)
    assert late.status == m.ERROR


def test_who_waits_is_told_once_per_message(driver: Driver) -> None:
    driver.core.victim.timed([driver.spec], [(0, 0.0001)])
    tasks = [driver.submit() for _ in range(4)][:2]
    for task in tasks:
        task.waiter = "somebody"
    driver.steal()
    driver.hear(W, m.Done([(task.seq, 0, m.INLINE, b"r") for task in tasks], [], []))
    assert driver.did(Resolved) == [Resolved(tasks)]


def test_logs_are_shown_with_name_and_pid(driver: Driver) -> None:
    driver.hear(NODE, m.Log(5, "f", 2, "one\ntwo\n"))
    assert driver.did(Show) == [Show(2, "(f pid=5) one\n(f pid=5) two\n")]


def test_a_message_for_somebody_else_is_dropped_with_a_warning(driver: Driver) -> None:
    driver.hear(W, m.Work([], []))
    assert len(driver.did(Warn)) == 1


def test_trim_and_recycle_reach_the_store(driver: Driver) -> None:
    driver.hear(NODE, m.Trim())
    driver.hear(NODE, m.RecycleSegments([4]))
    assert driver.did(Recycle) == [Recycle([]), Recycle([4])]


def test_an_answer_nobody_waits_for_is_ignored(driver: Driver) -> None:
    driver.hear(NODE, m.StatusReply(99, {}))
    driver.hear(NODE, m.Fetched([(object_id(W, 9), m.INLINE, b"v")]))
    assert driver.core.effects == []


# References.


def test_promotion_names_what_a_value_contains_and_is_done_once(driver: Driver) -> None:
    inner = driver.core.put(m.INLINE, b"i", [])
    driver.core.references.promote([inner])
    outer = driver.core.put(m.INLINE, b"o", [inner])
    driver.said()
    ticket = driver.core.references.promote([inner, outer])
    (promote,) = driver.said(NODE)
    refs = driver.core.references
    assert promote.objects == [(refs.oid(outer), m.INLINE, b"o", [refs.oid(inner)])]
    assert refs.promote([outer]) is ticket, "whoever waits for it too must not be faster than the node"
    driver.hear(NODE, m.Ack(promote.request, "store full"))
    assert ticket is not None
    assert ticket.value == ("StoreFullError", "store full", {})
    again = refs.promote([outer])
    assert again is not None, "the node does not count it, so it is told again before it leaves"
    (promote,) = driver.said(NODE)
    driver.hear(NODE, m.Ack(promote.request))
    assert refs.promote([outer]) is None
    refs.drop(outer)
    assert driver.said(NODE) == [m.Release([(refs.oid(outer), 1, True)])]
    assert refs.borrow(refs.oid(inner)) is inner


def test_a_promoted_task_tells_the_node_its_result_also_if_nobody_here_wants_it(driver: Driver) -> None:
    task = driver.submit()
    driver.core.references.promote([task])
    driver.core.references.drop(task)
    driver.steal()
    driver.said()
    driver.hear(W, m.Done([(task.seq, 0, m.INLINE, b"r")], [], []))
    oid = object_id(D, task.seq)
    assert driver.said(NODE) == [m.Resolve([(oid, m.INLINE, b"r", [])]), m.Release([(oid, 1, True)])]


def test_a_borrowed_object_is_fetched_once_and_gates_a_task(driver: Driver) -> None:
    oid = object_id(W, 9)
    borrowed = driver.core.references.borrow(oid)
    task = driver.submit(inputs=Inputs([borrowed]))
    driver.submit(inputs=Inputs([borrowed]))
    assert [message for message in driver.said(NODE) if isinstance(message, m.Fetch)] == [m.Fetch([oid])]
    assert "another process" in driver.core.waits_for(borrowed)
    driver.hear(NODE, m.Fetched([(oid, m.STORED, (7, 9, W))]))
    (work,) = driver.steal()
    assert work.tasks[0][5] == [(m.STORED, (7, 9, W), oid)]
    driver.done(task, kept=[oid, (88, 0)])
    driver.said()


def test_what_a_thief_keeps_of_others_is_counted_for_it_by_the_node(driver: Driver) -> None:
    task = driver.submit()
    driver.steal()
    driver.hear(W, m.Done([(task.seq, 0, m.INLINE, b"r")], [], [object_id(W2, 9)]))
    assert driver.said(NODE)[0] == m.Hold(0, [(object_id(W2, 9), W)])


def test_views_hold_an_object_as_refs_do(driver: Driver) -> None:
    refs = driver.core.references
    entry = driver.core.put(m.STORED, (5, 100, D), [])
    refs.pin(entry)
    refs.drop(entry)
    assert driver.did(Recycle) == []
    refs.unpin(entry)
    assert driver.did(Recycle) == [Recycle([5])]


# The worker's side.


class Worker(Side):
    core: WorkerCore

    def __init__(self) -> None:
        super().__init__()
        self.core = WorkerCore(W, [], Timers(), describe, lambda attach: None)

    def attach(self, epoch: int = 1, victim: bytes = D) -> None:
        self.hear(NODE, m.Attach(victim, epoch, D, CPU, [], {}))

    def work(self, count: int = 1, first: int = 1, options: dict[str, Any] | None = None, returns: int = 1) -> None:
        specs = [(0, D, "f", returns, options or {}, b"digest", b"blob")] if first == 1 else []
        self.hear(D, m.Work(specs, [(first + n, 0, 0, 0, b"x") for n in range(count)]))

    def run(self, seconds: float = 0.0001, size: int = 1) -> None:
        running = self.core.next(self.now)
        assert running is not None
        self.now += seconds
        self.core.finished(m.INLINE, b"r", [], size, self.now)


@pytest.fixture
def worker() -> Worker:
    worker = Worker()
    worker.attach()
    assert isinstance(worker.core.effects[0], Connect)
    assert worker.said() == [m.Steal(1, CPU, 0.005)]
    return worker


def test_results_of_short_tasks_leave_together(worker: Worker) -> None:
    worker.work(10)
    worker.run()
    assert worker.said() == []
    for _ in range(9):
        worker.run()
    assert worker.core.next(worker.now) is None
    (done,) = worker.said()
    assert len(done.results) == 10
    assert done.timings[0][1] == pytest.approx(0.0001)


@pytest.mark.parametrize("why", ["age", "count", "bytes", "unknown"])
def test_results_do_not_wait_for_company_for_long(worker: Worker, why: str) -> None:
    worker.work(400)
    if why == "unknown":
        worker.hear(D, m.Work([(1, D, "g", 1, {}, b"other", b"blob")], [(900, 0, 1, 0, b"x")]))
    worker.run(0.00001)
    ran = 1
    while not worker.core.effects and ran < 401:
        worker.run({"age": 0.0007, "count": 0.000001}.get(why, 0.000001), 100_000 if why == "bytes" else 1)
        ran += 1
    assert ran - 1 <= {"age": 4, "count": 129, "bytes": 5, "unknown": 401}[why]


def test_neighbours_of_a_long_task_are_given_back(worker: Worker) -> None:
    worker.work(3)
    worker.core.next(worker.now)
    due = worker.core.thief.stalled(worker.now + 0.001)
    assert due is not None, "the task may become a long one, with nobody to tell"
    assert worker.said() == []
    assert worker.core.thief.stalled(due) is None
    assert worker.said() == [m.GiveBack([(3, 0), (2, 0)])]
    worker.work(1, first=5)
    assert worker.said() == [m.GiveBack([(5, 0)])], "it was on its way before the owner heard"
    worker.core.finished(m.INLINE, b"", [], 0, worker.now + 1.0)
    assert worker.core.next(worker.now + 1.0) is None
    worker.said()
    worker.work(1, first=6)
    assert worker.said() == [], "that one was the last of its kind"
    assert worker.core.next(worker.now + 1.0) is not None


def test_a_blocked_task_gives_back_work_and_cpu_and_takes_up_again(worker: Worker) -> None:
    worker.work(2)
    worker.core.next(0.0)
    worker.core.wait_begins(worker.now)
    worker.core.wait_begins(worker.now)
    worker.pass_time(BLOCK_AFTER_S)
    assert worker.said() == [m.GiveBack([(2, 0)]), m.Blocked()]
    worker.work(1, first=5)
    assert worker.said() == [m.GiveBack([(5, 0)])]
    worker.core.wait_ends(worker.now)
    assert worker.said() == [m.Unblocked()]
    worker.core.wait_begins(worker.now)
    worker.core.wait_ends(worker.now)
    assert worker.core.timers.next_deadline() is None


def test_detach_gives_back_finishes_and_frees_in_this_order(worker: Worker) -> None:
    worker.work(3)
    worker.core.next(0.0)
    worker.hear(NODE, m.Detach(D, 1))
    worker.hear(NODE, m.Detach(D, 1))
    assert worker.said() == [m.GiveBack([(3, 0), (2, 0)]), m.Unsteal(1)]
    worker.work(1, first=7)
    assert worker.said() == [m.GiveBack([(7, 0)])]
    worker.hear(D, m.Unstolen(9))
    worker.hear(D, m.Unstolen(1))
    assert worker.said() == []
    worker.core.finished(m.INLINE, b"r", [], 1, 1.0)
    done, free = worker.said()
    assert (type(done), free) == (m.Done, m.Free(1))
    worker.hear(NODE, m.Detach(D, 1))
    worker.work(1, first=9)
    assert worker.said() == []


def test_a_dead_victims_results_are_dropped_and_its_link_closed(worker: Worker) -> None:
    worker.work(2)
    worker.core.next(0.0)
    worker.hear(NODE, m.Detach(D, 1, True))
    assert worker.did(Disconnect) == [Disconnect(D)]
    worker.core.finished(m.INLINE, b"r", [], 1, 1.0)
    assert worker.said() == [m.Free(1)]


def test_a_cancelled_task_is_dropped_interrupted_or_unknown(worker: Worker) -> None:
    worker.work(2)
    worker.core.next(0.0)
    worker.hear(D, m.Cancel(2, 0, False))
    (done,) = worker.said()
    assert done.results == [(2, 0, m.CANCELLED, None)]
    worker.hear(D, m.Cancel(1, 0, True))
    assert worker.did(Interrupt) == [Interrupt(D, 1, 0)]
    worker.hear(D, m.Cancel(77, 0, True))
    worker.hear(W2, m.Cancel(1, 0, True))
    assert worker.core.effects == []


def test_cancelling_a_parent_cancels_its_children(worker: Worker) -> None:
    worker.work(1)
    worker.core.next(0.0)
    spec = worker.core.new_spec(D, "child", CPU)
    child = worker.core.submit(spec, b"", None, 1, 0.0)
    worker.hear(D, m.Cancel(1, 0, True))
    assert child.value[0] == "TaskCancelledError"
    assert worker.core.tasks.parents == {}


def test_a_stream_waits_for_its_reader(worker: Worker) -> None:
    worker.work(1, options={"backpressure": 1}, returns=-1)
    worker.core.next(0.0)
    assert worker.core.may_yield(worker.core.thief.running)
    worker.core.item(worker.core.thief.running, m.INLINE, b"i", [], 0.0)
    assert worker.said()[0].results == [(1, 0, m.ITEM, (0, m.INLINE, b"i", []))]
    assert not worker.core.may_yield(worker.core.thief.running)
    worker.hear(D, m.Consumed(9, 1))
    assert not worker.core.may_yield(worker.core.thief.running)
    worker.hear(D, m.Consumed(1, 1))
    assert worker.core.may_yield(worker.core.thief.running)


def test_max_calls_ends_the_worker_after_its_results_left(worker: Worker) -> None:
    worker.work(3, options={"max_calls": 2})
    worker.run()
    worker.run()
    assert worker.core.effects[-1] == Exit()
    assert [type(message) for message in worker.said()] == [m.GiveBack, m.Done, m.Blocked]
    assert worker.core.next(worker.now) is None
    worker.work(1, first=9)
    assert worker.said() == [m.GiveBack([(9, 0)])]


def test_max_calls_does_not_end_a_worker_whose_children_still_run(worker: Worker) -> None:
    worker.work(1, options={"max_calls": 1})
    worker.core.next(0.0)
    spec = worker.core.new_spec(D, "child", CPU)
    child = worker.core.submit(spec, b"", None, 1, 0.0)
    worker.core.finished(m.INLINE, b"r", [], 1, 1.0)
    assert worker.did(Exit) == []
    worker.core.cancel(child, 1.0)
    worker.hear(NODE, m.Ack(99))
    assert worker.did(Exit) == [Exit()]


def test_an_actor_that_ended_leaves_with_the_actors_it_made(worker: Worker) -> None:
    """Also if a thread of it, or a global variable, still has their handles."""
    worker.work(1, options={"max_calls": 1})
    worker.core.next(0.0)
    worker.core.serve({"": 1}, {}, b"", 0.0)
    spec = worker.core.new_spec(D, "child", CPU, num_returns=-1)
    child = worker.core.new_actor(spec, b"", None, 1, name="child", ordered=True)
    worker.core.start_actor(child, 0.0)
    worker.core.finished(m.END, 1, [], 0, 1.0)
    assert worker.did(Exit) == [Exit()]
    assert child.refs == 1


def _threaded(worker: Worker, seqs: list[int], options: dict[str, Any] | None = None) -> list[Any]:
    """Make it an actor that runs these calls of ours at once; returns them."""
    worker.work(1, options={"max_calls": 1})
    worker.core.next(0.0)
    worker.core.serve({"": 4}, {}, b"", 0.0)
    spec = (0, D, "A.m", 1, {"method": "m"} | (options or {}), b"", b"")
    worker.hear(D, a.Call([spec], [(seq, 0, 0, 0, b"x") for seq in seqs]))
    worker.core.effects.clear()
    return [worker.core.next_call(0.0) for _ in seqs]


OVER = (m.ERROR, ("ActorDiedError", "it called exit_actor()", {}))


def test_what_calls_submitted_is_cancelled_with_the_call_whose_thread_submitted_it(worker: Worker) -> None:
    _threaded(worker, [1, 2])
    spec = worker.core.new_spec(D, "child", CPU)
    children = []
    for seq in (1, 2):
        worker.core.who_runs = lambda seq=seq: (D, seq)
        children.append(worker.core.submit(spec, b"", None, 1, 0.0))
    worker.core.who_runs = lambda: None
    children.append(worker.core.submit(spec, b"", None, 1, 0.0))
    worker.hear(D, m.Cancel(1, 0, True))
    assert [child.status for child in children] == [m.ERROR, m.PENDING, m.PENDING]


def test_an_actor_that_ended_submits_nothing_more_and_leaves_when_its_threads_let_go(worker: Worker) -> None:
    running = _threaded(worker, [1, 2, 3])
    spec = worker.core.new_spec(D, "child", CPU)
    worker.core.who_runs = lambda: (D, 1)
    child = worker.core.submit(spec, b"", None, 1, 0.0)
    shared = worker.core.put(m.INLINE, b"x", [])
    worker.core.references.promote([shared])
    worker.hear(NODE, m.Ack(1))
    worker.core.actor_ended(OVER, 0.0)
    assert child.value[0] == "TaskCancelledError"
    (done,) = [message for message in worker.said(D) if isinstance(message, m.Done)]
    assert [result[:3] for result in done.results] == [(seq, 0, m.ERROR) for seq in (1, 2, 3)]
    assert worker.core.submit(spec, b"", None, 1, 0.0).value == OVER[1]
    made = worker.core.new_actor(spec, b"", None, 1, name="A", ordered=True)
    worker.core.start_actor(made, 0.0)
    assert made.actor.failure[1][0] == "ActorDiedError"
    for call, status, value, inside in (
        (running[0], m.INLINE, b"r", [b"o"]),
        (running[1], m.MANY, [(m.INLINE, b"r", [b"o"]), (m.INLINE, b"r", [])], []),
        (running[2], m.INLINE, b"r", [b"o"]),
    ):
        worker.core.give(call, [shared])
        if call is running[2]:
            worker.core.item(call, status, value, inside, 0.0)
            status, value, inside = m.END, 1, []
        worker.core.call_finished(call, status, value, inside, 1, 0.0)
    worker.core.check()
    worker.core.finished(m.END, 1, [], 0, 1.0)
    assert worker.did(Exit) == []
    worker.core.references.drop(shared)
    assert worker.core.next(1.0) is None
    assert worker.did(Exit) == [Exit()]


def test_an_actor_asks_its_owner_for_its_own_handle(worker: Worker) -> None:
    _threaded(worker, [])
    oid = actor_id(D, 1)
    for error, status in (("", m.INLINE), ("nobody has a handle of it", m.ERROR)):
        entry, ticket = worker.core.ask_own_handle(oid)
        (asked,) = worker.said(D)
        assert asked == a.ShareActor(ticket.seq, oid)
        worker.hear(D, a.ActorShared(ticket.seq, error))
        assert ticket.status == status
        assert entry.share is not None
        assert entry.share.holds >= 1


def test_what_a_dead_caller_was_given_is_not_taken_back_twice(worker: Worker) -> None:
    (call,) = _threaded(worker, [1])
    value = worker.core.put(m.INLINE, b"x", [])
    worker.core.give(call, [value])
    worker.core.actor_ended(OVER, 0.0)
    worker.hear(NODE, a.CallerGone(D))
    assert value.refs == 1
    worker.core.call_finished(call, m.INLINE, b"r", [b"o"], 1, 0.0)
    assert value.refs == 1


def test_stop_is_refused_by_a_worker_that_owns_something(worker: Worker) -> None:
    worker.hear(NODE, m.Stop())
    assert worker.said() == [m.Free(1)]
    worker.hear(NODE, m.Detach(D, 1))
    worker.hear(D, m.Unstolen(1))
    worker.said()
    entry = worker.core.put(m.INLINE, b"v", [])
    worker.core.references.promote([entry])
    worker.hear(NODE, m.Stop())
    assert m.Free(1) in worker.said()
    worker.hear(NODE, m.Ack(1))
    worker.core.references.drop(entry)
    worker.said()
    worker.hear(NODE, m.Stop())
    assert worker.did(Exit) == [Exit()]


def test_views_that_outlive_their_task_are_kept_and_told_when_they_end(worker: Worker) -> None:
    refs = worker.core.references
    worker.work(1)
    worker.core.next(0.0)
    own, shared = refs.view_opened(D, (4, 0)), refs.view_opened(D, object_id(W2, 9))
    refs.view_opened(D, (4, 0))
    borrowed = refs.borrow(object_id(W2, 5))
    worker.core.finished(m.INLINE, b"r", [], 1, 1.0)
    (done,) = worker.said()
    assert done.kept == [(4, 0), object_id(W2, 9), object_id(W2, 5)]
    refs.view_closed(own)
    refs.view_closed(own)
    assert worker.said(D) == [m.Unpin([(4, 0)])]
    refs.view_closed(shared)
    refs.drop(borrowed)
    released = [message.objects[0] for message in worker.said(NODE)]
    assert released == [(object_id(W2, 9), 1, True), (object_id(W2, 5), 1, True)]


def test_views_of_a_dead_victim_end_without_a_word(worker: Worker) -> None:
    refs = worker.core.references
    key = refs.view_opened(D, (4, 0))
    assert refs.keeps(D) == [(4, 0)]
    assert refs.watched == [D]
    refs.give(D, 3, [Entry(1, 0, m.INLINE, b"v")])
    worker.hear(NODE, m.Detach(D, 1, True))
    worker.said()
    refs.view_closed(key)
    assert worker.said() == []


def test_links_are_few(worker: Worker) -> None:
    for n in range(LINKS_MAX + 1):
        worker.hear(NODE, m.Detach(worker.core.thief.victim, n + 1))
        worker.hear(worker.core.thief.victim, m.Unstolen(n + 1))
        worker.attach(n + 2, N + n.to_bytes(8, "big"))
    assert len([e for e in worker.core.effects if isinstance(e, Connect)]) == LINKS_MAX + 1
    assert [e.peer for e in worker.core.effects if isinstance(e, Disconnect)] == [D, N + bytes(8)]


def test_a_result_for_a_victim_that_died_meanwhile_keeps_no_references(worker: Worker) -> None:
    """They were promoted as Detach came: nobody will say that they are taken."""
    worker.work(1)
    running = worker.core.next(0.0)
    assert running is not None
    entry = worker.core.put(m.INLINE, b"v", [])
    worker.core.references.promote([entry])
    (promote,) = [said for said in worker.said() if isinstance(said, m.Promote)]
    worker.hear(NODE, m.Detach(D, 1, dead=True))
    worker.hear(NODE, m.Ack(promote.request))
    worker.core.give(running, [entry])
    worker.core.references.drop(entry)
    worker.core.finished(m.INLINE, b"r", [], 1, 1.0)
    worker.said()
    worker.hear(NODE, m.Stop())
    assert worker.did(Exit)
