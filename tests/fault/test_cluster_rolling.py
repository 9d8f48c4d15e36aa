"""All nodes restarted one by one under load, as in an upgrade: nobody elsewhere is told no, or waits for long."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from smtpraft.cli.demo.book import Outcome

from .cluster import Stage
from .figures import Figures
from .members import members
from .test_cluster_transfers import quiet_waits_ms, small_messages

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]


async def test_all_nodes_are_restarted_one_by_one(directory: Path, figures: Figures) -> None:
    """The leader is always the next to go, so each of the stops hands leadership over first."""
    async with Stage(directory) as stage:
        cluster, journal = stage.cluster, stage.journal
        async with stage.load(clients_per_node=2, pace_s=0.05, messages=small_messages()) as load:
            await load.wait_acknowledged(100)
            begin = time.monotonic()
            await asyncio.sleep(1)
            quiet = quiet_waits_ms(journal, begin, time.monotonic())
            left = list(cluster.nodes)
            waits = []
            while left:
                leader = await cluster.leader()
                victim = leader if leader in left else left[0]
                left.remove(victim)
                before = sum(elections(stage, node.id) for node in cluster.others(victim))
                (outage,) = stage.terminate(victim)
                assert victim.process is not None
                assert await asyncio.to_thread(victim.process.wait, 20) == 0
                await asyncio.sleep(0.2)
                waits.append(max(journal.pauses(outage, within_s=1.5), default=0.0) * 1000)
                assert sum(elections(stage, node.id) for node in cluster.others(victim)) == before
                await stage.restart(outage)
                await asyncio.sleep(1)
            rows = await members(cluster.nodes[0])
            assert {str(row["role"]) for row in rows.values()} == {"voter"}
            await load.wait_acknowledged(100)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        journal.check_sessions()
        assert not journal.repeats()
        assert not journal.of(Outcome.UNKNOWN)
        figures.add("planned restarts, before: p99 of a 250", [quiet[len(quiet) * 99 // 100]], "ms")
        figures.add("planned restart of the leader: longest wait for a 250 elsewhere", waits, "ms")


def elections(stage: Stage, node_id: str) -> int:
    """Return how often this node has missed its leader and asked for votes."""
    return (stage.node(node_id).directory / "log").read_text().count("role=pre-candidate")
