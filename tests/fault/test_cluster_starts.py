"""Starts that must not succeed, and one that must: each says what is wrong, where, and what to do."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.nodes import DemoNode
from smtpraft.cli.exits import Exit
from smtpraft.storage.batch import BATCH_HEADER_BYTES, BatchHeader, decode_header, encode_header
from smtpraft.storage.segment import SEGMENT_HEADER_BYTES, decode_segment_header

from .cluster import Stage, wait_for
from .members import succeed, voting

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

TROUBLE: Final = (" ERROR ",)
"""Here a log may have lines of that level: they are what is tested."""


async def test_a_port_that_is_taken_is_named(directory: Path) -> None:
    async with Stage(directory, start=False, expected=TROUBLE) as stage:
        node = stage.cluster.nodes[0]
        for setting, port in (
            ("cluster.listen", node.cluster_port),
            ("smtp.listen", node.smtp_port),
            ("admin.listen", node.admin_port),
        ):
            with socket.create_server(("127.0.0.1", port)):
                code, log = await stage.cluster.fails_to_start(node)
            assert code == Exit.UNAVAILABLE, log
            assert f"{setting}: cannot listen on 127.0.0.1:{port}: " in log
            assert "in use" in log.lower()


async def test_a_directory_that_is_not_this_nodes_is_refused(directory: Path) -> None:
    """Another node's, another cluster's, another election's, or one that a running process has."""
    async with Stage(directory, expected=TROUBLE) as stage:
        cluster = stage.cluster
        first, second, _ = cluster.nodes
        mine = {"NODE__DATA_DIR": str(first.directory / "data")}
        stage.kill(second)
        code, log = await cluster.fails_to_start(second, **mine)
        assert code == Exit.UNAVAILABLE, log
        assert f"{first.directory / 'data'} is in use by process {first.process.pid if first.process else 0}" in log

        stage.kill(first)
        code, log = await cluster.fails_to_start(second, **mine)
        assert code == Exit.CONFIG, log
        assert "belongs to node 'node-1', this is node 'node-2'. Set node.id to that, or node.data_dir" in log

        code, log = await cluster.fails_to_start(first, CLUSTER__NAME="another")
        assert code == Exit.CONFIG, log
        assert "belongs to cluster" in log
        assert "Set cluster.name to what it was" in log

        code, log = await cluster.fails_to_start(first, CLUSTER__ELECTION="lowest-id")
        assert code == Exit.CONFIG, log
        assert "was written with cluster.election = 'raft'" in log
        assert "set it back" in log

        for node in (first, second):  # nothing was harmed by all this
            await cluster.restart(node)
        await stage.settle()


async def test_a_directory_of_lowest_id_is_refused_by_raft(directory: Path) -> None:
    """R16: the fallback for development never shares a log with Raft, and says at every start what it is."""
    async with Stage(directory, settings={"CLUSTER__ELECTION": "lowest-id"}, expected=TROUBLE, start=False) as stage:
        cluster = stage.cluster
        node = cluster.nodes[0]
        cluster.launch(node)
        await wait_for(lambda: "serving node=" in log_of(node), "it serves")
        assert "unsafe under partitions" in log_of(node)
        node.kill()
        code, log = await cluster.fails_to_start(node, CLUSTER__ELECTION="raft")
        assert code == Exit.CONFIG, log
        assert "was written with cluster.election = 'lowest-id'" in log


async def test_a_node_with_another_secret_never_gets_in(directory: Path) -> None:
    """It says so on both sides; a new cluster waits for it, a living one does without; with the right one it joins."""
    async with Stage(directory, start=False, expected=("secret",)) as stage:
        cluster = stage.cluster
        *pair, stranger = cluster.nodes
        wrong = directory / "wrong-secret"
        wrong.touch(mode=0o600)
        wrong.write_text("0" * 64)
        for node in pair:
            cluster.launch(node)
        cluster.launch(stranger, CLUSTER__SECRET_FILE=str(wrong))
        for node in cluster.nodes:
            await wait_for(lambda node=node: "waiting for " in log_of(node), f"{node.id} waits")  # type: ignore[misc]
            assert "a new cluster begins when all of its nodes are there" in log_of(node)
            assert await cluster.ask(node, "/livez") == b"ok\n"
            status = await asyncio.to_thread(node.status)
            assert status is not None
            assert (status["leader_id"], status["commit_index"], status["has_quorum"]) == (None, 0, False)
        assert re.search(rf"waiting for .*{stranger.id} \(.*secret", log_of(pair[0]))

        stranger.kill()
        cluster.launch(stranger)
        for node in cluster.nodes:
            await cluster.wait_ready(node)
        stranger.kill()
        cluster.launch(stranger, CLUSTER__SECRET_FILE=str(wrong))
        async with stage.load(pair) as load:
            await load.wait_acknowledged(50)
            await load.finish()
        await wait_for(lambda: log_of(stranger).count(" serving node=") == 3, "it runs again")
        status = await asyncio.to_thread(stranger.status)
        assert status is not None
        assert (status["leader_id"], status["has_quorum"]) == (None, False)
        assert all(not peer["reachable"] for peer in status["peers"].values())  # type: ignore[union-attr, index, call-overload]
        for node in cluster.nodes:
            assert re.search(r"WARNING .*secret", log_of(node)), f"{node.id} does not speak of the secret"
        await stage.settle(pair)

        stranger.kill()
        await cluster.restart(stranger)
        await stage.settle()
        stage.check_mail()


