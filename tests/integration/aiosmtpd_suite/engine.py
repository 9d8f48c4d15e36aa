"""What aiosmtpd's tests get for `aiosmtpd.smtp.SMTP`: a session of ours, with a server around it and their handler.

Everything from the bytes of the client to the call of a hook, and from its reply to the client, is ours. What is done
here instead of by a node: a message is given to the hook `handle_DATA`, as bytes (or, with `decode_data`, as text), in
the place of the cluster; `handle_RCPT` is asked in the place of the relay policy. The fast engine has plain methods
where aiosmtpd has hooks: RCPT's is run to its end at once, DATA's in a task, and what it replies is called back.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any

from smtpraft.config import ENGINE_AIOSMTPD, ENGINE_FAST, SmtpSettings
from smtpraft.smtp.connection import AnySession, Client, Transaction
from smtpraft.smtp.fast import CommandSession, FastSession
from smtpraft.smtp.handler import MailHandler
from smtpraft.smtp.rules import SessionRules, methods_of
from smtpraft.smtp.server import SmtpServer
from smtpraft.smtp.session import SmtpSession

SIZE_BYTES_MAX = 2**25  # aiosmtpd: DATA_SIZE_DEFAULT
LOOK_EVERY_S = 0.05
SERVERS: list[Server] = []
"""Of the controller that runs; one for each session."""


def nobody_submits(*arguments: object, **more: object) -> None:
    raise AssertionError("the hooks take what is accepted")


class Hooks(MailHandler):
    """Their handler, asked as the engines ask ours."""

    def __init__(self, server: SmtpServer, handler: Any, *, decode_data: bool) -> None:
        super().__init__(
            server.settings,
            policy=server._policy,
            submit=nobody_submits,
            ready=lambda: True,
            full=lambda: False,
            statistics=server.statistics,
            clock=lambda: 0.0,
            instance="",
        )
        self._theirs = handler
        self._decode_data = decode_data
        self._tasks: set[asyncio.Task[None]] = set()
        self.hooks = {
            name: getattr(handler, f"handle_{name}") for name in ("MAIL", "RCPT") if hasattr(handler, f"handle_{name}")
        }
        self.hooks["DATA"] = self._data

    def take_recipient(self, session: Client, envelope: Transaction, address: str) -> str:
        hook = self.hooks.get("RCPT")
        if hook is None:
            return super().take_recipient(session, envelope, address)
        reply = at_once(hook(None, session, envelope, address, []))
        return "" if reply.startswith("2") else reply

    def commit(self, server: Any, session: Client, envelope: Transaction, answered: Callable[[str], None]) -> None:
        async def ask() -> None:
            try:
                reply = await self._data(server, session, envelope)
            except Exception:
                reply = "451 4.3.0 Error: internal error, try again later"
            answered(reply)

        task = server.loop.create_task(ask())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _data(self, server: Any, session: Client, envelope: Transaction) -> str:
        content = envelope.original_content = b"".join(envelope.content_blocks)
        envelope.content = content.decode("utf-8", "surrogateescape") if self._decode_data else content
        hook = getattr(self._theirs, "handle_DATA", None)
        return "250 2.0.0 Ok" if hook is None else await hook(server, session, envelope)


def at_once(hook: Coroutine[Any, Any, str]) -> str:
    """Return what a hook replies that waits for nothing."""
    try:
        hook.send(None)
    except StopIteration as done:
        return str(done.value)
    raise AssertionError("the fast engine does not wait for a recipient")


class Server(SmtpServer):
    """Our server around one session; it listens nowhere."""

    def __init__(self, settings: SmtpSettings, handler: Any, *, decode_data: bool) -> None:
        super().__init__(settings, submit=nobody_submits, ready=lambda: True)
        self.handler = theirs = Hooks(self, handler, decode_data=decode_data)
        self.hooks = theirs.hooks

    def abandon(self) -> None:
        """End what is open."""
        for session in list(self._sessions):
            session.abandon()

    def look_after(self, session: AnySession) -> None:
        """Do for this session what the server's sweep does for all."""
        if session in self._sessions:
            session.check_time(session.loop.time(), False)
            session.loop.call_later(LOOK_EVERY_S, self.look_after, session)


def _settings(engine: str, size_limit: int | None, hostname: str | None, timeout_s: float) -> SmtpSettings:
    return SmtpSettings(
        listen=[],
        hostname=hostname or socket.getfqdn(),
        engine=engine,
        max_message_bytes=SIZE_BYTES_MAX if size_limit is None else size_limit,
        command_timeout_s=timeout_s,
    )


@cache
def engine_class(engine: str) -> type:
    """Return the class that stands in for aiosmtpd's, on one of our engines. It can be subclassed as theirs."""
    parents: Any = {ENGINE_FAST: (CommandSession, FastSession), ENGINE_AIOSMTPD: (SmtpSession,)}[engine]
    base: Any = parents[-1]

    class SMTP(base):  # type: ignore[misc]
        def __init__(
            self,
            handler: Any,
            *,
            data_size_limit: int | None = SIZE_BYTES_MAX,
            enable_SMTPUTF8: bool = False,  # noqa: N803 -- aiosmtpd's name; ours is always on
            decode_data: bool = False,
            hostname: str | None = None,
            timeout: float = 300.0,
            loop: asyncio.AbstractEventLoop | None = None,
            **without: object,  # what neither engine has: AUTH, STARTTLS, limits by command
        ) -> None:
            settings = _settings(engine, data_size_limit, hostname, timeout)
            self.server = Server(settings, handler, decode_data=decode_data)
            SERVERS.append(self.server)
            super().__init__(self.server, loop or asyncio.get_running_loop())
            self.event_handler = handler

        def __init_subclass__(cls) -> None:
            cls._methods = methods_of(SessionRules, *parents, cls)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            # The listener has no name here.
            self.server.statistics.received_by_listener[self.listener] = 0
            super().connection_made(transport)
            self.server.look_after(self)

    return SMTP
