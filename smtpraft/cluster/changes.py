"""Changes of the members, as operators ask for them: what the leader checks, why it declines, how it carries them out.

Every change is one or two entries of the log (thesis §4); a leader that dies in between leaves a membership that works,
and the same command again completes it. Declined is what would leave the cluster one failure from loss when it was not
before, and what the facts speak against: a node that does not answer, is somebody else, has been here before, lags.
`force` insists on what is unwise; what would stop the cluster at once is declined all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final

from smtpraft.cluster import preference
from smtpraft.cluster.addresses import parse_peer
from smtpraft.cluster.asking import NoAnswer, ask
from smtpraft.cluster.disk_health import DiskState
from smtpraft.cluster.members import Member, encode_context
from smtpraft.cluster.requests import Arguments, Declined
from smtpraft.cluster.steward import LAG_ENTRIES_MAX
from smtpraft.config import ConfigError
from smtpraft.consensus import ChangeSingle, ChangeType, ConfChangeV2, ProposalDropped, Role
from smtpraft.errors import NotReplicated, OutcomeUnknown, Removed
from smtpraft.types import NodeId, node_order

if TYPE_CHECKING:
    from smtpraft.cluster.driver import Driver

log = logging.getLogger(__name__)

CHANGE_S: Final = 10.0
LEADER_S: Final = 3.0
ASK_S: Final = 3.0

Transfer = Callable[[NodeId | None], Awaitable[NodeId | None]]


class Changes:
    """For one node. Loop thread only. `transfer` hands leadership over, to a node or to the best."""

    def __init__(self, driver: Driver, transfer: Transfer) -> None:
        self._driver = driver
        self._transfer = transfer
        self._one_at_a_time = asyncio.Lock()

    async def request(self, operation: str, arguments: Arguments, timeout_s: float = CHANGE_S) -> object:
        """Carry out `operation` on the leader, wherever that is; return what it says.

        Raises:
            Declined: the text has the reasons.
            NotReplicated: there is no leader, or none that takes it.
            OutcomeUnknown: it did not answer in time: look at the members before trying again.
        """
        core = self._driver.core
        if not await self._wait(lambda: bool(core.leader_id), LEADER_S):
            raise NotReplicated("no leader is known: no majority, or this node is no member yet")
        if core.role is Role.LEADER:
            return await self.carry_out(operation, arguments)
        try:
            return await self._driver.enrolment.requests.ask(core.leader_id, operation, arguments, timeout_s)
        except OutcomeUnknown:
            # The node that was to answer may be the one that is gone.
            node = arguments.get("node")
            if operation == "remove" and await self._wait(
                lambda: node not in self._driver.enrolment.roster.members, LEADER_S
            ):
                return node
            raise

    async def carry_out(self, operation: str, arguments: Arguments) -> object:
        """Do `operation` as the leader.

        Raises:
            Declined, NotReplicated: as for `request`.
        """
        if self._driver.core.role is not Role.LEADER:
            raise Declined(f"{self._driver.id} does not lead any more; try again")
        force = arguments.get("force") is True
        match operation:
            case "list":
                return self._list()
            case "transfer":
                to = arguments.get("to")
                return await self._transfer(NodeId(to) if isinstance(to, str) and to else None)
            case preference.OPERATION:
                return await self._prefer(arguments)
            case "add":
                return await self._changing(self._add(_texts(arguments), arguments.get("learner") is not True))
            case "promote":
                return await self._changing(self._promote(self._node(arguments), force))
            case "remove":
                return await self._remove_anybody(self._node(arguments), force)
            case "replace":
                address = arguments.get("address")
                node = self._node(arguments)
                return await self._changing(self._replace(node, address if isinstance(address, str) else "", force))
        raise Declined(f"{operation!r} is nothing that this release can do")

    async def seek(self) -> None:
        """Ask for leadership whenever this node is preferred to who has it. Does not return."""
        driver, core = self._driver, self._driver.core
        seeker = preference.Preference(driver.id, driver.options.election_priority, self.request)
        while True:
            await asyncio.sleep(preference.LOOK_EVERY_S)
            now = monotonic()
            behind = core.commit_index - driver.applier.applied_index
            able = driver.id in core.conf_state.voters and not core.abstains and now >= driver.stand_aside_until
            well = able and driver.disk.state is DiskState.OK and behind <= LAG_ENTRIES_MAX
            if seeker.due(now, core.leader_id, well=well):
                await seeker.ask(now)

    # ---- what can be asked for --------------------------------------------------------------------------------------

    def _list(self) -> list[dict[str, object]]:
        driver = self._driver
        state = driver.core.conf_state
        progress = driver.core.status().progress
        rows: list[dict[str, object]] = []
        for node in sorted(driver.enrolment.roster.members, key=node_order):
            member, row = driver.enrolment.roster.members[node], progress.get(node)
            rows.append(
                {
                    "id": node,
                    "address": member.address,
                    "incarnation": f"{member.incarnation:016x}",
                    "role": role_of(node, state.voters, state.voters_outgoing, state.learners),
                    "leader": node == driver.id,
                    "reachable": node == driver.id or driver.transport.connected(node),
                    "match_index": row.match_index if row else None,
                    "lag": driver.entries.last_index - row.match_index if row else None,
                    "state": row.state.value if row else None,
                    "waits_for": driver.enrolment.steward.waits_for(node) if node in state.learners else None,
                }
            )
        return rows

    async def _prefer(self, arguments: Arguments) -> object:
        driver, now = self._driver, monotonic()
        node = NodeId(str(arguments.get("node")))
        own, led_for_s = driver.options.election_priority, now - driver.leader_since
        chosen = preference.weigh(arguments, own, led_for_s, driver.enrolment.steward.lags(node, now))
        if isinstance(chosen, int):
            return chosen
        log.info("handing over to a preferred node to=%s priority=%s own=%d", node, arguments.get("priority"), own)
        return await self._transfer(chosen)

    async def _add(self, wanted: Sequence[str], promote: bool) -> list[str]:
        members = [await self._stranger(text, promote) for text in wanted]
        if len({member.id for member in members}) < len(members):
            raise Declined("the same node twice")
        new = [member for member in members if member.id not in self._driver.enrolment.roster.members]
        moved = [member for member in members if member.id in self._driver.enrolment.roster.members]
        changes = [ChangeSingle(ChangeType.ADD_LEARNER, member.id) for member in new]
        changes += [ChangeSingle(ChangeType.UPDATE_NODE, member.id) for member in moved]
        await self._change(
            changes,
            members,
            lambda: all(self._driver.enrolment.roster.members.get(member.id) == member for member in members),
        )
        return [member.id for member in members]

    async def _promote(self, node: NodeId, force: bool) -> str:
        state = self._driver.core.conf_state
        if node in state.voters:
            raise Declined(f"{node} is a voter already")
        self._check_spare({*state.voters, node}, force)
        if not force and (reason := self._driver.enrolment.steward.waits_for(node)):
            raise Declined(
                f"{node} has not caught up: {reason}; it is promoted by itself once it has (--force insists)"
            )
        await self._change(
            [ChangeSingle(ChangeType.ADD_NODE, node)], [], lambda: node in self._driver.core.conf_state.voters
        )
        return node

    async def _remove_anybody(self, node: NodeId, force: bool) -> object:
        """Remove `node`; a leader that is to go hands over first, so that nobody waits for an election."""
        driver = self._driver
        if node == driver.id:
            self._check_spare(set(driver.core.conf_state.voters) - {node}, force)
            to = await self._transfer(None)
            if to is not None and await self._wait(lambda: driver.core.leader_id not in ("", driver.id), LEADER_S):
                log.info("leadership handed over before removal to=%s", driver.core.leader_id)
                try:
                    return await driver.enrolment.requests.ask(
                        driver.core.leader_id, "remove", {"node": node, "force": force}, CHANGE_S
                    )
                except OutcomeUnknown:
                    if await self._was_removed():
                        return node  # and nobody talks to us any more
                    raise
            # Nobody took it: lead on until the removal is committed, without counting ourselves (thesis §4.2.2). But
            # whoever misses that news still counts us, and must not need us for an election.
            voters = driver.core.conf_state.voters
            if sum(map(self._is_there, voters)) - 1 <= len(voters) // 2:
                raise Declined("nobody took leadership over, and the others are too few to elect a leader; try again")
        return await self._changing(self._remove(node, force))

    async def _was_removed(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEADER_S):
                return isinstance(await asyncio.shield(self._driver.failed), Removed)
        return False

    async def _remove(self, node: NodeId, force: bool) -> str:
        state = self._driver.core.conf_state
        if node in state.voters:
            await self._contacts_known()
            self._check_spare(set(state.voters) - {node}, force)
        await self._change(
            [ChangeSingle(ChangeType.REMOVE_NODE, node)], [], lambda: node not in self._driver.enrolment.roster.members
        )
        return node

    async def _replace(self, node: NodeId, address: str, force: bool) -> str:
        """Let the lost directory of `node` go, and admit the new one as a learner."""
        if node == self._driver.id:
            raise Declined(f"{node} leads, with the data directory that the cluster knows: nothing to replace")
        old = self._driver.enrolment.roster.members[node]
        new = await self._stranger(f"{node}={address or old.address}", True, replaces=True)
        if new.incarnation == old.incarnation:
            raise Declined(f"{node} at {new.address} has the data directory that the cluster knows: nothing to replace")
        if self._is_there(node) and not force:
            raise Declined(f"{node} is there with the data directory that the cluster knows (--force insists)")
        await self._remove(node, force)
        await self._change(
            [ChangeSingle(ChangeType.ADD_LEARNER, node)],
            [new],
            lambda: self._driver.enrolment.roster.members.get(node) == new,
        )
        return node

    # ---- checks -----------------------------------------------------------------------------------------------------

    def _node(self, arguments: Arguments) -> NodeId:
        node = arguments.get("node")
        if not isinstance(node, str) or node not in self._driver.enrolment.roster.members:
            raise Declined(
                f"{node!r} is no member; the members are {', '.join(sorted(self._driver.enrolment.roster.members))}"
            )
        return NodeId(node)

    async def _stranger(self, text: str, promote: bool, *, replaces: bool = False) -> Member:
        """Return the node that `text` (ID=HOST:PORT) names, after looking at who answers there."""
        driver = self._driver
        try:
            peer = parse_peer(text)
        except ConfigError as error:
            raise Declined(str(error).replace("cluster.peers: ", "")) from None
        if peer.id == driver.id:
            raise Declined(f"{peer.id} is a member already, and leads")
        for member in driver.enrolment.roster.members.values():
            if member.id != peer.id and (member.host, member.port) == (peer.host, peer.port):
                raise Declined(f"{member.id} has the address {member.address}")
        if not driver.transport.is_listening:
            raise Declined("this node takes no connections of others: set cluster.listen and cluster.secret_file")
        try:
            answer = await ask(driver.transport.identity, peer.host, peer.port, ASK_S)
        except NoAnswer as error:
            raise Declined(f"{error}. Start it first: smtpraft serve --join HOST:PORT of a member") from None
        if answer.node != peer.id:
            raise Declined(f"at {peer.host}:{peer.port} is {answer.node}, not {peer.id}")
        if answer.cluster_id != driver.options.cluster_id:
            raise Declined(
                f"{peer.id} belongs to cluster {answer.cluster_name!r} {answer.cluster_id.hex()}, this is "
                f"{driver.options.cluster_name!r} {driver.options.cluster_id.hex()}: start it with --join, and with "
                "the same cluster.name"
            )
        member = Member(peer.id, answer.incarnation, peer.host, peer.port, promote)
        known = driver.enrolment.roster.members.get(peer.id)
        if known is not None and not replaces:
            if known.incarnation != answer.incarnation:
                raise Declined(f"{peer.id} is a member with another data directory: smtpraft member replace {peer.id}")
            if known.address == member.address:
                raise Declined(f"{peer.id} is a member already")
        elif known is None and answer.takes_part:
            was = "was removed from this cluster" if (peer.id, answer.incarnation) in driver.transport.removed else ""
            raise Declined(
                f"{peer.id} {was or 'has taken part in a cluster'} with the data directory that it has: stop it, "
                "empty the directory, start it with --join, and try again"
            )
        log.info(
            "asked node=%s address=%s:%d incarnation=%016x release=%s",
            peer.id,
            peer.host,
            peer.port,
            answer.incarnation,
            answer.release,
        )
        return member

    def _is_there(self, node: NodeId) -> bool:
        driver = self._driver
        return node == driver.id or (
            driver.transport.connected(node)
            and monotonic() - driver.heartbeats.contact_at(node) <= driver.contact_window_s
        )

    def _check_spare(self, after: set[NodeId], force: bool) -> None:
        """Decline what leaves the cluster one failure from loss, if it is not so now.

        Spare is how many of the voters that are there may fail before the others are no majority any more.
        """
        before = set(self._driver.core.conf_state.voters)
        spare_before, _, _ = self._spare(before)
        spare, needed, missing = self._spare(after)
        facts = f"of {len(after)} voters then, {needed} must be there" + (
            f", and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not" if missing else ""
        )
        if spare < 0:
            raise Declined(f"this would stop the cluster at once: {facts}. Bring them back, or remove them, first")
        if force:
            return
        if len(after) == 1 and len(before) > 1:
            raise Declined("this leaves one copy of everything: its disk is one failure from loss (--force insists)")
        if spare == 0 and spare_before > 0:
            raise Declined(f"this leaves the cluster one failure from loss: {facts} (--force insists)")

    def _spare(self, voters: Iterable[NodeId]) -> tuple[int, int, list[NodeId]]:
        nodes = sorted(voters, key=node_order)
        missing = [node for node in nodes if not self._is_there(node)]
        needed = len(nodes) // 2 + 1
        return len(nodes) - len(missing) - needed, needed, missing

    async def _contacts_known(self) -> None:
        """A leader that has just been elected has not heard of everybody yet: give them a moment."""
        voters = self._driver.core.conf_state.voters
        await self._wait(lambda: all(map(self._is_there, voters)), 2 * self._driver.contact_window_s)

    # ---- through the log --------------------------------------------------------------------------------------------

    async def _changing(self, change: Awaitable[object]) -> object:
        async with self._one_at_a_time:
            return await change

    async def _change(self, changes: Sequence[ChangeSingle], added: Sequence[Member], done: Callable[[], bool]) -> None:
        """Put a change to the log and wait until it is applied here, and until a joint membership is left again."""
        driver = self._driver
        core = driver.core
        if not driver.enrolment.roster.founded:
            raise Declined("the first members are not in the log yet; that takes all of them, on this release")
        if not await self._wait(lambda: not core.conf_change_pending, LEADER_S):
            raise Declined("another change of the members is under way; try again")
        try:
            core.propose_conf_change(ConfChangeV2(tuple(changes), context=encode_context(added)))
        except ProposalDropped as error:
            raise NotReplicated(str(error)) from None
        finally:
            driver.want_turn()
        if not await self._wait(lambda: done() and not core.conf_state.voters_outgoing, CHANGE_S):
            raise OutcomeUnknown("no majority took the change in time; it may still come: look with member list")

    async def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Look at `condition` after every turn; return whether it came true in time."""
        deadline = monotonic() + timeout_s
        while not condition():
            if monotonic() >= deadline or not self._driver.running:
                return False
            await asyncio.shield(self._driver.next_turn())
        return True


def role_of(node: NodeId, voters: Iterable[NodeId], outgoing: Iterable[NodeId], learners: Iterable[NodeId]) -> str:
    """Return what a member is: `voter`, `learner`, or `leaving` while a joint membership lasts."""
    if node in voters:
        return "voter"
    return "learner" if node in learners else "leaving" if node in outgoing else "none"


def _texts(arguments: Arguments) -> list[str]:
    members = arguments.get("members")
    if not isinstance(members, list) or not members or not all(isinstance(text, str) for text in members):
        raise Declined('send {"members": ["ID=HOST:PORT", …]}')
    return members
