"""The little of an event loop that futures need, when time is virtual: whoever waits is told at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


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


class AtOnce(Executor):
    """A thread that has done everything at once."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do it."""
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
