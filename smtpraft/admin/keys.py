"""The key-value map over HTTP.

    GET    /v1/kv/KEY   {"key", "value" or "value_base64", "revision"}; 404 if it is not there
    GET    /v1/kv       {"keys": [{"key", "revision", "size_bytes"}], "next"}, ?prefix= ?after= ?limit=
    POST   /v1/kv/KEY   {"value": text} or {"value_base64": …} writes, {"delete": true} deletes;
                        with "revision" only if the key is at that one (0: absent)

Reads are linearizable, on any node; `?linearizable=0` is what this node knows. A comparison that fails is a 409 with
the code `conflict` and the revision that the key is at. An answer 503 with the code `outcome-unknown` may have taken
effect: read before you repeat it. That is why it is POST: what HTTP calls idempotent, client libraries and proxies
repeat by themselves, and a write done twice can undo what another client wrote in between.
"""

from __future__ import annotations

import base64
import binascii
import logging
from typing import Final
from urllib.parse import unquote_to_bytes

from aiohttp import web

from smtpraft.admin.answers import content, linearizable, problem, refusal
from smtpraft.admin.views import JsonObject
from smtpraft.spool.keyclient import KeyValues
from smtpraft.spool.keyvalues import ABSENT, KeyConflict, KeyInfo, KeyValue, MapFull, check_key

log = logging.getLogger(__name__)

PREFIX: Final = "/v1/kv"
PAGE_KEYS: Final = 100
PAGE_KEYS_MAX: Final = 1000
WRITE_S: Final = 2.5  # then it is withdrawn, which leaves a second to learn what became of it
READ_S: Final = 3.5


class KeyHandlers:
    """Answers for the map of one node."""

    def __init__(self, keys: KeyValues) -> None:
        self._keys = keys

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to an application."""
        one = PREFIX + "/{key:(?s:.+)}"  # a line end too, so that it is refused and not unknown
        return [
            web.get(PREFIX, self._list),
            web.get(one, self._get),
            web.post(one, self._post),
        ]

    async def _get(self, request: web.Request) -> web.Response:
        found = await self._keys.get(_key(request), linearizable=linearizable(request), deadline_s=READ_S)
        return problem(404, "no such key", "no-such-key") if found is None else web.json_response(_view(found))

    async def _list(self, request: web.Request) -> web.Response:
        text = request.query.get("limit", str(PAGE_KEYS))
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
        if not 1 <= limit <= PAGE_KEYS_MAX:
            return problem(400, f"limit must be 1 to {PAGE_KEYS_MAX}")
        keys = await self._keys.keys(
            request.query.get("prefix", ""),
            after=request.query.get("after", ""),
            limit=limit,
            linearizable=linearizable(request),
            deadline_s=READ_S,
        )
        following = keys[-1].key if len(keys) == limit else None
        return web.json_response({"keys": [_info_view(info) for info in keys], "next": following})

    async def _post(self, request: web.Request) -> web.Response:
        key, body = _key(request), await content(request)
        delete, expected = body.get("delete") is True, _revision(body.get("revision"))
        try:
            if delete and not {"value", "value_base64"} & set(body):
                revision = await self._keys.delete(key, expected=expected, deadline_s=WRITE_S)
                log.info("key deleted key=%r revision=%d", key, revision)
                return web.json_response({"key": key, "deleted": revision != ABSENT, "revision": revision})
            value = _value(body)
            revision = await self._keys.put(key, value, expected=expected, deadline_s=WRITE_S)
        except (KeyConflict, MapFull) as error:
            return _not_done(error)
        except ValueError as error:
            raise refusal(web.HTTPBadRequest, str(error)) from None
        log.info("key put key=%r bytes=%d revision=%d", key, len(value), revision)
        return web.json_response({"key": key, "revision": revision})


def _key(request: web.Request) -> str:
    """Return the key in the path: all that follows `/v1/kv/` as it was sent, slashes and dots too."""
    raw = request.raw_path.partition("?")[0].removeprefix(PREFIX + "/")
    try:
        key = unquote_to_bytes(raw).decode()
        check_key(key)
    except ValueError as error:
        text = "a key must be UTF-8" if isinstance(error, UnicodeError) else str(error)
        raise refusal(web.HTTPBadRequest, text) from None
    return key


def _value(body: JsonObject) -> bytes:
    text, encoded = body.get("value"), body.get("value_base64")
    if body.get("delete"):
        text = encoded = None  # one or the other
    if isinstance(text, str) and encoded is None:
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise refusal(web.HTTPBadRequest, "a value that is no Unicode text goes as value_base64") from None
    if isinstance(encoded, str) and text is None:
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise refusal(web.HTTPBadRequest, "value_base64 is not base64") from None
    raise refusal(web.HTTPBadRequest, 'send {"value": text}, {"value_base64": bytes} or {"delete": true}')


def _revision(given: object) -> int | None:
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given < 2**63:
        raise refusal(web.HTTPBadRequest, "revision must be 0 (absent) or the revision that a read gave")
    return given


def _not_done(error: KeyConflict | MapFull) -> web.Response:
    if isinstance(error, KeyConflict):
        return problem(409, str(error), "conflict", revision=error.revision)
    return problem(409, str(error), "full")


def _view(found: KeyValue) -> JsonObject:
    try:
        text = found.value.decode()
    except UnicodeDecodeError:
        return {"key": found.key, "value_base64": base64.b64encode(found.value).decode(), "revision": found.revision}
    return {"key": found.key, "value": text, "revision": found.revision}


def _info_view(info: KeyInfo) -> JsonObject:
    return {"key": info.key, "revision": info.revision, "size_bytes": info.size_bytes}
