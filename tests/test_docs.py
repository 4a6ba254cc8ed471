"""What the documents show runs: the Python blocks of README and of some pages, in order, in one program each."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


PAGES = ("quickstart", "actors", "placement", "memory", "runtime-env", "coming-from-ray")


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{page}.md" for page in PAGES)])
def test_the_python_blocks_run_from_top_to_bottom(name: str, tmp_path: pathlib.Path) -> None:
    blocks = BLOCK.findall((ROOT / name).read_text())
    assert blocks
    script = tmp_path / "shown.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_readme_gives_one_line_to_try_it_and_one_to_test_it() -> None:
    text = (ROOT / "README.md").read_text()
    for title in ("Try it", "Test it"):
        section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
        blocks = re.findall(r"^```\w*\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        assert [block.count("\n") for block in blocks] == [1], f"{title} holds exactly one line"


def test_links_between_documents_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+\.md)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_each_row_on_fault_tolerance_names_a_test_that_there_is() -> None:
    rows = [line for line in (ROOT / "docs/fault-tolerance.md").read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| what happens")]
    assert len(rows) > 40
    for row in rows:
        shown = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row.split("|")[-2])
        assert shown, f"no test: {row:.80}"
        for path, name in shown:
            assert f"def {name}(" in (ROOT / "tests" / path).read_text(), f"{path}::{name}"
