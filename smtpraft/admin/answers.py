"""What the handlers of the admin API share: how a request is read, and how it is refused."""

from __future__ import annotations

import json

from aiohttp import web

from smtpraft.admin.views import JsonObject


def linearizable(request: web.Request) -> bool:
    """Return whether a read shall ask a majority: unless `?linearizable=0`."""
    return request.query.get("linearizable", "1") not in ("0", "false")


async def content(request: web.Request) -> JsonObject:
    """Return the JSON object that a request carries, an empty one if it carries nothing.

    Raises:
        HTTPBadRequest: it carries something else.
    """
    try:
        found = await request.json() if request.can_read_body else {}
    except (ValueError, LookupError, RecursionError):  # no JSON, a charset that nobody knows, brackets without end
        found = None
    if not isinstance(found, dict):
        raise refusal(web.HTTPBadRequest, "send a JSON object")
    return found


def refusal(kind: type[web.HTTPClientError], text: str) -> web.HTTPException:
    """Return the exception that answers with `text`."""
    return kind(text=json.dumps({"error": text}), content_type="application/json")


def problem(status: int, text: str, code: str | None = None, **facts: object) -> web.Response:
    """Return an answer that says what is wrong: for people, and as a `code` for programs."""
    return web.json_response({"error": text} | ({"code": code} if code else {}) | facts, status=status)
