"""What a data directory's identity must say for the node in it to take part."""

from __future__ import annotations

from smtpraft import fastlog
from smtpraft.storage import IdentityMismatch, Standing
from smtpraft.storage.identity import Facts


def check_standing(facts: Facts, entries: fastlog.Log, data_dir: str) -> None:
    """Let a node start.

    Raises:
        IdentityMismatch: it was removed from its cluster, or identity and log are not of one run.
    """
    if facts.standing is Standing.REMOVED:
        raise IdentityMismatch(
            f"{data_dir}: this node was removed from its cluster. To add it again, empty the whole "
            f"directory, start it with --join, and run smtpraft member add {facts.node_id}=HOST:PORT on the cluster"
        )
    if facts.standing is Standing.FRESH and entries.last_index:
        raise IdentityMismatch(
            f"{data_dir}: identity.json is new, but the log is not: they are not of one run. Restore "
            "both, or empty the whole directory and replace the member: smtpraft member replace"
        )
