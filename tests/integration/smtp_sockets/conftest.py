"""Real loopback sockets, on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import uvloop

from .room import Room, StartRoom


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test here runs once per loop."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def start_room() -> AsyncIterator[StartRoom]:
    """Start servers; they are closed after the test, and must have forgotten everything by then."""
    rooms: list[Room] = []

    async def start(**settings: Any) -> Room:
        room = Room(**settings)
        rooms.append(room)
        await room.server.start()
        return room

    yield start
    for room in rooms:
        await room.close()
        assert room.server.memory.used_bytes == 0
