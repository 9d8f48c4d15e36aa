"""`smtpraft serve` as a process: what it needs, what it says, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import smtplib
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtpraft.cli.client import Client


class Served:
    """A node as a process, on ports of its own, with its log in a file."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.log_path = directory / "log"
        environ = {name: value for name, value in os.environ.items() if "__" not in name}
        environ |= {"SMTPRAFT_SMTP__LISTEN": "127.0.0.1:0", "SMTPRAFT_ADMIN__LISTEN": "127.0.0.1:0"}
        environ |= {f"SMTPRAFT_{name}": value for name, value in settings.items()}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "smtpraft", "serve"], cwd=directory, env=environ, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def serving(self) -> tuple[int, int]:
        """Wait until it serves; return the SMTP and the admin port."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r" serving .* smtp=127\.0\.0\.1:(\d+) admin=127\.0\.0\.1:(\d+)", self.log):
                return int(found[1]), int(found[2])
            time.sleep(0.02)
        raise AssertionError(self.log)

    def ended(self) -> int:
        return self.process.wait(25)


@contextlib.contextmanager
def served(directory: Path, **settings: str) -> Iterator[Served]:
    node = Served(directory, **settings)
    try:
        yield node
    finally:
        node.process.kill()
        node.process.wait()


def wait_for(found: object, seconds: float = 10) -> None:
    assert callable(found)
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refused(directory: Path, **settings: str) -> tuple[int, str]:
    """Return exit status and last line of a node that cannot start."""
    with served(directory, **settings) as node:
        return node.ended(), node.log.splitlines()[-1]


def metrics_of(admin_port: int) -> dict[str, float]:
    """Return every sample, by its name and labels."""
    text = Client([]).ask(f"127.0.0.1:{admin_port}", "GET", "/metrics").body.decode()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def test_the_metrics_tell_what_a_node_has_done(tmp_path: Path) -> None:
    """One message that cannot be delivered yet, counted where it passed."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with served(tmp_path, DELIVERY__ROUTES=f"*=smtp://127.0.0.1:{port}", CLUSTER__SEGMENT_BYTES="1048576") as node:
        smtp_port, admin_port = node.serving()
        wait_for(lambda: Client([]).ask(f"127.0.0.1:{admin_port}", "GET", "/readyz").status == 200)
        before = metrics_of(admin_port)
        with smtplib.SMTP("127.0.0.1", smtp_port) as client:
            client.sendmail("a@example.org", ["b@example.net"], b"Subject: x\r\n\r\nhello\r\n")
        wait_for(lambda: metrics_of(admin_port)['smtpraft_queue_messages{state="deferred"}'] == 1)
        wait_for(lambda: metrics_of(admin_port)["smtpraft_queue_oldest_age_seconds"] > 0)
        after = metrics_of(admin_port)
    assert 0 < after["smtpraft_queue_oldest_age_seconds"] < 60
    assert before["smtpraft_queue_oldest_age_seconds"] == 0
    for name in ("raft_proposals_committed_total", "raft_proposals_applied_total", "raft_batch_entries_count"):
        assert after[f"smtpraft_{name}"] >= before[f"smtpraft_{name}"] + 2, name
    assert after["smtpraft_raft_batch_entries_sum"] >= after["smtpraft_raft_batch_entries_count"]
    took = after["smtpraft_raft_commit_duration_seconds_sum"] - before["smtpraft_raft_commit_duration_seconds_sum"]
    assert 0 < took < 60
    assert after["smtpraft_raft_commit_duration_seconds_count"] >= 2, "the message, and that it must wait"
    assert after["smtpraft_raft_proposals_failed_total"] == 0
    assert after["smtpraft_wal_segments"] == 1
    assert after["smtpraft_wal_segment_bytes"] == 1048576
    assert after["smtpraft_disk_free_bytes"] > 2**20
    assert (after["smtpraft_kv_keys"], after["smtpraft_kv_bytes"]) == (0, 0)


def test_without_a_file_one_node_takes_mail_into_a_maildir(tmp_path: Path) -> None:
    with served(tmp_path) as node:
        smtp_port, admin_port = node.serving()
        wait_for(lambda: Client([]).ask(f"127.0.0.1:{admin_port}", "GET", "/readyz").status == 200)
        with smtplib.SMTP("127.0.0.1", smtp_port, timeout=20) as client:
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\nhello\r\n")
        mailbox = tmp_path / "smtpraft-data" / "mail" / "example.org" / "b" / "new"
        wait_for(lambda: mailbox.is_dir() and list(mailbox.iterdir()))
        (message,) = mailbox.iterdir()
        text = message.read_bytes()
        assert b"Received: from" in text
        assert b"hello" in text
        assert (tmp_path / "smtpraft-data").stat().st_mode & 0o077 == 0
        assert stat.S_ISSOCK((tmp_path / "smtpraft-data" / "admin.sock").stat().st_mode)
        node.process.terminate()
        assert node.ended() == 0
        assert not (tmp_path / "smtpraft-data" / "admin.sock").exists()


