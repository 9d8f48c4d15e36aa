"""Runs membership files: one membership, changed command by command."""

from __future__ import annotations

from smtpraft.consensus import InvalidConfChange, Membership
from smtpraft.consensus.tracker import Tracker
from smtpraft.types import NO_NODE, NodeId, node_order

from .changes import CommandError, parse_bool, parse_changes
from .formats import format_progress, number_of
from .grammar import Block, BrokenScript

WINDOW = 10


class ConfChangeRunner:
    """One membership, empty at first. Each command, failed or not, counts as one more entry of the log."""

    def __init__(self) -> None:
        self._tracker = Tracker(NO_NODE, WINDOW, 0)
        self._last_index = 0

    def run(self, block: Block) -> str:
        """Return what the command prints."""
        try:
            return self._run(block)
        except (CommandError, InvalidConfChange) as error:
            return str(error)
        finally:
            self._last_index += 1

    def _run(self, block: Block) -> str:
        changes = parse_changes(block.input)
        membership = self._tracker.membership
        fresh: frozenset[NodeId] = frozenset()
        match block.command:
            case "simple":
                membership, fresh = membership.simple(changes)
            case "enter-joint":
                auto_leave = parse_bool(block.option("autoleave") or "false")
                membership, fresh = membership.enter_joint(changes, auto_leave=auto_leave)
            case "leave-joint":
                if changes:
                    raise CommandError("this command takes no input")
                membership = membership.leave_joint()
            case _:
                raise BrokenScript(f"unknown command {block.command}")
        self._tracker.install(membership, fresh, self._last_index)
        lines = [_format_membership(membership)]
        lines += [
            f"{number_of(node)}: {format_progress(progress)}" for node, progress in self._tracker.progress.items()
        ]
        return "\n".join(lines)


def _format_membership(membership: Membership) -> str:
    text = f"voters={_members(membership.incoming)}"
    if membership.is_joint:
        text += f"&&{_members(membership.outgoing)}"
    if membership.learners:
        text += f" learners={_members(membership.learners)}"
    if membership.learners_next:
        text += f" learners_next={_members(membership.learners_next)}"
    return text + (" autoleave" if membership.auto_leave else "")


def _members(nodes: frozenset[NodeId]) -> str:
    return f"({' '.join(f'{number_of(node):x}' for node in sorted(nodes, key=node_order))})"
