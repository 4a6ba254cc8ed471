"""docs/coming-from-ray.md agrees with the code: the same is there, with these defaults; the absent is not."""

import ast
import builtins
import importlib
import inspect
import pathlib
import re
from typing import Any

import pytest

import zmesh
from zmesh import actor_options, exceptions, options, runtime_env

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "coming-from-ray.md"
CODE = re.compile(r"`([^`]+)`")
MISSING = object()


def rows() -> list[tuple[str, list[str], str]]:
    """Return (section, code in the first cell, text of the second) of each row."""
    found = []
    section = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            section = line.lstrip("# ")
        elif line.startswith("| ") and not line.startswith(("| Ray |", "| in Ray |")):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            found.append((section, CODE.findall(cells[0]), cells[1]))
    return found


ROWS = rows()
NAMES = [(code, verdict) for _, codes, verdict in ROWS for code in codes if re.match(r"ray\.\w", code)]
OPTIONS = [
    (section, code, verdict)
    for section, codes, verdict in ROWS
    if section in ("Options of tasks", "Options of actors")
    for code in codes
]


def resolve(dotted: str) -> Any:
    """Return what `ray.a.b` is under our name, or MISSING."""
    parts = dotted.split(".")[1:]
    found: Any = zmesh
    path = "zmesh"
    for part in parts:
        path = f"{path}.{part}"
        found = getattr(found, part, MISSING)
        try:  # a module wins over a function of its name, as in `from zmesh.util.placement_group import ...`
            module = importlib.import_module(path)
        except ImportError:
            module = None
        if module is not None and (found is MISSING or part != parts[-1]):
            found = module
        if found is MISSING:
            return MISSING
    return found


def arguments(call: str) -> dict[str, Any]:
    """Return {name: default, or Parameter.empty} of what stands in the brackets of `f(a=1, *, b)`."""
    inside = call.partition("(")[2].rstrip(")").split(",")
    pairs = [part.strip().partition("=") for part in inside if part.strip() not in ("", "*")]
    return {name: ast.literal_eval(text) if equals else inspect.Parameter.empty for name, equals, text in pairs}


@pytest.mark.parametrize(("code", "verdict"), NAMES)
def test_names_are_there_or_not_as_the_table_says(code: str, verdict: str) -> None:
    name = code.partition("(")[0]
    found = resolve(name)
    if verdict == "absent":
        assert found is MISSING, f"{name} is there: the table should say so"
        return
    assert verdict in ("same", "different")
    assert found is not MISSING, f"{name} is not there"
    if "(" in code:
        parameters = inspect.signature(found).parameters
        for argument, default in arguments(code).items():
            assert argument in parameters, f"{name} has no {argument}"
            if default is not inspect.Parameter.empty:
                assert parameters[argument].default == default, f"{name}: default of {argument}"


@pytest.mark.parametrize(("section", "code", "verdict"), OPTIONS)
def test_options_have_the_defaults_of_the_table(section: str, code: str, verdict: str) -> None:
    defaults = options.DEFAULTS if section == "Options of tasks" else actor_options.DEFAULTS
    name, equals, value = code.partition("=")
    name = options.ALIASES.get(name, name)
    if verdict == "absent":
        assert name not in defaults, f"{name} is an option: the table should say so"
        with pytest.raises(exceptions.ConfigError, match="there is no option"):
            options.parse({name: 1})
    else:
        assert equals, f"{name}: the table gives no default"
        assert defaults[name] == ast.literal_eval(value)


def test_every_option_is_in_the_table() -> None:
    own = {"generator_backpressure"}
    for section, valid in (("Options of tasks", options.VALID), ("Options of actors", actor_options.VALID)):
        listed = {
            options.ALIASES.get(name, name) for of, code, _ in OPTIONS if of == section for name in [code.split("=")[0]]
        }
        assert set(valid) - own <= listed


def test_ray_names_of_errors_are_the_same_classes() -> None:
    errors = [(codes, verdict) for section, codes, verdict in ROWS if section == "Errors"]
    assert len(errors) > 20
    for codes, verdict in errors:
        for code in codes:
            found = getattr(exceptions, code, None)
            if verdict == "absent":
                assert found is None, code
            else:
                assert found is getattr(exceptions, verdict.strip("`")), code
                assert issubclass(found, exceptions.RayError)


def test_runtime_env_keys_are_those_of_the_table() -> None:
    same = [codes for _, codes, verdict in ROWS if "runtime_env" in codes and verdict == "same"]
    assert {code for codes in same for code in codes if code != "runtime_env"} == set(runtime_env.KEYS)


def test_programs_for_ray_find_the_methods_of_every_actor() -> None:
    @zmesh.remote
    class Plain:
        pass

    names = [code for section, codes, _ in ROWS if section == "Actors" for code in codes if code.startswith("__ray")]
    assert len(names) == 3
    with zmesh.init(local=True):
        actor = Plain.remote()
        for name in names:
            assert hasattr(actor, name)


def test_every_row_has_a_verdict() -> None:
    for section, codes, verdict in ROWS:
        if section not in ("What is different on purpose", "Errors"):
            assert verdict in ("same", "different", "absent"), (section, codes)


def test_errors_that_the_pages_name_exist() -> None:
    for page in (PAGE, PAGE.with_name("fault-tolerance.md")):
        for name in re.findall(r"\b[A-Z]\w+Error\b", page.read_text()):
            known = hasattr(exceptions, name) or hasattr(builtins, name)
            assert known or any(name in codes and verdict == "absent" for _, codes, verdict in ROWS), name
