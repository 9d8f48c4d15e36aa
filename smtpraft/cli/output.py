"""How results look: aligned columns, a ruled table, or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence


def print_rows(headers: Sequence[str], rows: Sequence[Sequence[object]], style: str) -> None:
    """Print rows as `simple` aligned columns or a ruled `table`."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    if style == "table":
        rule = "+-" + "-+-".join("-" * width for width in widths) + "-+"
        ruled = ["| " + " | ".join(line) + " |" for line in lines]
        print("\n".join([rule, ruled[0], rule, *ruled[1:], rule] if rows else [rule, ruled[0], rule]))
    else:
        print("\n".join("  ".join(line).rstrip() for line in lines))


def print_json(value: object) -> None:
    """Print `value` as JSON, one line when piped, indented on a terminal."""
    print(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout and sys.stdout.isatty() else None))


def printable(text: str) -> str:
    """Return `text` with control characters escaped: it came from a stranger and goes to a terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
