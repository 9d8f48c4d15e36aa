"""The log of messages: one line for each thing that happened to one, in words that KumoMTA's users know.

    Reception         a majority has it, and the client was told so
    Delivery, TransientFailure, Bounce, Expiration, DeadLetter   see `delivery.records`

A line names the queue id and the log index in it, this node and its term; outside text is quoted; no line holds a body.
As JSON each of these is a field of its own. An event that nobody listens to is never made: ask the logger first.
There are two of them in the life of each message, so a process that writes its log itself takes them by a short way of
their own (`go_straight_to`); elsewhere they are records like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from smtpraft.spool.types import MessageId, index_of

_OUTSIDE: Final = frozenset({"sender", "recipient", "content", "command", "helo"})


class Shape:
    """A kind of event: its name and the names of its facts, the first of which is `id`."""

    def __init__(self, kind: str, keys: Sequence[str]) -> None:
        assert keys[0] == "id"
        self.kind = kind
        self.keys = tuple(keys)
        self.template = " ".join([kind, *(f"{key}=%{'r' if key in _OUTSIDE else 's'}" for key in keys)])


class MessageEvent:
    """One event, as a logger takes it: `log.info(MessageEvent(RECEPTION, (…)))`."""

    __slots__ = ("shape", "values")

    def __init__(self, shape: Shape, values: tuple[object, ...]) -> None:
        self.shape = shape
        self.values = values

    def __str__(self) -> str:
        return self.shape.template % self.values

    @property
    def index(self) -> int:
        """The log index of the entry that brought the message; 0 if its id is none of ours."""
        try:
            return index_of(MessageId(str(self.values[0])))
        except ValueError:
            return 0

    def facts(self) -> dict[str, object]:
        """Return everything by name; `type` is the kind."""
        plain = (value if isinstance(value, int | float | str) else str(value) for value in self.values)
        return {"type": self.shape.kind, **dict(zip(self.shape.keys, plain, strict=True))}


Sink = Callable[[str, "MessageEvent"], None]
"""Takes an event of level INFO, with the name of its logger. Quick, and raises nothing."""

_sink: Sink | None = None
_root: Final = logging.getLogger()


def go_straight_to(sink: Sink | None) -> None:
    """Give events to `sink`, the way of the only handler there is; None, or another handler: make records of them."""
    global _sink
    _sink = sink


def tell(log: logging.Logger, event: MessageEvent) -> None:
    """Log `event` at level INFO, for whoever was found to listen (`log.isEnabledFor`)."""
    if _sink is None or len(_root.handlers) != 1:
        log.info(event)
    else:
        _sink(log.name, event)


RECEPTION: Final = Shape("Reception", ("id", "trace", "client", "helo", "sender", "nrcpt", "size", "ms", "client_gone"))
_RESULT: Final = (
    "id",
    "sender",
    "recipient",
    "queue",
    "site",
    "size",
    "code",
    "enhanced_code",
    "content",
    "command",
    "peer_address",
    "num_attempts",
    "next_attempt_s",
)
DELIVERY: Final = Shape("Delivery", _RESULT)
TRANSIENT_FAILURE: Final = Shape("TransientFailure", _RESULT)
BOUNCE: Final = Shape("Bounce", _RESULT)
EXPIRATION: Final = Shape("Expiration", _RESULT)
DEAD_LETTER: Final = Shape("DeadLetter", ("id", "recipients", "size"))
