"""A machine: what outlives the process on it. Its disk, its spool's file, its clock, and how it crashes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from smtpraft.cluster.members import Member
from smtpraft.cluster.snapshot_format import SnapshotInfo
from smtpraft.consensus import ConfState
from smtpraft.errors import Fatal
from smtpraft.simulator.invariants import Mirror
from smtpraft.simulator.process import Crash, Process
from smtpraft.simulator.spoolfile import SpoolFile
from smtpraft.simulator.timeline import MS, S
from smtpraft.simulator.violation import Violation
from smtpraft.simulator.wiping import next_directory
from smtpraft.spool.machine import SpoolMachine
from smtpraft.storage import HardState, WalFailed, WalFull
from smtpraft.storage.batch import BATCH_ALIGN_BYTES
from smtpraft.storage.group import write_group
from smtpraft.storage.promises import PROMISES_FILE, SLOT_BYTES
from smtpraft.storage.segment import parse_segment_name
from smtpraft.storage.simdisk import Operation, Outcome, PowerCut, SimulatedDisk
from smtpraft.types import NodeId

if TYPE_CHECKING:
    from smtpraft.simulator.world import World

MILLION: Final = 1_000_000
CALM_US: Final = 1 * MS
FULL_RESTART_US: Final = 200 * MS
PROMISES: Final = "data"
"""The directory of the file of promises."""
EPOCH_S: Final = 1_700_000_000


class Host:
    """One machine of the cluster, `number` 0 and up."""

    def __init__(self, world: World, node: NodeId, number: int, conf_state: ConfState) -> None:
        self.world = world
        self._timeline = world.timeline
        self.id = node
        self.number = number
        self.random = world.random
        self.disk = SimulatedDisk(self.random.getrandbits(32))
        self.disk.make_directory(PROMISES)
        self.spool = SpoolFile(os.path.join(world.directory, node))
        self.mirror = Mirror()
        self.process: Process | None = None
        self.founders = conf_state
        """The first members, if it is one of them."""
        self.conf_state = conf_state
        self.conf_index = 0
        self.member = Member(node, number + 1, "127.0.0.1", 1000 + number)
        self.applied = 0
        self.replays_to = 0
        """Up to here its machine is given entries again: its log had lost some of what it has."""
        self.vouched = ("", 0)
        """The segment and the offset up to which the log vouches for what is in it."""
        self.write_failed = False
        self.fail_next = ""
        """Which operation of the log's fails next: write, sync, or none."""
        self.damaged = False
        """Its disk lost something by itself, and not all of it is back."""
        self.refused = False
        """The node does not start on what is left of its disk: somebody must come and replace it."""
        self.rotten = False
        """Its promises were damaged, and it has not been started since."""
        self.stranger = False
        """Its directory is none that it has ever read of as a member's."""
        self.replaced = False
        """It lost its directory, and does not vote with the new one yet."""
        self.stays_down = False
        self.paused_until = 0
        self.stalled_until = 0
        self.apply_stalled_until = 0
        self._writes_left = 0
        self._again = False
        """The last crash was the process's alone."""
        self._killed = True
        """Is the spool's file as the last process left it? Not after a loss of power."""
        plan = world.plan
        self._rate_ppm = MILLION + (self.random.randrange(-40_000, 40_001) if plan.has("drift") else 0)
        self._drifts = self._rate_ppm != MILLION
        self._offset_us = self.random.randrange(1, 1000) * S
        self._skew_us = 0
        self._slow = plan.has("slow") or plan.has("stall")
        self.tick_us = plan.tick_us * MILLION // self._rate_ppm

    # Clocks.

    def monotonic_s(self) -> float:
        """Return this machine's monotonic time, in seconds; its rate is not quite everybody's."""
        now = self._timeline.now
        return (self._offset_us + (now * self._rate_ppm // MILLION if self._drifts else now)) / 1e6

    def wall_s(self) -> float:
        """Return what this machine takes for the time of day."""
        return EPOCH_S + (self.world.timeline.now + self._skew_us) / 1e6

    def jump(self, skew_us: int) -> None:
        """Somebody sets the clock."""
        self._skew_us += skew_us

    # Latencies.

    def disk_latency_us(self) -> int:
        """Return how long the next write and sync takes."""
        if self.world.calm:
            return CALM_US
        usual = self.world.plan.disk_us
        draw = self.random.random()
        slow = draw > 0.98 and self._slow
        latency = usual // 2 + int(draw * usual * (20 if slow else 1))
        return max(latency, self.stalled_until - self.world.timeline.now)

    def apply_latency_us(self) -> int:
        """Return how long the next transaction takes."""
        usual = self.world.plan.apply_us
        return max(usual // 2 + int(self.random.random() * usual), self.apply_stalled_until - self.world.timeline.now)

    # Running.

    def start(self) -> None:
        """Start the node's process."""
        if self.process is not None or self.stays_down or self.refused:
            return
        self.write_failed = False
        self.fail_next = ""
        try:
            with self.aiming("crash-recovery", operations=20):
                process = Process(self)
            self.process = process
            self.world.note(self.id, "start", f"log to {process.log.last_index}, applied {self.applied}")
            process.start()
        except PowerCut:
            self.crash("crash-recovery")
        except Violation:
            raise
        except Exception as error:
            self.spool.close()
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                # A damaged log cannot be put aside on a full disk: whoever watches over the node starts it again.
                self.world.note(self.id, "refuses", str(error))
                self.world.timeline.after(FULL_RESTART_US, self.start)
                return
            if not (self.damaged or self.rotten) or not isinstance(error, Fatal):
                self.world.stopped(self, error)
            self.refused = True
            self.world.note(self.id, "refuses", str(error))

    def run(self, process: Process, act: Callable[..., object], *arguments: object) -> None:
        """Let `process` do something, unless it is gone; if it stands still, later."""
        if self.process is not process:
            return
        if self.paused_until > self._timeline.now:
            self._timeline.after(self.paused_until - self._timeline.now, self.run, process, act, *arguments)
            return
        try:
            act(*arguments)
        except (Crash, PowerCut) as crash:
            self.crash(str(crash) or "crash-persist")
        except Violation:
            raise
        except Exception as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """The process stops itself."""
        if isinstance(error, (Crash, PowerCut, Violation)):
            raise error
        if self.write_failed and isinstance(error, WalFailed):
            self.world.note(self.id, "stop", str(error))
            self.crash("eio", power=False)
            return
        self.world.stopped(self, error)

    # Crashes.

    def aimed(self, fault: str, *, times: int = 1) -> bool:
        """Does a crash that is aimed at a place like this one, so many times as often as usual, come now?"""
        plan = self.world.plan
        if not plan.has(fault) or self.world.calm:
            return False
        return self.random.random() * MILLION < plan.aimed_ppm * times

    @contextlib.contextmanager
    def aiming(self, fault: str, *, operations: int = 4, times: int = 1, early: bool = True) -> Iterator[None]:
        """Crash at one of the next operations of the disk, perhaps; or let one fail, if that was asked for. `early`:
        most often between a write and its sync.
        """
        disk = self.disk
        if self.aimed(fault, times=times):
            at = disk.operations + self.random.randint(1, operations)
            if early:
                at = self.random.choice((disk.operations + 2, disk.operations + 2, at))

            def cut(operation: Operation) -> None:
                if operation.number >= at:
                    raise PowerCut(fault)

            disk.hook = cut
        elif self.fail_next:
            disk.hook = self._fail_write
        try:
            yield
        finally:
            disk.hook = None

    def _fail_write(self, operation: Operation) -> None:
        if operation.kind == self.fail_next and operation.path.endswith(".wal"):
            self.fail_next = ""
            self.write_failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO), operation.path)

    def crash(self, fault: str, *, power: bool | None = None, back_us: int | None = None) -> None:
        """Lose all that is in memory, and, with the power, some of what was not synced. It is back after `back_us`."""
        process = self.process
        plan, random = self.world.plan, self.random
        if power is None:
            # What a loss of power does to a write under way is worth the most.
            writes = process is not None and process.writer.in_flight is not None
            power = (plan.has("power") or plan.has("torn")) and random.random() < (0.9 if writes else 0.5)
            if plan.has("again"):
                power = self._again
        if process is not None:
            self._write_half(process)
            process.abandon()
        self.process = None
        self.world.fault(self.id, fault + ("+power" if power else ""))
        self.spool.crash(power, random)
        if power:
            outcomes = [Outcome.NOTHING, Outcome.ALL, Outcome.SECTORS, Outcome.SECTORS]
            if plan.has("torn"):
                outcomes += [Outcome.TORN, Outcome.TORN]
            self.disk = self.disk.crash(random.choice(outcomes), random.getrandbits(32))
            self._killed = False
        self.disk.hook = None
        if not self.world.calm or not self.stays_down:
            delay = random.choice((20, 100, 500, 1500)) * MS if back_us is None else back_us
            self.world.timeline.after(delay, self.start)
            # Once more, when it has written once or twice: what the first crash left must not come back.
            self._writes_left = random.choice((1, 1, 2)) if power and random.random() < 0.5 else 0
            self._again = not power
            if self._again and plan.has("again"):
                # What the next process found was in memory only, unless it has synced that: now the memory goes, too.
                self.world.timeline.after(delay + random.randrange(3 * MS), self._lose_power)

    def _lose_power(self) -> None:
        if self.process is not None and not self.world.calm:
            self.crash("again", power=True)

    def wrote(self) -> None:
        """The log was written and synced.

        Raises:
            Crash: this was what the last crash had left it to do.
        """
        if self._writes_left:
            self._writes_left -= 1
            if not self._writes_left and not self.world.calm:
                raise Crash("crash")

    def _write_half(self, process: Process) -> None:
        """What was being written is written, but not synced; or some operations of it are done."""
        group = process.writer.in_flight
        if group is None or group[0].job is not None or process.writer.begun or self.random.random() < 0.3:
            return
        at = self.disk.operations + self.random.choice((2, 2, 2, 3, 4, 6))

        def cut(operation: Operation) -> None:
            if operation.number >= at:
                raise PowerCut

        self.disk.hook = cut
        with contextlib.suppress(PowerCut, WalFailed, WalFull):
            write_group(process.wal, group)

    def damage(self) -> str:
        """Let the disk lose or change something that was synced, while the node is down; return what.

        Nothing behind what the log vouches for: a last batch may be torn, and nobody could tell.
        """
        random, disk = self.random, self.disk
        name, safe_bytes = self.vouched
        names = [each for each in disk.list_directory("wal") if parse_segment_name(each) and each <= name]
        if not names:
            return ""
        chosen = max(names) if random.random() < 0.4 else random.choice(names)
        path = f"wal/{chosen}"
        contents = disk.contents(path)
        used = safe_bytes if chosen == name else len(contents.rstrip(b"\0"))
        if used <= 0:
            return ""
        self.damaged = True
        # What was written last has the least behind it that tells of it; and behind a batch's entries are only zeros.
        first = max(0, used - 4 * BATCH_ALIGN_BYTES) if random.random() < 0.6 else 0
        offset = random.randrange(first, used)
        if random.random() < 0.8:
            offset -= offset % BATCH_ALIGN_BYTES - random.randrange(512)
        offset = min(offset, used - 1)
        match random.choice(("flip", "flip", "zeros", "stale", "gone")):
            case "flip":
                disk.flip(path, offset * 8 + random.randrange(8))
                return f"flips a bit of {chosen} at {offset}"
            case "zeros":
                disk.damage(path, offset, bytes(min(512, used - offset)))
                return f"zeros in {chosen} at {offset}"
            case "stale":
                block = offset - offset % 512
                other = random.randrange(used) // 512 * 512
                disk.damage(path, block, contents[other : other + min(512, used - block, used - other)])
                return f"{chosen}: block {other} is at {block} as well"
            case _:
                disk.lose(path)
                return f"loses {chosen}"

    def rot(self) -> str:
        """Damage the file of promises, while the node is down; return how."""
        random, disk = self.random, self.disk
        path = f"{PROMISES}/{PROMISES_FILE}"
        if not disk.list_directory(PROMISES).count(PROMISES_FILE):
            return "nothing: there are no promises yet"
        self.rotten = True
        slots = random.choice(([0], [1], [0, 1]))
        match random.choice(("flip", "zeros", "gone" if len(slots) > 1 else "flip")):
            case "gone":
                disk.lose(path)
                return "loses the promises"
            case "zeros":
                for slot in slots:
                    disk.damage(path, slot * SLOT_BYTES, bytes(512))
                return f"zeros in the promises, slots {slots}"
            case _:
                for slot in slots:
                    disk.flip(path, 8 * (slot * SLOT_BYTES + random.randrange(128)) + random.randrange(8))
                return f"flips a bit of the promises, slots {slots}"

    def wipe(self) -> None:
        """Lose the data directory: what comes back has its name, and nothing else of it."""
        self.crash("wipe", power=False)
        old = self.mirror
        self.disk = SimulatedDisk(self.random.getrandbits(32))
        self.disk.make_directory(PROMISES)
        self.spool.wipe()
        self.mirror = Mirror(lost={**old.lost, **old.durable}, lost_base=max(old.base, old.lost_base))
        self.member = next_directory(self.member)
        self.founders = self.conf_state = ConfState()
        self.conf_index = self.applied = self.replays_to = 0
        self.vouched = ("", 0)
        self.stranger = self.replaced = True
        self._killed = True

    def admitted(self) -> None:
        """A member speaks to the new directory: the old one is let go, and all that was committed is elsewhere."""
        if self.replaced and (self.mirror.lost_base or self.mirror.lost):
            self.world.note(self.id, "admitted", "")
            self.mirror.lost.clear()
            self.mirror.lost_base = 0

    def healed(self) -> None:
        """The process says that what the disk had lost is back."""
        self.world.note(self.id, "healed", "")
        self.world.invariants.healed(self)
        self.damaged = False

    def make_room(self) -> None:
        """There is room on the disk again."""
        self.disk.capacity_bytes = None

    # What the process reports.

    def installing(self, info: SnapshotInfo, hard_state: HardState) -> None:
        """The spool is about to be replaced by a snapshot, and the log to begin behind it."""
        self.mirror.installing = (info.index, info.term, hard_state)
        self.put_in_place(info.index)

    def put_in_place(self, index: int) -> None:
        """The spool is that of a snapshot as of `index`."""
        self.mirror.applied_durable = self.applied = index
        self.spool.replaced()

    def installed(self) -> None:
        """Both are done."""
        self.world.invariants.installed(self)

    def members_are(self, index: int, conf_state: ConfState, members: Mapping[NodeId, Member]) -> None:
        """The process knows these members, from the entry at `index`."""
        self.conf_index, self.conf_state = index, conf_state
        self.stranger = self.stranger and members.get(self.id) != self.member

    def reopened(self, machine: SpoolMachine, applied: int) -> None:
        """The spool was opened, and says how far it is (R6, D7)."""
        vouched = self.mirror.applied_durable
        if applied > self.applied or applied < vouched or (self._killed and applied != self.applied):
            text = f"{self.id}: its spool is at {applied}; it had applied {self.applied}, synced {vouched}"
            raise Violation("D7", text)
        self.applied = applied
        self._killed = True
        self.world.reference.compare(self.id, machine, applied)

    def checkpointed(self, machine: SpoolMachine, index: int) -> None:
        """The spool says that all up to `index` would survive a loss of power."""
        self.spool.look(machine)
        self.mirror.applied_durable = max(self.mirror.applied_durable, index)
