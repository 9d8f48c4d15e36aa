"""`smtpraft kv …`: the replicated key-value map."""

from __future__ import annotations

import base64
import binascii
import sys
from argparse import Namespace
from typing import NoReturn
from urllib.parse import quote, urlencode

from smtpraft.cli.client import Answer, Client, Json
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, print_rows, printable

PAGE_KEYS = 500


def get(client: Client, arguments: Namespace) -> int:
    """Print a value as it is, with a line end of ours if it has none and a person reads it."""
    answer = client.request("GET", _path(arguments.key, arguments.stale))
    if answer.status == 404:
        raise CommandError(Exit.NO_SUCH, f"{arguments.key!r}: no such key")
    if answer.status != 200:
        _fail(answer)
    found = answer.json()
    if arguments.write_out == "json":
        print_json(found)
        return Exit.OK
    value = _value(found)
    if arguments.write_out == "table":
        print_rows(
            ("KEY", "REVISION", "VALUE"),
            [(printable(arguments.key), found["revision"], printable(value.decode("utf-8", "backslashreplace")))],
            "table",
        )
        return Exit.OK
    if sys.stdout is not None:
        sys.stdout.flush()
        sys.stdout.buffer.write(value)
        if sys.stdout.isatty() and not value.endswith(b"\n"):
            sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()
    return Exit.OK


def put(client: Client, arguments: Namespace) -> int:
    """Write a value, whatever was there; `kv cas` writes only at a revision."""
    value = arguments.value.encode("utf-8", "surrogateescape")
    if arguments.value == "-":
        if sys.stdin is None:
            raise CommandError(Exit.USAGE, "- reads the value from stdin, which is closed")
        value = sys.stdin.buffer.read()
    body: Json = {"value_base64": base64.b64encode(value).decode()}
    if arguments.revision is not None:
        body["revision"] = arguments.revision
    answer = client.request_once("POST", _path(arguments.key), body)
    if answer.status != 200:
        _fail(answer)
    facts = answer.json()
    if arguments.write_out == "json":
        print_json(facts)
    else:
        print(f"revision {facts['revision']}")
    return Exit.OK


def delete(client: Client, arguments: Namespace) -> int:
    """Delete a key, with `--revision` only if it is at that one."""
    body: Json = {"delete": True}
    if arguments.revision is not None:
        body["revision"] = arguments.revision
    answer = client.request_once("POST", _path(arguments.key), body)
    if answer.status != 200:
        _fail(answer)
    facts = answer.json()
    if arguments.write_out == "json":
        print_json(facts)
    elif facts["deleted"]:
        print(f"deleted revision {facts['revision']}")
    if not facts["deleted"]:
        raise CommandError(Exit.NO_SUCH, f"{arguments.key!r}: no such key")
    return Exit.OK


def list_keys(client: Client, arguments: Namespace) -> int:
    """Print keys with their revisions and sizes, in the order of their bytes."""
    keys: list[Json] = []
    after, left = "", arguments.limit
    while left is None or left > 0:
        query = {"prefix": arguments.prefix, "limit": str(PAGE_KEYS if left is None else min(left, PAGE_KEYS))}
        if after:
            query["after"] = after
        if arguments.stale:
            query["linearizable"] = "0"
        answer = client.request("GET", f"/v1/kv?{urlencode(query)}")
        if answer.status != 200:
            _fail(answer)
        page = answer.json()
        found = page.get("keys")
        assert isinstance(found, list)
        keys += [info for info in found if isinstance(info, dict)]
        left = None if left is None else left - len(found)
        after = str(page.get("next") or "")
        if not after:
            break
    if arguments.write_out == "json":
        print_json({"keys": list(keys)})
    else:
        rows = [(printable(str(info["key"])), info["revision"], info["size_bytes"]) for info in keys]
        print_rows(("KEY", "REVISION", "BYTES"), rows, arguments.write_out)
    return Exit.OK


def _path(key: str, stale: bool = False) -> str:
    try:
        path = "/v1/kv/" + quote(key.encode(), safe="")
    except UnicodeEncodeError:
        raise CommandError(Exit.USAGE, "a key must be Unicode text") from None
    if not key:
        raise CommandError(Exit.USAGE, "a key cannot be empty")
    return path + ("?linearizable=0" if stale else "")


def _value(found: Json) -> bytes:
    if "value" in found:
        return str(found["value"]).encode()
    try:
        return base64.b64decode(str(found["value_base64"]), validate=True)
    except (KeyError, binascii.Error):
        raise CommandError(Exit.UNAVAILABLE, "the answer is not smtpraft's") from None


def _fail(answer: Answer) -> NoReturn:
    code = answer.code()
    status = {400: Exit.USAGE, 409: Exit.FAILED}.get(answer.status, Exit.UNAVAILABLE)
    raise CommandError(status, f"{code}: {answer.error()}" if code else f"{answer.endpoint}: {answer.error()}")
