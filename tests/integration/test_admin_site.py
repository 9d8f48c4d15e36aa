"""The page, the overview, the events and a message's life, of one node in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from smtpraft.admin import feed as feeds
from smtpraft.admin.access import Role, needed
from smtpraft.cli.daemon import Daemon
from smtpraft.cli.manager import ServiceManager
from smtpraft.config import (
    AdminSettings,
    ClusterSettings,
    Config,
    DeliverySettings,
    NodeSettings,
    RouteSettings,
    SmtpSettings,
)
from smtpraft.spool.types import Envelope

from .logging_kept import logging_as_it_was

OPENAPI = Path(__file__).parents[2] / "smtpraft" / "admin" / "openapi.json"


@contextlib.asynccontextmanager
async def daemon(directory: Path) -> AsyncIterator[tuple[Daemon, aiohttp.ClientSession]]:
    """Run one node, whose mail goes nowhere yet, and a client of its API."""
    config = Config(
        node=NodeSettings(data_dir=str(directory)),
        cluster=ClusterSettings(segment_bytes=1024 * 1024),
        smtp=SmtpSettings(listen=["127.0.0.1:0"]),
        delivery=DeliverySettings(routes=[RouteSettings("*", "smtp://127.0.0.1:1")]),
        admin=AdminSettings(listen="127.0.0.1:0"),
    )
    node = Daemon(config, None, b"", manager=ServiceManager({}))
    node._build()
    async with contextlib.AsyncExitStack() as parts:
        parts.enter_context(logging_as_it_was())
        await node._start(parts)
        assert await node.node.wait_quorum(20)
        host, port = node.admin.address
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            yield node, session


async def read_events(response: aiohttp.ClientResponse, until: str, timeout_s: float = 10.0) -> list[tuple[str, Any]]:
    """Return the events of a stream up to the first one called `until`."""
    found: list[tuple[str, Any]] = []
    name = ""
    async with asyncio.timeout(timeout_s):
        async for line in response.content:
            key, _, value = line.decode().rstrip("\n").partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                found.append((name, json.loads(value)))
                if name == until:
                    return found
    return found


async def test_a_node_shows_its_page_its_overview_and_a_messages_life(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (node, session):
        async with session.get("/") as answer:
            assert answer.status == 200
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert '<script src="/page.js"' in await answer.text()
        message = await node.client.accept(
            Envelope("<b>@x.example", ("to@y.example",)),
            [b"Subject: =?utf-8?q?=C3=A4?= <b>\r\nFrom: a@b\r\n\r\nhello\r\n"],
            deadline_s=5,
        )
        async with session.get("/v1/overview") as answer:
            view = await answer.json()
        assert view["cluster"]["leader_id"] == "node-1"
        assert view["cluster"]["up"] == 1
        assert [row["state"] for row in view["nodes"]] == ["up"]
        assert len(view["history"]["accepted"]) == 100
        async with session.get(f"/v1/queue/{message}/where") as answer:
            where = await answer.json()
        assert where["synced_on"] == ["node-1"]
        assert where["nodes"][0]["in_log"]
        assert where["nodes"][0]["queued"]
        async with session.get(f"/v1/queue/{message}/headers") as answer:
            assert (await answer.json())["headers"][0] == ["Subject", "ä <b>"]
        async with session.get(f"/v1/queue/{message}/trace") as answer:
            assert (await answer.json())["steps"][0]["what"] == "accepted"
        assert await node.client.delete([message]) == 1
        async with session.get(f"/v1/queue/{message}/trace") as answer:
            trace = await answer.json()
        assert trace["message"] is None
        assert trace["steps"][-1]["what"] == "deleted"
        async with session.get("/v1/queue/00000ZZZZ000/trace") as answer:
            assert answer.status == 404
        for path, status in (("/leader", 200), ("/follower", 503)):
            async with session.get(path) as answer:
                assert answer.status == status


async def test_events_tell_of_the_queue_and_end_with_the_node(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (node, session), session.get("/v1/events?topics=queue,overview") as stream:
        assert stream.status == 200
        assert [name for name, _ in await read_events(stream, "overview")][-1] == "overview"
        message = await node.client.accept(Envelope("", ("to@y.example",)), [b"\r\n"], deadline_s=5)
        found = await read_events(stream, "queue")
        assert found[-1][1]["kind"] == "accepted"
        assert found[-1][1]["message"] == message
        node.observing.draining()
        await node.observing.close()
        assert (await read_events(stream, "closing"))[-1][0] == "closing"
    async with daemon(tmp_path) as (_, session):
        for query in ("topics=nonsense", "after=x"):
            async with session.get(f"/v1/events?{query}") as answer:
                assert answer.status == 400


async def test_a_reader_that_is_too_slow_is_told_so_and_let_go(tmp_path: Path) -> None:
    """It keeps nobody waiting, and its queue is bounded."""
    async with daemon(tmp_path) as (node, session), session.get("/v1/events?topics=queue") as stream:
        feed = node.observing.feed
        for number in range(feeds.WAITING_EVENTS_MAX + 5):  # without a pause: no reader could follow
            feed.publish("queue", "test", str(number))
        found = await read_events(stream, "dropped")
        assert found[-1] == ("dropped", {"error": "read too slowly: events were lost; ask again", "missed": 5})
        assert len(found) == feeds.WAITING_EVENTS_MAX + 1
        assert await stream.content.read() == b"\n"
        assert feed.dropped_listeners == 1


async def test_the_description_has_every_route_and_no_other(tmp_path: Path) -> None:
    described = {
        (method.upper(), path)
        for path, methods in json.loads(OPENAPI.read_text())["paths"].items()
        for method in methods
    }
    async with daemon(tmp_path) as (node, session):
        served = {(method, path) for method, path in node.admin.routes() if method != "HEAD"}
        described = {
            (method, re.sub(r"(queue|members)/[a-z]+$", r"\1/ACTION", path) if method == "POST" else path)
            for method, path in described
        }
        served = {(method, re.sub(r"\{(action|operation)\}", "ACTION", path)) for method, path in served}
        assert served == described
        async with session.get("/openapi.json") as answer:
            assert await answer.json() == json.loads(OPENAPI.read_text())


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/readyz", Role.NOBODY),
        ("GET", "/", Role.NOBODY),
        ("POST", "/readyz", Role.OPERATE),
        ("GET", "/v1/status", Role.READ),
        ("GET", "/v1/queue/000000001000/body", Role.OPERATE),
        ("GET", "/v1/snapshot", Role.OPERATE),
        ("POST", "/v1/queue/hold", Role.OPERATE),
        ("DELETE", "/v1/status", Role.OPERATE),
    ],
)
def test_what_changes_something_or_shows_mail_needs_an_operator(method: str, path: str, role: Role) -> None:
    assert needed(method, path) is role
