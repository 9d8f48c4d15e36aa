"""The frames between a node and its SMTP workers, and the numbers that the workers share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.errors import NotReplicated, OutcomeUnknown, Stopped
from smtpraft.smtp.census import Census
from smtpraft.smtp.statistics import SmtpStatistics
from smtpraft.smtp.worker_frames import (
    FRAME_BYTES_MAX,
    HEAD,
    READ_BYTES,
    FrameError,
    FrameReader,
    Kind,
    Outcome,
    add_report,
    answer_of,
    decode_answers,
    decode_report,
    encode,
    error_of,
    frame,
    report_of,
)
from smtpraft.spool import commands
from smtpraft.spool.client import SpoolClient, encode_message
from smtpraft.spool.machine import SpoolMachine
from smtpraft.spool.types import CHUNK_BYTES, Envelope, MessageId
from smtpraft.types import NodeId


def read_in_pieces(data: bytes, sizes: Iterator[int]) -> list[tuple[int, bytes]]:
    """Return the frames in `data`, received as a transport would, at most so many bytes at a time."""
    reader = FrameReader()
    found = []
    while data:
        room = reader.room()
        count = min(len(room), len(data), next(sizes))
        room[:count] = data[:count]
        data = data[count:]
        found += [(kind, bytes(body)) for kind, body in reader.frames(count)]
    return found


@given(
    st.lists(
        st.tuples(st.sampled_from(Kind), st.one_of(st.binary(max_size=50), st.just(bytes(READ_BYTES + 5)))), max_size=8
    ),
    st.lists(st.integers(100, 300_000), min_size=1, max_size=8),
)
def test_frames_are_whole_wherever_they_are_cut(frames: list[tuple[Kind, bytes]], sizes: list[int]) -> None:
    stream = b"".join(frame(kind, body) for kind, body in frames)
    endless = (sizes[number % len(sizes)] + number for number in range(10**9))
    assert read_in_pieces(stream, endless) == frames


@pytest.mark.parametrize("length", [0, FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_length_that_no_frame_has_is_refused_before_there_is_room_for_it(length: int) -> None:
    with pytest.raises(FrameError):
        read_in_pieces(HEAD.pack(length, Kind.SUBMIT), iter([5]))


@pytest.mark.parametrize("error", [NotReplicated("no"), Stopped("stops"), OutcomeUnknown("who knows")])
def test_an_answer_tells_which_error_it_was(error: Exception) -> None:
    ((number, outcome, text),) = decode_answers(encode([answer_of(7, None, error)]))
    assert (number, type(error_of(outcome, text)), str(error_of(outcome, text))) == (7, type(error), str(error))


def test_an_error_that_nobody_expects_leaves_the_outcome_unknown() -> None:
    """It is never a refusal: that would promise that the message is not delivered (RFC 5321 §4.2.5)."""
    number, outcome, text = answer_of(7, None, ValueError("x"))
    assert (number, outcome) == (7, Outcome.UNKNOWN)
    assert isinstance(error_of(outcome, text), OutcomeUnknown)
    assert isinstance(error_of(99, ""), OutcomeUnknown)


def test_reports_add_up() -> None:
    statistics = SmtpStatistics()
    statistics.connections = 2
    statistics.connections_by_listener["a"] = 5
    statistics.messages_rejected["data", 451] = 3
    statistics.ack_seconds.observe(0.01)
    statistics.bytes_received = 10
    report = decode_report(encode(report_of(statistics)))
    total = SmtpStatistics()
    add_report(total, report)
    add_report(total, report, ended=True)
    assert (total.connections, total.connections_by_listener["a"], total.bytes_received) == (2, 10, 20)
    assert total.messages_rejected == Counter({("data", 451): 6})
    assert (total.ack_seconds.count, total.ack_seconds.sum) == (2, 0.02)
    statistics.ack_seconds.counts.append(1)
    with pytest.raises(FrameError):
        add_report(total, report_of(statistics))


class Recorder:
    """What `submit_encoded` needs of a node."""

    def __init__(self) -> None:
        self.proposed: list[bytes] = []
        self.foreseen: Callable[[int], object] | None = None

    async def replicate(self, command: bytes, **_: object) -> object:
        raise AssertionError

    def propose(
        self,
        command: bytes,
        done: Callable[[object, Exception | None], None],
        *,
        deadline_s: float = 10.0,
        foreseen: Callable[[int], object] | None = None,
    ) -> None:
        self.proposed.append(command)
        assert foreseen is not None
        done(foreseen(5), None)

    async def read_index(self, *, deadline_s: float = 10.0) -> int:
        raise AssertionError

    async def read_entry(self, index: int) -> bytes:
        raise AssertionError


def submitted(command: bytes) -> tuple[Recorder, MessageId | None, Exception | None]:
    node = Recorder()
    heard: list[tuple[MessageId | None, Exception | None]] = []
    client = SpoolClient(node, SpoolMachine("not opened", NodeId("n1")))
    client.submit_encoded(command, deadline_s=1.0, done=lambda message, error: heard.append((message, error)))
    ((message, error),) = heard
    return node, message, error


ENVELOPE = Envelope("a@b", ("c@d",))


def test_a_message_encoded_elsewhere_is_proposed_as_it_is() -> None:
    command = encode_message(ENVELOPE, [b"Subject: x\r\n\r\n"])
    assert command is not None
    node, message, error = submitted(command)
    assert (node.proposed, message, error) == ([command], "000000000M00", None)
    assert encode_message(ENVELOPE, [bytes(CHUNK_BYTES)]) is None


@given(st.one_of(st.binary(max_size=40), st.just(commands.encode_chunk(1, 0, [b"x"]))))
def test_what_is_no_such_message_is_never_proposed(command: bytes) -> None:
    node, message, error = submitted(command)
    assert (node.proposed, message, type(error)) == ([], None, NotReplicated)


def test_a_message_whose_parts_are_elsewhere_is_never_proposed() -> None:
    """The machine would refuse it, while its id was told already: a node that foresaw another answer stops."""
    command = commands.encode_accept(ENVELOPE, [b"x"], upload=1, chunk_count=1, chunk_bytes=1)
    node, _, error = submitted(command)
    assert (node.proposed, type(error)) == ([], NotReplicated)


@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(st.integers(-1, 5), st.integers(2**64, 2**65))), max_size=60))
def test_the_census_counts_every_client_at_least_as_often_as_it_is_there(arrivals: list[tuple[int, int]]) -> None:
    node = Census.create(4)
    workers = [Census(node.fd, 4, node.key, number) for number in range(4)]
    os.close(node.fd)
    for worker, client in arrivals:
        workers[worker].come(client)
    there = Counter(client for _, client in arrivals)
    for each in (node, *workers):
        assert each.total() == len(arrivals)
        assert all(each.of(client) >= count for client, count in there.items())
    node.clear(2)
    left = [client for worker, client in arrivals if worker != 2]
    assert workers[0].total() == len(left)
    for worker, client in arrivals:
        if worker != 2:
            workers[worker].go(client)
    assert [node.total(), *(node.of(client) for client in there)] == [0] * (1 + len(there))


def test_a_thousand_other_clients_do_not_take_a_clients_places() -> None:
    """At the default of max_connections, the chance that the count of one is off by one is about one in a hundred."""
    census = Census.create(1)
    for client in range(1000):
        census.come(client)
    assert max(census.of(client) for client in range(1000)) <= 10
    assert census.of(10**6) <= 10
    os.close(census.fd)
