"""The key-value map from the command line and over HTTP, on a real node of one."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from smtpraft.admin.server import Admin
from smtpraft.cli import main
from smtpraft.cli.client import Answer, Client
from smtpraft.cluster import Node, NodeId, NodeOptions, derive_cluster_id
from smtpraft.config import AdminSettings
from smtpraft.spool.client import SpoolClient
from smtpraft.spool.keyclient import KeyValues
from smtpraft.spool.machine import SpoolMachine


class House:
    """One node with its map and its API."""

    def __init__(self, folder: Path, token: bytes = b"") -> None:
        node_id = NodeId("node-1")
        machine = SpoolMachine(str(folder / "queue.db"), node_id)
        options = NodeOptions(node_id, str(folder / "node"), derive_cluster_id("t", [node_id]), segment_bytes=2**20)
        self.node = Node(options, machine)
        machine.read_entry = self.node.read_entry_blocking
        self.keys = KeyValues(self.node, machine)
        self.admin = Admin(
            AdminSettings(listen="127.0.0.1:0", socket=""),
            self.node,
            SpoolClient(self.node, machine),
            self.keys,
            ready=self.node.has_quorum,
            digest=machine.digest_now,
            compiled=True,
            compiled_parts={},
            token=token,
        )

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.admin.address[1]}"

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        answer: Answer = await asyncio.to_thread(Client([self.endpoint]).ask, self.endpoint, method, path, body)
        return answer.status, dict(answer.json())

    async def smtpraft(self, *argv: str) -> int:
        """Run a command line; return its exit status."""
        return await asyncio.to_thread(main, [*argv, "--endpoints", self.endpoint])


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await house.node.start()
    await house.admin.start()
    yield house
    await house.admin.stop()
    await house.node.stop()


@pytest.mark.parametrize("key", ["plain", "a/b//c/", "..", "../etc/./x", "%41", "a b+c", "ä?x=1#y", "\U0001f4e7&;=%"])
async def test_any_key_goes_in_and_comes_out(house: House, key: str, capfdbinary: Any) -> None:
    """Slashes and dots too: a path that somebody tidied up would be another key."""
    assert await house.smtpraft("kv", "put", key, "value of " + key) == 0
    assert (await house.keys.keys())[0].key == key
    capfdbinary.readouterr()
    assert await house.smtpraft("kv", "get", key) == 0
    assert capfdbinary.readouterr().out == ("value of " + key).encode()
    assert await house.smtpraft("kv", "delete", key) == 0
    assert await house.keys.keys() == []


async def test_compare_and_set_from_the_command_line(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    assert await house.smtpraft("kv", "cas", "k", "0", "a", "-w", "json") == 0
    revision = json.loads(capsys.readouterr().out)["revision"]
    assert await house.smtpraft("kv", "cas", "k", "0", "b") == 1
    err = capsys.readouterr().err
    assert err == f"smtpraft: conflict: 'k' is at revision {revision}, but was to be created; read it again\n"
    assert await house.smtpraft("kv", "cas", "k", str(revision), "b") == 0
    assert await house.smtpraft("kv", "delete", "k", "--revision", str(revision)) == 1
    assert "conflict: 'k' is at revision" in capsys.readouterr().err
    assert await house.smtpraft("kv", "get", "k", "--stale") == 0
    assert capsys.readouterr().out == "b"


async def test_a_key_that_is_not_there_is_67(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    assert await house.smtpraft("kv", "get", "nothing") == 67
    assert await house.smtpraft("kv", "delete", "nothing") == 67
    assert capsys.readouterr().err == "smtpraft: 'nothing': no such key\n" * 2


async def test_keys_are_listed_page_by_page(
    house: House, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpraft.cli.kv.PAGE_KEYS", 2)
    for name in ("a/1", "a/2", "a/3", "b"):
        await house.keys.put(name, b"xyz")
    assert await house.smtpraft("kv", "list", "a/") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["KEY", "a/1", "a/2", "a/3"]
    assert {row[2] for row in rows[1:]} == {"3"}
    assert await house.smtpraft("kv", "list", "--limit", "3", "-w", "json") == 0
    assert [info["key"] for info in json.loads(capsys.readouterr().out)["keys"]] == ["a/1", "a/2", "a/3"]


async def test_any_bytes_are_a_value(house: House, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> None:
    class Stdin:
        buffer = io.BytesIO(bytes(range(256)))

    monkeypatch.setattr(sys, "stdin", Stdin())
    assert await house.smtpraft("kv", "put", "k", "-") == 0
    capfdbinary.readouterr()
    assert await house.smtpraft("kv", "get", "k") == 0
    assert capfdbinary.readouterr().out == bytes(range(256))
    status, found = await house.ask("GET", "/v1/kv/k")
    assert (status, "value" in found) == (200, False)


@pytest.mark.parametrize(
    ("method", "path", "body", "text"),
    [
        ("POST", "/v1/kv/k", {}, "value_base64"),
        ("POST", "/v1/kv/k", {"value": "a", "value_base64": "YQ=="}, "value_base64"),
        ("POST", "/v1/kv/k", {"value": 1}, "value_base64"),
        ("POST", "/v1/kv/k", {"value": "\ud800"}, "no Unicode text"),
        ("POST", "/v1/kv/k", {"value_base64": "%%"}, "not base64"),
        ("POST", "/v1/kv/k", {"value": "a", "revision": "1"}, "revision must be"),
        ("POST", "/v1/kv/k", {"value": "a", "revision": -1}, "revision must be"),
        ("POST", "/v1/kv/k", {"value": "a", "revision": True}, "revision must be"),
        ("POST", "/v1/kv/k", {"value": "a" * 65_537}, "at most 65536"),
        ("POST", "/v1/kv/" + "k" * 513, {"value": "a"}, "1 to 512 bytes"),
        ("POST", "/v1/kv/a%00b", {"value": "a"}, "control characters"),
        ("POST", "/v1/kv/%ff", {"value": "a"}, "UTF-8"),
        ("POST", "/v1/kv/k", {"delete": True, "revision": "x"}, "revision must be"),
        ("POST", "/v1/kv/k", {"delete": True, "value": "a"}, "or {"),
        ("POST", "/v1/kv/k", {"delete": 1}, "or {"),
        ("GET", "/v1/kv?limit=0", None, "limit must be"),
        ("GET", "/v1/kv?limit=²", None, "limit must be"),
        ("GET", "/v1/kv/a%0Ab", None, "control characters"),
    ],
)
async def test_a_bad_request_says_what_to_send(house: House, method: str, path: str, body: Any, text: str) -> None:
    status, answer = await house.ask(method, path.replace("²", "%C2%B2"), body)
    assert status == 400
    assert text in answer["error"]
    assert await house.keys.keys() == []


async def test_a_conflict_is_told_to_programs(house: House) -> None:
    status, written = await house.ask("POST", "/v1/kv/k", {"value": "a", "revision": 0})
    assert status == 200
    status, answer = await house.ask("POST", "/v1/kv/k", {"value": "b", "revision": 0})
    assert (status, answer["code"], answer["revision"]) == (409, "conflict", written["revision"])
    later = written["revision"] + 1
    status, answer = await house.ask("POST", "/v1/kv/k", {"delete": True, "revision": later})
    assert (status, answer["code"], answer["revision"]) == (409, "conflict", written["revision"])


async def test_what_changes_a_key_needs_a_token_or_json(house: House, tmp_path: Path) -> None:
    """A web page in an operator's browser cannot send JSON to another origin without asking."""
    assert (await house.ask("POST", "/v1/kv/k"))[0] == 415
    for method in ("PUT", "DELETE", "PATCH"):
        assert (await house.ask(method, "/v1/kv/k", {"value": "a"}))[0] == 405, "these would be repeated by themselves"
    other = tmp_path / "other"
    other.mkdir()
    guarded = House(other, token=b"0123456789abcdef")
    await guarded.admin.start()
    try:
        for method in ("GET", "POST"):
            assert (await guarded.ask(method, "/v1/kv/k", {}))[0] == 401
        assert (await guarded.ask("GET", "/v1/kv"))[0] == 401
    finally:
        await guarded.admin.stop()


