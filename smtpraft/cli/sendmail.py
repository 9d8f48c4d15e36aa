"""`smtpraft sendmail`: a message from stdin to a node, with the options that programs give to sendmail.

It goes by SMTP to the first of the servers that can be reached. Either all recipients get it or none: if one is
refused nothing is sent. Exit statuses as sendmail's: 0 it is on a majority's disks; 75 not now, try again; 67 a
recipient is refused; 69 the message is refused; 64 and 65 the command line or the message are wrong.
"""

from __future__ import annotations

import argparse
import email.policy
import email.utils
import getpass
import os
import re
import smtplib
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from typing import Final

from smtpraft.cli.exits import CommandError, Exit

SERVERS_DEFAULT: Final = "127.0.0.1:2525"
SERVERS_VARIABLE: Final = "SMTPRAFT_SMTP_SERVERS"
CONNECT_S: Final = 10.0
ANSWER_S: Final = 660.0  # RFC 5321 §4.5.3.2.6: ten minutes for the answer to the final dot
_RECIPIENT_FIELDS: Final = ("to", "cc", "bcc")


@dataclass(frozen=True, slots=True)
class Mail:
    """What is to be sent. `content` has CRLF at every line's end."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes

    @property
    def needs_smtputf8(self) -> bool:
        """Is an address, or the header, not ASCII (RFC 6531)?"""
        header = self.content.partition(b"\r\n\r\n")[0]
        return not all(address.isascii() for address in (self.sender, *self.recipients)) or not header.isascii()


def sendmail(arguments: argparse.Namespace) -> int:
    """Read, send, and return the exit status.

    Raises:
        CommandError: it was not sent.
    """
    if arguments.mode not in (None, "m"):
        raise CommandError(Exit.USAGE, f"-b{arguments.mode}: only -bm, which sends, is known here")
    text = sys.stdin.buffer.read()
    mail = compose(
        text,
        sender=arguments.sender,
        name=arguments.full_name,
        recipients=arguments.recipients,
        from_header=arguments.read_recipients,
        dot_ends=not (arguments.ignore_dots or "i" in (arguments.o or ())),
    )
    servers = arguments.servers or os.environ.get(SERVERS_VARIABLE) or SERVERS_DEFAULT
    deliver(mail, [server.strip() for server in servers.split(",") if server.strip()])
    return Exit.OK


def compose(
    text: bytes, *, sender: str | None, name: str | None, recipients: Sequence[str], from_header: bool, dot_ends: bool
) -> Mail:
    """Return the message with what its header lacks (From, Date, Message-ID), and without Bcc.

    Raises:
        CommandError: USAGE without recipients; DATA for what cannot be sent.
    """
    lines = re.sub(rb"\r\n|\r", b"\n", text).split(b"\n")
    if dot_ends and b"." in lines:
        lines = [*lines[: lines.index(b".")], b""]
    if lines and lines[-1]:
        lines.append(b"")
    if b"\0" in text:
        raise CommandError(Exit.DATA, "the message has a NUL in it: mail is text; encode it (MIME)")
    head, body = _split(lines)
    header = BytesHeaderParser(policy=email.policy.compat32).parsebytes(b"\n".join(head) + b"\n\n")
    found = list(recipients)
    if from_header:
        fields = [str(value) for field in _RECIPIENT_FIELDS for value in header.get_all(field, [])]
        found += [address for _, address in email.utils.getaddresses(fields) if address]
    if not found:
        advice = "" if from_header else ", or give -t to take them from the header"
        raise CommandError(Exit.USAGE, f"no recipients: name some{advice}")
    envelope_sender = _own_address() if sender is None else sender.strip("<>")
    for address in (envelope_sender, *found):
        if re.search(r"[\s<>\x00-\x1f\x7f]", address):
            raise CommandError(Exit.DATA, f"{address!r} is no mail address")
    added = []
    if "from" not in header:
        added.append(f"From: {email.utils.formataddr((name or '', envelope_sender or _own_address()))}".encode())
    if "date" not in header:
        added.append(f"Date: {email.utils.formatdate(localtime=True)}".encode())
    if "message-id" not in header:
        added.append(f"Message-ID: {email.utils.make_msgid(domain=_domain())}".encode())
    content = b"\r\n".join([*added, *_without_bcc(head), b"", *body])
    return Mail(envelope_sender, tuple(dict.fromkeys(found)), content)


def _split(lines: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Return header and body; a text whose first lines are no header has none."""
    for number, line in enumerate(lines):
        if not line:
            return lines[:number], lines[number + 1 :]
        if not re.match(rb"[!-9;-~]+[ \t]*:", line) and not (number and line[:1] in (b" ", b"\t")):
            return lines[:number], lines[number:]
    return lines, []


