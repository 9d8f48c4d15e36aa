"""The reference of the metrics, made of what a node exports. To make it anew, run this as a module, with `--write`."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from smtpraft.cli.client import Client
from smtpraft.cli.daemon import Daemon
from smtpraft.cli.manager import ServiceManager
from smtpraft.config import AdminSettings, ClusterSettings, Config, NodeSettings, SmtpSettings

from .logging_kept import logging_as_it_was

PAGE: Final = Path(__file__).parents[2] / "docs" / "metrics.md"
BEGIN: Final = "<!-- begin: made by python -m tests.integration.metrics_reference --write -->"
END: Final = "<!-- end -->"


async def exported(directory: Path) -> list[Metric]:
    """Return every family that a node exports, those too that have no samples yet."""
    config = Config(
        node=NodeSettings(data_dir=str(directory)),
        cluster=ClusterSettings(segment_bytes=1024 * 1024),
        smtp=SmtpSettings(listen=["127.0.0.1:0"]),
        admin=AdminSettings(listen="127.0.0.1:0"),
    )
    daemon = Daemon(config, None, b"", manager=ServiceManager({}))
    daemon._build()
    async with contextlib.AsyncExitStack() as parts:
        parts.enter_context(logging_as_it_was())
        await daemon._start(parts)
        families = {(family.name, family.type): family for family in daemon._metrics()}
        host, port = daemon.admin.address
        answer = await asyncio.to_thread(Client([]).ask, f"{host}:{port}", "GET", "/metrics")
    assert answer.status == 200
    found = {(family.name, family.type): family for family in text_string_to_metric_families(answer.body.decode())}
    return [families.get(name, family) for name, family in (found | families).items()]


def table(families: Sequence[Metric]) -> str:
    """Return the rows of the reference, ours first, in order of their names."""
    rows = ["| Metric | Type | Labels | What it tells |", "|---|---|---|---|"]
    for family in sorted(families, key=lambda family: (not family.name.startswith("smtpraft_"), family.name)):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = getattr(family, "_labelnames", None) or sorted({key for s in family.samples for key in s.labels})
        shown = ", ".join(f"`{label}`" for label in labels if label != "le")
        rows.append(f"| `{name}` | {family.type} | {shown} | {family.documentation.replace('|', '/')} |")
    return "\n".join(rows)


def page_with(rows: str) -> str:
    """Return the page with these rows in the place of its own."""
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{rows}\n{END}", PAGE.read_text(), flags=re.DOTALL
    )


def main() -> int:
    """Say whether the page is true; with `--write`, make it so."""
    with tempfile.TemporaryDirectory() as directory:
        wanted = page_with(table(asyncio.run(exported(Path(directory)))))
    if "--write" in sys.argv:
        PAGE.write_text(wanted)
    return 0 if PAGE.read_text() == wanted else 1


if __name__ == "__main__":
    sys.exit(main())
