"""Every setting, with its unit, default and range; from a TOML file and the environment.

Order of precedence: environment (`SMTPRAFT_CLUSTER__ELECTION_TIMEOUT_MS=…`), file, default. Strict: an unknown key is an
error that names it. Secrets come from files, never from here.
"""

from __future__ import annotations

import msgspec


class ConfigError(ValueError):
    """The configuration cannot be used; the text names the setting and says what it must be."""


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[node]`"""

    id: str = "node-1"
    data_dir: str = "./smtpraft-data"
    loop: str = "uvloop"  # or "asyncio"


class ClusterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[cluster]`"""

    name: str = "smtpraft"
    listen: str = "127.0.0.1:5001"
    peers: list[str] = []
    secret_file: str = ""
    election: str = "raft"
    election_timeout_ms: int = 150
    heartbeat_interval_ms: int = 50
    tick_ms: int = 10
    lease_ms: int = 2000
    max_log_entries: int = 10_000
    snapshot_threshold: int = 5_000
    snapshot_threshold_bytes: int = 256 * 1024 * 1024
    segment_bytes: int = 64 * 1024 * 1024
    log_cache_bytes: int = 64 * 1024 * 1024
    max_append_bytes: int = 1024 * 1024
    max_inflight_bytes: int = 16 * 1024 * 1024
    max_pending_bytes: int = 128 * 1024 * 1024


class SmtpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[smtp]`"""

    listen: list[str] = ["127.0.0.1:2525"]
    hostname: str = "localhost"
    max_message_bytes: int = 52_428_800
    max_recipients: int = 1000
    max_connections: int = 1000
    max_connections_per_client: int = 200
    max_received_headers: int = 100  # RFC 5321 §6.3
    relay_networks: list[str] = ["127.0.0.0/8", "::1/128"]
    local_domains: list[str] = []  # domains for which anybody may submit (they are delivered by `delivery.routes`)
    postmaster: str = ""  # where mail to a bare `postmaster` goes; empty: postmaster@hostname
    command_timeout_s: float = 300.0  # RFC 5321 §4.5.3.2.7
    data_timeout_s: float = 180.0  # per block, RFC 5321 §4.5.3.2.5
    commit_timeout_s: float = 10.0  # final dot to a majority's sync
    max_inflight_bytes: int = 128 * 1024 * 1024  # message bytes held in memory by all sessions


class RouteSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of `[delivery] routes`: mail to `domain` (`*` = any, `.example.org` = its subdomains) goes `to` a URL."""

    domain: str
    to: str


class DeliverySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[delivery]`"""

    routes: list[RouteSettings] = []  # empty: a Maildir below the data directory
    retry_s: list[float] = [60, 300, 900, 1800, 3600]
    retry_jitter_percent: int = 10
    expire_s: float = 432_000
    connections_per_route: int = 8
    messages_per_connection: int = 1000
    connect_timeout_s: float = 30.0
    command_timeout_s: float = 300.0
    idle_timeout_s: float = 5.0  # a kept connection is closed after that long without a message


class AdminSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[admin]`"""

    listen: str = "127.0.0.1:8025"


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[log]`"""

    level: str = "info"
    format: str = "text"  # or "json"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything one node is told."""

    node: NodeSettings = NodeSettings()
    cluster: ClusterSettings = ClusterSettings()
    smtp: SmtpSettings = SmtpSettings()
    delivery: DeliverySettings = DeliverySettings()
    admin: AdminSettings = AdminSettings()
    log: LogSettings = LogSettings()
