"""The hot paths, both halves side by side: `make bench`. Read the ratios; absolute times are this machine's.

Not shown: the cost of a cold cache (the same bytes are used again in every round) and of the event loop around it.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

BATCH: Final = 100
SIZES: Final = (64, 256, 4096, 65536)


@pytest.fixture(params=["_purelog", "_fastlog"], ids=["plain", "compiled"])
def half(request: pytest.FixtureRequest) -> ModuleType:
    name = f"smtpraft.{request.param}"
    if find_spec(name) is None:
        pytest.skip("the compiled half is not built")
    return import_module(name)


def payloads(size: int, count: int = BATCH) -> list[bytes]:
    return [bytes((number + position) & 0xFF for position in range(size)) for number in range(count)]


def grouped(benchmark: BenchmarkFixture, question: str) -> BenchmarkFixture:
    benchmark.group = question
    return benchmark


def follower(half: ModuleType, size: int) -> tuple[Any, bytes]:
    """Return a log of some length and the block that comes next."""
    log = half.Log()
    for _ in range(10):
        log.append(1, 0, 0, payloads(64))
    block = half.encode_entries(1, log.last_index + 1, 0, 0, payloads(size))
    return log, block


@pytest.mark.parametrize("size", SIZES)
def bench_checksum(benchmark: BenchmarkFixture, half: ModuleType, size: int) -> None:
    [data] = payloads(size, 1)
    crc = grouped(benchmark, f"CRC-32C of {size} bytes")(half.crc32c, data)
    assert half.crc32c(data[5:], half.crc32c(data[:5])) == crc


@pytest.mark.parametrize("size", SIZES)
def bench_leader_appends_a_batch(benchmark: BenchmarkFixture, half: ModuleType, size: int) -> None:
    batch = payloads(size)

    def append() -> bytes:
        block: bytes = half.Log().append(1, 7, 0, batch)
        return block

    block = grouped(benchmark, f"leader: append {BATCH} entries of {size} bytes")(append)
    assert half.block_range(block) == (1, 1, BATCH, 1)


def bench_leader_appends_one_to_a_long_log(benchmark: BenchmarkFixture, half: ModuleType) -> None:
    """Without the making of a log; its bytes are forgotten as they come."""
    [payload] = payloads(64, 1)
    log = half.Log()

    def append() -> None:
        log.append(1, 7, 0, [payload])
        log.evict(0)

    grouped(benchmark, "leader: append 1 entry of 64 bytes to a long log")(append)
    assert log.last_index > 0


def bench_entries_are_encoded(benchmark: BenchmarkFixture, half: ModuleType) -> None:
    batch = payloads(256)
    block = grouped(benchmark, f"encode {BATCH} entries of 256 bytes")(half.encode_entries, 1, 1, 0, 0, batch)
    assert half.block_range(block) == (1, 1, BATCH, 1)


def bench_leader_appends_one(benchmark: BenchmarkFixture, half: ModuleType) -> None:
    batch = payloads(4096, 1)

    def append() -> bytes:
        block: bytes = half.Log().append(1, 7, 0, batch)
        return block

    block = grouped(benchmark, "leader: append 1 entry of 4096 bytes to a new log")(append)
    assert half.block_range(block) == (1, 1, 1, 1)


@pytest.mark.parametrize("size", SIZES)
def bench_follower_takes_a_block(benchmark: BenchmarkFixture, half: ModuleType, size: int) -> None:
    """`match` and `append_block`, as for every AppendEntries; `truncate` to be where we were."""
    log, block = follower(half, size)
    first, last = log.last_index + 1, log.last_index + BATCH

    def take() -> None:
        assert log.match(block) == (first, last)
        log.append_block(block)
        log.truncate(first)

    grouped(benchmark, f"follower: match and append {BATCH} entries of {size} bytes")(take)
    assert log.last_index == first - 1


@pytest.mark.parametrize("size", [256, 4096])
def bench_entries_are_decoded(benchmark: BenchmarkFixture, half: ModuleType, size: int) -> None:
    log, block = follower(half, size)
    log.append_block(block)
    first, last = log.last_index - BATCH + 1, log.last_index
    entries = grouped(benchmark, f"apply: decode {BATCH} entries of {size} bytes")(log.entries, first, last)
    assert [entry[4] for entry in entries] == payloads(size)


def bench_spans(benchmark: BenchmarkFixture, half: ModuleType) -> None:
    log, block = follower(half, 4096)
    log.append_block(block)
    spans = grouped(benchmark, "spans of 250 entries in 3 blocks")(log.spans, 850, 1099)
    assert len(spans) == 3


def bench_terms(benchmark: BenchmarkFixture, half: ModuleType) -> None:
    log, _ = follower(half, 64)

    def ask() -> int:
        return sum(log.term(index) for index in range(500, 600))

    assert grouped(benchmark, "the terms of 100 entries")(ask) == 100


def bench_size_limit(benchmark: BenchmarkFixture, half: ModuleType) -> None:
    log, _ = follower(half, 64)
    last = grouped(benchmark, "how many of 1000 entries fit in 50 kB")(log.upto_bytes, 1, 1000, 50_000)
    assert last == 500


def bench_heartbeat_encode(benchmark: BenchmarkFixture, half: ModuleType) -> None:
    fields = (3, 1_000_000, 77, 999_000, 12345, 1_000_000, 999_999, 2**63, 10**12)
    frame = grouped(benchmark, "heartbeat: encode")(half.encode_heartbeat, *fields)
    assert half.decode_heartbeat(frame[12:]) == fields


def bench_heartbeat_decode(benchmark: BenchmarkFixture, half: ModuleType) -> None:
    fields = (3, 1_000_000, 77, 999_000, 12345, 1_000_000, 999_999, 2**63, 10**12)
    head = half.encode_heartbeat(*fields)[12:]
    assert grouped(benchmark, "heartbeat: decode")(half.decode_heartbeat, head) == fields


def cut(data: bytes, size: int) -> Iterable[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("tail_bytes", [400_000])
def bench_frame_of_a_batch(benchmark: BenchmarkFixture, half: ModuleType, tail_bytes: int) -> None:
    """A frame of 100 mails arrives in the pieces in which uvloop reads."""
    tail = bytes(tail_bytes)
    pieces = list(cut(half.encode_frame(16, bytes(64), len(tail)) + tail, 256 * 1024))

    def feed() -> list[tuple[int, bytes, bytes]]:
        decoder = half.FrameDecoder(1 << 24)
        frames = []
        for piece in pieces:
            frames += decoder.feed(piece)
        return frames

    assert grouped(benchmark, f"frame: decode one with {tail_bytes} bytes")(feed) == [(16, bytes(64), tail)]


def bench_small_frames(benchmark: BenchmarkFixture, half: ModuleType) -> None:
    stream = half.encode_heartbeat_response(1, 2, 3, 4, 5, 6, 7, 8) * 50
    decoder = half.FrameDecoder(1 << 24)
    assert len(grouped(benchmark, "frame: decode 50 small ones")(decoder.feed, stream)) == 50


@pytest.mark.parametrize("voters", [3, 5, 7])
def bench_quorum(benchmark: BenchmarkFixture, half: ModuleType, voters: int) -> None:
    matched = [1_000_000 + 7 * voter % 5 for voter in range(voters)]
    index = grouped(benchmark, f"quorum of {voters}")(half.quorum_index, matched)
    assert index == sorted(matched)[voters // 2]
