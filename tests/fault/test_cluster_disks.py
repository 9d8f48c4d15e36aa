"""The disk of a running node fails, hangs, or is the last thing it ever asked for: `strace` stands in for the disk."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.nodes import DemoNode
from smtpraft.cli.exits import Exit
from smtpraft.storage.writer import VOUCH_AFTER_S

from .cluster import WAIT_S, Stage, wait_for
from .figures import Figures
from .syscalls import Strace
from .talk import Talk

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

WRITES: Final = "pwritev,pwritev2"  # the compiled writer's, and Python's
HANG_US: Final = 5_000_000
CRAWL_US: Final = 120_000


def log_files(node: DemoNode) -> list[Path]:
    return sorted((node.directory / "data" / "wal").glob("*.*"))


async def wait_end(node: DemoNode) -> int:
    """Return the exit status once the node has ended by itself."""
    assert node.process is not None
    return await asyncio.to_thread(node.process.wait, WAIT_S)


async def test_a_sync_that_fails_ends_the_node_and_loses_nothing(directory: Path) -> None:
    """D4: after an error the kernel may have dropped the pages; to ask again would get a lie. Others take over."""
    async with Stage(directory, expected=(" ERROR ", "Traceback")) as stage:
        async with stage.load() as load:
            for node in (await stage.cluster.leader(), stage.cluster.nodes[0]):
                await load.wait_acknowledged(40)
                outage = stage.journal.outage(node.id)
                async with Strace(
                    [node], directory / "trace", inject="fdatasync:error=EIO:when=3", only=log_files(node)
                ):
                    assert await wait_end(node) == Exit.SOFTWARE, node.last_words()
                assert "Input/output error" in (node.directory / "log").read_text()
                await load.wait_acknowledged(40)
                await stage.restart(outage)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        stage.journal.check_sessions()


@pytest.mark.parametrize("who", ["leader", "follower"])
async def test_a_log_that_is_refused_every_write_takes_no_mail_and_resumes_by_itself(
    directory: Path, figures: Figures, who: str
) -> None:
    """A write that a read-only file system refuses as a whole is no failed sync: it is repeated until it is taken."""
    async with Stage(directory) as stage:
        leader = await stage.cluster.leader()
        node = leader if who == "leader" else stage.cluster.others(leader)[0]
        others = stage.cluster.others(node)
        async with stage.load(others) as load:
            await load.wait_acknowledged(60)
            began = time.monotonic()
            files = [*log_files(node), node.directory / "data" / "promises"]
            async with Strace([node], directory / "trace", inject=f"{WRITES}:error=EROFS", only=files):
                await wait_for(lambda: replies(stage, node, "452 4.3.1 "), "it says 452", 5)
                figures.add(f"writes refused ({who}): 452 after", [time.monotonic() - began], "s")
                await wait_for(lambda: led_by_one_of(stage, others), "another leads", 5)
                await load.wait_acknowledged(60)
                await asyncio.sleep(2 * VOUCH_AFTER_S)  # the marks of an idle log are refused, too
                await stage.cluster.queue(node)
                assert node.running, node.last_words()
            began = time.monotonic()
            await wait_for(lambda: replies(stage, node, "250 "), "it takes mail again", 10)
            figures.add(f"writes refused ({who}): takes mail again after", [time.monotonic() - began], "s")
            await load.wait_acknowledged(60)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        stage.journal.check_sessions()


async def replies(stage: Stage, node: DemoNode, beginning: str) -> bool:
    async with Talk(node, stage.journal) as talk:
        return (await talk.say("MAIL FROM:<a@demo.example>")).startswith(beginning)


async def test_a_leader_whose_disk_hangs_is_replaced(directory: Path, figures: Figures) -> None:
    """L7: its heartbeats alone must not keep it in office. Not even its own clients are refused: others have disks."""
    async with Stage(directory) as stage:
        async with stage.load() as load:
            await load.wait_acknowledged(60)
            leader = await stage.cluster.leader()
            others = stage.cluster.others(leader)
            began = time.monotonic()
            async with Strace(
                [leader], directory / "trace", inject=f"fdatasync:delay_enter={HANG_US}", only=log_files(leader)
            ):
                await wait_for(lambda: led_by_one_of(stage, others), "another leads")
                figures.add("leader with a hanging disk: replaced after", [time.monotonic() - began], "s")
                await load.wait_acknowledged(60)
            await load.wait_acknowledged(60)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        stage.journal.check_sessions()


async def test_a_leader_whose_disk_crawls_is_replaced_and_stays_so(directory: Path, figures: Figures) -> None:
    """Each sync is done, but late: whoever leads waits for it. It is named, and leads again when it keeps up."""
    async with Stage(directory) as stage:
        async with stage.load() as load:
            await load.wait_acknowledged(60)
            leader = await stage.cluster.leader()
            others = stage.cluster.others(leader)
            began = time.monotonic()
            async with Strace(
                [leader], directory / "trace", inject=f"fdatasync:delay_enter={CRAWL_US}", only=log_files(leader)
            ):
                await wait_for(lambda: led_by_one_of(stage, others), "another leads")
                figures.add("leader with a crawling disk: replaced after", [time.monotonic() - began], "s")
                for _ in range(10):
                    await load.wait_acknowledged(20)
                    status = await asyncio.to_thread(leader.status)
                    assert status is not None
                    assert (status["role"], status["disk"]) == ("follower", "slow")

            async def quick() -> bool:
                status = await asyncio.to_thread(leader.status)
                return status is not None and status["disk"] == "ok"

            await wait_for(quick, "its disk keeps up")
            await load.finish()
        await stage.settle()
        stage.check_mail()
        stage.journal.check_sessions()


async def led_by_one_of(stage: Stage, nodes: list[DemoNode]) -> bool:
    return any(status is not None and status["role"] == "leader" for _, status in await stage.cluster.statuses(nodes))


async def test_a_leader_killed_at_a_system_call_loses_nothing(directory: Path) -> None:
    """Aimed at the moments that matter: as it writes or syncs its log, or speaks to others."""
    async with Stage(directory) as stage:
        async with stage.load() as load:
            for when, call in enumerate(("fdatasync", WRITES, "writev", "write", "fdatasync", WRITES), start=1):
                await load.wait_acknowledged(40)
                leader = await stage.cluster.leader()
                outage = stage.journal.outage(leader.id)
                async with Strace([leader], directory / "trace", inject=f"{call}:signal=SIGKILL:when={when}"):
                    code = await wait_end(leader)
                assert code == -9
                outage.since = time.monotonic()
                await load.wait_acknowledged(40)
                await stage.restart(outage)
            await load.finish()
        await stage.settle()
        stage.check_mail()
