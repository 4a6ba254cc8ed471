"""What a guest and its node say outside their link: who somebody is, and that he is still there.

A guest is a program on a machine without a node: it dials one member, and is a client of that one. Both words also keep
the connection's two ends sure of each other. Fields are only ever appended, with a default.
"""

from dataclasses import dataclass

from zmesh.wire.codec import Codec
from zmesh.wire.ids import NodeID


@dataclass(slots=True)
class Knock:
    """Guest to node: take me in, or, if `node` is given, I am still your client. The token is in the routing id."""

    major: int
    node: NodeID = b""


@dataclass(slots=True)
class Opened:
    """Node to guest: who I am, and `members`, [host, port] of each that would take you in as well.

    `refused` is "" or why not; `gone` says that I took you for dead: knock again with another token.
    """

    node: NodeID
    members: list[list[object]]
    refused: str = ""
    gone: bool = False


GUEST_CODEC = Codec((Knock, Opened))
