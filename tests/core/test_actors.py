"""One caller, one actor, one home, message by message: what the simulator reaches only by chance."""

from typing import Any

import pytest

from zmesh.core.actor_calls import BURST_S, RETIRE_S, SENT_MAX, SENT_SINGLY_MAX
from zmesh.core.actor_places import ActorPlaces
from zmesh.core.actor_server import GONE_MAX, STALL_S, ActorServer
from zmesh.core.client import DRAIN_S, ClientCore
from zmesh.core.effects import Connect, Disconnect, Effect, Interrupt, Send
from zmesh.core.records import Entry, Handle, Inputs, Task
from zmesh.core.tables import table_sizes
from zmesh.core.timers import Timers
from zmesh.wire import actor_messages as a
from zmesh.wire import messages as m
from zmesh.wire.codec import decode, encode
from zmesh.wire.death_messages import Followed
from zmesh.wire.ids import actor_id, node_peer, object_id

N, FAR = b"n" * 8, b"f" * 8
NODE = node_peer(N)
D, W, W2, OTHER = N + b"driver..", N + b"worker..", N + b"worker2.", N + b"other..."
FAR_WORKER = FAR + b"worker.."
CPU = {"CPU": m.UNIT}
DEAD = [m.ERROR, ("ActorDiedError", "gone", {})]


class Driver:
    """A client with its effects and its clock in view."""

    def __init__(self) -> None:
        self.now = 0.0
        self.core = ClientCore(D, [], Timers(), lambda status: (status >> 8, None, "ended"))
        self.hear(NODE, m.Welcome(N, 1, {"CPU": 2 * m.UNIT}))

    def hear(self, peer: bytes, message: Any) -> None:
        self.core.receive(peer, decode(encode(message)), self.now)
        self.core.check()

    def said(self, kind: type[Any], to: bytes | None = None) -> list[Any]:
        """Return the messages of a kind sent since the last look, which forgets all others."""
        sent = [e for e in self.core.effects if isinstance(e, Send)]
        self.core.effects.clear()
        return [e.message for e in sent if isinstance(e.message, kind) and to in (None, e.to)]

    def did(self, kind: type[Effect]) -> list[Any]:
        found = [effect for effect in self.core.effects if isinstance(effect, kind)]
        self.core.effects.clear()
        return found

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.core.timers.tick(self.now)
        self.core.check()

    def create(self, restarts: int = 0, *, ordered: bool = True, inputs: Inputs | None = None) -> Handle:
        spec = self.core.new_spec(D, "A", CPU, num_returns=-1, max_retries=restarts, options={"max_calls": 1})
        handle = self.core.new_actor(spec, b"x", inputs, 0, name="A", ordered=ordered)
        self.core.start_actor(handle, self.now)
        return handle

    def made(self, handle: Handle, peer: bytes = W) -> None:
        """A worker takes the creation task and says that the actor is ready."""
        creation = handle.actor.creation
        assert creation is not None
        self.hear(peer, m.Steal(1, CPU, 0.005))
        self.hear(peer, m.Done([(creation.seq, creation.attempt, m.ITEM, (0, m.INLINE, b"", []))], [], []))

    def actor(self, **options: Any) -> Handle:
        handle = self.create(**options)
        self.made(handle)
        self.core.effects.clear()
        return handle

    def call(self, handle: Entry, retries: int = 0, *, inputs: Inputs | None = None, returns: int = 1) -> Task:
        spec = self.core.new_spec(D, "A.m", {}, num_returns=returns, max_retries=retries, options={"method": "m"})
        actor = self.core.actors.find(handle, "A", ordered=True)
        task = self.core.call(actor, handle, spec, b"x", inputs, 0, self.now)
        self.core.check()
        return task

    def answer(self, task: Task, status: int = m.INLINE, value: Any = b"r", peer: bytes = W, **more: Any) -> None:
        result = (task.seq, more.get("attempt", task.attempt), status, value, *more.get("inside", ()))
        self.hear(peer, m.Done([result], [], more.get("kept", [])))

    def borrow(self) -> Entry:
        """Get a handle of an actor that another program made."""
        return self.core.references.borrow(actor_id(OTHER, 7))

    def died(self, worker: bytes = W, task: Task | None = None, **more: Any) -> None:
        seq, attempt = (task.seq, task.attempt) if task is not None else (0, 0)
        self.hear(NODE, m.WorkerDied(worker, 1, 9, D if task else b"", seq, attempt, "", "", **more))
        self.pass_time(DRAIN_S)


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_an_actor_that_wants_its_handle_is_counted_at_its_home_before_it_is_told(driver: Driver) -> None:
    handle = driver.actor()
    oid = driver.core.references.oid(handle)
    driver.hear(W, a.ShareActor(5, oid))
    said = [e.message for e in driver.core.effects if isinstance(e, Send)]
    assert [type(message) for message in said] == [a.ActorState, m.Promote, m.Hold]
    assert said[2].holders == [(oid, W)]
    driver.hear(NODE, m.Ack(said[1].request))
    assert driver.said(a.ActorShared, W) == []
    driver.hear(NODE, m.Ack(said[2].request))
    assert driver.said(a.ActorShared, W) == [a.ActorShared(5)]
    driver.hear(W, a.ShareActor(6, oid))
    assert [type(e.message) for e in driver.core.effects if isinstance(e, Send)] == [m.Hold]


