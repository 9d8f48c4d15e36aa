"""Ports for examples, demonstrations and tests."""

from __future__ import annotations

import socket

import pytest

from smtpraft.cluster import ports
from smtpraft.cluster.ports import free_port, free_ports


def test_a_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of ten thousand at random would be two of the same in one cluster of three thousand."""
    monkeypatch.setattr(ports, "_PORTS", range(20_000, 20_050))
    monkeypatch.setattr(ports, "_given", set())
    found = free_ports(45)
    assert len(set(found)) == 45
    again = free_ports(200)
    assert len(set(found + again)) == 245, "nor of those that the kernel chooses, when there are no others"


def test_a_port_somebody_listens_on_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = socket.socket()
    with taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "_PORTS", range(port, port + 1))
        assert free_port() != port
