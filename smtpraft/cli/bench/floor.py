"""The least that any durable reply must take here: an fdatasync into space that was filled before, and a round trip.

Three processes sync at once, as three nodes on one machine must.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BLOCK_BYTES: Final = 4096
FILE_BYTES: Final = 16 << 20
SYNCERS: Final = 3
_ECHO: Final = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
peer = server.accept()[0]
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while data := peer.recv(64):
    peer.sendall(data)
"""


@dataclass(frozen=True, slots=True)
class Floor:
    """Microseconds."""

    sync_p50_us: float
    """Of each of three processes that sync at the same time."""
    sync_p99_us: float
    trip_p50_us: float
    trip_p99_us: float


def measure(directory: Path, seconds: float) -> Floor:
    """Return what fdatasyncs of 4 KiB in `directory` and a TCP round trip over loopback take."""
    command = [sys.executable, "-m", __name__, str(directory), str(seconds)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(SYNCERS)]
    syncs = [json.loads(process.communicate()[0]) for process in running]
    trip = _trips(seconds)
    return Floor(
        sorted(p50 for p50, _ in syncs)[1],
        max(p99 for _, p99 in syncs),
        percentile(trip, 50),
        percentile(trip, 99),
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of 100 values do not exceed. `ordered` is ascending and not empty."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _syncs(directory: Path, seconds: float) -> list[float]:
    block = bytes(range(256)) * (BLOCK_BYTES // 256)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        file.write(bytes(FILE_BYTES))
        os.fsync(file.fileno())
        time.sleep(0.1)  # the others are still writing their zeros
        offset = 0

        def write() -> None:
            nonlocal offset
            os.pwrite(file.fileno(), block, offset)
            os.fdatasync(file.fileno())
            offset = (offset + BLOCK_BYTES) % FILE_BYTES

        return _times_us(write, seconds)


def _trips(seconds: float) -> list[float]:
    with subprocess.Popen([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE) as echo:
        assert echo.stdout is not None
        with socket.create_connection(("127.0.0.1", int(echo.stdout.readline()))) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def ask() -> None:
                peer.sendall(bytes(64))
                peer.recv(64)

            return _times_us(ask, seconds)


def _times_us(action: Callable[[], None], seconds: float) -> list[float]:
    """Return how long each of many calls took, ascending."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    now = time.perf_counter()
    while now < end:
        action()
        before, now = now, time.perf_counter()
        times.append((now - before) * 1e6)
    return sorted(times)


def _main() -> None:
    times = _syncs(Path(sys.argv[1]), float(sys.argv[2]))
    print(json.dumps([percentile(times, 50), percentile(times, 99)]))


if __name__ == "__main__":
    _main()
