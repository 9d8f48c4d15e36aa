"""When a peer is too far away for the election timeout, and what is said of it."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from smtpraft.cluster.addresses import Peer
from smtpraft.cluster.connection import ROUND_TRIPS_KEPT
from smtpraft.cluster.distance import LOOK_EVERY_S, Distances, advised_timeout_ms, is_far
from smtpraft.cluster.link import Link, PeerStats
from smtpraft.types import NodeId

TIMEOUT_MS = 150
NEAR_S, FAR_S = 0.001, 0.08
TWO, THREE = NodeId("node-2"), NodeId("node-3")


class Network:
    """The last round trips to each peer."""

    def __init__(self, **round_trips_s: float) -> None:
        self.round_trips_s = {NodeId(f"node-{name[1:]}"): [each] * 8 for name, each in round_trips_s.items()}
        self.distances = Distances(TIMEOUT_MS, self.traffic)
        self.now = 0.0

    def traffic(self) -> dict[NodeId, PeerStats]:
        return {
            peer: replace(Link(Peer(peer, "127.0.0.1", 5000)).stats(), round_trips_s=tuple(times))
            for peer, times in self.round_trips_s.items()
        }

    def sweep(self, seconds: float = LOOK_EVERY_S) -> None:
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.distances.sweep(self.now)


def test_a_tenth_of_the_timeout_is_near_enough() -> None:
    assert is_far([0.015] * ROUND_TRIPS_KEPT, TIMEOUT_MS) is False
    assert is_far([0.0151] * ROUND_TRIPS_KEPT, TIMEOUT_MS) is True
    assert is_far([FAR_S] * ROUND_TRIPS_KEPT, 800) is False


def test_nothing_is_said_before_there_are_enough_samples() -> None:
    assert is_far([FAR_S] * (ROUND_TRIPS_KEPT - 1), TIMEOUT_MS) is None
    assert is_far([], TIMEOUT_MS) is None


@pytest.mark.parametrize("quick", range(1, ROUND_TRIPS_KEPT))
def test_a_busy_machine_is_no_far_network(quick: int) -> None:
    """One quick answer shows how far it is; half of them show that it is usual."""
    samples = [FAR_S] * (ROUND_TRIPS_KEPT - quick) + [NEAR_S] * quick
    assert is_far(samples, TIMEOUT_MS) is (False if quick > ROUND_TRIPS_KEPT / 2 else None)


def test_the_timeout_that_is_advised_is_near_enough_for_what_was_measured() -> None:
    assert advised_timeout_ms(75.0) == 900
    assert advised_timeout_ms(75.1) == 1000
    for round_trip_ms in (0.01, 15.01, 99.99, 1234.5):
        assert is_far([round_trip_ms / 1000] * ROUND_TRIPS_KEPT, advised_timeout_ms(round_trip_ms)) is False


def test_it_is_said_once_for_each_peer_until_it_is_well_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    network = Network(n2=NEAR_S, n3=FAR_S)
    network.sweep(5)
    (warning,) = caplog.messages
    assert "peer=node-3 round_trip_ms=80.0 election_timeout_ms=150" in warning
    assert "set cluster.election_timeout_ms to 1000 or more on all nodes" in warning
    assert caplog.records[0].levelno == logging.WARNING

    network.round_trips_s[THREE] = []  # its connection is made anew
    network.sweep(5)
    network.round_trips_s[THREE] = [FAR_S] * 7 + [NEAR_S]
    network.sweep(5)
    assert caplog.messages == [warning]

    network.round_trips_s[THREE] = [FAR_S] * 3 + [NEAR_S] * 5
    network.sweep(5)
    assert [message.partition(" peer=")[0] for message in caplog.messages[1:]] == ["peer answers soon enough again"]
    network.round_trips_s[TWO] = network.round_trips_s[THREE] = [FAR_S] * 8
    network.sweep(5)
    assert {message.partition(" peer=")[2].split()[0] for message in caplog.messages[2:]} == {"node-2", "node-3"}


def test_a_member_that_is_gone_is_forgotten_and_told_of_anew_if_it_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    network = Network(n2=FAR_S)
    network.sweep(2)
    gone = network.round_trips_s.pop(TWO)
    network.sweep(2)
    network.round_trips_s[TWO] = gone
    network.sweep(2)
    assert len(caplog.messages) == 2


def test_the_usual_round_trip_is_the_median() -> None:
    network = Network(n2=NEAR_S)
    network.round_trips_s[TWO][:3] = [0.5] * 3
    assert network.distances.usual_s(TWO) == NEAR_S
    assert network.distances.usual_s(THREE) is None
    network.round_trips_s[TWO] = []
    assert network.distances.usual_s(TWO) is None
