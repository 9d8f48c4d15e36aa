"""Who may send to whom, how clients are told apart, what is counted, and the line that says where mail came from."""

from __future__ import annotations

import email
import email.utils

import pytest

from smtpraft.smtp.policy import RelayPolicy, address_literal, client_address, client_key
from smtpraft.smtp.statistics import Histogram
from smtpraft.smtp.trace import HEADER_BYTES_SCANNED, DateLine, count_received, received_line


def policy(**changes: str) -> RelayPolicy:
    return RelayPolicy(
        hostname="mx.example.org",
        relay_networks=["127.0.0.0/8", "::1/128", "10.0.0.0/8", "2001:db8::/32"],
        local_domains=["Example.NET"],
        postmaster=changes.get("postmaster", ""),
    )


@pytest.mark.parametrize(
    ("host", "may_relay"),
    [
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),  # an IPv4 client on a listener for both
        ("2001:db8::5", True),
        ("fe80::1%eth0", False),
        ("192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
        ("11.0.0.1", False),
        ("2001:db9::1", False),
        ("no address", False),
    ],
)
def test_only_listed_networks_may_relay(host: str, may_relay: bool) -> None:
    assert policy().may_relay(client_address(host)) is may_relay


def test_domains_are_compared_without_case() -> None:
    assert policy().is_local("example.net")
    assert policy().is_local("EXAMPLE.net")
    assert policy().is_local("MX.example.org")
    assert not policy().is_local("example.org")
    assert not policy().is_local("sub.example.net")
    assert not policy().is_local("")


def test_postmaster_has_an_address() -> None:
    assert policy().postmaster == "postmaster@mx.example.org"
    assert policy(postmaster="ops@x.y").postmaster == "ops@x.y"


def test_one_ipv6_network_is_one_client() -> None:
    def key(host: str) -> int:
        return client_key(client_address(host))

    assert key("2001:db8::1") == key("2001:db8::ffff:1")
    assert key("2001:db8::1") != key("2001:db8:0:1::1")
    assert key("192.0.2.1") != key("192.0.2.2")
    assert key("192.0.2.1") == key("::ffff:192.0.2.1")
    assert key("0.0.0.1") != key("::1")


def test_address_literals() -> None:
    """RFC 5321 §4.1.3."""
    assert address_literal(client_address("192.0.2.1")) == "192.0.2.1"
    assert address_literal(client_address("::ffff:192.0.2.1")) == "192.0.2.1"
    assert address_literal(client_address("2001:db8::1")) == "IPv6:2001:db8::1"


def line(*, helo: str = "client.example", recipient: str = "") -> bytes:
    return received_line(
        helo=helo,
        client_host="192.0.2.1",
        hostname="mx.example.org",
        protocol="ESMTP",
        transaction_id="5f1c09e2-12",
        recipient=recipient,
        date=DateLine().at(1795694400.7),
    )


def test_the_received_line() -> None:
    """RFC 5321 §4.4."""
    assert line(recipient="joe@example.net") == (
        b"Received: from client.example ([192.0.2.1])\r\n"
        b"\tby mx.example.org (smtpraft) with ESMTP id 5f1c09e2-12\r\n"
        b"\tfor <joe@example.net>; Thu, 26 Nov 2026 12:00:00 +0000\r\n"
    )
    assert b"for" not in line()
    for text in (line(), line(recipient="joe@example.net")):
        message = email.message_from_bytes(text + b"Subject: x\r\n\r\n")
        assert message.keys() == ["Received", "Subject"]
        date = email.utils.parsedate_to_datetime(message["Received"].rpartition(";")[2])
        assert date.timestamp() == 1795694400


@pytest.mark.parametrize("helo", ["x (evil", "a;b", "ü", "a\tb", "<a@b>", "User's PC", '"', "\\"])
def test_a_name_that_is_none_stays_in_its_place(helo: str) -> None:
    claimed = line(helo=helo).split(b" ")[2]
    assert b"?" in claimed
    assert claimed.isascii()
    assert line(helo=helo).count(b"(") == 2


def test_received_lines_are_counted_in_the_header_only() -> None:
    content = (
        b"Received: a\r\nRECEIVED: b\r\n\tReceived: c\r\nX-Received: d\r\nSubject: Received: e\r\n\r\nReceived: f\r\n"
    )
    assert count_received([content]) == 2
    assert count_received([b"received:x\r\n" * 150]) == 150
    assert count_received([b"\r\nReceived: a\r\n"]) == 0
    assert count_received([]) == 0
    assert count_received([b"x: " + b"y" * HEADER_BYTES_SCANNED + b"\r\nReceived: a\r\n"]) == 0


def test_received_lines_are_counted_across_blocks() -> None:
    content = b"Received: some host, some time\r\n" * 2000
    cut = [content[:33_000], content[33_000:]]
    assert count_received(cut) == 2000


def test_a_histogram_counts_by_upper_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.5, 3.0):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 2]
    assert histogram.count == 5
    assert histogram.sum == 8.5
