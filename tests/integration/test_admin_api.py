"""The admin API over real HTTP, and the command line that speaks to it; node and queue are fakes."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from smtpraft.admin.metrics import queue_metrics, raft_metrics
from smtpraft.admin.server import Admin
from smtpraft.admin.views import QUEUE_STATES
from smtpraft.cli import queue, status
from smtpraft.cli.client import Answer, Client
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cluster.requests import Declined
from smtpraft.cluster.snapshot_sender import Copy
from smtpraft.cluster.snapshots import SnapshotUnavailable
from smtpraft.cluster.status import NodeStatus, PeerStatus
from smtpraft.config import AdminSettings, ConfigError
from smtpraft.errors import NotReplicated, OutcomeUnknown, SmtpRaftError
from smtpraft.spool.types import MessageId, MessageInfo, MessageNotFound, Recipient, RecipientState, message_id
from smtpraft.types import NodeId

TOKEN = b"0123456789abcdef"


def made_message(index: int, *, held: bool = False) -> MessageInfo:
    return MessageInfo(
        id=message_id(index),
        owner=NodeId("node-1"),
        epoch=index,
        sender="a@x.example",
        recipients=(
            Recipient(
                0,
                "b@y.example",
                RecipientState.DEFERRED,
                2,
                1_800_000_060_000,
                1_800_000_000_500,
                "4.4.1",
                "451 \x1b[2J",
            ),
            Recipient(1, "c@y.example", RecipientState.DELIVERED, 1, 0, 1_800_000_000_000, "2.0.0", "250 Ok"),
        ),
        size_bytes=1500,
        accepted_ms=1_799_999_999_999,
        held=held,
        is_bounce=False,
        smtputf8=False,
        body_8bitmime=False,
        accepted_by=NodeId("node-1"),
        client_host="192.0.2.1",
        helo="client",
        auth="",
        parts=(),
    )


class FakeNode:
    """A leader with two peers, one of them gone."""

    def __init__(self) -> None:
        self.quorum = True
        self.role = "leader"
        self.changes: list[tuple[str, dict[str, object]]] = []

    def has_quorum(self) -> bool:
        return self.quorum

    async def read_index(self, *, deadline_s: float = 10.0) -> int:
        if not self.quorum:
            raise NotReplicated("no majority confirmed the read in time")
        return 42

    def snapshot(self) -> AbstractAsyncContextManager[Copy]:
        raise SnapshotUnavailable("nothing was applied yet")

    async def change_members(self, operation: str, **arguments: object) -> object:
        self.changes.append((operation, arguments))
        if operation == "list":
            return self.members()
        if operation != "transfer":
            if arguments.get("node") == "node-2" and not arguments.get("force"):
                raise Declined("this leaves the cluster one failure from loss")
            return arguments.get("node", arguments.get("members"))
        if self.role != "leader":
            raise SmtpRaftError("node node-1 does not lead; node-2 does")
        self.role = "follower"
        return arguments.get("to") or NodeId("node-2")

    def members(self) -> list[dict[str, object]]:
        return [{"id": "node-1", "role": "voter", "leader": True, "address": "127.0.0.1:5001", "incarnation": "0" * 16}]

    async def step_down(self, seconds: float) -> NodeId | None:
        self.changes.append(("step-down", {"seconds": seconds}))
        return NodeId("node-2")

    def forget_leader(self) -> None:
        self.changes.append(("forget", {}))

    def status(self) -> NodeStatus:
        peers = (
            PeerStatus(NodeId("node-2"), "127.0.0.1:5002", True, 41, 42, "replicate", 40, 0.25, 0),
            PeerStatus(NodeId("node-3"), "127.0.0.1:5003", False),
        )
        facts: dict[str, Any] = dict.fromkeys(NodeStatus.__dataclass_fields__, 7)
        voters = (NodeId("node-1"), NodeId("node-2"), NodeId("node-3"))
        facts |= {
            "node_id": NodeId("node-1"),
            "cluster_id": "ab" * 16,
            "role": self.role,
            "leader_id": NodeId("node-1"),
            "snapshot": (300, 400),
        }
        facts |= {"voters": voters, "peers": peers, "nodes_up": voters[:2], "election": "raft"}
        facts |= {"lease_held": True, "lease_expires_in_ms": 1900, "has_quorum": self.quorum}
        return NodeStatus(**facts)


class FakeQueue:
    """A queue of messages in memory."""

    def __init__(self) -> None:
        self.messages = {message_id(index): made_message(index) for index in range(1, 8)}
        self.calls: list[tuple[str, Sequence[MessageId] | None]] = []
        self.failure: Exception | None = None
        self.hangs = False

    async def list_messages(
        self, *, limit: int, after: MessageId | None = None, linearizable: bool = True
    ) -> list[MessageInfo]:
        self._fail(linearizable)
        return [message for key, message in sorted(self.messages.items()) if key > (after or "")][:limit]

    async def get(self, message: MessageId, *, linearizable: bool = True) -> MessageInfo | None:
        self._fail(linearizable)
        return self.messages.get(message)

    async def body(self, message: MessageId) -> list[bytes]:
        if message not in self.messages:
            raise MessageNotFound
        return [b"Subject: x\r\n\r\n", b"\xff\r\n"]

    def counts(self) -> dict[str, int]:
        return {"queued": 3, "deferred": 2, "held": 1, "bytes": 99, "accepted": 12}

    async def oldest_age_s(self) -> float:
        if self.hangs:
            await asyncio.sleep(60)
        return 12.5

    def _fail(self, linearizable: bool = True) -> None:
        if self.failure and linearizable:
            raise self.failure

    async def _change(self, action: str, ids: Sequence[MessageId] | None) -> int:
        self._fail()
        self.calls.append((action, ids))
        return len(self.messages if ids is None else ids)

    async def hold(self, ids: Sequence[MessageId] | None) -> int:
        return await self._change("hold", ids)

    async def release(self, ids: Sequence[MessageId] | None) -> int:
        return await self._change("release", ids)

    async def delete(self, ids: Sequence[MessageId] | None) -> int:
        return await self._change("delete", ids)

    async def flush(self, ids: Sequence[MessageId] | None) -> int:
        return await self._change("flush", ids)


class Bench:
    """An API with its fakes, and ways to ask it."""

    def __init__(self, token: bytes = b"") -> None:
        self.node = FakeNode()
        self.queue = FakeQueue()
        self.admin = Admin(
            AdminSettings(listen="127.0.0.1:0", socket=""),
            self.node,
            self.queue,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]  # the map has tests of its own
            ready=lambda: self.node.quorum,
            digest=lambda: ("abcd", 64),
            compiled=True,
            compiled_parts={"log": True, "core": False},
            metrics=[
                lambda: raft_metrics(self.node.status()),
                lambda: queue_metrics(self.queue.counts(), QUEUE_STATES),
            ],
            token=token,
        )

    def client(self, token: str = "") -> Client:
        return Client([f"127.0.0.1:{self.admin.address[1]}"], 5.0, token)

    async def ask(self, method: str, path: str, body: Any = None, token: str = "") -> Answer:
        client = self.client(token)
        return await asyncio.to_thread(client.ask, client.endpoints[0], method, path, body)

    async def command(self, run: Callable[[Client, Namespace], int], **arguments: object) -> int:
        return await asyncio.to_thread(run, self.client(), Namespace(**{"write_out": "simple"} | arguments))

    async def raw(self, request: str) -> str:
        reader, writer = await asyncio.open_connection(*self.admin.address)
        writer.write(request.encode())
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
        writer.close()
        return answer.decode()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.admin.start()
    yield made
    await made.admin.stop()


async def test_what_is_no_request_is_refused_in_one_line(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A stranger's bytes are no reason for an ERROR with a stack in the operator's log."""
    caplog.set_level("INFO")
    reader, writer = await asyncio.open_connection(*bench.admin.address)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.0 400")
    writer.close()
    (line,) = [record for record in caplog.records if record.name == "aiohttp.server"]
    assert (line.levelname, line.exc_info) == ("INFO", None)
    assert line.getMessage().startswith("refused what is no request: client=127.0.0.1 status=400 reason=")
    assert "\0" not in line.getMessage()
    assert "\n" not in line.getMessage()


