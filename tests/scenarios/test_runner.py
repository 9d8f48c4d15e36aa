"""The runner reads the grammar, compares what counts and says what went wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import report
from .formats import quote
from .grammar import Argument, BrokenScript, parse, parse_directive
from .interaction import significant


def test_an_argument_has_no_value_one_or_several() -> None:
    assert parse_directive("add-nodes 3 voters=(1, 2,3) x= y=7 f=(a(b, c), d)") == (
        "add-nodes",
        [
            Argument("3"),
            Argument("voters", ("1", "2", "3"), has_values=True),
            Argument("x", ("",), has_values=True),
            Argument("y", ("7",), has_values=True),
            Argument("f", ("a(b, c)", "d"), has_values=True),
        ],
    )


def test_a_block_has_a_directive_an_input_and_an_expectation() -> None:
    blocks = parse("# comment\n\none \\\n  a=1\n # input\n\n----\nx\ny\n\ntwo\n----\n----\nx\n\ny\n----\n----\n")
    assert [(block.line, block.directive, block.input, block.expected) for block in blocks] == [
        (3, "one a=1", "# input", "x\ny"),
        (11, "two", "", "x\n\ny"),
    ]


@pytest.mark.parametrize("text", ["one\n", "one\n----\n----\nx\n", "one a=(\n----\nok\n"])
def test_a_broken_file_is_an_error(text: str) -> None:
    with pytest.raises(BrokenScript):
        parse(text)


def test_log_lines_and_a_lonely_ok_do_not_count() -> None:
    assert significant("ok") == []
    assert significant("INFO 1 became follower") == []
    assert significant("> 1 receiving messages\n  DEBUG x\n  INFO") == ["> 1 receiving messages"]
    assert significant("INFO dropping\nraft proposal dropped") == ["raft proposal dropped"]
    assert significant("INFORMATION\nok") == ["INFORMATION", "ok"]


def test_a_payload_is_quoted_as_go_does() -> None:
    assert (
        quote(b'a"\\\x00\xff\n\x7f' + "é\u200b\U000e0001".encode()) == '"a\\"\\\\\\x00\\xff\\n\\x7fé\\u200b\\U000e0001"'
    )


def test_the_report_names_line_command_and_texts(tmp_path: Path) -> None:
    """A failure does not end the file; an exception fails its command only; an empty expectation is no pass."""
    path = tmp_path / "interaction" / "bad.txt"
    path.parent.mkdir()
    path.write_text(
        "add-nodes 1 voters=(1) index=3\n----\nok\n\ncampaign 1\n----\nwrong\n\ncampaign 7\n----\nok\n\n"
        "raft-state\n----\n\nraft-state\n----\n1: StateCandidate (Voter) Term:1 Lead:0\n\n"
        "nonsense\n----\nunknown command\n"
    )
    result = report.run_file(path, "interaction")
    assert (result.commands, result.passed) == (6, 3)
    assert [(failure.line, failure.command) for failure in result.failures] == [
        (5, "campaign 1"),
        (9, "campaign 7"),
        (13, "raft-state"),
    ]
    assert f"{path}:5: campaign 1\n--- expected\nwrong\n--- actual\n" in result.text()


def test_only_returned_errors_are_shown_at_level_none(tmp_path: Path) -> None:
    path = tmp_path / "quiet.txt"
    path.write_text(
        "log-level none\n----\nok\n\nadd-nodes 1 voters=(1,2) index=3\n----\nok\n\nraft-state\n----\nok\n\n"
        "propose 1 x\n----\nraft proposal dropped\n\nstabilize log-level=debug\n----\nok\n\n"
        "log-level wrong\n----\nlog levels must be either of [DEBUG INFO WARN ERROR FATAL NONE]\n"
    )
    result = report.run_file(path, "interaction")
    assert result.ok, result.text()
