"""What commands do to the key-value map, within the machine's transaction. Deterministic, like all of the machine."""

from __future__ import annotations

import struct
from typing import Final

from smtpraft.cluster.machine import Command
from smtpraft.spool.commands import KEY_PUT, KeyHeader, Refusal
from smtpraft.spool.counters import Counters
from smtpraft.spool.keyvalues import (
    ABSENT,
    KEYS_MAX,
    MAP_BYTES_MAX,
    VALUE_BYTES_MAX,
    KeyResult,
    key_problem,
)
from smtpraft.spool.store import Store

_EFFECT: Final = struct.Struct(">BQ")  # done | revision
_WRITTEN: Final = b"\x01"


def change_key(
    store: Store, counters: Counters, item: Command, op: int, header: KeyHeader, body_offset: int
) -> tuple[KeyResult | Refusal, bytes]:
    """Put or delete one key, if it is at the expected revision; return (result, effect for the digest).

    What the proposer should have checked is checked again: the log cannot be argued with, but it can be refused.
    """
    key, expected = header.key, header.expected
    size_bytes = len(item.data) - body_offset
    if key_problem(key) or size_bytes > (VALUE_BYTES_MAX if op == KEY_PUT else 0):
        return _refused(Refusal.MALFORMED)
    revision, old_bytes = store.key_facts(key)
    if expected is not None and expected != revision:
        return KeyResult(False, revision), _EFFECT.pack(0, revision)
    key_bytes = len(key.encode())
    if op == KEY_PUT:
        keys, size = counters.keys, counters.key_bytes + size_bytes
        if revision == ABSENT:
            keys, size = keys + 1, size + key_bytes
        else:
            size -= old_bytes
        if keys > KEYS_MAX or size > MAP_BYTES_MAX:
            return _refused(Refusal.MAP_FULL)
        store.put_key(key, memoryview(item.data)[body_offset:], item.index)
        counters.keys, counters.key_bytes = keys, size
        return KeyResult(True, item.index), _WRITTEN
    if revision != ABSENT:
        store.delete_key(key)
        counters.keys -= 1
        counters.key_bytes -= key_bytes + old_bytes
    return KeyResult(True, revision), _EFFECT.pack(1, revision)


def _refused(refusal: Refusal) -> tuple[Refusal, bytes]:
    return refusal, b"\x00" + bytes([refusal])