def test_an_actor_of_which_nobody_has_a_handle_is_told_so(driver: Driver) -> None:
    handle = driver.actor()
    oid = driver.core.references.oid(handle)
    driver.core.references.drop(handle)
    for actor in (oid, actor_id(D, 99)):
        driver.hear(W, a.ShareActor(5, actor))
        assert driver.said(a.ActorShared, W)[0].error == "nobody has a handle of it"


def test_few_calls_go_singly_and_more_wait_for_company(driver: Driver) -> None:
    handle = driver.actor()
    calls = [driver.call(handle) for _ in range(SENT_MAX + 100)]
    assert [len(c.calls) for c in driver.said(a.Call, W)] == [1] * SENT_SINGLY_MAX
    driver.answer(calls[0])
    batches = [len(c.calls) for c in driver.said(a.Call, W)]
    assert sum(batches) == SENT_MAX - SENT_SINGLY_MAX + 1
    assert max(batches) == 256


def test_calls_of_an_actor_with_many_places_all_go_at_once_but_for_those_without_arguments(driver: Driver) -> None:
    handle = driver.actor(ordered=False)
    waiting = driver.core.submit(driver.core.new_spec(D, "f", CPU), b"x", None, 0, 0.0)
    first = driver.call(handle, inputs=Inputs(deps=[waiting]))
    for _ in range(SENT_MAX + 10):
        driver.call(handle)
    driver.pass_time(0.0)
    assert sum(len(c.calls) for c in driver.said(a.Call, W)) == SENT_MAX + 10
    assert driver.core.waits_for(first) == "A.m waits for 1 of its arguments"


def test_a_burst_of_calls_to_an_actor_with_many_places_gathers_until_somebody_looks(driver: Driver) -> None:
    handle = driver.actor(ordered=False)
    for _ in range(SENT_SINGLY_MAX + 300):
        driver.call(handle)
    assert [len(c.calls) for c in driver.said(a.Call, W)] == [1] * SENT_SINGLY_MAX + [256]
    driver.pass_time(0.0)
    assert [len(c.calls) for c in driver.said(a.Call, W)] == [44], "it waited for no result and for no time"
    driver.pass_time(BURST_S)
    driver.call(handle)
    assert [len(c.calls) for c in driver.said(a.Call, W)] == [1]


def test_what_gathers_for_an_actor_that_is_killed_fails_with_it_and_is_not_sent(driver: Driver) -> None:
    handle = driver.actor(ordered=False)
    calls = [driver.call(handle) for _ in range(SENT_SINGLY_MAX + 5)]
    driver.core.effects.clear()
    driver.core.kill_actor(handle.actor, driver.now, no_restart=True)
    driver.pass_time(0.0)
    assert {call.status for call in calls} == {m.ERROR}
    assert driver.said(a.Call) == []


def test_a_large_batch_travels_in_several_messages(driver: Driver) -> None:
    handle = driver.create()
    spec = driver.core.new_spec(D, "A.m", {}, options={"method": "m"})
    for _ in range(12):
        driver.core.call(handle.actor, handle, spec, bytes(50_000), None, 0, 0.0)
    driver.made(handle)
    assert [len(c.calls) for c in driver.said(a.Call, W)] == [6, 6]


def test_explain_says_what_a_call_waits_for(driver: Driver) -> None:
    handle = driver.create(restarts=1)
    call = driver.call(handle)
    assert driver.core.waits_for(call).startswith("A.m waits for its actor to be made: A is queued behind 0 others")
    driver.made(handle)
    assert driver.core.waits_for(call).startswith("A.m was sent to worker")
    behind = [driver.call(handle) for _ in range(SENT_SINGLY_MAX)][-1]
    assert driver.core.waits_for(behind) == "A.m is queued behind 16 calls of the same actor"
    driver.died(W, handle.actor.creation)
    assert driver.core.waits_for(behind).startswith("A.m waits for its actor to be made again: A is queued")


def test_a_call_whose_argument_failed_fails_and_lets_the_next_go(driver: Driver) -> None:
    handle = driver.actor()
    spec = driver.core.new_spec(D, "f", CPU)
    argument = driver.core.submit(spec, b"x", None, 0, 0.0)
    call = driver.call(handle, inputs=Inputs(deps=[argument]))
    behind = driver.call(handle)
    assert driver.said(a.Call) == []
    driver.core.cancel(argument, 0.0)
    assert call.status == m.ERROR
    assert [c.calls[0][0] for c in driver.said(a.Call, W)] == [behind.seq]


def test_an_actor_whose_argument_failed_fails_its_calls_with_the_same_error(driver: Driver) -> None:
    argument = driver.core.submit(driver.core.new_spec(D, "f", CPU), b"x", None, 0, 0.0)
    handle = driver.create(inputs=Inputs(deps=[argument]))
    call = driver.call(handle)
    driver.hear(W2, m.Steal(1, CPU, 0.005))
    driver.hear(W2, m.Done([(argument.seq, 0, m.FAILED, b"error")], [], []))
    assert (call.status, call.value) == (m.FAILED, b"error")
    assert driver.call(handle).value == b"error"


