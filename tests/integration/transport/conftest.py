"""Each test here runs on asyncio and on uvloop, and leaves no task and no error behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from smtpraft.cluster.ports import free_ports

from .members import Run


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    def runner(test: Coroutine[Any, Any, None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as loop:
            failures: list[dict[str, Any]] = []
            loop.get_loop().set_exception_handler(lambda _, context: failures.append(context))
            loop.run(test)
            left = [task.get_name() for task in asyncio.all_tasks(loop.get_loop())]
        assert failures == []
        assert left == []

    return runner


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """Ports that are free, and not of the ephemeral range, so that nobody's dialling takes them meanwhile."""
    return iter([free_ports(3)])
