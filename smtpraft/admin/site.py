"""What a person or a watcher looks at: the page, the overview, the events, one message's life.

    GET /                    the status page; /page.css, /page.js
    GET /openapi.json        what all of this API is
    GET /v1/overview         every member at one glance
    GET /v1/events           server-sent events: ?topics=cluster,queue,overview ?after=ID
    GET /v1/queue/ID/trace   a message's life
    GET /v1/queue/ID/where   which nodes have it
    GET /v1/queue/ID/headers its header, decoded

A stream ends with the event `dropped` for who reads too slowly, and with `closing` when the node stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import json
import logging
from collections.abc import Iterable
from email import policy
from email.parser import BytesHeaderParser
from typing import Any, Final

from aiohttp import web
from prometheus_client import Metric

from smtpraft.admin.answers import problem
from smtpraft.admin.feed import TOPICS, Event, Feed, Listener, TooManyListeners
from smtpraft.admin.metrics import counter, gauge
from smtpraft.admin.overview import Overview
from smtpraft.admin.tracing import Tracing
from smtpraft.admin.watch import Watch
from smtpraft.spool.client import SpoolClient
from smtpraft.spool.types import MessageId, MessageNotFound, parse_message_id

log = logging.getLogger(__name__)

PING_S: Final = 10.0
OVERVIEW_S: Final = 1.0
WRITE_S: Final = 10.0  # a reader that takes nothing for so long is gone
HEADER_BYTES_MAX: Final = 64 * 1024
HEADERS_MAX: Final = 200
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_FILES: Final = {
    "/": ("page/index.html", "text/html"),
    "/page.css": ("page/page.css", "text/css"),
    "/page.js": ("page/page.js", "text/javascript"),
    "/openapi.json": ("openapi.json", "application/json"),
}


class Site:
    """For one node."""

    def __init__(self, feed: Feed, watch: Watch, overview: Overview, tracing: Tracing, client: SpoolClient) -> None:
        self._feed = feed
        self._watch = watch
        self._overview = overview
        self._tracing = tracing
        self._client = client
        room = importlib.resources.files("smtpraft.admin")
        self._files = {path: (room.joinpath(name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to an application."""
        return [
            *(web.get(path, self._get_file) for path in self._files),
            web.get("/v1/overview", self._get_overview),
            web.get("/v1/events", self._get_events),
            web.get("/v1/queue/{id}/trace", self._get_trace),
            web.get("/v1/queue/{id}/where", self._get_where),
            web.get("/v1/queue/{id}/headers", self._get_headers),
        ]

    def metrics(self) -> Iterable[Metric]:
        """Yield what the streams have done."""
        yield gauge("event_listeners", "Open streams of events.", len(self._feed.listeners))
        yield counter(
            "event_listeners_dropped", "Streams ended because their reader was too slow.", self._feed.dropped_listeners
        )

    async def _get_file(self, request: web.Request) -> web.Response:
        content, kind = self._files[request.path]
        return web.Response(body=content, headers=_SAFE, content_type=kind, charset="utf-8")

    async def _get_overview(self, request: web.Request) -> web.Response:
        return web.json_response(await self._overview.get())

    async def _get_trace(self, request: web.Request) -> web.Response:
        found = await self._tracing.trace(_message_id(request))
        if found is None:
            return problem(404, "neither in the queue nor among the last 10,000 that left it", "no-such-message")
        return web.json_response(found)

    async def _get_where(self, request: web.Request) -> web.Response:
        return web.json_response(await self._tracing.where(_message_id(request)))

    async def _get_headers(self, request: web.Request) -> web.Response:
        parts = await self._client.body(_message_id(request))
        block = b"".join(parts[:1])[:HEADER_BYTES_MAX]
        end = block.find(b"\r\n\r\n")
        parsed = BytesHeaderParser(policy=policy.compat32).parsebytes(block if end < 0 else block[: end + 4])
        headers = [[name, _decoded(value)] for name, value in parsed.items()][:HEADERS_MAX]
        return web.json_response({"headers": headers, "complete": end >= 0})

    # ---- events -----------------------------------------------------------------------------------------------------

    async def _get_events(self, request: web.Request) -> web.StreamResponse:
        asked = [topic for topic in request.query.get("topics", "cluster").split(",") if topic]
        after = request.query.get("after", request.headers.get("Last-Event-ID"))
        if unknown := sorted(set(asked) - {*TOPICS, "overview"}):
            return problem(400, f"no topic {unknown[0]!r}; there are cluster, queue, overview")
        if after is not None and (not after.isascii() or not after.isdigit() or len(after) > 18):
            return problem(400, "after must be the id of an event")
        try:
            listener = self._feed.listen(asked, None if after is None else int(after))
        except TooManyListeners as error:
            return problem(503, str(error), "too-many-listeners")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        try:
            await response.prepare(request)
            await self._stream(response, listener, "overview" in asked)
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._feed.forget(listener)
        return response

    async def _stream(self, response: web.StreamResponse, listener: Listener, overview: bool) -> None:
        loop = asyncio.get_running_loop()
        await self._write(response, ": smtpraft\nretry: 1000\n\n")
        ping_at = loop.time() + PING_S
        overview_at = loop.time() if overview else float("inf")
        changed = False
        while not listener.closed:
            now = loop.time()
            if now >= overview_at or (overview and changed):
                view = await self._overview.get(fresh=changed)
                await self._write(response, _sse("overview", view))
                overview_at = loop.time() + OVERVIEW_S
                ping_at = loop.time() + PING_S
            elif now >= ping_at:
                await self._write(response, ": still here\n\n")
                ping_at = loop.time() + PING_S
            await listener.wait(max(0.0, min(ping_at, overview_at) - loop.time()))
            events = listener.take()
            changed = any(event.topic == "cluster" for event in events)
            if events:
                await self._write(response, "".join(map(_event, events)))
            if listener.missed:
                lost = {"error": "read too slowly: events were lost; ask again", "missed": listener.missed}
                await self._write(response, _sse("dropped", lost))
                return
        await self._write(response, _sse("closing", {"text": "this node stops"}))

    @staticmethod
    async def _write(response: web.StreamResponse, text: str) -> None:
        async with asyncio.timeout(WRITE_S):
            await response.write(text.encode())


def _event(event: Event) -> str:
    return f"id: {event.number}\n" + _sse(event.topic, event.view())


def _sse(name: str, value: object) -> str:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n"  # ASCII, in one line whatever a stranger wrote


def _decoded(value: Any) -> str:
    from email.header import decode_header, make_header

    with contextlib.suppress(ValueError, LookupError, UnicodeError):
        return str(make_header(decode_header(str(value)))).encode("utf-8", "replace").decode()
    return str(value).encode("utf-8", "replace").decode()


def _message_id(request: web.Request) -> MessageId:
    try:
        return parse_message_id(request.match_info["id"])
    except ValueError:
        raise MessageNotFound from None
