"""Where the time of a message goes: CPU by node and thread, context switches, system calls.

    python -m benches.system.budget [--syscalls] [--sessions N] [--where leader]

Three nodes as `smtpraft serve` runs them; the load is the compiled generator's, at the leader or at all nodes. System
calls are counted in a run of their own, under strace, which slows everything down: their number counts, not their time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from smtpraft.cli.bench import load
from smtpraft.cli.bench.cluster import Cluster, NodesTarget
from smtpraft.cli.bench.mail import SIZES
from smtpraft.cli.bench.plan import Plan
from smtpraft.cli.output import print_rows

_TICK_US: Final = 1e6 / os.sysconf("SC_CLK_TCK")
_TOP: Final = 12
# The system does not know the names that Python gives its threads (before 3.14): tell it, in the nodes measured here.
_NAMES: Final = """\
import ctypes
import threading

_prctl = ctypes.CDLL(None).prctl
_bootstrap = threading.Thread._bootstrap_inner


def _named(self):
    _prctl(15, self.name.encode()[:15], 0, 0, 0)  # PR_SET_NAME
    _bootstrap(self)


threading.Thread._bootstrap_inner = _named
"""

Where = Literal["leader", "all nodes"]


def measure(plan: Plan) -> None:
    """Note `budget.ROLE.THREAD.user_us`, `.system_us`, and `budget.ROLE.switches`; a suite of `make bench-peers`."""
    with _cluster(plan) as cluster:
        budget(plan, cluster, "all nodes", 100, plan.seconds(3.0))


def budget(plan: Plan, cluster: Cluster, where: Where, sessions: int, seconds: float) -> None:
    """One run; figures are microseconds, or numbers, a message."""
    target = NodesTarget(cluster, where)
    load.send_mail(target.ports(), target.recipient, sessions, SIZES["4k"], seconds=min(1.0, seconds))
    target.wait_delivered()
    leader = cluster.find_leader()
    before = {node.id: _threads(_pid(node.process)) for node in cluster.nodes}
    found = load.send_mail(target.ports(), target.recipient, sessions, SIZES["4k"], seconds=seconds)
    target.wait_delivered()
    after = {node.id: _threads(_pid(node.process)) for node in cluster.nodes}
    plan.say(f"{found.count} messages, {found.rate:.0f}/s, p50 {found.p50_ms:.2f} ms, p99 {found.p99_ms:.2f} ms")
    followers = 0
    for node in cluster.nodes:
        followers += node is not leader
        role = "leader" if node is leader else f"follower{followers}"
        spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        switches = 0
        for thread, (name, user, system, switched) in after[node.id].items():
            _, user_before, system_before, switched_before = before[node.id].get(thread, (name, 0, 0, 0))
            spent[name][0] += (user - user_before) * _TICK_US / found.count
            spent[name][1] += (system - system_before) * _TICK_US / found.count
            switches += switched - switched_before
        for name, (user_us, system_us) in spent.items():
            if user_us + system_us >= 0.5:
                plan.figures.add(f"budget.{role}.{name}.user_us", user_us)
                plan.figures.add(f"budget.{role}.{name}.system_us", system_us)
        plan.figures.add(f"budget.{role}.switches", switches / found.count)


def table(values: Mapping[str, list[float]]) -> list[tuple[str, str, str, str, str]]:
    """Return (node, thread, user, system, switches) for each thread that was noted, and the sums."""
    rows = []
    total = 0.0
    for name in values:
        if name.startswith("budget.") and name.endswith(".user_us"):
            _, role, thread, _ = name.split(".")
            user_us, system_us = values[name][-1], values[name.replace("user_us", "system_us")][-1]
            switches = values[f"budget.{role}.switches"][-1]
            total += user_us + system_us
            rows.append((role, thread, f"{user_us:.0f}", f"{system_us:.0f}", f"{switches:.2f}"))
    rows.sort(key=lambda row: (row[0], -int(row[2]) - int(row[3])))
    shown = [
        (role if place == 0 or rows[place - 1][0] != role else "", thread, user, system, switches)
        for place, (role, thread, user, system, switches) in enumerate(rows)
    ]
    return [*((a, b, c, d, e if a else "") for a, b, c, d, e in shown), ("all", "", f"{total:.0f}", "", "")]


def syscalls(plan: Plan, cluster: Cluster, where: Where, sessions: int, seconds: float) -> list[tuple[str, str, str]]:
    """Return (node, system call, how many a message) of the most frequent ones, and all together."""
    target = NodesTarget(cluster, where)
    leader = cluster.find_leader()
    counted: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as place:
        tracers = [
            (node, subprocess.Popen(_strace(f"{place}/{node.id}", _pid(node.process)), stderr=subprocess.DEVNULL))
            for node in cluster.nodes
        ]
        found = load.send_mail(target.ports(), target.recipient, sessions, SIZES["4k"], seconds=seconds)
        target.wait_delivered()
        for node, tracer in tracers:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(20)
            calls: Counter[str] = Counter()
            for line in Path(place, node.id).read_text().splitlines():
                if match := re.fullmatch(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)\s*", line):
                    calls[match[2]] += int(match[1])
            calls.pop("total", None)
            role = "leader" if node is leader else node.id
            counted.append((role, "all", f"{calls.total() / found.count:.2f}"))
            counted += [("", call, f"{count / found.count:.2f}") for call, count in calls.most_common(_TOP)]
    return counted


def _strace(output: str, pid: int) -> list[str]:
    return ["strace", "-f", "-c", "-o", output, "-p", str(pid)]


def _pid(process: subprocess.Popen[bytes] | None) -> int:
    assert process is not None
    return process.pid


def _threads(pid: int) -> dict[int, tuple[str, int, int, int]]:
    """Return name, user and system ticks, and context switches of each thread."""
    found = {}
    for path in Path(f"/proc/{pid}/task").iterdir():
        try:
            name = (path / "comm").read_text().strip().replace(".", "-")
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            status = (path / "status").read_text()
        except OSError:
            continue  # it has ended
        switched = sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)
        name = "loop" if int(path.name) == pid else name
        found[int(path.name)] = (name, int(fields[11]), int(fields[12]), switched)
    return found


@contextmanager
def _cluster(plan: Plan) -> Iterator[Cluster]:
    with plan.place("budget") as place:
        (place / "site").mkdir()
        (place / "site" / "sitecustomize.py").write_text(_NAMES)
        cluster = Cluster(place / "nodes", 1)
        cluster.prefer_modules(place / "site")
        try:
            cluster.begin()
            yield cluster
            cluster.end()
        finally:
            cluster.kill()


def main() -> None:
    """Measure, print."""
    from smtpraft.cli.bench.figures import Figures

    parser = argparse.ArgumentParser(prog="python -m benches.system.budget", description=__doc__)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--where", choices=("leader", "all nodes"), default="all nodes")
    parser.add_argument("--syscalls", action="store_true", help="count system calls too, with strace")
    arguments = parser.parse_args()
    if arguments.syscalls and shutil.which("strace") is None:
        sys.exit("strace is not installed")
    with tempfile.TemporaryDirectory(prefix="smtpraft-budget-") as directory:
        plan = Plan(Figures(), Path(directory), 1, False, lambda line: print(line, flush=True))
        with _cluster(plan) as cluster:
            budget(plan, cluster, arguments.where, arguments.sessions, arguments.seconds)
            print_rows(("NODE", "THREAD", "USER µs", "SYSTEM µs", "SWITCHES"), table(plan.figures.values), "simple")
            if arguments.syscalls:
                counted = syscalls(plan, cluster, arguments.where, arguments.sessions, arguments.seconds)
                print_rows(("NODE", "SYSTEM CALL", "A MESSAGE"), counted, "simple")


if __name__ == "__main__":
    main()
