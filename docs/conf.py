"""`make site`: these pages as a site, by Sphinx; no font, script or picture comes from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

project = "smtpraft"
project_copyright = "the authors of smtpraft"
release = re.findall(r'"(.*)"', (Path(__file__).parents[1] / "smtpraft" / "_version.py").read_text())[0]
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"smtpraft {release}"
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
highlight_options = {"stripall": False}
suppress_warnings = ["misc.highlighting_failure"]  # the drawings in fenced blocks are no language


def _leave_the_tree(app: Any, name: str, source: list[str]) -> None:
    """A link to a file that is no page: the site has not got it, so its name alone stays."""
    del app, name
    source[0] = re.sub(r"\[([^\]\n]+)\]\(\.\./[^)\n]+\)", r"`\1`", source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _leave_the_tree)
