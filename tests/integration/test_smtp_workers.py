"""`smtp.workers`: processes that speak SMTP for a node, as clients and operators see them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import smtplib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smtpraft.cli.client import Client
from smtpraft.cluster.ports import free_ports
from smtpraft.config import SmtpSettings
from smtpraft.smtp.census import Census
from smtpraft.smtp.worker_frames import HEAD, MESSAGE, Begin, Kind, State, encode, frame
from smtpraft.spool import commands

from .test_serve import Served, metrics_of, refused, served, wait_for

MESSAGE_TEXT = b"Subject: x\r\n\r\nhello\r\n"


@contextlib.contextmanager
def node_with_workers(directory: Path, **settings: str) -> Iterator[tuple[Served, int, int]]:
    """A node alone that takes mail: the process, its SMTP port and its admin port."""
    with served(directory, SMTP__WORKERS="2", **settings) as node:
        smtp_port, admin_port = node.serving()
        wait_for(lambda: Client([]).ask(f"127.0.0.1:{admin_port}", "GET", "/readyz").status == 200)
        yield node, smtp_port, admin_port


def workers_of(admin_port: int) -> list[dict[str, Any]]:
    status: dict[str, Any] = json.loads(Client([]).ask(f"127.0.0.1:{admin_port}", "GET", "/v1/status").body)
    return list(status["smtp_workers"])


def pids_of(admin_port: int) -> list[int]:
    return [int(row["pid"]) for row in workers_of(admin_port) if row["state"] == "listens"]


def runs(pid: int) -> bool:
    """Does this process exist, other than as a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def one_per_worker(smtp_port: int, admin_port: int) -> list[smtplib.SMTP]:
    """Return clients until every worker has one: the kernel deals them out by their ports."""
    clients = []
    for _ in range(100):
        clients.append(smtplib.SMTP("127.0.0.1", smtp_port, timeout=20))
        if len(clients) % 4 == 0:
            wait_for(lambda: sum(row["connections"] for row in workers_of(admin_port)) == len(clients))
            if all(row["connections"] for row in workers_of(admin_port)):
                return clients
    raise AssertionError(workers_of(admin_port))


def peer_pid(client: smtplib.SMTP) -> int:
    """Return which of this machine's processes has the other end of a connection."""
    assert client.sock is not None
    ours, theirs = client.sock.getsockname(), client.sock.getpeername()
    wanted = (f"{_hex(theirs)} {_hex(ours)}").upper()
    inode = next(line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines() if wanted in line)
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry) == f"socket:[{inode}]":
                return int(entry.parts[2])
    raise AssertionError(f"nobody has socket {inode}")


def _hex(name: tuple[str, int]) -> str:
    return f"{struct.unpack('=I', socket.inet_aton(name[0]))[0]:08X}:{name[1]:04X}"


class Shared:
    """One node with two workers for several tests, one after the other; SIGHUP gives it each one's settings."""

    def __init__(self, node: Served, ports: tuple[int, int], settings: Path) -> None:
        self.node = node
        self.smtp_port, self.admin_port = ports
        self.settings = settings
        self._reloads = 0
        self.mail = settings.parent / "smtpraft-data" / "mail"

    def client(self, **more: Any) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.smtp_port, timeout=20, **more)

    def reload(self, **smtp: object) -> None:
        """Have these settings, and no others, and no client of an earlier test."""
        wait_for(lambda: metrics_of(self.admin_port)["smtpraft_smtp_connections"] == 0)
        before = self.node.log.count(" reloaded changed=")
        self._reloads += 1
        smtp = {"hostname": f"reload-{self._reloads}.example", **smtp}
        lines = [f"{name} = {json.dumps(value)}" for name, value in smtp.items()]
        self.settings.write_text("\n".join(["[smtp]", *lines]) + "\n")
        self.node.process.send_signal(signal.SIGHUP)
        wait_for(lambda: self.node.log.count(" reloaded changed=") > before)
        preface = b"PROXY UNKNOWN\r\n" if "proxy_protocol" in smtp else b""
        wait_for(lambda: self.greetings(preface) == {str(smtp["hostname"])})

    def greetings(self, preface: bytes = b"") -> set[str]:
        """Return the names that workers call the node by; one in 32,768 times one worker is not asked."""
        names = set()
        for _ in range(16):
            with socket.create_connection(("127.0.0.1", self.smtp_port), 20) as client, client.makefile("rb") as stream:
                client.sendall(preface + b"EHLO c\r\n")
                stream.readline()
                names.add(stream.readline().decode().strip()[4:])
        return names


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    directory = tmp_path_factory.mktemp("workers")
    settings = directory / "smtpraft.toml"
    settings.write_text("[smtp]\n")
    with node_with_workers(directory, CONFIG=str(settings)) as (node, smtp_port, admin_port):
        yield Shared(node, (smtp_port, admin_port), settings)


