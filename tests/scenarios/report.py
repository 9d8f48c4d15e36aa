"""Runs scenario files and reports per file and per command."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from smtpraft.fastlog import Log

from .confchange import ConfChangeRunner
from .grammar import Block, BrokenScript, parse_file
from .interaction import InteractionRunner, significant
from .quorum import QuorumRunner

KINDS: Final = ("interaction", "quorum", "confchange")
ENVIRONMENT: Final = "SMTPRAFT_SCENARIOS"
REPOSITORY: Final = Path(__file__).resolve().parents[2]
OWN: Final = Path(__file__).parent / "data"


class Runner(Protocol):
    """What runs the commands of one file."""

    def run(self, block: Block) -> str:
        """Return what a command prints."""


@dataclass(frozen=True)
class Failure:
    """A command that did not print what it should have."""

    line: int
    command: str
    expected: str
    actual: str


@dataclass
class FileResult:
    """How one file went."""

    path: Path
    commands: int = 0
    passed: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Did everything pass?"""
        return self.passed == self.commands and not self.failures

    def text(self) -> str:
        """Return the result for a reader: the counts and the first failure, for the rest often follows from it."""
        lines = [f"{self.path}: {self.passed} of {self.commands} commands"]
        for failure in self.failures[:1]:
            lines += [
                f"{self.path}:{failure.line}: {failure.command}",
                "--- expected",
                failure.expected,
                "--- actual",
                failure.actual,
                "---",
            ]
        return "\n".join(lines)


def directory() -> Path:
    """Return where the files of the reference implementation are; it need not exist."""
    return Path(os.environ.get(ENVIRONMENT) or REPOSITORY / ".." / "shared" / "scenarios").resolve()


def files(kind: str, root: Path) -> list[Path]:
    """Return the files of a kind, in order."""
    return sorted((root / kind).glob("*.txt"))


def run_file(path: Path, kind: str, *, seed: int = 0, new_log: Callable[[], Log] = Log) -> FileResult:
    """Run one file from the beginning."""
    result = FileResult(path)
    try:
        blocks = parse_file(path)
    except (BrokenScript, UnicodeDecodeError) as error:
        result.commands = 1
        result.failures.append(Failure(0, "", "a scenario file", str(error)))
        return result
    runner: Runner
    match kind:
        case "interaction":
            runner = InteractionRunner(seed, new_log)
        case "quorum":
            runner = QuorumRunner()
        case "confchange":
            runner = ConfChangeRunner()
        case _:
            raise ValueError(f"no such kind: {kind}")
    for block in blocks:
        result.commands += 1
        try:
            actual = runner.run(block)
        except Exception as error:
            actual = f"{type(error).__name__}: {error}"
        else:
            if _same(kind, block.expected, actual):
                result.passed += 1
                continue
        result.failures.append(Failure(block.line, block.directive, block.expected, actual))
    return result


def _same(kind: str, expected: str, actual: str) -> bool:
    if not expected:
        return False  # A script nobody filled in.
    if kind == "interaction":
        return significant(expected) == significant(actual)
    return expected == actual


def main(arguments: Sequence[str]) -> int:
    """Run all files below a directory; print a line per file and every failed command. 0 if all passed."""
    root = Path(arguments[0]).resolve() if arguments else directory()
    failed = commands = passed = 0
    for kind in KINDS:
        paths = files(kind, root)
        if not paths:
            print(f"{kind}: no files in {root / kind}")
        for path in paths:
            result = run_file(path, kind)
            commands += result.commands
            passed += result.passed
            failed += not result.ok
            print(f"{'ok    ' if result.ok else 'FAILED'} {kind}/{path.name}: {result.passed}/{result.commands}")
            for failure in result.failures:
                print(f"  line {failure.line}: {failure.command}")
                print("    expected:", *failure.expected.split("\n"), sep="\n      ")
                print("    actual:", *failure.actual.split("\n"), sep="\n      ")
    print(f"{passed} of {commands} commands; {failed} files failed")
    return 1 if failed else 0
