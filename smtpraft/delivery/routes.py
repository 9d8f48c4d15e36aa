"""Where mail for a domain goes: `[delivery] routes`, first match wins.

    domain          matches                      to
    example.org     that domain                  smtp://host:port   smtp://[::1]:2525
    .example.org    its subdomains, not itself   lmtp://host:port   lmtp+unix:///run/dovecot/lmtp
    *               everything else              maildir:///var/mail/{domain}/{local_part}   discard:

Domains compare without regard to case, and as A-labels. A domain that no route matches is a gap in our configuration:
its mail is deferred, said loudly, and never bounced for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final
from urllib.parse import urlsplit

from smtpraft.config import ConfigError, RouteSettings
from smtpraft.delivery.addresses import canonical_domain, split

SMTP_PORT: Final = 25
LMTP_PORT: Final = 24
_ROUTES_CACHED_MAX: Final = 10_000
_SCHEMES: Final = "smtp://, lmtp://, lmtp+unix:///, maildir:///, discard:"
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_PLACEHOLDERS: Final = frozenset({"domain", "local_part"})


class Transport(Enum):
    """How mail leaves."""

    SMTP = "smtp"
    LMTP = "lmtp"
    MAILDIR = "maildir"
    DISCARD = "discard"
    NONE = "none"
    """No route: a gap in our configuration."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a route leads. Mail for equal destinations shares one queue, its connections and its back-off."""

    transport: Transport
    host: str = ""
    port: int = 0
    path: str = ""
    """A Unix socket, or a Maildir with `{domain}` and `{local_part}` in it."""

    def __hash__(self) -> int:
        return hash((self.host, self.port, self.path))  # asked for with each message: that of an enum is no cheap one

    def __str__(self) -> str:
        match self.transport:
            case Transport.DISCARD:
                return "discard:"
            case Transport.NONE:
                return "no route"
            case Transport.MAILDIR:
                return f"maildir://{self.path}"
            case _ if self.path:
                return f"{self.transport.value}+unix://{self.path}"
            case _:
                host = f"[{self.host}]" if ":" in self.host else self.host
                return f"{self.transport.value}://{host}:{self.port}"

    @property
    def site(self) -> str:
        """A name of the far side for a log line or a `Remote-MTA`."""
        place = "" if self.transport is Transport.MAILDIR else self.path
        return self.host or place or self.transport.value


NO_ROUTE: Final = Destination(Transport.NONE)
DISCARD: Final = Destination(Transport.DISCARD)


def parse_destination(url: str) -> Destination:
    """Return the destination that a route's `to` names.

    Raises:
        ConfigError: it names none; the text says what would.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"route to {url!r}: {error}") from None
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ConfigError(f"route to {url!r}: no user, password, query or fragment belongs there")
    match parts.scheme:
        case "smtp" | "lmtp":
            transport = Transport(parts.scheme)
            if not parts.hostname:
                raise ConfigError(f"route to {url!r}: a host is missing, as in {parts.scheme}://127.0.0.1:2600")
            if parts.path not in ("", "/"):
                raise ConfigError(f"route to {url!r}: a path has no meaning here (a Unix socket is lmtp+unix:///path)")
            if port is None:
                port = SMTP_PORT if transport is Transport.SMTP else LMTP_PORT
            if port == 0:
                raise ConfigError(f"route to {url!r}: port 0 is no port")
            return Destination(transport, host=parts.hostname, port=port)
        case "lmtp+unix" | "maildir":
            if parts.netloc or not parts.path.startswith("/") or len(parts.path) < 2 or "\0" in parts.path:
                raise ConfigError(f"route to {url!r}: an absolute path is missing, as in {parts.scheme}:///run/mail")
            if parts.scheme == "maildir":
                return Destination(Transport.MAILDIR, path=_check_template(url, parts.path))
            return Destination(Transport.LMTP, path=parts.path)
        case "discard":
            if parts.netloc or parts.path:
                raise ConfigError(f"route to {url!r}: nothing may follow discard:")
            return DISCARD
        case _:
            raise ConfigError(f"route to {url!r}: it begins with none of {_SCHEMES}")


def _check_template(url: str, path: str) -> str:
    for name in _PLACEHOLDER.findall(path):
        if name not in _PLACEHOLDERS:
            raise ConfigError(f"route to {url!r}: {{{name}}} is unknown; there are {{domain}} and {{local_part}}")
    if "{" in _PLACEHOLDER.sub("", path) or "}" in _PLACEHOLDER.sub("", path):
        raise ConfigError(f"route to {url!r}: a brace is not closed")
    if ".." in path.split("/"):
        raise ConfigError(f"route to {url!r}: .. may not be part of a mailbox's path")
    return path.rstrip("/")


class Routes:
    """The table, parsed once.

    Raises:
        ConfigError: a route is wrong, or can never be reached.
    """

    def __init__(self, settings: Sequence[RouteSettings], *, default: Destination | None = None) -> None:
        self._exact: dict[str, tuple[int, Destination]] = {}
        self._below: dict[str, tuple[int, Destination]] = {}
        self._any: tuple[int, Destination] | None = None
        self._found: dict[str, Destination | None] = {}
        for order, route in enumerate(settings):
            self._add(order, route)
        if not settings and default is not None:
            self._any = (0, default)

    def _add(self, order: int, route: RouteSettings) -> None:
        destination = parse_destination(route.to)
        if self._any is not None:
            raise ConfigError(f"route for {route.domain!r} comes after '*', which takes everything")
        if route.domain == "*":
            self._any = (order, destination)
            return
        table, name = (self._below, route.domain[1:]) if route.domain.startswith(".") else (self._exact, route.domain)
        name = canonical_domain(name)
        if not name or name.startswith(".") or re.search(r"[\s@*/{}]", name):
            raise ConfigError(f"route for {route.domain!r}: must be a domain, '.domain' for its subdomains, or '*'")
        if name in table:
            raise ConfigError(f"route for {route.domain!r} appears twice; only the first would be used")
        table[name] = (order, destination)

    @property
    def destinations(self) -> list[Destination]:
        """Every destination of the table, in its order, once."""
        rows = [*self._exact.values(), *self._below.values()]
        if self._any is not None:
            rows.append(self._any)
        rows.sort(key=lambda row: row[0])
        return list(dict.fromkeys(destination for _, destination in rows))

    def find(self, address: str) -> Destination | None:
        """Return where mail for `address` goes, or None if no route takes it."""
        _, domain = split(address)
        try:
            return self._found[domain]
        except KeyError:
            pass
        if len(self._found) >= _ROUTES_CACHED_MAX:
            self._found.clear()  # a stranger's million domains must not stay in our memory
        found = self._found[domain] = self._find(canonical_domain(domain))
        return found

    def _find(self, domain: str) -> Destination | None:
        rows = []
        if domain in self._exact:
            rows.append(self._exact[domain])
        below = domain
        while "." in below:
            below = below.partition(".")[2]
            if below in self._below:
                rows.append(self._below[below])
        if self._any is not None:
            rows.append(self._any)
        return min(rows, key=lambda row: row[0])[1] if rows else None
