"""A queue that has waited for its destination: how fast it empties once that is back."""

from __future__ import annotations

import time
from typing import Final

from smtpraft.cli.bench import load
from smtpraft.cli.bench.cluster import RELAY_DOMAIN, Cluster, NodesTarget
from smtpraft.cli.bench.mail import SIZES
from smtpraft.cli.bench.plan import Plan
from smtpraft.cli.bench.sink import sink
from smtpraft.cli.bench.target import BenchFailed
from smtpraft.cli.client import Client
from smtpraft.cluster.ports import free_ports

MESSAGES: Final = 10_000


def measure(plan: Plan) -> None:
    """Queue messages while nobody listens where they go; then open that port, flush, and wait."""
    messages = plan.count(MESSAGES, 500)
    (sink_port,) = free_ports(1)
    with plan.place("drain") as place:
        cluster = Cluster(place / "nodes", sink_port)
        try:
            cluster.begin()
            target = NodesTarget(cluster, "all nodes", RELAY_DOMAIN)
            load.send_mail(target.ports(), target.recipient, 30, SIZES["4k"], messages=messages)
            queued = cluster.queued()
            with sink(sink_port):
                began = time.monotonic()
                answer = Client([f"127.0.0.1:{cluster.nodes[0].admin_port}"], 30.0).request(
                    "POST", "/v1/queue/flush", {"all": True}
                )
                if answer.status != 200:
                    raise BenchFailed(f"flush: {answer.status}")
                cluster.wait_delivered()
                seconds = time.monotonic() - began
            plan.figures.add("drain.rate", queued / seconds)
            plan.say(f"drained {queued} messages in {seconds:.1f} s")
            cluster.end()
        finally:
            cluster.kill()
