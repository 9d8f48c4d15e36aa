"""`smtpraft status` and `smtpraft health`: the state of the nodes."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from smtpraft.cli.client import Client, EndpointError, Json
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, print_rows

_HEADERS: Final = (
    "ENDPOINT", "NODE", "VERSION", "ROLE", "LEADER", "TERM", "LAST", "COMMIT", "APPLIED", "LEASE", "QUEUE", "COMPILED",
)  # fmt: skip


def status(client: Client, arguments: Namespace) -> int:
    """Print one line per endpoint; with `--cluster` also the members that no endpoint stands for."""
    if any(endpoint.startswith("https://") for endpoint in client.endpoints):
        client.tls_context()  # a file that cannot be used is no endpoint's fault
    found: list[tuple[str, Json]] = []
    failures: list[str] = []
    with ThreadPoolExecutor(max_workers=8) as pool:
        for endpoint, outcome in zip(
            client.endpoints, pool.map(lambda endpoint: _status_of(client, endpoint), client.endpoints), strict=True
        ):
            if isinstance(outcome, str):
                failures.append(outcome)
            else:
                found.append((endpoint, outcome))
    unseen = _unseen(found) if arguments.cluster else []
    if arguments.write_out == "json":
        print_json(
            [{"endpoint": endpoint, "status": facts} for endpoint, facts in found]
            + [{"endpoint": None, "status": facts} for facts in unseen]
        )
    elif found:
        rows = [_row(endpoint, facts) for endpoint, facts in found] + [_row("-", facts) for facts in unseen]
        headers: tuple[str, ...] = _HEADERS
        if any(row[-1] != "-" for row in rows):
            headers += ("WORKERS",)
        else:
            rows = [row[:-1] for row in rows]
        print_rows(headers, rows, arguments.write_out)
    for failure in failures:
        print(f"smtpraft: {failure}", file=sys.stderr)
    return Exit.UNAVAILABLE if failures else Exit.OK


def _status_of(client: Client, endpoint: str) -> Json | str:
    try:
        answer = client.ask(endpoint, "GET", "/v1/status")
        if answer.status != 200:
            return f"{endpoint}: {answer.error()}"
        return answer.json()
    except EndpointError as error:
        return str(error)
    except CommandError as error:
        return error.lines[0]


def _unseen(found: list[tuple[str, Json]]) -> list[Json]:
    """Return what the nodes that answered know of the members that did not; the leader's word counts most."""
    seen = {facts.get("node_id") for _, facts in found}
    members: dict[str, Json] = {}
    for _, facts in sorted(found, key=lambda pair: pair[1].get("role") == "leader"):
        peers = facts.get("peers")
        for peer, known in peers.items() if isinstance(peers, dict) else ():
            if peer not in seen and isinstance(known, dict):
                role = "reachable" if known.get("reachable") else "unreachable"
                members[peer] = {"node_id": peer, "role": role, "last_index": known.get("match_index")}
    return [members[peer] for peer in sorted(members)]


def _row(endpoint: str, facts: Json) -> list[object]:
    lease, queue = facts.get("lease"), facts.get("queue")
    held = "-"
    if isinstance(lease, dict):
        held = f"{lease.get('expires_ms')}ms" if lease.get("held") else "none"
    waiting: object = "-"
    if isinstance(queue, dict):
        waiting = sum(count for count in queue.values() if isinstance(count, int))
    compiled = facts.get("compiled")
    values = [facts.get(key) for key in ("node_id", "version", "role", "leader_id", "term")]
    values += [facts.get(key) for key in ("last_index", "commit_index", "applied_index")]
    shown: list[object] = ["-" if value is None else value for value in values]
    if facts.get("abstains"):
        shown[2] = f"{shown[2]} (abstains)"
    if facts.get("disk") not in (None, "ok"):
        shown[2] = f"{shown[2]} (disk {facts.get('disk')})"
    if incoming := facts.get("receiving_snapshot"):
        shown[2] = f"{shown[2]} (snapshot {_percent(incoming)})"
    peers = facts.get("peers")
    for peer, known in peers.items() if isinstance(peers, dict) else ():
        if isinstance(known, dict) and (outgoing := known.get("sending_snapshot")):
            shown[2] = f"{shown[2]} (snapshot to {peer} {_percent(outgoing)})"
    built = "-" if compiled is None else "yes" if compiled else "no"
    return [endpoint, *shown, held, waiting, built, _workers(facts.get("smtp_workers"))]


def _workers(rows: object) -> str:
    """Return the processes that speak SMTP for a node, by their ids."""
    if not isinstance(rows, list) or not rows:
        return "-"
    return ",".join(str(row.get("pid") or "starts") if row.get("state") == "listens" else "starts" for row in rows)


def _percent(progress: object) -> str:
    return f"{progress.get('percent')}%" if isinstance(progress, dict) else "?"


def health(client: Client, arguments: Namespace) -> int:
    """Ask each endpoint to confirm with a quorum that it can serve."""
    results = []
    failed = Exit.OK
    for endpoint in client.endpoints:
        started = time.perf_counter()
        try:
            answer = client.ask(endpoint, "GET", "/healthz?quorum=1")
            error = "" if answer.status == 200 else answer.error()
            if error:
                failed = max(failed, Exit.TEMPFAIL if answer.status == 503 else Exit.UNAVAILABLE)
        except EndpointError as failure:
            error = str(failure).removeprefix(f"{endpoint}: ")
            failed = max(failed, Exit.UNAVAILABLE)
        results.append((endpoint, error, time.perf_counter() - started))
    if arguments.write_out == "json":
        print_json(
            [
                {"endpoint": endpoint, "health": not error, "took_s": round(took_s, 6), "error": error or None}
                for endpoint, error, took_s in results
            ]
        )
    elif arguments.write_out == "table":
        rows = [
            (endpoint, str(not error).lower(), f"{took_s * 1000:.2f}ms", error) for endpoint, error, took_s in results
        ]
        print_rows(("ENDPOINT", "HEALTH", "TOOK", "ERROR"), rows, "table")
    else:
        for endpoint, error, took_s in results:
            if error:
                print(f"{endpoint} is unhealthy: {error}", file=sys.stderr)
            else:
                print(f"{endpoint} is healthy: confirmed by a quorum: took = {took_s * 1000:.2f}ms")
    return failed
