"""The messages of processes that end, and of what they leave behind; their codes are in zmesh/wire/messages.py."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Expelled:
    """Node to a process of its host that sent what is no message: you are a client no more, and hear nothing more."""

    why: str


DEATH_MESSAGES: tuple[type[Any], ...] = (
    # A part of MESSAGES: append only there.
    Expelled,
)
