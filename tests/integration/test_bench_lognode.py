"""The log's node of the bench: a process of its own, and clients that leave when they like."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtpraft.cli.bench.logcluster import LogCluster

WRITE: bytes = struct.pack(">I", 16 + 8) + b"k" * 16 + b"v" * 8


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LogCluster]:
    cluster = LogCluster(tmp_path / "log", 1)
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.end()


def test_clients_that_leave_before_their_answer_harm_nobody(cluster: LogCluster) -> None:
    port = cluster.leader_port()
    with socket.create_connection(("127.0.0.1", port), timeout=20.0) as stays:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port), timeout=20.0) as leaves:
                leaves.sendall(WRITE)
        stays.sendall(WRITE)
        status, _ = struct.unpack(">IQ", stays.recv(12, socket.MSG_WAITALL))
        assert status == 0
