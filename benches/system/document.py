"""Tables and pictures of `docs/performance.md`, from figures: between `<!-- NAME -->` and `<!-- /NAME -->`.

python -m benches.system --read benches/figures.json --write docs/performance.md    makes them again, measures nothing
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from benches.system import budget, svg
from smtpraft.cli.bench.figures import Figures
from smtpraft.cli.bench.run import grid_rows
from smtpraft.cli.bench.targets import Verdict

_SYSTEMS: Final = {
    "smtpraft": "smtpraft, three nodes",
    "postfix": "Postfix",
    "exim": "Exim",
    "postfix-discard": "Postfix, to `discard:`",
}
_LOGS: Final = {"smtpraft": "smtpraft, three nodes", "etcd": "etcd, three nodes", "pysyncobj": "PySyncObj, three nodes"}
_MAIL_CASES: Final = {
    "4k.1": "4 KB, 1 session",
    "4k.10": "4 KB, 10 sessions",
    "4k.100": "4 KB, 100 sessions",
    "4k.10.anew": "4 KB, 10 at a time, a session each",
    "100k.10": "100 KB, 10 sessions",
}


def write(page: Path, figures: Figures, verdicts: Sequence[Verdict]) -> None:
    """Put everything that was measured into `page` and into `pictures` beside it.

    Raises:
        ValueError: the page lacks a mark.
    """
    text = page.read_text("utf-8")
    for name, part in parts(figures, verdicts).items():
        if part:
            text = put(text, name, part)
    page.write_text(text, "utf-8")
    folder = page.parent / "pictures"
    folder.mkdir(exist_ok=True)
    for name, picture in pictures(figures).items():
        (folder / f"{name}.svg").write_text(picture, "utf-8")


def put(text: str, name: str, part: str) -> str:
    """Return `text` with `part` between the marks of `name`.

    Raises:
        ValueError: there are no such marks.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no marks <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda found: f"{found[1]}\n{part.strip()}\n\n{found[2]}", text)


