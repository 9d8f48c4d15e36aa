"""Hunt every planted bug and write the table: `python -m tests.simulation.planted [--jobs N] [NAME …]`.

With `--results FILE` what was found is kept there, a line each, and a later run goes on where this one ended: in slices
of `--slice` seconds a bug, on a machine that others need too. What another simulator found counts for nothing: its
seeds were other days. `--table` hunts nothing and writes the page from the file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Final

from .bank import BANK, Bug
from .hunt import PACKAGE, SECONDS, SEEDS, Catch, hunt

PAGE: Final = Path(__file__).parents[3] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- planted bugs: begin -->", "<!-- planted bugs: end -->"


def fingerprint() -> str:
    """Return what tells this simulator from others: a hash over its source."""
    digest = hashlib.sha256(str(SECONDS).encode())
    for path in sorted((PACKAGE / "simulator").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def table(caught: Sequence[tuple[Bug, Catch]], earlier: dict[str, str]) -> str:
    """Return what the page says about them; `earlier` is what it said before."""
    seeds = [catch.seed + 1 for _, catch in caught if catch.seed is not None]
    headline = f"{len(seeds)} of {len(caught)} planted bugs were caught by this simulator, hunted from seed 0 on"
    if seeds:
        headline += f": {sum(seed <= 20 for seed in seeds)} within 20 seeds, {sum(seed <= 200 for seed in seeds)}"
        headline += f" within 200; the median is {median(seeds):.0f}, the worst {max(seeds)}"
    headline += f". A seed is a day of {SECONDS} simulated seconds."
    left = [catch.seeds for _, catch in caught if catch.seed is None]
    if away := [seeds for seeds in left if seeds]:
        headline += f" {len(away)} got away so far, hunted for {_range(away)} seeds."
    if new := left.count(0):
        headline += f" {new} were not hunted by it yet; for those the table says what an earlier form of it needed."
    lines = [headline, "", "| Planted bug | In | Seeds needed | Seen as |", "|---|---|---:|---|"]
    for bug, catch in caught:
        before = earlier.get(bug.name, "not hunted | ")
        here = f"{catch.seed + 1} | {catch.rule}" if catch.seed is not None else before
        if catch.seed is None and catch.seeds:
            here = f"not in {catch.seeds}; {before}" if before[0].isdigit() else f"not in {catch.seeds} | "
        lines.append(f"| {bug.name} | `{bug.file}` | {here} |")
    return "\n".join(lines)


def _range(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least}" if least == most else f"{least} to {most}"


def _earlier(page: str) -> dict[str, str]:
    """Return what the page says of each bug: how many seeds, and as what it was seen."""
    found = {}
    for name, needed, rule in re.findall(r"^\| (.+?) \| `.+?` \| (.+?) \| (.*?) ?\|$", page, re.MULTILINE):
        before = needed.split("; ")[-1]
        mark = "" if "earlier" in before or before.startswith("not") else " (earlier form)"
        found[name] = f"{before}{mark} | {rule}"
    return found


def _known(path: Path | None) -> dict[str, Catch]:
    if path is None or not path.exists():
        return {}
    found = {}
    simulator = fingerprint()
    for line in path.read_text().splitlines():
        facts = json.loads(line)
        if facts.get("simulator") != simulator:
            continue
        found[facts["name"]] = Catch(facts["seed"], facts["rule"], facts["text"], facts["took_s"], facts["seeds"])
    return found


def _keep(path: Path | None, bug: Bug, catch: Catch) -> None:
    if path is not None:
        facts = {"simulator": fingerprint(), "name": bug.name, "seed": catch.seed, "rule": catch.rule}
        facts["seeds"] = catch.seeds
        with path.open("a") as file:
            file.write(json.dumps({**facts, "took_s": catch.took_s, "text": catch.text[:200]}) + "\n")


def main() -> int:
    """Hunt, print as it goes, and write the page if all were hunted. Exit status 1 if one got away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help="bugs whose name holds this")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--slice", type=float, default=7200.0)
    parser.add_argument("--table", action="store_true", help="only write what the file of results says")
    arguments = parser.parse_args()
    bugs = [bug for bug in BANK if not arguments.names or any(name in bug.name for name in arguments.names)]
    known = _known(arguments.results)

    def go_on(bug: Bug) -> Catch:
        before = known.get(bug.name, Catch(None))
        if arguments.table or before.seed is not None or before.seeds >= arguments.seeds:
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
        text = f"{_BEGIN}\n\n{table(caught, _earlier(page))}\n\n{_END}"
        PAGE.write_text(pattern.sub(lambda _: text, page))
    return int(any(catch.seed is None for _, catch in caught))


if __name__ == "__main__":
    raise SystemExit(main())