def test_results_with_references_many_values_and_streams_are_taken(driver: Driver) -> None:
    handle = driver.actor()
    oid = object_id(W, 1)
    one, two, stream = driver.call(handle), driver.call(handle, returns=2), driver.call(handle, returns=-1)
    driver.answer(one, inside=([oid],))
    driver.answer(two, m.MANY, [(m.INLINE, b"a", []), (m.INLINE, b"b", [])])
    driver.answer(stream, m.ITEM, (0, m.INLINE, b"i", []))
    driver.answer(stream, m.END, 1)
    assert [one.status, two.status, stream.status] == [m.INLINE] * 3
    assert len(driver.said(m.Hold)) == 1
    driver.answer(one)
    assert one.value == b"r", "a result that nobody waits for is dropped"


def test_a_result_of_a_call_that_may_be_retried_sends_it_again(driver: Driver) -> None:
    handle = driver.actor()
    call = driver.call(handle, retries=1)
    driver.core.effects.clear()
    driver.answer(call, m.RETRYABLE, b"e")
    assert driver.said(a.Call)[0].calls[0][:2] == (call.seq, 1)
    driver.answer(call, m.RETRYABLE, b"e")
    assert call.status == m.FAILED


def test_a_late_success_of_a_call_that_waits_to_be_sent_again_counts(driver: Driver) -> None:
    handle = driver.actor(restarts=1)
    call = driver.call(handle, retries=1)
    driver.died(W, handle.actor.creation)
    assert driver.core.waits_for(call).startswith("A.m waits for its actor to be made again: A is queued")
    driver.answer(call, attempt=0)
    assert call.value == b"r"
    driver.core.effects.clear()
    driver.made(handle, W2)
    assert driver.said(a.Call) == []


def test_a_cancelled_call_is_not_sent_again(driver: Driver) -> None:
    handle = driver.actor(restarts=1)
    call = driver.call(handle, retries=1)
    driver.core.cancel(call, 0.0)
    assert driver.said(m.Cancel, W)[0].seq == call.seq
    driver.died(W, handle.actor.creation)
    assert call.value[0] == "TaskCancelledError"


def test_an_actor_ends_with_its_placement_group_and_its_calls_say_so(driver: Driver) -> None:
    handle = driver.actor(restarts=1)
    call = driver.call(handle)
    creation = handle.actor.creation
    assert creation is not None
    driver.hear(NODE, m.WorkerDied(W, 1, 9, D, creation.seq, creation.attempt, "group", ""))
    driver.pass_time(DRAIN_S)
    assert call.value[0] == driver.call(handle).value[0] == "ActorPlacementGroupRemovedError"


def test_an_item_that_is_taken_while_its_actor_is_gone_is_told_to_nobody(driver: Driver) -> None:
    handle = driver.borrow()
    spec = driver.core.new_spec(D, "A.m", {}, num_returns=-1, options={"method": "m", "backpressure": 1})
    actor = driver.core.actors.find(handle, "A", ordered=True)
    task = driver.core.call(actor, handle, spec, b"x", None, 0, driver.now)
    driver.hear(NODE, a.ActorState(actor_id(OTHER, 7), 1, W))
    driver.hear(NODE, Followed(W))
    driver.hear(W, m.Done([(task.seq, 0, m.ITEM, (0, m.INLINE, b"i", []))], [], []))
    driver.core.tasks.consumed(task, 1)
    assert driver.said(m.Consumed) == [m.Consumed(task.seq, 1)]
    driver.died(W)
    driver.core.tasks.consumed(task, 1)
    assert driver.said(m.Consumed) == []


def test_ctrl_c_cancels_calls_and_leaves_actors(driver: Driver) -> None:
    handle = driver.actor()
    queued = driver.create()
    call, waiting = driver.call(handle), driver.call(queued)
    driver.core.effects.clear()
    driver.core.cancel_all(0.0)
    assert [c.seq for c in driver.said(m.Cancel)] == [call.seq]
    assert waiting.value[0] == "TaskCancelledError"
    assert handle.actor.failure is queued.actor.failure is None


def test_an_actor_is_killed_whatever_state_it_is_in(driver: Driver) -> None:
    queued = driver.create()
    driver.core.kill_actor(queued.actor, 0.0, no_restart=True)
    assert "killed" in driver.call(queued).value[1]
    leased = driver.create()
    driver.hear(W, m.Steal(1, CPU, 0.005))
    driver.core.effects.clear()
    driver.core.kill_actor(leased.actor, 0.0, no_restart=True)
    assert [type(e.message) for e in driver.core.effects if isinstance(e, Send)][:2] == [m.Cancel, m.Kill]
    serving = driver.create()
    driver.made(serving, W2)
    driver.core.effects.clear()
    call = driver.call(serving)
    driver.core.kill_actor(serving.actor, 0.0, no_restart=True)
    assert driver.said(m.Kill, NODE)[0].worker == W2
    assert call.value[0] == "ActorDiedError"
    driver.core.kill_actor(serving.actor, 0.0, no_restart=True)
    driver.died(W2, serving.actor.creation)
    assert "killed" in driver.call(serving).value[1]