def test_mail_goes_through_two_workers_and_is_counted_and_logged_once(shared: Shared) -> None:
    """And the node itself has no SMTP connection."""
    admin_port = shared.admin_port
    clients = one_per_worker(shared.smtp_port, admin_port)
    assert {peer_pid(client) for client in clients} == set(pids_of(admin_port))
    for number, client in enumerate(clients):
        client.sendmail("a@example.org", [f"b{number}@first.example"], MESSAGE_TEXT)
    body = b"Subject: long\r\n\r\n" + b"0123456789abcdef\r\n" * 150_000  # several entries of the log
    clients[0].sendmail("a@example.org", ["long@first.example"], body)
    count = len(clients) + 1
    box = shared.mail / "first.example"
    wait_for(lambda: len(list(box.glob("*/new/*"))) == count)
    (long,) = (box / "long" / "new").iterdir()
    assert long.read_bytes().replace(b"\r\n", b"\n").endswith(body.replace(b"\r\n", b"\n"))
    assert long.read_bytes().count(b"Received: ") == 1
    wait_for(lambda: metrics_of(admin_port)['smtpraft_messages_received_total{listener="127.0.0.1:0"}'] == count)
    metrics = metrics_of(admin_port)
    assert metrics["smtpraft_smtp_workers"] == 2
    assert metrics["smtpraft_smtp_ack_duration_seconds_count"] == count
    assert metrics["smtpraft_smtp_connections"] == len(clients)
    assert metrics["smtpraft_messages_received_bytes_total"] > len(body)
    wait_for(lambda: shared.node.log.count(" Reception id=") == count)
    assert len(set(re.findall(r" Reception id=(\w+)", shared.node.log))) == count
    told = subprocess.run(
        [sys.executable, "-m", "smtpraft", "status", "--endpoints", f"127.0.0.1:{admin_port}", "-w", "table"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert ",".join(map(str, pids_of(admin_port))) in told
    for client in clients:
        client.close()


def test_sighup_and_a_new_log_level_reach_the_workers(shared: Shared) -> None:
    shared.reload(hostname="one.example")
    began = shared.client()
    assert began.ehlo()[1].startswith(b"one.example")
    shared.settings.write_text('[smtp]\nhostname = "two.example"\nmax_message_bytes = 70000\n')
    shared.node.process.send_signal(signal.SIGHUP)
    wait_for(lambda: shared.greetings() == {"two.example"})
    assert began.noop()[0] == 250
    with shared.client() as client:
        client.ehlo()
        assert client.esmtp_features["size"] == "70000"
    began.close()
    for level in ("debug", "info"):
        told = Client([]).ask(f"127.0.0.1:{shared.admin_port}", "POST", "/v1/log/level", {"level": level})
        assert told.status == 200
        if level == "debug":
            wait_for(lambda: _session_over_is_logged(shared))


def _session_over_is_logged(shared: Shared) -> bool:
    for _ in range(8):
        shared.client().quit()
    return shared.node.log.count(" DEBUG smtp.protocol session over") >= 8


def test_limits_on_connections_hold_over_all_workers(shared: Shared) -> None:
    shared.reload(max_connections=12, max_connections_per_client=8)
    wait_for(lambda: metrics_of(shared.admin_port)["smtpraft_smtp_connections"] == 0)
    clients: list[smtplib.SMTP] = []
    refusals = []
    for _ in range(12):
        try:
            clients.append(shared.client())
        except smtplib.SMTPConnectError as error:
            refusals.append(error.smtp_code)
    assert len(clients) == 8
    assert refusals == [421] * 4
    others = [f"127.0.0.{last}" for last in range(2, 6)]
    clients += [shared.client(source_address=(host, 0)) for host in others]
    for _ in range(2):
        with pytest.raises(smtplib.SMTPConnectError, match="too many connections'"):
            shared.client(source_address=("127.0.0.9", 0))
    for client in clients:
        client.close()
    denied = 'smtpraft_smtp_connections_denied_total{reason="client"}'
    wait_for(lambda: metrics_of(shared.admin_port).get(denied, 0) >= 4)
    wait_for(lambda: metrics_of(shared.admin_port)["smtpraft_smtp_connections"] == 0)
    shared.client().quit()


def test_a_balancer_tells_a_worker_who_the_client_is(shared: Shared) -> None:
    shared.reload(proxy_protocol=["127.0.0.0/8"])
    with socket.create_connection(("127.0.0.1", shared.smtp_port), 20) as client:
        client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 51000 25\r\n")
        stream = client.makefile("rb")
        assert stream.readline().startswith(b"220 ")
        for command, code in ((b"EHLO c", b"250"), (b"MAIL FROM:<a@b>", b"250"), (b"RCPT TO:<x@y>", b"550")):
            client.sendall(command + b"\r\n")
            while (line := stream.readline())[3:4] == b"-":
                pass
            assert line[:3] == code, line
    wait_for(lambda: "client=192.0.2.7" in shared.node.log)


def test_a_worker_that_is_killed_under_load_loses_nothing_and_comes_back(shared: Shared) -> None:
    shared.reload()
    node, admin_port = shared.node, shared.admin_port
    victim, other = pids_of(admin_port)
    acknowledged: list[str] = []
    by_worker: dict[int, int] = {}
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, smtplib.SMTPException):
                client = shared.client()
                pid = peer_pid(client)
                client.ehlo()
                for _ in range(200):
                    if stop.is_set():
                        break
                    client.mail("a@example.org")
                    client.rcpt("b@second.example")
                    code, text = client.data(MESSAGE_TEXT)
                    assert code == 250, text
                    acknowledged.append(text.decode().rpartition(" ")[2])
                    by_worker[pid] = by_worker.get(pid, 0) + 1
                client.close()

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: by_worker.get(victim, 0) > 50 and by_worker.get(other, 0) > 50, 30)
        os.kill(victim, signal.SIGKILL)
        before = by_worker[other]
        wait_for(lambda: by_worker[other] > before + 50, 30)
        wait_for(lambda: len(pids_of(admin_port)) == 2, 30)
        (again,) = set(pids_of(admin_port)) - {other}
        assert again != victim
        wait_for(lambda: by_worker.get(again, 0) > 20, 30)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert re.search(r" ERROR smtp\.workers worker=0 ended status='signal 9' .*another is started", node.log)
    assert [row["restarts"] for row in workers_of(admin_port)] == [1, 0]
    assert metrics_of(admin_port)["smtpraft_smtp_worker_restarts_total"] == 1
    wait_for(lambda: not list(Client([f"127.0.0.1:{admin_port}"]).queue()), 30)
    assert len(set(acknowledged)) == len(acknowledged)

    def missing() -> set[str]:
        pattern = r" Delivery id=(\w+) sender=\S+ recipient='b@second.example'"
        return set(acknowledged) - set(re.findall(pattern, node.log))

    wait_for(lambda: not missing())


