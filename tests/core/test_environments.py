"""Runtime environments in matchmaking: a worker serves one for life, and every node can make any."""

from typing import Any

from tests.core.test_node import CPU, DRIVER, Host
from zmesh.core.client import ClientCore
from zmesh.core.records import environment_of, without_environment
from zmesh.core.timers import Timers
from zmesh.wire import messages as m
from zmesh.wire.marks import is_mark

ONE, TWO = CPU | {"env:1": 1}, CPU | {"env:2": 1}


def made(**limits: float) -> Host:
    host = Host(2, **limits)
    host.driver()
    return host


def victim_of(host: Host, worker: bytes) -> m.Attach:
    (attach,) = [message for message in host.said(worker) if isinstance(message, m.Attach)]
    return attach


def set_free(host: Host, worker: bytes, epoch: int) -> None:
    """Withdraw what a parked worker serves, and have it leave."""
    host.pass_time(2.5)
    assert [type(message) for message in host.said(worker)] == [m.Detach]
    host.core.receive(worker, m.Free(epoch), host.now)


def test_the_mark_of_an_environment_is_no_resource() -> None:
    assert is_mark("env:1")
    assert environment_of(ONE) == "env:1"
    assert environment_of(CPU) == ""
    assert without_environment(ONE | {"GPU": 0}) == CPU


def test_a_worker_is_told_its_environment_and_books_the_rest() -> None:
    host = made()
    host.demand(1, ONE)
    (worker,) = host.born()
    assert victim_of(host, worker).shape == ONE
    assert host.core.resources.available["CPU"] == m.UNIT
    assert not any("env:" in name for name in host.core.resources.available)


def test_an_idle_worker_serves_no_other_environment_of_its_job() -> None:
    host = made()
    host.demand(1, ONE)
    (first,) = host.born()
    epoch = victim_of(host, first).epoch
    host.demand(0, ONE)
    set_free(host, first, epoch)
    for shape in (TWO, CPU):
        host.demand(1, shape)
        (other,) = host.born()
        assert other != first
        assert victim_of(host, other).shape == shape


def test_an_idle_worker_serves_its_environment_again() -> None:
    host = made()
    host.demand(1, ONE)
    (first,) = host.born()
    epoch = victim_of(host, first).epoch
    host.demand(0, ONE)
    set_free(host, first, epoch)
    host.demand(1, ONE)
    assert host.born() == []
    assert host.core.matchmaking.workers[first].victim == DRIVER


def test_a_parked_worker_of_another_environment_only_makes_room() -> None:
    host = Host(1)
    host.driver()
    host.demand(1, ONE)
    (first,) = host.born()
    epoch = victim_of(host, first).epoch
    host.pass_time(0.1)
    host.demand(1, TWO)
    assert [type(message) for message in host.said(first)] == [m.Detach]
    host.core.receive(first, m.Free(epoch), host.now)
    (second,) = host.born()
    assert victim_of(host, second).shape == TWO


def test_tasks_without_resources_are_limited_in_an_environment_too() -> None:
    host = made(zero_cpu_workers_max=1)
    host.demand(2, {"env:1": 1})
    assert len(host.born()) == 2  # forked before anybody knew that one is enough
    assert len([worker for worker in host.core.matchmaking.workers.values() if worker.victim]) == 1


def test_a_client_asks_for_as_many_workers_as_the_rest_of_the_shape_allows() -> None:
    effects: list[Any] = []
    client = ClientCore(DRIVER, effects, Timers(), lambda status: (0, None, ""))
    client.receive(client.node, m.Welcome(DRIVER[:8], 1, {"CPU": 3 * m.UNIT}), 0.0)
    spec = client.new_spec(DRIVER, "f", ONE)
    for _ in range(9):
        client.submit(spec, b"", None, 0, 0.0)
    demands = [effect.message.workers for effect in effects if isinstance(effect.message, m.Demand)]
    assert demands[-1] == 3
    task = client.unresolved()[0]
    assert "env:" not in client.waits_for(task)
