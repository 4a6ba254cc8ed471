"""Run all questions and write what they found between the two markers of docs/performance.md.

The scripts are run one after the other with the same options; the section is made of the results on disk, so that a
single question can be asked anew and the page be written again with --render. With --quick the page stays as it is.
"""

import json
import pathlib
import subprocess
import sys

import harness

PAGE = harness.HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"

SCRIPTS = (  # (script, its further options, the results it writes)
    ("roundtrip.py", (), ("roundtrip",)),
    ("actors.py", (), ("actors", "streams", "actor_creation")),
    ("throughput.py", (), ("throughput",)),
    ("throughput.py", ("--queued", "1000000"), ("queued",)),
    ("map_efficiency.py", (), ("map_efficiency",)),
    ("arrays.py", (), ("arrays", "arrays_private")),
    ("objects.py", (), ("objects", "waits")),
    ("startup.py", (), ("startup",)),
    ("idle.py", (), ("idle",)),
)


def find_section(text: str) -> tuple[int, int]:
    """Return where the measured section of the page begins and ends, without its markers.

    Raises:
        LookupError: the page does not have exactly one pair of markers, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise LookupError(f"{PAGE} must hold {BEGIN} once and, behind it, {END} once")
    return text.index(BEGIN) + len(BEGIN), text.index(END)


def render() -> str:
    """Return the section: a heading, a table and its origin for each result there is."""
    parts = []
    for _, _, names in SCRIPTS:
        for name in names:
            path = harness.result_path(name, quick=False)
            if path.exists():
                result = json.loads(path.read_text())
                parts.append(f"### {result['title']}\n\n{result['table']}\n\n{harness.describe(result)}")
    return "\n\n".join(parts)


def run_scripts(options: list[str], only: list[str]) -> int:
    """Run the scripts; returns 1 if one of them reported a failure.

    Raises:
        LookupError: nobody writes one of the results that are wanted.
    """
    known = [name for _, _, names in SCRIPTS for name in names]
    if unknown := [name for name in only if name not in known]:
        raise LookupError(f"no script writes {', '.join(unknown)}; there are {', '.join(known)}")
    failed = 0
    for script, more, names in SCRIPTS:
        if only and not set(only) & set(names):
            continue
        code = subprocess.run([sys.executable, str(harness.HERE / script), *more, *options], check=False).returncode
        failed |= int(code != 0)
    return failed


def main() -> int:
    """Measure, then write the page."""
    given = harness.parse(
        __doc__,
        only={"help": "names of results, separated by commas: ask only these", "default": ""},
        render={"action": "store_true", "help": "measure nothing, only write the page"},
    )
    only = [name for name in given.only.split(",") if name]
    options = ["--quick"] if given.quick else []
    options += ["--rounds", str(given.rounds)] if given.rounds is not None else []
    options += ["--peers", given.peers] if given.peers is not None else []
    try:
        if not given.quick:
            find_section(PAGE.read_text())  # before an hour of measuring, not after
        failed = 0 if given.render else run_scripts(options, only)
    except (FileNotFoundError, LookupError) as error:
        sys.exit(str(error))
    if not given.quick:
        write_section(PAGE, render())
    return failed


def write_section(page: pathlib.Path, section: str) -> None:
    """Replace what lies between the markers, and nothing else."""
    text = page.read_text()
    begin, end = find_section(text)
    page.write_text(f"{text[:begin]}\n\n{section}\n\n{text[end:]}")


if __name__ == "__main__":
    sys.exit(main())
