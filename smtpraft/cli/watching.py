"""`smtpraft events`, `where`, `trace` and `top`: what the cluster does, and where a message is."""

from __future__ import annotations

import contextlib
import curses
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any, Final

from smtpraft.cli.client import Answer, Client, EndpointError
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, print_rows, printable

REFRESH_S: Final = 1.0
BARS: Final = " ▁▂▃▄▅▆▇█"


def events(client: Client, arguments: Namespace) -> int:
    """Print events as they come, from the first endpoint that answers, until it ends or Ctrl-C."""
    after = "&after=0" if arguments.recent else ""
    for seen, (name, event) in enumerate(client.stream(f"/v1/events?topics={arguments.topics}{after}"), start=1):
        if name == "dropped":
            raise CommandError(Exit.TEMPFAIL, f"read too slowly: {event.get('missed')} events were lost")
        if name == "closing":
            raise CommandError(Exit.UNAVAILABLE, "the node stops; ask another endpoint")
        if arguments.write_out == "json":
            print(json.dumps(event, ensure_ascii=False), flush=True)
        else:
            stamp = time.strftime("%H:%M:%S", time.localtime(float(event["time"])))
            print(f"{stamp}  {event['kind']:<12}  {printable(str(event['text']))}", flush=True)
        if arguments.count and seen >= arguments.count:
            return Exit.OK
    raise CommandError(Exit.UNAVAILABLE, "the stream broke off: the node is gone, or the network")


def where(client: Client, arguments: Namespace) -> int:
    """Print which nodes hold a message: in the log, synced, applied, in the queue."""
    found = _message(client.request("GET", f"/v1/queue/{_id(arguments)}/where"))
    if arguments.write_out == "json":
        print_json(found)
        return Exit.OK
    print(
        f"{found['id']} is entry {found['index']}; synced on {len(found['synced_on'])} of {len(found['nodes'])} nodes"
    )
    rows = [
        (
            row["id"],
            *(_yes(row.get(key)) for key in ("in_log", "synced", "applied", "queued")),
            row.get("state") or "-",
            row.get("owner") or "-",
        )
        if row["answers"]
        else (row["id"], "no answer", "", "", "", "", "")
        for row in found["nodes"]
    ]
    print_rows(("NODE", "IN LOG", "SYNCED", "APPLIED", "QUEUED", "STATE", "OWNER"), rows, arguments.write_out)
    return Exit.OK


def trace(client: Client, arguments: Namespace) -> int:
    """Print the life of a message, step by step."""
    found = _message(client.request("GET", f"/v1/queue/{_id(arguments)}/trace"))
    if arguments.write_out == "json":
        print_json(found)
        return Exit.OK
    print(
        f"{found['id']} is entry {found['index']}; synced on {', '.join(found['synced_on']) or 'no node that answers'}"
    )
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(step["time"])) if step["time"] else "-",
            step["what"],
            step["node"] or "-",
            printable(str(step["text"])),
        )
        for step in found["steps"]
    ]
    print_rows(("TIME", "WHAT", "NODE", "FACTS"), rows, arguments.write_out)
    return Exit.OK


def _id(arguments: Namespace) -> str:
    text = str(arguments.id)
    if not text.isascii() or not text.isalnum():
        raise CommandError(Exit.NO_SUCH, f"{printable(text)}: no such message")
    return text


def _message(answer: Answer) -> dict[str, Any]:
    if answer.status == 404:
        raise CommandError(Exit.NO_SUCH, answer.error())
    if answer.status != 200:
        raise CommandError(Exit.UNAVAILABLE, f"{answer.endpoint}: {answer.error()}")
    return dict(answer.json())


def _yes(value: object) -> str:
    return "yes" if value else "no"


# ---- top ------------------------------------------------------------------------------------------------------------


def top(client: Client, arguments: Namespace) -> int:
    """Show the cluster, anew each second, until `q`; once, as text, if the output is no terminal or with `--once`."""
    if arguments.write_out == "json":
        print_json(_overview(client))
        return Exit.OK
    if arguments.once or not (sys.stdout.isatty() and sys.stdin.isatty()):
        print("\n".join(text for text, _ in lines_of(_overview(client), 100)))
        return Exit.OK
    with contextlib.suppress(KeyboardInterrupt):
        curses.wrapper(_show, lambda: _overview(client))
    return Exit.OK


