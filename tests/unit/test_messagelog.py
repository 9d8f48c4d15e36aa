"""The log of messages, as people and as programs read it."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

import pytest

from smtpraft.cli.logs import (
    EVENT_BYTES,
    WAITING_BYTES_MAX,
    BackgroundHandler,
    JsonFormatter,
    Standing,
    TextFormatter,
)
from smtpraft.spool.messagelog import (
    BOUNCE,
    DEAD_LETTER,
    DELIVERY,
    EXPIRATION,
    RECEPTION,
    TRANSIENT_FAILURE,
    MessageEvent,
    Shape,
    go_straight_to,
    tell,
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


@pytest.mark.parametrize("form", [TextFormatter(), JsonFormatter()], ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape.kind))
def test_the_short_way_writes_the_same_line(shape: Shape, form: TextFormatter | JsonFormatter) -> None:
    form.standing = lambda: Standing("node-3", 5)
    event = event_of(shape)
    usual = record(event)
    line = form.event_line(usual.created, usual.name, event, form.standing(), threading.current_thread().name)
    assert line == form.format(usual)


def test_an_event_takes_the_short_way_in_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("smtpraft.smtp.handler")
    with (tmp_path / "log").open("wb") as file:
        handler = BackgroundHandler(file.fileno())
        handler.setFormatter(TextFormatter())
        monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
        monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
        logging.getLogger().manager._clear_cache()  # type: ignore[attr-defined]
        go_straight_to(handler.take_event)
        try:
            log.info("before")
            tell(log, event_of(RECEPTION))
            log.info("after")
        finally:
            go_straight_to(None)
            handler.close()
    before, event, after = (tmp_path / "log").read_text().splitlines()
    assert before.endswith("before")
    assert after.endswith("after")
    assert f" INFO smtp.handler Reception id={message_id(42)} " in event
    assert event.endswith(" node=- term=0 index=42")


def test_who_else_listens_gets_a_record(caplog: pytest.LogCaptureFixture) -> None:
    """The short way is that of a single handler: another one must not miss what it would be told."""
    caplog.set_level(logging.INFO)
    taken: list[MessageEvent] = []
    go_straight_to(lambda name, event: taken.append(event))
    try:
        tell(logging.getLogger("smtpraft.smtp.handler"), event_of(RECEPTION))
    finally:
        go_straight_to(None)
    assert not taken
    assert caplog.messages[0].startswith(f"Reception id={message_id(42)} ")


def test_events_that_nobody_reads_in_time_are_counted_not_kept() -> None:
    reading, writing = os.pipe()
    try:
        handler = BackgroundHandler(writing)
        handler.setFormatter(TextFormatter())
        for _ in range(5 * WAITING_BYTES_MAX // EVENT_BYTES):
            handler.take_event("smtpraft.smtp.handler", event_of(RECEPTION))
        assert handler._waiting_bytes <= WAITING_BYTES_MAX + EVENT_BYTES
        assert handler._dropped > WAITING_BYTES_MAX // EVENT_BYTES
    finally:
        os.close(reading)  # the thread that writes into it gives up
        handler.close()
        os.close(writing)