def parts(figures: Figures, verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Return the text of each mark; "" where nothing was measured."""
    return {
        "conditions": _conditions(figures),
        "targets": _targets(verdicts),
        "peers": _peers(figures),
        "logs": _logs(figures),
        "grids": _grids(figures),
        "budget": _budget(figures),
        "floor": _floor(figures),
    }


def pictures(figures: Figures) -> dict[str, str]:
    """Return each picture that there are figures for."""
    found = {}
    rates = {
        label: [(float(n), rate) for n in (1, 10, 100) if (rate := figures.median(f"{name}.mail.4k.{n}.rate"))]
        for name, label in _SYSTEMS.items()
    }
    if curves := {label: points for label, points in rates.items() if points}:
        found["rate"] = svg.lines("4 KB messages accepted a second", "sessions", "messages/s", curves)
    waits = {
        label: [(percent, ms) for percent, ms in figures.shapes.get(f"{name}.mail.4k.100.wait_ms", ())]
        for name, label in _SYSTEMS.items()
    }
    if curves := {label: points for label, points in waits.items() if points}:
        title = "From the final dot to the 250, 100 sessions, 4 KB"
        found["latency"] = svg.lines(title, "percent of the messages", "milliseconds", curves, log_x=False)
    costs = {
        label: {"CPU a message": cost}
        for name, label in (("short", "1,000 queued"), ("full", "1,000,000"))
        if (cost := figures.median(f"queue.{name}.cpu_us"))
    }
    if costs:
        found["queue"] = svg.bars("CPU of a message, one node, by the length of the queue", "µs", costs)
    if cpu := _cpu_stacks(figures):
        found["cpu"] = svg.bars("CPU of a 4 KB message, 100 sessions", "µs", cpu)
    return found


def _cpu_stacks(figures: Figures) -> dict[str, dict[str, float]]:
    stacks: dict[str, dict[str, float]] = {}
    for name in figures.values:
        if name.startswith("budget.") and name.endswith("_us"):
            _, role, thread, kind = name.split(".")
            part = "loop, in the kernel" if thread == "loop" and kind == "system_us" else thread
            part = part if thread == "loop" or "wal" in thread or "apply" in thread else "other threads"
            stack = stacks.setdefault(role.replace("follower", "follower "), {})
            stack[part] = stack.get(part, 0.0) + figures.values[name][-1]
    if stacks:
        for name in ("postfix", "exim"):
            if cost := figures.median(f"{name}.mail.4k.100.cpu_us"):
                stacks[_SYSTEMS[name]] = {"all processes": cost}
    return stacks


# ---- tables ----


def _conditions(figures: Figures) -> str:
    facts = [f"- {name}: {value}" for name, value in figures.facts.items() if name != "command"]
    warnings = [f"- **{warning}**" for warning in dict.fromkeys(figures.warnings)]
    return f"`{figures.facts.get('command', '')}`\n\n" + "\n".join([*facts, *warnings])


def _targets(verdicts: Sequence[Verdict]) -> str:
    rows = [
        (
            verdict.row.what,
            verdict.measured,
            verdict.target,
            f"{verdict.row.stretch:g}" if verdict.row.stretch is not None else "",
            {"PASS": "yes", "FAIL": "**no**"}.get(verdict.word, "not measured") + (", and beyond" * verdict.stretched),
        )
        for verdict in verdicts
    ]
    return _table(("what", "measured", "target", "stretch", "reached"), rows)


def _peers(figures: Figures) -> str:
    rows = []
    for case, label in _MAIL_CASES.items():
        for name, system in _SYSTEMS.items():
            prefix = f"{name}.mail.{case}"
            if figures.median(f"{prefix}.rate"):
                rows.append((label, system, *_spreads(figures, prefix)))
                label = ""
    for name, system in list(_SYSTEMS.items())[:2]:
        if values := figures.values.get(f"{name}.relay.4k.100.rate"):
            cpu = figures.values[f"{name}.relay.4k.100.cpu_us"]
            rows.append(("accepted and delivered, 100 sessions", system, spread(values, 0), "", "", spread(cpu, 0)))
    return _table(("", "", "messages/s", "p50 (ms)", "p99 (ms)", "CPU of all processes (µs)"), rows) if rows else ""


def _logs(figures: Figures) -> str:
    rows = []
    for clients in (1, 10, 100):
        for name, system in _LOGS.items():
            prefix = f"{name}.log.256.{clients}"
            if figures.median(f"{prefix}.rate"):
                rows.append((f"{clients}", system, *_spreads(figures, prefix)))
    return (
        _table(("clients", "", "writes/s", "p50 (ms)", "p99 (ms)", "CPU of all processes (µs)"), rows) if rows else ""
    )


def _spreads(figures: Figures, prefix: str) -> tuple[str, ...]:
    return tuple(
        spread(figures.values[f"{prefix}.{part}"], digits)
        for part, digits in (("rate", 0), ("p50_ms", 2), ("p99_ms", 2), ("cpu_us", 0))
    )


def _grids(figures: Figures) -> str:
    rows = grid_rows(figures)
    return _table(("load", "a second", "p50 (ms)", "p99 (ms)", "CPU (µs)"), rows) if rows else ""


def _budget(figures: Figures) -> str:
    rows = budget.table(figures.values)
    return _table(("node", "thread", "user (µs)", "kernel (µs)", "switches"), rows) if len(rows) > 1 else ""


def _floor(figures: Figures) -> str:
    names = {
        "floor.sync3": "fdatasync of 4 KiB into a zero-filled file, by three processes at once",
        "floor.trip": "TCP round trip over loopback",
        "smtpraft.floor.4k.1": "final dot to 250, one session, 4 KB",
    }
    rows = [
        (label, spread(figures.values[f"{name}.p50_us"], 0), spread(figures.values[f"{name}.p99_us"], 0))
        for name, label in names.items()
        if f"{name}.p50_us" in figures.values
    ]
    text = _table(("", "p50 (µs)", "p99 (µs)"), rows) if rows else ""
    ours, source = figures.values.get("generator.ours.rate"), figures.values.get("generator.source.rate")
    if ours and source:
        ratios = [a / b for a, b in zip(ours, source, strict=True)]
        text += f"\nThe rate that our generator sees ÷ what `smtp-source` sees, 10 sessions: {spread(ratios, 2)}.\n"
    for name, what in (("failover.wait_ms", "Kill to next `250`"), ("handover.pause_ms", "Hand-over, longest pause")):
        if values := figures.values.get(name):
            each = ", ".join(f"{value:.0f}" for value in sorted(values))
            text += f"\n{what}, each of {len(values)} (ms): {each}.\n"
    if values := figures.values.get("drain.rate"):
        text += f"\nA queue whose destination is back empties at {values[-1]:.0f} messages/s.\n"
    return text


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median, with the least and the greatest value."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)
