"""`/v1/log/level`: what this node logs, read by GET and set by POST {"level": "debug"} until a reload or a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from smtpraft.admin.answers import content, problem
from smtpraft.config import LOG_LEVELS

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogLevel:
    """The level of a process: how to read it and how to set it."""

    now: Callable[[], str]
    change: Callable[[str], None]

    def routes(self) -> list[web.RouteDef]:
        """Return what the API offers of it."""
        return [web.get("/v1/log/level", self._get), web.post("/v1/log/level", self._post)]

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response({"level": self.now()})

    async def _post(self, request: web.Request) -> web.Response:
        level = (await content(request)).get("level")
        if not isinstance(level, str) or level not in LOG_LEVELS:
            return problem(400, f"level must be one of {', '.join(LOG_LEVELS)}")
        before = self.now()
        self.change(level)
        log.warning("log level changed from=%s to=%s", before, level)
        return web.json_response({"level": level})
