"""The write-ahead log on this machine's disk, next to the least that any log must do there: `make bench`.

The floor for a durable batch is one write and one fdatasync into space that was filled before; the budget for all of
ours is far less than that. A file that grows is what a simple log does, and what zero-filled segments are to beat.

Not shown: a disk that others use too, a cold cache, whether this disk's fdatasync reaches the platter.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from smtpraft.fastlog import ENTRY_NORMAL, Log, encode_entries
from smtpraft.storage import HardState, RealDisk, Wal, WalWriter
from smtpraft.storage.disk import Buffer

SIZES: Final = (4 * 1024, 64 * 1024)
CLUSTER: Final = bytes(16)
SEGMENT_BYTES: Final = 16 * 1024 * 1024


def open_wal(directory: Path, log: Log, background: bool = True) -> Wal:
    wal, _ = Wal.open(
        RealDisk(),
        str(directory),
        cluster_id=CLUSTER,
        node_id="node-1",
        log=log,
        segment_bytes=SEGMENT_BYTES,
        background=background,
    )
    return wal


@pytest.fixture
def wal(tmp_path: Path) -> Iterator[Wal]:
    wal = open_wal(tmp_path / "wal", Log())
    yield wal
    wal.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("space", ["grows", "zeros"])
def bench_floor(benchmark: BenchmarkFixture, tmp_path: Path, space: str, size: int) -> None:
    """One pwrite and one fdatasync, nothing else."""
    benchmark.group = f"a durable batch of {size // 1024} KiB"
    disk = RealDisk()
    file = disk.create(f"{tmp_path}/floor")
    if space == "zeros":
        disk.allocate_zeroed(file, SEGMENT_BYTES)
    data = bytes(range(256)) * (size // 256)
    offsets = count(0, size)

    def write() -> None:
        offset = next(offsets)
        file.pwritev([data], offset % SEGMENT_BYTES if space == "zeros" else offset)
        file.sync()

    benchmark(write)
    file.close()


@pytest.mark.parametrize("size", SIZES)
def bench_write(benchmark: BenchmarkFixture, wal: Wal, size: int) -> None:
    """The same through the log: encoded entries of 4 KiB, hard state, header, index, rolls, compaction."""
    benchmark.group = f"a durable batch of {size // 1024} KiB"
    log = Log()

    def write() -> None:
        block = log.append(1, 0, ENTRY_NORMAL, [bytes(4096 - 36)] * (size // 4096))
        first = log.last_index - size // 4096 + 1
        wal.write([block], first, log.last_index, HardState(1, "node-1", first - 1))
        if wal.usage()[1] > 3 * SEGMENT_BYTES:
            wal.compact(first - 1)
            log.compact(first - 1)

    benchmark(write)
    assert wal.last_index == log.last_index
    benchmark.extra_info["rolls_without_spare"] = wal.stats.rolls_without_spare


@pytest.mark.parametrize("size", SIZES)
def bench_write_without_a_sync(benchmark: BenchmarkFixture, wal: Wal, size: int) -> None:
    """What a batch costs before its sync: the same write into the page cache. Nothing of it survives power loss."""
    benchmark.group = f"a batch of {size // 1024} KiB that is not synced"
    log = Log()

    def write() -> None:
        block = log.append(1, 0, ENTRY_NORMAL, [bytes(4096 - 36)] * (size // 4096))
        first = log.last_index - size // 4096 + 1
        wal.write([block], first, log.last_index, None, False)
        if wal.usage()[1] > 3 * SEGMENT_BYTES:
            wal.compact(first - 1)
            log.compact(first - 1)

    benchmark(write)
    assert wal.last_index == log.last_index


class NoFile:
    """Takes everything and keeps nothing."""

    path = "nowhere"

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("entries", [1, 16, 256])
def bench_write_without_a_disk(benchmark: BenchmarkFixture, tmp_path: Path, entries: int) -> None:
    """What is ours of a write."""
    benchmark.group = "a batch on a disk that takes no time"
    wal = open_wal(tmp_path / "wal", Log(), background=False)
    wal._segments[-1].file.close()
    wal._segments[-1].file = NoFile()  # type: ignore[assignment]
    blocks = [encode_entries(1, first, 0, ENTRY_NORMAL, [bytes(4060)] * entries) for first in (1, 1 + entries)]

    def write() -> None:
        wal.write([blocks[0]], 1, entries, HardState(1, "node-1", 0))
        wal.write([blocks[1]], entries + 1, 2 * entries, HardState(1, "node-1", 0))
        wal._segments[-1].end_offset = 4096

    benchmark(write)
    wal.close()


@pytest.mark.parametrize("waiting", [1, 10, 100])
def bench_group_commit(benchmark: BenchmarkFixture, wal: Wal, waiting: int) -> None:
    """So many messages of 4 KiB, each submitted by itself, until the last one is answered; the thread hops included."""
    benchmark.group = "messages of 4 KiB to the writer's thread and back"
    log = Log()
    last = threading.Event()
    writer = WalWriter(wal, deliver=lambda callback: callback(), on_failure=lambda error: None)

    def submit() -> None:
        last.clear()
        for number in range(waiting):
            block = memoryview(log.append(1, 0, ENTRY_NORMAL, [bytes(4060)]))
            done = last.set if number == waiting - 1 else last.clear
            writer.submit([block], log.last_index, log.last_index, None, True, done)
        assert last.wait(10)
        if wal.usage()[1] > 3 * SEGMENT_BYTES:
            wal.compact(log.last_index - 100)
            log.compact(log.last_index - 100)
            log.evict(0)

    benchmark(submit)
    writer.close()
    assert wal.last_index == log.last_index
    benchmark.extra_info["syncs"] = wal.stats.syncs


@pytest.mark.parametrize("mebibytes", [1, 60])
def bench_recovery(benchmark: BenchmarkFixture, tmp_path: Path, mebibytes: int) -> None:
    """Opening a log of 16 MiB segments with batches of 64 KiB; the last segment comes from the device."""
    benchmark.group = "opening a log"
    log = Log()
    wal = open_wal(tmp_path / "wal", log, background=False)
    for first in range(1, mebibytes * 256, 16):
        block = log.append(1, 0, ENTRY_NORMAL, [bytes(4060)] * 16)
        wal.write([block], first, first + 15, None, False)
    wal.close()

    def recover() -> int:
        found = Log()
        open_wal(tmp_path / "wal", found, background=False).close()
        return found.last_index

    assert benchmark(recover) == log.last_index


def bench_read(benchmark: BenchmarkFixture, wal: Wal) -> None:
    """Entries for a slow follower."""
    benchmark.group = "reading 1 MiB of entries back, verified"
    log = Log()
    for first in range(1, 512, 4):
        block = log.append(1, 0, ENTRY_NORMAL, [bytes(4060)] * 4)
        wal.write([block], first, first + 3, None, False)
    assert benchmark(wal.read, 100, 355, log) == b"".join(log.spans(100, 355))