def test_an_actor_that_is_made_all_the_same_is_killed_then(driver: Driver) -> None:
    """Its worker had its creation, but had not entered it as the first Kill came, and was through as Cancel came."""
    handle = driver.create()
    driver.hear(W, m.Steal(1, CPU, 0.005))
    call = driver.call(handle)
    driver.core.kill_actor(handle.actor, 0.0, no_restart=True)
    driver.core.effects.clear()
    driver.hear(W, m.Done([(handle.actor.creation.seq, 0, m.ITEM, (0, m.INLINE, b"", []))], [], []))
    assert [(order.worker, order.seq) for order in driver.said(m.Kill, NODE)] == [(W, handle.actor.creation.seq)]
    assert driver.said(a.Call) == []
    assert call.value[0] == "ActorDiedError"
    driver.died(W, handle.actor.creation)
    assert "killed" in driver.call(handle).value[1]
    driver.core.check()


def test_an_actor_whose_name_was_found_and_that_is_killed_before_its_start_is_never_made(driver: Driver) -> None:
    spec = driver.core.new_spec(D, "A", CPU, num_returns=-1, options={"max_calls": 1})
    handle = driver.core.new_actor(spec, b"x", None, 0, name="A", ordered=True)
    driver.core.references.promote([handle])
    driver.hear(NODE, m.Ack(1))
    oid = driver.core.references.oid(handle)
    driver.hear(NODE, a.KillActor(oid, no_restart=False))
    assert handle.actor.failure is None
    driver.hear(NODE, a.KillActor(oid, no_restart=True))
    driver.core.start_actor(handle, driver.now)
    assert "killed by zmesh.kill()" in handle.actor.failure[1][1]
    assert driver.said(m.Demand) == []
    assert driver.call(handle).value[0] == "ActorDiedError"
    driver.core.check()


def test_an_actor_that_nobody_holds_as_it_starts_retires_once_it_is_made(driver: Driver) -> None:
    spec = driver.core.new_spec(D, "A", CPU, num_returns=-1, options={"max_calls": 1})
    handle = driver.core.new_actor(spec, b"x", None, 0, name="A", ordered=True)
    driver.core.references.promote([handle])
    driver.hear(NODE, a.Unheld(driver.core.references.oid(handle)))
    driver.pass_time(0.0)
    driver.core.start_actor(handle, driver.now)
    driver.made(handle)
    assert driver.said(a.Retire, W) == [a.Retire()]


def test_others_have_an_actor_killed_through_its_home(driver: Driver) -> None:
    handle = driver.actor()
    oid = driver.core.references.oid(handle)
    driver.hear(NODE, a.KillActor(oid, False))
    assert driver.said(m.Kill, NODE)[0].worker == W
    assert handle.actor.failure is None
    driver.hear(NODE, a.KillActor(actor_id(D, 99), True))
    theirs = driver.borrow()
    actor = driver.core.actors.find(theirs, "A", ordered=True)
    driver.core.kill_actor(actor, 0.0, no_restart=True)
    assert driver.said(a.KillActor, NODE)[0].actor == actor_id(OTHER, 7)


def test_an_actor_without_handles_retires_and_is_killed_if_it_does_not(driver: Driver) -> None:
    handle = driver.actor()
    driver.core.references.drop(handle)
    driver.pass_time(0.0)
    assert driver.said(a.Retire, W)
    driver.pass_time(RETIRE_S)
    assert driver.said(m.Kill, NODE)
    assert driver.core.actors.known == {}


def test_an_actor_that_loses_its_handles_before_it_is_made_is_dropped_or_retires(driver: Driver) -> None:
    queued = driver.create()
    driver.core.references.drop(queued)
    driver.pass_time(0.0)
    assert driver.core.actors.known == {}
    leased = driver.create()
    driver.hear(W, m.Steal(1, CPU, 0.005))
    driver.core.references.drop(leased)
    driver.pass_time(0.0)
    assert driver.said(a.Retire) == []
    creation = leased.actor.creation
    assert creation is not None
    driver.answer(creation, m.ITEM, (0, m.INLINE, b"", []))
    assert driver.said(a.Retire, W)


def test_a_call_holds_the_handle(driver: Driver) -> None:
    handle = driver.actor()
    call = driver.call(handle)
    driver.core.references.drop(handle)
    driver.pass_time(0.0)
    assert driver.said(a.Retire) == []
    driver.answer(call)
    driver.pass_time(0.0)
    assert driver.said(a.Retire, W)


def test_a_process_that_is_over_dismisses_actors_that_only_it_has(driver: Driver) -> None:
    """Once they have no call any more; what others have, or made, stays."""
    own, shared, theirs = driver.actor(), driver.create(), driver.borrow()
    driver.core.references.promote([shared])
    driver.core.actors.find(theirs, "A", ordered=True)
    call = driver.call(own)
    driver.core.actors.dismiss(driver.now)
    assert driver.said(a.Retire) == []
    driver.answer(call)
    driver.core.actors.dismiss(driver.now)
    driver.core.actors.dismiss(driver.now)
    assert len(driver.said(a.Retire, W)) == 1
    assert [actor.retiring for actor in driver.core.actors.known.values()] == [True, False, False]


