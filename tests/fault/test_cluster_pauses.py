"""The leader stands still for longer than its lease (SIGSTOP) and wakes up in another world."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.nodes import DemoNode

from .cluster import LEASE_S, Stage, wait_for
from .figures import Figures
from .journal import REPEATS_PER_KILL_MAX
from .test_cluster_outages import owned_by
from .witness import DATA, DOT

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

PAUSE_S: Final = 5.0
TAKEN_OVER_S_MAX: Final = 8 * LEASE_S
QUEUED: Final = 60


async def first_words(node: DemoNode) -> dict[str, object]:
    """Ask a node that stands still for its status; it answers when it wakes, before it has learnt much."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.admin_port)
    writer.write(b"GET /v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    try:
        answer = await reader.read()
    finally:
        writer.close()
    status = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert isinstance(status, dict)
    return status


async def test_a_leader_that_stood_still_under_load_lost_nothing_and_sends_nothing_of_others(
    directory: Path, figures: Figures
) -> None:
    """Promises 1, 2, 4 and 5: whatever it says when it wakes is true."""
    async with Stage(directory) as stage:
        journal = stage.journal
        async with stage.load() as load:
            await load.wait_acknowledged(150)
            leader = await stage.cluster.leader()
            outage = stage.pause(leader)
            async with asyncio.TaskGroup() as tasks:
                asked = tasks.create_task(first_words(leader))
                await asyncio.sleep(PAUSE_S)
                stage.resume(leader)
                resumed_at = time.monotonic()
            lease = asked.result()["lease"]
            assert isinstance(lease, dict)
            assert not lease["held"], lease
            await stage.cluster.wait_ready(leader)
            outage.until = time.monotonic()
            await load.wait_acknowledged(100)
            await load.finish()
        await stage.settle()
        journal.check_mail()
        journal.check_sessions()
        # What it had written before it stood still may have been repeated by others, and nothing else.
        journal.check_repeats()
        late = [
            repeat
            for repeat in journal.repeats()
            if repeat.again.node == leader.id and repeat.again.at >= resumed_at and repeat.first.node != leader.id
        ]
        assert not late, f"it sent what others had taken: {late}"
        figures.add("paused leader: repeats", [len(journal.repeats())], "messages")


@pytest.mark.parametrize("victim_leads", [True, False], ids=["leader", "follower"])
async def test_the_queue_of_a_paused_node_is_delivered_by_the_others_and_never_by_it(
    directory: Path, figures: Figures, victim_leads: bool
) -> None:
    """Q3, Q4: the lease is counted from before it was asked for, and asked about before the final dot."""
    async with Stage(directory) as stage:
        await stage.witness.close()
        leader = await stage.cluster.leader()
        victim = leader if victim_leads else stage.cluster.others(leader)[0]
        survivors = stage.cluster.others(victim)
        heirs = {node.id for node in survivors}
        async with stage.load([victim]) as load:
            await load.wait_acknowledged(QUEUED)
            await load.finish()
        await wait_for(lambda: owned_by(stage, survivors[0], {victim.id}), "the victim owns what it accepted")
        outage = stage.pause(victim)
        await wait_for(lambda: owned_by(stage, survivors[0], heirs), "the queue moves", TAKEN_OVER_S_MAX)
        figures.add("paused node: its queue moved after", [time.monotonic() - outage.since], "s")
        # It wakes in the middle of their work.
        stage.witness.holds = lambda node, stage: stage == DOT
        await stage.witness.open()
        await wait_for(lambda: len(stage.witness.waiting(DOT)) >= 2, "the others deliver")
        stage.resume(victim)
        await asyncio.sleep(0.5)
        stage.witness.release()
        await stage.wait_delivered()
        await stage.cluster.wait_ready(victim)
        outage.until = time.monotonic()
        await stage.settle()
        stage.journal.check_mail()
        assert set(stage.journal.delivered_by(stage.journal.attempts)) <= heirs
        assert not stage.witness.dots[victim.id]
        assert not stage.journal.repeats()


async def test_a_node_that_stands_still_before_the_final_dot_never_sends_it(directory: Path) -> None:
    """Q4: it waits for the 354 when it is stopped; the 354 comes, it wakes, and others have the message."""
    async with Stage(directory) as stage:
        witness = stage.witness
        leader = await stage.cluster.leader()
        witness.holds = lambda node, stage: stage == DATA and node == leader.id
        async with stage.load([leader]) as load:
            await load.wait_acknowledged(20)
            await load.finish()
        await wait_for(lambda: len(witness.waiting(DATA)) > 0, "a delivery is under way")
        under_way = len(witness.waiting(DATA))
        outage = stage.pause(leader)
        survivor = stage.cluster.others(leader)[0]
        heirs = {node.id for node in stage.cluster.others(leader)}
        await wait_for(lambda: moved_or_gone(stage, survivor, heirs), "the queue moves", TAKEN_OVER_S_MAX)
        await stage.wait_delivered()
        witness.release()
        stage.resume(leader)
        await stage.cluster.wait_ready(leader)
        outage.until = time.monotonic()
        await wait_for(lambda: len(witness.unfinished) >= under_way, "it drops what it had begun")
        await stage.settle()
        stage.journal.check_mail()
        assert not witness.dots[leader.id]
        assert not stage.journal.repeats()


async def test_a_result_that_comes_after_the_lease_changes_nothing(directory: Path, figures: Figures) -> None:
    """Promise 4: the final dot was sent, the node stood still, others repeated it; its late 250 is of no account."""
    async with Stage(directory) as stage:
        witness = stage.witness
        leader = await stage.cluster.leader()
        witness.holds = lambda node, stage: stage == DOT and node == leader.id
        async with stage.load([leader]) as load:
            await load.wait_acknowledged(20)
            await load.finish()
        await wait_for(lambda: len(witness.waiting(DOT)) > 0, "a final dot is under way")
        await asyncio.sleep(0.2)
        under_way = witness.dots[leader.id]
        outage = stage.pause(leader)
        survivor = stage.cluster.others(leader)[0]
        heirs = {node.id for node in stage.cluster.others(leader)}
        await wait_for(lambda: moved_or_gone(stage, survivor, heirs), "the queue moves", TAKEN_OVER_S_MAX)
        witness.release()
        stage.resume(leader)
        await stage.cluster.wait_ready(leader)
        outage.until = time.monotonic()
        await stage.settle()
        stage.journal.check_mail()
        repeats = stage.journal.repeats()
        assert len(repeats) <= under_way <= REPEATS_PER_KILL_MAX
        assert {repeat.first.node for repeat in repeats} <= {leader.id}
        figures.add("paused after the dot: repeats of as many under way", [len(repeats), under_way], "messages")


async def moved_or_gone(stage: Stage, node: DemoNode, owners: set[str]) -> bool:
    return set(await stage.cluster.owners(node)) <= owners
