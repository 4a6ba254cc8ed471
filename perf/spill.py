"""What does work larger than the store cost, beside plain files of the same bytes?

Puts three times the store in arrays of 8 MB and gets them back, each once, and writes and reads the same bytes with
plain files in the same directory. Megabytes a second, the median of the rounds. Page cache included in both: what is
measured is what a program sees, not the disk.

    python perf/spill.py [--store-mb 512] [--rounds 5] [--directory DIR] [--compression lz4]
"""

import argparse
import os
import statistics
import tempfile
from time import perf_counter

import numpy

import zmesh

ARRAY_BYTES = 8_000_000
SHARE = 3  # of the store


def through_the_store(store_bytes: int, directory: str, compression: str) -> tuple[float, float]:
    """Return seconds for the puts and for the gets."""
    count = SHARE * store_bytes // ARRAY_BYTES
    source = numpy.random.default_rng(1).integers(0, 1 << 62, ARRAY_BYTES // 8)
    with zmesh.init("local", object_store_memory=store_bytes, spill_directory=directory, spill_compression=compression):
        begun = perf_counter()
        refs = []
        for number in range(count):
            source[0] = number
            refs.append(zmesh.put(source))
        middle = perf_counter()
        for number, ref in enumerate(refs):
            assert zmesh.get(ref).sum() - number == source[1:].sum()
        end = perf_counter()
    return middle - begun, end - middle


def through_files(store_bytes: int, directory: str) -> tuple[float, float]:
    """Return seconds for the same with a plain file each."""
    count = SHARE * store_bytes // ARRAY_BYTES
    source = numpy.random.default_rng(1).integers(0, 1 << 62, ARRAY_BYTES // 8)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        begun = perf_counter()
        for number in range(count):
            source[0] = number
            with open(f"{folder}/{number}", "wb") as file:
                file.write(source.data)
        middle = perf_counter()
        for number in range(count):
            with open(f"{folder}/{number}", "rb") as file:
                values = numpy.frombuffer(file.read(), numpy.int64)
            assert values.sum() - number == source[1:].sum()
        end = perf_counter()
    return middle - begun, end - middle


def main() -> None:
    """Measure in turn, so that both see the same disk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--store-mb", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default=os.path.expanduser("~"))
    parser.add_argument("--compression", choices=["none", "lz4"], default="none")
    given = parser.parse_args()
    store_bytes = given.store_mb << 20
    megabytes = SHARE * store_bytes // ARRAY_BYTES * ARRAY_BYTES / 1e6
    found = []
    for _ in range(given.rounds):
        plain = through_files(store_bytes, given.directory)
        found.append((*through_the_store(store_bytes, given.directory, given.compression), *plain))
    put, get, write, read = (megabytes / statistics.median(times) for times in zip(*found, strict=True))
    print(f"{megabytes:,.0f} MB through a store of {store_bytes / 1e6:,.0f} MB, median of {given.rounds} rounds, MB/s")
    print(f"put {put:,.0f}   write a file {write:,.0f}")
    print(f"get {get:,.0f}   read a file  {read:,.0f}")


if __name__ == "__main__":
    main()
