"""`smtpraft snapshot save`, `status` and `restore`: backups of the whole replicated state, one file each."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from smtpraft.cli.client import Client
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, print_rows
from smtpraft.cluster.backup import BadSnapshotFile, check_file
from smtpraft.cluster.snapshot_format import SnapshotInfo

MAKE_S: Final = 600.0  # the node copies its state before the first byte comes


def save(client: Client, arguments: argparse.Namespace) -> int:
    """Save the state of the first node that answers; the file appears when all of it is there, checked and synced."""
    target = Path(arguments.file)
    if target.exists():
        raise CommandError(Exit.FAILED, f"{target} is there already; a backup is never overwritten")
    part = target.with_name(target.name + ".part")
    patient = Client(client.endpoints, max(client.timeout_s, MAKE_S), client.token)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            endpoint = patient.fetch("/v1/snapshot", file)
            file.flush()
            os.fsync(file.fileno())
        info, _ = check_file(str(part))
        os.rename(part, target)
        _sync_directory(target.parent)
    except BadSnapshotFile as error:
        part.unlink(missing_ok=True)
        raise CommandError(Exit.UNAVAILABLE, f"what came is not what the node has sent: {error}") from None
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CommandError(Exit.FAILED, f"{error.filename or target}: {error.strerror or error}") from None
    except CommandError:
        part.unlink(missing_ok=True)
        raise
    _print(facts(str(target), info) | {"endpoint": endpoint}, arguments.write_out)
    return Exit.OK


def status(arguments: argparse.Namespace) -> int:
    """Read the whole file, and say what is in it."""
    info, _ = checked(arguments.file)
    _print(facts(arguments.file, info), arguments.write_out)
    return Exit.OK


def restore(arguments: argparse.Namespace) -> int:
    """Begin a new cluster, or this node of it, with the state in the file."""
    restored = restore_into(arguments.file, arguments.config)
    _print(restored, arguments.write_out)
    return Exit.OK


def restore_into(file: str, config_path: str | None) -> dict[str, object]:
    """Make the data directory of the configuration at `config_path` from `file`; return what to print.

    Raises:
        CommandError: it cannot be; the text says why.
    """
    from smtpraft.cli.configuration import load_or_fail
    from smtpraft.cli.daemon import node_options
    from smtpraft.cluster.backup import CannotRestore
    from smtpraft.cluster.backup import restore as restore_node
    from smtpraft.config import ConfigError
    from smtpraft.errors import SmtpRaftError
    from smtpraft.spool.machine import SpoolMachine

    try:
        options = node_options(load_or_fail(config_path).config, None)
    except ConfigError as error:
        raise CommandError(Exit.CONFIG, *error.problems) from None
    spool = Path(options.data_dir) / "spool"
    machine = SpoolMachine(str(spool / "queue.db"), options.node_id)

    def make_machine() -> SpoolMachine:
        spool.mkdir(mode=0o700)
        _sync_directory(spool.parent)
        return machine

    checked(file)
    try:
        info, index = restore_node(file, options, make_machine)
    except CannotRestore as error:
        raise CommandError(Exit.CONFIG, str(error)) from None
    except BadSnapshotFile as error:
        raise CommandError(Exit.DATA, str(error)) from None
    except (OSError, SmtpRaftError) as error:
        raise CommandError(
            Exit.FAILED, f"{error}", f"what was begun in {options.data_dir} is of no use; remove it"
        ) from None
    counts = machine.counts()
    return facts(file, info) | {
        "restored_as": options.node_id,
        "new_cluster_id": options.cluster_id.hex(),
        "data_dir": options.data_dir,
        "begins_after_index": index,
        "messages": counts["messages"],
    }


def checked(path: str) -> tuple[SnapshotInfo, int]:
    """Return what `check_file` does.

    Raises:
        CommandError: the file cannot be read, or is none.
    """
    try:
        return check_file(path)
    except BadSnapshotFile as error:
        raise CommandError(Exit.DATA, str(error)) from None
    except OSError as error:
        raise CommandError(Exit.FAILED, f"{path}: {error.strerror or error}") from None


def facts(path: str, info: SnapshotInfo) -> dict[str, object]:
    """Return what an operator wants to know of a snapshot."""
    return {
        "file": path,
        "cluster_id": info.cluster_id,
        "made_by": info.node_id,
        "made_at": datetime.fromtimestamp(info.created_ms / 1000, UTC).isoformat(timespec="seconds"),
        "index": info.index,
        "term": info.term,
        "voters": ",".join(info.conf_state.voters),
        "size_bytes": info.size_bytes,
        "sha256": info.sha256,
    }


def _print(values: dict[str, object], style: str) -> None:
    if style == "json":
        print_json(values)
    else:
        print_rows(("NAME", "VALUE"), list(values.items()), style)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
