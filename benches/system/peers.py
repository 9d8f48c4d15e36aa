"""The suites with peers: the same mail to our nodes, Postfix and Exim; the same writes to ours, etcd and PySyncObj."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Final

from benches.system import etcd, exim, postfix, pysyncobj, smtptools
from benches.system.etcd import Etcd
from benches.system.exim import Exim, EximTarget
from benches.system.postfix import Postfix, PostfixTarget
from benches.system.pysyncobj import PySyncObj
from smtpraft.cli.bench import load, logwrites, mail
from smtpraft.cli.bench.cluster import RELAY_DOMAIN, Cluster, NodesTarget
from smtpraft.cli.bench.logcluster import LogCluster
from smtpraft.cli.bench.mail import SIZES, Case
from smtpraft.cli.bench.plan import Plan
from smtpraft.cli.bench.target import Target
from smtpraft.cluster.ports import free_ports

ONE, TEN, HUNDRED = Case("4k", 1), Case("4k", 10), Case("4k", 100)
ANEW, LARGE = Case("4k", 10, anew=True), Case("100k", 10)
RELAYED_S: Final = 2.0
SOURCE_S: Final = 1.5


def mail_beside_peers(plan: Plan) -> None:
    """Case after case, each at all systems in turn, round after round."""
    sink_port, postfix_port, exim_port = free_ports(3)
    with ExitStack() as stack:
        place = stack.enter_context(plan.place("peers"))
        stack.enter_context(smtptools.sink(sink_port))
        cluster = Cluster(place / "nodes", sink_port)
        stack.callback(cluster.kill)
        cluster.begin()
        everywhere, leader = NodesTarget(cluster, "all nodes"), NodesTarget(cluster, "leader")
        peers: list[Target] = []
        likewise: list[Target] = []  # what our nodes do with the mail: it is accepted, and delivered to nowhere
        relays: dict[str, Target] = {"smtpraft": NodesTarget(cluster, "all nodes", RELAY_DOMAIN)}
        if reason := postfix.why_not():
            plan.figures.reasons["postfix."] = reason
        else:
            instance = Postfix(place / "postfix", postfix_port, sink_port)
            stack.callback(instance.end)
            instance.begin()
            peers.append(PostfixTarget(instance, "hold"))
            likewise.append(PostfixTarget(instance, "discard"))
            relays["postfix"] = PostfixTarget(instance, "relay")
            plan.figures.facts["Postfix"] = postfix.version()
        if reason := exim.why_not():
            plan.figures.reasons["exim."] = reason
        else:
            other = Exim(place / "exim", exim_port)
            stack.callback(other.end)
            other.begin()
            peers.append(EximTarget(other))
            plan.figures.facts["Exim"] = exim.version()
        for target in (everywhere, *peers, *likewise):  # every session has its process, every cache its contents
            mail.run_case(target, HUNDRED, plan.seconds(1.0))
        for number in range(1, plan.rounds + 1):
            plan.say(f"round {number}/{plan.rounds}")
            for case in (HUNDRED, TEN, ONE, ANEW, LARGE):
                ours = leader if case is ONE else everywhere
                for target in (ours, *peers, *(likewise if case in (ONE, TEN, HUNDRED) else ())):
                    if not (target.name == "exim" and case is ANEW):  # it waits before it answers QUIT
                        mail.note(plan, target.name, case, target, plan.seconds(1.5))
            for name, target in relays.items():
                _relayed(plan, name, target)
            _beside_smtp_source(plan, leader)
        changes = cluster.leader_changes()
        if changes > 1:
            plan.figures.warnings.append(f"{changes - 1} change(s) of leader without a fault beside peers")
        cluster.end()


def _relayed(plan: Plan, name: str, target: Target) -> None:
    """Messages accepted, delivered to the sink, and done with, a second: from the first to the last."""
    before = sum(target.cpu_s().values())
    began = time.monotonic()
    found = load.send_mail(target.ports(), target.recipient, 100, SIZES["4k"], seconds=plan.seconds(RELAYED_S))
    target.wait_delivered()
    seconds = time.monotonic() - began
    plan.figures.add(f"{name}.relay.4k.100.rate", found.count / seconds)
    plan.figures.add(f"{name}.relay.4k.100.cpu_us", (sum(target.cpu_s().values()) - before) / found.count * 1e6)
    plan.say(f"{name:10} relayed            {found.count / seconds:7.0f}/s")
    os.sync()


def _beside_smtp_source(plan: Plan, target: Target) -> None:
    """The same load by Postfix's own generator: it must see the same."""
    if reason := smtptools.why_not():
        plan.figures.reasons["generator."] = reason
        return
    seconds = plan.seconds(SOURCE_S)
    ours = load.send_mail(target.ports(), target.recipient, 10, SIZES["4k"], seconds=seconds)
    target.wait_delivered()
    messages = max(200, round(ours.rate * seconds))
    theirs = messages / smtptools.send(target.ports(), target.recipient, 10, messages, SIZES["4k"])
    target.wait_delivered()
    plan.figures.add("generator.ours.rate", ours.rate)
    plan.figures.add("generator.source.rate", theirs)
    plan.say(f"generator  10 sessions: ours {ours.rate:.0f}/s, smtp-source {theirs:.0f}/s")
    os.sync()


def log_beside_peers(plan: Plan) -> None:
    """256 B at 1 and 100 clients, at all systems in turn, round after round."""
    with ExitStack() as stack:
        place = stack.enter_context(plan.place("logpeers"))
        ours = LogCluster(place / "ours")
        stack.callback(ours.end)
        ours.begin()
        theirs = other = None
        if reason := etcd.why_not():
            plan.figures.reasons["etcd."] = reason
        else:
            theirs = Etcd(place / "etcd")
            stack.callback(theirs.end)
            theirs.begin()
            plan.figures.facts["etcd"] = etcd.version()
        if reason := pysyncobj.why_not():
            plan.figures.reasons["pysyncobj."] = reason
        else:
            other = PySyncObj(place / "pysyncobj")
            stack.callback(other.end)
            other.begin()
        load.write_log(ours.client_ports, 100, 256, seconds=plan.seconds(0.8))
        if theirs is not None:
            load.write_etcd(theirs.client_ports, 100, 256, seconds=plan.seconds(0.8))
        for number in range(1, plan.rounds + 1):
            plan.say(f"round {number}/{plan.rounds}")
            for clients in (1, 10, 100):
                seconds = plan.seconds(1.5)
                logwrites.write(plan, "smtpraft", ours, clients, 256, seconds)
                if theirs is not None:
                    before = theirs.cpu_s()
                    ports = theirs.client_ports if clients > 1 else [theirs.leader_port()]
                    found = load.write_etcd(ports, clients, 256, seconds=seconds)
                    logwrites.note(plan, "etcd", found, clients, 256, theirs.cpu_s() - before)
                    os.sync()
                if other is not None:
                    before = other.cpu_s()
                    found = load.write_log([other.leader_port()], clients, 256, seconds=seconds)
                    logwrites.note(plan, "pysyncobj", found, clients, 256, other.cpu_s() - before)
                    os.sync()
