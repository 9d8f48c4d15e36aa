"""A promise was broken: which one, by whom, how."""

from __future__ import annotations


class Violation(AssertionError):
    """`rule` is the name of an invariant (`R1` to `R16`, `D1` to `D9`, `S1`, `S2`, `L1` to `L8`, `Q…`; see `rules`)."""

    def __init__(self, rule: str, text: str) -> None:
        self.rule = rule
        self.text = text
        super().__init__(f"{rule}: {text}")
