"""The rows of `targets.toml`, and whether they hold. A target is a ratio to something measured in the same run."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Final

from smtpraft.cli.bench.figures import Figures

_KNOWN: Final = {"what", "figure", "over", "least", "most", "stretch", "take", "unit", "digits"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a figure, divided by the sum of others."""

    what: str
    figure: str
    over: tuple[str, ...]
    least: float | None
    most: float | None
    stretch: float | None
    take: str
    """Of many values: the `median`, or the `p99`."""
    unit: str
    digits: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a row."""

    row: Row
    values: tuple[float, ...]
    value: float | None
    reason: str = ""
    """Why there is no value."""

    @property
    def word(self) -> str:
        """PASS, FAIL, or - if nothing was measured."""
        if self.value is None:
            return "-"
        if self.row.least is not None:
            return "PASS" if self.value >= self.row.least else "FAIL"
        assert self.row.most is not None
        return "PASS" if self.value <= self.row.most else "FAIL"

    @property
    def stretched(self) -> bool:
        """Is even the second goal reached?"""
        if self.value is None or self.row.stretch is None:
            return False
        return self.value >= self.row.stretch if self.row.least is not None else self.value <= self.row.stretch

    @property
    def measured(self) -> str:
        """The value, with the least and the greatest of the rounds."""
        if self.value is None:
            return self.reason
        text = f"{self.value:.{self.row.digits}f}{self.row.unit}"
        if len(self.values) > 1 and self.row.take == "median":
            text += f" ({min(self.values):.{self.row.digits}f} to {max(self.values):.{self.row.digits}f})"
        return text

    @property
    def target(self) -> str:
        """The limit."""
        sign, limit = ("≥", self.row.least) if self.row.least is not None else ("≤", self.row.most)
        return f"{sign} {limit:g}{self.row.unit}"


def rows(path: Path | None = None) -> list[Row]:
    """Return the rows of `path`, or of the file that is part of the package.

    Raises:
        ValueError: the file is not as it must be.
    """
    text = path.read_text("utf-8") if path else files(__package__).joinpath("targets.toml").read_text("utf-8")
    found = []
    for table in tomllib.loads(text).get("row", []):
        if set(table) - _KNOWN or "what" not in table or "figure" not in table:
            raise ValueError(f"a row with {sorted(table)}; known are {sorted(_KNOWN)}")
        if ("least" in table) == ("most" in table):
            raise ValueError(f"{table['what']}: give either `least` or `most`")
        take = table.get("take", "median")
        if take not in ("median", "p99"):
            raise ValueError(f"{table['what']}: `take` is median or p99")
        found.append(
            Row(
                table["what"],
                table["figure"],
                tuple(table.get("over", ())),
                table.get("least"),
                table.get("most"),
                table.get("stretch"),
                take,
                table.get("unit", ""),
                table.get("digits", 2),
            )
        )
    return found


def judge(row: Row, figures: Figures) -> Verdict:
    """Return the verdict on `row`. Ratios are taken within a round, where both sides have as many."""
    for name in (row.figure, *row.over):
        if not figures.values.get(name):
            return Verdict(row, (), None, f"{name}: {figures.why_not(name)}")
    values = figures.values[row.figure]
    if row.over:
        parts = [figures.values[name] for name in row.over]
        if all(len(part) == len(values) for part in parts):
            values = [value / sum(below) for value, *below in zip(values, *parts, strict=True)]
        else:
            values = [value / sum(median(part) for part in parts) for value in values]
    return Verdict(row, tuple(values), taken(values, row.take))


def taken(values: Sequence[float], how: str) -> float:
    """Return the median of `values`, or what 99 of 100 do not exceed."""
    if how == "median":
        return median(values)
    return sorted(values)[max(0, math.ceil(len(values) * 0.99) - 1)]
