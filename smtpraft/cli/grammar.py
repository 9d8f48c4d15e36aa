"""The command line's grammar as data, for completions and the manual. Standard library only: a build reads it too."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """An option: `names` as typed, `value` (empty: it takes none), what the value may be if that is a list."""

    names: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class Word:
    """A positional argument. `many`: as many as you like; `optional`: none will do."""

    name: str
    choices: tuple[str, ...]
    optional: bool
    many: bool
    help: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command; `path` is what is typed after `smtpraft`. It has either actions or words."""

    path: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    words: tuple[Word, ...]
    actions: tuple[Command, ...]


def read(parser: argparse.ArgumentParser, path: tuple[str, ...] = (), text: str = "") -> Command:
    """Return the grammar of `parser`, all commands below it included."""
    options: list[Option] = []
    words: list[Word] = []
    actions: list[Command] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, below in action.choices.items():
                if name in helps:
                    actions.append(read(below, (*path, name), _text(below, helps[name])))
            continue
        if action.help == argparse.SUPPRESS:
            continue
        choices = tuple(map(str, action.choices)) if action.choices is not None else ()
        if len(choices) > 20:
            choices = ()
        if action.option_strings:
            takes = action.nargs != 0
            value = _metavar(action, choices) if takes else ""
            options.append(Option(tuple(action.option_strings), value, choices, _text(parser, action.help, action)))
        else:
            many = action.nargs in ("*", "+")
            optional = action.nargs in ("*", "?")
            words.append(Word(_metavar(action, ()), choices, optional, many, _text(parser, action.help, action)))
    return Command(path, text, tuple(options), tuple(words), tuple(actions))


def walk(command: Command) -> Iterator[Command]:
    """Yield `command` and all below it, in the order of the help."""
    yield command
    for below in command.actions:
        yield from walk(below)


def _metavar(action: argparse.Action, choices: Sequence[str]) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return "|".join(choices) if choices else action.dest.upper()


def _text(parser: argparse.ArgumentParser, text: str | None, action: argparse.Action | None = None) -> str:
    if not text:
        return ""
    facts = {"prog": parser.prog} | (vars(action) if action is not None else {})
    return text % facts