def test_a_node_that_is_killed_leaves_no_worker_and_a_free_port(tmp_path: Path) -> None:
    """While it runs, nobody shares its port: SO_REUSEPORT would let a second node have half of the clients."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with node_with_workers(first) as (node, smtp_port, admin_port):
        address = f"127.0.0.1:{smtp_port}"
        status, line = refused(second, SMTP__WORKERS="2", SMTP__LISTEN=address)
        assert status == 69
        assert "smtp.listen" in line
        assert "Address already in use; another process has it" in line
        pids = pids_of(admin_port)
        idle = smtplib.SMTP("127.0.0.1", smtp_port, timeout=20)
        idle.ehlo()
        for pid in pids:
            os.kill(pid, signal.SIGTERM)  # a service manager signals all: it is the node's to say when they end
        assert idle.noop()[0] == 250
        node.process.kill()
        node.ended()
        code, text = idle.getreply()
        assert (code, text[:5]) == (421, b"4.3.2")
        wait_for(lambda: not any(map(runs, pids)), 5)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", smtp_port), 1)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", smtp_port))
        again.listen()


def test_sigterm_drains_the_workers(tmp_path: Path) -> None:
    """A message in the middle is answered, an idle client hears 421, a new one is refused, and all processes end."""
    with node_with_workers(tmp_path) as (node, smtp_port, admin_port):
        pids = pids_of(admin_port)
        idle, *more, busy = one_per_worker(smtp_port, admin_port)
        busy.ehlo()
        assert busy.docmd("MAIL", "FROM:<a@example.org>")[0] == 250
        assert busy.docmd("RCPT", "TO:<b@example.org>")[0] == 250
        assert busy.docmd("DATA")[0] == 354
        busy.send(b"Subject: x\r\n")
        node.process.terminate()
        for client in (idle, *more):
            assert client.getreply()[0] == 421
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", smtp_port), 1)
        busy.send(b"\r\nhello\r\n.\r\n")
        code, text = busy.getreply()
        assert (code, text[:18]) == (250, b"2.0.0 Ok: queued a")
        assert node.ended() == 0
        assert not any(map(runs, pids))
        assert not re.search(" (WARNING|ERROR) ", node.log)
        assert node.log.count(" Reception id=") == 1


def test_the_reference_engine_and_the_plain_loop_work_in_a_worker(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    settings = {"SMTP__ENGINE": "aiosmtpd", "NODE__LOOP": "asyncio", "LOG__FORMAT": "json", "PURE": "1"}
    with served(tmp_path, SMTP__WORKERS="1", SMTP__LISTEN=f"127.0.0.1:{port}", **settings) as node:
        wait_for(lambda: "serving node=" in node.log, 20)
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            client.sendmail("a@example.org", ["b@example.org"], MESSAGE_TEXT)

        def received() -> list[dict[str, object]]:
            return [record for line in node.log.splitlines() if (record := json.loads(line)).get("type") == "Reception"]

        wait_for(lambda: len(received()) == 1)
        assert received()[0]["node"] == "node-1"
        node.process.terminate()
        assert node.ended() == 0


def test_sockets_of_the_service_manager_are_shared_by_the_workers(tmp_path: Path) -> None:
    """The kernel gives a client to whichever worker takes it first."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        starter = (
            "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.dup2(int(sys.argv[1]), 3);"
            "os.set_inheritable(3, True); os.execv(sys.executable, [sys.executable, '-m', 'smtpraft', 'serve'])"
        )
        environ = os.environ | {"LISTEN_FDS": "1", "SMTPRAFT_SMTP__WORKERS": "2"}
        (admin_port,) = free_ports(1)
        environ["SMTPRAFT_ADMIN__LISTEN"] = f"127.0.0.1:{admin_port}"
        fd = listening.fileno()
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", starter, str(fd)], cwd=tmp_path, env=environ, stderr=log, pass_fds=[fd]
            )
        try:
            wait_for(lambda: " serving " in (tmp_path / "log").read_text(), 20)
            for _ in range(4):
                with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
                    client.sendmail("a@example.org", ["b@example.org"], MESSAGE_TEXT)
            key = f'smtpraft_messages_received_total{{listener="127.0.0.1:{port}"}}'
            wait_for(lambda: metrics_of(admin_port).get(key) == 4)
            assert len(pids_of(admin_port)) == 2
        finally:
            process.terminate()
            assert process.wait(25) == 0


