"""Maildir delivery: what is in the file, what is synced, and what happens when the disk says no."""

from __future__ import annotations

import errno
import mailbox
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.delivery.attempt import Transaction, Verdict
from smtpraft.delivery.maildir import Deposit, MaildirWriter, _local_text, mailbox_path
from smtpraft.delivery.routes import parse_destination

CONTENT = b"Received: by mx\r\nSubject: hello\r\n\r\n.dot\r\nend\r\n"


def deposit(
    path: Path,
    content: Sequence[bytes] = (CONTENT,),
    *,
    sender: str = "sender@example.net",
    recipient: str = "a@example.org",
    may_send: Callable[[], bool] = lambda: True,
) -> Deposit:
    return Deposit(str(path), recipient, Transaction("00000000000A", sender, (), content, False, may_send))


def delivered(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((path / "new").iterdir())]


def test_a_message_gets_its_trace_and_line_feeds(tmp_path: Path) -> None:
    (answer,) = MaildirWriter("node-1").deliver([deposit(tmp_path / "m")])
    assert answer is not None
    assert answer.verdict is Verdict.DELIVERED
    assert delivered(tmp_path / "m") == [
        b"Return-Path: <sender@example.net>\nDelivered-To: a@example.org\n" + CONTENT.replace(b"\r\n", b"\n")
    ]
    assert not list((tmp_path / "m" / "tmp").iterdir())
    assert mailbox.Maildir(tmp_path / "m").values()[0]["Subject"] == "hello"


def test_there_is_exactly_one_return_path(tmp_path: Path) -> None:
    """RFC 5321 §4.4."""
    content = (
        b"Return-Path: <old@example.org>\r\nX: y\r\nRETURN-path:\r\n <a@b>\r\nSubject: x\r\n\r\nReturn-Path: body\r\n"
    )
    MaildirWriter("n").deliver([deposit(tmp_path, [content], sender="")])
    (text,) = delivered(tmp_path)
    assert text == b"Return-Path: <>\nDelivered-To: a@example.org\nX: y\nSubject: x\n\nReturn-Path: body\n"


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_line_ends_are_changed_wherever_the_blocks_are_cut(data: bytes, at: list[int]) -> None:
    data = b"x\r\n\r\n" + data
    places = sorted({min(place, len(data)) for place in at})
    blocks = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
    assert b"".join(_local_text(blocks)) == data.replace(b"\r\n", b"\n")


def test_names_are_unique_and_tell_the_message_and_the_node(tmp_path: Path) -> None:
    MaildirWriter("node/1:x").deliver([deposit(tmp_path) for _ in range(50)])
    names = [file.name for file in (tmp_path / "new").iterdir()]
    assert len(names) == 50
    assert all("I00000000000A.node_1_x" in name and ":" not in name for name in names)


def test_threads_do_not_meet(tmp_path: Path) -> None:
    writer = MaildirWriter("n")
    threads = [
        threading.Thread(target=writer.deliver, args=([deposit(tmp_path / str(i % 2)) for _ in range(20)],))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(delivered(tmp_path / "0")) == len(delivered(tmp_path / "1")) == 80


def test_everything_is_synced_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before its name in new/, then new/; each new directory's parent too."""
    events: list[str] = []
    sync, rename = os.fsync, os.rename

    def note_sync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        events.append("sync " + ("file" if os.path.isfile(path) else os.path.relpath(path, tmp_path)))
        sync(descriptor)

    def note_rename(source: str, target: str) -> None:
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    writer = MaildirWriter("n")
    writer.deliver([deposit(tmp_path / "d" / "u")])
    assert events == ["sync .", "sync d", *["sync d/u"] * 3, "sync file", "rename", "sync d/u/new"]
    events.clear()
    writer.deliver([deposit(tmp_path / "d" / "u"), deposit(tmp_path / "d" / "u")])
    assert events == ["sync file", "rename", "sync file", "rename", "sync d/u/new"]


@pytest.mark.parametrize(
    ("call", "error", "status"),
    [
        ("open", errno.ENOSPC, "4.3.1"),
        ("open", errno.EACCES, "4.3.0"),
        ("write", errno.EDQUOT, "4.2.2"),
        ("write", errno.ENOSPC, "4.3.1"),
        ("fsync", errno.EIO, "4.3.0"),
        ("rename", errno.EXDEV, "4.3.0"),
        ("mkdir", errno.EROFS, "4.3.0"),
    ],
)
def test_a_disk_that_says_no_defers_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int, status: str
) -> None:
    if call != "mkdir":
        MaildirWriter("n").deliver([deposit(tmp_path / "m")])

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        (answer,) = MaildirWriter("n").deliver([deposit(tmp_path / "m")])
    assert answer is not None
    assert (answer.verdict, answer.status) == (Verdict.DEFERRED, status)
    if call != "mkdir":
        assert len(delivered(tmp_path / "m")) == 1
        assert not list((tmp_path / "m" / "tmp").iterdir())


def test_a_directory_that_cannot_be_synced_is_no_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = MaildirWriter("n")
    writer.deliver([deposit(tmp_path)])

    def sync(descriptor: int) -> None:
        if os.path.isdir(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fsync", sync)
    (answer,) = writer.deliver([deposit(tmp_path)])
    assert answer is not None
    assert answer.verdict is Verdict.DEFERRED


def test_without_the_right_to_go_on_nothing_appears(tmp_path: Path) -> None:
    allowed = iter([True, False])
    answers = MaildirWriter("n").deliver([deposit(tmp_path, may_send=lambda: next(allowed)) for _ in range(2)])
    assert answers[0] is not None
    assert answers[1] is None
    assert len(delivered(tmp_path)) == 1
    assert not list((tmp_path / "tmp").iterdir())


def test_an_address_that_would_be_a_header_is_refused(tmp_path: Path) -> None:
    (answer,) = MaildirWriter("n").deliver([deposit(tmp_path, recipient="a\nBcc: x@example.org")])
    assert answer is not None
    assert answer.verdict is Verdict.FAILED


def test_a_mailbox_that_was_removed_is_made_again(tmp_path: Path) -> None:
    writer = MaildirWriter("n")
    writer.deliver([deposit(tmp_path / "m")])
    for name in ("tmp", "new", "cur"):
        for file in (tmp_path / "m" / name).iterdir():
            file.unlink()
        (tmp_path / "m" / name).rmdir()
    writer.deliver([deposit(tmp_path / "m")])
    assert len(delivered(tmp_path / "m")) == 1


def test_the_path_is_made_of_the_address() -> None:
    to = parse_destination("maildir:///var/mail/{domain}/{local_part}/Maildir")
    assert mailbox_path(to, "../X@Example.org", "mx") == "/var/mail/example.org/%2E.%2Fx/Maildir"
