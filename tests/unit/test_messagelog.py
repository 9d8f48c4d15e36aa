"""The log of messages, as people and as programs read it."""

from __future__ import annotations

import json
import logging

import pytest

from smtpraft.cli.logs import JsonFormatter, Standing, TextFormatter
from smtpraft.spool.messagelog import (
    BOUNCE,
    DEAD_LETTER,
    DELIVERY,
    EXPIRATION,
    RECEPTION,
    TRANSIENT_FAILURE,
    MessageEvent,
    Shape,
)
from smtpraft.spool.types import message_id

SHAPES = (RECEPTION, DELIVERY, TRANSIENT_FAILURE, BOUNCE, EXPIRATION, DEAD_LETTER)


def record(event: MessageEvent) -> logging.LogRecord:
    return logging.LogRecord("smtpraft.smtp.handler", logging.INFO, __file__, 0, event, (), None)


def event_of(shape: Shape) -> MessageEvent:
    values = tuple("o'clock\nBounce id=1" if key == "sender" else 7 for key in shape.keys)
    return MessageEvent(shape, (message_id(42), *values[1:]))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape.kind))
def test_a_line_names_the_message_the_node_the_term_and_the_index(shape: Shape) -> None:
    text = TextFormatter()
    text.standing = lambda: Standing("node-3", 5)
    line = text.format(record(event_of(shape)))
    assert f" {shape.kind} id={message_id(42)} " in line
    assert line.endswith(" node=node-3 term=5 index=42")
    assert "\n" not in line, "outside text cannot begin a line of its own"


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape.kind))
def test_as_json_every_fact_is_a_field(shape: Shape) -> None:
    form = JsonFormatter()
    form.standing = lambda: Standing("node-3", 5)
    facts = json.loads(form.format(record(event_of(shape))))
    assert facts.keys() >= {*shape.keys, "type", "node", "term", "index", "time"}
    assert (facts["type"], facts["index"], facts["node"], facts["term"]) == (shape.kind, 42, "node-3", 5)
    assert facts[shape.keys[-1]] == 7


def test_an_id_that_is_none_of_ours_has_no_index() -> None:
    assert MessageEvent(DEAD_LETTER, ("ID1", 1, 2)).index == 0