async def test_status_has_the_promised_fields(bench: Bench) -> None:
    facts = (await bench.ask("GET", "/v1/status")).json()
    assert set(facts) >= {
        *("node_id", "cluster_id", "role", "term", "leader_id", "last_index", "commit_index", "applied_index"),
        *("first_index", "digest", "digest_index", "voters", "peers", "queue", "lease", "compiled", "compiled_parts"),
    }
    assert facts["compiled_parts"] == {"log": True, "core": False}
    assert facts["queue"] == {"queued": 3, "deferred": 2, "held": 1}
    assert facts["lease"] == {"held": True, "expires_ms": 1900}
    peers: Any = facts["peers"]
    assert (peers["node-2"]["reachable"], peers["node-2"]["match_index"]) == (True, 41)
    assert (peers["node-3"]["reachable"], peers["node-3"]["match_index"]) == (False, None)
    assert facts["receiving_snapshot"] == {"bytes": 300, "of_bytes": 400, "percent": 75}
    assert peers["node-2"]["sending_snapshot"] is None


async def test_ready_means_able_to_commit_and_not_draining(bench: Bench) -> None:
    assert (await bench.ask("GET", "/readyz")).status == 200
    bench.node.quorum = False
    answer = await bench.ask("GET", "/readyz?verbose")
    assert (answer.status, answer.body) == (503, b"[-]quorum failed\n[+]room ok\n[+]not-draining ok\nnot ready\n")
    assert (await bench.ask("GET", "/readyz?exclude=quorum")).status == 200
    assert (await bench.ask("GET", "/healthz?quorum=1")).status == 503
    bench.node.quorum = True
    bench.admin.draining = True
    assert (await bench.ask("GET", "/readyz")).status == 503
    assert (await bench.ask("GET", "/livez")).status == 200


