"""Streams: what a new attempt is told, what is accepted once, how a generator stops that nobody reads."""

from typing import Any

from tests.core.test_actors import Driver as Caller
from tests.core.test_actors import Server
from tests.core.test_client import CPU, NODE, D, Driver, W, Worker, died, driver, worker  # noqa: F401  # fixtures
from zmesh.core.records import Task
from zmesh.core.streams import REPLAY_WAIT_S
from zmesh.wire import messages as m
from zmesh.wire.ids import object_id


def begin(driver: Driver, **options: Any) -> Task:  # noqa: F811
    task = driver.submit(driver.core.new_spec(D, "g", CPU, num_returns=-1, **options))
    driver.steal()
    driver.said()
    return task


def item(driver: Driver, task: Task, index: int, peer: bytes = W) -> list[Any]:  # noqa: F811
    """An item comes; returns what the worker is told."""
    driver.hear(peer, m.Done([(task.seq, task.attempt, m.ITEM, (index, m.INLINE, b"i", []))], [], []))
    return driver.said(peer)


def again(driver: Driver, task: Task, peer: bytes) -> None:  # noqa: F811
    """The worker dies, another takes the task."""
    driver.hear(NODE, died(task=task))
    driver.pass_time(1.0)
    driver.steal(peer)
    driver.said()


def test_a_second_attempt_is_told_how_far_the_reader_is(driver: Driver) -> None:  # noqa: F811
    task = begin(driver, options={"backpressure": 1})
    for index in range(3):
        assert item(driver, task, index) == []
        driver.core.tasks.consumed(task, index + 1)
        assert driver.said(W) == [m.Consumed(task.seq, index + 1)]
    second = W[:8] + b"second.."
    again(driver, task, second)
    assert item(driver, task, 0, second) == [m.Consumed(task.seq, 3)], "else it would wait, and so would its reader"
    assert item(driver, task, 1, second) == []
    assert item(driver, task, 3, second) == []
    assert task.outputs is not None
    assert len(task.outputs) == 4
    driver.hear(second, m.Done([(task.seq, 1, m.END, 4)], [], []))
    assert task.status == m.INLINE
    driver.core.tasks.consumed(task, 4)
    assert driver.said() == []
    assert driver.core.tasks._taken == {}


def test_a_stream_without_backpressure_is_told_nothing(driver: Driver) -> None:  # noqa: F811
    task = begin(driver)
    driver.core.tasks.consumed(task, 0)
    assert item(driver, task, 0) == []
    driver.core.tasks.consumed(task, 1)
    assert driver.said(W) == []


def test_an_abandoned_generator_is_stopped_and_its_count_is_of_no_interest(driver: Driver) -> None:  # noqa: F811
    task = begin(driver)
    item(driver, task, 0)
    driver.core.tasks.abandon(task, 0)
    assert driver.said(W) == [m.Consumed(task.seq, m.ABANDONED)]
    assert item(driver, task, 1) == []
    driver.hear(W, m.Done([(task.seq, 0, m.END, 2)], [], []))
    assert task.status == m.INLINE


def test_one_that_was_abandoned_before_it_began_stops_at_its_first_item(driver: Driver) -> None:  # noqa: F811
    task = driver.submit(driver.core.new_spec(D, "g", CPU, num_returns=-1))
    driver.core.tasks.abandon(task, 0)
    assert driver.said(W) == []
    driver.steal()
    driver.said()
    assert item(driver, task, 0) == [m.Consumed(task.seq, m.ABANDONED)]


def test_an_abandoned_stream_is_not_retried(driver: Driver) -> None:  # noqa: F811
    for reason in ("", "oom"):
        task = begin(driver, max_retries=-1)
        driver.core.tasks.abandon(task, 0)
        notice = died(task=task)
        notice.reason = reason
        driver.hear(NODE, notice)
        driver.pass_time(1.0)
        assert task.status == m.ERROR
        assert not driver.core.tasks.retried


FAR = b"f" * 8
THERE = FAR + b"worker.."


def far_stream(driver: Driver, **options: Any) -> Task:  # noqa: F811
    """A stream of another host, with two items whose bytes lie there."""
    task = driver.submit(driver.core.new_spec(D, "g", CPU, num_returns=-1, **options))
    driver.steal(THERE)
    for index in range(2):
        stored(driver, task, index, THERE)
    driver.said()
    return task


