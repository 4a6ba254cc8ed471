"""Runtime environments without a mesh: what is refused, how they merge, what is packed."""

import io
import math
import os
import pathlib
import types
import zipfile
from typing import Any

import pytest

import zmesh
from zmesh import runtime_env as envs
from zmesh.exceptions import ConfigError


def names(path: pathlib.Path, *, module: bool = False) -> list[str]:
    return [file.name for file in envs.files_of(str(path), module=module)]


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    for name in ("a.py", "b.log", "keep.log", "data/c.bin", "data/deep/d.txt", ".git/config", "__pycache__/a.pyc"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"nothing": "x"},
            "unknown key 'nothing' in runtime_env; valid keys are: env_vars, working_dir, py_modules, pip",
        ),
        (["x"], "must be a dict"),
        ({"env_vars": ["A=1"]}, "env_vars must be a dict"),
        ({"env_vars": {"A": 1}}, "must map strings to strings, not 'A' to 1"),
        ({"env_vars": {"A=B": "1"}}, "no '=' in names"),
        ({"working_dir": 1}, "must be a directory"),
        ({"working_dir": "/nowhere/at/all"}, "is no directory of this machine"),
        ({"py_modules": "one"}, "must be a list"),
        ({"py_modules": ["/nowhere/at/all"]}, "there is no '/nowhere/at/all'"),
        ({"py_modules": [3]}, "must hold directories, files and modules"),
        ({"py_modules": [math]}, "math has no file that could travel"),
        ({"py_modules": [os.path, zipfile, zmesh.exceptions]}, "name zmesh instead"),
        ({"pip": {"packages": []}}, "must be a list of requirements"),
        ({"pip": [1]}, "must be a list of requirements"),
        ({"pip": "numpy"}, "cannot read the requirements file 'numpy'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(given: Any, says: str) -> None:
    if given == {"py_modules": [math]} and hasattr(math, "__file__"):
        given = {"py_modules": [types.ModuleType("math")]}
    with pytest.raises(ValueError, match="runtime_env") as caught:
        envs.check(given)
    assert says in str(caught.value)
    with pytest.raises(ConfigError):
        zmesh.remote(runtime_env=given)


def test_what_is_valid_gets_one_form(tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree.parent)
    module = types.ModuleType("some")
    module.__file__ = str(tree / "a.py")
    (tree / "requirements.txt").write_text("# ours\none>=1  # why\n\n./tree/a.py\n")
    checked = envs.check(
        {
            "env_vars": {"A": "1"},
            "working_dir": "tree",
            "py_modules": [tree / "data", module],
            "pip": "tree/requirements.txt",
        }
    )
    assert checked == {
        "env_vars": {"A": "1"},
        "working_dir": str(tree),
        "py_modules": [str(tree / "data"), str(tree / "a.py")],
        "pip": ["one>=1", str(tree / "a.py")],
    }
    assert envs.check(None) == envs.check({"pip": None}) == {}


def test_variables_merge_and_all_else_replaces() -> None:
    base = {"env_vars": {"A": "1", "B": "1"}, "pip": ["x"], "py_modules": ["m"]}
    assert envs.merge(base, {"env_vars": {"B": "2"}, "pip": ["y"]}) == {
        "env_vars": {"A": "1", "B": "2"},
        "pip": ["y"],
        "py_modules": ["m"],
    }


def test_an_environment_is_known_by_what_it_holds_not_by_who_says_so() -> None:
    one = envs.describe(None, {"env_vars": {"A": "1", "B": "2"}, "working_dir": envs.Package("d", b"1")})
    two = envs.describe({"env_vars": {"B": "2"}}, {"env_vars": {"A": "1"}, "working_dir": ["d", b"2"]})
    assert one["id"] == two["id"]
    assert envs.describe(one, {"env_vars": {"A": "3"}})["id"] != one["id"]


def test_version_control_and_compiled_files_stay_at_home(tree: pathlib.Path) -> None:
    assert names(tree) == ["a.py", "b.log", "data/c.bin", "data/deep/d.txt", "keep.log"]
    assert names(tree / "data", module=True) == ["data/c.bin", "data/deep/d.txt"]
    assert names(tree / "a.py", module=True) == ["a.py"]


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ("*.log\n!keep.log", "a.py data/c.bin data/deep/d.txt keep.log"),
        ("/data", "a.py b.log keep.log"),
        ("data/", "a.py b.log keep.log"),
        ("a.py/", "a.py b.log data/c.bin data/deep/d.txt keep.log"),
        ("data/*.bin\n# *", "a.py b.log data/deep/d.txt keep.log"),
        ("**/d.txt", "a.py b.log data/c.bin keep.log"),
        ("data/**", "a.py b.log keep.log"),
        ("data/**/d.txt", "a.py b.log data/c.bin keep.log"),
        ("[!a-c]*.log\n?.py", "b.log data/c.bin data/deep/d.txt"),
        ("deep", "a.py b.log data/c.bin keep.log"),
    ],
)
def test_what_is_ignored_is_what_git_would_ignore(tree: pathlib.Path, lines: str, left: str) -> None:
    (tree / ".gitignore").write_text(lines + "\n.gitignore")
    assert names(tree) == left.split()