async def test_metrics_are_prometheus_text(bench: Bench) -> None:
    text = (await bench.ask("GET", "/metrics")).body.decode()
    assert "smtpraft_raft_is_leader 1.0" in text
    assert 'smtpraft_queue_messages{state="deferred"} 2.0' in text
    assert "smtpraft_queue_oldest_age_seconds 12.5" in text
    assert "process_resident_memory_bytes" in text


async def test_metrics_come_without_the_age_of_the_queue_when_the_disk_hangs(bench: Bench) -> None:
    bench.queue.hangs = True
    text = (await bench.ask("GET", "/metrics")).body.decode()
    assert "smtpraft_raft_is_leader 1.0" in text
    assert "smtpraft_queue_oldest_age_seconds" not in text


async def test_the_queue_comes_in_pages(bench: Bench) -> None:
    first = (await bench.ask("GET", "/v1/queue?limit=4")).json()
    second = (await bench.ask("GET", f"/v1/queue?limit=4&after={first['next']}")).json()
    shown = [*first["messages"], *second["messages"]]  # type: ignore[misc]
    assert [message["id"] for message in shown] == sorted(bench.queue.messages)
    assert second["next"] is None
    message: Any = shown[0]
    assert (message["state"], message["owner"], message["attempts"]) == ("deferred", "node-1", 2)
    assert (message["next_attempt"], message["last_reply"]) == (1_800_000_060.0, "451 \x1b[2J")
    for bad in ("limit=0", "limit=1001", "limit=x", "after=!"):
        assert (await bench.ask("GET", f"/v1/queue?{bad}")).status == 400


async def test_one_message_and_its_bytes(bench: Bench) -> None:
    key = message_id(3)
    assert (await bench.ask("GET", f"/v1/queue/{key.lower()}")).json()["id"] == key
    assert (await bench.ask("GET", f"/v1/queue/{key}/body")).body == b"Subject: x\r\n\r\n\xff\r\n"
    for path in (message_id(99), "nonsense", f"{message_id(99)}/body"):
        assert (await bench.ask("GET", f"/v1/queue/{path}")).status == 404


async def test_a_change_names_what_was_not_there(bench: Bench) -> None:
    ids = [message_id(1), message_id(99), "zzz", message_id(1)]
    facts = (await bench.ask("POST", "/v1/queue/hold", {"ids": ids})).json()
    assert facts == {"action": "hold", "changed": 1, "unknown": [message_id(99), "zzz"]}
    assert (await bench.ask("POST", "/v1/queue/delete", {"all": True})).json()["changed"] == 7
    assert bench.queue.calls == [("hold", [message_id(1)]), ("delete", None)]