# A worker whose node is this test.

STUCK = """
import sys, time
from smtpraft.cli import worker
from smtpraft.smtp.server import SmtpServer
SmtpServer.drain = lambda self, timeout_s: time.sleep(3600)
sys.exit(worker.main(sys.argv[1:]))
"""


class Node:
    """The other end of a worker's line."""

    def __init__(self, directory: Path, *, stuck: bool = False, **settings: Any) -> None:
        """`stuck`: told to drain, its loop comes to nothing any more."""
        self.listening = socket.socket()
        self.listening.bind(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.line, theirs = socket.socketpair()
        self.line.settimeout(20)
        census = Census.create(1)
        self.log_path = directory / "worker.log"
        with self.log_path.open("wb") as log, theirs:
            self.process = subprocess.Popen(
                [sys.executable, *(("-c", STUCK) if stuck else ("-m", "smtpraft.cli.worker")), str(theirs.fileno())],
                stderr=log,
                pass_fds=[theirs.fileno(), census.fd, self.listening.fileno()],
            )
        begin = Begin(
            number=0,
            workers=1,
            node="node-1",
            loop="uvloop",
            state=State(ready=True, full=False, term=1, log_level="info", log_format="text"),
            settings=SmtpSettings(**settings),
            listeners=[("smtp", self.listening.fileno())],
            census=census.fd,
            census_key=census.key,
        )
        self.say(Kind.BEGIN, begin)
        self.hear(Kind.READY)
        os.close(census.fd)

    def say(self, kind: Kind, body: object) -> None:
        self.line.sendall(frame(kind, encode(body)))

    def hear(self, wanted: Kind) -> bytes:
        """Return the body of the next frame of this kind."""
        while True:
            length, kind = HEAD.unpack(self.line.recv(HEAD.size, socket.MSG_WAITALL))
            body = self.line.recv(length - 1, socket.MSG_WAITALL) if length > 1 else b""
            if kind == wanted:
                return body

    def client(self) -> smtplib.SMTP:
        client = smtplib.SMTP("127.0.0.1", self.port, timeout=20)
        client.ehlo()
        return client


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Any]:
    nodes: list[Node] = []

    def start(**settings: Any) -> Node:
        nodes.append(Node(tmp_path, **settings))
        return nodes[-1]

    yield start
    for node in nodes:
        node.process.kill()
        node.process.wait()
        node.line.close()
        node.listening.close()


