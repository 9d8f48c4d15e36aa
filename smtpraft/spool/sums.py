"""What each row of the queue's database carries to show that it is what was written: a checksum in column `sum`.

SQLite believes what it reads. A bit that the disk flips in an address, a reply or a body would be taken for mail. So
the rows that decide what is delivered to whom have a CRC-32C over their columns (as MessagePack), checked whenever one
is read, and by the scrub. NULL is a row that a release without sums wrote: it gets one when it is written next.

    meta        over all columns before `syncs`
    messages    over the columns but `owner` and `epoch`, the number of recipients, and where the parts of a long body
                are; plus the CRC of the owner, plus the epoch: so one statement can give all messages of a node
                to others
    recipients, keys    over the columns before it
    bodies      over the content, begun with the number of the part
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from smtpraft.fastlog import crc32c

_encode: Final = msgspec.msgpack.Encoder().encode


def row_sum(columns: Sequence[object]) -> int:
    """Return the sum of a row of `meta`, `recipients` or `keys`."""
    return crc32c(_encode(columns))


def message_sum(columns: tuple[int, str, int, *tuple[object, ...]], recipients: int, chunks: Sequence[object]) -> int:
    """Return the sum of a row of `messages`, without that: `id, owner, epoch, …`."""
    return crc32c(_encode((columns[0], recipients, chunks, columns[3:]))) + owner_sum(columns[1]) + columns[2]


def owner_sum(owner: str) -> int:
    """Return what the owner adds to the sum of a message."""
    return crc32c(owner.encode())


def body_sum(part: int, content: bytes | memoryview) -> int:
    """Return the sum of a row of `bodies`."""
    return crc32c(content, part & 0xFFFFFFFF)
