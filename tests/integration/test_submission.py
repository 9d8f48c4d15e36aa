"""`smtpraft sendmail` and `smtpraft log level` against a running node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.test_serve import served, wait_for

TEXT = b"To: b@local.example\nBcc: c@local.example\nSubject: x\n\nhello\n.\nthere\n"


def smtpraft(*arguments: str, text: bytes = b"", name: str | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [name] if name else [sys.executable, "-m", "smtpraft"]
    return subprocess.run([*command, *arguments], input=text, capture_output=True, timeout=60, check=False)


def test_a_program_sends_mail_as_it_did_with_sendmail(tmp_path: Path) -> None:
    settings = {"SMTP__LOCAL_DOMAINS": "local.example", "SMTP__RELAY_NETWORKS": "[]", "LOG__FORMAT": "json"}
    with served(tmp_path, **settings) as node:
        wait_for(lambda: '"message":"serving ' in node.log, 20)
        ports = node.log.partition("smtp=127.0.0.1:")[2]
        server = f"--servers=127.0.0.1:1,127.0.0.1:{ports.partition(' ')[0]}"
        admin = f"--endpoints=127.0.0.1:{ports.partition('admin=127.0.0.1:')[2].partition(chr(34))[0]}"
        link = tmp_path / "sendmail"
        link.write_text(f"#!{sys.executable}\nimport sys\nfrom smtpraft.cli import main\nsys.exit(main())\n")
        link.chmod(0o755)
        done = smtpraft("-t", "-i", "-oem", "-f", "me@example.org", server, text=TEXT, name=str(link))
        assert (done.returncode, done.stderr) == (0, b"")
        mail = tmp_path / "smtpraft-data" / "mail" / "local.example"
        for name in "bc":
            wait_for(lambda name=name: (mail / name / "new").is_dir() and list((mail / name / "new").iterdir()))
            (message,) = (mail / name / "new").iterdir()
            content = message.read_bytes().replace(b"\r\n", b"\n")
            assert content.endswith(b"Subject: x\n\nhello\n.\nthere\n")
            assert b"c@local.example" not in content.partition(b"Subject:")[2], "Bcc stays secret"
        refused = smtpraft("sendmail", server, "b@local.example", "d@elsewhere.example", text=TEXT)
        assert (refused.returncode, b"relaying denied" in refused.stderr) == (67, True), refused
        wait_for(lambda: '"type":"Delivery"' in node.log)
        assert '"type":"Reception"' in node.log
        assert "hello" not in node.log.replace("/hello", "")

        said = smtpraft("log", "level", admin)
        assert (said.returncode, b"info" in said.stdout) == (0, True), said
        changed = smtpraft("log", "level", "error", admin)
        assert (changed.returncode, b"error" in changed.stdout) == (0, True), changed
        receptions = node.log.count('"type":"Reception"')
        assert smtpraft("sendmail", server, "b@local.example", text=TEXT).returncode == 0
        assert smtpraft("log", "level", "info", admin).returncode == 0
        assert node.log.count('"type":"Reception"') == receptions, "what is not to be logged is not"
    assert smtpraft("sendmail", server, "b@local.example", text=TEXT).returncode == 75


def test_sendmail_without_recipients_is_a_matter_of_usage() -> None:
    assert smtpraft("sendmail", text=TEXT).returncode == os.EX_USAGE
    assert smtpraft("sendmail", "-bs", "a@b.example").returncode == os.EX_USAGE
