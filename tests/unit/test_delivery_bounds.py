"""What one attempt can find out fits one entry of the log, whatever servers say and however many recipients there are.

Else the outcome could not be recorded, here or on any node that takes over.
"""

from __future__ import annotations

import random

import pytest

from smtpraft.config import RouteSettings
from smtpraft.delivery.attempt import Answer, Verdict
from smtpraft.delivery.conclusion import Concluder
from smtpraft.delivery.destination import DestinationQueue
from smtpraft.delivery.metrics import DeliveryMetrics
from smtpraft.delivery.retry import RetrySchedule
from smtpraft.delivery.routes import Routes
from smtpraft.delivery.schedule import ATTEMPT_RECIPIENTS_MAX, Schedule
from smtpraft.spool import commands
from smtpraft.spool.reports import COMMAND_BYTES_MAX
from smtpraft.spool.types import CHUNK_BYTES, MessageInfo, Recipient, RecipientState, message_id
from smtpraft.types import NodeId

ME = NodeId("node-1")
LOCAL = "\u6728" * 19  # with a number before it, 64 bytes at most: RFC 5321 §4.5.3.1.1, RFC 6531
DOMAIN = ".".join(["d" * 62] * 4)


def message(recipients: int) -> MessageInfo:
    return MessageInfo(
        id=message_id(7),
        owner=ME,
        epoch=1,
        sender="s@example.net",
        recipients=tuple(Recipient(i, f"{i}{LOCAL}@{DOMAIN}", RecipientState.QUEUED) for i in range(recipients)),
        size_bytes=100,
        accepted_ms=0,
        held=False,
        is_bounce=False,
        smtputf8=True,
        body_8bitmime=True,
        accepted_by=ME,
        client_host="",
        helo="",
        auth="",
        parts=(),
    )


@pytest.mark.parametrize("words", ["no such user here " * 50, "nicht f\u00fcr uns \u6728 " * 80, "\U0001f4ec" * 1000])
def test_an_attempt_of_the_most_recipients_with_the_longest_answers_fits_an_entry(words: str) -> None:
    plan = Schedule(
        ME,
        Routes([RouteSettings(domain="*", to="smtp://any:25")]),
        loaded_max=10_000,
        make_queue=lambda to: DestinationQueue(to, connections_max=8, probe_s=60, jitter=lambda: 1.0),
    )
    plan.load(message(ATTEMPT_RECIPIENTS_MAX + 100), 0)
    (queue,) = plan.queues.values()
    job = plan.take(queue, 0)
    assert job is not None
    assert len(job.recipients) == ATTEMPT_RECIPIENTS_MAX
    rng = random.Random(1)
    concluder = Concluder(
        node=ME,
        hostname="mx.example.org",
        retry=RetrySchedule([60], jitter_percent=0, expire_s=3600, rng=rng),
        metrics=DeliveryMetrics(),
        rng=rng,
    )
    refused = Answer(Verdict.FAILED, 550, "5.1.1", words, "RCPT TO")
    outcome = concluder.outcome(
        job.item.info,
        1,
        [(recipient, refused) for recipient in job.recipients],
        destination=queue.destination,
        peer="192.0.2.1:25",
        content=(b"Subject: x\r\n\r\n", b"x" * 49_000),
        now_ms=1000,
    )
    assert len(outcome.bounce) <= CHUNK_BYTES
    assert commands.outcome_bytes(commands.outcome_header(outcome)) <= COMMAND_BYTES_MAX
    for recipient in job.recipients:
        assert f"Final-Recipient: utf-8; {recipient.address}".encode() in outcome.bounce


def test_the_other_recipients_are_next() -> None:
    plan = Schedule(
        ME,
        Routes([RouteSettings(domain="*", to="smtp://any:25")]),
        loaded_max=10_000,
        make_queue=lambda to: DestinationQueue(to, connections_max=8, probe_s=60, jitter=lambda: 1.0),
    )
    info = message(ATTEMPT_RECIPIENTS_MAX * 3 - 100)
    plan.load(info, 0)
    (queue,) = plan.queues.values()
    served: list[int] = []
    while (job := plan.take(queue, 0)) is not None:
        ordinals = [recipient.ordinal for recipient in job.recipients]
        served += ordinals
        plan.put_back(job, 0)
        done = set(served)
        rows = tuple(
            Recipient(row.ordinal, row.address, RecipientState.DELIVERED, 1) if row.ordinal in done else row
            for row in info.recipients
        )
        info = MessageInfo(**{name: getattr(info, name) for name in info.__struct_fields__} | {"recipients": rows})
        plan.load(info, 0)
    assert served == [recipient.ordinal for recipient in info.recipients]
