"""Who may ask what of the admin API.

    probes, the page itself           anybody
    read                              what changes nothing and shows no content of mail
    operate                           everything

A request is known by its bearer token, by its client certificate (`admin.tls_client_ca_file`), or by coming through the
Unix socket, which only this user of the machine can open. On a loopback address without a token whoever is on this
machine may operate; then a request must name the host as an address or `localhost`, so that no web page in an
operator's browser reaches in here under a stranger's name. What changes something must be JSON, for the same reason.
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from smtpraft.admin.answers import refusal
from smtpraft.config import AdminSettings, ConfigError, parse_address

PUBLIC: Final = frozenset(
    {"/livez", "/readyz", "/healthz", "/leader", "/follower", "/", "/page.css", "/page.js", "/openapi.json"}
)
_CONTENT: Final = ("/body", "/headers", "/v1/snapshot")


class Role(enum.IntEnum):
    """What a request may do."""

    NOBODY = 0
    READ = 1
    OPERATE = 2


def needed(method: str, path: str) -> Role:
    """Return the role that a request needs."""
    if path in PUBLIC and method in ("GET", "HEAD"):
        return Role.NOBODY
    if method not in ("GET", "HEAD") or path.endswith(_CONTENT):
        return Role.OPERATE
    return Role.READ


def server_context(settings: AdminSettings) -> ssl.SSLContext | None:
    """Return the TLS side of the listener, None without a certificate.

    Raises:
        ConfigError: a file cannot be used.
    """
    if not settings.tls_cert_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"admin.tls_cert_file, admin.tls_key_file: cannot be used: {error}") from None
    if settings.tls_client_ca_file:
        try:
            context.load_verify_locations(settings.tls_client_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"admin.tls_client_ca_file: cannot be used: {error}") from None
        context.verify_mode = ssl.CERT_OPTIONAL  # probes have none, and a token does as well
    return context


class Access:
    """Tells who is asking."""

    def __init__(self, settings: AdminSettings, token: bytes, read_token: bytes) -> None:
        self._token = token
        self._read_token = read_token
        self._certificates = bool(settings.tls_client_ca_file)
        self._operators = frozenset(settings.operators)

    @property
    def open_to_this_machine(self) -> bool:
        """Is nobody asked who they are?"""
        return not (self._token or self._read_token or self._certificates)

    def set_token(self, token: bytes) -> None:
        """Take another operator's token from now on, if one was asked for before and is now."""
        if bool(token) == bool(self._token):
            self._token = token

    def check(self, request: web.Request) -> None:
        """Let a request pass.

        Raises:
            HTTPUnauthorized, HTTPForbidden, HTTPUnsupportedMediaType: or say why not.
        """
        need = needed(request.method, request.path)
        if need is Role.NOBODY:
            return
        if not _is_unix(request):
            if self.open_to_this_machine:
                _check_host(request)
            else:
                self._check_role(request, need)
        if request.method not in ("GET", "HEAD") and request.content_type != "application/json":
            raise refusal(web.HTTPUnsupportedMediaType, "send application/json")

    def _check_role(self, request: web.Request, need: Role) -> None:
        role = max(self._by_token(request), self._by_certificate(request))
        if role is Role.NOBODY:
            raise refusal(
                web.HTTPUnauthorized,
                "a bearer token or a client certificate is needed: see admin.token_file, admin.tls_client_ca_file",
            )
        if role < need:
            raise refusal(web.HTTPForbidden, "this needs the role operate; yours is read")

    def _by_token(self, request: web.Request) -> Role:
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        given = text.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() != "bearer" or not given:
            return Role.NOBODY
        if self._token and hmac.compare_digest(given, self._token):
            return Role.OPERATE
        if self._read_token and hmac.compare_digest(given, self._read_token):
            return Role.READ
        return Role.NOBODY

    def _by_certificate(self, request: web.Request) -> Role:
        transport = request.transport
        certificate = transport.get_extra_info("peercert") if transport is not None and self._certificates else None
        if not certificate:
            return Role.NOBODY
        return Role.OPERATE if self._operators & names_of(certificate) else Role.READ


def names_of(certificate: Mapping[str, Any]) -> set[str]:
    """Return the common names and DNS names of a verified certificate, as `ssl` gives it."""
    names = {value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"}
    return names | {value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"}


def _is_unix(request: web.Request) -> bool:
    transport = request.transport
    own = transport.get_extra_info("socket") if transport is not None else None
    return own is not None and own.family == socket.AF_UNIX


def _check_host(request: web.Request) -> None:
    try:
        host = parse_address(request.host if request.host.rpartition(":")[2].isdigit() else f"{request.host}:80").host
        local = host == "localhost" or bool(ipaddress.ip_address(host))
    except ValueError:
        local = False
    if not local:  # a name that a stranger's DNS points to 127.0.0.1
        raise refusal(web.HTTPForbidden, "ask for this host by address, or set admin.token_file")
