"""Three nodes behind HAProxy, as `deploy/haproxy` says: mail flows while each of them is restarted."""

from __future__ import annotations

import asyncio
import re
import signal
import smtplib
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from smtpraft.cli.client import Client
from smtpraft.cli.demo.nodes import DemoCluster, DemoNode
from smtpraft.cluster.ports import free_ports
from tests.fault.cluster import wait_for

from .programs import needed, screenshots

pytestmark = [pytest.mark.ops, pytest.mark.timeout(240)]

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
CLIENTS = 6
STOP_S = 25


class Balanced(DemoCluster):
    """Three nodes that take a PROXY header from this machine, deliver into nothing, and one HAProxy before them."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 3, 9)
        self._environ |= {
            "SMTPRAFT_SMTP__PROXY_PROTOCOL": "127.0.0.0/8",
            "SMTPRAFT_SMTP__DRAIN_DELAY_S": "1",
            "SMTPRAFT_SMTP__RELAY_NETWORKS": "127.0.0.0/8",
            "SMTPRAFT_DELIVERY__ROUTES": "*=discard:",
        }
        (self.port,) = free_ports(1)
        text = CONFIGURATION.read_text().replace("bind :25\n", f"bind 127.0.0.1:{self.port}\n")
        for number, node in enumerate(self.nodes, start=1):
            pattern = rf"server node-{number} 10\.0\.0\.{number}:2525 port 8025"
            place = f"server node-{number} 127.0.0.1:{node.smtp_port} port {node.admin_port}"
            text, count = re.subn(pattern, place, text)
            assert count == 1, "the example has changed"
        (directory / "haproxy.cfg").write_text(text)
        self.log = directory / "haproxy.log"

    def _spawn(self, haproxy: str) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen([haproxy, "-f", str(self.directory / "haproxy.cfg"), "-db"], stdout=log, stderr=log)

    async def balance(self, haproxy: str) -> subprocess.Popen[bytes]:
        """Start HAProxy; return when it listens and has probed the nodes."""
        process = self._spawn(haproxy)

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        await wait_for(listens, "HAProxy listens")
        await asyncio.sleep(1)
        return process


class Senders:
    """Clients with a session for each message, as most of the world has; every word that is not a yes is kept."""

    def __init__(self, port: int) -> None:
        self.accepted: list[str] = []
        self.waits_s: list[float] = []
        self.errors: Counter[str] = Counter()
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, name=f"client-{number}") for number in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                with smtplib.SMTP("127.0.0.1", self._port, timeout=30) as client:
                    client.ehlo()
                    client.mail("a@example.org")
                    client.rcpt("b@example.net")
                    code, text = client.data(b"Subject: x\r\n\r\nhello\r\n")
                    if code != 250:
                        raise smtplib.SMTPDataError(code, text)
                    self.accepted.append(text.decode().rpartition(" ")[2])
            except (OSError, smtplib.SMTPException) as error:
                self.errors[repr(error)] += 1
            self.waits_s.append(time.monotonic() - began)
            time.sleep(0.01)


@pytest.fixture
def haproxy() -> str:
    return needed("haproxy", "haproxy")


@pytest.mark.quick
def test_the_example_is_sound(haproxy: str) -> None:
    done = subprocess.run([haproxy, "-c", "-f", str(CONFIGURATION)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def photograph(tmp_path: Path, seen_from: DemoNode, rows: str, state: str, photo: Path) -> None:
    """Open the page of `seen_from`; keep a picture of it once these rows of nodes (empty: all) have this state."""
    from .browser import browser

    directory = tmp_path / photo.stem
    directory.mkdir()
    with browser(directory) as page:
        page.look(1360, 900)
        page.open(f"http://127.0.0.1:{seen_from.admin_port}/")
        states = f"[...document.querySelectorAll('#node-rows tr{rows}')].map(row => row.dataset.state)"
        page.wait(f"{states}.length === {1 if rows else 3} && {states}.every(each => each === '{state}')")
        time.sleep(1)
        assert page.complaints == []
        page.photograph(photo)


async def test_no_client_hears_of_a_rolling_restart(
    haproxy: str, tmp_path: Path, ended: list[subprocess.Popen[bytes]]
) -> None:
    needed("chromium", "chromium")
    cluster = Balanced(tmp_path)
    where = screenshots(tmp_path)
    try:
        await cluster.start()
        ended.append(await cluster.balance(haproxy))
        with Senders(cluster.port) as senders:
            await asyncio.sleep(3)
            before = len(senders.accepted)
            assert before > 20, senders.errors
            leader = await cluster.leader()
            for victim in (leader, *(node for node in cluster.nodes if node is not leader)):
                assert victim.process is not None
                seen_from = next(node for node in cluster.nodes if node is not victim)
                victim.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(victim.process.wait, STOP_S) == 0
                photo = where / f"rolling-{victim.id}-away.png"
                await asyncio.to_thread(
                    photograph, tmp_path, seen_from, f"[data-node={victim.id}]", "unreachable", photo
                )
                await cluster.restart(victim)
                await asyncio.sleep(1.5)
            photo = where / "rolling-over.png"
            await asyncio.to_thread(photograph, tmp_path, cluster.nodes[0], "", "up", photo)
        assert senders.errors == Counter()
        assert len(set(senders.accepted)) == len(senders.accepted) > before + 50
        print(f"\naccepted={len(senders.accepted)} errors=0 longest_s={max(senders.waits_s):.2f}")
        status = Client([]).ask(f"127.0.0.1:{cluster.nodes[0].admin_port}", "GET", "/readyz").status
        assert status == 200
        await cluster.stop()
        logs = "".join((node.directory / "log").read_text() for node in cluster.nodes)
        assert logs.count(" Reception id=") == len(senders.accepted)
        assert "client=127.0.0.1" in logs
    finally:
        await cluster.stop()


async def test_a_leader_that_dies_costs_no_more_than_the_sessions_it_had(
    haproxy: str, tmp_path: Path, ended: list[subprocess.Popen[bytes]]
) -> None:
    """An election makes no node unready: the other sessions wait for it, and new ones find an open door."""
    cluster = Balanced(tmp_path)
    try:
        await cluster.start()
        ended.append(await cluster.balance(haproxy))
        with Senders(cluster.port) as senders:
            await asyncio.sleep(2)
            victim = await cluster.leader()
            victim.kill()
            killed = len(senders.accepted)
            for _ in range(100):
                up = [f"127.0.0.1:{node.admin_port}" for node in cluster.nodes if node.running]
                answers = [await asyncio.to_thread(Client([]).ask, each, "GET", "/readyz") for each in up]
                assert [answer.status for answer in answers] == [200, 200]
                await asyncio.sleep(0.02)
        assert sum(senders.errors.values()) <= CLIENTS, senders.errors
        assert len(senders.accepted) > killed + 20
        print(f"\naccepted={len(senders.accepted)} errors={senders.errors}")
    finally:
        await cluster.stop()
