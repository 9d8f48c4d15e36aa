"""Mail that nobody wants, while leaders die: its sender is told, and told once."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.book import Outcome

from .cluster import Stage

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

ROUNDS: Final = 5
NOBODY: Final = ("user3@demo.example", "user5@demo.example")

_QUEUE_ID: Final = re.compile(rb"^X-Smtpraft-Queue-Id: (\w+)\r$", re.MULTILINE)
_MESSAGE_ID: Final = re.compile(rb"^Message-ID: <([^>]+)>\r$", re.MULTILINE)
_FINAL_RECIPIENT: Final = re.compile(rb"^Final-Recipient: rfc822; (\S+)\r$", re.MULTILINE)
_ATTEMPT: Final = re.compile(rb"^X-Demo-Id: (\S+)\r$", re.MULTILINE)


class Notifications:
    """Sorts what arrives: notifications to senders here, all else into the journal."""

    def __init__(self, stage: Stage) -> None:
        self._journal = stage.journal
        self.by_message: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Queue id of the message -> how often each notification about it came."""
        self.told: Counter[tuple[str, str]] = Counter()
        """Attempt and recipient -> notifications, however often each came."""
        self.astray: list[str] = []
        stage.witness.refuses = lambda recipient: recipient in NOBODY
        stage.witness.arrived = self._arrived

    def _arrived(self, node: str, recipients: list[str], content: bytes) -> None:
        about, own = _QUEUE_ID.search(content), _MESSAGE_ID.search(content)
        if about is None or own is None or b"MAILER-DAEMON" not in content.partition(b"\r\n\r\n")[0]:
            self._journal.arrived_from(node, recipients, content)
            return
        attempt = _ATTEMPT.search(content)
        assert attempt is not None
        attempt_id, notification = attempt[1].decode(), own[1].decode()
        if recipients != [f"sender{attempt_id.split('-')[1]}@demo.example"]:
            self.astray.append(f"{notification} to {recipients}")
        again = notification in self.by_message[about[1].decode()]
        self.by_message[about[1].decode()][notification] += 1
        for found in _FINAL_RECIPIENT.findall(content):
            recipient = found.decode()
            if recipient in NOBODY and not again:  # the message itself may be an old notification about others
                self.told[attempt_id, recipient] += 1
                self._journal.bounced(attempt_id, recipient)


async def test_a_sender_is_told_once_whatever_dies(directory: Path) -> None:
    """Q8: the notification is born in the entry that records the failure; RFC 5321 §6.1."""
    async with Stage(directory) as stage:
        journal = stage.journal
        notifications = Notifications(stage)
        async with stage.load() as load:
            for _ in range(ROUNDS):
                await load.wait_acknowledged(60)
                (outage,) = stage.kill(await stage.cluster.leader())
                await load.wait_acknowledged(20)
                await stage.restart(outage)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        journal.check_sessions()
        twice = {about: dict(found) for about, found in notifications.by_message.items() if len(found) > 1}
        assert not twice, f"several notifications about one message: {twice}"
        owed = {
            (attempt_id, recipient)
            for attempt_id, attempt in journal.attempts.items()
            if attempt.outcome is Outcome.ACKNOWLEDGED
            for recipient in attempt.recipients
            if recipient in NOBODY
        }
        assert len(owed) > ROUNDS
        assert owed <= set(notifications.told)
        assert max(notifications.told.values()) == 1
        assert not notifications.astray
        assert not any(
            recipient in NOBODY for copies in journal.copies.values() for c in copies for recipient in c.recipients
        )
