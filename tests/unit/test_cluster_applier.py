"""What the apply thread tells the loop of this node's own session, when much is applied at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from smtpraft import fastlog
from smtpraft.cluster import Command, MemoryMachine, NodeId, envelope
from smtpraft.cluster.applier import LAZY_BYTES_MAX, LAZY_S, Applier, Batch, Result
from smtpraft.cluster.foresight import Foresight
from smtpraft.cluster.machine import Item, NoRoom
from smtpraft.cluster.proposals import Proposals
from smtpraft.errors import Fatal, Stopped

ME, OTHER = NodeId("n1"), NodeId("n2")


class Indexes(MemoryMachine):
    """The indexes of the commands that counted."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.indexes: list[int] = []

    def command(self, item: Command) -> object:
        self.indexes.append(item.index)
        return item.index

    def dump(self) -> bytes:
        return repr(self.indexes).encode()

    def load(self, state: bytes) -> None:
        raise NotImplementedError


class Member:
    """Proposals, foresight, sessions and machine of one node, and a log that is committed by hand."""

    def __init__(self, path: str) -> None:
        self.machine = Indexes(path)
        self.proposals = Proposals(ME, max_pending_bytes=1 << 20)
        self.foresight = Foresight(ME, self.proposals)
        self.applier = Applier(
            self.machine,
            ME,
            deliver=lambda act: act(),
            on_result=self._take_result,
            on_failure=_raise,
            read_entries=lambda first, last: b"",
        )
        self.applier.open(background=False)
        self.proposals.open_wanted()
        self.next_index = 1

    def commit(self, *payloads: bytes) -> None:
        """Commit entries with these payloads, and leave them to the machine."""
        block = fastlog.encode_entries(1, self.next_index, 0, fastlog.ENTRY_NORMAL, payloads)
        first, self.next_index = self.next_index, self.next_index + len(payloads)
        self.foresight.committed([memoryview(block)])
        self.applier.submit(Batch(first, self.next_index - 1, len(block), [block]))

    def apply(self) -> None:
        """Let the machine work, in one transaction."""
        self.applier.work()

    def take(self, now: float) -> Sequence[bytes]:
        """Return what this node proposes."""
        return self.proposals.take(now)

    def _take_result(self, result: Result) -> None:
        """As the driver does."""
        for session, seq, answer in result.mine:
            self.proposals.resolved(session, seq, answer)
        for session, seq in result.cancelled:
            self.proposals.cancelled(session, seq)
        if result.nodes_changed:
            self.proposals.sessions_changed(result.open_sessions)
        if result.opened is not None:
            self.proposals.session_opened(*result.opened)
        self.foresight.applied(result.last)


def _raise(error: BaseException) -> None:
    raise error


@pytest.fixture
def submit() -> Callable[[Member], asyncio.Future[object]]:
    def submit(member: Member) -> asyncio.Future[object]:
        loop = asyncio.get_running_loop()
        return member.proposals.submit(b"mail", loop, 1e9, 5.0, lambda index: index)

    return submit


async def test_a_session_that_ended_before_its_node_heard_of_it_is_not_used(
    tmp_path: Path, submit: Callable[[Member], asyncio.Future[object]]
) -> None:
    """A node asks for a session, is cut off for longer than a lease, and gets OPEN and DOWN at once when it is back."""
    member = Member(str(tmp_path / "state"))
    [opening] = member.take(0.0)
    mail = submit(member)
    member.commit(opening, envelope.encode_down(1, [OTHER]))
    member.apply()
    [again] = member.take(9.0)
    assert envelope.decode_open(again) == (member.proposals.nonce, ME)
    member.commit(again)
    member.apply()
    member.commit(*member.take(9.0))
    assert mail.result() == 4
    member.apply()
    assert member.machine.indexes == [4]


async def test_an_answer_that_the_machine_never_gives_stops_the_node(
    tmp_path: Path, submit: Callable[[Member], asyncio.Future[object]]
) -> None:
    """It cannot happen; if it does all the same, a sender was told 250 for nothing, and nobody must go on so."""
    member = Member(str(tmp_path / "state"))
    member.commit(*member.take(0.0))
    member.apply()
    submit(member)
    [command] = member.take(0.0)
    member.foresight.committed([fastlog.encode_entries(1, 2, 0, fastlog.ENTRY_NORMAL, [command])])
    member.commit(b"")  # at the same index: what was foreseen is not what is applied
    with pytest.raises(Fatal, match="not applied at 2"):
        member.apply()


def test_what_nobody_waits_for_is_applied_when_it_is_old_or_much_or_somebody_does(tmp_path: Path) -> None:
    """Whoever works in the thread's place is called when the thread would be woken, and at no other time."""
    results: list[Result] = []
    summons: list[str] = []
    applier = Applier(
        Indexes(str(tmp_path / "state")),
        ME,
        deliver=lambda act: act(),
        on_result=results.append,
        on_failure=_raise,
        read_entries=lambda first, last: b"",
    )
    applier.open(background=False, summon=lambda: summons.append("work"))

    def submit(index: int, payload: bytes = b"", *, urgent: bool = False) -> None:
        block = fastlog.encode_entries(1, index, 0, fastlog.ENTRY_NORMAL, [payload])
        applier.submit(Batch(index, index, len(block), [block]), urgent=urgent)

    applier.hurry()
    applier.hurry_old(9.0)
    submit(1)
    submit(2)
    applier.hurry_old(10.0)
    applier.hurry_old(10.0 + LAZY_S / 2)
    assert not summons
    applier.hurry_old(10.001 + LAZY_S)
    assert len(summons) == 1
    assert applier.work()
    assert [(result.first, result.last) for result in results] == [(1, 2)], "in one transaction"
    submit(3)
    applier.hurry_old(20.0)
    assert len(summons) == 1, "it has waited for no time yet"
    submit(4, urgent=True)
    assert len(summons) == 2
    assert applier.work()
    submit(5)
    applier.hurry()
    assert len(summons) == 3
    assert applier.work()
    submit(6, b"x" * LAZY_BYTES_MAX)
    assert len(summons) == 4
    assert applier.work()
    assert not applier.work()
    assert results[-1].last == 6


class Full(Indexes):
    """A machine whose disk is full, or broken."""

    def __init__(self, path: str, error: Exception) -> None:
        super().__init__(path)
        self.error = error
        self.asked = threading.Event()

    def apply(self, items: Sequence[Item], notes: bytes) -> Sequence[object]:
        self.asked.set()
        raise self.error


@pytest.mark.parametrize("error", [NoRoom("full"), Fatal("broken")])
def test_who_waits_for_a_job_hears_that_the_thread_has_ended(tmp_path: Path, error: Exception) -> None:
    """The log's writer waits for the install of a snapshot; if it did so for ever, the node would never stop."""
    machine = Full(str(tmp_path / "state"), error)
    applier = Applier(
        machine,
        ME,
        deliver=lambda act: act(),
        on_result=lambda result: None,
        on_failure=lambda error: None,
        read_entries=lambda first, last: b"",
    )
    applier.open()
    block = fastlog.encode_entries(1, 1, 0, fastlog.ENTRY_NORMAL, [b""])
    applier.submit(Batch(1, 1, len(block), [block]))
    behind = applier.run(lambda: None)
    assert machine.asked.wait(10)
    applier.close()
    assert isinstance(behind.exception(timeout=10), Stopped)
    assert isinstance(applier.run(lambda: None).exception(timeout=10), Stopped)
