"""Runs quorum files: independent cases of what a majority, or two, has said."""

from __future__ import annotations

from collections.abc import Iterable

from smtpraft.consensus.tally import EVERYTHING, VoteResult, joint_index, joint_vote
from smtpraft.types import NodeId

from .formats import node_id
from .grammar import Block, BrokenScript

RESULTS = {VoteResult.WON: "VoteWon", VoteResult.LOST: "VoteLost", VoteResult.PENDING: "VotePending"}


class QuorumRunner:
    """Each command stands alone."""

    def run(self, block: Block) -> str:
        """Return what the command prints."""
        arguments: dict[str, list[str]] = {}
        for argument in block.arguments:
            arguments.setdefault(argument.key, []).extend(argument.values)
        incoming = _once(arguments.get("cfg", []))
        outgoing = _once(value for value in arguments.get("cfgj", []) if value != "zero")
        voters = list(dict.fromkeys(incoming + outgoing))
        sets = [node_id(voter) for voter in incoming], [node_id(voter) for voter in outgoing]
        if block.command == "committed":
            given = [None if value == "_" else int(value) for value in arguments.get("idx", [])]
            if len(given) != len(voters):
                return _mismatch(voters, [value or 0 for value in given])
            known = {voter: value for voter, value in zip(voters, given, strict=True) if value is not None}
            return _draw(sorted(voters), known, _committed(*sets, known))
        if block.command == "vote":
            votes = [{"y": 2, "n": 1, "_": 0}[value] for value in arguments.get("votes", [])]
            if len(votes) != len(voters):
                return _mismatch(voters, votes)
            cast = {node_id(voter): vote == 2 for voter, vote in zip(voters, votes, strict=True) if vote}
            return RESULTS[_vote(*sets, cast)]
        raise BrokenScript(f"unknown command {block.command}")


def _once(values: Iterable[str]) -> list[int]:
    return list(dict.fromkeys(int(value) for value in values))


def _mismatch(voters: list[int], values: list[int]) -> str:
    members = " ".join(f"{voter}:{{}}" for voter in sorted(voters))
    return f"error: mismatched input (explicit or _) for voters map[{members}]: [{' '.join(map(str, values))}]"


def _committed(incoming: list[NodeId], outgoing: list[NodeId], known: dict[int, int]) -> int:
    def index(first: list[NodeId], second: list[NodeId], values: dict[int, int]) -> int:
        return joint_index([values.get(int(node), 0) for node in first], [values.get(int(node), 0) for node in second])

    result = index(incoming, outgoing, known)
    assert index(outgoing, incoming, known) == result, "swapping the halves"
    if not outgoing:
        assert index(incoming, incoming, known) == result, "joining with itself"
    for voter, value in known.items():
        if value < result and value:
            lowered = known | {voter: value - 1}
            assert index(incoming, outgoing, lowered) == result, "lowering what is below"
            assert index(incoming, outgoing, known | {voter: 0}) == result, "lowering what is below"
    return result


def _vote(incoming: list[NodeId], outgoing: list[NodeId], cast: dict[NodeId, bool]) -> VoteResult:
    result = joint_vote(incoming, outgoing, cast)
    assert joint_vote(outgoing, incoming, cast) is result, "swapping the halves"
    if not outgoing:
        assert joint_vote(incoming, incoming, cast) is result, "joining with itself"
    return result


def _draw(voters: list[int], known: dict[int, int], result: int) -> str:
    committed = "∞" if result == EVERYTHING else str(result)
    if not voters:
        return f"<empty majority quorum>{committed}"
    bars: dict[int, int] = {}
    previous: int | None = None
    for position, voter in enumerate(sorted(voters, key=lambda voter: (known.get(voter, 0), voter))):
        if previous is None:
            bars[voter] = 0
        elif known.get(voter, 0) > known.get(previous, 0):
            bars[voter] = position
        else:
            bars[voter] = bars[previous]
        previous = voter
    lines = [" " * (len(voters) + 4) + "idx"]
    for voter in voters:
        mark = "x" * bars[voter] + ">" if voter in known else "?"
        bar = mark.ljust(len(voters) + 1)
        lines.append(f"{bar} {known.get(voter, 0):5d}    (id={voter:x})")
    return "\n".join([*lines, committed])
