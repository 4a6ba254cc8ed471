"""Runtime environments: the variables, files, modules and packages that tasks find. Checked, merged and packed here.

What is local travels by content: a directory becomes a zip that is the same for the same files, whoever packs it. How a
session shares it is runtime/environment_calls.py's business, what workers do with it runtime/environments.py's.
"""

import hashlib
import io
import json
import os
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from zmesh.exceptions import ConfigError
from zmesh.limits import is_text

KEYS = ("env_vars", "working_dir", "py_modules", "pip")
_INSTEAD = {  # {key that others have and we do not: what to do}
    "excludes": "name what is to stay in a file .zmeshignore of the directory, written as a .gitignore",
    "config": "leave it out: an environment takes as long as it takes",
    "worker_process_setup_hook": "call it in the task, or in __init__ of the actor",
    **dict.fromkeys(
        ("conda", "uv", "container", "image_uri", "py_executable"),
        "start the nodes in that environment, or use pip=",
    ),
}
PACKAGE_BYTES_MAX = 512 << 20  # of the files in one package. Source: Ray's limit for the same
IGNORE_FILES = (".zmeshignore", ".gitignore")  # the first that is there counts

_ALWAYS_IGNORED = (".git/", "__pycache__/", "*.pyc")
_NAMED_FILES = 5  # in the error about a package that is too large
_DIGEST_BYTES = 16
_SCRIPT = 0o111  # of a file's mode: somebody may execute it


class Package(NamedTuple):
    """Files that were packed: their digest, and the ObjectID of the zip, which the program that packed them holds."""

    digest: str
    oid: bytes


class Requirements(NamedTuple):
    """What pip is to install, as workers are told of it."""

    lines: list[str]
    contents: str  # digest of those that are files of the machine that says so


class File(NamedTuple):
    """A file to be packed."""

    name: str  # in the zip
    path: str
    nbytes: int
    changed_ns: int
    mode: int


def check(given: Any) -> dict[str, Any]:
    """Return what the user gave as runtime_env= in one form: paths absolute, modules as paths, requirements as lines.

    Raises:
        ConfigError: an unknown key, or a value that makes no sense; the text lists the valid keys.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"runtime_env must be a dict with some of the keys {', '.join(KEYS)}, not {given!r}")
    checks = {"env_vars": _variables, "working_dir": _directory, "py_modules": _modules, "pip": _requirements}
    checked = {}
    for key, value in given.items():
        if key not in checks:
            instead = f": {_INSTEAD[key]}" if key in _INSTEAD else f"; valid keys are: {', '.join(KEYS)}"
            raise ConfigError(f"unknown key {key!r} in runtime_env{instead}")
        if value is not None:
            checked[key] = checks[key](value)
    return checked


def _variables(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"runtime_env: env_vars must be a dict of strings, not {value!r}")
    for name, text in value.items():
        if not is_text(name) or not is_text(text):
            raise ConfigError(f"runtime_env: env_vars must map strings to strings, not {name!r} to {text!r}")
        if not name or "=" in name or "\0" in name + text:
            raise ConfigError(f"runtime_env: env_vars cannot set {name!r} to {text!r}: no '=' in names, and no zeros")
    return dict(value)


def _directory(value: Any) -> Any:
    if isinstance(value, Package):
        return value
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"runtime_env: working_dir must be a directory of this machine, not {value!r}")
    path = os.path.abspath(os.path.expanduser(os.fspath(value)))
    if not os.path.isdir(path):
        raise ConfigError(
            f"runtime_env: working_dir {value!r} is no directory of this machine: addresses of archives will not do"
        )
    return path


def _modules(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple) or isinstance(value, Package):
        raise ConfigError(f"runtime_env: py_modules must be a list of directories, files and modules, not {value!r}")
    return [_module(one) for one in value]


def _module(value: Any) -> Any:
    if isinstance(value, Package):
        return value
    if isinstance(value, types.ModuleType):
        places = list(getattr(value, "__path__", ())) or [getattr(value, "__file__", None)]
        if not places[0]:
            raise ConfigError(f"runtime_env: py_modules: the module {value.__name__} has no file that could travel")
        if "." in value.__name__:
            top = value.__name__.partition(".")[0]
            raise ConfigError(f"runtime_env: py_modules: {value.__name__} travels with its package: name {top} instead")
        return os.path.abspath(places[0])
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"runtime_env: py_modules must hold directories, files and modules, not {value!r}")
    path = os.path.abspath(os.path.expanduser(os.fspath(value)))
    if not os.path.exists(path):
        raise ConfigError(f"runtime_env: py_modules: there is no {value!r} on this machine")
    return path


def _requirements(value: Any) -> Any:
    if isinstance(value, Requirements):
        return value
    if isinstance(value, str | os.PathLike):
        path = os.path.expanduser(os.fspath(value))
        try:
            with open(path, encoding="utf-8") as file:
                value = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"runtime_env: pip: cannot read the requirements file {path!r}: {error}; for packages, give a list"
            ) from None
    if not isinstance(value, list | tuple) or not all(isinstance(line, str) for line in value):
        raise ConfigError(
            f"runtime_env: pip must be a list of requirements, or the path of a requirements file, not {value!r}"
        )
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in value]
    return [os.path.abspath(line) if _is_local(line) else line for line in lines if line]


def _is_local(line: str) -> bool:
    return (os.sep in line or line.endswith(".whl")) and os.path.exists(line)


def merge(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `given` laid over `base`: variables one by one, all else as a whole."""
    merged = {key: given.get(key, base.get(key)) for key in KEYS if key in given or key in base}
    if "env_vars" in merged:
        merged["env_vars"] = {**base.get("env_vars", {}), **given.get("env_vars", {})}
    return merged