@pytest.mark.parametrize("body", [{}, {"ids": []}, {"ids": "x"}, {"ids": [1]}, {"all": "yes"}, [], "x"])
async def test_a_vague_change_changes_nothing(bench: Bench, body: object) -> None:
    assert (await bench.ask("POST", "/v1/queue/delete", body)).status == 400
    assert bench.queue.calls == []


@pytest.mark.parametrize(("charset", "body"), [("bogus", "{}"), ("utf-8", "[" * 200_000), ("utf-16", "{}")])
async def test_what_is_no_json_is_400(bench: Bench, charset: str, body: str) -> None:
    form = f"Content-Type: application/json; charset={charset}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    assert (await bench.raw("POST /v1/queue/delete HTTP/1.1\r\nHost: 127.0.0.1\r\n" + form)).startswith("HTTP/1.1 400")
    assert bench.queue.calls == []


async def test_nothing_changes_by_get_and_nothing_large_is_read(bench: Bench) -> None:
    assert (await bench.ask("GET", "/v1/queue/delete")).status == 404
    assert (await bench.ask("GET", "/v1/leader/transfer")).status == 405
    assert (await bench.ask("POST", "/v1/queue/delete", {"ids": ["x" * 2_000_000]})).status == 413
    assert bench.queue.calls == []


@pytest.mark.parametrize("failure", [NotReplicated("x"), OutcomeUnknown(), TimeoutError()])
async def test_without_a_majority_the_answer_is_not_now(bench: Bench, failure: Exception) -> None:
    bench.queue.failure = failure
    assert (await bench.ask("GET", "/v1/queue")).status == 503
    assert (await bench.ask("GET", "/v1/queue?linearizable=0")).status == 200
    assert (await bench.ask("POST", "/v1/queue/flush", {"all": True})).status == 503


async def test_a_page_in_a_browser_cannot_reach_in(bench: Bench) -> None:
    """DNS rebinding gives a stranger's name as the host; a form cannot send JSON."""
    port = bench.admin.address[1]
    assert " 403 " in await bench.raw(f"GET /v1/status HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n")
    assert " 200 " in await bench.raw(f"GET /v1/status HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n")
    assert " 200 " in await bench.raw(f"GET /v1/status HTTP/1.1\r\nHost: [::1]:{port}\r\n\r\n")
    form = "Content-Type: text/plain\r\nContent-Length: 12\r\n\r\n" + '{"all":true}'
    assert " 415 " in await bench.raw(f"POST /v1/queue/delete HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{form}")
    assert bench.queue.calls == []


async def test_a_token_guards_all_but_the_probes() -> None:
    bench = Bench(TOKEN)
    await bench.admin.start()
    try:
        assert (await bench.ask("GET", "/readyz")).status == 200
        for path in ("/v1/status", "/metrics", "/v1/queue"):
            assert (await bench.ask("GET", path)).status == 401
            assert (await bench.ask("GET", path, token="0123456789abcdeg")).status == 401
            assert (await bench.ask("GET", path, token=TOKEN.decode())).status == 200
    finally:
        await bench.admin.stop()


def test_without_a_token_only_loopback_is_served() -> None:
    with pytest.raises(ConfigError, match="token_file"):
        Admin(
            AdminSettings(listen="0.0.0.0:8025"),
            FakeNode(),
            FakeQueue(),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            ready=lambda: False,
            digest=lambda: ("", 0),
            compiled=False,
            compiled_parts={},
        )


async def test_leadership_is_handed_to_a_voter_only(bench: Bench) -> None:
    assert (await bench.ask("POST", "/v1/leader/transfer", {"to": "nobody"})).status == 400
    facts = (await bench.ask("POST", "/v1/leader/transfer", {"to": "node-3"})).json()
    assert facts == {"from": "node-1", "to": "node-3"}
    assert (await bench.ask("POST", "/v1/leader/transfer", {})).status == 409