def _overview(client: Client) -> dict[str, Any]:
    answer = client.request("GET", "/v1/overview")
    if answer.status != 200:
        raise CommandError(Exit.UNAVAILABLE, f"{answer.endpoint}: {answer.error()}")
    return dict(answer.json())


def _show(screen: curses.window, overview: Callable[[], dict[str, Any]]) -> None:
    with contextlib.suppress(curses.error):
        curses.curs_set(0)
        curses.use_default_colors()
    styles = {"head": curses.A_BOLD, "bad": curses.A_REVERSE, "soft": curses.A_DIM, "": curses.A_NORMAL}
    screen.timeout(int(REFRESH_S * 1000))
    while True:
        height, width = screen.getmaxyx()
        try:
            lines = lines_of(overview(), width - 1)
        except (CommandError, EndpointError) as error:
            lines = [(f"no endpoint answers: {error}", "bad")]
        screen.erase()
        for row, (text, style) in enumerate([*lines, ("", ""), ("q: quit", "soft")][: height - 1]):
            with contextlib.suppress(curses.error):  # the window has just become smaller
                screen.addnstr(row, 0, text, max(1, width - 1), styles[style])
        screen.refresh()
        if screen.getch() in (ord("q"), 27):
            return


def lines_of(view: dict[str, Any], width: int) -> list[tuple[str, str]]:
    """Return the lines of the screen, each with its style: `head`, `bad`, `soft` or none."""
    cluster, now, queue = view["cluster"], view["history"]["now"], view["queue"]
    whole = cluster["up"] == len(view["nodes"]) and cluster["has_quorum"]
    state = f"{cluster['up']} of {len(view['nodes'])} nodes" + ("" if cluster["has_quorum"] else ", NO MAJORITY")
    since = f" for {_span(view['time'] - cluster['leader_since'])}" if cluster["leader_since"] else ""
    leads = f"{cluster['leader_id']} leads{since}" if cluster["leader_id"] else "nobody leads"
    rates = f"accepted {now['accepted']:g}/s  delivered {now['delivered']:g}/s  not delivered {now['failed']:g}/s"
    waits = f"queue  queued {queue['queued']}  deferred {queue['deferred']}  held {queue['held']}"
    head = (
        f"{'NODE':<12} {'ROLE':<12} {'TERM':>5} {'COMMIT':>10} {'BEHIND':>7} {'SYNC P99':>9} {'DISK':>9} {'CLIENTS':>8}"
    )
    lines = [
        (f"smtpraft {view['version']}  {state}  term {cluster['term']}  {leads}", "head" if whole else "bad"),
        (f"{rates}  dot to 250 p50 {_ms(now['ack_p50_ms'])} p99 {_ms(now['ack_p99_ms'])}", ""),
        (_spark(view["history"]["accepted"], width), "soft"),
        (f"{waits}  oldest {_span(queue['oldest_age_s'])}", ""),
        ("", ""),
        (f"{head} {'MAIL':>7}", "head"),
    ]
    for node in view["nodes"]:
        if node["state"] != "up":
            lines.append((f"{node['id']:<12} {node['state']}", "bad"))
            continue
        free = 100 * node["free_bytes"] // max(1, node["size_bytes"])
        disk = node["disk"] if node["disk"] != "ok" else f"{free}% free"
        log = f"{node['id']:<12} {node['role']:<12} {node['term']:>5} {node['commit_index']:>10} {node['lag']:>7}"
        work = f"{_ms(node['sync_p99_ms']):>9} {disk:>9} {node['connections']:>8} {node['owned']:>7}"
        lines.append((f"{log} {work}", ""))
    if view["destinations"]:
        lines += [("", ""), (f"{'DESTINATION':<50} {'WAITING':>8} {'OPEN':>5}", "head")]
        for one in view["destinations"]:
            why = f"  {printable(one['down'])}" if one["down"] else ""
            lines.append((f"{printable(one['name'])[:50]:<50} {one['waiting']:>8} {one['connections']:>5}{why}", ""))
    return lines


def _spark(values: list[float], width: int) -> str:
    shown = values[-max(1, width) :]
    most = max(shown, default=0) or 1
    return "".join(BARS[round(value / most * (len(BARS) - 1))] for value in shown)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}ms"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"
