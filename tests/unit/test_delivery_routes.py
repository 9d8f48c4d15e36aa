"""Routes and addresses: where mail goes, and what of an address may become part of a path."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.config import ConfigError, RouteSettings
from smtpraft.delivery.addresses import (
    PATH_PIECE_BYTES_MAX,
    BadAddress,
    canonical_domain,
    check,
    downgraded,
    mailbox_pieces,
    path_piece,
    split,
)
from smtpraft.delivery.routes import DISCARD, Destination, Routes, Transport, parse_destination


def routes(*table: tuple[str, str]) -> Routes:
    return Routes([RouteSettings(domain=domain, to=to) for domain, to in table])


@pytest.mark.parametrize(
    ("url", "destination"),
    [
        ("smtp://mx.example.org:2600", Destination(Transport.SMTP, "mx.example.org", 2600)),
        ("smtp://mx.example.org", Destination(Transport.SMTP, "mx.example.org", 25)),
        ("smtp://[::1]:2525", Destination(Transport.SMTP, "::1", 2525)),
        ("lmtp://127.0.0.1", Destination(Transport.LMTP, "127.0.0.1", 24)),
        ("lmtp+unix:///run/dovecot/lmtp", Destination(Transport.LMTP, path="/run/dovecot/lmtp")),
        (
            "maildir:///var/mail/{domain}/{local_part}",
            Destination(Transport.MAILDIR, path="/var/mail/{domain}/{local_part}"),
        ),
        ("discard:", DISCARD),
    ],
)
def test_a_url_names_a_destination(url: str, destination: Destination) -> None:
    assert parse_destination(url) == destination
    assert parse_destination(str(destination)) == destination


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mx.example.org",
        "http://mx.example.org",
        "smtp://",
        "smtp://:25",
        "smtp://host:0",
        "smtp://host:70000",
        "smtp://host:smtp",
        "smtp://host/path",
        "smtp://user:secret@host",
        "smtp://host?tls=no",
        "smtp://[::1",
        "lmtp:///run/lmtp",
        "lmtp+unix://run/lmtp",
        "lmtp+unix:",
        "maildir:relative/{domain}",
        "maildir://host/{domain}",
        "maildir:///",
        "maildir:///mail/{user}",
        "maildir:///mail/{domain",
        "maildir:///mail/../{domain}",
        "discard:something",
    ],
)
def test_a_wrong_url_is_refused_with_its_text(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_destination(url)
    assert repr(url) in str(error.value)


def test_the_first_match_wins() -> None:
    table = routes(
        ("example.org", "smtp://exact:25"),
        (".example.org", "smtp://below:25"),
        ("mx.example.org", "smtp://shadowed:25"),
        (".deep.example.org", "smtp://shadowed:25"),
        ("*", "smtp://any:25"),
    )
    found = {
        d: str(table.find(f"user@{d}")) for d in ("example.org", "mx.example.org", "a.deep.example.org", "other.net")
    }
    assert found == {
        "example.org": "smtp://exact:25",
        "mx.example.org": "smtp://below:25",
        "a.deep.example.org": "smtp://below:25",
        "other.net": "smtp://any:25",
    }


def test_domains_compare_as_a_labels_without_case() -> None:
    table = routes(("Bücher.EXAMPLE", "smtp://a:25"), ("xn--strae-oqa.de", "smtp://b:25"))
    for address in ("x@BÜCHER.example", "x@xn--bcher-kva.example", "x@XN--BCHER-KVA.Example", "x@bücher.example."):
        assert str(table.find(address)) == "smtp://a:25"
    assert str(table.find("x@straße.de")) == "smtp://b:25"
    assert table.find("x@bucher.example") is None


def test_a_subdomain_route_does_not_take_the_domain_nor_what_only_ends_like_it() -> None:
    table = routes((".example.org", "discard:"))
    assert table.find("x@a.example.org") == DISCARD
    assert table.find("x@example.org") is None
    assert table.find("x@notexample.org") is None
    assert table.find("postmaster") is None


def test_destinations_are_listed_once_in_order() -> None:
    table = routes(
        ("b.example", "smtp://b:25"), ("a.example", "smtp://a:25"), ("c.example", "smtp://b:25"), ("*", "discard:")
    )
    assert [str(destination) for destination in table.destinations] == ["smtp://b:25", "smtp://a:25", "discard:"]


@pytest.mark.parametrize(
    "table",
    [
        [("*", "discard:"), ("example.org", "discard:")],
        [("*", "discard:"), ("*", "discard:")],
        [("example.org", "discard:"), ("EXAMPLE.org", "smtp://x:25")],
        [("", "discard:")],
        [(".", "discard:")],
        [("..example.org", "discard:")],
        [("user@example.org", "discard:")],
        [("*.example.org", "discard:")],
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(table: list[tuple[str, str]]) -> None:
    with pytest.raises(ConfigError):
        routes(*table)


def test_without_routes_the_default_takes_everything() -> None:
    assert Routes([], default=DISCARD).find("x@example.org") == DISCARD
    assert routes(("a.example", "smtp://a:25")).find("x@b.example") is None


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("user", "user"),
        ("first.last+tag", "first.last+tag"),
        ("..", "%2E."),
        (".", "%2E"),
        (".hidden", "%2Ehidden"),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("a\0b", "a%00b"),
        ("jürgen", "j%C3%BCrgen"),
        ("{domain}", "%7Bdomain%7D"),
    ],
)
def test_a_path_piece_cannot_leave_its_directory(text: str, piece: str) -> None:
    assert path_piece(text) == piece


@given(st.text(max_size=30), st.text(max_size=30))
def test_path_pieces_are_safe_and_distinct(one: str, other: str) -> None:
    """Two people never share a mailbox because of how their names are written."""

    def piece(text: str) -> str | None:
        try:
            return path_piece(text)
        except BadAddress:
            return None

    first, second = piece(one), piece(other)
    for made in (first, second):
        if made is not None:
            assert made.isascii()
            assert made.isprintable()
            assert "/" not in made
            assert not made.startswith(".")
            assert 0 < len(made) <= PATH_PIECE_BYTES_MAX
    if first is not None and one != other:
        assert first != second


@pytest.mark.parametrize("text", ["", "x" * 201, "ü" * 70, "\udc80"])
def test_what_cannot_be_a_path_piece_is_an_error(text: str) -> None:
    with pytest.raises(BadAddress):
        path_piece(text)


@pytest.mark.parametrize(
    ("address", "pieces"),
    [
        ("Alice@Example.ORG", ("example.org", "alice")),
        ('"a.b"@example.org', ("example.org", "a.b")),
        (r'"a\"b"@example.org', ("example.org", "a%22b")),
        ("postmaster", ("mx.example.net", "postmaster")),
        ("x@bücher.example", ("xn--bcher-kva.example", "x")),
        ("x@[192.0.2.1]", ("%5B192.0.2.1%5D", "x")),
    ],
)
def test_a_mailbox_is_found_by_the_address(address: str, pieces: tuple[str, str]) -> None:
    assert mailbox_pieces(address, "MX.example.net") == pieces


def test_addresses_are_split_at_the_last_at() -> None:
    assert split('"a@b"@example.org') == ('"a@b"', "example.org")
    assert split("postmaster") == ("postmaster", "")


@given(st.text())
def test_a_checked_address_cannot_end_its_command(address: str) -> None:
    """Bug of another client: GHSA-v3q9-hj7j-63hq."""
    try:
        checked = check(address)
    except BadAddress:
        return
    wire = checked.encode("utf-8")
    assert not any(byte < 32 or byte == 127 for byte in wire)
    assert not set(re.sub(r'"(?:[^"\\]|\\.)*"', "", checked)) & set("<> ")


def test_ordinary_addresses_pass() -> None:
    for address in ("a@b", "first.last+tag@example.org", '"a b"@example.org', "jürgen@bücher.example", "x@[192.0.2.1]"):
        assert check(address) == address


def test_a_domain_is_downgraded_and_a_local_part_is_not() -> None:
    assert downgraded("a@bücher.example") == "a@xn--bcher-kva.example"
    assert downgraded("jürgen@example.org") is None
    assert canonical_domain("a_b.Example") == "a_b.example"
