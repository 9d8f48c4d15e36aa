"""`smtpraft wal verify` and `wal dump`: the log of a node that is stopped."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, print_rows
from smtpraft.errors import SmtpRaftError
from smtpraft.storage.inspection import Piece, Verdict, dump, verify


def wal_verify(arguments: Namespace) -> int:
    """Read the whole log; exit 1 if something that had been synced is missing or damaged."""
    try:
        verdict = verify(_directory(arguments))
    except (SmtpRaftError, OSError) as error:
        raise CommandError(Exit.UNAVAILABLE, str(error)) from None
    facts = _facts(verdict)
    if arguments.write_out == "json":
        print_json(facts)
    else:
        damage = verdict.damage
        rows = [(name, value) for name, value in facts.items() if name != "damage"]
        print_rows(("FACT", "VALUE"), rows, arguments.write_out)
        if damage is not None:
            print(f"smtpraft: {damage}", file=sys.stderr)
    return Exit.FAILED if verdict.damage is not None else Exit.OK


def _facts(verdict: Verdict) -> dict[str, object]:
    damage = verdict.damage
    return {
        "ok": damage is None,
        "node_id": verdict.node_id,
        "cluster_id": verdict.cluster_id,
        "segments": verdict.segments,
        "batches": verdict.batches,
        "first_index": verdict.first_index,
        "last_index": verdict.last_index,
        "term": verdict.hard_state.term,
        "vote": verdict.hard_state.vote or None,
        "commit": verdict.hard_state.commit,
        "torn_bytes": verdict.torn_bytes,
        "abstain_term": verdict.abstain_term or None,
        "damage": damage
        and {
            "file": damage.file,
            "offset": damage.offset,
            "reason": damage.reason,
            "lost_first": damage.lost_first,
            "lost_last": damage.lost_last,
        },
    }


def wal_dump(arguments: Namespace) -> int:
    """Print every batch, with `--entries` every entry; as JSON one object a line. Exit 1 if one of them is damaged."""
    damaged = False
    as_json = arguments.write_out == "json"
    if not as_json:
        print(
            f"{'SEGMENT':<38} {'OFFSET':>9} {'BATCH':>8} {'DURABLE':>8} {'TERM':>6} {'COMMIT':>9} {'ENTRIES':>19}  VOTE"
        )
    try:
        for piece in dump(_directory(arguments), entries=arguments.entries):
            damaged = damaged or not piece.sound
            print(json.dumps(_object(piece)) if as_json else _text(piece))
    except (SmtpRaftError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise CommandError(Exit.UNAVAILABLE, str(error)) from None
    return Exit.FAILED if damaged else Exit.OK


def _object(piece: Piece) -> dict[str, object]:
    found: dict[str, object] = {"segment": piece.segment, "offset": piece.offset, "sound": piece.sound}
    if piece.header is not None:
        header = piece.header
        found |= {
            "batch": header.number,
            "durable": header.durable,
            "first_index": header.first_index,
            "last_index": header.last_index,
            "bytes": header.size_bytes,
            "term": header.hard_state.term,
            "vote": header.hard_state.vote or None,
            "commit": header.hard_state.commit,
        }
    if piece.entries:
        names = ("index", "term", "stamp_ms", "kind", "bytes")
        found["entries"] = [dict(zip(names, entry, strict=True)) for entry in piece.entries]
    return found


def _text(piece: Piece) -> str:
    if piece.header is None:
        return f"{piece.segment:<38} {piece.offset:>9} damaged: no sound batch here"
    header, state = piece.header, piece.header.hard_state
    entries = f"{header.first_index}..{header.last_index}" if header.last_index else "-"
    line = (
        f"{piece.segment:<38} {piece.offset:>9} {header.number:>8} {header.durable:>8} {state.term:>6} "
        f"{state.commit:>9} {entries:>19}  {state.vote or '-'}"
    )
    if not piece.sound:
        line += "  damaged entries"
    inside = [
        f"    entry {index} term={term} stamp_ms={stamp} kind={kind} bytes={size}"
        for index, term, stamp, kind, size in piece.entries
    ]
    return "\n".join([line, *inside])


def _directory(arguments: Namespace) -> str:
    directory = Path(arguments.data_dir)
    if not (directory / "wal").is_dir():
        raise CommandError(Exit.USAGE, f"{directory} is no data directory of a node: it has no wal/ in it")
    return str(directory.resolve())
