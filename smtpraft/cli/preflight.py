"""Looked at before a node starts: a clock and a disk with which it would do harm or no good.

The clock decides when mail expires and dates its trace lines: one that is years off bounces a whole queue once its node
leads. The disk decides whether a leader can be kept: if a sync takes longer than the election timeout, the others
elect a new one before the old one has written a line.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

CLOCK_MIN: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp()
"""No release is older."""
CLOCK_BACK_S: Final = 86_400.0  # summer time, a leap second, a drifting clock that is set: none goes back by a day
SYNCS: Final = 5
SYNC_BYTES: Final = 4096
SLOW_FRACTION: Final = 0.1  # of the election timeout: heartbeats and votes wait behind syncs now and then


def clock_problem(data_dir: Path, now: float) -> str | None:
    """Return why this clock cannot be right, or None. `now`: seconds since 1970."""
    told = f"{_date(now)}Z"
    advice = "set the clock (timedatectl set-ntp true) and start again"
    if now < CLOCK_MIN:
        return f"this machine's clock says {told}, before this release was made: {advice}"
    newest = max(_written_at(data_dir), default=0.0)
    if newest - now > CLOCK_BACK_S:
        return f"this machine's clock says {told}, but the log in {data_dir} was written at {_date(newest)}Z: {advice}"
    return None


def _written_at(data_dir: Path) -> Iterator[float]:
    for pattern in ("promises*", "wal/*"):
        for path in data_dir.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                yield path.stat().st_mtime


def _date(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M")


def measure_syncs_s(data_dir: Path, sync: Callable[[int], None] = os.fdatasync) -> list[float]:
    """Return how long some small synced writes take where the log is, shortest first. Blocks for as long.

    Raises:
        OSError: the directory cannot be written to.
    """
    path = data_dir / f"preflight-{os.getpid()}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, bytes(SYNCS * SYNC_BYTES))
        sync(fd)  # the file's length is written once: the log's files have theirs beforehand too
        took = []
        for number in range(SYNCS):
            began = time.monotonic()
            os.pwrite(fd, b"\1" * SYNC_BYTES, number * SYNC_BYTES)
            sync(fd)
            took.append(time.monotonic() - began)
    finally:
        os.close(fd)
        os.unlink(path)
    return sorted(took)


def judge_disk(took_s: list[float], election_timeout_ms: int) -> tuple[str | None, str | None]:
    """Return (why the node must not start, what deserves a look); each None if there is nothing to say."""
    best_ms, usual_ms = took_s[0] * 1000, took_s[len(took_s) // 2] * 1000
    if best_ms > election_timeout_ms:
        wanted = _round_up(best_ms * 10)
        return (
            f"cluster.election_timeout_ms = {election_timeout_ms}: a synced write takes {best_ms:.0f} ms or more here, "
            f"so no leader could last; use a faster disk, or set {wanted} on all nodes (and lease_ms above twice that)"
        ), None
    if usual_ms > election_timeout_ms * SLOW_FRACTION:
        return None, (
            f"a synced write takes {usual_ms:.0f} ms here, and cluster.election_timeout_ms is {election_timeout_ms}: "
            f"expect elections without need; {_round_up(usual_ms * 10)} on all nodes is safer"
        )
    return None, None


def _round_up(milliseconds: float) -> int:
    return int(-(-milliseconds // 100) * 100)
