"""What the queue holds and has seen, kept as numbers, so that nothing is ever counted by a scan."""

from __future__ import annotations

from typing import Final

import msgspec

from smtpraft.spool.message import Message


class Counters(msgspec.Struct, omit_defaults=True):
    """Stored with each batch. The first five, `owners` and `key…` are of what is there now, the others only grow."""

    queued: int = 0
    deferred: int = 0
    held: int = 0
    recipients: int = 0
    size_bytes: int = 0
    accepted: int = 0
    bounces: int = 0
    delivered: int = 0
    failed: int = 0
    expired: int = 0
    deferrals: int = 0
    deleted: int = 0
    moved: int = 0
    ended: int = 0
    owners: dict[str, int] = {}
    keys: int = 0
    key_bytes: int = 0

    def add(self, message: Message, sign: int = 1) -> None:
        """Count a queued message; with `sign` -1, count it no more (as it was before a change, or at its end)."""
        if message.held:
            self.held += sign
        elif message.due_ms:
            self.deferred += sign
        else:
            self.queued += sign
        self.recipients += sign * message.open_count
        self.size_bytes += sign * message.size_bytes
        self.own(message.owner, sign)

    def own(self, node: str, count: int) -> None:
        """`node` owns `count` messages more."""
        owned = self.owners.get(node, 0) + count
        if owned:
            self.owners[node] = owned
        else:
            self.owners.pop(node, None)

    def encode(self) -> bytes:
        return _encode(self)


def decode_counters(data: bytes | str) -> Counters:
    return _decode(data)


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Counters).decode