def describe(base: Mapping[str, Any] | None, packed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what workers are told of an environment: that of this process, with what was packed laid over it.

    Returns:
        {"id": digest, "env_vars": {...}, "working_dir": [digest, ObjectID], "py_modules": [[digest, ObjectID], ...],
        "pip": [lines, digest]}, without the keys nobody gave.
    """
    merged = merge(base or {}, packed)
    named = dict(merged)
    for key in ("working_dir", "py_modules"):
        if key in named:
            named[key] = [package[0] for package in packages_of({key: named[key]})]
    return merged | {"id": _digest([json.dumps(named, sort_keys=True).encode()])}


def packages_of(described: Mapping[str, Any]) -> list[Any]:
    """Return the packages of an environment: [digest, ObjectID] each."""
    first = [described["working_dir"]] if "working_dir" in described else []
    return [*first, *described.get("py_modules", ())]


def renamed(described: Mapping[str, Any], packages: Mapping[str, Package]) -> dict[str, Any]:
    """Return an environment in which packages have other ObjectIDs: {digest: package}."""
    changed = dict(described)
    if "working_dir" in changed:
        changed["working_dir"] = packages.get(changed["working_dir"][0], changed["working_dir"])
    if "py_modules" in changed:
        changed["py_modules"] = [packages.get(package[0], package) for package in changed["py_modules"]]
    return changed


# Packing.


def files_of(path: str, *, module: bool) -> list[File]:
    """List what to pack of a directory or a file, in the order of their names; ignored files are left out.

    Args:
        module: it is to be imported, so its own name becomes part of the names in the zip.

    Raises:
        ConfigError: it cannot be read, or is too large.
    """
    prefix = os.path.basename(path) if module else ""
    try:
        files = sorted(_walk(path, prefix, _rules(path))) if os.path.isdir(path) else [_file(prefix, path)]
    except OSError as error:
        raise ConfigError(f"runtime_env: cannot read {path}: {error}") from None
    total = sum(file.nbytes for file in files)
    if total > PACKAGE_BYTES_MAX:
        largest = sorted(files, key=lambda file: -file.nbytes)[:_NAMED_FILES]
        names = ", ".join(f"{file.name} ({file.nbytes:,})" for file in largest)
        raise ConfigError(
            f"runtime_env: {path} has {total:,} bytes in {len(files):,} files, and a package may have "
            f"{PACKAGE_BYTES_MAX:,}; the largest are {names}. List what tasks do not need in {path}/{IGNORE_FILES[0]}"
        )
    return files


def _file(name: str, path: str) -> File:
    found = os.stat(path)
    return File(name, path, found.st_size, found.st_mtime_ns, found.st_mode)


def _walk(root: str, prefix: str, rules: list[tuple[bool, bool, re.Pattern[str]]]) -> Iterator[File]:
    seen = {}  # {real path of a directory: True}: links may lead in circles
    for here, directories, names in os.walk(root, followlinks=True, onerror=_raise):
        inside = os.path.relpath(here, root)
        inside = "" if inside == os.curdir else f"{inside}{os.sep}"
        if os.path.realpath(here) in seen:
            directories.clear()
            continue
        seen[os.path.realpath(here)] = True
        directories[:] = [name for name in directories if not _ignored(inside + name, rules, directory=True)]
        for name in names:
            path = os.path.join(here, name)
            if os.path.isfile(path) and not _ignored(inside + name, rules, directory=False):
                yield _file(os.path.join(prefix, inside + name), path)


def _raise(error: OSError) -> None:
    raise error


def _rules(root: str) -> list[tuple[bool, bool, re.Pattern[str]]]:
    """Return what is ignored in a directory: (keep after all, directories only, pattern of the path) each."""
    lines = list(_ALWAYS_IGNORED)
    for name in IGNORE_FILES:
        path = os.path.join(root, name)
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                lines += [line.strip() for line in file]
            break
    try:
        return [_rule(line) for line in lines if line and not line.startswith("#")]
    except re.error as error:
        raise ConfigError(f"runtime_env: a pattern of {path} makes no sense: {error}") from None


def _rule(line: str) -> tuple[bool, bool, re.Pattern[str]]:
    """Read one line as git does."""
    keep = line.startswith("!")
    line = line[keep:]
    parts = line.strip("/").split("/")
    text = "" if "/" in line.rstrip("/") else "(?:.*/)?"
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        if part == "**":
            text += ".*" if last else "(?:[^/]+/)*"
            continue
        for escaped, plain in ((r"\*", "[^/]*"), (r"\?", "[^/]"), (r"\[!", "[^"), (r"\[", "["), (r"\]", "]")):
            part = (re.escape(part) if escaped == r"\*" else part).replace(escaped, plain)
        text += part.replace(r"\-", "-") + ("" if last else "/")
    return keep, line.endswith("/"), re.compile(text)


def _ignored(path: str, rules: list[tuple[bool, bool, re.Pattern[str]]], *, directory: bool) -> bool:
    """Whether the last rule that speaks of a path says so."""
    for keep, directories_only, pattern in reversed(rules):
        if (directory or not directories_only) and pattern.fullmatch(path):
            return not keep
    return False


def pack(files: list[File]) -> tuple[str, bytes]:
    """Return (digest, zip) of files: the same for the same names, contents and permissions to execute.

    Nothing is compressed: that costs more than it saves on one host, and between hosts chunks are compressed anyway.

    Raises:
        ConfigError: one cannot be read.
    """
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            info = zipfile.ZipInfo(file.name)  # its time is the first that a zip can hold
            info.external_attr = (0o444 | (file.mode & _SCRIPT and _SCRIPT)) << 16
            try:
                with open(file.path, "rb") as source:
                    archive.writestr(info, source.read())
            except (OSError, UnicodeEncodeError) as error:
                raise ConfigError(f"runtime_env: cannot pack {file.path!r}: {error}") from None
    data = buffer.getvalue()
    return digest_of(data), data


def requirements(lines: list[str]) -> Requirements:
    """Return requirements as workers are told of them."""
    local = [line for line in lines if os.path.isabs(line) and os.path.exists(line)]
    contents = [pack(files_of(line, module=True))[0].encode() for line in local]
    return Requirements(lines, _digest(contents))


def digest_of(data: bytes) -> str:
    """Return what a package is called."""
    return _digest([data])


def _digest(parts: list[bytes]) -> str:
    made = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        made.update(part)
    return made.hexdigest()
