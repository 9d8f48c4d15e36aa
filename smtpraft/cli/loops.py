"""Which event loop `node.loop` names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from smtpraft.config import ConfigError


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes a loop of this name.

    Raises:
        ConfigError: it is not installed.
    """
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ModuleNotFoundError:
        raise ConfigError('node.loop = "uvloop": it is not installed here; install it, or set "asyncio"') from None
    return uvloop.new_event_loop
