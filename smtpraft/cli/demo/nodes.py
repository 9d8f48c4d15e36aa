"""The demo's nodes: real `smtpraft serve` processes with ports and directories of their own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import smtpraft
from smtpraft.cli.client import Client, EndpointError, Json
from smtpraft.cluster.ports import free_ports

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 20.0
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


class NodeFailed(Exception):
    """A node did not do what it must; the text has the end of its log."""


@dataclass
class DemoNode:
    """One node, running or not."""

    id: str
    directory: Path
    cluster_port: int
    smtp_port: int
    admin_port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, environ: Mapping[str, str]) -> None:
        """Run it. Its log goes to `log` in its directory, appended."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "smtpraft", "serve", "--config", str(self.directory / "smtpraft.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environ),
                start_new_session=True,  # Ctrl-C is for the demo; it stops its nodes itself
                preexec_fn=_die_with_parent if _LIBC else None,
            )

    def kill(self) -> None:
        """SIGKILL, as the power would fail: nothing is tidied up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def status(self) -> Json | None:
        """Return what `/v1/status` says, None if there is no answer."""
        try:
            answer = Client([], timeout_s=2.0).ask(f"127.0.0.1:{self.admin_port}", "GET", "/v1/status")
        except EndpointError:
            return None
        return answer.json() if answer.status == 200 else None

    def ready(self) -> bool:
        """Can it commit?"""
        try:
            return Client([], timeout_s=2.0).ask(f"127.0.0.1:{self.admin_port}", "GET", "/readyz").status == 200
        except EndpointError:
            return False

    def last_words(self, lines: int = 15) -> str:
        """Return the end of its log."""
        try:
            text = (self.directory / "log").read_text("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(f"  {self.id}: {line}" for line in text.splitlines()[-lines:])


def _die_with_parent() -> None:
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class DemoCluster:
    """Nodes in one directory that deliver everything to one sink."""

    def __init__(self, directory: Path, count: int, sink_port: int, ports: Sequence[int] = ()) -> None:
        """`ports`: three a node for it to use; without them any that are free now."""
        self.directory = directory
        ports = ports or free_ports(3 * count)
        self.nodes = [
            DemoNode(f"node-{number}", directory / f"node-{number}", cluster, smtp, admin)
            for number, (cluster, smtp, admin) in enumerate(zip(*[iter(ports)] * 3, strict=True), start=1)
        ]
        package = str(Path(smtpraft.__file__).resolve().parent.parent)
        self._environ = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        self._environ["PYTHONPATH"] = os.pathsep.join(filter(None, [package, self._environ.get("PYTHONPATH", "")]))
        secret = directory / "secret"
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(32))
        for node in self.nodes:
            node.directory.mkdir()
            (node.directory / "smtpraft.toml").write_text(self._settings(node, secret, sink_port))

    def _settings(self, node: DemoNode, secret: Path, sink_port: int) -> str:
        peers = ", ".join(f'"{peer.id}=127.0.0.1:{peer.cluster_port}"' for peer in self.nodes if peer is not node)
        return f"""\
[node]
id = "{node.id}"
data_dir = "{node.directory / "data"}"

[cluster]
name = "demo"
listen = "127.0.0.1:{node.cluster_port}"
peers = [{peers}]
secret_file = "{secret}"
segment_bytes = 16777216

[smtp]
listen = ["127.0.0.1:{node.smtp_port}"]
hostname = "{node.id}.demo.example"

[delivery]
routes = [{{ domain = "*", to = "smtp://127.0.0.1:{sink_port}" }}]
retry_s = [1]

[admin]
listen = "127.0.0.1:{node.admin_port}"
"""

    async def start(self) -> None:
        """Start all nodes and wait until each can commit.

        Raises:
            NodeFailed: one cannot.
        """
        for node in self.nodes:
            node.start(self._environ)
        for node in self.nodes:
            await self.wait_ready(node)

    async def restart(self, node: DemoNode) -> None:
        """Start a node that was killed and wait until it can commit."""
        node.start(self._environ)
        await self.wait_ready(node)

    async def wait_ready(self, node: DemoNode) -> None:
        """Wait until `node` can commit.

        Raises:
            NodeFailed: it ended, or took too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await asyncio.to_thread(node.ready):
            if not node.running:
                code = node.process.returncode if node.process else None
                raise NodeFailed(f"{node.id} ended with exit status {code}:\n{node.last_words()}")
            if time.monotonic() > deadline:
                raise NodeFailed(f"{node.id} was not ready within {START_TIMEOUT_S:.0f} s:\n{node.last_words()}")
            await asyncio.sleep(0.1)

    async def leader(self) -> DemoNode:
        """Return the node that leads in the highest term.

        Raises:
            NodeFailed: none does for too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            found: list[tuple[int, DemoNode]] = []
            for node, status in await self.statuses():
                if status is not None and status.get("role") == "leader":
                    term = status.get("term")
                    found.append((term if isinstance(term, int) else 0, node))
            if found:
                return max(found, key=lambda pair: pair[0])[1]
            await asyncio.sleep(0.05)
        raise NodeFailed("no leader\n" + "\n".join(node.last_words() for node in self.nodes))

    async def statuses(self) -> list[tuple[DemoNode, Json | None]]:
        """Return every node with its status."""
        answers = await asyncio.gather(*(asyncio.to_thread(node.status) for node in self.nodes))
        return list(zip(self.nodes, answers, strict=True))

    async def stop(self) -> dict[str, int]:
        """Send SIGTERM to all at once; return exit statuses (-9 for one that did not end in time)."""
        for node in self.nodes:
            if node.running and node.process:
                node.process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for node in self.nodes:
            if node.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(node.process.wait, max(0.0, deadline - time.monotonic()))
        self.kill()
        return {node.id: node.process.returncode for node in self.nodes if node.process}

    def kill(self) -> None:
        """End all of them now."""
        for node in self.nodes:
            node.kill()


def _is_setting(name: str) -> bool:
    return name.startswith("SMTPRAFT_") and ("__" in name or name in ("SMTPRAFT_CONFIG", "SMTPRAFT_ENDPOINTS"))
