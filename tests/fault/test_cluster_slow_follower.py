"""A follower that stands still costs its leader bounded memory, and nobody latency; then it catches up."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import pytest

from smtpraft.cli.demo.nodes import DemoNode

from .cluster import Stage, wait_for
from .figures import Figures
from .journal import Journal

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

MIB: Final = 1024 * 1024
MESSAGE_BYTES: Final = 100_000
PACE_S: Final = 0.25  # of ten clients: some 4 MB a second
WARM_S: Final = 4.0
STILL_S: Final = 12.0  # four times the silence after which a connection is given up
SETTINGS: Final = {
    "CLUSTER__LOG_CACHE_BYTES": str(8 * MIB),
    "CLUSTER__MAX_INFLIGHT_BYTES": str(4 * MIB),
    "CLUSTER__MAX_LOG_ENTRIES": "100",
}
GROWTH_BYTES_MAX: Final = 24 * MIB  # what may be under way, what may be cached, and what an allocator keeps
LOGGED_BYTES_MIN: Final = 32 * MIB  # more than that, or the bound above would prove nothing
CAUGHT_UP_S_MAX: Final = 20.0


def messages() -> Iterator[bytes]:
    source = random.Random(1)
    while True:
        body = base64.encodebytes(source.randbytes(MESSAGE_BYTES * 3 // 4)).replace(b"\n", b"\r\n")
        yield b"Subject: bulk\r\n\r\n" + body


def resident_bytes(node: DemoNode) -> int:
    assert node.process is not None
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


async def most_resident(node: DemoNode, seconds: float) -> int:
    """Watch a node for so long; return its largest resident size."""
    most = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        most = max(most, resident_bytes(node))
        await asyncio.sleep(0.1)
    return most


def waits_ms(journal: Journal, since: float, until: float) -> list[float]:
    """Return how long the 250s took whose final dots left in that time."""
    return [(a.at - a.sent_at) * 1000 for a in journal.answers if since <= a.sent_at < until]


async def applied(stage: Stage, node: DemoNode) -> int:
    return int(await stage.cluster.metric(node, "smtpraft_raft_last_applied_index"))


async def test_a_follower_that_stands_still_costs_bounded_memory_and_no_latency(
    directory: Path, figures: Figures
) -> None:
    """cockroach#90314: 2 GiB for each slow follower, as only messages were counted and not their bytes."""
    async with Stage(directory, settings=SETTINGS) as stage:
        journal = stage.journal
        leader = await stage.cluster.leader()
        victim, other = stage.cluster.others(leader)
        async with stage.load([leader, other], pace_s=PACE_S, messages=messages()) as load:
            await load.wait_acknowledged(20)
            warm = time.monotonic()
            before = await most_resident(leader, WARM_S)
            logged = await stage.cluster.metric(leader, "smtpraft_wal_write_bytes_total")
            outage = stage.pause(victim)
            during = await most_resident(leader, STILL_S)
            logged = await stage.cluster.metric(leader, "smtpraft_wal_write_bytes_total") - logged
            assert await stage.cluster.leader([leader, other]) is leader
            sent = await stage.cluster.metric(leader, "smtpraft_network_peer_sent_bytes_total")
            woken = time.monotonic()
            target = await applied(stage, leader)
            stage.resume(victim)
            caught_up_s = await wait_for(
                lambda: caught_up(stage, victim, target), "the follower catches up", CAUGHT_UP_S_MAX
            )
            after = await most_resident(leader, 1.0)
            await stage.cluster.wait_ready(victim)
            outage.until = time.monotonic()
            await load.finish()
        await stage.settle()
        journal.check_mail()
        journal.check_sessions()
        usual, still = waits_ms(journal, warm, outage.since), waits_ms(journal, outage.since, woken)
        growth = max(during, after) - before
        figures.add("follower stands still: leader grows", [growth / MIB], "MiB")
        figures.add("follower stands still: logged meanwhile", [logged / MIB], "MiB")
        figures.add("follower stands still: 250 before", usual, "ms")
        figures.add("follower stands still: 250 meanwhile", still, "ms")
        figures.add("follower stands still: 99 of 100 within, before", [_p99(usual)], "ms")
        figures.add("follower stands still: 99 of 100 within, meanwhile", [_p99(still)], "ms")
        figures.add("follower stands still: caught up in", [caught_up_s], "s")
        assert logged >= LOGGED_BYTES_MIN, f"{logged / MIB:.0f} MiB: too little load to prove anything"
        assert sent >= LOGGED_BYTES_MIN, "what the leader logged it has sent to the follower that is there"
        assert growth <= GROWTH_BYTES_MAX, f"the leader grew by {growth / MIB:.0f} MiB"
        assert median(still) <= 2 * median(usual) + 10, f"250s took {median(still):.1f} ms, {median(usual):.1f} before"


async def caught_up(stage: Stage, node: DemoNode, target: int) -> bool:
    return await applied(stage, node) >= target


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]
