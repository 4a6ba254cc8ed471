"""The rules of the house, as tests: who may import whom, what core/ may touch, how long things get."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

from zmesh.wire.messages import MESSAGES

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(path for top in ("zmesh", "cli", "tests/sim") for path in ROOT.glob(f"{top}/**/*.py"))

LEAVES = (
    "zmesh.exceptions",
    "zmesh.init_settings",
    "zmesh.options",
    "zmesh.actor_options",
    "zmesh.label_selectors",
    "zmesh.limits",
    "zmesh.runtime_env",
    "zmesh._version",
    "zmesh.wire.marks",
)
FACE = (
    "zmesh",
    "zmesh.api",
    "zmesh.object_ref",
    "zmesh.remote_function",
    "zmesh.actor",
    "zmesh.parallel_map",
    "zmesh.runtime_context",
    "zmesh.lifecycle",
    "zmesh.keys",
    "zmesh.local_mode",
    "zmesh.local_actors",
    "zmesh.signatures",
    *LEAVES,
)
PURE = tuple(f"zmesh.core.{name}" for name in ("effects", "timers", "records", "running", "labels", "workers"))
_PARTS = ("gossip_limits", "members", "rumours", "view", "repair", "loads", "joiner")
GOSSIP = tuple(f"zmesh.core.{name}" for name in _PARTS)
_STARTERS = ("connect", "processes", "rundir", "listing")
MAY_IMPORT = {  # {importer: what of ours it may import}; the longest match counts, ".*" is the whole room
    "zmesh.exceptions": (),
    "zmesh.wire": ("zmesh.wire.*", "zmesh.exceptions"),
    "zmesh.core": (*PURE, "zmesh.wire.*", "zmesh.exceptions"),
    # The roles wire the machines; a worker is a client too.
    "zmesh.core.client": ("zmesh.core.*", "zmesh.wire.*", "zmesh.exceptions"),
    "zmesh.core.keeper": ("zmesh.core.*", "zmesh.wire.*"),
    "zmesh.core.actor_inputs": ("zmesh.core.*", "zmesh.wire.*"),
    "zmesh.core.lineage_inputs": ("zmesh.core.*", "zmesh.wire.*"),
    "zmesh.core.counting_inputs": ("zmesh.core.*", "zmesh.wire.*"),
    "zmesh.core.node_members": ("zmesh.core.*", "zmesh.wire.*"),
    "zmesh.core.node_deaths": ("zmesh.core.*", "zmesh.wire.*"),
    "zmesh.core.guest_client": ("zmesh.core.*", "zmesh.wire.*", "zmesh.exceptions"),
    "zmesh.core.worker": ("zmesh.core.*", "zmesh.wire.*", "zmesh.exceptions"),
    "zmesh.core.actor_home": ("zmesh.core.*", "zmesh.wire.*", "zmesh.exceptions"),
    "zmesh.core.node": ("zmesh.core.*", "zmesh.wire.*", "zmesh.exceptions"),
    "zmesh.core.matchmaking": (*PURE, "zmesh.core.overbooked", "zmesh.wire.*"),
    "zmesh.core.tasks": (*PURE, "zmesh.core.streams", "zmesh.wire.*"),
    "zmesh.core.references": (*PURE, "zmesh.core.restored", "zmesh.core.nested", "zmesh.core.bequests", "zmesh.wire.*"),
    "zmesh.core.orphans": (*PURE, "zmesh.core.sightings", "zmesh.wire.*"),
    "zmesh.core.groups": (*PURE, "zmesh.core.placement", "zmesh.core.bundles", "zmesh.wire.*"),
    "zmesh.core.placement": (*PURE, "zmesh.core.packing", "zmesh.wire.*"),
    # Membership is a role of its own, made of parts.
    "zmesh.core.membership": (*PURE, *GOSSIP, "zmesh.core.failure_detector", "zmesh.wire.*"),
    "zmesh.core.failure_detector": (*PURE, *GOSSIP, "zmesh.wire.*"),
    "zmesh.core.rumours": (*PURE, *GOSSIP, "zmesh.wire.*"),
    "zmesh.core.view": (*PURE, *GOSSIP, "zmesh.wire.*"),
    "zmesh.core.loads": (*PURE, *GOSSIP, "zmesh.wire.*"),
    "zmesh.core.joiner": (*PURE, *GOSSIP, "zmesh.wire.*"),
    "zmesh.core.repair": (*PURE, *GOSSIP, "zmesh.wire.*"),
    # A ref is what user code holds and what runtime unpacks: the one piece of the face that runtime knows.
    "zmesh.runtime": ("zmesh.runtime.*", "zmesh.core.*", "zmesh.wire.*", "zmesh.object_ref", "zmesh", *LEAVES),
    "zmesh": (*FACE, *(f"zmesh.runtime.{name}" for name in (*_STARTERS, "session"))),
    "zmesh.lifecycle": (*FACE, *(f"zmesh.runtime.{name}" for name in (*_STARTERS, "machine"))),
    "zmesh.keys": (*FACE, "zmesh.runtime.keyring"),
    "zmesh.local_mode": (
        *FACE, *PURE, "zmesh.wire.*", *(f"zmesh.runtime.{name}" for name in ("serialization", "session", "errors"))
    ),
    "zmesh.local_actors": (*FACE, "zmesh.runtime.serialization", *PURE, "zmesh.wire.*"),
    "zmesh.util": (*FACE, "zmesh.util.*"),
    # What cannot be pickled is known to the one home of pickle.
    "zmesh.util.serialization": (*FACE, "zmesh.runtime.serialization"),
    "cli": ("cli.*", *FACE),
    "tests.sim": ("tests.sim.*", "zmesh.core.*", "zmesh.wire.*", "zmesh.exceptions"),
}  # fmt: skip
HOMES = {  # {foreign module: the files that know it}
    "zmq": (
        "zmesh.runtime.sockets",
        "zmesh.runtime.mesh_sockets",
        "zmesh.runtime.guest_sockets",
        "zmesh.runtime.shortcut_sockets",
        "zmesh.runtime.curve",
        "zmesh.runtime.bulk",
    ),
    "mmap": ("zmesh.runtime.store", "zmesh.runtime.guest_store", "zmesh.runtime.blackbox", "zmesh.runtime.bulk"),
    "lz4": ("zmesh.runtime.bulk", "zmesh.runtime.spill_files"),
    "pickle": ("zmesh.runtime.serialization",),
    "cloudpickle": ("zmesh.runtime.serialization",),
    "numpy": ("zmesh.runtime.serialization", "zmesh.runtime.store", "zmesh.runtime.guest_store"),
    "subprocess": ("zmesh.runtime.processes", "zmesh.runtime.environments", "cli.shell_map"),
    "msgpack": (
        "zmesh.wire.codec",
        "zmesh.runtime.store",
        "zmesh.runtime.guest_store",
        "zmesh.runtime.segments",
        "zmesh.runtime.forkserver",
        "zmesh.runtime.serialization",
    ),
    "multiprocessing": (),
}
CORE_STDLIB = ("bisect", "collections", "dataclasses", "enum", "heapq", "itertools", "math", "random", "typing")


def module_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): ast.parse(path.read_text()) for path in FILES}


def imports(me: str) -> list[str]:
    """Every module imported, at any depth: a lazy or TYPE_CHECKING import is still a dependency."""
    found = []
    for node in ast.walk(MODULES[me]):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # cli/ is installed under another name than its folder's, so its own modules are the one relative import.
            assert node.level == 0 or (node.level == 1 and me.startswith("cli.")), "absolute imports only"
            base = "cli" if node.level else ""
            module = f"{base}.{node.module}".strip(".")
            whole = [f"{module}.{alias.name}" for alias in node.names]
            found += [name if name in MODULES else module for name in whole]
    return found


def allowed(importer: str) -> tuple[str, ...]:
    match = max((room for room in MAY_IMPORT if f"{importer}.".startswith(f"{room}.")), key=len)
    return MAY_IMPORT[match]


@pytest.mark.parametrize("me", MODULES)
def test_imports_follow_the_arrow(me: str) -> None:
    for name in imports(me):
        top = name.split(".")[0]
        if top in ("zmesh", "cli", "tests"):
            rooms = [rule[:-1] for rule in allowed(me) if rule.endswith(".*")]
            assert name in (me, *allowed(me)) or name.startswith(tuple(rooms)), f"{me} must not import {name}"
        elif top in HOMES and not me.startswith("tests"):
            assert me in HOMES[top], f"{top} is for {HOMES[top]}, not {me}"
        elif me.startswith("zmesh.core"):
            assert name.split(".")[0] in CORE_STDLIB, f"core/ does no I/O and reads no clock: {me} imports {name}"


def test_there_are_no_import_cycles_at_load() -> None:
    graph = {}
    for me, tree in MODULES.items():
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        names = [f"{n.module}.{a.name}" for n in top.body if isinstance(n, ast.ImportFrom) for a in n.names]
        names += [n.module or "" for n in top.body if isinstance(n, ast.ImportFrom)]
        graph[me] = [name for name in names if name in MODULES and name != me]
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("me", [me for me in MODULES if me.startswith("zmesh.core")])
def test_core_is_deterministic(me: str) -> None:
    for node in ast.walk(MODULES[me]):
        named_set = isinstance(node, ast.Name) and node.id in ("set", "frozenset")
        is_set = named_set or isinstance(node, ast.Set | ast.SetComp)
        assert not is_set, f"{me}:{node.lineno}: a set iterates by hash seed; keep a dict"
        of_random = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random"
        assert not of_random or node.attr == "Random", f"{me}:{node.lineno}: chance comes from the rng given"


@pytest.mark.parametrize("me", [me for me in MODULES if me.startswith("zmesh.runtime")])
def test_runtime_never_branches_on_a_messages_type(me: str) -> None:
    """Which message means what is core/'s business: runtime/ builds messages, and hands on those it gets."""
    names = {cls.__name__ for cls in MESSAGES}
    for node in ast.walk(MODULES[me]):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            named = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            assert not named & names, f"{me}:{node.lineno}: asks whether a message is a {named & names}"
        elif isinstance(node, ast.MatchClass):
            assert ast.unparse(node.cls).split(".")[-1] not in names, f"{me}:{node.lineno}: matches a message"
        elif isinstance(node, ast.Compare):
            text = ast.unparse(node)
            assert "type(message)" not in text, f"{me}:{node.lineno}: compares a message's type"
        elif isinstance(node, ast.Dict):
            keys = {key.id for key in node.keys if isinstance(key, ast.Name)}
            assert not keys & names, f"{me}:{node.lineno}: a table by message type belongs to core/"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_fits_the_page(path: pathlib.Path) -> None:
    tree = MODULES[module_of(path)]
    assert ast.get_docstring(tree) or not path.read_text(), "the first line says what the file knows"
    assert len(path.read_text().splitlines()) <= 600, f"{path} is over 600 lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 70, f"{path}: {node.name} is over 70 lines"


def test_there_are_no_named_shared_memory_and_no_unsafe_receives() -> None:
    for path in FILES:
        text = path.read_text()
        for word in ("recv_pyobj", "send_pyobj", "shared_memory", "/dev/shm", "tcp://*", "0.0.0.0"):
            assert word not in text or path.name == "simulator.py", f"{path}: {word}"


FORBIDDEN_AT_IMPORT = (
    "asyncio", "cloudpickle", "concurrent.futures", "ctypes", "inspect", "logging", "lz4", "msgpack", "multiprocessing",
    "numpy", "socket", "subprocess", "tempfile", "zmq",
)  # fmt: skip


def test_importing_the_face_imports_nothing_heavy() -> None:
    code = f"import sys, zmesh; print([name for name in {FORBIDDEN_AT_IMPORT!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_face_is_there() -> None:
    import zmesh

    for name in zmesh.__all__:
        assert getattr(zmesh, name) is not None
