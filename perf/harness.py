"""How a question is put to all contenders fairly, and how the answer is kept: rounds, statistics, table, JSON.

In each round every contender has one turn, in rotated order. A turn is a fresh interpreter (driver.py) that starts the
contender, warms it up, measures and ends; when it is over nothing of it is left, so nobody runs beside somebody else's
processes, memory or page tables. A ratio is taken within a round and only then summarised: what slows a round slows
both sides of it. What to measure is the business of the scripts, how to drive a contender that of contenders.py.

Source: interleaved rounds against drift, as in pyperf and Go's benchstat; quartiles because run times are skewed.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from contenders import ALWAYS, BY_NAME, PEERS, WORKERS, Contender
from processes import adopt_orphans, busy_share, end_descendants

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results"
ROUNDS = 11  # the least at which a median has two whole quartiles around it
QUICK_ROUNDS = 3
TURN_S_MAX = 600.0
EXIT_GRACE_S = 10.0
BUSY_SHARE = 0.1  # with so much of all cores in use while we only wait, somebody else is using the machine
BUSY_SAMPLE_S = 0.2
ERROR_TEXT_MAX = 300


@dataclass(slots=True)
class Column:
    """One column of the table.

    Attributes:
        title: its head.
        figure: which number of the measurement it shows; a turn may leave numbers out.
        scale: what the number is multiplied with, to get from SI units to those of the title.
        digits: digits behind the point.
        against: a contender: show the ratio to its number in the same round instead.
        spread: also show the quartiles.
    """

    title: str
    figure: str
    scale: float = 1.0
    digits: int = 0
    against: str | None = None
    spread: bool = False


@dataclass(slots=True)
class Question:
    """What a script asks.

    Attributes:
        name: of the result file.
        title: one line above the table; a template of the parameters.
        function: of the script: (contender, parameters) -> {figure: number}; runs in the driver.
        columns: of the table.
        parameters: handed to the function; also kept with the result.
        quick: parameters that differ with --quick.
        exclude: {name of a contender: why it cannot answer this}.
    """

    name: str
    title: str
    function: str
    columns: Sequence[Column]
    parameters: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)
    exclude: dict[str, str] = field(default_factory=dict)


def parse(description: str, **more: Any) -> argparse.Namespace:
    """Read the options that all scripts share; `more` holds further ones as {name: settings of add_argument}."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help=f"turns of each contender, {ROUNDS} by default")
    parser.add_argument(
        "--peers",
        help=f"besides {', '.join(c.name for c in ALWAYS)}: names out of {', '.join(c.name for c in PEERS)}, separated "
        "by commas, or none; by default all that can be imported",
    )
    parser.add_argument("--quick", action="store_true", help="few rounds of little work: to try the script")
    for name, settings in more.items():
        parser.add_argument(f"--{name}", **settings)
    given = parser.parse_args()
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds must be at least 1")
    if given.peers is not None:
        unknown = [name for name in _names(given.peers) if name not in {peer.name for peer in PEERS}]
        if unknown:
            parser.error(f"--peers: unknown: {', '.join(unknown)}")
    return given


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name not in ("", "none")]


def ask(question: Question, given: argparse.Namespace) -> int:
    """Put one question to all who can answer, print the table and write the result.

    Returns:
        What the script exits with: 1 if a contender failed, else 0. Those not installed do not count.
    """
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that a turn is cleaned up
    parameters = question.parameters | (question.quick if given.quick else {})
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    taking_part, skipped = _select(question, given.peers)
    machine = describe_machine(taking_part)
    turns, failed, busy = _play(question, taking_part, parameters, rounds)
    figures = {name: _summarise_all(turns[name]) for name in turns}
    table = render(question.columns, turns)
    result = {
        "question": question.name,
        "title": question.title.format(**parameters),
        "command": f"python perf/{pathlib.Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
        "quick": given.quick,
        "rounds": rounds,
        "workers": WORKERS,
        "parameters": parameters,
        "machine": machine,
        "others_busy": summarise(busy),
        "figures": figures,
        "skipped": skipped,
        "failed": failed,
        "table": table,
    }
    path = result_path(question.name, quick=given.quick)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"### {result['title']}\n\n{table}\n\n{describe(result)}\n")
    return 1 if failed else 0


def result_path(name: str, *, quick: bool) -> pathlib.Path:
    """Return where the result of a question lies; quick ones lie apart, and never stand in for real ones."""
    return RESULTS / f"{name}{'-quick' if quick else ''}.json"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _select(question: Question, peers: str | None) -> tuple[list[type[Contender]], dict[str, str]]:
    """Return who takes part, and {name: why not} of the others that were wanted."""
    wanted = [*ALWAYS, *(PEERS if peers is None else [BY_NAME[name] for name in _names(peers)])]
    taking_part = []
    skipped = {}
    for contender in wanted:
        reason = question.exclude.get(contender.name) or _why_not_importable(contender.module)
        if reason is None:
            taking_part.append(contender)
        else:
            skipped[contender.name] = reason
            _say(f"skipped {contender.name}: {reason}")
    return taking_part, skipped


def _why_not_importable(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module)
    except ImportError as error:
        return str(error)
    return None if found else f"No module named {module!r}"


