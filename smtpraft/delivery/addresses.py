"""Mail addresses on their way out: split, compared, made safe for an SMTP command and for a file name.

An address reaches this room as the client gave it. Whatever checked it on the way in, it is checked again here before
it is written anywhere: a line end or a `>` in an address would be a command of its own to the next server.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

import idna

PATH_PIECE_BYTES_MAX: Final = 200  # a file name may have 255 bytes; leave room for what a Maildir reader appends

# Printable, and none of the characters that delimit a path in MAIL and RCPT (RFC 5321 §4.1.2).
_PLAIN: Final = re.compile(r"[^\x00-\x20\x7f-\xa0<>\"\\\u2028\u2029\ud800-\udfff]+")
_QUOTED: Final = re.compile(r'"(?:[^\x00-\x1f\x7f-\x9f"\\\u2028\u2029\ud800-\udfff]|\\[\x20-\x7e])*"')
_PATH_SAFE: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+=@.")


class BadAddress(ValueError):
    """The address cannot be written to a command or a path; the text says why and is safe to log."""


def split(address: str) -> tuple[str, str]:
    """Return (local part, domain) of `address`; the domain is empty when there is none (`postmaster`)."""
    local, at, domain = address.rpartition("@")
    return (local, domain) if at else (address, "")


def check(address: str) -> str:
    """Return `address`, which is safe between `<` and `>` in a command.

    Raises:
        BadAddress: a control character, white space or an angle bracket outside quotes, or half a surrogate pair.
    """
    if _PLAIN.fullmatch(address):
        return address
    local, domain = split(address)
    if _QUOTED.fullmatch(local) and (not domain or _PLAIN.fullmatch(domain)):
        return address
    raise BadAddress(f"address {address!a} holds characters that no command may carry")


@lru_cache(maxsize=4096)
def canonical_domain(domain: str) -> str:
    """Return the form in which domains are compared: lower case, A-labels (RFC 5890), no final dot.

    A label that IDNA refuses is only lowered: an odd domain must still match `*`, and be the next server's to refuse.
    """
    domain = domain.removesuffix(".")
    if domain.isascii():
        return domain.lower()
    return ".".join(_canonical_label(label) for label in re.split("[.\u3002\uff0e\uff61]", domain))


def _canonical_label(label: str) -> str:
    if label.isascii():
        return label.lower()
    try:
        return idna.encode(label, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return label.lower()


def downgraded(address: str) -> str | None:
    """Return `address` with its domain in A-labels, or None if it stays non-ASCII: the local part has no such form."""
    local, domain = split(address)
    if not local.isascii():
        return None
    address = f"{local}@{canonical_domain(domain)}" if domain else local
    return address if address.isascii() else None


def path_piece(text: str) -> str:
    """Return `text` as one component of a path; different texts give different components.

    Letters, digits and `-_+=@.` stand for themselves; every other byte, and a dot that comes first, is `%XX`: no slash,
    no NUL, no `..`, nothing hidden, and no Maildir++ folder.

    Raises:
        BadAddress: it is empty or becomes longer than 200 bytes.
    """
    if not text:
        raise BadAddress("an empty name is no path component")
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadAddress(f"name {text!a} is no Unicode text") from None
    piece = "".join(chr(byte) if byte in _PATH_SAFE else f"%{byte:02X}" for byte in raw)
    if piece.startswith("."):
        piece = "%2E" + piece[1:]
    if len(piece) > PATH_PIECE_BYTES_MAX:
        raise BadAddress(f"name {text[:32]!a}... is too long for a path component")
    return piece


def mailbox_pieces(address: str, local_domain: str) -> tuple[str, str]:
    """Return (domain, local part) of `address` as path components, for a mailbox that is ours.

    The domain is canonical. The local part is unquoted and lowered: at the final host `User@` and `user@` are one
    person (RFC 5321 §2.4 leaves that to us). An address without domain belongs to `local_domain`.

    Raises:
        BadAddress: it cannot be made a path.
    """
    local, domain = split(address)
    if len(local) > 1 and local.startswith('"') and local.endswith('"'):
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    local = unicodedata.normalize("NFC", local).lower()
    return path_piece(canonical_domain(domain) or canonical_domain(local_domain)), path_piece(local)
