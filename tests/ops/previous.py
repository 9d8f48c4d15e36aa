"""The release before this one, built from the history: what a rolling upgrade comes from."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]

PREVIOUS: Final = "be120dbe159d0b8eaad9dcc7fc344a2c72d99f1a"
"""Where there is no release tag: the last commit before the queue's database, the notes of the cluster and the data
directory got newer formats, membership changes and snapshots. What is released is a tag, `v…`; then that counts."""


def previous_ref() -> str:
    """Return the commit of the newest release that this tree comes from, else `PREVIOUS`.

    Skips the test where there is no history.
    """
    if not (ROOT / ".git").exists():
        pytest.skip("no git history here: the release before this one cannot be built")
    tag = _git("describe", "--tags", "--match", "v*", "--abbrev=0", "HEAD^")
    ref = tag.stdout.strip() if tag.returncode == 0 else PREVIOUS
    if _git("cat-file", "-e", f"{ref}^{{commit}}").returncode:
        pytest.skip(f"{ref} is not in this history (a shallow clone?): git fetch --unshallow")
    return ref


def build_previous(directory: Path) -> Path:
    """Build the release before this one below `directory`; return what PYTHONPATH must begin with to run it."""
    ref = previous_ref()
    source, target = directory / "source", directory / "package"
    source.mkdir()
    archive = directory / "source.tar"
    done = _git("archive", "--format=tar", f"--output={archive}", ref)
    assert done.returncode == 0, done.stderr
    with tarfile.open(archive) as tar:
        tar.extractall(source, filter="data")
    install = (sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps")
    # Its dependencies are those of today's environment: they are the same, or newer within the same bounds.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SMTPRAFT_")}
    built = subprocess.run(
        [*install, "--target", str(target), str(source)], env=clean, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return target


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
