"""What breaks, and when; what a seed allows is in its plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from smtpraft.cluster.members import encode_context
from smtpraft.consensus import LEAVE_JOINT, ChangeSingle, ChangeType, ConfChangeV2, Role, Transition
from smtpraft.simulator.plan import FAULTS, MODIFIERS
from smtpraft.simulator.timeline import MS, S
from smtpraft.simulator.wiping import Wipes
from smtpraft.types import NodeId

if TYPE_CHECKING:
    from smtpraft.simulator.host import Host
    from smtpraft.simulator.process import Process
    from smtpraft.simulator.world import World

AIMED: Final = frozenset({"crash-persist", "crash-send", "crash-apply", "crash-recovery", "crash-cut", "crash-install"})
STANDING: Final = frozenset(
    {"delay", "loss", "repeat", "reorder", "slow", "drift", "snapshot", "crawl", "late-mail", "again"}
)
"""What is there all day, and not an event."""


class Faults:
    """The nemesis of one cluster."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        acts: dict[str, Callable[[], None]] = {
            "partition": self._partition,
            "one-way": self._one_way,
            "swizzle": self._swizzle,
            "isolate-leader": self._isolate_leader,
            "bridge": self._bridge,
            "stale-leader": self._stale_leader,
            "crash": self._crash,
            "crash-all": self._crash_all,
            "pause": self._pause,
            "stall": self._stall,
            "full": self._full,
            "eio": self._eio,
            "damage": self._damage,
            "wall-jump": self._jump,
            "transfer": self._transfer,
            "campaign": self._campaign,
            "forget-leader": self._forget_leader,
            "forgetful": self._forgetful,
            "membership": self._change_members,
            "usurp": self._usurp,
            "stranded": self._strand,
            "outrun": self._outrun,
            "lag": self._lag,
            "wipe": Wipes(world).wipe,
            "rot": self._rot,
        }
        assert set(acts) | AIMED | STANDING | MODIFIERS == set(FAULTS), set(acts) ^ set(FAULTS)
        self._acts = [(name, act) for name, act in acts.items() if world.plan.has(name)]

    def start(self) -> None:
        """Begin to break things; what a former round broke for good is whole again."""
        self.world.network.storm(self.world.plan)
        for host in self.world.hosts.values():
            host.stays_down = False
            if host.process is None:
                self.world.timeline.after(self.random.randrange(50 * MS), host.start)
        if self._acts:
            self.world.timeline.after(self.random.randrange(2 * self.world.plan.fault_every_us), self._again)

    def _again(self) -> None:
        if self.world.calm:
            return
        self._act()
        self.world.timeline.after(self.random.randrange(2 * self.world.plan.fault_every_us), self._again)

    def _act(self) -> None:
        _, act = self.random.choice(self._acts)
        act()

    def led(self, process: Process) -> None:
        """A node has just become leader: what is asked of it now finds it at its weakest."""
        if self.world.plan.has("membership") and self.random.random() < 0.4 and not self.world.calm:
            self.world.timeline.after(self.random.randrange(50 * MS), self._change_at, process.host)

    # Who.

    def _up(self) -> list[Host]:
        return [host for host in self.world.hosts.values() if host.process is not None]

    def _some(self) -> Host | None:
        """Return a node that runs; the leader more often than others."""
        now = self.world.timeline.now
        up = [host for host in self._up() if host.paused_until <= now]
        leaders = [host for host in up if host.process is not None and host.process.core.role is Role.LEADER]
        if leaders and self.random.random() < 0.4:
            return self.random.choice(leaders)
        return self.random.choice(up) if up else None

    def _duration(self) -> int:
        return self.random.choice((50, 200, 500, 1000, 3000)) * MS

    # The network.

    def _heal_later(self) -> None:
        self.world.timeline.after(self._duration(), self._heal)

    def _heal(self) -> None:
        if not self.world.calm:
            self.world.network.heal()
            self.world.note("-", "heal", "all links")

    def _halves(self) -> tuple[list[Host], list[Host]]:
        hosts = list(self.world.hosts.values())
        self.random.shuffle(hosts)
        cut = self.random.randint(1, max(1, len(hosts) - 1))
        return hosts[:cut], hosts[cut:]

    def _partition(self, *, both_ways: bool = True) -> None:
        ones, others = self._halves()
        self.world.network.heal()
        self.world.network.separate([host.id for host in ones], [host.id for host in others], both_ways=both_ways)
        names = " | ".join(",".join(host.id for host in half) for half in (ones, others))
        self.world.fault("-", "partition" if both_ways else "one-way", names)
        self._heal_later()

    def _one_way(self) -> None:
        self._partition(both_ways=False)

    def _isolate_leader(self) -> None:
        leader = self._some()
        if leader is None:
            return
        others = [host.id for host in self.world.hosts.values()]
        if leader.process is not None and self.random.random() < 0.5:
            # Whoever must not count stays with it (thesis §4.2.1).
            learners = leader.process.core.conf_state.learners
            others = [node for node in others if node not in learners]
        both_ways = self.random.random() < 0.6
        if both_ways or self.random.random() < 0.5:
            self.world.network.separate([leader.id], others, both_ways=both_ways)
        else:
            self.world.network.separate(others, [leader.id], both_ways=False)
        self.world.workload.ask_often(leader, 2 * S)
        self.world.fault(leader.id, "isolate-leader", "both ways" if both_ways else "one way")
        self._heal_later()

    def _stale_leader(self) -> None:
        """A leader is asked that nobody hears any more, while what they said before still comes in (thesis §6.4)."""
        leader = self._some()
        if leader is None:
            return
        world, random = self.world, self.random
        network, timeline = world.network, world.timeline
        others = [host.id for host in world.hosts.values()]
        late = random.choice((300, 1000, 2000)) * MS
        network.late_us[leader.id] = late
        begin = random.randrange(late)
        timeline.after(begin, self._silence, leader.id, others)
        timeline.after(begin + late + random.randrange(1 * S), self._be_heard, leader.id)
        world.workload.ask_often(leader, begin + late)
        world.fault(leader.id, "stale-leader", f"{late // MS} ms")

    def _lag(self) -> None:
        """What is said to a leader comes later and later, so slowly that it does not notice. When it is silenced, and
        another leads already, it still hears answers: none is to what it asks now (thesis §6.4).
        """
        world, random, plan = self.world, self.random, self.world.plan
        leaders = [host for host in self._up() if host.process is not None and host.process.core.role is Role.LEADER]
        if not leaders or world.network.late_us:
            return
        leader = random.choice(leaders)
        late = random.choice((1500, 2500)) * MS
        for at in range(0, late, plan.tick_us):
            world.timeline.after(at, self._be_late, leader.id, at)
        election = plan.election_ticks * plan.tick_us
        world.timeline.after(late, self._silence, leader.id, list(world.hosts))
        world.timeline.after(late + election, world.workload.ask_often, leader, late - election)
        world.timeline.after(2 * late + random.randrange(500 * MS), self._be_heard, leader.id)
        world.fault(leader.id, "lag", f"{late // MS} ms")

    def _be_late(self, node: NodeId, late_us: int) -> None:
        if not self.world.calm:
            self.world.network.late_us[node] = late_us

    def _silence(self, node: NodeId, others: list[NodeId]) -> None:
        if not self.world.calm:
            self.world.network.separate([node], others, both_ways=False)

    def _be_heard(self, node: NodeId) -> None:
        self.world.network.late_us.pop(node, None)
        self._mend(node)

    def _bridge(self) -> None:
        """Two halves that reach each other only through one node (openraft#2080)."""
        hosts = list(self.world.hosts.values())
        if len(hosts) < 3:
            return
        self.random.shuffle(hosts)
        bridge, rest = hosts[0], hosts[1:]
        half = max(1, len(rest) // 2)
        self.world.network.heal()
        self.world.network.separate([host.id for host in rest[:half]], [host.id for host in rest[half:]])
        self.world.fault(bridge.id, "bridge")
        self._heal_later()

    def _swizzle(self) -> None:
        """Cut the links of some nodes one by one, mend them one by one in another order (FoundationDB's best)."""
        hosts = [host.id for host in self.world.hosts.values()]
        some = self.random.sample(hosts, self.random.randint(1, len(hosts)))
        timeline = self.world.timeline
        at = 0
        for node in some:
            at += self.random.randrange(300 * MS)
            timeline.after(at, self._separate, node, hosts)
        self.random.shuffle(some)
        for node in some:
            at += self.random.randrange(300 * MS)
            timeline.after(at, self._mend, node)
        self.world.fault("-", "swizzle", ",".join(some))

    def _separate(self, node: NodeId, others: list[NodeId]) -> None:
        if not self.world.calm:
            self.world.network.separate([node], others)

    def _mend(self, node: NodeId) -> None:
        if not self.world.calm:
            self.world.network.mend(node)

    # Processes and clocks.

    def _crash(self) -> None:
        host = self._some()
        writing = [each for each in self._up() if each.process is not None and each.process.writer.in_flight]
        if writing and self.random.random() < 0.5:
            host = self.random.choice(writing)
        if host is not None:
            host.crash("crash")

    def _crash_all(self) -> None:
        for host in self._up():
            host.crash("crash-all")

    def _pause(self) -> None:
        host = self._some()
        if host is not None:
            duration = self._duration()
            host.paused_until = self.world.timeline.now + duration
            self.world.fault(host.id, "pause", f"{duration // MS} ms")

    def _jump(self) -> None:
        host = self._some()
        if host is not None:
            skew = self.random.choice((-3600, -5, 5, 86400)) * S
            host.jump(skew)
            self.world.fault(host.id, "wall-jump", f"{skew // S} s")

    # Disks.

    def _stall(self) -> None:
        host = self._some()
        if host is not None:
            duration = self._duration()
            until = self.world.timeline.now + duration
            what = self.random.choice(("log", "log", "spool"))
            if what == "log":
                host.stalled_until = until
            else:
                host.apply_stalled_until = until
            self.world.fault(host.id, "stall", f"{what} {duration // MS} ms")

    def _full(self) -> None:
        host = self._some()
        if host is not None and host.disk.capacity_bytes is None:
            host.disk.capacity_bytes = 0
            self.world.fault(host.id, "full")
            self.world.timeline.after(self._duration(), host.make_room)

    def _eio(self) -> None:
        host = self._some()
        if host is not None:
            host.fail_next = self.random.choice(("write", "sync"))
            self.world.fault(host.id, "eio", f"the next {host.fail_next}")

    def _damage(self) -> None:
        """A disk loses what it had: of a minority only, and not before a former one is whole again."""
        world = self.world
        hurt = sum(host.damaged or host.replaced for host in world.hosts.values())
        host = self._some()
        if host is None or host.damaged or 2 * (hurt + 1) >= world.plan.nodes or world.plan.has("membership"):
            return
        host.crash("crash")
        what = host.damage()
        if what:
            world.fault(host.id, "damage", what)

    def _rot(self) -> None:
        """What a node has promised is damaged where it is kept a second time, while the node is down."""
        world = self.world
        hurt = sum(host.damaged or host.replaced for host in world.hosts.values())
        host = self._some()
        if host is None or host.damaged or 2 * (hurt + 1) >= world.plan.nodes:
            return
        host.crash("crash")
        world.fault(host.id, "rot", host.rot())

    # Raft.

    def _usurp(self) -> None:
        """Leaders in quick succession, each of whom reaches few with its entries (Raft Figure 8). One node hears them
        all, so entries are replaced there and replaced back; often before its disk has written the first of them.
        """
        world, random, plan = self.world, self.random, self.world.plan
        hosts = self._up()
        if len(hosts) < 2:
            return
        random.shuffle(hosts)
        if random.random() < 0.4:  # The one who leads hears of it in the middle of what it was about to send.
            hosts.sort(key=lambda host: host.process is None or host.process.core.role is not Role.LEADER)
        victim, usurpers = hosts[0], hosts[1 : random.choice((3, 3, len(hosts)))]
        steps = random.randint(2, 5)
        step = (plan.delay_us + plan.jitter_us + plan.disk_us) * random.randint(6, 20)
        if random.random() < 0.7:
            victim.stalled_until = world.timeline.now + step * random.randint(1, steps)
        for number in range(steps):
            usurper = usurpers[number % len(usurpers)]
            reached = {victim.id, *(host.id for host in hosts if random.random() < 0.15)}
            world.timeline.after(number * step, self._let_lead, usurper.id, reached)
            for again in range(4):
                world.timeline.after(number * step + again * step // 4, self._usurp_once, usurper)
        if random.random() < 0.3:
            world.timeline.after(random.randrange(steps * step), self._crash_of, victim)
        world.timeline.after(steps * step, world.network.let_all_lead)
        world.fault(victim.id, "usurp", ", ".join(host.id for host in usurpers))

    def _let_lead(self, node: NodeId, reached: set[NodeId]) -> None:
        if not self.world.calm:
            self.world.network.let_lead(node, reached)

    def _usurp_once(self, usurper: Host) -> None:
        if self.world.calm or usurper.process is None or usurper.process.core.role is Role.LEADER:
            return
        for host in self._up():
            if host.process is not None and host is not usurper:
                host.run(host.process, host.process.forget_leader)
        usurper.run(usurper.process, usurper.process.campaign)

    def _stall_for(self, host: Host, duration: int) -> None:
        if not self.world.calm:
            host.stalled_until = self.world.timeline.now + duration

    def _crash_of(self, host: Host, back_us: int | None = None) -> None:
        if host.process is not None and not self.world.calm:
            host.crash("crash", back_us=back_us)

    def _transfer(self) -> None:
        host = self._some()
        if host is not None and host.process is not None:
            to = self.random.choice(list(self.world.hosts))
            self.world.fault(host.id, "transfer", to)
            if self.random.random() < 0.5:
                # It gives leadership away, and hears no more of what became of it.
                delay = 2 * (self.world.network.delay_us + self.world.network.jitter_us)
                others = list(self.world.hosts)
                at = self.random.choice((0, self.random.randrange(delay)))
                self.world.timeline.after(at, self._deafen, host.id, others)
                self.world.workload.ask_often(host, 300 * MS)
            host.run(host.process, host.process.transfer, to)

    def _strand(self) -> None:
        """Leadership is to go to one whom nobody hears from then on: it is in a later term than all others, alone."""
        world, random = self.world, self.random
        leaders = [host for host in self._up() if host.process is not None and host.process.core.role is Role.LEADER]
        others = [host for host in self._up() if host not in leaders]
        if not leaders or not others:
            return
        leader, to = random.choice(leaders), random.choice(others)
        rest_us = 4 * (world.plan.delay_us + world.plan.jitter_us + world.plan.disk_us)
        world.workload.rest_until(world.timeline.now + 2 * rest_us)
        world.timeline.after(rest_us, self._strand_at, leader, to)
        world.fault(leader.id, "stranded", to.id)

    def _strand_at(self, leader: Host, to: Host) -> None:
        if leader.process is None or self.world.calm:
            return
        leader.run(leader.process, leader.process.transfer, to.id)
        self.world.network.separate([to.id], list(self.world.hosts), both_ways=False)
        self.world.timeline.after(self.random.choice((500, 1000, 3000)) * MS, self._mend, to.id)

    def _outrun(self) -> None:
        """All that one node says to its leader comes late, so that one knows too little of what it has; and connections
        break, though all that went over them arrives. So it is sent a snapshot, and has all that is in it, and more, by
        the time that it is there.
        """
        world, random = self.world, self.random
        leaders = [host for host in self._up() if host.process is not None and host.process.core.role is Role.LEADER]
        others = [host for host in self._up() if host not in leaders]
        if not leaders or not others or world.network.late_link is not None:
            return
        leader, other = random.choice(leaders), random.choice(others)
        late = random.choice((200, 400, 700)) * MS
        world.network.late_link, world.network.late_link_us = (other.id, leader.id), late
        for number in range(1, 7):
            world.timeline.after(number * late // 2, self._break_off, leader, other.id)
        world.timeline.after(late * 6, self._be_in_time)
        world.fault(other.id, "outrun", f"{late // MS} ms late at {leader.id}")

    def _break_off(self, leader: Host, peer: NodeId) -> None:
        if leader.process is not None and not self.world.calm:
            leader.process.unreachable(peer)

    def _be_in_time(self) -> None:
        self.world.network.late_link = None

    def _forgetful(self) -> None:
        """Nobody wants anything, so all logs are alike. One node has not heard the leader for long, and stands for
        election when the others come back from a crash, who do not remember what they promised that leader just now
        (thesis §6.4.1); and the leader hears nothing of it.
        """
        world, random, plan = self.world, self.random, self.world.plan
        leaders = [host for host in self._up() if host.process is not None and host.process.core.role is Role.LEADER]
        if not leaders or len(self._up()) < 3:
            return
        leader = random.choice(leaders)
        rest = [host for host in self._up() if host is not leader]
        random.shuffle(rest)
        candidate, others = rest[0], rest[1:]
        silence = (plan.election_ticks + 1) * plan.tick_us * 21 // 20
        world.workload.rest_until(world.timeline.now + silence + 100 * MS)
        world.network.separate([leader.id], [candidate.id])
        world.timeline.after(silence, self._deafen, leader.id, list(world.hosts))
        back = random.randrange(1, 10) * MS
        for host in others:
            world.timeline.after(silence + random.randrange(1 * MS), self._crash_of, host, back)
        for again in range(1, 6):
            world.timeline.after(silence + again * (back + plan.disk_us), self._campaign_at, candidate)
        world.timeline.after(silence, world.workload.ask_often, leader, plan.election_ticks * plan.tick_us)
        world.fault(leader.id, "forgetful", f"{candidate.id} after {silence // MS} ms")

    def _deafen(self, node: NodeId, others: list[NodeId]) -> None:
        if not self.world.calm:
            self.world.network.separate(others, [node], both_ways=False)
            self._heal_later()

    def _campaign(self) -> None:
        host = self._some()
        if host is not None:
            self._campaign_at(host)

    def _campaign_at(self, host: Host) -> None:
        if host.process is not None and not self.world.calm:
            self.world.fault(host.id, "campaign")
            host.run(host.process, host.process.campaign)

    def _forget_leader(self) -> None:
        host = self._some()
        if host is not None and host.process is not None:
            self.world.fault(host.id, "forget-leader")
            host.run(host.process, host.process.forget_leader)

    def _change_members(self) -> None:
        """Let somebody in or out, promote or demote; at times two at once, jointly (thesis §4.3)."""
        host = self._some()
        if host is not None:
            self._change_at(host)

    def _change_at(self, host: Host) -> None:
        random, process = self.random, host.process
        if process is None or process.core.role is not Role.LEADER or self.world.calm:
            return
        state = process.core.conf_state
        change = LEAVE_JOINT
        if not state.voters_outgoing:
            removed = {node for node, _ in process.applier.members.removed}
            singles: list[ChangeSingle] = []
            joining = []
            for _ in range(random.choice((1, 1, 2))):
                # Often the leader itself: it goes on until the change is committed (thesis §4.2.2).
                node = host.id if random.random() < 0.2 else random.choice(list(self.world.hosts))
                kinds = [ChangeType.ADD_NODE, ChangeType.ADD_LEARNER]
                if node in state.voters or node in state.learners:
                    kinds.append(ChangeType.REMOVE_NODE)
                elif node in removed:
                    continue
                kind = kinds[-1] if node == host.id and random.random() < 0.6 else random.choice(kinds)
                if node in state.voters and kind is not ChangeType.ADD_NODE and len(state.voters) < 3:
                    continue
                singles.append(ChangeSingle(kind, node))
                if node not in state.voters and node not in state.learners:
                    joining.append(self.world.hosts[node].member)
            if not singles or len({single.node for single in singles}) < len(singles):
                return
            transition = random.choice((Transition.AUTO, Transition.AUTO, Transition.JOINT_EXPLICIT))
            change = ConfChangeV2(tuple(singles), transition, encode_context(joining))
        elif state.auto_leave:
            return
        text = ", ".join(f"{single.type.name} {single.node}" for single in change.changes) or "leave"
        self.world.fault(host.id, "membership", text)
        if any(single.node == host.id for single in change.changes) and random.random() < 0.5:
            # Its own writes are under way when it learns that it is a member no more.
            plan = self.world.plan
            at = 2 * plan.disk_us + random.randrange(plan.apply_us + 2 * (plan.delay_us + plan.jitter_us))
            self.world.timeline.after(at, self._stall_for, host, 1 * S)
            self.world.workload.ask_often(host, 2 * at)
        elif random.random() < 0.3:
            # One who knows that it is committed, and has not applied it, is a candidate (thesis §4.1).
            slow = random.choice(self._up())
            slow.apply_stalled_until = self.world.timeline.now + 1 * S
            self.world.timeline.after(random.randrange(100 * MS, 900 * MS), self._campaign_at, slow)
        host.run(process, process.change_members, change)

    # The second phase.

    def heal_a_majority(self) -> list[Host]:
        """Heal a random majority and return it. The others may be down, deaf or mute, and stay so."""
        world, random = self.world, self.random
        hosts = list(world.hosts.values())
        random.shuffle(hosts)
        core = hosts[: len(hosts) // 2 + 1 + random.randrange(len(hosts) - len(hosts) // 2)]
        if world.plan.has("membership") or world.plan.has("wipe"):
            core = hosts  # Which majority is asked for may be changing right now.
        if world.plan.has("damage") or world.plan.has("rot"):
            core = [host for host in hosts if not host.refused]  # Who lost something elects nobody yet.
        if not world.plan.faults:
            core = hosts  # On a day without faults nothing breaks here either.
        rest = [host for host in hosts if host not in core]
        world.network.heal()
        everybody = [host.id for host in hosts]
        for host in rest:
            how = random.choice(("down", "deaf", "mute", "cut"))
            world.note(host.id, "rest", how)
            if how == "down":
                host.stays_down = True
                if host.process is not None:
                    host.crash("down", power=False)
            elif how == "deaf":
                world.network.separate(everybody, [host.id], both_ways=False)
            elif how == "mute":
                world.network.separate([host.id], everybody, both_ways=False)
            elif how == "cut":
                world.network.separate([host.id], everybody)
        world.network.calm()
        for host in core:
            host.stays_down = False
            host.paused_until = host.stalled_until = host.apply_stalled_until = 0
            host.fail_next = ""
            host.disk.capacity_bytes = None
            if host.process is None:
                world.timeline.after(0, host.start)
        world.note("-", "core", ",".join(host.id for host in core))
        return core
