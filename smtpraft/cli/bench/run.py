"""`smtpraft bench`: which suites run, what is said meanwhile, the table at the end."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from smtpraft._version import __version__
from smtpraft.cli.bench import drain, failover, fullqueue, load, logwrites, mail, micro
from smtpraft.cli.bench.figures import Figures
from smtpraft.cli.bench.plan import Plan
from smtpraft.cli.bench.targets import Verdict, judge, rows
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, print_rows
from smtpraft.errors import SmtpRaftError
from smtpraft.fastlog import COMPILED

Suite = Callable[[Plan], None]

SUITES: Final[Mapping[str, Suite]] = {
    "micro": lambda plan: micro.measure(plan.figures, plan.rounds, plan.say),
    "mail": mail.measure,
    "log": logwrites.measure,
    "halves": mail.halves,
    "failover": failover.measure,
    "drain": drain.measure,
    "queue": fullqueue.measure,
}
_OF_SUITE: Final = {
    "micro": ("micro.",),
    "mail": ("floor.", "smtpraft.floor.", "grid.mail."),
    "log": ("grid.log.",),
    "halves": ("halves.",),
    "failover": ("failover.", "handover."),
    "drain": ("drain.",),
    "queue": ("queue.",),
}
NOT_ASKED: Final = "not asked for"
WITH_PEERS: Final = "`make bench-peers` of a source tree measures this"
_NO_SYNC: Final = ("tmpfs", "ramfs", "overlay on tmpfs")
_RED, _GREEN, _BOLD, _PLAIN = "\033[31m", "\033[32m", "\033[1m", "\033[0m"


def bench(arguments: Namespace) -> int:
    """Run suites, print the table; FAILED if a row fails.

    Raises:
        CommandError: nothing could be measured.
    """
    chosen = choose(arguments.only, SUITES)
    if arguments.target:
        chosen = {"mail": SUITES["mail"]}
    figures = run(
        chosen,
        rounds=1 if arguments.quick else arguments.rounds,
        quick=arguments.quick,
        directory=arguments.directory,
        target=_ports(arguments.target),
    )
    figures.reasons |= dict.fromkeys(_peer_names(), WITH_PEERS)
    verdicts = [judge(row, figures) for row in rows()]
    if arguments.output:
        figures.dump(Path(arguments.output))
    show(figures, verdicts, arguments.write_out)
    return Exit.FAILED if any(verdict.word == "FAIL" for verdict in verdicts) else Exit.OK


def choose(only: str | None, suites: Mapping[str, Suite]) -> dict[str, Suite]:
    """Return the suites that were asked for.

    Raises:
        CommandError: one is not known.
    """
    names = only.split(",") if only else list(suites)
    if unknown := [name for name in names if name not in suites]:
        raise CommandError(Exit.USAGE, f"no suite {', '.join(unknown)}; there are {', '.join(suites)}")
    return {name: suites[name] for name in suites if name in names}


def run(
    suites: Mapping[str, Suite],
    *,
    rounds: int,
    quick: bool,
    directory: str | None = None,
    target: Sequence[int] = (),
    say: Callable[[str], None] | None = None,
) -> Figures:
    """Run `suites`, each in a directory below `directory` (default: the system's for temporary files).

    Raises:
        CommandError: one failed.
    """
    figures = Figures()
    for name, prefixes in _OF_SUITE.items():
        if name not in suites:
            figures.reasons |= dict.fromkeys(prefixes, NOT_ASKED)
    previous = signal.signal(signal.SIGTERM, _terminated)
    place = Path(tempfile.mkdtemp(prefix="smtpraft-bench-", dir=directory))
    place.chmod(0o755)
    began = time.monotonic()
    figures.facts |= facts(place)
    if (kind := figures.facts["file system"]) in _NO_SYNC:
        figures.warnings.append(f"NOTHING IS SYNCED: {place} is on {kind}, whose syncs do nothing; use --directory")
    if not load.COMPILED:
        figures.warnings.append("the load generator is the plain one: it takes more of the CPU that it measures")
    tell = say or _say
    for warning in figures.warnings:
        tell(_coloured(warning, _RED, sys.stderr.isatty()))
    try:
        for number, (name, suite) in enumerate(suites.items(), start=1):
            started = time.monotonic()
            tell(f"[{number}/{len(suites)}] {name}")
            suite(Plan(figures, place, rounds, quick, tell, target))
            tell(f"[{number}/{len(suites)}] {name}: {time.monotonic() - started:.0f} s")
    except SmtpRaftError as error:
        raise CommandError(Exit.UNAVAILABLE, f"{name}: {error}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
        signal.signal(signal.SIGTERM, previous)
    figures.facts["minutes"] = f"{(time.monotonic() - began) / 60:.1f}"
    return figures


def facts(place: Path) -> dict[str, str]:
    """Return what the machine is, and what runs on it."""
    return {
        "when": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        "command": " ".join(["smtpraft", *sys.argv[1:]]),
        "cpus": f"{os.cpu_count()}, {_processor()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "file system": _file_system(str(place)),
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "smtpraft": f"{__version__} ({'compiled' if COMPILED else 'pure'})",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def show(figures: Figures, verdicts: Sequence[Verdict], style: str) -> None:
    """Print everything: as JSON, or the grid and the table of verdicts."""
    if style == "json":
        table = [
            {
                "what": verdict.row.what,
                "value": verdict.value,
                "target": verdict.target,
                "stretch": verdict.row.stretch,
                "verdict": verdict.word,
                "reason": verdict.reason,
            }
            for verdict in verdicts
        ]
        print_json({"rows": table, **figures.as_json()})
        return
    colours = sys.stdout.isatty()
    if grid := grid_rows(figures):
        print_rows(("LOAD", "RATE /s", "P50 ms", "P99 ms", "CPU µs"), grid, style)
        print()
    shown = [
        (verdict.row.what, verdict.measured, verdict.target, verdict.word + (" +" if verdict.stretched else ""))
        for verdict in verdicts
        if not verdict.reason.endswith((NOT_ASKED, WITH_PEERS))
    ]
    print_rows(("ROW", "MEASURED", "TARGET", ""), shown, style)
    words = [verdict.word for verdict in verdicts]
    print(
        f"\n{words.count('PASS')} hold, {words.count('FAIL')} fail; + : beyond the target, as far as was hoped for. "
        f"{words.count('-')} of {len(words)} not measured"
    )
    for warning in figures.warnings:
        print(_coloured(f"! {warning}", _RED, colours))


def grid_rows(figures: Figures) -> list[tuple[str, ...]]:
    """Return a line for each load of the grids."""
    found: list[tuple[str, ...]] = []
    for name in figures.values:
        if name.startswith("grid.") and name.endswith(".rate"):
            prefix = name.removesuffix(".rate")
            cells = [figures.median(f"{prefix}.{part}") or 0.0 for part in ("rate", "p50_ms", "p99_ms", "cpu_us")]
            found.append((_spoken(prefix), f"{cells[0]:.0f}", f"{cells[1]:.3f}", f"{cells[2]:.3f}", f"{cells[3]:.0f}"))
    return found


def _spoken(prefix: str) -> str:
    _, kind, size, many, *_ = prefix.split(".")
    if kind == "mail":
        return f"mail, {size[:-1]} {size[-1].upper()}B, {many} session{'s' if many != '1' else ''}"
    return f"log, {size} B, {many} client{'s' if many != '1' else ''}"


def _peer_names() -> list[str]:
    return ["smtpraft.mail.", "smtpraft.relay.", "smtpraft.log.", "postfix.", "postfix-discard.", "exim.", "etcd."]


def _ports(target: str | None) -> list[int]:
    """Return the SMTP ports of `HOST:PORT,…`.

    Raises:
        CommandError: that is not what was given.
    """
    ports = []
    for text in target.split(",") if target else []:
        host, _, port = text.rpartition(":")
        if host not in ("127.0.0.1", "localhost") or not port.isdecimal() or not 0 < int(port) < 65536:
            raise CommandError(Exit.USAGE, f"--target {text!r}: give 127.0.0.1:PORT of SMTP on this machine")
        ports.append(int(port))
    return ports


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(path: str) -> str:
    """Return the type of the file system that `path` is on."""
    found = ("", "unknown file system")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if os.path.commonpath([path, mount]) == mount and len(mount) >= len(found[0]):
            found = (mount, kind)
    return found[1]


def _coloured(text: str, colour: str, wanted: bool) -> str:
    return f"{colour}{text}{_PLAIN}" if wanted else text


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _terminated(number: int, frame: object) -> NoReturn:
    """Leave as Ctrl-C does: nothing is left running."""
    raise KeyboardInterrupt
