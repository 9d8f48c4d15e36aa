"""Paths of MAIL and RCPT: RFC 5321 §4.1.2 and §4.1.3, RFC 6531 §3.3."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.smtp.address import DOMAIN_BYTES_MAX, LOCAL_PART_BYTES_MAX, AddressError, parse_path

GOOD = {
    "<>": "",
    "<a@b>": "a@b",
    "<joe@example.org>": "joe@example.org",
    "<Joe.Bloggs+tag@Example.ORG>": "Joe.Bloggs+tag@Example.ORG",
    "<!#$%&'*+/=?^_`{|}~-@x>": "!#$%&'*+/=?^_`{|}~-@x",
    '<"joe bloggs"@x.y>': '"joe bloggs"@x.y',
    '<"a>b@c"@x.y>': '"a>b@c"@x.y',
    r'<"a\"b\\"@x.y>': r'"a\"b\\"@x.y',
    '<""@x>': '""@x',
    "<@relay.one,@relay.two:joe@example.org>": "joe@example.org",
    "<joe@[192.0.2.1]>": "joe@[192.0.2.1]",
    "<joe@[IPv6:2001:db8::1]>": "joe@[IPv6:2001:db8::1]",
    "<joe@_spf.example.org>": "joe@_spf.example.org",
    "<jürgen@münchen.example>": "jürgen@münchen.example",
    '<"jürgen x"@x>': '"jürgen x"@x',
    "<postmaster>": "postmaster",
    "<PostMaster>": "PostMaster",
    "<" + "l" * LOCAL_PART_BYTES_MAX + "@x>": "l" * LOCAL_PART_BYTES_MAX + "@x",
}

BAD = [
    "",
    "a@b",
    "<",
    "<a@b",
    "a@b>",
    "<@>",
    "<a>",
    "<a@>",
    "<@b>",
    "<a@@b>",
    "<a@b@c>",
    "<a b@c>",
    "< a@b>",
    "<a@b >",
    "<.a@b>",
    "<a.@b>",
    "<a..b@c>",
    "<a@b.>",
    "<a@.b>",
    "<a@b..c>",
    "<a@-b>",
    "<a@b->",
    "<a@b_c-.d>",
    "<a@b,c>",
    "<a,b@c>",
    "<a(comment)@b>",
    "<a\x01@b>",
    "<a@b\x7f>",
    '<"a\x1fb"@c>',
    '<"a@c>',
    '<a"b@c>',
    '<"a"b@c>',
    "<@relay joe@x>",
    "<@relay:>",
    "<@relay,:joe@x>",
    "<joe@[192.0.2.256]>",
    "<joe@[192.0.2]>",
    "<joe@[IPv6:xyz]>",
    "<joe@[IPv6:192.0.2.1]>",
    "<joe@[x400:abc]>",
    "<joe@[]>",
    "<joe\u0085@x>",
    "<joe\u2028x@x>",
    "<joe\u00a0x@x>",
    "<joe@a\u200bb>",
    "<" + "l" * (LOCAL_PART_BYTES_MAX + 1) + "@x>",
    "<" + "ü" * (LOCAL_PART_BYTES_MAX // 2 + 1) + "@x>",
    "<a@" + "d." * (DOMAIN_BYTES_MAX // 2) + "xx>",
    "<a@" + "d" * 64 + ".x>",
]


@pytest.mark.parametrize(("text", "address"), GOOD.items())
def test_a_path_is_read(text: str, address: str) -> None:
    path, rest = parse_path(text + " SIZE=1")
    assert path.address == address
    assert rest == " SIZE=1"


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_path(text)


@given(st.text(alphabet='<>@.,:;"\\[]ab1-_ \t\r\n\0ü\u2028', max_size=40))
def test_nothing_else_comes_out_and_no_control_character_passes(text: str) -> None:
    try:
        path, rest = parse_path(text)
    except AddressError:
        return
    assert path.address.isprintable()
    assert text.endswith(f"{path.address}>{rest}")  # only a source route is dropped
    assert parse_path(f"<{path.address}>") == (path, "")


@pytest.mark.parametrize(
    "text",
    [
        "<" + "a" * 100_000,
        "<" + "a." * 50_000,
        "<a@" + "a-" * 50_000,
        "<a@" + "a.-" * 30_000,
        "<" + "@a," * 30_000,
        "<@a" + ",@a" * 30_000 + ":",
        '<"' + "\\a" * 50_000,
        "<" + "@" * 100_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    """No regular expression here may go back over what it has read more than a few times."""
    started = time.process_time()
    with pytest.raises(AddressError):
        parse_path(text)
    assert time.process_time() - started < 0.5
