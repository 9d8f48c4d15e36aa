"""`make docs`: the tables of docs/configuration.md, from `smtpraft/config.py`.

Names, defaults, ranges and the order come from the code. What a setting means is written by hand, in the last column of
the table, and kept. A setting that is gone goes from the table; a new one gets an empty meaning, which a test refuses.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from smtpraft.config import CHOICES, RANGES, Config

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
HEAD: Final = "| Setting | Default | Range | Meaning |\n|---|---|---|---|\n"
NO_BOUND: Final = 1 << 40  # so high is none
_ROW: Final = re.compile(r"^\| `(\w+)` \|.*\| (.*?) ?\|$")


def shown(value: object) -> str:
    """Return a default as a file would have it.

    Raises:
        TypeError: settings have no values of this kind.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return f"{value:g}" if value < 1e6 else str(int(value))
        case str():
            return json.dumps(value, ensure_ascii=False)
        case list():
            return f"[{', '.join(map(shown, value))}]"
    raise TypeError(f"{value!r}")


def limits(name: str) -> str:
    """Return what the value of `section.key` must be, as far as it stands in a table; empty: the meaning says it."""
    if name in CHOICES:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in CHOICES[name])
    if name in RANGES:
        low, high = RANGES[name]
        return f"{_number(low)} to {_number(high)}" if high < NO_BOUND else f"from {_number(low)}"
    return ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def rows(section: str, settings: msgspec.Struct, meanings: dict[str, str]) -> Iterator[str]:
    """Yield the rows of one section's table."""
    for key in settings.__struct_fields__:
        default = shown(getattr(settings, key))
        yield f"| `{key}` | `{default}` | {limits(f'{section}.{key}')} | {meanings.get(key, '')} |\n"


def rewritten(page: str) -> str:
    """Return the page with its tables made anew.

    Raises:
        ValueError: a section of the configuration has no heading, or no table under it.
    """
    config = Config()
    for section in config.__struct_fields__:
        begin = page.find(f"\n## [{section}]\n")
        table = re.compile(r"^\| Setting \|.*\n(?:\|.*\n)+", re.MULTILINE).search(page, max(begin, 0))
        following = page.find("\n## ", begin + 1)
        if begin < 0 or table is None or (following >= 0 and table.start() > following):
            raise ValueError(f"{PAGE.name} has no table under '## [{section}]'")
        found = (_ROW.match(line) for line in table[0].splitlines())
        meanings = {row[1]: row[2] for row in found if row}
        made = HEAD + "".join(rows(section, getattr(config, section), meanings))
        page = page[: table.start()] + made + page[table.end() :]
    return page


def main() -> int:
    """Write the page; say whether it was another."""
    before = PAGE.read_text("utf-8")
    after = rewritten(before)
    PAGE.write_text(after, "utf-8")
    print(f"docs: {PAGE.name} {'is as it was' if before == after else 'written'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