def test_an_actor_that_was_not_started_is_abandoned(driver: Driver) -> None:
    spec = driver.core.new_spec(D, "A", CPU, num_returns=-1)
    big = driver.core.put(m.STORED, (1, 100_000, D), [])
    big.refs = 0
    handle = driver.core.new_actor(spec, (1, 100_000, D, big.seq), Inputs(held=[big]), 0, name="A", ordered=True)
    driver.core.actors.abandon(handle, "no reason")
    driver.core.references.drop(handle)
    driver.pass_time(0.0)
    assert driver.core.actors.known == {}
    assert big.value is None, "its arguments are freed"


def test_the_home_hears_of_an_actor_before_its_handle_leaves_and_of_each_change(driver: Driver) -> None:
    handle = driver.actor(restarts=1)
    driver.core.references.promote([handle])
    sent = [e.message for e in driver.core.effects if isinstance(e, Send)]
    assert [type(message) for message in sent] == [a.ActorState, m.Promote]
    assert (sent[0].version, sent[0].peer, sent[0].first) == (1, W, True)
    driver.core.effects.clear()
    driver.died(W, handle.actor.creation)
    assert [(s.version, s.peer, s.first) for s in driver.said(a.ActorState)] == [(2, b"", False)]
    driver.made(handle, W2)
    assert [(s.version, s.peer) for s in driver.said(a.ActorState)] == [(3, W2)]
    driver.core.references.drop(handle)
    assert driver.said(m.Release, NODE)
    driver.pass_time(0.0)
    assert driver.said(a.Retire) == []
    driver.hear(NODE, a.Unheld(actor_id(D, 1)))
    driver.pass_time(0.0)
    assert driver.said(a.Retire, W2)


def test_a_borrower_asks_where_the_actor_is_follows_it_and_hears_of_its_end(driver: Driver) -> None:
    handle = driver.borrow()
    oid = actor_id(OTHER, 7)
    call = driver.call(handle, retries=1)
    assert [q.version for q in driver.said(a.ActorQuery, NODE)] == [-1]
    driver.hear(NODE, a.ActorState(oid, 0))
    assert [q.version for q in driver.said(a.ActorQuery, NODE)] == [0]
    driver.hear(NODE, a.ActorState(oid, 1, W))
    assert driver.core.effects[1] == Connect(W)
    assert [type(e.message) for e in driver.core.effects if isinstance(e, Send)] == [a.Follow]
    driver.core.effects.clear()
    driver.hear(NODE, Followed(W))
    assert driver.said(a.Call, W), "only now: what it lends outlives the caller"
    driver.died(W)
    assert [q.version for q in driver.said(a.ActorQuery, NODE)] == [1]
    driver.hear(NODE, a.ActorState(oid, 3, FAR_WORKER))
    assert call.attempt == 1
    assert driver.said(a.Follow, node_peer(FAR))
    driver.hear(NODE, a.ActorState(oid, 2))
    assert driver.said(a.ActorQuery) == [], "older than what is known"
    driver.hear(NODE, a.ActorState(oid, a.ACTOR_DEAD, b"", DEAD))
    assert call.value[1] == "gone"
    assert driver.call(handle).value[1] == "gone"
    driver.hear(NODE, a.ActorState(actor_id(OTHER, 8), 1, W))  # of one that was forgotten meanwhile


def test_a_caller_whose_actor_dies_or_moves_before_it_is_followed_asks_again(driver: Driver) -> None:
    handle, oid = driver.borrow(), actor_id(OTHER, 7)
    call = driver.call(handle)
    driver.hear(NODE, a.ActorState(oid, 1, W))
    driver.said(a.ActorQuery)
    driver.died(W)
    assert [q.version for q in driver.said(a.ActorQuery, NODE)] == [1]
    driver.hear(NODE, a.ActorState(oid, 3, W2))
    driver.hear(NODE, a.ActorState(oid, 4))
    driver.hear(NODE, Followed(W2))
    assert driver.said(a.Call) == [], "it is not there any more"
    driver.hear(NODE, a.ActorState(oid, 5, FAR_WORKER))
    assert driver.said(a.Call, FAR_WORKER)
    assert call.attempt == 0


def test_a_borrower_fails_what_may_have_run_when_the_actor_restarts(driver: Driver) -> None:
    handle = driver.borrow()
    call = driver.call(handle)
    driver.hear(NODE, a.ActorState(actor_id(OTHER, 7), 1, W))
    driver.hear(NODE, Followed(W))
    driver.core.effects.clear()
    driver.hear(NODE, a.ActorState(actor_id(OTHER, 7), 2))
    assert call.value[0] == "ActorUnavailableError"
    assert driver.did(Disconnect) == []
    driver.died(W)
    assert driver.did(Disconnect) == [Disconnect(W)]


