"""A member that was away until the log no longer reaches back to it: brought up under load, while everybody dies."""

from __future__ import annotations

import base64
import functools
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.nodes import DemoNode

from .cluster import Stage, wait_for
from .figures import Figures
from .journal import Outage

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]

SETTINGS: Final = {
    "CLUSTER__MAX_LOG_ENTRIES": "50",
    "CLUSTER__SNAPSHOT_THRESHOLD": "50",
    "CLUSTER__SNAPSHOT_BYTES_PER_S": str(6 * 1024 * 1024),  # so that there is time to die in mid-transfer
}
QUEUED: Final = 200  # with bodies of 45 KB on average, and what comes in ten seconds more: about 20 MB
LEFT_BEHIND_S: Final = 40.0  # a silent member is waited for for ten seconds
CATCH_UP_S: Final = 60.0
KILLS: Final = ("receiver", "sender", "receiver", "sender")

_RECEIVING: Final = re.compile(r"receiving a snapshot peer=(\S+) index=\d+ term=\d+ bytes=(\d+) from_byte=(\d+)")


def large_messages(seed: int) -> Iterator[bytes]:
    source = random.Random(seed)
    while True:
        body = base64.encodebytes(source.randbytes(source.randrange(20_000, 50_000))).replace(b"\n", b"\r\n")
        yield b"Subject: for the snapshot\r\n\r\n" + body


def log_of(node: DemoNode) -> str:
    return (node.directory / "log").read_text("utf-8", "replace")


def in_mid_transfer(node: DemoNode, before: int) -> bool:
    """Has a transfer begun after the first `before` ones, and is a good part of it on the disk, but not all?"""
    announced = _RECEIVING.findall(log_of(node))[before:]
    part = node.directory / "data" / "snapshot" / "incoming.part"
    try:
        size = part.stat().st_size
    except FileNotFoundError:
        return False
    return bool(announced) and 0.15 * int(announced[-1][1]) < size < 0.8 * int(announced[-1][1])


async def first_index(stage: Stage, node: DemoNode) -> int:
    [(_, status)] = await stage.cluster.statuses([node])
    index = status["first_index"] if status else 0
    assert isinstance(index, int)
    return index


async def test_a_member_catches_up_by_snapshot_while_sender_and_receiver_die(directory: Path, figures: Figures) -> None:
    """0 of what was acknowledged is lost, and in the end all nodes have the same state."""
    async with Stage(directory, settings=SETTINGS) as stage:
        late = stage.cluster.others(await stage.cluster.leader())[0]
        others = stage.cluster.others(late)
        async with stage.load(messages=large_messages(1)) as load:
            await load.wait_acknowledged(60)
            await load.finish()
        await stage.witness.close()  # the mail stays in the queue, and its bodies are part of the snapshot
        [(_, status)] = await stage.cluster.statuses([late])
        assert status is not None
        applied = status["applied_index"]
        assert isinstance(applied, int)
        stage.kill(late)

        async with stage.load(others, clients_per_node=3, pace_s=0.2, messages=large_messages(2)) as load:
            await load.wait_acknowledged(QUEUED, timeout_s=60)
            for node in others:

                async def forgot(node: DemoNode = node) -> bool:
                    return await first_index(stage, node) > applied + 1

                await wait_for(forgot, f"{node.id} has cut its log", LEFT_BEHIND_S)
            began = time.monotonic()
            stage.cluster.launch(late)
            seen = 0
            for victim in KILLS:
                await wait_for(functools.partial(in_mid_transfer, late, seen), "a snapshot is on its way", CATCH_UP_S)
                seen = len(_RECEIVING.findall(log_of(late)))
                if victim == "receiver":
                    stage.kill(late)
                    stage.cluster.launch(late)
                else:
                    announced = _RECEIVING.findall(log_of(late))
                    sender: Outage = stage.kill(stage.node(announced[-1][0]))[0]
                    # Its part of what it had brought stays; the next leader makes a copy of its own.
                    await stage.restart(sender)
            await wait_for(lambda: "installed a snapshot" in log_of(late), "the snapshot is installed", CATCH_UP_S)
            figures.add("snapshot: behind to installed, four kills in between", [time.monotonic() - began], "s")
            await stage.cluster.wait_ready(late)
            until = time.monotonic()
            for each in stage.journal.outages:
                if each.node == late.id:
                    each.until = until
            await load.wait_acknowledged(60)
            await load.finish()

        transfers = _RECEIVING.findall(log_of(late))
        resumed = [int(offset) for _, _, offset in transfers if int(offset)]
        assert len(transfers) >= len(KILLS), transfers
        assert resumed, f"no transfer went on where the last one was broken off: {transfers}"
        assert len({peer for peer, _, _ in transfers}) == 2, f"one of the two never sent: {transfers}"
        figures.add("snapshot: bytes that a resumed transfer did not send again", resumed, "bytes")
        await stage.witness.open()
        await stage.settle()
        stage.check_mail()
        for node in stage.cluster.nodes:
            left = [path.name for path in (node.directory / "data" / "snapshot").iterdir() if "copy-" not in path.name]
            assert left == [], f"{node.id} has left {left}"
