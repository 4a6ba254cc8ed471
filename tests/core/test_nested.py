"""References inside values that a process borrowed, made or lost count of, message by message."""

import pytest

from tests.core.test_client import NODE, D, Driver, N, W, Worker
from zmesh.core.holdings import LOOK_S
from zmesh.core.records import Entry, Inputs
from zmesh.wire import messages as m
from zmesh.wire.actor_messages import Call, CallerGone
from zmesh.wire.counting_messages import Held, Holdings, Recount, Tally, Uncounted, WhoHolds
from zmesh.wire.death_messages import Vouch
from zmesh.wire.ids import node_peer, object_id

FAR = b"f" * 8
HOME = node_peer(FAR)
BOX, INNER = object_id(FAR + b"driver..", 1), object_id(FAR + b"driver..", 2)


@pytest.fixture
def driver() -> Driver:
    return Driver()


def borrowed(driver: Driver, oid: bytes = BOX) -> Entry:
    entry = driver.core.references.borrow(oid, counted=True)
    driver.said()
    return entry


def test_a_borrowed_value_is_held_until_what_was_taken_out_of_it_is_counted(driver: Driver) -> None:
    references = driver.core.references
    box = borrowed(driver)
    inner, new = references.borrow_inside(INNER)
    assert new
    again, new = references.borrow_inside(INNER)
    assert (again, new) == (inner, False)
    references.claim_inside(box, [inner])
    (hold,) = driver.said(HOME)
    assert hold.holders == [(INNER, D)]
    references.drop(box)
    assert driver.said() == []
    driver.hear(HOME, m.Ack(hold.request))
    assert driver.said(HOME) == [m.Release([(BOX, 1, True)])]
    references.drop(inner)
    references.drop(inner)
    assert driver.said(HOME) == [m.Release([(INNER, 1, True)])]
    assert references.keeps_nothing


def test_an_own_object_found_in_a_borrowed_value_is_claimed_if_only_others_held_it(driver: Driver) -> None:
    references = driver.core.references
    own = driver.core.put(m.INLINE, b"v", [])
    references.promote([own])
    oid = references.oid(own)
    assert references.borrow_inside(oid) == (own, False)
    references.drop(own)
    references.drop(own)
    driver.said()
    found, new = references.borrow_inside(oid)
    assert new
    assert found is not own
    references.claim_inside(borrowed(driver), [found])
    assert driver.said(NODE)[0].holders == [(oid, D)]


def test_a_home_that_is_gone_or_a_node_that_is_lost_ends_claims(driver: Driver) -> None:
    references = driver.core.references
    box = borrowed(driver)
    references.claim_inside(box, [references.borrow_inside(INNER)[0]])
    found, ticket = references.claim_found(object_id(FAR + b"driver..", 3))
    here, waiting = references.claim_found(object_id(N + b"other...", 3))
    driver.hear(NODE, m.NodeGone(FAR, "it is gone"))
    assert box.refs == 1
    assert ticket.value[0] == "OwnerDiedError"
    assert waiting.status == m.PENDING
    references.unclaim(found)
    references.claim_inside(box, [references.borrow_inside(INNER)[0]])
    driver.core.node_lost("it crashed", driver.now)
    assert box.refs == 1
    assert here.status == m.ERROR
    assert waiting.status == m.ERROR


def test_the_node_is_counted_at_far_homes_for_values_that_it_counts(driver: Driver) -> None:
    references = driver.core.references
    inner = borrowed(driver, INNER)
    box = driver.core.put(m.INLINE, b"box", [inner])
    references.promote([box])
    assert [type(word) for word in driver.said()] == [m.Promote, m.Hold]
    references.promote([driver.core.put(m.INLINE, b"box", [inner])])
    hold = driver.said(HOME)[0]
    assert hold.holders == [(INNER, NODE)]
    task = driver.submit()
    references.promote([task])
    driver.steal()
    driver.hear(W, m.Done([(task.seq, 0, m.INLINE, b"r", [INNER])], [], []))
    said = driver.said(HOME)
    assert said[0].holders == [(INNER, NODE)]
    assert said[1].holders == [(INNER, D)]


