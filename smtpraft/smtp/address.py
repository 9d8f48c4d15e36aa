"""Mailbox paths of MAIL and RCPT, read strictly: RFC 5321 §4.1.2, §4.1.3, with the letters of RFC 6531 §3.3.

Angle brackets are required, source routes are dropped (RFC 5321 §3.3, Appendix C), quoted local parts keep their
quotes, a domain keeps its case. No control octet passes, so no address can end a command or a header line further on.

Lengths: domain 255 octets, as the RFC says. Its 64 octets for a local part are what everybody must be able to
receive, not a limit to enforce (§4.5.3.1: "implementation techniques that impose no limits [...] should be used");
return paths of mailing lists (VERP, SRS) are longer every day. Ours is 255 octets: what a file name may have.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

from smtpraft.smtp.scan import plain_path

DOMAIN_BYTES_MAX: Final = 255  # RFC 5321 §4.5.3.1.2
LOCAL_PART_BYTES_MAX: Final = 255
_LABEL_BYTES_MAX: Final = 63  # RFC 1035 §2.3.4

_U: Final = "\u00a0-\U0010ffff"  # the C1 controls below U+00A0 are out; `isprintable` weeds out the rest
_ATOM: Final = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{_U}-]+"
_QUOTED: Final = rf'"(?:[ !#-\[\]-~{_U}]|\\[ -~])*"'
_LOCAL_PART: Final = rf"(?:{_ATOM}(?:\.{_ATOM})*|{_QUOTED})"
# An underscore is no letter of a host name, but real domains have it.
_SUBDOMAIN: Final = rf"[A-Za-z0-9_{_U}](?:[A-Za-z0-9_{_U}-]*[A-Za-z0-9_{_U}])?"
_DOMAIN: Final = rf"{_SUBDOMAIN}(?:\.{_SUBDOMAIN})*"
_LITERAL: Final = r"\[[A-Za-z0-9.:]+\]"
_ROUTE: Final = rf"@{_DOMAIN}(?:,@{_DOMAIN})*:"
_PATH: Final = re.compile(rf"<(?:(?:{_ROUTE})?({_LOCAL_PART})@({_DOMAIN}|{_LITERAL}))?>")
_POSTMASTER: Final = re.compile(r"<(postmaster)>", re.IGNORECASE)


class AddressError(ValueError):
    """The text is no path of RFC 5321; the message says what is wrong with it, without repeating it."""


class Path(NamedTuple):
    """A forward- or reverse-path. `<>` has neither part; `<postmaster>` has no domain."""

    local_part: str
    domain: str

    @property
    def address(self) -> str:
        """`local@domain`, "" for the null path."""
        return f"{self.local_part}@{self.domain}" if self.domain else self.local_part


NULL_PATH: Final = Path("", "")


def parse_path(text: str) -> tuple[Path, str]:
    """Return the path that `text` begins with and what follows its closing bracket.

    Raises:
        AddressError: it begins with no path.
    """
    plain = plain_path(text)
    if plain is not None:
        return Path(plain[0], plain[1]), text[plain[2] :]
    match = _PATH.match(text)
    if match is None:
        match = _POSTMASTER.match(text)
        if match is None:
            bracket = text.startswith("<")
            raise AddressError("bad address syntax" if bracket else "the address must be in <angle brackets>")
        return Path(match[1], ""), text[match.end() :]
    local_part, domain = match[1], match[2]
    rest = text[match.end() :]
    if local_part is None:
        return NULL_PATH, rest
    if not match[0].isascii():
        _check_printable(match[0])
        if len(local_part.encode()) > LOCAL_PART_BYTES_MAX or len(domain.encode()) > DOMAIN_BYTES_MAX:
            raise AddressError("the address is too long")
    elif len(local_part) > LOCAL_PART_BYTES_MAX or len(domain) > DOMAIN_BYTES_MAX:
        raise AddressError("the address is too long")
    if domain[0] == "[":
        _check_literal(domain[1:-1])
    elif len(domain) > _LABEL_BYTES_MAX and any(len(label) > _LABEL_BYTES_MAX for label in domain.split(".")):
        raise AddressError("a part of the domain is too long")
    return Path(local_part, domain), rest


def _check_printable(text: str) -> None:
    if not text.isprintable():
        raise AddressError("the address holds characters that cannot be printed")


def _check_literal(text: str) -> None:
    """RFC 5321 §4.1.3: an IPv4 address, or `IPv6:` and an IPv6 address. No other tag was ever registered."""
    try:
        if text[:5].lower() == "ipv6:":
            ipaddress.IPv6Address(text[5:])
        else:
            ipaddress.IPv4Address(text)
    except ValueError:
        raise AddressError("bad address literal") from None
