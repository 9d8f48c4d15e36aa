"""The commands of docs/runbooks.md and docs/getting-started.md, run as they stand there, on nodes of this machine.

What is not as on three machines: the addresses, the folders, and `systemctl`, which here starts and stops the same
program with the settings that the unit gives it (`test_systemd.py` has the unit under a real systemd).
"""

from __future__ import annotations

import os
import re
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.fault.ports import PortBlock

from .programs import needed

pytestmark = [pytest.mark.ops, pytest.mark.timeout(400)]

DOCS: Final = Path(__file__).parents[2] / "docs"
# A runbook promises no time, only that it ends. They take 10 to 50 s: dozens of programs start, one after the other.
RUN_S: Final = 180.0
BLOCK: Final = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SYSTEMCTL: Final = """\
#!/bin/bash
# As much of systemctl as the runbooks use, over the settings that deploy/systemd/smtpraft@.service gives a node.
set -eu
action=$1; shift
signal=TERM
if [ "$action" = kill ]; then [ "$1" = -s ]; signal=$2; shift 2; fi
signal() {
    [ ! -e "$run" ] || kill -"$1" "$(cat "$run")" 2>/dev/null || true
}
stop() {
    [ -e "$run" ] || return 0
    for _ in $(seq 300); do kill -0 "$(cat "$run")" 2>/dev/null || break; sleep 0.1; done
    ! kill -0 "$(cat "$run")" 2>/dev/null
    rm "$run"
}
start() {
    log=@ROOT@/$node.log
    offset=$(stat -c %s "$log" 2>/dev/null || echo 0)
    SMTPRAFT_NODE__ID=$node SMTPRAFT_NODE__DATA_DIR=@ROOT@/var/lib/smtpraft/$node \\
        SMTPRAFT_CLUSTER__SECRET_FILE=@ROOT@/etc/smtpraft/secret \\
        SMTPRAFT_ADMIN__TOKEN_FILE=@ROOT@/etc/smtpraft/admin-token \\
        setsid -f bash -c 'echo $$ > "$0"; exec smtpraft serve --config "$1" >> "$2" 2>&1 < /dev/null' \\
        "$run" "@ROOT@/etc/smtpraft/$node.toml" "$log"
    for _ in $(seq 600); do
        if tail -c "+$((offset + 1))" "$log" 2>/dev/null | grep -q ' serving '; then return 0; fi
        if [ -e "$run" ] && ! kill -0 "$(cat "$run")" 2>/dev/null; then tail -n 5 "$log" >&2; return 1; fi
        sleep 0.1
    done
    return 1
}
case $action in  # all at once, as systemd would
    stop) signal=TERM ;;
    restart) signal=TERM ;;
    start) signal= ;;
esac
[ -z "$signal" ] || for unit; do run=@ROOT@/${unit#smtpraft@}.pid; signal "$signal"; done
for unit; do
    node=${unit#smtpraft@}; run=@ROOT@/$node.pid
    case $action in
        start) start ;;
        stop | kill) stop ;;
        restart) stop; start ;;
        *) echo "systemctl $action is not known here" >&2; exit 64 ;;
    esac
done
"""
NODE: Final = """\
[cluster]
name = "mail-a"
listen = "10.0.0.{n}:5001"
peers = [{peers}]
[smtp]
listen = ["10.0.0.{n}:2525"]
hostname = "mx{n}.example.org"
[delivery]
routes = [{{ domain = "*", to = "smtp://127.0.0.1:1" }}]
[admin]
listen = "10.0.0.{n}:8025"
"""


def sections(page: str) -> dict[str, str]:
    """Return the commands of each section; those before the first one are under an empty name."""
    parts = re.split(r"^## (.*)\n", (DOCS / page).read_text(), flags=re.MULTILINE)
    texts = {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))
    return {name: "\n".join(BLOCK.findall(text)) for name, text in texts.items()}


