"""The list of objects: who is asked, who is waited for, and what the node adds."""

from typing import Any

from tests.core.test_client import CPU, NODE, D, Driver, W
from tests.core.test_node import DRIVER, OTHER, Host
from zmesh.core.catalog import ROWS_MAX
from zmesh.core.listing import ANSWER_S
from zmesh.wire import messages as m
from zmesh.wire import store_messages as s
from zmesh.wire.ids import object_id

OID = object_id(DRIVER, 7, 0)
ROW = (OID, m.STORED, 1000, 5, 2, 1, 3, "f", "/x.py:1")


def host_with(*clients: bytes) -> Host:
    host = Host()
    for peer in clients:
        host.driver(peer)
    return host


def listed(host: Host, peer: bytes) -> list[Any]:
    (answer,) = [message for message in host.said(peer) if isinstance(message, s.Objects)]
    return list(answer.objects)


def test_the_node_asks_all_clients_and_answers_when_all_have() -> None:
    host = host_with(DRIVER, OTHER)
    host.core.receive(OTHER, s.ListObjects(4), 0.0)
    (asked,) = [effect.message for effect in host.effects if effect.to == DRIVER]  # type: ignore[union-attr]
    host.core.receive(DRIVER, m.Promote(1, [(OID, m.STORED, (5, 1000, DRIVER), [])]), 0.0)
    host.said()
    host.core.receive(DRIVER, s.Objects(asked.request, [ROW]), 0.0)
    assert host.said() == []
    host.core.receive(OTHER, s.Objects(asked.request, []), 0.0)
    row, rest = listed(host, OTHER)
    assert rest == {"copies": []}
    assert row == {
        "object_id": OID.hex(),
        "owner": DRIVER.hex(),
        "owner_pid": 5,
        "node": host.core.node.hex(),
        "size": 1000,
        "state": "memory",
        "function": "f",
        "made_at": "/x.py:1",
        "refs": 2,
        "readers": 4,
        "holders": 1,
    }
    host.core.receive(OTHER, s.Objects(asked.request, [ROW]), 0.0)
    assert host.said() == [], "an answer that comes too late is ignored"


def test_a_client_that_does_not_answer_is_not_waited_for_and_what_it_shares_is_listed() -> None:
    host = host_with(DRIVER)
    inner = object_id(DRIVER, 8, 0)
    host.core.receive(DRIVER, m.Promote(1, [(OID, m.STORED, (5, 1000, DRIVER), []), (inner, m.INLINE, b"xx", [])]), 0.0)
    host.core.receive(DRIVER, m.Promote(2, [(object_id(DRIVER, 9, 1), m.INLINE, b"", [])]), 0.0)  # a handle: not listed
    host.core.receive(DRIVER, s.ListObjects(4), 0.0)
    host.said()
    host.pass_time(ANSWER_S)
    *rows, _ = listed(host, DRIVER)
    told = [(row["object_id"], row["size"], row["state"], row["holders"], row["owner_pid"]) for row in rows]
    assert told == [(OID.hex(), 1000, "memory", 1, 5), (inner.hex(), 2, "inline", 1, 5)]


def test_without_clients_the_answer_comes_at_once() -> None:
    host = Host()
    host.core.receive(OTHER, m.Hello("observer", 5), 0.0)
    host.effects.clear()
    host.core.receive(OTHER, s.ListObjects(4), 0.0)
    assert listed(host, OTHER) == [{"copies": []}]


def rows_of(driver: Driver) -> list[Any]:
    driver.said()
    driver.hear(NODE, s.ListObjects(3))
    (answer,) = driver.said(NODE)
    assert answer.request == 3
    return list(answer.objects)


def test_a_client_lists_what_is_stored_while_it_is() -> None:
    driver = Driver()
    entry = driver.core.put(m.STORED, (5, 1000, D), [], "/x.py:3")
    driver.core.put(m.INLINE, b"small", [])
    task = driver.submit(driver.core.new_spec(D, "g", CPU, made_at="/x.py:9"))
    driver.steal()
    driver.done(task, m.STORED, (6, 2000, W))
    oids = [object_id(D, one.seq, 0) for one in (task, entry)]
    assert rows_of(driver) == [
        (oids[0], m.STORED, 2000, 6, 1, 0, 0, "g", "/x.py:9"),
        (oids[1], m.STORED, 1000, 5, 1, 0, 0, "put", "/x.py:3"),
    ]
    assert task.spec.stores
    driver.core.references.drop(task)
    driver.core.references.drop(entry)
    assert rows_of(driver) == []


def test_a_client_lists_what_it_shares() -> None:
    driver = Driver()
    entry, lent = driver.core.put(m.INLINE, b"small", []), driver.core.put(m.INLINE, b"other", [])
    driver.core.references.promote([entry])
    driver.core.references.lend(lent)
    assert rows_of(driver) == [(object_id(D, entry.seq, 0), m.INLINE, 5, 0, 1, 0, 0, "put", "")]


def test_each_result_of_a_task_is_listed() -> None:
    driver = Driver()
    task = driver.submit(driver.core.new_spec(D, "g", CPU, num_returns=2, made_at="/x.py:9"))
    driver.steal()
    driver.done(task, m.MANY, [(m.STORED, (5, 100, W), []), (m.STORED, (6, 200, W), [])])
    assert [(row[0], row[2], row[7], row[8]) for row in rows_of(driver)] == [
        (object_id(D, task.seq, 1), 200, "g", "/x.py:9"),
        (object_id(D, task.seq, 0), 100, "g", "/x.py:9"),
    ]


def test_a_list_has_an_end() -> None:
    driver = Driver()
    for number in range(ROWS_MAX + 10):
        driver.core.put(m.STORED, (number, number, D), [])
    rows = rows_of(driver)
    assert len(rows) == ROWS_MAX
    assert rows[0][2] == ROWS_MAX + 9


def test_the_answer_of_a_node_goes_to_who_asked() -> None:
    driver = Driver()
    ticket = driver.core.references.ask()
    driver.hear(NODE, s.Objects(ticket.seq, [{"copies": []}]))
    assert list(ticket.value) == [{"copies": ()}]