def test_a_borrower_forgets_an_actor_with_its_last_handle_unless_one_came_back(driver: Driver) -> None:
    handle = driver.borrow()
    driver.answer(driver.call(handle), peer=W)
    driver.hear(NODE, a.ActorState(actor_id(OTHER, 7), 1, W))
    driver.hear(NODE, Followed(W))
    again = driver.borrow()
    assert again is handle
    call = driver.call(handle)
    driver.core.references.drop(handle)
    driver.core.references.drop(handle)
    assert driver.core.actors.known
    for task in driver.core.unresolved():
        driver.answer(task)
    assert call.status == m.INLINE
    driver.call(driver.borrow())  # before anybody looked
    driver.pass_time(0.0)
    assert driver.core.actors.known
    for task in driver.core.unresolved():
        driver.answer(task)
    driver.core.references.drop(driver.core.references._borrowed[actor_id(OTHER, 7)])
    driver.core.effects.clear()
    driver.pass_time(0.0)
    assert driver.core.actors.known == {}
    driver.call(driver.borrow())
    driver.hear(NODE, a.ActorState(actor_id(OTHER, 7), 1, W))
    assert driver.did(Connect) == [], "the link is still there"
    driver.died(W)
    assert driver.did(Disconnect) == [Disconnect(W)]


def test_actors_of_a_dead_node_are_dead_or_asked_for(driver: Driver) -> None:
    driver.core.victim.totals = [CPU, CPU]
    theirs = driver.core.references.borrow(actor_id(FAR + b"other...", 1))
    lost = driver.call(theirs)
    moved = driver.borrow()
    kept = driver.call(moved, retries=1)
    driver.hear(NODE, a.ActorState(actor_id(OTHER, 7), 1, FAR_WORKER))
    driver.core.effects.clear()
    driver.hear(NODE, m.NodeGone(FAR, "silence"))
    assert lost.value[0] == "ActorDiedError"
    assert kept.status == m.PENDING
    assert [q.actor for q in driver.said(a.ActorQuery)] == [actor_id(OTHER, 7)]


def test_everything_fails_when_the_node_is_lost(driver: Driver) -> None:
    handle = driver.actor(restarts=9)
    unmade = driver.create()
    argument = driver.core.submit(driver.core.new_spec(D, "f", CPU), b"x", None, 0, 0.0)
    calls = [driver.call(handle), driver.call(unmade), driver.call(handle, inputs=Inputs(deps=[argument]))]
    calls += [driver.call(handle), driver.call(driver.borrow())]
    driver.core.node_lost("gone", 0.0)
    driver.core.check()
    assert all(call.status == m.ERROR for call in calls)
    assert driver.call(handle, returns=2).value[0] == "NodeDiedError"
    assert driver.call(driver.create()).value[0] in ("NodeDiedError", "ActorDiedError")


def test_a_guest_that_changes_nodes_loses_its_actors(driver: Driver) -> None:
    serving, queued, theirs, dead = driver.actor(), driver.create(), driver.borrow(), driver.create()
    calls = [driver.call(handle) for handle in (queued, theirs)]
    driver.core.kill_actor(dead.actor, 0.0, no_restart=True)
    driver.core.actors.lose_all("its node is gone", 0.0)
    assert serving.actor.creation is not None
    assert serving.actor.creation.cancelled
    assert [call.value[0] for call in calls] == ["ActorDiedError"] * 2
    driver.core.effects.clear()
    assert driver.call(theirs).status == m.PENDING
    assert driver.said(a.ActorQuery), "somebody else's may be found again"


def test_the_last_word_of_an_actor_that_ended_may_be_lost(driver: Driver) -> None:
    handle = driver.actor(restarts=5)
    driver.died(W, handle.actor.creation, over=True)
    assert "good order" in driver.call(handle).value[1]


def test_an_unschedulable_actor_says_so(driver: Driver) -> None:
    handle = driver.create()
    call = driver.call(handle)
    driver.hear(NODE, m.Infeasible(CPU, "no CPU"))
    driver.pass_time(1.1)
    assert call.value[0] == "TaskUnschedulableError"
    assert call.value[2]["class_name"] == "A"


def test_a_name_is_asked_of_the_node_and_who_has_it_is_held(driver: Driver) -> None:
    oid = actor_id(OTHER, 7)
    ticket = driver.core.actors.ask_name(a.NAME_FIND, "ns", "a")
    question = driver.said(a.NameAsk, NODE)[0]
    assert (question.kind, question.namespace, question.name) == (a.NAME_FIND, "ns", "a")
    driver.hear(NODE, a.NameTold(question.request, ["ns", "a", oid, b"told"]))
    assert ticket.value == ("ns", "a", oid, b"told")
    entry, held = driver.core.references.claim_found(oid)
    request = driver.said(m.Hold, NODE)[0].request
    driver.hear(NODE, m.Ack(request))
    assert held.status == m.INLINE
    driver.core.references.drop(entry)
    assert driver.said(m.Release, NODE)[0].objects == [(oid, 1, True)]
    entry, held = driver.core.references.claim_found(oid)
    driver.hear(NODE, m.Ack(driver.said(m.Hold, NODE)[0].request, "it is gone"))
    assert held.status == m.ERROR
    driver.core.references.unclaim(entry)
    assert driver.said(m.Release) == []
    far = driver.core.references.claim_found(actor_id(FAR_WORKER, 7))
    near = driver.core.references.claim_found(oid)
    driver.hear(NODE, m.NodeGone(FAR, "it was killed"))
    assert far[1].value[0] == "OwnerDiedError", "nobody else will answer"
    assert near[1].status == m.PENDING


# The actor's half.


