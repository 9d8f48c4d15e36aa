"""Plant one bug into a copy of the package, and live days there until one shows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from .bank import Bug

PACKAGE: Final = Path(__file__).parents[3] / "smtpraft"
SEEDS: Final = 2000
SECONDS: Final = 20

_HUNT: Final = """
import json, sys
from smtpraft.simulator.campaign import Order, live_order
first, count, seconds = map(int, sys.argv[1:])
for seed in range(first, first + count):
    _, day = live_order(Order(seed, seconds=seconds))
    if day.failed:
        print(json.dumps({"seed": seed, "rule": day.rule, "text": day.text[:2000], "trace": day.trace[-20:]}))
        break
else:
    print(json.dumps({}))
"""


@dataclass(frozen=True, slots=True)
class Catch:
    """The day that showed a bug. `seed` None: none of them did."""

    seed: int | None
    rule: str = ""
    text: str = ""
    took_s: float = 0.0


def planted(bug: Bug) -> str:
    """Return the text of the file with the bug in it.

    Raises:
        ValueError: the code has changed, and the patch does not apply, or not in one place only.
    """
    text = (PACKAGE / bug.file).read_text()
    if text.count(bug.old) != 1:
        raise ValueError(f"{bug.name!r} stands {text.count(bug.old)} times in {bug.file}: plant it anew")
    return text.replace(bug.old, bug.new)


def hunt(bug: Bug, *, first: int = 0, seeds: int = SEEDS, seconds: int = SECONDS, timeout_s: float = 1200.0) -> Catch:
    """Live days with the bug until one shows it. A copy that hangs is a catch as well: nobody would miss that."""
    begun = monotonic()
    with tempfile.TemporaryDirectory(prefix="smtpraft-planted-") as directory:
        copy = Path(directory) / "smtpraft"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.c"))
        (copy / bug.file).write_text(planted(bug))
        environment = {**os.environ, "PYTHONPATH": directory, "SMTPRAFT_PURE": str(int(bug.pure))}
        command = [sys.executable, "-c", _HUNT, str(first), str(seeds), str(seconds)]
        try:
            done = subprocess.run(
                command, env=environment, cwd=directory, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return Catch(None, "TIME", f"nothing after {timeout_s:.0f} s", monotonic() - begun)
    took_s = monotonic() - begun
    if done.returncode != 0:
        return Catch(first, "START", done.stderr[-2000:], took_s)
    found = json.loads(done.stdout.splitlines()[-1])
    if not found:
        return Catch(None, took_s=took_s)
    return Catch(found["seed"], found["rule"], found["text"], took_s)
