"""What the fault tests measured, for the end of the run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


class Figures:
    """Numbers by name, in the order they came."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[list[float], str]] = {}

    def add(self, name: str, values: Sequence[float], unit: str) -> None:
        """Note `values` of `name`, in `unit`."""
        self._values.setdefault(name, ([], unit))[0].extend(values)

    def lines(self) -> list[str]:
        """Return one line a name."""
        return [_line(name, values, unit) for name, (values, unit) in self._values.items() if values]


def _line(name: str, values: list[float], unit: str) -> str:
    if len(values) == 1:
        return f"{name}: {values[0]:.4g} {unit}"
    ordered = sorted(values)
    return (
        f"{name}: median {median(ordered):.4g} {unit}, least {ordered[0]:.4g}, most {ordered[-1]:.4g} "
        f"(of {len(ordered)})"
    )
