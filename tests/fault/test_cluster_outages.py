"""More than a leader dies: all nodes at once, two of three, or one for good with mail in its queue."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.nodes import DemoNode

from .cluster import LEASE_S, Stage, wait_for
from .figures import Figures
from .talk import Talk

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

ALL_KILLED_ROUNDS: Final = 4
COMMIT_TIMEOUT_S: Final = 2.0
TAKEN_OVER_S_MAX: Final = 8 * LEASE_S  # the aim is 5 s; a shared machine gets time to breathe
QUEUED: Final = 60


async def test_all_nodes_killed_at_once_lose_nothing(directory: Path, figures: Figures) -> None:
    """What was answered 250 is on the disks of two."""
    async with Stage(directory) as stage:
        async with stage.load() as load:
            for _ in range(ALL_KILLED_ROUNDS):
                await load.wait_acknowledged(80)
                outages = stage.kill(*stage.cluster.nodes)
                for node in stage.cluster.nodes:
                    stage.cluster.launch(node)
                for outage, node in zip(outages, stage.cluster.nodes, strict=True):
                    await stage.cluster.wait_ready(node)
                    outage.until = time.monotonic()
            await load.wait_acknowledged(80)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        stage.journal.check_sessions()
        figures.add("all killed: repeats per node killed", stage.journal.repeats_by_outage(), "messages")


async def pick(stage: Stage, *, leads: bool) -> DemoNode:
    leader = await stage.cluster.leader()
    return leader if leads else stage.cluster.others(leader)[0]


@pytest.mark.parametrize("survivor_leads", [True, False], ids=["leader-left", "follower-left"])
async def test_a_minority_of_one_refuses_in_seconds_and_never_says_250(
    directory: Path, figures: Figures, survivor_leads: bool
) -> None:
    """Promise 3. It works again when another node returns, and what it refused stays refused."""
    async with Stage(directory, settings={"SMTP__COMMIT_TIMEOUT_S": str(COMMIT_TIMEOUT_S)}) as stage:
        journal = stage.journal
        async with stage.load() as load:
            await load.wait_acknowledged(100)
            await load.finish()
        survivor = await pick(stage, leads=survivor_leads)
        talks = [await Talk(survivor, journal).__aenter__() for _ in range(4)]
        at_the_dot, idle = talks[:3], talks[3]
        for talk, text in zip(at_the_dot, (b"short\r\n", b"short\r\n", b"long\r\n" * 500_000), strict=True):
            talk.write(await talk.begin(b"Subject: at the dot\r\n\r\n" + text))
            await talk.writer.drain()

        outages = stage.kill(*stage.cluster.others(survivor))
        killed_at = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            dots = [tasks.create_task(talk.end()) for talk in at_the_dot]
            mail = tasks.create_task(wait_for(lambda: mail_refused(idle), "MAIL is refused"))
        figures.add("minority: MAIL refused after", [mail.result()], "s")
        figures.add("minority: every final dot answered, or cut off, after", [time.monotonic() - killed_at], "s")
        # "" is a connection closed without a word: whether it is in the log nobody can say.
        replies = [dot.result() for dot in dots]
        assert all(reply == "" or reply.startswith("4") for reply in replies), replies
        async with Talk(survivor, journal) as late:
            asked_at = time.monotonic()
            reply = await late.say("MAIL FROM:<late@demo.example>")
            assert reply.startswith("451 4.3.0"), reply
            assert time.monotonic() - asked_at < 5
        status = await asyncio.to_thread(survivor.status)
        assert status is not None
        assert not await asyncio.to_thread(survivor.ready)

        await stage.restart(outages[0])
        await stage.cluster.wait_ready(survivor)
        pair = [survivor, stage.node(outages[0].node)]
        async with stage.load(pair) as load:
            await load.wait_acknowledged(50)
            await load.finish()
        for talk in talks:
            talk.writer.close()
        await stage.settle(pair)
        stage.check_mail()


async def mail_refused(talk: Talk) -> bool:
    reply = await talk.say("MAIL FROM:<idle@demo.example>")
    if reply.startswith("2"):
        await talk.say("RSET")
        await asyncio.sleep(0.2)  # a hundred commands without mail would end the session
        return False
    assert reply.startswith("451"), reply
    return True


@pytest.mark.parametrize("victim_leads", [True, False], ids=["leader", "follower"])
async def test_the_queue_of_a_dead_node_is_delivered_by_the_others(
    directory: Path, figures: Figures, victim_leads: bool
) -> None:
    """Promise 1, without the node ever coming back; docs/design.md, "Who delivers": evenly, and once."""
    async with Stage(directory) as stage:
        await stage.witness.close()
        victim = await pick(stage, leads=victim_leads)
        survivors = stage.cluster.others(victim)
        async with stage.load([victim]) as load:
            await load.wait_acknowledged(QUEUED)
            await load.finish()
        await wait_for(lambda: owned_by(stage, survivors[0], {victim.id}), "the victim owns what it accepted")
        (outage,) = stage.kill(victim)
        heirs = {node.id for node in survivors}
        await wait_for(lambda: owned_by(stage, survivors[0], heirs), "the queue moves", TAKEN_OVER_S_MAX)
        moved_at = time.monotonic()
        await stage.witness.open()
        await stage.wait_delivered()
        figures.add("dead node: its queue moved after", [moved_at - outage.since], "s")
        figures.add("dead node: its queue delivered after", [journal_end(stage) - outage.since], "s")
        delivered = stage.journal.delivered_by(stage.journal.attempts)
        assert set(delivered) == heirs
        assert min(delivered.values()) >= QUEUED // 4, f"not evenly: {delivered}"
        await stage.restart(outage)
        await stage.settle()
        stage.journal.check_mail()
        assert not stage.journal.repeats()


async def owned_by(stage: Stage, node: DemoNode, owners: set[str]) -> bool:
    found = await stage.cluster.owners(node)
    return bool(found) and set(found) <= owners


def journal_end(stage: Stage) -> float:
    return max(copy.at for copies in stage.journal.copies.values() for copy in copies)