def stored(driver: Driver, task: Task, index: int, peer: bytes, *inside: bytes) -> None:  # noqa: F811
    place = (10 * task.attempt + index, 1000, peer)
    driver.hear(peer, m.Done([(task.seq, task.attempt, m.ITEM, (index, m.STORED, place, inside))], [], []))


def await_items(driver: Driver, task: Task) -> list[tuple[int, bool]]:  # noqa: F811
    """Wait for both items, whose bytes cannot be had; returns what becomes of them, as it does."""
    heard: list[tuple[int, bool]] = []
    assert task.outputs is not None
    for item in task.outputs[:2]:
        waits = driver.core.tasks.await_item(
            item, item.value, driver.now, lambda made, _, item=item: heard.append((item.index, made))
        )
        if not waits:
            heard.append((item.index, False))
    return heard


def test_items_lost_with_their_node_are_had_from_the_next_attempt(driver: Driver) -> None:  # noqa: F811
    task = far_stream(driver, max_retries=1)
    heard = await_items(driver, task)
    driver.hear(NODE, m.NodeGone(FAR, "killed"))
    driver.steal(W)
    driver.pass_time(REPLAY_WAIT_S + 1)
    assert heard == [], "its node is gone, so it is yielded again"
    inner = object_id(W, 99)
    stored(driver, task, 0, W, inner)
    driver.pass_time(0.1)
    assert heard == [(0, True)]
    assert task.outputs is not None
    assert task.outputs[0].value == (10, 1000, W)
    assert task.outputs[0].share is not None
    assert [driver.core.references.oid(one) for one in task.outputs[0].share.inside] == [inner]
    assert not driver.core.tasks.await_item(task.outputs[0], (0, 1000, THERE), 0.0, lambda made, now: None)
    driver.hear(W, m.Done([(task.seq, 1, m.FAILED, b"e")], [], []))
    driver.pass_time(0.1)
    assert heard == [(0, True), (1, False)]
    assert await_items(driver, task) == [(0, False), (1, False)]


def test_an_item_that_cannot_be_had_though_its_node_lives_is_lost_after_a_while(driver: Driver) -> None:  # noqa: F811
    task = far_stream(driver)
    heard = await_items(driver, task)
    assert heard == []
    driver.pass_time(REPLAY_WAIT_S)
    driver.pass_time(0.1)
    assert sorted(heard) == [(0, False), (1, False)]
    assert driver.core.tasks._missed == {}


def test_what_is_no_stream_is_not_waited_for(driver: Driver) -> None:  # noqa: F811
    assert not driver.core.tasks.await_item(driver.submit(), (1, 1, THERE), 0.0, lambda made, now: None)


def test_an_actor_is_no_stream_that_anybody_reads() -> None:
    caller = Caller()
    handle = caller.create(restarts=1)
    caller.made(handle)
    assert caller.said(m.Consumed) == []
    caller.died(W, handle.actor.creation)
    assert handle.actor.failure is None, "it is made again"


def test_a_worker_ends_a_stream_that_nobody_reads(worker: Worker) -> None:  # noqa: F811
    worker.work(1, options={"backpressure": 1}, returns=-1)
    running = worker.core.next(0.0)
    worker.core.item(running, m.INLINE, b"i", [], 0.0)
    assert not worker.core.may_yield(running)
    worker.hear(D, m.Consumed(1, m.ABANDONED))
    assert (running.stopped, worker.core.may_yield(running)) == (m.END, True)


def test_a_worker_ends_a_stream_whose_victim_is_dead(worker: Worker) -> None:  # noqa: F811
    worker.work(1, options={"backpressure": 1}, returns=-1)
    running = worker.core.next(0.0)
    worker.core.item(running, m.INLINE, b"i", [], 0.0)
    worker.hear(NODE, m.Detach(D, worker.core.thief.epoch, True))
    assert running.stopped == m.CANCELLED


def test_a_call_that_streams_ends_when_it_is_cancelled_or_its_caller_is_dead() -> None:
    for end in ("cancel", "death"):
        server = Server()
        server.called(1)
        server.called(2)
        running = server.next()
        server.core.item(running, m.INLINE, b"i", [], 0.0)
        if end == "cancel":
            assert server.core.cancel(D, m.Cancel(1, 1, True), 0.0)
            assert running.stopped is None, "it is for another attempt"
            assert server.core.cancel(D, m.Cancel(1, 0, True), 0.0)
        else:
            server.core.caller_gone(D)
        assert running.stopped == m.CANCELLED
