"""Which messages a batch touched, as far as the delivery on this node must know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from smtpraft.spool.message import Message
from smtpraft.spool.types import Changes, MessageId, MessageInfo, id_of_number
from smtpraft.types import NodeId

CHANGES_MAX: Final = 1000
"""A batch that moves, or lets an operator touch, more of our messages than that says "read them again" instead."""


class Touched:
    """Message numbers by what happened to them, each in order and once."""

    __slots__ = (
        "accepted",
        "deferred",
        "deleted",
        "done",
        "flushed",
        "held",
        "moved_away",
        "moved_here",
        "released",
        "resync",
    )

    def __init__(self) -> None:
        self.accepted: dict[int, None] = {}
        self.moved_here: dict[int, None] = {}
        self.moved_away: dict[int, None] = {}
        self.deferred: dict[int, None] = {}
        self.held: dict[int, None] = {}
        self.released: dict[int, None] = {}
        self.flushed: dict[int, None] = {}
        self.deleted: dict[int, None] = {}
        self.done: dict[int, None] = {}
        self.resync = False

    def tell(self, told: dict[int, None], numbers: Sequence[int]) -> bool:
        """Put `numbers` into `told`; return False if they are too many to be told one by one."""
        if len(numbers) > CHANGES_MAX:
            self.resync = True
        else:
            told.update(dict.fromkeys(numbers))
        return not self.resync

    def changes(self, applied_index: int, node: NodeId, messages: Mapping[int, Message]) -> Changes | None:
        """Return all of it, with the messages as they are now; None if there is nothing to tell."""
        if not any(getattr(self, name) for name in self.__slots__):
            return None
        operator = len(self.held) + len(self.released) + len(self.flushed) + len(self.deleted)
        if self.resync or operator > CHANGES_MAX:
            return Changes(applied_index, resync=True)

        def infos(numbers: Iterable[int]) -> tuple[MessageInfo, ...]:
            """Return those that are still here and still ours."""
            return tuple([messages[n].info() for n in numbers if n in messages and messages[n].owner == node])

        return Changes(
            applied_index,
            accepted=infos(self.accepted),
            moved_here=infos(self.moved_here),
            # What came back is ours, under a new epoch; it was brought into memory for `moved_here`.
            moved_away=_ids(n for n in self.moved_away if n not in messages or messages[n].owner != node),
            deferred=infos(self.deferred),
            held=_ids(self.held),
            released=infos(self.released),
            flushed=infos(self.flushed),
            deleted=_ids(self.deleted),
            done=_ids(self.done),
        )


def _ids(numbers: Iterable[int]) -> tuple[MessageId, ...]:
    return tuple([id_of_number(number) for number in numbers])