class Site:
    """A root of its own, with the settings of three machines in it."""

    def __init__(self, root: Path, ports: list[int]) -> None:
        self.root = root
        kinds = [(n, port) for n in (1, 2, 3, 4) for port in (5001, 2525, 8025)]
        self._places = {f"10.0.0.{n}:{port}": f"127.0.0.1:{own}" for (n, port), own in zip(kinds, ports, strict=False)}
        for folder in ("etc/smtpraft", "var/lib/smtpraft", "backup", "bin"):
            (root / folder).mkdir(parents=True)
        for secret in ("secret", "admin-token"):
            path = root / "etc/smtpraft" / secret
            path.touch(mode=0o600)
            path.write_text(os.urandom(32).hex())
        for n in (1, 2, 3):
            peers = ", ".join(f'"node-{m}=10.0.0.{m}:5001"' for m in (1, 2, 3) if m != n)
            (root / "etc/smtpraft" / f"node-{n}.toml").write_text(self.here(NODE.format(n=n, peers=peers)))
        systemctl = root / "bin/systemctl"
        systemctl.write_text(SYSTEMCTL.replace("@ROOT@", str(root)))
        systemctl.chmod(0o755)

    def here(self, text: str) -> str:
        """Return a text with the addresses and folders of this site."""
        for there, place in self._places.items():
            text = text.replace(there, place)
        for folder in ("/etc/smtpraft", "/var/lib/smtpraft", "/backup"):
            text = text.replace(folder, f"{self.root}{folder}")
        return text

    def run(self, script: str) -> str:
        """Run commands as they stand in a page; return what they printed. The first that fails ends them."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SMTPRAFT_")}
        environ["PATH"] = f"{self.root / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-eu", "-x", "-o", "pipefail", "-c", self.here(script)],
            cwd=self.root,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        logs = "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(self.root.glob("*.log")))
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{logs}"
        return done.stdout

    def end(self) -> None:
        """End what still runs."""
        for note in self.root.rglob("*.pid"):
            subprocess.run(["kill", "-9", note.read_text().strip()], check=False, capture_output=True)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    needed("openssl", "openssl")
    block = PortBlock()
    made = Site(tmp_path, list(block.ports))
    yield made
    made.end()
    block.close()


@pytest.mark.quick
def test_all_commands_of_the_runbooks_are_run_here() -> None:
    """A new runbook has to be among those below."""
    assert list(sections("runbooks.md")) == ["", *RUNBOOKS]
    assert all(sections("runbooks.md").values())


RUNBOOKS: Final = (
    "Add a node",
    "Replace a node",
    "Upgrade",
    "Back up",
    "Restore",
    "A majority is lost for good",
    "A full disk",
    "A slow disk",
)


@pytest.mark.parametrize("name", RUNBOOKS)
def test_a_runbook_does_what_it_says_from_its_first_line(site: Site, name: str) -> None:
    """With a message in the queue, which is still there in the end."""
    commands = sections("runbooks.md")
    site.run("systemctl start smtpraft@node-1 smtpraft@node-2 smtpraft@node-3")
    waits = "until smtpraft check quorum; do sleep 0.5; done"
    first = commands[""].replace("smtpraft check quorum", waits)
    site.run(first)
    host, port = site.here("10.0.0.1:2525").split(":")
    with smtplib.SMTP(host, int(port), timeout=30) as client:
        client.sendmail("a@example.org", ["b@example.net"], b"Subject: x\r\n\r\nhello\r\n")
    site.run(f"{commands['']}\n{commands[name]}")
    found = site.run(f"{commands[''].splitlines()[0]}\nsmtpraft queue list")
    assert "b@example.net" in found, found


@pytest.mark.skipif(not hasattr(os, "setsid"), reason="POSIX")
def test_the_first_five_minutes_are_as_they_are_told(site: Site) -> None:
    """docs/getting-started.md, with ports of its own."""
    script = sections("getting-started.md")[""]
    site.run(script)
