"""`python -m benches.ratios`: how many times as fast the compiled half was, from what `make bench` kept last."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from smtpraft.cli.output import print_rows


def ratios(content: dict[str, list[dict[str, object]]]) -> list[tuple[str, str, str, str]]:
    """Return (question, plain µs, compiled µs, ratio) for each question that was put to both halves."""
    found: dict[str, dict[str, float]] = {}
    for bench in content["benchmarks"]:
        parameters, stats = bench.get("params") or {}, bench["stats"]
        assert isinstance(parameters, dict)
        assert isinstance(stats, dict)
        half = str(parameters.get("half", ""))
        if half in ("_purelog", "_fastlog"):
            found.setdefault(str(bench["group"]), {})[half] = float(stats["median"]) * 1e6
    return [
        (group, f"{us['_purelog']:.3f}", f"{us['_fastlog']:.3f}", f"{us['_purelog'] / us['_fastlog']:.1f}")
        for group, us in found.items()
        if len(us) == 2
    ]


def main() -> int:
    """Print the ratios of the newest file in `.benchmarks`."""
    kept = sorted(Path(".benchmarks").glob("*/*.json"), key=lambda path: path.stat().st_mtime)
    if not kept:
        print("nothing is kept in .benchmarks: run make bench", file=sys.stderr)
        return 1
    print(f"\ncompiled ÷ plain, from {kept[-1]}:")
    print_rows(("QUESTION", "PLAIN µs", "COMPILED µs", "RATIO"), ratios(json.loads(kept[-1].read_text())), "simple")
    return 0


if __name__ == "__main__":
    sys.exit(main())
