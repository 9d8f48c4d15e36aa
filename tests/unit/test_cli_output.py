"""How results and log lines look."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from smtpraft.cli.logs import JsonFormatter, TextFormatter
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
