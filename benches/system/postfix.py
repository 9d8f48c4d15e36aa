"""Debian's Postfix as a peer: an instance of its own in a directory of its own, the system's is not touched.

    DIR/etc    main.cf, master.cf     `master` is started directly: the `postfix` command looks after shared files too
    DIR/queue  queue_directory        mail to hold.example stays here until the end: deleting files is dear (ext4 looks
    DIR/data   data_directory         for inodes that were not deleted lately) and would cost the runs that follow

Tuned as far as a fair peer may be: no `in_flow_delay`, a process for every session. It logs to a file, as our nodes do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import smtplib
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from smtpraft.cli.bench.cluster import RELAY_DOMAIN
from smtpraft.cli.bench.processes import cpu_seconds, family
from smtpraft.cli.bench.target import BenchFailed

START_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 20.0
DELIVERY_TIMEOUT_S: Final = 120.0
_QUEUES: Final = ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "saved", "trace")
_UNDELIVERED: Final = ("active", "deferred", "incoming")

_MAIN: Final = """\
compatibility_level = 3.6
config_directory = {directory}/etc
queue_directory = {directory}/queue
data_directory = {directory}/data
myhostname = postfix.bench.example
inet_protocols = ipv4
inet_interfaces = 127.0.0.1
mynetworks = 127.0.0.0/8
mydestination =
alias_maps =
local_recipient_maps =
default_process_limit = 110
in_flow_delay = 0
maillog_file = {directory}/mail.log
maillog_file_prefixes = {directory}
default_transport = discard:
transport_maps = inline:{{ {{{relay_domain} = smtp:[127.0.0.1]:{sink_port}}} }}
smtpd_recipient_restrictions = check_recipient_access inline:{{ {{hold.example = HOLD}} }}, permit_mynetworks, reject
"""

_MASTER: Final = """\
127.0.0.1:{port} inet n - n - 110 smtpd
pickup    unix  n  -  n  60    1  pickup
cleanup   unix  n  -  n  -     0  cleanup
qmgr      unix  n  -  n  300   1  qmgr
rewrite   unix  -  -  n  -     -  trivial-rewrite
bounce    unix  -  -  n  -     0  bounce
defer     unix  -  -  n  -     0  bounce
trace     unix  -  -  n  -     0  bounce
verify    unix  -  -  n  -     1  verify
flush     unix  n  -  n  1000? 0  flush
proxymap  unix  -  -  n  -     -  proxymap
smtp      unix  -  -  n  -     -  smtp
error     unix  -  -  n  -     -  error
retry     unix  -  -  n  -     -  error
discard   unix  -  -  n  -     -  discard
postlog   unix-dgram n -  n  -     1  postlogd
anvil     unix  -  -  n  -     1  anvil
scache    unix  -  -  n  -     1  scache
"""


def why_not() -> str:
    """Return why Postfix cannot be measured here, "" if it can."""
    if os.geteuid() != 0:
        return "Postfix needs root"
    if shutil.which("postconf") is None:
        return "Postfix is not installed"
    return ""


class Postfix:
    """The instance. `end` stops all of it."""

    def __init__(self, directory: Path, port: int, sink_port: int) -> None:
        self.port = port
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        etc, queue, data = (directory / name for name in ("etc", "queue", "data"))
        for part in (etc, queue, data, queue / "pid"):
            part.mkdir(parents=True, mode=0o755)
        shutil.chown(data, "postfix")
        for name in (*_QUEUES, "private"):
            (queue / name).mkdir(mode=0o700)
            shutil.chown(queue / name, "postfix")
        for name, mode in (("public", 0o710), ("maildrop", 0o730)):
            (queue / name).mkdir()
            (queue / name).chmod(mode)
            shutil.chown(queue / name, "postfix", "postdrop")
        (etc / "main.cf").write_text(
            _MAIN.format(directory=directory, sink_port=sink_port, relay_domain=RELAY_DOMAIN), "ascii"
        )
        (etc / "master.cf").write_text(_MASTER.format(port=port), "ascii")

    def begin(self) -> None:
        """Start it; return when it greets.

        Raises:
            BenchFailed: it does not.
        """
        daemons = _postconf("daemon_directory")
        master = [f"{daemons}/master", "-c", str(self._directory / "etc"), "-s"]
        # A group of its own: master ends its children by signalling its group. It ends if we do, however that comes.
        command = ["setpriv", "--pdeathsig", "TERM", *master]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                with smtplib.SMTP("127.0.0.1", self.port, "bench.example", timeout=START_TIMEOUT_S):
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise BenchFailed("Postfix did not start") from None
                time.sleep(0.1)

    def end(self) -> None:
        """Stop it and wait until none of its processes is left."""
        if self._process is None:
            return
        group = self._process.pid
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process = None

    def cpu_s(self) -> Mapping[str, float]:
        """CPU by the name of its processes; `ended` is of those that ended, and of master."""
        assert self._process is not None
        master = self._process.pid
        cpu_s: defaultdict[str, float] = defaultdict(float)
        for pid, name in family(master).items():
            cpu_s["ended" if pid == master else name] += cpu_seconds(pid, dead_children=True)
        return cpu_s

    def wait_delivered(self) -> None:
        """Return when nothing waits to be delivered. What is on hold does not.

        Raises:
            BenchFailed: it takes too long.
        """
        deadline = time.monotonic() + DELIVERY_TIMEOUT_S
        while any(self._has_mail(name) for name in _UNDELIVERED):
            if time.monotonic() > deadline:
                raise BenchFailed(f"Postfix did not deliver within {DELIVERY_TIMEOUT_S:.0f} s")
            time.sleep(0.02)

    def _has_mail(self, name: str) -> bool:
        return any(files for _, _, files in os.walk(self._directory / "queue" / name))


@dataclass(frozen=True)
class PostfixTarget:
    """The instance, and what it does with the mail."""

    postfix: Postfix
    what: Literal["hold", "discard", "relay"]

    @property
    def name(self) -> str:
        return "postfix-discard" if self.what == "discard" else "postfix"

    @property
    def recipient(self) -> str:
        return f"somebody@{self.what}.example"

    def ports(self) -> Sequence[int]:
        return [self.postfix.port]

    def cpu_s(self) -> Mapping[str, float]:
        return self.postfix.cpu_s()

    def wait_delivered(self) -> None:
        self.postfix.wait_delivered()


def version() -> str:
    """Return Postfix's version."""
    return _postconf("mail_version")


def _postconf(name: str) -> str:
    return subprocess.run(["postconf", "-dh", name], check=True, capture_output=True, text=True).stdout.strip()
