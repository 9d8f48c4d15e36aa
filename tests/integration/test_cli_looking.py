"""`events`, `top`, `where`, `trace`, `check` and `report` against one real node: what they print and how they exit."""

from __future__ import annotations

import asyncio
import json
import tarfile
from pathlib import Path

import pytest

from smtpraft.cli.daemon import Daemon
from smtpraft.cli.entry import main
from smtpraft.cli.exits import Exit
from smtpraft.spool.types import Envelope

from .test_admin_site import daemon


async def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Return exit status, output and errors of a command line."""
    capsys.readouterr()
    status = await asyncio.to_thread(main, words)
    output, errors = capsys.readouterr()
    return status, output, errors


def endpoint(node: Daemon) -> str:
    return "{}:{}".format(*node.admin.address)


async def test_a_message_is_found_followed_and_reported_without_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with daemon(tmp_path / "data") as (node, _):
        monkeypatch.setenv("SMTPRAFT_ENDPOINTS", f"unix:{tmp_path / 'data' / 'admin.sock'}")
        sender = "\x1b]0;title\x07"[:1] + "who@x.example"
        message = await node.client.accept(Envelope(sender, ("to@y.example",)), [b"\r\nsecret body\r\n"], deadline_s=5)

        status, output, _ = await typed(capsys, "where", message)
        assert status == 0
        assert output.splitlines()[1].split() == ["NODE", "IN", "LOG", "SYNCED", "APPLIED", "QUEUED", "STATE", "OWNER"]
        assert output.splitlines()[2].split()[:5] == ["node-1", "yes", "yes", "yes", "yes"]
        status, output, _ = await typed(capsys, "trace", message)
        assert status == 0
        assert "accepted" in output
        assert "\x1b" not in output, "a stranger's control characters do not reach the terminal"
        status, output, _ = await typed(capsys, "trace", message, "-w", "json")
        assert json.loads(output)["steps"][0]["what"] == "accepted"
        for text in ("0000ZZZZZ000", "../status", ""):
            status, _, errors = await typed(capsys, "trace", text)
            assert status == Exit.NO_SUCH, text
            assert errors.startswith("smtpraft: ")

        status, output, _ = await typed(capsys, "events", "--recent", "--count", "2", "-w", "json")
        assert status == 0
        assert all(json.loads(line)["topic"] == "cluster" for line in output.splitlines())
        status, output, _ = await typed(capsys, "top")
        assert status == 0
        assert "1 of 1 nodes" in output
        assert "node-1" in output

        status, output, _ = await typed(capsys, "report", "r.tar.gz")
        assert status == 0
        assert (tmp_path / "r.tar.gz").stat().st_mode & 0o077 == 0
        with tarfile.open(tmp_path / "r.tar.gz") as archive:
            files = {name.rpartition("/")[2]: archive.extractfile(name) for name in archive.getnames()}
            texts = {name: file.read().decode() for name, file in files.items() if file}
        assert {"status.json", "overview.json", "metrics.txt", "events.txt", "machine.json"} <= texts.keys()
        everything = "".join(texts.values())
        for private in ("x.example", "y.example", "secret body"):
            assert private not in everything
        status, _, errors = await typed(capsys, "report", "r.tar.gz")
        assert status == Exit.FAILED
        assert "there already" in errors


async def test_checks_exit_as_monitoring_expects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with daemon(tmp_path) as (node, _):
        at = ("--endpoints", endpoint(node))
        status, output, _ = await typed(capsys, "check", "quorum", *at)
        assert (status, output.split("|")[0]) == (
            0,
            "SMTPRAFT QUORUM OK: 1 of 1 voters answer, node-1 leads in term 1 ",
        )
        assert "voters=1 up=1 term=1" in output
        status, output, _ = await typed(capsys, "check", "disk", "--warning-free", "101", "--critical-free", "1", *at)
        assert status == 1
        assert output.startswith("SMTPRAFT DISK WARNING: node-1 is ok, ")
        status, output, _ = await typed(capsys, "check", "disk", "--critical-free", "101", *at)
        assert status == 2
        status, output, _ = await typed(capsys, "check", "queue", "--format", "json", *at)
        assert status == 0
        assert json.loads(output)["status"] == "OK"
        for _ in range(2):
            await node.client.accept(Envelope("", ("to@y.example",)), [b"\r\n"], deadline_s=5)
        for _ in range(30):  # an overview is up to a second old
            status, output, _ = await typed(capsys, "check", "queue", "--warning", "2", *at)
            if status == 1:
                break
            await asyncio.sleep(0.1)
        assert status == 1, output
        status, output, _ = await typed(capsys, "check", "queue", "--warning", "1", "--critical", "2", *at)
        assert status == 2, output
        status, output, _ = await typed(capsys, "check", "cert", *at)
        assert status == 3
        assert "is no https://" in output
    status, output, _ = await typed(capsys, "check", "quorum", *at)
    assert status == 2, "nobody answers: the cluster may be gone"
    assert output.startswith("SMTPRAFT QUORUM CRITICAL: ")
    status, output, _ = await typed(capsys, "check", "queue", *at)
    assert status == 3
    status, _, _ = await typed(capsys, "top", *at)
    assert status == Exit.UNAVAILABLE
