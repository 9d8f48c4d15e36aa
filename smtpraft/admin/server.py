"""The admin API over HTTP.

    GET  /livez /readyz /healthz   probes, without a token     GET  /v1/queue            list, ?limit= ?after=
    GET  /metrics                  Prometheus                  GET  /v1/queue/ID[/body]  one message
    GET  /v1/status                this node                   POST /v1/queue/ACTION     {"ids": […]} or {"all": true}
    GET  /v1/snapshot              its state, as a file        ACTION: hold release delete flush
    /v1/members, /v1/leader        who belongs, who leads: see `members`
    /v1/kv                         the key-value map: see `keys`

    /leader /follower              probes by role              /, /v1/overview, /v1/events: see `site`

Nothing changes by GET. Who may ask what is `access`'s business; a Unix socket in the data directory is for this user.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from aiohttp import web
from prometheus_client import Metric

from smtpraft.admin.access import Access, server_context
from smtpraft.admin.answers import content as _content
from smtpraft.admin.answers import linearizable as _linearizable
from smtpraft.admin.answers import problem as _problem
from smtpraft.admin.answers import refusal as _refusal
from smtpraft.admin.keys import KeyHandlers
from smtpraft.admin.loglevel import LogLevel
from smtpraft.admin.members import MemberHandlers, MemberNode
from smtpraft.admin.metrics import CONTENT_TYPE, gauge, render
from smtpraft.admin.strangers import QuietStrangers
from smtpraft.admin.token import read_token as read_token_file
from smtpraft.admin.views import JsonObject, message_view, status_view
from smtpraft.cluster.snapshot_format import encode_file_header
from smtpraft.cluster.snapshot_sender import Copy
from smtpraft.config import AdminSettings, ConfigError, parse_address
from smtpraft.errors import NotReplicated, OutcomeUnknown, SmtpRaftError, Stopped
from smtpraft.spool.client import SpoolClient
from smtpraft.spool.keyclient import KeyValues
from smtpraft.spool.types import MessageId, MessageNotFound, parse_message_id

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX: Final = 1024 * 1024
PAGE_MESSAGES: Final = 100
PAGE_MESSAGES_MAX: Final = 1000
IDS_MAX: Final = 10_000
ANSWER_S: Final = 4.0  # below the five seconds that command lines wait
CHANGE_S: Final = 14.0  # below the fifteen that `smtpraft member` waits
HEALTH_TIMEOUT_S: Final = 2.0
OLDEST_S: Final = 0.5
SNAPSHOT_BLOCK_BYTES: Final = 256 * 1024
SOCKET_PATH_BYTES_MAX: Final = 107  # unix(7)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminNode(MemberNode, Protocol):
    """What the API needs of `cluster.Node`."""

    def has_quorum(self) -> bool: ...

    async def read_index(self, *, deadline_s: float = 10.0) -> int: ...

    def snapshot(self) -> AbstractAsyncContextManager[Copy]: ...


class Admin:
    """Answers for one node. `draining` is set by the daemon when it begins to stop; `ready` says whether a majority
    is in contact, or was until a moment ago.
    """

    def __init__(
        self,
        settings: AdminSettings,
        node: AdminNode,
        client: SpoolClient,
        keys: KeyValues,
        *,
        ready: Callable[[], bool],
        digest: Callable[[], tuple[str, int]],
        compiled: bool,
        compiled_parts: Mapping[str, bool],
        workers: Callable[[], Sequence[JsonObject]] = list,
        metrics: Sequence[Callable[[], Iterable[Metric]]] = (),
        routes: Sequence[web.RouteDef] = (),
        token: bytes = b"",
        data_dir: str = "",
        log_level: LogLevel | None = None,
    ) -> None:
        address = parse_address(settings.listen)
        read_token = read_token_file(settings.read_token_file, "read_token_file") if settings.read_token_file else b""
        self._access = Access(settings, token, read_token)
        if self._access.open_to_this_machine and not address.is_loopback:
            raise ConfigError(
                f"admin.listen = {settings.listen!r} is reachable from other machines; set admin.token_file"
            )
        self._context = server_context(settings)
        self._socket_path = os.path.join(data_dir, settings.socket) if settings.socket else ""
        self._more = tuple(routes)
        self.draining = False
        self._address = address
        self._node = node
        self._client = client
        self._key_handlers = KeyHandlers(keys)
        self._member_handlers = MemberHandlers(node)
        self._ready = ready
        self._digest = digest
        self._compiled = (compiled, compiled_parts)
        self._workers = workers
        self._metrics = metrics
        self._data_dir = data_dir
        self._log_level = log_level
        self._strangers = QuietStrangers()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._socket_made = 0  # its inode

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be had.
        """
        app = web.Application(middlewares=[self._guard], client_max_size=REQUEST_BYTES_MAX)
        app.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/healthz", self._healthz),
                web.get("/leader", self._leader),
                web.get("/follower", self._follower),
                web.get("/metrics", self._get_metrics),
                web.get("/v1/status", self._get_status),
                web.get("/v1/snapshot", self._get_snapshot),
                web.get("/v1/queue", self._get_queue),
                web.get("/v1/queue/{id}", self._get_message),
                web.get("/v1/queue/{id}/body", self._get_body),
                web.post("/v1/queue/{action:hold|release|delete|flush}", self._post_action),
                *self._key_handlers.routes(),
                *self._member_handlers.routes(),
                *self._more,
                *(self._log_level.routes() if self._log_level is not None else ()),
            ]
        )
        self._strangers.install()
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        self._site = web.TCPSite(
            self._runner, self._address.host, self._address.port, reuse_address=True, ssl_context=self._context
        )
        await self._site.start()
        if self._socket_path:
            await self._listen_here()

    async def _listen_here(self) -> None:
        """Open the Unix socket: for whoever may enter the data directory, that is, this user."""
        assert self._runner is not None
        path = self._socket_path
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
            log.warning("no Unix socket: its path is too long path=%r; set admin.socket to a shorter one", path)
            return
        _make_room(path)
        try:
            await web.UnixSite(self._runner, path).start()
        except OSError as error:  # the loops do not say which of the listeners it was
            raise OSError(error.errno, f"{os.strerror(error.errno or 0)}: see admin.socket", path) from None
        os.chmod(path, 0o600)
        self._socket_made = os.lstat(path).st_ino

    def routes(self) -> list[tuple[str, str]]:
        """Return method and path of all that is answered."""
        assert self._runner is not None
        resources = self._runner.app.router.resources()
        return [(r.method, res.get_info().get("path") or res.get_info()["formatter"]) for res in resources for r in res]

    def set_token(self, token: bytes) -> None:
        """Ask for another token from now on. A node that asked for none goes on so, and the other way round."""
        self._access.set_token(token)

    async def stop(self) -> None:
        """Close the listener and what is left of connections."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._socket_made:
            with contextlib.suppress(OSError):  # gone already: from 3.13 on asyncio does it
                if os.lstat(self._socket_path).st_ino == self._socket_made:
                    os.unlink(self._socket_path)
        self._strangers.remove()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port in use, also when the setting asked for any port."""
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return host, port

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._access.check(request)
            async with asyncio.timeout(_patience_s(request.path)):
                return await handler(request)
        except web.HTTPException as error:
            if error.status < 400 or error.content_type == "application/json":
                raise
            return _problem(error.status, error.reason.lower())
        except MessageNotFound:
            return _problem(404, "no such message in the queue")
        except NotReplicated as error:
            return _problem(503, str(error) or "the cluster did not take it", "not-replicated")
        except (OutcomeUnknown, TimeoutError):
            return _problem(
                503,
                "no majority answered in time; the command may still take effect, and may be repeated",
                "outcome-unknown",
            )
        except Stopped:
            return _problem(503, "this node is stopping", "stopping")
        except SmtpRaftError as error:
            return _problem(409, str(error))

    async def _leader(self, request: web.Request) -> web.Response:
        leads = self._node.status().role == "leader" and self._node.has_quorum() and not self.draining
        return web.Response(text="leader\n" if leads else "not the leader\n", status=200 if leads else 503)

    async def _follower(self, request: web.Request) -> web.Response:
        status = self._node.status()
        follows = status.role == "follower" and bool(status.leader_id) and status.has_quorum and not self.draining
        return web.Response(text="follower\n" if follows else "no follower\n", status=200 if follows else 503)

    async def _livez(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        room = self._node.status().disk not in ("full", "read-only")
        checks = {"quorum": self._ready(), "room": room, "not-draining": not self.draining}
        for excluded in request.query.getall("exclude", []):
            checks.pop(excluded, None)
        ready = all(checks.values())
        if "verbose" in request.query:
            lines = [f"[{'+' if good else '-'}]{name} {'ok' if good else 'failed'}" for name, good in checks.items()]
            text = "\n".join([*lines, "ok" if ready else "not ready", ""])
        else:
            bad = ", ".join(name for name, good in checks.items() if not good)
            text = "ok\n" if ready else f"not ready: {bad}\n"
        return web.Response(text=text, status=200 if ready else 503)

    async def _healthz(self, request: web.Request) -> web.Response:
        if not request.query.get("quorum"):
            return await self._readyz(request)
        if self.draining:
            return _problem(503, "this node is stopping", "stopping")
        index = await self._node.read_index(deadline_s=HEALTH_TIMEOUT_S)
        return web.json_response({"health": True, "read_index": index})

    async def _get_metrics(self, request: web.Request) -> web.Response:
        # The values are read here, at once, where the parts live; the text is made on a thread.
        families = [family for source in self._metrics for family in source()]
        with contextlib.suppress(TimeoutError):  # the disk hangs: then the other numbers are wanted all the more
            async with asyncio.timeout(OLDEST_S):
                age_s = await self._client.oldest_age_s()
            families.append(gauge("queue_oldest_age_seconds", "Age of the oldest message in the queue.", age_s))
        text = await asyncio.to_thread(render, families, self._data_dir)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def _get_status(self, request: web.Request) -> web.Response:
        view = status_view(self._node.status(), self._client.counts(), self._digest(), *self._compiled)
        return web.json_response(view | {"draining": self.draining, "smtp_workers": list(self._workers())})

    async def _get_snapshot(self, request: web.Request) -> web.StreamResponse:
        async with self._node.snapshot() as copy:
            log.info("snapshot asked for index=%d bytes=%d", copy.info.index, copy.info.size_bytes)
            header = encode_file_header(copy.info)
            response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            response.content_length = len(header) + copy.info.size_bytes
            file = await asyncio.to_thread(open, copy.path, "rb")
            try:
                await response.prepare(request)
                await response.write(header)
                while block := await asyncio.to_thread(file.read, SNAPSHOT_BLOCK_BYTES):
                    await response.write(block)
            finally:
                file.close()
        return response

    async def _get_queue(self, request: web.Request) -> web.Response:
        try:
            limit = int(text) if (text := request.query.get("limit", str(PAGE_MESSAGES))).isdecimal() else 0
            after = parse_message_id(request.query["after"]) if request.query.get("after") else None
        except ValueError as error:
            return _problem(400, str(error))
        if not 1 <= limit <= PAGE_MESSAGES_MAX:
            return _problem(400, f"limit must be 1 to {PAGE_MESSAGES_MAX}")
        messages = await self._client.list_messages(limit=limit, after=after, linearizable=_linearizable(request))
        following = messages[-1].id if len(messages) == limit else None
        return web.json_response({"messages": [message_view(message) for message in messages], "next": following})

    async def _get_message(self, request: web.Request) -> web.Response:
        message = await self._client.get(_message_id(request), linearizable=_linearizable(request))
        return (
            _problem(404, "no such message in the queue")
            if message is None
            else web.json_response(message_view(message))
        )

    async def _get_body(self, request: web.Request) -> web.StreamResponse:
        parts = await self._client.body(_message_id(request))
        response = web.StreamResponse(headers={"Content-Type": "message/rfc822", "X-Content-Type-Options": "nosniff"})
        response.content_length = sum(map(len, parts))
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    async def _post_action(self, request: web.Request) -> web.Response:
        action = request.match_info["action"]
        content = await _content(request)
        ids: list[MessageId] | None = None
        unknown: list[str] = []
        if content.get("all") is not True:
            ids, unknown = await self._known(content.get("ids"))
        changed = 0
        if ids is None or ids:
            match action:
                case "hold":
                    changed = await self._client.hold(ids)
                case "release":
                    changed = await self._client.release(ids)
                case "delete":
                    changed = await self._client.delete(ids)
                case _:
                    changed = await self._client.flush(ids)
        log.info("queue %s ids=%s changed=%d", action, "all" if ids is None else len(ids), changed)
        return web.json_response({"action": action, "changed": changed, "unknown": unknown})

    async def _known(self, ids: object) -> tuple[list[MessageId], list[str]]:
        """Return which of the `ids` of a request name queued messages and which do not."""
        if not isinstance(ids, list) or not all(isinstance(text, str) for text in ids) or not 0 < len(ids) <= IDS_MAX:
            raise _refusal(web.HTTPBadRequest, f'send {{"ids": [1 to {IDS_MAX} queue ids]}} or {{"all": true}}')
        known: list[MessageId] = []
        unknown: list[str] = []
        linearizable = True  # the first question goes to a quorum, the others may then look here
        for text in dict.fromkeys(ids):
            try:
                message = parse_message_id(text)
            except ValueError:
                unknown.append(text)
                continue
            found = await self._client.get(message, linearizable=linearizable)
            linearizable = False
            if found is None:
                unknown.append(text)
            else:
                known.append(message)
        return known, unknown


def _make_room(path: str) -> None:
    """Take away the socket of a run that was killed, and nothing else.

    Raises:
        OSError: something else has this name; with the path.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "is no socket; move it away, or set admin.socket to another path", path)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)  # it answers at once, or nobody listens
        if asking.connect_ex(path) in (0, errno.EAGAIN, errno.EINPROGRESS):
            raise OSError(errno.EADDRINUSE, "another process listens there; set admin.socket to another path", path)
    os.unlink(path)


def _patience_s(path: str) -> float | None:
    """Return how long a request may take: what streams as long as it needs, a change of the members longer."""
    if path.endswith(("/body", "/snapshot", "/events")):
        return None
    return CHANGE_S if path.startswith("/v1/members/") else ANSWER_S


def _message_id(request: web.Request) -> MessageId:
    try:
        return parse_message_id(request.match_info["id"])
    except ValueError:
        raise MessageNotFound from None