def test_our_own_list_counts_instead_of_gits(tree: pathlib.Path) -> None:
    (tree / ".gitignore").write_text("*.py\n")
    (tree / ".zmeshignore").write_text("*.log\ndata\n.*ignore\n")
    assert names(tree) == ["a.py"]
    (tree / ".zmeshignore").write_text("[a\n")
    with pytest.raises(ConfigError, match=r"a pattern of .* makes no sense"):
        names(tree)


def test_links_are_followed_but_not_in_circles(tree: pathlib.Path) -> None:
    (tree / "data/circle").symlink_to(tree)
    (tree / "data/gone").symlink_to(tree / "nothing")
    (tree / "linked.txt").symlink_to(tree / "data/deep/d.txt")
    assert names(tree) == ["a.py", "b.log", "data/c.bin", "data/deep/d.txt", "keep.log", "linked.txt"]


def test_the_same_files_give_the_same_package(tree: pathlib.Path) -> None:
    digest, data = envs.pack(envs.files_of(str(tree), module=False))
    os.utime(tree / "a.py", (1, 1))
    assert envs.pack(envs.files_of(str(tree), module=False)) == (digest, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("data/deep/d.txt") == b"data/deep/d.txt"
        assert archive.getinfo("a.py").external_attr >> 16 == 0o444
    (tree / "a.py").chmod(0o755)
    other, _ = envs.pack(envs.files_of(str(tree), module=False))
    assert other != digest


def test_too_much_names_the_largest(tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs, "PACKAGE_BYTES_MAX", 100)
    (tree / "data/model.bin").write_bytes(bytes(90))
    with pytest.raises(
        ConfigError, match=r"has 132 bytes in 6 files.* largest are data/model.bin \(90\), .*zmeshignore"
    ):
        names(tree)


def test_what_cannot_be_read_is_said(tree: pathlib.Path) -> None:
    files = envs.files_of(str(tree), module=False)
    (tree / "a.py").unlink()
    with pytest.raises(ConfigError, match=r"cannot pack '.*a\.py'"):
        envs.pack(files)
    with pytest.raises(ConfigError, match="cannot read"):
        envs.files_of(str(tree / "gone"), module=True)


def test_requirements_that_are_files_are_known_by_their_contents(tree: pathlib.Path) -> None:
    lines = envs.check({"pip": [str(tree / "a.py"), "numpy"]})["pip"]
    before = envs.requirements(lines)
    (tree / "a.py").write_text("other")
    assert envs.requirements(lines).lines == before.lines
    assert envs.requirements(lines) != before
