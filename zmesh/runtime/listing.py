"""All objects of the mesh: each node is asked for those its processes own, and for the copies it has of others'."""

import contextlib
from typing import Any

from zmesh.core.effects import Send
from zmesh.exceptions import GetTimeoutError
from zmesh.runtime.session import Session
from zmesh.wire.ids import node_peer
from zmesh.wire.store_messages import ListObjects

TIMEOUT_S = 5.0


def list_objects(session: Session) -> list[dict[str, Any]]:
    """Return one dict an object, the largest first; see zmesh.util.state. Blocks for a second if a process is busy."""
    told = session.status()
    if "store" not in told:
        return []  # local mode: nothing is shared
    members = [member for member in told["members"] if member["state"] in ("alive", "suspect")]
    nodes = [member["node"] for member in members] or [told["node"]]
    rows: list[dict[str, Any]] = []
    copies: dict[str, int] = {}
    for node in nodes:
        with contextlib.suppress(GetTimeoutError):
            *objects, rest = _ask(session, bytes.fromhex(node))
            rows += objects
            for oid in rest["copies"]:
                copies[oid] = copies.get(oid, 0) + 1
    for row in rows:
        row["copies"] = copies.get(row["object_id"], 0) + (row["state"] in ("memory", "disk", "elsewhere", "inline"))
    return sorted(rows, key=lambda row: -row["size"])


def _ask(session: Session, node: bytes) -> list[dict[str, Any]]:
    with session.reactor.lock:
        ticket = session.core.references.ask()
        session.core.effects.append(Send(node_peer(node), ListObjects(ticket.seq)))
    found: list[dict[str, Any]] = session.redeem(ticket, TIMEOUT_S)
    return found