def test_a_look_tells_each_home_what_is_held_and_a_recount_all_of_it(driver: Driver) -> None:
    references = driver.core.references
    own = driver.core.put(m.INLINE, b"v", [])
    references.promote([own])
    borrowed(driver)
    driver.pass_time(0.0)
    driver.pass_time(LOOK_S)
    assert [type(word) for word in driver.said(NODE)] == [Tally]
    driver.hear(NODE, Recount())
    assert driver.said(NODE) == [Holdings([(references.oid(own), 1)])]
    driver.hear(HOME, Recount())
    assert driver.said(HOME) == [Holdings([(BOX, 1)])]


def test_what_a_home_does_not_count_fails_if_it_has_no_value_and_is_not_released(driver: Driver) -> None:
    references = driver.core.references
    pending, known = borrowed(driver), borrowed(driver, INNER)
    references.fetched([(INNER, m.INLINE, b"v")])
    task = driver.submit(inputs=Inputs([pending]))
    own = driver.core.put(m.INLINE, b"v", [])
    references.promote([own])
    oid = references.oid(own)
    driver.said()
    driver.hear(HOME, Uncounted([BOX, INNER, object_id(FAR + b"driver..", 9)]))
    assert pending.value[0] == "ObjectLostError"
    assert task.value[0] == "ObjectLostError"
    assert known.value == b"v"
    references.drop(known)
    references.drop(pending)
    assert driver.said(HOME) == []
    driver.hear(NODE, Uncounted([oid]))
    assert references.promote([own]) is not None, "it is told anew before it leaves"


def test_a_keeper_of_a_replica_hears_what_was_held_since_it_asked_last(driver: Driver) -> None:
    warden = b"warden.."
    entry = borrowed(driver)
    for number, expected in ((1, [BOX, INNER]), (2, [BOX]), (3, [BOX]), (4, [])):
        driver.hear(NODE, WhoHolds(warden, number, [BOX, INNER]))
        assert driver.said(NODE) == [Held(warden, number, expected)]
        if number == 2:
            driver.core.references.drop(entry)
    driver.hear(NODE, m.NodeGone(warden, "it is gone"))
    assert not driver.core.sightings._since


def test_arguments_are_held_until_what_a_thief_took_out_of_them_is_counted_for_it(driver: Driver) -> None:
    references = driver.core.references
    box, known = borrowed(driver), borrowed(driver, object_id(FAR + b"driver..", 3))
    box.status, box.value = m.INLINE, b"box"
    task = driver.submit(inputs=Inputs([box], [known]))
    driver.steal()
    references.drop(box)
    references.drop(known)
    driver.said()
    driver.hear(W, m.Done([(task.seq, 0, m.INLINE, b"r")], [], [references.oid(known), INNER]))
    sure, hold = driver.said(HOME)
    assert sure == m.Hold(0, [(references.oid(known), W)])
    assert hold.holders == [(INNER, W)]
    assert not references.idle
    driver.hear(HOME, m.Ack(hold.request))
    assert [one for word in driver.said(HOME) for one in word.objects] == [
        (BOX, 1, True),
        (references.oid(known), 1, True),
    ]


def test_arguments_are_let_go_of_when_the_home_of_what_they_contained_is_gone(driver: Driver) -> None:
    box = borrowed(driver)
    box.status, box.value = m.INLINE, b"box"
    task = driver.submit(inputs=Inputs([box]))
    driver.steal()
    driver.hear(W, m.Done([(task.seq, 0, m.INLINE, b"r")], [], [INNER]))
    assert box.refs == 2
    driver.hear(NODE, m.NodeGone(FAR, "it is gone"))
    assert box.refs == 1


def test_a_dead_worker_is_buried_when_all_homes_count_what_it_gave(driver: Driver) -> None:
    """What it held goes then, at homes that its node reaches faster than we do."""
    tasks = [driver.submit(), driver.submit()]
    driver.steal()
    driver.hear(W, m.Done([(tasks[0].seq, 0, m.INLINE, b"r", [INNER])], [], []))
    claim = driver.said(HOME)[-1]
    driver.hear(NODE, m.WorkerDied(W, 1, 9, D, tasks[1].seq, 0, "", ""))
    driver.pass_time(1.0)
    assert m.Buried(W) not in driver.said(NODE)
    driver.hear(HOME, m.Ack(claim.request))
    assert m.Buried(W) in driver.said(NODE)


