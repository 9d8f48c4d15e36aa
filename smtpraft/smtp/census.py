"""How many connections all SMTP workers of a node have, in all and of one client: numbers in memory that they share.

A region for each worker, which alone writes to it; everybody adds them up. The regions are the same:

    connections u32 | 60 bytes of nothing | 3 rows of 4096 u32

A client counts in one place of each row, which a keyed hash chooses; the least of the three is how many it has, or a
few more if others fall into all three places, never less. So limits hold over all workers without asking anybody. Two
workers that admit in the same microsecond may exceed one by one.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import struct
from typing import Final, Self

ROWS: Final = 3
ROW_PLACES: Final = 4096
KEY_BYTES: Final = 16
_REGION_NUMBERS: Final = 16 + ROWS * ROW_PLACES  # the first number has a cache line of its own
_REGION_BYTES: Final = 4 * _REGION_NUMBERS
_HASH: Final = struct.Struct("<3H")


class Census:
    """The shared numbers, seen from the node or from worker `number`."""

    def __init__(self, fd: int, workers: int, key: bytes, number: int = 0) -> None:
        """`fd`: of `create`. `key`: the same for all; clients must not know it, or one could fill another's places."""
        self.fd = fd
        self.key = key
        self._workers = workers
        self._own = number * _REGION_NUMBERS
        self._numbers = memoryview(mmap.mmap(fd, workers * _REGION_BYTES)).cast("I")

    @classmethod
    def create(cls, workers: int) -> Self:
        """Return one with nobody in it. Its `fd` is to be inherited by the workers.

        Raises:
            OSError: the system has no memory for it.
        """
        fd = os.memfd_create("smtpraft-census")
        os.ftruncate(fd, workers * _REGION_BYTES)
        return cls(fd, workers, secrets.token_bytes(KEY_BYTES))

    def come(self, client: int) -> None:
        """Count a connection of this worker's."""
        self._count(client, 1)

    def go(self, client: int) -> None:
        """Count it no more."""
        self._count(client, -1)

    def total(self) -> int:
        """Return how many connections all workers have."""
        numbers = self._numbers
        return sum(numbers[worker * _REGION_NUMBERS] for worker in range(self._workers))

    def of(self, client: int) -> int:
        """Return how many of them are this client's."""
        numbers = self._numbers
        starts = range(0, self._workers * _REGION_NUMBERS, _REGION_NUMBERS)
        return min(sum(numbers[start + place] for start in starts) for place in self._places(client))

    def clear(self, number: int) -> None:
        """Forget the connections of worker `number`, which has ended."""
        start = number * _REGION_NUMBERS
        self._numbers[start : start + _REGION_NUMBERS] = memoryview(bytes(_REGION_BYTES)).cast("I")

    def _count(self, client: int, step: int) -> None:
        own, numbers = self._own, self._numbers
        for place in (0, *self._places(client)):
            numbers[own + place] += step

    def _places(self, client: int) -> list[int]:
        digest = hashlib.blake2b(client.to_bytes(16, "big", signed=True), digest_size=_HASH.size, key=self.key).digest()
        return [16 + row * ROW_PLACES + value % ROW_PLACES for row, value in enumerate(_HASH.unpack(digest))]
