"""`smtpraft recover`: when a majority is lost for good. Looks first; builds only when told that loss is accepted."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, print_rows
from smtpraft.cli.snapshot import facts, restore_into
from smtpraft.cluster.salvage import CannotRecover, Salvage
from smtpraft.errors import SmtpRaftError
from smtpraft.spool.commands import ACCEPT, NewerCommand, Refusal, decode
from smtpraft.spool.machine import SpoolMachine
from smtpraft.spool.types import message_id
from smtpraft.types import NodeId

IDS_MAX: Final = 1000
COLUMNS: Final = ("DIRECTORY", "NODE", "TERM", "LAST TERM", "LAST", "COMMIT", "APPLIED", "PROBLEM")


def recover(arguments: argparse.Namespace) -> int:
    """Compare the directories, say what would be lost; with --accept-data-loss build what a new cluster begins with."""
    target = Path(arguments.save)
    if target.exists():
        raise CommandError(Exit.FAILED, f"{target} is there already; it is not overwritten")
    try:
        workspace = tempfile.mkdtemp(prefix=".smtpraft-recover-", dir=target.parent)
        salvage = Salvage(arguments.directories, workspace, _machine)
    except CannotRecover as error:
        raise CommandError(Exit.FAILED, str(error)) from None
    except OSError as error:
        raise CommandError(Exit.FAILED, f"{error.filename or target}: {error.strerror or error}") from None
    try:
        report = _report(salvage)
        if arguments.write_out != "json" or not arguments.accept_data_loss:
            _show(report, arguments.write_out)
        if not arguments.accept_data_loss:
            raise CommandError(
                Exit.FAILED,
                "nothing was changed. To begin a new cluster with what is left, and to give up what is not, repeat the "
                "command with --accept-data-loss",
            )
        info = salvage.save(str(target))
    except (SmtpRaftError, LookupError) as error:
        raise CommandError(Exit.FAILED, str(error)) from None
    except OSError as error:
        raise CommandError(Exit.FAILED, f"{error.filename or target}: {error.strerror or error}") from None
    finally:
        salvage.close()
    built = facts(str(target), info)
    if arguments.config:
        built = restore_into(str(target), arguments.config)
    if arguments.write_out == "json":
        print_json(report | {"recovered": built})
    else:
        print()
        print_rows(("NAME", "VALUE"), list(built.items()), arguments.write_out)
        if not arguments.config:
            print(f"\nNow, on each node of the new cluster: smtpraft snapshot restore {target} --config NEW.toml")
    return Exit.OK


def _machine(directory: str, node: NodeId, read_entry: Callable[[int], bytes]) -> SpoolMachine:
    machine = SpoolMachine(os.path.join(directory, "spool", "queue.db"), node)
    machine.read_entry = read_entry
    return machine


def _report(salvage: Salvage) -> dict[str, object]:
    """Return what is known of each survivor, and what would be lost."""
    survivors = [
        {
            "directory": each.directory,
            "node": each.node_id,
            "term": each.term,
            "last_term": each.last_term,
            "last_index": each.last_index,
            "commit_index": each.commit_index,
            "applied_index": each.applied_index,
            "problem": each.problem or each.damage,
        }
        for each in salvage.survivors
    ]
    report: dict[str, object] = {"survivors": survivors}
    try:
        base = salvage.base()
        committed = salvage.committed_index
        unconfirmed = [message_id(index) for index, command in salvage.unconfirmed() if _accepts(command)]
        dropped = [message_id(index) for _, index, command in salvage.dropped() if _accepts(command)]
    except CannotRecover:
        _show(report, "simple")
        raise
    lost = [message_id(base.last_index + 1), message_id(committed)] if committed > base.last_index else []
    return report | {
        "base": base.node_id,
        "voters": list(base.voters),
        "committed_index": committed,
        "lost": lost,
        "unconfirmed": list(itertools.islice(unconfirmed, IDS_MAX)),
        "dropped": list(itertools.islice(dropped, IDS_MAX)),
        "unknown_from": message_id(max(base.last_index, committed) + 1),
    }


def _accepts(command: bytes) -> bool:
    try:
        decoded = decode(command)
    except NewerCommand:
        return False
    return not isinstance(decoded, Refusal) and decoded[0] == ACCEPT


def _show(report: dict[str, object], style: str) -> None:
    if style == "json":
        print_json(report)
        return
    survivors = report["survivors"]
    assert isinstance(survivors, list)
    print_rows(COLUMNS, [list(each.values()) for each in survivors], style)
    sys.stdout.flush()
    if "base" not in report:
        return
    lines = ["", f"The new cluster begins with the log of {report['base']}: of all that are left it reaches furthest."]
    if lost := report["lost"]:
        assert isinstance(lost, list)
        lines.append(f"LOST: acknowledged messages with ids from {lost[0]} to {lost[1]}: damaged wherever left.")
    lines.append(
        f"LOST, which ones nobody here knows: acknowledged messages with ids from {report['unknown_from']} on. Only "
        "nodes that are gone had them; the logs of clients and of these nodes may name some."
    )
    lines += _listed("kept, though perhaps never acknowledged (a client may send them again)", report["unconfirmed"])
    lines += _listed("not kept: no majority can have had them, so no client was told 250", report["dropped"])
    print("\n".join(lines))


def _listed(text: str, ids: object) -> list[str]:
    assert isinstance(ids, list)
    return [f"{len(ids)} {text}:", *(f"  {each}" for each in ids)] if ids else []