@pytest.mark.parametrize("what", ["entry", "header", "file"])
async def test_a_node_whose_log_was_damaged_heals_from_the_others(directory: Path, what: str) -> None:
    """D3: what was synced and is damaged must not pass for a torn tail. It is named, and got back."""
    async with Stage(directory, expected=TROUBLE) as stage:
        cluster = stage.cluster
        async with stage.load() as load:
            await load.wait_acknowledged(150)
            await load.finish()
        await stage.settle()
        victim, other = cluster.others(await cluster.leader())
        stage.kill(victim)
        path = segments(victim)[0]
        batches = walk(path)
        offset, header = next(
            (offset, header) for offset, header in batches[len(batches) // 2 :] if header.entries_bytes > 100
        )
        if what == "file":
            path.unlink()
        else:
            flip(path, offset + (BATCH_HEADER_BYTES + header.entries_bytes // 2 if what == "entry" else 40), bit=3)

        async with stage.load() as load:
            cluster.launch(victim)
            await wait_for(lambda: "healed: " in log_of(victim), "it heals")
            await load.wait_acknowledged(50)
            await load.finish()
        assert f"damaged log file={path if what != 'file' else path.parent}" in log_of(victim)
        if what != "file":
            assert f" offset={offset} " in log_of(victim)
            assert len(list(path.parent.glob("*.damaged"))) == 1
        await stage.settle()
        stage.kill(other)  # Now the vote and the log of the healed node are half of what there is.
        pair = cluster.others(other)
        async with stage.load(pair) as load:
            await load.wait_acknowledged(50)
            await load.finish()
        await stage.settle(pair)
        stage.check_mail()
        stage.journal.check_sessions()


async def test_a_torn_tail_is_cut_and_said(directory: Path) -> None:
    """D1: a header whose entries never reached the disk, behind all that was synced."""
    async with Stage(directory) as stage:
        cluster = stage.cluster
        async with stage.load() as load:
            await load.wait_acknowledged(100)
            await load.finish()
        await stage.settle()
        victim = cluster.others(await cluster.leader())[0]
        (outage,) = stage.kill(victim)
        path = segments(victim)[-1]
        offset, last = walk(path)[-1]
        end = offset + last.size_bytes
        torn, _ = encode_header(
            BatchHeader(
                salt=last.salt,
                number=last.number + 1,
                durable=last.number,
                first_index=last.last_index + 1,
                last_index=last.last_index + 3,
                floor=last.floor,
                entries_bytes=5000,
                entries_crc=12345,
                previous_crc=last.crc,
                hard_state=last.hard_state,
            )
        )
        with path.open("r+b") as file:
            file.seek(end)
            file.write(torn + b"half of an entry")
        await stage.restart(outage)
        assert f"cut a torn tail file={path} offset={end} " in log_of(victim)
        async with stage.load() as load:
            await load.wait_acknowledged(50)
            await load.finish()
        await stage.settle()
        stage.check_mail()


async def test_an_emptied_directory_does_not_cost_what_the_others_have(directory: Path) -> None:
    """R15, R9: one disk of three is lost, the two others are kept, and so must be every message.

    A dies with its disk intact, having accepted mail with B. B loses its disk and comes back with an empty one; C was
    down meanwhile. B and C are a majority by number, but not of those who may have seen what was committed. So B has no
    say, and says what it waits for.
    """
    async with Stage(directory) as stage:
        cluster = stage.cluster
        await stage.witness.close()
        first = await cluster.leader()
        second, third = cluster.others(first)
        (third_down,) = stage.kill(third)
        async with stage.load([first]) as load:
            await load.wait_acknowledged(30)
            await load.finish()
        first_down, _ = stage.kill(first, second)
        shutil.rmtree(second.directory / "data")
        cluster.launch(second)
        cluster.launch(third)
        waits = re.compile(rf"waiting for .*run smtpraft member replace {second.id} on it")
        await wait_for(lambda: waits.search(log_of(second)) is not None, "it says that it waits")
        with pytest.raises(TimeoutError):  # none may lead until the first is back
            async with asyncio.timeout(5):
                await cluster.leader([second, third])
        assert f"knows {second.id} with data directory" in log_of(second)
        await stage.witness.open()
        cluster.launch(first)
        for outage in (first_down, third_down):
            await cluster.wait_ready(stage.node(outage.node))
        await stage.settle([first, third])
        stage.check_mail()
        status = await asyncio.to_thread(second.status)
        assert status is not None
        assert (status["leader_id"], status["commit_index"], status["has_quorum"]) == (None, 0, False)

        await succeed(third, "member", "replace", second.id)
        await voting(third, second)
        await cluster.wait_ready(second)
        await stage.settle()
        stage.check_mail()


def log_of(node: DemoNode) -> str:
    return (node.directory / "log").read_text()


def segments(node: DemoNode) -> list[Path]:
    return sorted((node.directory / "data" / "wal").glob("*.wal"))


def walk(path: Path) -> list[tuple[int, BatchHeader]]:
    """Return the offset and header of each batch of a segment."""
    data = path.read_bytes()
    segment = decode_segment_header(data[:SEGMENT_HEADER_BYTES])
    assert segment is not None
    found: list[tuple[int, BatchHeader]] = []
    offset = SEGMENT_HEADER_BYTES
    while (header := decode_header(data[offset : offset + BATCH_HEADER_BYTES])) and header.salt == segment.salt:
        found.append((offset, header))
        offset += header.size_bytes
    return found


def flip(path: Path, offset: int, *, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
