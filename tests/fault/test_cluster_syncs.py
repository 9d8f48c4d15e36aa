"""Seen from the kernel: no 250 leaves before two nodes have synced its message, and one sync serves many."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from .cluster import Stage
from .figures import Figures
from .syscalls import SYNCS, Call, Promise, Strace, promises, queue_ids, read_trace

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

SESSIONS_PER_NODE: Final = 17  # 51 together
MESSAGES: Final = 400
MESSAGES_PER_SYNC_MIN: Final = 3

# Under strace everything is several times slower; that is no reason to elect.
PATIENT: Final = {"CLUSTER__ELECTION_TIMEOUT_MS": "2000", "CLUSTER__LEASE_MS": "20000"}


def small_messages() -> Iterator[bytes]:
    while True:
        yield b"Subject: small\r\n\r\n" + b"y" * 600 + b"\r\n"


async def test_no_250_leaves_before_two_nodes_have_synced_it(directory: Path, figures: Figures) -> None:
    """Promise 1; Q2, R8, R9."""
    trace = directory / "trace"
    async with Stage(directory, settings=PATIENT) as stage:
        async with (
            Strace(stage.cluster.nodes, trace),
            stage.load(clients_per_node=SESSIONS_PER_NODE, pace_s=0.02, messages=small_messages()) as load,
        ):
            await load.wait_acknowledged(MESSAGES, timeout_s=100)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        acknowledged = stage.journal.acknowledged
        logs = [(node.directory / "log").read_text() for node in stage.cluster.nodes]

    ids = queue_ids(logs)
    with trace.open(encoding="latin-1") as lines:
        calls = await asyncio.to_thread(read_trace, lines)
    found = list(promises(calls, ids))
    assert len(found) == acknowledged, "the trace lacks some replies: it proves nothing about them"
    early = [promise for promise in found if len(promise.synced) < 2]
    assert not early, f"{len(early)} of {len(found)} left early: {early[:5]}"

    # A checker that sees everything would see a missing sync, on any two nodes, and one that came too late.
    for kept in ("node-1", "node-2", "node-3"):
        deaf = [call for call in calls if call.name not in SYNCS or f"/{kept}/" in call.path]
        assert all(len(promise.synced) < 2 for promise in promises(deaf, ids))
    assert_checker_sees_a_late_sync(calls, ids, found)

    syncs = Counter(call.path.rsplit("/", 4)[1] for call in calls if call.name in SYNCS and "/data/wal/" in call.path)
    figures.add("under strace: messages per sync of a node", [acknowledged / n for n in syncs.values()], "messages")
    assert max(syncs.values()) * MESSAGES_PER_SYNC_MIN <= acknowledged, f"{syncs} for {acknowledged} messages"


def assert_checker_sees_a_late_sync(calls: list[Call], ids: dict[str, str], found: list[Promise]) -> None:
    """Let every sync end after the last reply: no message may pass then."""
    end = found[-1].begin + 1
    late = [
        Call(call.name, call.path, call.text, call.begin, end, call.result) if call.name in SYNCS else call
        for call in calls
    ]
    assert not any(promise.synced for promise in promises(late, ids))


async def test_one_sync_serves_many_messages(directory: Path, figures: Figures) -> None:
    """Group commit at every node, counted by its own metrics, at fifty sessions and full speed."""
    async with Stage(directory) as stage:
        nodes = stage.cluster.nodes
        name = "smtpraft_wal_fsync_duration_seconds_count"
        before = [await stage.cluster.metric(node, name) for node in nodes]
        async with stage.load(clients_per_node=SESSIONS_PER_NODE, pace_s=0, messages=small_messages()) as load:
            await load.wait_acknowledged(2000, timeout_s=60)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        syncs = [await stage.cluster.metric(node, name) - count for node, count in zip(nodes, before, strict=True)]
        acknowledged = stage.journal.acknowledged
        figures.add("messages per sync of a node", [acknowledged / count for count in syncs], "messages")
        assert max(syncs) * MESSAGES_PER_SYNC_MIN <= acknowledged, f"{syncs} for {acknowledged} messages"


def test_the_trace_is_read_as_strace_writes_it() -> None:
    """Calls of several threads, interrupted by each other; the second 250 leaves before a second node has synced."""
    calls = read_trace(
        r"""
10 1.0 pwritev(13</t/node-1/data/wal/1.wal>, [{iov_base="(smtpraft) with ESMTP id a-1\r\n", iov_len=9}], 1, 4096) = 9
20 1.1 pwritev(14</t/node-2/data/wal/1.wal>, [{iov_base="(smtpraft) with ESMTP id a-1;\r\n"}], 1, 4096 <unfinished ...>
10 1.2 fdatasync(13</t/node-1/data/wal/1.wal> <unfinished ...>
20 1.3 <... pwritev resumed>) = 9
20 1.4 fdatasync(14</t/node-2/data/wal/1.wal> <unfinished ...>
10 1.5 <... fdatasync resumed>) = 0
20 1.6 <... fdatasync resumed>) = 0
11 1.7 write(5<socket:[1]>, "250 2.0.0 Ok: queued as M1\r\n", 28) = 28
20 1.8 pwritev(14</t/node-2/data/wal/1.wal>, [{iov_base="(smtpraft) with ESMTP id a-2;\r\n"}], 1, 8192) = 9
10 1.8 fdatasync(13</t/node-1/data/wal/1.wal> <unfinished ...>
10 1.8 pwritev(13</t/node-1/data/wal/1.wal>, [{iov_base="(smtpraft) with ESMTP id a-2\r\n", iov_len=9}], 1, 8192) = 9
10 1.9 <... fdatasync resumed>) = 0
20 1.9 fdatasync(14</t/node-2/data/wal/1.wal>) = 0
11 1.9 write(5<socket:[1]>, "250 2.0.0 Ok: queued as M2\r\n", 28) = 28
""".splitlines()
    )
    found = list(promises(calls, {"a-1": "M1", "a-2": "M2"}))
    assert [(promise.queue_id, promise.synced) for promise in found] == [
        ("M1", ("node-1", "node-2")),
        ("M2", ("node-2",)),
    ]
