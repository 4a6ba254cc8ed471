"""The examples run as a reader would run them, from any directory, and find what one process finds.

They are slow by the clock alone: each is an interpreter, a node and workers of its own.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "docs" / "examples"
TIMEOUT_S = 60.0

pytestmark = pytest.mark.slow


def run_example(cwd: pathlib.Path, name: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *options],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def check_success(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert re.search(r"^one process \d+\.\d\d s, mesh \d+\.\d\d s: \d+\.\d\d times as fast$", done.stdout, re.MULTILINE)
    assert re.search(r"^same answer: ", done.stdout, re.MULTILINE)


def test_word_count_finds_the_identifiers_one_process_finds(tmp_path: pathlib.Path) -> None:
    done = run_example(tmp_path, "wordcount.py", "--files", "300")
    check_success(done)
    assert re.search(r"^300 files, ", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^ *[\d,]+  \w+$", done.stdout, re.MULTILINE)) == 10
    assert re.search(r"^ *[\d,]+  self$", done.stdout, re.MULTILINE)


def test_monte_carlo_shows_a_bar_and_finds_the_same_hits(tmp_path: pathlib.Path) -> None:
    done = run_example(tmp_path, "montecarlo.py", "--tasks", "10", "--darts", "100000")
    check_success(done)
    assert re.search(r"^pi is about 3\.1\d+ after 1,000,000 darts", done.stdout, re.MULTILINE)
    assert "10/10" in done.stderr


def test_monte_carlo_prints_lines_where_tqdm_is_missing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tqdm.py").write_text("raise ImportError('not here')\n")
    done = run_example(tmp_path, "montecarlo.py", "--tasks", "20", "--darts", "10000", PYTHONPATH=str(tmp_path))
    check_success(done)
    assert len(re.findall(r"^\d+ of 20 tasks$", done.stdout, re.MULTILINE)) == 10
    assert done.stderr == ""


def test_fft_pipeline_shares_the_stack_read_only(tmp_path: pathlib.Path) -> None:
    done = run_example(tmp_path, "fft_pipeline.py", "--images", "4", "--side", "256")
    check_success(done)
    assert re.search(r"^in a task the stack is read-only, shared$", done.stdout, re.MULTILINE)
