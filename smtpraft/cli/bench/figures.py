"""What was measured: numbers by name, one a round; shapes for pictures; what the machine was. Kept as JSON.

Names go from the system to the quantity: `smtpraft.mail.4k.100.rate`, `floor.trip.p50_us`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

FORMAT: Final = 1


@dataclass
class Figures:
    """All of one run."""

    facts: dict[str, str] = field(default_factory=dict)
    """Machine, versions, command, when, how long."""
    values: dict[str, list[float]] = field(default_factory=dict)
    shapes: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Points of a curve."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why nothing begins with this name: a peer that is not installed, a suite that was not asked for."""
    warnings: list[str] = field(default_factory=list)

    def add(self, name: str, value: float) -> None:
        """Note the value of one more round."""
        self.values.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        """Return the median of the rounds, None if there is none."""
        values = self.values.get(name)
        return median(values) if values else None

    def why_not(self, name: str) -> str:
        """Return why there is no such figure."""
        for prefix, reason in self.reasons.items():
            if name.startswith(prefix):
                return reason
        return "not measured"

    def dump(self, path: Path) -> None:
        """Write all of it."""
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n", "utf-8")

    def as_json(self) -> dict[str, object]:
        """Return all of it as JSON's types."""
        return {
            "format": FORMAT,
            "facts": self.facts,
            "values": {name: [float(f"{value:.6g}") for value in values] for name, values in self.values.items()},
            "shapes": self.shapes,
            "reasons": self.reasons,
            "warnings": self.warnings,
        }


def read(path: Path) -> Figures:
    """Return what `Figures.dump` wrote.

    Raises:
        ValueError: it is something else.
    """
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} has no figures of this version")
    shapes = {name: [(float(x), float(y)) for x, y in points] for name, points in content["shapes"].items()}
    return Figures(content["facts"], content["values"], shapes, content["reasons"], content["warnings"])
