"""What can be typed to look at a cluster: events, top, where, trace, check, report. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smtpraft.cli.client import Client

    Run = Callable[[Client, argparse.Namespace], int]


def add_looking(
    commands: Any, remote: Any, positive: Callable[[str], int], remote_command: Callable[[Run], Any]
) -> None:
    """Add these commands to the grammar; `remote_command` makes a command of what wants a client."""
    events = commands.add_parser("events", parents=[remote], help="what changes, as it happens")
    events.add_argument("--topics", metavar="TOPIC,…", default="cluster", help="cluster (the default), queue, or both")
    events.add_argument("--recent", action="store_true", help="begin with the last 500 of the cluster")
    events.add_argument("--count", metavar="N", type=positive, help="end after N events")
    events.set_defaults(command=remote_command(_events), command_timeout=30.0)

    top = commands.add_parser("top", parents=[remote], help="nodes, rates and queue, live; q quits")
    top.add_argument("--once", action="store_true", help="print it once")
    top.set_defaults(command=remote_command(_top))

    for name, text, run in (
        ("where", "which nodes hold a message, synced, at which index", _where),
        ("trace", "the life of a message, also of the last 10,000 that left the queue", _trace),
    ):
        parser = commands.add_parser(name, parents=[remote], help=text)
        parser.add_argument("id", metavar="ID")
        parser.set_defaults(command=remote_command(run))

    check = commands.add_parser("check", help="for monitoring: exit 0 well, 1 warning, 2 critical, 3 unknown")
    checks = check.add_subparsers(metavar="WHAT", required=True)
    for name, text in (
        ("quorum", "can the cluster commit, is everybody there?"),
        ("disk", "room and speed of every node's disk"),
        ("queue", "how much waits, and for how long"),
        ("cert", "how long the certificates of HTTPS endpoints last"),
    ):
        parser = checks.add_parser(name, parents=[remote], help=text)
        parser.add_argument("--format", choices=("nagios", "json"), default="nagios", help="one line (nagios)")
        parser.set_defaults(command=remote_command(_check), what=name)
        if name == "disk":
            parser.add_argument("--warning-free", metavar="PERCENT", type=positive, default=15, help="below (15)")
            parser.add_argument("--critical-free", metavar="PERCENT", type=positive, default=5, help="below (5)")
        elif name == "queue":
            parser.add_argument("--warning", metavar="N", type=positive, default=1000, help="messages (1000)")
            parser.add_argument("--critical", metavar="N", type=positive, default=10_000, help="messages (10000)")
            parser.add_argument("--warning-age", metavar="S", type=positive, default=3600, help="the oldest (3600)")
            parser.add_argument("--critical-age", metavar="S", type=positive, default=14_400, help="the oldest (14400)")
        elif name == "cert":
            parser.add_argument("--warning-days", metavar="N", type=positive, default=21, help="left (21)")
            parser.add_argument("--critical-days", metavar="N", type=positive, default=7, help="left (7)")

    report = commands.add_parser("report", parents=[remote], help="one archive for a bug report, without secrets")
    report.add_argument("file", metavar="FILE", nargs="?", help="a new .tar.gz (smtpraft-report-TIME.tar.gz)")
    report.set_defaults(command=remote_command(_report))


def _events(client: Client, arguments: argparse.Namespace) -> int:
    from smtpraft.cli import watching

    return watching.events(client, arguments)


def _top(client: Client, arguments: argparse.Namespace) -> int:
    from smtpraft.cli import watching

    return watching.top(client, arguments)


def _where(client: Client, arguments: argparse.Namespace) -> int:
    from smtpraft.cli import watching

    return watching.where(client, arguments)


def _trace(client: Client, arguments: argparse.Namespace) -> int:
    from smtpraft.cli import watching

    return watching.trace(client, arguments)


def _check(client: Client, arguments: argparse.Namespace) -> int:
    from smtpraft.cli import checks

    return checks.check(client, arguments)


def _report(client: Client, arguments: argparse.Namespace) -> int:
    from smtpraft.cli import report

    return report.report(client, arguments)
