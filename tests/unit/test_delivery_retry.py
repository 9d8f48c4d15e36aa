"""The retry schedule, and what a destination's failures mean."""

from __future__ import annotations

import random

import pytest

from smtpraft.delivery.attempt import deferred
from smtpraft.delivery.destination import KEEP_WAITING_S, DestinationQueue, Verge
from smtpraft.delivery.retry import RetrySchedule
from smtpraft.delivery.routes import parse_destination

REFUSED = deferred("4.4.1", "connect to x: refused")


def schedule(*retry_s: float, jitter: float = 0, expire_s: float = 1000) -> RetrySchedule:
    return RetrySchedule(retry_s, jitter_percent=jitter, expire_s=expire_s, rng=random.Random(1))


def queue() -> DestinationQueue:
    return DestinationQueue(parse_destination("smtp://x:25"), connections_max=8, probe_s=60, jitter=lambda: 1.0)


def test_the_last_interval_repeats() -> None:
    assert [schedule(1, 5, 10).delay_ms(attempt) for attempt in range(1, 6)] == [1000, 5000, 10000, 10000, 10000]


def test_jitter_stays_in_its_bounds_and_differs() -> None:
    jittered = schedule(100, jitter=10)
    delays = [jittered.delay_ms(1) for _ in range(500)]
    assert 90_000 <= min(delays) < 92_000
    assert 108_000 < max(delays) <= 110_000


def test_a_message_gets_its_last_attempt_at_its_expiry() -> None:
    plan = schedule(60, expire_s=100)
    assert plan.next_attempt_ms(attempts=1, accepted_ms=0, now_ms=0) == 60_000
    assert plan.next_attempt_ms(attempts=2, accepted_ms=0, now_ms=60_000) == 100_000
    assert plan.next_attempt_ms(attempts=3, accepted_ms=0, now_ms=100_000) is None


def test_a_schedule_of_zeros_is_no_busy_loop() -> None:
    assert schedule(0).delay_ms(1) == 100
    with pytest.raises(ValueError, match="at least one"):
        schedule()


def test_one_worker_finds_out_whether_anybody_is_there() -> None:
    dead = queue()
    assert dead.slots_allowed(0) == 1
    dead.connected()
    assert dead.slots_allowed(0) == 8


def test_a_dead_destination_is_probed_less_and_less_often() -> None:
    dead, now = queue(), 0.0
    pauses = []
    for _ in range(9):
        assert dead.slots_allowed(now) == 1
        assert dead.session_failed(REFUSED, now) is Verge.DOWN
        assert dead.outage is not None
        assert dead.slots_allowed(now) == 0
        pauses.append(dead.outage.retry_at - now)
        now = dead.outage.retry_at
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert dead.gives_up(now)
    assert dead.succeeded()
    assert dead.outage is None
    assert not dead.succeeded()


def test_what_waits_is_kept_for_a_servers_restart() -> None:
    dead = queue()
    dead.session_failed(REFUSED, 0)
    assert not dead.gives_up(KEEP_WAITING_S - 1)
    assert dead.gives_up(KEEP_WAITING_S)


def test_a_refused_connection_beside_open_ones_is_a_limit_and_no_outage() -> None:
    busy = queue()
    for _ in range(3):
        busy.connected()
    assert busy.session_failed(REFUSED, 0) is Verge.CROWDED
    assert busy.outage is None
    assert busy.slots_allowed(1) == 3
    assert busy.slots_allowed(61) == 8


def test_three_broken_sessions_in_a_row_are_an_outage() -> None:
    flaky = queue()
    flaky.connected()
    verges = [flaky.session_broke(REFUSED, 0) for _ in range(3)]
    assert verges == [Verge.STILL_UP, Verge.STILL_UP, Verge.DOWN]
    flaky.succeeded()
    assert flaky.session_broke(REFUSED, 0) is Verge.STILL_UP


def test_an_operator_can_hurry_a_probe() -> None:
    dead = queue()
    dead.session_failed(REFUSED, 0)
    dead.hurry()
    assert dead.slots_allowed(0) == 1
