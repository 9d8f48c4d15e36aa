"""Nodes without room, and nodes whose file system stands still: on file systems of their own (`make test-faults`)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.client import Client
from smtpraft.cli.demo.nodes import DemoNode
from smtpraft.cli.exits import Exit

from .cluster import Stage, wait_for
from .figures import Figures
from .mounts import MIB, Mounts, fill, take_inodes
from .talk import Talk

pytestmark = [pytest.mark.fault, pytest.mark.privileged, pytest.mark.timeout(240)]

SMALL: Final = {
    "CLUSTER__SEGMENT_BYTES": str(4 * MIB),
    "CLUSTER__DISK_RESERVE_BYTES": str(8 * MIB),
    "CLUSTER__LOG_CACHE_BYTES": str(4 * MIB),
}
IMAGE_BYTES: Final = 768 * MIB  # sparse; a quick machine fills 160 MiB with the log that it keeps for who is away
RESUME_S: Final = 10.0
SETTLE_S: Final = 1.0  # what was sent just before a disk failed may still be on two others


def data(node: DemoNode) -> Path:
    return node.directory / "data"


async def mail_from(node: DemoNode, stage: Stage) -> str:
    async with Talk(node, stage.journal) as talk:
        return await talk.say("MAIL FROM:<a@demo.example>")


async def refuses(node: DemoNode, stage: Stage) -> bool:
    return (await mail_from(node, stage)).startswith("452 4.3.1 ")


async def takes(node: DemoNode, stage: Stage) -> bool:
    return (await mail_from(node, stage)).startswith("250 ")


async def disk_of(node: DemoNode) -> object:
    status = await asyncio.to_thread(node.status)
    return status and status["disk"]


async def start_small(stage: Stage, mounts: Mounts, options: str = "size=96m") -> None:
    for node in stage.cluster.nodes:
        mounts.tmpfs(data(node), options)
    await stage.cluster.start()


async def resumes(stage: Stage, nodes: Sequence[DemoNode], figures: Figures, what: str) -> None:
    began = time.monotonic()
    for node in nodes:
        await wait_for(lambda node=node: takes(node, stage), f"{node.id} takes mail again", RESUME_S)  # type: ignore[misc]
    figures.add(f"{what}: takes mail again after", [time.monotonic() - began], "s")


@pytest.mark.parametrize("who", ["follower", "leader", "all"])
async def test_a_full_disk_takes_no_mail_and_loses_none(directory: Path, figures: Figures, who: str) -> None:
    """452 at once; the leader hands over; the rest goes on; it resumes by itself within 10 s of there being room."""
    with Mounts() as mounts:
        async with Stage(directory, settings=SMALL, start=False) as stage:
            await start_small(stage, mounts)
            async with stage.load() as load:
                await load.wait_acknowledged(100)
                leader = await stage.cluster.leader()
                victims = {
                    "follower": stage.cluster.others(leader)[:1],
                    "leader": [leader],
                    "all": stage.cluster.nodes,
                }[who]
                fillers = [fill(data(node)) for node in victims]
                began = time.monotonic()
                for node in victims:
                    await wait_for(lambda node=node: refuses(node, stage), f"{node.id} says 452", 3)  # type: ignore[misc]
                figures.add(f"full disk ({who}): 452 after", [time.monotonic() - began], "s")
                assert all([await disk_of(node) == "full" for node in victims])
                if who != "all":
                    others = stage.cluster.others(*victims)
                    await wait_for(lambda: any_leads(stage, others), "one with room leads", 5)
                    figures.add(f"full disk ({who}): another leads after", [time.monotonic() - began], "s")
                    before = stage.journal.acknowledged
                    await load.wait_acknowledged(60)
                    assert stage.journal.acknowledged > before
                for filler in fillers:
                    filler.unlink()
                await resumes(stage, victims, figures, f"full disk ({who})")
                await load.wait_acknowledged(60)
                await load.finish()
            await stage.settle()
            stage.check_mail()


async def any_leads(stage: Stage, nodes: Sequence[DemoNode]) -> bool:
    return any(status is not None and status["role"] == "leader" for _, status in await stage.cluster.statuses(nodes))


async def test_a_full_node_still_deletes_from_the_queue(directory: Path) -> None:
    """All disks are full, and yet what nobody wants can be taken out of the queue."""
    with Mounts() as mounts:
        async with Stage(directory, settings=SMALL, start=False) as stage:
            await start_small(stage, mounts)
            node = stage.cluster.nodes[0]
            await stage.witness.close()  # nothing is delivered from now on
            async with Talk(node, stage.journal) as talk:
                assert (await talk.send()).startswith("250 ")
            fillers = [fill(data(each)) for each in stage.cluster.nodes]
            for each in stage.cluster.nodes:
                await wait_for(lambda each=each: refuses(each, stage), f"{each.id} says 452", 3)  # type: ignore[misc]
            # As `smtpraft queue list` asks: after what is committed, which a full disk applies when it has its ballast.
            (message,) = json.loads(await stage.cluster.ask(node, "/v1/queue"))["messages"]
            answer = await asyncio.to_thread(
                Client([], timeout_s=10.0).ask,
                f"127.0.0.1:{node.admin_port}",
                "POST",
                "/v1/queue/delete",
                {"ids": [message["id"]]},
            )
            assert answer.status == 200, answer.body
            assert json.loads(answer.body)
            for each in stage.cluster.nodes:
                await wait_for(lambda each=each: queue_empty(stage, each), f"{each.id} has forgotten it", 10)  # type: ignore[misc]
            for filler in fillers:
                filler.unlink()


async def queue_empty(stage: Stage, node: DemoNode) -> bool:
    return not await stage.cluster.queue(node)


async def test_a_node_without_inodes_takes_no_mail(directory: Path, figures: Figures) -> None:
    with Mounts() as mounts:
        async with Stage(directory, settings=SMALL, start=False) as stage:
            await start_small(stage, mounts, "size=96m,nr_inodes=400")
            victim = stage.cluster.others(await stage.cluster.leader())[0]
            async with stage.load(stage.cluster.others(victim)) as load:
                await load.wait_acknowledged(20)
                taken = take_inodes(data(victim))
                await wait_for(lambda: refuses(victim, stage), "it says 452", 3)
                await load.wait_acknowledged(60)
                for path in taken:
                    path.unlink()
                await resumes(stage, [victim], figures, "no inodes")
                await load.finish()
            await stage.settle()
            stage.check_mail()


@pytest.mark.parametrize("who", ["follower", "leader"])
async def test_a_node_whose_file_system_becomes_read_only_promises_nothing_more(
    directory: Path, figures: Figures, who: str
) -> None:
    """A sync that fails ends the node. If it notices before it has anything to sync, it stays, and takes no mail.

    Which of the two comes first is the kernel's to say. After a repair it goes on; nobody at the others is told no.
    """
    with Mounts() as mounts:
        async with Stage(directory, settings=SMALL, start=False, expected=(" ERROR ", "Traceback")) as stage:
            for node in stage.cluster.nodes:
                mounts.ext4(data(node), directory / f"{node.id}.img", IMAGE_BYTES)
            await stage.cluster.start()
            leader = await stage.cluster.leader()
            victim = leader if who == "leader" else stage.cluster.others(leader)[0]
            others = stage.cluster.others(victim)
            async with stage.load(others) as load, stage.load([victim]) as lost:
                await load.wait_acknowledged(60)
                outage = stage.journal.outage(victim.id)
                mounts.fail(data(victim))
                began = time.monotonic()
                await wait_for(lambda: ended_or_refuses(victim, stage), "it ends or says 452", 5)
                took = time.monotonic() - began
                await wait_for(lambda: any_leads(stage, others), "another leads", 5)
                if stays := await stays_and_serves(stage, victim):
                    figures.add(f"read-only file system ({who}): stays, 452 after", [took], "s")
                    await load.wait_acknowledged(60)
                    stays = victim.running
                if stays:
                    assert await disk_of(victim) == "read-only"
                    assert "the file system is read-only" in log_of(victim)
                    stage.terminate(victim)
                assert victim.process is not None
                code = await asyncio.to_thread(victim.process.wait, 20)
                if not stays:
                    figures.add(f"read-only file system ({who}): ended after", [time.monotonic() - began], "s")
                    assert code == Exit.SOFTWARE, victim.last_words()
                    assert "Read-only file system" in log_of(victim)
                await load.wait_acknowledged(60)
                assert not promised_since(stage, victim, began + SETTLE_S)
                code, said = await stage.cluster.fails_to_start(victim)
                assert code != 0
                assert "Read-only file system" in said
                mounts.repair(data(victim), directory / f"{victim.id}.img")
                await stage.restart(outage)
                await load.wait_acknowledged(60)
                await lost.finish()
                await load.finish()
            await stage.settle()
            stage.check_mail()
            stage.journal.check_sessions()


def log_of(node: DemoNode) -> str:
    return (node.directory / "log").read_text(errors="replace")


def promised_since(stage: Stage, node: DemoNode, moment: float) -> int:
    """Return how much mail that was sent after `moment` the node has taken."""
    return sum(answer.node == node.id and answer.sent_at > moment for answer in stage.journal.answers)


async def ended_or_refuses(node: DemoNode, stage: Stage) -> bool:
    if not node.running:
        return True
    try:
        return await refuses(node, stage)
    except (OSError, EOFError):
        return False  # it is ending just now


async def stays_and_serves(stage: Stage, node: DemoNode) -> bool:
    """If it has not ended: does it still answer those who ask what it knows? False: it has ended."""
    try:
        await stage.cluster.queue(node)
        assert not await asyncio.to_thread(node.ready)
    except Exception as error:
        await wait_for(lambda: not node.running, f"it ends, for it does not answer: {error!r}", 5)
    return node.running


async def test_a_leader_whose_file_system_stands_still_is_replaced(directory: Path, figures: Figures) -> None:
    """L7, with a real file system: fsfreeze. The clients of the others notice nothing."""
    with Mounts() as mounts:
        async with Stage(directory, settings=SMALL, start=False) as stage:
            for node in stage.cluster.nodes:
                mounts.ext4(data(node), directory / f"{node.id}.img", IMAGE_BYTES)
            await stage.cluster.start()
            leader = await stage.cluster.leader()
            others = stage.cluster.others(leader)
            async with stage.load(others) as load:
                await load.wait_acknowledged(60)
                mounts.freeze(data(leader))
                took = await wait_for(lambda: any_leads(stage, others), "another leads", 5)
                figures.add("leader on a frozen file system: replaced after", [took], "s")
                await load.wait_acknowledged(100)
                assert not await any_leads(stage, [leader])
                mounts.thaw(data(leader))
                await load.wait_acknowledged(60)
                await load.finish()
            await stage.settle()
            stage.check_mail()
