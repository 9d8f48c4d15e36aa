"""`smtpraft log level [LEVEL]`: on every endpoint that was named."""

from __future__ import annotations

import argparse

from smtpraft.cli.client import Client, EndpointError, endpoints_from, token_from
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, print_rows


def level(arguments: argparse.Namespace) -> int:
    """Say or set the level of each endpoint.

    Raises:
        CommandError: one of them did not answer; the others are done all the same.
    """
    client = Client(endpoints_from(arguments.endpoints), arguments.command_timeout, token_from(arguments.token_file))
    rows: list[tuple[str, object]] = []
    failures = []
    for endpoint in client.endpoints:
        try:
            if arguments.level is None:
                answer = client.ask(endpoint, "GET", "/v1/log/level")
            else:
                answer = client.ask(endpoint, "POST", "/v1/log/level", {"level": arguments.level})
        except EndpointError as error:
            failures.append(str(error))
            continue
        if answer.status == 200:
            rows.append((endpoint, answer.json()["level"]))
        else:
            failures.append(f"{endpoint}: {answer.error()}")
    if arguments.write_out == "json":
        print_json(dict(rows))
    else:
        print_rows(("ENDPOINT", "LEVEL"), rows, arguments.write_out)
    if failures:
        raise CommandError(Exit.UNAVAILABLE, *failures)
    return Exit.OK
