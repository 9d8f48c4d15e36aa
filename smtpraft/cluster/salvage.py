"""What is left of a cluster that has lost its majority: compared offline, and the best of it made a snapshot.

A data directory is only read: everything is done on copies of them in a workspace. The base is the survivor whose log
is the most up to date by Raft's own rule (§5.4.1): last term, then last index. What it has is kept, also what nobody
can prove to be committed: to deliver a message that no client was promised is the lesser evil. What another survivor
has beyond that is of an older term than the base's last entry, or the base would not be the base; so no majority can
have had it, and nobody was promised it.

What cannot be known: which acknowledged messages only the lost nodes had. Their ids are all above the base's last one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from smtpraft import fastlog
from smtpraft.cluster import envelope
from smtpraft.cluster.applier import Applier, Batch
from smtpraft.cluster.machine import StateMachine
from smtpraft.cluster.snapshot_files import SnapshotFiles
from smtpraft.cluster.snapshot_format import ID_BYTES, SnapshotInfo, encode_file_header
from smtpraft.cluster.snapshots import restart_log, resume_install
from smtpraft.consensus import ConfState
from smtpraft.errors import SmtpRaftError
from smtpraft.storage import RealDisk, Wal, read_facts
from smtpraft.types import NodeId, node_order

IGNORED: Final = ("mail", "lock", "copy-*", "*.spare", "*.tmp", "torn")
REPLAY_ENTRIES: Final = 1000
_BLOCK_BYTES: Final = 1024 * 1024

MakeMachine = Callable[[str, NodeId, Callable[[int], bytes]], StateMachine]
"""Of a data directory, the node and how to read a command of its log: its state machine, not open."""


class CannotRecover(SmtpRaftError):
    """The text says why, and what to do instead."""


@dataclass(slots=True)
class Survivor:
    """One data directory. `problem`, if any, says why it is of no use; `damage`, what its log has lost."""

    directory: str
    problem: str = ""
    damage: str = ""
    node_id: str = ""
    cluster_id: str = ""
    term: int = 0
    commit_index: int = 0
    first_index: int = 0
    last_index: int = 0
    last_term: int = 0
    applied_index: int = 0
    voters: tuple[NodeId, ...] = ()


@dataclass(slots=True)
class _Opened:
    """A copy of a directory, in use."""

    found: Survivor
    wal: Wal
    entries: fastlog.Log
    applier: Applier
    machine: StateMachine


class Salvage:
    """The survivors. Everything blocks; `close` removes the workspace."""

    def __init__(self, directories: Sequence[str], workspace: str, make_machine: MakeMachine) -> None:
        """Copy what is needed of `directories` into `workspace`, which is new, and look at it.

        Raises:
            CannotRecover: one is in use, or they are not of one cluster.
            OSError: they cannot be copied.
        """
        self._workspace = workspace
        self._make_machine = make_machine
        self._opened: list[_Opened] = []
        self.survivors: list[Survivor] = []
        try:
            for number, directory in enumerate(directories):
                self.survivors.append(self._survey(directory, number))
            clusters = {survivor.cluster_id for survivor in self.survivors if survivor.cluster_id}
            if len(clusters) > 1:
                raise CannotRecover(f"these are directories of {len(clusters)} clusters: {', '.join(sorted(clusters))}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close and remove the copies."""
        for opened in self._opened:
            with contextlib.suppress(SmtpRaftError, OSError):
                opened.machine.close()
                opened.wal.close()
        shutil.rmtree(self._workspace, ignore_errors=True)

    # ---- looking ----------------------------------------------------------------------------------------------------

    @property
    def committed_index(self) -> int:
        """The highest index that a survivor knows to be committed."""
        return max((survivor.commit_index for survivor in self.survivors), default=0)

    def base(self) -> Survivor:
        """Return the survivor that all is built on.

        Raises:
            CannotRecover: there is none, or the cluster is not lost.
        """
        return self._base().found

    def unconfirmed(self) -> Iterator[tuple[int, bytes]]:
        """Yield (index, command) of what the base has and nobody here knows to be committed. It is kept."""
        base = self._base()
        yield from _commands(base, self.committed_index + 1, base.found.last_index)

    def dropped(self) -> Iterator[tuple[str, int, bytes]]:
        """Yield (directory, index, command) of what others have and the base has not: it cannot have been promised."""
        base = self._base()
        for other in self._opened:
            first = max(other.found.first_index, base.entries.prev_index + 1)
            for index in range(first, other.found.last_index + 1):
                if index > base.entries.last_index or base.entries.term(index) != other.entries.term(index):
                    for _, command in _commands(other, index, index):
                        yield other.found.directory, index, command

    def _base(self) -> _Opened:
        if not self._opened:
            raise CannotRecover("none of the directories is of any use")
        best = max(self._opened, key=lambda each: (each.found.last_term, each.found.last_index))
        _replay(best)
        members = best.applier.members  # as of its last entry: what a node stores of a membership, it lives by
        voters = best.found.voters = members.conf_state.voters if members.founded else best.found.voters
        sound = {each.found.node_id for each in self._opened if not each.found.damage}
        here = [node for node in voters if node in sound]
        if len(here) > len(voters) // 2:
            raise CannotRecover(
                f"{', '.join(here)} are a majority of {', '.join(voters)}: nothing is lost. Start these nodes instead"
            )
        return best

    def _survey(self, directory: str, number: int) -> Survivor:
        found = Survivor(directory)
        source = os.path.abspath(directory)
        _check_unused(source)
        copy = os.path.join(self._workspace, str(number))
        disk = RealDisk()
        try:
            facts = read_facts(disk, source)
            if facts is None:
                found.problem = "no data directory of a node: it has no identity.json"
                return found
            found.node_id, found.cluster_id = facts.node_id, facts.cluster_id.hex()
            shutil.copytree(source, copy, ignore=_left_out)
            entries = fastlog.Log()
            reader = _Reader()
            machine = self._make_machine(copy, NodeId(facts.node_id), reader.command)
            files = SnapshotFiles(disk, os.path.join(copy, "snapshot"))
            pending = resume_install(files, machine)
            wal, recovery = Wal.open(
                disk,
                os.path.join(copy, "wal"),
                cluster_id=facts.cluster_id,
                node_id=facts.node_id,
                log=entries,
                background=False,
                promises=copy,
                heal=True,
            )
            reader.wal = wal
            state = recovery.hard_state
            if recovery.damage is not None:
                found.damage = f"{recovery.damage.reason}; what follows index {recovery.last_index} is lost"
            if pending is not None:
                state = restart_log(files, wal, entries, state, pending)
            applier = Applier(
                machine,
                NodeId(facts.node_id),
                deliver=lambda callback: callback(),
                on_result=lambda _: None,
                on_failure=_raise,
                read_entries=lambda first, last: wal.read(first, last, None),
            )
            applied, _ = applier.open(background=False)
        except (SmtpRaftError, ValueError) as error:
            found.problem = f"{type(error).__name__}: {error}"
            return found
        opened = _Opened(found, wal, entries, applier, machine)
        found.term, found.commit_index = state.term, max(state.commit, applied)
        found.first_index, found.last_index = entries.first_index, entries.last_index
        found.last_term = entries.last_term
        found.applied_index = applied
        found.voters = tuple(sorted(map(NodeId, facts.founders), key=node_order))
        if not entries.prev_index <= applied <= entries.last_index:
            log_range = f"{entries.first_index} to {entries.last_index}"
            found.problem = f"its state is that of index {applied}, its log holds {log_range}"
            machine.close()
            wal.close()
            return found
        self._opened.append(opened)
        return found

    # ---- building ---------------------------------------------------------------------------------------------------

    def save(self, path: str) -> SnapshotInfo:
        """Write the base's state as of the end of its log to the new file `path`, as `snapshot save` does.

        Raises:
            CannotRecover: as `base`.
            SmtpRaftError, OSError: it cannot be written.
        """
        base = self._base()
        last = base.entries.last_index
        state = os.path.join(self._workspace, "state")
        applied = base.machine.write_snapshot(state)
        assert applied.index == last, (applied.index, last)
        members = base.applier.members
        voters = base.found.voters or (NodeId(base.found.node_id),)
        conf_state = members.conf_state if members.founded else ConfState(voters=voters)
        info = SnapshotInfo(
            secrets.token_bytes(ID_BYTES).hex(),
            base.found.cluster_id,
            base.found.node_id,
            last,
            base.found.last_term,
            conf_state,
            os.path.getsize(state),
            _digest(state),
            created_ms=int(time.time() * 1000),
        )
        part = f"{path}.part"
        with open(state, "rb") as file, open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(encode_file_header(info))
            shutil.copyfileobj(file, out, _BLOCK_BYTES)
            out.flush()
            os.fsync(out.fileno())
        os.rename(part, path)
        RealDisk().sync_directory(os.path.dirname(os.path.abspath(path)))
        return info


