"""Checksum, entry records and the quorum tally, on both twins."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from smtpraft.cluster import envelope
from smtpraft.types import NodeId

DATA: Final = Path(__file__).parents[1] / "data"
HEADER: Final = 36
MIB: Final = 1024 * 1024


def golden_entries() -> list[tuple[tuple[int, int, int, int, bytes], bytes]]:
    """Return ((index, term, stamp, kind, payload), record) of each line of the golden file."""
    entries = []
    for line in (DATA / "entries_v1.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        index, term, stamp, kind, payload, record = line.split()
        payload_bytes = b"" if payload == "-" else bytes.fromhex(payload)
        entries.append(((int(index), int(term), int(stamp), int(kind), payload_bytes), bytes.fromhex(record)))
    return entries


def patched(half: ModuleType, record: bytes, at: int, new: bytes) -> bytes:
    """Return `record` with `new` at `at`, and a checksum that is right again."""
    body = bytearray(record)
    body[at : at + len(new)] = new
    crc: int = half.crc32c(body[4:])
    return crc.to_bytes(4, "big") + bytes(body[4:])


# ------------------------------------------------------------------------------------------------------------ checksum


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_checksum_is_crc32c(half: ModuleType, data: bytes, expected: int) -> None:
    """RFC 3720 §B.4, and the check value of the catalogue of CRCs."""
    assert half.crc32c(data) == expected


def test_a_checksum_goes_on_where_another_ended(half: ModuleType) -> None:
    data = bytes(index * 7 & 0xFF for index in range(20_000))
    for cut in (0, 1, 8, 191, 192, 1536, 12_288, 19_999, 20_000):
        assert half.crc32c(data[cut:], half.crc32c(data[:cut])) == half.crc32c(data)


def test_any_bytes_like_object_has_a_checksum(half: ModuleType) -> None:
    data = bytes(range(200))
    assert half.crc32c(bytearray(data)) == half.crc32c(memoryview(data)) == half.crc32c(data)
    assert half.crc32c(memoryview(data)[::2]) == half.crc32c(data[::2])


def test_hardware_table_and_plain_checksums_agree_at_every_length() -> None:
    """Lengths around each stride of the interleaved streams, at every alignment."""
    fastlog = pytest.importorskip("smtpraft._fastlog")
    from smtpraft import _purelog

    data = bytes((index * index >> 3) & 0xFF for index in range(3 * 4096 + 3 * 512 + 64))
    lengths = [*range(260), *range(1530, 1545), *range(12_280, 12_300), len(data) - 16]
    for length in lengths:
        for start in (0, 1, 7, 13):
            part = data[start : start + length]
            expected = _purelog.crc32c(part, 0x12345678)
            assert fastlog.crc32c(part, 0x12345678) == expected
            assert fastlog._crc32c_portable(part, 0x12345678) == expected


def test_an_entry_is_the_same_written_with_and_without_the_processors_help_and_in_plain_python() -> None:
    """At each length around the words that are summed up one by one, and around the streams of a long payload."""
    fastlog = pytest.importorskip("smtpraft._fastlog")
    from smtpraft import _purelog

    data = bytes((index * index >> 3) & 0xFF for index in range(3 * 512 + 300))
    numbers = (0x0102030405060708, 0x1112131415161718, 0xF1F2F3F4F5F6F7F8, 0x81)
    for length in [*range(300), *range(1530, 1545), len(data)]:
        expected = _purelog.encode_entries(*numbers, [data[:length]])
        assert fastlog.encode_entries(*numbers, [data[:length]]) == expected
        assert fastlog._encode_entry_portable(*numbers, data[:length]) == expected


def test_the_table_of_the_plain_half_is_crc32c() -> None:
    """What the plain half falls back to where no library for the checksum is installed."""
    from smtpraft import _purecodec

    assert _purecodec._table_extend()(0, b"123456789") == 0xE3069283


# ------------------------------------------------------------------------------------------------------------- entries


@pytest.mark.parametrize(("entry", "record"), golden_entries())
def test_golden_entries_stay_readable_and_are_written_the_same(
    half: ModuleType, entry: tuple[int, int, int, int, bytes], record: bytes
) -> None:
    index, term, stamp, kind, payload = entry
    assert half.encode_entries(term, index, stamp, kind, [payload]) == record
    assert half.decode_entries(record) == [entry]
    assert half.block_range(record) == (index, term, index, term)


def test_a_block_holds_entries_one_after_the_other(half: ModuleType) -> None:
    block = half.encode_entries(3, 10, 99, half.ENTRY_NORMAL, (b"a", b"", b"ccc"))
    later = half.encode_entries(4, 13, 100, half.ENTRY_CONF_CHANGE_V2, [b"d"])
    assert half.block_range(block + later) == (10, 3, 13, 4)
    expected = [(10, 3, 99, 0, b"a"), (11, 3, 99, 0, b""), (12, 3, 99, 0, b"ccc"), (13, 4, 100, 2, b"d")]
    for given in (block + later, bytearray(block + later), memoryview(block + later)):
        assert half.decode_entries(given) == expected


def test_commands_come_out_of_their_envelopes_and_all_else_as_it_is(half: ModuleType) -> None:
    command = envelope.encode_command(7, 41, 40, b"do it")
    opening = envelope.encode_open(bytes(16), NodeId("node-1"))
    nobody = envelope.encode_command(0, 1, 1, b"\0" * 30)  # of no session: never to be taken for what lies in it
    block = half.encode_entries(3, 10, 99, half.ENTRY_NORMAL, [command, b"", opening, command[:24], nobody])
    block += half.encode_entries(4, 15, 99, half.ENTRY_CONF_CHANGE, [command])
    found, end = half.commands(memoryview(block))
    assert end == len(block)
    crcs = [entry[3] for entry in found]
    assert found == [
        (10, 3, 99, crcs[0], half.ENTRY_NORMAL, 7, 41, 40, b"do it"),
        (11, 3, 99, crcs[1], half.ENTRY_NORMAL, 0, 0, 0, b""),
        (12, 3, 99, crcs[2], half.ENTRY_NORMAL, 0, 0, 0, opening),
        (13, 3, 99, crcs[3], half.ENTRY_NORMAL, 0, 0, 0, command[:24]),
        (14, 3, 99, crcs[4], half.ENTRY_NORMAL, 0, 0, 0, nobody),
        (15, 4, 99, crcs[5], half.ENTRY_CONF_CHANGE, 0, 0, 0, command),
    ]
    assert [crc.to_bytes(4) for crc in crcs] == [record[:4] for record in records_of(block)]


def test_what_a_session_proposed_comes_with_what_may_end_it_in_the_order_of_the_log(half: ModuleType) -> None:
    opening = envelope.encode_open(bytes(16), NodeId("node-1"))
    payloads = [envelope.encode_command(session, seq, 1, b"x" * 50) for session, seq in ((7, 1), (8, 1), (7, 2))]
    payloads[2:2] = [opening]
    block = half.encode_entries(3, 10, 99, half.ENTRY_NORMAL, payloads)
    assert half.proposed(block, 7) == [(10, 1, None), (12, half.ENTRY_NORMAL, opening), (13, 2, None)]
    assert half.proposed(block, 0) == [(12, half.ENTRY_NORMAL, opening)]
    assert half.proposed(b"", 7) == []
    assert half.commands(b"") == ([], 0)


def test_many_commands_are_read_in_pieces(half: ModuleType) -> None:
    """A thread that reads a whole log must not keep the others from the interpreter all the while."""
    block = half.encode_entries(
        3, 10, 99, half.ENTRY_NORMAL, [envelope.encode_command(7, n, 1, b"x") for n in range(300)]
    )
    at, pieces = 0, []
    while at < len(block):
        piece, at = half.commands(block, at)
        pieces.append([entry[0] for entry in piece])
    assert [len(piece) for piece in pieces] == [128, 128, 44]
    assert [index for piece in pieces for index in piece] == list(range(10, 310))


@pytest.mark.parametrize("cut", [1, 35, 36, 60])
def test_half_an_entry_is_no_command(half: ModuleType, cut: int) -> None:
    block = half.encode_entries(3, 10, 99, half.ENTRY_NORMAL, [envelope.encode_command(7, 1, 1, b"x")])
    for read in (half.commands, lambda data: half.proposed(data, 7)):
        with pytest.raises(half.CorruptEntry):
            read(block[:cut])
        with pytest.raises(half.CorruptEntry):
            read(block[:4] + (35).to_bytes(4) + block[8:])


def records_of(block: bytes) -> list[bytes]:
    """Cut by the sizes in the records."""
    records = []
    while block:
        size = int.from_bytes(block[4:8])
        records.append(block[:size])
        block = block[size:]
    return records


def test_a_payload_may_come_from_any_iterable(half: ModuleType) -> None:
    assert half.encode_entries(1, 1, 0, 0, iter([b"a", b"b"])) == half.encode_entries(1, 1, 0, 0, [b"a", b"b"])


def test_every_flipped_bit_of_a_block_is_noticed(half: ModuleType) -> None:
    block = half.encode_entries(3, 10, 99, 0, [b"first", b"second"])
    for at in range(len(block)):
        for bit in range(8):
            flipped = bytearray(block)
            flipped[at] ^= 1 << bit
            with pytest.raises(half.CorruptEntry):
                half.block_range(bytes(flipped))


def test_every_cut_of_a_block_is_noticed(half: ModuleType) -> None:
    block = half.encode_entries(3, 10, 99, 0, [b"first", b"second"])
    whole = {HEADER + len(b"first"), len(block)}
    for length in range(len(block) + 1):
        if length not in whole:
            with pytest.raises(half.CorruptEntry):
                half.decode_entries(block[:length])
    with pytest.raises(half.CorruptEntry):
        half.decode_entries(block + b"\0")


def test_entries_that_do_not_follow_each_other_are_no_block(half: ModuleType) -> None:
    def record(index: int, term: int) -> bytes:
        encoded: bytes = half.encode_entries(term, index, 0, 0, [b"x"])
        return encoded

    assert half.block_range(record(5, 1) + record(6, 1)) == (5, 1, 6, 1)
    for second in (record(5, 1), record(7, 1), record(4, 1), record(6, 0)):
        with pytest.raises(half.CorruptEntry):
            half.block_range(record(5, 1) + second)


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (4, (35).to_bytes(4, "big")),
        (4, (38).to_bytes(4, "big")),
        (4, (4 * MIB + 1).to_bytes(4, "big")),
        (4, b"\xff\xff\xff\xff"),
        (4, bytes(4)),
        (16, bytes(8)),
        (16, b"\xff" * 8),
        (33, b"\1"),
        (35, b"\1"),
    ],
)
def test_a_good_checksum_does_not_excuse_a_bad_field(half: ModuleType, at: int, new: bytes) -> None:
    record = half.encode_entries(1, 1, 0, 0, [b"x"])
    with pytest.raises(half.CorruptEntry):
        half.block_range(patched(half, record, at, new))


def test_the_largest_entry_fits_and_one_byte_more_does_not(half: ModuleType) -> None:
    largest = bytes(half.ENTRY_BYTES_MAX - HEADER)
    block = half.encode_entries(1, 1, 0, 0, [largest])
    assert len(block) == half.ENTRY_BYTES_MAX
    assert half.block_range(block) == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="larger than"):
        half.encode_entries(1, 1, 0, 0, [largest + b"\0"])
    oversized = patched(half, block + b"\0", 4, (len(block) + 1).to_bytes(4, "big"))
    with pytest.raises(half.CorruptEntry):
        half.block_range(oversized)


def test_nothing_is_encoded_from_nothing(half: ModuleType) -> None:
    with pytest.raises(ValueError, match="at least one"):
        half.encode_entries(1, 1, 0, 0, [])
    with pytest.raises(ValueError, match="counted from 1"):
        half.encode_entries(1, 0, 0, 0, [b"x"])
    with pytest.raises(half.CorruptEntry):
        half.decode_entries(b"")


def test_the_last_index_leaves_room_for_the_one_after_it(half: ModuleType) -> None:
    assert half.block_range(half.encode_entries(1, half.INDEX_MAX, 0, 0, [b""]))[0] == half.INDEX_MAX
    for first, payloads in ((half.INDEX_MAX, [b"", b""]), (half.INDEX_MAX + 1, [b""]), (half.INDEX_MAX - 1, [b""] * 3)):
        with pytest.raises(OverflowError):
            half.encode_entries(1, first, 0, 0, payloads)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((-1, 1, 0, 0, [b""]), OverflowError),
        ((2**64, 1, 0, 0, [b""]), OverflowError),
        ((1, 1, 2**64, 0, [b""]), OverflowError),
        ((1, 1, 0, 256, [b""]), OverflowError),
        ((1.0, 1, 0, 0, [b""]), TypeError),
        (("1", 1, 0, 0, [b""]), TypeError),
        ((1, None, 0, 0, [b""]), TypeError),
        ((1, 1, 0, 0, ["text"]), TypeError),
        ((1, 1, 0, 0, [bytearray(b"x")]), TypeError),
        ((1, 1, 0, 0, None), TypeError),
    ],
)
def test_bad_arguments_are_refused(half: ModuleType, arguments: tuple[object, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        half.encode_entries(*arguments)


def test_errors_are_caught_by_family(half: ModuleType) -> None:
    from smtpraft.errors import SmtpRaftError

    for error in (half.CorruptEntry, half.CorruptFrame, half.Compacted, half.Unavailable, half.NotCached):
        assert issubclass(error, SmtpRaftError)
    assert issubclass(half.CorruptEntry, ValueError)
    assert issubclass(half.CorruptFrame, ValueError)
    for error in (half.Compacted, half.Unavailable, half.NotCached):
        assert issubclass(error, LookupError)


# -------------------------------------------------------------------------------------------------------------- quorum


@pytest.mark.parametrize(
    ("matched", "expected"),
    [
        ([7], 7),
        ([7, 9], 7),
        ([1, 5, 3], 3),
        ([4, 1, 2, 3], 2),
        ([5, 1, 4, 2, 3], 3),
        ([0, 0, 9], 0),
        ([2**64 - 1, 0, 2**64 - 1], 2**64 - 1),
        (list(range(100)), 49),
        (list(range(101, 0, -1)), 51),
    ],
)
def test_a_quorum_has_what_a_majority_has(half: ModuleType, matched: list[int], expected: int) -> None:
    """Raft §5.3."""
    assert half.quorum_index(matched) == expected
    assert half.quorum_index(tuple(reversed(matched))) == expected
    majority = len(matched) // 2 + 1
    assert sum(index >= expected for index in matched) >= majority
    assert sum(index > expected for index in matched) < majority


def test_a_quorum_of_nobody_decides_nothing(half: ModuleType) -> None:
    with pytest.raises(ValueError, match="nobody"):
        half.quorum_index([])
    with pytest.raises(OverflowError):
        half.quorum_index([1, -1, 2])
    with pytest.raises(OverflowError):
        half.quorum_index([2**64] * 40)
    with pytest.raises(TypeError):
        half.quorum_index([1, 1.5])
    with pytest.raises(TypeError):
        half.quorum_index(3)
