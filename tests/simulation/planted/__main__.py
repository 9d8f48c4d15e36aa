"""Hunt every planted bug and write the table: `python -m tests.simulation.planted [--jobs N] [NAME …]`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Final

from .bank import BANK, Bug
from .hunt import SECONDS, SEEDS, Catch, hunt

PAGE: Final = Path(__file__).parents[3] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- planted bugs: begin -->", "<!-- planted bugs: end -->"


def table(caught: Sequence[tuple[Bug, Catch]], hunted: int) -> str:
    """Return what the page says about them."""
    seeds = [catch.seed + 1 for _, catch in caught if catch.seed is not None]
    within = sum(seed <= 200 for seed in seeds)
    headline = f"{len(seeds)} of {len(caught)} planted bugs are caught, {within} within 200 seeds"
    headline += f" of {SECONDS} simulated seconds; the median is {median(seeds):.0f}."
    lines = [
        headline,
        "",
        "| Planted bug | In | Seeds needed | Seen as |",
        "|---|---|---:|---|",
    ]
    for bug, catch in caught:
        needed = str(catch.seed + 1) if catch.seed is not None else f"not in {hunted}"
        lines.append(f"| {bug.name} | `{bug.file}` | {needed} | {catch.rule} |")
    return "\n".join(lines)


def main() -> int:
    """Hunt, print as it goes, and write the page if all were hunted. Exit status 1 if one got away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help="bugs whose name holds this")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    bugs = [bug for bug in BANK if not arguments.names or any(name in bug.name for name in arguments.names)]
    caught: list[tuple[Bug, Catch]] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for bug, catch in zip(bugs, pool.map(lambda bug: hunt(bug, seeds=arguments.seeds), bugs), strict=True):
            text = catch.text.splitlines()[0] if catch.text else ""
            print(f"{catch.seed!s:>5}  {catch.took_s:6.1f} s  {bug.name}: {catch.rule} {text}", flush=True)
            caught.append((bug, catch))
    if not arguments.names:
        page = PAGE.read_text()
        pattern = re.compile(re.escape(_BEGIN) + ".*" + re.escape(_END), re.DOTALL)
        text = f"{_BEGIN}\n\n{table(caught, arguments.seeds)}\n\n{_END}"
        PAGE.write_text(pattern.sub(lambda _: text, page))
    return int(any(catch.seed is None for _, catch in caught))


if __name__ == "__main__":
    raise SystemExit(main())
