"""Clients of the key-value map on real nodes, and the history of what they asked and were answered."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from typing import Final, Self

from smtpraft.cli.demo.nodes import DemoNode
from smtpraft.simulator.linearizability import ABSENT, Delete, Get, KeyValueCall, Operation, Put

TIMEOUT_S: Final = 3.0  # longer than the pauses: a node that wakes answers what it was asked meanwhile
NEVER: Final = frozenset(
    {"not-replicated", "stopping"}
)  # what the API says only when nothing was done and never will be
KEYS: Final = 6
STALE_SHARE: Final = 0.2


class KeyLoad:
    """`clients` that put, compare and set, delete and read a few keys, each at any node, as fast as they are answered.

    `history` is of everything that asks a majority; `stale` of reads that do not ask. An operation that was surely not
    done is in neither, nor is a read without an answer.
    """

    def __init__(self, nodes: Sequence[DemoNode], *, clients: int = 9, seed: int = 1) -> None:
        self.history: list[Operation[KeyValueCall]] = []
        self.stale: list[Operation[KeyValueCall]] = []
        self.epoch = 0
        """Part of every key: begin a new one now and then, so that unknown outcomes do not pile up on a key."""
        self.refused = 0
        self.answered_by: dict[str, int] = {}
        self._nodes = nodes
        self._count = clients
        self._seed = seed
        self._ending = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._client(number), name=f"key-client-{number}") for number in range(self._count)
        ]
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)

    async def wait_answered(self, count: int) -> None:
        """Return when so many operations more have been answered."""
        target = len(self.history) + count
        async with asyncio.timeout(60):
            while len(self.history) < target:  # noqa: ASYNC110 - the list tells nobody
                await asyncio.sleep(0.01)

    async def _client(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        known: dict[str, int] = {}
        serial = 0
        while not self._ending:
            key = f"{self.epoch}/{rng.randrange(KEYS)}"
            node = rng.choice(self._nodes)
            serial += 1
            value = f"{number}.{serial}"
            expected = known.get(key, ABSENT) if rng.random() < 0.5 else None
            choice = rng.random()
            if choice < 0.5:
                done = await self._get(node, key, number, known, stale=rng.random() < STALE_SHARE)
            elif choice < 0.9:
                done = await self._put(node, key, number, known, value, expected)
            else:
                done = await self._delete(node, key, number, known, expected)
            if not done:
                await asyncio.sleep(0.02)  # that node is down, or knows no leader

    async def _get(self, node: DemoNode, key: str, number: int, known: dict[str, int], *, stale: bool) -> bool:
        called_at = time.monotonic()
        status, answer = await self._ask("GET", node, f"{key}?linearizable={0 if stale else 1}")
        if status not in (200, 404):
            return False
        revision = int(answer.get("revision", ABSENT))
        call = Get(str(answer["value"]).encode() if status == 200 else None, revision)
        if not stale:
            known[key] = revision
        history = self.stale if stale else self.history
        history.append(Operation(key, call, called_at, time.monotonic(), f"{number}"))
        self.answered_by[node.id] = self.answered_by.get(node.id, 0) + 1
        return True

    async def _put(
        self, node: DemoNode, key: str, number: int, known: dict[str, int], value: str, expected: int | None
    ) -> bool:
        called_at = time.monotonic()
        status, answer = await self._ask("POST", node, key, _body(expected) | {"value": value})
        if status == 503 and answer.get("code") in NEVER:
            return False
        revision = int(answer["revision"]) if status in (200, 409) else None
        self._changed(key, number, known, Put(value.encode(), revision, expected, status != 409), called_at)
        return status in (200, 409)

    async def _delete(self, node: DemoNode, key: str, number: int, known: dict[str, int], expected: int | None) -> bool:
        called_at = time.monotonic()
        status, answer = await self._ask("POST", node, key, _body(expected) | {"delete": True})
        if status == 503 and answer.get("code") in NEVER:
            return False
        revision = int(answer["revision"]) if status in (200, 409) else None
        self._changed(key, number, known, Delete(revision, expected, status != 409), called_at)
        return status in (200, 409)

    def _changed(self, key: str, number: int, known: dict[str, int], call: Put | Delete, called_at: float) -> None:
        returned_at = None if call.revision is None else time.monotonic()
        if call.revision is not None:
            deleted = isinstance(call, Delete) and call.written
            known[key] = ABSENT if deleted else call.revision
        self.history.append(Operation(key, call, called_at, returned_at, f"{number}"))

    async def _ask(
        self, method: str, node: DemoNode, rest: str, body: dict[str, object] | None = None
    ) -> tuple[int, dict[str, str]]:
        """Return status and content; 503 and `not-replicated` if nobody was there, 0 if there was no answer.

        By hand: a client library might repeat a request by itself.
        """
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} /v1/kv/{rest} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", node.admin_port)
                except OSError:
                    self.refused += 1
                    return 503, {"code": "not-replicated"}
                try:
                    writer.write(head.encode() + data)
                    answer = await reader.read()
                finally:
                    writer.close()
            status, content = answer.split(b" ", 2)[1], answer.partition(b"\r\n\r\n")[2]
            return int(status), json.loads(content)
        except (OSError, TimeoutError, ValueError, IndexError):
            return 0, {}  # it broke off


def _body(expected: int | None) -> dict[str, object]:
    return {} if expected is None else {"revision": expected}
