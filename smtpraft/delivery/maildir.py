"""Delivery into a Maildir: written and synced under tmp/, renamed into new/, the directory synced. Blocking code.

    Return-Path: <sender>         the only one; one that came with the message is taken out (RFC 5321 §4.4)
    Delivered-To: recipient
    the message, lines ended by LF as Maildir readers expect

Who calls it gets an answer only after the name in new/ would survive a power cut. Between that and the recording of the
answer a crash delivers the message again; it gets another name then, and is never overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from smtpraft.delivery import addresses
from smtpraft.delivery.attempt import Answer, Transaction, Verdict, deferred, failed
from smtpraft.delivery.routes import Destination

log = logging.getLogger(__name__)

COMMAND: Final = "maildir"
_SUBDIRECTORIES: Final = ("tmp", "new", "cur")
_RETURN_PATH: Final = re.compile(rb"^return-path[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*", re.IGNORECASE | re.MULTILINE)
_STATUS: Final = {errno.ENOSPC: "4.3.1", errno.EDQUOT: "4.2.2"}


@dataclass(frozen=True, slots=True)
class Deposit:
    """One message for one mailbox."""

    maildir: str
    recipient: str
    transaction: Transaction


def mailbox_path(destination: Destination, recipient: str, hostname: str) -> str:
    """Return the Maildir of `recipient` under the destination's template.

    Raises:
        BadAddress: the address cannot be made a path.
    """
    domain, local_part = addresses.mailbox_pieces(recipient, hostname)
    return destination.path.replace("{domain}", domain).replace("{local_part}", local_part)


class MaildirWriter:
    """Writes into any number of Maildirs; may be called by several threads at once."""

    def __init__(self, node_id: str) -> None:
        # The token makes a name unique even where two processes of one name and pid share a volume, as containers do.
        self._host = re.sub(r"[^A-Za-z0-9._-]", "_", node_id)
        self._token = os.urandom(4).hex()
        self._count = itertools.count()

    def deliver(self, deposits: Sequence[Deposit]) -> list[Answer | None]:
        """Deliver each; return their answers in order. A directory is synced once for all that went there.

        None instead of an answer: `may_send` said no when the message was about to appear, and it did not.
        """
        answers: list[Answer | None] = []
        placed: dict[str, list[int]] = {}
        for i, deposit in enumerate(deposits):
            answer = self._deposit(deposit)
            answers.append(answer)
            if answer is not None and answer.verdict is Verdict.DELIVERED:
                placed.setdefault(deposit.maildir, []).append(i)
        for maildir, indexes in placed.items():
            try:
                _sync_directory(os.path.join(maildir, "new"))
            except OSError as error:
                for i in indexes:
                    answers[i] = _trouble(error)
        return answers

    def _deposit(self, deposit: Deposit) -> Answer | None:
        try:
            trace = _trace(deposit)
        except addresses.BadAddress as error:
            return failed("5.1.3", str(error), COMMAND)
        name = self._unique_name(deposit.transaction.id)
        tmp = os.path.join(deposit.maildir, "tmp", name)
        try:
            try:
                descriptor = _create(tmp)
            except FileNotFoundError:
                make_maildir(deposit.maildir)
                descriptor = _create(tmp)
            try:
                try:
                    for block in itertools.chain((trace,), _local_text(deposit.transaction.content)):
                        _write(descriptor, block)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                if not deposit.transaction.may_send():
                    os.unlink(tmp)
                    return None
                _place(tmp, deposit.maildir, name)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(tmp)
                raise
        except OSError as error:
            return _trouble(error)
        return Answer(Verdict.DELIVERED, 0, "2.0.0", "delivered to Maildir", COMMAND)

    def _unique_name(self, message: str) -> str:
        now = time.time_ns() // 1000
        count = next(self._count)
        return f"{now // 1_000_000}.M{now % 1_000_000}P{os.getpid()}Q{count}R{self._token}I{message}.{self._host}"


def make_maildir(path: str) -> None:
    """Create a Maildir and whatever is missing above it; every name that was added survives a power cut."""
    for name in _SUBDIRECTORIES:
        _make_directory(os.path.join(path, name))


def _make_directory(path: str) -> None:
    parent = os.path.dirname(path)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        _make_directory(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    _sync_directory(parent)


def _place(tmp: str, maildir: str, name: str) -> None:
    new = os.path.join(maildir, "new", name)
    try:
        os.rename(tmp, new)
    except FileNotFoundError:
        make_maildir(maildir)  # somebody removed new/
        os.rename(tmp, new)


def _create(path: str) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _trouble(error: OSError) -> Answer:
    """A file system's complaint is never the sender's fault: try again later."""
    log.error("maildir path=%r error=%s", error.filename or "", error.strerror or error)
    return deferred(_STATUS.get(error.errno or 0, "4.3.0"), f"mailbox: {error.strerror or error}", COMMAND)


def _trace(deposit: Deposit) -> bytes:
    """Return the header lines that final delivery adds."""
    sender = addresses.check(deposit.transaction.sender) if deposit.transaction.sender else ""
    recipient = addresses.check(deposit.recipient)
    return f"Return-Path: <{sender}>\nDelivered-To: {recipient}\n".encode()


def _local_text(content: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the message with LF line ends and without a Return-Path of its own; blocks may be cut anywhere."""
    held_cr = b""
    first = True
    for block in content:
        data = held_cr + block
        held_cr = b"\r" if data.endswith(b"\r") else b""
        data = (data[:-1] if held_cr else data).replace(b"\r\n", b"\n")
        if first and data:
            first = False
            data = _without_return_path(data)
        yield data
    yield held_cr


def _without_return_path(data: bytes) -> bytes:
    """Return the first block without Return-Path in its header; a header longer than a block is not searched on."""
    end = 0 if data.startswith(b"\n") else data.find(b"\n\n") + 1
    header = data[:end] if end or data.startswith(b"\n") else data
    if b"return-path" not in header.lower():
        return data
    return _RETURN_PATH.sub(b"", header) + data[len(header) :]
