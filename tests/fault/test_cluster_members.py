"""Members come and go under load: nothing is lost, nobody at a node that stays is told no, and how long they waited."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.nodes import DemoNode
from smtpraft.cli.exits import Exit

from .cluster import Stage, wait_for
from .figures import Figures
from .members import add, command, found, join, launch_joining, log_of, members, succeed, voting, wipe

SHORT_LOG: Final = {"CLUSTER__MAX_LOG_ENTRIES": "200", "CLUSTER__SNAPSHOT_THRESHOLD": "100"}
"""So that who is new gets a snapshot first."""

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]


async def test_a_cluster_grows_loses_its_leader_and_has_a_lost_disk_replaced(directory: Path, figures: Figures) -> None:
    """Three nodes under load: two more, the leader removed, a wiped one replaced; then the others' state is one."""
    async with Stage(
        directory, count=5, start=False, settings=SHORT_LOG, expected=("was removed from its cluster",)
    ) as stage:
        cluster = stage.cluster
        *founders, fourth, fifth = cluster.nodes
        await found(stage, founders)
        async with stage.load(founders) as load:
            await load.wait_acknowledged(60)
            for node in (fourth, fifth):
                await join(stage, node, founders[0])
            await add(stage, founders[1], fourth, fifth)
            assert {row["role"] for row in (await members(founders[0])).values()} == {"voter"}
            assert all("installed a snapshot" in log_of(node) for node in (fourth, fifth))
            await load.wait_acknowledged(60)
            await load.finish()
        async with stage.load([node for node in founders if node is not await cluster.leader()]) as load:
            await load.wait_acknowledged(60)
            leader = await cluster.leader()
            stays = [node for node in founders if node is not leader]
            await succeed(leader, "member", "remove", leader.id)
            assert leader.id not in await members(stays[0])
            assert await exit_status(leader) == Exit.OK
            assert "was removed from the cluster by the entry at index" in log_of(leader)
            await load.wait_acknowledged(60)
            await load.finish()
        code, log = await cluster.fails_to_start(leader)
        assert code == Exit.CONFIG
        assert "this node was removed from its cluster" in log

        async with stage.load(stays) as load:
            await load.wait_acknowledged(60)
            stage.kill(fifth)
            wipe(fifth)
            waited = log_of(fifth).count("waiting to be admitted")  # it says so again and again
            launch_joining(cluster, fifth, stays[0])
            await wait_for(lambda: log_of(fifth).count("waiting to be admitted") > waited, "it waits again")
            await succeed(stays[0], "member", "replace", fifth.id)
            await voting(stays[0], fifth)
            await cluster.wait_ready(fifth)
            await load.wait_acknowledged(60)
            await load.finish()
        await stage.settle([*stays, fourth, fifth])
        stage.check_mail()
        stage.journal.check_sessions()
        waits = sorted((answer.at - answer.sent_at) * 1000 for answer in stage.journal.answers)
        figures.add("members change: p99 of all waits for a 250", [waits[len(waits) * 99 // 100]], "ms")
        figures.add("members change: longest wait for a 250", [waits[-1]], "ms")


async def exit_status(node: DemoNode) -> int:
    assert node.process is not None
    return await asyncio.to_thread(node.process.wait, 20)


async def test_what_is_unwise_is_declined_with_reasons(directory: Path) -> None:
    async with Stage(directory, count=4, start=False) as stage:
        cluster = stage.cluster
        *founders, stranger = cluster.nodes
        await found(stage, founders)
        first, second, third = founders

        async def declined(*words: str) -> str:
            code, output = await command(first, "member", *words)
            assert code == Exit.TEMPFAIL, output
            return output

        said = await declined("add", f"{stranger.id}=127.0.0.1:{stranger.cluster_port}")
        assert "no answer from" in said
        assert "smtpraft serve --join" in said
        assert "one failure from loss" in await declined("remove", third.id)
        assert "nothing to replace" in await declined("replace", third.id)
        assert "is a member already" in await declined("add", f"{third.id}=127.0.0.1:{third.cluster_port}")
        assert f"is {second.id}, not {stranger.id}" in await declined(
            "add", f"{stranger.id}=localhost:{second.cluster_port}"
        )
        assert "no member; the members are node-1, node-2, node-3" in await declined("promote", stranger.id)
        cluster.launch(stranger, CLUSTER__PEERS="[]", CLUSTER__NAME="another")
        await wait_for(lambda: " serving node=" in log_of(stranger), "it serves alone")
        assert "belongs to cluster 'another'" in await declined(
            "add", f"{stranger.id}=127.0.0.1:{stranger.cluster_port}"
        )
        stranger.kill()
        (
            stranger.directory / "log"
        ).unlink()  # it led a cluster of its own, whose terms are not to be compared with ours
        stage.kill(third)

        async def noticed() -> bool:
            return not (await members(first))[third.id]["reachable"]

        await wait_for(noticed, "the leader misses it")
        said = await declined("remove", second.id, "--force")
        assert "this would stop the cluster at once: of 2 voters then, 2 must be there, and node-3 is not" in said
        await succeed(first, "member", "remove", third.id)  # a dead one of three: no less spare than before
        assert "this leaves one copy of everything" in await declined("remove", second.id)
        await succeed(first, "member", "remove", second.id, "--force")
        assert set(await members(first)) == {first.id}
        await cluster.wait_ready(first)
