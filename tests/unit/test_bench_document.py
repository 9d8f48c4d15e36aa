"""The page of figures: tables and pictures come from what was kept, and nothing else of the page changes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benches.system import document, svg
from smtpraft.cli.bench.figures import Figures
from smtpraft.cli.bench.targets import judge, rows

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def figures() -> Figures:
    found = Figures({"when": "today", "command": "python -m benches.system"})
    for system, rate in (("smtpraft", 9000.0), ("postfix", 1000.0)):
        for sessions in (1, 10, 100):
            for part, value in (("rate", rate), ("p50_ms", 1.0), ("p99_ms", 2.0), ("cpu_us", 100.0)):
                found.values[f"{system}.mail.4k.{sessions}.{part}"] = [value, 1.1 * value, 0.9 * value]
        found.shapes[f"{system}.mail.4k.100.wait_ms"] = [(0.0, 0.5), (50.0, 1.0), (99.0, 20.0)]
    for role in ("leader", "follower1"):
        found.values[f"budget.{role}.loop.user_us"] = [50.0]
        found.values[f"budget.{role}.loop.system_us"] = [25.0]
        found.values[f"budget.{role}.switches"] = [0.5]
    found.values |= {"queue.full.cpu_us": [110.0], "queue.short.cpu_us": [100.0]}
    return found


def test_the_page_has_a_place_for_everything(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text("utf-8"), "utf-8")
    document.write(page, figures(), [judge(row, figures()) for row in rows()])
    text = page.read_text("utf-8")
    assert "| 4 KB, 1 session" in text
    assert "9.00 (9.00 to 9.00)" in text
    assert "not measured" in text
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        *("cpu.svg", "latency.svg", "queue.svg", "rate.svg"),
    }
    document.write(page, figures(), [judge(row, figures()) for row in rows()])
    assert page.read_text("utf-8") == text


def test_what_was_not_measured_leaves_the_page_as_it_was() -> None:
    assert (
        document.put("a\n<!-- x -->\nold\n<!-- /x -->\nb\n", "x", "new") == "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb\n"
    )
    with pytest.raises(ValueError, match="no marks"):
        document.put("nothing", "x", "new")


def test_pictures_are_xml_without_scripts() -> None:
    for name, picture in document.pictures(figures()).items():
        root = ET.fromstring(picture)  # noqa: S314 - our own
        assert root.tag == "{http://www.w3.org/2000/svg}svg", name
        assert not root.findall(".//{http://www.w3.org/2000/svg}script")


def test_a_name_cannot_break_a_picture() -> None:
    ET.fromstring(svg.bars("<&>", "µs", {"<a&b>": {'"c"': 1.0}, "d": {"e": 2.0}}))  # noqa: S314


def test_nothing_is_no_picture() -> None:
    with pytest.raises(ValueError, match="no points"):
        svg.lines("t", "x", "y", {"a": []})
    with pytest.raises(ValueError, match="no bars"):
        svg.bars("t", "µs", {})
