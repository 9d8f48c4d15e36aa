"""Three smtpraft nodes as `smtpraft serve` runs them, and the ways to load them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from smtpraft.cli.bench.processes import cpu_seconds, family, wait_calm
from smtpraft.cli.bench.target import BenchFailed
from smtpraft.cli.client import Client, Json
from smtpraft.cli.demo.nodes import DemoCluster, DemoNode

DELIVERY_TIMEOUT_S: Final = 120.0
RELAY_DOMAIN: Final = "relay.example"
DISCARD_DOMAIN: Final = "discard.example"
ELECTION_MAX_MS: Final = 300.0  # the settings are the defaults: an election 150 to 300 ms after the leader's last word


class Cluster(DemoCluster):
    """The demo's cluster with the settings that a configuration file without them would give.

    Mail to `relay.example` goes to `sink_port` over SMTP, all other mail to `discard:`.
    """

    def __init__(
        self, directory: Path, sink_port: int, count: int = 3, environ: Mapping[str, str] | None = None
    ) -> None:
        """`environ`: further settings, or `SMTPRAFT_PURE`."""
        directory.mkdir(exist_ok=True)
        super().__init__(directory, count, sink_port)
        self._environ |= {
            "SMTPRAFT_CLUSTER__SEGMENT_BYTES": str(64 << 20),
            "SMTPRAFT_DELIVERY__ROUTES": f"{RELAY_DOMAIN}=smtp://127.0.0.1:{sink_port},*=discard:",
            "SMTPRAFT_DELIVERY__RETRY_S": "60,300,900",
            **(environ or {}),
        }

    def prefer_modules(self, directory: Path) -> None:
        """Have the nodes look for Python's modules in `directory` first."""
        self._environ["PYTHONPATH"] = f"{directory}{os.pathsep}{self._environ['PYTHONPATH']}"

    def begin(self) -> None:
        """Start all nodes; return when each can commit."""
        asyncio.run(self.start())
        wait_calm()

    def end(self) -> None:
        """Stop all nodes as a service manager would."""
        exits = asyncio.run(self.stop())
        if any(exits.values()):
            raise BenchFailed(f"exit statuses {exits}")

    def find_leader(self) -> DemoNode:
        """Return the leader."""
        return asyncio.run(self.leader())

    def status(self) -> list[Json]:
        """Return what each node says of itself.

        Raises:
            BenchFailed: one says nothing.
        """
        found = [status for _, status in asyncio.run(self.statuses()) if status is not None]
        if len(found) != len(self.nodes):
            raise BenchFailed("a node does not answer\n" + "\n".join(node.last_words() for node in self.nodes))
        return found

    def leader_changes(self) -> int:
        """Return how many changes of leader the node that saw most has seen."""
        return max(int(str(status["leader_changes"])) for status in self.status())

    def cpu_s(self) -> dict[str, float]:
        """CPU of each node since it started, its SMTP workers included; the one that leads is `leader`."""
        leader = self.find_leader()
        return {
            "leader" if node is leader else node.id: sum(map(cpu_seconds, family(node.process.pid)))
            for node in self.nodes
            if node.process is not None
        }

    def queued(self) -> int:
        """Return how many messages the fullest node has in its queue."""
        return max(sum(_counts(status["queue"])) for status in self.status())

    def wait_delivered(self, timeout_s: float = DELIVERY_TIMEOUT_S) -> None:
        """Return when every node has an empty queue.

        Raises:
            BenchFailed: it takes too long.
        """
        deadline = time.monotonic() + timeout_s
        while self.queued():
            if time.monotonic() > deadline:
                queues = [status["queue"] for status in self.status()]
                raise BenchFailed(f"not delivered within {timeout_s:.0f} s: {queues}")
            time.sleep(0.02)


@dataclass(frozen=True)
class NodesTarget:
    """The cluster, loaded at its leader, at one follower, or at all nodes."""

    cluster: Cluster
    where: Literal["leader", "follower", "all nodes"]
    domain: str = DISCARD_DOMAIN

    @property
    def name(self) -> str:
        return "smtpraft"

    @property
    def recipient(self) -> str:
        return f"somebody@{self.domain}"

    def ports(self) -> Sequence[int]:
        """The leader first."""
        leader = self.cluster.find_leader()
        nodes = sorted(self.cluster.nodes, key=lambda node: node is not leader)
        chosen = {"leader": nodes[:1], "follower": nodes[1:2], "all nodes": nodes}[self.where]
        return [node.smtp_port for node in chosen]

    def cpu_s(self) -> Mapping[str, float]:
        return self.cluster.cpu_s()

    def wait_delivered(self) -> None:
        self.cluster.wait_delivered()


def metric(node: DemoNode, name: str) -> float:
    """Return a metric that has no labels."""
    body = Client([], timeout_s=5.0).ask(f"127.0.0.1:{node.admin_port}", "GET", "/metrics").body.decode()
    for line in body.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rsplit(" ", 1)[1])
    raise BenchFailed(f"{node.id} has no metric {name}")


def _counts(queue: object) -> list[int]:
    return [count for count in queue.values() if isinstance(count, int)] if isinstance(queue, dict) else []
