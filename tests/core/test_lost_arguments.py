"""Calls of actors whose arguments are lost: given back with all that came after them, sent again in their order."""

from typing import Any

import pytest

from tests.core.test_actors import FAR, FAR_WORKER, NODE, W2, D, Driver, Server, W, driver  # noqa: F401  # a fixture
from zmesh.core.effects import Send
from zmesh.core.records import Entry, Inputs, Task
from zmesh.wire import actor_messages as a
from zmesh.wire import messages as m

PLACE = (3, 1000, FAR_WORKER)


def lose(server: Server, *copies: int) -> None:
    """The copies asked for cannot be had, counted from the first."""
    for index in copies:
        server.pulls.wanted[index][0].status = m.ERROR
        server.pulls.wanted[index][0].value = ("ObjectLostError", "gone", {})
    server.core.pulled(0.0)
    server.core.check()


def told(server: Server) -> list[Any]:
    found = [(e.to, [tuple(r) for r in e.message.results]) for e in server.effects if isinstance(e, Send)]
    server.effects.clear()
    return found


def lost(seq: int, key: Any) -> tuple[Any, ...]:
    return (seq, 0, m.LOST, [(key, 3, FAR_WORKER)])


def test_a_call_whose_argument_is_lost_is_given_back_and_those_behind_it_do_not_start() -> None:
    server = Server()
    server.called(1)
    server.called(2, deps=[(m.STORED, PLACE, (9, 0))])
    server.called(3)
    server.called(1, peer=W2)
    lose(server, 0)
    assert told(server) == [(D, [lost(2, (9, 0))])]
    assert len(server.pulls.dropped) == 1
    server.called(4)  # sent before it heard
    ran = []
    while (running := server.next()) is not None:
        ran.append((running.victim, running.seq))
        server.finish(running)
    assert ran == [(D, 1), (W2, 1)]
    server.core.called(D, a.Call([], [[2, 0, 0, 0, b"x"], [3, 0, 0, 0, b"x"]], 1), 0.0)
    assert [server.next().seq] == [2]


def test_of_two_lost_calls_the_first_is_told_and_the_second_comes_again() -> None:
    server = Server()
    server.called(1, deps=[(m.STORED, PLACE, (9, 0))])
    server.called(2, deps=[(m.STORED, PLACE, (8, 0))])
    lose(server, 0, 1)
    assert told(server) == [(D, [lost(1, (9, 0))])]
    assert server.core.idle


def test_what_is_there_but_for_room_is_no_loss() -> None:
    server = Server()
    server.called(1, deps=[(m.STORED, PLACE, (9, 0))])
    server.pulls.wanted[0][0].status = m.ERROR
    server.pulls.wanted[0][0].value = ("StoreFullError", "full", {})
    server.core.pulled(0.0)
    assert told(server) == []
    assert server.next().seq == 1


def test_where_calls_have_no_order_only_the_lost_one_is_given_back() -> None:
    server = Server(io=1)
    server.called(1, deps=[(m.STORED, PLACE, (9, 0))])
    server.called(2)
    lose(server, 0)
    assert told(server) == [(D, [lost(1, (9, 0))])]
    assert server.next().seq == 2


@pytest.fixture
def stored(driver: Driver) -> Entry:  # noqa: F811
    """A result of another host, of which the recipe is known."""
    driver.hear(NODE, m.Mesh([{"CPU": m.UNIT}, {"CPU": m.UNIT}]))
    task = driver.core.submit(driver.core.new_spec(D, "f", {"CPU": m.UNIT}), b"x", None, 0, 0.0)
    driver.hear(FAR_WORKER, m.Steal(1, {"CPU": m.UNIT}, 0.005))
    driver.answer(task, m.STORED, PLACE, peer=FAR_WORKER)
    driver.hear(FAR_WORKER, m.Unsteal(1))
    driver.core.effects.clear()
    return task


def starve(driver: Driver, call: Task, entry: Entry) -> None:  # noqa: F811
    driver.answer(call, m.LOST, [((entry.seq, 0), 3, FAR_WORKER)])


def sent(driver: Driver) -> list[Any]:  # noqa: F811
    return [(c.lost, [call[0] for call in c.calls]) for c in driver.said(a.Call, W)]


def gone(driver: Driver) -> None:  # noqa: F811
    """The host of the result is gone: no copy can be had."""
    driver.hear(NODE, m.NodeGone(FAR, "killed"))
    pull = driver.said(m.Pull, NODE)[-1]
    driver.hear(NODE, m.Pulled([(pull.objects[0][0], m.ERROR, ("ObjectLostError", "gone", {}))]))


def test_those_behind_a_lost_call_wait_and_all_go_again_in_their_order(driver: Driver, stored: Entry) -> None:  # noqa: F811
    handle = driver.actor()
    calls = [driver.call(handle, inputs=Inputs(deps=[stored]) if i == 1 else None) for i in range(4)]
    assert [seqs for _, seqs in sent(driver)] == [[call.seq] for call in calls]
    driver.core.cancel(calls[3], 0.0)
    starve(driver, calls[1], stored)
    assert calls[3].value[0] == "TaskCancelledError", "it was given back and did not start"
    later = driver.call(handle)
    gone(driver)
    driver.pass_time(0.1)
    assert sent(driver) == []
    driver.answer(calls[0])
    again = driver.core._seq
    driver.hear(NODE, m.Ack(0))
    driver.hear(W2, m.Steal(2, {"CPU": m.UNIT}, 0.005))
    driver.hear(W2, m.Done([(again, 1, m.STORED, (4, 1000, W2))], [], []))
    assert sent(driver) == [(1, [calls[1].seq, calls[2].seq, later.seq])]
    assert [call.status for call in calls] == [m.INLINE, m.PENDING, m.PENDING, m.ERROR]


def test_a_copy_that_can_be_had_elsewhere_sends_the_call_again_at_once(driver: Driver, stored: Entry) -> None:  # noqa: F811
    handle = driver.actor(ordered=False)
    call, behind = driver.call(handle, inputs=Inputs(deps=[stored])), driver.call(handle)
    sent(driver)
    stored.value = (5, 1000, W2)  # it was made again meanwhile
    starve(driver, call, stored)
    assert sent(driver) == [(0, [call.seq])]
    driver.answer(behind)
    assert behind.status == m.INLINE


def test_a_call_that_cannot_have_its_argument_lets_those_behind_it_go(driver: Driver, stored: Entry) -> None:  # noqa: F811
    handle = driver.actor()
    call, behind = driver.call(handle, inputs=Inputs(deps=[stored])), driver.call(handle)
    driver.core.lineage._recipes[stored.seq].attempt = 3
    sent(driver)
    starve(driver, call, stored)
    gone(driver)
    driver.pass_time(0.1)
    assert call.value[0] == "ObjectLostError"
    assert sent(driver) == [(1, [behind.seq])]


def test_losses_are_counted_as_long_as_the_worker_lives(driver: Driver, stored: Entry) -> None:  # noqa: F811
    handle = driver.actor(restarts=1)
    call = driver.call(handle, inputs=Inputs(deps=[stored]))
    sent(driver)
    stored.value = (5, 1000, W2)
    starve(driver, call, stored)
    assert sent(driver) == [(1, [call.seq])]
    driver.died(W, handle.actor.creation)
    assert driver.core.actors._losses == {}
