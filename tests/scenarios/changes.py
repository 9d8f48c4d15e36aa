"""The operations of membership changes as files write them: `v1 l2 r3 u4`."""

from __future__ import annotations

from typing import Final

from smtpraft.consensus import ChangeSingle, ChangeType

from .formats import node_id

LETTERS: Final = {
    "v": ChangeType.ADD_NODE,
    "l": ChangeType.ADD_LEARNER,
    "r": ChangeType.REMOVE_NODE,
    "u": ChangeType.UPDATE_NODE,
}


class CommandError(Exception):
    """A command that returns an error: its text is printed, also when nothing else is."""


def parse_changes(text: str) -> tuple[ChangeSingle, ...]:
    """Return the operations of an input line.

    Raises:
        CommandError: a token is none.
    """
    if not text.strip():
        return ()
    changes = []
    for token in text.strip().split(" "):
        if len(token) < 2:
            raise CommandError(f"unknown token {token}")
        if token[0] not in LETTERS:
            raise CommandError(f"unknown input: {token}")
        changes.append(ChangeSingle(LETTERS[token[0]], node_id(parse_uint(token[1:]))))
    return tuple(changes)


def parse_uint(text: str) -> int:
    """Return a u64, or fail as the original does."""
    if not (text.isascii() and text.isdigit()):
        raise CommandError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) >= 2**64:
        raise CommandError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def parse_bool(text: str) -> bool:
    """Return a truth value, or fail as the original does."""
    if text in {"1", "t", "T", "TRUE", "true", "True"}:
        return True
    if text in {"0", "f", "F", "FALSE", "false", "False"}:
        return False
    raise CommandError(f'strconv.ParseBool: parsing "{text}": invalid syntax')
