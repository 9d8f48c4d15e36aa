"""The commands that look at a cluster, over three live nodes, one of which dies; and a certificate that ends soon."""

from __future__ import annotations

import asyncio
import json
import smtplib
from pathlib import Path

import pytest

from smtpraft.cli.entry import main
from tests.fault.cluster import Stage, wait_for

from .test_api import certificate

pytestmark = [pytest.mark.ops, pytest.mark.timeout(180)]


async def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    status = await asyncio.to_thread(main, words)
    return status, capsys.readouterr().out


async def test_a_message_is_followed_across_three_nodes_and_the_death_of_its_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Stage(tmp_path, start=False) as stage:
        for node in stage.cluster.nodes:
            stage.cluster.launch(node, DELIVERY__ROUTES="*=smtp://127.0.0.1:1")
        for node in stage.cluster.nodes:
            await stage.cluster.wait_ready(node)
        owner, asked, _ = stage.cluster.nodes
        with smtplib.SMTP("127.0.0.1", owner.smtp_port, timeout=20) as client:
            client.sendmail("a@x.example", ["b@y.example"], b"Subject: x\r\n\r\nhello\r\n")
        page = json.loads(await stage.cluster.ask(asked, "/v1/queue"))
        (message,) = [str(found["id"]) for found in page["messages"]]
        at = ("--endpoints", f"127.0.0.1:{asked.admin_port}", "-w", "json")

        async def synced_everywhere() -> bool:
            _, output = await typed(capsys, "where", message, *at)
            return len(json.loads(output)["synced_on"]) == 3

        await wait_for(synced_everywhere, "the message is on all three")
        stage.kill(owner)

        async def taken_over() -> bool:
            _, output = await typed(capsys, "trace", message, *at)
            return "taken over" in [step["what"] for step in json.loads(output)["steps"]]

        await wait_for(taken_over, "another node owns the message")
        status, output = await typed(capsys, "where", message, *at)
        found = json.loads(output)
        assert status == 0
        assert [row["answers"] for row in found["nodes"]] == [False, True, True]
        assert len(found["synced_on"]) == 2
        status, output = await typed(capsys, "check", "quorum", *at[:2])
        assert status == 1
        assert "one failure from loss" in output
        status, output = await typed(capsys, "events", "--recent", "--count", "3", *at[:2])
        assert status == 0


async def test_a_certificate_that_ends_soon_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await asyncio.to_thread(certificate, tmp_path, "ca")
    await asyncio.to_thread(certificate, tmp_path, "node", "ca")  # for two days
    async with Stage(tmp_path, count=1, start=False) as stage:
        (node,) = stage.cluster.nodes
        files = {"CERT": "node.pem", "KEY": "node.key", "CLIENT_CA": "ca.pem"}
        stage.cluster.launch(node, **{f"ADMIN__TLS_{key}_FILE": str(tmp_path / name) for key, name in files.items()})
        await wait_for((node.directory / "data" / "admin.sock").exists, "the node listens")
        at = ("--endpoints", f"https://127.0.0.1:{node.admin_port}", "--cacert", str(tmp_path / "ca.pem"))
        status, output = await typed(capsys, "check", "cert", *at)
        assert (status, "CRITICAL" in output) == (2, True)
        status, output = await typed(capsys, "check", "cert", "--critical-days", "1", *at)
        assert status == 1, output
        status, output = await typed(capsys, "check", "cert", *at[:2])
        assert status == 2, "an authority that nobody knows"
        key = ("--cert", str(tmp_path / "node.pem"), "--key", str(tmp_path / "node.key"))
        status, output = await typed(capsys, "check", "quorum", *at, *key)
        assert status == 0, output