def _play(
    question: Question, taking_part: list[type[Contender]], parameters: dict[str, Any], rounds: int
) -> tuple[dict[str, list[dict[str, float]]], dict[str, str], list[float]]:
    """Play all rounds; who fails is out.

    Returns:
        ({name: figures by round}, {name: how it failed}, share of the machine others used before each turn).
    """
    turns: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in taking_part}
    failed: dict[str, str] = {}
    busy: list[float] = []
    for number in range(rounds):
        shift = number % max(1, len(taking_part))
        for contender in taking_part[shift:] + taking_part[:shift]:
            name = contender.name
            if name in failed:
                continue
            busy.append(busy_share(BUSY_SAMPLE_S))
            _say(f"{question.name}: round {number + 1} of {rounds}: {name}")
            answer = take_turn(question.function, name, parameters)
            if "figures" in answer:
                turns[name].append(answer["figures"])
            else:
                failed[name] = answer["error"]
                del turns[name]
                _say(f"failed {name}: {answer['error']}")
    return turns, failed, busy


def take_turn(function: str, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run one measurement in a driver process of its own, and see that no process and no file survives it.

    Returns:
        {"figures": {name: number}}, or {"error": text}.
    """
    reader, writer = os.pipe()
    with (
        tempfile.TemporaryDirectory(prefix="perf-", ignore_cleanup_errors=True) as scratch,
        tempfile.TemporaryFile() as output,
    ):
        order = {
            "module": pathlib.Path(sys.argv[0]).stem,
            "function": function,
            "contender": name,
            "parameters": parameters,
            "scratch": scratch,
            "pipe": writer,
        }
        driver = subprocess.Popen(
            [sys.executable, str(HERE / "driver.py"), json.dumps(order)],
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
        )
        os.close(writer)
        try:
            driver.wait(TURN_S_MAX)
            end = f"the driver ended with status {driver.returncode}"
        except subprocess.TimeoutExpired:
            end = f"the turn took more than {TURN_S_MAX:g} s"
        finally:
            driver.kill()
            driver.wait()
            killed = end_descendants(EXIT_GRACE_S)
        answer = _read_answer(reader) or {"error": f"{end}: {_tail(output)}"}
    if killed:
        _say(f"{name} left {killed} processes behind; they were killed")
        if "figures" in answer:
            answer["figures"]["left_behind"] = killed
    return answer


def _environment() -> dict[str, str]:
    """Return a contender's variables: it finds what is here, and compiles a module once, as where people work."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": path}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    return variables


def _read_answer(reader: int) -> dict[str, Any] | None:
    """Return what is in the pipe; forked workers inherit its other end, so that waiting for the end says nothing."""
    os.set_blocking(reader, False)
    try:
        text = os.read(reader, 1 << 16)
    except BlockingIOError:
        text = b""
    os.close(reader)
    return json.loads(text) if text else None


def _tail(output: Any) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").split("\n")
    return " / ".join(line for line in lines if line)[-ERROR_TEXT_MAX:]


def quantile(values: Iterable[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie, between neighbours linearly."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Return median, quartiles, p99, least, most and all values, in the order of the rounds."""
    return {
        "median": quantile(values, 0.5),
        "q1": quantile(values, 0.25),
        "q3": quantile(values, 0.75),
        "p99": quantile(values, 0.99),
        "min": min(values),
        "max": max(values),
        "rounds": list(values),
    }


def _summarise_all(turns: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    names = dict.fromkeys(name for turn in turns for name in turn)
    return {name: summarise([turn[name] for turn in turns if name in turn]) for name in names}


def render(columns: Sequence[Column], turns: dict[str, list[dict[str, float]]]) -> str:
    """Return the Markdown table: a line a contender."""
    lines = [["", *(column.title for column in columns)]]
    lines += [[name, *(_cell(column, turns, name) for column in columns)] for name in turns]
    widths = [max(len(line[number]) for line in lines) for number in range(len(lines[0]))]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    rows = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(column: Column, turns: dict[str, list[dict[str, float]]], name: str) -> str:
    key = column.figure
    mine = [turn.get(key) for turn in turns[name]]
    if column.against is None:
        values = [value * column.scale for value in mine if value is not None]
    else:
        # Whoever has not failed has a turn in every round, so that turns of the same index belong together.
        theirs = [turn.get(key) for turn in turns.get(column.against, [])]
        values = [own / other for own, other in zip(mine, theirs, strict=False) if own is not None and other]
    if not values:
        return "-"
    unit = " x" if column.against else ""
    text = f"{quantile(values, 0.5):,.{column.digits}f}{unit}"
    if column.spread and len(values) > 1:
        text += f" ({quantile(values, 0.25):,.{column.digits}f}-{quantile(values, 0.75):,.{column.digits}f})"
    return text


def describe(result: dict[str, Any]) -> str:
    """Return the lines below a table: where it comes from, and who is missing."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"`{result['command']}`: median of {result['rounds']} rounds (quartiles), {result['workers']} workers. "
        f"{machine['date']}, {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"Python {machine['python']}; {versions}."
    ]
    busy = result["others_busy"]
    if busy["q3"] > BUSY_SHARE:
        lines.append(
            f"Disturbed: just before a turn, others used {busy['median']:.0%} of the machine "
            f"(median; quartiles {busy['q1']:.0%}-{busy['q3']:.0%})."
        )
    lines += [f"Skipped: {name}: {reason}." for name, reason in result["skipped"].items()]
    lines += [f"Failed: {name}: {reason[:ERROR_TEXT_MAX]}" for name, reason in result["failed"].items()]
    return "\n".join(lines)


def describe_machine(taking_part: Iterable[type[Contender]]) -> dict[str, Any]:
    """Return what a reader needs to judge a figure: processor, cores, kernel, versions, date."""
    return {
        "cpu": _first_line_value("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {c.package: importlib.metadata.version(c.package) for c in taking_part if c.package},
        "zmesh_commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _first_line_value(path: str, key: str) -> str | None:
    for line in pathlib.Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _commit() -> str | None:
    """Return the commit measured, marked if there are changes; None outside a checkout."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or None
