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
    "CLUSTER__SNAPSHOT_BYTES_PER_S": str(4 * 1024 * 1024),  # so that there is time to die in mid-transfer
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


class Transfers:
    """What a node says of the snapshots that it receives. Its log grows by the second, so each byte is read once."""

    def __init__(self, node: DemoNode) -> None:
        self._log = node.directory / "log"
        self._part = node.directory / "data" / "snapshot" / "incoming.part"
        self._read_bytes = 0
        self._rest = ""
        self.begun: list[tuple[str, int, int]] = []
        """Of each: who sends, how many bytes there are, and from which byte on it sends."""
        self.installed = False

    def look(self) -> None:
        with self._log.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        self._read_bytes += len(data)
        text, _, self._rest = (self._rest + data.decode("utf-8", "replace")).rpartition("\n")
        self.begun += [(peer, int(size), int(first)) for peer, size, first in _RECEIVING.findall(text)]
        self.installed = self.installed or "installed a snapshot" in text

    def in_the_middle(self, before: int) -> bool:
        """Has a transfer begun after the first `before` ones, and brought something, but by far not all?

        Each may begin where the last one ended: it is interrupted early, to leave something for those that follow.
        """
        self.look()
        assert not self.installed, f"installed before it was interrupted often enough: {self.begun}"
        if len(self.begun) <= before:
            return False
        try:
            size = self._part.stat().st_size
        except FileNotFoundError:
            return False
        _, total, first = self.begun[-1]
        return first + 0.03 * total < size < 0.9 * total


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
            transfers = Transfers(late)
            for victim in KILLS:
                seen = len(transfers.begun)
                await wait_for(functools.partial(transfers.in_the_middle, seen), "a snapshot is on its way", CATCH_UP_S)
                if victim == "receiver":
                    stage.kill(late)
                    stage.cluster.launch(late)
                else:
                    sender: Outage = stage.kill(stage.node(transfers.begun[-1][0]))[0]
                    # Its part of what it had brought stays; the next leader makes a copy of its own.
                    await stage.restart(sender)

            def installed() -> bool:
                transfers.look()
                return transfers.installed

            await wait_for(installed, "the snapshot is installed", CATCH_UP_S)
            figures.add("snapshot: behind to installed, four kills in between", [time.monotonic() - began], "s")
            await stage.cluster.wait_ready(late)
            until = time.monotonic()
            for each in stage.journal.outages:
                if each.node == late.id:
                    each.until = until
            await load.wait_acknowledged(60)
            await load.finish()

        resumed = [first for _, _, first in transfers.begun if first]
        assert len(transfers.begun) >= len(KILLS), transfers.begun
        assert resumed, f"no transfer went on where the last one was broken off: {transfers.begun}"
        assert len({peer for peer, _, _ in transfers.begun}) == 2, f"one of the two never sent: {transfers.begun}"
        figures.add("snapshot: bytes that a resumed transfer did not send again", resumed, "bytes")
        await stage.witness.open()
        await stage.settle()
        stage.check_mail()
        for node in stage.cluster.nodes:
            left = [path.name for path in (node.directory / "data" / "snapshot").iterdir() if "copy-" not in path.name]
            assert left == [], f"{node.id} has left {left}"
