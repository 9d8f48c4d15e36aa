"""How results and log lines look."""

from __future__ import annotations

import json
import logging
import os
import sys

import pytest

from smtpraft.cli import logs
from smtpraft.cli.logs import BackgroundHandler, JsonFormatter, TextFormatter
from smtpraft.cli.output import print_rows, printable


def test_simple_columns_are_aligned_and_a_table_is_ruled(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(("A", "LONG"), [("xyz", 1)], "simple")
    print_rows(("A", "LONG"), [("xyz", 1)], "table")
    assert capsys.readouterr().out.splitlines() == [
        "A    LONG",
        "xyz  1",
        "+-----+------+",
        "| A   | LONG |",
        "+-----+------+",
        "| xyz | 1    |",
        "+-----+------+",
    ]


def test_a_strangers_text_does_not_reach_the_terminal_raw() -> None:
    assert printable("550 \x1b[2Jno\r\n") == "550 \\x1b[2Jno\\r\\n"
    assert printable("Grüße 用户") == "Grüße 用户"


def record(message: str, error: bool = False) -> logging.LogRecord:
    info = None
    if error:
        try:
            raise ValueError("x")
        except ValueError:
            info = sys.exc_info()
    made = logging.LogRecord("smtpraft.cluster.node", logging.INFO, __file__, 1, message, None, info)
    made.created, made.msecs = 1795411159.123, 123.0
    return made


def test_text_is_one_event_a_line() -> None:
    assert TextFormatter().format(record("role=leader")) == "2026-11-23T05:19:19.123Z INFO cluster.node role=leader"
    lines = TextFormatter().format(record("bad\nx", error=True)).splitlines()
    assert all(line.startswith("    ") for line in lines[1:])


def test_json_is_one_object_a_line() -> None:
    line = JsonFormatter().format(record('with "quotes"\n', error=True))
    assert "\n" not in line
    facts = json.loads(line)
    assert facts["message"] == 'with "quotes"\n'
    assert facts["area"] == "cluster.node"
    assert "ValueError: x" in facts["traceback"]


def test_lines_leave_in_order_and_all_of_them_before_the_end() -> None:
    reader, writer = os.pipe()
    handler = BackgroundHandler(writer)
    for number in range(500):
        handler.emit(record(f"line {number}"))
    handler.close()
    os.close(writer)
    with open(reader, "rb") as lines:
        assert lines.read().decode() == "".join(f"line {number}\n" for number in range(500))


def test_a_reader_who_stalls_holds_nobody_up_and_is_told_of_his_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "WAITING_BYTES_MAX", 300_000)
    reader, writer = os.pipe()
    handler = BackgroundHandler(writer)
    for _ in range(3000):
        handler.emit(record("x" * 999))  # three megabytes; nobody reads, and a pipe holds 64 KiB
    text = bytearray()
    while b"were dropped" not in text:
        text += os.read(reader, 65536)
    handler.close()
    os.close(writer)
    os.close(reader)
    assert len(text) < 1_500_000
