"""The key-value map, for code on the event loop. Works on any node; reads are linearizable unless said otherwise.

A write is on the disks of a majority when it returns. Cancelling the caller, or a time-out, does not undo it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from smtpraft.errors import NotReplicated, Stopped
from smtpraft.spool import commands
from smtpraft.spool.commands import Refusal
from smtpraft.spool.keyvalues import (
    KeyConflict,
    KeyInfo,
    KeyResult,
    KeyValue,
    MapFull,
    check_key,
    check_revision,
    check_value,
)
from smtpraft.spool.machine import SpoolMachine

KEY_DEADLINE_S: Final = 5.0

_T = TypeVar("_T")


class KeyReplicator(Protocol):
    """What the map needs of `cluster.Node`."""

    async def replicate(self, command: bytes, *, deadline_s: float = 10.0) -> object:
        """Return the machine's result. Raises NotReplicated, OutcomeUnknown or Stopped."""

    async def read_index(self, *, deadline_s: float = 10.0) -> int:
        """Return once this node has applied everything that was committed when it was called."""


class KeyValues:
    """The map. One per node."""

    def __init__(self, node: KeyReplicator, machine: SpoolMachine) -> None:
        self._node = node
        self._machine = machine

    async def get(self, key: str, *, linearizable: bool = True, deadline_s: float = KEY_DEADLINE_S) -> KeyValue | None:
        """Return the key's value, or None if it is not there.

        Linearizable: as of a moment after the call (a round to a majority); otherwise what this node knows, which may
        be old.

        Raises:
            NotReplicated: no majority confirmed the read in time.
            Stopped: the node stops.
            ValueError: `key` is none.
        """
        check_key(key)
        if linearizable:
            await self._node.read_index(deadline_s=deadline_s)
        return await self._read(self._machine.reader.key, key)

    async def keys(
        self,
        prefix: str = "",
        *,
        after: str = "",
        limit: int = 1000,
        linearizable: bool = True,
        deadline_s: float = KEY_DEADLINE_S,
    ) -> list[KeyInfo]:
        """Return up to `limit` keys that begin with `prefix`, after the key `after`, in the order of their UTF-8 bytes.

        Raises as `get`; a page is of one moment, several pages are not.
        """
        if linearizable:
            await self._node.read_index(deadline_s=deadline_s)
        return await self._read(self._machine.reader.keys, prefix, after, limit)

    async def put(
        self, key: str, value: bytes, *, expected: int | None = None, deadline_s: float = KEY_DEADLINE_S
    ) -> int:
        """Write a value, with `expected` only if the key is at that revision; return the new revision.

        Raises:
            KeyConflict: it is at another one; nothing was changed.
            MapFull: there is no room for it; nothing was changed.
            NotReplicated: nothing was changed, and will not be.
            OutcomeUnknown: it may be written or not.
            Stopped: nothing was handed to the cluster.
            ValueError: key, value or revision is none.
        """
        check_value(value)
        return await self._change(commands.KEY_PUT, key, value, expected, deadline_s)

    async def delete(self, key: str, *, expected: int | None = None, deadline_s: float = KEY_DEADLINE_S) -> int:
        """Delete a key, with `expected` only at that revision; return the revision deleted, `ABSENT` if none was there.

        Raises as `put`.
        """
        return await self._change(commands.KEY_DELETE, key, b"", expected, deadline_s)

    async def _change(self, op: int, key: str, value: bytes, expected: int | None, deadline_s: float) -> int:
        check_key(key)
        check_revision(expected)
        command = commands.encode_key(op, key, expected, value)
        result = await self._node.replicate(command, deadline_s=deadline_s)
        if result is Refusal.MAP_FULL:
            raise MapFull
        if isinstance(result, Refusal):
            raise NotReplicated(f"refused: {result.name}")
        assert isinstance(result, KeyResult), f"answer to a change of a key: {result!r}"
        if not result.done:
            assert expected is not None, "only a comparison can fail"
            raise KeyConflict(key, expected, result.revision)
        return result.revision

    async def _read(self, query: Callable[..., _T], *arguments: object) -> _T:
        reader = self._machine.reader
        if reader.closed:
            raise Stopped("the map is closed")
        return await asyncio.get_running_loop().run_in_executor(reader.executor, query, *arguments)