def _replay(opened: _Opened) -> None:
    """Apply its log to the end."""
    entries, applier = opened.entries, opened.applier
    for first in range(applier.applied_index + 1, entries.last_index + 1, REPLAY_ENTRIES):
        last = min(first + REPLAY_ENTRIES - 1, entries.last_index)
        applier.submit(Batch(first, last, entries.size_bytes(first, last), None))
        while applier.work():
            pass


class _Reader:
    """Reads commands of a log that is opened after the machine was made."""

    wal: Wal

    def command(self, index: int) -> bytes:
        payload = fastlog.decode_entries(self.wal.read(index, index, None))[0][4]
        if not payload or payload[0] != envelope.COMMAND:
            raise fastlog.Unavailable(f"no command stands at index {index}")
        return payload[envelope.COMMAND_HEADER_BYTES :]


def _commands(opened: _Opened, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    for start in range(max(first, opened.found.first_index), last + 1, REPLAY_ENTRIES):
        block = opened.wal.read(start, min(start + REPLAY_ENTRIES - 1, last), None)
        for index, _, _, kind, payload in fastlog.decode_entries(block):
            if kind == fastlog.ENTRY_NORMAL and payload and payload[0] == envelope.COMMAND:
                yield index, payload[envelope.COMMAND_HEADER_BYTES :]


def _left_out(directory: str, names: list[str]) -> set[str]:
    """Return what of a data directory no copy needs: what is not the state, and what is no file."""
    odd = {name for name in names if stat.S_ISSOCK(os.lstat(os.path.join(directory, name)).st_mode)}
    return odd | set(shutil.ignore_patterns(*IGNORED)(directory, names))


def _check_unused(directory: str) -> None:
    """Raise CannotRecover if a process works in `directory`. Writes nothing there."""
    try:
        lock = os.open(os.path.join(directory, "lock"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CannotRecover(f"{directory} is in use: the node runs. Stop all nodes that are left first") from None
    finally:
        os.close(lock)


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _raise(error: BaseException) -> None:
    raise error
