"""The little of an event loop that futures need, when time is virtual: whoever waits is told at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast


class VirtualLoop:
    """Makes futures. Their callbacks run in the call that sets the result; nothing else of a loop is here."""

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=cast(asyncio.AbstractEventLoop, self))

    def call_soon(self, callback: Callable[..., object], *args: Any, context: object = None) -> None:
        """Call at once."""
        callback(*args)

    def get_debug(self) -> bool:
        """No."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A future that failed and that nobody asked: its client died."""
