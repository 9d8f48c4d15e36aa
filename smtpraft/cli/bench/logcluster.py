"""Three processes of `lognode`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import smtpraft
from smtpraft.cli.bench.processes import cpu_seconds, wait_calm
from smtpraft.cli.bench.target import BenchFailed
from smtpraft.cluster.ports import free_ports

STOP_S: Final = 15.0


class LogCluster:
    """Started with `begin`, stopped with `end`."""

    def __init__(self, directory: Path, count: int = 3) -> None:
        ports = free_ports(2 * count)
        self.client_ports: Sequence[int] = ports[count:]
        peers = {f"n{number}": port for number, port in enumerate(ports[:count], start=1)}
        self._plans = [
            {"id": node, "directory": str(directory / node), "client": client, "peers": peers}
            for node, client in zip(peers, self.client_ports, strict=True)
        ]
        self._directory = directory
        self._running: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        """Start all; return when each can commit.

        Raises:
            BenchFailed: one cannot.
        """
        self._directory.mkdir(exist_ok=True)
        package = str(Path(smtpraft.__file__).resolve().parent.parent)
        environ = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
        }
        for plan in self._plans:
            with (self._directory / f"{plan['id']}.log").open("wb") as log:
                command = [sys.executable, "-m", "smtpraft.cli.bench.lognode", json.dumps(plan)]
                self._running.append(
                    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environ)
                )
        for process, plan in zip(self._running, self._plans, strict=True):
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                words = (self._directory / f"{plan['id']}.log").read_text("utf-8", "replace")[-2000:]
                raise BenchFailed(f"{plan['id']} did not start:\n{words}")
        wait_calm()

    def leader_port(self) -> int:
        """Return where the clients of the leader go.

        Raises:
            BenchFailed: there is none for too long.
        """
        deadline = time.monotonic() + STOP_S
        while time.monotonic() < deadline:
            for port in self.client_ports:
                with socket.create_connection(("127.0.0.1", port), timeout=STOP_S) as client:
                    client.sendall(bytes(4))
                    if client.recv(12)[-1:] == b"\1":
                        return port
            time.sleep(0.05)
        raise BenchFailed("no leader")

    def cpu_s(self) -> float:
        """Return the CPU of all of them since they started."""
        return sum(cpu_seconds(process.pid) for process in self._running)

    def end(self) -> None:
        """Stop all of them."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._running.clear()
