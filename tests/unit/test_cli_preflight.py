"""A clock or a disk with which a node must not start."""

from __future__ import annotations

import datetime as dt
import os
import time
from pathlib import Path

from smtpraft.cli.preflight import CLOCK_MIN, clock_problem, judge_disk, measure_syncs_s


def test_a_clock_before_the_release_is_refused(tmp_path: Path) -> None:
    """A machine without a battery wakes up in 1970."""
    said = clock_problem(tmp_path, 0.0)
    assert said is not None
    assert "1970-01-01 00:00Z" in said
    assert "set the clock" in said
    assert clock_problem(tmp_path, CLOCK_MIN + 1) is None


def test_a_clock_that_went_back_behind_the_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    segment = tmp_path / "wal" / "00000001"
    segment.touch()
    now = dt.datetime(2026, 12, 1, tzinfo=dt.UTC).timestamp()
    os.utime(segment, (now + 100_000, now + 100_000))
    said = clock_problem(tmp_path, now)
    assert said is not None
    assert "was written at 2026-12-02" in said
    os.utime(segment, (now + 3600, now + 3600))
    assert clock_problem(tmp_path, now) is None, "an hour is summer time, or a clock that was set"


def test_syncs_are_measured_and_nothing_is_left_behind(tmp_path: Path) -> None:
    def slow(fd: int) -> None:
        os.fdatasync(fd)
        time.sleep(0.01)

    took = measure_syncs_s(tmp_path, slow)
    assert len(took) == 5
    assert took == sorted(took)
    assert took[0] >= 0.01
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_slow_for_the_timeout_is_refused_with_one_that_would_do() -> None:
    refusal, _ = judge_disk([0.2] * 5, 150)
    assert refusal is not None
    assert "set 2000 on all nodes" in refusal
    assert judge_disk([0.2] * 5, 2000) == (None, None)


def test_a_disk_that_is_slow_at_times_is_only_spoken_of() -> None:
    refusal, warning = judge_disk([0.001, 0.001, 0.02, 0.3, 0.9], 150)
    assert refusal is None
    assert warning is not None
    assert "20 ms" in warning
    assert judge_disk([0.001] * 4 + [0.9], 150) == (None, None)
