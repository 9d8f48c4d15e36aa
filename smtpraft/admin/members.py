"""The members of the cluster and its leader over HTTP; any node may be asked, the leader does it.

    GET  /v1/members            {"members": […]}; ?linearizable=0 is what this node knows
    POST /v1/members/add        {"members": ["node-4=10.0.0.4:5001", …], "learner": false}
    POST /v1/members/promote    {"node": "node-4", "force": false}
    POST /v1/members/remove     likewise
    POST /v1/members/replace    likewise, and "address": "HOST:PORT" if it is not what it was
    POST /v1/leader/transfer    {"to": "node-2"} or {}
    POST /v1/leader/step-down   {"seconds": 10}: hand over, and do not stand for election for so long
    POST /v1/leader/forget      {}: this node forgets its leader, so that it may vote for another at once

What is declined is a 409 with the reasons. A 503 with the code `outcome-unknown` may have taken effect: look first.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

from aiohttp import web

from smtpraft.admin.answers import content, linearizable, problem
from smtpraft.admin.views import JsonObject
from smtpraft.cluster.status import NodeStatus
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

STEP_DOWN_S: Final = 10.0
STEP_DOWN_S_MAX: Final = 3600.0


class MemberNode(Protocol):
    """What these handlers need of `cluster.Node`."""

    def status(self) -> NodeStatus: ...

    def members(self) -> list[dict[str, object]]: ...

    async def change_members(self, operation: str, **arguments: object) -> object: ...

    async def step_down(self, seconds: float) -> NodeId | None: ...

    def forget_leader(self) -> None: ...


class MemberHandlers:
    """Answers for one node."""

    def __init__(self, node: MemberNode) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to an application."""
        return [
            web.get("/v1/members", self._list),
            web.post("/v1/members/{operation:add|promote|remove|replace}", self._change),
            web.post("/v1/leader/transfer", self._transfer),
            web.post("/v1/leader/step-down", self._step_down),
            web.post("/v1/leader/forget", self._forget),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        members = await self._node.change_members("list") if linearizable(request) else self._node.members()
        return web.json_response({"members": members})

    async def _change(self, request: web.Request) -> web.Response:
        operation = request.match_info["operation"]
        arguments = await content(request)
        wanted = _checked(operation, arguments)
        if isinstance(wanted, web.Response):
            return wanted
        done = await self._node.change_members(operation, **wanted)
        log.info("member %s arguments=%s", operation, wanted)
        return web.json_response({"operation": operation, "done": done, "members": self._node.members()})

    async def _transfer(self, request: web.Request) -> web.Response:
        to = (await content(request)).get("to")
        before = self._node.status()
        if to is not None and to not in before.voters:
            return problem(400, f"{to!r} is no voter of this cluster")
        chosen = await self._node.change_members("transfer", to=to)
        if not chosen:
            return problem(503, "nobody took leadership over")
        log.info("leadership transferred from=%s to=%s", before.leader_id, chosen)
        return web.json_response({"from": before.leader_id or None, "to": chosen})

    async def _step_down(self, request: web.Request) -> web.Response:
        seconds = (await content(request)).get("seconds", STEP_DOWN_S)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= STEP_DOWN_S_MAX:
            return problem(400, f"seconds must be a number, 0 to {STEP_DOWN_S_MAX:g}")
        node = self._node.status().node_id
        to = await self._node.step_down(float(seconds))
        log.info("stepped down to=%s for_s=%g", to, seconds)
        return web.json_response({"from": node, "to": to, "seconds": seconds})

    async def _forget(self, request: web.Request) -> web.Response:
        await content(request)
        before = self._node.status()
        self._node.forget_leader()
        return web.json_response({"node": before.node_id, "forgot": before.leader_id})


def _checked(operation: str, arguments: JsonObject) -> JsonObject | web.Response:
    """Return what an operation is to be given, or why it cannot be."""
    known = {"add": {"members", "learner"}, "replace": {"node", "address", "force"}}.get(operation, {"node", "force"})
    if unknown := sorted(arguments.keys() - known):
        return problem(400, f"{unknown[0]!r} is not known here; known: {', '.join(sorted(known))}")
    for flag in ("force", "learner"):
        if not isinstance(arguments.get(flag, False), bool):
            return problem(400, f"{flag} must be true or false")
    if operation == "add":
        members = arguments.get("members")
        if not isinstance(members, list) or not members or not all(isinstance(text, str) for text in members):
            return problem(400, 'send {"members": ["ID=HOST:PORT", …]}')
    elif not isinstance(arguments.get("node"), str):
        return problem(400, 'send {"node": "ID"}')
    return arguments
