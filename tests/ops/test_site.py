"""The documentation as a site: every page is there and linked, and nothing of it comes from elsewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from .programs import needed

pytestmark = [pytest.mark.ops, pytest.mark.timeout(180)]

DOCS = Path(__file__).parents[2] / "docs"
LOADED = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=\"([^\"]*)\"")


def test_the_site_builds_without_a_warning_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    build = needed("sphinx-build", "python3-sphinx python3-myst-parser, or make test-ops")
    site = tmp_path / "site"
    done = subprocess.run(
        [build, "-q", "-W", "--keep-going", "-b", "html", "-d", tmp_path / "trees", DOCS, site],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted(site.glob("*.html"))
    assert {page.stem for page in DOCS.glob("*.md")} <= {page.stem for page in pages}
    for page in pages:
        text = page.read_text("utf-8")
        loaded = LOADED.findall(text)
        assert loaded
        for address in loaded:
            assert not re.match(r"(?:https?:)?//", address), f"{page.name} loads {address}"
        for sheet in site.rglob("*.css"):
            assert not re.search(r"url\(\s*['\"]?(?:https?:)?//", sheet.read_text("utf-8")), sheet
        for address in re.findall(r"<a\b[^>]*?\bhref=\"([^\"]*)\"", text):
            path, anchor = urldefrag(address)
            if re.match(r"[a-z]+:", path):
                continue
            target = page if not path else page.parent / unquote(path)
            assert target.exists(), f"{page.name} links to {address}"
            if anchor and target.suffix == ".html":
                assert f'id="{unquote(anchor)}"' in target.read_text("utf-8"), f"{page.name} links to {address}"
