"""The replicated log without mail: writes a second of clients that each wait for their own, against `lognode`."""

from __future__ import annotations

import os
from typing import Final

from smtpraft.cli.bench import load
from smtpraft.cli.bench.load import Load
from smtpraft.cli.bench.logcluster import LogCluster
from smtpraft.cli.bench.plan import Plan

CLIENTS: Final = (1, 10, 100, 1000)
VALUES: Final = (256, 4096)
RUN_S: Final = 2.0


def note(plan: Plan, name: str, found: Load, clients: int, value_bytes: int, cpu_s: float) -> None:
    """Note figures of `name`."""
    prefix = f"{name}.log.{value_bytes}.{clients}"
    plan.figures.add(f"{prefix}.rate", found.rate)
    plan.figures.add(f"{prefix}.p50_ms", found.p50_ms)
    plan.figures.add(f"{prefix}.p99_ms", found.p99_ms)
    plan.figures.add(f"{prefix}.cpu_us", cpu_s / found.count * 1e6)
    plan.figures.shapes[f"{prefix}.wait_ms"] = found.distribution()
    plan.say(
        f"{name:10} {value_bytes:5} B x {clients:4}  {found.rate:8.0f}/s  p50 {found.p50_ms:8.3f} ms  "
        f"p99 {found.p99_ms:8.3f} ms  CPU {cpu_s / found.count * 1e6:6.0f} µs"
    )


def write(plan: Plan, name: str, cluster: LogCluster, clients: int, value_bytes: int, seconds: float) -> None:
    """One run. Clients are spread over the nodes; one alone is at the leader, as etcd's is."""
    before = cluster.cpu_s()
    ports = cluster.client_ports if clients > 1 else [cluster.leader_port()]
    found = load.write_log(ports, clients, value_bytes, seconds=seconds)
    note(plan, name, found, clients, value_bytes, cluster.cpu_s() - before)
    os.sync()


def measure(plan: Plan) -> None:
    """All numbers of clients with all sizes, once."""
    with plan.place("log") as place:
        cluster = LogCluster(place)
        try:
            cluster.begin()
            load.write_log(cluster.client_ports, 10, 256, seconds=plan.seconds(0.6))
            for value_bytes in VALUES:
                for clients in CLIENTS:
                    write(plan, "grid", cluster, clients, value_bytes, plan.seconds(RUN_S))
        finally:
            cluster.end()
