"""Debian's etcd as a peer: three nodes on this machine, with the settings that its package gives."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from smtpraft.cli.bench.processes import cpu_seconds
from smtpraft.cli.bench.target import BenchFailed
from smtpraft.cluster.ports import free_ports

START_S: Final = 30.0


def why_not() -> str:
    """Return why etcd cannot be measured here, "" if it can."""
    return "" if shutil.which("etcd") else "etcd is not installed: Debian's package etcd-server"


class Etcd:
    """Three of them; `end` stops all."""

    def __init__(self, directory: Path) -> None:
        ports = free_ports(6)
        self.client_ports: Sequence[int] = ports[:3]
        self._directory = directory
        self._peer_ports = ports[3:]
        self._running: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        """Start all; return when each is healthy.

        Raises:
            BenchFailed: one is not.
        """
        self._directory.mkdir(exist_ok=True)
        names = ["e1", "e2", "e3"]
        urls = [f"http://127.0.0.1:{port}" for port in self._peer_ports]
        cluster = ",".join(f"{name}={url}" for name, url in zip(names, urls, strict=True))
        for name, url, port in zip(names, urls, self.client_ports, strict=True):
            client = f"http://127.0.0.1:{port}"
            command = [
                *("setpriv", "--pdeathsig", "KILL", "etcd", "--name", name, "--data-dir", str(self._directory / name)),
                *("--listen-peer-urls", url, "--initial-advertise-peer-urls", url),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--initial-cluster", cluster, "--initial-cluster-state", "new", "--log-level", "error"),
            ]
            with (self._directory / f"{name}.log").open("wb") as log:
                self._running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        deadline = time.monotonic() + START_S
        while not all(self._healthy(port) for port in self.client_ports):
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._running):
                raise BenchFailed("etcd did not start")
            time.sleep(0.1)

    def leader_port(self) -> int:
        """Return where the clients of the leader go.

        Raises:
            BenchFailed: there is none.
        """
        for port in self.client_ports:
            url = f"http://127.0.0.1:{port}/v3/maintenance/status"
            with urllib.request.urlopen(url, b"{}", timeout=5) as answer:
                status = json.load(answer)
            if status["leader"] == status["header"]["member_id"]:
                return port
        raise BenchFailed("etcd has no leader")

    def cpu_s(self) -> float:
        """Return the CPU of all of them since they started."""
        return sum(cpu_seconds(process.pid) for process in self._running)

    def end(self) -> None:
        """Stop all of them."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        self._running.clear()

    @staticmethod
    def _healthy(port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                return bool(json.load(answer)["health"] == "true")
        except (OSError, ValueError, KeyError):
            return False


def version() -> str:
    """Return etcd's version."""
    text = subprocess.run(["etcd", "--version"], check=True, capture_output=True, text=True).stdout
    return text.split("\n", 1)[0].removeprefix("etcd Version: ")
