"""SIGHUP: the settings are read again, what can change in a running node does, and the rest is said.

A file that cannot be used changes nothing. What has begun ends as it began: a session keeps the settings that it was
greeted under.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

import msgspec

from smtpraft.config import Config

log = logging.getLogger(__name__)

LIVE: Final = frozenset(
    {
        "log.level",
        "log.format",
        "admin.token_file",
        "smtp.command_timeout_s",
        "smtp.commit_timeout_s",
        "smtp.data_timeout_s",
        "smtp.drain_delay_s",
        "smtp.hostname",
        "smtp.local_domains",
        "smtp.max_connections",
        "smtp.max_connections_per_client",
        "smtp.max_message_bytes",
        "smtp.max_received_headers",
        "smtp.max_recipients",
        "smtp.postmaster",
        "smtp.proxy_protocol",
        "smtp.relay_networks",
    }
)
"""Settings that SIGHUP changes; all others wait for a restart."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is different in a configuration, by name, and the one that is in force once the live part is taken over."""

    live: tuple[str, ...]
    waiting: tuple[str, ...]
    merged: Config


def compare(running: Config, wanted: Config) -> Change:
    """Return how `wanted` differs from `running`."""
    before: dict[str, dict[str, object]] = msgspec.to_builtins(running)
    after: dict[str, dict[str, object]] = msgspec.to_builtins(wanted)
    changed = [
        f"{section}.{key}"
        for section, settings in after.items()
        for key, value in settings.items()
        if before[section][key] != value
    ]
    live = tuple(name for name in changed if name in LIVE)
    for name in live:
        section, _, key = name.partition(".")
        before[section][key] = after[section][key]
    return Change(live, tuple(name for name in changed if name not in LIVE), msgspec.convert(before, Config))
