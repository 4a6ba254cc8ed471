"""What is in the mesh now, with the names of Ray's state API: `from zmesh.util.state import list_objects`."""

from typing import Any

from zmesh import api


def list_objects(*, limit: int = 100) -> list[dict[str, Any]]:
    """Return one dict for each object that is stored, or shared between processes, the largest first.

    Small values that one process has for itself are not listed: they take nobody else's memory.

    Returns:
        Dicts with object_id, owner (PeerID), owner_pid, node (of the owner), size (bytes), state ("memory", "disk",
        "elsewhere": made on another host, "inline", "pending", "failed", "lost"), copies (on hosts, with the first),
        refs (in the owner), readers (processes that have views, as far as the owner knows), holders (processes and
        objects that the node counts; 0: it is not shared), function ("put", or the name of the task's), made_at
        (file:line of the call).

    Example:
        >>> ref = zmesh.put(numpy.zeros(1_000_000))
        >>> zmesh.util.state.list_objects()[0]["size"] > 8_000_000
        True
    """
    return api.objects()[:limit]
