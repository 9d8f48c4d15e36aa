"""`smtpraft member` and `smtpraft leader`: who the members are, who leads."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from smtpraft.cli.client import Answer, Client, Json
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, print_rows

_HEADERS: Final = ("NODE", "ROLE", "LEADER", "ADDRESS", "REACHABLE", "LAG", "STATE", "INCARNATION")


def list_members(client: Client, arguments: Namespace) -> int:
    """Print the members as the leader sees them, or as one node knows them while there is no leader."""
    try:
        answer = client.request("GET", "/v1/members", next_on=(409, 503))
    except CommandError as error:
        if error.status != Exit.TEMPFAIL:
            raise
        answer = client.request("GET", "/v1/members?linearizable=0")
    _print_members(_facts(answer), arguments.write_out)
    return Exit.OK


def change(client: Client, arguments: Namespace) -> int:
    """Have the leader add, promote, remove or replace members."""
    operation: str = arguments.operation
    if operation == "add":
        body: Json = {"members": arguments.members, "learner": arguments.learner}
    else:
        body = {"node": arguments.node, "force": arguments.force}
        if operation == "replace" and arguments.address:
            body["address"] = arguments.address
    facts = _facts(client.request_once("POST", f"/v1/members/{operation}", body))
    if arguments.write_out == "json":
        print_json(facts)
        return Exit.OK
    done = facts.get("done")
    names = ", ".join(map(str, done)) if isinstance(done, list) else str(done)
    match operation:
        case "add":
            what = f"Added {names} as learner; " + (
                "smtpraft member promote gives it a vote"
                if arguments.learner
                else "it becomes a voter by itself once it has caught up"
            )
        case "replace":
            what = f"Replaced {names}: a learner now; it becomes a voter by itself once it has caught up"
        case "promote":
            what = f"Promoted {names} to voter"
        case _:
            what = f"Removed {names}; it stops by itself if it runs"
    print(what)
    return Exit.OK


def transfer(client: Client, arguments: Namespace) -> int:
    """Hand leadership to another node."""
    body: Json = {"to": arguments.node} if arguments.node else {}
    answer = client.request("POST", "/v1/leader/transfer", body, next_on=(409, 503))
    if answer.status != 200:
        status = Exit.USAGE if answer.status == 400 else Exit.TEMPFAIL
        raise CommandError(status, f"{answer.endpoint}: {answer.error()}")
    facts = answer.json()
    if arguments.write_out == "json":
        print_json(facts)
    else:
        print(f"Leadership transferred from {facts.get('from')} to {facts.get('to')}")
    return Exit.OK


def step_down(client: Client, arguments: Namespace) -> int:
    """Have the leader hand over, and stay out of elections for a while."""
    answer = client.request("POST", "/v1/leader/step-down", {"seconds": arguments.seconds}, next_on=(409, 503))
    facts = _facts(answer)
    if arguments.write_out == "json":
        print_json(facts)
    else:
        print(f"{facts.get('from')} stepped down; {facts.get('to') or 'the others elect a leader'}")
    return Exit.OK


def forget(client: Client, arguments: Namespace) -> int:
    """Have the node of the first endpoint forget its leader."""
    facts = _facts(client.request_once("POST", "/v1/leader/forget", {}))
    if arguments.write_out == "json":
        print_json(facts)
    else:
        print(f"{facts.get('node')} forgot its leader {facts.get('forgot') or '(it knew none)'}")
    return Exit.OK


def _facts(answer: Answer) -> Json:
    if answer.status != 200:
        status = {400: Exit.USAGE, 404: Exit.UNAVAILABLE}.get(answer.status, Exit.TEMPFAIL)
        raise CommandError(status, f"{answer.endpoint}: {answer.error()}")
    return answer.json()


def _print_members(facts: Json, style: str) -> None:
    members = facts.get("members")
    rows = [row for row in members if isinstance(row, dict)] if isinstance(members, list) else []
    if style == "json":
        print_json(rows)
        return
    print_rows(
        _HEADERS,
        [
            (
                row["id"],
                f"{row['role']} ({row['waits_for']})" if row.get("waits_for") else row["role"],
                "yes" if row["leader"] else "no",
                row["address"],
                "-" if row.get("reachable") is None else "yes" if row["reachable"] else "no",
                row["lag"] if row.get("lag") is not None else "-",
                row.get("state") or "-",
                row["incarnation"],
            )
            for row in rows
        ],
        style,
    )
