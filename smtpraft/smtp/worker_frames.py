"""What a node and its SMTP workers say to each other, over a pair of Unix sockets that nobody else can reach.

Frame, big endian: `length u32 | kind u8 | body`; the length counts kind and body. MessagePack unless said otherwise.

    node → worker                                    worker → node
    BEGIN     `Begin`, the first frame, once         READY     (empty) it listens
    STATE     `State`, whenever it changes           SUBMIT    number u64 | deadline_ms u32 | an ACCEPT command
    SETTINGS  `SmtpSettings`                         LONG      number u64 | deadline_ms u32 | envelope
    ANSWERS   [[number, outcome, text], …]           PART      number u64 | bytes of the message begun with LONG
    DRAIN     seconds, a float                       END       number u64: that was all of it
                                                     REPORT    `Report`, four times a second and at the end

A worker numbers its messages; each SUBMIT, and each END, is answered once, in any order. What fits one entry of the log
comes as the command that will stand there, so that the node encodes nothing; a longer message comes in parts, between
which short ones pass. Both ends run the same release: there is no version.
"""

from __future__ import annotations

import enum
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec

from smtpraft.config import SmtpSettings
from smtpraft.errors import NotReplicated, OutcomeUnknown, Stopped
from smtpraft.smtp.statistics import SmtpStatistics
from smtpraft.spool.types import Envelope

FRAME_BYTES_MAX: Final = 8 * 1024 * 1024  # a command is below 1 MiB and its recipients; 3000 of them, at most 3 MiB
PART_BYTES: Final = 128 * 1024
READ_BYTES: Final = 256 * 1024

HEAD: Final = struct.Struct(">IB")
NUMBER: Final = struct.Struct(">Q")
MESSAGE: Final = struct.Struct(">QI")


class Kind(enum.IntEnum):
    """What a frame is."""

    BEGIN = 1
    STATE = 2
    SETTINGS = 3
    ANSWERS = 4
    DRAIN = 5
    READY = 16
    SUBMIT = 17
    LONG = 18
    PART = 19
    END = 20
    REPORT = 21


class Outcome(enum.IntEnum):
    """What became of a message; the text beside it is its queue id, or the reason."""

    QUEUED = 0
    NOT_REPLICATED = 1
    UNKNOWN = 2
    STOPPED = 3


class FrameError(ValueError):
    """What came is no frame, or has no place here. The other end is broken: part with it."""


class State(msgspec.Struct, array_like=True, frozen=True):
    """What of the node its workers must know at every moment."""

    ready: bool
    """Could a message be committed now?"""
    full: bool
    """Is there too little room on the disk to take one?"""
    term: int
    log_level: str
    log_format: str


class Begin(msgspec.Struct, array_like=True, frozen=True):
    """All that a worker is told before it listens."""

    number: int
    """Of this worker, from 0."""
    workers: int
    node: str
    loop: str
    state: State
    settings: SmtpSettings
    listeners: list[tuple[str, int]]
    """Names, as metrics have them, and descriptors of sockets that are bound."""
    census: int
    """A descriptor; see `census`."""
    census_key: bytes


class Report(msgspec.Struct, array_like=True, frozen=True):
    """`SmtpStatistics`, as a worker counts them."""

    connections: int
    connections_total: int
    connections_by_listener: dict[str, int]
    connections_denied: dict[str, int]
    messages_received: int
    received_by_listener: dict[str, int]
    recipients_received: int
    bytes_received: int
    messages_rejected: list[tuple[str, int, int]]
    outcomes_unknown: int
    clients_gone: int
    timeouts: int
    ack_counts: list[int]
    ack_seconds: float
    size_counts: list[int]
    size_bytes: float


AnswerRow = tuple[int, int, str]

encode: Final = msgspec.msgpack.Encoder().encode
decode_begin: Final = msgspec.msgpack.Decoder(Begin).decode
decode_state: Final = msgspec.msgpack.Decoder(State).decode
decode_settings: Final = msgspec.msgpack.Decoder(SmtpSettings).decode
decode_answers: Final = msgspec.msgpack.Decoder(list[AnswerRow]).decode
decode_envelope: Final = msgspec.msgpack.Decoder(Envelope).decode
decode_drain: Final = msgspec.msgpack.Decoder(float).decode
decode_report: Final = msgspec.msgpack.Decoder(Report).decode


def frame(kind: Kind, body: bytes = b"") -> bytes:
    """Return a frame. One that carries a message is made in pieces, where it is sent."""
    return HEAD.pack(1 + len(body), kind) + body


