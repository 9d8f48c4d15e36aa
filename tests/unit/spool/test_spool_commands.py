"""The bytes of the commands: golden ones, and what happens to bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.spool import commands
from smtpraft.spool.commands import AcceptHeader, NewerCommand, OperatorHeader, OutcomesHeader, Refusal
from smtpraft.spool.types import Envelope, Outcome, RecipientState, Result, message_id

from .journal import Bench, outcomes_command

GOLDEN = [Path(__file__).parents[2] / "data" / f"spool_commands_v{version}.txt" for version in (1, 2)]


def golden_commands() -> dict[str, bytes]:
    """Every command once. What they encode to is on disks and must be read for as long as their versions are."""
    envelope = Envelope(
        "alice@example.org", ("bøb@example.net", "carol@example.net"), True, True, "192.0.2.1", "h", "u"
    )
    outcome = Outcome(
        message_id(77),
        77,
        (Result(0, 1, RecipientState.DEFERRED, 60_000, "4.4.1", "no answer"), Result(1, 2, RecipientState.FAILED)),
        b"Subject: failed\r\n",
        bounce_smtputf8=True,
    )
    return {
        "accept": commands.encode_accept(envelope, [b"Subject: x\r\n", b"\r\nbody\r\n"]),
        "accept-chunked": commands.encode_accept(envelope, [b"end\r\n"], upload=7, chunk_count=2, chunk_bytes=99),
        "chunk": commands.encode_chunk(7, 1, [b"part"]),
        "forget-upload": commands.encode_forget_upload(7),
        "outcomes": outcomes_command(outcome, Outcome(message_id(78), 9, (Result(0, 1, RecipientState.DELIVERED),))),
        "hold": commands.encode_operator(commands.HOLD, [77 << 12]),
        "release": commands.encode_operator(commands.RELEASE, None, 1, 2, 3),
        "delete": commands.encode_operator(commands.DELETE, []),
        "flush": commands.encode_operator(commands.FLUSH, None, 0, 2**60 - 1, 2000),
        "key-put": commands.encode_key(commands.KEY_PUT, "schlüssel", None, b"value"),
        "key-put-at": commands.encode_key(commands.KEY_PUT, "k", 77, b"\x00\xff"),
        "key-delete": commands.encode_key(commands.KEY_DELETE, "k", 0, b""),
    }


def test_the_bytes_stay_what_they_are() -> None:
    lines = [line for path in GOLDEN for line in path.read_text().splitlines()]
    golden = dict(line.split() for line in lines if not line.startswith("#"))
    assert {name: data.hex() for name, data in golden_commands().items()} == golden


def test_a_command_says_where_its_body_is() -> None:
    data = golden_commands()["accept"]
    decoded = commands.decode(data)
    assert not isinstance(decoded, Refusal)
    op, header, offset = decoded
    assert op == commands.ACCEPT
    assert isinstance(header, AcceptHeader)
    assert header.recipients == ["bøb@example.net", "carol@example.net"]
    assert data[offset:] == b"Subject: x\r\n\r\nbody\r\n"


def test_every_command_comes_back_as_it_was() -> None:
    decoded = {name: commands.decode(data) for name, data in golden_commands().items()}
    assert not any(isinstance(command, Refusal) for command in decoded.values())
    outcomes = decoded["outcomes"]
    assert not isinstance(outcomes, Refusal)
    assert isinstance(outcomes[1], OutcomesHeader)
    assert [outcome.bounce_bytes for outcome in outcomes[1].outcomes] == [17, 0]
    released = decoded["release"]
    assert not isinstance(released, Refusal)
    assert released[1] == OperatorHeader(None, 1, 2, 3)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(data: bytes) -> None:
    """A command that makes every node stop would stop the cluster for good."""
    if data[1:2] <= b"\x02":
        assert isinstance(commands.decode(data), Refusal | tuple)


@given(st.sampled_from(sorted(golden_commands())), st.integers(0, 2**32), st.integers(0, 255))
def test_one_wrong_byte_breaks_nothing(name: str, place: int, value: int) -> None:
    data = bytearray(golden_commands()[name])
    place %= len(data)
    if place != 1:
        data[place] = value
        assert isinstance(commands.decode(bytes(data)), Refusal | tuple)


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\x01\x01\x00\x00\x00\x05abc", b"\x63\x01\x00\x00\x00\x00", b"\x01\x00\x00\x00\x00\x00"]
)
def test_what_is_no_command_is_refused(bench: Bench, data: bytes) -> None:
    assert bench.do(data) is Refusal.MALFORMED
    assert bench.queue() == []


def test_a_command_of_a_newer_version_is_not_guessed_at() -> None:
    with pytest.raises(NewerCommand):
        commands.decode(b"\x01\x03\x00\x00\x00\x00")


def test_what_cannot_be_said_is_not_proposed() -> None:
    with pytest.raises(ValueError, match="needs a recipient"):
        commands.encode_accept(Envelope("a@example.org", ()), [b""])
    with pytest.raises(ValueError, match="surrogates"):
        commands.encode_accept(Envelope("a\udcff@example.org", ("b@example.org",)), [b""])
    with pytest.raises(ValueError, match="without results"):
        commands.outcome_header(Outcome(message_id(1), 1, ()))
    with pytest.raises(ValueError, match="cannot end in queued"):
        commands.outcome_header(Outcome(message_id(1), 1, (Result(0, 1, RecipientState.QUEUED),)))
    with pytest.raises(ValueError, match="out of bounds"):
        commands.outcome_header(Outcome(message_id(1), 1, (Result(0, 1, RecipientState.DEFERRED, -1),)))
    with pytest.raises(ValueError, match="a bounce of"):
        commands.outcome_header(Outcome(message_id(1), 1, (Result(0, 1, RecipientState.FAILED),), bytes(2**20)))


def test_a_reply_of_any_bytes_can_be_recorded() -> None:
    reply = "550 \udcff" + "x" * 5000
    header = commands.outcome_header(
        Outcome(message_id(1), 1, (Result(0, 1, RecipientState.FAILED, 0, "5.0.0", reply),))
    )
    assert header.results[0].reply.startswith("550 ?xxx")
    assert len(header.results[0].reply) == commands.REPLY_CHARS_MAX
