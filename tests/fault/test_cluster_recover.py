"""A majority is lost for good: what one node has left begins a new cluster, and says what it cannot know."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.nodes import DemoNode

from .cluster import Stage, wait_for
from .test_cluster_backup import config_of, smtpraft

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

QUEUED: Final = 40


def tree(directory: Path) -> dict[str, str]:
    """Return the checksum of every file below `directory`."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def as_one(node: DemoNode, directory: Path) -> DemoNode:
    """Return a node with the ports of `node` that is a whole cluster of another name."""
    directory.mkdir()
    text = config_of(node).read_text().replace('name = "demo"', 'name = "recovered"')
    text = text.replace(str(node.directory / "data"), str(directory / "data"))
    text = re.sub(r"peers = \[.*\]", "peers = []", text)
    (directory / "smtpraft.toml").write_text(text)
    return DemoNode(node.id, directory, node.cluster_port, node.smtp_port, node.admin_port)


async def test_one_survivor_begins_a_new_cluster_and_says_what_is_lost(directory: Path) -> None:
    """Never by itself, never with the old nodes, and the directory it is made from is not touched."""
    (directory / "old").mkdir()
    async with Stage(directory / "old") as stage:
        await stage.witness.close()
        leader = await stage.cluster.leader()
        survivor, other = stage.cluster.others(leader)
        async with stage.load() as load:
            await load.wait_acknowledged(QUEUED)
            await load.finish()
        everything = {str(message["id"]) for message in await stage.cluster.queue(leader)}

        async def caught_up() -> bool:
            return {str(message["id"]) for message in await stage.cluster.queue(survivor)} == everything

        await wait_for(caught_up, "the survivor has it all")
        file = directory / "recovered.snap"
        data = survivor.directory / "data"
        code, _, complaint = await smtpraft("recover", data, "--save", file)
        assert (code, "is in use" in complaint) == (1, True), complaint
        stage.kill(survivor)
        async with stage.load([leader, other]) as load:
            await load.wait_acknowledged(QUEUED // 2)
            await load.finish()
        lost = {str(message["id"]) for message in await stage.cluster.queue(leader)} - everything
        assert lost
        stage.kill(leader, other)

        both = [node.directory / "data" for node in (survivor, other)]
        code, _, complaint = await smtpraft("recover", *both, "--save", file)
        assert (code, "are a majority" in complaint) == (1, True), complaint

        before = tree(data)
        code, said, complaint = await smtpraft("recover", data, "--save", file, "-w", "json")
        assert (code, "--accept-data-loss" in complaint) == (1, True), complaint
        report = json.loads(said)
        assert report["base"] == survivor.id
        assert all(message < report["unknown_from"] for message in everything)
        assert all(message >= report["unknown_from"] for message in lost)
        assert set(report["unconfirmed"]) <= everything
        assert (report["lost"], report["dropped"]) == ([], [])
        assert not await asyncio.to_thread(file.exists)

        new = as_one(survivor, directory / "new")
        arguments = ("recover", data, "--save", file, "--accept-data-loss", "-c", config_of(new))
        code, said, complaint = await smtpraft(*arguments)
        assert code == 0, complaint
        assert tree(data) == before
        assert sorted(os.listdir(directory)) == ["new", "old", "recovered.snap"]
        assert (await smtpraft("snapshot", "status", file))[0] == 0
        try:
            new.start(dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[2])})
            await stage.cluster.wait_ready(new)
            assert {str(message["id"]) for message in await stage.cluster.queue(new)} == everything
            stage.cluster.launch(leader)  # it comes back after all
            await stage.witness.open()
            await wait_for(lambda: stage.journal.undelivered == len(lost), "the recovered mail is delivered")
            await wait_for(lambda: "belongs to cluster" in (leader.directory / "log").read_text(), "it is turned away")
            assert not stage.journal.repeats()
        finally:
            new.kill()
