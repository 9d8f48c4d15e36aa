"""`smtpraft queue …`: the shapes of postqueue, postsuper and postcat."""

from __future__ import annotations

import base64
import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import Final

from smtpraft.cli.client import Client, Json, JsonValue
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, print_rows, printable

_HEADER: Final = "-Queue ID-    --Size-- ----Arrival Time---- -Sender/Recipient-------"
_OPEN: Final = ("queued", "deferred")
_DONE: Final = {
    "delete": "Deleted",
    "hold": "Placed on hold",
    "release": "Released from hold",
    "flush": "Scheduled for immediate delivery",
}


def list_messages(client: Client, arguments: Namespace) -> int:
    """Print the queue as `postqueue -p` does, as a table, or as `postqueue -j` does (one JSON object a line)."""
    messages = client.queue(arguments.limit)
    if arguments.write_out == "json":
        for message in messages:
            print(json.dumps(_postqueue_json(message), ensure_ascii=False))
    elif arguments.write_out == "table":
        rows = [
            (
                message["id"],
                message["state"],
                message["owner"] or "-",
                message["size_bytes"],
                _when(message["arrival_time"]),
                printable(str(message["sender"]) or "<>"),
                len(_list(message, "recipients")),
                message["attempts"],
                _when(message["next_attempt"]),
                printable(str(message["last_reply"] or "")),
            )
            for message in messages
        ]
        headers = ("ID", "STATE", "OWNER", "SIZE", "ARRIVED", "SENDER", "RCPTS", "TRIES", "NEXT", "LAST REPLY")
        print_rows(headers, rows, "table")
    else:
        _print_postqueue(messages)
    return Exit.OK


def _print_postqueue(messages: Iterable[Json]) -> None:
    count = 0
    size_bytes = 0
    for message in messages:
        if not count:
            print(_HEADER)
        count += 1
        size = message["size_bytes"]
        size_bytes += size if isinstance(size, int) else 0
        name = f"{message['id']}{'!' if message['state'] == 'held' else ''}"
        sender = printable(str(message["sender"])) or "MAILER-DAEMON"
        print(f"{name:<13} {size:>8} {_when(message['arrival_time'], '%a %b %e %H:%M:%S'):<20} {sender}")
        for recipient in _list(message, "recipients"):
            assert isinstance(recipient, dict)
            if recipient["state"] not in _OPEN:
                continue
            if recipient["last_reply"]:
                print(f"{'(' + printable(str(recipient['last_reply'])) + ')':>{len(_HEADER)}}")
            print(f"{'':43} {printable(str(recipient['address']))}")
        print()
    if count:
        print(f"-- {(size_bytes + 1023) // 1024} Kbytes in {count} Request{'' if count == 1 else 's'}.")
    else:
        print("Mail queue is empty")


def _postqueue_json(message: Json) -> Json:
    recipients: list[JsonValue] = []
    for recipient in _list(message, "recipients"):
        assert isinstance(recipient, dict)
        entry: Json = {"address": recipient["address"], "state": recipient["state"]}
        if recipient["last_reply"]:
            entry["delay_reason"] = recipient["last_reply"]
        recipients.append(entry)
    shape: Json = {
        "queue_name": message["state"],
        "queue_id": message["id"],
        "arrival_time": message["arrival_time"],
        "message_size": message["size_bytes"],
        "forced_expire": False,
        "sender": message["sender"],
        "recipients": recipients,
    }
    more = {key: value for key, value in message.items() if key not in ("recipients", "id", "state", "size_bytes")}
    return shape | more


def show(client: Client, arguments: Namespace) -> int:
    """Print one message's envelope and state, with `--body` its content too."""
    answer = client.request("GET", f"/v1/queue/{_checked_id(arguments.id)}")
    if answer.status == 404:
        raise CommandError(Exit.NO_SUCH, f"{arguments.id}: no such message in the queue")
    if answer.status != 200:
        raise CommandError(Exit.UNAVAILABLE, f"{answer.endpoint}: {answer.error()}")
    message = answer.json()
    if arguments.write_out == "json":
        # A body is bytes, which need not be UTF-8: in JSON it goes as base64.
        body = base64.b64encode(_body(client, arguments.id)).decode() if arguments.body else None
        print_json(message if body is None else message | {"body_base64": body})
    else:
        print(f"*** ENVELOPE RECORDS {message['state']}/{message['id']} ***")
        for key in ("owner", "size_bytes", "index"):
            print(f"{key}: {'-' if message.get(key) is None else message[key]}")
        print(f"arrival_time: {_when(message['arrival_time'])}")
        print(f"sender: {printable(str(message['sender']))}")
        for recipient in _list(message, "recipients"):
            assert isinstance(recipient, dict)
            print(f"recipient: {printable(str(recipient['address']))}")
            following = _when(recipient["next_attempt"])
            print(f"  state: {recipient['state']}, attempts: {recipient['attempts']}, next: {following}")
            if recipient["last_reply"]:
                print(f"  last reply: {printable(str(recipient['last_reply']))}")
    if arguments.body and arguments.write_out != "json":
        content = _body(client, arguments.id)
        print(f"*** MESSAGE CONTENTS {message['state']}/{message['id']} ***")
        if sys.stdout is not None:
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
    return Exit.OK


def _body(client: Client, message_id: str) -> bytes:
    answer = client.request("GET", f"/v1/queue/{message_id}/body")
    if answer.status == 404:
        raise CommandError(Exit.NO_SUCH, f"{message_id}: no such message in the queue")
    if answer.status != 200:
        raise CommandError(Exit.UNAVAILABLE, f"{answer.endpoint}: {answer.error()}")
    return answer.body


def change(client: Client, arguments: Namespace) -> int:
    """Hold, release, delete or flush: ids, `-` for ids from stdin, or `ALL` (in upper case: not by chance)."""
    action: str = arguments.action
    ids: list[str] = arguments.ids
    if ids == ["-"]:
        if sys.stdin is None:
            raise CommandError(Exit.USAGE, "- reads ids from stdin, which is closed")
        ids = sys.stdin.read().split()
        if not ids:
            return Exit.OK
    if not ids and action == "flush":
        ids = ["ALL"]
    if "ALL" in ids and len(ids) > 1:
        raise CommandError(Exit.USAGE, "ALL stands alone")
    body: Json = {"all": True} if ids == ["ALL"] else {"ids": [_checked_id(text) for text in ids]}
    answer = client.request("POST", f"/v1/queue/{action}", body)
    if answer.status != 200:
        raise CommandError(Exit.UNAVAILABLE, f"{answer.endpoint}: {answer.error()}")
    facts = answer.json()
    if arguments.write_out == "json":
        print_json(facts)
    else:
        changed = facts.get("changed")
        print(f"{_DONE[action]}: {changed} message{'' if changed == 1 else 's'}")
    unknown = _list(facts, "unknown")
    for text in unknown:
        print(f"smtpraft: {text}: no such message in the queue", file=sys.stderr)
    return Exit.NO_SUCH if unknown else Exit.OK


def _checked_id(text: str) -> str:
    if not text.isascii() or not text.isalnum() or len(text) > 32:
        raise CommandError(Exit.USAGE, f"{text!r} is no queue id (ALL, in upper case, means every message)")
    return text


def _list(message: Json, key: str) -> Sequence[JsonValue]:
    value = message.get(key)
    return value if isinstance(value, list) else []


def _when(seconds: object, style: str = "%Y-%m-%d %H:%M:%S") -> str:
    return time.strftime(style, time.localtime(seconds)) if isinstance(seconds, int | float) else "-"
