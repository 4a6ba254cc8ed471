"""A driver's sockets: what is drained when, and what a program without descriptors or keys does about shortcuts."""

import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from zmesh.core import effects as fx
from zmesh.core.links import Links
from zmesh.core.shortcuts import Shortcuts
from zmesh.core.timers import Timers
from zmesh.runtime import sockets as sockets_module
from zmesh.runtime.keyring import Keyring
from zmesh.runtime.shortcut_sockets import ShortcutSockets
from zmesh.runtime.sockets import ClientSockets
from zmesh.wire.ids import node_peer

HERE, THERE = b"driverAA", b"farnodeB"
ME = HERE + b"driver.."
NOWHERE = fx.DialNode(THERE, ("127.0.0.1", 9), b"token...")


class Driver:
    def __init__(self, directory: pathlib.Path, context: Any) -> None:
        (directory / "mesh").mkdir(mode=0o700)
        self.keyring = Keyring.load_or_create(str(directory / "mesh" / "keyring.json")).path
        self.sockets = ClientSockets(ME, node_peer(HERE), lambda peer: str(directory / peer.hex()[-4:]))
        effects: list[Any] = []
        self.core = Shortcuts(ME, effects, Links(effects, Timers()))
        self.far = ShortcutSockets(self.core, self.sockets, self.keyring, lambda source, frame: None)
        self.context = context

    def do(self, effect: Any) -> None:
        self.far.handlers[type(effect)](effect)

    def dialled(self) -> int:
        return len(self.sockets.descriptors()) - 1  # but for the one to the node


@pytest.fixture
def driver(request: pytest.FixtureRequest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    context = zmq.Context()
    context.max_sockets = getattr(request, "param", 100)
    monkeypatch.setattr(sockets_module, "new_context", lambda **limits: context)
    made = Driver(tmp_path, context)
    yield made
    made.sockets.close(0)
    assert context.closed


@pytest.mark.parametrize("driver", [1, 2, 3], indirect=True)
def test_a_program_that_may_have_no_more_sockets_goes_on_without_a_shortcut(driver: Driver) -> None:
    """One is its link to the node; a connection takes three, and what was opened of it is closed again."""
    driver.do(NOWHERE)
    driver.do(fx.Redial(THERE))
    assert driver.dialled() == 0


def test_a_connection_is_a_socket_and_a_monitor_and_both_are_closed(driver: Driver) -> None:
    driver.do(NOWHERE)
    assert driver.dialled() == 2
    driver.do(fx.Redial(THERE))
    assert driver.dialled() == 2
    driver.do(fx.HangUp(THERE))
    driver.do(fx.Redial(THERE))
    assert driver.dialled() == 0


def test_a_keyring_that_was_away_for_a_moment_costs_no_shortcut(driver: Driver) -> None:
    driver.do(NOWHERE)
    shutil.move(driver.keyring, driver.keyring + ".away")
    driver.do(fx.Redial(THERE))
    assert driver.dialled() == 0
    shutil.move(driver.keyring + ".away", driver.keyring)
    driver.do(fx.Redial(THERE))
    assert driver.dialled() == 2


def test_a_descriptor_that_was_closed_after_a_sleeper_saw_it_is_passed_over(driver: Driver) -> None:
    """A sleeper says so without the lock: its victim may be gone by then."""
    victim = HERE + b"victim.."
    driver.sockets.connect(victim)
    fd = driver.sockets.descriptors()[-1]
    driver.sockets.disconnect(victim)
    driver.sockets.ready(fd)
    driver.sockets.take_seen(lambda peer, frame: None)
    assert not driver.sockets.touched


def test_a_look_at_all_sockets_leaves_none_touched(driver: Driver) -> None:
    """A monitor is drained after its socket, and takes its edge: nobody may sleep on that."""
    looks: list[str] = []

    def monitor() -> None:
        if looks == ["socket"]:
            driver.sockets.touch(1001)
        looks.append("monitor")

    driver.sockets.adopt(1001, lambda: looks.append("socket"))
    driver.sockets.adopt(1002, monitor)
    driver.sockets.drain(lambda peer, frame: None)
    assert looks == ["socket", "monitor", "socket"]
    assert not driver.sockets.touched
    driver.sockets.disown(1001)
    driver.sockets.disown(1002)
