"""Count the words of many files in parallel: here the identifiers in the sources of Python's standard library.

Shows: tasks over chunks of a list, results merged in the order in which they are ready, the same answer as in one
process. Run it as `python wordcount.py`, or with `--files 500` for a part of the library.
"""

import argparse
import re
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from time import perf_counter

import zmesh

FILES_A_TASK = 100  # merging costs as much for a task of few files as for one of many, so rather few tasks
IDENTIFIER = re.compile(r"[^\W\d]\w*")


def find_sources(files_max: int) -> list[Path]:
    """Return the source files of the standard library, in a fixed order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts and path.is_file())
    return paths[:files_max]


def count_identifiers(paths: list[Path]) -> Counter[str]:
    """Return how often each identifier occurs in some files."""
    counts: Counter[str] = Counter()
    for path in paths:
        counts.update(IDENTIFIER.findall(path.read_text(encoding="utf-8", errors="replace")))
    return counts


@zmesh.remote
def count(paths: list[Path]) -> Counter[str]:
    """Count in a worker."""
    return count_identifiers(paths)


def count_in_parallel(paths: list[Path]) -> Counter[str]:
    """Send out chunks of files and add up the counts as they come in."""
    chunks = [paths[start : start + FILES_A_TASK] for start in range(0, len(paths), FILES_A_TASK)]
    total: Counter[str] = Counter()
    for ref in zmesh.as_completed([count.remote(chunk) for chunk in chunks]):
        total.update(zmesh.get(ref))
    return total


def main() -> None:
    """Count twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000, help="how many files at most (default: %(default)s)")
    paths = find_sources(parser.parse_args().files)
    size = sum(len(path.read_bytes()) for path in paths)  # also brings them into memory, for both counts alike
    print(f"{len(paths)} files, {size / 1e6:.1f} MB")

    started = perf_counter()
    expected = count_identifiers(paths)
    single_s = perf_counter() - started

    zmesh.init()
    zmesh.get(count.remote([]))  # the workers are up
    started = perf_counter()
    counts = count_in_parallel(paths)
    mesh_s = perf_counter() - started
    zmesh.shutdown()

    for word, times in counts.most_common(10):
        print(f"{times:9,}  {word}")
    print(f"one process {single_s:.2f} s, mesh {mesh_s:.2f} s: {single_s / mesh_s:.2f} times as fast")
    if counts != expected:
        sys.exit("the mesh counted differently")
    print(f"same answer: {counts.total():,} identifiers, {len(counts):,} different")


if __name__ == "__main__":
    main()
