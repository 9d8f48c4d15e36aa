"""Every setting, with its unit, default and range, and the rules that tie them together.

`smtpraft.cli.settings` reads them from a TOML file and the environment. Secrets come from files, never from here: a
setting holds the name of the file.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from smtpraft.types import parse_node_id

MIB: Final = 1024 * 1024
ELECTIONS: Final = ("raft", "lowest-id")
LOOPS: Final = ("uvloop", "asyncio")
ENGINE_FAST: Final = "fast"
ENGINE_AIOSMTPD: Final = "aiosmtpd"
ENGINES: Final = (ENGINE_FAST, ENGINE_AIOSMTPD)
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json")


class ConfigError(ValueError):
    """The configuration cannot be used; each of `problems` names the setting and says what it must be."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[node]`"""

    id: str = "node-1"
    data_dir: str = "./smtpraft-data"
    loop: str = "uvloop"  # or "asyncio"


class ClusterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[cluster]`"""

    name: str = "smtpraft"
    listen: str = "127.0.0.1:5001"  # not opened by a node without peers, join and secret_file
    advertise: str = ""  # where the others reach `listen`; empty: there, or at the address that they dialled
    peers: list[str] = []
    join: list[str] = []
    secret_file: str = ""
    election: str = "raft"
    election_timeout_ms: int = 150
    election_priority: int = 100
    heartbeat_interval_ms: int = 50
    tick_ms: int = 10
    lease_ms: int = 2000
    max_log_entries: int = 10_000
    snapshot_threshold: int = 5_000
    snapshot_threshold_bytes: int = 256 * MIB
    segment_bytes: int = 64 * MIB
    log_cache_bytes: int = 64 * MIB
    max_append_bytes: int = MIB
    max_inflight_bytes: int = 16 * MIB
    max_pending_bytes: int = 128 * MIB
    max_uncommitted_bytes: int = 128 * MIB
    max_apply_bytes: int = 64 * MIB
    lease_reads: bool = False
    disk_reserve_bytes: int = 64 * MIB
    scrub_bytes_per_s: int = MIB  # 0: no scrub
    snapshot_bytes_per_s: int = 64 * MIB  # of all snapshots sent, together; 0: no limit


class SmtpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[smtp]`"""

    listen: list[str] = msgspec.field(default_factory=lambda: ["127.0.0.1:2525"])
    hostname: str = "localhost"
    engine: str = ENGINE_FAST  # or "aiosmtpd": coroutines and hooks, the reference
    workers: int = 0  # processes that speak SMTP for the node; 0: it does so itself
    max_message_bytes: int = 52_428_800
    max_recipients: int = 1000
    max_connections: int = 1000
    max_connections_per_client: int = 200
    max_received_headers: int = 100  # RFC 5321 §6.3
    relay_networks: list[str] = msgspec.field(default_factory=lambda: ["127.0.0.0/8", "::1/128"])
    proxy_protocol: list[str] = []  # networks of load balancers: their connections begin with a PROXY header
    local_domains: list[str] = []  # domains for which anybody may submit (they are delivered by `delivery.routes`)
    postmaster: str = ""  # where mail to a bare `postmaster` goes; empty: postmaster@hostname
    command_timeout_s: float = 300.0  # RFC 5321 §4.5.3.2.7
    data_timeout_s: float = 180.0  # per block, RFC 5321 §4.5.3.2.5
    drain_delay_s: float = 0.0  # a node that stops takes new sessions for so long after /readyz has turned 503
    commit_timeout_s: float = 10.0  # final dot to a majority's sync
    max_inflight_bytes: int = 128 * MIB  # message bytes held in memory by all sessions


class RouteSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of `[delivery] routes`: mail to `domain` (`*` = any, `.example.org` = its subdomains) goes `to` a URL."""

    domain: str
    to: str


class DeliverySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[delivery]`"""

    routes: list[RouteSettings] = []  # empty: a Maildir below the data directory
    retry_s: list[float] = msgspec.field(default_factory=lambda: [60.0, 300.0, 900.0, 1800.0, 3600.0])
    retry_jitter_percent: int = 10
    expire_s: float = 432_000.0
    connections_per_route: int = 8
    messages_per_connection: int = 1000
    connect_timeout_s: float = 30.0
    command_timeout_s: float = 300.0
    idle_timeout_s: float = 5.0  # a kept connection is closed after that long without a message


class AdminSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[admin]`"""

    listen: str = "127.0.0.1:8025"
    token_file: str = ""  # needed when `listen` is not a loopback address; who has it may do everything
    read_token_file: str = ""  # who has it may look, but neither change anything nor read mail
    socket: str = "admin.sock"  # a Unix socket in the data directory, or elsewhere with a whole path; empty: none
    tls_cert_file: str = ""
    tls_key_file: str = ""  # empty: the key is in tls_cert_file
    tls_client_ca_file: str = ""  # clients with a certificate of it may look
    operators: list[str] = []  # and those with one of these names in it may do everything


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[log]`"""

    level: str = "info"
    format: str = "text"  # or "json"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything one node is told."""

    node: NodeSettings = msgspec.field(default_factory=NodeSettings)
    cluster: ClusterSettings = msgspec.field(default_factory=ClusterSettings)
    smtp: SmtpSettings = msgspec.field(default_factory=SmtpSettings)
    delivery: DeliverySettings = msgspec.field(default_factory=DeliverySettings)
    admin: AdminSettings = msgspec.field(default_factory=AdminSettings)
    log: LogSettings = msgspec.field(default_factory=LogSettings)


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address; `host` is a name or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Can only this machine reach it? A name other than `localhost` is taken to be elsewhere."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(text: str) -> Address:
    """Return `host:port` or `[ipv6]:port` as an address. Port 0 means any free one.

    Raises:
        ValueError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, as in '[::1]:2525'")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is no address: write host:port with a port of 0 to 65535")
    return Address(host, int(port))


# Rules: what the values must be, alone and together.

RANGES: Final[dict[str, tuple[float, float]]] = {
    "cluster.election_timeout_ms": (20, 60_000),
    "cluster.election_priority": (0, 100),
    "cluster.heartbeat_interval_ms": (5, 30_000),
    "cluster.tick_ms": (1, 1000),
    "cluster.lease_ms": (100, 600_000),
    "cluster.max_log_entries": (10, 100_000_000),
    "cluster.snapshot_threshold": (10, 100_000_000),
    "cluster.snapshot_threshold_bytes": (MIB, 1 << 50),
    "cluster.segment_bytes": (MIB, 4096 * MIB),
    "cluster.log_cache_bytes": (MIB, 1 << 40),
    "cluster.max_append_bytes": (64 * 1024, 4 * MIB),  # a frame of more than 8 MiB does not travel
    "cluster.max_inflight_bytes": (MIB, 1 << 40),
    "cluster.max_pending_bytes": (MIB, 1 << 40),
    "cluster.max_uncommitted_bytes": (MIB, 1 << 40),
    "cluster.max_apply_bytes": (MIB, 1 << 40),
    "cluster.disk_reserve_bytes": (0, 1 << 40),
    "cluster.scrub_bytes_per_s": (0, 1 << 40),
    "cluster.snapshot_bytes_per_s": (0, 1 << 40),
    "smtp.workers": (0, 64),
    "smtp.max_message_bytes": (
        64 * 1024,
        1 << 31,
    ),  # RFC 5321 §4.5.3.1.7: 64 KiB at least
    "smtp.max_recipients": (100, 3000),  # RFC 5321 §4.5.3.1.8: 100 at least; all must fit one entry of the log
    "smtp.max_connections": (1, 1_000_000),
    "smtp.max_connections_per_client": (1, 1_000_000),
    "smtp.max_received_headers": (10, 10_000),
    "smtp.command_timeout_s": (1, 86_400),
    "smtp.data_timeout_s": (1, 86_400),
    "smtp.drain_delay_s": (0, 30),
    "smtp.commit_timeout_s": (
        0.5,
        300,
    ),  # far below the ten minutes of RFC 5321 §4.5.3.2.6
    "smtp.max_inflight_bytes": (MIB, 1 << 40),
    "delivery.retry_jitter_percent": (0, 100),
    "delivery.expire_s": (1, 31_536_000),
    "delivery.connections_per_route": (1, 10_000),
    "delivery.messages_per_connection": (1, 1_000_000),
    "delivery.connect_timeout_s": (0.1, 3600),
    "delivery.command_timeout_s": (0.1, 3600),
    "delivery.idle_timeout_s": (0, 3600),
}
CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "node.loop": LOOPS,
    "cluster.election": ELECTIONS,
    "smtp.engine": ENGINES,
    "log.level": LOG_LEVELS,
    "log.format": LOG_FORMATS,
}


def find_problems(config: Config) -> list[str]:
    """Return what makes `config` unusable, one line each: `section.key = value: what it must be`."""
    return [
        *_range_problems(config),
        *_cluster_problems(config),
        *_mail_problems(config),
    ]


def _say(config: Config, section: str, key: str, rule: str) -> str:
    value = getattr(getattr(config, section), key)
    return f"{section}.{key} = {json.dumps(msgspec.to_builtins(value), ensure_ascii=False)}: {rule}"


def _range_problems(config: Config) -> Iterator[str]:
    for name, (low, high) in RANGES.items():
        section, _, key = name.partition(".")
        if not low <= getattr(getattr(config, section), key) <= high:
            yield _say(config, section, key, f"must be {low} to {high}")
    for name, choices in CHOICES.items():
        section, _, key = name.partition(".")
        if getattr(getattr(config, section), key) not in choices:
            yield _say(config, section, key, f"must be {' or '.join(map(json.dumps, choices))}")


def _cluster_problems(config: Config) -> Iterator[str]:
    cluster = config.cluster
    try:
        parse_node_id(config.node.id)
    except ValueError as error:
        yield f"node.id: {error}"
    if not config.node.data_dir:
        yield _say(config, "node", "data_dir", "must name a directory")
    if not cluster.name:
        yield _say(
            config,
            "cluster",
            "name",
            "must not be empty; nodes of one cluster share it",
        )
    if cluster.segment_bytes % 4096:
        yield _say(config, "cluster", "segment_bytes", "must be a multiple of 4096")
    if cluster.heartbeat_interval_ms * 2 > cluster.election_timeout_ms:
        most = cluster.election_timeout_ms // 2
        yield _say(
            config,
            "cluster",
            "heartbeat_interval_ms",
            f"must be at most half of election_timeout_ms, {most}",
        )
    for key in ("election_timeout_ms", "heartbeat_interval_ms"):
        if cluster.tick_ms > 0 and getattr(cluster, key) % cluster.tick_ms:
            yield _say(
                config,
                "cluster",
                key,
                f"must be a multiple of tick_ms, {cluster.tick_ms}",
            )
    if cluster.max_inflight_bytes < cluster.max_append_bytes:
        least = cluster.max_append_bytes
        yield _say(config, "cluster", "max_inflight_bytes", f"must be at least max_append_bytes, {least}")
    if cluster.lease_reads and cluster.election != "raft":
        yield _say(config, "cluster", "lease_reads", 'needs election = "raft": a lease is a promise not to vote')
    if cluster.lease_ms <= 2 * cluster.election_timeout_ms:
        yield _say(
            config,
            "cluster",
            "lease_ms",
            f"must be above twice election_timeout_ms, {2 * cluster.election_timeout_ms}, "
            "or every election would move the queue",
        )


def _mail_problems(config: Config) -> Iterator[str]:
    if not config.smtp.listen:
        yield _say(config, "smtp", "listen", "must name at least one address")
    for key, texts in (("smtp", config.smtp.listen), ("admin", [config.admin.listen])):
        for text in texts:
            try:
                parse_address(text)
            except ValueError as error:
                yield f"{key}.listen: {error}"
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}|\[[0-9A-Za-z.:]+]", config.smtp.hostname):
        yield _say(
            config,
            "smtp",
            "hostname",
            "must be the name this server says in its greeting and in EHLO",
        )
    for key, networks in (
        ("relay_networks", config.smtp.relay_networks),
        ("proxy_protocol", config.smtp.proxy_protocol),
    ):
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                yield f"smtp.{key}: {error}; write it as in '10.0.0.0/8' or '2001:db8::/32'"
    if config.smtp.max_inflight_bytes < config.smtp.max_message_bytes:
        yield _say(
            config,
            "smtp",
            "max_inflight_bytes",
            "must be at least smtp.max_message_bytes, or the largest never fits",
        )
    if not config.delivery.retry_s or not all(0.1 <= wait <= 2_592_000 for wait in config.delivery.retry_s):
        yield _say(
            config,
            "delivery",
            "retry_s",
            "must be a list of waits in seconds, 0.1 to 2592000 each",
        )
    admin = config.admin
    if (admin.tls_key_file or admin.tls_client_ca_file) and not admin.tls_cert_file:
        yield "admin.tls_cert_file: is needed for admin.tls_key_file and admin.tls_client_ca_file"
    if admin.operators and not admin.tls_client_ca_file:
        yield _say(config, "admin", "operators", "needs admin.tls_client_ca_file, which vouches for their names")
    if not (admin.token_file or admin.tls_client_ca_file) and _reaches_outside(admin.listen):
        yield _say(
            config,
            "admin",
            "listen",
            "is reachable from other machines; set admin.token_file, or listen on 127.0.0.1",
        )


def _reaches_outside(listen: str) -> bool:
    try:
        return not parse_address(listen).is_loopback
    except ValueError:
        return False  # reported by itself


def find_warnings(config: Config) -> Iterator[str]:
    """Yield what works but deserves a look."""
    if config.cluster.election == "lowest-id":
        yield "cluster.election is lowest-id: unsafe under partitions, for development and tests only"
    if config.cluster.peers and len(config.cluster.peers) % 2:
        members = len(config.cluster.peers) + 1
        yield f"{members} nodes survive the loss of {(members - 1) // 2}, no more than {members - 1} nodes would"
    if config.smtp.hostname == "localhost" and any(_reaches_outside(text) for text in config.smtp.listen):
        yield "smtp.hostname is localhost while smtp.listen is reachable from other machines; set the server's own name"
    for network in config.smtp.relay_networks:
        if ipaddress.ip_network(network).prefixlen == 0:
            yield f"smtp.relay_networks has {network}: anyone who can connect may relay through this server"
    for network in config.smtp.proxy_protocol:
        if ipaddress.ip_network(network).prefixlen == 0:
            yield f"smtp.proxy_protocol has {network}: anyone who can connect may claim to be any client"
    for setting, path in (
        ("cluster.secret_file", config.cluster.secret_file),
        ("admin.token_file", config.admin.token_file),
        ("admin.read_token_file", config.admin.read_token_file),
        ("admin.tls_key_file", config.admin.tls_key_file),
    ):
        if path and os.path.exists(path) and os.stat(path).st_mode & 0o007:
            yield f"{setting} {path} can be read by every user of this machine; chmod 640 or less"
