"""zmesh: a brokerless compute mesh. `@zmesh.remote` turns functions into tasks that run in parallel.

The face, by topic; each name is imported on first use, so that `import zmesh` costs a few milliseconds:

    start and stop   init, shutdown, is_initialized
    tasks            remote, map, map_unordered, cancel, explain
    actors           remote, method, kill, get_actor; actor.exit_actor, util.list_named_actors
    objects          put, get, wait, as_completed, ObjectRef, ObjectRefGenerator
    look around      status, nodes, cluster_resources, available_resources, get_runtime_context, get_gpu_ids
    errors           exceptions
"""

import importlib
from typing import Any

from zmesh._version import __version__

_HOME = {  # {name: module it lives in}
    "ActorClass": "zmesh.actor",
    "ActorHandle": "zmesh.actor",
    "ObjectRef": "zmesh.object_ref",
    "ObjectRefGenerator": "zmesh.object_ref",
    "as_completed": "zmesh.api",
    "available_resources": "zmesh.api",
    "cancel": "zmesh.api",
    "cluster_resources": "zmesh.api",
    "explain": "zmesh.api",
    "get": "zmesh.api",
    "get_actor": "zmesh.actor",
    "get_gpu_ids": "zmesh.api",
    "get_runtime_context": "zmesh.runtime_context",
    "init": "zmesh.api",
    "is_initialized": "zmesh.api",
    "kill": "zmesh.actor",
    "map": "zmesh.parallel_map",
    "map_unordered": "zmesh.parallel_map",
    "method": "zmesh.actor",
    "nodes": "zmesh.api",
    "put": "zmesh.api",
    "remote": "zmesh.remote_function",
    "shutdown": "zmesh.api",
    "status": "zmesh.api",
    "wait": "zmesh.api",
}
_MODULES = ("actor", "exceptions", "lifecycle", "util")
_INSTEAD = {  # {name of Ray's that is none here: what there is instead}
    "LoggingConfig": "configure the logger named zmesh",
    "autoscaler": "start and stop nodes with `zmesh up` and `zmesh down`",
    "client": "zmesh.init('HOST:PORT')",
    "cpp_function": "Python only",
    "dag": "pass refs from task to task",
    "java_actor_class": "Python only",
    "java_function": "Python only",
    "timeline": "zmesh.status() and zmesh.explain(ref)",
    "workflow": "pass refs from task to task; results live as long as their program",
    **dict.fromkeys(
        ("data", "rllib", "serve", "train", "tune"),
        "there is what Ray Core has: tasks, objects, actors, placement groups",
    ),
}

__all__ = ["__version__", "exceptions", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    """Import a name of the face when it is first used."""
    if name in _MODULES:
        return importlib.import_module(f"zmesh.{name}")
    home = _HOME.get(name)
    if home is None:
        instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise AttributeError(f"module 'zmesh' has no attribute {name!r}{instead}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_MODULES])
