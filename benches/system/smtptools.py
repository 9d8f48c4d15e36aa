"""Debian's test programs for SMTP: `smtp-source` sends, `smtp-sink` takes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from smtpraft.cli.bench.load import SENDER
from smtpraft.cli.bench.target import BenchFailed

RUN_TIMEOUT_S: Final = 300.0
_START_S: Final = 5.0


def why_not() -> str:
    """Return why there is no such program here, "" if there is."""
    missing = [name for name in ("smtp-source", "smtp-sink") if shutil.which(name) is None]
    return f"{' and '.join(missing)} missing: install Debian's postfix package" if missing else ""


def source_command(port: int, recipient: str, sessions: int, messages: int, size_bytes: int) -> list[str]:
    """Return the command that sends `messages` over `sessions` that stay open."""
    return [
        *("smtp-source", "-d", "-s", str(sessions), "-m", str(messages), "-l", str(size_bytes)),
        *("-f", SENDER, "-t", recipient, f"127.0.0.1:{port}"),
    ]


def send(ports: Sequence[int], recipient: str, sessions: int, messages: int, size_bytes: int) -> float:
    """Send, sessions and messages split evenly over `ports`; return the seconds until the last 250.

    Raises:
        BenchFailed: a message was refused, or a session broke.
    """
    assert sessions >= len(ports), "a port without a session"
    commands = [
        source_command(
            port, recipient, _share(sessions, len(ports), place), _share(messages, len(ports), place), size_bytes
        )
        for place, port in enumerate(ports)
    ]
    started = time.perf_counter()
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        complaints = [process.communicate(timeout=RUN_TIMEOUT_S)[1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    elapsed_s = time.perf_counter() - started
    for command, process, complaint in zip(commands, running, complaints, strict=True):
        if process.returncode != 0:
            raise BenchFailed(f"{' '.join(command)}: {complaint.strip()}")
    return elapsed_s


@contextmanager
def sink(port: int) -> Iterator[None]:
    """Take mail at `port` and throw it away."""
    as_user = ["-u", "nobody"] if os.geteuid() == 0 else []
    command = ["setpriv", "--pdeathsig", "KILL", "smtp-sink", *as_user, f"127.0.0.1:{port}", "1000"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_listening(port, process, "smtp-sink", _START_S)
        yield
    finally:
        process.kill()
        process.wait()


def wait_listening(port: int, process: subprocess.Popen[bytes], name: str, seconds: float) -> None:
    """Return when somebody listens at `port`.

    Raises:
        BenchFailed: the process ended, or took too long.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=seconds).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchFailed(f"{name} did not start") from None
            time.sleep(0.05)
        else:
            return


def _share(total: int, parts: int, place: int) -> int:
    return total // parts + (place < total % parts)
