"""Clusters whose members come and go: some of the stage's nodes found one, others join it, by the real command line."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from typing import Final

from smtpraft.cli.client import Json
from smtpraft.cli.demo.nodes import DemoNode

from .cluster import Cluster, Stage, wait_for

COMMAND_S: Final = 30.0


async def found(stage: Stage, founders: Sequence[DemoNode]) -> None:
    """Begin a cluster of these nodes only, and wait until each can commit."""
    for node in founders:
        peers = [f"{peer.id}=127.0.0.1:{peer.cluster_port}" for peer in founders if peer is not node]
        stage.cluster.launch(node, CLUSTER__PEERS=json.dumps(peers))
    for node in founders:
        await stage.cluster.wait_ready(node)


async def join(stage: Stage, node: DemoNode, seed: DemoNode) -> None:
    """Start a node with an empty directory that is to join the cluster of `seed`; wait until it waits."""
    launch_joining(stage.cluster, node, seed)
    await wait_for(lambda: "waiting to be admitted" in log_of(node), f"{node.id} waits to be admitted")


def launch_joining(cluster: Cluster, node: DemoNode, seed: DemoNode) -> None:
    cluster.launch(node, CLUSTER__PEERS="[]", CLUSTER__JOIN=json.dumps([f"127.0.0.1:{seed.cluster_port}"]))


async def command(node: DemoNode, *words: str) -> tuple[int, str]:
    """Run `smtpraft WORDS…` against one node's admin address; return its exit status and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "smtpraft", *words, "--endpoints", f"127.0.0.1:{node.admin_port}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(COMMAND_S):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def succeed(node: DemoNode, *words: str) -> str:
    """As `command`; it must exit with 0."""
    code, output = await command(node, *words)
    assert code == 0, f"smtpraft {' '.join(words)}: {code}: {output}"
    return output


async def members(node: DemoNode) -> dict[str, Json]:
    """Return the members as the leader sees them."""
    rows: list[Json] = json.loads(await succeed(node, "member", "list", "-w", "json"))
    return {str(row["id"]): row for row in rows}


async def add(stage: Stage, asked: DemoNode, *nodes: DemoNode) -> None:
    """Admit nodes that wait for it; return when all have a vote and can commit."""
    await succeed(asked, "member", "add", *(f"{node.id}=127.0.0.1:{node.cluster_port}" for node in nodes))
    await voting(asked, *nodes)
    for node in nodes:
        await stage.cluster.wait_ready(node)


async def voting(asked: DemoNode, *nodes: DemoNode) -> None:
    """Return when these nodes are voters."""

    async def all_vote() -> bool:
        rows = await members(asked)
        return all(node.id in rows and rows[node.id]["role"] == "voter" for node in nodes)

    await wait_for(all_vote, f"{[node.id for node in nodes]} have votes")


def wipe(node: DemoNode) -> None:
    """Its disk is lost, with all that was on it."""
    assert not node.running
    shutil.rmtree(node.directory / "data")


def log_of(node: DemoNode) -> str:
    return (node.directory / "log").read_text()
