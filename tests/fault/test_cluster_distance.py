"""An election timeout that is too low for the network is spoken of, with one that would do (Raft §5.6)."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.nodes import DemoNode

from .cluster import Stage, wait_for
from .figures import Figures
from .links import Links

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

TIMEOUT_MS: Final = 500  # a loaded machine is not too slow for that, a link of 100 ms each way is
ONE_WAY_S: Final = 0.1
ROUND_TRIP_MS: Final = 2000 * ONE_WAY_S
_FAR: Final = re.compile(
    r"answers too late .*peer=(\S+) round_trip_ms=([0-9.]+) .*election_timeout_ms to (\d+) or more"
)
_NEAR: Final = re.compile(r"answers soon enough again peer=(\S+) ")


def said(node: DemoNode, pattern: re.Pattern[str], skip: int = 0) -> list[tuple[str, ...]]:
    """Return what a node's log says, in full, after the first `skip` bytes."""
    text = (node.directory / "log").read_bytes()[skip:].decode()
    return [found.groups() for found in pattern.finditer(text)]


async def test_a_network_too_slow_for_the_timeout_is_spoken_of_once(directory: Path, figures: Figures) -> None:
    """Two nodes side by side and one far away, with a timeout that is too low; then with the one that is advised."""
    async with Stage(directory, start=False) as stage:
        cluster = stage.cluster
        *near, far = cluster.nodes
        async with Links(cluster.nodes, cluster.spare_ports) as links:

            async def start(**settings: str) -> None:
                for node in cluster.nodes:
                    cluster.launch(node, **links.settings(node), **settings)
                await asyncio.gather(*map(cluster.wait_ready, cluster.nodes))

            links.move(far, ONE_WAY_S)
            await start(CLUSTER__ELECTION_TIMEOUT_MS=str(TIMEOUT_MS))
            await wait_for(lambda: all(said(node, _FAR) for node in near), "the near ones speak of the far one")
            await wait_for(lambda: len(said(far, _FAR)) == 2, "the far one speaks of both")
            warnings = [line for node in cluster.nodes for line in said(node, _FAR)]
            assert sorted(peer for peer, _, _ in warnings) == sorted([*(node.id for node in near), far.id, far.id])
            measured_ms = [float(text) for _, text, _ in warnings]
            assert min(measured_ms) >= ROUND_TRIP_MS
            figures.add("round trips over a link of 100 ms each way, as warned of", measured_ms, "ms")
            advised_ms = max(int(text) for _, _, text in warnings)
            assert advised_ms >= 10 * ROUND_TRIP_MS

            for node in cluster.nodes:
                peers = json.loads(await cluster.ask(node, "/v1/status"))["peers"]
                assert len(peers) == 2
                for peer, row in peers.items():
                    is_long = row["round_trip_ms"] >= ROUND_TRIP_MS
                    assert is_long == (far.id in (node.id, peer)), (node.id, peer, row)

            links.move(far, 0.0)
            await wait_for(lambda: all(said(node, _NEAR) for node in cluster.nodes), "it is near again")
            assert sum(len(said(node, _FAR)) for node in cluster.nodes) == len(warnings), "once each, and no more"

            links.move(far, ONE_WAY_S)
            cluster.kill()
            ends = {node.id: (node.directory / "log").stat().st_size for node in cluster.nodes}
            await start(CLUSTER__ELECTION_TIMEOUT_MS=str(advised_ms), CLUSTER__LEASE_MS=str(3 * advised_ms))
            async with stage.load() as load:
                await load.wait_acknowledged(200)
                await asyncio.sleep(5)  # more than the eight pings that a warning takes
                await load.finish()
            for node in cluster.nodes:
                assert said(node, _FAR, ends[node.id]) == []
            await stage.settle()
            stage.check_mail()
