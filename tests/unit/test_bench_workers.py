"""The table of what SMTP workers cost and bring, from what was measured."""

from __future__ import annotations

import math
from pathlib import Path

from benches.system.document import put
from benches.system.workers import Runs, quantile_ms, table

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_a_quantile_lies_evenly_within_its_bucket() -> None:
    trips = {0.001: 0.0, 0.002: 10.0, 0.004: 20.0, math.inf: 20.0}
    assert quantile_ms(trips, 0.5) == 2.0
    assert quantile_ms(trips, 0.75) == 3.0
    assert quantile_ms(trips | {math.inf: 100.0}, 0.9) == 4.0
    assert quantile_ms({0.001: 0.0, math.inf: 0.0}, 0.5) is None


def test_the_table_has_a_row_for_each_setup_and_load_and_a_place_on_the_page() -> None:
    runs = [Runs([1000.0, 2000.0, 4000.0 + workers], [1.0], [2.0], [300.0], [0.5, 0.7]) for workers in (0, 1)]
    text = table({(1, workers, 10): runs[workers] for workers in (0, 1)})
    rows = [line for line in text.splitlines() if line.startswith("| 1 |")]
    assert rows == [
        f"| 1 | 10 | {workers} | 2000 (1000 to {4000 + workers}) | 1.00 | 2.0 | 300 | 0.6 / 0.7 |  |"
        for workers in (0, 1)
    ]
    assert "Medians of 3 rounds" in put(PAGE.read_text("utf-8"), "workers", text)
