"""Disks that change what is at rest: one place in one node's data directory after the other, or the same on a majority.

A node that is started on it heals, from its own log or the others, or refuses and says why. Nothing acknowledged is
lost, nothing else is delivered, and no term gets two leaders.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import apsw
import pytest

from smtpraft.cli.demo.nodes import DemoNode
from smtpraft.spool.errors import SpoolDamaged
from smtpraft.spool.scrub import check_all
from smtpraft.spool.store import DAMAGE, Store

from .cluster import Stage, wait_for
from .figures import Figures
from .test_cluster_transfers import small_messages

pytestmark = [pytest.mark.fault, pytest.mark.timeout(280)]

PLACES: Final = 200
CHUNK: Final = 4
PAGE: Final = 4096
STARTS_MAX: Final = 2  # the second one heals what the first one found while it ran
HEAL_S: Final = 30.0
SETTINGS: Final = {
    "CLUSTER__SEGMENT_BYTES": str(1024 * 1024),
    "CLUSTER__MAX_LOG_ENTRIES": "150",
    "CLUSTER__SNAPSHOT_THRESHOLD": "100",
    "CLUSTER__SCRUB_BYTES_PER_S": str(64 * 1024 * 1024),
}


def data_of(node: DemoNode) -> Path:
    return node.directory / "data"


def sockets(directory: str, names: list[str]) -> set[str]:
    """Return what cannot be copied."""
    return {name for name in names if (Path(directory) / name).is_socket()}


def copy_if_there(source: str, target: str) -> None:
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)


def choose(directory: Path, random: Random) -> Path:
    """Return a file, kinds of files first: a directory has many segments and one database."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in {"lock", "queue.db-shm"} and path.stat().st_size:
            kinds.setdefault(f"{path.parent.name}{path.suffix}", []).append(path)
    return random.choice(kinds[random.choice(sorted(kinds))])