class Copies:
    """Stands for core/pulls.py."""

    def __init__(self) -> None:
        self.dropped: list[Any] = []
        self.wanted: list[Any] = []

    def is_far(self, place: Any) -> bool:
        return bool(place[2][:8] == FAR)

    def want(self, oid: bytes, place: Any) -> Any:
        from zmesh.core.records import Copy

        copy = Copy(oid)
        self.wanted.append((copy, place))
        return copy

    def drop(self, copy: Any) -> None:
        self.dropped.append(copy)


class Server:
    """An actor's half with its effects in view."""

    def __init__(self, **places: int) -> None:
        self.effects: list[Effect] = []
        self.pulls = Copies()
        self.core = ActorServer(self.effects, keeps=lambda peer: [], pulls=self.pulls)
        self.core.open({"": 1, **places})

    def called(self, *seqs: int, peer: bytes = D, args: Any = b"x", deps: Any = None, group: str = "") -> None:
        options = {"method": "m", "group": group} if group else {"method": "m"}
        spec = [len(group), D, "A.m", 1, options, b"", b""]
        records = [[seq, 0, len(group), 0, args, *([] if deps is None else [deps])] for seq in seqs]
        self.core.called(peer, a.Call([spec], records), 0.0)
        self.core.check()

    def next(self, now: float = 0.0) -> Any:
        running = self.core.next(now)
        self.core.check()
        return running

    def finish(self, running: Any, now: float = 0.0) -> None:
        self.core.finished(running, m.INLINE, b"r", [], 10, now)
        self.core.check()

    def done(self) -> list[Any]:
        found = [(e.to, [r[0] for r in e.message.results]) for e in self.effects if isinstance(e, Send)]
        self.effects.clear()
        return found


def test_results_leave_when_nothing_is_left_to_run() -> None:
    server = Server()
    server.called(1, 2, 3)
    server.finish(server.next())
    server.finish(server.next())
    assert server.done() == [], "the third is about to run, and short"
    server.finish(server.next())
    assert server.next() is None
    assert server.done() == [(D, [1, 2, 3])]


def test_results_do_not_wait_for_a_long_call() -> None:
    server = Server()
    server.called(1, 2, 3)
    server.finish(server.next())
    running = server.next()
    server.finish(running, now=1.0)
    server.next(1.0)
    assert server.done() == [(D, [1, 2])]
    server.called(4, peer=W2)
    server.core.stalled(1.0 + STALL_S)
    assert server.done() == []


def test_results_of_others_leave_while_a_call_stalls() -> None:
    server = Server(io=1)
    server.called(1)
    server.called(2, group="io")
    slow, quick = server.next(), server.next()
    assert server.next() is None
    server.finish(quick)
    assert server.core.stalled(STALL_S / 2) == STALL_S
    assert server.done() == []
    assert server.core.stalled(STALL_S) is None
    assert server.done() == [(D, [2])]
    assert server.core.stalled(STALL_S) is None, "nothing waits"
    assert not server.core.idle
    server.finish(slow)
    assert server.core.idle


def test_a_group_that_is_not_there_is_an_error() -> None:
    server = Server(io=1)
    server.called(1, group="disk")
    assert server.next() is None
    assert isinstance(server.effects[0], Send)
    assert server.effects[0].message.results[0][3][0] == "ConfigError"


def test_a_dead_caller_is_dropped_with_its_calls_and_its_results() -> None:
    server = Server()
    server.called(1, 2)
    server.called(3, peer=W2)
    running = server.next()
    server.core.caller_gone(D)
    server.finish(running)
    server.called(9)
    assert server.next().seq == 3
    assert server.done() == []


def test_an_actor_that_lives_long_remembers_only_the_last_dead_callers() -> None:
    server = Server()
    for number in range(GONE_MAX + 10):
        server.core.caller_gone(number.to_bytes(len(D), "big"))
    assert table_sizes(server.core)["_gone"] == GONE_MAX


def test_cancel_drops_a_queued_call_and_interrupts_one_that_runs() -> None:
    server = Server()
    server.called(1, 2)
    server.next()
    assert server.core.cancel(D, m.Cancel(2, 0, False), 0.0)
    assert server.done() == [(D, [2])]
    assert server.core.cancel(D, m.Cancel(1, 1, False), 0.0), "another attempt"
    assert server.effects == []
    assert server.core.cancel(D, m.Cancel(1, 0, False), 0.0)
    assert server.effects == [Interrupt(D, 1, 0)]
    assert server.core.running[D, 1].cancelled
    assert not server.core.cancel(D, m.Cancel(7, 0, False), 0.0)


def test_calls_after_the_end_are_answered_and_those_before_the_beginning_ignored() -> None:
    server = Server()
    server.called(1)
    server.core.end((m.ERROR, ("ActorDiedError", "over", {})), 0.0)
    server.called(2)
    assert server.done() == [(D, [1]), (D, [2])]
    early = ActorServer(server.effects, keeps=lambda peer: [], pulls=server.pulls)
    early.called(D, a.Call([], []), 0.0)
    assert server.effects == []


