"""The Debian package under a real systemd: installed, started, watched, reloaded, stopped, removed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from .machine import Machine, machine
from .programs import needed

pytestmark = [pytest.mark.ops, pytest.mark.timeout(600)]

ROOT: Final = Path(__file__).parents[2]
NODE: Final = "smtpraft@node-1.service"
WATCHDOG_S: Final = 3
SETTINGS: Final = """\
[smtp]
listen = ["127.0.0.1:25"]
hostname = "mx1.example.org"
drain_delay_s = 0

[delivery]
routes = [{ domain = "*", to = "discard:" }]
"""


@pytest.fixture(scope="module")
def package() -> Path:
    """The package: SMTPRAFT_DEB in the environment, else made of this tree."""
    needed("dpkg-deb", "dpkg")
    if given := os.environ.get("SMTPRAFT_DEB"):
        return Path(given)
    command = [sys.executable, "-m", "release.deb", "--source"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    made = re.search(r"dist/(\S+\.deb)", done.stdout)
    assert made, done.stdout
    return ROOT / "dist" / made[1]


@pytest.fixture(scope="module")
def booted(package: Path) -> Iterator[Machine]:
    """A machine that has the package, a configuration, and secrets that only root can read."""
    with tempfile.TemporaryDirectory(prefix="smtpraft-machine-") as name, machine(Path(name)) as made:
        shutil.copy(package, made.share / "smtpraft.deb")
        made.run("dpkg", "--install", "/mnt/smtpraft.deb")
        (made.share / "node-1.toml").write_text(SETTINGS)
        made.run("cp", "/mnt/node-1.toml", "/etc/smtpraft/node-1.toml")
        for secret in ("secret", "admin-token"):
            made.run("sh", "-c", f"openssl rand -hex 32 > /etc/smtpraft/{secret}; chmod 600 /etc/smtpraft/{secret}")
        drop = f"[Service]\nWatchdogSec={WATCHDOG_S}\n"
        made.run("mkdir", "-p", "/etc/systemd/system/smtpraft@.service.d")
        made.run("tee", "/etc/systemd/system/smtpraft@.service.d/test.conf", given=drop)
        made.run("systemctl", "daemon-reload")
        yield made


def send(booted: Machine) -> None:
    """A message through port 25."""
    program = ("smtpraft", "sendmail", "--servers", "127.0.0.1:25", "-i", "you@example.org")
    booted.run(*program, given="Subject: hello\n\nIt works.\n")


def test_a_node_starts_serves_and_is_known_to_be_ready(booted: Machine) -> None:
    """`Type=notify`, `DynamicUser`, `LoadCredential`, the capability for port 25, `StateDirectory`, `STATUS=`."""
    assert "compiled: yes" in booted.run("smtpraft", "version").stdout
    booted.run("systemctl", "start", NODE)  # returns when the node has said READY=1
    assert (booted.shown(NODE, "ActiveState"), booted.shown(NODE, "SubState")) == ("active", "running")
    send(booted)
    deadline = time.monotonic() + 10
    while not booted.shown(NODE, "StatusText").startswith("leads, term 1"):
        assert time.monotonic() < deadline, booted.shown(NODE, "StatusText")
        time.sleep(0.1)
    pid = booted.shown(NODE, "MainPID")
    assert booted.run("stat", "-c", "%u", f"/proc/{pid}").stdout.strip() != "0"
    assert "CapEff:\t0000000000000400" in booted.run("cat", f"/proc/{pid}/status").stdout  # CAP_NET_BIND_SERVICE
    owner = booted.run("stat", "-Lc", "%u %a", "/var/lib/smtpraft/node-1/identity.json").stdout.split()
    assert owner[0] != "0"
    token = booted.run("cat", "/etc/smtpraft/admin-token").stdout
    assert len(token) > 60
    (booted.share / "wrong").write_text("w" * 64)
    refused = booted.run("smtpraft", "status", "--token-file", "/mnt/wrong", check=False)
    assert refused.returncode != 0, "the node knows the token of its credential, and no other"
    assert "node-1" in booted.run("smtpraft", "status", "--token-file", "/etc/smtpraft/admin-token").stdout


def test_what_changes_live_is_reloaded(booted: Machine) -> None:
    changed = SETTINGS.replace("mx1.example.org", "mx9.example.org")
    booted.run("tee", "/etc/smtpraft/node-1.toml", given=changed)
    pid = booted.shown(NODE, "MainPID")
    booted.run("systemctl", "reload", NODE)
    greeting = "exec 3<>/dev/tcp/127.0.0.1/25; head -n1 <&3"
    deadline = time.monotonic() + 10
    while "mx9.example.org" not in booted.run("bash", "-c", greeting).stdout:
        assert time.monotonic() < deadline, booted.journal(NODE)
        time.sleep(0.1)
    booted.run("tee", "/etc/smtpraft/node-1.toml", given=changed + "nonsense = 1\n")
    booted.run("systemctl", "reload", NODE)
    send(booted)
    assert booted.shown(NODE, "MainPID") == pid
    assert booted.shown(NODE, "ActiveState") == "active"
    booted.run("tee", "/etc/smtpraft/node-1.toml", given=changed)


def test_a_node_that_hangs_is_killed_by_the_watchdog_and_comes_back(booted: Machine) -> None:
    before = booted.shown(NODE, "MainPID")
    booted.run("systemctl", "kill", "-s", "STOP", "--kill-whom=main", NODE)
    booted.wait(NODE, "NRestarts", "1", timeout_s=WATCHDOG_S * 4 + 15)
    booted.wait(NODE, "SubState", "running")
    assert booted.shown(NODE, "MainPID") != before
    assert "Watchdog timeout" in booted.journal(NODE)
    send(booted)


def test_a_node_that_is_killed_comes_back(booted: Machine) -> None:
    booted.run("systemctl", "kill", "-s", "KILL", NODE)
    booted.wait(NODE, "NRestarts", "2")
    booted.wait(NODE, "SubState", "running")
    send(booted)


def test_a_stop_is_an_orderly_end(booted: Machine) -> None:
    booted.run("systemctl", "stop", NODE)
    assert booted.shown(NODE, "ActiveState") == "inactive"
    assert (booted.shown(NODE, "Result"), booted.shown(NODE, "ExecMainStatus")) == ("success", "0")
    assert "ended node=node-1" in booted.journal(NODE)


def test_what_no_repetition_changes_is_not_repeated(booted: Machine) -> None:
    """Exit status 78 (`RestartPreventExitStatus`)."""
    good = booted.run("cat", "/etc/smtpraft/node-1.toml").stdout
    booted.run("tee", "/etc/smtpraft/node-1.toml", given=good + "nonsense = 1\n")
    assert booted.run("systemctl", "start", NODE, check=False).returncode != 0
    assert booted.shown(NODE, "ActiveState") == "failed"
    assert booted.shown(NODE, "ExecMainStatus") == "78"
    assert "nonsense" in booted.journal(NODE)
    booted.run("tee", "/etc/smtpraft/node-1.toml", given=good)
    booted.run("systemctl", "reset-failed", NODE)


def test_clients_wait_in_a_socket_of_systemds(booted: Machine) -> None:
    """`smtpraft@.socket`: port 25 is open while no node runs; who connects then is served once it does."""
    booted.run("systemctl", "start", "smtpraft@node-1.socket")
    assert booted.shown(NODE, "ActiveState") == "inactive"
    send(booted)  # the connection starts the node
    assert booted.shown(NODE, "ActiveState") == "active"
    booted.run("systemctl", "stop", "smtpraft@node-1.socket", NODE)


def test_the_package_goes_and_leaves_queue_and_settings(booted: Machine) -> None:
    booted.run("systemctl", "start", NODE)
    booted.run("dpkg", "--remove", "smtpraft")
    assert booted.shown(NODE, "ActiveState") == "inactive"
    assert booted.run("test", "-e", "/usr/lib/smtpraft", check=False).returncode == 1
    booted.run("test", "-e", "/var/lib/private/smtpraft/node-1/identity.json")
    booted.run("test", "-e", "/etc/smtpraft/node-1.toml")
