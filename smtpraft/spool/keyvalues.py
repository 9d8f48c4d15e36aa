"""The replicated key-value map: what a key and a value may be, and what the operations on them answer.

A value carries its *revision*: the index of the log entry that wrote it. It grows with every write of any key, so a
key that is back at an old value is not back at an old revision. A write or deletion may name the revision that it
expects (`ABSENT`: that there is none); it is then done at that revision only, on every node alike (compare-and-set).

The limits are part of the format: every node must refuse the same commands, so they are no settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from smtpraft.errors import SmtpRaftError

KEY_BYTES_MAX: Final = 512  # in UTF-8
VALUE_BYTES_MAX: Final = 64 * 1024  # an entry holds 1 MiB; a map of large values would make snapshots long
KEYS_MAX: Final = 100_000
MAP_BYTES_MAX: Final = 64 * 1024 * 1024  # of keys and values: configuration, users and limits, not a data store

ABSENT: Final = 0
"""The revision of a key that is not there."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it was at one moment."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A key in a listing: `size_bytes` is the length of its value."""

    key: str
    revision: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class KeyResult:
    """What a command did to a key.

    If `done`: `revision` is that of the new value, or of the one that was deleted (`ABSENT`: none was there). If not:
    the one that the key is at in place of the expected one.
    """

    done: bool
    revision: int


class KeyConflict(SmtpRaftError):
    """Nothing was changed: `key` is at `revision` (`ABSENT`: not there), not at the one that was expected."""

    def __init__(self, key: str, expected: int, revision: int) -> None:
        now = f"is at revision {revision}" if revision else "is not there"
        wanted = f"not at {expected}" if expected else "but was to be created"
        super().__init__(f"{key!r} {now}, {wanted}; read it again")
        self.key = key
        self.expected = expected
        self.revision = revision


class MapFull(SmtpRaftError):
    """Nothing was changed: the map holds as much as it may; delete something first."""

    def __init__(self) -> None:
        super().__init__(
            f"the key-value map is full: at most {KEYS_MAX} keys, {MAP_BYTES_MAX} bytes; delete something first"
        )


def key_problem(key: str) -> str | None:
    """Return what is wrong with `key`, None if nothing is. No table of characters is asked: nodes must agree."""
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        return "a key must be Unicode text"
    if not 1 <= size_bytes <= KEY_BYTES_MAX:
        return f"a key has 1 to {KEY_BYTES_MAX} bytes in UTF-8, not {size_bytes}"
    if any(character < " " or character == "\x7f" for character in key):
        return "a key holds no control characters"
    return None


def check_key(key: str) -> None:
    """Check a key before it is proposed.

    Raises:
        ValueError: it is none; the text says why.
    """
    problem = key_problem(key)
    if problem:
        raise ValueError(problem)


def check_value(value: bytes) -> None:
    """Check a value before it is proposed.

    Raises:
        ValueError: it is too long.
    """
    if len(value) > VALUE_BYTES_MAX:
        raise ValueError(f"a value of {len(value)} bytes: at most {VALUE_BYTES_MAX}")


def check_revision(expected: int | None) -> None:
    """Check an expected revision before it is proposed.

    Raises:
        ValueError: it cannot be one.
    """
    if expected is not None and not 0 <= expected < 2**63:
        raise ValueError(f"{expected} is no revision: 0 (absent) or the index of a log entry")
