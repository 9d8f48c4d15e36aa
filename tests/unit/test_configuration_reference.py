"""docs/configuration.md has the names, defaults and ranges of the code, and says of each setting what it means."""

from __future__ import annotations

import re

import msgspec
import pytest

from smtpraft.config import CHOICES, RANGES, Config

reference = pytest.importorskip("release.reference", reason="not in a tree of the source")


def test_the_page_is_as_make_docs_writes_it() -> None:
    page = reference.PAGE.read_text("utf-8")
    assert reference.rewritten(page) == page, "make docs"


def test_every_setting_has_a_meaning() -> None:
    page = reference.PAGE.read_text("utf-8")
    settings = sum(len(getattr(Config(), section).__struct_fields__) for section in Config.__struct_fields__)
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| `[a-z_]+` \| `.*` \| ", line)]
    assert len(rows) == settings
    assert [row[0] for row in rows if len(row[3].strip(" |")) < 10] == []


def test_ranges_and_choices_are_those_of_settings() -> None:
    config = Config()
    sections = config.__struct_fields__
    names = {f"{section}.{key}" for section in sections for key in getattr(config, section).__struct_fields__}
    assert set(RANGES) | set(CHOICES) <= names


def test_a_new_setting_and_a_changed_default_are_written() -> None:
    page = reference.PAGE.read_text("utf-8")
    stale = page.replace("| `tick_ms` | `10` |", "| `tick_ms` | `11` |")
    stale = re.sub(r"^\| `lease_reads` .*\n", "| `gone` | `1` |  | Not a setting. |\n", stale, flags=re.MULTILINE)
    made = reference.rewritten(stale)
    assert "| `tick_ms` | `10` |" in made
    assert "`gone`" not in made
    assert re.search(r"^\| `lease_reads` \| `false` \|  \|  \|$", made, re.MULTILINE)


def test_a_default_is_shown_as_a_file_would_have_it() -> None:
    for value in (True, 3, 0.5, 432_000.0, 'a "b"', ["x", "y"], [60.0]):
        assert msgspec.toml.decode(f"value = {reference.shown(value)}".encode())["value"] == value
