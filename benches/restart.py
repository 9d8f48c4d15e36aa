"""How long a node with a full queue and a long log takes to be ready after a restart, and how much memory it needs.

    python -m benches.restart [--messages 1000000] [--log-mib 1024] [--directory DIR]

Builds the data directory of a cluster of one in place, through the log, the applier and the state machine that a node
uses, then starts `smtpraft serve` on it and asks `/readyz`. Messages are held back, so that nothing is delivered.
What it does not show: other members, deliveries, a disk whose cache is cold.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from smtpraft.cli.demo.nodes import free_ports
from smtpraft.cluster import envelope
from smtpraft.cluster.applier import Applier, Batch, Result
from smtpraft.cluster.settings import derive_cluster_id
from smtpraft.fastlog import ENTRY_NORMAL, Log
from smtpraft.spool import commands
from smtpraft.spool.machine import SpoolMachine
from smtpraft.spool.types import ORDINAL_BITS, Envelope
from smtpraft.storage import HardState, Identity, RealDisk, Standing, Wal
from smtpraft.types import NodeId

NODE: Final = NodeId("node-1")
BATCH: Final = 16  # messages a write: what a busy node's group commit gathers
STAMP_MS: Final = 1_700_000_000_000


def build(directory: Path, messages: int, log_bytes: int) -> None:
    """Fill a data directory: so many messages queued, and a log of about so many bytes behind them."""
    cluster_id = derive_cluster_id("restart", [NODE])
    identity = Identity.open(
        str(directory), cluster_id=cluster_id, node_id=NODE, election="raft", cluster_name="restart"
    )
    identity.record(Standing.FOUNDER, {NODE: identity.facts.incarnation})
    (directory / "spool").mkdir()
    entries = Log()
    wal, _ = Wal.open(
        RealDisk(), str(directory / "wal"), cluster_id=cluster_id, node_id=NODE, log=entries, promises=str(directory)
    )
    machine = SpoolMachine(str(directory / "spool" / "queue.db"), NODE)
    results: list[Result] = []

    def failed(error: BaseException) -> None:
        raise error

    applier = Applier(
        machine,
        NODE,
        deliver=lambda call: call(),
        on_result=results.append,
        on_failure=failed,
        read_entries=lambda first, last: wal.read(first, last, None),
    )
    applier.open(background=False)
    # A batch fills whole pages: half a page on the average is lost to that.
    content = b"Subject: restart\r\n\r\n" + b"x" * max(64, (log_bytes - messages // BATCH * 2048) // messages - 330)

    def append(payloads: list[bytes]) -> None:
        first = entries.last_index + 1
        block = entries.append(1, STAMP_MS + first, ENTRY_NORMAL, payloads)
        last = entries.last_index
        wal.write([block], first, last, HardState(1, NODE, last), sync=last % 4096 < BATCH)
        applier.submit(Batch(first, last, len(block), [block]))
        if first // 512 != last // 512:
            while applier.work():
                results.clear()
            entries.evict(1 << 20, last + 1)

    append([envelope.encode_open(bytes(envelope.NONCE_BYTES), NODE)])
    sent = seq = held = 0

    def command(data: bytes) -> bytes:
        nonlocal seq
        seq += 1
        return envelope.encode_command(1, seq, seq, data)

    while sent < messages:
        payloads = []
        for number in range(sent, min(sent + BATCH, messages)):
            mail = Envelope(f"sender-{number % 5000}@example.org", (f"user-{number}@example.net",))
            payloads.append(command(commands.encode_accept(mail, [content])))
        append(payloads)
        sent += len(payloads)
        if sent % 1600 < BATCH or sent == messages:
            to = (entries.last_index + 1) << ORDINAL_BITS
            append([command(commands.encode_operator(commands.HOLD, None, held, to, commands.OPERATOR_BATCH_MAX))])
            held = to
        if sent % 100_000 < BATCH:
            print(f"built {sent} messages", file=sys.stderr)
    while applier.work():
        pass
    machine.checkpoint()
    machine.close()
    wal.write([], 0, 0, HardState(1, NODE, entries.last_index))
    wal.close()
    identity.close()


def measure(directory: Path) -> dict[str, float]:
    """Start the node; return seconds until it is ready, and its memory in MiB then and at its peak."""
    smtp, admin = free_ports(2)
    settings = {
        "NODE__ID": NODE,
        "NODE__DATA_DIR": str(directory),
        "CLUSTER__NAME": "restart",
        "CLUSTER__MAX_LOG_ENTRIES": "2000000",
        "CLUSTER__SNAPSHOT_THRESHOLD": "2000000",
        "CLUSTER__SNAPSHOT_THRESHOLD_BYTES": str(1 << 34),
        "SMTP__LISTEN": f'["127.0.0.1:{smtp}"]',
        "ADMIN__LISTEN": f"127.0.0.1:{admin}",
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "smtpraft", "serve"],
        env=os.environ | {f"SMTPRAFT_{name}": value for name, value in settings.items()},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        while True:
            assert process.poll() is None, "the node ended"
            assert time.monotonic() - began < 300
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=30) as answer:
                    if answer.status == 200:
                        break
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        ready_s = time.monotonic() - began
        status = Path(f"/proc/{process.pid}/status").read_text()
        time.sleep(5)
        later = Path(f"/proc/{process.pid}/status").read_text()
        return {
            "ready_s": ready_s,
            "resident_mib_at_ready": _kib(status, "VmRSS") / 1024,
            "resident_mib_peak_5s_later": _kib(later, "VmHWM") / 1024,
        }
    finally:
        process.terminate()
        process.wait(30)


def _kib(status: str, field: str) -> int:
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


def main() -> None:
    """Build, measure three times, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--log-mib", type=int, default=1024)
    parser.add_argument("--directory", type=Path, help="build here and keep it; use what is there")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="smtpraft-restart-"))
    try:
        if not (directory / "wal").exists():
            began = time.monotonic()
            directory.mkdir(parents=True, exist_ok=True)
            build(directory, arguments.messages, arguments.log_mib << 20)
            print(f"built in {time.monotonic() - began:.0f} s")
        sizes = [file.stat().st_size for file in (directory / "wal").glob("*.wal")]
        database = (directory / "spool" / "queue.db").stat().st_size
        print(f"log: {len(sizes)} segments, {sum(sizes) >> 20} MiB; database: {database >> 20} MiB")
        for _ in range(3):
            print("  ".join(f"{name}={value:.2f}" for name, value in measure(directory).items()))
    finally:
        if arguments.directory is None:
            shutil.rmtree(directory)


if __name__ == "__main__":
    main()
