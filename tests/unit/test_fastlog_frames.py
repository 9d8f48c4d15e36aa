"""Frames and heartbeats, on both twins."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

DATA: Final = Path(__file__).parents[1] / "data"
U64_MAX: Final = 2**64 - 1

Frame = tuple[int, bytes, bytes]


def golden_frames() -> list[tuple[Frame, bytes]]:
    """Return ((type, head, tail), bytes) of each line of the golden file."""
    frames = []
    for line in (DATA / "frames_v1.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        kind, head, tail, frame = line.split()
        parts = [b"" if text == "-" else bytes.fromhex(text) for text in (head, tail)]
        frames.append(((int(kind), parts[0], parts[1]), bytes.fromhex(frame)))
    return frames


@pytest.mark.parametrize(("frame", "encoded"), golden_frames())
def test_golden_frames_stay_readable_and_are_written_the_same(half: ModuleType, frame: Frame, encoded: bytes) -> None:
    kind, head, tail = frame
    assert half.encode_frame(kind, head, len(tail)) + tail == encoded
    assert half.FrameDecoder(len(head) + len(tail)).feed(encoded) == [frame]


def test_a_stream_may_arrive_in_pieces_of_any_size(half: ModuleType) -> None:
    frames = [frame for frame, _ in golden_frames()]
    stream = b"".join(encoded for _, encoded in golden_frames())
    for size in (1, 2, 3, 7, 11, 12, 13, 64, 333, len(stream)):
        decoder = half.FrameDecoder(1000)
        decoded = []
        for start in range(0, len(stream), size):
            decoded += decoder.feed(stream[start : start + size])
        assert decoded == frames


def test_a_frame_is_handed_out_with_its_last_byte(half: ModuleType) -> None:
    for (kind, head, tail), encoded in golden_frames():
        decoder = half.FrameDecoder(1000)
        assert decoder.feed(encoded[:-1]) == []
        assert decoder.feed(b"") == []
        assert decoder.feed(encoded[-1:]) == [(kind, head, tail)]


def test_what_arrives_may_be_any_bytes_like_object_and_is_copied(half: ModuleType) -> None:
    (frame, encoded), arrived = golden_frames()[3], bytearray(golden_frames()[3][1])
    decoder = half.FrameDecoder(1000)
    decoder.feed(memoryview(arrived)[:20])
    decoded = decoder.feed(arrived[20:])
    arrived[:] = bytes(len(encoded))
    assert decoded == [frame]


def test_head_and_tail_are_bytes(half: ModuleType) -> None:
    [(_, head, tail)] = half.FrameDecoder(1000).feed(bytearray(golden_frames()[3][1]))
    assert type(head) is bytes
    assert type(tail) is bytes


def test_a_frame_as_long_as_allowed_passes_and_one_byte_more_does_not(half: ModuleType) -> None:
    frame = half.encode_frame(9, b"head", 6)
    assert half.FrameDecoder(10).feed(frame + b"123456") == [(9, b"head", b"123456")]
    with pytest.raises(half.CorruptFrame):
        half.FrameDecoder(9).feed(frame)


def test_a_frame_that_claims_4_gib_is_refused_from_its_header(half: ModuleType) -> None:
    header = half.encode_frame(9, b"", 2**32 - 1)
    with pytest.raises(half.CorruptFrame):
        half.FrameDecoder(64 * 1024 * 1024).feed(header)


def test_every_flipped_bit_of_header_and_head_is_noticed_before_the_tail(half: ModuleType) -> None:
    """A frame that grew waits for more; then its checksum is wrong all the same."""
    frame = half.encode_frame(9, b"some head", 5)
    for at in range(len(frame)):
        for bit in range(8):
            flipped = bytearray(frame)
            flipped[at] ^= 1 << bit
            decoder = half.FrameDecoder(2**31)
            with pytest.raises(half.CorruptFrame):
                decoder.feed(bytes(flipped) + bytes(70_000))


def test_a_bad_head_is_refused_before_its_tail_has_arrived(half: ModuleType) -> None:
    frame = bytearray(half.encode_frame(9, b"head", 1000))
    frame[-1] ^= 1
    decoder = half.FrameDecoder(2000)
    assert decoder.feed(frame[:-1]) == []
    with pytest.raises(half.CorruptFrame):
        decoder.feed(frame[-1:])


def test_a_head_longer_than_its_frame_is_refused(half: ModuleType) -> None:
    frame = bytearray(half.encode_frame(9, b"head"))
    frame[0:4] = (3).to_bytes(4, "big")
    frame[8:12] = half.crc32c(bytes(frame[:8]) + b"head").to_bytes(4, "big")
    with pytest.raises(half.CorruptFrame):
        half.FrameDecoder(2000).feed(frame)


def test_a_frame_of_another_version_is_refused(half: ModuleType) -> None:
    with pytest.raises(half.CorruptFrame):
        half.FrameDecoder(2000, version=2).feed(half.encode_frame(9, b"head"))


def test_a_stream_that_lost_its_step_stays_refused(half: ModuleType) -> None:
    frame = half.encode_frame(9, b"head")
    decoder = half.FrameDecoder(2000)
    with pytest.raises(half.CorruptFrame):
        decoder.feed(frame + bytes(12))
    for later in (frame, b"", frame):
        with pytest.raises(half.CorruptFrame):
            decoder.feed(later)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((256, b""), OverflowError),
        ((-1, b""), OverflowError),
        ((1, b"", -1), OverflowError),
        ((1, b"", 2**32), OverflowError),
        ((1, b"x", 2**32 - 1), OverflowError),
        ((1, bytes(65536)), ValueError),
        ((1, "head"), TypeError),
        ((1, bytearray(b"head")), TypeError),
        ((1.0, b""), TypeError),
        ((1, b"", 1.5), TypeError),
    ],
)
def test_bad_arguments_of_a_frame_are_refused(
    half: ModuleType, arguments: tuple[object, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        half.encode_frame(*arguments)


def test_the_longest_head_fits(half: ModuleType) -> None:
    head = bytes(65535)
    assert half.FrameDecoder(65535).feed(half.encode_frame(1, head)) == [(1, head, b"")]


@pytest.mark.parametrize("data", ["text", 5, None, [1]])
def test_only_bytes_are_fed(half: ModuleType, data: object) -> None:
    with pytest.raises(TypeError):
        half.FrameDecoder(10).feed(data)


# ---------------------------------------------------------------------------------------------------------- heartbeats


def test_a_heartbeat_is_one_whole_frame(half: ModuleType) -> None:
    fields = (1, U64_MAX, 3, 4, 5, 6, 7, 8, 0)
    [(kind, head, tail)] = half.FrameDecoder(72).feed(half.encode_heartbeat(*fields))
    assert (kind, tail) == (half.FRAME_HEARTBEAT, b"")
    assert half.decode_heartbeat(head) == fields
    assert half.decode_heartbeat(memoryview(head)) == fields


def test_a_heartbeat_response_is_one_whole_frame(half: ModuleType) -> None:
    fields = (U64_MAX, 2, 3, 4, 5, 6, 7, 0)
    [(kind, head, tail)] = half.FrameDecoder(64).feed(half.encode_heartbeat_response(*fields))
    assert (kind, tail) == (half.FRAME_HEARTBEAT_RESPONSE, b"")
    assert half.decode_heartbeat_response(head) == fields


def test_a_heartbeat_takes_its_fields_by_name(half: ModuleType) -> None:
    frame = half.encode_heartbeat(
        term=1,
        commit=2,
        read_context=3,
        retain_index=4,
        lease_nonce=5,
        lease_session=6,
        digest_index=7,
        digest=8,
        sent_us=9,
    )
    assert frame == half.encode_heartbeat(1, 2, 3, 4, 5, 6, 7, 8, 9)
    response = half.encode_heartbeat_response(
        term=1, read_context=2, lease_nonce=3, applied_index=4, digest_index=5, digest=6, disk_lag_ms=7, echo_us=8
    )
    assert response == half.encode_heartbeat_response(1, 2, 3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize(
    ("name", "count"), [("heartbeat", 9), ("heartbeat_response", 8)], ids=["heartbeat", "response"]
)
def test_bad_heartbeats_are_refused(half: ModuleType, name: str, count: int) -> None:
    encode, decode = getattr(half, f"encode_{name}"), getattr(half, f"decode_{name}")
    for length in (0, 8 * count - 8, 8 * count - 1, 8 * count + 1, 8 * count + 8):
        with pytest.raises(half.CorruptFrame):
            decode(bytes(length))
    for position in range(count):
        for bad, error in ((-1, OverflowError), (2**64, OverflowError), (1.5, TypeError), (None, TypeError)):
            fields: list[object] = [0] * count
            fields[position] = bad
            with pytest.raises(error):
                encode(*fields)
    with pytest.raises(TypeError):
        encode(*[0] * (count - 1))


def test_golden_heartbeats_hold_their_fields(half: ModuleType) -> None:
    """The first three lines of the golden file."""
    heads = [head for (_, head, _), _ in golden_frames()[:3]]
    assert half.decode_heartbeat(heads[0]) == tuple(range(1, 10))
    fields = (U64_MAX, 0, U64_MAX - 1, 1, 0x0102030405060708, 9, 10, U64_MAX, 11)
    assert half.decode_heartbeat(heads[1]) == fields
    assert half.encode_heartbeat(*fields) == golden_frames()[1][1]
    assert half.decode_heartbeat_response(heads[2]) == tuple(range(1, 9))
    assert half.encode_heartbeat_response(*range(1, 9)) == golden_frames()[2][1]
