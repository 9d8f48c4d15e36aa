"""`python -m benches.direct DIRECTORY`: three ways to make a batch durable in a segment that was filled before.

    fdatasync   pwrite, then fdatasync: what the log does
    rwf-dsync   pwritev2 with RWF_DSYNC: one call for both
    direct      pwrite to a file opened with O_DIRECT and O_DSYNC, from an aligned buffer: past the page cache

A way and a size have a segment of their own; the ways take turns every few batches, so that whatever else the disk does
meets all of them. Medians of a round, and of how many rounds a way took at least 15 % less than the first.

Not shown: a disk with another cache or firmware, and whether it keeps what it said it had written.
"""

from __future__ import annotations

import argparse
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

from smtpraft.cli.output import print_rows

SIZES: Final = (4096, 16384, 65536, 262_144)
SEGMENT_BYTES: Final = 16 * 1024 * 1024
TURN: Final = 10  # batches of one way, then of the next
CLEARLY: Final = 0.85  # of the time of the first way

Write = Callable[[int, int], None]
"""Make `size` bytes at an offset durable."""


def ways(path: Path, buffer: mmap.mmap) -> dict[str, Write]:
    """Return the ways, each with its own segment beside `path`; `buffer` is aligned to pages."""
    view = memoryview(buffer)

    def opened(name: str, flags: int) -> int:
        own = path.with_name(f"{path.name}-{name}")
        fd = os.open(own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(SEGMENT_BYTES // len(buffer)):
            os.write(fd, bytes(len(buffer)))
        os.fsync(fd)
        os.close(fd)
        return os.open(own, os.O_RDWR | os.O_CLOEXEC | flags)

    synced, one_call, direct = opened("synced", 0), opened("one", 0), opened("direct", os.O_DIRECT | os.O_DSYNC)

    def with_fdatasync(size: int, offset: int) -> None:
        os.pwrite(synced, view[:size], offset)
        os.fdatasync(synced)

    def with_flag(size: int, offset: int) -> None:
        os.pwritev(one_call, [view[:size]], offset, os.RWF_DSYNC)

    def past_the_cache(size: int, offset: int) -> None:
        os.pwrite(direct, view[:size], offset)

    return {"fdatasync": with_fdatasync, "rwf-dsync": with_flag, "direct": past_the_cache}


def measure(directory: Path, seconds: float, rounds: int) -> list[tuple[str, ...]]:
    """Return a row for each size: KB, µs of the first way, ratio and clear wins of each other way."""
    rows = []
    buffer = mmap.mmap(-1, max(SIZES))
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        for size in SIZES:
            buffer[:] = os.urandom(len(buffer))
            writes = ways(Path(scratch, str(size)), buffer)
            medians: dict[str, list[float]] = {name: [] for name in writes}
            for _ in range(rounds):
                for name, taken in one_round(writes, size, seconds / rounds / len(SIZES)).items():
                    medians[name].append(median(taken))
            first, *others = medians
            base = medians[first]
            row = [str(size // 1024), f"{median(base) * 1e6:.0f}"]
            for name in others:
                ratios = [own / its for own, its in zip(medians[name], base, strict=True)]
                row += [f"{median(ratios):.2f}", f"{sum(ratio < CLEARLY for ratio in ratios)}/{rounds}"]
            rows.append(tuple(row))
    return rows


def one_round(writes: dict[str, Write], size: int, seconds: float) -> dict[str, list[float]]:
    """Return seconds of each batch by way."""
    taken: dict[str, list[float]] = {name: [] for name in writes}
    offset, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name, write in writes.items():
            for number in range(TURN):
                at = (offset + number * size) % SEGMENT_BYTES
                began = time.perf_counter()
                write(size, at)
                taken[name].append(time.perf_counter() - began)
        offset += TURN * size
    return taken


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benches.direct", description="How a batch is made durable.")
    parser.add_argument("directory", type=Path, help="where the log would be")
    parser.add_argument("--seconds", type=float, default=40.0, help="altogether")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    try:
        rows = measure(arguments.directory, arguments.seconds, arguments.rounds)
    except OSError as error:
        print(
            f"cannot measure in {arguments.directory}: {error} (does its file system know O_DIRECT?)", file=sys.stderr
        )
        return 1
    columns = ("BATCH KB", "FDATASYNC µs", "RWF_DSYNC ÷", "CLEARLY LESS", "DIRECT ÷", "CLEARLY LESS")
    print_rows(columns, rows, "simple")
    return 0


if __name__ == "__main__":
    sys.exit(main())
