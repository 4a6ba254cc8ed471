"""Estimate pi by throwing darts, with a progress bar that moves as results come in.

Shows: randomness that does not depend on which worker ran what (a seed for each task), so that the mesh finds exactly
the hits one process finds; `as_completed` under a tqdm bar. Without tqdm it prints lines instead.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from math import pi
from time import perf_counter
from typing import Any

import numpy as np

import zmesh

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

BATCH = 250_000  # darts at a time: two arrays of 2 MB, which stay in the cache of a core


def throw_darts(seed: int, darts: int) -> int:
    """Return how many of some darts thrown at the unit square hit the quarter circle in it."""
    rng = np.random.default_rng(seed)
    hits = 0
    while darts > 0:
        x, y = rng.random((2, min(BATCH, darts)))
        hits += int(np.count_nonzero(x * x + y * y <= 1.0))
        darts -= BATCH
    return hits


@zmesh.remote
def throw(seed: int, darts: int) -> int:
    """Throw in a worker."""
    return throw_darts(seed, darts)


def show_progress(items: Iterable[Any], total: int) -> Iterator[Any]:
    """Yield the items, and show how many came: as a bar, or a line for each tenth."""
    if tqdm is not None:
        yield from tqdm(items, total=total, unit="task")
        return
    for number, item in enumerate(items, 1):
        if number * 10 // total > (number - 1) * 10 // total:
            print(f"{number} of {total} tasks")
        yield item


def main() -> None:
    """Estimate twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=60, help="how many tasks (default: %(default)s)")
    parser.add_argument("--darts", type=int, default=2_000_000, help="darts in each (default: %(default)s)")
    given = parser.parse_args()

    started = perf_counter()
    expected = sum(throw_darts(seed, given.darts) for seed in range(given.tasks))
    single_s = perf_counter() - started

    zmesh.init()
    zmesh.get([throw.remote(seed, 1) for seed in range(8)])  # the workers are up and have numpy
    started = perf_counter()
    refs = [throw.remote(seed, given.darts) for seed in range(given.tasks)]
    hits = 0
    for ref in show_progress(zmesh.as_completed(refs), len(refs)):
        hits += zmesh.get(ref)
    mesh_s = perf_counter() - started
    zmesh.shutdown()

    darts = given.tasks * given.darts
    estimate = 4 * hits / darts
    print(f"pi is about {estimate:.6f} after {darts:,} darts, {abs(estimate - pi):.6f} off")
    print(f"one process {single_s:.2f} s, mesh {mesh_s:.2f} s: {single_s / mesh_s:.2f} times as fast")
    if hits != expected:
        sys.exit(f"the mesh counted {hits:,} hits, one process {expected:,}")
    print(f"same answer: {hits:,} hits")


if __name__ == "__main__":
    main()
