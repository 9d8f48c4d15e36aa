"""A machine with a real systemd: a copy of this one in namespaces of its own; what happens in it is gone afterwards."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from .programs import needed

BOOT: Final = Path(__file__).with_name("boot.sh")
BOOT_S: Final = 60.0
COMMAND_S: Final = 90.0


class Machine:
    """One that has booted. `share` is /mnt in it."""

    def __init__(self, first: int, share: Path) -> None:
        self._first = first
        self.share = share

    def run(self, *command: str, check: bool = True, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        inside = ("nsenter", "-t", str(self._first), "-m", "-u", "-i", "-n", "-p", "-C", "--", "env", "-i")
        path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            [*inside, path, *command], input=given, capture_output=True, text=True, check=False, timeout=COMMAND_S
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def shown(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "-P", name, unit).stdout.strip()

    def journal(self, unit: str) -> str:
        """Return what a unit has logged."""
        return self.run("journalctl", "-q", "--no-pager", "-o", "cat", "-u", unit).stdout

    def wait(self, unit: str, name: str, value: str, timeout_s: float = 30.0) -> float:
        """Return the seconds until a property had a value."""
        began = time.monotonic()
        while (found := self.shown(unit, name)) != value:
            late = time.monotonic() - began > timeout_s
            assert not late, f"{unit}: {name} is {found}, not {value}, after {timeout_s} s\n{self.journal(unit)}"
            time.sleep(0.1)
        return time.monotonic() - began


@contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    """Boot one; end it and all that runs in it."""
    if os.geteuid() != 0:
        pytest.skip("a machine of its own takes root")
    needed("systemctl", "systemd")
    for name in ("share", "memory"):
        (directory / name).mkdir()
    unshare = [needed("unshare", "util-linux"), "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net"]
    with (directory / "boot.log").open("wb") as log:
        process = subprocess.Popen(
            [*unshare, "--cgroup", "sh", str(BOOT), str(directory)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield Machine(_booted(process, directory), directory / "share")
    finally:
        process.kill()
        process.wait()


def _booted(process: subprocess.Popen[bytes], directory: Path) -> int:
    """Return the id of its first process, as it is known here, once it has booted."""
    deadline = time.monotonic() + BOOT_S
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while time.monotonic() < deadline:
        if process.poll() is not None:
            words = (directory / "boot.log").read_text()
            if "permitted" in words or "denied" in words:
                pytest.skip(f"this machine lets no other boot in it: {words.splitlines()[-1]}")
            raise AssertionError(words)
        if found := children.read_text().split():
            made = Machine(int(found[0]), directory / "share")
            if made.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded"):
                return int(found[0])
        time.sleep(0.2)
    raise AssertionError(f"systemd did not boot within {BOOT_S} s: {(directory / 'boot.log').read_text()}")
