"""The status page in a real browser, over three live nodes: what it shows, how soon, what strangers can do to it."""

from __future__ import annotations

import asyncio
import re
import smtplib
import time
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.client import Client
from smtpraft.cli.demo.nodes import DemoNode
from tests.fault.cluster import Stage

from .browser import Page, browser
from .programs import screenshots

pytestmark = [pytest.mark.ops, pytest.mark.timeout(240)]

NOTICED_S: Final = 2.0
EVIL: Final = "<script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
EVIL_ADDRESS: Final = '"<script>window.hacked=3</script>"@evil.example'


def send_evil(port: int) -> None:
    """A message whose subject and sender are script; nobody takes it, so that it stays in the queue."""
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        text = f"Subject: {EVIL}\r\nFrom: {EVIL_ADDRESS}\r\n\r\nhello\r\n"
        client.sendmail(EVIL_ADDRESS, ["nobody@refused.example"], text.encode())


async def test_the_page_shows_a_live_cluster_and_a_dead_node_within_two_seconds(tmp_path: Path) -> None:
    where = screenshots(tmp_path)
    routes = "refused.example=smtp://127.0.0.1:1,*={sink}"
    async with Stage(tmp_path, start=False) as stage:
        sink = f"smtp://127.0.0.1:{stage.cluster.nodes[0].cluster_port - 1}"
        settings = {"DELIVERY__ROUTES": routes.replace("{sink}", sink)}
        for node in stage.cluster.nodes:
            stage.cluster.launch(node, **settings)
        for node in stage.cluster.nodes:
            await stage.cluster.wait_ready(node)
        watched = stage.cluster.nodes[0]
        async with stage.load(clients_per_node=1) as load:
            await asyncio.to_thread(send_evil, watched.smtp_port)
            await asyncio.sleep(8)
            await asyncio.to_thread(_watch, tmp_path, where, watched, stage)
            await load.finish()


def lead_elsewhere(watched: DemoNode) -> str:
    """Have another node lead than the one whose page is looked at; return which."""
    client = Client([], timeout_s=5.0)
    endpoint = f"127.0.0.1:{watched.admin_port}"
    for _ in range(20):
        leader = client.ask(endpoint, "GET", "/v1/status").json()["leader_id"]
        if leader not in (None, watched.id):
            return str(leader)
        client.ask(endpoint, "POST", "/v1/leader/transfer", {})
        time.sleep(0.2)
    raise AssertionError("nobody else leads")


def _watch(tmp_path: Path, where: Path, watched: DemoNode, stage: Stage) -> None:
    address = f"http://127.0.0.1:{watched.admin_port}/"
    with browser(tmp_path) as page:
        page.look(1360, 900)
        page.open(address)
        page.wait("document.querySelectorAll('#node-rows tr').length === 3")
        page.wait("document.getElementById('live').classList.contains('on')")
        page.wait("document.querySelectorAll('#message-rows button').length >= 1")
        assert page.run("document.getElementById('verdict').textContent") == "Healthy: all 3 nodes answer"
        assert float(page.run("document.querySelector('#tiles strong').firstChild.textContent")) > 0
        assert page.run("document.querySelectorAll('svg.chart path').length") >= 4
        assert "nobody@refused.example" in page.run("document.getElementById('message-rows').textContent")
        assert "127.0.0.1:1" in page.run("document.getElementById('destination-rows').textContent")
        _strangers_text_is_text(page)
        time.sleep(1)
        page.photograph(where / "page-light.png")
        page.look(1360, 900, dark=True)
        time.sleep(0.3)
        page.photograph(where / "page-dark.png")
        page.look(390, 844, dark=False, phone=True)
        time.sleep(1.2)
        assert page.run("document.documentElement.scrollWidth <= 390"), "a phone need not scroll sideways"
        page.photograph(where / "page-phone.png")
        page.look(1360, 900)
        _works_by_keyboard(page, where)

        assert page.complaints == []
        leader = lead_elsewhere(watched)
        page.wait(f"document.querySelector('#leads b').textContent === '{leader}'")
        killed_at = time.monotonic()
        stage.kill(stage.node(leader))
        row = f"document.querySelector('#node-rows tr[data-node={leader}]').dataset.state"
        page.wait(f"{row} === 'unreachable'", 10)
        took = time.monotonic() - killed_at
        page.wait(
            f"document.querySelector('#leads b') && document.querySelector('#leads b').textContent !== '{leader}'", 10
        )
        assert took < NOTICED_S, f"a killed node was seen after {took:.2f} s"
        print(f"a killed node was seen after {took:.2f} s")
        page.wait("document.getElementById('verdict').className === 'warn'", 5)  # until all that live have answered
        assert page.run("[...document.querySelectorAll('#events li')].some(li => li.dataset.kind === 'peer-lost')")
        time.sleep(1.5)
        page.photograph(where / "page-node-lost.png")
        assert page.complaints == []
        assert all(url.startswith((address, "data:")) for url in page.requested), page.requested


