"""Whole nodes in one process: real sockets, real disks, a small state machine that is no mail queue."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from types import ModuleType

import pytest

from smtpraft.cluster import (
    Node,
    NodeOptions,
    NotReplicated,
    Peer,
    Stopped,
    derive_cluster_id,
    free_port,
)
from smtpraft.cluster.applier import Batch, Result
from smtpraft.cluster.machine import Item, NoRoom
from smtpraft.cluster.steward import Steward
from smtpraft.consensus.messages import EntryRange, Message, MessageType
from smtpraft.errors import OutcomeUnknown
from smtpraft.fastlog import Log
from smtpraft.storage.errors import WalCorrupt
from smtpraft.types import NodeId

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "kv.py"


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kv_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kv = load_example()


class Cluster:
    """Nodes of one cluster in this process, each with its own directory."""

    def __init__(self, folder: Path, size: int, **options: object) -> None:
        self.folder = folder
        self.peers = [Peer(NodeId(f"n{number}"), "127.0.0.1", free_port()) for number in range(1, size + 1)]
        self.options = options
        self.nodes: dict[NodeId, Node] = {}
        self.machines: dict[NodeId, object] = {}

    async def start(self, node_id: NodeId) -> Node:
        peer = next(peer for peer in self.peers if peer.id == node_id)
        machine = kv.KeyValue(str(self.folder / f"{node_id}.db"))
        options = NodeOptions(
            node_id,
            str(self.folder / node_id),
            derive_cluster_id("test", [peer.id for peer in self.peers]),
            (peer.host, peer.port),
            tuple(other for other in self.peers if other is not peer),
            segment_bytes=1024 * 1024,
            **self.options,  # type: ignore[arg-type]
        )
        node = Node(options, machine)
        await node.start()
        self.nodes[node_id] = node
        self.machines[node_id] = machine
        return node

    async def start_all(self) -> None:
        await asyncio.gather(*(self.start(peer.id) for peer in self.peers))

    async def stop(self, node_id: NodeId) -> None:
        await self.nodes.pop(node_id).stop()

    async def stop_all(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))
        self.nodes.clear()

    async def leader(self) -> Node:
        found: list[Node] = []

        def one_leads() -> bool:
            found[:] = [node for node in self.nodes.values() if node.is_leader and node.has_quorum()]
            return bool(found)

        await wait_until(one_leads)
        return found[0]


async def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 -- what is waited for lies in another task's reach
            await asyncio.sleep(0.01)


@pytest.fixture(params=[1, 3])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Cluster(tmp_path, request.param)
    await made.start_all()
    yield made
    await made.stop_all()


async def test_a_command_is_applied_by_every_node(cluster: Cluster) -> None:
    nodes = list(cluster.nodes.values())
    assert await nodes[0].replicate(b"colour=blue") is None
    assert await nodes[-1].replicate(b"colour=green") == "blue"
    for node in nodes:
        await node.read_index()
        assert cluster.machines[node.id].get("colour") == "green"  # type: ignore[attr-defined]


async def test_many_at_once_share_syncs(cluster: Cluster) -> None:
    node = await cluster.leader()
    await node.replicate(b"warm=up")
    before = node.writer_stats.syncs
    await asyncio.gather(*(node.replicate(b"k%d=v%d" % (number, number)) for number in range(500)))
    assert node.writer_stats.syncs - before < 100
    assert cluster.machines[node.id].get("k499") == "v499"  # type: ignore[attr-defined]


async def test_everything_is_there_after_a_restart(cluster: Cluster) -> None:
    node = next(iter(cluster.nodes.values()))
    for number in range(50):
        await node.replicate(b"k=%d" % number)
    await cluster.stop_all()
    await cluster.start_all()
    node = next(iter(cluster.nodes.values()))
    assert await node.replicate(b"k=last") == "49"


async def test_the_log_is_cut_and_the_cluster_goes_on(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 3, max_log_entries=200, snapshot_threshold=100)
    await cluster.start_all()
    node = next(iter(cluster.nodes.values()))
    for _ in range(12):
        await asyncio.gather(*(node.replicate(b"k=%s" % (b"x" * 2000)) for _ in range(100)))
    await wait_until(lambda: all(node.status().first_index > 500 for node in cluster.nodes.values()))
    await cluster.stop_all()
    await cluster.start_all()
    assert await next(iter(cluster.nodes.values())).replicate(b"k=y") == "x" * 2000
    await cluster.stop_all()


async def test_the_others_go_on_when_the_leader_leaves(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 3)
    await cluster.start_all()
    leader = await cluster.leader()
    other = next(node for node in cluster.nodes.values() if node is not leader)
    waiting = [asyncio.ensure_future(other.replicate(b"k%d=v" % number)) for number in range(50)]
    await asyncio.sleep(0)
    await cluster.stop(leader.id)
    assert await asyncio.gather(*waiting) == [None] * 50
    assert await other.replicate(b"k0=w") == "v"
    await cluster.start(leader.id)
    assert await cluster.nodes[leader.id].replicate(b"k0=x") == "w"
    await cluster.stop_all()


async def test_a_minority_says_no_and_does_not_hang(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 3)
    await cluster.start_all()
    first, second, third = list(cluster.nodes)
    await cluster.nodes[first].replicate(b"k=v")
    await cluster.stop(second)
    await cluster.stop(third)
    alone = cluster.nodes[first]
    await wait_until(lambda: not alone.has_quorum() and not alone.is_leader)
    with pytest.raises(NotReplicated):
        await alone.replicate(b"k=w", deadline_s=0.5)
    with pytest.raises(NotReplicated):
        await alone.read_index(deadline_s=0.5)
    await wait_until(lambda: not alone.lease_valid())
    await cluster.start(second)
    assert await alone.replicate(b"k=x") == "v", "what was refused was never applied"
    await cluster.stop_all()


async def test_every_node_holds_a_lease_and_only_while_it_is_up(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 3, lease_ms=600)
    await cluster.start_all()
    await wait_until(lambda: all(node.lease_valid() for node in cluster.nodes.values()))
    leader = await cluster.leader()
    gone = next(node for node in cluster.nodes.values() if node is not leader)
    await cluster.stop(gone.id)
    assert not gone.lease_valid()
    await wait_until(lambda: gone.id not in leader.status().nodes_up)
    await cluster.start(gone.id)
    await wait_until(lambda: cluster.nodes[gone.id].lease_valid())
    await cluster.stop_all()


async def test_a_stopped_node_refuses(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1)
    await cluster.start_all()
    node = next(iter(cluster.nodes.values()))
    await node.stop()
    with pytest.raises(Stopped):
        await node.replicate(b"k=v")


async def test_a_command_that_no_entry_holds_is_refused_by_size(cluster: Cluster) -> None:
    node = next(iter(cluster.nodes.values()))
    with pytest.raises(ValueError, match="at most"):
        await node.replicate(b"x" * (2 * 1024 * 1024))


def test_the_example_in_the_documentation_runs() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["it was blue", "it is green"], done.stderr


async def test_a_new_leader_that_was_declared_down_holds_no_lease_before_it_knows(tmp_path: Path) -> None:
    """It lags behind with applying, so it still believes in the session that its log says has ended."""
    cluster = Cluster(tmp_path, 3, lease_ms=600)
    await cluster.start_all()
    gate = threading.Event()
    try:
        leader = await cluster.leader()
        laggard = next(node for node in cluster.nodes.values() if node is not leader)
        await wait_until(lambda: len(leader.status().nodes_up) == 3 and laggard.lease_valid())
        laggard_driver, machine = laggard._driver, cluster.machines[laggard.id]
        session = laggard_driver.proposals.session
        hear, apply = laggard_driver.frames_received, machine.apply  # type: ignore[attr-defined]

        def apply_late(items: Sequence[Item], notes: bytes) -> Sequence[object]:
            gate.wait(20)
            return apply(items, notes)  # type: ignore[no-any-return]

        laggard_driver.frames_received = lambda peer, frames: None  # type: ignore[method-assign]
        await wait_until(lambda: laggard.id not in leader.status().nodes_up)
        machine.apply = apply_late  # type: ignore[attr-defined]
        laggard_driver.frames_received = hear  # type: ignore[method-assign]
        await wait_until(lambda: laggard.status().commit_index >= leader.status().commit_index)
        assert laggard_driver.proposals.session == session
        await leader.transfer_leadership(laggard.id)
        await wait_until(lambda: laggard.is_leader)
        for _ in range(30):
            await asyncio.sleep(0.01)
            assert not laggard.lease_valid()
        gate.set()
        await wait_until(laggard.lease_valid)
        assert laggard_driver.proposals.session > session
    finally:
        gate.set()
        await cluster.stop_all()


async def test_a_late_repeat_of_an_open_takes_nothing_over_from_the_session_before(tmp_path: Path) -> None:
    """In one transaction: our command, the end of its session, and a new one, begun by a repeat of the first OPEN."""
    cluster = Cluster(tmp_path, 1)
    await cluster.start_all()
    try:
        node = await cluster.leader()
        await node.replicate(b"a=1")
        driver = node._driver
        session, nonce = driver.proposals.session, driver.proposals._nonce
        driver._turn = lambda: None  # type: ignore[method-assign]
        applied, withdrawn = (asyncio.create_task(node.replicate(command)) for command in (b"b=1", b"c=1"))
        await asyncio.sleep(0.01)
        seqs = list(driver.proposals._by_seq)
        driver.proposals.take(monotonic())
        index = node.applied_index
        result = Result(index + 1, index + 3, nodes_changed=True, open_sessions={node.id: index + 3})
        result.mine = [(session, seqs[0], "old")]
        result.opened = index + 3, nonce
        driver._applied(result)
        assert await applied == "old"
        assert driver.proposals.session == 0
        assert not withdrawn.done()
        withdrawn.cancel()
    finally:
        await cluster.stop_all()


async def test_a_write_that_was_overtaken_by_a_truncation_is_not_durable(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1)
    await cluster.start_all()
    try:
        node = await cluster.leader()
        await node.replicate(b"a=1")
        driver = node._driver
        base = driver.durable_index
        done: list[Callable[[], None]] = []
        driver.writer.submit = lambda *arguments: done.append(arguments[-1])  # type: ignore[method-assign]
        driver.entries.append(9, 0, 0, [b""] * 6)
        driver._store(Message(MessageType.STORAGE_APPEND, entries=EntryRange(base + 1, base + 6)), True)
        driver.entries.truncate(base + 3)
        driver.entries.append(10, 0, 0, [b""] * 2)
        driver._store(Message(MessageType.STORAGE_APPEND, entries=EntryRange(base + 3, base + 4)), True)
        done[0]()
        assert driver.durable_index == base + 2
        done[1]()
        assert driver.durable_index == base + 4
    finally:
        await cluster.stop_all()


async def test_a_leader_that_cannot_read_its_log_for_a_follower_stops(tmp_path: Path) -> None:
    """Else the follower would stay behind for ever, and nobody would hear of it."""
    cluster = Cluster(tmp_path, 3, log_cache_bytes=1024)
    await cluster.start_all()
    try:
        leader = await cluster.leader()
        away = next(node for node in cluster.nodes.values() if node is not leader)
        await cluster.stop(away.id)
        await asyncio.gather(*(leader.replicate(b"k%d=%s" % (number, b"v" * 1000)) for number in range(100)))

        def damaged(lo: int, hi: int, log: Log | None, *, fresh: bool = False) -> bytes:
            raise WalCorrupt("an entry is damaged", "here", 0, lo, hi)

        leader._driver.wal.read = damaged  # type: ignore[method-assign]
        await cluster.start(away.id)
        async with asyncio.timeout(10):
            assert isinstance(await leader.wait_failed(), WalCorrupt)
    finally:
        await cluster.stop_all()


async def test_who_waits_for_a_quorum_does_not_wait_for_a_stopped_node(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 3)
    node = await cluster.start(NodeId("n1"))
    waiting = asyncio.create_task(node.wait_quorum(0.5))
    await asyncio.sleep(0.05)
    await node.stop()
    async with asyncio.timeout(2):
        assert not await waiting
        assert not await node.wait_quorum(0.5)


async def test_what_waits_to_be_applied_is_bounded(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 3, max_apply_bytes=1024 * 1024, log_cache_bytes=64 * 1024)
    await cluster.start_all()
    gate = threading.Event()
    try:
        leader = await cluster.leader()
        slow = next(node for node in cluster.nodes.values() if node is not leader)
        machine = cluster.machines[slow.id]
        apply = machine.apply  # type: ignore[attr-defined]

        def apply_late(items: Sequence[Item], notes: bytes) -> Sequence[object]:
            gate.wait(20)
            return apply(items, notes)  # type: ignore[no-any-return]

        machine.apply = apply_late  # type: ignore[attr-defined]
        for number in range(40):
            await leader.replicate(b"k%d=%s" % (number, b"v" * 100_000))
        await wait_until(lambda: slow.status().commit_index >= leader.applied_index)
        waiting = sum(batch.size_bytes for batch in list(slow._driver.applier._work) if isinstance(batch, Batch))
        # What is handed out stops at the first entry that reaches the limit; the batch at the gate may be one
        # that was committed before these.
        assert waiting < 1024 * 1024 + 101_000
        gate.set()
        await slow.read_index()
        assert machine.get("k39") == "v" * 100_000  # type: ignore[attr-defined]
    finally:
        gate.set()
        await cluster.stop_all()


async def test_a_machine_without_room_is_waited_for(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1)
    node = await cluster.start(NodeId("n1"))
    machine = cluster.machines[node.id]
    apply, room = machine.apply, False  # type: ignore[attr-defined]

    def apply_if_room(items: Sequence[Item], notes: bytes) -> Sequence[object]:
        if not room:
            raise NoRoom
        return apply(items, notes)  # type: ignore[no-any-return]

    await node.replicate(b"a=1")
    machine.apply = apply_if_room  # type: ignore[attr-defined]
    waiting = asyncio.create_task(node.replicate(b"b=1"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    room = True
    assert await waiting is None
    assert machine.get("b") == "1"  # type: ignore[attr-defined]
    room = False
    given_up = asyncio.create_task(node.replicate(b"c=1"))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        await cluster.stop_all()
        with pytest.raises(OutcomeUnknown):
            await given_up
    assert not node._failed.done()
    cluster = Cluster(tmp_path, 1)
    node = await cluster.start(NodeId("n1"))
    try:
        await node.read_index()
        assert cluster.machines[node.id].get("c") == "1"  # type: ignore[attr-defined]
    finally:
        await cluster.stop_all()


async def test_a_cluster_of_a_release_without_incarnations_is_brought_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its nodes get incarnations; once all have one the leader writes them down, and from then on they count."""
    made = Cluster(tmp_path, 3)
    with monkeypatch.context() as old:
        old.setattr(Steward, "_found", lambda self: None)
        await made.start_all()
        await made.nodes[NodeId("n1")].replicate(b"colour=blue")
        await made.stop_all()
    for peer in made.peers:
        path = tmp_path / peer.id / "identity.json"
        facts = json.loads(path.read_text())
        path.write_text(json.dumps({name: facts[name] for name in ("format", "cluster_id", "node_id", "election")}))
    await made.start(NodeId("n1"))
    await made.start(NodeId("n2"))
    first = await made.leader()
    await first.replicate(b"colour=green")
    assert {row["incarnation"] for row in first.members() if row["id"] == "n3"} == {"0" * 16}
    await made.start(NodeId("n3"))
    await wait_until(lambda: all("0" * 16 not in incarnations(node) for node in made.nodes.values()))
    assert len({frozenset(incarnations(node)) for node in made.nodes.values()}) == 1
    await made.nodes[NodeId("n3")].replicate(b"colour=red")
    await made.stop(NodeId("n3"))

    shutil.rmtree(tmp_path / "n3")
    (tmp_path / "n3.db").unlink()
    wiped = await made.start(NodeId("n3"))
    pair = await made.leader()
    await pair.replicate(b"colour=black")
    assert not wiped.has_quorum()
    assert await pair.change_members("replace", node="n3") == "n3"
    await wait_until(wiped.has_quorum)
    await wait_until(lambda: len(pair.status().voters) == 3)
    await wiped.read_index()
    assert made.machines[NodeId("n3")].get("colour") == "black"  # type: ignore[attr-defined]
    await made.stop_all()


def incarnations(node: Node) -> list[str]:
    return [str(row["incarnation"]) for row in node.members()]
