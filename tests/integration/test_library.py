"""What the page about the library shows is what runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from smtpraft.cluster import Node, NodeId, NodeOptions, derive_cluster_id
from tests.unit.test_cluster_memory import Names

DOCS = Path(__file__).parents[2] / "docs"
LINES_MAX = 60


def test_the_example_on_the_page_is_the_file_and_is_short() -> None:
    example = (DOCS / "examples" / "tally.py").read_text()
    page = (DOCS / "library.md").read_text()
    assert page.split("```python\n")[1].split("```")[0] == example
    assert len(example.splitlines()) < LINES_MAX


def test_the_example_prints_what_the_page_says() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "examples" / "tally.py")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed == ["apples: 2", "node 3 knows of {'apples': 2}"]
    assert all(f"`{line}`" in (DOCS / "library.md").read_text() for line in printed)


async def test_a_machine_in_memory_is_whole_after_restarts_and_cuts_of_the_log(tmp_path: Path) -> None:
    """Some of it from its file, the rest from the log, which was cut meanwhile."""
    cluster_id = derive_cluster_id("test", [NodeId("n1")])
    said: list[str] = []
    first_index = 1
    for run in range(3):
        machine = Names(str(tmp_path / "names"))
        options = NodeOptions(
            NodeId("n1"),
            str(tmp_path / "node"),
            cluster_id,
            segment_bytes=1024 * 1024,
            max_log_entries=10,
            snapshot_threshold=20,
        )
        node = Node(options, machine)
        await node.start()
        for number in range(50):
            said.append(f"{run}.{number}")
            assert await node.replicate(said[-1].encode()) == len(said)
        assert machine.names == said
        first_index = node.status().first_index
        await node.stop()
    assert first_index > 20, "the log was cut"
    assert (tmp_path / "names").exists()
