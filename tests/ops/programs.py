"""The programs of others that these tests run, and how to get them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def needed(name: str, package: str) -> str:
    """Return the path of a program; where it is not, skip the test, saying how to install it.

    With SMTPRAFT_REQUIRE_PROGRAMS in the environment (`make test-ops` as root sets it) the test fails instead.
    """
    here = str(Path(sys.executable).parent)  # what pip has brought
    path = shutil.which(name, path=f"{here}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        words = f"{name} is not installed: apt-get install {package}"
        if os.environ.get("SMTPRAFT_REQUIRE_PROGRAMS"):
            pytest.fail(words)
        pytest.skip(words)
    return path


def screenshots(tmp_path: Path) -> Path:
    """Return where they are kept: SMTPRAFT_SCREENSHOTS, or beside the other output of the test."""
    directory = Path(os.environ.get("SMTPRAFT_SCREENSHOTS", tmp_path / "screenshots"))
    directory.mkdir(parents=True, exist_ok=True)
    return directory
