"""What the kernel knows of a process: CPU time, memory, children. Linux only."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_MIB: Final = 1 << 20
CALM_SHARE: Final = 0.15


def cpu_seconds(pid: int, *, dead_children: bool = False) -> float:
    """Return user and system time of all threads, to 10 ms; of dead children too if asked. 0 for one that is gone."""
    fields = _stat(pid)
    if fields is None:
        return 0.0
    times = fields[11:15] if dead_children else fields[11:13]  # utime, stime, cutime, cstime (proc_pid_stat(5))
    return sum(map(int, times)) / _TICKS_PER_S


def busy_share(seconds: float) -> float:
    """Return which part of all CPUs' time is not idle, over the next `seconds`."""
    before = _cpu_times()
    time.sleep(seconds)
    spent = [now - then for now, then in zip(_cpu_times(), before, strict=True)]
    return 1 - (spent[3] + spent[4]) / max(1, sum(spent))  # idle, iowait (proc_stat(5))


def wait_calm(seconds: float = 5.0) -> None:
    """Return when little is going on here (a node that has just started fills segments with zeros), or in `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and busy_share(0.3) > CALM_SHARE:
        pass


def family(pid: int) -> dict[int, str]:
    """Return the name of the process and of all that live below it."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))) is not None:
            parents[int(entry.name)] = (int(fields[1]), fields[-1])
    found = {pid: parents[pid][1]} if pid in parents else {}
    while more := {child: name for child, (parent, name) in parents.items() if parent in found and child not in found}:
        found |= more
    return found


def memory_mib(pid: int) -> tuple[float, float]:
    """Return resident memory in MiB: all of it, and the anonymous part."""
    sizes = dict(_memory_lines(pid))
    return sizes["VmRSS"], sizes["RssAnon"]


def disk_mib(directory: Path) -> float:
    """Return the blocks that files below `directory` take, in MiB."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file()) / _MIB


def _cpu_times() -> list[int]:
    return [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat behind the name, and the name at the end."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")  # a name may hold parentheses and spaces
    return [*rest.split(), name]


def _memory_lines(pid: int) -> Iterator[tuple[str, float]]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            yield name, int(value.split()[0]) * 1024 / _MIB
