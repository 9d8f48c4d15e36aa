"""Plant one bug into a copy of the package, and live days there until one shows it."""

from __future__ import annotations

import json
import os
import shutil
import signal
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
SECONDS: Final = 10
DAY_S: Final = 60
"""Of a processor: longer than any day takes, however slow the machine."""
CROWD: Final = 100
"""So many times as long it may take on a machine that does other things meanwhile."""

_HUNT: Final = """
import json, resource, sys, time
from smtpraft.simulator.campaign import Order, live_order
first, count, seconds = map(int, sys.argv[1:4])
until = float(sys.argv[4])
resource.setrlimit(resource.RLIMIT_CPU, (int(until) + int(sys.argv[5]), resource.RLIM_INFINITY))
found = {}
seed = first
while seed < first + count and not found and time.process_time() < until:
    _, day = live_order(Order(seed, seconds=seconds))
    if day.failed:
        found = {"seed": seed, "rule": day.rule, "text": day.text[:2000]}
    seed += 1
print(json.dumps({"seeds": seed, **found}))
"""


@dataclass(frozen=True, slots=True)
class Catch:
    """The day that showed a bug. `seed` None: none of them did."""

    seed: int | None
    rule: str = ""
    text: str = ""
    took_s: float = 0.0
    seeds: int = 0
    """So many days were lived, from seed 0 on."""


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
    """Live days with the bug until one shows it, or it has taken `timeout_s` of a processor."""
    begun = monotonic()
    with tempfile.TemporaryDirectory(prefix="smtpraft-planted-") as directory:
        copy = Path(directory) / "smtpraft"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.c"))
        if bug.file.startswith("consensus/"):
            for library in (copy / "consensus").glob("*.so"):
                library.unlink()  # The compiled core is made of the right code.
        (copy / bug.file).write_text(planted(bug))
        # Where that module was compiled, all of its package runs from the source: compiled neighbours know its layout.
        for compiled in (copy / bug.file).parent.glob("*.so"):
            if (compiled.parent / (compiled.name.split(".")[0] + ".py")).exists():
                compiled.unlink()
        environment = {**os.environ, "PYTHONPATH": directory, "SMTPRAFT_PURE": str(int(bug.pure))}
        command = [sys.executable, "-c", _HUNT, str(first), str(seeds), str(seconds), str(timeout_s), str(DAY_S)]
        try:
            done = subprocess.run(
                command,
                env=environment,
                cwd=directory,
                capture_output=True,
                text=True,
                timeout=(timeout_s + DAY_S) * CROWD,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Catch(None, "TIME", "the machine had no time for it", monotonic() - begun, first)
    took_s = monotonic() - begun
    if done.returncode == -signal.SIGXCPU:
        return Catch(None, "TIME", f"a day took more than {DAY_S} s", took_s, first)
    if done.returncode != 0:
        raise RuntimeError(f"{bug.name!r} was not hunted: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Catch(found.get("seed"), found.get("rule", ""), found.get("text", ""), took_s, found["seeds"])
