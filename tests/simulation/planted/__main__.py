"""Hunt every planted bug and write the table: `python -m tests.simulation.planted [--jobs N] [NAME …]`.

With `--results FILE` what was found is kept there, a line each, and a later run goes on where this one ended: in slices
of `--slice` seconds a bug, on a machine that others need too.
"""

from __future__ import annotations

import argparse
import json
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


def table(caught: Sequence[tuple[Bug, Catch]]) -> str:
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
        needed = str(catch.seed + 1) if catch.seed is not None else f"not in {catch.seeds}"
        lines.append(f"| {bug.name} | `{bug.file}` | {needed} | {catch.rule} |")
    return "\n".join(lines)


def _known(path: Path | None) -> dict[str, Catch]:
    if path is None or not path.exists():
        return {}
    found = {}
    for line in path.read_text().splitlines():
        facts = json.loads(line)
        found[facts["name"]] = Catch(facts["seed"], facts["rule"], facts["text"], facts["took_s"], facts["seeds"])
    return found


def _keep(path: Path | None, bug: Bug, catch: Catch) -> None:
    if path is not None:
        facts = {"name": bug.name, "seed": catch.seed, "rule": catch.rule, "seeds": catch.seeds}
        with path.open("a") as file:
            file.write(json.dumps({**facts, "took_s": catch.took_s, "text": catch.text[:200]}) + "\n")


def main() -> int:
    """Hunt, print as it goes, and write the page if all were hunted. Exit status 1 if one got away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help="bugs whose name holds this")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--slice", type=float, default=100_000.0)
    arguments = parser.parse_args()
    bugs = [bug for bug in BANK if not arguments.names or any(name in bug.name for name in arguments.names)]
    known = _known(arguments.results)

    def go_on(bug: Bug) -> Catch:
        before = known.get(bug.name, Catch(None))
        if before.seed is not None or before.seeds >= arguments.seeds:
            return before
        catch = hunt(bug, first=before.seeds, seeds=arguments.seeds - before.seeds, timeout_s=arguments.slice)
        _keep(arguments.results, bug, catch)
        text = catch.text.splitlines()[0] if catch.text else ""
        print(f"{catch.seed!s:>5} of {catch.seeds}  {catch.took_s:6.1f} s  {bug.name}: {catch.rule} {text}", flush=True)
        return catch

    with ThreadPoolExecutor(arguments.jobs) as pool:
        caught = list(zip(bugs, pool.map(go_on, bugs), strict=True))
    if not arguments.names:
        page = PAGE.read_text()
        pattern = re.compile(re.escape(_BEGIN) + ".*" + re.escape(_END), re.DOTALL)
        text = f"{_BEGIN}\n\n{table(caught)}\n\n{_END}"
        PAGE.write_text(pattern.sub(lambda _: text, page))
    return int(any(catch.seed is None for _, catch in caught))


if __name__ == "__main__":
    raise SystemExit(main())
