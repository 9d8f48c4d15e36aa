"""`smtpraft check`: a question each, for monitoring that runs commands. Exit: 0 well, 1 warning, 2 critical, 3 unknown.

quorum   can the cluster commit, is everybody there?
disk     room and speed of every node's disk
queue    how much waits, and for how long
cert     how long the certificate of an HTTPS endpoint lasts
"""

from __future__ import annotations

import enum
import socket
import ssl
import time
from argparse import Namespace
from typing import Any, Final

from smtpraft.cli.client import Client
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, printable

Perf = dict[str, tuple[float, str]]
Finding = tuple["Level", str, Perf]

CERT_TIMEOUT_S: Final = 5.0


class Level(enum.IntEnum):
    """What Nagios and its heirs take for an exit status."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


def check(client: Client, arguments: Namespace) -> int:
    """Answer one question; return its level as exit status."""
    try:
        if arguments.what == "cert":
            level, text, perf = _cert(client, arguments)
        else:
            view = _overview(client)
            level, text, perf = {"quorum": _quorum, "disk": _disk, "queue": _queue}[arguments.what](view, arguments)
    except CommandError as error:
        level = Level.CRITICAL if arguments.what == "quorum" else Level.UNKNOWN
        text, perf = "; ".join(error.lines), {}
    if arguments.format == "json":
        facts = {name: value for name, (value, _) in perf.items()}
        print_json({"check": arguments.what, "status": level.name, "text": text, "values": facts})
    else:
        figures = " ".join(f"{name}={value:g}{unit}" for name, (value, unit) in perf.items())
        print(
            f"SMTPRAFT {arguments.what.upper()} {level.name}: {printable(text)}" + (f" | {figures}" if figures else "")
        )
    return int(level)


def _overview(client: Client) -> dict[str, Any]:
    answer = client.request("GET", "/v1/overview")
    if answer.status != 200:
        raise CommandError(Exit.UNAVAILABLE, f"{answer.endpoint}: {answer.error()}")
    return dict(answer.json())


def _quorum(view: dict[str, Any], arguments: Namespace) -> Finding:
    cluster, nodes = view["cluster"], view["nodes"]
    voters = len(cluster["voters"])
    up = sum(node["state"] == "up" and node["voter"] for node in nodes)
    perf: Perf = {"voters": (voters, ""), "up": (up, ""), "term": (cluster["term"], "")}
    if not cluster["has_quorum"] or not cluster["leader_id"]:
        return Level.CRITICAL, f"no majority in contact: {up} of {voters} voters answer", perf
    missing = [node["id"] for node in nodes if node["state"] != "up"]
    if up == voters // 2 + 1 and voters > 1:
        return (
            Level.WARNING,
            f"one failure from loss: {up} of {voters} voters answer; missing: {', '.join(missing)}",
            perf,
        )
    if missing:
        return Level.WARNING, f"{', '.join(missing)} missing; {cluster['leader_id']} leads", perf
    return Level.OK, f"{up} of {voters} voters answer, {cluster['leader_id']} leads in term {cluster['term']}", perf


def _disk(view: dict[str, Any], arguments: Namespace) -> Finding:
    worst, perf = Level.OK, Perf()
    texts: list[str] = []
    for node in view["nodes"]:
        if node["state"] != "up":
            worst, texts = max(worst, Level.WARNING), [*texts, f"{node['id']} does not answer"]
            continue
        free = 100 * node["free_bytes"] / max(1, node["size_bytes"])
        perf[f"{node['id']}_free"] = (round(free, 1), "%")
        if node["sync_p99_ms"] is not None:
            perf[f"{node['id']}_sync_p99"] = (node["sync_p99_ms"] / 1000, "s")
        if node["disk"] in ("full", "read-only") or free < arguments.critical_free:
            worst, texts = Level.CRITICAL, [*texts, f"{node['id']} is {node['disk']}, {free:.0f}% free"]
        elif node["disk"] != "ok" or free < arguments.warning_free:
            worst, texts = max(worst, Level.WARNING), [*texts, f"{node['id']} is {node['disk']}, {free:.0f}% free"]
    return worst, "; ".join(texts) or "room and speed enough on all nodes", perf


def _queue(view: dict[str, Any], arguments: Namespace) -> Finding:
    queue = view["queue"]
    waiting = queue["queued"] + queue["deferred"] + queue["held"]
    age_s = queue["oldest_age_s"]
    perf: Perf = {"waiting": (waiting, ""), "deferred": (queue["deferred"], "")}
    if age_s is not None:
        perf["oldest"] = (age_s, "s")
    text = f"{waiting} waiting, {queue['deferred']} deferred, {queue['held']} held, oldest {age_s or 0:.0f} s"
    if age_s is None:
        return Level.UNKNOWN, text + ": the queue does not answer", perf
    if waiting >= arguments.critical or age_s >= arguments.critical_age:
        return Level.CRITICAL, text, perf
    if waiting >= arguments.warning or age_s >= arguments.warning_age:
        return Level.WARNING, text, perf
    return Level.OK, text, perf


def _cert(client: Client, arguments: Namespace) -> Finding:
    worst, perf = Level.OK, Perf()
    texts: list[str] = []
    for endpoint in client.endpoints:
        host, _, port = endpoint.removeprefix("https://").rstrip("/").rpartition(":")
        if not endpoint.startswith("https://") or not port.isdigit():
            return Level.UNKNOWN, f"{endpoint} is no https://HOST:PORT", perf
        try:
            context = client.tls_context()
            with (
                socket.create_connection((host.strip("[]"), int(port)), CERT_TIMEOUT_S) as plain,
                context.wrap_socket(plain, server_hostname=host.strip("[]")) as tls,
            ):
                certificate = tls.getpeercert() or {}
        except ssl.SSLCertVerificationError as error:
            worst, texts = Level.CRITICAL, [*texts, f"{endpoint}: {error.verify_message}"]
            continue
        except OSError as error:
            worst, texts = max(worst, Level.UNKNOWN), [*texts, f"{endpoint}: {error}"]
            continue
        days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86_400
        perf[f"{host}_days"] = (round(days, 1), "")
        texts.append(f"{endpoint} for {days:.0f} more days")
        if days < arguments.critical_days:
            worst = max(worst, Level.CRITICAL)
        elif days < arguments.warning_days:
            worst = max(worst, Level.WARNING)
    return worst, "; ".join(texts), perf