def _without_bcc(head: list[bytes]) -> list[bytes]:
    kept = []
    dropping = False
    for line in head:
        if line[:1] not in (b" ", b"\t"):
            dropping = line.partition(b":")[0].strip().lower() == b"bcc"
        if not dropping:
            kept.append(line)
    return kept


def _domain() -> str:
    name = socket.getfqdn()
    return name if "." in name else socket.gethostname() or "localhost"


def _own_address() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid{os.getuid()}"
    return f"{user}@{_domain()}"


def deliver(mail: Mail, servers: Sequence[str]) -> None:
    """Hand `mail` to the first of `servers` that takes it; one that says "not now" leaves it to the next.

    Raises:
        CommandError: TEMPFAIL, also when a connection broke after the final dot: it may have been taken then.
    """
    failures: list[str] = []
    for server in servers:
        host, _, port = server.rpartition(":")
        if not host or not port.isdecimal():
            raise CommandError(Exit.USAGE, f"{server!r} is no server: write host:port")
        try:
            connection = smtplib.SMTP(timeout=CONNECT_S)
            connection.connect(host.strip("[]"), int(port))
        except (OSError, smtplib.SMTPException) as error:
            failures.append(f"{server}: {_reason(error)}")
            continue
        try:
            refusal = _send(connection, mail)
        except smtplib.SMTPServerDisconnected:
            failures.append(
                f"{server}: closed the connection; the message may have been taken: sent again it may arrive twice"
            )
            break
        except OSError as error:
            failures.append(f"{server}: {_reason(error)}; the message may have been taken")
            break
        finally:
            connection.close()
        if refusal is None:
            return
        failures.append(f"{server}: {refusal}")
    raise CommandError(Exit.TEMPFAIL, *failures)


def _send(connection: smtplib.SMTP, mail: Mail) -> str | None:
    """Return None once it is taken, or why the next server should be asked.

    Raises:
        CommandError: no server would take it.
    """
    if connection.sock is not None:
        connection.sock.settimeout(ANSWER_S)
    connection.ehlo_or_helo_if_needed()
    options = [f"SIZE={len(mail.content)}"] if connection.has_extn("size") else []
    if not mail.content.isascii() and connection.has_extn("8bitmime"):
        options.append("BODY=8BITMIME")
    if mail.needs_smtputf8:
        if not connection.has_extn("smtputf8"):
            raise CommandError(Exit.UNAVAILABLE, "the server takes no addresses beyond ASCII")
        options.append("SMTPUTF8")
        connection.command_encoding = "utf-8"
    steps: list[tuple[str, Exit]] = [(f"MAIL FROM:<{mail.sender}> {' '.join(options)}".rstrip(), Exit.UNAVAILABLE)]
    steps += [(f"RCPT TO:<{recipient}>", Exit.NO_SUCH) for recipient in mail.recipients]
    for command, status in steps:
        code, text = connection.docmd(command)
        if code >= 500:
            raise CommandError(status, f"{command}: {code} {text.decode(errors='replace')}")
        if code >= 400:
            return f"{command}: {code} {text.decode(errors='replace')}"
    code, text = connection.data(mail.content)
    if code >= 500:
        raise CommandError(Exit.UNAVAILABLE, f"refused: {code} {text.decode(errors='replace')}")
    if code >= 400:
        return f"{code} {text.decode(errors='replace')}"
    connection.docmd("QUIT")
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
