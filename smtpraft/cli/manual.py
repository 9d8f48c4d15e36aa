"""`smtpraft manual`: the page of man(1), made from the grammar of the command line."""

from __future__ import annotations

import argparse
from typing import Final

from smtpraft._version import __version__
from smtpraft.cli.grammar import Command, Option, Word, read, walk

_STATUSES: Final = (
    ("0", "it is done"),
    ("1", "it is not"),
    ("64", "the command line is wrong"),
    ("65", "the input is wrong"),
    ("67", "no such message, key or node"),
    ("69", "no node answers, or a port or a directory is taken"),
    ("70", "the node had to stop; its log says why"),
    ("75", "not now: no majority, or no answer in time. Try again"),
    ("78", "a setting, a secret or a data directory: what an operator must change"),
)
_FILES: Final = (
    ("SMTPRAFT_CONFIG", "the configuration, if --config is not given"),
    ("SMTPRAFT_SECTION__KEY", "one setting, instead of the one in the file"),
    ("SMTPRAFT_ENDPOINTS", "addresses of the admin API, separated by commas"),
    ("SMTPRAFT_TOKEN_FILE", "the file with its bearer token"),
    ("SMTPRAFT_PURE=1", "run without the compiled half: correct, but slow"),
)


def page(parser: argparse.ArgumentParser) -> str:
    """Return the whole page, for troff."""
    root = read(parser)
    lines = [
        f'.TH SMTPRAFT 1 "" "smtpraft {__version__}" "User Commands"',
        ".SH NAME",
        r"smtpraft \- a highly available SMTP server",
        ".SH SYNOPSIS",
        r".B smtpraft",
        r".I COMMAND",
        r"[\fIoptions\fR]",
        ".SH DESCRIPTION",
        "Several nodes take mail together; a message is answered 250 only when it is synced to disk",
        "on a majority of them.",
        r".B smtpraft serve",
        "runs a node; the other commands look at nodes and change them, through their admin API.",
        ".SH COMMANDS",
    ]
    for command in walk(root):
        if command.path and not command.actions:
            lines += _command(command)
    lines += [".SH EXIT STATUS", *(line for number, text in _STATUSES for line in (".TP", _bold(number), _plain(text)))]
    lines += [".SH ENVIRONMENT", *(line for name, text in _FILES for line in (".TP", _bold(name), _plain(text)))]
    return "\n".join(lines) + "\n"


def _command(command: Command) -> list[str]:
    synopsis = [_bold(f"smtpraft {' '.join(command.path)}")]
    if any(option.names[0] not in ("-h", "--help") for option in command.options):
        synopsis.append("[options]")
    synopsis += [_synopsis_word(word) for word in command.words]
    lines = [".SS " + " ".join(command.path), " ".join(synopsis), ".br", _plain(command.help)]
    for word in command.words:
        if word.help:
            lines += [".TP", f"\\fI{_escape(word.name)}\\fR", _plain(word.help)]
    for option in command.options:
        if option.names[0] not in ("-h", "--help"):
            lines += [".TP", _option(option), _plain(option.help)]
    return lines


def _synopsis_word(word: Word) -> str:
    text = f"\\fI{_escape(word.name)}\\fR" + ("..." if word.many else "")
    return f"[{text}]" if word.optional else text


def _option(option: Option) -> str:
    names = ", ".join(_bold(name) for name in option.names)
    return f"{names} \\fI{_escape(option.value)}\\fR" if option.value else names


def _bold(text: str) -> str:
    return f"\\fB{_escape(text)}\\fR"


def _escape(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")


def _plain(text: str) -> str:
    """A line of text: no leading dot or quote may make a request of it."""
    text = _escape(text)
    return "\\&" + text if text[:1] in (".", "'") else text
