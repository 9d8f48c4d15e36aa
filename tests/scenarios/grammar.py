"""The text of a scenario file: blocks of a command, optional input lines, `----` and the expected output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class BrokenScript(ValueError):
    """The file does not follow the grammar, or a command makes no sense. Says the line where that is known."""


@dataclass(frozen=True)
class Argument:
    """`key`, `key=value` or `key=(value, value)`."""

    key: str
    values: tuple[str, ...] = ()
    has_values: bool = False

    @property
    def value(self) -> str:
        """The only value."""
        if len(self.values) != 1:
            raise BrokenScript(f"{self.key} takes one value, not {len(self.values)}")
        return self.values[0]


@dataclass
class Block:
    """One command with what it should print."""

    line: int
    directive: str
    command: str
    arguments: list[Argument]
    input: str
    expected: str

    @property
    def bare(self) -> list[str]:
        """The arguments without values, in order."""
        return [argument.key for argument in self.arguments if not argument.has_values]

    @property
    def named(self) -> list[Argument]:
        """The arguments with values, in order; a key may repeat."""
        return [argument for argument in self.arguments if argument.has_values]

    def option(self, key: str) -> str | None:
        """The value of the last argument of that key, None if there is none."""
        values = [argument.value for argument in self.named if argument.key == key]
        return values[-1] if values else None


@dataclass
class _Lines:
    lines: list[str]
    position: int = 0

    def more(self) -> bool:
        return self.position < len(self.lines)

    def next_are(self, *lines: str) -> bool:
        return self.lines[self.position : self.position + len(lines)] == list(lines)

    def take(self) -> str:
        line = self.lines[self.position]
        self.position += 1
        return line


def parse_file(path: Path) -> list[Block]:
    """Return the blocks of a file.

    Raises:
        BrokenScript: it is no scenario file.
    """
    return parse(path.read_text(encoding="utf-8"))


def parse(text: str) -> list[Block]:
    """Return the blocks of a text."""
    source = _Lines(text.split("\n"))
    if source.lines[-1] == "":
        source.lines.pop()
    blocks = []
    while source.more():
        line = source.position + 1
        directive = source.take().strip()
        if not directive or directive.startswith("#"):
            continue
        while directive.endswith("\\"):
            if not source.more():
                raise BrokenScript(f"line {line}: a directive that goes on, but the file does not")
            directive = directive[:-1].strip() + " " + source.take().strip()
        body = []
        while True:
            if not source.more():
                raise BrokenScript(f"line {line}: no ---- after {directive!r}")
            text_line = source.take()
            if text_line == "----":
                break
            body.append(text_line)
        command, arguments = parse_directive(directive)
        expected = _parse_expected(source, line)
        blocks.append(Block(line, directive, command, arguments, "\n".join(body).strip(), expected))
    return blocks


def _parse_expected(source: _Lines, line: int) -> str:
    expected: list[str] = []
    if source.next_are("----"):
        source.take()
        while not (source.next_are("----", "----", "") or source.lines[source.position :] == ["----", "----"]):
            if not source.more():
                raise BrokenScript(f"line {line}: the expectation does not end")
            expected.append(source.take())
        source.position += 3
    else:
        while source.more():
            text_line = source.take()
            if not text_line.strip():
                break
            expected.append(text_line)
    return "\n".join(expected)


def parse_directive(text: str) -> tuple[str, list[Argument]]:
    """Return the command and its arguments.

    Raises:
        BrokenScript: parentheses that do not match.
    """
    words = _split(text, " ")
    return words[0], [_parse_argument(word) for word in words[1:]]


def _parse_argument(word: str) -> Argument:
    key, equals, value = word.partition("=")
    if not equals:
        return Argument(word)
    if value.startswith("(") and value.endswith(")"):
        inner = value[1:-1].strip()
        return Argument(key, tuple(part.strip() for part in _split(inner, ",")) if inner else (), has_values=True)
    return Argument(key, (value,), has_values=True)


def _split(text: str, separator: str) -> list[str]:
    """Split outside parentheses; spaces separate in any number."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth < 0:
                raise BrokenScript(f"parentheses do not match: {text!r}")
        elif character == separator and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    if depth:
        raise BrokenScript(f"parentheses do not match: {text!r}")
    parts.append(text[start:])
    return [part for part in parts if part] if separator == " " else parts
