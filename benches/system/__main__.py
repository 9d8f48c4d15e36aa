"""`python -m benches.system`: all suites, with peers; figures to a file; tables and pictures into the page if asked."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from benches.system import budget, document, exim, peers
from smtpraft.cli.bench import figures as kept
from smtpraft.cli.bench.run import SUITES, choose, run, show
from smtpraft.cli.bench.targets import judge, rows
from smtpraft.cli.exits import CommandError

ALL: Final = {"peers": peers.mail_beside_peers, "logpeers": peers.log_beside_peers, "budget": budget.measure, **SUITES}


def main() -> int:
    """Return the exit status: 0, 1 if a row fails, others if something could not be measured."""
    arguments = _arguments()
    if arguments.install:
        exim.install()
        return 0
    try:
        if arguments.read:
            figures = kept.read(arguments.read)
        else:
            figures = run(choose(arguments.only, ALL), rounds=arguments.rounds, quick=arguments.quick)
            figures.facts["command"] = " ".join(["python -m benches.system", *sys.argv[1:]])
            if arguments.output.exists() and arguments.only:
                figures = _merged(kept.read(arguments.output), figures)
            figures.dump(arguments.output)
    except CommandError as error:
        print("\n".join(error.lines), file=sys.stderr)
        return int(error.status)
    verdicts = [judge(row, figures) for row in rows()]
    show(figures, verdicts, arguments.write_out)
    if arguments.write:
        document.write(arguments.write, figures, verdicts)
    return int(any(verdict.word == "FAIL" for verdict in verdicts))


def _merged(old: kept.Figures, new: kept.Figures) -> kept.Figures:
    """A part was measured again: it takes the place of what was there."""
    reasons = {
        name: reason for name, reason in new.reasons.items() if not any(key.startswith(name) for key in old.values)
    }
    return kept.Figures(
        old.facts | new.facts, old.values | new.values, old.shapes | new.shapes, reasons, old.warnings + new.warnings
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.system", description=__doc__)
    parser.add_argument("--only", metavar="SUITE,…", help=f"of {', '.join(ALL)}; the others keep their figures")
    parser.add_argument("--rounds", type=int, default=5, help="how often what is compared is measured (default: 5)")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures are worth little")
    parser.add_argument("--output", type=Path, default=Path("benches/figures.json"), help="keep all figures here")
    parser.add_argument("--read", type=Path, metavar="FILE", help="measure nothing, take these figures")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put tables and pictures into this page")
    parser.add_argument("--install", action="store_true", help="unpack Exim, as root; measure nothing")
    parser.add_argument("-w", "--write-out", choices=("simple", "table", "json"), default="simple")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
