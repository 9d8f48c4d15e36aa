"""Results as tables in Markdown, and their places in a page: between `<!-- NAME -->` and `<!-- /NAME -->`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from .comparison import SESSIONS, Case, Results, Run
from .failover import Failovers
from .memory import Sample

_PEERS: Final = ("postfix-hold", "postfix-discard", "postfix-relay")


def comparison_text(results: Results) -> str:
    """Return all tables of the main measurement."""
    parts = [
        _title("Messages accepted a second", _rates(results)),
        _title("The same as a multiple of Postfix's, round by round", _ratios(results)),
        _title("From the final dot to the 250, in ms", _latencies(results)),
        _title("CPU of a message in µs, delivery included", _cpu(results)),
        _title("Syncs of the log, a message", _syncs(results)),
        _title("From the last 250 until everything was delivered, in s", _deliveries(results)),
        _title("The floor", _floor(results)),
    ]
    return "\n".join(filter(None, parts)) + "\n" + verdict(results)


def verdict(results: Results) -> str:
    """Return a line for each number of sessions: does the leader take mail as fast as a Postfix that only stores it?"""
    lines = []
    for sessions in SESSIONS:
        ratios = _ratios_of(results, ("smtpraft, leader", sessions), ("postfix-hold", sessions))
        if ratios:
            word = "not slower" if median(ratios) >= 1 else "SLOWER"
            lines.append(f"- {_heading(sessions)}: {word} than postfix-hold, {_spread(ratios, 2)} times its rate")
    return "\n".join(lines) + "\n" if lines else ""


def memory_text(samples: Sequence[Sample]) -> str:
    """Return the table of `memory.watch`."""
    rows = [
        (
            f"{sample.messages}",
            f"{sample.rate:.0f}" if sample.rate else "",
            *(
                " / ".join(f"{mib:.0f}" for mib in nodes)
                for nodes in (sample.resident_mib, sample.anonymous_mib, sample.disk_mib)
            ),
        )
        for sample in samples
    ]
    columns = ["messages", "messages/s", "resident", "of it anonymous", "on disk"]
    return _title("MiB of each node", _table(columns, rows))


def failover_text(found: Failovers) -> str:
    """Return what `failover.measure` found."""
    waits_ms = sorted(wait_s * 1000 for wait_s in found.waits_s)
    rows = [
        ("leaders killed", f"{len(waits_ms)}"),
        ("kill to next 250, median (ms)", f"{median(waits_ms):.0f}"),
        ("kill to next 250, min and max (ms)", f"{waits_ms[0]:.0f} and {waits_ms[-1]:.0f}"),
        ("all of them (ms)", ", ".join(f"{wait:.0f}" for wait in waits_ms)),
        ("messages acknowledged", f"{found.acknowledged}"),
        ("errors that sessions on surviving nodes saw", f"{len(found.errors_on_survivors)}"),
    ]
    text = _title("Failover", _table(["", ""], rows))
    return text + "".join(f"- {error}\n" for error in found.errors_on_survivors[:10])


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands in `page` between the marks of `name`.

    Raises:
        ValueError: the page has no such marks.
    """
    old = page.read_text("utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(old):
        raise ValueError(f"{page} has no marks <!-- {name} --> and <!-- /{name} -->")
    page.write_text(pattern.sub(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", old), "utf-8")


# ---- the tables of a comparison ----


def _rates(results: Results) -> str:
    def cell(case: Case) -> str:
        return _spread([run.rate for run in results.runs[case]], 0)

    return _by_sessions(results, cell)


def _ratios(results: Results) -> str:
    peers = [peer for peer in _PEERS if peer in results.targets]
    rows = []
    for name in results.targets:
        if name in _PEERS:
            continue
        relayed = name.endswith("relayed")
        for peer in peers:
            if peer == ("postfix-discard" if relayed else "postfix-relay"):
                continue  # they do different things
            cells = [_spread(_ratios_of(results, (name, sessions), (peer, sessions)), 2) for sessions in SESSIONS]
            rows.append((name, peer, *cells))
    return _table(["", "divided by", *map(_heading, SESSIONS)], rows) if rows else ""


def _ratios_of(results: Results, case: Case, peer: Case) -> list[float]:
    if not results.runs[case] or not results.runs[peer]:
        return []
    return [ours.rate / theirs.rate for ours, theirs in zip(results.runs[case], results.runs[peer], strict=True)]


def _latencies(results: Results) -> str:
    def cell(case: Case) -> list[str]:
        waits = results.latencies[case]
        return [_spread([wait.p50_ms for wait in waits], 2), _spread([wait.p99_ms for wait in waits], 2)]

    rows = [(name, *(text for sessions in SESSIONS for text in cell((name, sessions)))) for name in results.targets]
    return _table(["", *(f"{sessions}: {which}" for sessions in SESSIONS for which in ("p50", "p99"))], rows)


def _cpu(results: Results) -> str:
    def total(run: Run) -> float:
        return sum(run.used.cpu_s.values()) / run.messages * 1e6

    rows = []
    for name in results.targets:
        cells = [_spread([total(run) for run in results.runs[name, sessions]], 0) for sessions in SESSIONS]
        rows.append((name, *cells, _processes(results.runs[name, SESSIONS[-1]])))
    columns = ["all processes:", *map(_heading, SESSIONS)]
    return _table([*columns, f"each, at {SESSIONS[-1]}"], rows)


def _processes(runs: Sequence[Run]) -> str:
    """Return the medians by process, the dearest first; what is below 1 % of the sum is left out.

    Nodes go by their roles, which may move from run to run: the leader, and the others in the order of their CPU.
    """
    spent = [_by_role(run) for run in runs]
    names = {name for run in spent for name in run}
    us = {name: median(run.get(name, 0.0) for run in spent) for name in names}
    shown = sorted((name for name in us if us[name] > 0.01 * sum(us.values())), key=lambda name: -us[name])
    return ", ".join(f"{name} {us[name]:.0f}" for name in shown)


def _by_role(run: Run) -> dict[str, float]:
    us = {name: cpu_s / run.messages * 1e6 for name, cpu_s in run.used.cpu_s.items()}
    leader = us.pop(run.used.leader, None)
    if leader is None:
        return us
    others = sorted(us.values(), reverse=True)
    return {"leader": leader} | {f"follower {place}": spent for place, spent in enumerate(others, start=1)}


def _syncs(results: Results) -> str:
    rows = []
    for name in results.targets:
        if name in _PEERS:
            continue  # nobody counts theirs
        cells = []
        for sessions in SESSIONS:
            runs = results.runs[name, sessions]
            leader = [run.used.syncs.get(run.used.leader, 0.0) / run.messages for run in runs]
            total = [sum(run.used.syncs.values()) / run.messages for run in runs]
            cells += [_spread(leader, 2), _spread(total, 2)]
        rows.append((name, *cells))
    return _table(["", *(f"{sessions}: {who}" for sessions in SESSIONS for who in ("leader", "all three"))], rows)


def _deliveries(results: Results) -> str:
    def cell(case: Case) -> str:
        return _spread([run.deliver_s for run in results.runs[case]], 2)

    return _by_sessions(results, cell, [name for name in results.targets if name != "postfix-hold"])


def _floor(results: Results) -> str:
    floors = results.floors
    rows = [
        (
            "fdatasync of 4 KiB into a zeroed file",
            _spread([floor.sync_p50_us for floor in floors], 0),
            _spread([floor.sync_p99_us for floor in floors], 0),
        ),
        (
            "TCP round trip over loopback",
            _spread([floor.trip_p50_us for floor in floors], 0),
            _spread([floor.trip_p99_us for floor in floors], 0),
        ),
    ]
    busy = _spread([100 * share for share in results.busy_shares], 0)
    table = _table(["", "p50 (µs)", "p99 (µs)"], rows)
    return f"{table}\nCPUs busy before each round, all of this at rest: {busy} %.\n"


# ---- text ----


def _heading(sessions: int) -> str:
    return "1 session" if sessions == 1 else f"{sessions} sessions"


def _by_sessions(results: Results, cell: Callable[[Case], str], names: Iterable[str] | None = None) -> str:
    chosen = results.targets if names is None else names
    rows = [(name, *(cell((name, sessions)) for sessions in SESSIONS)) for name in chosen]
    return _table(["", *map(_heading, SESSIONS)], rows)


def _spread(values: Sequence[float], digits: int) -> str:
    """Return the median, with the least and the greatest value."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _title(title: str, table: str) -> str:
    return f"**{title}**\n\n{table}" if table else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)
