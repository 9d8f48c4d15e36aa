"""From the answers of an attempt to the outcome proposed to the cluster: schedule, expiry, notification, log."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from smtpraft.delivery import bounce, records
from smtpraft.delivery.attempt import Answer, Verdict, clipped
from smtpraft.delivery.metrics import DeliveryMetrics
from smtpraft.delivery.retry import RetrySchedule
from smtpraft.delivery.routes import Destination
from smtpraft.spool import types as spool
from smtpraft.spool.types import MessageInfo, Outcome, Recipient, Result
from smtpraft.types import NodeId

REPLY_BYTES_MAX: Final = 300  # of a reply in a log entry; deferrals are many


class Concluder:
    """Makes outcomes. One per node."""

    def __init__(
        self, *, node: NodeId, hostname: str, retry: RetrySchedule, metrics: DeliveryMetrics, rng: random.Random
    ) -> None:
        self._node = node
        self._hostname = hostname
        self._retry = retry
        self._metrics = metrics
        self._rng = rng

    def is_expired(self, info: MessageInfo, now_ms: int) -> bool:
        """Would a deferral of this message now be its end?"""
        return now_ms >= self._retry.expires_at_ms(info.accepted_ms)

    def outcome(
        self,
        info: MessageInfo,
        epoch: int,
        answered: Sequence[tuple[Recipient, Answer]],
        *,
        destination: Destination,
        peer: str,
        content: Sequence[bytes],
        now_ms: int,
    ) -> Outcome:
        """Return the outcome of an attempt; `content` is the message, for its sender in case of failure."""
        results: list[Result] = []
        lost: list[bounce.Undelivered] = []
        delays: dict[int, int | None] = {}
        for recipient, answer in answered:
            reply = clipped(f"{answer.code} {answer.text}" if answer.code else answer.text, REPLY_BYTES_MAX)
            delay_ms = 0
            if answer.verdict is Verdict.DELIVERED:
                result = spool.delivered(recipient, reply, answer.status)
            elif answer.verdict is Verdict.FAILED:
                result = spool.failed(recipient, reply, answer.status)
                lost.append(bounce.Undelivered(recipient.address, answer, answer.status, False, destination.site))
            else:
                wait_ms = self._wait_ms(delays, info, recipient.attempts + 1, now_ms)
                if wait_ms is None:
                    result = spool.expired(recipient, reply)
                    lost.append(bounce.Undelivered(recipient.address, answer, result.status, True, destination.site))
                else:
                    delay_ms = wait_ms
                    result = spool.deferred(recipient, delay_ms, reply, answer.status)
            results.append(result)
            self._count(result)
            records.log_result(info, recipient, destination, result.state, answer, peer, delay_ms)
        notification = self._notification(info, lost, content, now_ms) if lost else None
        if notification is None:
            return Outcome(info.id, epoch, tuple(results))
        return Outcome(info.id, epoch, tuple(results), notification.content, notification.smtputf8)

    def _wait_ms(self, delays: dict[int, int | None], info: MessageInfo, attempts: int, now_ms: int) -> int | None:
        """One draw for all that were tried equally often: who failed together goes together the next time too."""
        if attempts not in delays:
            at_ms = self._retry.next_attempt_ms(attempts=attempts, accepted_ms=info.accepted_ms, now_ms=now_ms)
            delays[attempts] = None if at_ms is None else at_ms - now_ms
        return delays[attempts]

    def _count(self, result: Result) -> None:
        name = "bounced" if result.state is spool.RecipientState.FAILED else result.state
        self._metrics.recipients[name] += 1

    def _notification(
        self, info: MessageInfo, lost: Sequence[bounce.Undelivered], content: Sequence[bytes], now_ms: int
    ) -> bounce.Notification | None:
        token = f"{self._rng.getrandbits(64):016x}"
        while any(token.encode() in block for block in content):
            token = f"{self._rng.getrandbits(64):016x}"
        returned = bounce.Returned(info.id, info.sender, info.accepted_ms, content)
        notification = bounce.notification(returned, lost, hostname=self._hostname, now_ms=now_ms, token=token)
        if notification is None:
            self._metrics.dead_letters += len(lost)
            records.log_dead_letter(info, len(lost))
        else:
            self._metrics.bounces += 1
        return notification
