"""docs/metrics.md says what a node exports: no more, no less."""

from __future__ import annotations

from pathlib import Path

from .metrics_reference import PAGE, exported, page_with, table


async def test_the_reference_of_the_metrics_is_what_a_node_exports(tmp_path: Path) -> None:
    """Make it anew with `python -m tests.integration.metrics_reference --write`."""
    families = await exported(tmp_path)
    assert len(families) > 60
    assert PAGE.read_text() == page_with(table(families))
    for family in families:
        assert family.documentation, f"{family.name} does not say what it is"