def test_a_message_that_waits_survives_a_restart(tmp_path: Path) -> None:
    nowhere = {"DELIVERY__ROUTES": "*=smtp://127.0.0.1:1"}
    with served(tmp_path, **nowhere) as node:
        smtp_port, _ = node.serving()
        with smtplib.SMTP("127.0.0.1", smtp_port, timeout=20) as client:
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\nhello\r\n")
        node.process.kill()
        node.ended()
    with served(tmp_path, **nowhere) as node:
        node.log_path.write_text("")
        _, admin_port = node.serving()
        asked = Client([f"127.0.0.1:{admin_port}"])
        wait_for(lambda: asked.ask(asked.endpoints[0], "GET", "/readyz").status == 200)
        (message,) = asked.queue()
        assert message["sender"] == "a@example.org"
        assert b"hello" in asked.request("GET", f"/v1/queue/{message['id']}/body").body


def test_a_second_process_on_the_same_directory_is_turned_away(tmp_path: Path) -> None:
    with served(tmp_path) as node:
        node.serving()
        status, line = refused(tmp_path)
        assert (status, "in use by process" in line) == (69, True), line


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        peers = {"CLUSTER__PEERS": "node-2=127.0.0.1:1", "CLUSTER__LISTEN": address}
        for number, settings in enumerate(({"SMTP__LISTEN": address}, {"ADMIN__LISTEN": address}, peers)):
            directory = tmp_path / str(number)
            directory.mkdir()
            status, line = refused(directory, **settings)
            assert status == 69, line
            assert address in line
            assert "Address already in use; another process has it" in line
            assert next(iter(settings.keys() - {"CLUSTER__PEERS"})).lower().replace("__", ".") in line


def test_a_socket_takes_no_name_that_another_has(tmp_path: Path) -> None:
    """Of a living process, or of a file; that of a node that was killed is free."""
    shared = str(tmp_path / "shared.sock")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with served(first, ADMIN__SOCKET=shared) as node:
        node.serving()
        status, words = refused(second, ADMIN__SOCKET=shared)
        assert (status, "another process listens there" in words) == (69, True), words
        assert Client([]).ask(f"unix:{shared}", "GET", "/livez").status == 200
        node.process.kill()
        node.ended()
    with served(second, ADMIN__SOCKET=shared) as node:
        node.serving()
        assert Client([]).ask(f"unix:{shared}", "GET", "/livez").status == 200
    Path(shared).unlink()
    Path(shared).write_text("a letter")
    status, words = refused(second, ADMIN__SOCKET=shared)
    assert (status, "is no socket" in words) == (69, True), words
    assert Path(shared).read_text() == "a letter"


def test_the_directory_of_another_node_is_refused(tmp_path: Path) -> None:
    with served(tmp_path) as node:
        node.serving()
        node.process.terminate()
        assert node.ended() == 0
    status, line = refused(tmp_path, NODE__ID="node-2")
    assert (status, "belongs to node 'node-1'" in line) == (78, True), line


def test_a_configuration_that_cannot_be_used_is_78(tmp_path: Path) -> None:
    assert refused(tmp_path, CLUSTER__SECRET_FILE="/nowhere")[0] == 78
    status, line = refused(tmp_path, SMTP__HOSTNAM="x")
    assert (status, "unknown setting `hostnam`" in line) == (78, True), line


def test_lowest_id_announces_at_every_start_that_it_is_unsafe(tmp_path: Path) -> None:
    with served(tmp_path, CLUSTER__ELECTION="lowest-id") as node:
        node.serving()
        assert re.search(r" WARNING .*unsafe under partitions", node.log)


def test_pure_python_is_said_once_and_json_logs_are_json(tmp_path: Path) -> None:
    with served(tmp_path, PURE="1", LOG__FORMAT="json", NODE__LOOP="asyncio") as node:
        wait_for(lambda: " serving " in node.log.replace('"serving', " serving"), 20)
        records = [json.loads(line) for line in node.log.splitlines()]
        warnings = [str(record) for record in records if record["level"] == "WARNING"]
        assert len(warnings) == 1
        assert "the compiled half of log, core, scanner, session, writer" in warnings[0]
        node.process.send_signal(signal.SIGINT)
        assert node.ended() == 0


def test_a_client_in_the_middle_of_its_message_is_answered_before_the_end(tmp_path: Path) -> None:
    with served(tmp_path) as node:
        smtp_port, admin_port = node.serving()
        wait_for(lambda: Client([]).ask(f"127.0.0.1:{admin_port}", "GET", "/readyz").status == 200)
        client = smtplib.SMTP("127.0.0.1", smtp_port, timeout=20)
        client.ehlo()
        client.docmd("MAIL", "FROM:<a@example.org>")
        client.docmd("RCPT", "TO:<b@example.org>")
        assert client.docmd("DATA")[0] == 354
        client.send(b"Subject: x\r\n")
        node.process.terminate()
        wait_for(lambda: "stopping" in node.log)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", smtp_port), 1)
        client.send(b"\r\nhello\r\n.\r\n")
        code, text = client.getreply()
        assert (code, text[:18]) == (250, b"2.0.0 Ok: queued a")
        assert node.ended() == 0
