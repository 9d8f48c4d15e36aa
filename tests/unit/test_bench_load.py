"""The load generator: what it counts is what was answered, and it fails rather than count something else."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType

import pytest

from smtpraft.cli.bench import load
from smtpraft.cli.bench.load import Load
from smtpraft.cli.bench.loadplan import KEYS, SMTP, LoadFailed

Handler = Callable[[socket.socket], None]


@pytest.fixture(params=["_pureload", "_fastload"])
def half(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = pytest.importorskip(f"smtpraft.cli.bench.{request.param}")
    monkeypatch.setattr(load, "run_load", module.run_load)
    return import_module(f"smtpraft.cli.bench.{request.param}")


@contextmanager
def server(handle: Handler) -> Iterator[int]:
    """Serve every connection in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=_quietly, args=(handle, connection), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _quietly(handle: Handler, connection: socket.socket) -> None:
    with connection, suppress(OSError):
        handle(connection)


class Smtp:
    """Takes mail and keeps it; `final` is its answer to the dot."""

    def __init__(self, final: bytes = b"250 2.0.0 Ok\r\n") -> None:
        self.final = final
        self.taken: list[bytes] = []
        self.sessions = 0

    def __call__(self, connection: socket.socket) -> None:
        self.sessions += 1
        connection.sendall(b"220-hello\r\n220 hello\r\n")
        lines = connection.makefile("rb")
        for line in lines:
            verb = line[:4]
            if verb == b"DATA":
                connection.sendall(b"354 go on\r\n")
                content = []
                while (each := lines.readline()) != b".\r\n":
                    content.append(each)
                self.taken.append(b"".join(content))
                connection.sendall(self.final)
            elif verb == b"EHLO":
                for piece in (b"250-me\r\n25", b"0-SIZE\r\n250 ", b"PIPELINING\r\n"):  # as the network may cut it
                    connection.sendall(piece)
            elif verb == b"QUIT":
                connection.sendall(b"221 bye\r\n")
                return
            else:
                connection.sendall(b"250 ok\r\n")


def test_every_message_is_sent_whole_and_answered(half: ModuleType) -> None:
    smtp = Smtp()
    with server(smtp) as port:
        found = load.send_mail([port], "bob@example.net", 5, 4096, messages=40)
    assert found.count == len(smtp.taken) == len(found.waits_ms) == 40
    assert smtp.sessions == 5
    assert {len(content) for content in smtp.taken} <= set(range(4000, 4097))
    assert all(content.startswith(b"From: <bench@sender.example>\r\n") for content in smtp.taken)
    assert found.p50_ms <= found.p99_ms


def test_a_large_message_is_sent_in_pieces(half: ModuleType) -> None:
    smtp = Smtp()
    with server(smtp) as port:
        load.send_mail([port], "bob@example.net", 2, 3 << 20, messages=4)
    assert len(smtp.taken) == 4
    assert all(abs(len(content) - (3 << 20)) < 100 for content in smtp.taken)


def test_a_session_for_each_message(half: ModuleType) -> None:
    smtp = Smtp()
    with server(smtp) as port:
        assert load.send_mail([port], "bob@example.net", 3, 1024, messages=12, anew=True).count == 12
    assert len(smtp.taken) == 12
    assert 12 <= smtp.sessions <= 15  # those that find nothing left to send go


def test_it_ends_by_time(half: ModuleType) -> None:
    with server(Smtp()) as port:
        found = load.send_mail([port], "bob@example.net", 3, 1024, seconds=0.3)
    assert 0.2 < found.seconds < 2
    assert found.count >= len(found.waits_ms) > 0


def test_a_refusal_ends_it(half: ModuleType) -> None:
    with server(Smtp(b"451 4.3.0 not now\r\n")) as port, pytest.raises(LoadFailed, match=r"451 4\.3\.0 not now"):
        load.send_mail([port], "bob@example.net", 2, 1024, messages=10)


def test_a_broken_session_ends_it(half: ModuleType) -> None:
    with server(lambda connection: connection.sendall(b"220 hello\r\n")) as port, pytest.raises(LoadFailed):
        load.send_mail([port], "bob@example.net", 2, 1024, messages=10)


