"""The programs of others that these tests run, and how to get them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def needed(name: str, package: str) -> str:
    """Return the path of a program; where it is not, skip the test, saying how to install it.

    With SMTPRAFT_REQUIRE_PROGRAMS in the environment (`make test-ops` as root sets it) the test fails instead.
    """
    path = shutil.which(name)
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
