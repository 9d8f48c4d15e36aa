"""The demo from start to verdict: start, send, kill the leader twice, wait for the mail, count, tidy up."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from smtpraft.cli.demo.book import Book, Kill, Outcome
from smtpraft.cli.demo.messages import demo_messages
from smtpraft.cli.demo.nodes import DemoCluster, DemoNode, NodeFailed
from smtpraft.cli.demo.sender import Sender, Supply
from smtpraft.cli.demo.sink import start_sink
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, print_rows
from smtpraft.cluster.ports import free_ports

SESSIONS: Final = 30
PHASES: Final = (
    (0.25, 0.5),
    (0.75, 1.0),
)  # kill at this share acknowledged, while this share may be sent at full speed
DOWN_S: Final = 1.0
NEXT_REPLY_S: Final = 15.0  # so long a failover may take before the demo gives up on it
QUIET_S: Final = 20.0  # no copy arrives for so long: what is missing now is missing
SENDING_S: Final = 85.0
SETTLE_S: Final = 10.0
PROGRESS_S: Final = 0.5
PROGRESS_LINE_S: Final = 5.0


@dataclass
class Verdict:
    """What the demo found; `good` decides the exit status."""

    nodes: int
    taken: int
    book: Book
    messages_per_s: float
    compiled: bool
    digests: dict[str, str]
    exits: dict[str, int]
    note: str

    @property
    def good(self) -> bool:
        book = self.book
        bad = (book.lost, book.damaged, book.strange, book.misrouted, book.refused_but_delivered)
        complete = book.acknowledged == self.taken and all(kill.seconds is not None for kill in book.kills)
        return not any(bad) and complete and not any(self.exits.values()) and len(set(self.digests.values())) <= 1

    def facts(self) -> dict[str, object]:
        """Return the table as a JSON object."""
        book = self.book
        waits = [kill.seconds for kill in book.kills if kill.seconds is not None]
        return {
            "nodes": self.nodes,
            "sent": self.taken,
            "acknowledged": book.acknowledged,
            "delivered": book.acknowledged - book.lost,
            "lost": book.lost,
            "repeated": book.repeated,
            "damaged": book.damaged + book.strange + book.misrouted,
            "refused": len(book.of(Outcome.REFUSED)),
            "broken_off": len(book.of(Outcome.BROKEN_OFF)),
            "refused_but_delivered": book.refused_but_delivered,
            "unknown": len(book.of(Outcome.UNKNOWN)),
            "kills": len(book.kills),
            "kill_to_next_250_ms": [round(wait * 1000) for wait in waits],
            "longest_pause_ms": round(book.longest_pause_s * 1000),
            "messages_per_s": round(self.messages_per_s),
            "digests_equal": len(set(self.digests.values())) <= 1,
            "exit_statuses": self.exits,
            "compiled": self.compiled,
            "ok": self.good,
        }


def demo(*, nodes: int, messages: int, seed: int, keep: bool, write_out: str) -> int:
    """Run the demo and print the verdict; 0 if every promise was kept, else 1."""
    directory = Path(tempfile.mkdtemp(prefix="smtpraft-demo-"))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            verdict = runner.run(_interruptible(directory, nodes, messages, seed))
        _print_verdict(verdict, write_out)
        return Exit.OK if verdict.good else Exit.FAILED
    except NodeFailed as error:
        raise CommandError(Exit.FAILED, *str(error).splitlines()) from None
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        if keep:
            print(f"kept: {directory}", file=sys.stderr)
        else:
            shutil.rmtree(directory, ignore_errors=True)


async def _interruptible(directory: Path, nodes: int, messages: int, seed: int) -> Verdict:
    """Run the demo; SIGTERM ends it as Ctrl-C does, tidying up."""
    task = asyncio.current_task()
    assert task is not None
    for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signal_number, task.cancel)
    return await _Demo(directory, nodes, messages, seed).run()


class _Demo:
    def __init__(self, directory: Path, nodes: int, messages: int, seed: int) -> None:
        self.directory = directory
        self.count = nodes
        self.messages = messages
        self.book = Book()
        self.supply = Supply(demo_messages(seed), messages)
        self.phase = "starting"
        self.note = ""
        self.sink_port = free_ports(1)[0]
        self.cluster = DemoCluster(directory, nodes, self.sink_port)
        self.last_arrival = time.monotonic()
        self.full_speed_s = 0.0
        self.full_speed_messages = 0

    async def run(self) -> Verdict:
        sink = await start_sink(self.sink_port, self._arrived)
        progress = asyncio.create_task(self._progress(), name="progress")
        try:
            await self.cluster.start()
            await self._send_and_kill()
            self.phase = "delivering"
            await self._wait_delivered()
            self.phase = "comparing"
            digests, compiled = await self._compare()
            self.phase = "stopping"
            exits = await self.cluster.stop()
        finally:
            progress.cancel()
            self.cluster.kill()
            sink.close()
            self._clear_line()
        rate = self.full_speed_messages / self.full_speed_s if self.full_speed_s else 0.0
        return Verdict(self.count, self.supply.taken, self.book, rate, compiled, digests, exits, self.note)

    def _arrived(self, recipients: list[str], content: bytes) -> None:
        self.last_arrival = time.monotonic()
        self.book.arrived(recipients, content)

    async def _send_and_kill(self) -> None:
        self.phase = "sending"
        ports = [node.smtp_port for node in self.cluster.nodes]
        self.supply.wants_more = True
        senders = [Sender(number, ports, self.supply, self.book) for number in range(SESSIONS)]
        try:
            async with asyncio.timeout(SENDING_S), asyncio.TaskGroup() as tasks:
                for number, sender in enumerate(senders):
                    tasks.create_task(sender.run(), name=f"sender-{number}")
                tasks.create_task(self._kill_leaders(), name="killer")
        except TimeoutError:
            self.note = f"gave up sending after {SENDING_S:.0f} s"
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _kill_leaders(self) -> None:
        """Kill a leader at the height of each phase. The supply waits for it: no kill comes when all is sent."""
        try:
            for number, (kill_at, release) in enumerate(PHASES, start=1):
                self.supply.released = round(release * self.messages)
                began, before = time.monotonic(), self.book.acknowledged
                enough = kill_at * self.messages
                await _wait_until(lambda: self.book.acknowledged >= enough)  # noqa: B023 - it is awaited here
                self.full_speed_s += time.monotonic() - began
                self.full_speed_messages += self.book.acknowledged - before
                node = await self.cluster.leader()
                self.phase = f"killed {node.id}, {'the leader' if number == 1 else 'the new leader'}"
                await self._kill_and_restart(node)
                self.phase = "sending"
        finally:
            self.supply.wants_more = False

    async def _kill_and_restart(self, node: DemoNode) -> None:
        kill = Kill(node.id, time.monotonic())
        node.kill()
        self.book.kills.append(kill)
        await asyncio.sleep(DOWN_S)
        await self.cluster.restart(node)
        deadline = time.monotonic() + NEXT_REPLY_S
        while kill.seconds is None:
            if time.monotonic() > deadline:
                raise NodeFailed(
                    f"no 250 within {NEXT_REPLY_S:.0f} s after the restart of {node.id}\n{node.last_words()}"
                )
            await asyncio.sleep(0.02)

    async def _wait_delivered(self) -> None:
        """Wait until all that was acknowledged has arrived, or nothing arrives any more."""
        self.last_arrival = time.monotonic()
        await _wait_until(lambda: not self.book.undelivered or time.monotonic() - self.last_arrival > QUIET_S)

    async def _compare(self) -> tuple[dict[str, str], bool]:
        """Wait until the queue is empty everywhere (an unknown message may still be on its way); return the digests."""
        deadline = time.monotonic() + SETTLE_S
        digests: dict[str, str] = {}
        compiled = True
        while time.monotonic() < deadline:
            statuses = await self.cluster.statuses()
            found = [status for _, status in statuses if status is not None]
            queues = [status["queue"] for status in found]
            empty = all(isinstance(queue, dict) and not any(queue.values()) for queue in queues)
            points = {str(status["digest_index"]) for status in found}
            compiled = all(bool(status.get("compiled")) for status in found)
            digests = {node.id: str(status["digest"]) for node, status in statuses if status is not None}
            if len(found) == self.count and empty and len(points) == 1:
                break
            await asyncio.sleep(0.1)
        else:
            self.note = self.note or "the nodes did not come to rest"
        return digests, compiled

    async def _progress(self) -> None:
        started = time.monotonic()
        next_line = 0.0
        while True:
            book = self.book
            now = time.monotonic() - started
            text = (
                f"{now:5.1f} s  sent {self.supply.taken}, acknowledged {book.acknowledged}, "
                f"to be delivered {book.undelivered}: {self.phase}"
            )
            if sys.stderr.isatty():
                print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            elif now >= next_line:
                next_line = now + PROGRESS_LINE_S
                print(text, file=sys.stderr, flush=True)
            await asyncio.sleep(PROGRESS_S)

    def _clear_line(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


async def _wait_until(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(0.02)


def _print_verdict(verdict: Verdict, style: str) -> None:
    facts = verdict.facts()
    if style == "json":
        print_json(facts)
    else:
        waits = facts["kill_to_next_250_ms"]
        assert isinstance(waits, list)
        shown = facts | {"kill_to_next_250_ms": ", ".join(f"{wait}" for wait in waits)}
        del shown["exit_statuses"], shown["ok"]
        for name in ("digests_equal", "compiled"):
            shown[name] = "yes" if shown[name] else "no"
        rows = [(name.replace("_", " ").replace(" ms", " (ms)"), value) for name, value in shown.items()]
        print_rows(("RESULT", "VALUE"), rows, "table")
    for reply, count in verdict.book.replies_refusing.most_common(5):
        print(f"smtpraft: refused {count} times: {reply}", file=sys.stderr)
    for node, status in verdict.exits.items():
        if status:
            print(f"smtpraft: {node} ended with exit status {status}", file=sys.stderr)
    if verdict.note:
        print(f"smtpraft: {verdict.note}", file=sys.stderr)
    if not verdict.good:
        print("smtpraft: a promise was broken", file=sys.stderr)
