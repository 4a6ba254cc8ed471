"""Words for peers of nodes that are not known: kept until they are, or given up."""

from typing import Any

from zmesh.core import strangers
from zmesh.core.effects import Send
from zmesh.core.strangers import Strangers
from zmesh.core.timers import Timers

NODE, DEAD = b"newcomer", b"deceased"
D, R = b"node....driver..", b"node....reader.."
PEER = NODE + b"actor..."


class Desk:
    def __init__(self) -> None:
        self.effects: list[Any] = []
        self.timers = Timers()
        self.sent: list[tuple[bytes, bytes]] = []
        self.strangers = Strangers(
            self.effects, self.timers, dead=lambda node: node == DEAD,
            send=lambda source, to, frame, now: self.sent.append((source, frame)),
        )  # fmt: skip

    def say(self, frame: bytes, source: bytes = D, node: bytes = NODE) -> None:
        self.strangers.keep(node, source, PEER, frame, 0.0)
        self.strangers.check()

    def told(self) -> list[tuple[bytes, bytes]]:
        """Return who was told of the end of which node."""
        taken, self.effects[:] = self.effects[:], []
        assert all(isinstance(effect, Send) for effect in taken)
        return [(effect.to, effect.message.node) for effect in taken]


def test_what_is_said_to_a_node_not_heard_of_waits_for_it() -> None:
    desk = Desk()
    desk.say(b"first")
    desk.say(b"other", R)
    desk.say(b"second")
    desk.strangers.met(NODE, 1.0)
    assert desk.sent == [(D, b"first"), (R, b"other"), (D, b"second")]
    desk.timers.tick(strangers.PATIENCE_S)
    assert desk.told() == []
    desk.strangers.check()


def test_nobody_waits_for_long_and_each_is_told_once() -> None:
    desk = Desk()
    for source in (D, R, D):
        desk.say(b"frame", source)
    desk.timers.tick(strangers.PATIENCE_S)
    assert desk.told() == [(D, NODE), (R, NODE)]
    desk.strangers.met(NODE, 6.0)
    assert desk.sent == []


def test_who_is_known_to_be_dead_is_not_waited_for_nor_is_too_much_kept(monkeypatch: Any) -> None:
    desk = Desk()
    monkeypatch.setattr(strangers, "FRAMES_MAX", 2)
    desk.say(b"late", node=DEAD)
    assert desk.told() == [(D, DEAD)]
    for _ in range(3):
        desk.say(b"frame")
    assert desk.told() == [(D, NODE)]
