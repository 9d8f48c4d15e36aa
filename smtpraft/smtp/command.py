"""What the commands of a client say: the arguments of MAIL and RCPT. `scan` has cut them out of its bytes."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from smtpraft.smtp.address import NULL_PATH, AddressError, Path, parse_path

COMMAND_BYTES_MAX: Final = 510  # RFC 5321 §4.5.3.1.4: 512 octets with the CRLF

_KEYWORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_VALUE: Final = re.compile("[!-<>-~\u00a0-\U0010ffff]+")


class CommandRefused(Exception):
    """The command cannot be carried out; `reply` is what the client is told."""

    def __init__(self, reply: str) -> None:
        super().__init__(reply)
        self.reply = reply


class MailArguments(NamedTuple):
    """`MAIL FROM:` read. `size_bytes` is 0 if it was not declared."""

    path: Path
    size_bytes: int
    body_8bitmime: bool
    smtputf8: bool
    options: list[str]
    """The parameters as they were written, but for their keywords, which are in capitals as for aiosmtpd's hooks."""


def parse_mail(argument: str) -> MailArguments:
    """Read the argument of MAIL.

    Raises:
        CommandRefused: with the reply.
    """
    path, options = _parse_path_and_options(argument, "FROM:", "501 5.5.4 Syntax: MAIL FROM:<address>", "5.1.7")
    if path.local_part and not path.domain:
        raise CommandRefused("501 5.1.7 Error: the sender address needs a domain")
    size_bytes = 0
    body_8bitmime = smtputf8 = False
    seen = set()
    for number, option in enumerate(options):
        keyword, equals, value = option.partition("=")
        if not _KEYWORD.fullmatch(keyword) or (equals and not _VALUE.fullmatch(value)):
            raise CommandRefused("501 5.5.4 Error: bad MAIL parameter syntax")
        if keyword != (keyword := keyword.upper()):
            options[number] = f"{keyword}{equals}{value}"
        if keyword in seen:
            raise CommandRefused("501 5.5.4 Error: MAIL parameter given twice")
        seen.add(keyword)
        if keyword == "SIZE":
            if not (value.isascii() and value.isdigit() and len(value) <= 20):  # RFC 1870 §3
                raise CommandRefused("501 5.5.4 Error: bad SIZE value")
            size_bytes = int(value)
        elif keyword == "BODY":
            if value.upper() not in ("7BIT", "8BITMIME"):
                raise CommandRefused("501 5.5.4 Error: BODY must be 7BIT or 8BITMIME")
            body_8bitmime = value.upper() == "8BITMIME"
        elif keyword == "SMTPUTF8":
            if equals:
                raise CommandRefused("501 5.5.4 Error: SMTPUTF8 takes no value")
            smtputf8 = True
        else:
            raise CommandRefused("555 5.5.4 Error: MAIL parameter not recognized")
    _check_utf8(path, smtputf8)
    return MailArguments(path, size_bytes, body_8bitmime, smtputf8, options)


def parse_rcpt(argument: str, smtputf8: bool) -> Path:
    """Read the argument of RCPT. `<postmaster>` is the one path that comes without a domain (RFC 5321 §4.5.1).

    Raises:
        CommandRefused: with the reply.
    """
    path, options = _parse_path_and_options(argument, "TO:", "501 5.5.4 Syntax: RCPT TO:<address>", "5.1.3")
    if path is NULL_PATH:
        raise CommandRefused("501 5.1.3 Error: the null address receives no mail")
    if options:
        raise CommandRefused("555 5.5.4 Error: RCPT parameter not recognized")
    _check_utf8(path, smtputf8)
    return path


def _parse_path_and_options(argument: str, keyword: str, syntax: str, status: str) -> tuple[Path, list[str]]:
    if argument[: len(keyword)].upper() != keyword:
        raise CommandRefused(syntax)
    # RFC 5321 §3.3 has no space after the colon; enough clients do.
    text = argument[len(keyword) :].lstrip(" ")
    try:
        path, rest = parse_path(text)
    except AddressError as error:
        raise CommandRefused(f"501 {status} Error: {error}") from None
    if not rest:
        return path, []
    if rest[0] != " ":
        raise CommandRefused(syntax)
    return path, [option for option in rest.split(" ") if option]


def _check_utf8(path: Path, smtputf8: bool) -> None:
    if not smtputf8 and not (path.local_part.isascii() and path.domain.isascii()):
        raise CommandRefused("553 5.6.7 Error: a non-ASCII address needs SMTPUTF8")  # RFC 6531 §3.5
