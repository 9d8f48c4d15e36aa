"""How a node with an empty data directory learns which cluster it is to join: it asks a member."""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import replace
from time import monotonic
from typing import Final

from smtpraft._version import __version__
from smtpraft.cluster.addresses import format_address
from smtpraft.cluster.asking import Answer, NoAnswer, ask
from smtpraft.cluster.handshake import Identity as Introduction
from smtpraft.cluster.settings import NodeOptions
from smtpraft.errors import SmtpRaftError
from smtpraft.storage import RealDisk, Standing, read_facts

log = logging.getLogger(__name__)

JOIN_S: Final = 60.0  # then a service manager tries again
ASK_S: Final = 2.0
PAUSE_S: Final = 0.5
SAY_INTERVAL_S: Final = 3.0


class CannotJoin(SmtpRaftError):
    """No member said which cluster it is, or it is not the one that was meant."""


async def with_cluster(options: NodeOptions) -> NodeOptions:
    """Return `options` with the id of the cluster to join; without `join` if this directory has taken part already.

    Raises:
        CannotJoin: it says why.
    """
    if not options.join:
        return options
    facts = await asyncio.to_thread(read_facts, RealDisk(), options.data_dir)
    if facts is not None and facts.standing is not Standing.FRESH:
        return replace(options, join=())
    answer = await _first_answer(options)
    if answer.cluster_name != options.cluster_name:
        raise CannotJoin(
            f"{answer.node} belongs to cluster {answer.cluster_name!r}, cluster.name here is {options.cluster_name!r}"
        )
    log.info("joining cluster=%s asked=%s release=%s", answer.cluster_id.hex(), answer.node, answer.release)
    if answer.release != __version__:
        log.warning("the release here is %s, %s has %s", __version__, answer.node, answer.release)
    return replace(options, cluster_id=answer.cluster_id)


async def _first_answer(options: NodeOptions) -> Answer:
    """Ask the given addresses in turn until one answers that belongs to a cluster."""
    me = Introduction(options.node_id, bytes(16), secrets.randbits(63), options.secret)
    started = monotonic()
    say_at = started
    while True:
        reasons = []
        for host, port in options.join:
            try:
                answer = await ask(me, host, port, ASK_S)
            except NoAnswer as error:
                reasons.append(str(error))
                continue
            if answer.members:
                return answer
            reasons.append(f"{answer.node} at {format_address(host, port)} has no members yet")
        now = monotonic()
        if now - started > JOIN_S:
            raise CannotJoin(f"cluster.join: nobody to join: {'; '.join(reasons)}")
        if now >= say_at:
            say_at = now + SAY_INTERVAL_S
            log.warning("waiting for a member to join: %s", "; ".join(reasons))
        await asyncio.sleep(PAUSE_S)