def test_silence_ends_it(half: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "STUCK_S", 0.5)
    waiting = threading.Event()

    def silent(connection: socket.socket) -> None:
        waiting.wait(10)

    try:
        with server(silent) as port, pytest.raises(LoadFailed, match="no reply"):
            load.send_mail([port], "bob@example.net", 2, 1024, messages=10)
    finally:
        waiting.set()


def test_nobody_there_ends_it(half: ModuleType) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(LoadFailed):
        load.send_mail([port], "bob@example.net", 2, 1024, messages=10)


@pytest.mark.parametrize(
    ("ports", "commands", "sessions", "messages"),
    [([], 6, 1, 1), ([1] * 65, 6, 1, 1), ([1], 6, 0, 1), ([1], 6, 10_001, 1), ([1], 6, 1, 0), ([1], 5, 1, 1)],
)
def test_a_plan_without_sense(half: ModuleType, ports: list[int], commands: int, sessions: int, messages: int) -> None:
    with pytest.raises(ValueError):
        half.run_load(SMTP, ports, [b""] * commands, sessions, messages, 1.0, False, 0, 0, 1.0)


class Framed:
    """Stores what it is sent."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.written: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        while header := stream.read(4):
            (size,) = struct.unpack(">I", header)
            self.written.append(stream.read(size))
            connection.sendall(struct.pack(">I", self.status))
            connection.sendall(struct.pack(">Q", len(self.written)))


def test_each_session_writes_to_keys_of_its_own(half: ModuleType) -> None:
    framed = Framed()
    with server(framed) as port:
        found = load.write_log([port], 4, 256, messages=200)
    assert found.count == 200
    assert {len(write) for write in framed.written} == {16 + 256}
    keys = {write[:16] for write in framed.written}
    assert keys <= {b"%06d%010d" % (session, key) for session in range(4) for key in range(KEYS)}
    assert len(keys) > KEYS


def test_a_write_that_is_not_stored_ends_it(half: ModuleType) -> None:
    with server(Framed(1)) as port, pytest.raises(LoadFailed, match="not stored"):
        load.write_log([port], 1, 256, messages=5)


class Grpc:
    """As much HTTP/2 as a put needs; it pings, and asks to be heard on its settings."""

    def __init__(self, *, stores: bool = True) -> None:
        self.stores = stores
        self.keys: list[bytes] = []
        self.acknowledged: list[int] = []

    def __call__(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        assert stream.read(24) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        connection.sendall(_frame(4, 0, b"", 0) + _frame(6, 0, b"12345678", 0))
        while header := stream.read(9):
            size = int.from_bytes(header[:3], "big")
            kind, flags, number = struct.unpack(">BBI", header[3:])
            payload = stream.read(size)
            if kind in (4, 6) and flags & 1:
                self.acknowledged.append(kind)
                assert payload == (b"12345678" if kind == 6 else b"")
            if kind == 0:
                assert flags & 1
                self.keys.append(payload[7:23])
                answer = _frame(1, 4, b"\x88", number) + (_frame(0, 0, b"\0\0\0\0\0", number) if self.stores else b"")
                connection.sendall(answer[:7])
                connection.sendall(answer[7:] + _frame(1, 5, b"\x88", number))


def _frame(kind: int, flags: int, payload: bytes, stream: int) -> bytes:
    return struct.pack(">BHBBI", 0, len(payload), kind, flags, stream) + payload


def test_puts_of_etcd(half: ModuleType) -> None:
    grpc = Grpc()
    with server(grpc) as port:
        found: Load = load.write_etcd([port], 2, 256, messages=30)
    assert found.count == len(set(grpc.keys)) == 30
    assert sorted(grpc.acknowledged) == [4, 4, 6, 6]


def test_an_answer_without_data_is_an_error(half: ModuleType) -> None:
    with server(Grpc(stores=False)) as port, pytest.raises(LoadFailed, match="not stored"):
        load.write_etcd([port], 1, 256, messages=3)
