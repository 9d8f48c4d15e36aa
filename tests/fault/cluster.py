"""Three real nodes under a test: killed, stopped, restarted, asked; and what their logs must never say.

async with Stage(directory) as stage:
    async with stage.load() as load:
        ...
        await load.finish()
    await stage.settle()
(leaving it ends every process that it started, and looks through the logs)
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from smtpraft.cli.client import Client, Json
from smtpraft.cli.demo.nodes import DemoCluster, DemoNode, NodeFailed

from .journal import Journal, Outage
from .load import CLIENTS_PER_NODE, PACE_S, Load
from .ports import PortBlock
from .state import at_one_index, difference, read_state
from .witness import Witness

LEASE_S: Final = 2.0  # the default of cluster.lease_ms
WAIT_S: Final = 30.0  # for what takes a second or two on an idle machine
LAST_LINES: Final = 40

_LEADS: Final = re.compile(r" role=leader was=\S+ term=(\d+) ")
_ROUTINE: Final = re.compile(r" smtp\.handler Reception | delivery\.records Delivery ")
_BAD: Final = re.compile(r" (ERROR|CRITICAL) |Traceback|never retrieved|never awaited|was destroyed")


class Cluster(DemoCluster):
    """The demo's cluster, with faults. Every digest that is seen is compared with those of other nodes."""

    def __init__(self, directory: Path, ports: Sequence[int], count: int, settings: Mapping[str, str]) -> None:
        """`settings` by the names of environment variables without `SMTPRAFT_`: `DELIVERY__RETRY_S`."""
        super().__init__(directory, count, ports[0], ports[1 : 1 + 3 * count])
        self.spare_ports = ports[1 + 3 * count :]
        self._environ |= {f"SMTPRAFT_{name}": value for name, value in settings.items()}
        self.digests: defaultdict[int, dict[str, str]] = defaultdict(dict)

    @property
    def running(self) -> list[DemoNode]:
        return [node for node in self.nodes if node.running]

    def others(self, *nodes: DemoNode) -> list[DemoNode]:
        """Return all nodes but these."""
        return [node for node in self.nodes if node not in nodes]

    def launch(self, node: DemoNode, **settings: str) -> None:
        """Start a node, with settings of its own, and do not wait for it."""
        node.start(self._environ | {f"SMTPRAFT_{name}": value for name, value in settings.items()})

    async def fails_to_start(self, node: DemoNode, **settings: str) -> tuple[int, str]:
        """Start a node that must end by itself; return its exit status and what it logged."""
        log = node.directory / "log"
        before = log.stat().st_size if log.exists() else 0
        self.launch(node, **settings)
        assert node.process is not None
        code = await asyncio.to_thread(node.process.wait, WAIT_S)
        return code, log.read_bytes()[before:].decode()

    async def statuses(self, nodes: Sequence[DemoNode] | None = None) -> list[tuple[DemoNode, Json | None]]:
        """Return these nodes (None: all) with their statuses; fail if two differ at the same index."""
        asked = self.nodes if nodes is None else nodes
        answers = await asyncio.gather(*(asyncio.to_thread(node.status) for node in asked))
        for node, status in zip(asked, answers, strict=True):
            if status is not None:
                index = status["digest_index"]
                assert isinstance(index, int)
                self.digests[index][node.id] = str(status["digest"])
                assert len(set(self.digests[index].values())) == 1, f"digests at {index}: {self.digests[index]}"
        return list(zip(asked, answers, strict=True))

    async def leader(self, among: Sequence[DemoNode] | None = None) -> DemoNode:
        """Return the node that leads in the highest term, of those that run."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found: list[tuple[int, DemoNode]] = []
                for node, status in await self.statuses(self.running if among is None else among):
                    if status is not None and status["role"] == "leader":
                        term = status["term"]
                        assert isinstance(term, int)
                        found.append((term, node))
                if found:
                    return max(found, key=lambda pair: pair[0])[1]
                await asyncio.sleep(0.02)

    async def ask(self, node: DemoNode, path: str) -> bytes:
        """GET from a node's admin address."""
        answer = await asyncio.to_thread(Client([], timeout_s=5.0).ask, f"127.0.0.1:{node.admin_port}", "GET", path)
        assert answer.status == 200, f"{node.id} {path}: {answer.status} {answer.body[:200]!r}"
        return answer.body

    async def queue(self, node: DemoNode) -> list[Json]:
        """Return the messages that `node` knows of, without asking the others."""
        messages: list[Json] = []
        after = ""
        while True:
            page = json.loads(await self.ask(node, f"/v1/queue?linearizable=0&limit=1000{after}"))
            messages += page["messages"]
            if not page["next"]:
                return messages
            after = f"&after={page['next']}"

    async def owners(self, node: DemoNode) -> Counter[str]:
        """Return how many messages each node owns, as `node` knows it."""
        return Counter(str(message["owner"]) for message in await self.queue(node))

    async def metric(self, node: DemoNode, name: str) -> float:
        """Return the sum of a metric's samples of exactly this name."""
        text = (await self.ask(node, "/metrics")).decode()
        lines = [line for line in text.splitlines() if re.match(rf"{re.escape(name)}[{{ ]", line)]
        assert lines, f"{node.id} has no metric {name}"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def check_logs(self, expected: Iterable[str] = ()) -> None:
        """Fail if a log speaks of a bug, or if two nodes led in one term (Raft §5.2)."""
        leaders: defaultdict[int, set[str]] = defaultdict(set)
        for node in self.nodes:
            for line in _lines(node):
                if found := _LEADS.search(line):
                    leaders[int(found[1])].add(node.id)
                if _BAD.search(line) and not any(text in line for text in expected):
                    raise AssertionError(f"{node.id} says: {line}\n{node.last_words(LAST_LINES)}")
        twice = {term: nodes for term, nodes in leaders.items() if len(nodes) > 1}
        assert not twice, f"two leaders in one term: {twice}"

    def last_words(self) -> str:
        """Return the ends of all logs, without the lines that every message brings."""
        ends = []
        for node in self.nodes:
            lines = [line.rstrip() for line in _lines(node) if not _ROUTINE.search(line)]
            ends.append("\n".join(f"  {node.id}: {line}" for line in lines[-LAST_LINES:]))
        return "\n\n".join(ends)