async def test_members_are_changed_as_the_leader_allows(bench: Bench) -> None:
    assert (await bench.ask("GET", "/v1/members")).json()["members"] == bench.node.members()
    answer = await bench.ask("POST", "/v1/members/add", {"members": ["node-4=127.0.0.1:5004"], "learner": True})
    assert answer.json()["done"] == ["node-4=127.0.0.1:5004"]
    declined = await bench.ask("POST", "/v1/members/remove", {"node": "node-2"})
    assert (declined.status, "one failure from loss" in declined.error()) == (409, True)
    assert (await bench.ask("POST", "/v1/members/remove", {"node": "node-2", "force": True})).status == 200
    for operation, body in (
        ("add", {"members": []}),
        ("add", {"members": [4]}),
        ("remove", {}),
        ("remove", {"node": "node-2", "force": 1}),
        ("promote", {"node": "node-2", "forse": True}),
    ):
        assert (await bench.ask("POST", f"/v1/members/{operation}", body)).status == 400, (operation, body)
    assert (await bench.ask("POST", "/v1/members/forget", {})).status == 404


async def test_a_leader_can_be_told_to_step_down_and_a_follower_to_forget_it(bench: Bench) -> None:
    facts = (await bench.ask("POST", "/v1/leader/step-down", {"seconds": 3})).json()
    assert facts == {"from": "node-1", "to": "node-2", "seconds": 3}
    assert (await bench.ask("POST", "/v1/leader/step-down", {"seconds": "x"})).status == 400
    assert (await bench.ask("POST", "/v1/leader/forget", {})).json() == {"node": "node-1", "forgot": "node-1"}


# The command line against it.


async def test_queue_list_has_the_shape_of_postqueue(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.queue.messages = {message_id(5): made_message(5, held=True)}
    assert await bench.command(queue.list_messages, limit=None) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "-Queue ID-    --Size-- ----Arrival Time---- -Sender/Recipient-------"
    assert lines[1].startswith(f"{message_id(5)}!     1500 ")
    assert lines[1].endswith("  a@x.example")
    assert lines[2].endswith("(451 \\x1b[2J)")
    assert lines[3].split() == ["b@y.example"]
    assert lines[-1] == "-- 2 Kbytes in 1 Request."


async def test_an_empty_queue_says_so(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.queue.messages = {}
    await bench.command(queue.list_messages, limit=None)
    assert capsys.readouterr().out == "Mail queue is empty\n"


async def test_queue_list_json_is_one_object_a_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    await bench.command(queue.list_messages, limit=5, write_out="json")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["queue_id"] for row in rows] == [message_id(index) for index in range(1, 6)]
    assert rows[0]["recipients"][0]["delay_reason"] == "451 \x1b[2J"
    assert set(rows[0]) >= {"queue_name", "arrival_time", "message_size", "sender", "owner", "index"}


async def test_queue_commands_report_and_exit_as_postsuper_would(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await bench.command(queue.change, action="delete", ids=[message_id(1)]) == Exit.OK
    assert capsys.readouterr().out == "Deleted: 1 message\n"
    assert await bench.command(queue.change, action="hold", ids=[message_id(99)]) == Exit.NO_SUCH
    assert "no such message" in capsys.readouterr().err
    assert await bench.command(queue.change, action="flush", ids=[]) == Exit.OK
    assert bench.queue.calls[-1] == ("flush", None)
    with pytest.raises(CommandError) as caught:
        await bench.command(queue.show, id=message_id(99), body=False)
    assert caught.value.status == Exit.NO_SUCH


async def test_no_majority_is_a_temporary_failure(bench: Bench) -> None:
    bench.queue.failure = NotReplicated("x")
    with pytest.raises(CommandError) as caught:
        await bench.command(queue.change, action="flush", ids=["ALL"])
    assert caught.value.status == Exit.TEMPFAIL


async def test_status_of_the_cluster_names_members_without_endpoint(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await bench.command(status.status, cluster=True) == Exit.OK
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[1], row[3]) for row in rows[1:]] == [
        ("node-1", "leader"),
        ("node-2", "reachable"),
        ("node-3", "unreachable"),
    ]
    assert await bench.command(status.health, write_out="json") == Exit.OK
    assert json.loads(capsys.readouterr().out)[0]["health"] is True


async def test_a_snapshot_that_cannot_be_made_is_an_error_not_a_file(bench: Bench) -> None:
    answer = await bench.ask("GET", "/v1/snapshot")
    assert (answer.status, answer.error()) == (409, "nothing was applied yet")
