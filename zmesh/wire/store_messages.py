"""What a node and its clients say of what lies in the store; see messages.py."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Unmap:
    """Node to client: I want to write these segments to disk. Unmap those nobody uses; answer over the channel."""

    segments: list[int]


@dataclass(slots=True)
class ListObjects:
    """Client to node: tell me of all objects of your host. Node to client: of those you own. Answered by Objects."""

    request: int


@dataclass(slots=True)
class Objects:
    """The answer to ListObjects.

    Of a client: `[ObjectID, status, nbytes, segment, refs, views?, readers, function, file:line]` each. Of a node: what
    zmesh.util.state.list_objects returns, and last `{"copies": [ObjectID in hexadecimal, ...]}`.
    """

    request: int
    objects: list[Any]


STORE_MESSAGES: tuple[type[Any], ...] = (Unmap, ListObjects, Objects)