def _strangers_text_is_text(page: Page) -> None:
    assert "<script>" in page.run("document.getElementById('message-rows').textContent")
    page.run("document.querySelector('#message-rows button').click()")
    page.wait("document.querySelectorAll('#message-body .steps li').length >= 1")
    assert "<script>window.hacked=1</script>" in page.run("document.getElementById('message-body').textContent")
    assert page.run("document.querySelectorAll('main script, main img, dialog script, dialog img').length") == 0
    assert page.run("window.hacked") is None
    assert page.dialogs == 0
    page.press("Escape", code=27)
    page.wait("!document.getElementById('message').open")


def _works_by_keyboard(page: Page, where: Path) -> None:
    """From the top of the page, Tab reaches every control, with a visible focus; Enter opens, Escape closes."""
    page.run("document.activeElement.blur()")
    seen = []
    for _ in range(20):
        page.press("Tab", code=9)
        seen.append(
            page.run(
                "document.activeElement.id || document.activeElement.className || document.activeElement.textContent"
            )
        )
        if seen[-1] == "id":
            break
    assert seen[0] == "skip", seen
    assert "events" in seen, seen
    assert seen[-1] == "id", seen
    held = page.run("document.activeElement.textContent")
    page.run("document.activeElement.dataset.seen = 1")
    page.wait("!document.activeElement.dataset.seen", 10)  # the list was drawn anew
    assert page.run("document.activeElement.textContent") == held, "the place in the list is kept"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.press("Enter", code=13, text="\r")
    page.wait("document.getElementById('message').open")
    page.wait("document.querySelectorAll('#message-body .steps li').length >= 1")
    page.photograph(where / "page-message.png")
    page.press("Escape", code=27)
    page.wait("!document.getElementById('message').open")


async def test_the_page_asks_for_a_token_and_keeps_it_in_its_tab(tmp_path: Path) -> None:
    token = tmp_path / "read"
    token.write_text("read-token-of-this-test")
    operate = tmp_path / "operate"
    operate.write_text("operator-token-of-this-test")
    async with Stage(tmp_path, count=1, start=False) as stage:
        (node,) = stage.cluster.nodes
        stage.cluster.launch(node, ADMIN__READ_TOKEN_FILE=str(token), ADMIN__TOKEN_FILE=str(operate))
        await stage.cluster.wait_ready(node)
        await asyncio.to_thread(_log_in, tmp_path, node.admin_port)


def _log_in(tmp_path: Path, port: int) -> None:
    with browser(tmp_path) as page:
        page.open(f"http://127.0.0.1:{port}/")
        page.wait("document.getElementById('login').open")
        page.run("document.getElementById('token').value = 'read-token-of-this-test'")
        page.run("document.querySelector('#login-form button').click()")
        page.wait("document.getElementById('live').classList.contains('on')")
        assert page.run("document.getElementById('verdict').textContent") == "Healthy: one node, alone"
        assert not [text for text in page.complaints if not re.search("401", text)]