def test_a_dead_worker_is_buried_though_the_home_of_what_it_gave_is_gone(driver: Driver) -> None:
    task = driver.submit()
    driver.steal()
    driver.done(task, inside=[INNER])
    driver.hear(NODE, m.WorkerDied(W, 1, 9, b"", 0, 0, "", ""))
    driver.pass_time(1.0)
    driver.said()
    driver.hear(NODE, m.NodeGone(FAR, "it is gone"))
    assert m.Buried(W) in driver.said(NODE)


def test_what_came_with_calls_is_claimed_when_all_who_brought_it_are_dead() -> None:
    """Else nobody would say that the actor keeps it, and it would be freed under its eyes."""
    actor, other = Worker(), FAR + b"other..."
    entry = actor.core.references.borrow(INNER, caller=D)
    actor.core.references.borrow(INNER, caller=other)
    actor.hear(NODE, CallerGone(D))
    assert actor.said() == [m.Buried(D)], "the other holds it"
    actor.hear(NODE, CallerGone(other))
    assert actor.said() == [Vouch(1, [(INNER, 1)])]
    actor.hear(HOME, m.Ack(1))
    assert actor.said() == [m.Buried(other)]
    actor.core.references.drop(entry)
    actor.core.references.drop(entry)
    assert actor.said() == [m.Release([(INNER, 1, True)])]


def test_the_first_call_that_ends_tells_what_others_brought_too() -> None:
    actor, other = Worker(), FAR + b"other..."
    actor.core.references.borrow(INNER, caller=D)
    actor.core.references.borrow(INNER, caller=other)
    assert actor.core.references.keeps(other) == [INNER]
    assert actor.core.references.keeps(D) == []


def test_what_came_with_the_task_of_a_dead_victim_is_claimed() -> None:
    worker = Worker()
    worker.attach()
    worker.said()
    worker.core.references.borrow(INNER)
    worker.hear(NODE, m.Detach(FAR + b"earlier.", 0, dead=True))
    assert worker.said() == [m.Buried(FAR + b"earlier.")]
    worker.hear(NODE, m.Detach(D, 1, dead=True))
    assert worker.said(HOME) == [Vouch(1, [(INNER, 1)])]


def test_what_was_kept_on_the_word_of_a_caller_is_vouched_for_when_that_is_dead() -> None:
    """It may have died before it had the actor counted."""
    actor = Worker()
    entry = actor.core.references.borrow(INNER, caller=D)
    assert actor.core.references.keeps(D) == [INNER]
    actor.hear(NODE, CallerGone(D))
    assert actor.said() == [Vouch(1, [(INNER, 1)])]
    actor.hear(NODE, m.NodeGone(FAR, "its home"))
    assert m.Buried(D) in actor.said(NODE)
    actor.core.references.drop(entry)
    assert actor.core.references._on_word == {}


def test_what_two_told_is_vouched_for_at_the_death_of_each() -> None:
    actor, other = Worker(), FAR + b"other..."
    for caller in (D, other):
        actor.core.references.borrow(INNER, caller=caller)
        assert actor.core.references.keeps(caller) == ([INNER] if caller == D else [])
    actor.core.references._kept_on_word(INNER, other)
    actor.hear(NODE, CallerGone(D))
    actor.hear(NODE, CallerGone(other))
    assert actor.said() == [Vouch(1, [(INNER, 1)]), Vouch(2, [(INNER, 1)])]


def test_a_dead_caller_is_buried_when_its_calls_have_unpacked_what_it_gave() -> None:
    actor = Worker()
    actor.core.server.open({"": 1})
    actor.hear(D, Call([[0, D, "A.m", 1, {}, b"", b""]], [[1, 0, 0, 0, b"x"]]))
    call = actor.core.next_call(0.0)
    actor.hear(NODE, CallerGone(D))
    assert actor.said() == []
    actor.core.references.borrow(INNER, caller=D)
    call.unpacked = True
    actor.core.mourn()
    assert actor.said() == [Vouch(1, [(INNER, 1)])]


def test_a_dead_caller_is_buried_when_a_call_ends_that_could_not_unpack_its_arguments() -> None:
    actor = Worker()
    actor.core.server.open({"": 1})
    actor.hear(D, Call([[0, D, "A.m", 1, {}, b"", b""]], [[1, 0, 0, 0, b"x"]]))
    call = actor.core.next_call(0.0)
    actor.hear(NODE, CallerGone(D))
    actor.core.call_finished(call, m.FAILED, b"e", [], 1, 0.0)
    assert actor.said() == [m.Buried(D)]
