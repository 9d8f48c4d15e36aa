"""The bytes of batches and segment headers: golden, and damaged in every way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.fastlog import ENTRY_NORMAL, Log, encode_entries
from smtpraft.storage import HardState
from smtpraft.storage.batch import (
    BATCH_HEADER_BYTES,
    BatchHeader,
    batch_size_bytes,
    decode_header,
    encode_header,
    survey,
)
from smtpraft.storage.segment import (
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    decode_segment_header,
    encode_segment_header,
    parse_segment_name,
    segment_name,
)

DATA = Path(__file__).parents[1] / "data"
U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
NODE = st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=64)
HARD_STATES = st.builds(HardState, U64, NODE, U64)
BATCHES = st.builds(BatchHeader, U64, U64, U64, U64, U64, U64, U32, U32, U32, HARD_STATES)
SEGMENTS = st.builds(
    SegmentHeader, st.binary(min_size=16, max_size=16), NODE, U64, U64, U64, U64, U32, U64, U64, U64, HARD_STATES
)


def golden(name: str) -> list[list[str]]:
    lines = (DATA / name).read_text().splitlines()
    return [["" if part == "-" else part for part in line.split()] for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("line", golden("wal_batch_v1.txt"))
def test_batches_are_the_golden_ones(line: list[str]) -> None:
    salt, number, durable, floor, previous_crc, term, commit = (int(part) for part in line[:7])
    entries, batch = bytes.fromhex(line[8]), bytes.fromhex(line[9])
    found = survey([entries]) if entries else None
    header = BatchHeader(
        salt,
        number,
        durable,
        found.first_index if found else 0,
        found.last_index if found else 0,
        floor,
        len(entries),
        found.entries_crc if found else 0,
        previous_crc,
        HardState(term, line[7], commit),
    )
    encoded, crc = encode_header(header)
    assert encoded + entries == batch
    assert decode_header(batch) == header._replace(crc=crc)


@pytest.mark.parametrize("line", golden("wal_segment_v1.txt"))
def test_segment_headers_are_the_golden_ones(line: list[str]) -> None:
    cluster_id, node_id, *numbers, vote, encoded = line
    sequence, salt, floor, first_batch, previous_crc, size_bytes, prev_index, prev_term, term, commit = map(
        int, numbers
    )
    header = SegmentHeader(
        bytes.fromhex(cluster_id),
        node_id,
        sequence,
        salt,
        floor,
        first_batch,
        previous_crc,
        size_bytes,
        prev_index,
        prev_term,
        HardState(term, vote, commit),
    )
    block = bytes.fromhex(encoded).ljust(SEGMENT_HEADER_BYTES, b"\0")
    assert encode_segment_header(header) == block
    assert decode_segment_header(block) == header


@given(BATCHES)
def test_a_batch_header_survives_the_way_there_and_back(header: BatchHeader) -> None:
    encoded, crc = encode_header(header)
    assert len(encoded) == BATCH_HEADER_BYTES
    assert decode_header(encoded) == header._replace(crc=crc)


@given(SEGMENTS)
def test_a_segment_header_survives_the_way_there_and_back(header: SegmentHeader) -> None:
    assert decode_segment_header(encode_segment_header(header)) == header


@given(BATCHES, st.integers(0, BATCH_HEADER_BYTES * 8 - 1))
def test_one_wrong_bit_and_a_batch_header_is_none(header: BatchHeader, bit: int) -> None:
    encoded = bytearray(encode_header(header)[0])
    encoded[bit // 8] ^= 1 << bit % 8
    assert decode_header(encoded) is None


@given(SEGMENTS, st.integers(0, SEGMENT_HEADER_BYTES * 8 - 1))
def test_one_wrong_bit_and_a_segment_header_is_none(header: SegmentHeader, bit: int) -> None:
    encoded = bytearray(encode_segment_header(header))
    encoded[bit // 8] ^= 1 << bit % 8
    assert decode_segment_header(bytes(encoded)) is None


@given(st.binary(max_size=300))
def test_noise_is_no_header(noise: bytes) -> None:
    assert decode_header(noise) is None
    assert decode_segment_header(noise) is None


def test_a_newer_segment_is_told_from_a_damaged_one() -> None:
    header = SegmentHeader(bytes(16), "node-1", 1, 2, 1, 1, 0, 65536, 0, 0, HardState(), version=2)
    found = decode_segment_header(encode_segment_header(header))
    assert found is not None
    assert found.version == 2


def test_what_does_not_fit_is_refused() -> None:
    header = BatchHeader(1, 1, 0, 0, 0, 1, 0, 0, 0, HardState(1, "n" * 65))
    with pytest.raises(ValueError, match="longer than 64"):
        encode_header(header)
    segment = SegmentHeader(bytes(15), "node-1", 1, 2, 1, 1, 0, 65536, 0, 0, HardState())
    with pytest.raises(ValueError, match="16 bytes"):
        encode_segment_header(segment)
    with pytest.raises(ValueError, match="at most 64"):
        encode_segment_header(replace(segment, cluster_id=bytes(16), node_id="n" * 65))


def test_batches_are_whole_pages() -> None:
    assert [batch_size_bytes(size) for size in (0, 4096 - 152, 4096 - 151, 10000)] == [4096, 4096, 8192, 12288]


def test_segment_names_sort_by_sequence() -> None:
    names = [segment_name(sequence, 1) for sequence in (1, 2, 15, 16, 2**40)]
    assert names == sorted(names)
    assert parse_segment_name(segment_name(26, 2**63)) == (26, 2**63)
    for name in ("identity.json", "0000000000000001.spare", segment_name(1, 1) + ".tmp", segment_name(1, 1).upper()):
        assert parse_segment_name(name) is None


def block_of(*sizes: int, first: int = 1, term: int = 1) -> bytes:
    return encode_entries(term, first, 0, ENTRY_NORMAL, [bytes(size) for size in sizes])


def test_a_survey_finds_every_record_however_the_spans_are_cut() -> None:
    log = Log(4, 2)
    log.append(3, 0, ENTRY_NORMAL, [b"a", b"bc"])
    log.append(5, 0, ENTRY_NORMAL, [b"def"])
    whole = b"".join(log.spans(5, 7))
    found = survey([whole])
    assert found is not None
    assert (found.first_index, found.last_index, found.last_term, found.entries_bytes) == (5, 7, 5, len(whole))
    assert list(found.ends) == [37, 75, 114]
    assert survey(log.spans(5, 7)) == found
    assert survey([whole[:37], b"", memoryview(whole)[37:]]) == found


@pytest.mark.parametrize(
    "spans",
    [
        [],
        [b""],
        [b"short"],
        [block_of(1, 2)[:-1]],
        [block_of(1), block_of(1, first=3)],
        [block_of(1), block_of(1)],
        [block_of(5)[:20], block_of(5)[20:]],
        [bytes(100)],
    ],
)
def test_a_survey_of_anything_else_finds_nothing(spans: list[bytes]) -> None:
    assert survey(spans) is None
