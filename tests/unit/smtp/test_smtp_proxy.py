"""The PROXY protocol: who the client is, to the byte."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.smtp.proxy import V2_SIGNATURE, ProxyError, ProxyHeader


def read(data: bytes, step_max: int = 4096) -> tuple[tuple[str, int] | None, bytes]:
    """Return the peer that a header names and what stands behind it, read in steps of what is wanted."""
    header = ProxyHeader()
    at = 0
    while not header.complete:
        step = data[at : at + min(header.wanted, step_max)]
        assert step, "it wants more than there is"
        header.feed(step)
        at += len(step)
    return header.peer, data[at:]


def v2(command: int, family: int, body: bytes, version: int = 2) -> bytes:
    return V2_SIGNATURE + struct.pack(">BBH", version << 4 | command, family, len(body)) + body


def inet(address: str, port: int, tlvs: bytes = b"") -> bytes:
    packed = ipaddress.ip_address(address).packed
    return v2(1, 0x11 if len(packed) == 4 else 0x21, packed + bytes(len(packed)) + struct.pack(">HH", port, 25) + tlvs)


@given(st.ip_addresses(), st.integers(0, 65535), st.binary(max_size=64), st.binary(max_size=40), st.integers(1, 30))
def test_a_binary_header_is_read_to_its_last_byte(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, tlvs: bytes, rest: bytes, step_max: int
) -> None:
    assert read(inet(str(address), port, tlvs) + rest, step_max) == ((str(address), port), rest)


@given(st.ip_addresses(), st.integers(0, 65535), st.binary(max_size=40), st.integers(1, 30))
def test_a_line_is_read_to_its_last_byte(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, rest: bytes, step_max: int
) -> None:
    line = f"PROXY TCP{address.version} {address} {address} {port} 25\r\n".encode()
    assert read(line + rest, step_max) == ((str(address), port), rest)


def test_the_shortest_line_wants_nothing_of_what_follows() -> None:
    """An SMTP client waits for the greeting: a gate that waits for a sixteenth byte would wait for ever."""
    assert read(b"PROXY UNKNOWN\r\n") == (None, b"")
    assert read(b"PROXY UNKNOWN ffff::1 ffff::1 1 2\r\nEHLO") == (None, b"EHLO")


def test_a_balancer_may_speak_for_itself() -> None:
    assert read(v2(0, 0, b"") + b"QUIT\r\n") == (None, b"QUIT\r\n")
    assert read(v2(0, 0x11, bytes(12)))[0] is None


def test_a_family_that_we_know_nothing_of_names_nobody() -> None:
    assert read(v2(1, 0x31, bytes(216)))[0] is None
    assert read(v2(1, 0x12, bytes(12)))[0] is None, "datagrams"


@pytest.mark.parametrize(
    "data",
    [
        b"EHLO client.example\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4.5 1 2\r\n",
        b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 \xff.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY " + b"x" * 200 + b"\r\n",
        v2(1, 0x11, bytes(11)),
        v2(1, 0x21, bytes(35)),
        v2(2, 0x11, bytes(12)),
        v2(1, 0x11, bytes(12), version=3),
        v2(1, 0x11, bytes(5000)),
        V2_SIGNATURE[:-1] + b"\r" + bytes(20),
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(ProxyError):
        read(data)


@given(st.binary(min_size=300, max_size=400))
def test_noise_ends_in_a_refusal_or_a_header_never_in_another_error(data: bytes) -> None:
    for begin in (b"", b"PROXY ", V2_SIGNATURE):
        try:
            read(begin + data + bytes(5000))
        except ProxyError:
            continue
