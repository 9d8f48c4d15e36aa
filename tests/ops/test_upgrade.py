"""A cluster goes from the release before this one to this one, node by node, under load; old and new ones lead."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtpraft.cli.client import Client
from smtpraft.cli.demo.book import Outcome
from smtpraft.cli.demo.nodes import DemoNode
from tests.fault.cluster import Cluster, Stage, wait_for
from tests.fault.load import Load

from .previous import build_previous

pytestmark = [pytest.mark.ops, pytest.mark.timeout(300)]

LEADS_S = 2.0
"""So long each combination of leader and followers works under load."""


@pytest.fixture(scope="module")
def previous() -> Iterator[Path]:
    """The package of the release before this one."""
    with tempfile.TemporaryDirectory(prefix="smtpraft-previous-") as name:
        yield build_previous(Path(name))


def launch_previous(cluster: Cluster, node: DemoNode, package: Path) -> None:
    """Start `node` with the release before this one."""
    # Without PYTHONSAFEPATH the tree that the tests are started in would come first.
    node.start(os.environ | {"PYTHONPATH": str(package), "PYTHONSAFEPATH": "1"})


async def lead(cluster: Cluster, node: DemoNode) -> None:
    """Have `node` lead, asked for by a hand-over."""

    async def leads() -> bool:
        leader = await cluster.leader()
        if leader is not node:
            endpoint = f"127.0.0.1:{leader.admin_port}"
            ask = Client([], timeout_s=5.0).ask
            await asyncio.to_thread(ask, endpoint, "POST", "/v1/leader/transfer", {"to": node.id})
            await asyncio.sleep(0.3)
        return leader is node

    await wait_for(leads, f"{node.id} leads")


async def works(cluster: Cluster, load: Load) -> None:
    """The cluster as it is now takes mail, and all that answer are of one mind at one index."""
    await load.wait_acknowledged(60)
    until = time.monotonic() + LEADS_S
    while time.monotonic() < until:
        await cluster.statuses()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("first", ["leader", "follower"])
async def test_the_previous_release_and_this_one_run_side_by_side(tmp_path: Path, previous: Path, first: str) -> None:
    """Three nodes are upgraded one by one, the leader or a follower; after each, an old and a new node lead in turn."""
    async with Stage(tmp_path, start=False) as stage:
        cluster, journal = stage.cluster, stage.journal
        for node in cluster.nodes:
            launch_previous(cluster, node, previous)
        for node in cluster.nodes:
            await cluster.wait_ready(node)
        async with stage.load(clients_per_node=2) as load:
            await works(cluster, load)
            old, new = list(cluster.nodes), list[DemoNode]()
            while old:
                leader = await cluster.leader()
                victim = next((node for node in old if node is not leader), old[0])
                if first == "leader":
                    await lead(cluster, victim)
                (outage,) = stage.terminate(victim)
                assert victim.process is not None
                assert await asyncio.to_thread(victim.process.wait, 20) == 0
                await stage.restart(outage)
                old.remove(victim)
                new.append(victim)
                for node in (*old[:1], new[-1]):
                    await lead(cluster, node)
                    await works(cluster, load)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        journal.check_sessions()
        assert not journal.repeats()
        assert not journal.of(Outcome.UNKNOWN)
        print(f"\n{first} first: acknowledged={len(journal.answers)} lost=0 repeats={len(journal.repeats())}")


async def test_the_previous_release_declines_what_this_one_wrote(tmp_path: Path, previous: Path) -> None:
    """There is no way back on the same directory: an old node says so, and leaves the newer database as it is."""
    async with Stage(tmp_path, count=1, expected=(" ERROR ", " CRITICAL ", "Traceback")) as stage:
        (node,) = stage.cluster.nodes
        stage.terminate(node)
        assert node.process is not None
        assert await asyncio.to_thread(node.process.wait, 20) == 0
        database = node.directory / "data" / "spool" / "queue.db"
        before = database.read_bytes()
        launch_previous(stage.cluster, node, previous)
        assert await asyncio.to_thread(node.process.wait, 20) != 0
        assert "this version reads up to" in (node.directory / "log").read_text()
        assert database.read_bytes() == before
        await stage.cluster.restart(node)
