"""`zmesh map`: a shell command for each input, on all CPUs, output whole and in constant memory.

Inputs are read as jobs are submitted, a few ahead; a job's output comes back through the mesh, or, above 1 MiB,
through a file in a directory of ours that is gone when we are. Ctrl-C or a closed pipe ends every job.
"""

import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

import zmesh
from zmesh.exceptions import MeshError

FAILED_MAX = 101  # as GNU parallel: exit codes above 125 mean other things to shells
AHEAD = 2  # jobs submitted for each that can run, so that no CPU waits for us
OUTPUT_INLINE_BYTES_MAX = 1 << 20
COPY_BYTES = 1 << 20


class Outcome(NamedTuple):
    """How a job ended. `out` and `err` are its output, or the path of a file with it."""

    code: int
    out: bytes | str
    err: bytes | str


def run_job(command: str, spool: str, number: int) -> Outcome:
    """Run one shell command in a worker; its whole process group ends with the worker."""
    import subprocess
    import tempfile as temporary

    with temporary.TemporaryFile(dir=spool) as out, temporary.TemporaryFile(dir=spool) as err:
        process = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        return Outcome(code, _taken(out, spool, f"{number}.out"), _taken(err, spool, f"{number}.err"))


def _taken(file: Any, spool: str, name: str) -> bytes | str:
    """Return what a job wrote, or, if that is much, the path of a file with it."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    if length <= OUTPUT_INLINE_BYTES_MAX:
        data: bytes = file.read()
        return data
    path = os.path.join(spool, name)
    with open(path, "wb") as target:
        while block := file.read(COPY_BYTES):
            target.write(block)
    return path


def fill(template: str, argument: str, number: int) -> str:
    """Return the command for one argument."""
    path = PurePath(argument)
    values = {
        "{}": argument,
        "{.}": argument[: len(argument) - len(path.suffix)] if path.suffix else argument,
        "{/}": path.name,
        "{//}": str(path.parent),
        "{/.}": path.stem,
    }
    if "{#}" not in template and not any(mark in template for mark in values):
        return f"{template} {shlex.quote(argument)}"
    parts = _split(template, (*values, "{#}"))
    return "".join(
        str(number) if part == "{#}" else shlex.quote(values[part]) if part in values else part for part in parts
    )


def _split(template: str, marks: tuple[str, ...]) -> list[str]:
    """Cut a template at its marks, so that what an argument contains is never taken for a mark."""
    parts = [template]
    for mark in sorted(marks, key=len, reverse=True):
        cut: list[str] = []
        for part in parts:
            if part in marks:
                cut.append(part)
                continue
            pieces = part.split(mark)
            for piece in pieces[:-1]:
                cut += [piece, mark]
            cut.append(pieces[-1])
        parts = cut
    return parts


def arguments_of(words: tuple[str, ...]) -> tuple[str, Iterator[str]]:
    """Return the template and the inputs: what follows `:::`, else the lines of standard input."""
    if ":::" in words:
        at = words.index(":::")
        return " ".join(words[:at]), iter(words[at + 1 :])
    return " ".join(words), (line.rstrip("\n") for line in sys.stdin)


def run(words: tuple[str, ...], *, jobs: int | None, keep_order: bool, tag: bool) -> int:
    """Run all jobs; returns the exit code."""
    template, inputs = arguments_of(words)
    if not template:
        raise zmesh.exceptions.ConfigError("there is no command before ':::'")
    signal.signal(signal.SIGTERM, _interrupt)
    zmesh.init(log_to_driver=True)
    spool = tempfile.mkdtemp(prefix="zmesh-map-")
    try:
        return min(FAILED_MAX, _run_all(template, inputs, jobs, keep_order, tag, spool))
    except BrokenPipeError:
        # Nobody reads: end as `cat` would. The descriptor is replaced so that the interpreter's flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        zmesh.shutdown()  # ends what still runs
        _remove(spool)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _remove(spool: str) -> None:
    import shutil

    shutil.rmtree(spool, ignore_errors=True)


def _run_all(template: str, inputs: Iterable[str], jobs: int | None, keep_order: bool, tag: bool, spool: str) -> int:
    cpus = zmesh.cluster_resources().get("CPU", 0)
    # Rounded down to what the mesh counts in, or the last of the jobs would not fit.
    share = min(1.0, cpus) if jobs is None or jobs <= cpus else int(cpus / jobs * 10_000) / 10_000
    window = jobs if jobs is not None else max(2, int(AHEAD * cpus))
    function = zmesh.remote(run_job).options(num_cpus=share, max_retries=0, name="job")
    failed = 0
    under_way: dict[Any, tuple[int, str]] = {}  # {ref: (number, argument)}, in the order submitted
    numbered = enumerate(inputs, 1)
    exhausted = False
    while under_way or not exhausted:
        while not exhausted and len(under_way) < window:
            following = next(numbered, None)
            if following is None:
                exhausted = True
                break
            number, argument = following
            under_way[function.remote(fill(template, argument, number), spool, number)] = following
        if not under_way:
            break
        ref = next(iter(under_way)) if keep_order else zmesh.wait(list(under_way))[0][0]
        number, argument = under_way.pop(ref)
        failed += _show(ref, argument, tag)
    return failed


def _show(ref: Any, argument: str, tag: bool) -> int:
    """Write a job's output; returns 1 if it failed."""
    try:
        outcome = Outcome(*zmesh.get(ref))
    except MeshError as error:
        print(f"zmesh: job {argument!r}: {error}", file=sys.stderr)
        return 1
    prefix = f"{argument}\t".encode() if tag else b""
    _copy(outcome.out, sys.stdout.buffer, prefix)
    _copy(outcome.err, sys.stderr.buffer, prefix)
    return 1 if outcome.code else 0


def _copy(source: bytes | str, target: Any, prefix: bytes) -> None:
    if isinstance(source, bytes):
        if prefix:
            source = b"".join(prefix + line for line in source.splitlines(keepends=True))
        target.write(source)
    else:
        with open(source, "rb") as file:
            if prefix:
                for line in file:
                    target.write(prefix + line)
            else:
                while block := file.read(COPY_BYTES):
                    target.write(block)
        os.unlink(source)
    target.flush()
