"""Filter a stack of images in the frequency domain: large arrays to and from tasks through shared memory.

Shows: the stack is put once, each task is handed its ref and a number and sees all of it, read-only and without a
copy; the filtered images come back as arrays. The images are a synthetic interference pattern with grain.
"""

import argparse
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import zmesh

CUTOFF = 0.08  # cycles a pixel: the fringes lie below, most of the grain above


def make_stack(images: int, side: int) -> Any:
    """Return (images, side, side) float64: two point sources, whose phase moves on from image to image, and grain."""
    rng = np.random.default_rng(20)
    y, x = np.mgrid[0:side, 0:side] / side
    near, far = np.hypot(x - 0.3, y - 0.4), np.hypot(x - 0.7, y - 0.6)
    wave_number = 2 * np.pi * side / 40
    stack = np.empty((images, side, side))
    for index in range(images):
        phase = 2 * np.pi * index / images
        amplitude = np.cos(wave_number * near - phase) / (1 + 4 * near) + np.cos(wave_number * far) / (1 + 4 * far)
        stack[index] = amplitude**2 + rng.normal(0.0, 0.3, (side, side))
    return stack


def filter_image(image: Any) -> Any:
    """Return the image without what varies faster than CUTOFF, with a soft edge: (side, side) float64."""
    side = len(image)
    # Mirrored, the image goes on smoothly where it ends; else each edge would bleed into the opposite one.
    mirrored = np.pad(image, ((0, side), (0, side)), mode="symmetric")
    frequency = np.hypot(np.fft.fftfreq(2 * side)[:, None], np.fft.rfftfreq(2 * side)[None, :])
    spectrum = np.fft.rfft2(mirrored) / (1 + (frequency / CUTOFF) ** 8)
    return np.fft.irfft2(spectrum, s=mirrored.shape)[:side, :side].copy()


@zmesh.remote
def low_pass(stack: Any, index: int) -> Any:
    """Filter one image of the stack in a worker."""
    return filter_image(stack[index])


@zmesh.remote
def inspect(stack: Any) -> tuple[bool, bool]:
    """Return whether a task may write to the stack, and whether it lies in memory shared between processes."""
    address = stack.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split(maxsplit=5)
        begin, end = (int(word, 16) for word in span.split("-"))
        if begin <= address < end:
            return stack.flags.writeable, inode != "0"  # only pages of a file have an inode, the heap has none
    raise LookupError(f"process {os.getpid()} has no memory at {address:#x}")


def main() -> None:
    """Filter twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="images in the stack (default: %(default)s)")
    parser.add_argument("--side", type=int, default=1024, help="pixels along an edge (default: %(default)s)")
    given = parser.parse_args()
    stack = make_stack(given.images, given.side)
    print(f"{given.images} images of {given.side} x {given.side}, {stack.nbytes / 1e6:.0f} MB")

    started = perf_counter()
    expected = [filter_image(image) for image in stack]
    single_s = perf_counter() - started

    zmesh.init()
    zmesh.get([low_pass.remote(stack[:1, :64, :64], 0) for _ in range(8)])  # the workers are up and have numpy
    started = perf_counter()
    stack_ref = zmesh.put(stack)
    filtered = zmesh.get([low_pass.remote(stack_ref, index) for index in range(given.images)])
    mesh_s = perf_counter() - started
    writeable, shared = zmesh.get(inspect.remote(stack_ref))

    print(f"in a task the stack is {'writeable' if writeable else 'read-only'}, {'shared' if shared else 'a copy'}")
    print(f"one process {single_s:.2f} s, mesh {mesh_s:.2f} s: {single_s / mesh_s:.2f} times as fast")
    if not all(np.array_equal(ours, theirs) for ours, theirs in zip(filtered, expected, strict=True)):
        sys.exit("the mesh filtered differently")
    if writeable or not shared:
        sys.exit("the stack should have arrived read-only and without a copy")
    print(f"same answer: grain down from {stack.std():.3f} to {np.std(filtered):.3f}")
    zmesh.shutdown()


if __name__ == "__main__":
    main()
