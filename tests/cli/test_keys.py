"""`zmesh key`: exit codes, what is printed where, and that a key never stands on a command line."""

import os
import pathlib
import stat
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

ZMESH = os.path.join(os.path.dirname(sys.executable), "zmesh")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Run:
    def call(*argv: str, home: str = "a", given: str = "") -> Any:
        environment = {"PATH": os.environ["PATH"], "XDG_CONFIG_HOME": str(tmp_path / home)}
        return subprocess.run(
            [ZMESH, "key", *argv], env=environment, input=given, capture_output=True, text=True, timeout=30, check=False
        )

    return call


def test_create_path_export_and_import_carry_a_key_to_another_host(run: Run) -> None:
    created = run("create")
    assert created.returncode == 0
    path = run("path").stdout.strip()
    assert path in created.stdout
    exported = run("export")
    assert exported.returncode == 0
    assert exported.stdout.startswith("zmesh-key-1:")
    assert "shell on every node" in exported.stderr
    for _ in range(2):
        imported = run("import", home="b", given=exported.stdout)
        assert imported.returncode == 0, imported.stderr
        assert imported.stdout.split()[1] == created.stdout.split()[1]
    assert run("export", home="b").stdout == exported.stdout


def test_what_goes_wrong_is_one_line_and_exit_code_2(run: Run) -> None:
    run("create")
    run("create", home="b")
    other = run("export", home="b").stdout
    for result, words in (
        (run("create"), "exists"),
        (run("export", home="none"), "there is no key"),
        (run("rotate", home="none"), "there is no key"),
        (run("import", given="rubbish"), "that is no key"),
        (run("import", given=other), "another mesh"),
    ):
        assert result.returncode == 2
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
        assert other.strip() not in result.stderr
    assert run("import", "--force", given=other).returncode == 0


def test_rotate_and_finish(run: Run) -> None:
    first = run("create").stdout.split()[1]
    rotated = run("rotate")
    assert first in rotated.stdout
    second = rotated.stdout.split()[1]
    assert second != first
    line = run("export").stdout
    assert run("rotate", "--finish").stdout.split("accepted: ")[1].split()[0] == second
    assert run("import", home="b", given=line).returncode == 0


def test_a_key_is_written_for_this_user_alone(run: Run, tmp_path: pathlib.Path) -> None:
    run("create")
    target = tmp_path / "key.txt"
    assert run("export", "--output", str(target)).returncode == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    again = run("export", "--output", str(target))
    assert again.returncode == 2
    assert "exists" in again.stderr.lower()
    assert run("import", str(target), home="b").returncode == 0
