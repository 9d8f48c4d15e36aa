"""`listen` and `peers` as an operator may write them, and the texts he gets when he errs."""

from __future__ import annotations

import pytest

from smtpraft.cluster.addresses import (
    Peer,
    format_address,
    is_explicit,
    is_loopback,
    parse_advertise,
    parse_listen,
    parse_peer,
    parse_peers,
)
from smtpraft.config import ConfigError
from smtpraft.types import NodeId

ME = NodeId("node-1")


@pytest.mark.parametrize(
    ("entry", "peer"),
    [
        ("node-2=127.0.0.1:5002", Peer(NodeId("node-2"), "127.0.0.1", 5002)),
        ("node-2:5000", Peer(NodeId("node-2"), "node-2", 5000)),
        ("mx2.example.org:5000", Peer(NodeId("mx2.example.org"), "mx2.example.org", 5000)),
        ("node-2=mx2.example.org.:1", Peer(NodeId("node-2"), "mx2.example.org.", 1)),
        ("node-2=[::1]:65535", Peer(NodeId("node-2"), "::1", 65535)),
        ("node-2=[fe80::1%eth0]:5002", Peer(NodeId("node-2"), "fe80::1%eth0", 5002)),
        (" node-2 = 10.0.0.2:5002 ", Peer(NodeId("node-2"), "10.0.0.2", 5002)),
        ("smtpraft_2:5000", Peer(NodeId("smtpraft_2"), "smtpraft_2", 5000)),
    ],
)
def test_a_peer_is_an_id_and_an_address(entry: str, peer: Peer) -> None:
    assert parse_peer(entry) == peer


def test_a_peer_reads_back_as_it_is_written() -> None:
    for peer in (Peer(NodeId("n"), "::1", 1), Peer(NodeId("n"), "10.0.0.1", 2), Peer(NodeId("n"), "host", 3)):
        assert parse_peer(str(peer)) == peer


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("", "no port"),
        ("node-2", "no port"),
        ("node-2=", "no port"),
        ("node-2=127.0.0.1", "no port"),
        ("node-2=:5000", "no host"),
        ("node-2=127.0.0.1:", "port ''"),
        ("node-2=127.0.0.1:0", "port '0'"),
        ("node-2=127.0.0.1:65536", "port '65536'"),
        ("node-2=127.0.0.1:+80", "port '+80'"),
        ("node-2=127.0.0.1:\uff18\uff10", "port"),
        ("node-2=127.0.0.1:99999999999", "port"),
        ("node-2=::1:5000", "in brackets"),
        ("node-2=[::1]", "[ADDRESS]:PORT"),
        ("node-2=[::1:5000", "[ADDRESS]:PORT"),
        ("node-2=[::g]:5000", "no IPv6 address"),
        ("node-2=[127.0.0.1]:5000", "no IPv6 address"),
        ("node-2=127.0.0.300:5000", "no IPv4 address"),
        ("node-2=127.0.1:5000", "no IPv4 address"),
        ("node-2=a b:5000", "no host name"),
        ("node-2=-x:5000", "no host name"),
        ("node-2=a..b:5000", "no host name"),
        ("node-2=" + "a" * 64 + ":5000", "no host name"),
        ("=127.0.0.1:5000", "no node id"),
        ("node 2=127.0.0.1:5000", "no node id"),
        ("<append>=127.0.0.1:5000", "no node id"),
        ("127.0.0.1:5000", "ID=127.0.0.1:5000"),
        ("[::1]:5000", "ID=[::1]:5000"),
        ("a=b=127.0.0.1:5000", "no host name"),
    ],
)
def test_a_bad_peer_is_named_with_what_is_wrong(entry: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_peer(entry)
    assert complaint in str(caught.value)
    assert repr(entry) in str(caught.value)
    assert "cluster.peers" in str(caught.value)


def test_peers_keep_their_order() -> None:
    assert [peer.id for peer in parse_peers(["node-3:1", "node-2:1"], ME)] == ["node-3", "node-2"]
    assert parse_peers([], ME) == ()


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        (["node-1=127.0.0.1:1"], "this node itself"),
        (["node-2=127.0.0.1:1", "node-2=127.0.0.1:2"], "listed twice"),
        (["node-2=127.0.0.1:1", "node-3=127.0.0.1:1"], "same address"),
    ],
)
def test_peers_that_contradict_each_other_are_refused(entries: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_peers(entries, ME)


def test_a_listening_address_may_be_a_wildcard() -> None:
    assert parse_listen("0.0.0.0:5001") == ("0.0.0.0", 5001)  # noqa: S104 - text
    assert parse_listen("[::]:5001") == ("::", 5001)
    assert parse_listen("localhost:5001") == ("localhost", 5001)


def test_a_bad_listening_address_names_its_setting() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.listen: ':5001': no host"):
        parse_listen(":5001")
    with pytest.raises(ConfigError, match=r"admin\.listen"):
        parse_listen("x", "admin.listen")


def test_ipv6_addresses_are_shown_in_brackets() -> None:
    assert format_address("::1", 25) == "[::1]:25"
    assert format_address("127.0.0.1", 25) == "127.0.0.1:25"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost", "LOCALHOST", "localhost."])
def test_loopback_is_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "10.0.0.1", "node-2", "localhost.example.org", "fe80::1%lo", "128.0.0.1"],  # noqa: S104 - text
)
def test_whatever_may_be_elsewhere_is_no_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_only_one_address_is_fit_to_be_a_source() -> None:
    assert is_explicit("127.0.0.2")
    assert is_explicit("10.0.0.1")
    assert is_explicit("fe80::1%eth0")
    assert not is_explicit("0.0.0.0")  # noqa: S104 - text
    assert not is_explicit("::")
    assert not is_explicit("node-1")


@pytest.mark.parametrize("text", ["mx1.example.org:5001", "192.0.2.7:5001", "[2001:db8::7]:5001"])
def test_what_is_advertised_can_be_dialled(text: str) -> None:
    assert format_address(*parse_advertise(text)) == text


@pytest.mark.parametrize("text", ["0.0.0.0:5001", "[::]:5001", "mx1.example.org:0"])
def test_what_nobody_can_dial_is_not_advertised(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.advertise"):
        parse_advertise(text)
