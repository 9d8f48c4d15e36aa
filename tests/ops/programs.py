"""The programs of others that these tests run, and how to get them."""

from __future__ import annotations

import shutil

import pytest


def needed(name: str, package: str) -> str:
    """Return the path of a program; skip the test, saying how to install it, where it is not."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return path