def test_the_end_answers_the_calls_that_run_and_they_do_not_answer_again() -> None:
    server = Server(io=2)
    server.called(1, 2, group="io")
    call, stream = server.next(), server.next()
    server.core.end((m.ERROR, ("ActorDiedError", "over", {})), 0.0)
    assert server.done() == [(D, [1, 2])]
    assert stream.stopped == m.CANCELLED
    server.core.item(stream, m.INLINE, b"i", [], 0.0)
    server.finish(call)
    server.finish(stream)
    assert server.next() is None
    assert server.done() == []
    assert server.core.idle


def test_a_stream_counts_what_its_reader_took() -> None:
    server = Server()
    server.called(1)
    running = server.next()
    server.core.item(running, m.INLINE, b"i", [], 0.0)
    assert server.core.taken(D, 1, 1)
    assert not server.core.taken(D, 2, 1)
    assert (running.items, running.taken) == (1, 1)


def test_a_call_whose_arguments_travel_holds_up_those_of_its_caller_only() -> None:
    server = Server()
    place = [5, 100_000, FAR_WORKER]
    server.called(1, deps=[(m.STORED, place, (3, 0))])
    server.called(2)
    server.called(3, peer=W2)
    assert server.next().seq == 3
    server.finish(next(iter(server.core.running.values())))
    assert server.next() is None
    copy = server.pulls.wanted[0][0]
    copy.status, copy.value = m.STORED, (9, 100_000, NODE)
    running = server.next()
    assert running.deps == [(m.STORED, (9, 100_000, NODE), copy)]
    server.finish(running)
    assert server.pulls.dropped == [copy]


def test_large_far_arguments_are_copied_or_lost() -> None:
    server = Server(io=5)
    for seq in (1, 2, 3):
        server.called(
            seq, args=[5, 100_000, FAR_WORKER, seq], group="io", deps=[(m.STORED, [6, 1, FAR_WORKER], b"o" * 28)]
        )
    copies = [copy for copy, _ in server.pulls.wanted]
    for copy in copies[2:]:
        copy.status, copy.value = m.ERROR, ("ObjectLostError", "gone", {})
    first = server.next()
    assert first.seq == 2, "with more than one place, calls do not wait for each other"
    assert first.args == (m.ERROR, ("ObjectLostError", "gone", {}))
    server.core.cancel(D, m.Cancel(1, 0, False), 0.0)
    assert copies[0] in server.pulls.dropped
    server.core.caller_gone(D)
    assert copies[-1] in server.pulls.dropped


# The home.


class Home:
    """The places of one node, with its effects in view."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.gone: list[bytes] = []
        self.held = True
        self.core = ActorPlaces(self.effects, gone=self.gone.append, held=lambda oid: self.held)
        self.oid = actor_id(OTHER, 7)
        self.core.tell(OTHER, a.ActorState(self.oid, 0, first=True))

    def told(self) -> list[Any]:
        self.core.check()
        found = [(e.to, e.message) for e in self.effects if isinstance(e, Send)]
        self.effects.clear()
        return found


def test_who_asks_is_told_what_is_newer_at_once_or_later() -> None:
    home = Home()
    home.core.ask(D, home.oid, -1)
    assert [(to, s.version) for to, s in home.told()] == [(D, 0)]
    home.core.ask(D, home.oid, 0)
    home.core.ask(W, home.oid, 0)
    home.core.ask(FAR_WORKER, home.oid, 0)
    assert home.told() == []
    home.core.client_gone(W)
    home.core.node_gone(FAR)
    home.core.tell(OTHER, a.ActorState(home.oid, 1, W2))
    home.core.tell(OTHER, a.ActorState(home.oid, 0))
    assert [(to, s.version, s.peer) for to, s in home.told()] == [(D, 1, W2)]


def test_only_the_owner_tells_of_an_actor_and_only_of_one_that_is_known() -> None:
    home = Home()
    home.core.tell(D, a.ActorState(home.oid, 5))
    home.core.tell(OTHER, a.ActorState(actor_id(OTHER, 8), 5))
    home.core.ask(D, home.oid, -1)
    home.core.ask(D, actor_id(OTHER, 8), -1)
    states = [state for _, state in home.told()]
    assert [state.version for state in states] == [0, a.ACTOR_DEAD]
    assert states[1].failure[1][0] == "ActorDiedError"


def test_actors_die_with_their_owner_and_go_with_their_last_handle() -> None:
    home = Home()
    home.core.ask(D, home.oid, 0)
    home.core.client_gone(OTHER)
    assert [(to, s.version) for to, s in home.told()] == [(D, a.ACTOR_DEAD)]
    home.core.client_gone(OTHER)
    assert home.gone == [home.oid]
    home.core.freed(home.oid)
    home.core.freed(home.oid)
    assert home.told() == [(OTHER, a.Unheld(home.oid))]


def test_an_actor_whose_owner_died_before_its_handle_was_counted_is_forgotten() -> None:
    home = Home()
    home.held = False
    home.core.client_gone(OTHER)
    assert home.gone == [home.oid]
    home.core.ask(D, home.oid, -1)
    assert "nobody has a handle" in home.told()[0][1].failure[1][1]


def test_a_kill_is_passed_on_to_the_owner() -> None:
    home = Home()
    home.core.kill(a.KillActor(home.oid, True))
    assert home.told() == [(OTHER, a.KillActor(home.oid, True))]
