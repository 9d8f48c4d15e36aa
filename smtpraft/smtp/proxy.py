"""The PROXY protocol: a load balancer says, before the client's first byte, who the client is.

    v1   PROXY TCP4 192.0.2.7 192.0.2.1 51000 25 CR LF              at most 107 bytes
    v2   signature 12 | version 4 bits, command 4 bits | family 4 bits, transport 4 bits | length u16 |
         addresses | TLVs, which are passed over                    big endian

`ProxyGate` stands before a session on the transport: it reads the header, to the byte and no further, and then puts
the session in its place, which never knows. What follows stays in the kernel, so a TLS handshake may follow at once.
Whoever may send a header can pass for anybody, so only listed networks may, and these must: without one their
connection is closed. Source: "The PROXY protocol", versions 1 & 2 (HAProxy, doc/proxy-protocol.txt).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import struct
from collections.abc import Callable
from typing import Final, cast

log = logging.getLogger(__name__)

HEADER_S: Final = 5.0  # it comes with the connection; a lost packet is sent again after three seconds at most
V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
V1_BYTES_MAX: Final = 107
V2_BYTES_MAX: Final = 4096  # of addresses and TLVs; 216 and a certificate's names at most in the wild

_FIRST_BYTES: Final = 12  # all of a v2 signature; less than the shortest v1 line
_V2_REST: Final = struct.Struct(">BBH")
_INET: Final = {0x1: 4, 0x2: 16}  # family: bytes of an address
_STREAM: Final = 0x1

Peer = tuple[str, int]


class ProxyError(ValueError):
    """What came is no PROXY header. The text says why."""


class ProxyHeader:
    """Reads one header. Ask `wanted` how many bytes to bring, `feed` exactly these, until `complete`."""

    def __init__(self) -> None:
        self.complete = False
        self.peer: Peer | None = None
        """The client; None if the balancer speaks for itself (a health check) or does not know."""
        self.wanted = _FIRST_BYTES
        self._data = b""

    def feed(self, data: bytes) -> None:
        """Take `wanted` bytes or less.

        Raises:
            ProxyError: they cannot be part of a header.
        """
        assert not self.complete
        assert len(data) <= self.wanted
        self._data += data
        self.wanted -= len(data)
        if not V2_SIGNATURE.startswith(self._data[:12]) and not b"PROXY ".startswith(self._data[:6]):
            raise ProxyError("it does not begin with a PROXY header")
        if self.wanted:
            return
        if self._data.startswith(b"PROXY "):
            self._feed_v1()
        elif len(self._data) == _FIRST_BYTES:
            self.wanted = _V2_REST.size
        else:
            self._feed_v2()

    def _feed_v1(self) -> None:
        if not self._data.endswith(b"\r\n"):
            if len(self._data) >= V1_BYTES_MAX:
                raise ProxyError(f"a PROXY line of more than {V1_BYTES_MAX} bytes")
            self.wanted = 1  # the line's end is not known before: what follows must stay where it is
            return
        self.complete = True
        try:
            words = self._data[:-2].decode("ascii").split(" ")
        except UnicodeDecodeError:
            raise ProxyError("a PROXY line that is not ASCII") from None
        if words[1] == "UNKNOWN":
            return
        if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
            raise ProxyError(f"a PROXY line that cannot be read: {self._data!r}")
        version = 4 if words[1] == "TCP4" else 6
        try:
            addresses = [ipaddress.ip_address(word) for word in words[2:4]]
        except ValueError:
            raise ProxyError(f"a PROXY line without addresses: {self._data!r}") from None
        ports = [int(word) if word.isdecimal() and len(word) <= 5 else 65536 for word in words[4:6]]
        if any(address.version != version for address in addresses) or max(ports) > 65535:
            raise ProxyError(f"a PROXY line that contradicts itself: {self._data!r}")
        self.peer = (str(addresses[0]), ports[0])

    def _feed_v2(self) -> None:
        what, how, length = _V2_REST.unpack_from(self._data, _FIRST_BYTES)
        begin = _FIRST_BYTES + _V2_REST.size
        if len(self._data) == begin:
            if what >> 4 != 2:
                raise ProxyError(f"version {what >> 4} of the PROXY protocol; 1 and 2 are known")
            if length > V2_BYTES_MAX:
                raise ProxyError(f"a PROXY header of {length} bytes")
            self.wanted = length
            if length:
                return
        self.complete = True
        command = what & 0xF
        if command == 0:  # LOCAL: the connection is the balancer's own
            return
        if command != 1:
            raise ProxyError(f"command {command} in a PROXY header")
        size = _INET.get(how >> 4)
        if size is None or how & 0xF != _STREAM:
            return  # "the receiver should ignore the address": a family that we know nothing of
        if length < 2 * size + 4:
            raise ProxyError("a PROXY header too short for its addresses")
        address = ipaddress.ip_address(self._data[begin : begin + size])
        self.peer = (str(address), int.from_bytes(self._data[begin + 2 * size : begin + 2 * size + 2], "big"))


class ProxyGate(asyncio.BufferedProtocol):
    """Stands on a connection until the header of a balancer is read; then `session_of(peer)` takes its place.

    Who is no balancer has its session at once. `waiting` holds the gates that wait for a header.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        is_balancer: Callable[[Peer], bool],
        session_of: Callable[[Peer | None], asyncio.BaseProtocol],
        waiting: set[ProxyGate],
    ) -> None:
        self._loop = loop
        self._is_balancer = is_balancer
        self._session_of = session_of
        self._waiting = waiting
        self._header = ProxyHeader()
        self._buffer = bytearray()
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a header, if this peer must bring one."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        if not peer or not self._is_balancer(peer[:2]):
            self._give_way(None)
            return
        self._timer = self._loop.call_later(HEADER_S, self._refuse, "no PROXY header came in time")
        self._waiting.add(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Exactly as long as what is wanted: the kernel keeps the rest."""
        self._buffer = bytearray(max(self._header.wanted, 1))
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Read on, until the header is complete."""
        if self not in self._waiting:
            return
        try:
            self._header.feed(bytes(self._buffer[:nbytes]))
        except ProxyError as error:
            self._refuse(str(error))
            return
        if self._header.complete:
            self._end()
            # Paused, or a loop would go on with the way of reading that it chose for the gate.
            self._transport.pause_reading()
            self._give_way(self._header.peer)
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def eof_received(self) -> None:
        """The connection ended too early: it is closed, and `connection_lost` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """A port check, or a balancer that changed its mind."""
        self._end()

    def abort(self) -> None:
        """Cut the connection."""
        self._end()
        self._transport.abort()

    def _give_way(self, peer: Peer | None) -> None:
        session = self._session_of(peer)
        self._transport.set_protocol(session)
        session.connection_made(self._transport)

    def _refuse(self, reason: str) -> None:
        log.warning("connection refused balancer=%r reason=%r", self._transport.get_extra_info("peername"), reason)
        self.abort()

    def _end(self) -> None:
        self._waiting.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
