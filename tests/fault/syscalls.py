"""What the nodes asked of the kernel, and in which order: one `strace` over all of them.

One tracer sees the calls of all nodes, so its lines have one order, and it is the order of cause and effect: a call is
written down before the kernel carries it out, its result before the program sees it. A reply that stands below the end
of a sync left after that sync; had it left before, it would stand above.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import pytest

from smtpraft.cli.demo.nodes import DemoNode

TRACED: Final = "fdatasync,fsync,pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg"
STRING_BYTES: Final = 1 << 20  # a batch of the log is one string
ATTACH_S: Final = 10.0
SYNCS: Final = frozenset({"fdatasync", "fsync"})

_LINE: Final = re.compile(r"^(\d+) +[\d.]+ (.*)$")
_BEGIN: Final = re.compile(r"^(\w+)\((?:\d+<([^>]*)>)?(.*)$", re.DOTALL)
_END: Final = re.compile(r"\) += (-?\d+)")


@dataclass(slots=True)
class Call:
    """One system call. `begin` and `end` are places in the trace; `end` is -1 if it never returned."""

    name: str
    path: str
    text: str
    begin: int
    end: int = -1
    result: int = -1


class Strace:
    """`async with Strace(nodes, path)`: from here to there everything they write and sync is in `path`."""

    def __init__(self, nodes: Sequence[DemoNode], path: Path, *, inject: str = "", only: Iterable[Path] = ()) -> None:
        """`inject`: what happens to them, as in strace's `-e inject=`; `only`: to calls on these files."""
        self._nodes = nodes
        self._path = path
        self._options = ["-s", str(STRING_BYTES), "-e", f"trace={TRACED}"]
        if inject:
            self._options = ["-e", f"trace={inject.partition(':')[0]}", "-e", f"inject={inject}"]
        for file in only:
            self._options += ["-P", str(file)]

    async def __aenter__(self) -> Self:
        """Attach.

        Raises:
            pytest.skip.Exception: there is no strace, or it may not look.
        """
        program = shutil.which("strace")
        if program is None:
            pytest.skip("strace is not installed")
        command = [program, "-f", "-ttt", "-y", "-o", str(self._path), *self._options]
        for node in self._nodes:
            assert node.process is not None
            command += ["-p", str(node.process.pid)]
        self._messages = self._path.with_suffix(".messages")
        self._process = self._launch(command)
        try:
            async with asyncio.timeout(ATTACH_S):
                while self._messages.read_text().count(" attached") < len(self._nodes):
                    if self._process.poll() is not None:
                        pytest.skip(f"strace may not look: {self._messages.read_text().strip()[-200:]}")
                    await asyncio.sleep(0.02)
        except BaseException:
            self._process.kill()
            raise
        return self

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._messages.open("wb") as messages:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=messages, start_new_session=True)

    async def __aexit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            await asyncio.to_thread(self._process.wait, ATTACH_S)
        finally:
            self._process.kill()  # those it looked at go on by themselves
            self._process.wait()


def read_trace(lines: Iterable[str]) -> list[Call]:
    """Return the calls of a trace, in the order in which they began."""
    calls: list[Call] = []
    open_calls: dict[str, Call] = {}
    for place, line in enumerate(lines):
        if not (found := _LINE.match(line)):
            continue
        process, rest = found[1], found[2]
        if rest.startswith("<... "):
            if call := open_calls.pop(process, None):
                _finish(call, place, rest)
        elif begun := _BEGIN.match(rest):
            call = Call(begun[1], begun[2] or "", begun[3], place)
            calls.append(call)
            if rest.endswith("<unfinished ...>"):
                open_calls[process] = call
            else:
                _finish(call, place, rest)
    return calls


def _finish(call: Call, place: int, text: str) -> None:
    results = _END.findall(text)
    if results:
        call.end, call.result = place, int(results[-1])


@dataclass(frozen=True, slots=True)
class Promise:
    """A 250 and the nodes that had synced its message when it left."""

    queue_id: str
    begin: int
    synced: tuple[str, ...]


_QUEUED: Final = re.compile(r"250 2\.0\.0 Ok: queued as (\w+)")
_TRACE_ID: Final = re.compile(r"\(smtpraft\) with ESMTP id ([0-9a-f]+-[0-9a-f]+)")
_ACCEPTED: Final = re.compile(r" Reception id=(\w+) trace=(\S+) ")


def queue_ids(logs: Iterable[str]) -> dict[str, str]:
    """Return the queue id of each transaction id, from the nodes' logs."""
    return {found[2]: found[1] for log in logs for found in _ACCEPTED.finditer(log)}


def promises(calls: Sequence[Call], ids: dict[str, str]) -> Iterator[Promise]:
    """Yield each 250 that was sent, with the nodes on whose disk the message was by then.

    On a disk: its bytes are in a write to a segment of the log that has returned, and a sync of that segment has begun
    after that and has returned without an error.
    """
    synced: dict[str, dict[str, int]] = {}  # queue id -> node -> place where the first such sync ended
    waiting: dict[str, list[tuple[int, list[str]]]] = {}  # segment -> writes that no sync covers yet, by their ends
    for call in calls:
        if "/data/wal/" not in call.path or call.end < 0:
            continue
        if call.name in SYNCS:
            node = call.path.rsplit("/", 4)[1]
            rest = []
            for end, found in waiting.pop(call.path, []):
                if end < call.begin and call.result == 0:
                    for queue_id in found:
                        synced.setdefault(queue_id, {}).setdefault(node, call.end)
                else:
                    rest.append((end, found))
            waiting[call.path] = rest
        elif call.name.startswith("pwrite"):
            found = [ids[trace_id] for trace_id in _TRACE_ID.findall(call.text) if trace_id in ids]
            waiting.setdefault(call.path, []).append((call.end, found))
    for call in calls:
        if call.name in ("write", "writev", "sendto", "sendmsg") and "socket:" in call.path:
            for queue_id in _QUEUED.findall(call.text):
                by_node = synced.get(queue_id, {})
                yield Promise(queue_id, call.begin, tuple(node for node, end in by_node.items() if end < call.begin))
