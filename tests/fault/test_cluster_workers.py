"""`smtp.workers` on three nodes: a worker killed under load, a node killed with its workers, a majority lost."""

from __future__ import annotations

import asyncio
import os
import signal
import smtplib
import time
from pathlib import Path
from typing import Any

import pytest

from smtpraft.cli.demo.nodes import DemoNode

from .cluster import WAIT_S, Stage
from .figures import Figures

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

WORKERS = 2


def pids(node: DemoNode) -> list[int]:
    """Return the processes that speak SMTP for a node and listen."""
    status: dict[str, Any] = node.status() or {}
    return [int(row["pid"]) for row in status.get("smtp_workers", ()) if row["state"] == "listens"]


def runs(pid: int) -> bool:
    """Does this process exist, other than as a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def all_listen(node: DemoNode) -> list[int]:
    async with asyncio.timeout(WAIT_S):
        while len(found := await asyncio.to_thread(pids, node)) < WORKERS:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


async def test_workers_and_a_node_are_killed_under_load(directory: Path, figures: Figures) -> None:
    """Each worker of each node once, then the leader: no 250 is lost, and nothing that was refused is delivered."""
    settings = {"SMTP__WORKERS": str(WORKERS)}
    async with Stage(directory, settings=settings, expected=["ended status='signal 9'"]) as stage:
        cluster, journal = stage.cluster, stage.journal
        async with stage.load() as load:
            await load.wait_acknowledged(100)
            for node in cluster.nodes:
                for victim in await all_listen(node):
                    outage = journal.outage(node.id)
                    os.kill(victim, signal.SIGKILL)
                    await load.wait_acknowledged(20)
                    assert victim not in await all_listen(node)
                    outage.until = time.monotonic()
                    await load.wait_acknowledged(20)
            leader = await cluster.leader()
            left = await asyncio.to_thread(pids, leader)
            (outage,) = stage.kill(leader)
            await load.wait_acknowledged(50)
            async with asyncio.timeout(5):
                while any(map(runs, left)):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await stage.restart(outage)
            await all_listen(leader)
            await load.wait_acknowledged(50)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        figures.add("mail through two workers a node, acknowledged", [journal.acknowledged], "messages")
        for node in cluster.nodes:
            assert await cluster.metric(node, "smtpraft_smtp_workers") == WORKERS


async def test_workers_refuse_mail_while_there_is_no_majority_and_take_it_again(directory: Path) -> None:
    async with Stage(directory, settings={"SMTP__WORKERS": "1"}) as stage:
        first, *others = stage.cluster.nodes
        outages = stage.kill(*others)
        code = 0
        async with asyncio.timeout(WAIT_S):
            while code != 451:
                code = await asyncio.to_thread(mail_code, first)
        for outage in outages:
            await stage.restart(outage)
        async with asyncio.timeout(WAIT_S):
            while code != 250:
                code = await asyncio.to_thread(mail_code, first)


def mail_code(node: DemoNode) -> int:
    """Return the answer to MAIL."""
    with smtplib.SMTP("127.0.0.1", node.smtp_port, timeout=20) as client:
        client.ehlo()
        return client.mail("a@example.org")[0]
