"""`python -m benches.system`: run a measurement, print its tables, put them into a page if asked."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NoReturn

import smtpraft
from smtpraft.cli.demo.nodes import NodeFailed, free_ports
from smtpraft.fastlog import COMPILED

from . import failover, load, memory, postfix, report
from .comparison import Plan, compare
from .nodes import RELAY_DOMAIN, Cluster, NodesTarget
from .postfix import Postfix, PostfixTarget
from .target import BenchFailed, Target

_QUICK: Final = Plan(rounds=1, run_s=0.7, latency_s=0.7, floor_s=0.3)
_MESSAGES: Final = 200_000
_KILLS: Final = 20


def main() -> int:
    """Return the exit status: 0, or 1 if something could not be measured."""
    arguments = _arguments()
    reason = load.why_not()
    if reason:
        sys.exit(f"cannot measure: {reason}")
    signal.signal(signal.SIGTERM, _terminated)
    directory = Path(tempfile.mkdtemp(prefix="smtpraft-bench-"))
    directory.chmod(0o755)  # Postfix's processes run as another user
    try:
        name, text = _measure(arguments, directory)
    except (BenchFailed, NodeFailed) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(text)
    if arguments.write:
        report.put(arguments.write, name, text)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.system", description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--memory", action="store_true", help=f"{_MESSAGES} messages, and what memory does meanwhile")
    mode.add_argument("--failover", action="store_true", help=f"kill the leader {_KILLS} times")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (default: 5)")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures are worth little")
    parser.add_argument("--peer", choices=("postfix", "none"), default="postfix", help="what to measure beside it")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page, between its marks")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace, directory: Path) -> tuple[str, str]:
    """Return the name of the measurement and its text."""
    began, load_before = time.monotonic(), os.getloadavg()[0]
    sink_port, postfix_port = free_ports(2)
    with ExitStack() as stack:
        stack.enter_context(load.sink(sink_port))
        cluster = Cluster(directory, sink_port)
        stack.callback(cluster.kill)
        cluster.begin()
        if arguments.memory:
            name = "memory"
            messages = _MESSAGES // 20 if arguments.quick else _MESSAGES
            text = report.memory_text(memory.watch(cluster, messages, _say))
        elif arguments.failover:
            name = "failover"
            text = report.failover_text(failover.measure(cluster, 3 if arguments.quick else _KILLS, _say))
        else:
            name = "comparison"
            plan = _QUICK if arguments.quick else Plan(arguments.rounds, run_s=3.0, latency_s=2.0, floor_s=1.0)
            targets, note = _targets(stack, directory, arguments.peer, cluster, postfix_port, sink_port)
            results = compare(targets, directory, plan, _say)
            changes = cluster.leader_changes()
            text = report.comparison_text(results) + note
            text += f"\nChanges of leader seen by a node, the first one included: {changes}.\n"
        cluster.end()
    minutes = (time.monotonic() - began) / 60
    return name, f"{_conditions(load_before, minutes, name == 'comparison')}\n{text}"


def _targets(
    stack: ExitStack, directory: Path, peer: str, cluster: Cluster, postfix_port: int, sink_port: int
) -> tuple[list[Target], str]:
    """Return what is measured, in turn, and a note on what is not."""
    leader, follower = NodesTarget(cluster, "leader"), NodesTarget(cluster, "follower")
    everywhere, relayed = NodesTarget(cluster, "all nodes"), NodesTarget(cluster, "leader", RELAY_DOMAIN)
    reason = "not asked for" if peer == "none" else postfix.why_not()
    if reason:
        return [leader, follower, everywhere, relayed], f"\nWithout Postfix: {reason}.\n"
    instance = Postfix(directory / "postfix", postfix_port, sink_port)
    stack.callback(instance.end)
    instance.begin()
    hold, discard, relay = (PostfixTarget(instance, what) for what in ("hold", "discard", "relay"))
    return [leader, hold, follower, discard, everywhere, relay, relayed], ""


def _conditions(load_before: float, minutes: float, with_peer: bool) -> str:
    now = dt.datetime.now(dt.UTC)
    peer = f"Postfix {postfix.version()}, " if with_peer and not postfix.why_not() else ""
    return (
        f"{now:%Y-%m-%d %H:%M} UTC, {minutes:.0f} minutes; load average before it {load_before:.2f}.\n"
        f"`{' '.join(['python -m benches.system', *sys.argv[1:]])}`\n\n"
        f"{os.cpu_count()} CPUs ({_processor()}), {_memory_gib():.0f} GiB, Linux {platform.release()}, "
        f"{_file_system(tempfile.gettempdir())}; {peer}"
        f"smtpraft {smtpraft.__version__} ({'compiled' if COMPILED else 'pure'}), "
        f"CPython {platform.python_version()}.\n"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def _file_system(path: str) -> str:
    """Return the type of the file system that `path` is on."""
    found = ("", "unknown file system")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if os.path.commonpath([path, mount]) == mount and len(mount) >= len(found[0]):
            found = (mount, kind)
    return found[1]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _terminated(number: int, frame: object) -> NoReturn:
    """Leave as Ctrl-C does: nothing is left running."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