def begin_message(client: smtplib.SMTP, content: bytes = MESSAGE_TEXT) -> None:
    """Send a message to its final dot, and do not wait for the answer to that."""
    assert client.mail("a@example.org")[0] == 250
    assert client.rcpt("b@example.org")[0] == 250
    assert client.docmd("DATA")[0] == 354
    client.send(content + b".\r\n")


def test_nothing_is_said_of_what_was_handed_over_when_the_line_is_lost(start_worker: Any) -> None:
    """RFC 5321 §4.2.5: neither 250 nor 4yz would be true. Who has handed nothing over hears 421; the worker ends."""
    node = start_worker()
    handed_over, in_the_middle, idle = node.client(), node.client(), node.client()
    begin_message(handed_over)
    number, deadline_ms = MESSAGE.unpack_from(command := node.hear(Kind.SUBMIT))
    assert (number, deadline_ms) == (1, 10_000)
    decoded = commands.decode(command[MESSAGE.size :])
    assert isinstance(decoded, tuple)
    assert decoded[0] == commands.ACCEPT
    assert in_the_middle.mail("a@example.org")[0] == 250
    assert in_the_middle.rcpt("b@example.org")[0] == 250
    assert in_the_middle.docmd("DATA")[0] == 354
    node.line.close()
    assert idle.getreply()[0] == 421
    with pytest.raises(smtplib.SMTPServerDisconnected):
        handed_over.getreply()
    in_the_middle.send(MESSAGE_TEXT + b".\r\n")
    assert in_the_middle.getreply()[0] == 421
    assert node.process.wait(5) == 0
    assert "the node is gone" in node.log_path.read_text()