async def test_a_write_whose_outcome_is_unknown_is_not_tried_elsewhere(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next node might do it a second time, over what another client wrote in between."""

    def listen(answer: Callable[[socket.socket], None]) -> tuple[str, asyncio.Task[None]]:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            with listener:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    answer(connection)

        return f"127.0.0.1:{listener.getsockname()[1]}", asyncio.create_task(asyncio.to_thread(serve))

    silent, task = listen(lambda _: None)
    put = ["kv", "put", "k", "v", "--endpoints"]
    assert await asyncio.to_thread(main, [*put, f"{silent},{house.endpoint}"]) == 75
    assert "look before you repeat it" in capsys.readouterr().err
    await task
    problem = json.dumps({"error": "no majority answered in time", "code": "outcome-unknown"}).encode()
    head = b"HTTP/1.1 503 x\r\nContent-Length: %d\r\n\r\n" % len(problem)
    unsure, task = listen(lambda connection: connection.sendall(head + problem))
    assert await asyncio.to_thread(main, [*put, f"{unsure},{house.endpoint}"]) == 75
    await task
    assert await house.keys.get("k") is None
    nobody = "127.0.0.1:1"
    assert await asyncio.to_thread(main, [*put, f"{nobody},{house.endpoint}"]) == 0
    refused = json.dumps({"error": "withdrawn", "code": "not-replicated"}).encode()
    head = b"HTTP/1.1 503 x\r\nContent-Length: %d\r\n\r\n" % len(refused)
    unable, task = listen(lambda connection: connection.sendall(head + refused))
    assert await asyncio.to_thread(main, [*put, f"{unable},{house.endpoint}"]) == 0
    await task
