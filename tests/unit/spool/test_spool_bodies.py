"""Where bodies are: in the log, in several entries of it, and in copies once the log forgets."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from smtpraft.spool import commands, snapshot
from smtpraft.spool.commands import Refusal
from smtpraft.spool.types import (
    BodyPart,
    MessageId,
    Outcome,
    Recipient,
    RecipientState,
    Result,
    delivered,
    index_of,
    message_id,
    number_of,
)

from .journal import ENVELOPE, START_MS, TWO, A, B, Bench


def chunk(bench: Bench, upload: int, number: int, body: bytes) -> object:
    return bench.do(commands.encode_chunk(upload, number, [body]))


def tie(bench: Bench, upload: int, count: int, size: int, end: bytes = b"end") -> object:
    return bench.do(commands.encode_accept(ENVELOPE, [end], upload=upload, chunk_count=count, chunk_bytes=size))


def content(bench: Bench, message: MessageId, cut: int = 0) -> bytes:
    """Read a body as the client does, with a log that has forgotten the entries up to `cut`."""
    pieces = []
    for part in bench.there(message).parts:
        if part.number >> 12 <= cut:
            pieces.append(bench.machine.reader.bodies([part])[part.number])
        else:
            pieces.append(bench.journal.read_entry(part.number >> 12)[part.offset : part.offset + part.length])
    return b"".join(pieces)


def copies(path: Path) -> list[int]:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    parts = [int(part) for (part,) in connection.execute("SELECT part FROM bodies ORDER BY part")]
    connection.close()
    return parts


def chunk_rows(bench: Bench) -> int:
    assert bench.machine._store._connection is not None
    return int(bench.machine._store._connection.execute("SELECT count(*) FROM chunks").fetchall()[0][0])  # type: ignore[arg-type]


def test_chunks_and_the_last_part_make_one_body(bench: Bench) -> None:
    assert chunk(bench, 7, 1, b"two, ") == 5
    assert chunk(bench, 7, 0, b"one, ") == 5
    message = tie(bench, 7, 2, 10)
    assert message == message_id(3)
    info = bench.there(message_id(3))
    assert info.size_bytes == 13
    assert [part.number >> 12 for part in info.parts] == [2, 1, 3]
    assert content(bench, info.id) == b"one, two, end"


def test_the_last_part_may_be_empty(bench: Bench) -> None:
    chunk(bench, 7, 0, b"all")
    tie(bench, 7, 1, 3, b"")
    assert content(bench, message_id(2)) == b"all"
    assert len(bench.there(message_id(2)).parts) == 1


@pytest.mark.parametrize(("count", "size"), [(2, 6), (1, 6), (3, 9), (2, 7)])
def test_an_upload_with_a_hole_is_no_message(bench: Bench, count: int, size: int) -> None:
    chunk(bench, 7, 0, b"one")
    chunk(bench, 7, 2, b"two")
    assert tie(bench, 7, count, size) is Refusal.UPLOAD_INCOMPLETE
    assert bench.queue() == []
    assert chunk_rows(bench) == 0


def test_a_chunk_counts_once(bench: Bench) -> None:
    chunk(bench, 7, 0, b"one")
    assert chunk(bench, 7, 0, b"other") is Refusal.CHUNK_REPEATED
    tie(bench, 7, 1, 3)
    assert content(bench, message_id(3)) == b"oneend"


def test_uploads_of_different_nodes_do_not_mix(bench: Bench) -> None:
    bench.do(commands.encode_chunk(7, 0, [b"theirs"]), B)
    assert tie(bench, 7, 1, 6) is Refusal.UPLOAD_INCOMPLETE
    bench.do(commands.encode_forget_upload(7), A)
    assert chunk_rows(bench) == 1


def test_an_upload_is_forgotten_when_asked(bench: Bench) -> None:
    chunk(bench, 7, 0, b"one")
    chunk(bench, 8, 0, b"one")
    assert bench.do(commands.encode_forget_upload(7)) == 1
    assert chunk_rows(bench) == 1
    assert tie(bench, 7, 1, 3) is Refusal.UPLOAD_INCOMPLETE


def test_an_upload_ends_with_its_node(bench: Bench) -> None:
    chunk(bench, 7, 0, b"one")
    bench.down(A, B)
    assert chunk_rows(bench) == 0
    chunk(bench, 8, 0, b"one")
    bench.up(A)
    assert chunk_rows(bench) == 0


def test_an_upload_that_nobody_ended_ends_in_time(bench: Bench) -> None:
    chunk(bench, 7, 0, b"one")
    bench.journal.stamp = START_MS + 20 * 60 * 1000
    chunk(bench, 8, 0, b"one")
    assert chunk_rows(bench) == 1
    assert tie(bench, 8, 1, 3) == message_id(3)


def test_the_chunks_of_an_accepted_message_stay(bench: Bench) -> None:
    chunk(bench, 7, 0, b"one")
    tie(bench, 7, 1, 3)
    bench.down(A, B)
    bench.up(A)
    bench.do(commands.encode_forget_upload(7))
    bench.journal.stamp = START_MS + 20 * 60 * 1000
    chunk(bench, 8, 0, b"one")
    assert content(bench, message_id(2)) == b"oneend"


def test_the_chunks_go_with_their_message(bench: Bench) -> None:
    chunk(bench, 7, 0, b"one")
    tie(bench, 7, 1, 3)
    bench.outcome(message_id(2), delivered(bench.there(message_id(2)).recipients[0]))
    assert chunk_rows(bench) == 0


def test_an_upload_may_come_and_go_in_one_batch(bench: Bench) -> None:
    journal = bench.journal
    outcome = Outcome(message_id(2), 2, (Result(0, 1, RecipientState.DELIVERED),))
    bench.machine.apply(
        [
            journal.command(commands.encode_chunk(7, 0, [b"one"])),
            journal.command(commands.encode_accept(ENVELOPE, [b"end"], upload=7, chunk_count=1, chunk_bytes=3)),
            journal.command(commands.encode_outcomes([commands.outcome_header(outcome)], [])),
        ],
        b"",
    )
    assert chunk_rows(bench) == 0
    assert bench.queue() == []


# Copies


def test_compaction_copies_what_lives_and_nothing_else(bench: Bench, tmp_path: Path) -> None:
    gone, stays, later = (bench.accept(body=b"body %d" % number) for number in range(3))
    bench.outcome(gone, delivered(bench.there(gone).recipients[0]))
    bench.machine.before_compaction(index_of(stays))
    assert copies(tmp_path / "spool.db") == [number_of(stays)]
    assert content(bench, stays, cut=2) == b"body 1"
    assert content(bench, later, cut=2) == b"body 2"


def test_copies_go_with_their_message(bench: Bench, tmp_path: Path) -> None:
    one, two = bench.accept(), bench.accept()
    bench.machine.before_compaction(2)
    bench.outcome(one, delivered(bench.there(one).recipients[0]))
    assert copies(tmp_path / "spool.db") == [number_of(two)]
    bench.do(commands.encode_operator(commands.DELETE, [number_of(two)]))
    assert copies(tmp_path / "spool.db") == []


def test_chunks_are_copied_while_the_upload_is_under_way(bench: Bench, tmp_path: Path) -> None:
    """The envelope may come after the log has forgotten the first chunk."""
    chunk(bench, 7, 0, b"one, ")
    bench.machine.before_compaction(1)
    chunk(bench, 7, 1, b"two, ")
    tie(bench, 7, 2, 10)
    assert content(bench, message_id(3), cut=1) == b"one, two, end"
    bench.machine.before_compaction(3)
    assert content(bench, message_id(3), cut=3) == b"one, two, end"
    bench.outcome(message_id(3), delivered(bench.there(message_id(3)).recipients[0]))
    assert copies(tmp_path / "spool.db") == []


def test_copies_of_a_forgotten_upload_go(bench: Bench, tmp_path: Path) -> None:
    chunk(bench, 7, 0, b"one")
    bench.machine.before_compaction(1)
    bench.do(commands.encode_forget_upload(7))
    assert copies(tmp_path / "spool.db") == []


def test_bounces_of_one_entry_are_copied_each(bench: Bench, tmp_path: Path) -> None:
    messages = [bench.accept() for _ in range(2)]
    outcomes = [
        Outcome(message, index_of(message), (Result(0, 1, RecipientState.FAILED),), b"bounce of " + message.encode())
        for message in messages
    ]
    bench.report(*outcomes)
    reads: list[int] = []

    def read_entry(index: int) -> bytes:
        reads.append(index)
        return bench.journal.read_entry(index)

    bench.machine.read_entry = read_entry
    bench.machine.before_compaction(3)
    assert reads == [3], "an entry is read once"
    assert [content(bench, info.id, cut=3) for info in bench.queue()] == [b"bounce of " + m.encode() for m in messages]


def test_entries_copied_before_are_not_read_again(bench: Bench) -> None:
    for _ in range(3):
        bench.accept()
    bench.machine.before_compaction(3)
    bench.machine.read_entry = None
    bench.machine.before_compaction(3)
    bench.machine.before_compaction(1)


def test_copies_survive_a_restart_and_are_known(bench: Bench, tmp_path: Path) -> None:
    message = bench.accept()
    bench.machine.before_compaction(1)
    bench.machine.close()
    again = Bench(str(tmp_path / "spool.db"))
    again.journal = bench.journal
    again.machine.before_compaction(1)
    assert content(again, message, cut=1) == content(again, message)
    again.outcome(message, delivered(Recipient(0, "")))
    assert copies(tmp_path / "spool.db") == []
    again.machine.close()


def test_copying_goes_in_bounded_transactions_at_entry_borders(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "COPY_BYTES", 10)
    for _ in range(5):
        bench.accept(body=b"123456")
    transactions: list[int] = []
    monkeypatch.setattr(bench.machine._store, "set_copied", transactions.append)
    bench.machine.before_compaction(5)
    assert transactions == [2, 4, 5, 5]


def test_a_crash_while_copying_leaves_nothing_behind(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail at the first read, then the second, until a run passes: no copy outlives its message, none is missing."""
    monkeypatch.setattr(snapshot, "COPY_BYTES", 1)
    messages = [bench.accept(body=b"body %d" % number) for number in range(4)]
    for failing in range(1, 6):
        reads = 0

        def read_entry(index: int, failing: int = failing) -> bytes:
            nonlocal reads
            reads += 1
            if reads == failing:
                raise OSError("on purpose")
            return bench.journal.read_entry(index)

        bench.machine.close()
        bench.machine = type(bench.machine)(str(tmp_path / "spool.db"), A)
        bench.machine.open()
        bench.machine.read_entry = read_entry
        if failing < 3:
            with pytest.raises(OSError, match="on purpose"):
                bench.machine.before_compaction(4)
            bench.outcome(messages[failing], delivered(Recipient(0, "")))
        else:
            bench.machine.before_compaction(4)
    assert [info.id for info in bench.queue()] == [messages[0], messages[3]]
    assert copies(tmp_path / "spool.db") == [number_of(messages[0]), number_of(messages[3])]
    assert content(bench, messages[3], cut=4) == b"body 3"


def test_compaction_past_what_is_applied_is_a_bug(bench: Bench) -> None:
    with pytest.raises(AssertionError, match="compaction to 1, applied 0"):
        bench.machine.before_compaction(1)


def test_an_entry_shorter_than_its_body_is_a_bug(bench: Bench) -> None:
    bench.accept(TWO, b"12345")
    bench.machine.read_entry = lambda _: b"short"
    with pytest.raises(AssertionError, match="shorter than its body"):
        bench.machine.before_compaction(1)


def test_what_was_never_copied_is_not_there(bench: Bench) -> None:
    assert bench.machine.reader.bodies([BodyPart(5 << 12, 0, 1)]) == {}
