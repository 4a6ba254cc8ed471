"""What other interfaces look like on ours; and looking around among named actors."""

from typing import Any

from zmesh import api


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Return the names of the living actors that have one: of this program's namespace, or of all.

    Returns:
        Texts; with all_namespaces dicts: {"namespace": ..., "name": ...}.
    """
    session = api.auto_init()
    names = session.actors.names()
    if all_namespaces:
        return [{"namespace": namespace, "name": name} for namespace, name in names]
    return [name for namespace, name in names if namespace == session.actors.namespace]
