"""What a message costs the queue on each node: `pytest benches/bench_spool.py`.

Beside it stands bare SQLite doing the least that could be called a queue: one narrow row in, an index moved, the row
out. Read the time per message (`per_message_us` in the extra info; the table shows a whole batch). Goals from
measurements of bare SQLite elsewhere: 85 µs a life at batch 1, 7 µs at batch 100.

Not shown: the log's own sync, the encoding of the command by its proposer, and waiting for the interpreter lock while
the event loop is busy; the checkpointing thread's work shows only as far as it takes the processor away.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from smtpraft.cluster.machine import Command, Item, NodeDown
from smtpraft.spool import commands
from smtpraft.spool.machine import SpoolMachine
from smtpraft.spool.types import (
    CHUNK_BYTES,
    Envelope,
    Outcome,
    RecipientState,
    Result,
    message_id,
)
from smtpraft.types import NodeId

A, B, C = NodeId("node-1"), NodeId("node-2"), NodeId("node-3")
BATCHES: Final = (1, 10, 100, 1000)
ENVELOPE: Final = Envelope("alice@example.org", ("bob@example.net",), client_host="192.0.2.1", helo="mail.example.org")
ACCEPT: Final = commands.encode_accept(ENVELOPE, [b"x" * 4096])
DELIVERED: Final = (Result(0, 1, RecipientState.DELIVERED, 0, "2.0.0", "250 2.0.0 Ok: queued as 4XyZ1234567890"),)
NOTES: Final = b"n" * 300  # what the cluster keeps beside


class Log:
    """Makes items with the right indexes for one machine."""

    def __init__(self, path: Path, node: NodeId = A) -> None:
        self.machine = SpoolMachine(str(path / "spool.db"), node)
        self.machine.open()
        self.index = 0

    def items(self, datas: list[bytes], node: NodeId = A) -> list[Item]:
        first, self.index = self.index + 1, self.index + len(datas)
        return [
            Command(index, 1, 1_700_000_000_000 + index, 12345, node, data) for index, data in enumerate(datas, first)
        ]

    def accepted(self, count: int, node: NodeId = A) -> list[Item]:
        return self.items([ACCEPT] * count, node)

    def done(self, first: int, count: int) -> list[Item]:
        headers = [
            commands.outcome_header(Outcome(message_id(index), index, DELIVERED))
            for index in range(first, first + count)
        ]
        return self.items([commands.encode_outcomes(headers, [])])


def measure(
    benchmark: BenchmarkFixture,
    question: str,
    setup: Callable[[], tuple[tuple[object, ...], dict[str, object]]],
    run: Callable[..., object],
    count: int,
    rounds: int,
) -> None:
    benchmark.group = question
    benchmark.pedantic(run, setup=setup, rounds=rounds, warmup_rounds=min(5, rounds))  # type: ignore[no-untyped-call]
    if benchmark.stats is not None:
        benchmark.extra_info["per_message_us"] = round(benchmark.stats.stats.median / count * 1e6, 2)
        benchmark.extra_info["target_us"] = {1: 85, 10: 20, 100: 15, 1000: 15}.get(count)


@pytest.mark.parametrize("batch", BATCHES)
def bench_life_of_a_message(benchmark: BenchmarkFixture, tmp_path: Path, batch: int) -> None:
    log = Log(tmp_path)

    def setup() -> tuple[tuple[object, ...], dict[str, object]]:
        accepted = log.accepted(batch)
        return (accepted, log.done(accepted[0].index, batch)), {}

    def life(accepted: list[Item], done: list[Item]) -> None:
        log.machine.apply(accepted, NOTES)
        log.machine.apply(done, NOTES)

    measure(benchmark, f"a life, batches of {batch}", setup, life, batch, 3000 // batch + 50)
    assert log.machine.counts()["delivered"] == log.machine.counts()["accepted"] > 0
    log.machine.close()


@pytest.mark.parametrize("batch", BATCHES)
def bench_life_in_bare_sqlite(benchmark: BenchmarkFixture, tmp_path: Path, batch: int) -> None:
    connection = apsw.Connection(str(tmp_path / "bare.db"))
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    connection.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY, sender, recipient, owner, due); CREATE TABLE m (i)")
    connection.execute("CREATE INDEX due ON queue (due) WHERE due > 0; INSERT INTO m VALUES (0)")
    cursor = connection.cursor()
    numbers = iter(range(10**9))

    def setup() -> tuple[tuple[object, ...], dict[str, object]]:
        rows = [(next(numbers), "alice@example.org", "bob@example.net", "node-1", 1) for _ in range(batch)]
        return (rows, [(row[0],) for row in rows]), {}

    def life(rows: list[tuple[int, str, str, str, int]], keys: list[tuple[int]]) -> None:
        cursor.execute("BEGIN IMMEDIATE")
        cursor.executemany("INSERT INTO queue VALUES (?, ?, ?, ?, ?)", rows)
        cursor.execute("UPDATE m SET i = ?", keys[0])
        cursor.execute("COMMIT")
        cursor.execute("BEGIN IMMEDIATE")
        cursor.executemany("UPDATE queue SET due = 0 WHERE id = ?", keys)
        cursor.executemany("DELETE FROM queue WHERE id = ?", keys)
        cursor.execute("UPDATE m SET i = ?", (keys[0][0] + 1,))
        cursor.execute("COMMIT")

    measure(benchmark, f"a life, batches of {batch}", setup, life, batch, 3000 // batch + 50)
    connection.close()


def bench_catching_up(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """A node that was away: acceptances and their outcomes come in the same batch."""
    log = Log(tmp_path, B)

    def setup() -> tuple[tuple[object, ...], dict[str, object]]:
        accepted = log.accepted(1000)
        return ([*accepted, *log.done(accepted[0].index, 1000)],), {}

    measure(benchmark, "catching up, 1000 lives", setup, lambda items: log.machine.apply(items, NOTES), 1000, 20)
    log.machine.close()


def bench_deferring(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """100 messages put off in one report, again and again."""
    log = Log(tmp_path)
    log.machine.apply(log.accepted(100), NOTES)
    attempt = 0

    def setup() -> tuple[tuple[object, ...], dict[str, object]]:
        nonlocal attempt
        attempt += 1
        result = Result(0, attempt, RecipientState.DEFERRED, 60_000, "4.4.1", "connect to mx.example.net: timed out")
        headers = [commands.outcome_header(Outcome(message_id(n), n, (result,))) for n in range(1, 101)]
        return (log.items([commands.encode_outcomes(headers, [])]),), {}

    measure(benchmark, "deferring 100", setup, lambda items: log.machine.apply(items, NOTES), 100, 100)
    assert log.machine.counts()["deferred"] == 100
    log.machine.close()


def bench_taking_over_100_000_messages(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    log = Log(tmp_path)
    for _ in range(100):
        log.machine.apply(log.accepted(1000), NOTES)
    owners = [A, B]

    def setup() -> tuple[tuple[object, ...], dict[str, object]]:
        owners.reverse()
        log.index += 1
        return ([NodeDown(log.index, 1, 0, 0, owners[1], (owners[0],))],), {}

    measure(benchmark, "node down, 100,000", setup, lambda items: log.machine.apply(items, NOTES), 100_000, 4)
    log.machine.close()


def bench_listing_a_page_of_500(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.machine.apply(log.accepted(1000), NOTES)
    benchmark.group = "a page of 500"
    page = benchmark(log.machine.reader.page, 0, 500)
    assert len(page) == 500
    log.machine.close()


def bench_copying_5_000_survivors(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """A compaction step at its worst: nothing of 5,000 entries of 4 KB has left."""
    log = Log(tmp_path)
    log.machine.read_entry = lambda _: ACCEPT

    def setup() -> tuple[tuple[object, ...], dict[str, object]]:
        log.machine.apply(log.accepted(5000), NOTES)
        return (log.index,), {}

    def compact(index: int) -> None:
        log.machine.before_compaction(index)
        assert log.machine.checkpoint() == index

    measure(benchmark, "compaction, 5,000 survivors", setup, compact, 5000, 4)
    log.machine.close()


def bench_accepting_a_chunk(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    log = Log(tmp_path)
    body = bytes(CHUNK_BYTES)
    measure(
        benchmark,
        "a chunk",
        lambda: ((log.items([commands.encode_chunk(log.index, 0, [body])]),), {}),
        lambda items: log.machine.apply(items, NOTES),
        1,
        200,
    )
    log.machine.close()
