"""Sessions: a command counts at most once, and only while its node's session is open."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smtpraft.cluster import envelope
from smtpraft.cluster.machine import Command, Item, NodeDown, NodeUp, Skipped
from smtpraft.cluster.sessions import Sessions
from smtpraft.types import NodeId

A = NodeId("node-1")
B = NodeId("node-2")
C = NodeId("node-10")


class FakeLog:
    """Gives payloads their index, as the log would."""

    def __init__(self) -> None:
        self.sessions = Sessions()
        self.index = 0

    def put(self, payload: bytes) -> Item:
        self.index += 1
        return self.sessions.admit(self.index, 1, 1000 + self.index, 7, payload)

    def open(self, node: NodeId, nonce: bytes = b"n" * 16) -> int:
        assert isinstance(self.put(envelope.encode_open(nonce, node)), NodeUp)
        return self.index


def test_a_command_is_given_to_the_machine_without_its_envelope() -> None:
    log = FakeLog()
    session = log.open(A)
    item = log.put(envelope.encode_command(session, 1, 1, b"hello"))
    assert item == Command(2, 1, 1002, 7, A, b"hello")


def test_a_repeat_changes_nothing() -> None:
    log = FakeLog()
    session = log.open(A)
    payload = envelope.encode_command(session, 1, 1, b"hello")
    assert isinstance(log.put(payload), Command)
    assert isinstance(log.put(payload), Skipped)


def test_commands_may_commit_out_of_order_and_each_counts_once() -> None:
    log = FakeLog()
    session = log.open(A)
    assert isinstance(log.put(envelope.encode_command(session, 3, 1, b"c")), Command)
    assert isinstance(log.put(envelope.encode_command(session, 1, 1, b"a")), Command)
    assert isinstance(log.put(envelope.encode_command(session, 2, 1, b"b")), Command)
    for seq in (1, 2, 3):
        assert isinstance(log.put(envelope.encode_command(session, seq, 1, b"again")), Skipped)


def test_what_lies_below_done_below_is_over_even_if_it_was_never_seen() -> None:
    log = FakeLog()
    session = log.open(A)
    assert isinstance(log.put(envelope.encode_command(session, 5, 5, b"e")), Command)
    assert isinstance(log.put(envelope.encode_command(session, 4, 1, b"late")), Skipped)


def test_a_cancel_before_the_command_stops_it() -> None:
    log = FakeLog()
    session = log.open(A)
    assert isinstance(log.put(envelope.encode_cancel(session, 1)), Skipped)
    assert isinstance(log.put(envelope.encode_command(session, 1, 1, b"too late")), Skipped)


def test_a_cancel_after_the_command_changes_nothing() -> None:
    log = FakeLog()
    session = log.open(A)
    assert isinstance(log.put(envelope.encode_command(session, 1, 1, b"first")), Command)
    assert isinstance(log.put(envelope.encode_cancel(session, 1)), Skipped)


def test_a_new_process_of_a_node_ends_the_session_of_the_old_one() -> None:
    log = FakeLog()
    old = log.open(A, b"1" * 16)
    new = log.open(A, b"2" * 16)
    assert isinstance(log.put(envelope.encode_command(old, 1, 1, b"ghost")), Skipped)
    assert isinstance(log.put(envelope.encode_command(new, 1, 1, b"alive")), Command)


def test_a_repeated_open_is_the_same_session() -> None:
    log = FakeLog()
    session = log.open(A)
    assert isinstance(log.put(envelope.encode_open(b"n" * 16, A)), Skipped)
    assert isinstance(log.put(envelope.encode_command(session, 1, 1, b"x")), Command)


def test_down_ends_the_session_and_names_the_heirs_in_order() -> None:
    log = FakeLog()
    log.open(B)
    log.open(C)
    session = log.open(A)
    item = log.put(envelope.encode_down(session, [C, B, NodeId("stranger")]))
    assert isinstance(item, NodeDown)
    assert item.node == A
    assert item.live == (B, C)
    assert isinstance(log.put(envelope.encode_command(session, 1, 1, b"ghost")), Skipped)


def test_down_for_a_session_that_is_over_takes_nothing_from_the_new_one() -> None:
    log = FakeLog()
    old = log.open(A, b"1" * 16)
    log.open(A, b"2" * 16)
    assert isinstance(log.put(envelope.encode_down(old, [B])), Skipped)
    assert A in log.sessions.open_sessions()


@given(st.binary(max_size=80))
def test_nothing_that_stands_in_the_log_can_stop_a_node(payload: bytes) -> None:
    """Entries are committed: refusing one is not possible, so every payload must have a meaning, if only `Skipped`."""
    log = FakeLog()
    log.open(A)
    log.put(payload)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("command"), st.integers(1, 9), st.integers(1, 9)),
            st.tuples(st.just("cancel"), st.integers(1, 9), st.just(0)),
            st.tuples(st.just("open"), st.integers(1, 3), st.just(0)),
            st.tuples(st.just("down"), st.just(0), st.just(0)),
        ),
        max_size=40,
    ),
    st.integers(0, 40),
)
def test_notes_carry_everything_over_a_restart(steps: list[tuple[str, int, int]], restart_at: int) -> None:
    straight, restarted = FakeLog(), FakeLog()
    straight.open(B)
    restarted.open(B)
    for position, (kind, one, two) in enumerate(steps):
        if position == restart_at:
            restarted.sessions = Sessions.decode(restarted.sessions.encode())
        session = straight.sessions.open_sessions().get(A, 1)
        payload = {
            "command": lambda: envelope.encode_command(session, one, two, b"x"),  # noqa: B023
            "cancel": lambda: envelope.encode_cancel(session, one),  # noqa: B023
            "open": lambda: envelope.encode_open(bytes([one]) * 16, A),  # noqa: B023
            "down": lambda: envelope.encode_down(session, [B]),  # noqa: B023
        }[kind]()
        assert straight.put(payload) == restarted.put(payload)
    assert straight.sessions.encode() == restarted.sessions.encode()
