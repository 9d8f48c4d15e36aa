"""`smtpraft serve` under a service manager: what it says and is given. The manager is a socket of the test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"


# As a manager does it: the sockets get their numbers, the process that is to have them its pid, and becomes the node.
LAUNCH = """
import os, sys
for number, fd in enumerate(sys.argv[1:], start=3):
    os.dup2(int(fd), number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "smtpraft", "serve", "--config", "smtpraft.toml"])
"""


class Manager:
    """Listens as a service manager does, and starts one node."""

    def __init__(self, directory: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.bind(str(directory / "notify"))
        self._directory = directory
        self.log_path = directory / "log"
        self.lines: list[str] = []

    def start(self, *, environ: dict[str, str] | None = None, fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        """Start it; `fds` become the descriptors from 3 on."""
        variables = {name: value for name, value in os.environ.items() if "__" not in name}
        variables |= {"SMTPRAFT_SMTP__LISTEN": "127.0.0.1:0", "SMTPRAFT_ADMIN__LISTEN": "127.0.0.1:0"}
        variables |= {"NOTIFY_SOCKET": str(self._directory / "notify"), "WATCHDOG_USEC": "400000"} | (environ or {})
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", LAUNCH, *map(str, fds)],
                cwd=self._directory,
                env=variables,
                stdout=log,
                stderr=log,
                pass_fds=fds,
            )

    def wait(self, line: str, seconds: float = 20.0) -> None:
        """Return once it has said a line that begins so."""
        deadline = time.monotonic() + seconds
        while not any(said.startswith(line) for said in self.lines):
            self._listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                self.lines += self._listener.recv(4096).decode().split("\n")
            except TimeoutError:
                raise AssertionError(f"no {line!r} in {self.lines}: {self.log_path.read_text()}") from None

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    (tmp_path / "smtpraft.toml").write_text("")
    manager = Manager(tmp_path)
    yield manager
    manager.close()


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_life_of_a_service(manager: Manager, tmp_path: Path) -> None:
    """READY with open listeners, a watchdog that is fed, RELOADING and READY again, STOPPING, and exit 0."""
    with running(manager.start()) as node:
        manager.wait("READY=1")
        wait_for_log(manager, " serving ")
        assert manager.lines[0].startswith("EXTEND_TIMEOUT_USEC=")
        manager.wait("STATUS=leads, term 1, 0 messages queued")
        for _ in range(3):
            manager.lines.clear()
            manager.wait("WATCHDOG=1", 2.0)
        (tmp_path / "smtpraft.toml").write_text(
            '[log]\nlevel = "warning"\n[smtp]\nmax_recipients = 100\n[cluster]\nname = "b"\n'
        )
        manager.lines.clear()
        node.send_signal(signal.SIGHUP)
        manager.wait("READY=1")
        assert manager.lines.index("RELOADING=1") < manager.lines.index("READY=1")
        assert any(line.startswith("MONOTONIC_USEC=") for line in manager.lines)
        wait_for_log(manager, "these settings wait for a restart: cluster.name")
        (tmp_path / "smtpraft.toml").write_text("[smtp]\nlissen = 3\n")
        manager.lines.clear()
        node.send_signal(signal.SIGHUP)
        manager.wait("READY=1")
        manager.wait("STATUS=the settings cannot be used")
        wait_for_log(manager, "not reloaded: ")
        node.terminate()
        manager.wait("STOPPING=1")
        assert node.wait(20) == 0


def wait_for_log(manager: Manager, text: str) -> None:
    deadline = time.monotonic() + 10
    while text not in manager.log_path.read_text():
        assert time.monotonic() < deadline, manager.log_path.read_text()
        time.sleep(0.02)


def test_a_node_that_waits_for_others_is_ready(manager: Manager) -> None:
    """Else three nodes that are started one after the other would never come up."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    environ = {"SMTPRAFT_CLUSTER__PEERS": f"node-2=127.0.0.1:{port}", "SMTPRAFT_CLUSTER__LISTEN": f"127.0.0.1:{own}"}
    with running(manager.start(environ=environ)) as node:
        manager.wait("READY=1")
        manager.wait("STATUS=follows nobody yet, term 0")
        node.terminate()
        assert node.wait(20) == 0


def test_a_stuck_loop_falls_silent(manager: Manager) -> None:
    """So that the manager restarts it: SIGSTOP stands for whatever holds a loop up."""
    with running(manager.start()) as node:
        manager.wait("READY=1")
        node.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        with contextlib.suppress(AssertionError):
            manager.wait("nothing", 0.01)
        manager.lines.clear()
        with pytest.raises(AssertionError, match="no 'WATCHDOG"):
            manager.wait("WATCHDOG=1", 1.0)


def test_a_socket_of_the_manager_takes_mail_and_outlives_the_node(manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        environ = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "smtp"}
        for _ in range(2):
            # Connected before there is a node: the greeting comes as soon as one is there.
            with socket.create_connection(("127.0.0.1", port)) as early:
                early.settimeout(20)
                manager.lines.clear()
                with running(manager.start(environ=environ, fds=(listener.fileno(),))) as node:
                    manager.wait("READY=1")
                    assert early.recv(100).startswith(b"220 ")
                    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
                        client.sendmail("a@example.org", ["b@localhost"], b"Subject: x\r\n\r\nhello\r\n")
                    node.terminate()
                    assert node.wait(20) == 0


def test_a_socket_that_is_no_listener_is_a_matter_of_configuration(manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environ = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "admin"}
        with running(manager.start(environ=environ, fds=(listener.fileno(),))) as node:
            assert node.wait(20) == 78
    assert "FileDescriptorName=smtp" in manager.log_path.read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_the_units_are_sound_and_the_service_is_locked_down(tmp_path: Path) -> None:
    """Exposure at most 2.0 of 10: the unit is not to become laxer without being noticed."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/smtpraft/bin/smtpraft", sys.executable)
        (tmp_path / unit.name.replace("@.", "@node-1.")).write_text(text)
        (tmp_path / unit.name).write_text(text)
    for name in ("smtpraft@node-1.service", "smtpraft@node-1.socket"):
        verified = subprocess.run(["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True)
        assert (verified.returncode, verified.stderr) == (0, "")
    unit_path = str(tmp_path / "smtpraft@.service")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit_path], capture_output=True, text=True
    )
    assert rated.returncode == 0, rated.stdout[-300:]
