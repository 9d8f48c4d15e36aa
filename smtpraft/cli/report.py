"""`smtpraft report`: one archive for a bug report: what every endpoint says of itself, and of this machine. No secrets.

    report-TIME/NODE/status.json, overview.json, members.json, metrics.txt, readyz.txt, events.txt, error.txt
    report-TIME/machine.json

No mail, no address of a sender or recipient, no token, no key: what is asked for has none of them, and what a stranger
may have written (the last reply of a destination) is left out.
"""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import tarfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from smtpraft._version import __version__
from smtpraft.cli import halves
from smtpraft.cli.client import Client, EndpointError
from smtpraft.cli.exits import CommandError, Exit

_ASKED: Final = {
    "status.json": "/v1/status",
    "overview.json": "/v1/overview",
    "members.json": "/v1/members?linearizable=0",
    "metrics.txt": "/metrics",
    "readyz.txt": "/readyz?verbose",
}
EVENTS_S: Final = 1.5


def report(client: Client, arguments: Namespace) -> int:
    """Write the archive; return UNAVAILABLE if no endpoint answered, with what is known here in it all the same."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = Path(arguments.file or f"smtpraft-report-{stamp}.tar.gz")
    answered = 0
    try:
        with path.open("xb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            os.fchmod(file.fileno(), 0o600)
            _add(archive, f"report-{stamp}/machine.json", json.dumps(_machine(), indent=1))
            for number, endpoint in enumerate(client.endpoints, start=1):
                room = f"report-{stamp}/endpoint-{number}"
                for name, text in _facts(client, endpoint):
                    _add(archive, f"{room}/{name}", text)
                    answered += name == "status.json"
    except FileExistsError:
        raise CommandError(Exit.FAILED, f"{path} is there already; name another file") from None
    except OSError as error:
        raise CommandError(Exit.FAILED, f"{path}: cannot be written: {error.strerror}") from None
    print(f"{path}: {answered} of {len(client.endpoints)} endpoints answered")
    if not answered:
        print("smtpraft: no endpoint answered; the archive tells of this machine only", file=sys.stderr)
        return Exit.UNAVAILABLE
    return Exit.OK


def _facts(client: Client, endpoint: str) -> Iterator[tuple[str, str]]:
    for name, path in _ASKED.items():
        try:
            answer = client.ask(endpoint, "GET", path)
        except EndpointError as error:
            yield "error.txt", f"{error}\n"
            return
        text = answer.body.decode("utf-8", "replace")
        if name == "overview.json" and answer.status == 200:
            view = answer.json()
            for row in view["destinations"] if isinstance(view["destinations"], list) else ():
                if isinstance(row, dict) and row.get("down"):
                    row["down"] = "(left out)"
            text = json.dumps(view, indent=1)
        if answer.status == 200 or name == "readyz.txt":
            yield name, text
        else:
            yield f"{name}.error", f"HTTP {answer.status}: {answer.error()}\n"
    single = Client([endpoint], timeout_s=EVENTS_S, token=client.token, tls=client.tls)
    lines = []
    try:
        for event_name, event in single.stream("/v1/events?topics=cluster&after=0"):
            if event_name == "cluster":
                lines.append(json.dumps(event))
    except CommandError:
        pass  # nothing more came within EVENTS_S
    yield "events.txt", "".join(f"{line}\n" for line in lines)


def _machine() -> dict[str, object]:
    facts: dict[str, object] = {
        "smtpraft": __version__,
        "compiled": halves.complete(halves.parts()),
        "compiled_parts": halves.parts(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "time": time.time(),
    }
    for name in ("loadavg", "meminfo", "pressure/io", "pressure/cpu"):
        try:
            facts[name] = Path("/proc", name).read_text()
        except OSError:
            continue
    return facts


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
    archive.addfile(entry, io.BytesIO(content))
