"""Listening sockets for several SMTP workers: one each, on the same address (SO_REUSEPORT).

The node binds them all before a worker starts and keeps them: ports below 1024 and errors are the node's business, and
who comes while a worker starts waits in the kernel instead of being refused. SO_REUSEPORT would also let a second node
of the same user take half of the clients unnoticed: so the address is bound once without it first. That fails where
somebody listens; so they listen from the beginning, and not only when a worker is there: two nodes may start together.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from typing import Any, Final

from smtpraft.config import parse_address
from smtpraft.smtp.server import BACKLOG

BUSY_S: Final = 1.0  # the workers of a node that was killed a moment ago may not be gone yet
_BUSY_STEP_S: Final = 0.05

Listeners = list[tuple[str, socket.socket]]
"""Names, as metrics have them, and sockets."""


async def open_listeners(addresses: Sequence[str], workers: int) -> list[Listeners]:
    """Return sockets that listen, for each worker, in the order of `addresses`; a worker accepts from its own.

    Raises:
        OSError: an address cannot be bound; none is then.
    """
    loop = asyncio.get_running_loop()
    found: list[Listeners] = [[] for _ in range(workers)]
    try:
        for text in addresses:
            address = parse_address(text)
            infos = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, protocol, _, name in dict.fromkeys(infos):
                bound = await _reserve(family, protocol, name)
                for listeners in found:
                    listeners.append((text, _bind(family, protocol, bound, shared=True)))
        for listeners in found:
            for _, listening in listeners:
                listening.listen(BACKLOG)
    except BaseException:
        close_listeners(found)
        raise
    return found


def close_listeners(listeners: Sequence[Listeners]) -> None:
    """Close them all, here."""
    for each in listeners:
        for _, listening in each:
            listening.close()


async def _reserve(family: int, protocol: int, name: Any) -> Any:
    """Return the address, with the port that it got, once it is certain that nobody else listens there."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BUSY_S
    while True:
        try:
            with _bind(family, protocol, name, shared=False) as probe:
                return probe.getsockname()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or loop.time() > deadline:
                raise
        await asyncio.sleep(_BUSY_STEP_S)


def _bind(family: int, protocol: int, name: Any, *, shared: bool) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(name)
    except BaseException:
        listening.close()
        raise
    return listening