def answer_of(number: int, message: str | None, error: Exception | None) -> AnswerRow:
    """Return how a worker hears what became of its message."""
    if message is not None:
        return (number, Outcome.QUEUED, message)
    match error:
        case NotReplicated():
            return (number, Outcome.NOT_REPLICATED, str(error))
        case Stopped():
            return (number, Outcome.STOPPED, str(error))
        case _:
            return (number, Outcome.UNKNOWN, str(error) if isinstance(error, OutcomeUnknown) else repr(error))


def error_of(outcome: int, text: str) -> Exception:
    """Return the error that an answer other than QUEUED tells of."""
    match outcome:
        case Outcome.NOT_REPLICATED:
            return NotReplicated(text)
        case Outcome.STOPPED:
            return Stopped(text)
        case _:
            return OutcomeUnknown(text)


class FrameReader:
    """Cuts what arrives into frames: receive into `room`, then take what `frames` yields before the next `room`."""

    def __init__(self) -> None:
        self._view = memoryview(bytearray(READ_BYTES))
        self._begin = self._end = 0
        self._wanted = 0

    def room(self) -> memoryview:
        """Return where to receive; at least a byte of it is free."""
        begin, end, view = self._begin, self._end, self._view
        if begin == end:
            if len(view) > READ_BYTES:
                self._view = view = memoryview(bytearray(READ_BYTES))
            self._begin = self._end = 0
            return view
        if self._wanted > len(view):
            self._view = memoryview(bytearray(self._wanted))
        elif not begin or end < len(view) // 2:
            return view[end:]
        kept = end - begin
        self._view[:kept] = view[begin:end]
        self._begin, self._end = 0, kept
        return self._view[kept:]

    def frames(self, count: int) -> Iterator[tuple[int, memoryview]]:
        """Take in the `count` bytes that came, yield the kind and the body of each frame that is whole.

        Raises:
            FrameError: it is none.
        """
        self._end += count
        view = self._view
        while self._end - self._begin >= HEAD.size:
            length, kind = HEAD.unpack_from(view, self._begin)
            if not 1 <= length <= FRAME_BYTES_MAX:
                raise FrameError(f"a frame of {length} bytes")
            end = self._begin + 4 + length
            self._wanted = 4 + length
            if end > self._end:
                return
            body = view[self._begin + HEAD.size : end]
            self._begin = end
            self._wanted = 0
            yield kind, body


def report_of(statistics: SmtpStatistics) -> Report:
    """Return what a worker has counted."""
    return Report(
        statistics.connections,
        statistics.connections_total,
        dict(statistics.connections_by_listener),
        dict(statistics.connections_denied),
        statistics.messages_received,
        dict(statistics.received_by_listener),
        statistics.recipients_received,
        statistics.bytes_received,
        [(stage, code, count) for (stage, code), count in statistics.messages_rejected.items()],
        statistics.outcomes_unknown,
        statistics.clients_gone,
        statistics.timeouts,
        list(statistics.ack_seconds.counts),
        statistics.ack_seconds.sum,
        list(statistics.message_bytes.counts),
        statistics.message_bytes.sum,
    )


def add_report(statistics: SmtpStatistics, report: Report, *, ended: bool = False) -> None:
    """Add what a worker has counted to `statistics`; of one that has `ended` no connection is open.

    Raises:
        FrameError: its histograms are not like ours.
    """
    acks, sizes = statistics.ack_seconds, statistics.message_bytes
    if (len(report.ack_counts), len(report.size_counts)) != (len(acks.counts), len(sizes.counts)):
        raise FrameError("a report with other histograms")
    statistics.connections += 0 if ended else report.connections
    statistics.connections_total += report.connections_total
    statistics.connections_by_listener.update(report.connections_by_listener)
    statistics.connections_denied.update(report.connections_denied)
    statistics.messages_received += report.messages_received
    statistics.received_by_listener.update(report.received_by_listener)
    statistics.recipients_received += report.recipients_received
    statistics.bytes_received += report.bytes_received
    statistics.messages_rejected.update(
        Counter({(stage, code): count for stage, code, count in report.messages_rejected})
    )
    statistics.outcomes_unknown += report.outcomes_unknown
    statistics.clients_gone += report.clients_gone
    statistics.timeouts += report.timeouts
    acks.counts = [ours + theirs for ours, theirs in zip(acks.counts, report.ack_counts, strict=True)]
    acks.sum += report.ack_seconds
    sizes.counts = [ours + theirs for ours, theirs in zip(sizes.counts, report.size_counts, strict=True)]
    sizes.sum += report.size_bytes
