"""Who may send to whom: closed unless opened (RFC 5321 §7.9).

A client in one of the relay networks may send to anybody. Everybody may send to the domains served here, to this host's
own name, and to a bare `postmaster` (RFC 5321 §4.5.1). All else is relaying, and denied.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_IPV6_CLIENT_BITS: Final = 64  # one customer, one /64: the addresses in it are free to make up
_REMEMBERED: Final = 1024  # clients that came last: most of them come again, with a connection for each message


@lru_cache(_REMEMBERED)
def client_address(host: str) -> IpAddress | None:
    """Return the address of a peer as policy sees it: an IPv4 address mapped into IPv6 is an IPv4 address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@lru_cache(_REMEMBERED)
def address_literal(address: IpAddress | None) -> str:
    """Return the inside of an address literal (RFC 5321 §4.1.3): `192.0.2.1`, `IPv6:2001:db8::1`."""
    if address is None:
        return "unknown"
    return f"IPv6:{address}" if address.version == 6 else str(address)


def client_key(address: IpAddress | None) -> int:
    """Return what counts as one client: an IPv4 address, or an IPv6 network of 64 bits."""
    if address is None:
        return -1
    return int(address) if address.version == 4 else (int(address) >> _IPV6_CLIENT_BITS) + (1 << 64)


class RelayPolicy:
    """The rules of one server."""

    def __init__(
        self, *, hostname: str, relay_networks: Iterable[str], local_domains: Iterable[str], postmaster: str
    ) -> None:
        networks = [ipaddress.ip_network(network) for network in relay_networks]

        @lru_cache(_REMEMBERED)
        def in_networks(client: IpAddress) -> bool:
            return any(client in network for network in networks)

        self._in_networks = in_networks
        self._local_domains = frozenset(domain.lower() for domain in (hostname, *local_domains))
        self.postmaster = postmaster or f"postmaster@{hostname}"
        """Where mail to a bare `postmaster` goes."""

    def may_relay(self, client: IpAddress | None) -> bool:
        """May this client send to anybody?"""
        return client is not None and self._in_networks(client)

    def is_local(self, domain: str) -> bool:
        """May everybody send to this domain?"""
        return domain.lower() in self._local_domains
