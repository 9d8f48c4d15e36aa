"""Debian's Exim as a peer: it takes mail and keeps it (`queue_only`), in a directory of its own.

Debian's Exim and Postfix are never installed side by side, so its package is fetched and unpacked, not installed. Each
message is two files and three fsyncs: the fastest peer found that keeps what it has acknowledged over a power cut.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benches.system.smtptools import wait_listening
from smtpraft.cli.bench.processes import cpu_seconds, family

PLACE: Final = Path("/var/lib/smtpraft-bench/exim")
BINARY: Final = PLACE / "usr/sbin/exim4"
USER: Final = "Debian-exim"
START_S: Final = 20.0
_LIBRARIES: Final = ("libidn12",)

_CONFIGURATION: Final = """\
primary_hostname = exim.bench.example
spool_directory = {directory}/spool
log_file_path = {directory}/log/%slog
pid_file_path = {directory}/pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
smtp_accept_max = 300
smtp_connect_backlog = 1024
smtp_accept_queue = 0
smtp_accept_queue_per_connection = 0
smtp_accept_reserve = 0
queue_only
host_lookup =
rfc1413_query_timeout = 0s
keep_environment =
log_selector = -all
acl_smtp_rcpt = accept
begin acl
accept:
  accept
begin routers
none:
  driver = redirect
  data = :blackhole:
"""


def install() -> None:
    """Fetch and unpack it, as root.

    Raises:
        subprocess.CalledProcessError, OSError: that did not work.
    """
    if not BINARY.exists():
        PLACE.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-qq", "-y", *_LIBRARIES], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["apt-get", "download", "-qq", "exim4-daemon-light"], check=True, cwd=PLACE)
        for package in PLACE.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(package), str(PLACE)], check=True)
            package.unlink()
    try:
        pwd.getpwnam(USER)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--user-group", "--shell", "/usr/sbin/nologin", USER]
        subprocess.run(command, check=True)


def why_not() -> str:
    """Return why Exim cannot be measured here, "" if it can."""
    if os.geteuid() != 0:
        return "Exim needs root"
    if not BINARY.exists():
        return "Exim is not unpacked: make bench-peers does it"
    return ""


class Exim:
    """The instance. `end` stops all of it."""

    def __init__(self, directory: Path, port: int) -> None:
        self.port = port
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("", "spool", "log"):
            (directory / name).mkdir(mode=0o755)
            shutil.chown(directory / name, USER, USER)
        (directory / "conf").write_text(_CONFIGURATION.format(directory=directory, port=port), "ascii")

    def begin(self) -> None:
        """Start it; return when it listens.

        Raises:
            BenchFailed: it does not.
        """
        command = ["setpriv", "--pdeathsig", "TERM", str(BINARY), "-C", str(self.directory / "conf"), "-bdf"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_listening(self.port, self._process, "Exim", START_S)

    def end(self) -> None:
        """Stop it and what it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process = None

    def cpu_s(self) -> Mapping[str, float]:
        """CPU of the daemon, its sessions, and those that ended."""
        assert self._process is not None
        return {"exim": sum(cpu_seconds(pid, dead_children=True) for pid in family(self._process.pid))}


@dataclass(frozen=True)
class EximTarget:
    """The instance as something to send mail to."""

    exim: Exim

    @property
    def name(self) -> str:
        return "exim"

    @property
    def recipient(self) -> str:
        return "somebody@hold.example"

    def ports(self) -> Sequence[int]:
        return [self.exim.port]

    def cpu_s(self) -> Mapping[str, float]:
        return self.exim.cpu_s()

    def wait_delivered(self) -> None:
        """It keeps everything."""


def version() -> str:
    """Return Exim's version."""
    text = subprocess.run([str(BINARY), "-C", "/dev/null", "-bV"], check=True, capture_output=True, text=True).stdout
    return text.split()[2]
