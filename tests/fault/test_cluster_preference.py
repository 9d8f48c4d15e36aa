"""The node that is meant to lead gets leadership back by itself, and is known by the address it advertises."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from smtpraft.cli.client import Client, Json
from smtpraft.cli.demo.nodes import DemoNode
from smtpraft.cluster.preference import STEADY_S

from .cluster import Stage, wait_for
from .figures import Figures

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]


async def ask(node: DemoNode, method: str, path: str, body: Json | None = None) -> object:
    client = Client([], timeout_s=5.0)
    answer = await asyncio.to_thread(client.ask, f"127.0.0.1:{node.admin_port}", method, path, body)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


async def test_leadership_returns_to_the_node_of_higher_priority(directory: Path, figures: Figures) -> None:
    """By transfer, after it has been well for a while: nobody at any node is told no."""
    async with Stage(directory, start=False) as stage:
        preferred, *others = stage.cluster.nodes
        for node in stage.cluster.nodes:
            priority = "100" if node is preferred else "10"
            stage.cluster.launch(
                node, CLUSTER__ELECTION_PRIORITY=priority, CLUSTER__ADVERTISE=f"localhost:{node.cluster_port}"
            )
        await asyncio.gather(*map(stage.cluster.wait_ready, stage.cluster.nodes))

        async def written_down() -> bool:
            members = await ask(preferred, "GET", "/v1/members")
            assert isinstance(members, dict)
            hosts = sorted(row["address"].partition(":")[0] for row in members["members"])
            return hosts == ["127.0.0.1", "127.0.0.1", "localhost"]

        # The first leader writes down what it advertises; the others it knows by its configuration. It is an entry of
        # its own after the one that makes a node ready.
        await wait_for(written_down, "the members are written down", 10)

        async with stage.load() as load:
            await load.wait_acknowledged(60)
            await ask(others[0], "POST", "/v1/leader/transfer", {"to": others[0].id})
            assert await stage.cluster.leader() is others[0]

            async def returned() -> bool:
                return await stage.cluster.leader() is preferred

            took = await wait_for(returned, "the preferred node leads", 3 * STEADY_S)
            assert took > STEADY_S / 2, "leadership must not wander"
            figures.add("leadership returned to the preferred node after", [took], "s")
            await load.wait_acknowledged(60)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        stage.journal.check_sessions()
