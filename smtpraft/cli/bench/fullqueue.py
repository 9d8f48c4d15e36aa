"""A full queue: how long a restart takes with it, how much memory a node needs, and what it costs the next message.

Builds the data directory of a cluster of one in place, through the log, the applier and the state machine that a node
uses, then starts `smtpraft serve` on it. What it holds is on hold, so that nothing is delivered. What it does not show:
other members, the deliveries of a queue like this, a disk whose cache is cold.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smtpraft.cli.bench import load
from smtpraft.cli.bench.mail import SIZES
from smtpraft.cli.bench.plan import Plan
from smtpraft.cli.bench.processes import cpu_seconds, memory_mib
from smtpraft.cli.bench.target import BenchFailed
from smtpraft.cluster import envelope
from smtpraft.cluster.applier import Applier, Batch, Result
from smtpraft.cluster.ports import free_ports
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
FULL: Final = 1_000_000
SHORT: Final = 1000
LOG_BYTES: Final = 1 << 30
RESTARTS: Final = 3
READY_S: Final = 120.0
SETTLE_S: Final = 3.0
RUN_S: Final = 2.0


def measure(plan: Plan) -> None:
    """Note `queue.full.*` and `queue.short.*`; the two nodes run side by side and take mail in turn."""
    full = plan.count(FULL, 20_000)
    with plan.place("queue") as place:
        began = time.monotonic()
        build(place / "full", full, LOG_BYTES * full // FULL, plan.say)
        build(place / "short", SHORT, LOG_BYTES // FULL * SHORT, plan.say)
        plan.say(f"built queues of {full} and {SHORT} messages in {time.monotonic() - began:.0f} s")
        for number in range(1, RESTARTS + 1):
            with node(place / "full") as running:
                plan.figures.add("queue.full.ready_s", running.ready_s)
                time.sleep(SETTLE_S)
                plan.figures.add("queue.full.resident_mb", memory_mib(running.pid)[0] * (1 << 20) / 1e6)
                plan.say(f"restart {number}/{RESTARTS}: ready after {running.ready_s:.1f} s")
        with node(place / "full") as big, node(place / "short") as small:
            time.sleep(SETTLE_S)
            for number in range(plan.rounds + 1):
                for name, running in (("full", big), ("short", small)):
                    cpu_s = cpu_seconds(running.pid)
                    found = load.send_mail(
                        [running.smtp_port], "somebody@discard.example", 10, SIZES["4k"], seconds=RUN_S
                    )
                    cpu_us = (cpu_seconds(running.pid) - cpu_s) / found.count * 1e6
                    if number:  # the first one warms up
                        plan.figures.add(f"queue.{name}.cpu_us", cpu_us)
                        plan.figures.add(f"queue.{name}.rate", found.rate)
                        plan.figures.add(f"queue.{name}.p50_ms", found.p50_ms)
                        plan.say(f"queue {number}/{plan.rounds}: {name:5} {found.rate:6.0f}/s  CPU {cpu_us:5.0f} µs")
            plan.figures.add("queue.full.resident_after_mb", memory_mib(big.pid)[0] * (1 << 20) / 1e6)


@dataclass(frozen=True, slots=True)
class Running:
    """A node that is ready."""

    pid: int
    smtp_port: int
    ready_s: float


def build(directory: Path, messages: int, log_bytes: int, say: Callable[[str], None]) -> None:
    """Fill a data directory: so many messages queued, and a log of about so many bytes behind them."""
    directory.mkdir()
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
            say(f"queued {sent} messages")
    while applier.work():
        pass
    machine.checkpoint()
    machine.close()
    wal.write([], 0, 0, HardState(1, NODE, entries.last_index))
    wal.close()
    identity.close()


@contextmanager
def node(directory: Path) -> Iterator[Running]:
    """Run the node of `directory`, from its start to when it is ready and on.

    Raises:
        BenchFailed: it ended, or was not ready in time.
    """
    smtp, admin = free_ports(2)
    settings = {
        "NODE__ID": NODE,
        "NODE__DATA_DIR": str(directory),
        "CLUSTER__NAME": "restart",
        "CLUSTER__MAX_LOG_ENTRIES": "2000000",
        "CLUSTER__SNAPSHOT_THRESHOLD": "2000000",
        "CLUSTER__SNAPSHOT_THRESHOLD_BYTES": str(1 << 34),
        "DELIVERY__ROUTES": "*=discard:",
        "SMTP__LISTEN": f'["127.0.0.1:{smtp}"]',
        "ADMIN__LISTEN": f"127.0.0.1:{admin}",
    }
    log_path = directory.with_suffix(".log")
    began = time.monotonic()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "smtpraft", "serve"],
            env=os.environ | {f"SMTPRAFT_{name}": value for name, value in settings.items()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        while not _ready(admin):
            if process.poll() is not None or time.monotonic() - began > READY_S:
                raise BenchFailed(f"the node was not ready:\n{log_path.read_text('utf-8', 'replace')[-2000:]}")
            time.sleep(0.02)
        yield Running(process.pid, smtp, time.monotonic() - began)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(admin_port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz", timeout=30) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
