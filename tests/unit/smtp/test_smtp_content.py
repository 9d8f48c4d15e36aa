"""The content of a message: RFC 5321 §4.1.1.4 and §4.5.2, and no smuggling."""

from __future__ import annotations

import itertools
import tracemalloc
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.smtp.faults import BareOctet

# What other servers were found to take for the end of a message; none of them is.
FALSE_ENDINGS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\n.\r",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\n\n.\r\n",
    b"\r\r\n.",
    b"\r\n.\r\r\n",
]

Result = tuple[str, bytes, bytes]


def read(scan: ModuleType, chunks: list[bytes], size_max_bytes: int = 1 << 20) -> Result:
    """Return (what became of it, content, what follows)."""
    reader = scan.ContentReader(size_max_bytes)
    for number, chunk in enumerate(chunks):
        try:
            if reader.feed(chunk):
                rest = reader.rest + b"".join(chunks[number + 1 :])
                verdict = "large" if reader.size_bytes > size_max_bytes else "complete"
                return verdict, b"".join(reader.take_blocks()), rest
        except BareOctet:
            return "bare", b"", b""
    return "incomplete", b"", b""


def reference(data: bytes, size_max_bytes: int = 1 << 20) -> Result:
    """The same line by line, octet by octet, as RFC 5321 tells it."""
    content = bytearray()
    line = bytearray()
    for place, octet in enumerate(data):
        line.append(octet)
        if octet == 0 or (octet == 0x0A and not line.endswith(b"\r\n")) or (b"\r" in line[:-1] and octet != 0x0A):
            return "bare", b"", b""
        if not line.endswith(b"\r\n"):
            continue
        if line == b".\r\n":
            if len(content) > size_max_bytes:
                return "large", b"", data[place + 1 :]
            return "complete", bytes(content), data[place + 1 :]
        content += line[1:] if line.startswith(b".") else line
        line.clear()
    return "incomplete", b"", b""


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


# Mostly well-formed pieces, so that what is generated gets past the first line.
PIECES = [b"text", b"\r\n", b"\r\n", b"\r\n", b".", b"..", b".x", b"\xc3\xbc", b"Subject: x\r\n", b"\r\n.\r\n", b" "]
STREAMS = st.lists(st.sampled_from(PIECES), max_size=25).map(b"".join)
BROKEN_STREAMS = st.lists(st.sampled_from([*PIECES, b"\r", b"\n", b"\0", *FALSE_ENDINGS]), max_size=15).map(b"".join)


@given(STREAMS | BROKEN_STREAMS, st.lists(st.integers(0, 1 << 16), max_size=12), st.sampled_from([0, 7, 30, 1 << 20]))
def test_any_chunking_gives_what_the_rfc_says(
    scan: ModuleType, data: bytes, cuts: list[int], size_max_bytes: int
) -> None:
    expected = reference(data, size_max_bytes)
    octets = [data[place : place + 1] for place in range(len(data))]
    for chunks in ([data], chunked(data, cuts), octets):
        found = read(scan, chunks, size_max_bytes)
        if expected[0] == "incomplete" and found[0] == "incomplete":
            continue
        assert found == expected


@pytest.mark.parametrize("ending", FALSE_ENDINGS)
def test_a_false_ending_refuses_the_message(scan: ModuleType, ending: bytes) -> None:
    data = b"Subject: x\r\n\r\nfirst" + ending + b"MAIL FROM:<smuggled@x>\r\nRCPT TO:<y@z>\r\nDATA\r\n\r\n.\r\n"
    for chunks in ([data], [data[place : place + 1] for place in range(len(data))]):
        assert read(scan, chunks)[0] == "bare"


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b".x\r\n.\r\n", b"x\r\n"),
        (b"a\r\n..\r\n...\r\n.b.\r\n.\r\n", b"a\r\n.\r\n..\r\nb.\r\n"),
        (b"a\r\n\r\n.\r\n", b"a\r\n\r\n"),
    ],
)
def test_dots_are_unstuffed(scan: ModuleType, data: bytes, content: bytes) -> None:
    """RFC 5321 §4.5.2."""
    assert read(scan, [data + b"QUIT\r\n"]) == ("complete", content, b"QUIT\r\n")


def test_a_line_may_have_any_length(scan: ModuleType) -> None:
    line = b"x" * 1_000_000 + b"\r\n"
    assert read(scan, [line + b".\r\n"]) == ("complete", line, b"")


def test_octets_above_127_are_noticed(scan: ModuleType) -> None:
    reader = scan.ContentReader(1000)
    assert reader.feed("Grüße\r\n.\r\n".encode())
    assert not reader.ascii
    assert "".join(block.decode() for block in reader.take_blocks()) == "Grüße\r\n"
    reader = scan.ContentReader(1000)
    assert reader.feed(b"Hello\r\n.\r\n")
    assert reader.ascii


def test_a_message_of_exactly_the_limit_is_kept(scan: ModuleType) -> None:
    """RFC 1870 §5: the octets of the message, with its CRLFs, without stuffed dots and the final one."""
    assert read(scan, [b"..34\r\n.\r\n"], 5)[0] == "complete"
    assert read(scan, [b"..34\r\n.\r\n"], 4)[0] == "large"


@pytest.mark.parametrize("chunk_bytes", [1, 3, 1460, 100_000])
def test_memory_is_bounded_by_the_limit_however_the_message_comes(scan: ModuleType, chunk_bytes: int) -> None:
    size_max_bytes = 200_000 if chunk_bytes < 100 else 2_000_000
    total = size_max_bytes if chunk_bytes < 100 else 10 * size_max_bytes
    line = b"0123456789" * 7 + b"\r\n"
    source = line * (chunk_bytes // len(line) + 2)
    reader = scan.ContentReader(size_max_bytes)
    tracemalloc.start()
    try:
        sent = 0
        while sent < total:
            start = sent % len(line)
            reader.feed(source[start : start + chunk_bytes])
            sent += chunk_bytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size_max_bytes * 1.4 + 6 * chunk_bytes + 500_000
    assert reader.size_bytes > size_max_bytes * 0.9


def test_forgotten_content_is_read_to_its_end(scan: ModuleType) -> None:
    reader = scan.ContentReader(1000)
    assert not reader.feed(b"hello\r\n")
    reader.forget()
    assert not reader.feed(b"more\r\n" * 1000)
    assert reader.feed(b".\r\nNOOP\r\n")
    assert reader.rest == b"NOOP\r\n"
    assert reader.take_blocks() == []
