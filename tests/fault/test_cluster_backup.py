"""A backup of a running cluster begins a new one, with all the mail that was in its queue."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.nodes import DemoCluster, DemoNode

from .cluster import Stage, wait_for
from .state import at_one_index, difference, read_state

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

QUEUED: Final = 60


async def smtpraft(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command; return its exit status, what it said and what it complained of."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SMTPRAFT_")}
    process = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "smtpraft", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environ,
    )
    return process.returncode, process.stdout, process.stderr


def config_of(node: DemoNode) -> Path:
    return node.directory / "smtpraft.toml"


def new_cluster(directory: Path, sink_port: int, count: int) -> DemoCluster:
    """Return a cluster of another name, with nodes that are called as the old ones."""
    directory.mkdir()
    cluster = DemoCluster(directory, count, sink_port)
    for node in cluster.nodes:
        text = config_of(node).read_text()
        config_of(node).write_text(text.replace('name = "demo"', 'name = "restored"'))
    return cluster


async def same_state(nodes: list[DemoNode]) -> bool:
    states = [await asyncio.to_thread(read_state, node) for node in nodes]
    if not at_one_index(states):
        return False
    assert not (differs := difference(nodes, states)), differs
    return not states[0]["messages"]


@pytest.mark.parametrize("count", [3, 1], ids=["three", "one"])
async def test_a_backup_begins_a_new_cluster_and_its_queue_is_delivered(directory: Path, count: int) -> None:
    """The old cluster is gone for good; whoever restores finds each message that it had acknowledged."""
    (directory / "old").mkdir()
    async with Stage(directory / "old") as stage:
        await stage.witness.close()
        async with stage.load() as load:
            await load.wait_acknowledged(QUEUED)
            await load.finish()
        file = directory / "backup.snap"
        old = stage.cluster.nodes
        endpoints = ",".join(f"127.0.0.1:{node.admin_port}" for node in old)
        code, said, complaint = await smtpraft("snapshot", "save", file, "--endpoints", endpoints, "-w", "json")
        assert code == 0, complaint
        saved = json.loads(said)
        assert saved["voters"] == "node-1,node-2,node-3"
        code, _, complaint = await smtpraft("snapshot", "save", file, "--endpoints", endpoints)
        assert (code, "there already" in complaint) == (1, True), complaint
        assert sorted(os.listdir(directory)) == ["backup.snap", "old"]
        stage.kill(*old)

        code, said, complaint = await smtpraft("snapshot", "status", file, "-w", "json")
        assert code == 0, complaint
        assert json.loads(said)["sha256"] == saved["sha256"]
        damaged = directory / "damaged.snap"
        content = bytearray(file.read_bytes())
        content[-1000] ^= 4
        damaged.write_bytes(content)
        assert (await smtpraft("snapshot", "status", damaged))[0] == 65
        assert (await smtpraft("snapshot", "status", old[0].directory / "smtpraft.toml"))[0] == 65

        code, _, complaint = await smtpraft("snapshot", "restore", file, "-c", config_of(old[0]))
        assert (code, "cluster.name" in complaint) == (78, True), complaint
        restored = new_cluster(directory / "new", stage.witness.port, count)
        for node in restored.nodes:
            code, said, complaint = await smtpraft("snapshot", "restore", file, "-c", config_of(node), "-w", "json")
            assert code == 0, complaint
            assert json.loads(said)["messages"] == stage.journal.undelivered
            code, _, complaint = await smtpraft("snapshot", "restore", file, "-c", config_of(node))
            assert (code, "is not empty" in complaint) == (78, True), complaint
        try:
            await restored.start()
            await stage.witness.open()
            await stage.wait_delivered()
            stage.journal.check_mail()
            await wait_for(lambda: same_state(restored.nodes), "the queue is empty on all of them")
            for node in restored.nodes:
                log = (node.directory / "log").read_text()
                assert " ERROR " not in log, log
        finally:
            restored.kill()
