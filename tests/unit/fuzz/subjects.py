"""What is fuzzed: each subject makes an input from a random number generator, and compares what the halves make of it.

The plain half is the specification. The inputs are made of pieces that mean something, so that they get past the first
octet, with some octets changed, left out or repeated; whoever wants a seed's input gets the same again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random
from types import ModuleType
from typing import Any, Final

from smtpraft import _fastlog, _purelog
from smtpraft.smtp import _fastscan, _purescan
from smtpraft.smtp.address import parse_path
from smtpraft.smtp.faults import BareOctet, LineFault

SIZES_MAX: Final = (0, 5, 60, 2000, 1 << 20)
_FOLLOWING: Final = 5  # messages of one stream at most

_COMMAND: Final = (
    b"MAIL FROM:<a@b>",
    b"rcpt TO:<c@d>",
    b"NOOP",
    b"data x",
    b"EHLO c",
    b"\xff\xfe",
    b"x" * 700,
    b" ",
    b"\t",
)
_ENDS: Final = (b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\0", b"\r\r\n")
_TEXT: Final = (
    b"text",
    b"Subject: x",
    b".",
    b"..",
    b".x",
    "ü".encode(),
    b" ",
    b"",
    b"x" * 63,
    b"y" * 64,
    b"z" * 65,
    b"w" * 997,
)
_DATA: Final = b"DATA\r\n"
_DOT: Final = b"\r\n.\r\n"
_ATOMS: Final = (
    "a",
    "b.c",
    "x-y",
    "",
    ".",
    "-",
    "_",
    "Ü",
    '"q"',
    "[1.2.3.4]",
    "é",
    "l" * 63,
    "l" * 64,
    "m" * 255,
    "@",
    ">",
    "<",
    " ",
    "\0",
)


def change(random: Random, data: bytes) -> bytes:
    """Return `data` with a few octets changed, left out or repeated; most often as it is."""
    if random.random() < 0.7 or not data:
        return data
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(changed)) if changed else 0
        match random.randrange(3):
            case 0:
                changed[place : place + 1] = bytes((random.choice((0, 10, 13, 46, 65, 255, random.randrange(256))),))
            case 1:
                del changed[place : place + random.randint(1, 4)]
            case _:
                changed[place:place] = changed[place : place + random.randint(1, 4)]
    return bytes(changed)


def chunked(random: Random, data: bytes) -> list[bytes]:
    """Cut `data` anywhere, into one chunk or many."""
    if not data or random.random() < 0.2:
        return [data]
    if len(data) < 300 and random.random() < 0.1:
        return [data[place : place + 1] for place in range(len(data))]
    cuts = sorted(random.randrange(len(data)) for _ in range(random.randint(1, 8)))
    return [data[start:end] for start, end in itertools.pairwise([0, *cuts, len(data)])]


def conversation(random: Random) -> bytes:
    """Return what a client might say, and worse."""
    said = bytearray()
    for _ in range(random.randint(1, _FOLLOWING)):
        for _ in range(random.randint(0, 3)):
            said += random.choice(_COMMAND) + random.choice(_ENDS)
        said += _DATA
        for _ in range(random.randint(0, 12)):
            said += random.choice(_TEXT) + (b"\r\n" if random.random() < 0.98 else random.choice(_ENDS))
        said += b"." + b"\r\n" if random.random() < 0.5 else _DOT
    return change(random, bytes(said))


def heard(scan: ModuleType, chunks: Sequence[bytes], size_max_bytes: int, *, by_room: bool) -> list[object]:
    """Return what a session would make of `chunks`, event by event; a bare octet in content ends it."""
    events: list[object] = []
    try:
        _hear(scan, chunks, size_max_bytes, events, by_room=by_room)
    except BareOctet:
        events.append("bare octet")
    return events


def _hear(
    scan: ModuleType, chunks: Sequence[bytes], size_max_bytes: int, events: list[object], *, by_room: bool
) -> None:
    lines = scan.CommandLines()
    content: Any = None
    for chunk in chunks:
        if content is None:
            lines.feed(chunk)
        elif by_room:
            complete = _through_rooms(content, chunk)
            if complete is not None:
                lines.feed(complete)
                events.append(_content(content))
                content = None
        elif content.feed(chunk):
            lines.feed(content.rest)
            events.append(_content(content))
            content = None
        while content is None and (command := lines.next_command()) is not None:
            events.append(command)
            if not isinstance(command, LineFault) and command[0] == b"DATA":
                content = scan.ContentReader(size_max_bytes)
                if content.feed(lines.take_rest()):
                    lines.feed(content.rest)
                    events.append(_content(content))
                    content = None
    events.append(lines.waiting_bytes if content is None else (content.size_bytes, content.forgotten))


def _through_rooms(content: Any, chunk: bytes) -> bytes | None:
    """Receive `chunk` as a transport would; return what followed the content, None if it goes on."""
    while chunk:
        room = content.room()
        part = chunk[: len(room)]
        room[: len(part)] = part
        chunk = chunk[len(part) :]
        if content.filled(len(part)):
            return bytes(content.rest) + chunk
    return None


def _content(content: Any) -> tuple[object, ...]:
    ascii_only = None if content.forgotten else content.ascii
    return (content.size_bytes, content.forgotten, ascii_only, b"".join(content.take_blocks()))


def outcome(act: Callable[[], object]) -> object:
    """Return what `act` returns, or the type of what it raises."""
    try:
        return act()
    except (ValueError, OverflowError) as error:
        return type(error).__name__


def check_conversation(random: Random) -> None:
    """The scanners: any chunks, either way of receiving, either half."""
    data = conversation(random)
    size_max_bytes = random.choice(SIZES_MAX)
    first, second = chunked(random, data), chunked(random, data)
    plain = heard(_purescan, first, size_max_bytes, by_room=False)
    assert heard(_fastscan, first, size_max_bytes, by_room=False) == plain, (data, first)
    assert heard(_fastscan, second, size_max_bytes, by_room=True) == plain, (data, second)


def check_path(random: Random) -> None:
    """The short way through an address: both halves agree, and with the long way."""
    local = "".join(random.choice(_ATOMS) for _ in range(random.randint(0, 3)))
    domain = ".".join(random.choice(_ATOMS) for _ in range(random.randint(0, 3)))
    text = (
        random.choice(("<", "<", "<", "", "<@r:")) + local + "@" + domain + random.choice((">", "> SIZE=1", "", ">ü"))
    )
    found = _purescan.plain_path(text)
    assert _fastscan.plain_path(text) == found, text
    if found is not None:
        path, rest = parse_path(text)
        assert (path.local_part, path.domain, text[found[2] :]) == (*found[:2], rest), text


def check_frames(random: Random) -> None:
    """The frames between nodes: any chunks, either half."""
    data = bytearray()
    for _ in range(random.randint(1, 6)):
        tail = random.randbytes(random.choice((0, 1, 7, 300)))
        data += (
            _purelog.encode_frame(random.randrange(256), random.randbytes(random.choice((0, 3, 40))), len(tail)) + tail
        )
    stream, bytes_max = change(random, bytes(data)), random.choice((10, 400, 1 << 20))
    first, second = chunked(random, stream), chunked(random, stream)

    def frames(half: ModuleType, chunks: Sequence[bytes]) -> object:
        decoder = half.FrameDecoder(bytes_max)
        return [frame for chunk in chunks for frame in decoder.feed(chunk)]

    plain = outcome(lambda: frames(_purelog, first))
    assert outcome(lambda: frames(_fastlog, first)) == plain, (stream, first)
    assert outcome(lambda: frames(_fastlog, second)) == plain, (stream, second)


def check_entries(random: Random) -> None:
    """What is read of entries, whole and damaged: as the log verifies them, and as committed ones are read."""
    session = random.choice((0, 7, 1 << 63))
    payloads = [
        random.choice((b"\x01" + random.choice((0, 7, 1 << 63)).to_bytes(8), b"\x00", b"\x03", b""))
        + random.randbytes(random.choice((0, 15, 16, 17, 60)))
        for _ in range(random.randint(1, 5))
    ]
    block = _purelog.encode_entries(3, random.choice((1, 9)), 5, random.choice((0, 0, 0, 1, 2)), payloads)
    data = change(random, block)
    for read in ("commands", "decode_entries", "block_range"):
        plain = outcome(partial(getattr(_purelog, read), data))
        assert outcome(partial(getattr(_fastlog, read), data)) == plain, (read, data)
    plain = outcome(lambda: _purelog.proposed(data, session))
    assert outcome(lambda: _fastlog.proposed(data, session)) == plain, (data, session)


SUBJECTS: Final[dict[str, Callable[[Random], None]]] = {
    "conversation": check_conversation,
    "path": check_path,
    "frames": check_frames,
    "entries": check_entries,
}


def run(subject: str, seed: int, inputs: int) -> Iterator[int]:
    """Check `inputs` inputs, each with a seed of its own; yield how many were, now and then.

    Raises:
        AssertionError: the halves differ; the seed is noted on it.
    """
    check = SUBJECTS[subject]
    for number in range(inputs):
        try:
            check(Random(f"{subject}/{seed}/{number}"))
        except Exception as error:
            error.add_note(f"subject {subject}, seed {seed}, input {number}")
            raise
        if number % 10_000 == 9_999:
            yield number + 1
