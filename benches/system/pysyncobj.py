"""PySyncObj from PyPI as a peer: the same protocol as `lognode`, so that the same generator loads it.

    python -m benches.system.pysyncobj NUMBER CLIENT_PORT DIRECTORY PEER_PORT PEER_PORT PEER_PORT

Each process is a node with its journal in a file. PySyncObj flushes it with msync, not with a sync of every batch.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from smtpraft.cli.bench.processes import cpu_seconds
from smtpraft.cli.bench.target import BenchFailed
from smtpraft.cluster.ports import free_ports

WRITE_S: Final = 20.0
START_S: Final = 30.0


def why_not() -> str:
    """Return why PySyncObj cannot be measured here, "" if it can."""
    return "" if find_spec("pysyncobj") else "PySyncObj is not installed: pip install --group peers"


class PySyncObj:
    """Three processes."""

    def __init__(self, directory: Path) -> None:
        ports = free_ports(6)
        self.client_ports: Sequence[int] = ports[:3]
        self._directory = directory
        self._peers = [str(port) for port in ports[3:]]
        self._running: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        """Start all; return when each knows a leader.

        Raises:
            BenchFailed: one does not.
        """
        self._directory.mkdir(exist_ok=True)
        for number, port in enumerate(self.client_ports):
            command = [sys.executable, "-m", __name__, str(number), str(port), str(self._directory), *self._peers]
            with (self._directory / f"{number}.log").open("wb") as log:
                self._running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log))
        for process in self._running:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise BenchFailed("PySyncObj did not start")

    def leader_port(self) -> int:
        """Return where the clients of the leader go.

        Raises:
            BenchFailed: there is none.
        """
        for port in self.client_ports:
            with socket.create_connection(("127.0.0.1", port), timeout=START_S) as client:
                client.sendall(bytes(4))
                if client.recv(12)[-1:] == b"\1":
                    return port
        raise BenchFailed("PySyncObj has no leader")

    def cpu_s(self) -> float:
        """Return the CPU of all of them since they started."""
        return sum(cpu_seconds(process.pid) for process in self._running)

    def end(self) -> None:
        """Stop all of them."""
        for process in self._running:
            process.kill()
            process.wait()
            with contextlib.suppress(AttributeError):
                process.stdout.close()  # type: ignore[union-attr]
        self._running.clear()


def main() -> None:
    """Be a node until killed."""
    from pysyncobj import SyncObj, SyncObjConf, replicated

    class Map(SyncObj):  # type: ignore[misc]
        def __init__(self, own: str, others: list[str], conf: Any) -> None:
            super().__init__(own, others, conf)
            self.values: dict[bytes, bytes] = {}

        @replicated  # type: ignore[untyped-decorator]
        def put(self, key: bytes, value: bytes) -> bool:
            self.values[key] = value
            return True

    number, client_port, directory, *peers = sys.argv[1:]
    addresses = [f"127.0.0.1:{port}" for port in peers]
    own = addresses.pop(int(number))
    conf = SyncObjConf(
        journalFile=f"{directory}/journal-{number}",
        raftMinTimeout=0.15,
        raftMaxTimeout=0.3,
        appendEntriesPeriod=0.04,
        commandsWaitLeader=True,
    )
    node = Map(own, addresses, conf)

    class Client(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            done = threading.Event()
            outcome: list[object] = []

            def answered(result: object, error: object) -> None:
                outcome[:] = [result, error]
                done.set()

            reader = self.request.makefile("rb")
            while header := reader.read(4):
                (size,) = struct.unpack(">I", header)
                if not size:
                    leader = node._getLeader()
                    self.request.sendall(struct.pack(">IQ", 0, leader is not None and str(leader) == own))
                    continue
                command = reader.read(size)
                done.clear()
                node.put(command[:16], command[16:], callback=answered)
                stored = done.wait(WRITE_S) and outcome[0] is True
                self.request.sendall(struct.pack(">IQ", 0 if stored else 1, 0))

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 1024

    deadline = threading.Event()
    while node._getLeader() is None and not deadline.wait(0.05):
        pass
    with Server(("127.0.0.1", int(client_port)), Client) as server:
        print("ready", flush=True)
        os.close(1)
        server.serve_forever()


if __name__ == "__main__":
    main()
