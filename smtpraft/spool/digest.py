"""The rolling digest: what tells two nodes that applied the same log but got different states.

    digest_i = SHA-256(digest_{i-1} | index u64 | term u64 | crc u32 | kind u8 | effect), from 32 zero bytes

`crc` stands for the entry's bytes; `effect` for what applying it did: refusals, which outcomes counted, how many moved.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

from smtpraft.cluster.machine import Item

POINT_INTERVAL: Final = 64  # every node passes these indexes, whatever its batches
POINTS_MAX: Final = 1024

_PART: Final = struct.Struct(">QQIB")


class RollingDigest:
    """The digest at the last applied index, and at the last 1,024 multiples of 64."""

    def __init__(self, index: int, digest: bytes, point_index: int, point: bytes) -> None:
        self.current = digest, index
        """(digest, index) as of the last applied item; replaced as a whole, so that any thread may read it."""
        self._points: dict[int, bytes] = {point_index: point} if point_index else {}
        self._newest = point_index, point

    def extended(
        self, items: Sequence[Item], kinds: Sequence[int], effects: Sequence[bytes]
    ) -> tuple[bytes, list[tuple[int, bytes]]]:
        """Return the digest after `items` and the points on the way. Changes nothing: the batch may yet be undone."""
        digest = self.current[0]
        sha256, pack = hashlib.sha256, _PART.pack
        points = []
        for item, kind, effect in zip(items, kinds, effects, strict=True):
            index = item.index
            digest = sha256(digest + pack(index, item.term, item.crc, kind) + effect).digest()
            if index % POINT_INTERVAL == 0:
                points.append((index, digest))
        return digest, points

    def advance(self, index: int, digest: bytes, points: Sequence[tuple[int, bytes]]) -> None:
        """Take over what `extended` returned, once the batch is committed."""
        self.current = digest, index
        for point in points:
            self._points[point[0]] = point[1]
            self._newest = point
        while len(self._points) > POINTS_MAX:
            del self._points[next(iter(self._points))]

    def newest_point(self) -> tuple[int, bytes]:
        """Return (index, digest) of the newest point, (0, …) before there is one."""
        return self._newest

    def at(self, index: int) -> bytes | None:
        """Return the digest at `index`, if it is one of the points still known."""
        return self._points.get(index)