def damage(path: Path, random: Random, older: Path) -> str:
    """Do what a disk may do; return what. `older`: the file as it was some time ago, if it was there."""
    data = bytearray(path.read_bytes())
    used = max(1, len(data.rstrip(b"\0")))
    pages = -(-used // PAGE)
    page = random.randrange(pages) * PAGE
    kind = random.choice(("flip", "flip", "flip", "zero", "swap", "stale", "cut", "delete"))
    if kind == "stale" and older.exists():
        before = older.read_bytes()[page : page + PAGE]
        data[page : page + len(before)] = before
    elif kind == "swap" and pages > 2:
        one, other = (slice(each * PAGE, each * PAGE + PAGE) for each in random.sample(range(pages - 1), 2))
        data[one], data[other] = data[other], data[one]
    elif kind == "zero":
        data[page : page + PAGE] = bytes(len(data[page : page + PAGE]))
    elif kind == "cut":
        del data[random.randrange(used) :]
    elif kind == "delete":
        path.unlink()
        return kind
    else:
        kind = "flip"
        data[random.randrange(used)] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    return kind


def log_of(node: DemoNode) -> str:
    return (node.directory / "log").read_text(errors="replace")


def rotten(node: DemoNode) -> bool:
    """Is there anything in its database that nobody has read yet, and that is not what was written?"""
    connection = apsw.Connection(str(data_of(node) / "spool" / "queue.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        with connection:
            check_all(connection.cursor(), lambda: None)
    except DAMAGE:
        return True
    finally:
        connection.close()
    return False


async def newest_applied(stage: Stage) -> int:
    """Return how far the furthest of the nodes is."""
    statuses = await stage.cluster.statuses(stage.cluster.running)
    return max((int(str(status["applied_index"])) for _, status in statuses if status is not None), default=0)


async def whole(stage: Stage, node: DemoNode, index: int) -> bool:
    """Does it take part, with all that the others had when it was started? Or has it ended?"""
    for other in stage.cluster.others(node):
        if not other.running:  # damage of an earlier round was read only now: as a service manager would
            stage.cluster.launch(other)
    if not node.running:
        return True
    status = await asyncio.to_thread(node.status)
    return (
        status is not None
        and not status["abstains"]
        and int(str(status["applied_index"])) >= index
        and await asyncio.to_thread(node.ready)
    )


@pytest.mark.parametrize(
    "first",
    [pytest.param(first, marks=pytest.mark.slow if first else ()) for first in range(0, PLACES, CHUNK)],
)
async def test_a_node_heals_or_refuses_wherever_its_disk_was_damaged(
    directory: Path, figures: Figures, first: int
) -> None:
    """Mail waits in the queue all the time, so what is damaged is what will be delivered at the end."""
    outcomes: Counter[str] = Counter()
    async with Stage(directory, settings=SETTINGS, expected=(" ERROR ", "Traceback")) as stage:
        await stage.witness.close()
        async with stage.load(messages=small_messages()) as load:
            await load.wait_acknowledged(150)
            await load.finish()
        for seed in range(first, first + CHUNK):
            random = Random(seed)
            victim = random.choice(stage.cluster.nodes)
            older = directory / "older"
            shutil.rmtree(older, ignore_errors=True)
            # The node runs, and renames and removes files of its own meanwhile.
            shutil.copytree(data_of(victim), older, ignore=sockets, copy_function=copy_if_there)
            others = stage.cluster.others(victim)
            if random.random() < 0.5:
                (outage,) = stage.kill(victim)
            else:
                (outage,) = stage.terminate(victim)
                assert victim.process is not None
                await asyncio.to_thread(victim.process.wait, 20)
            async with stage.load(others, messages=small_messages()) as load:
                await load.wait_acknowledged(10)
                saved = directory / "saved"
                shutil.rmtree(saved, ignore_errors=True)
                shutil.copytree(data_of(victim), saved, ignore=sockets)
                path = choose(data_of(victim), random)
                place = path.relative_to(data_of(victim))
                did = f"{damage(path, random, older / place)} {place}"
                outcome = await start_again(stage, victim, f"seed {seed}: {did}")
                if outcome == "refuses":
                    figures.add(f"refused after {did.split()[0]} of {place.name.rpartition('.')[2]}", [1], "times")
                    shutil.rmtree(data_of(victim))
                    shutil.copytree(saved, data_of(victim))
                    await stage.cluster.restart(victim)
                elif rotten(victim):
                    # What the scrub would find, later: two nodes that are damaged at once are a majority.
                    stage.kill(victim)
                    SpoolDamaged(str(data_of(victim) / "spool" / "queue.db"), "found by the scrub").note()
                    outcome = await start_again(stage, victim, f"seed {seed}: {did}, noted")
                outcomes[outcome] += 1
                await load.finish()
            await stage.restart(outage) if not victim.running else None
        await stage.witness.open()
        await stage.settle()
        stage.journal.check_mail()
    for outcome, count in sorted(outcomes.items()):
        figures.add(f"damaged places: {outcome}", [count], "places")


async def start_again(stage: Stage, node: DemoNode, what: str) -> str:
    """Start a node until it is whole or will not start; return which."""
    for start in range(STARTS_MAX + 1):
        before = len(log_of(node))
        index = await newest_applied(stage)
        stage.cluster.launch(node)
        try:
            await wait_for(lambda index=index: whole(stage, node, index), what, HEAL_S)  # type: ignore[misc]
        except BaseException as error:
            error.add_note(f"{what}\n{node.last_words(30)}")
            raise
        said = log_of(node)[before:]
        if node.running:
            return "healed" if start or "damaged" in said or "torn" in said else "unharmed"
        assert node.process is not None
        code = node.process.returncode
        assert code in {69, 70, 78}, f"{what}: exit status {code}\n{said[-3000:]}"
        assert "AssertionError" not in said, f"{what}\n{said[-3000:]}"
        assert said.strip(), f"{what}: it ends without a word"
        if start and "Traceback" not in said:
            return "refuses"
    raise AssertionError(f"{what}: it starts and ends again and again\n{node.last_words(40)}")


async def test_a_node_whose_database_lost_the_copies_it_had_made_gets_them_again(directory: Path) -> None:
    """SQLite takes what lies behind a damaged page of its own log for never written. So the database may be as far as
    before, but for the last transactions before the log was cut: those that copied what the log then forgot.
    """
    async with Stage(directory, settings=SETTINGS, expected=(" ERROR ",)) as stage:
        await stage.witness.close()
        async with stage.load(messages=large_messages()) as load:
            await load.wait_acknowledged(300)
            await wait_for(lambda: compacted(stage), "the logs are compacted")
            await load.finish()
        victim = stage.cluster.nodes[0]
        stage.terminate(victim)
        assert victim.process is not None
        await asyncio.to_thread(victim.process.wait, 20)
        store = Store(str(data_of(victim) / "spool" / "queue.db"))
        applied = store.open().applied_index
        with store.transaction():
            store.set_copied(0)
            store.cursor().execute("DELETE FROM bodies")
        store.close()
        async with stage.load(stage.cluster.others(victim), messages=small_messages()) as load:
            assert await start_again(stage, victim, f"no copies, applied {applied}") == "healed"
            await load.wait_acknowledged(300)
            await load.finish()
        assert "the state machine has copies up to" in log_of(victim)
        await stage.witness.open()
        await stage.settle()
        stage.journal.check_mail()


async def test_a_node_whose_mark_of_an_install_is_damaged_gets_all_from_the_others(directory: Path) -> None:
    async with Stage(directory, settings=SETTINGS, expected=(" ERROR ",)) as stage:
        await stage.witness.close()
        async with stage.load(messages=small_messages()) as load:
            await load.wait_acknowledged(150)
            await load.finish()
        victim = stage.cluster.nodes[0]
        stage.terminate(victim)
        assert victim.process is not None
        await asyncio.to_thread(victim.process.wait, 20)
        (data_of(victim) / "snapshot" / "install.json").write_bytes(b'{"info": {')
        async with stage.load(stage.cluster.others(victim), messages=small_messages()) as load:
            assert await start_again(stage, victim, "half a mark") == "healed"
            await load.wait_acknowledged(100)
            await load.finish()
        assert "damaged mark of an install" in log_of(victim)
        await stage.witness.open()
        await stage.settle()
        stage.journal.check_mail()


async def test_a_majority_whose_databases_are_damaged_stops_and_keeps_its_logs(directory: Path) -> None:
    """What their logs have forgotten only the third may have; what that lacks may be in theirs: so they are kept."""
    async with Stage(directory, settings=SETTINGS, expected=(" ERROR ", "Traceback")) as stage:
        await stage.witness.close()
        async with stage.load(messages=large_messages()) as load:
            await load.wait_acknowledged(300)
            await wait_for(lambda: compacted(stage), "the logs are compacted")
            await load.finish()
        stage.terminate(*stage.cluster.nodes)  # so that SQLite's own log is gone, and hides nothing
        for node in stage.cluster.nodes:
            assert node.process is not None
            await asyncio.to_thread(node.process.wait, 30)
        victims, whole_one = stage.cluster.nodes[:2], stage.cluster.nodes[2]
        for node in victims:
            with (data_of(node) / "spool" / "queue.db").open("r+b") as file:
                file.seek(100)
                file.write(bytes(2000))
        for node in stage.cluster.nodes:
            stage.cluster.launch(node)
        for node in victims:
            await wait_for(lambda node=node: "If a majority of the members lost" in log_of(node), "it says so", 30)  # type: ignore[misc]
            assert list((data_of(node) / "wal").glob("*.lost"))
            assert (data_of(node) / "spool" / "queue.db.damaged").exists()
        for _, status in await stage.cluster.statuses():
            assert status is not None
            assert status["role"] != "leader"
        assert not await asyncio.to_thread(whole_one.ready)


def compacted(stage: Stage) -> bool:
    """Is the first segment of each log gone?"""
    first = "0000000000000001-*.wal"
    return not any(list((data_of(node) / "wal").glob(first)) for node in stage.cluster.nodes)


def large_messages() -> Iterator[bytes]:
    """Yield messages that fill a segment soon."""
    for number in itertools.count():
        yield b"Subject: %d\r\n\r\n" % number + (b"x" * 70 + b"\r\n") * 150