def _lines(node: DemoNode) -> Iterator[str]:
    path = node.directory / "log"
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as log:
            yield from log


class Stage:
    """A cluster, the sink it delivers to, and the journal."""

    def __init__(
        self,
        directory: Path,
        *,
        count: int = 3,
        settings: Mapping[str, str] | None = None,
        expected: Iterable[str] = (),
        start: bool = True,
    ) -> None:
        """`expected`: what a log line of level ERROR may hold in this test. Without `start` the test starts nodes."""
        self.journal = Journal()
        self._block = PortBlock()
        ports = self._block.ports
        self.witness = Witness(ports[0], self.journal.arrived_from)
        self.cluster = Cluster(directory, ports, count, settings or {})
        self._expected = tuple(expected)
        self._start = start

    async def __aenter__(self) -> Self:
        try:
            await self.witness.open()
            if self._start:
                await self.cluster.start()
        except BaseException as error:
            await self._end(error)
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self._end(error)
        if error is None:
            self.cluster.check_logs(self._expected)

    async def _end(self, error: BaseException | None) -> None:
        self.cluster.kill()
        await self.witness.close()
        self._block.close()
        if error is not None:
            error.add_note(self.cluster.last_words())

    def load(
        self,
        nodes: Sequence[DemoNode] | None = None,
        *,
        clients_per_node: int = CLIENTS_PER_NODE,
        pace_s: float = PACE_S,
        messages: Iterator[bytes] | None = None,
    ) -> Load:
        """Return steady mail for these nodes (None: all)."""
        chosen = self.cluster.nodes if nodes is None else nodes
        return Load(chosen, self.journal, clients_per_node=clients_per_node, pace_s=pace_s, messages=messages)

    # ---- faults ----

    def kill(self, *nodes: DemoNode) -> list[Outage]:
        """SIGKILL these nodes at once."""
        outages = [self.journal.outage(node.id) for node in nodes]
        for node in nodes:
            assert node.process is not None
            node.process.kill()
        for node in nodes:
            node.kill()
        return outages

    async def restart(self, outage: Outage) -> None:
        """Start a node again and wait until it can commit."""
        await self.cluster.restart(self.node(outage.node))
        outage.until = time.monotonic()

    def pause(self, node: DemoNode) -> Outage:
        """SIGSTOP: everything stands still, its sockets stay open, its clocks run on."""
        outage = self.journal.outage(node.id)
        self._signal(node, signal.SIGSTOP)
        return outage

    def resume(self, node: DemoNode) -> None:
        """SIGCONT."""
        self._signal(node, signal.SIGCONT)

    def terminate(self, *nodes: DemoNode) -> list[Outage]:
        """SIGTERM these nodes at once."""
        outages = [self.journal.outage(node.id) for node in nodes]
        for node in nodes:
            self._signal(node, signal.SIGTERM)
        return outages

    def node(self, node_id: str) -> DemoNode:
        return next(node for node in self.cluster.nodes if node.id == node_id)

    @staticmethod
    def _signal(node: DemoNode, number: signal.Signals) -> None:
        assert node.process is not None
        node.process.send_signal(number)

    # ---- waiting ----

    async def wait_delivered(self, timeout_s: float = WAIT_S) -> None:
        """Return when all that was acknowledged has arrived; fail when nothing has arrived for `timeout_s`."""
        journal = self.journal
        journal.last_arrival = time.monotonic()
        while journal.undelivered:
            if time.monotonic() - journal.last_arrival > timeout_s:
                journal.check_mail()
            await asyncio.sleep(0.01)

    async def settle(self, nodes: Sequence[DemoNode] | None = None, timeout_s: float = WAIT_S) -> None:
        """Return when the queue is empty on all of these nodes and they have the same state at the same index.

        Messages that nobody knew the outcome of are delivered by then or never will be.
        """
        await self.wait_delivered()
        deadline = time.monotonic() + timeout_s
        while True:
            statuses = await self.cluster.statuses(nodes)
            found = [status for _, status in statuses if status is not None]
            empty = all(not any(_counts(status).values()) for status in found)
            points = {(status["digest_index"], status["digest"]) for status in found}
            if len(found) == len(statuses) and empty and len(points) == 1:
                asked = [node for node, _ in statuses]
                states = [await asyncio.to_thread(read_state, node) for node in asked]
                if at_one_index(states):
                    assert not (differs := difference(asked, states)), f"the same log, another state: {differs}"
                    return
            if time.monotonic() > deadline:
                facts = {node.id: status and _summary(status) for node, status in statuses}
                raise NodeFailed(f"the nodes did not come to rest: {facts}\n{self.cluster.last_words()}")
            await asyncio.sleep(0.1)

    def check_mail(self) -> None:
        """Fail unless all that was promised arrived unchanged, once, and nothing that was refused."""
        self.journal.check_mail()
        self.journal.check_repeats()


def _counts(status: Json) -> dict[str, object]:
    queue = status["queue"]
    assert isinstance(queue, dict)
    return dict(queue)


def _summary(status: Json) -> dict[str, object]:
    names = ("role", "term", "commit_index", "applied_index", "digest_index", "digest", "queue", "lease", "nodes_up")
    return {name: status[name] for name in names}


async def wait_for(condition: Callable[[], bool | Awaitable[bool]], what: str, timeout_s: float = WAIT_S) -> float:
    """Return the seconds it took until `condition` said yes."""
    started = time.monotonic()
    while True:
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return time.monotonic() - started
        assert time.monotonic() - started < timeout_s, f"not within {timeout_s:.0f} s: {what}"
        await asyncio.sleep(0.02)
