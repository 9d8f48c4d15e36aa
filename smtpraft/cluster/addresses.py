"""Where the nodes of a cluster are: `listen` and `peers` of the configuration as values.

    listen = "127.0.0.1:5001"   "[::1]:5001"   "0.0.0.0:5001"
    peers  = ["node-2=127.0.0.1:5002", "node-3=[2001:db8::3]:5000", "node-4:5000"]   # the last: id = host

Nothing is resolved here; a host may be a name.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from smtpraft.config import ConfigError
from smtpraft.types import NodeId, parse_node_id

_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?"
)
_LOOKS_LIKE_IPV4: Final = re.compile(r"[0-9.]+")
_PORT: Final = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node of the cluster and the address that we dial to reach it."""

    id: NodeId
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.id}={format_address(self.host, self.port)}"


def parse_peers(entries: Iterable[str], own_id: NodeId) -> tuple[Peer, ...]:
    """Return the peers that `[cluster] peers` names, in the order given.

    Raises:
        ConfigError: an entry cannot be read, names this node, or repeats an id or an address of another entry.
    """
    peers: list[Peer] = []
    for entry in entries:
        peer = parse_peer(entry)
        if peer.id == own_id:
            raise ConfigError(f"cluster.peers: {entry!r} is this node itself (node.id); list only the others")
        for other in peers:
            if other.id == peer.id:
                raise ConfigError(f"cluster.peers: node {peer.id} is listed twice: {str(other)!r} and {entry!r}")
            if (other.host, other.port) == (peer.host, peer.port):
                raise ConfigError(f"cluster.peers: {other.id} and {peer.id} have the same address {entry!r}")
        peers.append(peer)
    return tuple(peers)


def parse_peer(entry: str) -> Peer:
    """Return the peer of one entry, `ID=HOST:PORT`, or `HOST:PORT` when the id is the host name.

    Raises:
        ConfigError: the text names the entry and what is wrong with it.
    """
    name, equals, address = entry.strip().partition("=")
    if not equals:
        name, address = "", name
    host, port = split_address(address.strip(), f"cluster.peers: {entry!r}")
    if not equals:
        name = host
        if ":" in host or _LOOKS_LIKE_IPV4.fullmatch(host):
            raise ConfigError(f"cluster.peers: {entry!r} has an address but no node id; write it as ID={entry.strip()}")
    try:
        node = parse_node_id(name.strip())
    except ValueError as error:
        raise ConfigError(f"cluster.peers: {entry!r}: {error}") from None
    return Peer(node, host, port)


def parse_listen(address: str, setting: str = "cluster.listen") -> tuple[str, int]:
    """Return (host, port) of an address to listen on; `setting` is named in errors.

    Raises:
        ConfigError: it is not HOST:PORT, or the port is out of range.
    """
    return split_address(address.strip(), f"{setting}: {address!r}")


def parse_advertise(address: str) -> tuple[str, int]:
    """Return (host, port) of `cluster.advertise`: a name or one address, and a port, that others can dial.

    Raises:
        ConfigError: it is not HOST:PORT, or nobody could dial it.
    """
    host, port = parse_listen(address, "cluster.advertise")
    if not port or host in {"", "0.0.0.0", "::", "*"}:  # noqa: S104 -- refused, not listened on
        raise ConfigError(
            f"cluster.advertise: {address!r} is nothing to dial; name the address and port at which the other nodes "
            "reach this one"
        )
    return host, port


def format_address(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can be meant by `host`. No name is looked up: any but `localhost` is elsewhere."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def source_for(source: str | None, family: int, host: str) -> tuple[str, int] | None:
    """Return what to bind before dialling `host`, of address family `family`, from `source`; None: any."""
    if source is None or (":" in source) != (family == socket.AF_INET6):
        return None
    if is_loopback(source) and not is_loopback(host):
        return None  # there is no way from there
    return source, 0


def is_explicit(host: str) -> bool:
    """Tell whether `host` is one address rather than a wildcard or a name: fit to be a source address."""
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_unspecified
    except ValueError:
        return False


def split_address(address: str, where: str) -> tuple[str, int]:
    """Return (host, port) of HOST:PORT; `where` begins the text of an error.

    Raises:
        ConfigError: it is not that.
    """
    if address.startswith("["):
        host, bracket, port_text = address[1:].partition("]")
        if not bracket or not port_text.startswith(":"):
            raise ConfigError(f"{where}: an IPv6 address is written [ADDRESS]:PORT")
        port_text = port_text[1:]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigError(f"{where}: {host!r} is no IPv6 address") from None
    else:
        host, colon, port_text = address.rpartition(":")
        if not colon:
            raise ConfigError(f"{where}: no port; write HOST:PORT")
        if ":" in host:
            raise ConfigError(f"{where}: an IPv6 address is written in brackets: [ADDRESS]:PORT")
        _check_host(host, where)
    if not _PORT.fullmatch(port_text) or not 1 <= int(port_text) <= 65535:
        raise ConfigError(f"{where}: port {port_text!r} is not a number from 1 to 65535")
    return host, int(port_text)


def _check_host(host: str, where: str) -> None:
    if not host:
        raise ConfigError(f"{where}: no host; write HOST:PORT (0.0.0.0 or [::] listens on every address)")
    if _LOOKS_LIKE_IPV4.fullmatch(host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ConfigError(f"{where}: {host!r} is no IPv4 address") from None
    elif not _HOST_NAME.fullmatch(host):
        raise ConfigError(f"{where}: {host!r} is no host name")