def test_a_worker_whose_loop_is_stuck_ends_with_its_node(start_worker: Any) -> None:
    node = start_worker(stuck=True)
    node.client().close()
    node.say(Kind.DRAIN, 0.0)
    time.sleep(0.5)
    assert node.process.poll() is None
    node.line.close()
    assert node.process.wait(10) == 70


def test_answers_go_to_the_messages_that_they_are_for(start_worker: Any) -> None:
    node = start_worker()
    clients = [node.client() for _ in range(4)]
    for client in clients:
        begin_message(client)
    numbers = [MESSAGE.unpack_from(node.hear(Kind.SUBMIT))[0] for _ in clients]
    assert sorted(numbers) == [1, 2, 3, 4]
    rows = [(1, 0, "000000000R00"), (2, 1, "withdrawn"), (3, 3, "stopping"), (4, 2, "nobody knows")]
    node.say(Kind.ANSWERS, rows[::-1])
    found = []
    for client in clients:
        try:
            found.append(client.getreply()[0])
        except smtplib.SMTPServerDisconnected:
            found.append(0)
    assert sorted(found) == [0, 250, 421, 451]
    assert node.log_path.read_text().count("Reception id=000000000R00") <= 1
    wait_for(lambda: node.log_path.read_text().count("Reception id=000000000R00") == 1)


def test_a_full_disk_and_a_lost_majority_are_told_as_soon_as_the_node_knows(start_worker: Any) -> None:
    node = start_worker()
    client = node.client()
    assert client.mail("a@example.org")[0] == 250
    for ready, full, code in ((True, True, 452), (False, False, 451), (True, False, 250)):
        node.say(Kind.STATE, State(ready=ready, full=full, term=2, log_level="info", log_format="text"))

        def answered(code: int = code) -> bool:
            client.rset()
            return bool(client.mail("a@example.org")[0] == code)

        wait_for(answered)


def test_clients_wait_while_the_node_does_not_answer(start_worker: Any) -> None:
    """Memory is bounded: what a worker holds for its node is what it may hold, and a DATA beyond that waits."""
    node = start_worker(max_inflight_bytes=1 << 20, max_message_bytes=1 << 20)
    clients = [node.client() for _ in range(17)]  # a message takes 64 KiB of the room, however short
    for client in clients[:16]:
        begin_message(client)
    last = clients[16]
    assert last.mail("a@example.org")[0] == 250
    assert last.rcpt("b@example.org")[0] == 250
    last.send(b"DATA\r\n")
    assert last.sock is not None
    last.sock.settimeout(0.5)
    with pytest.raises(TimeoutError):
        last.sock.recv(1)
    last.sock.settimeout(20)
    for _ in range(16):
        node.hear(Kind.SUBMIT)
    node.say(Kind.ANSWERS, [(1, 0, "000000000R00")])
    assert last.sock.recv(3) == b"354"


def test_a_line_that_speaks_nonsense_is_parted_with(start_worker: Any) -> None:
    node = start_worker()
    node.line.sendall(frame(Kind.ANSWERS, encode([(99, 0, "000000000R00")])))
    assert node.process.wait(10) == 0
    assert "the line between node and worker is broken" in node.log_path.read_text()
    assert json.dumps("node is gone")[1:-1] in node.log_path.read_text()
